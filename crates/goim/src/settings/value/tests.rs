//! What each type of setting reads, refuses and shows.

use super::*;

fn check<T: Value>(text: &str, shown: Option<&str>) {
    let got = T::from_text(text).and_then(|value| value.to_toml()).map(|value| value.to_string());
    assert_eq!(got.as_deref(), shown, "{text:?} as {}", T::wants());
    if let Some(shown) = shown {
        // What is shown is read back from a file as the same.
        let table: toml::Table = toml::from_str(&format!("v = {shown}")).unwrap();
        let again =
            T::from_toml(&table["v"]).and_then(|value| value.to_toml()).map(|value| value.to_string());
        assert_eq!(again.as_deref(), Some(shown), "{shown} read back");
    }
}

#[test]
fn durations() {
    for (text, shown) in [
        ("5s", Some(r#""5s""#)),
        ("500ms", Some(r#""500ms""#)),
        ("4m", Some(r#""4m""#)),
        ("90s", Some(r#""1m30s""#)),
        ("1h30m", Some(r#""1h30m""#)),
        ("1.5s", Some(r#""1s500ms""#)),
        (".5s", Some(r#""500ms""#)),
        ("0", Some(r#""0s""#)),
        ("0s", Some(r#""0s""#)),
        ("3µs", Some(r#""3us""#)),
        ("18446744073709551616s", None),
        ("5", None),
        ("", None),
        ("s", None),
        (".s", None),
        ("-5s", None),
        ("5 s", None),
        ("5d", None),
        ("1.2.3s", None),
    ] {
        check::<Duration>(text, shown);
    }
}

#[test]
fn sizes() {
    for (text, shown) in [
        ("64 KiB", Some(r#""64 KiB""#)),
        ("64KiB", Some(r#""64 KiB""#)),
        ("4096 B", Some(r#""4 KiB""#)),
        ("1_000 B", Some(r#""1000 B""#)),
        ("0 B", Some(r#""0 B""#)),
        ("1024 MiB", Some(r#""1 GiB""#)),
        ("64", None),
        ("64 KB", None),
        ("-1 B", None),
        ("B", None),
        ("99999999999 GiB", None),
    ] {
        check::<ByteSize>(text, shown);
    }
}

#[test]
fn addresses() {
    for (text, shown) in [
        (":3101", Some(r#""0.0.0.0:3101""#)),
        ("127.0.0.1:0", Some(r#""127.0.0.1:0""#)),
        ("localhost:1", Some(r#""127.0.0.1:1""#)),
        ("[::1]:3101", Some(r#""[::1]:3101""#)),
        ("3101", None),
        ("::1", None),
        (":70000", None),
        ("example.com:3101", None),
    ] {
        check::<SocketAddr>(text, shown);
    }
}

#[test]
fn numbers_and_names() {
    check::<NonZeroU32>("1_000", Some("1000"));
    check::<NonZeroU32>("0", None);
    check::<usize>("-1", None);
    check::<i32>("-5", Some("-5"));
    check::<bool>("true", Some("true"));
    check::<bool>("yes", None);
    check::<f64>("1.6", Some("1.6"));
    check::<f64>("NaN", None);
    check::<f32>("1.8", Some("1.8"));
    check::<f32>("2", Some("2.0"));
    check::<ServerId>("comet-1", Some(r#""comet-1""#));
    check::<ServerId>("a b", None);
    check::<LogFormat>("json", Some(r#""json""#));
    check::<LogFormat>("yaml", None);
    assert!(Option::<u32>::from_text("none").unwrap().is_none());
    assert!(Option::<u32>::from_text("").unwrap().is_none());
    assert!(Option::<u32>::from_text("no").is_none());
}

#[test]
fn lists() {
    check::<Vec<SocketAddr>>(":1,:2", Some(r#"["0.0.0.0:1", "0.0.0.0:2"]"#));
    check::<Vec<SocketAddr>>("", Some("[]"));
    check::<Vec<SocketAddr>>(r#"[":1"]"#, Some(r#"["0.0.0.0:1"]"#));
    check::<Vec<SocketAddr>>(":1;:2", None);
    check::<Vec<String>>(r#"["a,b"]"#, Some(r#"["a,b"]"#));
}

#[test]
fn tables() {
    check::<BTreeMap<String, Vec<String>>>(
        r#"{ sh = ["a", "b"], bj = [""] }"#,
        Some(r#"{ bj = [""], sh = ["a", "b"] }"#),
    );
    check::<BTreeMap<String, Vec<String>>>("{}", Some("{}"));
    check::<BTreeMap<String, Vec<String>>>("sh", None);
    check::<BTreeMap<String, String>>(r#"{ "a.b" = "c" }"#, Some(r#"{ "a.b" = "c" }"#));
    check::<BTreeMap<String, String>>("{ a = 1 }", None);
}

#[test]
fn slow_consumer_ranges() {
    check::<Vec<(RangeInclusive<i32>, SlowConsumerPolicy)>>(
        "4 close, 1000..1999 drop-oldest",
        Some(r#"["4 close", "1000..1999 drop-oldest"]"#),
    );
    check::<(RangeInclusive<i32>, SlowConsumerPolicy)>("2..1 close", None);
    check::<(RangeInclusive<i32>, SlowConsumerPolicy)>("4", None);
    check::<(RangeInclusive<i32>, SlowConsumerPolicy)>("-3..-1 drop-newest", Some(r#""-3..-1 drop-newest""#));
}

#[test]
fn a_file_needs_units() {
    assert!(Duration::from_toml(&toml::Value::Integer(5)).is_none());
    assert!(ByteSize::from_toml(&toml::Value::Integer(5)).is_none());
    assert!(u32::from_toml(&toml::Value::String("5".to_owned())).is_none());
}
