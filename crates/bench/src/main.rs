//! `goim-bench`: a load generator for any server that speaks goim's protocol. Every message is
//! accounted for.
//!
//! This program owns the clients, the counting and the report. It knows no role of the server and
//! shares no state with one: it uses sockets, the HTTP API and `/proc`.
//!
//! | module | contents |
//! |---|---|
//! | `options`, `endpoints` | the options that all benchmarks share; the server's addresses |
//! | `connect`, `fanout`, `push`, `heartbeat`, `churn`, `api`, `sync`, `hold` | the benchmarks |
//! | `pair`, `system`, `window` | server and reference, in alternating measurement windows |
//! | `report`, `html_report`, `figures`, `table`, `latency` | medians, as text, JSON and HTML |
//! | `fleet`, `control`, `worker` | client processes, their commands and events |
//! | `message`, `tracker`, `ledger`, `totals` | numbered messages, and which of them arrived |
//! | `publisher`, `http` | publishing through the HTTP API |
//! | `bare`, `bare_http` | the references: a plain send loop and a minimal HTTP server |
//! | `spawn`, `certificate`, `usage`, `machine` | a server started here, its usage, the machine |
//!
//! Invariants:
//! - A delivery counts when the client has checked all of its bytes, not when bytes have arrived.
//! - Latency is measured from the time at which a message was due, so a slow publisher does not
//!   hide its own delay (no coordinated omission).
//! - Server and reference are measured with the same clients, the same messages and the same
//!   readings of `/proc`.

mod api;
mod bare;
mod bare_http;
mod certificate;
mod churn;
mod clock;
mod connect;
mod control;
mod endpoints;
mod error;
mod fanout;
mod figures;
mod fleet;
mod heartbeat;
mod hold;
mod html_report;
mod http;
mod latency;
mod ledger;
mod machine;
mod message;
mod options;
mod pair;
mod progress;
mod publisher;
mod push;
mod report;
mod sizes;
mod spawn;
mod sync;
mod system;
mod table;
mod totals;
mod tracker;
mod usage;
mod window;
mod worker;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::BenchError;
use crate::options::Options;
use crate::publisher::Audience;
use crate::report::Report;

/// Measures a server that speaks goim's protocol. Every message is accounted for.
#[derive(Debug, Parser)]
#[command(name = "goim-bench", version, max_term_width = 110, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Start here:
  goim-bench room --spawn           messages to a room of 10,000, compared with a bare send loop
  goim-bench connect --spawn        connections per second, and memory per session

Exit status: 0 nothing lost, duplicated or reordered; 1 something was, or the benchmark failed; 64 wrong arguments; 69
server not reached.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Hold many connections that send heartbeats, and reach each of them
    Hold(hold::Arguments),
    /// Connections per second, and memory per session
    Connect(connect::Arguments),
    /// Messages to one room that all clients are in
    Room(fanout::Arguments),
    /// Messages to all sessions
    All(fanout::Arguments),
    /// Messages to one session at a time, by key or by member
    Push(push::Arguments),
    /// Sessions that only send heartbeats
    Heartbeat(heartbeat::Arguments),
    /// All clients disconnect and reconnect with the same key
    Churn(churn::Arguments),
    /// Pushes per second through the HTTP API
    Api(api::Arguments),
    /// Stored messages: durable appends, reads and catching up
    Sync(sync::Arguments),
    /// A process with a share of the clients
    #[command(hide = true)]
    Worker,
    /// The process of the bare send loop
    #[command(hide = true)]
    Bare,
    /// The process of the HTTP server that only answers
    #[command(hide = true)]
    BareHttp,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { BenchError::EXIT_USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    cli.command.run().unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "goim-bench: {error}");
        error.exit_status().into()
    })
}

impl Command {
    fn run(&self) -> Result<ExitCode, BenchError> {
        machine::raise_open_files()?;
        match self {
            Self::Worker => worker::run().map(|()| ExitCode::SUCCESS),
            Self::Bare => bare::run().map(|()| ExitCode::SUCCESS),
            Self::BareHttp => bare_http::run().map(|()| ExitCode::SUCCESS),
            Self::Hold(arguments) => publish(&hold::run(arguments)?, &arguments.options),
            Self::Connect(arguments) => publish(&connect::run(arguments)?, &arguments.options),
            Self::Room(arguments) => {
                publish(&fanout::run("goim-bench room", Audience::Room, arguments)?, &arguments.options)
            }
            Self::All(arguments) => {
                publish(&fanout::run("goim-bench all", Audience::All, arguments)?, &arguments.options)
            }
            Self::Push(arguments) => publish(&push::run(arguments)?, &arguments.options),
            Self::Heartbeat(arguments) => publish(&heartbeat::run(arguments)?, &arguments.options),
            Self::Churn(arguments) => publish(&churn::run(arguments)?, &arguments.options),
            Self::Api(arguments) => publish(&api::run(arguments)?, &arguments.options),
            Self::Sync(arguments) => publish(&sync::run(arguments)?, &arguments.options),
        }
    }
}

fn publish(report: &Report, options: &Options) -> Result<ExitCode, BenchError> {
    report.publish(options.run.json.as_deref())?;
    if let Some(path) = &options.run.html {
        report::write(path, Ok(html_report::render(report).into_bytes()))?;
    }
    Ok(if report.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
