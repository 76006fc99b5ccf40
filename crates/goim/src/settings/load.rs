//! Reads settings from a file, the environment and the command line, over the defaults.
//!
//! All faults are reported at once, each with the key, the value, where it was set and what would
//! be right.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use goim_settings::Input;
use toml::de::{DeTable, DeValue};

use super::fault::{ConfigError, Fault, Origin};
use super::toml_value::{from_toml, redacted, structured, to_toml, without_credentials};
use super::{ENVIRONMENT_PREFIX, REDACTED, Setting, find, nearest, table, variable};
use crate::Config;
use crate::check::{Purpose, faults_of};
use crate::environment;

/// Where settings are read from, besides the defaults.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// Environment variables, name and value. Those without the prefix `GOIM_` are skipped.
    pub environment: Vec<(String, String)>,
    /// The arguments of `--set`: `key=value`.
    pub set: Vec<String>,
}

/// A configuration with the origin of each value.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The result.
    pub config: Config,
    origins: BTreeMap<&'static str, Origin>,
}

impl Loaded {
    /// Where a setting's value was set.
    #[must_use]
    pub fn origin(&self, setting: &Setting) -> &Origin {
        self.origins.get(setting.key()).unwrap_or(&Origin::Default)
    }

    /// Checks whether a process can run with this for `purpose`.
    ///
    /// # Errors
    /// [`ConfigError::Faults`] with everything that is wrong.
    pub fn check(&self, purpose: Purpose) -> Result<(), ConfigError> {
        let faults = self.faults(purpose);
        if faults.is_empty() { Ok(()) } else { Err(ConfigError::Faults(faults)) }
    }

    fn faults(&self, purpose: Purpose) -> Vec<Fault> {
        let origin = |key: &str| find(key).map(|setting| self.origin(setting).clone());
        faults_of(&self.config, purpose).into_iter().map(|fault| shown(&self.config, fault, origin)).collect()
    }
}

/// A fault of a check with the value that it is about. Secrets are redacted.
pub(crate) fn shown(
    config: &Config,
    fault: goim_settings::Fault,
    origin: impl Fn(&str) -> Option<Origin>,
) -> Fault {
    let goim_settings::Fault { key, message } = fault;
    let value = find(&key).and_then(|setting| {
        let value = setting.get(config)?;
        let value = if setting.is_secret() { redacted(value) } else { without_credentials(value) };
        Some(to_toml(value).to_string())
    });
    Fault::Value { origin: origin(&key), key, value, message }
}

/// Reads the sources over the defaults. How values fit together is not checked: see [`load_for`].
///
/// # Errors
/// [`ConfigError`] with everything that is wrong with keys and values.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let Loader { loaded, faults } = Loader::read(sources)?;
    if faults.is_empty() { Ok(loaded) } else { Err(ConfigError::Faults(faults)) }
}

/// Reads the sources over the defaults and checks the result for `purpose`.
///
/// # Errors
/// [`ConfigError`] with everything that is wrong: keys, values, and how values fit together.
pub fn load_for(sources: &Sources, purpose: Purpose) -> Result<Loaded, ConfigError> {
    let Loader { loaded, mut faults } = Loader::read(sources)?;
    // A setting that could not be read has its default, which is not what was meant.
    let unread: BTreeSet<String> = faults
        .iter()
        .filter_map(|fault| if let Fault::Value { key, .. } = fault { Some(key.clone()) } else { None })
        .collect();
    let is_meant = |fault: &Fault| match fault {
        Fault::Value { key, message, .. } => {
            !unread.iter().any(|other| other == key || message.contains(other.as_str()))
        }
        _ => true,
    };
    faults.extend(loaded.faults(purpose).into_iter().filter(is_meant));
    if faults.is_empty() { Ok(loaded) } else { Err(ConfigError::Faults(faults)) }
}

struct Loader {
    loaded: Loaded,
    faults: Vec<Fault>,
}

