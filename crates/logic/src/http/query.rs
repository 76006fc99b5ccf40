//! Parses the query string as Go and goim v2's HTTP library do.
//!
//! Pairs with an invalid escape or a semicolon are dropped. Names are case-sensitive. Of several
//! values of a number or a text the first counts; a list has one pair per element. An empty number
//! is 0. QueryValues are bytes, because an escape can produce any.

use std::borrow::Cow;

use super::table::{PARAMS_MAX, Param, ParamKind};

/// The validated parameters of one request.
#[derive(Debug)]
pub(super) struct QueryValues<'q> {
    params: &'static [Param],
    values: [QueryValue<'q>; PARAMS_MAX],
}

#[derive(Debug, Default, PartialEq)]
enum QueryValue<'q> {
    #[default]
    Absent,
    Text(Cow<'q, [u8]>),
    Texts(Vec<Cow<'q, [u8]>>),
    Number(i64),
    Numbers(Vec<i64>),
}

impl<'q> QueryValues<'q> {
    /// Parses `query` for the parameters of a route.
    ///
    /// # Errors
    /// goim v2's message for the first invalid number, otherwise for all missing parameters.
    pub(super) fn parse(params: &'static [Param], query: Option<&'q str>) -> Result<Self, String> {
        let mut values: [QueryValue<'q>; PARAMS_MAX] = Default::default();
        for (name, text) in pairs(query.unwrap_or_default()) {
            let place = params.iter().zip(&mut values).find(|(param, _)| param.name.as_bytes() == &*name);
            if let Some((param, value)) = place {
                value.add(param.kind, text);
            }
        }
        for (param, value) in params.iter().zip(&mut values) {
            value.convert(param.kind)?;
        }
        let missing: Vec<String> = params
            .iter()
            .zip(&values)
            .filter(|(param, value)| param.required && value.is_missing())
            .map(|(Param { field, .. }, _)| {
                format!("Key: '{field}' Error:Field validation for '{field}' failed on the 'required' tag")
            })
            .collect();
        if missing.is_empty() { Ok(Self { params, values }) } else { Err(missing.join("\n")) }
    }

    /// Returns a number; 0 when it is absent.
    pub(super) fn number(&self, name: &str) -> i64 {
        if let QueryValue::Number(number) = self.get(name) { *number } else { 0 }
    }

    /// Returns a number that the table declares with 32 bits; 0 when it is absent.
    pub(super) fn number32(&self, name: &str) -> i32 {
        i32::try_from(self.number(name)).unwrap_or_default()
    }

    /// Returns a text; empty when it is absent.
    pub(super) fn text(&self, name: &str) -> &[u8] {
        if let QueryValue::Text(text) = self.get(name) { text } else { &[] }
    }

    /// Returns a list of texts.
    pub(super) fn texts(&self, name: &str) -> &[Cow<'q, [u8]>] {
        if let QueryValue::Texts(texts) = self.get(name) { texts } else { &[] }
    }

    /// Returns a list of numbers.
    pub(super) fn numbers(&self, name: &str) -> &[i64] {
        if let QueryValue::Numbers(numbers) = self.get(name) { numbers } else { &[] }
    }

    fn get(&self, name: &str) -> &QueryValue<'q> {
        let found = self.params.iter().zip(&self.values).find(|(param, _)| param.name == name);
        debug_assert!(found.is_some(), "{name} is not in the table");
        found.map_or(&QueryValue::Absent, |(_, value)| value)
    }
}

impl<'q> QueryValue<'q> {
    fn add(&mut self, kind: ParamKind, text: Cow<'q, [u8]>) {
        match (kind, self) {
            (ParamKind::TextList | ParamKind::I64List, Self::Texts(texts)) => texts.push(text),
            (ParamKind::TextList | ParamKind::I64List, value) => *value = Self::Texts(vec![text]),
            (_, value @ Self::Absent) => *value = Self::Text(text),
            _ => {}
        }
    }

    fn convert(&mut self, kind: ParamKind) -> Result<(), String> {
        match (kind, &*self) {
            (ParamKind::I32, Self::Text(text)) => *self = Self::Number(parse_number(text, 32)?),
            (ParamKind::I64, Self::Text(text)) => *self = Self::Number(parse_number(text, 64)?),
            (ParamKind::I64List, Self::Texts(texts)) => {
                let numbers: Result<_, _> = texts.iter().map(|text| parse_number(text, 64)).collect();
                *self = Self::Numbers(numbers?);
            }
            _ => {}
        }
        Ok(())
    }

    /// True for what goim v2's "required" refuses.
    fn is_missing(&self) -> bool {
        match self {
            Self::Absent | Self::Number(0) => true,
            Self::Text(text) => text.is_empty(),
            Self::Number(_) | Self::Texts(_) | Self::Numbers(_) => false,
        }
    }
}

/// Returns the decoded pairs of a query string in order.
fn pairs(query: &str) -> impl Iterator<Item = (Cow<'_, [u8]>, Cow<'_, [u8]>)> {
    query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')).filter_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((unescape(name, true)?, unescape(value, true)?))
    })
}

