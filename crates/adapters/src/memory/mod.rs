//! Adapters that keep everything in this process: for `goim serve`, for tests, and as the model that the others are
//! compared with.
//!
//! Nothing here does I/O. Every answer is ready at once, except an append to a full push log, which waits for room.
//! State is lost with the process; what must survive it belongs into another adapter.
//!
//! Locks are plain mutexes around plain state: each is held for a few map operations and never across a call to
//! somebody else, so that comet's shards may call from their own threads.

mod comets;
mod config;
mod devices;
mod nodes;
mod push_log;
mod rooms;
mod sessions;
mod timelines;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use comets::SharedComets;
pub use config::PushLogConfig;
pub use devices::MemoryDevices;
pub use nodes::MemoryNodes;
pub use push_log::{MemoryPushLog, MemoryPushLogReader, PushLogStats, push_log};
pub use rooms::MemoryRooms;
pub use sessions::MemorySessions;
pub use timelines::MemoryTimelines;

/// Locks in spite of a panic elsewhere: every change of state here is complete before the lock is given back.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
