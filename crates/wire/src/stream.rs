//! Packets off a byte stream, whatever the pieces in which it arrives.
//!
//! [`StreamDecoder`] keeps nothing between calls but the partial packet, if there is one: an idle connection costs
//! the size of an empty `Vec`, and a packet that lies complete in the caller's buffer is never copied.

use alloc::boxed::Box;
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
    /// The packet whose rest has not arrived; a pointer, since nearly every connection has none.
    partial: Option<Box<Partial>>,
}

#[derive(Debug, Default)]
struct Partial {
    /// The beginning of a packet. Never longer than that packet.
    bytes: Vec<u8>,
    /// The packet is whole, and the last call handed it out.
    handed_out: bool,
}

impl StreamDecoder {
    /// A decoder that holds nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { partial: None }
    }

    /// True when the stream may end here without cutting a packet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.partial.as_ref().is_none_or(|partial| partial.handed_out || partial.bytes.is_empty())
    }

    /// Bytes that are kept for the partial packet; 0 when idle. While there is one, a box of four words holds them.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.bytes.capacity())
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
        if self.partial.as_ref().is_some_and(|partial| partial.handed_out) {
            // The memory goes back at once: an idle connection owns no buffer.
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

    /// Moves bytes from `input` until there are `wanted`; false when `input` ends first.
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

/// The packet at the front of `bytes`, with the bytes that it takes, if it is there in whole.
fn whole_packet(bytes: &[u8], body_max: usize) -> Result<Option<(Packet<'_>, usize)>, DecodeError> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let header = Header::parse(head);
    let body_len = check_length(&header, body_max)?;
    let Some(body) = rest.get(..body_len) else { return Ok(None) };
    Ok(Some((Packet::new(&header, body), HEADER_LEN.saturating_add(body_len))))
}
