//! Timelines in a local folder, on fjall (docs/decisions/0019): for `goim serve` and for a cluster
//! with one logic.
//!
//! A write that was confirmed survives the death of the process and of the machine, as far as the
//! disk stores what it acknowledges. `format` has keys and records, `tables` the open folder and
//! its reads, `writer` the writer thread, `retain` the removal of expired messages, `store` the
//! handle.

mod config;
mod dedup;
mod format;
mod retain;
mod store;
mod tables;
mod tail_cache;
mod writer;

pub use config::EmbeddedConfig;
pub use store::EmbeddedTimelines;
pub use tables::EmbeddedError;

#[cfg(test)]
mod tests;
