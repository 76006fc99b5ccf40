//! What a session directory must do.

use std::time::Duration;

use goim_ports::{Mid, ServerId, SessionDirectory, SessionKey, SessionRef};

fn session(mid: i64, key: &str, server: &str) -> SessionRef {
    SessionRef { mid: Mid(mid), key: key.into(), server: server.into() }
}

async fn servers<D: SessionDirectory>(directory: &D, keys: &[&str]) -> Vec<Option<String>> {
    let keys: Vec<SessionKey> = keys.iter().map(|key| SessionKey::from(*key)).collect();
    let servers = directory.servers_of(&keys).await.unwrap();
    servers.iter().map(|server| server.as_ref().map(ServerId::to_string)).collect()
}

/// `key@server` of all sessions of these members, sorted.
async fn members<D: SessionDirectory>(directory: &D, mids: &[i64]) -> Vec<String> {
    let found = directory.sessions_of(mids.iter().copied().map(Mid).collect()).await.unwrap();
    let mut found: Vec<_> = found.iter().map(|record| format!("{}@{}", record.key, record.server)).collect();
    found.sort();
    found
}

fn at(server: &str) -> Option<String> {
    Some(server.to_owned())
}

/// Entering, finding, replacing and removing sessions; who may remove what.
///
/// # Panics
/// When the adapter does something else than the port promises.
pub async fn sessions<D: SessionDirectory>(make: impl AsyncFn() -> D) {
    by_key(make().await).await;
    by_member(make().await).await;
    replaced(make().await).await;
    removed_by_the_owner_only(make().await).await;
    touched(make().await).await;
    anonymous(make().await).await;
    any_text(make().await).await;
    a_member_with_many_sessions(make().await).await;
}

async fn by_key<D: SessionDirectory>(directory: D) {
    assert!(servers(&directory, &[]).await.is_empty());
    directory.add(session(1, "a", "s1")).await.unwrap();
    directory.add(session(2, "b", "s2")).await.unwrap();
    let asked = ["b", "missing", "a", "b"];
    let expected = [at("s2"), None, at("s1"), at("s2")];
    assert_eq!(servers(&directory, &asked).await, expected, "one answer for each key, in order");
}

async fn by_member<D: SessionDirectory>(directory: D) {
    directory.add(session(1, "a", "s1")).await.unwrap();
    directory.add(session(1, "b", "s2")).await.unwrap();
    directory.add(session(2, "c", "s1")).await.unwrap();
    assert_eq!(members(&directory, &[1]).await, ["a@s1", "b@s2"]);
    assert_eq!(members(&directory, &[2, 1, 3]).await, ["a@s1", "b@s2", "c@s1"]);
    assert_eq!(members(&directory, &[1, 1]).await, ["a@s1", "b@s2"], "a member named twice counts once");
    assert!(members(&directory, &[]).await.is_empty());
    assert!(directory.remove(session(1, "a", "s1")).await.unwrap());
    assert_eq!(members(&directory, &[1]).await, ["b@s2"]);
}

async fn replaced<D: SessionDirectory>(directory: D) {
    directory.add(session(1, "k", "s1")).await.unwrap();
    directory.add(session(1, "k", "s1")).await.unwrap();
    assert_eq!(members(&directory, &[1]).await, ["k@s1"], "entering twice is entering once");
    directory.add(session(1, "k", "s2")).await.unwrap();
    assert_eq!(servers(&directory, &["k"]).await, [at("s2")], "the later comet has it");
    assert_eq!(members(&directory, &[1]).await, ["k@s2"]);
    directory.add(session(2, "k", "s3")).await.unwrap();
    assert_eq!(members(&directory, &[2]).await, ["k@s3"]);
    assert!(members(&directory, &[1]).await.is_empty(), "the key belongs to another member now");
}

