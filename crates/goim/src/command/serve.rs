//! `goim serve`: starts the system, announces it, and stops it on a signal.

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Failure, SettingsArguments, print};
use crate::check::Purpose;
use crate::serve::{self, StartError};
use crate::{Config, announcement, log, machine};

/// Runs comet, logic and job in this process, with nothing else installed. SIGTERM and SIGINT stop
/// it gracefully, a second signal immediately.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: SettingsArguments,
}

const AFTER_HELP: &str = "\
Examples:
  goim serve
  goim serve --config goim.toml
  goim serve --set comet.listen.tcp=:4101 --set log.format=json
  GOIM_LOGIC_HTTP_API_KEYS=a-secret-of-16-bytes goim serve

`goim config` prints all settings with their meaning.";

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = arguments.settings.load_for(Purpose::Serve)?.config;
    log::start(&config.log);
    open_files(&config);
    let runtime = runtime()?;
    let result = runtime.block_on(serve_until_stopped(config));
    // A thread that hangs in a system call must not prevent the exit.
    runtime.shutdown_background();
    result
}

/// The runtime of the roles' tasks.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("goim-runtime")
        .build()
        .map_err(|error| Failure::new(format!("cannot start the runtime: {error}")))
}

async fn serve_until_stopped(config: Config) -> Result<(), Failure> {
    // Signals are caught before anything runs, so that none is lost.
    let mut signals =
        Signals::catch().map_err(|error| Failure::new(format!("cannot catch signals: {error}")))?;
    let running = tokio::select! {
        running = serve::start(config.clone()) => running.map_err(Failure::from)?,
        name = signals.stop(|| ()) => {
            tracing::info!(signal = name, "stopped during startup");
            return Ok(());
        }
    };
    announcement::log(&config, &running);
    print(&announcement::text(&config, &running))?;
    let name = signals.stop(|| serve::reload(running.comet())).await;
    tracing::info!(signal = name, "draining; a second signal stops immediately");
    tokio::select! {
        () = running.drain() => tracing::info!("drained"),
        name = signals.stop(|| ()) => tracing::warn!(signal = name, "stopped immediately, open sessions are cut"),
    }
    Ok(())
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Config(error) => error.into(),
            StartError::Comet(goim_comet::StartError::Tls(_)) => Self::usage(error.to_string()),
            #[cfg(feature = "cluster")]
            StartError::TimelineStore(crate::TimelineStoreError::Postgres(_)) => {
                Self::unavailable(error.to_string())
            }
            other => Self::new(other.to_string()),
        }
    }
}

/// Raises the limit of open files, because every connection is an open file.
pub(super) fn open_files(config: &Config) {
    let limit = match machine::raise_open_files() {
        Ok(limit) => limit,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files cannot be raised");
            return;
        }
    };
    let shown = |limit: Option<u64>| limit.map_or("none".to_owned(), |limit| limit.to_string());
    tracing::info!(before = shown(limit.before), now = shown(limit.now), "limit of open files");
    // The default is not a requirement: then the line above is enough.
    let usual = goim_comet::LimitsConfig::default().connections_max;
    let wanted = config.comet.limits.connections_max;
    if let Some(now) = limit.now.filter(|now| wanted != usual && *now < wanted as u64) {
        tracing::warn!(
            open_files = now,
            connections_max = wanted,
            "fewer open files are allowed than comet.limits.connections_max; raise the hard limit (ulimit -Hn, LimitNOFILE) \
             or lower the setting"
        );
    }
}

pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    pub(super) fn catch() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal that asks to stop. On SIGHUP `reload` is called.
    pub(super) async fn stop(&mut self, reload: impl Fn()) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hang_up.recv() => reload(),
            }
        }
    }
}
