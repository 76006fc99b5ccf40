//! Settings from a file, the environment and the command line, put over the defaults.
//!
//! All that is wrong is reported at once, each with the key, the value, where it came from and what would be right.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::document::without_credentials;
use super::value::REDACTED;
use super::{ENVIRONMENT_PREFIX, Input, Setting, find, nearest, table};
use crate::Config;

/// Variables with the prefix that are not settings: they belong to commands.
const OTHER_VARIABLES: [&str; 3] = ["GOIM_API_KEY", "GOIM_SERVER", "GOIM_CONFIG"];

/// Where settings come from besides the defaults.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// Environment variables, name and value; those without the prefix `GOIM_` are passed over.
    pub environment: Vec<(String, String)>,
    /// What `--set` was given: `key=value`.
    pub set: Vec<String>,
}

/// Where a setting's value was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// This file.
    File(PathBuf),
    /// This environment variable.
    Environment(String),
    /// `--set`.
    CommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the defaults"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "the environment, {name}"),
            Self::CommandLine => f.write_str("--set"),
        }
    }
}

/// A configuration with the origin of each value.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The result.
    pub config: Config,
    origins: BTreeMap<&'static str, Origin>,
}

impl Loaded {
    /// Where a setting's value came from.
    #[must_use]
    pub fn origin(&self, setting: &Setting) -> &Origin {
        self.origins.get(setting.key).unwrap_or(&Origin::Default)
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
        /// The known name that is most like it.
        nearest: Option<String>,
    },
    /// The value is not one of the setting's.
    BadValue {
        /// The setting.
        key: String,
        /// As written; left out for secrets.
        value: String,
        /// Where.
        origin: Origin,
        /// What would be right.
        wants: String,
    },
    /// `--set` without `=`.
    NotAPair {
        /// As written, when it looks like the name of a setting; anything else may be a secret, or an address with one.
        text: String,
    },
    /// Good values that do not go together, with what to do.
    Combination(String),
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
            Self::BadValue { key, value, origin, wants } => {
                write!(f, "{key} = {value} ({origin}): wants {wants}")
            }
            Self::NotAPair { text } => {
                write!(f, "--set {text}: wants key=value, such as comet.limits.handshake_timeout=8s")
            }
            Self::Combination(text) => f.write_str(text),
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
        /// What the system said.
        error: std::io::Error,
    },
    /// The file is no TOML.
    #[error("{path} is not valid TOML: line {line}, column {column}: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// Where in the line, from 1.
        column: usize,
        /// What. The line itself is not shown: a secret may be in it.
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

/// Puts the sources over the defaults. Does not look at how values go together: see [`Config::check`].
///
/// # Errors
/// [`ConfigError`] with everything that is wrong with keys and values.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut loader =
        Loader { loaded: Loaded { config: Config::default(), origins: BTreeMap::new() }, faults: Vec::new() };
    if let Some(path) = &sources.file {
        loader.file(path)?;
    }
    for (name, value) in &sources.environment {
        loader.variable(name, value);
    }
    for text in &sources.set {
        loader.pair(text);
    }
    // A reload interval without files, as the printed defaults have it, is no TLS.
    let config = &mut loader.loaded.config;
    let _ = config
        .comet
        .tls
        .take_if(|tls| tls.cert_file.as_os_str().is_empty() && tls.key_file.as_os_str().is_empty());
    if loader.faults.is_empty() { Ok(loader.loaded) } else { Err(ConfigError::Faults(loader.faults)) }
}

struct Loader {
    loaded: Loaded,
    faults: Vec<Fault>,
}

