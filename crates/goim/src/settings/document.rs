//! The configuration as a TOML file: documented, with every default, or as one process would use it.

use std::fmt::Write as _;

use super::load::{Loaded, Origin};
use super::value::REDACTED;
use super::{SECTIONS, Setting, table};
use crate::Config;

/// Longest comment line, in characters: two windows fit side by side on a wide screen.
const WIDTH: usize = 110;

const HEAD: &str = "\
# goim: every setting, with its default.
#
# A setting is taken from, in this order, the later ones winning:
#   1. the default shown here
#   2. this file, when it is named: goim serve --config FILE
#   3. the environment: comet.limits.handshake_timeout is GOIM_COMET_LIMITS_HANDSHAKE_TIMEOUT
#   4. the command line: --set comet.limits.handshake_timeout=8s
#
# Durations have a unit (\"500ms\", \"30s\", \"4m\", \"1h30m\"), sizes too (\"64 KiB\"). A line that is commented out is
# a setting without a default; what it shows is an example. \"none\" unsets an optional one. Unknown keys are
# refused.
";

/// The default configuration with the documentation of every setting: what `goim config` prints.
#[must_use]
pub fn document() -> String {
    let config = Config::default();
    let mut text = HEAD.to_owned();
    each_section(&mut text, |text, setting| {
        text.push('\n');
        write_comment(text, setting.doc);
        write_value(text, setting, (setting.get)(&config), setting.example);
    });
    text
}

/// What a process would run with, each value with where it came from, secrets left out: `goim config --effective`.
#[must_use]
pub fn effective(loaded: &Loaded) -> String {
    let mut text = "# goim: the configuration as it is in effect.\n".to_owned();
    each_section(&mut text, |text, setting| {
        let origin = loaded.origin(setting);
        if *origin != Origin::Default {
            let _ = writeln!(text, "# from {origin}");
        }
        let value = (setting.get)(&loaded.config);
        let is_hidden = setting.secret && *origin != Origin::Default;
        let shown = if is_hidden { redacted } else { without_credentials };
        write_value(text, setting, value.map(shown), "");
    });
    text
}

fn each_section(text: &mut String, mut row: impl FnMut(&mut String, &Setting)) {
    let mut open = "";
    for setting in table() {
        let section = setting.key.rsplit_once('.').map_or("", |(section, _)| section);
        if section != open {
            text.push('\n');
            for (_, doc) in SECTIONS.iter().filter(|(key, _)| *key == section) {
                write_comment(text, doc);
            }
            let _ = writeln!(text, "[{section}]");
            open = section;
        }
        row(text, setting);
    }
}

/// The same value with nothing in it that may be a secret: texts, lists and the values of tables are what secrets are held in.
fn redacted(value: toml::Value) -> toml::Value {
    match value {
        toml::Value::Array(list) => toml::Value::Array(list.into_iter().map(redacted).collect()),
        toml::Value::Table(table) => {
            toml::Value::Table(table.into_iter().map(|(name, value)| (name, redacted(value))).collect())
        }
        _ => toml::Value::String(REDACTED.to_owned()),
    }
}

/// The same value with no credentials in addresses, wherever somebody has written some.
pub(super) fn without_credentials(value: toml::Value) -> toml::Value {
    match value {
        toml::Value::String(text) if text.contains("://") && text.contains('@') => {
            toml::Value::String(goim_ports::ServiceUrl::from(text).to_string())
        }
        toml::Value::Array(list) => toml::Value::Array(list.into_iter().map(without_credentials).collect()),
        toml::Value::Table(table) => {
            let row = |(name, value)| (name, without_credentials(value));
            toml::Value::Table(table.into_iter().map(row).collect())
        }
        other => other,
    }
}

/// Lines of at most [`WIDTH`].
fn write_comment(text: &mut String, doc: &str) {
    let mut line = "#".to_owned();
    for word in doc.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(text, "{line}");
            line.truncate(1);
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(text, "{line}");
}

/// One line; commented out when there is no value.
fn write_value(text: &mut String, setting: &Setting, value: Option<toml::Value>, example: &str) {
    let name = setting.key.rsplit('.').next().unwrap_or(setting.key);
    let _ = match value {
        Some(value) => writeln!(text, "{name} = {value}"),
        None => {
            let bare =
                example.parse::<i64>().is_ok() || example.parse::<bool>().is_ok() || example.starts_with('[');
            let example = if bare { example.to_owned() } else { format!("\"{example}\"") };
            writeln!(text, "# {name} = {example}")
        }
    };
}
