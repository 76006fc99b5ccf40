//! `goim bench reference`: the bare send loop alone, over the same number of sockets, with the same messages.

use clap::Args;

use crate::error::BenchError;
use crate::fleet::workers_needed;
use crate::load::Load;
use crate::machine::open_files_max;
use crate::outcome::Outcome;

/// Measures what this machine does without a server: one thread that sends a packet to every socket. Its clients, its
/// messages and its figures are those of `goim bench hold`, which is compared with it.
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) load: Load,
}

/// All runs.
///
/// # Errors
/// See [`crate::scenario::run`].
pub(crate) fn run(arguments: &Arguments) -> Result<Vec<(Outcome, Option<Outcome>)>, BenchError> {
    let load = &arguments.load;
    workers_needed(load.connections)?;
    let (needed, limit) = (u64::from(load.connections) + 100, open_files_max());
    if needed > limit {
        let who = "the send loop, as one process,";
        return Err(BenchError::Descriptors { who, needed, limit, way_out: "--connections" });
    }
    let one = |number| crate::hold::of_reference(load, &format!("[{number}/{}]", load.repeat));
    (1..=load.repeat).map(|number| Ok((one(number)?, None))).collect()
}
