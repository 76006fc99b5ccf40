//! Lists of addresses, names among them, and comets that are asked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use goim_ports::{
    Broadcast, Call, CometError, CometNode, CometPool, CometPort, KeyPush, NodeDirectory, RoomId, RoomPush,
};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::conformance::node;
use crate::grpc::{ClientConfig, GrpcComets, ServerConfig, comet_service, serve};

/// A comet that describes itself, or one of goim's own, which cannot.
struct Comet(Option<CometNode>);

impl CometPort for Comet {
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

    fn describe(&self) -> Call<Result<CometNode, CometError>> {
        Call::Ready(self.0.clone().ok_or(CometError::Invalid("unknown")))
    }
}

/// Serves a comet until dropped.
struct Served {
    address: String,
    _server_task: AbortOnDropHandle<()>,
}

impl Served {
    async fn start(comet: Option<CometNode>) -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)), comet).await
    }

    async fn at(address: SocketAddr, comet: Option<CometNode>) -> Self {
        // The port of a restarted server may be in use by an old connection for a moment.
        let until = std::time::Instant::now() + Duration::from_secs(10);
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(error) => assert!(std::time::Instant::now() < until, "{address}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let address = format!("grpc://{}", listener.local_addr().unwrap());
        let services = comet_service(Arc::new(Comet(comet)));
        let served = serve(listener, ServerConfig::default(), services, std::future::pending());
        let task = tokio::spawn(async move { served.await.unwrap() });
        Self { address, _server_task: AbortOnDropHandle::new(task) }
    }
}

async fn becomes(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = timeout(Duration::from_secs(10), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "not within 10 s: {what}");
}

fn names(nodes: &ListedNodes) -> Vec<String> {
    nodes.comets().iter().map(|node| node.server.to_string()).collect()
}

const TIMES: ListedNodesConfig =
    ListedNodesConfig { lease: Duration::from_millis(400), refresh: Duration::from_millis(50) };

#[tokio::test]
async fn names_are_resolved_and_addresses_used_as_they_are() {
    let list = [
        "grpc://10.0.0.1:3109",
        "dns://localhost:3119",
        "dns://no.such.name.invalid:1",
        "grpc://10.0.0.1:3109",
    ];
    let list = list.map(str::to_owned).to_vec();
    let addresses = Addresses::start(list, Duration::from_millis(20)).await;
    let now = addresses.now();
    assert_eq!(now[0], "grpc://10.0.0.1:3109");
    assert!(now.contains(&"grpc://127.0.0.1:3119".to_owned()), "{now:?}");
    assert_eq!(now.iter().filter(|address| address.contains("10.0.0.1")).count(), 1, "{now:?}");
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(Arc::ptr_eq(&now, &addresses.now()), "nothing has changed");
}

#[tokio::test]
async fn comets_are_listed_while_they_answer() {
    let (a, b, other) = (
        Served::start(Some(node("a"))).await,
        Served::start(Some(node("b"))).await,
        Served::start(None).await,
    );
    let nobody = "grpc://127.0.0.1:1".to_owned();
    let list =
        vec![a.address.clone(), b.address.clone(), other.address.clone(), nobody, "nonsense".to_owned()];
    let nodes = ListedNodes::start(Addresses::start(list, TIMES.refresh).await, TIMES).await;
    assert_eq!(names(&nodes), ["a", "b"]);
    let first = nodes.comets();
    let expected = CometNode {
        rpc_addrs: vec![a.address.clone()],
        latest_timestamp: first[0].latest_timestamp,
        ..node("a")
    };
    assert_eq!(first[0], expected);
    tokio::time::sleep(TIMES.refresh * 3).await;
    assert!(Arc::ptr_eq(&first, &nodes.comets()), "nothing has changed");

    let address: SocketAddr = a.address.strip_prefix("grpc://").unwrap().parse().unwrap();
    drop(a);
    becomes("the one that has gone is dropped", || names(&nodes) == ["b"]).await;
    let _again = Served::at(address, Some(node("a2"))).await;
    becomes("another has come to its address", || names(&nodes) == ["a2", "b"]).await;
}

/// A directory with a list that a test sets.
struct Fixed(Arc<Vec<CometNode>>, AtomicBool);

impl NodeDirectory for Fixed {
    fn announce(&self, _: CometNode) -> Call<Result<(), goim_ports::NodeError>> {
        Call::Ready(Ok(()))
    }

    fn withdraw(&self, _: goim_ports::ServerId) -> Call<Result<(), goim_ports::NodeError>> {
        Call::Ready(Ok(()))
    }

    fn comets(&self) -> Arc<Vec<CometNode>> {
        self.1.store(true, Ordering::Relaxed);
        Arc::clone(&self.0)
    }
}

#[tokio::test]
async fn row_080_a_job_in_a_zone_knows_the_comets_of_that_zone_only() {
    let in_zone = |server: &str, zone: &str| CometNode { zone: zone.to_owned(), ..node(server) };
    let all = Arc::new(vec![in_zone("c1", "z1"), in_zone("c2", "z2"), in_zone("c3", "")]);
    for (zone, expected) in
        [("z1", vec!["c1"]), ("z2", vec!["c2"]), ("z9", vec![]), ("", vec!["c1", "c2", "c3"])]
    {
        let nodes = Arc::new(Fixed(Arc::clone(&all), AtomicBool::new(false)));
        let comets = GrpcComets::new(nodes, zone.to_owned(), ClientConfig::default());
        let mut known: Vec<_> = comets.all().into_iter().map(|(server, _)| server.to_string()).collect();
        known.sort();
        assert_eq!(known, expected, "{zone}");
        assert_eq!(comets.get(&"c2".into()).is_some(), expected.contains(&"c2"), "{zone}");
    }
}
