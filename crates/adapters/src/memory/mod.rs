//! Adapters that store everything in this process: for `goim serve`, for tests, and as the model
//! for the other adapters.
//!
//! Nothing here does I/O. Every call is ready immediately, except an append to a full push log,
//! which waits for room. State is lost with the process.
//!
//! Each lock is held for a few map operations and never across a call to another component, so that
//! comet's shards may call from their own threads.

mod comets;
mod config;
mod devices;
mod nodes;
mod push_log;
mod rooms;
mod sessions;
mod timelines;

pub use comets::SharedComets;
pub use config::PushLogConfig;
pub use devices::MemoryDevices;
pub use nodes::MemoryNodes;
pub use push_log::{MemoryPushLog, MemoryPushLogReader, PushLogStats, push_log};
pub use rooms::MemoryRooms;
pub use sessions::MemorySessions;
pub use timelines::MemoryTimelines;
