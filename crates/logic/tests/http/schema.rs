//! A validator for the part of JSON Schema that the OpenAPI document uses.
//!
//! Stricter than JSON Schema: a member without a schema is an error unless `additionalProperties`
//! allows it, and an unknown keyword panics. It records every property that a value had, so that a
//! test can find properties that no value ever has.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::Value;

/// Keywords that do not constrain a value here.
const ANNOTATIONS: &[&str] = &["description", "contentEncoding"];

/// The OpenAPI document, and the properties seen so far as JSON pointers.
pub(crate) struct Document {
    root: Value,
    seen: RefCell<BTreeSet<String>>,
}

/// The properties of a valid value, or the path and reason of the first violation.
type Checked = Result<Vec<String>, String>;

impl Document {
    pub(crate) fn new(root: Value) -> Self {
        Self { root, seen: RefCell::default() }
    }

    pub(crate) fn at(&self, pointer: &str) -> Option<&Value> {
        self.root.pointer(pointer)
    }

    /// Validates `value` against the schema at `pointer`.
    pub(crate) fn validate(&self, pointer: &str, value: &Value) -> Result<(), String> {
        let seen = self.check(pointer, value, "$")?;
        self.seen.borrow_mut().extend(seen);
        Ok(())
    }

    /// The names of the properties of the schema at `pointer`, in all its alternatives.
    pub(crate) fn members(&self, pointer: &str) -> BTreeSet<String> {
        let schema = self.at(pointer).unwrap();
        if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
            return self.members(target.strip_prefix('#').unwrap());
        }
        let own = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
        let mut members: BTreeSet<String> = own.map(|(name, _)| name.clone()).collect();
        for index in 0..schema.get("oneOf").and_then(Value::as_array).map_or(0, Vec::len) {
            members.extend(self.members(&format!("{pointer}/oneOf/{index}")));
        }
        members
    }

    /// The properties below `pointer` that no valid value had.
    pub(crate) fn unseen(&self, pointer: &str) -> Vec<String> {
        let mut all = Vec::new();
        collect_properties(self.at(pointer).unwrap(), pointer, &mut all);
        let seen = self.seen.borrow();
        all.retain(|property| !seen.contains(property));
        all
    }

    fn check(&self, pointer: &str, value: &Value, path: &str) -> Checked {
        let schema = self.at(pointer).unwrap_or_else(|| panic!("no schema at {pointer}"));
        let mut seen = Vec::new();
        for (keyword, argument) in schema.as_object().unwrap() {
            let below = format!("{pointer}/{keyword}");
            let is_valid = match keyword.as_str() {
                "$ref" => {
                    let target = argument.as_str().unwrap().strip_prefix('#').unwrap();
                    seen.extend(self.check(target, value, path)?);
                    true
                }
                "properties" => {
                    seen.extend(self.check_members(pointer, value, path)?);
                    true
                }
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        seen.extend(self.check(&below, item, &format!("{path}[{index}]"))?);
                    }
                    true
                }
                "oneOf" => {
                    let options = 0..argument.as_array().unwrap().len();
                    let results = options.map(|index| self.check(&format!("{below}/{index}"), value, path));
                    let mut valid: Vec<_> = results.filter_map(Result::ok).collect();
                    let is_one = valid.len() == 1;
                    seen.extend(valid.pop().unwrap_or_default());
                    is_one
                }
                "not" => self.check(&below, value, path).is_err(),
                "additionalProperties" if schema.get("properties").is_none() => {
                    for (name, member) in value.as_object().into_iter().flatten() {
                        if argument.is_object() {
                            seen.extend(self.check(&below, member, &format!("{path}.{name}"))?);
                        }
                    }
                    true
                }
                "required" => argument
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|name| value.get(name.as_str().unwrap()).is_some()),
                _ => is_valid_alone(keyword, argument, value),
            };
            if !is_valid {
                return Err(format!("{path}: {value} violates {keyword}: {argument}"));
            }
        }
        Ok(seen)
    }

    fn check_members(&self, pointer: &str, value: &Value, path: &str) -> Checked {
        let mut seen = Vec::new();
        for (name, member) in value.as_object().into_iter().flatten() {
            let property = format!("{pointer}/properties/{name}");
            let path = format!("{path}.{name}");
            if self.at(&property).is_none() {
                return Err(format!("{path}: the schema at {pointer} does not have this member"));
            }
            seen.extend(self.check(&property, member, &path)?);
            seen.push(property);
        }
        Ok(seen)
    }
}

/// Keywords that need neither the document nor a path.
fn is_valid_alone(keyword: &str, argument: &Value, value: &Value) -> bool {
    let bound = || argument.as_i64().unwrap();
    let length = || value.as_str().map(|text| text.chars().count() as i64);
    let count = || value.as_array().map(|items| items.len() as i64);
    match keyword {
        "type" => match argument {
            Value::Array(types) => types.iter().any(|name| has_type(name, value)),
            name => has_type(name, value),
        },
        "format" => match argument.as_str().unwrap() {
            "int32" => value.as_i64().is_none_or(|number| i32::try_from(number).is_ok()),
            "int64" | "float" => true,
            other => panic!("format {other}"),
        },
        "enum" => argument.as_array().unwrap().contains(value),
        "const" => argument == value,
        "minimum" => value.as_i64().is_none_or(|number| number >= bound()),
        "maximum" => value.as_i64().is_none_or(|number| number <= bound()),
        "minLength" => length().is_none_or(|length| length >= bound()),
        "maxLength" => length().is_none_or(|length| length <= bound()),
        "minItems" => count().is_none_or(|count| count >= bound()),
        "maxItems" => count().is_none_or(|count| count <= bound()),
        // Objects with properties are always closed here.
        "additionalProperties" => argument == false,
        annotation if ANNOTATIONS.contains(&annotation) => true,
        other => panic!("keyword {other}"),
    }
}

fn has_type(name: &Value, value: &Value) -> bool {
    match name.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("type {other}"),
    }
}

/// Collects the JSON pointers of all properties of all schemas in `value`.
fn collect_properties(value: &Value, pointer: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let below = format!("{pointer}/{}", name.replace('/', "~1"));
                if name == "properties" {
                    let names = member.as_object().unwrap().keys();
                    found.extend(names.map(|name| format!("{below}/{name}")));
                }
                collect_properties(member, &below, found);
            }
        }
        Value::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                collect_properties(element, &format!("{pointer}/{index}"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn values_are_validated() {
    use serde_json::json;
    let document = Document::new(json!({ "s": {
        "type": "object",
        "properties": { "a": { "type": "integer", "minimum": 1 }, "b": { "enum": ["x"] }, "c": { "$ref": "#/s" } },
        "required": ["a"],
    } }));
    for (value, is_valid) in [
        (json!({ "a": 1 }), true),
        (json!({ "a": 1, "b": "x" }), true),
        (json!({ "a": 0 }), false),
        (json!({ "a": 1, "b": "y" }), false),
        (json!({ "a": 1, "d": 0 }), false),
        (json!({ "b": "x" }), false),
        (json!([]), false),
        (json!({ "a": 1, "c": { "a": 0 } }), false),
    ] {
        assert_eq!(document.validate("/s", &value).is_ok(), is_valid, "{value}");
    }
    assert_eq!(document.unseen("/s"), ["/s/properties/c"]);
    document.validate("/s", &json!({ "a": 1, "c": { "a": 2 } })).unwrap();
    assert_eq!(document.unseen("/s"), [""; 0]);
}
