//! Reads JSON as Go's `encoding/json` does, token by token.
//!
//! goim v2's clients rely on Go's reader. serde_json reads `-0` as a float and refuses lone
//! surrogates and bytes that are not UTF-8. This reader returns the integer 0, and U+FFFD for each
//! such byte or surrogate. Both refuse what is not JSON.
//!
//! Nothing here is recursive: the nesting of a document is bounded by [`DEPTH_MAX`], not by the
//! thread's stack.

/// Why a document is refused. The message has the position and never quotes the document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum JsonError {
    /// Not JSON, or more than one document.
    #[error("not JSON at byte {0}")]
    Syntax(usize),
    /// JSON of another type than the member needs.
    #[error("{expected} expected at byte {at}")]
    Kind {
        /// The type that the member needs.
        expected: &'static str,
        /// The position of the value.
        at: usize,
    },
}

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueKind {
    Null,
    Bool,
    Number,
    String,
    Array,
    Object,
}

/// The maximum nesting, as in Go.
const DEPTH_MAX: usize = 10_000;

/// Reads a document from the front.
#[derive(Clone)]
pub(super) struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The number of bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Returns the type of the next value. Reads only white space.
    pub(super) fn kind(&mut self) -> Result<ValueKind, JsonError> {
        self.skip_space();
        match self.peek() {
            Some(b'n') => Ok(ValueKind::Null),
            Some(b't' | b'f') => Ok(ValueKind::Bool),
            Some(b'-' | b'0'..=b'9') => Ok(ValueKind::Number),
            Some(b'"') => Ok(ValueKind::String),
            Some(b'[') => Ok(ValueKind::Array),
            Some(b'{') => Ok(ValueKind::Object),
            _ => Err(self.syntax()),
        }
    }

    /// Reads the value when it is `null`. Returns whether it was.
    pub(super) fn null(&mut self) -> Result<bool, JsonError> {
        let null = self.kind()? == ValueKind::Null;
        if null {
            self.literal(b"null")?;
        }
        Ok(null)
    }

    /// Reads `true` or `false`.
    pub(super) fn boolean(&mut self) -> Result<bool, JsonError> {
        self.expect_kind(ValueKind::Bool, "true or false")?;
        let value = self.peek() == Some(b't');
        self.scalar(ValueKind::Bool)?;
        Ok(value)
    }

    /// Reads an integer. A number with a fraction or an exponent is not one, even when its value
    /// is.
    pub(super) fn integer(&mut self) -> Result<i64, JsonError> {
        self.expect_kind(ValueKind::Number, "an integer")?;
        let start = self.at;
        self.number()?;
        let text = std::str::from_utf8(self.bytes.get(start..self.at).unwrap_or_default());
        let integer = text.ok().and_then(|text| text.parse().ok());
        integer.ok_or(JsonError::Kind { expected: "an integer", at: start })
    }

    /// Reads a string and resolves its escapes.
    pub(super) fn string(&mut self) -> Result<String, JsonError> {
        self.expect_kind(ValueKind::String, "a string")?;
        self.at += 1;
        let mut text = String::new();
        loop {
            let start = self.at;
            while matches!(self.peek(), Some(byte) if byte >= 0x20 && byte != b'"' && byte != b'\\') {
                self.at += 1;
            }
            push_lossy(&mut text, self.bytes.get(start..self.at).unwrap_or_default());
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(text);
                }
                Some(b'\\') => text.push(self.escape()?),
                // A control character, or the end.
                _ => return Err(self.syntax()),
            }
        }
    }

    /// Reads the opening bracket of an array or object. Returns false when it is empty. The caller
    /// reads an element or member, then calls [`Scanner::another`], until it returns false.
    pub(super) fn open(&mut self, kind: ValueKind, expected: &'static str) -> Result<bool, JsonError> {
        self.expect_kind(kind, expected)?;
        self.at += 1;
        self.skip_space();
        let empty = self.peek() == Some(closing(kind));
        if empty {
            self.at += 1;
        }
        Ok(!empty)
    }

    /// Reads the comma or the closing bracket. Returns true when another element or member follows.
    pub(super) fn another(&mut self, kind: ValueKind) -> Result<bool, JsonError> {
        self.skip_space();
        let more = match self.peek() {
            Some(b',') => true,
            Some(byte) if byte == closing(kind) => false,
            _ => return Err(self.syntax()),
        };
        self.at += 1;
        Ok(more)
    }

    /// Reads the name of a member and its colon.
    pub(super) fn name(&mut self) -> Result<String, JsonError> {
        self.skip_space();
        if self.peek() != Some(b'"') {
            return Err(self.syntax());
        }
        let name = self.string()?;
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(self.syntax());
        }
        self.at += 1;
        Ok(name)
    }

    /// Reads a value of any type and checks its syntax.
    pub(super) fn skip(&mut self) -> Result<(), JsonError> {
        let mut inside: Vec<ValueKind> = Vec::new();
        loop {
            let kind = self.kind()?;
            let entered = match kind {
                ValueKind::Array | ValueKind::Object => self.open(kind, "")?,
                _ => {
                    self.scalar(kind)?;
                    false
                }
            };
            if entered {
                if inside.len() == DEPTH_MAX {
                    return Err(self.syntax());
                }
                inside.push(kind);
            } else {
                // Close every array and object that ends here.
                loop {
                    let Some(&outer) = inside.last() else { return Ok(()) };
                    if self.another(outer)? {
                        break;
                    }
                    inside.pop();
                }
            }
            if inside.last() == Some(&ValueKind::Object) {
                self.name()?;
            }
        }
    }

    /// Checks that only white space is left.
    pub(super) fn end(&mut self) -> Result<(), JsonError> {
        self.skip_space();
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.syntax()) }
    }

    fn scalar(&mut self, kind: ValueKind) -> Result<(), JsonError> {
        match kind {
            ValueKind::Null => self.literal(b"null"),
            ValueKind::Bool if self.peek() == Some(b't') => self.literal(b"true"),
            ValueKind::Bool => self.literal(b"false"),
            ValueKind::Number => self.number(),
            ValueKind::String | ValueKind::Array | ValueKind::Object => self.string().map(drop),
        }
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), JsonError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        if !rest.starts_with(word) {
            return Err(self.syntax());
        }
        self.at += word.len();
        Ok(())
    }

    fn number(&mut self) -> Result<(), JsonError> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// At least one digit.
    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { Err(self.syntax()) } else { Ok(()) }
    }

    /// Reads an escape and returns its character.
    fn escape(&mut self) -> Result<char, JsonError> {
        self.at += 1;
        let simple = match self.peek() {
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(),
            _ => return Err(self.syntax()),
        };
        self.at += 1;
        Ok(simple)
    }

    /// Reads `uXXXX`, and the following escape when the two are a surrogate pair. A lone surrogate
    /// becomes U+FFFD by itself.
    fn unicode_escape(&mut self) -> Result<char, JsonError> {
        let first = self.hex4(self.at + 1).ok_or_else(|| self.syntax())?;
        self.at += 5;
        if let Some(character) = char::from_u32(first) {
            return Ok(character);
        }
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let second = if rest.starts_with(b"\\u") { self.hex4(self.at + 2) } else { None };
        match (first, second) {
            (0xd800..=0xdbff, Some(low @ 0xdc00..=0xdfff)) => {
                self.at += 6;
                let pair = 0x1_0000 + ((first - 0xd800) << 10) + (low - 0xdc00);
                Ok(char::from_u32(pair).unwrap_or(char::REPLACEMENT_CHARACTER))
            }
            _ => Ok(char::REPLACEMENT_CHARACTER),
        }
    }

    fn hex4(&self, at: usize) -> Option<u32> {
        let digits = self.bytes.get(at..at + 4)?;
        digits.iter().try_fold(0, |sum, digit| Some(sum * 16 + char::from(*digit).to_digit(16)?))
    }

    fn expect_kind(&mut self, kind: ValueKind, expected: &'static str) -> Result<(), JsonError> {
        if self.kind()? == kind { Ok(()) } else { Err(JsonError::Kind { expected, at: self.at }) }
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn syntax(&self) -> JsonError {
        JsonError::Syntax(self.at)
    }
}

