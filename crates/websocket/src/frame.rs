//! The head of one frame: up to 14 bytes before the payload.
//!
//! The reader interprets the sequence of frames (fragments, limits); this file only parses a single
//! head.

use alloc::vec::Vec;
use core::ops::Deref;

use crate::{FrameError, Role, Rules, apply_mask};

/// Maximum size of a head in bytes: two, eight of length, four of mask.
pub const HEAD_MAX: usize = 14;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
/// The message is compressed: RFC 7692, section 6.
const RSV1: u8 = 0x40;
const MASK: u8 = 0x80;
const LEN_16: u8 = 126;
const LEN_64: u8 = 127;

/// The kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Opcode {
    /// The next fragment of a message.
    Continuation,
    /// A text message, or its first fragment.
    Text,
    /// A binary message, or its first fragment.
    Binary,
    /// The sender sends nothing more.
    Close,
    /// Requests a pong with the same payload.
    Ping,
    /// The answer to a ping, or an unsolicited keep-alive.
    Pong,
}

impl Opcode {
    /// Returns the four bits on the wire.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    /// Returns the opcode of four bits, or `None` for those that RFC 6455 reserves.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    /// Returns true for close, ping and pong, which may appear between the fragments of a message.
    #[must_use]
    pub const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// The bytes before a payload, on the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    bytes: [u8; HEAD_MAX],
    len: u8,
}

impl FrameHead {
    /// Returns the bytes: 2 to 14.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// Marks the payload as compressed by permessage-deflate.
    #[must_use]
    pub const fn deflated(mut self) -> Self {
        let [first, ..] = &mut self.bytes;
        *first |= RSV1;
        self
    }

    fn push(&mut self, bytes: &[u8]) {
        let start = usize::from(self.len);
        let end = start.saturating_add(bytes.len());
        if let Some(room) = self.bytes.get_mut(start..end) {
            room.copy_from_slice(bytes);
            self.len = u8::try_from(end).unwrap_or(self.len);
        }
    }
}

impl Deref for FrameHead {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

/// Returns the head of an unfragmented frame (FIN set) with a payload of `payload_len` bytes, the
/// length in its shortest form. With a mask, the payload must be masked with [`apply_mask`] before
/// it is sent.
#[must_use]
pub fn frame_head(opcode: Opcode, payload_len: usize, mask: Option<[u8; 4]>) -> FrameHead {
    let mut head = FrameHead { bytes: [0; HEAD_MAX], len: 0 };
    let mask_bit = if mask.is_some() { MASK } else { 0 };
    let first = FIN | opcode.bits();
    match (u8::try_from(payload_len), u16::try_from(payload_len)) {
        (Ok(len), _) if len < LEN_16 => head.push(&[first, mask_bit | len]),
        (_, Ok(len)) => {
            head.push(&[first, mask_bit | LEN_16]);
            head.push(&len.to_be_bytes());
        }
        _ => {
            head.push(&[first, mask_bit | LEN_64]);
            // No slice is longer than `isize::MAX`, so the top bit is never set.
            head.push(&u64::try_from(payload_len).unwrap_or(u64::MAX).to_be_bytes());
        }
    }
    if let Some(mask) = mask {
        head.push(&mask);
    }
    head
}

/// Appends a complete frame to `out`: the head, and the payload, masked if `mask` is given.
pub fn encode_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>) {
    let head = frame_head(opcode, payload.len(), mask);
    out.reserve(head.len().saturating_add(payload.len()));
    out.extend_from_slice(&head);
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(mask) = mask {
        apply_mask(out.get_mut(start..).unwrap_or_default(), mask, 0);
    }
}

/// A parsed head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) fin: bool,
    pub(crate) opcode: Opcode,
    /// The first frame of a compressed message.
    pub(crate) deflated: bool,
    pub(crate) mask: Option<[u8; 4]>,
    /// Payload length in bytes; at most `frame_bytes_max`.
    pub(crate) payload_len: usize,
}

