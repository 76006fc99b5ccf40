//! Close frames: the codes of RFC 6455, section 7.4, and the payload that carries one.

use alloc::vec::Vec;

use crate::FrameError;

/// The purpose of the connection is fulfilled.
pub const NORMAL: u16 = 1000;
/// The server shuts down, or the browser leaves the page.
pub const GOING_AWAY: u16 = 1001;
/// The peer violated RFC 6455.
pub const PROTOCOL_ERROR: u16 = 1002;
/// A text message was not UTF-8.
pub const NOT_UTF8: u16 = 1007;
/// The peer violated a rule of the application.
pub const POLICY: u16 = 1008;
/// A frame or a message exceeds the receiver's limit.
pub const TOO_BIG: u16 = 1009;
/// The server met a condition that it cannot handle.
pub const INTERNAL: u16 = 1011;

/// Maximum payload of a control frame in bytes.
pub const CONTROL_PAYLOAD_MAX: usize = 125;

/// Maximum size of a reason in bytes: the payload of a control frame without the two bytes of the
/// code.
const REASON_MAX: usize = 123;

/// Returns the payload of a close frame: the code, then `reason`, truncated to 123 bytes at a
/// character boundary.
#[must_use]
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    let reason = reason.get(..reason.floor_char_boundary(REASON_MAX)).unwrap_or_default();
    let mut out = Vec::with_capacity(reason.len().saturating_add(2));
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
    out
}

/// Returns true for codes that an endpoint may send: those that RFC 6455 and its registry define
/// (1004 to 1006 and 1015 are reserved), and those left to libraries and applications.
#[must_use]
pub const fn is_allowed_on_wire(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Parses the payload of a close frame: the code, if there is one, and the reason.
///
/// `lenient` checks nothing: half a code counts as none.
pub(crate) fn parse(payload: &[u8], lenient: bool) -> Result<(Option<u16>, &[u8]), FrameError> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if lenient || payload.is_empty() { Ok((None, &[])) } else { Err(FrameError::CloseCutShort) };
    };
    let code = u16::from_be_bytes(*code);
    if !lenient {
        if !is_allowed_on_wire(code) {
            return Err(FrameError::CloseCode(code));
        }
        if core::str::from_utf8(reason).is_err() {
            return Err(FrameError::NotUtf8);
        }
    }
    Ok((Some(code), reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_truncated_between_characters() {
        // 61 characters of two bytes make 122; the 62nd would end at 124.
        let long = "é".repeat(80);
        let payload = close_payload(NORMAL, &long);
        assert_eq!(payload.len(), 2 + 122);
        assert_eq!(parse(&payload, false), Ok((Some(1000), "é".repeat(61).as_bytes())));
        assert_eq!(close_payload(1001, "").as_slice(), [0x03, 0xe9]);
        assert_eq!(close_payload(1001, &"x".repeat(123)).len(), CONTROL_PAYLOAD_MAX);
    }

    #[test]
    fn codes() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
            assert_eq!(parse(&close_payload(code, ""), false), Err(FrameError::CloseCode(code)));
            assert_eq!(parse(&close_payload(code, ""), true), Ok((Some(code), &[][..])));
        }
        for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999] {
            assert_eq!(parse(&close_payload(code, "why"), false), Ok((Some(code), &b"why"[..])));
        }
    }

    #[test]
    fn payloads_without_a_code() {
        assert_eq!(parse(b"", false), Ok((None, &[][..])));
        assert_eq!(parse(b"\x03", false), Err(FrameError::CloseCutShort));
        assert_eq!(parse(b"\x03", true), Ok((None, &[][..])));
        assert_eq!(parse(b"\x03\xe8\xff", false), Err(FrameError::NotUtf8));
        assert_eq!(parse(b"\x03\xe8\xff", true), Ok((Some(1000), &[0xff][..])));
    }
}
