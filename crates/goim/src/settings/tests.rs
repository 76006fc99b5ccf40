//! Every setting can be set and printed, and the printed defaults are the defaults.

use std::collections::BTreeSet;

use goim_settings::{Input, Value};

use super::toml_value::{structured, to_toml};
use super::*;

/// The printed defaults are committed as an example, so that they can be read without running
/// anything.
const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/goim.toml");

/// Sets `text` as `--set` does.
fn set(setting: &Setting, config: &mut Config, text: &str) -> Option<()> {
    let parsed = structured(text).and_then(|value| setting.set(config, Input::Value(&value)));
    parsed.or_else(|| setting.set(config, Input::Text(text)))
}

/// All values as text.
fn values(config: &Config) -> Vec<(&'static str, String)> {
    table().iter().map(|setting| (setting.key(), format!("{:?}", setting.get(config)))).collect()
}

#[test]
fn names_are_unique_everywhere() {
    let keys: BTreeSet<_> = table().iter().map(Setting::key).collect();
    assert_eq!(keys.len(), table().len());
    let variables: BTreeSet<_> = table().iter().map(variable).collect();
    assert_eq!(variables.len(), table().len());
}

#[test]
fn sections_are_documented_once_and_contiguous() {
    let mut seen: Vec<&str> = Vec::new();
    for setting in table() {
        let section = setting.key().rsplit_once('.').map_or("", |(section, _)| section);
        if seen.last() != Some(&section) {
            assert!(!seen.contains(&section), "[{section}] is interrupted by {}", setting.key());
            assert_eq!(
                SCHEMA.sections.iter().filter(|known| known.key == section).count(),
                1,
                "text of [{section}]"
            );
            seen.push(section);
        }
    }
    assert_eq!(seen.len(), SCHEMA.sections.len(), "a section without settings has a text");
}

#[test]
fn documentation_fits_a_terminal() {
    // Values may be longer.
    for line in document().lines().filter(|line| line.starts_with('#')) {
        assert!(line.chars().count() <= 100, "too long: {line}");
    }
    for setting in table() {
        assert!(
            setting.text().trim().ends_with(['.', ']']),
            "{}: {:?}",
            setting.key(),
            setting.text().trim()
        );
    }
}

#[test]
fn the_printed_defaults_are_the_defaults() {
    let path = std::env::temp_dir().join(format!("goim-defaults-{}.toml", std::process::id()));
    std::fs::write(&path, document()).unwrap();
    let loaded = load(&Sources { file: Some(path.clone()), ..Sources::default() });
    std::fs::remove_file(&path).unwrap();
    let mut config = loaded.unwrap().config;
    config.complete();
    let mut default = Config::default();
    default.complete();
    assert_eq!(values(&config), values(&default));
    assert_eq!(format!("{config:?}"), format!("{default:?}"));
    config.check(crate::check::Purpose::Any).unwrap();
}

#[test]
fn the_printed_examples_can_be_used() {
    for setting in table().iter().filter(|setting| setting.get(&Config::default()).is_none()) {
        let mut config = Config::default();
        assert!(
            set(setting, &mut config, setting.shown_example()).is_some(),
            "{}: {:?}",
            setting.key(),
            setting.shown_example()
        );
        let value = setting.get(&config);
        let value = value.unwrap_or_else(|| panic!("{} is not set by its example", setting.key()));
        let shown = to_toml(value).to_string();
        let example = if setting.is_secret() { REDACTED } else { setting.shown_example() };
        assert!(
            [example.to_owned(), format!("\"{example}\"")].contains(&shown),
            "{}: {shown}",
            setting.key()
        );
    }
}

#[test]
fn a_setting_changes_only_its_field() {
    for setting in table() {
        let other = match setting.get(&Config::default()) {
            None => setting.shown_example().to_owned(),
            Some(Value::Bool(flag)) => (!flag).to_string(),
            Some(Value::Integer(number)) => (number + 1).to_string(),
            Some(Value::Float(number)) => (number / 2.0).to_string(),
            Some(Value::List(_)) if setting.is_secret() => "another-secret-of-enough-bytes".to_owned(),
            Some(Value::List(_)) if setting.key().ends_with("slow_consumer") => "7 close".to_owned(),
            Some(Value::List(_)) if setting.key() == "logic.upstream.routes" => {
                "[{ operations = \"1000..1999\", to = \"http://127.0.0.1:8000/\" }]".to_owned()
            }
            Some(Value::List(_)) if setting.key() == "versions.rows" => "4 = schema 2, zstd".to_owned(),
            Some(Value::List(_)) if setting.key() == "logic.timelines.send.allowed" => {
                "live://*: 4, 1000..1999; mid://*: 1000".to_owned()
            }
            Some(Value::List(_)) if setting.key() == "timelines.retention_overrides" => {
                "live: 1000 messages, 1h, 8MiB".to_owned()
            }
            Some(Value::List(_)) => "127.0.0.1:9".to_owned(),
            Some(Value::Table(_)) if setting.is_secret() => "{ name = \"text\" }".to_owned(),
            Some(Value::Table(_)) => "{ sh = [\"a\"] }".to_owned(),
            Some(Value::Text(text)) => match text.as_str() {
                "pretty" => "json".to_owned(),
                "latest" => "earliest".to_owned(),
                "redis" => "list".to_owned(),
                "drop-newest" => "close".to_owned(),
                "open" => "webhook".to_owned(),
                "all" => "at-most 3".to_owned(),
                text if text.ends_with(" B") || text.ends_with("iB") => "12345 B".to_owned(),
                text if text.contains(':') => "127.0.0.1:9".to_owned(),
                text if text.ends_with(['s', 'm', 'h']) && text.starts_with(|c: char| c.is_ascii_digit()) => {
                    "77s".to_owned()
                }
                text => format!("{text}x"),
            },
        };
        let (before, mut config) = (Config::default(), Config::default());
        assert!(set(setting, &mut config, &other).is_some(), "{} rejects {other:?}", setting.key());
        let changed: Vec<_> = values(&before)
            .into_iter()
            .zip(values(&config))
            .filter(|(old, new)| old != new)
            .map(|((key, _), _)| key)
            .collect();
        assert_eq!(changed, [setting.key()], "after {} = {other}", setting.key());
    }
}

#[test]
fn the_committed_file_is_what_is_printed() {
    let committed = std::fs::read_to_string(COMMITTED).unwrap_or_default();
    assert!(committed == document(), "docs/goim.toml is out of date: run `make config`");
}

#[test]
fn secrets_are_not_shown() {
    let secret = "correct-horse-battery-staple";
    let sources = Sources { set: vec![format!("logic.http.api_keys={secret}")], ..Sources::default() };
    let loaded = load(&sources).unwrap();
    let text = effective(&loaded);
    assert!(!text.contains(secret), "{text}");
    assert!(text.contains("# from --set\napi_keys = [\"<redacted>\"]"), "{text}");
    for key in ["redis.url", "redis.cluster", "redis.sentinels"] {
        let sources = Sources { set: vec![format!("{key}=redis://:{secret}@host:1")], ..Sources::default() };
        let text = effective(&load(&sources).unwrap());
        assert!(!text.contains(secret) && text.contains("<redacted>"), "{key}: {text}");
    }
    let properties = format!("kafka.properties={{ \"sasl.password\" = \"{secret}\" }}");
    let text = effective(&load(&Sources { set: vec![properties], ..Sources::default() }).unwrap());
    assert!(text.contains("properties = { \"sasl.password\" = \"<redacted>\" }"), "{text}");
    assert!(!text.contains(secret), "{text}");
}
