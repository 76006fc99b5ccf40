//! The run of complete packets that operation 9 carries.

use alloc::vec::Vec;
use bytes::Bytes;

use crate::{DecodeError, Operation, Packet, PacketBuf};

/// Builds a batch: packets one behind the other.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    bytes: Vec<u8>,
    packets: usize,
}

impl BatchBuilder {
    /// An empty batch.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), packets: 0 }
    }

    /// One message as comets want it: `packet` in a batch of its own.
    #[must_use]
    pub fn one(packet: Packet<'_>) -> PacketBuf {
        let mut batch = Self { bytes: Vec::with_capacity(packet.encoded_len()), packets: 0 };
        batch.push(packet);
        batch.finish()
    }

    /// Adds a packet at the end.
    pub fn push(&mut self, packet: Packet<'_>) {
        packet.encode(&mut self.bytes);
        self.packets = self.packets.saturating_add(1);
    }

    /// Packets added so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packets
    }

    /// True when nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets == 0
    }

    /// Bytes that the packets take so far.
    #[must_use]
    pub fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    /// The batch as one packet of operation 9, version 1, sequence 0, as job hands it to comet.
    #[must_use]
    pub fn finish(self) -> PacketBuf {
        PacketBuf::push(Operation::RAW, Bytes::from(self.bytes))
    }
}

/// The packets inside the body of operation 9, in order.
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
        // The batch is complete, so its own length is the only bound that is needed.
        let packet = Packet::from_message(self.rest, usize::MAX);
        let used = packet.as_ref().map_or(self.rest.len(), Packet::encoded_len);
        self.rest = self.rest.get(used..).unwrap_or_default();
        Some(packet)
    }
}
