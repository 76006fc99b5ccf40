//! Messages that were captured between goim's own processes.

use std::collections::HashMap;
use std::time::Duration;

use goim_ports::{Accepted, ConnectError, Mid, Operation};
use prost::Message;
use serde_json::Value;
use tonic::Code;

use super::proto::{comet, logic};
use super::*;

struct Captured {
    path: String,
    request: Bytes,
    reply: Bytes,
    status: i32,
    text: String,
}

fn captured() -> Vec<Captured> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/goim-v2/grpc.json");
    let file: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let message = |call: &Value, side: &str| {
        let unpacked = call[format!("{side}_message_hex")].as_str().map(hex);
        // Without gzip the message follows the five bytes of its prefix.
        unpacked
            .unwrap_or_else(|| hex(call[format!("{side}_data_hex")].as_str().unwrap()).split_off_or_empty(5))
    };
    let trailer = |call: &Value, name: &str| {
        let pairs = call["trailers"].as_array().cloned().unwrap_or_default();
        pairs.iter().find(|pair| pair[0] == name).map(|pair| pair[1].as_str().unwrap().to_owned())
    };
    let call = |call: &Value| Captured {
        path: call["path"].as_str().unwrap().to_owned(),
        request: message(call, "request"),
        reply: message(call, "response"),
        status: trailer(call, "grpc-status").map_or(0, |status| status.parse().unwrap()),
        text: trailer(call, "grpc-message").unwrap_or_default(),
    };
    file["calls"].as_array().unwrap().iter().map(call).collect()
}

trait SplitOffOrEmpty {
    fn split_off_or_empty(self, at: usize) -> Self;
}

impl SplitOffOrEmpty for Bytes {
    fn split_off_or_empty(mut self, at: usize) -> Self {
        if self.len() < at { Self::new() } else { self.split_off(at) }
    }
}

/// Decodes a message and encodes it again. The order of a map is undefined, so entries are compared
/// as a set of bytes.
#[track_caller]
fn check<M: Message + Default + PartialEq + std::fmt::Debug>(path: &str, bytes: &Bytes) {
    let message = M::decode(bytes.clone()).unwrap();
    let again = message.encode_to_vec();
    assert_eq!(M::decode(&*again).unwrap(), message);
    let sorted = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes.sort_unstable();
        bytes
    };
    // An unknown field would be missing.
    assert_eq!(sorted(&again), sorted(bytes), "{path} {message:?}");
    if !path.ends_with("/RenewOnline") && !path.ends_with("/Rooms") {
        assert_eq!(again, bytes.to_vec(), "{path} {message:?}");
    }
}

#[test]
fn every_captured_message_is_understood_and_written_in_the_same_way() {
    let calls = captured();
    assert!(calls.len() > 60);
    for Captured { path, request, reply, .. } in &calls {
        match path.rsplit('/').next().unwrap() {
            "Connect" => {
                (check::<logic::ConnectReq>(path, request), check::<logic::ConnectReply>(path, reply))
            }
            "Disconnect" => {
                (check::<logic::DisconnectReq>(path, request), check::<logic::DisconnectReply>(path, reply))
            }
            "Heartbeat" => {
                (check::<logic::HeartbeatReq>(path, request), check::<logic::HeartbeatReply>(path, reply))
            }
            "RenewOnline" => {
                (check::<logic::OnlineReq>(path, request), check::<logic::OnlineReply>(path, reply))
            }
            "Receive" => {
                (check::<logic::ReceiveReq>(path, request), check::<logic::ReceiveReply>(path, reply))
            }
            "Nodes" => (check::<logic::NodesReq>(path, request), check::<logic::NodesReply>(path, reply)),
            "PushMsg" => {
                (check::<comet::PushMsgReq>(path, request), check::<comet::PushMsgReply>(path, reply))
            }
            "Broadcast" => {
                (check::<comet::BroadcastReq>(path, request), check::<comet::BroadcastReply>(path, reply))
            }
            "BroadcastRoom" => (
                check::<comet::BroadcastRoomReq>(path, request),
                check::<comet::BroadcastRoomReply>(path, reply),
            ),
            "Rooms" => (check::<comet::RoomsReq>(path, request), check::<comet::RoomsReply>(path, reply)),
            other => panic!("unknown call {other}"),
        };
    }
}

