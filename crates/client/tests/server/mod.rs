//! A server for tests: the server side of the session over tokio, with a self-signed certificate.
//!
//! It reports 7 sessions online, echoes operation 1000, does not reply to operation 1001, syncs
//! every timeline up to [`Server::store`], and follows the orders of the test for each connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use goim_client::{Endpoint, Operation, PacketBuf, Scheme, Version};
use goim_session::framing::websocket_rules;
use goim_session::{
    CloseReason, EncodedPush, Established, FramingRules, Millis, OutboxPool, QueueLimit, ServerRules,
    ServerSession, SlowConsumerPolicy, Step, Transport,
};
use goim_wire::sync::{self, Body as _};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

/// The timeout of every wait: long enough for a busy machine, and reached only by a failing test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const ONLINE: u32 = 7;

/// An order of the test to a connection.
pub(crate) enum Order {
    Push(PacketBuf),
    Close(CloseReason, String),
    /// Close the socket without a notice.
    Cut,
    /// Stop reading, replying and closing until `Thaw`.
    Freeze,
    Thaw,
}

/// What a client did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Heartbeat,
    Room(String),
    /// Operation, sequence and body of a backend packet.
    Upstream(i32, i32, Vec<u8>),
    /// The timeline and the sequence number of the position.
    Sync(String, u64),
    Closed,
}

/// The test's handle of one connection.
pub(crate) struct Peer {
    /// The body of the auth packet.
    pub(crate) token: Vec<u8>,
    orders: mpsc::UnboundedSender<Order>,
    seen: mpsc::UnboundedReceiver<Seen>,
}

impl Peer {
    pub(crate) fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }

    pub(crate) fn push(&self, operation: i32, sequence: i32, body: &[u8]) {
        let body = bytes::Bytes::copy_from_slice(body);
        let (version, operation) = (Version::GOIM, Operation(operation));
        let sequence = goim_client::Sequence(sequence);
        self.order(Order::Push(PacketBuf { version, operation, sequence, body }));
    }

    pub(crate) fn close(&self, reason: CloseReason, more: &str) {
        let notice = format!(r#"{{"code":{},"reason":"{}"{more}}}"#, reason.code(), reason.label());
        self.order(Order::Close(reason, notice));
    }

    pub(crate) fn token(&self) -> serde_json::Value {
        serde_json::from_slice(&self.token).unwrap()
    }

    pub(crate) async fn seen(&mut self) -> Seen {
        let seen = tokio::time::timeout(PATIENCE, self.seen.recv()).await;
        seen.expect("nothing seen in time").unwrap_or(Seen::Closed)
    }
}

pub(crate) struct Server {
    pub(crate) endpoint: Endpoint,
    /// The certificate of this server, PEM.
    pub(crate) roots: Vec<u8>,
    /// The newest sequence number of every timeline, of epoch 1.
    pub(crate) stored: Arc<AtomicU64>,
    peers: mpsc::UnboundedReceiver<Peer>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(crate) async fn start(scheme: Scheme) -> Self {
        Self::start_on(scheme, 0).await
    }

    /// Starts a server on a port that was free a moment ago.
    pub(crate) async fn start_on(scheme: Scheme, port: u16) -> Self {
        // An outgoing connection may have taken the port, for example the client's own.
        let until = Instant::now() + PATIENCE;
        let listener = loop {
            match TcpListener::bind(("127.0.0.1", port)).await {
                Ok(listener) => break listener,
                Err(error) => assert!(Instant::now() < until, "port {port}: {error}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        let port = listener.local_addr().unwrap().port();
        let (acceptor, roots) = certificate();
        let (announce, peers) = mpsc::unbounded_channel();
        let stored = Arc::new(AtomicU64::new(0));
        let newest = Arc::clone(&stored);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, announce, stored) = (acceptor.clone(), announce.clone(), Arc::clone(&newest));
                tokio::spawn(async move {
                    if !scheme.is_tls() {
                        serve(Box::new(stream), scheme, announce, stored).await;
                    } else if let Ok(stream) = acceptor.accept(stream).await {
                        serve(Box::new(stream), scheme, announce, stored).await;
                    }
                });
            }
        });
        let endpoint = Endpoint::new(scheme, "127.0.0.1", port).unwrap();
        Self { endpoint, roots, stored, peers, task }
    }

    /// Returns the next connection that has presented its token.
    pub(crate) async fn peer(&mut self) -> Peer {
        let peer = tokio::time::timeout(PATIENCE, self.peers.recv()).await;
        peer.expect("no connection in time").unwrap()
    }

    /// Returns whether there is a connection that [`Server::peer`] has not returned yet.
    pub(crate) fn has_peer(&mut self) -> bool {
        !self.peers.is_empty()
    }
}

