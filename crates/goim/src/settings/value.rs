//! How each type of setting is written: read from text and from TOML, shown as TOML, described when it is wrong.
//!
//! Text is the common form (environment, `--set`, strings in a file). Numbers and booleans are also taken bare from a
//! file; durations and sizes never are, since a bare number does not say its unit.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use goim_comet::SlowConsumerPolicy;
use goim_logic::{DevicePolicy, IdentityMethod, RouteConfig, SendRule};
use goim_ports::{Secret, ServerId, ServiceUrl, VersionRow};

use crate::config::{AutoOffsetReset, Directory, KindRule, LogFormat};

/// What unsets an optional setting, as does an empty text.
const NONE: &str = "none";

/// What stands for a secret.
pub(super) const REDACTED: &str = "<redacted>";

/// A type that a setting can have. The error of both readers says what would be right.
pub(crate) trait Value: Sized {
    /// What stands between several in a text.
    const SEPARATOR: char = ',';

    /// There may be a secret in a value: one that cannot be read is not shown.
    const HOLDS_SECRETS: bool = false;

    /// What a good value looks like, to follow "wants".
    fn wants() -> String;

    /// Reads the text form.
    fn from_text(text: &str) -> Option<Self>;

    /// Reads the form of a file.
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_str().and_then(Self::from_text)
    }

    /// The form of a file; `None` when the setting is not set.
    fn to_toml(&self) -> Option<toml::Value>;
}

/// Types whose text is what `FromStr` reads and `Display` writes, and whose form in a file is that text.
macro_rules! by_text {
    ($($type:ty, $wants:expr;)*) => {$(
        impl Value for $type {
            fn wants() -> String {
                $wants.to_owned()
            }

            fn from_text(text: &str) -> Option<Self> {
                text.parse().ok()
            }

            fn to_toml(&self) -> Option<toml::Value> {
                Some(toml::Value::String(self.to_string()))
            }
        }
    )*};
}

/// Types that a file holds as a TOML integer.
macro_rules! integer {
    ($($type:ty, $wants:expr;)*) => {$(
        impl Value for $type {
            fn wants() -> String {
                $wants.to_owned()
            }

            fn from_text(text: &str) -> Option<Self> {
                text.replace('_', "").parse().ok()
            }

            fn from_toml(value: &toml::Value) -> Option<Self> {
                value.as_integer().and_then(|number| Self::from_text(&number.to_string()))
            }

            fn to_toml(&self) -> Option<toml::Value> {
                self.to_string().parse().ok().map(toml::Value::Integer)
            }
        }
    )*};
}

by_text! {
    String, "a text";
    LogFormat, "`pretty` or `json`";
    Directory, "`redis`, `list` or `discovery`";
    AutoOffsetReset, "`newest` or `oldest`";
}

/// Has a comma in it.
impl Value for VersionRow {
    const SEPARATOR: char = ';';

    fn wants() -> String {
        "a row such as `4 = schema 2, identity`; encodings are identity, zlib, brotli and zstd".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn to_toml(&self) -> Option<toml::Value> {
        Some(toml::Value::String(self.to_string()))
    }
}

/// Has commas in it.
impl Value for SendRule {
    const SEPARATOR: char = ';';

    fn wants() -> String {
        "a rule such as `live://*: 4, 1000..1999`: a timeline or a beginning with * behind, then 4 and operations from 1000 on"
            .to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        text.trim().parse().ok()
    }

    fn to_toml(&self) -> Option<toml::Value> {
        Some(toml::Value::String(self.to_string()))
    }
}

/// Has commas in it.
impl Value for KindRule {
    const SEPARATOR: char = ';';

    fn wants() -> String {
        "a rule such as `live: 1000 messages, 1h, 8MiB`, any part of it".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        let (kind, parts) = text.split_once(':')?;
        let mut rule =
            Self { kind: kind.trim().to_owned(), messages_max: None, age_max: None, bytes_max: None };
        for part in parts.split(',').map(str::trim) {
            let is_new = if let Some(count) = part.strip_suffix("messages") {
                rule.messages_max.replace(count.trim().replace('_', "").parse().ok()?).is_none()
            } else if let Some(age) = parse_duration(part) {
                rule.age_max.replace(age).is_none()
            } else {
                rule.bytes_max.replace(ByteSize::from_text(part)?.0).is_none()
            };
            if !is_new {
                return None;
            }
        }
        (!rule.kind.is_empty()).then_some(rule)
    }

