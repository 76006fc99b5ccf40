//! From an endpoint to an authenticated connection.

use std::io;
use std::sync::Arc;

use goim_session::follow::Follower;
use goim_session::{ClientSession, ClientStep, Opening};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::backoff::{Backoff, Chance};
use crate::connection::{Clock, Connection, Link};
use crate::event::{AuthReply, Notice};
use crate::timelines::InToken;
use crate::wanted::Wanted;
use crate::{
    Auth, AuthBody, ClientConfig, ConfigError, ConnectError, Endpoint, NodeList, ReconnectPolicy, Target,
    TokenReason, tls,
};

/// A connected socket, with or without TLS.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// Makes connections, and keeps what is the same from one to the next.
pub(crate) struct Dialer {
    config: Arc<ClientConfig>,
    tls: Option<TlsConnector>,
    /// The last list, for when logic does not answer.
    nodes: Option<NodeList>,
    /// The last answer of the token provider.
    body: Option<AuthBody>,
    asked_before: bool,
}

impl Dialer {
    pub(crate) fn new(config: Arc<ClientConfig>) -> Result<Self, ConfigError> {
        config.check()?;
        let tls = if config.uses_tls() { Some(tls::connector(&config.tls_roots)?) } else { None };
        Ok(Self { config, tls, nodes: None, body: None, asked_before: false })
    }

    pub(crate) fn backoff(&self) -> Backoff {
        let listed = self.nodes.as_ref().and_then(|nodes| nodes.backoff);
        self.config.backoff.or(listed).unwrap_or_default()
    }

    /// Forgets the token, so that the provider is asked for a new one. False when there is no provider.
    pub(crate) fn renew_token(&mut self) -> bool {
        self.body = None;
        matches!(self.config.auth, Auth::Provider(_))
    }

    /// Tries the endpoints in order, `prefer` before all others.
    pub(crate) async fn round(
        &mut self,
        wanted: &Wanted,
        follower: Option<&Follower>,
        prefer: Option<Endpoint>,
    ) -> Result<Connection, ConnectError> {
        let endpoints = self.endpoints().await?;
        let inline = self.config.sync.as_ref().is_none_or(|sync| sync.inline);
        let in_token = follower.map(|follower| InToken::of(follower, inline));
        let (token, applied, resumes) = match self.body().await? {
            AuthBody::Identity(identity) => {
                let token = wanted.apply(&identity).to_json(in_token.as_ref());
                (token, wanted.clone(), in_token.is_some_and(|in_token| in_token.is_complete))
            }
            AuthBody::Raw(token) => (token.expose().to_vec(), Wanted::default(), false),
        };
        let limit = self.config.outbound_body_bytes_max;
        if token.len() > limit {
            return Err(ConnectError::TokenTooLong { len: token.len(), limit });
        }
        let mut last = ConnectError::Config(ConfigError::NoEndpoints);
        for endpoint in prefer.iter().chain(&endpoints) {
            tracing::debug!(%endpoint, "connecting");
            let attempt = self.connect(endpoint, token.clone(), applied.clone(), resumes);
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
        let platform = source.platform.as_deref();
        match NodeList::fetch(&source.url, platform, self.config.connect_timeout).await {
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
        let why = if self.asked_before { TokenReason::Refresh } else { TokenReason::First };
        let body = provider.provide(why).await.map_err(ConnectError::Token)?;
        self.asked_before = true;
        Ok(self.body.insert(body).clone())
    }

    async fn connect(
        &self,
        endpoint: &Endpoint,
        token: Vec<u8>,
        applied: Wanted,
        resumes: bool,
    ) -> Result<Connection, ConnectError> {
        let to_error = |source| ConnectError::Io { endpoint: endpoint.clone(), source };
        let socket = self.socket(endpoint).await.map_err(to_error)?;
        let listed = self.nodes.as_ref().and_then(|nodes| nodes.heartbeat);
        let default = goim_session::ClientRules::default().heartbeat_interval;
        let interval = self.config.heartbeat_interval.or(listed).unwrap_or(default);
        let rules = Arc::new(self.config.rules(interval));
        let clock = Clock::start();
        let mut chance = Chance::default();
        let masks = Box::new(move || chance.mask());
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
            let often_enough = (limit / 2).max(std::time::Duration::from_secs(1));
            link.session.set_heartbeat_interval(interval.min(often_enough), clock.now());
        }
        Ok(Connection { link, endpoint: endpoint.clone(), reply, applied, resumes })
    }

    async fn socket(&self, endpoint: &Endpoint) -> io::Result<Box<dyn Socket>> {
        let stream = TcpStream::connect((endpoint.host(), endpoint.port())).await?;
        // Packets are small and wait for nothing that comes after them.
        stream.set_nodelay(true)?;
        if !endpoint.scheme().is_tls() {
            return Ok(Box::new(stream));
        }
        let connector = self.tls.as_ref().ok_or_else(|| io::Error::other("TLS was not prepared"))?;
        let name = ServerName::try_from(endpoint.host().to_owned()).map_err(io::Error::other)?;
        Ok(Box::new(connector.connect(name, stream).await?))
    }
}

/// True for what a socket says when the other side has closed it: TLS without a goodbye, or with bytes that were not
/// read yet.
pub(crate) fn closes(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

/// Writes and reads until the token is accepted.
async fn authenticate(link: &mut Link, endpoint: &Endpoint) -> Result<AuthReply, ConnectError> {
    let to_error = |source: io::Error| match closes(&source) {
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
            // Nothing else is for a client that is not authenticated yet.
            Ok(_) => {}
        }
    }
}
