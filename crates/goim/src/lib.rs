//! goim as a process: configuration, composition of the roles, and the commands of the binary.
//!
//! Only this crate reads files, arguments and the environment, and only this crate names concrete
//! adapters. The roles do not know how they are composed.
//!
//! To embed the server, or to test against it: fill a [`Config`], call [`serve::start`].

mod admin;
mod announcement;
mod check;
#[cfg(feature = "cluster")]
pub mod cluster;
pub mod command;
mod config;
mod environment;
mod http_client;
pub mod log;
mod machine;
mod memory;
mod process_metrics;
mod push_log_metrics;
mod routes;
pub mod serve;
pub mod settings;
mod timelines;
mod wait;

pub use check::Purpose;
pub use routes::RouteError;
pub use timelines::TimelineStoreError;

pub use config::{
    AutoOffsetReset, ClusterConfig, Config, Directory, EventsConfig, HttpConfig, KafkaConfig, LogConfig,
    LogFormat, RedisConfig, RetentionOverride, RpcConfig, TimelinesConfig, VersionsConfig,
};