#[tokio::test]
async fn row_71_a_comet_answers_captured_calls_as_goim_does() {
    let comet = Arc::new(FakeComet::default());
    let served = Served::comet(&comet).await;
    let channel = served.channel();
    let mut errors = 0;
    for call in captured().into_iter().filter(|call| call.path.starts_with("/goim.comet.Comet/")) {
        if call.text == "signal channel full, msg dropped" || call.path.ends_with("/Rooms") {
            // These depend on the state of the Go process at that time.
            continue;
        }
        let answer = raw(channel.clone(), &call.path, call.request.clone(), false).await;
        match call.status {
            0 => assert_eq!(answer.unwrap(), call.reply, "{}", call.path),
            status => {
                let error = answer.unwrap_err();
                assert_eq!(
                    (error.code() as i32, error.message()),
                    (status, call.text.as_str()),
                    "{}",
                    call.path
                );
                errors += 1;
            }
        }
    }
    assert_eq!(errors, 3);
}

/// Requests of job and of other callers.
#[tokio::test]
async fn rows_68_69_and_105_a_comet_gets_what_the_request_says() {
    let comet = Arc::new(FakeComet::default());
    let served = Served::comet(&comet).await;
    let calls = [
        ("PushMsg", "0a026b31121b080110092215000000150010000100 0003e80000000068656c6c6f18e807"),
        (
            "BroadcastRoom",
            "0a0b6c6976653a2f2f31303030121b080110092215000000150010000100 0003e80000000068656c6c6f",
        ),
        ("PushMsg", "0a066e6f626f64790a0c6b2d3231383134382d313033120f080710d209186322066469726563741805"),
        ("Broadcast", "0805120f080710d209186322066469726563741807"),
        ("Broadcast", "0805120f080710d2091863220664697265637418ffffffffffffffffff01"),
    ];
    for (call, message) in calls {
        let path = format!("/goim.comet.Comet/{call}");
        assert_eq!(raw(served.channel(), &path, hex(message), false).await.unwrap(), "");
    }
    let raw_packet = "operation: Operation(1000), payload: Message(Bodies { primary: Some(PacketBuf { version: Version(1), \
         operation: Operation(9), sequence: Sequence(0), \
         body: b\"\\0\\0\\0\\x15\\0\\x10\\0\\x01\\0\\0\\x03\\xe8\\0\\0\\0\\0hello\" }), others: None }), accepted_at: None";
    let direct = "operation: Operation(5), payload: Message(Bodies { primary: Some(PacketBuf { version: Version(7), \
                  operation: Operation(1234), sequence: Sequence(99), body: b\"direct\" }), others: None }), \
                  accepted_at: None";
    let expected = [
        format!("KeyPush {{ keys: [SessionKey(\"k1\")], {raw_packet} }}"),
        format!("RoomPush {{ room: RoomId(\"live://1000\"), {raw_packet} }}"),
        format!("KeyPush {{ keys: [SessionKey(\"nobody\"), SessionKey(\"k-218148-103\")], {direct} }}"),
        format!("Broadcast {{ {direct}, speed: Some(7) }}"),
        format!("Broadcast {{ {direct}, speed: None }}"),
    ];
    assert_eq!(comet.take_calls(), expected);
}

fn accepted() -> Accepted {
    Accepted {
        mid: Mid(123),
        key: "k1".into(),
        room: Some("live://1000".into()),
        accepts: vec![Operation(1000), Operation(1001)],
        heartbeat: Duration::from_secs(480),
        rooms: Vec::new(),
        scope: None,
        expires_at: None,
        protover: None,
        syncing: None,
    }
}

