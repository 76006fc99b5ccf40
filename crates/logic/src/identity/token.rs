//! The members of the auth packet's token: goim v2's, read by Go's rules, and those that goim v2
//! does not have. As goim v2 would do, a value of the wrong type is skipped in the latter: only
//! negotiated clients must send valid ones.

use goim_ports::{Epoch, Operation, Position, ResumePosition, TimelineId, TimelineSeq};

use super::json::{JsonError, Scanner, ValueKind};

/// The maximum number of positions that a client may send. It syncs other timelines with requests.
const POSITIONS_MAX: usize = 256;

/// What a client claims in the body of its auth packet.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) mid: i64,
    pub(super) key: String,
    pub(super) room_id: String,
    pub(super) platform: String,
    pub(super) accepts: Vec<Operation>,
    pub(super) protover: Option<i64>,
    /// The credential. Not in goim v2.
    pub(super) token: String,
    /// More rooms. Not in goim v2.
    pub(super) rooms: Vec<String>,
    /// Positions in timelines. Not in goim v2.
    pub(super) positions: Option<Vec<ResumePosition>>,
    /// The client does not want messages inside notifications. Not in goim v2.
    pub(super) notify_only: bool,
}

impl Token {
    /// Parses a token. The document `null` is an empty one.
    pub(super) fn parse(document: &[u8]) -> Result<Self, JsonError> {
        let mut scanner = Scanner::new(document);
        let mut token = Self::default();
        if !scanner.null()? {
            let mut more = scanner.open(ValueKind::Object, "an object")?;
            while more {
                let name = scanner.name()?;
                token.member(&name, &mut scanner)?;
                more = scanner.another(ValueKind::Object)?;
            }
        }
        scanner.end()?;
        Ok(token)
    }

    /// Reads one member. The last of several with the same name counts. `null` does not change the
    /// value, except that it clears a list.
    fn member(&mut self, name: &str, scanner: &mut Scanner<'_>) -> Result<(), JsonError> {
        if same_name(name, "mid") {
            integer(scanner, &mut self.mid)
        } else if same_name(name, "key") {
            string(scanner, &mut self.key)
        } else if same_name(name, "room_id") {
            string(scanner, &mut self.room_id)
        } else if same_name(name, "platform") {
            string(scanner, &mut self.platform)
        } else if same_name(name, "accepts") {
            operations(scanner, &mut self.accepts)
        } else if same_name(name, "protover") {
            if !scanner.null()? {
                self.protover = Some(scanner.integer()?);
            }
            Ok(())
        } else if same_name(name, "token") {
            or_skip(scanner, |scanner| string(scanner, &mut self.token))
        } else if same_name(name, "rooms") {
            or_skip(scanner, |scanner| strings(scanner, &mut self.rooms))
        } else if same_name(name, "notify_only") {
            or_skip(scanner, |scanner| {
                self.notify_only = scanner.boolean()?;
                Ok(())
            })
        } else if same_name(name, "resume") {
            or_skip(scanner, |scanner| positions(scanner, &mut self.positions))
        } else {
            scanner.skip()
        }
    }
}

/// Reads a value that goim v2 does not have, or skips one of the wrong type.
fn or_skip<'a>(
    scanner: &mut Scanner<'a>,
    read: impl FnOnce(&mut Scanner<'a>) -> Result<(), JsonError>,
) -> Result<(), JsonError> {
    let before = scanner.clone();
    read(scanner).or_else(|_| {
        *scanner = before;
        scanner.skip()
    })
}

fn strings(scanner: &mut Scanner<'_>, member: &mut Vec<String>) -> Result<(), JsonError> {
    let mut found = Vec::new();
    let mut more = scanner.open(ValueKind::Array, "an array of strings")?;
    while more {
        found.push(scanner.string()?);
        more = scanner.another(ValueKind::Array)?;
    }
    *member = found;
    Ok(())
}

/// `{"mid://7":{"epoch":1,"seq":2}}`. Invalid names of timelines are ignored, and positions beyond
/// `POSITIONS_MAX`.
fn positions(scanner: &mut Scanner<'_>, member: &mut Option<Vec<ResumePosition>>) -> Result<(), JsonError> {
    if scanner.null()? {
        return Ok(());
    }
    let mut found = Vec::new();
    let mut more = scanner.open(ValueKind::Object, "an object of positions")?;
    while more {
        let timeline = TimelineId::parse(&scanner.name()?);
        let position = position(scanner)?;
        if let Some(timeline) = timeline.filter(|_| found.len() < POSITIONS_MAX) {
            found.push(ResumePosition { timeline, position });
        }
        more = scanner.another(ValueKind::Object)?;
    }
    *member = Some(found);
    Ok(())
}