pub(crate) fn certificate() -> (TlsAcceptor, Vec<u8>) {
    let signed = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), signed.cert.pem().into_bytes())
}

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

struct Connection {
    rules: ServerRules,
    pool: OutboxPool,
    session: ServerSession,
    began: Instant,
    reader: ReadHalf<Box<dyn Socket>>,
    writer: WriteHalf<Box<dyn Socket>>,
    announce: Option<mpsc::UnboundedSender<Peer>>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// `None` once the peer is announced.
    order_sender: Option<mpsc::UnboundedSender<Order>>,
    seen: Option<mpsc::UnboundedSender<Seen>>,
    stored: Arc<AtomicU64>,
}

async fn serve(
    socket: Box<dyn Socket>,
    scheme: Scheme,
    announce: mpsc::UnboundedSender<Peer>,
    stored: Arc<AtomicU64>,
) {
    let transport = if scheme.is_websocket() { Transport::WebSocket } else { Transport::Stream };
    let rules = ServerRules {
        framing: FramingRules {
            body_bytes_max: 4096,
            head_bytes_max: 8192,
            path: "/sub".to_owned(),
            deflate: false,
            websocket: websocket_rules(false, 8192),
        },
        handshake_timeout: PATIENCE,
        reply_bytes_max: 1 << 20,
    };
    let session = ServerSession::new(transport, &rules, Millis(0));
    let (reader, writer) = tokio::io::split(socket);
    let (order_sender, orders) = mpsc::unbounded_channel();
    let mut connection = Connection {
        rules,
        pool: OutboxPool::new(1),
        session,
        began: Instant::now(),
        reader,
        writer,
        announce: Some(announce),
        orders,
        order_sender: Some(order_sender),
        seen: None,
        stored,
    };
    connection.run().await;
    connection.report(Seen::Closed);
}

impl Connection {
    async fn run(&mut self) {
        let (mut input, mut filled, mut at) = (vec![0; 4096], 0, 0);
        loop {
            if self.take(&mut input[..filled], &mut at).is_err() {
                let _ = self.flush().await;
                return;
            }
            if self.flush().await.is_err() {
                return;
            }
            let reads = at == filled && self.session.wants_input(&self.rules);
            tokio::select! {
                read = self.reader.read(&mut input), if reads => match read {
                    Ok(len) if len > 0 => (filled, at) = (len, 0),
                    _ => return,
                },
                Some(order) = self.orders.recv() => match order {
                    Order::Push(packet) => self.push(&packet),
                    Order::Cut => return,
                    Order::Freeze => {
                        while !matches!(self.orders.recv().await, Some(Order::Thaw) | None) {}
                    }
                    Order::Thaw => {}
                    Order::Close(reason, notice) => {
                        self.session.close(&mut self.pool, reason, notice.as_bytes());
                        let _ = self.flush().await;
                        return;
                    }
                },
            }
        }
    }

    fn report(&self, seen: Seen) {
        if let Some(sender) = &self.seen {
            let _ = sender.send(seen);
        }
    }

