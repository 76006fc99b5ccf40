//! The configuration as a TOML file: all settings with texts and defaults, or the values in effect.

use std::fmt::Write as _;

use goim_settings::Value;

use super::fault::Origin;
use super::load::Loaded;
use super::toml_value::{redacted, to_toml, without_credentials};
use super::{SCHEMA, Setting, table};
use crate::Config;

/// The maximum length of a comment line, in characters.
const WIDTH: usize = 100;

const HEAD: &str = "\
# goim: every setting, with its default.
#
# A setting is read from these sources; later ones override earlier ones:
#   1. the default shown here
#   2. a file: goim serve --config FILE
#   3. the environment: comet.limits.handshake_timeout is GOIM_COMET_LIMITS_HANDSHAKE_TIMEOUT
#   4. the command line: --set comet.limits.handshake_timeout=8s
#
# Durations have a unit (\"500ms\", \"30s\", \"4m\", \"1h30m\"), and so do sizes (\"64 KiB\"). A line that is
# commented out is a setting without a default, and shows an example. \"none\" unsets an optional one.
# Unknown keys are errors.
";

/// The default configuration with the documentation of every setting: what `goim config` prints.
#[must_use]
pub fn document() -> String {
    let config = Config::default();
    let mut text = HEAD.to_owned();
    each_section(&mut text, |text, setting| {
        text.push('\n');
        write_comment(text, setting.text());
        write_value(text, setting, setting.get(&config), setting.shown_example());
    });
    text
}

/// The configuration in effect, each value with its origin, secrets redacted: what `goim config
/// --effective` prints.
#[must_use]
pub fn effective(loaded: &Loaded) -> String {
    let mut text = "# goim: the configuration in effect.\n".to_owned();
    each_section(&mut text, |text, setting| {
        let origin = loaded.origin(setting);
        if *origin != Origin::Default {
            let _ = writeln!(text, "# from {origin}");
        }
        let value = setting.get(&loaded.config);
        let is_hidden = setting.is_secret() && *origin != Origin::Default;
        let shown = if is_hidden { redacted } else { without_credentials };
        write_value(text, setting, value.map(shown), "");
    });
    text
}

fn each_section(text: &mut String, mut row: impl FnMut(&mut String, &Setting)) {
    let mut open = "";
    for setting in table() {
        let section = setting.key().rsplit_once('.').map_or("", |(section, _)| section);
        if section != open {
            text.push('\n');
            for known in SCHEMA.sections.iter().filter(|known| known.key == section) {
                write_comment(text, known.text);
            }
            let _ = writeln!(text, "[{section}]");
            open = section;
        }
        row(text, setting);
    }
}

/// Writes lines of at most [`WIDTH`].
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

/// Writes one line, commented out if there is no value.
fn write_value(text: &mut String, setting: &Setting, value: Option<Value>, example: &str) {
    let name = setting.key().rsplit('.').next().unwrap_or(setting.key());
    let _ = match value {
        Some(value) => writeln!(text, "{name} = {}", to_toml(value)),
        None => {
            let is_bare =
                example.parse::<i64>().is_ok() || example.parse::<bool>().is_ok() || example.starts_with('[');
            let example = if is_bare { example.to_owned() } else { format!("\"{example}\"") };
            writeln!(text, "# {name} = {example}")
        }
    };
}
