//! logic as comet calls it, from a plain thread when the directories answer immediately.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use goim_logic::{Config, Handler, Logic};
use goim_ports::{
    Accepted, AuthFailure, Call, ConnectError, ConnectRequest, LogicError, LogicPort, Mid, OnlineReport,
    Operation, PacketBuf, RoomId, ServerId, SessionKey, SessionRef, Upstream,
};

use crate::world::{Fault, World};

fn start() -> (Arc<World>, Arc<Logic>) {
    let world = Arc::new(World::default());
    let config = Config { directory_timeout: Duration::from_millis(20), ..Config::default() };
    (Arc::clone(&world), Logic::new(config, world.dependencies()).unwrap())
}

/// The result of a call that must be ready.
fn now<T>(call: Call<T>) -> T {
    match call {
        Call::Ready(answer) => answer,
        Call::Pending(_) => panic!("the answer is not there"),
    }
}

fn connect(logic: &Logic, token: &str) -> Call<Result<Accepted, ConnectError>> {
    logic.connect(ConnectRequest {
        server: ServerId::from("h1"),
        cookie: String::new(),
        user_agent: String::new(),
        token: Bytes::copy_from_slice(token.as_bytes()),
        remote: IpAddr::V4(Ipv4Addr::LOCALHOST),
    })
}

fn session(mid: i64, key: &str, server: &str) -> SessionRef {
    SessionRef { mid: Mid(mid), key: SessionKey::from(key), server: ServerId::from(server) }
}

fn upstream(operation: i32) -> Upstream {
    let packet = PacketBuf::push(Operation(operation), Bytes::from_static(b"hey"));
    Upstream {
        mid: Mid(123),
        key: SessionKey::from("k"),
        packet,
        schema: goim_ports::Schema::FIRST,
        negotiated: false,
    }
}

#[test]
fn a_session_is_in_the_directory_when_its_client_is_accepted() {
    let (world, logic) = start();
    let accepted =
        now(connect(&logic, r#"{"mid":5,"key":"k","room_id":"live://1","accepts":[1000]}"#)).unwrap();
    assert_eq!(accepted.room, Some(RoomId::from("live://1")));
    assert_eq!(accepted.heartbeat, Duration::from_secs(480));
    assert_eq!(world.state().sessions["k"], session(5, "k", "h1"));
    now(logic.heartbeat(session(5, "k", "h1"))).unwrap();
    assert_eq!(world.state().touched, [session(5, "k", "h1")]);
    // B12: a late call of another comet removes nothing.
    assert_eq!(now(logic.disconnect(session(5, "k", "h2"))), Ok(false));
    assert_eq!(now(logic.disconnect(session(5, "k", "h1"))), Ok(true));
    assert!(world.state().sessions.is_empty());
}

#[test]
fn a_refused_client_leaves_no_trace() {
    let (world, logic) = start();
    assert_eq!(now(connect(&logic, "not json")).unwrap_err().reason, AuthFailure::AuthRefused);
    world.state().directory_fault = Fault::Error("gone".to_owned());
    let error = now(connect(&logic, "{}")).unwrap_err();
    assert_eq!(error, ConnectError::unavailable("gone"));
    assert!(world.state().sessions.is_empty());
    assert_eq!(now(logic.heartbeat(session(1, "k", "h1"))), Err(LogicError::Unavailable("gone".to_owned())));
}

#[test]
fn a_comet_reports_its_rooms_and_gets_the_totals() {
    let (_, logic) = start();
    let rooms = Arc::new([(RoomId::from("live://1"), 3)].into_iter().collect());
    let report = OnlineReport { server: ServerId::from("h1"), rooms };
    let totals = now(logic.renew_online(report)).unwrap();
    assert_eq!(totals.rooms.get("live://1"), Some(&3));
}

#[test]
fn row_17_a_packet_without_a_handler_gets_an_empty_reply() {
    struct Shout;
    impl Handler for Shout {
        fn handle(&self, upstream: Upstream) -> Call<Result<Bytes, LogicError>> {
            Call::Ready(Ok(upstream.packet.body.to_ascii_uppercase().into()))
        }
    }
    let (_, logic) = start();
    assert_eq!(now(logic.receive(upstream(4))), Ok(Bytes::new()));
    logic.handlers().register_range(1000..=1999, Arc::new(Shout)).unwrap();
    assert_eq!(now(logic.receive(upstream(1000))), Ok(Bytes::from_static(b"HEY")));
    assert_eq!(now(logic.receive(upstream(2000))), Ok(Bytes::new()));
    let mut registry = prometheus_client::registry::Registry::default();
    logic.register_metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains(r#"goim_logic_upstream_packets_total{result="handled"} 1"#), "{text}");
    assert!(text.contains(r#"goim_logic_upstream_packets_total{result="unhandled"} 2"#), "{text}");
}

#[tokio::test]
async fn a_slow_directory_is_awaited_and_a_hanging_one_times_out() {
    let (world, logic) = start();
    world.state().directory_fault = Fault::Slow;
    let call = connect(&logic, r#"{"key":"k"}"#);
    assert!(matches!(call, Call::Pending(_)));
    assert_eq!(call.await.unwrap().key, SessionKey::from("k"));
    let rooms = Arc::new([(RoomId::from("live://1"), 3)].into_iter().collect());
    let report = OnlineReport { server: ServerId::from("h1"), rooms };
    assert_eq!(logic.renew_online(report).await.unwrap().rooms.len(), 1);
    world.state().directory_fault = Fault::Hangs;
    assert!(connect(&logic, "{}").await.unwrap_err().is_unavailable());
    assert!(matches!(logic.heartbeat(session(1, "k", "h1")).await, Err(LogicError::Unavailable(_))));
    assert!(matches!(logic.disconnect(session(1, "k", "h1")).await, Err(LogicError::Unavailable(_))));
}
