//! What can be wrong with a configuration, and where a value was set.

use std::fmt;
use std::path::PathBuf;

/// Where a setting's value was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// It was not set.
    Default,
    /// This file, at this line, from 1.
    File(PathBuf, usize),
    /// This environment variable.
    Environment(String),
    /// `--set`.
    CommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default"),
            Self::File(path, line) => write!(f, "{}, line {line}", path.display()),
            Self::Environment(name) => write!(f, "the environment, {name}"),
            Self::CommandLine => f.write_str("--set"),
        }
    }
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// No setting has this name.
    UnknownKey {
        /// As written.
        key: String,
        /// Where.
        origin: Origin,
        /// The most similar setting.
        nearest: Option<String>,
    },
    /// The value cannot be used.
    Value {
        /// The setting.
        key: String,
        /// As written, or as TOML; redacted for secrets. `None` if the setting is not set.
        value: Option<String>,
        /// Where it was set; `None` if that is unknown.
        origin: Option<Origin>,
        /// What is wrong, to follow the value.
        message: String,
    },
    /// `--set` without `=`.
    NotAPair {
        /// As written, if it looks like the name of a setting; anything else may be a secret.
        text: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKey { key, origin, nearest } => {
                match origin {
                    Origin::Environment(_) => write!(f, "unknown environment variable `{key}`")?,
                    origin => write!(f, "unknown setting `{key}` ({origin})")?,
                }
                match nearest {
                    Some(name) => write!(f, "; did you mean `{name}`?"),
                    None => write!(f, "; `goim config` lists all"),
                }
            }
            Self::Value { key, value, origin, message } => {
                f.write_str(key)?;
                value.iter().try_for_each(|value| write!(f, " = {value}"))?;
                origin.iter().try_for_each(|origin| write!(f, " ({origin})"))?;
                write!(f, ": {message}")
            }
            Self::NotAPair { text } => {
                write!(f, "--set {text}: must be key=value, such as comet.limits.handshake_timeout=8s")
            }
        }
    }
}

/// Why there is no configuration to run with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path} is not valid TOML: line {line}, column {column}: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// Where in the line, from 1.
        column: usize,
        /// What. The line itself is not shown, because it may contain a secret.
        reason: String,
    },
    /// Settings are wrong.
    #[error("the configuration cannot be used:{}", Lines(.0))]
    Faults(Vec<Fault>),
}

struct Lines<'a>(&'a [Fault]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}