fn closing(kind: ValueKind) -> u8 {
    if kind == ValueKind::Array { b']' } else { b'}' }
}

/// Appends `bytes` to `text`. Each byte that is not UTF-8 becomes U+FFFD, as in Go.
fn push_lossy(text: &mut String, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skip(document: &[u8]) -> Result<(), JsonError> {
        let mut scanner = Scanner::new(document);
        scanner.skip()?;
        scanner.end()
    }

    #[test]
    fn every_type_is_skipped() {
        for document in [
            "0",
            "-0",
            "1.5e-3",
            "1E+9",
            "true",
            "false",
            "null",
            "\"\"",
            "[]",
            "{}",
            " [ ] ",
            "[[],{}]",
            r#"{"a":[1,{"b":[]},"x"],"c":{}}"#,
            r#"{"a":{"b":{"c":[{}]}},"d":0}"#,
            r#""\u0000\ud800""#,
        ] {
            assert_eq!(skip(document.as_bytes()), Ok(()), "{document}");
        }
        assert_eq!(skip(b"\"\xff\""), Ok(()));
        assert_eq!(skip("[".repeat(5000).as_bytes()), Err(JsonError::Syntax(5000)));
    }

    #[test]
    fn invalid_json_is_refused() {
        for document in [
            "",
            " ",
            "nul",
            "nulll",
            "tru",
            "01",
            "-",
            "1.",
            ".5",
            "1e",
            "+1",
            "[1,]",
            "[,1]",
            "[1",
            "{",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\":1]",
            "[1}",
            "\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\n\"",
            "1 2",
            "\u{feff}1",
            "\u{b}1",
            "NaN",
            "'a'",
            "{1:2}",
            "[1 2]",
            "\"\\'\"",
        ] {
            assert!(skip(document.as_bytes()).is_err(), "{document:?}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| ["[".repeat(depth), "]".repeat(depth)].concat();
        assert_eq!(skip(nested(DEPTH_MAX).as_bytes()), Ok(()));
        assert!(skip(nested(DEPTH_MAX + 2).as_bytes()).is_err());
    }

    #[test]
    fn strings_are_read_as_go_reads_them() {
        let check = |document: &[u8], expected: &str| {
            assert_eq!(Scanner::new(document).string().as_deref(), Ok(expected), "{document:?}");
        };
        check(br#""a\"\\\/\b\f\n\r\tz""#, "a\"\\/\u{8}\u{c}\n\r\tz");
        check(br#""\u0041\u00e9\uFFFF""#, "A\u{e9}\u{ffff}");
        check(br#""\ud83d\ude00""#, "\u{1f600}");
        check(br#""\ud83d""#, "\u{fffd}");
        check(br#""\ude00\ud83d""#, "\u{fffd}\u{fffd}");
        check(br#""\ud83dx""#, "\u{fffd}x");
        check(br#""\ud83d\u0041""#, "\u{fffd}A");
        check(br#""\ud83d\ud83d\ude00""#, "\u{fffd}\u{1f600}");
        check(b"\"a\xffb\"", "a\u{fffd}b");
        check(b"\"\xe4\xbdx\"", "\u{fffd}\u{fffd}x");
        check(b"\"\xed\xa0\x80\"", "\u{fffd}\u{fffd}\u{fffd}");
        check("\"\u{7f}ключ\"".as_bytes(), "\u{7f}ключ");
    }

    #[test]
    fn integers_are_integers() {
        for (document, expected) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("-5", Some(-5)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("1.0", None),
            ("1e3", None),
            ("\"1\"", None),
            ("true", None),
        ] {
            assert_eq!(Scanner::new(document.as_bytes()).integer().ok(), expected, "{document}");
        }
    }
}
