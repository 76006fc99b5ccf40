//! What all timeline stores have in common, whatever they store messages in.

#[cfg(any(feature = "embedded", feature = "postgres"))]
pub(crate) mod admission;
#[cfg(any(feature = "embedded", feature = "postgres"))]
pub(crate) mod key;
#[cfg(any(feature = "embedded", feature = "postgres"))]
pub(crate) mod record;

#[cfg(any(feature = "embedded", feature = "postgres"))]
use goim_ports::Append;
use goim_ports::{Epoch, NewMessage};

/// The number of bytes of a message's bodies, as limits count them.
pub(crate) fn bytes_of(message: &NewMessage) -> u64 {
    message.bodies.bytes_len() as u64
}

/// The approximate number of bytes of memory that a queued append takes.
#[cfg(any(feature = "embedded", feature = "postgres"))]
pub(crate) fn memory_of(append: &Append) -> usize {
    usize::try_from(bytes_of(&append.message)).unwrap_or(usize::MAX).saturating_add(256)
}

/// Returns a random epoch for a new timeline; never zero.
pub(crate) fn new_epoch() -> Epoch {
    let mut bytes = [0; 8];
    // Without a source of randomness the process cannot run at all: TLS and session keys need it
    // too.
    getrandom::fill(&mut bytes).expect("the system has randomness");
    // Clients in languages with floating-point numbers hold 53 bits.
    Epoch((u64::from_le_bytes(bytes) >> 11).max(1))
}