async fn removed_by_the_owner_only<D: SessionDirectory>(directory: D) {
    assert!(!directory.remove(session(1, "k", "s1")).await.unwrap(), "nothing to remove");
    directory.add(session(1, "k", "s1")).await.unwrap();
    directory.add(session(1, "k", "s2")).await.unwrap();
    assert!(!directory.remove(session(1, "k", "s1")).await.unwrap(), "a late removal by the old comet");
    assert_eq!(servers(&directory, &["k"]).await, [at("s2")]);
    assert_eq!(members(&directory, &[1]).await, ["k@s2"]);
    assert!(directory.remove(session(1, "k", "s2")).await.unwrap());
    assert!(!directory.remove(session(1, "k", "s2")).await.unwrap(), "removed already");
    assert_eq!(servers(&directory, &["k"]).await, [None]);
    assert!(members(&directory, &[1]).await.is_empty());
}

async fn touched<D: SessionDirectory>(directory: D) {
    directory.touch(session(1, "k", "s1")).await.unwrap();
    assert_eq!(servers(&directory, &["k"]).await, [at("s1")], "a missing record is added again");
    assert_eq!(members(&directory, &[1]).await, ["k@s1"]);
    directory.add(session(1, "k", "s2")).await.unwrap();
    directory.touch(session(1, "k", "s1")).await.unwrap();
    assert_eq!(servers(&directory, &["k"]).await, [at("s2")], "a heartbeat does not take a session back");
}

async fn anonymous<D: SessionDirectory>(directory: D) {
    for (mid, key) in [(0, "zero"), (-3, "negative")] {
        directory.add(session(mid, key, "s1")).await.unwrap();
        assert_eq!(servers(&directory, &[key]).await, [at("s1")], "reached by key");
        assert!(members(&directory, &[mid]).await.is_empty(), "{mid} is anonymous");
        assert!(directory.remove(session(mid, key, "s1")).await.unwrap());
        assert_eq!(servers(&directory, &[key]).await, [None]);
    }
}

async fn any_text<D: SessionDirectory>(directory: D) {
    let long = "x".repeat(2000);
    for (mid, key) in [(1, "ключ /?&%"), (i64::MAX, " "), (3, "a\0b\r\n"), (4, long.as_str())] {
        directory.add(session(mid, key, "хост")).await.unwrap();
        assert_eq!(servers(&directory, &[key]).await, [at("хост")], "{key:?}");
        assert_eq!(members(&directory, &[mid]).await, [format!("{key}@хост")]);
    }
}

async fn a_member_with_many_sessions<D: SessionDirectory>(directory: D) {
    let keys: Vec<_> = (0..300).map(|n| format!("k{n:03}")).collect();
    for key in &keys {
        directory.add(session(7, key, "s")).await.unwrap();
    }
    let expected: Vec<_> = keys.iter().map(|key| format!("{key}@s")).collect();
    assert_eq!(members(&directory, &[7]).await, expected);
    for (n, key) in keys.iter().enumerate() {
        assert!(directory.remove(session(7, key, "s")).await.unwrap());
        assert_eq!(members(&directory, &[7]).await.len(), keys.len() - n - 1);
    }
}

/// Records that are not touched expire after `lifetime`. `pass` lets time pass for the adapter.
///
/// # Panics
/// When the adapter does something else than the port promises.
pub async fn sessions_expire<D: SessionDirectory>(
    make: impl AsyncFn() -> D,
    lifetime: Duration,
    pass: impl AsyncFn(Duration),
) {
    let directory = make().await;
    directory.add(session(1, "left", "s1")).await.unwrap();
    directory.add(session(2, "kept", "s1")).await.unwrap();
    for _ in 0..3 {
        pass(lifetime * 3 / 4).await;
        directory.touch(session(2, "kept", "s1")).await.unwrap();
    }
    assert_eq!(servers(&directory, &["left", "kept"]).await, [None, at("s1")]);
    assert!(members(&directory, &[1]).await.is_empty());
    assert_eq!(members(&directory, &[2]).await, ["kept@s1"]);
}
