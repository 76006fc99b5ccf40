//! What is wrong with the values of a configuration.

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::schema::joined;
use crate::{Format, Settings};

/// A value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The setting.
    pub key: String,
    /// What is wrong with it, to follow the value.
    pub message: String,
}

/// Collects faults, so that all of them are reported at once.
#[derive(Debug, Default)]
pub struct Faults {
    /// The path of the group that is being checked.
    group: String,
    all: Vec<Fault>,
}

impl Faults {
    /// All faults of a configuration whose root is at `path`; an empty path is the root of the
    /// file.
    pub fn of<C: Settings>(path: &str, config: &C) -> Vec<Fault> {
        let mut faults = Self { group: path.to_owned(), all: Vec::new() };
        config.check(&mut faults);
        faults.all
    }

    /// The faults so far.
    #[must_use]
    pub fn into_vec(self) -> Vec<Fault> {
        self.all
    }

    /// Checks the group `name` of the present one.
    pub fn group<C: Settings>(&mut self, name: &str, config: &C) {
        let outer = self.group.clone();
        self.group = joined(&outer, name);
        config.check(self);
        self.group = outer;
    }

    /// Adds a fault of the setting `name` of the present group.
    pub fn add(&mut self, name: &str, message: impl Into<String>) {
        self.all.push(Fault { key: joined(&self.group, name), message: message.into() });
    }

    /// The same if `wrong`.
    pub fn add_if(&mut self, wrong: bool, name: &str, message: impl Into<String>) {
        if wrong {
            self.add(name, message);
        }
    }

    /// Adds what a check has found.
    pub fn add_error<E: Display>(&mut self, name: &str, result: Result<(), E>) {
        if let Err(error) = result {
            self.add(name, error.to_string());
        }
    }

    /// The value must be greater than zero, which is its type's default.
    pub fn above_zero<T: PartialOrd + Default>(&mut self, name: &str, value: &T) {
        // Not `<=`: NaN is not above zero.
        let is_above = *value > T::default();
        self.add_if(!is_above, name, "must be greater than zero");
    }

    /// The value must not be less than `min`.
    pub fn at_least<T: PartialOrd, F: Format<T>>(&mut self, name: &str, value: &T, min: &T) {
        let is_good = value >= min;
        let shown = || F::show(min).map_or(String::new(), |min| min.to_string());
        self.add_if(!is_good, name, format!("must be at least {}", shown()));
    }

    /// The value must lie in `range`.
    pub fn within<T: PartialOrd + Display>(&mut self, name: &str, value: &T, range: &RangeInclusive<T>) {
        let message = || format!("must be from {} to {}", range.start(), range.end());
        if !range.contains(value) {
            self.add(name, message());
        }
    }
}
