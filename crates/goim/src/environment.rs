//! The environment variables that belong to commands. All others with the prefix are settings.
//!
//! The arguments of the commands and the loader of settings use the same names from here.

/// The address of the push API: `goim push --server`.
pub(crate) const SERVER: &str = "GOIM_SERVER";
/// The key of the push API: `goim push --api-key`.
pub(crate) const API_KEY: &str = "GOIM_API_KEY";
/// The configuration file: `--config`.
pub(crate) const CONFIG: &str = "GOIM_CONFIG";
/// The secret of `goim token`.
pub(crate) const TOKEN_SECRET: &str = "GOIM_TOKEN_SECRET";

/// All of them.
pub(crate) const OF_COMMANDS: [&str; 4] = [SERVER, API_KEY, CONFIG, TOKEN_SECRET];
