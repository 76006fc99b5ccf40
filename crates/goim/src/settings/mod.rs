//! Settings: the one table that says which exist, and everything that follows from it.
//!
//! A row of the table knows a setting's key, its documentation, and how to read and write it in a [`Config`]. The
//! printed default configuration, files, environment variables, `--set`, and the answers to wrong keys and values all
//! come from these rows, so that they cannot disagree. A key is the path of its field.
//!
//! Precedence: default, then file, then environment, then `--set`.

mod comet;
mod document;
mod job;
mod load;
mod logic;
mod process;
mod value;

use std::sync::LazyLock;

use crate::Config;
pub use document::{document, effective};
pub use load::{ConfigError, Fault, Loaded, Origin, Sources, load};
use value::Value;

/// Prefix of environment variables that are settings.
pub(crate) const ENVIRONMENT_PREFIX: &str = "GOIM_";

/// One row of the table.
pub struct Setting {
    key: &'static str,
    doc: &'static str,
    example: &'static str,
    secret: bool,
    holds_secrets: fn() -> bool,
    get: fn(&Config) -> Option<toml::Value>,
    set: fn(&mut Config, Input<'_>) -> Option<()>,
    wants: fn() -> String,
}

/// A value before it is read.
#[derive(Clone, Copy)]
enum Input<'a> {
    /// From the environment or `--set`.
    Text(&'a str),
    /// From a file.
    Toml(&'a toml::Value),
}

impl Input<'_> {
    fn read<T: Value>(self) -> Option<T> {
        match self {
            Self::Text(text) => T::from_text(text.trim()),
            Self::Toml(value) => T::from_toml(value),
        }
    }
}

impl Setting {
    /// Its name in files and for `--set`, for example `comet.limits.handshake_timeout`.
    #[must_use]
    pub fn key(&self) -> &'static str {
        self.key
    }

    /// Its name in the environment, for example `GOIM_COMET_LIMITS_HANDSHAKE_TIMEOUT`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{ENVIRONMENT_PREFIX}{}", self.key.replace('.', "_").to_uppercase())
    }

    /// What it means, with unit, bounds, default and cost.
    #[must_use]
    pub fn doc(&self) -> &'static str {
        self.doc
    }
}

/// Defines rows. `PATH, "doc"` is a setting whose default can be shown; `PATH = "example", "doc"` shows the example in
/// its place; `size` before the path says that the field counts bytes; `secret` that it is never printed.
macro_rules! settings {
    ($($($mark:ident)? [$first:ident $(. $rest:ident)*] $(= $example:literal)?, $doc:literal;)*) => {
        vec![$($crate::settings::Setting {
            key: concat!(stringify!($first) $(, ".", stringify!($rest))*),
            doc: $doc,
            example: concat!("" $(, $example)?),
            secret: settings!(@secret $($mark)?),
            holds_secrets: || {
                $crate::settings::holds_secrets_of(|config: &$crate::Config| &config.$first $(.$rest)*)
            },
            get: |config| settings!(@get $($mark)?, config.$first $(.$rest)*),
            set: |config, input| settings!(@set $($mark)?, config.$first $(.$rest)*, input),
            wants: || settings!(@wants $($mark)?, |config: &$crate::Config| &config.$first $(.$rest)*),
        },)*]
    };
    (@secret secret) => { true };
    (@secret $($mark:ident)?) => { false };
    (@get size, $place:expr) => {
        $crate::settings::value::ByteSize(u64::try_from($place).ok()?).to_toml()
    };
    (@get $($mark:ident)?, $place:expr) => { $place.to_toml() };
    (@set size, $place:expr, $input:expr) => {{
        let size: $crate::settings::value::ByteSize = $input.read()?;
        $place = size.0.try_into().ok()?;
        Some(())
    }};
    (@set $($mark:ident)?, $place:expr, $input:expr) => {{
        $place = $input.read()?;
        Some(())
    }};
    (@wants size, $field:expr) => {
        <$crate::settings::value::ByteSize as $crate::settings::value::Value>::wants()
    };
    (@wants $($mark:ident)?, $field:expr) => { $crate::settings::wants_of($field) };
}
use settings;

/// Whether there may be secrets in values of a field, without naming its type.
fn holds_secrets_of<T: Value>(_field: fn(&Config) -> &T) -> bool {
    T::HOLDS_SECRETS
}

/// What the type of a field wants, without naming the type.
fn wants_of<T: Value>(_field: fn(&Config) -> &T) -> String {
    T::wants()
}

static TABLE: LazyLock<Vec<Setting>> = LazyLock::new(|| {
    let mut table = process::settings();
    table.extend(comet::settings());
    table.extend(logic::settings());
    table.extend(job::settings());
    table
});

/// A duration as settings have it, for arguments.
pub(crate) fn read_duration(text: &str) -> Option<std::time::Duration> {
    Value::from_text(text)
}

/// All settings, in the order in which they are printed.
#[must_use]
pub fn table() -> &'static [Setting] {
    &TABLE
}

/// What stands above a group of settings.
static SECTIONS: LazyLock<Vec<(&'static str, &'static str)>> =
    LazyLock::new(|| [process::SECTIONS, comet::SECTIONS, logic::SECTIONS, job::SECTIONS].concat());

/// The setting with this key.
fn find(key: &str) -> Option<&'static Setting> {
    table().iter().find(|setting| setting.key == key)
}

/// The known name most like `wrong`, when one is like it at all.
fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let last = |name: &str| name.rsplit('.').next().map(str::to_owned);
    known
        .map(|name| {
            let whole = strsim::normalized_damerau_levenshtein(wrong, name);
            // The right last part in the wrong place is a good guess too.
            let part = if last(wrong) == last(name) { 0.75 } else { 0.0 };
            (whole.max(part), name)
        })
        .filter(|(likeness, _)| *likeness >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests;
