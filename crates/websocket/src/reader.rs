//! Decodes events from a stream of frames that arrives in arbitrary pieces.
//!
//! [`Reader`] stores only an unfinished frame or message, if there is one: an idle connection costs
//! one pointer, and a message that is complete in the caller's buffer is unmasked there and never
//! copied. The reader answers nothing: pings and closes are events like messages.

mod unfinished;

use alloc::boxed::Box;
use core::ops::Range;

use crate::frame::{Head, parse_head};
use crate::{FrameError, Opcode, apply_mask, close};
use unfinished::{Held, Unfinished, kind_of};

/// The role of this side. A server reads masked frames and writes unmasked ones, a client the
/// reverse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// This side accepted the connection.
    Server,
    /// This side opened the connection.
    Client,
}

/// What a [`Reader`] accepts. Must not change during a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The role of this side.
    pub role: Role,
    /// Accepts what goim accepts instead of what RFC 6455 requires.
    ///
    /// Text is not checked for UTF-8; masking is optional; a continuation may appear anywhere, and
    /// a new data frame inside a fragmented message is appended to it; lengths may be in a longer
    /// form; control frames may be long or without FIN, and each is a separate event; close codes
    /// are not checked.
    pub lenient: bool,
    /// Maximum payload of one frame, in bytes.
    pub frame_bytes_max: usize,
    /// Maximum size of a message, in bytes, over all of its fragments.
    pub message_bytes_max: usize,
}

/// The type of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8, checked unless the rules are lenient.
    Text,
    /// Any bytes.
    Binary,
    /// Text or binary under permessage-deflate (RFC 7692), still compressed. Only from
    /// [`Reader::deflating`].
    Deflated,
}

