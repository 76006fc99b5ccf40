//! `goim comet`, `goim logic`, `goim job`: one role of a cluster, started and stopped.

use std::fmt::Write as _;
use std::future::Future;

use clap::Args;
use goim_adapters::discovery::DiscoveryError;

use super::serve::{Signals, open_files, runtime};
use super::{Failure, SettingsArguments, print};
use crate::check::Purpose;
use crate::cluster::{self, RoleError, Running, StartError};
use crate::{Config, log};

/// Runs one role of a cluster. SIGTERM and SIGINT stop it gracefully, a second signal immediately.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: SettingsArguments,
}

const AFTER_HELP: &str = "\
Examples, each on a machine of its own:
  goim logic --set redis.url=redis://10.0.0.9:6379 --set kafka.brokers=10.0.0.8:9092 --set rpc.logic=10.0.0.2:3119
  goim comet --set redis.url=redis://10.0.0.9:6379 --set cluster.logic=grpc://10.0.0.2:3119 --set rpc.comet=10.0.0.3:3109
  goim job   --set redis.url=redis://10.0.0.9:6379 --set kafka.brokers=10.0.0.8:9092

`goim config` prints all settings with their meaning; a role ignores those of the others.";

pub(super) fn comet(arguments: &Arguments) -> Result<(), Failure> {
    run(arguments, Purpose::Comet, cluster::start_comet)
}

pub(super) fn logic(arguments: &Arguments) -> Result<(), Failure> {
    run(arguments, Purpose::Logic, cluster::start_logic)
}

pub(super) fn job(arguments: &Arguments) -> Result<(), Failure> {
    run(arguments, Purpose::Job, cluster::start_job)
}

fn run<F>(arguments: &Arguments, purpose: Purpose, start: impl FnOnce(Config) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<Running, StartError>>,
{
    let config = arguments.settings.load_for(purpose)?.config;
    log::start(&config.log);
    open_files(&config);
    let runtime = runtime()?;
    let result = runtime.block_on(run_until_stopped(start(config)));
    // A thread that hangs in a system call must not prevent the exit.
    runtime.shutdown_background();
    result
}

async fn run_until_stopped(start: impl Future<Output = Result<Running, StartError>>) -> Result<(), Failure> {
    // Signals are caught before anything runs, so that none is lost.
    let mut signals =
        Signals::catch().map_err(|error| Failure::new(format!("cannot catch signals: {error}")))?;
    let running = tokio::select! {
        running = start => running.map_err(Failure::from)?,
        name = signals.stop(|| ()) => {
            tracing::info!(signal = name, "stopped during startup");
            return Ok(());
        }
    };
    print(&announcement(&running))?;
    tracing::info!(role = running.role, version = env!("CARGO_PKG_VERSION"), lines = ?running.lines, "up");
    let failure = tokio::select! {
        name = signals.stop(|| running.reload()) => {
            tracing::info!(signal = name, "draining; a second signal stops immediately");
            None
        }
        reason = running.failed() => {
            tracing::error!(%reason, "draining after a failure");
            Some(reason.into())
        }
    };
    tokio::select! {
        () = running.drain() => tracing::info!("drained"),
        name = signals.stop(|| ()) => tracing::warn!(signal = name, "stopped immediately"),
    }
    failure.map_or(Ok(()), Err)
}

fn announcement(running: &Running) -> String {
    let mut text = format!("goim {} is up: {}\n\n", env!("CARGO_PKG_VERSION"), running.role);
    for (name, value) in running.lines.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = writeln!(text, "  {name:<14} {value}");
    }
    text
}

impl From<RoleError> for Failure {
    fn from(error: RoleError) -> Self {
        match error {
            RoleError::Misconfigured(text) => Self::usage(text),
            RoleError::Ended(text) => Self::new(text),
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Config(error) => error.into(),
            StartError::Serve(error) => error.into(),
            StartError::Kafka(_)
            | StartError::Redis(_)
            | StartError::Nodes(_)
            | StartError::Discovery(DiscoveryError::Unavailable { .. }) => {
                Self::unavailable(error.to_string())
            }
            error => Self::usage(error.to_string()),
        }
    }
}
