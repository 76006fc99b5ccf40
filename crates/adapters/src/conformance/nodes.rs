//! What a node directory must do.

use std::time::Duration;

use goim_ports::{CometNode, NodeDirectory};

/// A comet as it might announce itself.
#[must_use]
pub fn node(server: &str) -> CometNode {
    CometNode {
        server: server.into(),
        region: "sh".to_owned(),
        zone: "sh001".to_owned(),
        env: "dev".to_owned(),
        rpc_addrs: vec!["grpc://127.0.0.1:3109".to_owned()],
        public_addrs: vec!["a.example".to_owned(), "b.example".to_owned()],
        weight: 10,
        offline: false,
        connections: 0,
        addresses: 0,
        latest_timestamp: 0,
    }
}

fn names<D: NodeDirectory>(directory: &D) -> Vec<String> {
    let mut names: Vec<_> = directory.comets().iter().map(|node| node.server.to_string()).collect();
    names.sort();
    names
}

fn timestamp<D: NodeDirectory>(directory: &D) -> i64 {
    directory.comets()[0].latest_timestamp
}

/// Announcing, changing and leaving.
///
/// # Panics
/// When the adapter does something else than the port promises.
pub async fn nodes<D: NodeDirectory>(make: impl AsyncFn() -> D) {
    let directory = make().await;
    assert!(names(&directory).is_empty());
    directory.announce(node("a")).await.unwrap();
    let first = directory.comets()[0].clone();
    assert!(first.latest_timestamp > 0);
    assert_eq!(first, CometNode { latest_timestamp: first.latest_timestamp, ..node("a") });

    directory.announce(node("a")).await.unwrap();
    assert_eq!(timestamp(&directory), first.latest_timestamp, "nothing has changed");
    let mut last = first.latest_timestamp;
    let changes: [fn(&mut CometNode); 3] =
        [|node| node.connections = 5, |node| node.offline = true, |node| node.public_addrs.clear()];
    let mut changed = node("a");
    for change in changes {
        change(&mut changed);
        directory.announce(changed.clone()).await.unwrap();
        assert!(timestamp(&directory) > last, "a change raises the timestamp");
        last = timestamp(&directory);
        assert_eq!(directory.comets()[0], CometNode { latest_timestamp: last, ..changed.clone() });
    }

    directory.announce(node("b")).await.unwrap();
    assert_eq!(names(&directory), ["a", "b"]);
    directory.withdraw("a".into()).await.unwrap();
    assert_eq!(names(&directory), ["b"]);
    directory.withdraw("a".into()).await.unwrap();
    directory.withdraw("never seen".into()).await.unwrap();
    assert_eq!(names(&directory), ["b"], "leaving twice is leaving once");
    directory.announce(node("a")).await.unwrap();
    assert_eq!(names(&directory), ["a", "b"]);
}

/// A comet that is silent for longer than `lease` is dropped. `pass` lets time pass for the
/// adapter.
///
/// # Panics
/// When the adapter does something else than the port promises.
pub async fn nodes_expire<D: NodeDirectory, P: Future<Output = ()>>(
    make: impl AsyncFn() -> D,
    lease: Duration,
    pass: impl Fn(Duration) -> P,
) {
    let directory = make().await;
    directory.announce(node("dead")).await.unwrap();
    directory.announce(node("alive")).await.unwrap();
    pass(lease * 2 / 3).await;
    directory.announce(node("alive")).await.unwrap();
    assert_eq!(names(&directory), ["alive", "dead"]);
    pass(lease * 2 / 3).await;
    assert_eq!(names(&directory), ["alive"]);
    pass(lease * 2 / 3).await;
    assert!(names(&directory).is_empty());
    directory.announce(node("dead")).await.unwrap();
    assert_eq!(names(&directory), ["dead"], "it may return");
}