/// Decodes `%XX`, and `+` as a space when `plus` is true. `None` when an escape is invalid.
pub(super) fn unescape(text: &str, plus: bool) -> Option<Cow<'_, [u8]>> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|byte| *byte == b'%' || plus && *byte == b'+') {
        return Some(Cow::Borrowed(bytes));
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().copied();
    while let Some(byte) = rest.next() {
        decoded.push(match byte {
            b'%' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
            b'+' if plus => b' ',
            other => other,
        });
    }
    Some(Cow::Owned(decoded))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Go's `strconv.ParseInt` in base 10, for `bits` of 32 or 64, with its error messages. An empty
/// text is 0.
///
/// Like Go, it reads digits from the left and stops at the first that makes the number too large,
/// so that an invalid character after it is not reported.
fn parse_number(text: &[u8], bits: u32) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let error = |reason: &str| Err(format!("strconv.ParseInt: parsing {}: {reason}", go_quote(text)));
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        all => (false, all),
    };
    if digits.is_empty() {
        return error("invalid syntax");
    }
    let unsigned_max = u64::MAX >> (64 - bits);
    let mut magnitude: u64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return error("invalid syntax");
        }
        let next = magnitude.checked_mul(10).and_then(|tens| tens.checked_add(u64::from(digit - b'0')));
        match next.filter(|next| *next <= unsigned_max) {
            Some(next) => magnitude = next,
            None => return error("value out of range"),
        }
    }
    let value = if negative { -i128::from(magnitude) } else { i128::from(magnitude) };
    let limit = 1_i128 << (bits - 1);
    match i64::try_from(value) {
        Ok(number) if (-limit..limit).contains(&value) => Ok(number),
        _ => error("value out of range"),
    }
}

/// Go's `strconv.Quote`: unprintable characters are escaped, bytes that are not UTF-8 as `\xNN`.
fn go_quote(text: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut quoted = String::from("\"");
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            let escape = match character {
                '"' => "\\\"",
                '\\' => "\\\\",
                '\u{7}' => "\\a",
                '\u{8}' => "\\b",
                '\u{c}' => "\\f",
                '\n' => "\\n",
                '\r' => "\\r",
                '\t' => "\\t",
                '\u{b}' => "\\v",
                printable if is_printable(printable) => {
                    quoted.push(printable);
                    continue;
                }
                _ => "",
            };
            quoted.push_str(escape);
            // Writing to a String cannot fail.
            let _ = match u32::from(character) {
                _ if !escape.is_empty() => Ok(()),
                code @ (0..=0x1f | 0x7f) => write!(quoted, "\\x{code:02x}"),
                code @ 0..=0xffff => write!(quoted, "\\u{code:04x}"),
                code => write!(quoted, "\\U{code:08x}"),
            };
        }
        for byte in chunk.invalid() {
            let _ = write!(quoted, "\\x{byte:02x}");
        }
    }
    quoted.push('"');
    quoted
}

