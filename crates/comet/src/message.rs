//! A message for sessions that do not all read the same: which body each gets, and how it is
//! encoded.
//!
//! Sessions are grouped by [`ReaderProfile`](profile::ReaderProfile); those of one profile get the
//! same bytes. The first profile is that of v2 clients: they get a message as job encoded it, and a
//! comet without other sessions does nothing more. For the other profiles a message has *variants*.
//! Each is encoded when the first session needs it, once for all shards, so that a message is
//! compressed once per encoding, however many sessions get it.

mod compressor;
mod notification;
mod outgoing;
mod profile;
#[cfg(test)]
mod tests;
mod variant;

pub(crate) use compressor::CompressionStats;
pub(crate) use notification::notify_packet;
pub(crate) use outgoing::Outgoing;
pub(crate) use profile::{ProfileId, ReaderProfiles, SyncMode};
