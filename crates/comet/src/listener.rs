//! The kinds of listeners: which protocol, transport and encryption a connection uses.
//!
//! Owns the tables that go by kind. The sockets are opened in `listen` and accepted in `shard`.

use std::net::SocketAddr;

use goim_session::Transport;

use crate::config::ListenConfig;

/// The addresses that a comet is bound to, by kind of listener, in the order of its configuration.
#[derive(Debug, Clone, Default)]
pub struct ListenAddrs {
    /// Plain TCP.
    pub tcp: Vec<SocketAddr>,
    /// TCP inside TLS.
    pub tcp_tls: Vec<SocketAddr>,
    /// WebSocket.
    pub websocket: Vec<SocketAddr>,
    /// WebSocket inside TLS.
    pub websocket_tls: Vec<SocketAddr>,
    /// Plain TCP, danmaku protocol.
    pub danmaku_tcp: Vec<SocketAddr>,
    /// TCP inside TLS, danmaku protocol.
    pub danmaku_tcp_tls: Vec<SocketAddr>,
    /// WebSocket, danmaku protocol.
    pub danmaku_websocket: Vec<SocketAddr>,
    /// WebSocket inside TLS, danmaku protocol.
    pub danmaku_websocket_tls: Vec<SocketAddr>,
}

/// The protocol that the clients of a listener use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Dialect {
    /// goim v2.
    Goim,
    /// The danmaku protocol of bilibili: see `danmaku`.
    Danmaku,
}

/// Protocol, transport and encryption of a listener; all its connections have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ListenerKind {
    pub(crate) dialect: Dialect,
    pub(crate) transport: Transport,
    pub(crate) tls: bool,
}

/// All kinds. Counters by kind are in this order.
pub(crate) const KINDS: [ListenerKind; 8] = [
    goim(Transport::Stream, false),
    goim(Transport::Stream, true),
    goim(Transport::WebSocket, false),
    goim(Transport::WebSocket, true),
    danmaku(Transport::Stream, false),
    danmaku(Transport::Stream, true),
    danmaku(Transport::WebSocket, false),
    danmaku(Transport::WebSocket, true),
];

const fn goim(transport: Transport, tls: bool) -> ListenerKind {
    ListenerKind { dialect: Dialect::Goim, transport, tls }
}

const fn danmaku(transport: Transport, tls: bool) -> ListenerKind {
    ListenerKind { dialect: Dialect::Danmaku, transport, tls }
}

impl ListenerKind {
    /// The addresses that the configuration has for this kind.
    pub(crate) fn configured(self, listen: &ListenConfig) -> &[SocketAddr] {
        match (self.dialect, self.transport, self.tls) {
            (Dialect::Goim, Transport::Stream, false) => &listen.tcp,
            (Dialect::Goim, Transport::Stream, true) => &listen.tcp_tls,
            (Dialect::Goim, Transport::WebSocket, false) => &listen.websocket,
            (Dialect::Goim, Transport::WebSocket, true) => &listen.websocket_tls,
            (Dialect::Danmaku, Transport::Stream, false) => &listen.danmaku_tcp,
            (Dialect::Danmaku, Transport::Stream, true) => &listen.danmaku_tcp_tls,
            (Dialect::Danmaku, Transport::WebSocket, false) => &listen.danmaku_websocket,
            (Dialect::Danmaku, Transport::WebSocket, true) => &listen.danmaku_websocket_tls,
        }
    }

    /// The addresses that listeners of this kind are bound to.
    pub(crate) fn bound(self, addrs: &mut ListenAddrs) -> &mut Vec<SocketAddr> {
        match (self.dialect, self.transport, self.tls) {
            (Dialect::Goim, Transport::Stream, false) => &mut addrs.tcp,
            (Dialect::Goim, Transport::Stream, true) => &mut addrs.tcp_tls,
            (Dialect::Goim, Transport::WebSocket, false) => &mut addrs.websocket,
            (Dialect::Goim, Transport::WebSocket, true) => &mut addrs.websocket_tls,
            (Dialect::Danmaku, Transport::Stream, false) => &mut addrs.danmaku_tcp,
            (Dialect::Danmaku, Transport::Stream, true) => &mut addrs.danmaku_tcp_tls,
            (Dialect::Danmaku, Transport::WebSocket, false) => &mut addrs.danmaku_websocket,
            (Dialect::Danmaku, Transport::WebSocket, true) => &mut addrs.danmaku_websocket_tls,
        }
    }

    /// Returns the label for metrics and logs.
    pub(crate) const fn label(self) -> &'static str {
        match (self.dialect, self.transport, self.tls) {
            (Dialect::Goim, Transport::Stream, false) => "tcp",
            (Dialect::Goim, Transport::Stream, true) => "tls",
            (Dialect::Goim, Transport::WebSocket, false) => "ws",
            (Dialect::Goim, Transport::WebSocket, true) => "wss",
            (Dialect::Danmaku, Transport::Stream, false) => "danmaku_tcp",
            (Dialect::Danmaku, Transport::Stream, true) => "danmaku_tls",
            (Dialect::Danmaku, Transport::WebSocket, false) => "danmaku_ws",
            (Dialect::Danmaku, Transport::WebSocket, true) => "danmaku_wss",
        }
    }
}
