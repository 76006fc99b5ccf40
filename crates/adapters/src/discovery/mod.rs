//! Lists of nodes on a bilibili/discovery server: life beside goim's Go processes.
//!
//! One [`Discovery`] per process: it registers what the process is, renews it, and holds the one
//! long poll by which the process hears of others. [`DiscoveryNodes`] is the list of comets over
//! it; logics are found and registered by the same. Apps, metadata and requests are goim's.
//! `client` has what is asked of the server, `watch` and `register` what is made of its answers.

mod client;
mod config;
mod instance;
mod nodes;
mod register;
#[cfg(test)]
mod tests;
mod watch;

pub use config::{DiscoveryConfig, DiscoveryError};
pub use nodes::DiscoveryNodes;
pub use watch::Discovery;

/// The app that comets register as, and that logic and job watch.
pub const COMET: &str = "goim.comet";
/// The app that logics register as, and that comets watch.
pub const LOGIC: &str = "goim.logic";
