//! A port over the wire must equal the port itself: same calls, same results.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use goim_ports::{
    Accepted, AcceptedAt, AuthFailure, Bodies, Broadcast, Call, CloseReason, CometError, CometPort,
    ConnectError, ConnectRequest, Epoch, ExpiresAt, Generation, KeyPush, LogicError, LogicPort, Mid,
    OnlineReport, Operation, PacketBuf, Payload, Position, RefreshRequest, ResumePosition, RoomId, RoomPush,
    RoomScope, RoomsDelta, RoomsRevision, SchemaBody, Sequence, SessionRef, StoredAt, StripeDelta,
    SyncOptions, TimelineCall, TimelineId, TimelineRequest, TimelineSeq, Upstream, Version,
};

use super::*;

fn packet() -> PacketBuf {
    PacketBuf {
        version: Version(-1),
        operation: Operation(i32::MIN),
        sequence: Sequence(-5),
        body: Bytes::from_static(b"\0\xff body"),
    }
}

type CometAnswer = Result<(), CometError>;

async fn ask_comet(port: &dyn CometPort) -> Vec<CometAnswer> {
    let accepted_at = Some(AcceptedAt(1_700_000_000_000_001));
    let (operation, packet) = (Operation(1000), packet());
    let keys = vec!["k1".into(), "ключ".into(), "k1".into()];
    let stored = StoredAt {
        timeline: TimelineId::Room("直播://房间一".into()),
        position: Position { epoch: Epoch(1 << 52), seq: TimelineSeq(u64::MAX) },
        sender: Mid(-1),
        accepted_at: AcceptedAt(7),
    };
    let at = Arc::new(stored);
    let other = SchemaBody { schema: goim_ports::Schema(2), body: Bytes::from_static(b"\xff") };
    let bodies = Bodies::new(None, vec![other.clone()]).unwrap();
    let both = Bodies::new(Some(packet.clone()), vec![other]).unwrap();
    let to_keys = |payload| KeyPush { keys: keys.clone(), operation, payload, accepted_at };
    let pushes = [
        Payload::Stored { at: Arc::clone(&at), bodies: Some(bodies.clone()) },
        Payload::Stored { at: Arc::clone(&at), bodies: Some(both.clone()) },
        Payload::Stored { at, bodies: None },
        Payload::Message(bodies),
        Payload::Message(both),
        Payload::Disconnect(CloseReason::Revoked),
    ];
    let room = RoomPush {
        room: "直播://房间一".into(),
        operation: packet.carried_operation(),
        payload: Payload::plain(packet.clone()),
        accepted_at,
    };
    let end = RoomPush {
        operation: Operation::DISCONNECT,
        payload: Payload::Disconnect(CloseReason::Kicked),
        ..room.clone()
    };
    let all =
        Broadcast { operation, payload: Payload::plain(packet), accepted_at, speed: NonZeroU32::new(64) };
    let unpaced = Broadcast { speed: None, accepted_at: None, ..all.clone() };
    let mut answers = Vec::new();
    for payload in pushes {
        answers.push(port.push(to_keys(payload)).await);
    }
    answers.extend([
        port.push_room(room).await,
        port.push_room(end).await,
        port.broadcast(all).await,
        port.broadcast(unpaced).await,
        port.rooms().await.map(drop),
    ]);
    answers
}

#[tokio::test]
async fn a_comet_is_the_same_over_the_wire() {
    let comet = Arc::new(FakeComet::default());
    let served = Served::comet(&comet).await;
    let remote = GrpcComet::new(&format!("grpc://{}", served.address), ClientConfig::default()).unwrap();
    let answers = [
        Ok(()),
        Err(CometError::Busy { limit: 64 }),
        Err(CometError::Timeout),
        Err(CometError::Unavailable("gone".to_owned())),
        Err(CometError::Invalid("rpc broadcast  room arg error")),
    ];
    for turn in 0..answers.len() {
        let answers = answers.iter().cycle().skip(turn).take(answers.len()).cloned();
        comet.answers.lock().unwrap().extend(answers.clone());
        let direct = ask_comet(&*comet).await;
        let direct_calls = comet.take_calls();
        comet.answers.lock().unwrap().extend(answers);
        let over_the_wire = ask_comet(&remote).await;
        assert_eq!(comet.take_calls(), direct_calls);
        // The text of an error is passed on unchanged.
        let normal = |answer: &CometAnswer| match answer {
            Err(CometError::Unavailable(text)) => format!("unavailable {}", text.contains("gone")),
            other => format!("{other:?}"),
        };
        assert_eq!(
            over_the_wire.iter().map(normal).collect::<Vec<_>>(),
            direct.iter().map(normal).collect::<Vec<_>>()
        );
    }
}

