//! Packets off a byte stream, whatever the pieces in which it arrives.
//!
//! [`StreamDecoder`] keeps nothing between calls but the partial packet, if there is one: an idle connection costs
//! the size of an empty `Vec`, and a packet that lies complete in the caller's buffer is never copied.

use alloc::vec::Vec;

use crate::packet::check_length;
use crate::{DecodeError, HEADER_LEN, Header, Packet};

/// Bytes that are reserved at once for what is announced and not yet there. A peer that announces much and sends
/// little is given little; beyond this, memory grows with what arrives.
const RESERVE_MAX: usize = 64 * 1024;

/// Takes packets off a stream.
///
/// Call [`StreamDecoder::next`] with the same buffer and position until it gives `None`; then the buffer is used up
/// and may be reused for the next read.
#[derive(Debug, Default)]
pub struct StreamDecoder {
    /// The beginning of a packet whose rest has not arrived. Never longer than that packet.
    partial: Vec<u8>,
    /// `partial` holds a whole packet that the last call handed out.
    handed_out: bool,
}

impl StreamDecoder {
    /// A decoder that holds nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { partial: Vec::new(), handed_out: false }
    }

    /// True when the stream may end here without cutting a packet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.handed_out || self.partial.is_empty()
    }

    /// Bytes of heap that are kept for the partial packet; 0 when idle.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.partial.capacity()
    }

    /// The next packet of `input` from `*at` on, or `None` when the rest of `input` was used up.
    ///
    /// `*at` is moved past what was used. The body borrows from `input` when it lies there complete, else from this
    /// decoder. `body_max` bounds the body in bytes; it is checked as soon as the header is there, before anything of
    /// the body is kept.
    ///
    /// # Errors
    /// See [`DecodeError`]. After an error the decoder must not be used again: the stream is out of step.
    pub fn next<'a>(
        &'a mut self,
        input: &'a [u8],
        at: &mut usize,
        body_max: usize,
    ) -> Result<Option<Packet<'a>>, DecodeError> {
        if self.handed_out {
            // The memory goes back at once: an idle connection owns no buffer.
            self.partial = Vec::new();
            self.handed_out = false;
        }
        if self.partial.is_empty() {
            let rest = input.get(*at..).unwrap_or_default();
            if let Some((packet, used)) = whole_packet(rest, body_max)? {
                *at = at.saturating_add(used);
                return Ok(Some(packet));
            }
        }
        self.resume(input, at, body_max)
    }

    /// Completes the partial packet from `input`, header first.
    fn resume<'a>(
        &'a mut self,
        input: &[u8],
        at: &mut usize,
        body_max: usize,
    ) -> Result<Option<Packet<'a>>, DecodeError> {
        if !self.fill(input, at, HEADER_LEN) {
            return Ok(None);
        }
        let Some(head) = self.partial.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let header = Header::parse(head);
        let body_len = check_length(&header, body_max)?;
        if !self.fill(input, at, HEADER_LEN.saturating_add(body_len)) {
            return Ok(None);
        }
        self.handed_out = true;
        let body = self.partial.get(HEADER_LEN..).unwrap_or_default();
        Ok(Some(Packet::new(&header, body)))
    }

    /// Moves bytes from `input` until `partial` has `wanted` of them; false when `input` ends first.
    fn fill(&mut self, input: &[u8], at: &mut usize, wanted: usize) -> bool {
        let missing = wanted.saturating_sub(self.partial.len());
        let rest = input.get(*at..).unwrap_or_default();
        let taken = rest.get(..missing).unwrap_or(rest);
        if !taken.is_empty() {
            if missing <= RESERVE_MAX {
                self.partial.reserve_exact(missing);
            }
            self.partial.extend_from_slice(taken);
            *at = at.saturating_add(taken.len());
        }
        self.partial.len() >= wanted
    }
}

/// The packet at the front of `bytes`, with the bytes that it takes, if it is there in whole.
fn whole_packet(bytes: &[u8], body_max: usize) -> Result<Option<(Packet<'_>, usize)>, DecodeError> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let header = Header::parse(head);
    let body_len = check_length(&header, body_max)?;
    let Some(body) = rest.get(..body_len) else { return Ok(None) };
    Ok(Some((Packet::new(&header, body), HEADER_LEN.saturating_add(body_len))))
}