    fn push(&mut self, packet: &PacketBuf) {
        let limit = QueueLimit { bytes_max: usize::MAX, policy: SlowConsumerPolicy::Close };
        self.session.push(&mut self.pool, &EncodedPush::new(packet.clone()), limit);
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        let bytes: Vec<u8> = self.session.outbox().pieces().flatten().copied().collect();
        self.session.written(&mut self.pool, bytes.len());
        self.writer.write_all(&bytes).await?;
        self.writer.flush().await
    }

    fn take(&mut self, input: &mut [u8], at: &mut usize) -> Result<(), CloseReason> {
        loop {
            let now = Millis(self.began.elapsed().as_millis() as u64);
            let mut answer = None;
            match self.session.step(&self.rules, &mut self.pool, now, input, at)? {
                Step::Idle => return Ok(()),
                Step::Handled { .. } => {}
                Step::Authenticate { token } => {
                    let token = token.to_vec();
                    self.authenticate(token, now)?;
                }
                Step::Heartbeat { version, sequence } => {
                    self.session.reply_heartbeat(&mut self.pool, version, sequence, ONLINE);
                    self.report(Seen::Heartbeat);
                }
                Step::ChangeRoom { room } => {
                    let room = String::from_utf8(room.to_vec()).unwrap();
                    self.report(Seen::Room(room));
                }
                Step::Rooms { .. } | Step::Refresh { .. } => {
                    self.session.reply_control(&mut self.pool, br#"{"code":0}"#);
                }
                // This server does not negotiate permessage-deflate.
                Step::Inflate { .. } => {}
                Step::Upstream { packet } if packet.operation == Operation::SYNC => {
                    let request = sync::SyncRequest::read(packet.body.to_vec().into()).unwrap();
                    let reply = self.sync(request);
                    self.session.reply_control(&mut self.pool, &reply);
                }
                Step::Upstream { packet } => {
                    let (operation, body) = (packet.operation.0, packet.body.to_vec());
                    answer = (operation != 1001).then(|| body.clone());
                    let sequence = packet.sequence.0;
                    self.report(Seen::Upstream(operation, sequence, body));
                }
            }
            if let Some(body) = answer {
                self.session.reply_upstream(&mut self.pool, None, &body);
            }
        }
    }

    /// Returns all messages after the position.
    fn sync(&mut self, sync::SyncRequest { timeline, position, .. }: sync::SyncRequest) -> Vec<u8> {
        let after = position.unwrap_or_default().seq;
        self.report(Seen::Sync(timeline.clone(), after));
        let latest = self.stored.load(Ordering::SeqCst);
        let message = |seq: u64| sync::Message {
            seq,
            operation: 1000,
            version: 1,
            body: seq.to_string().into(),
            ..sync::Message::default()
        };
        let messages = (after + 1..=latest).map(message).collect();
        let (more, gap) = (false, false);
        sync::SyncReply { timeline, epoch: 1, messages, latest, more, gap, after }.write()
    }

    /// Accepts every token but `bad`. A token with `protover` is that of a negotiated client.
    fn authenticate(&mut self, token: Vec<u8>, now: Millis) -> Result<(), CloseReason> {
        let json: serde_json::Value = serde_json::from_slice(&token).unwrap_or_default();
        let refused = token == b"bad";
        let (seen_sender, seen) = mpsc::unbounded_channel();
        self.seen = Some(seen_sender);
        if let (Some(announce), Some(orders)) = (self.announce.take(), self.order_sender.take()) {
            let _ = announce.send(Peer { token, orders, seen });
        }
        if refused {
            return Err(CloseReason::AuthRefused);
        }
        let negotiated = json["protover"].is_number();
        let accepts: Vec<Operation> = json["accepts"]
            .as_array()
            .map(|list| list.iter().map(|op| Operation(op.as_i64().unwrap() as i32)).collect())
            .unwrap_or_default();
        let established = Established {
            accepts: &accepts,
            heartbeat: Duration::from_secs(480),
            protover: negotiated.then_some(Version::GOIM),
            reply: if negotiated { br#"{"code":0,"mid":7,"heartbeat":480}"# } else { b"" },
        };
        self.session.authenticated(&mut self.pool, now, &established);
        Ok(())
    }
}
