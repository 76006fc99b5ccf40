//! The state of a reader between calls: an unfinished frame and message.

use alloc::vec::Vec;

use super::{Kind, Rules};
use crate::frame::{HEAD_MAX, Head};
use crate::{FrameError, Opcode};

/// Maximum step in which memory is reserved for an announced payload, in bytes. A peer that
/// announces a large payload and sends little gets no more.
const RESERVE_STEP: usize = 64 * 1024;

/// An unfinished frame and message.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// The start of an incomplete head.
    pub(super) head: [u8; HEAD_MAX],
    pub(super) head_len: usize,
    /// The frame whose payload is being read, and the number of bytes received.
    pub(super) frame: Option<(Head, usize)>,
    /// Payload of the control frame that is being read.
    pub(super) control: Vec<u8>,
    /// The message whose last fragment is missing.
    pub(super) message: Option<Kind>,
    /// Payload of that message so far.
    pub(super) data: Vec<u8>,
    /// The number of bytes of `data` that are checked UTF-8.
    pub(super) utf8_len: usize,
    /// The buffer that the last call returned; it is freed by the next call.
    pub(super) handed_out: Option<Held>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// `control`.
    Control,
    /// `data`.
    Data,
}

impl Unfinished {
    /// Returns the heap memory in bytes, with this struct.
    pub(super) fn heap_bytes(&self) -> usize {
        let payloads = self.control.capacity().saturating_add(self.data.capacity());
        size_of::<Self>().saturating_add(payloads)
    }

    /// Returns true if no later frame needs this state.
    pub(super) fn is_idle(&self) -> bool {
        let message = self.message.is_some() && self.handed_out != Some(Held::Data);
        self.head_len == 0 && self.frame.is_none() && !message
    }

    /// Appends to the head from `rest` and returns the number of bytes.
    pub(super) fn add_to_head(&mut self, rest: &[u8]) -> usize {
        let free = self.head.get_mut(self.head_len..).unwrap_or_default();
        let added = free.len().min(rest.len());
        for (to, from) in free.iter_mut().zip(rest) {
            *to = *from;
        }
        self.head_len = self.head_len.saturating_add(added);
        added
    }

    /// Starts or continues a data frame; the first frame of a message sets its kind.
    pub(super) fn begin(&mut self, head: &Head) {
        self.message.get_or_insert(kind_of(head));
    }

    /// Appends a piece of the message. Text is checked piece by piece, so that an error is reported
    /// early.
    pub(super) fn add_data(&mut self, rules: &Rules, piece: &[u8], missing: usize) -> Result<(), FrameError> {
        append(&mut self.data, piece, missing, rules.message_bytes_max);
        if rules.lenient || self.message != Some(Kind::Text) {
            self.utf8_len = self.data.len();
            return Ok(());
        }
        let fresh = self.data.get(self.utf8_len..).unwrap_or_default();
        let good = match core::str::from_utf8(fresh) {
            Ok(text) => text.len(),
            // Split inside a character: the rest may follow.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => return Err(FrameError::NotUtf8),
        };
        self.utf8_len = self.utf8_len.saturating_add(good);
        Ok(())
    }

    /// Appends a piece of a control frame.
    pub(super) fn add_control(&mut self, rules: &Rules, piece: &[u8], missing: usize) {
        append(&mut self.control, piece, missing, rules.frame_bytes_max);
    }

    /// Ends a fragment; the last one completes its message, which is then returned.
    pub(super) fn end_fragment(&mut self, fin: bool) -> Result<Option<Kind>, FrameError> {
        let (Some(kind), true) = (self.message, fin) else { return Ok(None) };
        if self.utf8_len < self.data.len() {
            return Err(FrameError::NotUtf8);
        }
        self.handed_out = Some(Held::Data);
        Ok(Some(kind))
    }

    /// Frees the returned buffer.
    pub(super) fn reclaim(&mut self) {
        match self.handed_out.take() {
            Some(Held::Control) => self.control = Vec::new(),
            // A message is returned when its last frame is complete, so nothing else is unfinished.
            Some(Held::Data) => *self = Self::default(),
            None => {}
        }
    }
}

/// goim does not distinguish text from binary; a message that starts with a continuation counts as
/// binary.
pub(super) fn kind_of(head: &Head) -> Kind {
    match head.opcode {
        _ if head.deflated => Kind::Deflated,
        Opcode::Text => Kind::Text,
        _ => Kind::Binary,
    }
}

/// Appends `piece`, the first of `missing` announced bytes, to a buffer that never holds more than
/// `limit`.
fn append(to: &mut Vec<u8>, piece: &[u8], missing: usize, limit: usize) {
    if to.capacity().saturating_sub(to.len()) < piece.len() {
        let announced = missing.min(RESERVE_STEP.max(piece.len()));
        // Grows at least by doubling, so that a message in tiny fragments is not moved for each of
        // them.
        let doubled = to.len().min(limit.saturating_sub(to.len()));
        to.reserve_exact(announced.max(doubled));
    }
    to.extend_from_slice(piece);
}
