//! Printing bodies in a terminal.

/// A body as text if it is printable text, otherwise as hexadecimal digits.
///
/// Control characters of a body could control the terminal, so a body with them is not text.
pub(super) fn body(bytes: &[u8], always_hex: bool) -> String {
    let text = str::from_utf8(bytes).ok().filter(|text| !always_hex && text.chars().all(is_plain));
    match text {
        Some(text) => text.to_owned(),
        None => bytes.iter().fold("0x".to_owned(), |shown, byte| format!("{shown}{byte:02x}")),
    }
}

/// Permits tabs and line ends, but no other controls and no changes of the writing direction.
fn is_plain(c: char) -> bool {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !turns && (!c.is_control() || matches!(c, '\t' | '\n' | '\r'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes() {
        for (bytes, hex, expect) in [
            (&b"hello"[..], false, "hello"),
            (b"", false, ""),
            ("héllo\tünd".as_bytes(), false, "héllo\tünd"),
            (b"hello", true, "0x68656c6c6f"),
            (b"\xff\x00", false, "0xff00"),
            (b"\x1b[2J", false, "0x1b5b324a"),
            ("\u{202e}abc".as_bytes(), false, "0xe280ae616263"),
        ] {
            assert_eq!(body(bytes, hex), expect, "{bytes:?}");
        }
    }
}
