//! goim as one process: configuration, composition of the roles over in-memory adapters, and the commands of the binary.
//!
//! Only this crate reads files, arguments and the environment, and only this crate names concrete adapters. The roles do
//! not know that they share a process.
//!
//! To embed the server, or to test against it: fill a [`Config`], call [`serve::start`].

mod announcement;
mod check;
#[cfg(feature = "cluster")]
pub mod cluster;
pub mod command;
mod config;
mod http_client;
pub mod log;
mod machine;
mod memory;
mod operate;
mod process_metrics;
mod push_log_metrics;
mod routes;
pub mod serve;
pub mod settings;
mod timelines;
mod wait;

pub use routes::RouteError;
pub use timelines::TimelinesError;

pub use config::{
    AutoOffsetReset, ClusterConfig, Config, Directory, EventsConfig, HttpConfig, KafkaConfig, KindRule,
    LogConfig, LogFormat, RedisConfig, RpcConfig, TimelinesConfig, VersionsConfig,
};
