//! Settings with one source: a field of a configuration struct is also the setting of that name.
//!
//! [`settings!`] declares a struct. The doc comment of a field is its text in the documented
//! configuration file, and its default and checks are written beside it. [`Settings`] gives access
//! to all of this. Nothing here reads files, arguments or the environment.

mod check;
mod declare;
mod format;
mod schema;
mod types;
mod value;

pub use check::{Fault, Faults};
pub use format::{Bytes, Format, Plain};
pub use schema::{Schema, Section, Setting};
pub use types::{NONE, SettingType, format_duration, format_size, parse_duration, parse_size};
pub use value::{Input, Value};

/// A group of settings: a struct whose fields are settings or groups.
pub trait Settings: Default + Sized + 'static {
    /// What the group is about, as written above its fields.
    const TEXT: &'static str;

    /// All settings of the group and of the groups in it. Keys are paths from here.
    fn schema() -> Schema<Self>;

    /// Adds everything that is wrong with the values to `faults`.
    fn check(&self, faults: &mut Faults);
}

#[cfg(test)]
#[allow(unreachable_pub, reason = "the macro declares what crates export")]
mod tests;
