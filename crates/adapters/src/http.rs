//! The HTTP/1.1 client of all adapters and of logic's webhooks: plain or TLS, with pooled
//! connections.
//!
//! Certificates are verified with the system's roots; `SSL_CERT_FILE` in the environment names a
//! file of others.

use std::time::Duration;

use bytes::Bytes;
use goim_ports::{Call, HttpClient, HttpError, HttpRequest, HttpResponse};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::Request;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};

/// The idle timeout of a connection: shorter than that of most servers and load balancers, so that
/// a request rarely meets a closing connection.
const IDLE: Duration = Duration::from_secs(20);
/// The maximum number of idle connections per host.
const IDLE_MAX: usize = 64;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// An HTTP client. Clones share their connections.
#[derive(Clone)]
pub struct HyperClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl HyperClient {
    /// Creates a client and reads the system's root certificates. Opens no connection.
    #[must_use]
    pub fn new() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls())
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_MAX)
            .build(connector);
        Self { client }
    }
}

impl Default for HyperClient {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for HyperClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HyperClient").finish_non_exhaustive()
    }
}

fn tls() -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        tracing::debug!(errors = ?found.errors, "no root certificates found: https requests will fail");
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    // The provider supports the versions that it lists.
    let builder = versions.unwrap_or_else(|error| unreachable!("ring knows TLS 1.2 and 1.3: {error}"));
    builder.with_root_certificates(roots).with_no_client_auth()
}

impl HttpClient for HyperClient {
    fn send(&self, request: HttpRequest) -> Call<Result<HttpResponse, HttpError>> {
        let client = self.client.clone();
        Call::pending(async move {
            let timeout = request.timeout;
            let late = |_| HttpError::Timeout(timeout);
            tokio::time::timeout(timeout, exchange(client, request)).await.map_err(late)?
        })
    }
}

async fn exchange(
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    request: HttpRequest,
) -> Result<HttpResponse, HttpError> {
    let HttpRequest { body, url, headers, answer_bytes_max, .. } = request;
    let method = if body.is_some() { hyper::Method::POST } else { hyper::Method::GET };
    let mut builder = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        builder = builder.header(name, value);
    }
    let request = builder.body(Full::new(body.unwrap_or_default())).map_err(|error| unreachable(&error))?;
    let answer = client.request(request).await.map_err(|error| unreachable(&error))?;
    let status = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), answer_bytes_max).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            HttpError::TooLarge(answer_bytes_max)
        } else {
            HttpError::Unreachable(error.to_string())
        }
    })?;
    Ok(HttpResponse { status, body: body.to_bytes() })
}

/// Formats an error with its causes, which operators need.
fn unreachable(error: &(dyn std::error::Error + 'static)) -> HttpError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    HttpError::Unreachable(text)
}