impl Loader {
    fn file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
        let tree: toml::Table = toml::from_str(&text).map_err(|error| syntax(path, &text, &error))?;
        self.branch("", &tree, &Origin::File(path.to_owned()));
        Ok(())
    }

    /// Walks a table of a file down to the settings.
    fn branch(&mut self, prefix: &str, tree: &toml::Table, origin: &Origin) {
        for (name, value) in tree {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            match (find(&key), value) {
                (Some(setting), value) => self.set(setting, Input::Toml(value), origin.clone()),
                (None, toml::Value::Table(branch)) if is_section(&key) => self.branch(&key, branch, origin),
                (None, _) => self.unknown(key, origin.clone()),
            }
        }
    }

    fn variable(&mut self, name: &str, value: &str) {
        if !name.starts_with(ENVIRONMENT_PREFIX)
            || OTHER_VARIABLES.contains(&name)
            || is_service_link(name, value)
        {
            return;
        }
        let origin = Origin::Environment(name.to_owned());
        match table().iter().find(|setting| setting.variable() == name) {
            Some(setting) => self.set(setting, Input::Text(value), origin),
            None => {
                let known: Vec<String> = table().iter().map(Setting::variable).collect();
                let nearest = nearest(name, known.iter().map(String::as_str)).map(str::to_owned);
                self.faults.push(Fault::UnknownKey { key: name.to_owned(), origin, nearest });
            }
        }
    }

    fn pair(&mut self, text: &str) {
        let Some((key, value)) = text.split_once('=') else {
            let is_name = text.chars().all(|letter| matches!(letter, 'a'..='z' | '_' | '.'));
            let text = if is_name { text } else { REDACTED };
            self.faults.push(Fault::NotAPair { text: text.to_owned() });
            return;
        };
        match find(key.trim()) {
            Some(setting) => self.set(setting, Input::Text(value), Origin::CommandLine),
            None => self.unknown(key.trim().to_owned(), Origin::CommandLine),
        }
    }

    fn unknown(&mut self, key: String, origin: Origin) {
        let nearest = nearest(&key, table().iter().map(Setting::key)).map(str::to_owned);
        self.faults.push(Fault::UnknownKey { key, origin, nearest });
    }

    fn set(&mut self, setting: &'static Setting, input: Input<'_>, origin: Origin) {
        if (setting.set)(&mut self.loaded.config, input).is_some() {
            self.loaded.origins.insert(setting.key, origin);
            return;
        }
        let value = match input {
            _ if setting.secret || (setting.holds_secrets)() => REDACTED.to_owned(),
            Input::Text(text) => without_credentials(toml::Value::String(text.to_owned())).to_string(),
            Input::Toml(value) => without_credentials(value.clone()).to_string(),
        };
        let (key, wants) = (setting.key.to_owned(), (setting.wants)());
        self.faults.push(Fault::BadValue { key, value, origin, wants });
    }
}

/// What is wrong with a file, and where, without what stands there.
fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start);
    let before = text.get(..start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    // A text in quotes or backticks may be one of the file's.
    let reason = error.message().split(['`', '"']).step_by(2).collect::<Vec<_>>().join("…");
    ConfigError::Syntax { path: path.to_owned(), line, column, reason }
}

