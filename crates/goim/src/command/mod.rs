//! The commands of the binary.
//!
//! Each command is a module with its arguments and a `run`. This module has what they share:
//! reading arguments, exit statuses, output.

mod config;
mod connect;
mod push;
#[cfg(feature = "cluster")]
mod role;
mod serve;
mod token;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::check::Purpose;
use crate::environment;
use crate::settings::{ConfigError, Loaded, Sources, load, load_for};

/// goim: a push server for very many long-lived connections.
#[derive(Debug, Parser)]
#[command(name = "goim", version, max_term_width = 110, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Start here:
  goim serve                                    run the whole system in one process
  goim connect --room live://1000               connect a client, in another terminal
  goim push room live://1000 --body hello       push to it, in a third

Exit status: 0 done, 1 failed, 64 wrong arguments or configuration, 69 server not reached.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run comet, logic and job in this process
    Serve(serve::Arguments),
    /// Run comet, the role that owns the clients' connections, in a cluster
    #[cfg(feature = "cluster")]
    Comet(role::Arguments),
    /// Run logic, the role that tracks sessions and accepts pushes, in a cluster
    #[cfg(feature = "cluster")]
    Logic(role::Arguments),
    /// Run job, the role that delivers pushes to comets, in a cluster
    #[cfg(feature = "cluster")]
    Job(role::Arguments),
    /// Print, check or explain the configuration
    Config(config::Arguments),
    /// Connect a client in the terminal
    Connect(connect::Arguments),
    /// Push a message through the HTTP API
    Push(push::Arguments),
    /// Print a signed token, for testing
    Token(token::Arguments),
    /// Moved to a separate program
    #[command(hide = true, disable_help_flag = true)]
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        arguments: Vec<OsString>,
    },
    /// Print the version
    Version,
}

/// Runs the command that the arguments name and returns the exit status.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            let _ = write!(io::stderr(), "{}", without_values(&error.to_string(), &arguments));
            return Failure::USAGE.into();
        }
        Err(error) => {
            let _ = error.print();
            // Help and version were requested.
            return ExitCode::SUCCESS;
        }
    };
    let result = match cli.command {
        Command::Serve(arguments) => serve::run(&arguments),
        #[cfg(feature = "cluster")]
        Command::Comet(arguments) => role::comet(&arguments),
        #[cfg(feature = "cluster")]
        Command::Logic(arguments) => role::logic(&arguments),
        #[cfg(feature = "cluster")]
        Command::Job(arguments) => role::job(&arguments),
        Command::Config(arguments) => config::run(&arguments),
        Command::Connect(arguments) => connect::run(&arguments),
        Command::Push(arguments) => push::run(&arguments),
        Command::Token(arguments) => token::run(&arguments),
        Command::Bench { arguments } => {
            let subcommand = arguments.first().map(|name| name.to_string_lossy()).unwrap_or_default();
            let text = format!("the load generator is a separate program: goim-bench {subcommand}");
            Err(Failure::usage(text.trim_end()))
        }
        Command::Version => print(&format!("goim {}\n", env!("CARGO_PKG_VERSION"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "goim: {failure}");
            failure.code.into()
        }
    }
}

/// The text of an error without the values behind the `=` of arguments: a setting in the wrong
/// place may be a secret.
fn without_values(text: &str, arguments: &[OsString]) -> String {
    let values = arguments.iter().filter_map(|argument| argument.to_str()?.split_once('='));
    values.filter(|(_, value)| !value.is_empty()).fold(text.to_owned(), |text, (name, value)| {
        text.replace(&format!("{name}={value}"), &format!("{name}=<redacted>"))
    })
}

/// Why a command failed.
#[derive(Debug)]
struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    /// Wrong arguments or configuration: `EX_USAGE`.
    const USAGE: u8 = 64;
    /// The server does not answer: `EX_UNAVAILABLE`.
    const UNAVAILABLE: u8 = 69;

    fn new(text: impl Into<String>) -> Self {
        Self { code: 1, text: text.into() }
    }

    fn usage(text: impl Into<String>) -> Self {
        Self { code: Self::USAGE, text: text.into() }
    }

    fn unavailable(text: impl Into<String>) -> Self {
        Self { code: Self::UNAVAILABLE, text: text.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

/// Writes to standard output. A closed pipe (`| head`) is not a failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// The sources of the configuration of a command.
#[derive(Debug, Args)]
struct SettingsArguments {
    /// Read settings from this TOML file; `goim config` prints one with all of them
    #[arg(long, value_name = "FILE", env = environment::CONFIG)]
    config: Option<PathBuf>,
    /// Set one setting, overriding file and environment; may be given many times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl SettingsArguments {
    /// Reads the settings.
    fn load(&self) -> Result<Loaded, ConfigError> {
        load(&self.sources())
    }

    /// Reads the settings and checks them for `purpose`.
    fn load_for(&self, purpose: Purpose) -> Result<Loaded, ConfigError> {
        load_for(&self.sources(), purpose)
    }

    fn sources(&self) -> Sources {
        let text = |value: OsString| value.to_string_lossy().into_owned();
        Sources {
            file: self.config.clone(),
            environment: std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect(),
            set: self.set.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::{Cli, environment};
    use crate::settings::{Sources, load};

    fn variables_of(command: &clap::Command) -> Vec<String> {
        let own = command.get_arguments().filter_map(|argument| argument.get_env());
        let own = own.map(|name| name.to_string_lossy().into_owned());
        own.chain(command.get_subcommands().flat_map(variables_of)).collect()
    }

    #[test]
    fn variables_of_commands_are_no_settings() {
        let variables = variables_of(&Cli::command());
        assert!(variables.len() >= environment::OF_COMMANDS.len(), "{variables:?}");
        for name in variables {
            assert!(environment::OF_COMMANDS.contains(&name.as_str()), "{name} is not in the list");
            let environment = vec![(name.clone(), "anything".to_owned())];
            let loaded = load(&Sources { environment, ..Sources::default() });
            assert!(loaded.is_ok(), "{name}: {}", loaded.unwrap_err());
        }
    }
}