/// True for what Go prints: letters, marks, numbers, punctuation, symbols and the space.
/// `str::escape_debug` agrees for every character but the first of a text.
fn is_printable(character: char) -> bool {
    if character.is_ascii() {
        return matches!(character, ' '..='~');
    }
    let mut text = String::from("a");
    text.push(character);
    text.escape_debug().eq(text.chars())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::table::Route;

    fn params(path: &str) -> &'static [Param] {
        Route::ALL.iter().find(|route| route.path == path).map_or(&[], |route| route.params)
    }

    #[test]
    fn row_97_pairs_as_go_reads_them() {
        let check = |query: &str, operation: i64, keys: &[&str]| {
            let values = QueryValues::parse(params("/goim/push/keys"), Some(query)).unwrap();
            assert_eq!(values.number("operation"), operation, "{query}");
            let got: Vec<_> = values.texts("keys").iter().map(|key| String::from_utf8_lossy(key)).collect();
            assert_eq!(got, keys, "{query}");
        };
        check("operation=1000&operation=2&keys=k", 1000, &["k"]);
        check("operation=%2B1000&keys=k", 1000, &["k"]);
        check("operation=&keys=k", 0, &["k"]);
        check("&keys=k&", 0, &["k"]);
        check("operation=-5&keys=k&keys=l&keys=k", -5, &["k", "l", "k"]);
        check("operation=01000&keys=a,b", 1000, &["a,b"]);
        check("operation=1000&x=%zz&y=a;b&keys=k", 1000, &["k"]);
        check("Operation=1000&operation[]=1&keys=k", 0, &["k"]);
        check("operation=1&keys=a%zz&keys=b%2", 1, &[]);
        check("operation=1&keys", 1, &[""]);
        check("operation=1&keys=a=b&k%65ys=c+d%20e", 1, &["a=b", "c d e"]);
    }

    #[test]
    fn rows_53_and_54_numbers() {
        let check = |text: &str, bits: u32, expected: Result<i64, &str>| {
            let expected = expected.map_err(|reason| format!("strconv.ParseInt: parsing {reason}"));
            assert_eq!(parse_number(text.as_bytes(), bits), expected, "{text}");
        };
        check("", 32, Ok(0));
        check("-0", 32, Ok(0));
        check("2147483647", 32, Ok(2_147_483_647));
        check("-2147483648", 32, Ok(-2_147_483_648));
        check("9223372036854775807", 64, Ok(i64::MAX));
        check("-9223372036854775808", 64, Ok(i64::MIN));
        check("abc", 32, Err(r#""abc": invalid syntax"#));
        check(" 1", 32, Err(r#"" 1": invalid syntax"#));
        check("0x10", 32, Err(r#""0x10": invalid syntax"#));
        check("1_0", 32, Err(r#""1_0": invalid syntax"#));
        check("-", 32, Err(r#""-": invalid syntax"#));
        check("++1", 32, Err(r#""++1": invalid syntax"#));
        check("2147483648", 32, Err(r#""2147483648": value out of range"#));
        check("-2147483649", 32, Err(r#""-2147483649": value out of range"#));
        check("9223372036854775808", 64, Err(r#""9223372036854775808": value out of range"#));
        check("99999999999999999999x", 64, Err(r#""99999999999999999999x": value out of range"#));
        check("4294967296x", 32, Err(r#""4294967296x": value out of range"#));
        check("4294967295x", 32, Err(r#""4294967295x": invalid syntax"#));
    }

    #[test]
    fn quoted_as_go_quotes() {
        let check = |text: &[u8], expected: &str| assert_eq!(go_quote(text), expected, "{text:?}");
        check(b"a\"b\\c'", r#""a\"b\\c'""#);
        check(b"\x07\x08\x0c\n\r\t\x0b\x00\x1b\x7f", r#""\a\b\f\n\r\t\v\x00\x1b\x7f""#);
        check("房间é 🎉".as_bytes(), "\"房间é 🎉\"");
        check("e\u{301}".as_bytes(), "\"e\u{301}\"");
        check("\u{a0}\u{200b}\u{2028}\u{feff}\u{e000}".as_bytes(), r#""\u00a0\u200b\u2028\ufeff\ue000""#);
        check("\u{10ffff}".as_bytes(), r#""\U0010ffff""#);
        check(b"\xff\xe4\xbd", r#""\xff\xe4\xbd""#);
    }

    #[test]
    fn rows_51_and_52_missing_parameters_in_order() {
        let missing = |path, query: &str| QueryValues::parse(params(path), Some(query)).map(drop);
        let text = |fields: &[&str]| {
            let line = |field: &&str| {
                format!("Key: '{field}' Error:Field validation for '{field}' failed on the 'required' tag")
            };
            Err(fields.iter().map(line).collect::<Vec<_>>().join("\n"))
        };
        assert_eq!(missing("/goim/push/room", ""), text(&["Op", "Type", "Room"]));
        assert_eq!(missing("/goim/push/room", "operation=1&type=a;room=b"), text(&["Type", "Room"]));
        assert_eq!(missing("/goim/push/room", "operation=0&type=t&room=r"), text(&["Op"]));
        assert_eq!(missing("/goim/push/room", "operation=1&type=&room=r"), text(&["Type"]));
        assert_eq!(missing("/goim/online/room", "type=a"), text(&["Rooms"]));
        assert_eq!(missing("/goim/online/room", "type=a&rooms="), Ok(()));
        assert_eq!(missing("/goim/push/mids", ""), Ok(()));
        // A plus sign is a blank.
        let error = missing("/goim/push/keys", "operation=+1000").unwrap_err();
        assert_eq!(error, "strconv.ParseInt: parsing \" 1000\": invalid syntax");
        // An invalid number is reported before missing parameters.
        let error = missing("/goim/online/top", "limit=x").unwrap_err();
        assert!(error.starts_with("strconv"), "{error}");
    }
}
