//! Sessions that have missed messages since their comet was taken for dead: which are closed, which
//! are asked to sync, and which are left alone.

use std::num::NonZeroU32;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use goim_ports::{Generation, Payload};

use crate::harness::{Client, Server, eventually, start};

const DISCONNECT: i32 = 6;
const NOTIFY: i32 = 20;

/// Reports as a job that messages were dropped, the last of them `ago`.
fn missed(server: &Server, ago: Duration) {
    let call = server.comet.port().messages_missed(ago);
    server.runtime.block_on(async { call.await }).expect("the comet takes it");
}

fn ended_by_missed(server: &Server) -> u64 {
    server.metric("goim_comet_connections_closed_total{reason=\"messages_missed\"}")
}

/// Checks that the next packet of a session is the answer to a heartbeat.
fn is_left_alone(client: &mut Client) {
    client.send(2, 77, b"");
    let got = client.read();
    assert_eq!((got.operation, got.sequence), (3, 77), "{got:?}");
}

/// Returns a generation after a sweep `ago`.
fn swept(mark: &str, ago: Duration) -> String {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - ago;
    format!("{mark}/{}", at.as_nanos())
}

fn code(body: &[u8]) -> serde_json::Value {
    serde_json::from_slice(body).unwrap()
}

#[test]
fn sessions_that_sync_are_asked_to_and_others_reconnect() {
    let server = start(|_| {});
    let (mut goim, mut negotiated, mut syncs) =
        (server.session("a"), server.session("b@live://1!"), server.session("c~"));
    missed(&server, Duration::ZERO);
    assert_eq!(goim.try_read(crate::harness::TIMEOUT), None, "only the end of the stream");
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
fn sessions_opened_later_have_missed_nothing() {
    let server = start(|_| {});
    let begun = Instant::now();
    // Long before any session was opened.
    std::thread::sleep(Duration::from_millis(300));
    let mut clients = [server.session("a"), server.session("b!"), server.session("c~")];
    missed(&server, begun.elapsed());
    // Commands queued after the notice have been handled by now.
    server.broadcast(b"mark", None);
    for client in &mut clients {
        let got = client.read();
        assert_eq!((got.operation, got.body.as_slice()), (1000, &b"mark"[..]), "{got:?}");
        is_left_alone(client);
    }
    assert_eq!(ended_by_missed(&server), 0);
}

#[test]
fn an_operator_may_exempt_sessions_that_do_not_sync() {
    let server = start(|config| config.recovery.end_sessions = false);
    let (mut goim, mut syncs) = (server.session("a"), server.session("c~"));
    missed(&server, Duration::ZERO);
    assert_eq!(syncs.read().operation, NOTIFY);
    is_left_alone(&mut goim);
    assert_eq!(ended_by_missed(&server), 0);
}

#[test]
fn sessions_are_closed_at_a_pace() {
    let server = start(|config| {
        config.recovery.sessions_per_second = NonZeroU32::new(40).unwrap();
        config.shards = std::num::NonZeroUsize::new(1);
    });
    let mut clients: Vec<Client> = (0..40).map(|nth| server.session(&format!("k{nth}"))).collect();
    let asked = Instant::now();
    missed(&server, Duration::ZERO);
    // Asked again meanwhile: no session is closed twice, and none is left out.
    missed(&server, Duration::ZERO);
    eventually("half are ended", || ended_by_missed(&server) >= 20);
    let half = asked.elapsed();
    clients.iter_mut().for_each(|client| assert!(client.ends()));
    let all = asked.elapsed();
    assert!(half > Duration::from_millis(300) && all > Duration::from_millis(700), "{half:?}, {all:?}");
    assert_eq!(ended_by_missed(&server), 40);
}

#[test]
fn a_sweep_closes_sessions_and_lost_data_does_not() {
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
    // Redis is empty, was unavailable for so long that its marks expired, or was restored from an
    // old copy.
    for text in ["2", "3", "4/500", "5/1000"] {
        generation(text);
        reported();
    }
    eventually("all are entered again", || entered("a") && entered("c"));
    is_left_alone(&mut goim);
    is_left_alone(&mut syncs);
    assert_eq!(ended_by_missed(&server), 0);
    // Sessions opened since were not swept.
    generation(&swept("6", Duration::from_secs(60)));
    reported();
    is_left_alone(&mut goim);
    is_left_alone(&mut syncs);
    // The sweep removes the record, and the session is registered again before it syncs.
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
fn paced_notifications_reach_sessions_that_sync() {
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