#[tokio::test]
async fn row_70_a_connect_reply_has_goims_bytes() {
    let logic = Arc::new(FakeLogic::default());
    *logic.accepted.lock().unwrap() = Some(Ok(accepted()));
    let served = Served::logic(&logic).await;
    let request = hex("0a0268311a026161");
    let reply = raw(served.channel(), "/goim.logic.Logic/Connect", request, false).await.unwrap();
    assert_eq!(reply, hex("087b12026b311a0b6c6976653a2f2f313030302204e807e907288080eb91fc0d"));
    assert_eq!(logic.take_calls(), ["connect h1  b\"aa\" 0.0.0.0"]);
}

#[tokio::test]
async fn a_refusal_is_unknown_with_its_text() {
    let logic = Arc::new(FakeLogic::default());
    let served = Served::logic(&logic).await;
    for call in captured().into_iter().filter(|call| call.path.ends_with("/Connect") && call.status != 0) {
        *logic.accepted.lock().unwrap() = Some(Err(ConnectError::refused(call.text.clone())));
        let error = raw(served.channel(), &call.path, call.request, false).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::Unknown, call.text.as_str()));
    }
}

#[tokio::test]
async fn row_76_a_gzipped_report_is_taken() {
    let logic = Arc::new(FakeLogic::default());
    *logic.totals.lock().unwrap() = Arc::new(HashMap::from([("live://1000".into(), 3)]));
    let served = Served::logic(&logic).await;
    let (path, report) =
        ("/goim.logic.Logic/RenewOnline", hex("0a07636f6d65743031120f0a0b6c6976653a2f2f313030301003"));
    for gzip in [true, false] {
        let reply = raw(served.channel(), path, report.clone(), gzip).await.unwrap();
        assert_eq!(reply, hex("0a0f0a0b6c6976653a2f2f313030301003"));
        assert_eq!(logic.take_calls(), ["renew comet01 [(RoomId(\"live://1000\"), 3)]"]);
    }
}

#[tokio::test]
async fn row_108_nodes_are_asked_by_platform_and_address() {
    let served = Served::logic(&Arc::default()).await;
    let request = hex("0a037765621207312e322e332e34");
    let reply = raw(served.channel(), "/goim.logic.Logic/Nodes", request, false).await.unwrap();
    assert_eq!(reply, hex("0a03776562 3207312e322e332e34 3a0f08ac0210031d6666e63f256666a63f"));
}

#[tokio::test]
async fn row_118_a_message_over_the_limit_is_refused() {
    let comet = Arc::new(FakeComet::default());
    let served = Served::comet(&comet).await;
    let push = |len: usize| {
        let proto = proto::protocol::Proto { body: vec![0; len].into(), ..Default::default() };
        let request =
            comet::PushMsgReq { keys: vec!["k".to_owned()], proto: Some(proto), ..Default::default() };
        Bytes::from(request.encode_to_vec())
    };
    let head = push(4 << 20).len() - (4 << 20);
    for gzip in [false, true] {
        let path = "/goim.comet.Comet/PushMsg";
        raw(served.channel(), path, push((4 << 20) - head), gzip).await.unwrap();
        assert_eq!(comet.take_calls().len(), 1);
        let error = raw(served.channel(), path, push((4 << 20) - head + 1), gzip).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert!(comet.take_calls().is_empty());
    }
}

#[tokio::test]
async fn an_unknown_call_is_unimplemented() {
    let served = Served::comet(&Arc::default()).await;
    for path in ["/goim.comet.Comet/Nothing", "/goim.logic.Logic/Connect", "/"] {
        let error = raw(served.channel(), path, Bytes::new(), false).await.unwrap_err();
        assert_eq!(error.code(), Code::Unimplemented, "{path}");
    }
}
