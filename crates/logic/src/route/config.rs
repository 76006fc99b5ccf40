//! The settings of a route.

use std::ops::RangeInclusive;
use std::time::Duration;

use goim_ports::{Secret, ServiceUrl};

/// The settings of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteConfig {
    /// The operations of the route.
    pub operations: RangeInclusive<i32>,
    /// The backend: `http://` or `https://`, `grpc://host:port`, `kafka://topic`.
    pub to: ServiceUrl,
    /// For HTTP: sent as `Authorization: Bearer`. Default none.
    pub secret: Option<Secret>,
    /// From the packet to its reply, retries included. Default 2 s.
    pub timeout: Duration,
    /// The number of retries of a call without an answer. Only for calls that may be made twice.
    /// Default 0.
    pub retries: u32,
    /// The maximum number of concurrent calls. Further calls wait, at most for `timeout`. Default
    /// 256.
    pub calls_max: usize,
    /// A packet with the sequence number of an earlier one of the same member within this time gets
    /// the same reply. Default none.
    pub duplicates: Option<Duration>,
}

impl RouteConfig {
    /// Returns a route for these operations to this backend, with the defaults.
    #[must_use]
    pub fn new(operations: RangeInclusive<i32>, to: impl Into<ServiceUrl>) -> Self {
        let to = to.into();
        let timeout = Duration::from_secs(2);
        Self { operations, to, secret: None, timeout, retries: 0, calls_max: 256, duplicates: None }
    }
}
