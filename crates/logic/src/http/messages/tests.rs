//! Messages that are accepted, and the errors of the others.

use super::*;

fn one(json: &str) -> Result<BatchMessage, String> {
    let body = format!(r#"{{"messages":[{json}]}}"#);
    let mut messages = BodyFormat::Json.read(body.as_bytes())?;
    // Both formats read the same message.
    assert_eq!(BodyFormat::Lines.read(json.replace('\n', " ").as_bytes()).as_ref(), Ok(&messages), "{json}");
    assert_eq!(messages.len(), 1, "{json}");
    Ok(messages.remove(0))
}

#[test]
fn receivers_and_bodies() {
    let key = |key: &str| SessionKey::from(key);
    for (to, expected) in [
        (r#"{"keys":["a","b\u0063","a"]}"#, Receivers::Keys(vec![key("a"), key("bc"), key("a")])),
        (r#"{"mids":[5,9223372036854775807]}"#, Receivers::Mids(vec![Mid(5), Mid(i64::MAX)])),
        (r#"{"room":"直播://房间"}"#, Receivers::Room("直播://房间".into())),
        (r#"{"room":"a:////"}"#, Receivers::Room("a:////".into())),
        (r#"{"all":true}"#, Receivers::All(None)),
        (r#"{"speed":7,"all":true}"#, Receivers::All(NonZeroU32::new(7))),
    ] {
        let message = one(&format!(r#"{{"to":{to},"operation":1000,"body":"x"}}"#)).unwrap();
        assert_eq!((message.to, message.operation), (expected, Operation(1000)), "{to}");
    }
    for (body, expected) in [
        (r#""body":"""#, &b""[..]),
        (r#""body":"a\"\n\u00e9é""#, "a\"\n\u{e9}é".as_bytes()),
        (r#""body_base64":"AAH/""#, b"\0\x01\xff"),
        (r#""body_base64":"YQ==""#, b"a"),
    ] {
        let message = one(&format!(r#" {{ {body} ,"operation":-5, "to":{{"all":true}} }} "#)).unwrap();
        assert_eq!((message.bodies.primary_bytes(), message.operation), (expected, Operation(-5)), "{body}");
    }
}

#[test]
fn errors_name_the_message_the_field_and_the_expected_value() {
    let whole = r#""to":{"all":true},"operation":1000,"body":"x""#;
    for (json, expected) in [
        (r#"7"#, "expected an object with `to`, `operation`, and `body`, `body_base64` or `bodies`"),
        (r#"{"operation":1000,"body":"x"}"#, "to: is missing"),
        (r#"{"to":{"all":true},"body":"x"}"#, "operation: must be a number"),
        (r#"{"to":{"all":true},"operation":0,"body":"x"}"#, "operation: must be a number of 32 bits other"),
        (
            r#"{"to":{"all":true},"operation":"7","body":"x"}"#,
            "operation: invalid type: string \"7\", expected i32",
        ),
        (r#"{"to":{"all":true},"operation":2147483648,"body":"x"}"#, "operation: invalid value"),
        (r#"{"to":{"all":true},"operation":1}"#, "body: is missing"),
        (
            r#"{"to":{"all":true},"operation":1,"body":5}"#,
            "body: invalid type: integer `5`, expected a string",
        ),
        (
            r#"{"to":{"all":true},"operation":1,"body_base64":"a"}"#,
            "body_base64: must be base64 with padding",
        ),
        (&format!(r#"{{{whole},"body_base64":""}}"#), "body: must not be given together with body_base64"),
        (&format!(r#"{{{whole},"body":"y"}}"#), "body: is given twice"),
        (&format!(r#"{{{whole},"rom":1}}"#), "rom: there is no such field; known are `to`"),
        (
            r#"{"to":"all","operation":1,"body":""}"#,
            "to: invalid type: string \"all\", expected an object with one",
        ),
        (r#"{"to":{},"operation":1,"body":""}"#, "to: must name exactly one of keys, mids, room and all"),
        (r#"{"to":{"all":true,"room":"a://b"},"operation":1,"body":""}"#, "to: must name exactly one"),
        (r#"{"to":{"all":false},"operation":1,"body":""}"#, "to: all: must be true"),
        (r#"{"to":{"all":true,"speed":0},"operation":1,"body":""}"#, "to: speed: must be at least 1"),
        (r#"{"to":{"all":true,"speed":-1},"operation":1,"body":""}"#, "to: speed: invalid value"),
        (r#"{"to":{"keys":["a"],"speed":1},"operation":1,"body":""}"#, "to: speed: requires all"),
        (r#"{"to":{"keys":[]},"operation":1,"body":""}"#, "to: keys: must name at least one"),
        (r#"{"to":{"keys":["a",""]},"operation":1,"body":""}"#, "to: keys: no session has an empty key"),
        (
            r#"{"to":{"keys":"a"},"operation":1,"body":""}"#,
            "to: keys: invalid type: string \"a\", expected a list",
        ),
        (r#"{"to":{"mids":[1,0]},"operation":1,"body":""}"#, "to: mids: must name"),
        (r#"{"to":{"room":"live"},"operation":1,"body":""}"#, "to: room: must be type://id"),
        (r#"{"to":{"room":"://1"},"operation":1,"body":""}"#, "to: room: must be type://id"),
        (r#"{"to":{"rooms":1},"operation":1,"body":""}"#, "to: rooms: there is no such field"),
        (r#"{"to":{"all":true},"operation":1,"body":"x}"#, "body: EOF while parsing"),
    ] {
        let good = format!("{{{whole}}}");
        let error =
            BodyFormat::Json.read(format!(r#"{{"messages":[{good},{json}]}}"#).as_bytes()).unwrap_err();
        let (place, rest) = error.split_once(": ").unwrap_or((&error, ""));
        assert!(place == "messages[1]" && rest.contains(expected), "{json} gave {error}");
        let error = BodyFormat::Lines.read(format!("{good}\n\n{json}\n").as_bytes()).unwrap_err();
        let (place, rest) = error.split_once(": ").unwrap_or((&error, ""));
        assert!(place == "line 3" && rest.contains(expected), "{json} gave {error}");
    }
}

#[test]
fn the_document_around_the_messages() {
    for (json, expected) in [
        (r#"{"messages":[]}"#, Ok(0)),
        ("{}", Err("messages: is missing")),
        ("[]", Err("invalid type: sequence, expected an object with the list `messages`")),
        (r#"{"messages":{}}"#, Err("expected a list of messages")),
        (r#"{"messages":[],"messages":[]}"#, Err("messages: is given twice")),
        (r#"{"message":[]}"#, Err("message: there is no such field; known are `messages`")),
        (r#"{"messages":[]} x"#, Err("trailing characters")),
        ("", Err("EOF while parsing")),
    ] {
        match (BodyFormat::Json.read(json.as_bytes()), expected) {
            (Ok(messages), Ok(count)) => assert_eq!(messages.len(), count, "{json}"),
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{json} gave {error}"),
            (read, expected) => panic!("{json} gave {read:?} and not {expected:?}"),
        }
    }
    assert_eq!(BodyFormat::Json.read(b"{\"\xff"), Err("the body is not UTF-8 from byte 2 on".to_owned()));
    assert_eq!(BodyFormat::Lines.read(b"\r\n\n"), Ok(Vec::new()));
    assert_eq!(BodyFormat::Lines.path_of(1, b"\n{}\n\n{}\n"), "line 4");
}

#[test]
fn the_number_of_messages_is_bounded() {
    let message = r#"{"to":{"all":true},"operation":1,"body":""}"#;
    for count in [MESSAGES_MAX, MESSAGES_MAX + 1] {
        let messages = vec![message; count];
        let read = [
            BodyFormat::Lines.read(messages.join("\n").as_bytes()),
            BodyFormat::Json.read(format!(r#"{{"messages":[{}]}}"#, messages.join(",")).as_bytes()),
        ];
        for read in read {
            match read {
                Ok(read) => assert_eq!(read.len(), MESSAGES_MAX),
                Err(error) => assert!(count > MESSAGES_MAX && error.contains("10000 messages"), "{error}"),
            }
        }
    }
}

#[test]
fn content_types() {
    for (name, form) in [
        ("application/json", Some(BodyFormat::Json)),
        ("Application/JSON; charset=utf-8", Some(BodyFormat::Json)),
        ("application/x-ndjson", Some(BodyFormat::Lines)),
        ("text/plain", None),
        ("", None),
    ] {
        assert_eq!(BodyFormat::of(name.as_bytes()), form, "{name}");
    }
}
