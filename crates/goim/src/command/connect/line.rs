//! The commands of the input.

/// One parsed line of input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    /// Nothing to do.
    Empty,
    /// A packet for the backend.
    Send {
        /// The operation.
        operation: i32,
        /// The body.
        body: Vec<u8>,
    },
    /// Change to this room; `None`: leave the room.
    Room(Option<String>),
    /// Subscribe to these operations.
    Subscribe(Vec<i32>),
    /// Unsubscribe from them.
    Unsubscribe(Vec<i32>),
    /// Show the commands.
    Help,
    /// End.
    Quit,
}

pub(super) const HELP: &str = "\
a line of text             sends it (operation 4)
/send 1000 text            sends text with operation 1000
/hex 1000 c0ffee           sends bytes with operation 1000
/room live://2             changes the room; /room alone leaves it
/sub 1001,1002             subscribes to pushes with these operations
/unsub 1001                unsubscribes from them
/quit                      ends; as the end of the input does
//text                     sends a text that begins with a slash
";

/// goim's operation for a message from a client.
const SEND_MESSAGE: i32 = 4;

/// Reads a line. The error explains what would be right.
pub(super) fn read(line: &str) -> Result<Line, String> {
    let line = line.trim_end_matches(['\r', '\n']);
    if let Some(text) = line.strip_prefix("//") {
        return Ok(Line::Send { operation: SEND_MESSAGE, body: format!("/{text}").into_bytes() });
    }
    let Some(command) = line.strip_prefix('/') else {
        let body = line.as_bytes().to_vec();
        return Ok(if body.is_empty() { Line::Empty } else { Line::Send { operation: SEND_MESSAGE, body } });
    };
    let (name, rest) = command.split_once(' ').unwrap_or((command, ""));
    match name {
        "send" => {
            let (operation, text) =
                operation_and(rest).ok_or("wants an operation and a text: /send 1000 hello")?;
            Ok(Line::Send { operation, body: text.as_bytes().to_vec() })
        }
        "hex" => {
            let wants = "wants an operation and hexadecimal digits in pairs: /hex 1000 c0ffee";
            let (operation, digits) = operation_and(rest).ok_or(wants)?;
            Ok(Line::Send { operation, body: bytes(digits).ok_or(wants)? })
        }
        "room" => match rest.trim() {
            "" => Ok(Line::Room(None)),
            room => Ok(Line::Room(Some(room.to_owned()))),
        },
        "sub" => operations(rest).map(Line::Subscribe),
        "unsub" => operations(rest).map(Line::Unsubscribe),
        "help" | "?" => Ok(Line::Help),
        "quit" | "exit" => Ok(Line::Quit),
        name => Err(format!("no command /{name}; /help lists them, //{command} sends this as text")),
    }
}

/// A number, and the text after the following blank.
fn operation_and(rest: &str) -> Option<(i32, &str)> {
    let rest = rest.trim_start();
    let (operation, text) = rest.split_once(' ').unwrap_or((rest, ""));
    Some((operation.parse().ok()?, text))
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = digits.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let (pairs, odd) = digits.as_chunks::<2>();
    if !odd.is_empty() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

fn operations(rest: &str) -> Result<Vec<i32>, String> {
    let list: Option<Vec<i32>> =
        rest.split([',', ' ']).filter(|part| !part.is_empty()).map(|part| part.parse().ok()).collect();
    list.filter(|list| !list.is_empty())
        .ok_or_else(|| "must be operations separated by commas: 1001,1002".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_their_meaning() {
        let send = |operation, body: &[u8]| Ok(Line::Send { operation, body: body.to_vec() });
        for (line, expect) in [
            ("hello there", send(4, b"hello there")),
            ("hello\r\n", send(4, b"hello")),
            ("", Ok(Line::Empty)),
            ("//path", send(4, b"/path")),
            ("/send 1000 two parts", send(1000, b"two parts")),
            ("/send 1000", send(1000, b"")),
            ("/send -7 x", send(-7, b"x")),
            ("/hex 1000 c0 ffee", send(1000, &[0xc0, 0xff, 0xee])),
            ("/room live://2", Ok(Line::Room(Some("live://2".to_owned())))),
            ("/room", Ok(Line::Room(None))),
            ("/sub 1001,1002", Ok(Line::Subscribe(vec![1001, 1002]))),
            ("/unsub 1001", Ok(Line::Unsubscribe(vec![1001]))),
            ("/help", Ok(Line::Help)),
            ("/quit", Ok(Line::Quit)),
        ] {
            assert_eq!(read(line), expect, "{line:?}");
        }
    }

    #[test]
    fn mistakes_are_explained() {
        for (line, says) in [
            ("/send", "/send 1000 hello"),
            ("/send x y", "/send 1000 hello"),
            ("/hex 1000 abc", "in pairs"),
            ("/hex 1000 zz", "in pairs"),
            ("/hex 1000 +1", "in pairs"),
            ("/sub", "1001,1002"),
            ("/sub a", "1001,1002"),
            ("/usr/bin", "//usr/bin sends this as text"),
        ] {
            let error = read(line).unwrap_err();
            assert!(error.contains(says), "{line:?}: {error}");
        }
    }
}
