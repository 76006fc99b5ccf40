//! `goim config`: the documented defaults, a check, or the configuration in effect.

use clap::Args;

use super::{Failure, SettingsArguments, print};
use crate::check::Purpose;
use crate::settings::{document, effective};

/// Without options: every setting with its documentation and default, as a TOML file.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: SettingsArguments,
    /// Check whether a process can run with this configuration
    #[arg(long)]
    check: bool,
    /// Print the configuration in effect, each value with its origin; secrets are redacted
    #[arg(long)]
    effective: bool,
}

const AFTER_HELP: &str = "\
Examples:
  goim config > goim.toml                       write a file to start from
  goim config --check --config goim.toml        check it
  goim config --effective --config goim.toml --set comet.shards=2";

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if !arguments.check && !arguments.effective {
        if arguments.settings.config.is_some() || !arguments.settings.set.is_empty() {
            return Err(Failure::usage(
                "--config and --set need --check or --effective; without them, `goim config` prints the defaults",
            ));
        }
        return print(&document());
    }
    if !arguments.effective {
        arguments.settings.load_for(Purpose::Any)?;
        return print("the configuration is valid\n");
    }
    // What can be read is printed before the faults.
    let loaded = arguments.settings.load()?;
    print(&effective(&loaded))?;
    loaded.check(Purpose::Any)?;
    if arguments.check { print("the configuration is valid\n") } else { Ok(()) }
}