    fn to_toml(&self) -> Option<toml::Value> {
        let count = self.messages_max.map(|count| format!("{count} messages"));
        let age = self.age_max.map(show_duration);
        let bytes = self.bytes_max.and_then(|bytes| Some(ByteSize(bytes).to_toml()?.as_str()?.to_owned()));
        let parts: Vec<String> = [count, age, bytes].into_iter().flatten().collect();
        Some(toml::Value::String(format!("{}: {}", self.kind, parts.join(", "))))
    }
}

integer! {
    u16, "a whole number from 0 to 65535";
    u32, "a whole number from 0 to 4294967295";
    u64, "a whole number from 0";
    usize, "a whole number from 0";
    i32, "a whole number from -2147483648 to 2147483647";
    i64, "a whole number";
    NonZeroU32, "a whole number from 1 to 4294967295";
    NonZeroU64, "a whole number from 1";
    NonZeroUsize, "a whole number from 1";
}

impl Value for bool {
    fn wants() -> String {
        "`true` or `false`".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_bool()
    }

    fn to_toml(&self) -> Option<toml::Value> {
        Some(toml::Value::Boolean(*self))
    }
}

/// Types that a file holds as a TOML float; a whole number is taken too.
macro_rules! float {
    ($($type:ty)*) => {$(
        impl Value for $type {
            fn wants() -> String {
                "a number such as `1.6`".to_owned()
            }

            fn from_text(text: &str) -> Option<Self> {
                text.parse().ok().filter(|number: &Self| number.is_finite())
            }

            fn from_toml(value: &toml::Value) -> Option<Self> {
                match value {
                    toml::Value::Float(number) => Self::from_text(&number.to_string()),
                    toml::Value::Integer(number) => Self::from_text(&number.to_string()),
                    _ => None,
                }
            }

            fn to_toml(&self) -> Option<toml::Value> {
                // By way of the shortest text: 1.8 as a 32-bit number is not 1.8 as a 64-bit one.
                self.to_string().parse().ok().map(toml::Value::Float)
            }
        }
    )*};
}

float! { f32 f64 }

impl Value for Duration {
    fn wants() -> String {
        "a duration with its unit, such as `500ms`, `30s`, `4m` or `1h30m`".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        parse_duration(text)
    }

    fn to_toml(&self) -> Option<toml::Value> {
        Some(toml::Value::String(show_duration(*self)))
    }
}

impl Value for SocketAddr {
    fn wants() -> String {
        "an address with its port, such as `127.0.0.1:3101`, `[::]:3101` or `:3101` for every IPv4 interface"
            .to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        match host {
            "" => Some(Self::from((Ipv4Addr::UNSPECIFIED, port.parse().ok()?))),
            "localhost" => Some(Self::from((Ipv4Addr::LOCALHOST, port.parse().ok()?))),
            _ => text.parse().ok(),
        }
    }

    fn to_toml(&self) -> Option<toml::Value> {
        Some(toml::Value::String(self.to_string()))
    }
}

impl Value for PathBuf {
    fn wants() -> String {
        "the path of a file".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::from(text))
    }

    fn to_toml(&self) -> Option<toml::Value> {
        (!self.as_os_str().is_empty()).then(|| toml::Value::String(self.display().to_string()))
    }
}

impl Value for ServerId {
    fn wants() -> String {
        "a name without blanks and commas, such as `comet-1`".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        let good =
            !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == ',');
        good.then(|| Self::from(text))
    }

    fn to_toml(&self) -> Option<toml::Value> {
        (!self.as_str().is_empty()).then(|| toml::Value::String(self.to_string()))
    }
}

impl<T: Value> Value for Option<T> {
    const HOLDS_SECRETS: bool = T::HOLDS_SECRETS;

    fn wants() -> String {
        format!("{}, or `{NONE}`", T::wants())
    }

    fn from_text(text: &str) -> Option<Self> {
        if text.is_empty() || text == NONE { Some(None) } else { T::from_text(text).map(Some) }
    }

    fn from_toml(value: &toml::Value) -> Option<Self> {
        if value.as_str().is_some_and(|text| text == NONE) {
            Some(None)
        } else {
            T::from_toml(value).map(Some)
        }
    }

    fn to_toml(&self) -> Option<toml::Value> {
        self.as_ref().and_then(T::to_toml)
    }
}

impl<T: Value> Value for Vec<T> {
    const HOLDS_SECRETS: bool = T::HOLDS_SECRETS;

    fn wants() -> String {
        format!("a list (in text: separated by `{}`), each of it {}", T::SEPARATOR, T::wants())
    }

    fn from_text(text: &str) -> Option<Self> {
        if text.trim_start().starts_with('[')
            && let Ok(table) = toml::from_str::<toml::Table>(&format!("list = {text}"))
        {
            return table.get("list").and_then(Self::from_toml);
        }
        text.split(T::SEPARATOR).map(str::trim).filter(|part| !part.is_empty()).map(T::from_text).collect()
    }

    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_array()?.iter().map(T::from_toml).collect()
    }

    fn to_toml(&self) -> Option<toml::Value> {
        self.iter().map(T::to_toml).collect::<Option<Vec<_>>>().map(toml::Value::Array)
    }
}

