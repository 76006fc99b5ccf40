//! What the directories write to Redis: goim's records and commands, and the sweep of a dead comet.

use super::*;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn row_077_records_in_redis_are_goims() {
    let own = TestRedis::start("single");
    let sessions = RedisSessions::new(own.store().await);
    sessions.add(session(5, "k", "s")).await.unwrap();
    sessions.add(session(0, "nobody", "s")).await.unwrap();
    let mut redis = own.masters().remove(0);
    let member: HashMap<String, String> = redis.hgetall("mid_5").unwrap();
    assert_eq!(member, HashMap::from([("k".to_owned(), "s".to_owned())]));
    for (key, value) in [("key_k", "s"), ("key_nobody", "s")] {
        assert_eq!(redis.get::<_, String>(key).unwrap(), value);
    }
    for key in ["mid_5", "key_k", "key_nobody"] {
        let ttl: i64 = redis.ttl(key).unwrap();
        assert!((1795..=1800).contains(&ttl), "{key}: {ttl}");
    }
    assert!(!redis.exists::<_, bool>("mid_0").unwrap(), "nobody in particular has no sessions");
    assert!(sessions.remove(session(5, "k", "s")).await.unwrap());
    let left: Vec<String> = redis.keys("*k*").unwrap();
    let left: Vec<_> =
        left.iter().filter(|key| key.starts_with("key_k") || key.starts_with("mid_5")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Compares the commands that goim's processes sent with those of this adapter.
#[test]
#[ignore = "needs Redis: scripts/test.sh"]
fn the_commands_of_connect_and_heartbeat_are_goims() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/goim-v2/redis.json");
    let captured: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let own = TestRedis::start("single");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut compared = 0;
    for operation in captured["operations"].as_array().unwrap() {
        let name = operation["operation"].as_str().unwrap();
        let commands: Vec<Vec<String>> = serde_json::from_value(operation["commands"].clone()).unwrap();
        let sent = match name {
            "Connect, mid > 0" => {
                let mid = commands[0][1].strip_prefix("mid_").unwrap().parse().unwrap();
                let session = session(mid, &commands[0][2], &commands[0][3]);
                runtime.block_on(watched(&own, async |sessions| sessions.add(session.clone()).await.unwrap()))
            }
            "Connect, no mid" => {
                let key = commands[0][1].strip_prefix("key_").unwrap();
                let session = session(0, key, &commands[0][2]);
                runtime.block_on(watched(&own, async |sessions| sessions.add(session.clone()).await.unwrap()))
            }
            _ => continue,
        };
        assert_eq!(sent[..commands.len()], commands, "{name}: goim's come first, as goim sends them");
        assert!(sent[commands.len()..].iter().all(|command| command[1].starts_with("goim:")), "{sent:?}");
        compared += 1;
    }
    assert!(compared >= 5, "{compared}");
}

/// Returns the commands that Redis executes during `act`.
async fn watched(own: &TestRedis, act: impl AsyncFn(&RedisSessions)) -> Vec<Vec<String>> {
    use std::io::{BufRead, Write};
    let sessions = RedisSessions::new(own.empty().await);
    let address = own.urls[0].strip_prefix("redis://").unwrap();
    let mut monitor = std::net::TcpStream::connect(address).unwrap();
    monitor.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    monitor.write_all(b"MONITOR\r\n").unwrap();
    let mut lines = std::io::BufReader::new(monitor).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "+OK");
    act(&sessions).await;
    let mut last = own.masters().remove(0);
    let _: String = redis::cmd("ECHO").arg("that was all").query(&mut last).unwrap();
    let mut commands = Vec::new();
    for line in lines {
        let line = line.unwrap();
        let words: Vec<String> = line.split('"').skip(1).step_by(2).map(str::to_owned).collect();
        match words.first().map(String::as_str) {
            Some("ECHO") => break,
            // Connection setup and health checks.
            Some("CLIENT" | "HELLO" | "PING" | "FLUSHALL" | "INFO") | None => {}
            Some("SET") if words[1].starts_with("goim:canary") => {}
            Some(_) => commands.push(words),
        }
    }
    commands
}

