//! A header with its body: borrowed ([`Packet`]) while it is decoded, owned ([`PacketBuf`]) between
//! roles.

use alloc::vec::Vec;
use bytes::{BufMut, Bytes, BytesMut};

use crate::{DecodeError, HEADER_LEN, Header, Operation, Sequence, Version, batch};

/// A packet whose body is borrowed from the reader's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The format of the body.
    pub version: Version,
    /// The operation.
    pub operation: Operation,
    /// The sender's number for the packet.
    pub sequence: Sequence,
    /// The body.
    pub body: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Decodes the packet at the start of a WebSocket message. Bytes after it are ignored, as in
    /// goim.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] if the message is shorter than the packet that it announces, and
    /// the errors of [`check_length`].
    pub fn from_message(message: &'a [u8], body_max: usize) -> Result<Self, DecodeError> {
        let truncated = |packet_len| DecodeError::Truncated { packet_len, received: message.len() };
        let Some((head, rest)) = message.split_first_chunk::<HEADER_LEN>() else {
            return Err(truncated(0));
        };
        let header = Header::parse(head);
        let body_len = check_length(&header, body_max)?;
        let body = rest.get(..body_len).ok_or_else(|| truncated(header.packet_len))?;
        Ok(Self::new(&header, body))
    }

    pub(crate) fn new(header: &Header, body: &'a [u8]) -> Self {
        Self { version: header.version, operation: header.operation, sequence: header.sequence, body }
    }

    /// Returns the packet's header.
    #[must_use]
    pub fn header(&self) -> Header {
        Header::new(self.version, self.operation, self.sequence, self.body.len())
    }

    /// Returns the encoded size in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        HEADER_LEN.saturating_add(self.body.len())
    }

    /// Appends the packet to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(self.encoded_len());
        out.extend_from_slice(&self.header().to_bytes());
        out.extend_from_slice(self.body);
    }

    /// Copies the body.
    #[must_use]
    pub fn to_owned(&self) -> PacketBuf {
        PacketBuf {
            version: self.version,
            operation: self.operation,
            sequence: self.sequence,
            body: Bytes::copy_from_slice(self.body),
        }
    }
}

/// A packet whose body is owned and shared by reference.
///
/// goim's `Proto` message: between comet and logic, and from job to comet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketBuf {
    /// The format of the body.
    pub version: Version,
    /// The operation.
    pub operation: Operation,
    /// The sender's number for the packet.
    pub sequence: Sequence,
    /// The body.
    pub body: Bytes,
}

impl PacketBuf {
    /// Creates a packet that replies to nothing, as goim pushes it: version 1, sequence 0.
    #[must_use]
    pub fn push(operation: Operation, body: Bytes) -> Self {
        Self { version: Version::GOIM, operation, sequence: Sequence::NONE, body }
    }

    /// Returns the operation of the message inside: for a batch (operation 9), that of its first
    /// packet.
    #[must_use]
    pub fn carried_operation(&self) -> Operation {
        if self.operation != Operation::RAW {
            return self.operation;
        }
        let first = batch::packets(&self.body).next();
        first.and_then(Result::ok).map_or(Operation::RAW, |first| first.operation)
    }

    /// Borrows the packet.
    #[must_use]
    pub fn as_packet(&self) -> Packet<'_> {
        Packet { version: self.version, operation: self.operation, sequence: self.sequence, body: &self.body }
    }

    /// Encodes the packet for a byte stream.
    ///
    /// Operation 9 is an exception of goim's: its body is a run of complete packets and needs no
    /// header on a stream, so the body itself is returned, shared and not copied.
    #[must_use]
    pub fn to_stream_bytes(&self) -> Bytes {
        if self.operation == Operation::RAW {
            return self.body.clone();
        }
        self.to_message_bytes()
    }

    /// Encodes the packet as a WebSocket message: header and body, whatever the operation.
    #[must_use]
    pub fn to_message_bytes(&self) -> Bytes {
        let packet = self.as_packet();
        let mut out = BytesMut::with_capacity(packet.encoded_len());
        out.put_slice(&packet.header().to_bytes());
        out.put_slice(packet.body);
        out.freeze()
    }
}

/// Checks the lengths in a header and returns the length of the body in bytes.
///
/// # Errors
/// [`DecodeError::TooLong`], [`DecodeError::BadHeaderLen`], [`DecodeError::TooShort`], in goim's
/// order of checks.
pub fn check_length(header: &Header, body_max: usize) -> Result<usize, DecodeError> {
    let limit = body_max.saturating_add(HEADER_LEN);
    let Ok(packet_len) = usize::try_from(header.packet_len) else {
        return Err(DecodeError::TooShort(header.packet_len));
    };
    if packet_len > limit {
        return Err(DecodeError::TooLong { packet_len: header.packet_len, limit });
    }
    if usize::try_from(header.header_len) != Ok(HEADER_LEN) {
        return Err(DecodeError::BadHeaderLen(header.header_len));
    }
    packet_len.checked_sub(HEADER_LEN).ok_or(DecodeError::TooShort(header.packet_len))
}
