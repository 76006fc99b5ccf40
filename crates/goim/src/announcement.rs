//! The announcement of a process that is up: a few lines for people, the same and more for the log.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use goim_comet::ListenerKind;
use goim_logic::{IdentityConfig, IdentityMethod, PushProtection};

use crate::serve::{Addrs, Running};
use crate::{Config, machine, timelines};

/// The room of the examples, and the default port of `goim connect`.
const ROOM: &str = "live://1000";
const TCP_PORT: u16 = 3101;

/// For standard output: where to connect, and commands to try.
pub(crate) fn text(config: &Config, running: &Running) -> String {
    let addrs = running.addrs();
    let program = std::env::args().next().unwrap_or_else(|| "goim".to_owned());
    let mut text =
        format!("goim {} is up: comet, logic and job in one process\n\n", env!("CARGO_PKG_VERSION"));
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<10} {value}");
    };
    line("clients", &clients(config, addrs).join("  "));
    let danmaku = danmaku(config, addrs);
    if !danmaku.is_empty() {
        line("danmaku", &danmaku.join("  "));
    }
    line("push API", &format!("http://{}  {}", reachable(addrs.http), running.logic().push_protection()));
    line("admin", &format!("http://{}/metrics  /healthz  /readyz", reachable(addrs.http)));
    let rpc = |addr: Option<SocketAddr>| addr.map_or("closed".to_owned(), |addr| addr.to_string());
    line("gRPC", &format!("comet {}  logic {}", rpc(addrs.comet_rpc), rpc(addrs.logic_rpc)));
    line("identity", running.logic().identity());
    if let Some(location) = timelines::location(config) {
        line("timelines", &location);
    }
    let _ = write!(
        text,
        "\nConnect a client, in another terminal{}\n\nPush to it, in a third:\n  {}\n",
        connect(&program, &url_option(config, addrs), &config.logic.identity),
        curl(addrs.http, running.logic().push_protection()),
    );
    text
}

/// For the log: the same as fields, and the worst-case memory of the bounded queues.
pub(crate) fn log(config: &Config, running: &Running) {
    let addrs = running.addrs();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        server = %running.server(),
        tcp = ?addrs.clients[ListenerKind::Tcp],
        websocket = ?addrs.clients[ListenerKind::Websocket],
        tcp_tls = ?addrs.clients[ListenerKind::TcpTls],
        websocket_tls = ?addrs.clients[ListenerKind::WebsocketTls],
        http = %addrs.http,
        comet_rpc = ?addrs.comet_rpc,
        logic_rpc = ?addrs.logic_rpc,
        push = %running.logic().push_protection(),
        timelines = ?timelines::location(config),
        "up"
    );
    if config.logic.identity.method == IdentityMethod::Open {
        tracing::warn!("identity is open: clients are trusted with any identity that they claim");
    }
    let MemoryBound { push_log, in_flight, http_bodies, sessions } =
        memory_bound(config, machine::open_files_max());
    tracing::info!(
        push_log,
        job_in_flight = in_flight,
        http_bodies,
        session_queues_if_no_client_reads = sessions,
        "worst-case memory of the bounded queues, in MiB"
    );
}

/// Upper bounds in MiB.
#[derive(Debug, PartialEq, Eq)]
struct MemoryBound {
    push_log: u64,
    in_flight: u64,
    http_bodies: u64,
    sessions: u64,
}

fn memory_bound(config: &Config, open_files_max: Option<u64>) -> MemoryBound {
    let mib = |bytes: u64| bytes >> 20;
    let product = |a: usize, b: usize| mib((a as u64).saturating_mul(b as u64));
    let http = &config.logic.http;
    let comet = &config.comet;
    // Every session uses an open file.
    let sessions = open_files_max.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
    MemoryBound {
        push_log: mib(config.push_log.bytes_max as u64),
        in_flight: mib(config.job.in_flight.bytes_max as u64),
        http_bodies: product(http.connections_max, http.body_bytes_max),
        sessions: product(comet.limits.connections_max.min(sessions), comet.send.queue_bytes_max),
    }
}

/// The URLs of the listeners for goim's protocol.
fn clients(config: &Config, addrs: &Addrs) -> Vec<String> {
    urls(config, addrs, |kind| !kind.is_danmaku())
}

/// The URLs of the listeners for the danmaku protocol.
fn danmaku(config: &Config, addrs: &Addrs) -> Vec<String> {
    urls(config, addrs, ListenerKind::is_danmaku)
}

