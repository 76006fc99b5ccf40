//! Makes authenticated connections: node list, token, socket, TLS, handshake.

use std::io;
use std::sync::Arc;

use goim_session::{ClientSession, ClientStep, Opening};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::backoff::{Backoff, Random};
use crate::connection::{Clock, Connection, Link};
use crate::desired_state::DesiredState;
use crate::event::{AuthReply, Notice};
use crate::timelines::ResumeFields;
use crate::{
    Auth, AuthBody, ClientConfig, ConfigError, ConnectError, Endpoint, NodeList, ReconnectPolicy, Target,
    TokenReason, tls,
};

/// A connected socket, with or without TLS.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// Makes connections, and caches what later ones need.
pub(crate) struct Dialer {
    config: Arc<ClientConfig>,
    tls: Option<TlsConnector>,
    /// The last list, used while logic does not respond.
    nodes: Option<NodeList>,
    /// The last token of the provider.
    body: Option<AuthBody>,
    had_token: bool,
}

impl Dialer {
    pub(crate) fn new(config: Arc<ClientConfig>) -> Result<Self, ConfigError> {
        config.check()?;
        let tls = if config.uses_tls() { Some(tls::connector(&config.tls_roots)?) } else { None };
        Ok(Self { config, tls, nodes: None, body: None, had_token: false })
    }

    pub(crate) fn backoff(&self) -> Backoff {
        let listed = self.nodes.as_ref().and_then(|nodes| nodes.backoff);
        self.config.backoff.or(listed).unwrap_or_default()
    }

    /// Drops the token, so that the next attempt asks the provider for a new one. Returns false
    /// when there is no provider.
    pub(crate) fn renew_token(&mut self) -> bool {
        self.body = None;
        matches!(self.config.auth, Auth::Provider(_))
    }