#[tokio::test]
async fn rooms_are_the_same_over_the_wire() {
    let comet = Arc::new(FakeComet::default());
    *comet.rooms.lock().unwrap() = vec!["live://1".into(), "no scheme".into()];
    let served = Served::comet(&comet).await;
    let remote = GrpcComet::new(&served.address, ClientConfig::default()).unwrap();
    let mut rooms = remote.rooms().await.unwrap();
    rooms.sort();
    assert_eq!(rooms, ["live://1".into(), "no scheme".into()]);
}

async fn ask_logic(port: &dyn LogicPort) -> Vec<String> {
    let session = SessionRef { mid: Mid(-7), key: "k".into(), server: "comet01".into() };
    let connect = ConnectRequest {
        server: "comet01".into(),
        cookie: "a=b; c=д".to_owned(),
        user_agent: "phone/2 (д)".to_owned(),
        token: Bytes::from_static(b"{\"mid\":1}\xff"),
        remote: "2001:db8::1".parse().unwrap(),
    };
    let refresh = RefreshRequest {
        session: session.clone(),
        token: Bytes::from_static(b"new\xff"),
        remote: "192.0.2.1".parse().unwrap(),
    };
    let rooms = Arc::new(HashMap::from([("live://1".into(), 3), ("直播://房间一".into(), 1)]));
    let report = OnlineReport { server: "comet01".into(), rooms };
    let upstream = Upstream {
        mid: Mid(5),
        key: "k".into(),
        packet: packet(),
        schema: goim_ports::Schema(7),
        negotiated: true,
    };
    let body = Bytes::from_static(b"\x01\xff");
    let request = |call| TimelineRequest {
        mid: Mid(7),
        key: "k2".into(),
        protover: Version(3),
        sequence: Sequence(-1),
        call,
    };
    let mut totals: Vec<_> = match port.renew_online(report).await {
        Ok(totals) => {
            let rooms = totals.rooms.iter().map(|(room, count)| format!("{room} {count}"));
            rooms.chain([format!("{:?}", totals.generation)]).collect()
        }
        Err(error) => vec![format!("{error:?}")],
    };
    totals.sort();
    vec![
        format!("{:?}", port.connect(connect).await),
        format!("{:?}", port.refresh(refresh).await),
        format!("{:?}", port.disconnect(session.clone()).await),
        format!("{:?}", port.heartbeat(session).await),
        format!("{totals:?}"),
        format!("{:?}", port.receive(upstream).await),
        format!("{:?}", port.timeline(request(TimelineCall::Sync(body.clone()))).await),
        format!("{:?}", port.timeline(request(TimelineCall::Ack(Bytes::new()))).await),
        format!("{:?}", port.timeline(request(TimelineCall::Send { body, is_room_member: true })).await),
    ]
}

#[tokio::test]
async fn logic_is_the_same_over_the_wire() {
    let logic = Arc::new(FakeLogic::default());
    let served = Served::logic(&logic).await;
    let remote = GrpcLogic::new(&format!("grpc://{}", served.address), ClientConfig::default()).unwrap();
    *logic.generation.lock().unwrap() = Some(Generation("third".to_owned()));
    *logic.totals.lock().unwrap() =
        Arc::new(HashMap::from([("live://1".into(), 43), ("other".into(), u32::MAX / 2)]));
    *logic.body.lock().unwrap() = Bytes::from_static(b"reply");
    let position = Position { epoch: Epoch(7), seq: TimelineSeq(8) };
    let known = ResumePosition { timeline: TimelineId::Inbox(Mid(5)), position };
    let accepted = Accepted {
        mid: Mid(i64::MIN),
        key: "k1".into(),
        room: None,
        accepts: vec![Operation(-1), Operation(i32::MAX)],
        heartbeat: Duration::from_nanos(480_000_000_001),
        rooms: vec!["a://1".into(), "b://2".into()],
        scope: Some(RoomScope(Arc::new(vec!["a://*".to_owned()]))),
        expires_at: Some(ExpiresAt(4_000_000_000)),
        protover: Some(Version(3)),
        syncing: Some(SyncOptions { resume: vec![known], notify_only: true }),
    };
    let goim = Accepted {
        rooms: Vec::new(),
        scope: None,
        expires_at: None,
        protover: None,
        syncing: None,
        room: Some("live://1".into()),
        heartbeat: Duration::ZERO,
        ..accepted.clone()
    };
    let answers = [
        (Ok(accepted), None),
        (Ok(goim.clone()), None),
        (Ok(Accepted { scope: Some(RoomScope(Arc::default())), ..goim.clone() }), None),
        (
            Err(ConnectError {
                negotiated: true,
                ..ConnectError::because(AuthFailure::TokenExpired, "late")
            }),
            None,
        ),
        (Err(ConnectError::refused("no: <ü>")), Some(LogicError::Failed("said no".to_owned()))),
        (
            Err(ConnectError::unavailable("redis")),
            Some(LogicError::Unavailable("dial tcp: refused".to_owned())),
        ),
    ];
    for (accepted, error) in answers {
        *logic.accepted.lock().unwrap() = Some(accepted);
        *logic.error.lock().unwrap() = error;
        let direct = ask_logic(&*logic).await;
        let direct_calls = logic.take_calls();
        assert_eq!(ask_logic(&remote).await, direct);
        assert_eq!(logic.take_calls(), direct_calls);
    }
}

