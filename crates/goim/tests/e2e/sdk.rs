//! The Rust client against the real server: identity, versions, compression, rooms, a new token,
//! and the reason when the server ends a session.

use crate::harness;
use crate::harness::backend::{Answer, Backend};
use crate::harness::{Server, Settings, number, unique};
use goim_client::{
    Client, ClientConfig, ConnectError, DisconnectReason, Event, Events, Identity, Operation,
    ReconnectPolicy, RoomError, Scheme, SendError, Version, VersionTable,
};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;

const SECRET: &str = "a shared secret of more than 32 bytes";
const ROWS: &str = "0 = schema 1, identity; 1 = schema 1, identity; 2 = schema 1, zlib; 3 = schema 1, brotli; 4 = schema 2, identity; \
                    5 = schema 2, zstd";

fn endpoint(server: &Server, scheme: Scheme) -> goim_client::Endpoint {
    let (name, addr, path) = match scheme {
        Scheme::Tcp => ("tcp", server.addrs.tcp, ""),
        _ => ("ws", server.addrs.websocket, "/sub"),
    };
    format!("{name}://{addr}{path}").parse().unwrap()
}

fn config(server: &Server, scheme: Scheme, identity: Identity) -> ClientConfig {
    let mut config = ClientConfig::new(endpoint(server, scheme), identity);
    let rows = ROWS.split(';').map(|row| row.trim().parse().unwrap()).collect();
    config.versions = VersionTable::new(rows).unwrap();
    config
}

async fn event(events: &mut Events) -> Event {
    let next = tokio::time::timeout(harness::DEADLINE, events.recv()).await;
    next.expect("an event in time").expect("the client goes on")
}

async fn pushed(events: &mut Events) -> (i16, Vec<u8>) {
    loop {
        if let Event::Push(packet) = event(events).await {
            return (packet.version.0, packet.body.to_vec());
        }
    }
}

