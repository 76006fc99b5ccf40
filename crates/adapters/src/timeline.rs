//! What all timeline stores have in common, whatever they are kept in.

#[cfg(any(feature = "embedded", feature = "postgres"))]
pub(crate) mod key;
#[cfg(any(feature = "embedded", feature = "postgres"))]
pub(crate) mod record;

use goim_ports::{Epoch, NewMessage};

/// Bytes of a message's bodies, as limits count them.
pub(crate) fn bytes_of(message: &NewMessage) -> u64 {
    message.bodies.bytes_len() as u64
}

/// Another one for each timeline; never zero.
pub(crate) fn draw_epoch() -> Epoch {
    let mut bytes = [0; 8];
    // Without a source of randomness nothing here could go on: TLS and keys need it too.
    getrandom::fill(&mut bytes).expect("the system has randomness");
    // Clients written in languages whose numbers are floating hold 53 bits.
    Epoch((u64::from_le_bytes(bytes) >> 11).max(1))
}
