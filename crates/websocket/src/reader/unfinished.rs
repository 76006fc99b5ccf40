//! What a reader keeps between calls: a frame and a message in the making.

use alloc::vec::Vec;

use super::{Kind, Rules};
use crate::frame::{HEAD_MAX, Head};
use crate::{FrameError, Opcode};

/// Largest step in which memory is reserved for a payload that is announced but not yet there, in bytes. A peer
/// that announces much and sends little is given little.
const RESERVE_STEP: usize = 64 * 1024;

/// A frame and a message in the making.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// The beginning of a head whose rest has not arrived.
    pub(super) head: [u8; HEAD_MAX],
    pub(super) head_len: usize,
    /// The frame whose payload is being gathered, and how much of it is there.
    pub(super) frame: Option<(Head, usize)>,
    /// Payload of the control frame that is being gathered.
    pub(super) control: Vec<u8>,
    /// The message whose last fragment has not arrived.
    pub(super) message: Option<Kind>,
    /// Payload of that message so far.
    pub(super) data: Vec<u8>,
    /// How much of `data` is known to be UTF-8.
    pub(super) utf8_len: usize,
    /// What the last call handed out from here; its memory goes back at the next.
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
    /// Bytes of heap that this takes, its own notes included.
    pub(super) fn heap_bytes(&self) -> usize {
        let payloads = self.control.capacity().saturating_add(self.data.capacity());
        size_of::<Self>().saturating_add(payloads)
    }

    /// True when nothing is kept that a later frame needs.
    pub(super) fn is_idle(&self) -> bool {
        let message = self.message.is_some() && self.handed_out != Some(Held::Data);
        self.head_len == 0 && self.frame.is_none() && !message
    }

    /// Adds to the head from `rest` and says how many bytes.
    pub(super) fn add_to_head(&mut self, rest: &[u8]) -> usize {
        let free = self.head.get_mut(self.head_len..).unwrap_or_default();
        let added = free.len().min(rest.len());
        for (to, from) in free.iter_mut().zip(rest) {
            *to = *from;
        }
        self.head_len = self.head_len.saturating_add(added);
        added
    }

    /// A data frame begins, or goes on; the first frame of a message gives its kind.
    pub(super) fn begin(&mut self, head: &Head) {
        self.message.get_or_insert(kind_of(head));
    }

    /// Adds a piece of the message. Text is checked as it comes, so that an error is not found out late.
    pub(super) fn add_data(&mut self, rules: &Rules, piece: &[u8], missing: usize) -> Result<(), FrameError> {
        append(&mut self.data, piece, missing, rules.message_bytes_max);
        if rules.lenient || self.message != Some(Kind::Text) {
            self.utf8_len = self.data.len();
            return Ok(());
        }
        let fresh = self.data.get(self.utf8_len..).unwrap_or_default();
        let good = match core::str::from_utf8(fresh) {
            Ok(text) => text.len(),
            // Cut inside a character: its rest may be still to come.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => return Err(FrameError::NotUtf8),
        };
        self.utf8_len = self.utf8_len.saturating_add(good);
        Ok(())
    }

    /// Adds a piece of a control frame.
    pub(super) fn add_control(&mut self, rules: &Rules, piece: &[u8], missing: usize) {
        append(&mut self.control, piece, missing, rules.frame_bytes_max);
    }

    /// A fragment is complete; the last one completes its message, which is then handed out.
    pub(super) fn end_fragment(&mut self, fin: bool) -> Result<Option<Kind>, FrameError> {
        let (Some(kind), true) = (self.message, fin) else { return Ok(None) };
        if self.utf8_len < self.data.len() {
            return Err(FrameError::NotUtf8);
        }
        self.handed_out = Some(Held::Data);
        Ok(Some(kind))
    }

    /// Gives back the memory of what was handed out.
    pub(super) fn reclaim(&mut self) {
        match self.handed_out.take() {
            Some(Held::Control) => self.control = Vec::new(),
            // A message is handed out when its last frame is whole, so nothing else is in the making.
            Some(Held::Data) => *self = Self::default(),
            None => {}
        }
    }
}

/// goim makes no difference between text and binary; a message that begins with a continuation counts as binary.
pub(super) fn kind_of(head: &Head) -> Kind {
    match head.opcode {
        _ if head.deflated => Kind::Deflated,
        Opcode::Text => Kind::Text,
        _ => Kind::Binary,
    }
}

/// Appends `piece`, the first of `missing` bytes that are announced, to a buffer that will never hold more than
/// `limit`.
fn append(to: &mut Vec<u8>, piece: &[u8], missing: usize, limit: usize) {
    if to.capacity().saturating_sub(to.len()) < piece.len() {
        let announced = missing.min(RESERVE_STEP.max(piece.len()));
        // At least doubled, so that a message in tiny fragments is not moved for each of them.
        let doubled = to.len().min(limit.saturating_sub(to.len()));
        to.reserve_exact(announced.max(doubled));
    }
    to.extend_from_slice(piece);
}