/// Parses the head at the start of `bytes` and returns it with its size, or `None` if it is
/// incomplete.
///
/// Errors in the first two bytes are reported as soon as those are received. With `deflate`,
/// messages may be compressed.
pub(crate) fn parse_head(
    bytes: &[u8],
    rules: &Rules,
    deflate: bool,
) -> Result<Option<(Head, usize)>, FrameError> {
    let Some((&[first, second], rest)) = bytes.split_first_chunk::<2>() else { return Ok(None) };
    let (fin, masked, short_len) = (first & FIN != 0, second & MASK != 0, second & !MASK);
    let deflated = deflate && first & RESERVED == RSV1;
    if first & RESERVED != 0 && !deflated {
        return Err(FrameError::ReservedBit);
    }
    let bits = first & 0x0f;
    let opcode = Opcode::from_bits(bits).ok_or(FrameError::ReservedOpcode(bits))?;
    if deflated && !matches!(opcode, Opcode::Text | Opcode::Binary) {
        return Err(FrameError::ReservedBit);
    }
    if !rules.lenient {
        check_strict(rules.role, opcode, fin, masked, short_len)?;
    }
    let Some((len, rest)) = parse_len(short_len, rest, rules.lenient)? else { return Ok(None) };
    let limit = rules.frame_bytes_max;
    let payload_len = usize::try_from(len).ok().filter(|len| *len <= limit);
    let payload_len = payload_len.ok_or(FrameError::FrameTooLong { len, limit })?;
    let (mask, rest) = if masked {
        let Some((mask, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        (Some(*mask), rest)
    } else {
        (None, rest)
    };
    let used = bytes.len().saturating_sub(rest.len());
    Ok(Some((Head { fin, opcode, deflated, mask, payload_len }, used)))
}

/// Checks what RFC 6455 requires of the first two bytes and goim does not: masking, and small
/// unfragmented control frames.
fn check_strict(
    role: Role,
    opcode: Opcode,
    fin: bool,
    masked: bool,
    short_len: u8,
) -> Result<(), FrameError> {
    match (role, masked) {
        (Role::Server, false) => return Err(FrameError::NotMasked),
        (Role::Client, true) => return Err(FrameError::Masked),
        (Role::Server, true) | (Role::Client, false) => {}
    }
    if opcode.is_control() {
        if !fin {
            return Err(FrameError::ControlFragmented);
        }
        if short_len >= LEN_16 {
            return Err(FrameError::ControlTooLong);
        }
    }
    Ok(())
}

/// Returns the payload length that `short_len` is or announces, and the bytes after it.
fn parse_len(short_len: u8, rest: &[u8], lenient: bool) -> Result<Option<(u64, &[u8])>, FrameError> {
    let (len, shortest, rest) = match short_len {
        LEN_16 => {
            let Some((len, rest)) = rest.split_first_chunk::<2>() else { return Ok(None) };
            (u64::from(u16::from_be_bytes(*len)), u64::from(LEN_16), rest)
        }
        LEN_64 => {
            let Some((len, rest)) = rest.split_first_chunk::<8>() else { return Ok(None) };
            (u64::from_be_bytes(*len), 0x1_0000, rest)
        }
        len => (u64::from(len), 0, rest),
    };
    if i64::try_from(len).is_err() {
        return Err(FrameError::LengthTopBit);
    }
    if len < shortest && !lenient {
        return Err(FrameError::LengthNotShortest(len));
    }
    Ok(Some((len, rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules =
        Rules { role: Role::Client, lenient: false, frame_bytes_max: 1 << 20, message_bytes_max: 1 << 20 };

    #[test]
    fn each_length_takes_its_shortest_form() {
        let check = |len: usize, expected: &[u8]| {
            let head = frame_head(Opcode::Binary, len, None);
            assert_eq!(head.as_slice(), expected, "length {len}");
            let parsed =
                Head { fin: true, opcode: Opcode::Binary, deflated: false, mask: None, payload_len: len };
            assert_eq!(parse_head(&head, &RULES, false), Ok(Some((parsed, expected.len()))), "length {len}");
            for cut in 0..expected.len() {
                assert_eq!(
                    parse_head(&expected[..cut], &RULES, false),
                    Ok(None),
                    "length {len}, cut at {cut}"
                );
            }
        };
        check(0, &[0x82, 0]);
        check(125, &[0x82, 125]);
        check(126, &[0x82, 126, 0, 126]);
        check(65535, &[0x82, 126, 0xff, 0xff]);
        check(65536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn longer_forms_than_needed_are_for_the_lenient() {
        let lenient = Rules { lenient: true, ..RULES };
        let check = |bytes: &[u8], len: u64| {
            assert_eq!(parse_head(bytes, &RULES, false), Err(FrameError::LengthNotShortest(len)));
            let parsed = parse_head(bytes, &lenient, false).unwrap().unwrap();
            assert_eq!(parsed.0.payload_len as u64, len);
        };
        check(&[0x82, 126, 0, 125], 125);
        check(&[0x82, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff], 65535);
    }

    #[test]
    fn the_top_bit_of_a_length_is_refused_always() {
        for lenient in [false, true] {
            let rules = Rules { lenient, frame_bytes_max: usize::MAX, ..RULES };
            let head = [0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(parse_head(&head, &rules, false), Err(FrameError::LengthTopBit));
        }
    }

    #[test]
    fn a_masked_frame_is_laid_out_as_in_rfc_6455() {
        // Section 5.7: a single-frame masked text message that contains "Hello".
        let mut out = Vec::new();
        encode_frame(&mut out, Opcode::Text, b"Hello", Some([0x37, 0xfa, 0x21, 0x3d]));
        assert_eq!(out, [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
    }
}