/// Names with values: regions and the like.
impl<T: Value> Value for BTreeMap<String, T> {
    const HOLDS_SECRETS: bool = T::HOLDS_SECRETS;

    fn wants() -> String {
        format!("a table, such as `{{ name = \"...\" }}`, each value {}", T::wants())
    }

    fn from_text(text: &str) -> Option<Self> {
        let table = toml::from_str::<toml::Table>(&format!("table = {text}")).ok()?;
        Self::from_toml(table.get("table")?)
    }

    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_table()?.iter().map(|(name, value)| Some((name.clone(), T::from_toml(value)?))).collect()
    }

    fn to_toml(&self) -> Option<toml::Value> {
        let table =
            self.iter().map(|(name, value)| Some((name.clone(), value.to_toml()?))).collect::<Option<_>>()?;
        Some(toml::Value::Table(table))
    }
}

/// Is read, and never shown.
impl Value for Secret {
    const HOLDS_SECRETS: bool = true;

    fn wants() -> String {
        "a text".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::from(text))
    }

    fn to_toml(&self) -> Option<toml::Value> {
        Some(toml::Value::String(self.to_string()))
    }
}

/// Is shown without the credentials in it.
impl Value for ServiceUrl {
    const HOLDS_SECRETS: bool = true;

    fn wants() -> String {
        "an address such as `https://host:port/path`".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        Some(Self::from(text))
    }

    fn to_toml(&self) -> Option<toml::Value> {
        let shown = if self.is_empty() { String::new() } else { self.to_string() };
        Some(toml::Value::String(shown))
    }
}

impl Value for IdentityMethod {
    fn wants() -> String {
        "`open`, `jwt` or `webhook`".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        Some(match text {
            "open" => Self::Open,
            "jwt" => Self::Jwt,
            "webhook" => Self::Webhook,
            _ => return None,
        })
    }

    fn to_toml(&self) -> Option<toml::Value> {
        let name = match self {
            Self::Open => "open",
            Self::Jwt => "jwt",
            Self::Webhook => "webhook",
        };
        Some(toml::Value::String(name.to_owned()))
    }
}

impl Value for DevicePolicy {
    fn wants() -> String {
        "`all`, `one-per-platform`, `newest`, or `at-most` and a number, such as `at-most 3`".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        Some(match text {
            "all" => Self::All,
            "one-per-platform" => Self::OnePerPlatform,
            "newest" => Self::Newest,
            _ => Self::AtMost(text.strip_prefix("at-most ")?.trim().parse().ok()?),
        })
    }

    fn to_toml(&self) -> Option<toml::Value> {
        let text = match self {
            Self::All => "all".to_owned(),
            Self::OnePerPlatform => "one-per-platform".to_owned(),
            Self::Newest => "newest".to_owned(),
            Self::AtMost(most) => format!("at-most {most}"),
        };
        Some(toml::Value::String(text))
    }
}

/// A table of its own.
impl Value for RouteConfig {
    const HOLDS_SECRETS: bool = true;

    fn wants() -> String {
        "a table such as `{ operations = \"1000..1999\", to = \"http://127.0.0.1:8000/chat\" }`, with timeout, retries, calls_max, \
         duplicates and secret where wanted"
            .to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        let table = toml::from_str::<toml::Table>(&format!("table = {text}")).ok()?;
        Self::from_toml(table.get("table")?)
    }

    fn from_toml(value: &toml::Value) -> Option<Self> {
        let table = value.as_table()?;
        let text = |name: &str| table.get(name).map(|value| value.as_str());
        let operations = match table.get("operations")? {
            toml::Value::Integer(one) => one.to_string(),
            other => other.as_str()?.to_owned(),
        };
        let (first, last) = operations.split_once("..").unwrap_or((&operations, &operations));
        let operations: RangeInclusive<i32> = first.trim().parse().ok()?..=last.trim().parse().ok()?;
        let to = text("to")??;
        let known = ["http://", "https://", "grpc://", "kafka://"];
        if operations.is_empty()
            || !known.iter().any(|scheme| to.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()))
        {
            return None;
        }
        let mut route = Self::new(operations, to.to_owned());
        for (name, value) in table {
            match name.as_str() {
                "operations" | "to" => {}
                "timeout" => route.timeout = Duration::from_toml(value)?,
                "retries" => route.retries = u32::from_toml(value)?,
                "calls_max" => route.calls_max = usize::from_toml(value)?,
                "duplicates" => route.duplicates = Option::from_toml(value)?,
                "secret" => route.secret = Option::from_toml(value)?,
                _ => return None,
            }
        }
        Some(route)
    }

    fn to_toml(&self) -> Option<toml::Value> {
        let (first, last) = (self.operations.start(), self.operations.end());
        let mut table = toml::Table::new();
        let operations = if first == last { first.to_string() } else { format!("{first}..{last}") };
        table.insert("operations".to_owned(), operations.into());
        table.insert("to".to_owned(), self.to.to_string().into());
        table.insert("timeout".to_owned(), self.timeout.to_toml()?);
        table.insert("retries".to_owned(), self.retries.to_toml()?);
        table.insert("calls_max".to_owned(), self.calls_max.to_toml()?);
        for (name, value) in [("duplicates", self.duplicates.to_toml()), ("secret", self.secret.to_toml())] {
            if let Some(value) = value {
                table.insert(name.to_owned(), value);
            }
        }
        Some(toml::Value::Table(table))
    }
}

