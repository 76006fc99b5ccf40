//! The `goim` binary: runs the command that its arguments name.

use std::process::ExitCode;

fn main() -> ExitCode {
    goim::command::run(std::env::args_os())
}
