//! `goim config`: the documented defaults, a check, or what a process would run with.

use clap::Args;

use super::{Failure, SettingsArguments, print};
use crate::settings::{document, effective};

/// Without options: every setting with its documentation and default, as a TOML file.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: SettingsArguments,
    /// Say whether a process could run with this configuration
    #[arg(long)]
    check: bool,
    /// Print what a process would run with, and where each value comes from; secrets are left out
    #[arg(long)]
    effective: bool,
}

const AFTER_HELP: &str = "\
Examples:
  goim config > goim.toml                       a file to start from
  goim config --check --config goim.toml        is it right?
  goim config --effective --config goim.toml --set comet.shards=2";

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let asked = arguments.check || arguments.effective;
    if !asked {
        if arguments.settings.config.is_some() || !arguments.settings.set.is_empty() {
            return Err(Failure::usage(
                "--config and --set go with --check or --effective; alone, `goim config` prints the defaults",
            ));
        }
        return print(&document());
    }
    let loaded = arguments.settings.load()?;
    if arguments.effective {
        print(&effective(&loaded))?;
    }
    loaded.config.check()?;
    if arguments.check { print("the configuration is good\n") } else { Ok(()) }
}