    /// Tries the endpoints once, in order, `preferred` before all others.
    pub(crate) async fn round(
        &mut self,
        desired: &DesiredState,
        resume: Option<ResumeFields>,
        preferred: Option<Endpoint>,
    ) -> Result<Connection, ConnectError> {
        let endpoints = self.endpoints().await?;
        let (token, applied, resume_revision) = match self.body().await? {
            AuthBody::Identity(identity) => {
                let token = desired.apply(&identity).to_json(resume.as_ref());
                (token, desired.clone(), resume.and_then(|resume| resume.revision))
            }
            AuthBody::Raw(token) => (token.expose().to_vec(), DesiredState::default(), None),
        };
        let limit = self.config.outbound_body_bytes_max;
        if token.len() > limit {
            return Err(ConnectError::TokenTooLong { len: token.len(), limit });
        }
        let mut last = ConnectError::Config(ConfigError::NoEndpoints);
        for endpoint in preferred.iter().chain(&endpoints) {
            tracing::debug!(%endpoint, "connecting");
            let attempt = self.connect(endpoint, token.clone(), applied.clone(), resume_revision);
            last = match tokio::time::timeout(self.config.connect_timeout, attempt).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => error,
                Err(_) => ConnectError::TimedOut { endpoint: endpoint.clone() },
            };
            tracing::debug!(%endpoint, error = %last, "not connected");
            if matches!(last.reconnect(), ReconnectPolicy::Never | ReconnectPolicy::NewToken) {
                break;
            }
        }
        Err(last)
    }

    async fn endpoints(&mut self) -> Result<Vec<Endpoint>, ConnectError> {
        let source = match &self.config.target {
            Target::Endpoints(endpoints) => return Ok(endpoints.clone()),
            Target::Nodes(source) => source,
        };
        match source.fetch_with(self.tls.as_ref(), self.config.connect_timeout).await {
            Ok(list) => Ok(self.nodes.insert(list).endpoints(source.scheme)?),
            Err(error) => {
                tracing::debug!(%error, "no new node list");
                let Some(nodes) = &self.nodes else { return Err(error.into()) };
                Ok(nodes.endpoints(source.scheme)?)
            }
        }
    }

    async fn body(&mut self) -> Result<AuthBody, ConnectError> {
        let provider = match (&self.config.auth, &self.body) {
            (Auth::Fixed(body), _) | (Auth::Provider(_), Some(body)) => return Ok(body.clone()),
            (Auth::Provider(provider), None) => provider,
        };
        let reason = if self.had_token { TokenReason::Refresh } else { TokenReason::First };
        let body = provider.provide(reason).await.map_err(ConnectError::Token)?;
        self.had_token = true;
        Ok(self.body.insert(body).clone())
    }

    async fn connect(
        &self,
        endpoint: &Endpoint,
        token: Vec<u8>,
        applied: DesiredState,
        resume_revision: Option<u64>,
    ) -> Result<Connection, ConnectError> {
        let to_error = |source| ConnectError::Io { endpoint: endpoint.clone(), source };
        let socket = self.socket(endpoint).await.map_err(to_error)?;
        let listed = self.nodes.as_ref().and_then(|nodes| nodes.heartbeat);
        let default = goim_session::ClientRules::default().heartbeat_interval;
        let interval = self.config.heartbeat_interval.or(listed).unwrap_or(default);
        let rules = Arc::new(self.config.rules(interval));
        let clock = Clock::start();
        let mut random = Random::default();
        let masks = Box::new(move || random.mask());
        let authority = endpoint.authority();
        let headers = self.config.websocket_headers.as_pairs();
        let opening = if endpoint.scheme().is_websocket() {
            Opening::WebSocket { host: &authority, path: endpoint.path(), headers: &headers }
        } else {
            Opening::Stream
        };
        let session = ClientSession::new(rules, opening, token, masks, clock.now());
        let (versions, bytes_max) = (self.config.versions.clone(), self.config.inbound_body_bytes_max);
        let mut link = Link::new(socket, session, clock, versions, bytes_max);
        let reply = authenticate(&mut link, endpoint).await?;
        if let Some(limit) = reply.heartbeat {
            // Half of the server's limit, so that one lost heartbeat does not end the session.
            let interval_max = (limit / 2).max(std::time::Duration::from_secs(1));
            link.session.set_heartbeat_interval(interval.min(interval_max), clock.now());
        }
        Ok(Connection { link, endpoint: endpoint.clone(), reply, applied, resume_revision })
    }

    async fn socket(&self, endpoint: &Endpoint) -> io::Result<Box<dyn Socket>> {
        let stream = TcpStream::connect((endpoint.host(), endpoint.port())).await?;
        // Packets are small; Nagle's algorithm would only delay them.
        stream.set_nodelay(true)?;
        if !endpoint.scheme().is_tls() {
            return Ok(Box::new(stream));
        }
        let connector = self.tls.as_ref().ok_or_else(|| io::Error::other("TLS was not prepared"))?;
        let name = ServerName::try_from(endpoint.host().to_owned()).map_err(io::Error::other)?;
        Ok(Box::new(connector.connect(name, stream).await?))
    }
}

/// Returns whether an error means that the peer has closed the connection: TLS without a close
/// alert, or a reset because of unread bytes.
pub(crate) fn is_close(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

/// Writes and reads until the token is accepted.
async fn authenticate(link: &mut Link, endpoint: &Endpoint) -> Result<AuthReply, ConnectError> {
    let to_error = |source: io::Error| match is_close(&source) {
        true => ConnectError::ClosedDuringAuth { endpoint: endpoint.clone() },
        false => ConnectError::Io { endpoint: endpoint.clone(), source },
    };
    let refused = |code, reason, reconnect| ConnectError::Refused {
        endpoint: endpoint.clone(),
        code,
        reason,
        reconnect,
    };
    loop {
        link.write_all().await.map_err(to_error)?;
        match link.step() {
            Err(ended) => return Err(ConnectError::from_ended(endpoint, ended)),
            Ok(ClientStep::Authenticated { reply }) => {
                let (reply, code) = AuthReply::parse(reply);
                let Some(code) = code else { return Ok(reply) };
                let reconnect =
                    u16::try_from(code).map_or(ReconnectPolicy::Backoff, ReconnectPolicy::for_code);
                return Err(refused(code, "the token was not accepted".to_owned(), reconnect));
            }
            Ok(ClientStep::Disconnect { body, .. }) => {
                let notice = Notice::from_json(body);
                return Err(refused(notice.code.map_or(-1, i64::from), notice.reason, notice.reconnect));
            }
            Ok(ClientStep::Idle) => {
                if link.read().await.map_err(to_error)? == 0 {
                    return Err(ConnectError::ClosedDuringAuth { endpoint: endpoint.clone() });
                }
            }
            // No other packet is meant for a client that is not authenticated.
            Ok(_) => {}
        }
    }
}