fn urls(config: &Config, addrs: &Addrs, is_wanted: impl Fn(ListenerKind) -> bool) -> Vec<String> {
    let url = |kind: ListenerKind, addr: &SocketAddr| {
        let (scheme, path) = match (kind.is_websocket(), kind.is_tls()) {
            (false, false) => ("tcp", ""),
            (false, true) => ("tls", ""),
            (true, false) => ("ws", config.comet.listen.websocket_path.as_str()),
            (true, true) => ("wss", config.comet.listen.websocket_path.as_str()),
        };
        format!("{scheme}://{}{path}", reachable(*addr))
    };
    let wanted = addrs.clients.iter().filter(|(kind, _)| is_wanted(*kind));
    let mut kinds: Vec<_> = wanted.collect();
    // Without TLS first: the example of the announcement uses the first.
    kinds.sort_by_key(|(kind, _)| kind.is_tls());
    kinds.into_iter().flat_map(|(kind, addrs)| addrs.iter().map(move |addr| url(kind, addr))).collect()
}

/// An address that this machine can connect to, in place of "every interface".
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

/// The command of a client that is accepted, and what it needs.
fn connect(program: &str, url: &str, identity: &IdentityConfig) -> String {
    match identity.method {
        IdentityMethod::Open => format!(":\n  {program} connect{url} --room {ROOM} --accepts 1000"),
        IdentityMethod::Webhook => format!(
            ", with a token that the backend accepts:\n  \
             {program} connect{url} --token '{{\"token\":\"...\",\"room_id\":\"{ROOM}\"}}'"
        ),
        IdentityMethod::Jwt => {
            let jwt = &identity.jwt;
            let (needs, key) = if jwt.secrets.is_empty() {
                ("the private key in key.pem", " --private-key key.pem")
            } else {
                ("the secret in GOIM_TOKEN_SECRET", "")
            };
            let one = |option: &str, list: &[String]| {
                list.first().map_or_else(String::new, |first| format!(" --{option} {first}"))
            };
            let (audience, issuer) = (one("audience", &jwt.audience), one("issuer", &jwt.issuer));
            format!(
                ", with {needs}:\n  {program} connect{url} --token \
                 \"$({program} token --mid 1 --room {ROOM}{key}{audience}{issuer} --body)\""
            )
        }
    }
}

/// Empty if the default of `goim connect` is right.
fn url_option(config: &Config, addrs: &Addrs) -> String {
    match addrs.clients[ListenerKind::Tcp].first() {
        Some(addr) if reachable(*addr) == SocketAddr::from((Ipv4Addr::LOCALHOST, TCP_PORT)) => String::new(),
        _ => clients(config, addrs).first().map(|url| format!(" --url {url}")).unwrap_or_default(),
    }
}

/// A push to the room of the example that works as printed, given the API key if one is needed.
fn curl(http: SocketAddr, protection: PushProtection) -> String {
    let key = match protection {
        PushProtection::LoopbackOnly => "",
        PushProtection::ApiKeys(_) => " -H \"Authorization: Bearer $GOIM_API_KEY\"",
    };
    let http = reachable(http);
    format!("curl -d hello{key} 'http://{http}/goim/push/room?operation=1000&type=live&room=1000'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_can_be_reached() {
        let check =
            |addr: &str, expect: &str| assert_eq!(reachable(addr.parse().unwrap()).to_string(), expect);
        check("0.0.0.0:3101", "127.0.0.1:3101");
        check("[::]:3101", "[::1]:3101");
        check("10.0.0.1:3101", "10.0.0.1:3101");
    }

    #[test]
    fn the_curl_names_the_key_where_one_is_needed() {
        let http = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 3111));
        assert_eq!(
            curl(http, PushProtection::LoopbackOnly),
            "curl -d hello 'http://127.0.0.1:3111/goim/push/room?operation=1000&type=live&room=1000'"
        );
        assert!(curl(http, PushProtection::ApiKeys(2)).contains("Bearer $GOIM_API_KEY"));
    }

    #[test]
    fn the_command_of_a_client_has_what_it_needs() {
        let mut identity = IdentityConfig::default();
        assert_eq!(connect("goim", "", &identity), ":\n  goim connect --room live://1000 --accepts 1000");
        identity.method = IdentityMethod::Jwt;
        identity.jwt.audience = vec!["chat".to_owned()];
        assert_eq!(
            connect("goim", " --url tcp://h:1", &identity),
            ", with the private key in key.pem:\n  goim connect --url tcp://h:1 --token \
             \"$(goim token --mid 1 --room live://1000 --private-key key.pem --audience chat --body)\""
        );
        identity.method = IdentityMethod::Webhook;
        assert!(connect("goim", "", &identity).contains("that the backend accepts"));
    }

    #[test]
    fn memory_of_the_defaults() {
        let bound = memory_bound(&Config::default(), Some(20_000));
        assert_eq!((bound.push_log, bound.in_flight), (64, 256));
        let queue = Config::default().comet.send.queue_bytes_max as u64;
        assert_eq!(bound.sessions, (20_000 * queue) >> 20, "no more sessions than open files");
        assert_eq!(bound.http_bodies, 40_000, "10,000 connections of 4 MiB");
    }
}