/// A decoded event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A complete message, its fragments joined.
    Message {
        /// Text or binary.
        kind: Kind,
        /// The payload, unmasked.
        payload: &'a [u8],
    },
    /// Requests a pong with the same payload.
    Ping(&'a [u8]),
    /// Needs no answer.
    Pong(&'a [u8]),
    /// The peer sends nothing more; bytes after it must not be read.
    Close {
        /// The code; `None` if the frame has none.
        code: Option<u16>,
        /// The reason, for people. UTF-8, unless the rules are lenient.
        reason: &'a [u8],
    },
}

/// Decodes events from a stream of frames.
///
/// Call [`Reader::next`] with the same buffer and position until it returns `None`; then the buffer
/// is consumed and can be reused for the next read.
#[derive(Debug, Default)]
pub struct Reader {
    /// Set only while a frame or a message is unfinished, or if the last call finished it.
    unfinished: Option<Box<Unfinished>>,
    /// Whether messages may be compressed.
    deflate: bool,
}

/// Where the payload of a finished frame or message is.
enum Found {
    Input(Range<usize>),
    Held(Held),
}

/// The result of one step.
enum Step {
    /// The input is consumed.
    Starved,
    /// A fragment that does not end its message.
    Silent,
    /// An event of this kind.
    Done(What, Found),
}

impl Step {
    /// Returns the result of the end of a fragment; `kind` if it ends its message.
    fn of_fragment(kind: Option<Kind>) -> Self {
        kind.map_or(Self::Silent, |kind| Self::Done(What::Message(kind), Found::Held(Held::Data)))
    }
}

#[derive(Clone, Copy)]
enum What {
    Message(Kind),
    Ping,
    Pong,
    Close,
}

impl Reader {
    /// Creates an empty reader.
    #[must_use]
    pub const fn new() -> Self {
        Self { unfinished: None, deflate: false }
    }

    /// Creates an empty reader for a connection with permessage-deflate.
    #[must_use]
    pub const fn deflating() -> Self {
        Self { unfinished: None, deflate: true }
    }

    /// Returns true for a connection with permessage-deflate.
    #[must_use]
    pub const fn deflates(&self) -> bool {
        self.deflate
    }

    /// Returns true if the stream can end here without truncating a frame or a message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.unfinished.as_ref().is_none_or(|unfinished| unfinished.is_idle())
    }

    /// Returns the heap memory of the unfinished frame and message in bytes; 0 when idle.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.unfinished.as_ref().map_or(0, |unfinished| unfinished.heap_bytes())
    }

    /// Returns the next event of `input` from `*at` on, or `None` if the rest of `input` was
    /// consumed.
    ///
    /// Advances `*at` past the consumed bytes. The payload borrows from `input`, where it was
    /// unmasked in place, if it is complete there, otherwise from this reader. Limits are checked
    /// as soon as a frame's head is complete, before any of its payload is stored.
    ///
    /// # Errors
    /// See [`FrameError`]. After an error, as after [`Event::Close`], the reader must not be used
    /// again.
    pub fn next<'a>(
        &'a mut self,
        rules: &Rules,
        input: &'a mut [u8],
        at: &mut usize,
    ) -> Result<Option<Event<'a>>, FrameError> {
        self.reclaim();
        let (what, found) = loop {
            match self.step(rules, input, at)? {
                Step::Starved => return Ok(None),
                Step::Silent => {}
                Step::Done(what, found) => break (what, found),
            }
        };
        let unfinished = self.unfinished.as_deref();
        let payload = match found {
            Found::Input(range) => input.get(range),
            Found::Held(Held::Control) => unfinished.map(|unfinished| unfinished.control.as_slice()),
            Found::Held(Held::Data) => unfinished.map(|unfinished| unfinished.data.as_slice()),
        };
        let payload = payload.unwrap_or_default();
        Ok(Some(match what {
            What::Message(kind) => Event::Message { kind, payload },
            What::Ping => Event::Ping(payload),
            What::Pong => Event::Pong(payload),
            What::Close => {
                let (code, reason) = close::parse(payload, rules.lenient)?;
                Event::Close { code, reason }
            }
        }))
    }

    /// Frees the memory of the event that the last call returned: an idle connection owns no
    /// buffer.
    fn reclaim(&mut self) {
        if let Some(unfinished) = &mut self.unfinished {
            unfinished.reclaim();
            self.release();
        }
    }

    fn release(&mut self) {
        if self.unfinished.as_ref().is_some_and(|unfinished| unfinished.is_idle()) {
            self.unfinished = None;
        }
    }

    fn unfinished(&mut self) -> &mut Unfinished {
        self.unfinished.get_or_insert_default()
    }

    /// Reads one frame, or the part of it that was received.
    fn step(&mut self, rules: &Rules, input: &mut [u8], at: &mut usize) -> Result<Step, FrameError> {
        if self.unfinished.as_ref().is_none_or(|unfinished| unfinished.frame.is_none()) {
            let Some(head) = self.take_head(rules, input, at)? else { return Ok(Step::Starved) };
            self.admit(rules, &head)?;
            let end = at.saturating_add(head.payload_len);
            if let Some(payload) = input.get_mut(*at..end) {
                let range = *at..end;
                *at = end;
                unmask(payload, &head, 0);
                return self.whole_frame(rules, &head, payload, range);
            }
            self.unfinished().frame = Some((head, 0));
        }
        self.gather(rules, input, at)
    }

    /// Returns the next frame's head, or `None` if `input` ends inside it; the part is then stored.
    fn take_head(&mut self, rules: &Rules, input: &[u8], at: &mut usize) -> Result<Option<Head>, FrameError> {
        let rest = input.get(*at..).unwrap_or_default();
        let kept = self.unfinished.as_ref().map_or(0, |unfinished| unfinished.head_len);
        if kept == 0 {
            if let Some((head, used)) = parse_head(rest, rules, self.deflate)? {
                *at = at.saturating_add(used);
                return Ok(Some(head));
            }
            if rest.is_empty() {
                return Ok(None);
            }
        }
        let deflate = self.deflate;
        let unfinished = self.unfinished();
        let added = unfinished.add_to_head(rest);
        let bytes = unfinished.head.get(..unfinished.head_len).unwrap_or_default();
        let Some((head, used)) = parse_head(bytes, rules, deflate)? else {
            *at = at.saturating_add(added);
            return Ok(None);
        };
        // More than the head may have been added; only the head was consumed.
        *at = at.saturating_add(used.saturating_sub(kept));
        unfinished.head_len = 0;
        self.release();
        Ok(Some(head))
    }

    /// Checks a head against the unfinished message, and the message against its limit.
    fn admit(&self, rules: &Rules, head: &Head) -> Result<(), FrameError> {
        if head.opcode.is_control() {
            return Ok(());
        }
        let message = self.unfinished.as_ref().filter(|unfinished| unfinished.message.is_some());
        if !rules.lenient {
            match (head.opcode, message) {
                (Opcode::Continuation, None) => return Err(FrameError::NothingToContinue),
                (Opcode::Text | Opcode::Binary, Some(_)) => return Err(FrameError::MessageInterleaved),
                _ => {}
            }
        }
        let len = message.map_or(0, |unfinished| unfinished.data.len());
        if len.saturating_add(head.payload_len) > rules.message_bytes_max {
            return Err(FrameError::MessageTooLong { limit: rules.message_bytes_max });
        }
        Ok(())
    }

    /// Handles a frame whose payload is complete in the input, at `range`.
    fn whole_frame(
        &mut self,
        rules: &Rules,
        head: &Head,
        payload: &[u8],
        range: Range<usize>,
    ) -> Result<Step, FrameError> {
        let what = match head.opcode {
            Opcode::Ping => What::Ping,
            Opcode::Pong => What::Pong,
            Opcode::Close => What::Close,
            Opcode::Continuation | Opcode::Text | Opcode::Binary => {
                let joins = self.unfinished.as_ref().is_some_and(|unfinished| unfinished.message.is_some());
                if joins || !head.fin {
                    let unfinished = self.unfinished();
                    unfinished.begin(head);
                    unfinished.add_data(rules, payload, payload.len())?;
                    return Ok(Step::of_fragment(unfinished.end_fragment(head.fin)?));
                }
                let kind = kind_of(head);
                if kind == Kind::Text && !rules.lenient && core::str::from_utf8(payload).is_err() {
                    return Err(FrameError::NotUtf8);
                }
                What::Message(kind)
            }
        };
        Ok(Step::Done(what, Found::Input(range)))
    }

    /// Appends to a frame whose payload arrives in pieces.
    fn gather(&mut self, rules: &Rules, input: &mut [u8], at: &mut usize) -> Result<Step, FrameError> {
        let unfinished = self.unfinished();
        let Some((head, received)) = unfinished.frame else { return Ok(Step::Starved) };
        let missing = head.payload_len.saturating_sub(received);
        let start = (*at).min(input.len());
        let end = start.saturating_add(missing).min(input.len());
        let piece = input.get_mut(start..end).unwrap_or_default();
        unmask(piece, &head, received);
        *at = end;
        let data = !head.opcode.is_control();
        if data {
            unfinished.begin(&head);
            unfinished.add_data(rules, piece, missing)?;
        } else {
            unfinished.add_control(rules, piece, missing);
        }
        if piece.len() < missing {
            unfinished.frame = Some((head, received.saturating_add(piece.len())));
            return Ok(Step::Starved);
        }
        unfinished.frame = None;
        if data {
            return Ok(Step::of_fragment(unfinished.end_fragment(head.fin)?));
        }
        unfinished.handed_out = Some(Held::Control);
        let what = match head.opcode {
            Opcode::Ping => What::Ping,
            Opcode::Close => What::Close,
            _ => What::Pong,
        };
        Ok(Step::Done(what, Found::Held(Held::Control)))
    }
}

fn unmask(payload: &mut [u8], head: &Head, offset: usize) {
    if let Some(mask) = head.mask {
        apply_mask(payload, mask, offset);
    }
}
