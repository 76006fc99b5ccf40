//! What each type of setting reads, refuses and shows, and what a declared group gives.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use goim_ports::ServerId;

use super::*;

/// Reads `text` as an `F` and compares how the value is shown; `None` if it must be refused.
fn check_as<T, F: Format<T>>(text: &str, shown: Option<&str>) {
    let value = F::read(Input::Text(text)).and_then(|value| F::show(&value));
    assert_eq!(value.as_ref().map(ToString::to_string).as_deref(), shown, "{text:?}");
    if let Some(value) = value {
        let again = F::read(Input::Value(&value)).and_then(|value| F::show(&value));
        assert_eq!(again, Some(value), "{text:?} read back");
    }
}

fn check<T: SettingType>(text: &str, shown: Option<&str>) {
    check_as::<T, Plain>(text, shown);
}

#[test]
fn durations() {
    for (text, shown) in [
        ("5s", Some("5s")),
        ("500ms", Some("500ms")),
        ("4m", Some("4m")),
        ("90s", Some("1m30s")),
        ("1h30m", Some("1h30m")),
        ("1.5s", Some("1s500ms")),
        (".5s", Some("500ms")),
        ("0", Some("0s")),
        ("0s", Some("0s")),
        ("3µs", Some("3us")),
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
        ("64 KiB", Some("64 KiB")),
        ("64KiB", Some("64 KiB")),
        ("4096 B", Some("4 KiB")),
        ("1_000 B", Some("1000 B")),
        ("0 B", Some("0 B")),
        ("1024 MiB", Some("1 GiB")),
        ("64", None),
        ("64 KB", None),
        ("-1 B", None),
        ("B", None),
        ("99999999999 GiB", None),
    ] {
        check_as::<u64, Bytes>(text, shown);
    }
    check_as::<u32, Bytes>("4 GiB", None);
}

#[test]
fn addresses() {
    for (text, shown) in [
        (":3101", Some("0.0.0.0:3101")),
        ("127.0.0.1:0", Some("127.0.0.1:0")),
        ("localhost:1", Some("127.0.0.1:1")),
        ("[::1]:3101", Some("[::1]:3101")),
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
    check::<f32>("2", Some("2"));
    check::<ServerId>("comet-1", Some("comet-1"));
    check::<ServerId>("a b", None);
    assert!(Option::<u32>::from_text("none").unwrap().is_none());
    assert!(Option::<u32>::from_text("").unwrap().is_none());
    assert!(Option::<u32>::from_text("no").is_none());
}

#[test]
fn lists_and_tables() {
    let shown = |text| Vec::<SocketAddr>::from_text(text)?.to_value();
    let list = |items: &[&str]| Value::List(items.iter().map(|item| Value::from(*item)).collect());
    assert_eq!(shown(":1,:2"), Some(list(&["0.0.0.0:1", "0.0.0.0:2"])));
    assert_eq!(shown(""), Some(list(&[])));
    assert_eq!(shown(":1;:2"), None);
    assert_eq!(Vec::<String>::from_value(&list(&["a,b"])), Some(vec!["a,b".to_owned()]));
    let table = Value::Table(BTreeMap::from([("sh".to_owned(), list(&["a"]))]));
    let regions = BTreeMap::<String, Vec<String>>::from_value(&table).unwrap();
    assert_eq!(regions.to_value(), Some(table));
    assert!(BTreeMap::<String, String>::from_value(&Value::from("sh")).is_none());
}

#[test]
fn a_file_needs_units() {
    assert!(Duration::from_value(&Value::Integer(5)).is_none());
    assert!(<Bytes as Format<u64>>::read(Input::Value(&Value::Integer(5))).is_none());
    assert!(u32::from_value(&Value::from("5")).is_none());
}

settings! {
    /// The inner group.
    #[derive(Debug, Clone)]
    pub struct Inner {
        /// A size.
        #[setting(bytes, at_least = 256)]
        pub head_bytes_max: usize = 8 * 1024,
        /// An optional number.
        #[setting(example = "7")]
        pub burst: Option<u32> = None,
        /// A token.
        #[setting(secret, example = "x", check = long)]
        pub token: Option<String> = None,
    }
}

settings! {
    /// The outer group.
    #[derive(Debug, Clone)]
    pub struct Outer {
        #[setting(group)]
        pub inner: Inner,
        /// Another text for the same group.
        #[setting(group)]
        pub other: Inner = Inner { burst: Some(3), ..Inner::default() },
        /// A time.
        #[setting(above_zero)]
        pub timeout: Duration = Duration::from_secs(5),
        /// A level.
        #[setting(range = 1..=9)]
        pub level: u32 = 6,
        /// What follows from others.
        #[setting(derived)]
        pub sum: u32 = 0,
    }
    check = together;
}

fn long(token: &Option<String>) -> Result<(), String> {
    let is_short = token.as_ref().is_some_and(|token| token.len() < 4);
    if is_short { Err("must have at least 4 bytes".to_owned()) } else { Ok(()) }
}

fn together(outer: &Outer, faults: &mut Faults) {
    faults.add_if(
        outer.level > 7 && outer.timeout.as_secs() < 2,
        "level",
        "must be at most 7 with so little time",
    );
}

#[test]
fn a_group_has_keys_texts_and_examples() {
    let schema = Outer::schema();
    let keys: Vec<_> = schema.settings.iter().map(Setting::key).collect();
    let expected = [
        "timeout",
        "level",
        "inner.head_bytes_max",
        "inner.burst",
        "inner.token",
        "other.head_bytes_max",
        "other.burst",
        "other.token",
    ];
    assert_eq!(keys, expected);
    assert_eq!(schema.settings[1].text().trim(), "A level.");
    assert_eq!(schema.settings[3].shown_example(), "7");
    assert!(schema.settings[4].is_secret());
    assert_eq!(Outer::default().sum, 0);
    let sections: Vec<_> =
        schema.sections.iter().map(|section| (section.key.as_str(), section.text.trim())).collect();
    assert_eq!(
        sections,
        [
            ("", "The outer group."),
            ("inner", "The inner group."),
            ("other", "Another text for the same group.")
        ]
    );
}

#[test]
fn a_setting_reads_and_writes_its_field() {
    let (schema, mut outer) = (Outer::schema(), Outer::default());
    let burst = &schema.settings[6];
    assert_eq!(burst.get(&outer), Some(Value::Integer(3)));
    assert!(burst.set(&mut outer, Input::Text("9")).is_some());
    assert_eq!(outer.other.burst, Some(9));
    assert!(burst.set(&mut outer, Input::Text("nine")).is_none());
    assert_eq!(outer.other.burst, Some(9));
}

#[test]
fn all_faults_are_found() {
    let mut outer = Outer { timeout: Duration::ZERO, level: 10, ..Outer::default() };
    outer.inner.head_bytes_max = 1;
    outer.other.token = Some("abc".to_owned());
    let faults: Vec<_> = Faults::of("root", &outer)
        .into_iter()
        .map(|fault| format!("{}: {}", fault.key, fault.message))
        .collect();
    let expected = [
        "root.inner.head_bytes_max: must be at least 256 B",
        "root.other.token: must have at least 4 bytes",
        "root.timeout: must be greater than zero",
        "root.level: must be from 1 to 9",
        "root.level: must be at most 7 with so little time",
    ];
    assert_eq!(faults, expected);
    assert!(Faults::of("", &Outer::default()).is_empty());
}