impl Loader {
    fn read(sources: &Sources) -> Result<Self, ConfigError> {
        let loaded = Loaded { config: Config::default(), origins: BTreeMap::new() };
        let mut loader = Self { loaded, faults: Vec::new() };
        if let Some(path) = &sources.file {
            loader.file(path)?;
        }
        for (name, value) in &sources.environment {
            loader.variable(name, value);
        }
        for text in &sources.set {
            loader.pair(text);
        }
        Ok(loader)
    }

    fn file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
        let failed = |error| syntax(path, &text, &error);
        let tree: toml::Table = toml::from_str(&text).map_err(failed)?;
        let spans = DeTable::parse(&text).map_err(failed)?;
        self.branch("", &tree, &Lines { path, text: &text, table: Some(spans.get_ref()) });
        Ok(())
    }

    /// Walks a table of a file down to the settings.
    fn branch(&mut self, prefix: &str, tree: &toml::Table, lines: &Lines<'_>) {
        for (name, value) in tree {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            match (find(&key), value) {
                (Some(setting), value) => {
                    self.set(setting, Input::Value(&from_toml(value)), lines.origin(name));
                }
                (None, toml::Value::Table(branch)) if is_section(&key) => {
                    self.branch(&key, branch, &lines.below(name));
                }
                (None, _) => self.unknown(key, lines.origin(name)),
            }
        }
    }

    fn variable(&mut self, name: &str, value: &str) {
        if !name.starts_with(ENVIRONMENT_PREFIX)
            || environment::OF_COMMANDS.contains(&name)
            || is_service_link(name, value)
        {
            return;
        }
        let origin = Origin::Environment(name.to_owned());
        match table().iter().find(|setting| variable(setting) == name) {
            Some(setting) => self.set(setting, Input::Text(value), origin),
            None => {
                let known: Vec<String> = table().iter().map(variable).collect();
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
        let config = &mut self.loaded.config;
        // A text may hold a list or a table in TOML; one that only looks so is read as it is.
        let parsed = if let Input::Text(text) = input { structured(text) } else { None };
        let done = parsed.and_then(|value| setting.set(config, Input::Value(&value)));
        if done.or_else(|| setting.set(config, input)).is_some() {
            self.loaded.origins.insert(setting.key(), origin);
            return;
        }
        let value = match input {
            _ if setting.is_sensitive() => REDACTED.to_owned(),
            Input::Text(text) => to_toml(without_credentials(text.into())).to_string(),
            Input::Value(value) => to_toml(without_credentials(value.clone())).to_string(),
        };
        self.faults.push(Fault::Value {
            key: setting.key().to_owned(),
            value: Some(value),
            origin: Some(origin),
            message: format!("must be {}", setting.expected()),
        });
    }
}

/// Where the keys of a table are in a file.
struct Lines<'a> {
    path: &'a Path,
    text: &'a str,
    table: Option<&'a DeTable<'a>>,
}

impl<'a> Lines<'a> {
    fn origin(&self, name: &str) -> Origin {
        let start = self.entry(name).map_or(0, |(key, _)| key);
        Origin::File(self.path.to_owned(), line_of(self.text, start))
    }

    fn below(&self, name: &str) -> Self {
        let table = self.entry(name).and_then(|(_, value)| value.as_table());
        Self { path: self.path, text: self.text, table }
    }

    /// Where the key begins, and its value.
    fn entry(&self, name: &str) -> Option<(usize, &'a DeValue<'a>)> {
        let mut entries = self.table?.iter();
        entries.find_map(|(key, value)| (key.get_ref() == name).then(|| (key.span().start, value.get_ref())))
    }
}

fn line_of(text: &str, start: usize) -> usize {
    text.get(..start).unwrap_or(text).matches('\n').count() + 1
}

