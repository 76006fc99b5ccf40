//! `goim token`, and a session with what it prints.

use super::binary::{Serving, check_refused, goim, run};

const SECRET: &str = "a secret of thirty-two bytes and more";

#[test]
fn a_printed_token_gets_a_session() {
    let serving = Serving::start(
        &[
            "--set",
            "logic.identity.method=jwt",
            "--set",
            "logic.identity.jwt.audience=chat",
            "--set",
            "logic.identity.jwt.leeway=0s",
        ],
        &[("GOIM_LOGIC_IDENTITY_JWT_SECRETS", SECRET)],
    );
    assert!(serving.printed.contains("jwt: clients present tokens"), "{}", serving.printed);
    let clients = serving.printed.lines().find(|line| line.contains("clients")).unwrap();
    let url = clients.split_whitespace().find(|notification| notification.starts_with("tcp://")).unwrap();
    let token = |more: &[&str]| {
        let output = goim(&[&["token", "--mid", "17", "--body"], more].concat())
            .env("GOIM_TOKEN_SECRET", SECRET)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let connect = |token: &str| run(&["connect", "--url", url, "--token", token]);
    let good = token(&["--audience", "chat", "--room", "live://1", "--claim", "role=\"admin\""]);
    let output = connect(&good);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for wrong in [
        token(&["--audience", "chat", "--expires", "0"]),
        token(&["--audience", "shop"]),
        r#"{"protover":1}"#.to_owned(),
    ] {
        let output = connect(&wrong);
        assert_eq!(output.status.code(), Some(1), "{wrong}: {output:?}");
    }
}

#[test]
fn wrong_arguments_are_refused_with_the_remedy() {
    check_refused(&["token", "--mid", "1"], 64, &["--private-key FILE"]);
    check_refused(&["token", "--mid", "1", "--secret", "short"], 64, &["at least 32 bytes"]);
    check_refused(
        &["token", "--mid", "1", "--secret", SECRET, "--expires", "soon"],
        64,
        &["must be a duration"],
    );
    check_refused(&["token", "--mid", "1", "--secret", SECRET, "--claim", "x"], 64, &["must be NAME=JSON"]);
    check_refused(
        &["token", "--mid", "1", "--private-key", "/nonexistent"],
        64,
        &["cannot read /nonexistent"],
    );
}
