//! The load generator behind `goim bench`: many clients of goim's protocol against any server that speaks it, ours
//! or goim's own, with every message accounted for.
//!
//! This crate owns the clients, the counting and the report. It knows no role of the server and shares no state with
//! one: it sees sockets, the HTTP API, and what `/proc` says of a process.
//!
//! | module | what it is |
//! |---|---|
//! | [`cli`] | the command line |
//! | `hold`, `reference` | the subcommands that measure one run after the other |
//! | `storm`, `fanout`, `unicast`, `pulse`, `churn`, `api` | those that measure a server and the reference in turn |
//! | `pair`, `paper`, `page` | the two sides and their blocks; their result as text, JSON and HTML |
//! | `load`, `scenario`, `outcome` | options that they share; what is done in which order; what comes out |
//! | `fleet`, `control` | worker processes, and what is said to them |
//! | `worker` | one worker: a single-threaded loop over many connections |
//! | `message`, `tracker`, `ledger` | numbered messages; lost, doubled and reordered ones found exactly |
//! | `publisher`, `http` | how messages get in |
//! | `notify_only`, `answer` | the bare send loop, and the bare HTTP server, that results are compared with |
//! | `certificate` | TLS for a server that is started here |
//! | `server`, `machine` | a server started by us, what it uses, and what the machine is |
//! | `latency`, `summary`, `table`, `progress` | distributions, figures over several runs, and how they are shown |
//!
//! Invariants:
//! - A delivery counts when the client has checked all of its bytes, not when something has arrived.
//! - A latency is measured from the moment at which the message was due, so that a publisher that falls behind does not
//!   hide what its delay did (no coordinated omission).
//! - Server and reference are measured by the same clients, the same messages and the same reading of `/proc`.

mod answer;
mod api;
mod bare;
mod certificate;
mod churn;
pub mod cli;
mod clock;
mod control;
mod error;
mod fanout;
mod fleet;
mod hold;
mod http;
mod latency;
mod ledger;
mod load;
mod machine;
mod message;
mod outcome;
mod page;
mod pair;
mod paper;
mod progress;
mod publisher;
mod pulse;
mod reference;
mod scenario;
mod server;
mod sizes;
mod storm;
mod summary;
mod sync;
mod table;
mod tracker;
mod unicast;
mod worker;

pub use error::BenchError;
