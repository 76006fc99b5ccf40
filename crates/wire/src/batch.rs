//! The run of complete packets that operation 9 carries.

use alloc::vec::Vec;
use bytes::Bytes;

use crate::{DecodeError, Operation, Packet, PacketBuf};

/// Builds a batch of packets.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    bytes: Vec<u8>,
    packets: usize,
}

impl BatchBuilder {
    /// Creates an empty batch.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), packets: 0 }
    }

    /// Returns `packet` in a batch by itself, as comets want it.
    #[must_use]
    pub fn one(packet: Packet<'_>) -> PacketBuf {
        let mut batch = Self { bytes: Vec::with_capacity(packet.encoded_len()), packets: 0 };
        batch.push(packet);
        batch.finish()
    }

    /// Appends a packet.
    pub fn push(&mut self, packet: Packet<'_>) {
        packet.encode(&mut self.bytes);
        self.packets = self.packets.saturating_add(1);
    }

    /// Returns the number of packets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packets
    }

    /// Returns true if the batch has no packets.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets == 0
    }

    /// Returns the size of the packets in bytes.
    #[must_use]
    pub fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the batch as a packet of operation 9, version 1, sequence 0, as job sends it to
    /// comet.
    #[must_use]
    pub fn finish(self) -> PacketBuf {
        PacketBuf::push(Operation::RAW, Bytes::from(self.bytes))
    }
}

/// Returns the packets in the body of operation 9, in order.
#[must_use]
pub fn packets(body: &[u8]) -> Packets<'_> {
    Packets { rest: body }
}

/// Iterator over the packets of a batch; ends after the first error.
#[derive(Debug, Clone)]
pub struct Packets<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Packets<'a> {
    type Item = Result<Packet<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        // The batch is complete: its own length is the only limit needed.
        let packet = Packet::from_message(self.rest, usize::MAX);
        let used = packet.as_ref().map_or(self.rest.len(), Packet::encoded_len);
        self.rest = self.rest.get(used..).unwrap_or_default();
        Some(packet)
    }
}
