//! The output of the client's end, and the batch that is being split.

use alloc::vec::Vec;

use goim_websocket::{self as websocket, Opcode};
use goim_wire::{DecodeError, Packet, batch};

use super::Masks;
use crate::Transport;

/// The bytes to write. Owns no memory while empty.
pub(super) struct Output {
    transport: Transport,
    masks: Masks,
    bytes: Vec<u8>,
    /// Number of bytes at the front that are written already.
    written: usize,
}

impl Output {
    pub(super) fn new(transport: Transport, bytes: Vec<u8>, masks: Masks) -> Self {
        Self { transport, masks, bytes, written: 0 }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }

    pub(super) fn packet(&mut self, packet: Packet<'_>) {
        let mask = match self.transport {
            Transport::Stream => None,
            Transport::WebSocket => Some((self.masks)()),
        };
        self.transport.encode(packet, mask, &mut self.bytes);
    }

    /// Appends a WebSocket control frame.
    pub(super) fn frame(&mut self, opcode: Opcode, payload: &[u8]) {
        websocket::encode_frame(&mut self.bytes, opcode, payload, Some((self.masks)()));
    }

    pub(super) fn advance(&mut self, len: usize) {
        self.written = self.written.saturating_add(len);
        if self.written >= self.bytes.len() {
            self.bytes = Vec::new();
            self.written = 0;
        } else if self.written > self.bytes.len() / 2 {
            // More is written than left: moving the rest costs less than it cost to write.
            self.bytes.drain(..self.written);
            self.written = 0;
        }
    }
}

/// The packets of operation 9 that were not returned yet.
///
/// The run is copied once, so that the driver gets its packets one by one and may stop between two
/// of them.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    at: usize,
}

impl Batch {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn fill(&mut self, body: &[u8]) {
        self.bytes = body.to_vec();
        self.at = 0;
    }

    /// Returns true if every packet was returned. Frees the memory then.
    pub(super) fn is_empty(&mut self) -> bool {
        let empty = self.at >= self.bytes.len();
        if empty {
            self.bytes = Vec::new();
        }
        empty
    }

    pub(super) fn next(&mut self) -> Result<Packet<'_>, DecodeError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let truncated = DecodeError::Truncated { packet_len: 0, received: rest.len() };
        let packet = batch::packets(rest).next().ok_or(truncated)??;
        self.at = self.at.saturating_add(packet.encoded_len());
        Ok(packet)
    }
}
