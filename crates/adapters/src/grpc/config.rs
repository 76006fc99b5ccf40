//! The settings of gRPC servers. The defaults are those of goim's `rpcServer`, where it has them.

use std::time::Duration;

use goim_settings::settings;

settings! {
    /// Connections of other nodes to the gRPC services. Clients may ping as often as they like:
    /// goim's ping every ten seconds, even when idle.
    #[derive(Debug, Clone)]
    pub struct ServerConfig {
        /// A connection that has been silent for this long is pinged.
        #[setting(above_zero)]
        pub keepalive_interval: Duration = Duration::from_secs(60),
        /// A connection that does not answer a ping for this long is closed.
        #[setting(above_zero)]
        pub keepalive_timeout: Duration = Duration::from_secs(20),
        /// The age at which a connection is asked to reconnect, so that clients spread over new
        /// nodes. "none": never.
        #[setting(check = check_age)]
        pub connection_age_max: Option<Duration> = Some(Duration::from_secs(2 * 60 * 60)),
        /// How long calls may continue after that, and after the server begins to stop.
        pub connection_age_grace: Duration = Duration::from_secs(20),
        /// The maximum number of concurrent calls on one connection. Further ones wait at the
        /// client.
        #[setting(at_least = 1)]
        pub calls_max: u32 = 4_096,
    }
}

fn check_age(age: &Option<Duration>) -> Result<(), &'static str> {
    if *age == Some(Duration::ZERO) { Err("must be greater than zero") } else { Ok(()) }
}
