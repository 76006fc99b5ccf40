//! Values as a configuration file holds them, without the file format.

use std::collections::BTreeMap;
use std::fmt;

use crate::SettingType;

/// A value of a configuration file.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction.
    Float(f64),
    /// A string.
    Text(String),
    /// A list.
    List(Vec<Self>),
    /// A table.
    Table(BTreeMap<String, Self>),
}

impl Value {
    /// The string, if it is one.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The whole number, if it is one.
    #[must_use]
    pub fn as_integer(&self) -> Option<i64> {
        if let Self::Integer(number) = self { Some(*number) } else { None }
    }

    /// The items, if it is a list.
    #[must_use]
    pub fn as_list(&self) -> Option<&[Self]> {
        if let Self::List(items) = self { Some(items) } else { None }
    }

    /// The entries, if it is a table.
    #[must_use]
    pub fn as_table(&self) -> Option<&BTreeMap<String, Self>> {
        if let Self::Table(entries) = self { Some(entries) } else { None }
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// Texts without quotes, for messages.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(flag) => write!(f, "{flag}"),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
            Self::List(items) => write!(f, "a list of {}", items.len()),
            Self::Table(entries) => write!(f, "a table of {}", entries.len()),
        }
    }
}

/// A value before it is read.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// From the environment or the command line.
    Text(&'a str),
    /// From a file.
    Value(&'a Value),
}

impl Input<'_> {
    /// Reads it as a `T`; `None` if it is not one.
    #[must_use]
    pub fn read<T: SettingType>(self) -> Option<T> {
        match self {
            Self::Text(text) => T::from_text(text.trim()),
            Self::Value(value) => T::from_value(value),
        }
    }
}
