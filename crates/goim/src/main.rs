//! The `goim` binary: hands its arguments to the command they name.

use std::process::ExitCode;

fn main() -> ExitCode {
    goim::command::run(std::env::args_os())
}
