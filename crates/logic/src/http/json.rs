//! JSON as Go's `encoding/json` writes it.

/// Appends `text` as a string. Go escapes what could end a script element or a line of JavaScript,
/// and writes U+FFFD, escaped, for each byte that is not UTF-8.
pub(super) fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    for chunk in text.utf8_chunks() {
        valid(out, chunk.valid());
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
    out.push(b'"');
}

fn valid(out: &mut Vec<u8>, text: &str) {
    let mut written = 0;
    let bytes = text.as_bytes();
    for (at, character) in text.char_indices() {
        let escape: &[u8] = match character {
            '"' => b"\\\"",
            '\\' => b"\\\\",
            '\n' => b"\\n",
            '\r' => b"\\r",
            '\t' => b"\\t",
            '\u{8}' => b"\\b",
            '\u{c}' => b"\\f",
            '<' => b"\\u003c",
            '>' => b"\\u003e",
            '&' => b"\\u0026",
            '\u{2028}' => b"\\u2028",
            '\u{2029}' => b"\\u2029",
            '\0'..='\u{1f}' => b"",
            _ => continue,
        };
        out.extend_from_slice(bytes.get(written..at).unwrap_or_default());
        out.extend_from_slice(escape);
        if escape.is_empty() {
            out.extend_from_slice(format!("\\u{:04x}", u32::from(character)).as_bytes());
        }
        written = at + character.len_utf8();
    }
    out.extend_from_slice(bytes.get(written..).unwrap_or_default());
}

/// Appends a number.
pub(super) fn number(out: &mut Vec<u8>, number: impl std::fmt::Display) {
    use std::io::Write as _;
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{number}");
}

/// Appends a 32-bit float with as few digits as identify it, and with an exponent where Go writes
/// one.
fn float(out: &mut Vec<u8>, value: f32) {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-6..1e21).contains(&magnitude) {
        let text = format!("{value:e}");
        let text = if magnitude >= 1.0 { text.replace('e', "e+") } else { text };
        out.extend_from_slice(text.as_bytes());
    } else {
        number(out, value);
    }
}

/// An object being written, members in the order of the calls.
pub(super) struct ObjectWriter<'o> {
    out: &'o mut Vec<u8>,
    empty: bool,
}

impl<'o> ObjectWriter<'o> {
    pub(super) fn open(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, empty: true }
    }

    pub(super) fn close(self) {
        self.out.push(b'}');
    }

    /// Begins a member; the caller writes its value.
    pub(super) fn member(&mut self, name: &[u8]) -> &mut Vec<u8> {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
        string(self.out, name);
        self.out.push(b':');
        self.out
    }

    pub(super) fn text(&mut self, name: &str, text: &str) {
        string(self.member(name.as_bytes()), text.as_bytes());
    }

    pub(super) fn number(&mut self, name: &str, value: impl std::fmt::Display) {
        number(self.member(name.as_bytes()), value);
    }

    /// A member that is left out when it is empty (Go's `omitempty`).
    pub(super) fn some_text(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            self.text(name, text);
        }
    }

    /// A member that is left out when it is zero (Go's `omitempty`).
    pub(super) fn some_number(&mut self, name: &str, value: i32) {
        if value != 0 {
            self.number(name, value);
        }
    }

    /// A member that is left out when it is zero (Go's `omitempty`).
    pub(super) fn some_float(&mut self, name: &str, value: f32) {
        if value != 0.0 {
            float(self.member(name.as_bytes()), value);
        }
    }
}

/// Appends an array, each element written by `element`.
pub(super) fn array<T>(
    out: &mut Vec<u8>,
    elements: impl IntoIterator<Item = T>,
    mut element: impl FnMut(&mut Vec<u8>, T),
) {
    out.push(b'[');
    for (index, value) in elements.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        element(out, value);
    }
    out.push(b']');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped_as_go_escapes_them() {
        let check = |text: &[u8], expected: &str| {
            let mut out = Vec::new();
            string(&mut out, text);
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{text:?}");
        };
        check(b"", r#""""#);
        check(b"plain text'", r#""plain text'""#);
        check(b"\"<>&\\/", r#""\"\u003c\u003e\u0026\\/""#);
        check(b"\x00\x08\x0c\n\r\t\x1f\x7f", "\"\\u0000\\b\\f\\n\\r\\t\\u001f\x7f\"");
        check("房间\u{2028}é\u{2029}".as_bytes(), "\"房间\\u2028é\\u2029\"");
        check(b"a\xffb\xe4\xbd", r#""a\ufffdb\ufffd\ufffd""#);
    }

    #[test]
    fn floats_are_written_as_go_writes_them() {
        for (value, expected) in [
            (1.8, "1.8"),
            (0.3, "0.3"),
            (1.0, "1"),
            (0.0, "0"),
            (300.5, "300.5"),
            (1e-6, "0.000001"),
            (1e-7, "1e-7"),
            (1e20, "100000000000000000000"),
            (1e21, "1e+21"),
            (-2.5e-9, "-2.5e-9"),
        ] {
            let mut out = Vec::new();
            float(&mut out, value);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn objects_leave_out_what_is_empty() {
        let mut out = Vec::new();
        let mut object = ObjectWriter::open(&mut out);
        object.some_text("a", "");
        object.some_number("b", 0);
        object.some_float("c", 0.0);
        object.some_number("d", -1);
        object.text("e", "");
        array(object.member(b"f"), [1, 2], number);
        object.close();
        assert_eq!(String::from_utf8(out).unwrap(), r#"{"d":-1,"e":"","f":[1,2]}"#);
    }
}
