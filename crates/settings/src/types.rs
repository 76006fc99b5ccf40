//! How each type of setting is written: read from text and from a file, shown, and described when
//! it is wrong.
//!
//! Text is the common form (environment, command line, strings in a file). Numbers and booleans are
//! also read bare from a file; durations and sizes are not, because a bare number does not name its
//! unit.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use goim_ports::{Secret, ServerId, ServiceUrl, VersionRow};

use crate::Value;

/// The text that unsets an optional setting, as an empty text does.
pub const NONE: &str = "none";

/// What a number of bytes must look like.
pub(crate) const BYTES_EXPECTED: &str =
    "a size with its unit, such as `512 B`, `64 KiB`, `16 MiB` or `1 GiB`";

/// A type that a setting can have.
pub trait SettingType: Sized {
    /// What separates the items of a list in a text.
    const SEPARATOR: char = ',';

    /// True if a value may hold a secret: one that cannot be read is not shown.
    const SENSITIVE: bool = false;

    /// What a good value looks like, to follow "must be".
    fn expected() -> String;

    /// Reads the text form; `None` if it is not one.
    fn from_text(text: &str) -> Option<Self>;

    /// Reads the form of a file; `None` if it is not one.
    fn from_value(value: &Value) -> Option<Self> {
        value.as_text().and_then(Self::from_text)
    }

    /// The form of a file; `None` if the setting is not set.
    fn to_value(&self) -> Option<Value>;
}

/// Types whose text is what `FromStr` reads and `Display` writes, and whose form in a file is that
/// text.
#[macro_export]
macro_rules! text_setting {
    ($($type:ty, $expected:expr $(, separator $separator:literal)?;)*) => {$(
        impl $crate::SettingType for $type {
            $(const SEPARATOR: char = $separator;)?

            fn expected() -> String {
                $expected.to_owned()
            }

            fn from_text(text: &str) -> Option<Self> {
                text.trim().parse().ok()
            }

            fn to_value(&self) -> Option<$crate::Value> {
                Some($crate::Value::Text(self.to_string()))
            }
        }
    )*};
}

/// Enums whose values are names.
#[macro_export]
macro_rules! choice_setting {
    ($type:ty { $($name:literal => $variant:ident),+ $(,)? } $expected:literal) => {
        impl ::std::fmt::Display for $type {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(match self { $(Self::$variant => $name),+ })
            }
        }

        impl $crate::SettingType for $type {
            fn expected() -> String {
                $expected.to_owned()
            }

            fn from_text(text: &str) -> Option<Self> {
                match text {
                    $($name => Some(Self::$variant),)+
                    _ => None,
                }
            }

            fn to_value(&self) -> Option<$crate::Value> {
                Some($crate::Value::Text(self.to_string()))
            }
        }
    };
}

/// Types that a file holds as an integer.
macro_rules! integer {
    ($($type:ty, $expected:expr;)*) => {$(
        impl SettingType for $type {
            fn expected() -> String {
                $expected.to_owned()
            }

            fn from_text(text: &str) -> Option<Self> {
                text.replace('_', "").parse().ok()
            }

            fn from_value(value: &Value) -> Option<Self> {
                value.as_integer().and_then(|number| Self::from_text(&number.to_string()))
            }

            fn to_value(&self) -> Option<Value> {
                self.to_string().parse().ok().map(Value::Integer)
            }
        }
    )*};
}

text_setting! {
    String, "a text";
    VersionRow, "a row such as `4 = schema 2, identity`; encodings are identity, zlib, brotli and zstd", separator ';';
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

impl SettingType for bool {
    fn expected() -> String {
        "`true` or `false`".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Bool(flag) = value { Some(*flag) } else { None }
    }

    fn to_value(&self) -> Option<Value> {
        Some(Value::Bool(*self))
    }
}

/// Types that a file holds as a float; a whole number is read too.
macro_rules! float {
    ($($type:ty)*) => {$(
        impl SettingType for $type {
            fn expected() -> String {
                "a number such as `1.6`".to_owned()
            }

            fn from_text(text: &str) -> Option<Self> {
                text.parse().ok().filter(|number: &Self| number.is_finite())
            }

            fn from_value(value: &Value) -> Option<Self> {
                match value {
                    Value::Float(number) => Self::from_text(&number.to_string()),
                    Value::Integer(number) => Self::from_text(&number.to_string()),
                    _ => None,
                }
            }

            fn to_value(&self) -> Option<Value> {
                // Through the shortest text: 1.8 as a 32-bit number is not 1.8 as a 64-bit one.
                self.to_string().parse().ok().map(Value::Float)
            }
        }
    )*};
}

float! { f32 f64 }

impl SettingType for Duration {
    fn expected() -> String {
        "a duration with its unit, such as `500ms`, `30s`, `4m` or `1h30m`".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        parse_duration(text)
    }

    fn to_value(&self) -> Option<Value> {
        Some(Value::Text(format_duration(*self)))
    }
}

impl SettingType for SocketAddr {
    fn expected() -> String {
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

    fn to_value(&self) -> Option<Value> {
        Some(Value::Text(self.to_string()))
    }
}

impl SettingType for PathBuf {
    fn expected() -> String {
        "the path of a file".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::from(text))
    }

    fn to_value(&self) -> Option<Value> {
        Some(Value::Text(self.display().to_string()))
    }
}

impl SettingType for ServerId {
    fn expected() -> String {
        "a name without blanks and commas, such as `comet-1`".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        let is_good =
            !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == ',');
        is_good.then(|| Self::from(text))
    }

    fn to_value(&self) -> Option<Value> {
        (!self.as_str().is_empty()).then(|| Value::Text(self.to_string()))
    }
}

