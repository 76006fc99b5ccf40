//! Creates Redis clients from the settings: addresses, TLS, logins. Opens no connection.

use std::path::Path;
use std::time::Duration;

use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{Client, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo, TlsCertificates, TlsMode};

use super::config::{RedisConfig, RedisTls};
use super::store::RedisError;

/// Creates clients with common socket and TLS settings.
pub(super) struct ClientFactory<'a> {
    config: &'a RedisConfig,
    socket: TcpSettings,
    certificates: TlsCertificates,
}

impl<'a> ClientFactory<'a> {
    /// Reads the TLS files.
    ///
    /// # Errors
    /// [`RedisError::File`].
    pub(super) fn new(config: &'a RedisConfig) -> Result<Self, RedisError> {
        // Unacknowledged data breaks the connection soon, instead of being retransmitted at ever
        // longer intervals.
        let socket =
            TcpSettings::default().set_nodelay(true).set_user_timeout(config.deadline.saturating_mul(2));
        Ok(Self { config, socket, certificates: read(&config.tls)? })
    }

    pub(super) fn single(&self, url: &str) -> Result<Client, RedisError> {
        let info = url.into_connection_info().map_err(|error| self.address_error(&error))?;
        let is_tls = is_tls(info.addr());
        let info = info.set_tcp_settings(self.socket.clone());
        let client =
            if is_tls { Client::build_with_tls(info, self.certificates.clone()) } else { Client::open(info) };
        client.map_err(|error| self.address_error(&error))
    }

    pub(super) fn cluster(&self, nodes: &[String]) -> Result<ClusterClient, RedisError> {
        let deadline: Duration = self.config.deadline;
        let mut builder = ClusterClientBuilder::new(nodes.iter().map(String::as_str))
            .connection_timeout(deadline)
            .response_timeout(deadline)
            .tcp_settings(self.socket.clone());
        if nodes.iter().any(|node| node.starts_with("rediss:")) {
            builder = builder.certs(self.certificates.clone());
        }
        builder.build().map_err(|error| self.address_error(&error))
    }

    pub(super) fn sentinel(
        &self,
        sentinels: &[String],
        master: &str,
        sign_in: &str,
    ) -> Result<SentinelClient, RedisError> {
        let address_error = |error| self.address_error(&error);
        let infos = sentinels.iter().map(|url| url.as_str().into_connection_info());
        let infos = infos.collect::<Result<Vec<_>, _>>().map_err(address_error)?;
        let addrs = infos.iter().map(|info| info.addr().clone());
        let mut builder =
            SentinelClientBuilder::new(addrs, master, SentinelServerType::Master).map_err(address_error)?;
        if let Some(first) = infos.first() {
            let known = first.redis_settings();
            if let Some(user) = known.username() {
                builder = builder.set_client_to_sentinel_username(user);
            }
            if let Some(password) = known.password() {
                builder = builder.set_client_to_sentinel_password(password);
            }
            if is_tls(first.addr()) {
                builder = builder.set_client_to_sentinel_certificates(self.certificates.clone());
            }
        }
        let at_master = sign_in.into_connection_info().map_err(address_error)?;
        let known = at_master.redis_settings();
        builder = builder
            .set_client_to_redis_db(known.db())
            .set_client_to_redis_tcp_settings(self.socket.clone())
            .set_client_to_sentinel_tcp_settings(self.socket.clone());
        if let Some(user) = known.username() {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = known.password() {
            builder = builder.set_client_to_redis_password(password);
        }
        if is_tls(at_master.addr()) {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_redis_certificates(self.certificates.clone());
        }
        builder.build().map_err(address_error)
    }

    fn address_error(&self, error: &redis::RedisError) -> RedisError {
        // The rest of the client's message may quote the address.
        let reason = format!("no address of redis: {:?}", error.kind());
        RedisError::Address { place: self.config.place.to_string(), reason }
    }
}

fn is_tls(addr: &ConnectionAddr) -> bool {
    matches!(addr, ConnectionAddr::TcpTls { .. })
}

fn read(tls: &RedisTls) -> Result<TlsCertificates, RedisError> {
    let file = |path: &Path| {
        std::fs::read(path)
            .map_err(|error| RedisError::File { path: path.to_owned(), reason: error.to_string() })
    };
    let root_cert = tls.ca_file.as_deref().map(file).transpose()?;
    let client_tls = match &tls.identity {
        Some((cert, key)) => Some(ClientTlsConfig { client_cert: file(cert)?, client_key: file(key)? }),
        None => None,
    };
    Ok(TlsCertificates { client_tls, root_cert })
}
