//! The kinds of listeners, as one table: setting, metric label, text and default of each.
//!
//! A new kind is one variant and one row.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::{Deref, DerefMut, Index, IndexMut};

use goim_session::Transport;
use goim_settings::{Faults, Plain, Schema, Setting, Settings};

/// The protocol that the clients of a listener use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Dialect {
    /// goim v2.
    Goim,
    /// The danmaku protocol of bilibili: see `danmaku`.
    Danmaku,
}

/// What a listener expects of its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListenerKind {
    /// goim's protocol over TCP.
    Tcp,
    /// goim's protocol over TCP inside TLS.
    TcpTls,
    /// goim's protocol over WebSocket.
    Websocket,
    /// goim's protocol over WebSocket inside TLS.
    WebsocketTls,
    /// The danmaku protocol over TCP.
    DanmakuTcp,
    /// The danmaku protocol over TCP inside TLS.
    DanmakuTcpTls,
    /// The danmaku protocol over WebSocket.
    DanmakuWebsocket,
    /// The danmaku protocol over WebSocket inside TLS.
    DanmakuWebsocketTls,
}

/// What is known of one kind.
struct Row {
    /// The setting in `comet.listen`.
    name: &'static str,
    /// The label of metrics and logs.
    label: &'static str,
    /// The text of the setting.
    text: &'static str,
    /// The port of the default address; none: closed by default.
    port: Option<u16>,
    dialect: Dialect,
    transport: Transport,
    tls: bool,
}

const fn row(
    name: &'static str,
    label: &'static str,
    port: Option<u16>,
    (dialect, transport, tls): (Dialect, Transport, bool),
    text: &'static str,
) -> Row {
    Row { name, label, text, port, dialect, transport, tls }
}

/// In the order of [`ListenerKind::ALL`].
#[rustfmt::skip]
const ROWS: [Row; 8] = [
    row("tcp", "tcp", Some(3101), (Dialect::Goim, Transport::Stream, false),
        "TCP."),
    row("tcp_tls", "tls", None, (Dialect::Goim, Transport::Stream, true),
        "TCP inside TLS; needs a certificate."),
    row("websocket", "ws", Some(3102), (Dialect::Goim, Transport::WebSocket, false),
        "WebSocket."),
    row("websocket_tls", "wss", Some(3103), (Dialect::Goim, Transport::WebSocket, true),
        "WebSocket inside TLS. The default opens only when a certificate is configured."),
    row("danmaku_tcp", "danmaku_tcp", None, (Dialect::Danmaku, Transport::Stream, false),
        "TCP for clients of the danmaku protocol (docs/protocol.md)."),
    row("danmaku_tcp_tls", "danmaku_tls", None, (Dialect::Danmaku, Transport::Stream, true),
        "The danmaku protocol over TCP inside TLS; needs a certificate."),
    row("danmaku_websocket", "danmaku_ws", None, (Dialect::Danmaku, Transport::WebSocket, false),
        "The danmaku protocol over WebSocket."),
    row("danmaku_websocket_tls", "danmaku_wss", None, (Dialect::Danmaku, Transport::WebSocket, true),
        "The danmaku protocol over WebSocket inside TLS; needs a certificate."),
];

impl ListenerKind {
    /// All kinds. Counters by kind are in this order.
    pub const ALL: [Self; ROWS.len()] = [
        Self::Tcp,
        Self::TcpTls,
        Self::Websocket,
        Self::WebsocketTls,
        Self::DanmakuTcp,
        Self::DanmakuTcpTls,
        Self::DanmakuWebsocket,
        Self::DanmakuWebsocketTls,
    ];

    const fn row(self) -> &'static Row {
        &ROWS[self as usize]
    }

    /// The setting in `comet.listen`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// True if connections are encrypted, so that a certificate is needed.
    #[must_use]
    pub const fn is_tls(self) -> bool {
        self.row().tls
    }

    /// True if clients talk the danmaku protocol.
    #[must_use]
    pub const fn is_danmaku(self) -> bool {
        matches!(self.row().dialect, Dialect::Danmaku)
    }

    /// True if packets travel in WebSocket messages.
    #[must_use]
    pub const fn is_websocket(self) -> bool {
        matches!(self.row().transport, Transport::WebSocket)
    }

    /// The label of metrics and logs.
    pub(crate) const fn label(self) -> &'static str {
        self.row().label
    }

    pub(crate) const fn dialect(self) -> Dialect {
        self.row().dialect
    }

    pub(crate) const fn transport(self) -> Transport {
        self.row().transport
    }
}

/// One `T` for each kind of listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerListener<T>([T; ROWS.len()]);

impl<T> PerListener<T> {
    /// All of them, with their kinds.
    pub fn iter(&self) -> impl Iterator<Item = (ListenerKind, &T)> {
        ListenerKind::ALL.into_iter().zip(&self.0)
    }
}

impl<T> Index<ListenerKind> for PerListener<T> {
    type Output = T;

    fn index(&self, kind: ListenerKind) -> &T {
        &self.0[kind as usize]
    }
}

impl<T> IndexMut<ListenerKind> for PerListener<T> {
    fn index_mut(&mut self, kind: ListenerKind) -> &mut T {
        &mut self.0[kind as usize]
    }
}

/// Addresses by kind of listener: those of a configuration, or those that a comet listens on, in
/// the same order.
pub type ListenAddrs = PerListener<Vec<SocketAddr>>;

/// The addresses of `comet.listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listeners(ListenAddrs);

impl Deref for Listeners {
    type Target = ListenAddrs;

    fn deref(&self) -> &ListenAddrs {
        &self.0
    }
}

impl DerefMut for Listeners {
    fn deref_mut(&mut self) -> &mut ListenAddrs {
        &mut self.0
    }
}

impl Default for Listeners {
    fn default() -> Self {
        let addr = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self(PerListener(ROWS.map(|row| row.port.map(addr).into_iter().collect())))
    }
}

impl Settings for Listeners {
    const TEXT: &'static str = "The addresses of the listeners.";

    fn schema() -> Schema<Self> {
        let setting = |kind: ListenerKind| {
            Setting::new::<Vec<SocketAddr>, Plain>(
                kind.name(),
                kind.row().text,
                move |all: &Self| &all.0[kind],
                move |all: &mut Self| &mut all.0[kind],
            )
        };
        Schema::of(Self::TEXT, ListenerKind::ALL.map(setting).into(), Vec::new())
    }

    /// Whether the addresses can be opened depends on the certificate: see [`crate::Config`].
    fn check(&self, _faults: &mut Faults) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_in_the_order_of_the_kinds() {
        for (at, kind) in ListenerKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
            assert_eq!(kind.name().ends_with("_tls"), kind.is_tls(), "{kind:?}");
            assert_eq!(kind.name().starts_with("danmaku_"), kind.is_danmaku(), "{kind:?}");
            assert_eq!(kind.name().contains("websocket"), kind.is_websocket(), "{kind:?}");
        }
    }

    #[test]
    fn three_kinds_have_a_default_address() {
        let open = Listeners::default();
        let open = open.iter().filter(|(_, addrs)| !addrs.is_empty());
        let names: Vec<_> = open.map(|(kind, addrs)| (kind.name(), addrs[0].port())).collect();
        assert_eq!(names, [("tcp", 3101), ("websocket", 3102), ("websocket_tls", 3103)]);
    }
}
