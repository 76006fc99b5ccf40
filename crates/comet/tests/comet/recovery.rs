//! Sessions that have missed messages, since their comet was taken for dead: who is ended, who is told to look, and who is left alone.

use std::num::NonZeroU32;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use goim_ports::{Generation, Payload};

use crate::harness::{Client, Server, eventually, start};

const DISCONNECT: i32 = 6;
const NOTIFY: i32 = 20;

/// A job says that it has dropped messages, the last one so long ago.
fn missed(server: &Server, ago: Duration) {
    let call = server.comet.port().messages_missed(ago);
    server.runtime.block_on(async { call.await }).expect("the comet takes it");
}

fn ended_by_missed(server: &Server) -> u64 {
    server.metric("goim_comet_connections_closed_total{reason=\"messages_missed\"}")
}

/// The next thing that a session gets is the answer to a heartbeat.
fn is_left_alone(client: &mut Client) {
    client.send(2, 77, b"");
    let got = client.read();
    assert_eq!((got.operation, got.sequence), (3, 77), "{got:?}");
}

/// A generation after a sweep so long ago.
fn swept(mark: &str, ago: Duration) -> String {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - ago;
    format!("{mark}/{}", at.as_nanos())
}

fn code(body: &[u8]) -> serde_json::Value {
    serde_json::from_slice(body).unwrap()
}

#[test]
fn those_that_sync_look_and_others_come_back() {
    let server = start(|_| {});
    let (mut goim, mut negotiated, mut syncs) =
        (server.session("a"), server.session("b@live://1!"), server.session("c~"));
    missed(&server, Duration::ZERO);
    assert_eq!(goim.try_read(crate::harness::PATIENCE), None, "it sees the end and nothing else");
    let told = negotiated.read();
    assert_eq!(told.operation, DISCONNECT);
    let expected = serde_json::json!({
        "code": 3006, "reason": "messages_missed", "reconnect": true, "delay_ms": 0, "node": null,
    });
    assert_eq!(code(&told.body), expected);
    assert!(negotiated.ends());
    let word = syncs.read();
    assert_eq!((word.operation, word.body.as_slice()), (NOTIFY, &b""[..]));
    is_left_alone(&mut syncs);
    assert_eq!(ended_by_missed(&server), 2);
    assert_eq!(server.metric("goim_comet_resyncs_total"), 1);
    assert_eq!(server.metric("goim_comet_recoveries_total{cause=\"given_up\"}"), 1);
}

#[test]
fn sessions_that_came_later_have_missed_nothing() {
    let server = start(|_| {});
    let begun = Instant::now();
    // Long before anybody came.
    std::thread::sleep(Duration::from_millis(300));
    let mut clients = [server.session("a"), server.session("b!"), server.session("c~")];
    missed(&server, begun.elapsed());
    // What is behind it in the inboxes of the shards has been dealt with.
    server.broadcast(b"mark", None);
    for client in &mut clients {
        let got = client.read();
        assert_eq!((got.operation, got.body.as_slice()), (1000, &b"mark"[..]), "{got:?}");
        is_left_alone(client);
    }
    assert_eq!(ended_by_missed(&server), 0);
}

#[test]
fn an_operator_may_leave_sessions_alone_but_not_those_that_look() {
    let server = start(|config| config.recovery.end_sessions = false);
    let (mut goim, mut syncs) = (server.session("a"), server.session("c~"));
    missed(&server, Duration::ZERO);
    assert_eq!(syncs.read().operation, NOTIFY);
    is_left_alone(&mut goim);
    assert_eq!(ended_by_missed(&server), 0);
}

#[test]
fn they_end_at_a_pace() {
    let server = start(|config| {
        config.recovery.sessions_per_second = NonZeroU32::new(40).unwrap();
        config.shards = std::num::NonZeroUsize::new(1);
    });
    let mut clients: Vec<Client> = (0..40).map(|nth| server.session(&format!("k{nth}"))).collect();
    let asked = Instant::now();
    missed(&server, Duration::ZERO);
    // Asked again meanwhile: nobody is ended twice, and nobody is left out.
    missed(&server, Duration::ZERO);
    eventually("half are ended", || ended_by_missed(&server) >= 20);
    let half = asked.elapsed();
    clients.iter_mut().for_each(|client| assert!(client.ends()));
    let all = asked.elapsed();
    assert!(half > Duration::from_millis(300) && all > Duration::from_millis(700), "{half:?}, {all:?}");
    assert_eq!(ended_by_missed(&server), 40);
}

#[test]
fn a_sweep_ends_sessions_and_a_lost_memory_does_not() {
    let server = start(|config| config.report_interval = Duration::from_millis(10));
    let generation =
        |text: &str| *server.world.generation.lock().unwrap() = Some(Generation(text.to_owned()));
    let reported = || {
        let seen = server.world.reports.lock().unwrap().len();
        eventually("the comet reports", || server.world.reports.lock().unwrap().len() > seen + 2);
    };
    let entered = |key: &str| server.world.touched.lock().unwrap().iter().any(|touched| touched == key);
    let (mut goim, mut syncs) = (server.session("a"), server.session("c~"));
    generation("1/1000");
    reported();
    // Redis has come back empty, was away for so long that its marks ran out, or has what it had long ago.
    for text in ["2", "3", "4/500", "5/1000"] {
        generation(text);
        reported();
    }
    eventually("all are entered again", || entered("a") && entered("c"));
    is_left_alone(&mut goim);
    is_left_alone(&mut syncs);
    assert_eq!(ended_by_missed(&server), 0);
    // Who has come since was not swept.
    generation(&swept("6", Duration::from_secs(60)));
    reported();
    is_left_alone(&mut goim);
    is_left_alone(&mut syncs);
    // The sweep removes the record, and the session is in the directory again before it looks.
    server.world.touched.lock().unwrap().clear();
    generation(&swept("7", Duration::ZERO));
    assert_eq!(syncs.read().operation, NOTIFY);
    assert!(entered("c"), "it looks when it is entered");
    assert!(goim.ends());
    assert_eq!(server.metric("goim_comet_recoveries_total{cause=\"swept\"}"), 2);
    reported();
    is_left_alone(&mut syncs);
    let mut later = server.session("d");
    reported();
    is_left_alone(&mut later);
}

#[test]
fn words_at_a_pace_reach_whoever_syncs() {
    let server = start(|_| {});
    let (mut goim, mut syncs) = (server.session("a"), server.session("c~"));
    // As a job sends it that is older than this comet.
    let word = goim_ports::Operation(NOTIFY);
    let call = server.comet.port().broadcast(goim_ports::Broadcast {
        operation: word,
        payload: Payload::plain(goim_ports::PacketBuf::push(word, bytes::Bytes::new())),
        accepted_at: None,
        speed: NonZeroU32::new(2000),
    });
    server.runtime.block_on(async { call.await }).unwrap();
    assert_eq!(syncs.read().operation, NOTIFY);
    is_left_alone(&mut goim);
}
