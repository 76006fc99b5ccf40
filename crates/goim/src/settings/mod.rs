//! Settings: the list of them, which follows from [`Config`], and everything that follows from the
//! list.
//!
//! Each setting has a key, a text, and access to its field. The printed default configuration,
//! files, environment variables, `--set`, and the messages about wrong keys and values all use this
//! one list.
//!
//! Precedence: default, then file, then environment, then `--set`.

mod document;
mod fault;
mod load;
mod toml_value;

use std::sync::LazyLock;

use goim_settings::{Schema, Settings};

use crate::Config;
pub use document::{document, effective};
pub use fault::{ConfigError, Fault, Origin};
pub(crate) use load::shown;
pub use load::{Loaded, Sources, load, load_for};

/// Prefix of environment variables that are settings.
pub(crate) const ENVIRONMENT_PREFIX: &str = "GOIM_";

/// The text that replaces a secret.
const REDACTED: &str = "<redacted>";

/// One setting.
pub type Setting = goim_settings::Setting<Config>;

static SCHEMA: LazyLock<Schema<Config>> = LazyLock::new(Config::schema);

/// All settings, in the order in which they are printed.
#[must_use]
pub fn table() -> &'static [Setting] {
    &SCHEMA.settings
}

/// The name of a setting in the environment, for example `GOIM_COMET_LIMITS_HANDSHAKE_TIMEOUT`.
#[must_use]
pub fn variable(setting: &Setting) -> String {
    format!("{ENVIRONMENT_PREFIX}{}", setting.key().replace('.', "_").to_uppercase())
}

/// The setting with this key.
fn find(key: &str) -> Option<&'static Setting> {
    table().iter().find(|setting| setting.key() == key)
}

/// The known name most similar to `wrong`, if one is similar at all.
pub(crate) fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let last = |name: &str| name.rsplit('.').next().map(str::to_owned);
    known
        .map(|name| {
            let whole = strsim::normalized_damerau_levenshtein(wrong, name);
            // The right last part in the wrong section is a good guess too.
            let part = if last(wrong) == last(name) { 0.75 } else { 0.0 };
            (whole.max(part), name)
        })
        .filter(|(similarity, _)| *similarity >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests;
