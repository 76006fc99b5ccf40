//! The settings of job, field by field.

use super::value::Value;
use super::{Setting, settings};

pub(super) const SECTIONS: &[(&str, &str)] = &[
    ("job", "Job: takes the push log in order and hands it to the comets."),
    (
        "job.room",
        "Batches of room messages. A message to a quiet room leaves at once; those that come within batch_interval after it leave together when the interval is over, or earlier when a batch is full.",
    ),
    ("job.comet", "Calls to comets."),
    ("job.in_flight", "Records that were read and are not handed over. Beyond either bound nothing is read."),
];

pub(super) fn settings() -> Vec<Setting> {
    settings! {
        [job.drain_timeout], "How long a stopping job goes on handing over what it has read.";

        [job.room.batch_messages_max], "Messages in one batch.";
        size [job.room.batch_bytes_max], "Bytes in one batch, headers included. A larger message is a batch of its own.";
        [job.room.batch_interval], "How long messages of a busy room are gathered. Zero gathers only what was read together.";

        [job.comet.lanes], "Lanes for each comet, besides one for broadcasts: calls that may be under way at once. Keys and rooms are spread over them.";
        [job.comet.call_timeout], "How long one call may take.";
        [job.comet.retries_max], "How often a call is made again after a comet was not reached or did not answer in time. When the last try fails, the comet is given up until it answers a probe, and what is for it meanwhile is undeliverable.";
        [job.comet.retry_backoff], "Pause before a call is made again.";
        [job.comet.probe_interval], "How often a comet that was given up is asked whether it is back.";
        [job.comet.busy_timeout], "How long a broadcast with a speed waits for a comet that has as many under way as it allows.";

        [job.in_flight.records_max], "Their number.";
        size [job.in_flight.bytes_max], "Their bytes, with a fixed addition for each.";
    }
}
