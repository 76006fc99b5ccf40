//! Identity without the rest of logic, for whoever tries to get in by any bytes.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use goim_ports::{Call, ConnectRequest, HttpClient, HttpError, HttpRequest, HttpResponse, Version};

use crate::config::{IdentityConfig, IdentityMethod, JwtConfig};
use crate::identity::Identity;
use goim_ports::Secret;

/// Decides about tokens.
pub struct Gate(Identity);

struct Nobody;

impl HttpClient for Nobody {
    fn send(&self, _: HttpRequest) -> Call<Result<HttpResponse, HttpError>> {
        Call::Ready(Err(HttpError::Unreachable(String::new())))
    }
}

impl Gate {
    /// Believes everybody.
    ///
    /// # Panics
    /// Never: there is no key to read.
    #[must_use]
    pub fn open() -> Self {
        Self::new(&IdentityConfig::default())
    }

    /// Believes those who have a key that nobody has.
    ///
    /// # Panics
    /// When there are no random numbers.
    #[must_use]
    pub fn signed() -> Self {
        let mut key = [0; 32];
        getrandom::fill(&mut key).expect("random numbers");
        let secret = key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let jwt = JwtConfig { secrets: vec![Secret::from(secret)], ..JwtConfig::default() };
        Self::new(&IdentityConfig { method: IdentityMethod::Jwt, jwt, ..IdentityConfig::default() })
    }

    fn new(config: &IdentityConfig) -> Self {
        let http: Arc<dyn HttpClient> = Arc::new(Nobody);
        let identity = Identity::new(config, Duration::from_secs(480), Version(3), &http);
        Self(identity.unwrap_or_else(|error| panic!("{error}")))
    }

    /// True when this body of an auth packet gets a session, on the spot.
    #[must_use]
    pub fn lets_in(&self, body: &[u8]) -> bool {
        let request = ConnectRequest {
            server: "fuzz".into(),
            cookie: String::new(),
            user_agent: String::new(),
            token: Bytes::copy_from_slice(body),
            remote: IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        matches!(self.0.identify(&request), Call::Ready(Ok(_)))
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gate")
    }
}