impl<T: SettingType> SettingType for Option<T> {
    const SENSITIVE: bool = T::SENSITIVE;

    fn expected() -> String {
        format!("{}, or `{NONE}`", T::expected())
    }

    fn from_text(text: &str) -> Option<Self> {
        if text.is_empty() || text == NONE { Some(None) } else { T::from_text(text).map(Some) }
    }

    fn from_value(value: &Value) -> Option<Self> {
        if value.as_text() == Some(NONE) { Some(None) } else { T::from_value(value).map(Some) }
    }

    fn to_value(&self) -> Option<Value> {
        self.as_ref().and_then(T::to_value)
    }
}

impl<T: SettingType> SettingType for Vec<T> {
    const SENSITIVE: bool = T::SENSITIVE;

    fn expected() -> String {
        format!("a list (in text: separated by `{}`), each item {}", T::SEPARATOR, T::expected())
    }

    fn from_text(text: &str) -> Option<Self> {
        text.split(T::SEPARATOR).map(str::trim).filter(|part| !part.is_empty()).map(T::from_text).collect()
    }

    fn from_value(value: &Value) -> Option<Self> {
        value.as_list()?.iter().map(T::from_value).collect()
    }

    fn to_value(&self) -> Option<Value> {
        self.iter().map(T::to_value).collect::<Option<_>>().map(Value::List)
    }
}

/// Names with values, such as regions. There is no text form: a text that holds a table is read
/// before.
impl<T: SettingType> SettingType for BTreeMap<String, T> {
    const SENSITIVE: bool = T::SENSITIVE;

    fn expected() -> String {
        format!("a table, such as `{{ name = \"...\" }}`, each value {}", T::expected())
    }

    fn from_text(_text: &str) -> Option<Self> {
        None
    }

    fn from_value(value: &Value) -> Option<Self> {
        value.as_table()?.iter().map(|(name, value)| Some((name.clone(), T::from_value(value)?))).collect()
    }

    fn to_value(&self) -> Option<Value> {
        let entries = self.iter().map(|(name, value)| Some((name.clone(), value.to_value()?)));
        entries.collect::<Option<_>>().map(Value::Table)
    }
}

/// Read, and never shown.
impl SettingType for Secret {
    const SENSITIVE: bool = true;

    fn expected() -> String {
        "a text".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::from(text))
    }

    fn to_value(&self) -> Option<Value> {
        Some(Value::Text(self.to_string()))
    }
}

/// Shown without the credentials in it.
impl SettingType for ServiceUrl {
    const SENSITIVE: bool = true;

    fn expected() -> String {
        "an address such as `https://host:port/path`".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        Some(Self::from(text))
    }

    fn to_value(&self) -> Option<Value> {
        Some(Value::Text(if self.is_empty() { String::new() } else { self.to_string() }))
    }
}

const SIZE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads a number of bytes with its unit, such as `64 KiB`.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let (unit, factor) = SIZE_UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
    let number: u64 = text.strip_suffix(unit)?.trim_end().replace('_', "").parse().ok()?;
    number.checked_mul(*factor)
}

/// A number of bytes in the largest unit that needs no fraction.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    let mut units = SIZE_UNITS.iter();
    let exact = units.find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    let (unit, factor) = exact.unwrap_or(&("B", 1));
    format!("{} {unit}", bytes / factor)
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

/// Reads a duration in Go's syntax, as in goim's files: one or more decimal numbers, each with its
/// unit. `0` alone needs none.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
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
#[must_use]
pub fn format_duration(duration: Duration) -> String {
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