/// True when some setting lies below this key.
fn is_section(key: &str) -> bool {
    table().iter().any(|setting| setting.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

/// Kubernetes gives every container variables of the services in its namespace. A service named `goim` or `goim-...`
/// makes `GOIM_SERVICE_HOST`, `GOIM_PORT=tcp://...`, `GOIM_PORT_3101_TCP_ADDR` and the like, which nobody wrote and which
/// are not settings.
fn is_service_link(name: &str, value: &str) -> bool {
    let port_and_protocol = |rest: &str| {
        let mut parts = rest.split('_');
        parts.next().is_some_and(|number| number.parse::<u16>().is_ok())
            && parts.next().is_some_and(|protocol| matches!(protocol, "TCP" | "UDP" | "SCTP"))
    };
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT") && value.contains("://")
        || name.split("_PORT_").skip(1).any(port_and_protocol)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Value;

    fn sources(environment: &[(&str, &str)], set: &[&str]) -> Sources {
        Sources {
            file: None,
            environment: environment
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            set: set.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    fn in_file(name: &str, text: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("goim-load-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// All faults as one text.
    fn refused(sources: &Sources) -> String {
        load(sources).unwrap_err().to_string()
    }

    #[test]
    fn later_sources_win() {
        let file = in_file(
            "win",
            "[comet.limits]\nhandshake_timeout = \"1s\"\nbody_bytes_max = \"1 KiB\"\npackets_burst = 7\n",
        );
        let mut sources = sources(
            &[
                ("GOIM_COMET_LIMITS_HANDSHAKE_TIMEOUT", "2s"),
                ("GOIM_COMET_LIMITS_BODY_BYTES_MAX", "2 KiB"),
                ("HOME", "/"),
            ],
            &["comet.limits.handshake_timeout=3s"],
        );
        sources.file = Some(file.clone());
        let loaded = load(&sources).unwrap();
        std::fs::remove_file(&file).unwrap();
        let limits = &loaded.config.comet.limits;
        assert_eq!(limits.handshake_timeout.to_toml().unwrap().as_str(), Some("3s"));
        assert_eq!(limits.body_bytes_max, 2048);
        assert_eq!(limits.packets_burst.get(), 7);
        let origin = |key| loaded.origin(find(key).unwrap());
        assert_eq!(*origin("comet.limits.handshake_timeout"), Origin::CommandLine);
        assert_eq!(*origin("comet.limits.packets_burst"), Origin::File(file));
        assert_eq!(*origin("comet.limits.connections_max"), Origin::Default);
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        let file = in_file("unknown", "[comet.limits]\nhandshake_timout = \"1s\"\n[commet]\nshards = 1\n");
        let mut sources =
            sources(&[("GOIM_COMET_LIMIT_HANDSHAKE_TIMEOUT", "2s")], &["handshake_timeout=3s", "zzz=1"]);
        sources.file = Some(file.clone());
        let text = refused(&sources);
        std::fs::remove_file(&file).unwrap();
        for part in [
            "`comet.limits.handshake_timout`",
            "did you mean `comet.limits.handshake_timeout`?",
            "unknown setting `commet`",
            "did you mean `GOIM_COMET_LIMITS_HANDSHAKE_TIMEOUT`?",
            "unknown setting `handshake_timeout` (--set); did you mean `comet.limits.handshake_timeout`?",
            "unknown setting `zzz` (--set); `goim config` lists all",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
    }

    #[test]
    fn bad_values_say_what_would_be_right() {
        let text = refused(&sources(
            &[("GOIM_COMET_LISTEN_TCP", "3101")],
            &["comet.limits.handshake_timeout=5", "comet.shards=0", "log.format=xml", "nothing"],
        ));
        for part in [
            "comet.listen.tcp = \"3101\" (the environment, GOIM_COMET_LISTEN_TCP): wants a list",
            "comet.limits.handshake_timeout = \"5\" (--set): wants a duration with its unit, such as `500ms`",
            "comet.shards = \"0\" (--set): wants a whole number from 1, or `none`",
            "log.format = \"xml\" (--set): wants `pretty` or `json`",
            "--set nothing: wants key=value",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
    }

    #[test]
    fn a_section_is_no_value_and_a_value_no_section() {
        let file = in_file("shape", "comet = 1\n[http.listen]\nport = 1\n");
        let text = refused(&Sources { file: Some(file.clone()), ..Sources::default() });
        std::fs::remove_file(&file).unwrap();
        assert!(text.contains("unknown setting `comet`"), "{text}");
        assert!(text.contains("http.listen = "), "{text}");
    }

    #[test]
    fn files_that_cannot_be_used() {
        let missing = Sources { file: Some("/nonexistent/goim.toml".into()), ..Sources::default() };
        assert!(refused(&missing).contains("cannot read the configuration file /nonexistent/goim.toml"));
        let file = in_file("syntax", "[comet\n");
        let text = refused(&Sources { file: Some(file.clone()), ..Sources::default() });
        std::fs::remove_file(&file).unwrap();
        assert!(text.contains("is not valid TOML"), "{text}");
    }

    #[test]
    fn variables_that_kubernetes_makes_are_passed_over() {
        let made = [
            ("GOIM_SERVICE_HOST", "10.0.0.1"),
            ("GOIM_SERVICE_PORT", "3111"),
            ("GOIM_SERVICE_PORT_HTTP", "3111"),
            ("GOIM_PORT", "tcp://10.0.0.1:3111"),
            ("GOIM_PORT_3111_TCP", "tcp://10.0.0.1:3111"),
            ("GOIM_PORT_3111_TCP_ADDR", "10.0.0.1"),
            ("GOIM_LOGIC_PORT_3119_TCP_PROTO", "tcp"),
        ];
        assert!(load(&sources(&made, &[])).is_ok());
        assert!(load(&sources(&[("GOIM_PORT", "3111")], &[])).is_err());
    }
}
