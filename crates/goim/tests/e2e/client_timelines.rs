//! The timelines of the Rust client against the real server: subscriptions while connected, and
//! positions that survive the application.

use crate::harness;
use crate::harness::keeping::Keeping;
use crate::harness::{number, unique};
use goim_client::{
    Client, ClientConfig, Endpoint, Event, Events, FilePositions, Identity, PositionStore as _, SyncConfig,
};

struct Application {
    client: Client,
    events: Events,
}

impl Application {
    /// Connects and syncs these timelines, with its positions in `path`.
    async fn start(endpoint: &Endpoint, mid: u32, timelines: &[&str], path: &std::path::Path) -> Self {
        let mut config = ClientConfig::new(endpoint.clone(), Identity::new(mid.into()));
        let positions = FilePositions::open(path).await.unwrap();
        config.sync = Some(SyncConfig::new(timelines.iter().copied(), positions));
        let (client, events) = Client::connect(config).await.unwrap();
        Self { client, events }
    }

    async fn messages(&mut self) -> (String, Vec<(u64, String)>) {
        loop {
            let event = tokio::time::timeout(harness::DEADLINE, self.events.recv()).await;
            match event.expect("an event in time").expect("the client keeps running") {
                Event::Messages { timeline, messages, .. } => {
                    let body =
                        |body: Option<bytes::Bytes>| String::from_utf8(body.unwrap().to_vec()).unwrap();
                    let messages = messages.into_iter().map(|message| (message.seq, body(message.body)));
                    break (timeline, messages.collect());
                }
                Event::Connected { .. } | Event::Online(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Receives until the messages of a timeline are complete up to `last`.
    async fn expect(&mut self, timeline: &str, first: u64, last: u64) {
        let mut next = first;
        while next <= last {
            let (received, messages) = self.messages().await;
            assert_eq!(received, timeline, "{messages:?}");
            for (seq, body) in messages {
                assert_eq!((seq, body), (next, format!("{timeline} {next}")));
                next += 1;
            }
        }
        assert_eq!(next, last + 1);
    }

    async fn stop(mut self) {
        self.events.save_position().await.unwrap();
        self.client.close().await;
    }
}

/// Stores message `seq` in an inbox or a room.
fn store(server: &harness::Server, timeline: &str, seq: u64) {
    let target = match timeline.strip_prefix("mid://") {
        Some(mid) => format!("mids?mids={mid}"),
        None => format!("room?type=live&room={}", timeline.strip_prefix("live://").unwrap()),
    };
    let target = format!("/goim/push/{target}&operation=1000&delivery=stored");
    let answer = server.post(&target, format!("{timeline} {seq}")).json();
    let stored =
        answer["data"]["positions"][0]["seq"].as_u64().or(answer["data"]["position"]["seq"].as_u64());
    assert_eq!(stored, Some(seq), "{answer}");
}

#[test]
fn timelines_are_subscribed_and_unsubscribed_while_connected() {
    let server = Keeping::start();
    let folder = std::env::temp_dir().join(unique(&format!("goim-client-{}", std::process::id())));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("positions.json");
    for endpoint in [format!("tcp://{}", server.addrs.tcp), format!("ws://{}/sub", server.addrs.websocket)] {
        let endpoint: Endpoint = endpoint.parse().unwrap();
        let (mid, room) = (number(), unique("live://r"));
        let inbox = format!("mid://{mid}");
        let store = |timeline: &str, seq| tokio::task::block_in_place(|| store(&server, timeline, seq));
        harness::server::runtime().block_on(async {
            (1..=3).for_each(|seq| store(&inbox, seq));
            let mut application = Application::start(&endpoint, mid, &[], &path).await;
            application.client.subscribe_timeline(&inbox).await.unwrap();
            application.expect(&inbox, 1, 3).await;
            application.client.join_rooms([&room]).await.unwrap();
            application.client.subscribe_timeline(&room).await.unwrap();
            store(&room, 1);
            application.expect(&room, 1, 1).await;
            store(&inbox, 4);
            application.expect(&inbox, 4, 4).await;

            // The room is still joined; its notifications no longer start a sync.
            application.client.unsubscribe_timeline(&room).await.unwrap();
            store(&room, 2);
            store(&inbox, 5);
            application.expect(&inbox, 5, 5).await;
            application.client.subscribe_timeline(&room).await.unwrap();
            application.expect(&room, 2, 2).await;
            application.stop().await;

            store(&inbox, 6);
            let mut application = Application::start(&endpoint, mid, &[&inbox], &path).await;
            application.expect(&inbox, 6, 6).await;
            application.stop().await;
            let positions = FilePositions::open(&path).await.unwrap();
            let seqs = [&inbox, &room].map(|timeline| positions.load(timeline));
            for (load, seq) in seqs.into_iter().zip([6, 2]) {
                assert_eq!(load.await.unwrap().unwrap().seq, seq);
            }
        });
    }
    std::fs::remove_dir_all(folder).unwrap();
}
