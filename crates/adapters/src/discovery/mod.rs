//! Lists of nodes on a bilibili/discovery server, to run beside goim's Go processes.
//!
//! One [`Discovery`] per process registers the process, renews the registration, and runs the long
//! poll for other processes. [`DiscoveryNodes`] is the list of comets over it; logics are found and
//! registered with it too. Apps, metadata and requests are goim's. `client` sends requests, `watch`
//! and `register` use the responses.

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
