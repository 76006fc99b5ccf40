//! The command line of `goim bench`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::error::BenchError;
use crate::load::{Asked, Load};
use crate::machine::{Facts, facts, raise_open_files};
use crate::outcome::Outcome;
use crate::pair::Subject;
use crate::paper::Paper;
use crate::publisher::Audience;
use crate::summary::{Row, rows};
use crate::{answer, api, bare, churn, fanout, hold, pulse, reference, storm, sync, table, unicast, worker};

/// Measures a server that speaks goim's protocol, with every message accounted for.
///
/// The clients run in processes of their own, which are this same program: it must therefore be reached as
/// `PROGRAM bench ...`.
#[derive(Debug, Clone, Args)]
pub struct BenchCommand {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Clone, Subcommand)]
enum Scenario {
    /// Hold many connections, all heartbeating, and reach every one of them
    Hold(hold::Arguments),
    /// How fast many can connect and authenticate, and the memory that they take
    Connect(storm::Arguments),
    /// Messages to a room that everybody is in
    Room(fanout::Arguments),
    /// Messages to everybody
    All(fanout::Arguments),
    /// Messages to one connection at a time, by key or by member
    Push(unicast::Arguments),
    /// Sessions that do nothing but say that they live
    Heartbeat(pulse::Arguments),
    /// Everybody vanishes and comes back with the same key
    Churn(churn::Arguments),
    /// How many pushes a second the HTTP API takes
    Api(api::Arguments),
    /// Messages that are kept: how fast they are durable, read back and caught up with
    Sync(sync::Arguments),
    /// The bare send loop that others are compared with
    Reference(reference::Arguments),
    /// A process with a share of the clients
    #[command(hide = true)]
    Worker,
    /// The bare send loop's process
    #[command(hide = true)]
    Bare,
    /// An HTTP server that only answers
    #[command(hide = true)]
    Answer,
}

/// What is written to the JSON file.
#[derive(Serialize)]
struct Document<'a> {
    what: &'static str,
    version: &'static str,
    machine: Facts,
    asked: Asked,
    figures: &'a [Row],
    runs: Vec<Run<'a>>,
}

#[derive(Serialize)]
struct Run<'a> {
    server: &'a Outcome,
    reference: Option<&'a Outcome>,
    faults: Vec<String>,
}

impl BenchCommand {
    /// Does what the arguments say, shows progress on standard error and the result on standard output.
    ///
    /// The status is 0 when nothing was lost, doubled or out of order in any run, 1 when something was.
    ///
    /// # Errors
    /// When there is no result; [`BenchError::exit_status`] says how the process should end.
    pub fn run(&self) -> Result<ExitCode, BenchError> {
        raise_open_files()?;
        match &self.scenario {
            Scenario::Worker => worker::run().map(|()| ExitCode::SUCCESS),
            Scenario::Bare => bare::run().map(|()| ExitCode::SUCCESS),
            Scenario::Answer => answer::run().map(|()| ExitCode::SUCCESS),
            Scenario::Connect(arguments) => paper(&storm::run(arguments)?, &arguments.subject),
            Scenario::Room(arguments) => {
                let result = fanout::run("goim bench room", Audience::Room, arguments)?;
                paper(&result, &arguments.subject)
            }
            Scenario::All(arguments) => {
                paper(&fanout::run("goim bench all", Audience::All, arguments)?, &arguments.subject)
            }
            Scenario::Push(arguments) => paper(&unicast::run(arguments)?, &arguments.subject),
            Scenario::Heartbeat(arguments) => paper(&pulse::run(arguments)?, &arguments.subject),
            Scenario::Churn(arguments) => paper(&churn::run(arguments)?, &arguments.subject),
            Scenario::Api(arguments) => paper(&api::run(arguments)?, &arguments.subject),
            Scenario::Sync(arguments) => paper(&sync::run(arguments)?, &arguments.subject),
            Scenario::Hold(arguments) => present("goim bench hold", &arguments.load, &hold::run(arguments)?),
            Scenario::Reference(arguments) => {
                present("goim bench reference", &arguments.load, &reference::run(arguments)?)
            }
        }
    }
}

fn paper(paper: &Paper, subject: &Subject) -> Result<ExitCode, BenchError> {
    Ok(if paper.publish(subject)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn present(
    what: &'static str,
    load: &Load,
    runs: &[(Outcome, Option<Outcome>)],
) -> Result<ExitCode, BenchError> {
    let (machine, asked, figures) = (facts(), load.asked()?, rows(runs));
    let text = table::report(what, &machine, &asked, runs, &figures);
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(BenchError::failed("cannot write to standard output", error));
        }
        _ => {}
    }
    let faultless = runs.iter().all(|(server, _)| server.faults().is_empty());
    if let Some(path) = &load.json {
        let runs = runs.iter().map(|(server, reference)| Run {
            server,
            reference: reference.as_ref(),
            faults: server.faults(),
        });
        let version = env!("CARGO_PKG_VERSION");
        let document = Document { what, version, machine, asked, figures: &figures, runs: runs.collect() };
        let json = serde_json::to_vec_pretty(&document).map_err(io::Error::from);
        json.and_then(|json| std::fs::write(path, json))
            .map_err(|error| BenchError::failed(format!("cannot write {}", path.display()), error))?;
    }
    Ok(if faultless { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