#[test]
fn row_073_a_report_is_goims() {
    let rooms = HashMap::from([("live://1000".into(), 3)]);
    let records = rooms::records(&"comet01".into(), &rooms, 1_795_447_219);
    let text = r#"{"server":"comet01","room_count":{"live://1000":3},"updated":1795447219}"#;
    assert_eq!(records, [(43, text.to_owned())]);
    let odd = HashMap::from([("a://<&>".into(), 1)]);
    let text = rooms::records(&"s".into(), &odd, 1).remove(0).1;
    assert!(text.contains(r"a://\u003c\u0026\u003e"), "as Go writes it: {text}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn rows_073_to_075_reports_in_redis() {
    let own = TestRedis::start("single");
    let servers: Servers = Arc::new(|| vec!["comet01".into(), "old".into(), "go".into()]);
    let rooms = RedisRooms::new(own.store().await, servers, Duration::ZERO);
    let mut redis = own.masters().remove(0);
    let counts = |count| -> RoomCounts { Arc::new(HashMap::from([("live://1000".into(), count)])) };
    rooms.report("comet01".into(), counts(3)).await.unwrap();
    let record: String = redis.hget("ol_comet01", "43").unwrap();
    assert!(
        record.starts_with(r#"{"server":"comet01","room_count":{"live://1000":3},"updated":"#),
        "{record}"
    );
    assert!((1795..=1800).contains(&redis.ttl::<_, i64>("ol_comet01").unwrap()));

    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let of_age = |server: &str, age: u64| {
        format!(r#"{{"server":"{server}","room_count":{{"live://1000":40}},"updated":{}}}"#, now - age)
    };
    let _: () = redis.hset("ol_go", "43", of_age("go", 10)).unwrap();
    let _: () = redis.hset("ol_go", "7", "not json").unwrap();
    let _: () = redis.hset("ol_old", "43", of_age("old", 302)).unwrap();
    assert_eq!(
        rooms.totals().await.unwrap().get("live://1000"),
        Some(&43),
        "row 101: with a Go comet's report"
    );
    assert!(!redis.exists::<_, bool>("ol_old").unwrap(), "row 75: too old, deleted");

    rooms.report("comet01".into(), RoomCounts::default()).await.unwrap();
    assert_eq!(rooms.totals().await.unwrap().get("live://1000"), Some(&40), "row 74: no ghosts");
    assert!(!redis.exists::<_, bool>("ol_comet01").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_key_belongs_to_the_last_member_on_a_comet() {
    let own = TestRedis::start("single");
    let sessions = RedisSessions::new(own.store().await);
    sessions.add(session(1, "k", "s")).await.unwrap();
    sessions.add(session(2, "k", "s")).await.unwrap();
    assert!(sessions.sessions_of(vec![Mid(1)]).await.unwrap().is_empty());
    assert_eq!(sessions.sessions_of(vec![Mid(2)]).await.unwrap().len(), 1);
    // A Go logic does not record the member of a key: goim's records are trusted.
    let mut redis = own.masters().remove(0);
    let _: () = redis.hset("mid_7", "go", "s").unwrap();
    let _: () = redis.set("key_go", "s").unwrap();
    assert_eq!(sessions.sessions_of(vec![Mid(7)]).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_sweep_removes_all_sessions_of_a_dead_comet_and_no_others() {
    for kind in ["single", "cluster"] {
        let own = TestRedis::start(kind);
        let sessions = RedisSessions::new(own.store().await);
        const COUNT: i64 = 1500;
        for n in 0..COUNT {
            sessions.add(session(n % 100, &format!("k{n}"), "dead")).await.unwrap();
        }
        // Some have reconnected to another comet.
        for n in 0..10 {
            sessions.add(session(n % 100, &format!("k{n}"), "alive")).await.unwrap();
        }
        let swept = sessions.sweep(&"dead".into(), || true).await.unwrap();
        assert_eq!(swept, COUNT as usize);
        for n in 0..COUNT {
            let expected = (n < 10).then(|| "alive".to_owned());
            assert_eq!(server_of(&sessions, &format!("k{n}")).await, expected, "k{n}");
        }
        let left: usize =
            own.masters().iter_mut().map(|master| redis::cmd("DBSIZE").query::<usize>(master).unwrap()).sum();
        let what = "mids 1 to 9, ten keys, the sessions of the one that lives, the note of the sweep";
        assert_eq!(left, 9 + 10 + 1 + 1, "{what}");

        sessions.add(session(1, "again", "dead")).await.unwrap();
        assert_eq!(sessions.sweep(&"dead".into(), || false).await.unwrap(), 0, "it is back");
        assert_eq!(server_of(&sessions, "again").await, Some("dead".to_owned()));
    }
}