/// What is wrong with a file, and where, without its text.
fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start);
    let before = text.get(..start).unwrap_or(text);
    let line = line_of(text, start);
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    // A text in quotes or backticks may be from the file.
    let reason = error.message().split(['`', '"']).step_by(2).collect::<Vec<_>>().join("…");
    ConfigError::Syntax { path: path.to_owned(), line, column, reason }
}

/// True if some setting is below this key.
fn is_section(key: &str) -> bool {
    table().iter().any(|setting| setting.key().strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

/// True for a variable that Kubernetes sets in every container for the services of its namespace. A
/// service named `goim` or `goim-...` causes `GOIM_SERVICE_HOST`, `GOIM_PORT=tcp://...`,
/// `GOIM_PORT_3101_TCP_ADDR` and the like.
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
    use std::time::Duration;

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
        assert_eq!(limits.handshake_timeout, Duration::from_secs(3));
        assert_eq!(limits.body_bytes_max, 2048);
        assert_eq!(limits.packets_burst.get(), 7);
        let origin = |key| loaded.origin(find(key).unwrap());
        assert_eq!(*origin("comet.limits.handshake_timeout"), Origin::CommandLine);
        assert_eq!(*origin("comet.limits.packets_burst"), Origin::File(file, 4));
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
    fn bad_values_name_what_would_be_right() {
        let text = refused(&sources(
            &[("GOIM_COMET_LISTEN_TCP", "3101")],
            &["comet.limits.handshake_timeout=5", "comet.shards=0", "log.format=xml", "nothing"],
        ));
        for part in [
            "comet.listen.tcp = \"3101\" (the environment, GOIM_COMET_LISTEN_TCP): must be a list",
            "comet.limits.handshake_timeout = \"5\" (--set): must be a duration with its unit, such as `500ms`",
            "comet.shards = \"0\" (--set): must be a whole number from 1, or `none`",
            "log.format = \"xml\" (--set): must be `pretty` or `json`",
            "--set nothing: must be key=value",
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
    fn variables_of_kubernetes_are_skipped() {
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

    #[test]
    fn faults_in_a_file_have_lines() {
        let file = in_file("lines", "[comet.limits]\n\nhandshake_timeout = 5\n[http]\nport = 1\n");
        let text = refused(&Sources { file: Some(file.clone()), ..Sources::default() });
        std::fs::remove_file(&file).unwrap();
        let origin = |line: usize| format!("({}, line {line})", file.display());
        assert!(text.contains(&format!("handshake_timeout = 5 {}: must be a duration", origin(3))), "{text}");
        assert!(text.contains(&format!("unknown setting `http.port` {}", origin(5))), "{text}");
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let set = [
            "comet.shards=many",
            "comet.shard=1",
            "comet.limits.handshake_timeout=0s",
            "logic.node.heartbeat=0s",
            "logic.http.headers_max=1",
            "push_log.append_timeout=9s",
            "log.level=goim_comet=loud",
            "rpc.comet=none",
        ];
        let text = load_for(&sources(&[], &set), Purpose::Comet).unwrap_err().to_string();
        for part in [
            "comet.shards = \"many\" (--set): must be a whole number",
            "unknown setting `comet.shard` (--set); did you mean `comet.shards`?",
            "comet.limits.handshake_timeout = \"0s\" (--set): must be greater than zero",
            "logic.node.heartbeat = \"0s\" (--set): must be greater than zero",
            "logic.http.headers_max = 1 (--set): must be at least 16",
            "push_log.append_timeout = \"9s\" (--set): must be less than logic.push.append_timeout",
            "log.level = \"goim_comet=loud\" (--set): ",
            "rpc.comet (--set): must be set",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
        assert_eq!(text.lines().count(), 1 + set.len(), "{text}");
    }

    #[test]
    fn what_could_not_be_read_is_not_checked() {
        let set = ["logic.directory_timeout=soon", "logic.identity.webhook.timeout=5s"];
        let text = load_for(&sources(&[], &set), Purpose::Any).unwrap_err().to_string();
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}
