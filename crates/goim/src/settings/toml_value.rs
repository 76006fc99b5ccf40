//! Between TOML and the values that settings read and show.

use goim_settings::Value;

use super::REDACTED;

/// A value of a file. Dates become their text.
pub(super) fn from_toml(value: &toml::Value) -> Value {
    match value {
        toml::Value::Boolean(flag) => Value::Bool(*flag),
        toml::Value::Integer(number) => Value::Integer(*number),
        toml::Value::Float(number) => Value::Float(*number),
        toml::Value::String(text) => Value::Text(text.clone()),
        toml::Value::Datetime(date) => Value::Text(date.to_string()),
        toml::Value::Array(items) => Value::List(items.iter().map(from_toml).collect()),
        toml::Value::Table(table) => {
            Value::Table(table.iter().map(|(name, value)| (name.clone(), from_toml(value))).collect())
        }
    }
}

pub(super) fn to_toml(value: Value) -> toml::Value {
    match value {
        Value::Bool(flag) => toml::Value::Boolean(flag),
        Value::Integer(number) => toml::Value::Integer(number),
        Value::Float(number) => toml::Value::Float(number),
        Value::Text(text) => toml::Value::String(text),
        Value::List(items) => toml::Value::Array(items.into_iter().map(to_toml).collect()),
        Value::Table(table) => {
            toml::Value::Table(table.into_iter().map(|(name, value)| (name, to_toml(value))).collect())
        }
    }
}

/// A list or table in a text of the environment or the command line, such as `["a", "b"]`.
pub(super) fn structured(text: &str) -> Option<Value> {
    if !text.trim_start().starts_with(['[', '{']) {
        return None;
    }
    let table = toml::from_str::<toml::Table>(&format!("value = {text}")).ok()?;
    table.get("value").map(from_toml)
}

/// The same value with every text, number and flag replaced: the shape of a secret.
pub(super) fn redacted(value: Value) -> Value {
    match value {
        Value::List(items) => Value::List(items.into_iter().map(redacted).collect()),
        Value::Table(table) => {
            Value::Table(table.into_iter().map(|(name, value)| (name, redacted(value))).collect())
        }
        _ => Value::from(REDACTED),
    }
}

/// The same value without the credentials of any address in it.
pub(super) fn without_credentials(value: Value) -> Value {
    match value {
        Value::Text(text) if text.contains("://") && text.contains('@') => {
            Value::Text(goim_ports::ServiceUrl::from(text).to_string())
        }
        Value::List(items) => Value::List(items.into_iter().map(without_credentials).collect()),
        Value::Table(table) => {
            let entry = |(name, value)| (name, without_credentials(value));
            Value::Table(table.into_iter().map(entry).collect())
        }
        other => other,
    }
}
