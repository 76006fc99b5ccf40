//! Decodes packets from a byte stream that arrives in arbitrary pieces.
//!
//! [`StreamDecoder`] stores only the partial packet, if there is one: an idle connection costs an
//! empty `Vec`, and a packet that is complete in the caller's buffer is never copied.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::packet::check_length;
use crate::{DecodeError, HEADER_LEN, Header, Packet};

/// Bytes reserved at once for an announced packet. A peer that announces a large packet and sends
/// little gets no more; beyond this, memory grows with the bytes received.
const RESERVE_MAX: usize = 64 * 1024;

/// Decodes packets from a stream.
///
/// Call [`StreamDecoder::next`] with the same buffer and position until it returns `None`; then the
/// buffer is consumed and can be reused for the next read.
#[derive(Debug, Default)]
pub struct StreamDecoder {
    /// The partial packet; boxed, since nearly every connection has none.
    partial: Option<Box<Partial>>,
}

#[derive(Debug, Default)]
struct Partial {
    /// The start of a packet, never longer than the packet.
    bytes: Vec<u8>,
    /// Whether the packet is complete and was returned by the last call.
    handed_out: bool,
}

impl StreamDecoder {
    /// Creates an empty decoder.
    #[must_use]
    pub const fn new() -> Self {
        Self { partial: None }
    }

    /// Returns true if the stream can end here without truncating a packet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.partial.as_ref().is_none_or(|partial| partial.handed_out || partial.bytes.is_empty())
    }

    /// Returns the size of the partial packet in bytes; 0 when idle. Its box takes 32 more.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.bytes.capacity())
    }

    /// Returns the next packet of `input` from `*at` on, or `None` if the rest of `input` was
    /// consumed.
    ///
    /// Advances `*at` past the consumed bytes. The body borrows from `input` if it is complete
    /// there, otherwise from this decoder. `body_max` limits the body in bytes; it is checked as
    /// soon as the header is complete, before any of the body is stored.
    ///
    /// # Errors
    /// See [`DecodeError`]. After an error the decoder must not be used again: the stream is out of
    /// sync.
    pub fn next<'a>(
        &'a mut self,
        input: &'a [u8],
        at: &mut usize,
        body_max: usize,
    ) -> Result<Option<Packet<'a>>, DecodeError> {
        if self.partial.as_ref().is_some_and(|partial| partial.handed_out) {
            // Free the memory immediately: an idle connection owns no buffer.
            self.partial = None;
        }
        if self.partial.is_none() {
            let rest = input.get(*at..).unwrap_or_default();
            if let Some((packet, used)) = whole_packet(rest, body_max)? {
                *at = at.saturating_add(used);
                return Ok(Some(packet));
            }
            if rest.is_empty() {
                return Ok(None);
            }
        }
        self.partial.get_or_insert_default().resume(input, at, body_max)
    }
}

impl Partial {
    /// Completes the packet from `input`, header first.
    fn resume<'a>(
        &'a mut self,
        input: &[u8],
        at: &mut usize,
        body_max: usize,
    ) -> Result<Option<Packet<'a>>, DecodeError> {
        if !self.fill(input, at, HEADER_LEN) {
            return Ok(None);
        }
        let Some(head) = self.bytes.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let header = Header::parse(head);
        let body_len = check_length(&header, body_max)?;
        if !self.fill(input, at, HEADER_LEN.saturating_add(body_len)) {
            return Ok(None);
        }
        self.handed_out = true;
        let body = self.bytes.get(HEADER_LEN..).unwrap_or_default();
        Ok(Some(Packet::new(&header, body)))
    }

    /// Moves bytes from `input` until there are `wanted`; returns false if `input` ends first.
    fn fill(&mut self, input: &[u8], at: &mut usize, wanted: usize) -> bool {
        let missing = wanted.saturating_sub(self.bytes.len());
        let rest = input.get(*at..).unwrap_or_default();
        let taken = rest.get(..missing).unwrap_or(rest);
        if !taken.is_empty() {
            if missing <= RESERVE_MAX {
                self.bytes.reserve_exact(missing);
            }
            self.bytes.extend_from_slice(taken);
            *at = at.saturating_add(taken.len());
        }
        self.bytes.len() >= wanted
    }
}

/// Returns the packet at the start of `bytes` and its size, if it is complete.
fn whole_packet(bytes: &[u8], body_max: usize) -> Result<Option<(Packet<'_>, usize)>, DecodeError> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let header = Header::parse(head);
    let body_len = check_length(&header, body_max)?;
    let Some(body) = rest.get(..body_len) else { return Ok(None) };
    Ok(Some((Packet::new(&header, body), HEADER_LEN.saturating_add(body_len))))
}
