//! Failures of Redis: restarts, hangs, failovers, lost data, refused writes.

use super::*;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn row_110_heartbeats_refill_an_emptied_redis() {
    let own = TestRedis::start("single");
    let sessions = RedisSessions::new(own.store().await);
    sessions.add(session(1, "k", "s")).await.unwrap();
    own.script(&["stop"], &[]);
    let asked = Instant::now();
    let error = sessions.add(session(1, "other", "s")).await.unwrap_err();
    let DirectoryError::Unavailable(text) = error;
    assert!(text.contains(own.urls[0].strip_prefix("redis://").unwrap()), "{text}");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    let back = own.script(&["start"], &["single"]);
    assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
    let until = Instant::now() + Duration::from_secs(10);
    while let Err(error) = sessions.touch(session(1, "k", "s")).await {
        assert!(Instant::now() < until, "{error}");
    }
    assert_eq!(server_of(&sessions, "k").await, Some("s".to_owned()));
    assert_eq!(sessions.sessions_of(vec![Mid(1)]).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_hanging_redis_is_an_error_within_the_deadline() {
    let own = TestRedis::start("single");
    let config = RedisConfig { deadline: Duration::from_millis(300), commands_max: 16, ..own.config() };
    let sessions = RedisSessions::new(RedisStore::connect(config).await.unwrap());
    own.signal(&own.urls[0], "STOP");
    let asked = Instant::now();
    let calls: Vec<_> = (0..200)
        .map(|n| tokio::spawn(sessions.add(session(1, &format!("k{n}"), "s")).into_future()))
        .collect();
    for call in calls {
        let DirectoryError::Unavailable(text) = call.await.unwrap().unwrap_err();
        assert!(text.contains("within 300ms") || text.contains("timed out"), "{text}");
    }
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    own.signal(&own.urls[0], "CONT");
    let until = Instant::now() + Duration::from_secs(10);
    while let Err(error) = sessions.add(session(1, "after", "s")).await {
        assert!(Instant::now() < until, "{error}");
    }
    assert_eq!(server_of(&sessions, "after").await, Some("s".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn sentinels_lead_to_the_new_master() {
    let own = TestRedis::start("sentinel");
    let config = RedisConfig { deadline: Duration::from_millis(500), ..own.config() };
    let sessions = RedisSessions::new(RedisStore::connect(config).await.unwrap());
    sessions.add(session(1, "k", "s")).await.unwrap();
    let old = own.sentinel_master();
    own.signal(&old, "KILL");
    let until = Instant::now() + Duration::from_secs(30);
    while let Err(error) = sessions.touch(session(1, "k", "s")).await {
        assert!(Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_ne!(own.sentinel_master(), old);
    assert_eq!(server_of(&sessions, "k").await, Some("s".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_loss_of_all_data_makes_no_session_disappear() {
    let own = TestRedis::start("single");
    let store = own.store().await;
    let lease = Duration::from_secs(3);
    let config = RedisNodesConfig { lease, refresh: Duration::from_millis(20) };
    let nodes = RedisNodes::start(store.clone(), config, None).await.unwrap();
    let mut losses = nodes.losses();
    let sessions = RedisSessions::new(store);
    for server in ["a", "b", "gone"] {
        nodes.announce(conformance::node(server)).await.unwrap();
    }
    nodes.withdraw("gone".into()).await.unwrap();
    sessions.add(session(1, "k", "a")).await.unwrap();
    assert_eq!(server_of(&sessions, "nobody").await, None);
    assert!(!losses.has_changed().unwrap());

    let _: () = redis::cmd("FLUSHALL").query(&mut own.masters()[0]).unwrap();
    let lost = |error: DirectoryError| {
        let DirectoryError::Unavailable(text) = error;
        assert!(text.contains("has lost its sessions"), "{text}");
    };
    lost(sessions.servers_of(&["k".into()]).await.unwrap_err());
    lost(sessions.sessions_of(vec![Mid(1)]).await.unwrap_err());
    losses.changed().await.unwrap();
    // A session that is registered again is found; absence is not trusted yet.
    sessions.touch(session(1, "k", "a")).await.unwrap();
    assert_eq!(server_of(&sessions, "k").await, Some("a".to_owned()));
    lost(sessions.servers_of(&["k".into(), "nobody".into()]).await.unwrap_err());
    // One comet announces itself; the other stays listed for a lease.
    nodes.announce(conformance::node("a")).await.unwrap();
    let names = || -> Vec<String> {
        let mut names: Vec<_> = nodes.comets().iter().map(|node| node.server.to_string()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["a", "b"]);
    let until = Instant::now() + lease * 2;
    while names() != ["a"] {
        assert!(Instant::now() < until, "{:?}", names());
        nodes.announce(conformance::node("a")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(*losses.borrow() >= 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_loss_and_a_sweep_change_the_generation_of_the_comets_concerned() {
    let own = TestRedis::start("single");
    let sessions = RedisSessions::new(own.store().await);
    let generation = async |server: &str| sessions.generation(server.into()).await.unwrap();
    let before = [generation("a").await, generation("b").await];
    sessions.add(session(1, "k", "a")).await.unwrap();
    assert_eq!([generation("a").await, generation("b").await], before);
    assert_eq!(sessions.sweep(&"a".into(), || true).await.unwrap(), 1);
    let swept = generation("a").await;
    assert_ne!(swept, before[0]);
    assert!(before[0].swept_at().is_none() && swept.swept_at().is_some(), "a comet that is alive finds out");
    // A sweep without sessions is not recorded.
    assert_eq!(generation("b").await, before[1], "its sessions were left alone");
    assert_eq!(sessions.sweep(&"b".into(), || true).await.unwrap(), 0);
    assert_eq!(generation("b").await.swept_at(), None);
    let b = generation("b").await;
    let _: () = redis::cmd("FLUSHALL").query(&mut own.masters()[0]).unwrap();
    let lost = generation("a").await;
    assert_ne!(lost.mark(), swept.mark());
    assert_eq!(lost.swept_at(), None, "a memory that was lost is no sweep");
    assert_ne!(generation("b").await, b);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn nothing_is_swept_when_the_sweep_cannot_be_recorded() {
    let own = TestRedis::start("single");
    let sessions = RedisSessions::new(own.store().await);
    sessions.add(session(1, "k", "a")).await.unwrap();
    let before = sessions.generation("a".into()).await.unwrap();
    // Deletes would succeed, writes do not.
    let set = |name: &str, value: &str| {
        let mut command = redis::cmd("CONFIG");
        let _: () = command.arg("SET").arg(name).arg(value).query(&mut own.masters()[0]).unwrap();
    };
    set("maxmemory", "1");
    assert!(sessions.sweep(&"a".into(), || true).await.is_err());
    set("maxmemory", "0");
    let found = sessions.servers_of(&["k".into()]).await.unwrap();
    assert_eq!(found, [Some("a".into())]);
    assert_eq!(sessions.generation("a".into()).await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_late_announcement_counts_as_a_loss() {
    let own = TestRedis::start("single");
    let mut config = own.config();
    config.deadline = Duration::from_millis(100);
    let store = RedisStore::connect(config).await.unwrap();
    let lease = Duration::from_millis(500);
    let nodes_config = RedisNodesConfig { lease, refresh: Duration::from_secs(60) };
    let nodes = RedisNodes::start(store, nodes_config, None).await.unwrap();
    let losses = nodes.losses();
    nodes.announce(conformance::node("a")).await.unwrap();
    own.signal(&own.urls[0], "STOP");
    // The announcement is in Redis's socket and will run after the lease has expired, restoring the
    // record.
    nodes.announce(conformance::node("a")).await.unwrap_err();
    tokio::time::sleep(lease).await;
    own.signal(&own.urls[0], "CONT");
    assert!(!losses.has_changed().unwrap());
    let until = Instant::now() + Duration::from_secs(10);
    while nodes.announce(conformance::node("a")).await.is_err() {
        assert!(Instant::now() < until);
    }
    assert!(losses.has_changed().unwrap(), "its sessions may have been swept meanwhile");
}

/// The commands that make a master refuse writes and accept them again, and its error code
/// meanwhile.
const REFUSALS: [(&str, &[&str], &[&str]); 3] = [
    ("OOM", &["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"]),
    (
        "NOREPLICAS",
        &["CONFIG", "SET", "min-replicas-to-write", "3"],
        &["CONFIG", "SET", "min-replicas-to-write", "0"],
    ),
    ("READONLY", &["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]),
];

fn carry_out(words: &[&str], master: &mut redis::Connection) {
    let mut command = redis::cmd(words[0]);
    words[1..].iter().for_each(|word| {
        command.arg(*word);
    });
    let _: () = command.query(master).unwrap();
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn names(nodes: &RedisNodes) -> Vec<String> {
    let mut names: Vec<_> = nodes.comets().iter().map(|node| node.server.to_string()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn absence_is_not_trusted_while_writes_are_refused() {
    let settling = Duration::from_millis(600);
    for (kind, refusals) in [("single", &REFUSALS[..]), ("sentinel", &REFUSALS[..2])] {
        let own = TestRedis::start(kind);
        for (code, refuse, take) in refusals {
            let what = format!("{kind}, {code}");
            let times = RedisConfig {
                settling,
                recovery_grace: settling,
                check_interval: Duration::from_millis(20),
                ..own.config()
            };
            let store = RedisStore::connect(times).await.unwrap();
            let lease = Duration::from_millis(400);
            let config = RedisNodesConfig { lease, refresh: Duration::from_millis(20) };
            let answers: CometProbe =
                Arc::new(|node| goim_ports::Call::Ready(node.server.as_str() == "alive"));
            let nodes = RedisNodes::start(store.clone(), config, Some(answers.clone())).await.unwrap();
            for server in ["alive", "dead"] {
                nodes.announce(conformance::node(server)).await.unwrap();
            }
            let sessions = RedisSessions::new(store.clone());
            sessions.add(session(1, "k", "alive")).await.unwrap();
            assert_eq!(server_of(&sessions, "nobody").await, None);
            assert!(sessions.is_trusted() && store.fault().is_none());

            carry_out(refuse, &mut own.masters()[0]);
            until("it is known", async || store.fault().is_some()).await;
            let fault = store.fault().unwrap();
            let text = fault.to_string();
            assert!(matches!(fault, RedisFault::RefusesWrites(_)) && text.contains(code), "{what}: {text}");
            assert!(store.stats().refuses_writes && store.stats().refused > 0);
            sessions.add(session(2, "new", "alive")).await.unwrap_err();
            assert_eq!(server_of(&sessions, "k").await.as_deref(), Some("alive"), "{what}");
            assert_eq!(sessions.sessions_of(vec![Mid(1)]).await.unwrap().len(), 1, "{what}");
            let doubted = |error: DirectoryError| {
                let DirectoryError::Unavailable(text) = error;
                assert!(text.contains(code), "{what}: {text}");
            };
            doubted(sessions.servers_of(&["nobody".into()]).await.unwrap_err());
            doubted(sessions.servers_of(&["k".into(), "nobody".into()]).await.unwrap_err());
            doubted(sessions.sessions_of(vec![Mid(7)]).await.unwrap_err());
            doubted(sessions.sessions_of(vec![Mid(1), Mid(7)]).await.unwrap_err());
            assert!(!sessions.is_trusted());

            // Leases cannot be renewed: a comet that responds stays listed, one that was silent for
            // a lease is removed.
            until("only the one that answers is listed", async || names(&nodes) == ["alive"]).await;
            tokio::time::sleep(lease * 2).await;
            assert_eq!(names(&nodes), ["alive"], "{what}");
            assert_eq!(store.stats().without_lease, 1);
            // The same holds for a process that starts now.
            let other = RedisNodes::start(store.clone(), config, Some(answers)).await.unwrap();
            assert!(names(&other).contains(&"alive".to_owned()), "{what}");
            drop(other);

            carry_out(take, &mut own.masters()[0]);
            until("it is over", async || store.fault().is_none()).await;
            sessions.servers_of(&["nobody".into()]).await.unwrap_err();
            assert!(!sessions.is_trusted(), "comets must have had time to say what they have");
            nodes.announce(conformance::node("alive")).await.unwrap();
            until("absence is believed again", async || {
                sessions.servers_of(&["nobody".into()]).await.is_ok()
            })
            .await;
            until("a member is found", async || {
                sessions.sessions_of(vec![Mid(1)]).await.is_ok_and(|found| found.len() == 1)
            })
            .await;
            assert!(sessions.is_trusted());
            nodes.withdraw("alive".into()).await.unwrap();
            assert!(names(&nodes).is_empty(), "{what}: who says farewell goes at once");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn one_master_of_a_cluster_that_refuses_writes_is_enough() {
    let own = TestRedis::start("cluster");
    let config = RedisConfig { check_interval: Duration::from_millis(20), ..own.config() };
    let store = RedisStore::connect(config).await.unwrap();
    let sessions = RedisSessions::new(store.clone());
    for nth in 0..own.masters().len() {
        let count = store.stats().refused;
        carry_out(REFUSALS[0].1, &mut own.masters()[nth]);
        // Every round detects it, whatever the other masters answer.
        until("several rounds have seen it", async || store.stats().refused > count + 5).await;
        assert!(store.stats().refuses_writes, "master {nth}");
        sessions.servers_of(&["nobody".into()]).await.unwrap_err();
        carry_out(REFUSALS[0].2, &mut own.masters()[nth]);
        until("it is over", async || store.fault().is_none()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_restart_from_an_old_snapshot_is_a_loss() {
    let own = TestRedis::start("single");
    let config = RedisConfig { check_interval: Duration::from_millis(20), ..own.config() };
    let store = RedisStore::connect(config).await.unwrap();
    let sessions = RedisSessions::new(store.clone());
    let mut losses = store.losses();
    // The snapshot contains the epoch.
    sessions.generation("s".into()).await.unwrap();
    sessions.add(session(1, "old", "s")).await.unwrap();
    let _: () = redis::cmd("SAVE").query(&mut own.masters()[0]).unwrap();
    sessions.add(session(1, "new", "s")).await.unwrap();
    until("the server's run id is known", async || store.knows_servers()).await;
    own.signal(&own.urls[0], "KILL");
    let back = own.script(&["start"], &["single"]);
    assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
    tokio::time::timeout(Duration::from_secs(20), losses.changed()).await.unwrap().unwrap();
    assert_eq!(server_of(&sessions, "old").await.as_deref(), Some("s"));
    sessions.servers_of(&["new".into()]).await.unwrap_err();
    sessions.sessions_of(vec![Mid(1)]).await.unwrap_err();
    assert!(store.stats().losses >= 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn reports_that_cannot_be_renewed_do_not_expire() {
    let own = TestRedis::start("single");
    let settling = Duration::from_millis(300);
    let config = RedisConfig { settling, check_interval: Duration::from_millis(20), ..own.config() };
    let store = RedisStore::connect(config).await.unwrap();
    let servers: Servers = Arc::new(|| vec!["a".into()]);
    let rooms = RedisRooms::new(store.clone(), servers, Duration::ZERO);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let old = format!(r#"{{"server":"a","room_count":{{"live://1":7}},"updated":{}}}"#, now - 400);
    let mut master = own.masters().remove(0);
    let _: () = master.hset("ol_a", "1", old).unwrap();
    carry_out(REFUSALS[0].1, &mut master);
    until("it is known", async || store.fault().is_some()).await;
    assert_eq!(rooms.totals().await.unwrap().get("live://1"), Some(&7));
    carry_out(REFUSALS[0].2, &mut master);
    until("nobody has renewed it", async || rooms.totals().await.unwrap().is_empty()).await;
}
