//! How a field is written in a configuration, where that does not follow from its type alone.

use crate::types::{BYTES_EXPECTED, format_size, parse_size};
use crate::{Input, SettingType, Value};

/// Reads and shows fields of the type `T`.
///
/// A crate can implement this for a local type over a foreign `T`, and name it with `format = ...`.
pub trait Format<T> {
    /// True if a value may hold a secret: one that cannot be read is not shown.
    const SENSITIVE: bool = false;

    /// What a good value looks like, to follow "must be".
    fn expected() -> String;

    /// Reads a value; `None` if it is not one of this format.
    fn read(input: Input<'_>) -> Option<T>;

    /// The form of a file; `None` if the setting is not set.
    fn show(field: &T) -> Option<Value>;
}

/// The format of the type itself.
#[derive(Debug)]
pub enum Plain {}

impl<T: SettingType> Format<T> for Plain {
    const SENSITIVE: bool = T::SENSITIVE;

    fn expected() -> String {
        T::expected()
    }

    fn read(input: Input<'_>) -> Option<T> {
        input.read()
    }

    fn show(field: &T) -> Option<Value> {
        field.to_value()
    }
}

/// A number of bytes with its unit: `64 KiB`.
#[derive(Debug)]
pub enum Bytes {}

macro_rules! bytes {
    ($($type:ty)*) => {$(
        impl Format<$type> for Bytes {
            fn expected() -> String {
                BYTES_EXPECTED.to_owned()
            }

            fn read(input: Input<'_>) -> Option<$type> {
                let text = match input {
                    Input::Text(text) => text,
                    Input::Value(value) => value.as_text()?,
                };
                parse_size(text.trim())?.try_into().ok()
            }

            fn show(field: &$type) -> Option<Value> {
                Some(Value::Text(format_size(u64::try_from(*field).ok()?)))
            }
        }
    )*};
}

bytes! { u32 u64 usize }