impl Value for SlowConsumerPolicy {
    fn wants() -> String {
        "`drop-newest`, `drop-oldest` or `close`".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        Some(match text {
            "drop-newest" => Self::DropNewest,
            "drop-oldest" => Self::DropOldest,
            "close" => Self::Close,
            _ => return None,
        })
    }

    fn to_toml(&self) -> Option<toml::Value> {
        let name = match self {
            Self::DropNewest => "drop-newest",
            Self::DropOldest => "drop-oldest",
            Self::Close => "close",
        };
        Some(toml::Value::String(name.to_owned()))
    }
}

/// Operations and what holds for them: `4 close`, `1000..1999 drop-oldest`.
impl Value for (RangeInclusive<i32>, SlowConsumerPolicy) {
    fn wants() -> String {
        format!(
            "an operation or a range of them and {}, such as `1000..1999 drop-oldest`",
            SlowConsumerPolicy::wants()
        )
    }

    fn from_text(text: &str) -> Option<Self> {
        let (range, policy) = text.trim().split_once(' ')?;
        let (first, last) = range.split_once("..").unwrap_or((range, range));
        let range: RangeInclusive<i32> = first.parse().ok()?..=last.parse().ok()?;
        (!range.is_empty()).then_some((range, SlowConsumerPolicy::from_text(policy.trim())?))
    }

    fn to_toml(&self) -> Option<toml::Value> {
        let (first, last) = (self.0.start(), self.0.end());
        let policy = self.1.to_toml()?;
        let policy = policy.as_str()?;
        Some(toml::Value::String(if first == last {
            format!("{first} {policy}")
        } else {
            format!("{first}..{last} {policy}")
        }))
    }
}

/// A number of bytes in a setting: `64 KiB`. Only the table's readers know this type; configurations hold plain numbers
/// whose name or documentation says "bytes".
pub(crate) struct ByteSize(pub(crate) u64);

const SIZE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl Value for ByteSize {
    fn wants() -> String {
        "a size with its unit, such as `512 B`, `64 KiB`, `16 MiB` or `1 GiB`".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        let (unit, factor) = SIZE_UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
        let number: u64 = text.strip_suffix(unit)?.trim_end().replace('_', "").parse().ok()?;
        number.checked_mul(*factor).map(Self)
    }

    fn to_toml(&self) -> Option<toml::Value> {
        let (unit, factor) = SIZE_UNITS
            .iter()
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor))
            .unwrap_or(&("B", 1));
        Some(toml::Value::String(format!("{} {unit}", self.0 / factor)))
    }
}

/// Nanoseconds in each unit, largest first.
const DURATION_UNITS: [(&str, u128); 7] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("µs", 1_000),
    ("ns", 1),
];

/// Go's syntax, as in goim's files: one or more decimal numbers, each with its unit; `0` alone needs none.
fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let (_, factor) = DURATION_UNITS.iter().find(|(name, _)| *name == unit)?;
        nanos = nanos.checked_add(scaled(number, *factor)?)?;
        rest = tail;
    }
    if text.is_empty() {
        return None;
    }
    let seconds = u64::try_from(nanos / 1_000_000_000).ok()?;
    Some(Duration::new(seconds, u32::try_from(nanos % 1_000_000_000).ok()?))
}

/// A decimal number times `factor`, exact; what is below one nanosecond is cut off.
fn scaled(number: &str, factor: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || whole.len() > 18 || fraction.len() > 18 {
        return None;
    }
    let part = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u128>().ok() };
    let below = part(fraction)? * factor / 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    Some(part(whole)? * factor + below)
}

/// The shortest exact form with whole numbers: `1h30m`, `4m`, `1s500ms`.
pub(crate) fn show_duration(duration: Duration) -> String {
    let mut rest = duration.as_nanos();
    let mut text = String::new();
    for (unit, factor) in DURATION_UNITS.iter().filter(|(unit, _)| *unit != "µs") {
        if rest >= *factor {
            text.push_str(&format!("{}{unit}", rest / factor));
            rest %= factor;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests;
