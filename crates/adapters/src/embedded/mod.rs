//! Timelines in a folder of this machine, on fjall (docs/decisions/0019): for `goim serve` and for one logic of a cluster.
//!
//! What was answered survives the death of the process and of the machine, as far as its disk keeps what it has acknowledged.
//! Keys and records are in `format`, the open folder and its reads in `tables`, the thread that writes in `writer`, what removes old
//! messages in `retain`, the handle in `store`.

mod config;
mod format;
mod retain;
mod store;
mod tables;
mod writer;

pub use config::EmbeddedConfig;
pub use store::EmbeddedTimelines;
pub use tables::EmbeddedError;

#[cfg(test)]
mod tests;