fn position(scanner: &mut Scanner<'_>) -> Result<Position, JsonError> {
    let (mut epoch, mut seq) = (0, 0);
    let mut more = scanner.open(ValueKind::Object, "an object with epoch and seq")?;
    while more {
        match &*scanner.name()? {
            "epoch" => epoch = scanner.integer()?,
            "seq" => seq = scanner.integer()?,
            _ => scanner.skip()?,
        }
        more = scanner.another(ValueKind::Object)?;
    }
    let number = |value: i64| u64::try_from(value).unwrap_or_default();
    Ok(Position { epoch: Epoch(number(epoch)), seq: TimelineSeq(number(seq)) })
}

fn integer(scanner: &mut Scanner<'_>, member: &mut i64) -> Result<(), JsonError> {
    if !scanner.null()? {
        *member = scanner.integer()?;
    }
    Ok(())
}

fn string(scanner: &mut Scanner<'_>, member: &mut String) -> Result<(), JsonError> {
    if !scanner.null()? {
        *member = scanner.string()?;
    }
    Ok(())
}

/// Go decodes into the existing list: a `null` element keeps the old element, or becomes zero.
fn operations(scanner: &mut Scanner<'_>, member: &mut Vec<Operation>) -> Result<(), JsonError> {
    if scanner.null()? {
        member.clear();
        return Ok(());
    }
    let mut length = 0;
    let mut more = scanner.open(ValueKind::Array, "an array of integers")?;
    while more {
        if length == member.len() {
            member.push(Operation(0));
        }
        if !scanner.null()? {
            let at = scanner.position();
            let outside = JsonError::Kind { expected: "an integer of 32 bits", at };
            let value = i32::try_from(scanner.integer()?).map_err(|_| outside)?;
            if let Some(place) = member.get_mut(length) {
                *place = Operation(value);
            }
        }
        length += 1;
        more = scanner.another(ValueKind::Array)?;
    }
    member.truncate(length);
    Ok(())
}

/// True when Go decodes `name` into the member `wanted` (lower case). Letter case is ignored, and
/// two characters beyond ASCII fold to ASCII letters.
fn same_name(name: &str, wanted: &str) -> bool {
    let folded = |character| match character {
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    name.chars().map(folded).eq(wanted.chars())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_5_what_goim_refuses() {
        for document in [
            "not json",
            "",
            r#"{"mid":"1"}"#,
            "1,game",
            "[]",
            r#""a""#,
            "1",
            "true",
            "{} x",
            r#"{"mid":1.0}"#,
            r#"{"mid":1e3}"#,
            r#"{"mid":9223372036854775808}"#,
            r#"{"accepts":[2147483648]}"#,
            r#"{"accepts":"1"}"#,
            r#"{"accepts":{}}"#,
            r#"{"accepts":[1.5]}"#,
            r#"{"key":1}"#,
            r#"{"key":[]}"#,
            r#"{"platform":1}"#,
            r#"{"room_id":true}"#,
            r#"{"mid":{}}"#,
            "\u{feff}{}",
            "{\"key\":\"a\nb\"}",
            r#"{"x":}"#,
        ] {
            assert!(Token::parse(document.as_bytes()).is_err(), "{document}");
        }
    }

    #[test]
    fn row_7_names_in_any_case_and_unknown_ones() {
        let check = |document: &str, mid: i64, key: &str, room_id: &str, accepts: &[i32]| {
            let token =
                Token::parse(document.as_bytes()).unwrap_or_else(|error| panic!("{document}: {error}"));
            assert_eq!(
                (token.mid, token.key.as_str(), token.room_id.as_str()),
                (mid, key, room_id),
                "{document}"
            );
            assert_eq!(
                token.accepts,
                accepts.iter().copied().map(Operation).collect::<Vec<_>>(),
                "{document}"
            );
        };
        check(r#"{"MID":5,"Room_ID":"live://1","x":1}"#, 5, "", "live://1", &[]);
        check("null", 0, "", "", &[]);
        check(" {\t} \r\n", 0, "", "", &[]);
        check(r#"{"mid":5,"MID":6}"#, 6, "", "", &[]);
        check(r#"{"mid":5,"mid":null}"#, 5, "", "", &[]);
        check(r#"{"mid":-0}"#, 0, "", "", &[]);
        check(r#"{"mid":-3,"key":"a\u0062"}"#, -3, "ab", "", &[]);
        check("{\"\u{212a}ey\":\"x\",\"acceptſ\":[1]}", 0, "x", "", &[1]);
        check(r#"{"accepts":[1,2,3],"accepts":[4]}"#, 0, "", "", &[4]);
        check(r#"{"accepts":[7,8],"accepts":[null,9,null]}"#, 0, "", "", &[7, 9, 0]);
        check(r#"{"accepts":[1],"accepts":null}"#, 0, "", "", &[]);
        check(r#"{"accepts":[]}"#, 0, "", "", &[]);
        check(r#"{"mid":1,"y":[{"mid":2}],"z":{"key":"no"}}"#, 1, "", "", &[]);
    }

    #[test]
    fn row_107_any_text_is_a_key() {
        let token = Token::parse(r#"{"key":"ключ /?&%"}"#.as_bytes()).unwrap_or_default();
        assert_eq!(token.key, "ключ /?&%");
    }
}