fn token(mid: u32, expires_in: i64, more: &serde_json::Value) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let mut claims = json!({ "mid": mid, "exp": i64::try_from(now.as_secs()).unwrap() + expires_in });
    for (name, value) in more.as_object().into_iter().flatten() {
        claims[name] = value.clone();
    }
    jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_reads_the_versions_that_it_declares() {
    let server = tokio::task::spawn_blocking(|| Server::start(&Settings::new().set("versions.rows", ROWS)))
        .await
        .unwrap();
    let large = "the same again ".repeat(200);
    for scheme in [Scheme::Tcp, Scheme::Ws] {
        for (protover, schema) in [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)] {
            let (key, room) = (unique("k"), unique("live://r"));
            let identity = Identity::new(0).key(&key).room(&room).accepts([1000]).protover(Version(protover));
            let (client, mut events) = Client::connect(config(&server, scheme, identity)).await.unwrap();
            server.push_room(1000, &room, &large);
            assert_eq!(pushed(&mut events).await, (1, large.clone().into_bytes()), "{scheme:?} {protover}");
            let bodies = json!([{ "schema": 1, "body": "old" }, { "schema": 2, "body": large }]);
            let message =
                json!({ "messages": [{ "to": { "room": room }, "operation": 1000, "bodies": bodies }] });
            let headers = [("content-type", "application/json")];
            server.request("POST", "/v1/push", &headers, message.to_string().as_bytes());
            let expected = if schema == 1 { (1, b"old".to_vec()) } else { (4, large.clone().into_bytes()) };
            assert_eq!(pushed(&mut events).await, expected, "{scheme:?} {protover}");
            client.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_are_joined_left_and_restored() {
    let server =
        tokio::task::spawn_blocking(|| Server::start(&Settings::new().set("comet.limits.rooms_max", "4")))
            .await
            .unwrap();
    let [a, b, c, d, e] = [(); 5].map(|()| unique("live://r"));
    let identity = Identity::new(0).key(unique("k")).rooms([a.clone()]);
    let (client, mut events) = Client::connect(config(&server, Scheme::Ws, identity)).await.unwrap();
    let reply = client.join_rooms([b.clone(), c.clone()]).await.unwrap();
    assert_eq!(reply.done, [b.clone(), c.clone()]);
    for room in [&a, &b, &c] {
        server.push_room(1000, room, room);
        assert_eq!(pushed(&mut events).await.1, room.as_bytes());
    }
    assert_eq!(client.leave_rooms([c.as_str()]).await.unwrap().done, [c.as_str()]);
    let refused = client.join_rooms([d, e, unique("live://r")]).await.unwrap_err();
    assert!(matches!(&refused, RoomError::Refused(error) if error.code == 3511), "{refused:?}");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_refused_taken_and_renewed() {
    let settings = Settings::new()
        .set("logic.identity.method", "jwt")
        .set("logic.identity.jwt.secrets", SECRET)
        .set("logic.identity.jwt.leeway", "0s");
    let server = tokio::task::spawn_blocking(move || Server::start(&settings)).await.unwrap();
    let identity = |token: String| Identity::new(0).token(token);
    let refused =
        Client::connect(config(&server, Scheme::Tcp, identity(token(1, -5, &json!({}))))).await.unwrap_err();
    assert!(
        matches!(&refused, ConnectError::Refused { .. }) && refused.to_string().contains("3201"),
        "{refused}"
    );

    let mid = number();
    let (client, mut events) =
        Client::connect(config(&server, Scheme::Tcp, identity(token(mid, 2, &json!({}))))).await.unwrap();
    let other = client.refresh_token(token(mid + 1, 3600, &json!({}))).await.unwrap_err();
    assert!(matches!(&other, SendError::Refused(error) if error.code == 3205), "{other:?}");
    client.refresh_token(token(mid, 3600, &json!({}))).await.unwrap();
    // A session that began later, with as short a token and no new one, ends: so the first token of
    // this one has expired.
    let (_expiring, mut its_events) =
        Client::connect(config(&server, Scheme::Tcp, identity(token(number(), 2, &json!({})))))
            .await
            .unwrap();
    while !matches!(event(&mut its_events).await, Event::Disconnected { .. }) {}
    client.heartbeat().await.unwrap();
    // The backend ends it: the client knows what to do.
    server.post("/v1/sessions/end", json!({ "of": { "mids": [mid] } }).to_string());
    let ended = loop {
        if let Event::Disconnected { reason, retry_in } = event(&mut events).await {
            break (reason, retry_in);
        }
    };
    assert!(matches!(&ended.0, DisconnectReason::Notice(notice) if notice.code == Some(3505)), "{ended:?}");
    assert_eq!((ended.0.reconnect(), ended.1), (ReconnectPolicy::Never, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backend_answers_and_fails() {
    let backend = Backend::start(|asked| match &asked.body[..] {
        b"no" => Answer::status(403, ""),
        body => Answer::ok([b"answer to ", body, &b" and more".repeat(200)].concat()),
    });
    let route = format!("[{{ operations = \"2000\", to = \"{}\" }}]", backend.url("/"));
    let settings = Settings::new().set("logic.upstream.routes", &route).set("versions.rows", ROWS);
    let server = tokio::task::spawn_blocking(move || Server::start(&settings)).await.unwrap();
    let identity = Identity::new(7).protover(Version(3));
    let (client, _events) = Client::connect(config(&server, Scheme::Ws, identity)).await.unwrap();
    let answer = client.send(Operation(2000), "hello").await.unwrap();
    assert_eq!(answer, [b"answer to hello".as_slice(), &b" and more".repeat(200)].concat());
    // More than a packet may carry, and less when it is compressed: the backend has it as it was.
    let large = "the same again ".repeat(400);
    for version in [2, 3] {
        let answer = client.send_as(Version(version), Operation(2000), large.clone()).await.unwrap();
        assert!(answer.starts_with(format!("answer to {large}").as_bytes()), "{version}");
    }
    let refused = client.send(Operation(2000), large).await.unwrap_err();
    assert!(matches!(refused, SendError::BodyTooLong { len: 6000, limit: 4096 }), "{refused:?}");
    let refused = client.send(Operation(2000), "no").await.unwrap_err();
    assert!(matches!(&refused, SendError::Refused(error) if error.code == 3512), "{refused:?}");
    client.close().await;
}