#[tokio::test]
async fn many_pushes_are_taken_in_order_until_one_is_not() {
    let comet = Arc::new(FakeComet::default());
    let served = Served::comet(&comet).await;
    let remote = GrpcComet::new(&format!("grpc://{}", served.address), ClientConfig::default()).unwrap();
    let push = |key: &str| KeyPush {
        keys: vec![key.into()],
        operation: Operation(1000),
        payload: Payload::plain(packet()),
        accepted_at: Some(AcceptedAt(7)),
    };
    let pushes = ["a", "b", "c"].map(push);
    remote.push_many(pushes.to_vec()).await.unwrap();
    assert_eq!(comet.take_calls(), pushes.each_ref().map(|push| format!("{push:?}")));
    comet.answers.lock().unwrap().extend([Ok(()), Err(CometError::Timeout)]);
    assert_eq!(remote.push_many(pushes.to_vec()).await, Err(CometError::Timeout));
    assert_eq!(comet.take_calls().len(), 2, "the third is for the next try");
    let nobody = KeyPush { keys: Vec::new(), ..push("") };
    assert_eq!(
        remote.push_many(vec![push("a"), nobody]).await,
        Err(CometError::Invalid("rpc pushmsg arg error"))
    );
}

/// A room set that changes.
struct ChangedRooms(std::sync::Mutex<RoomsDelta>);

impl CometPort for ChangedRooms {
    fn push(&self, _: KeyPush) -> Call<Result<(), CometError>> {
        Call::Ready(Ok(()))
    }

    fn broadcast(&self, _: Broadcast) -> Call<Result<(), CometError>> {
        Call::Ready(Ok(()))
    }

    fn push_room(&self, _: RoomPush) -> Call<Result<(), CometError>> {
        Call::Ready(Ok(()))
    }

    fn rooms(&self) -> Call<Result<Vec<RoomId>, CometError>> {
        Call::Ready(Ok(Vec::new()))
    }

    fn rooms_since(&self, known: RoomsRevision) -> Call<Result<RoomsDelta, CometError>> {
        let mut news = self.0.lock().unwrap().clone();
        news.version.stripes.extend(known.stripes);
        Call::Ready(Ok(news))
    }
}

#[tokio::test]
async fn room_deltas_are_the_same_over_the_wire() {
    let stripes = vec![
        StripeDelta {
            stripe: 3,
            complete: true,
            added: vec!["live://1".into(), "直播://2".into()],
            removed: Vec::new(),
        },
        StripeDelta { stripe: 63, complete: false, added: Vec::new(), removed: vec!["live://9".into()] },
    ];
    let news = RoomsDelta { version: RoomsRevision { epoch: u64::MAX, stripes: vec![1, 2] }, stripes };
    let mut served =
        Served::new(comet_service(Arc::new(ChangedRooms(std::sync::Mutex::new(news.clone()))))).await;
    let remote = GrpcComet::new(&format!("grpc://{}", served.address), ClientConfig::default()).unwrap();
    let known = RoomsRevision { epoch: 5, stripes: vec![7; 64] };
    let delta = remote.rooms_since(known).await.unwrap();
    assert_eq!(delta.version.stripes, [vec![1, 2], vec![7; 64]].concat(), "the known revision is sent");
    assert_eq!((delta.version.epoch, delta.stripes), (u64::MAX, news.stripes));
    served.stop().await;

    let without_rooms = Served::comet(&Arc::default()).await;
    let remote =
        GrpcComet::new(&format!("grpc://{}", without_rooms.address), ClientConfig::default()).unwrap();
    let refused = remote.rooms_since(RoomsRevision::default()).await;
    assert_eq!(refused, Err(CometError::Unsupported));
}

#[tokio::test]
async fn a_comet_of_goim_does_not_support_our_calls() {
    // A server with another service replies as a Go comet does.
    let served = Served::logic(&Arc::default()).await;
    let remote = GrpcComet::new(&format!("grpc://{}", served.address), ClientConfig::default()).unwrap();
    assert_eq!(remote.push_many(Vec::new()).await, Err(CometError::Unsupported));
    assert_eq!(remote.rooms_since(RoomsRevision::default()).await, Err(CometError::Unsupported));
    assert_eq!(remote.describe().await, Err(CometError::Unsupported));
}
