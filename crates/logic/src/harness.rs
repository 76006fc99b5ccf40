//! Authentication without the rest of logic, for fuzzing.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use goim_ports::{Call, ConnectRequest, HttpClient, HttpError, HttpRequest, HttpResponse, Version};

use crate::config::{IdentityConfig, IdentityMethod, JwtConfig};
use crate::identity::Identity;
use goim_ports::Secret;

/// Authenticates clients.
pub struct Gate(Identity);

struct NoHttpClient;

impl HttpClient for NoHttpClient {
    fn send(&self, _: HttpRequest) -> Call<Result<HttpResponse, HttpError>> {
        Call::Ready(Err(HttpError::Unreachable(String::new())))
    }
}

impl Gate {
    /// Accepts every client that sends a valid auth packet.
    ///
    /// # Panics
    /// Never: no key is read.
    #[must_use]
    pub fn open() -> Self {
        Self::new(&IdentityConfig::default())
    }

    /// Accepts tokens signed with a random key, so none.
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
        let http: Arc<dyn HttpClient> = Arc::new(NoHttpClient);
        let identity = Identity::new(config, Duration::from_secs(480), Version(3), &http);
        Self(identity.unwrap_or_else(|error| panic!("{error}")))
    }

    /// Returns true when this body of an auth packet is accepted immediately.
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
