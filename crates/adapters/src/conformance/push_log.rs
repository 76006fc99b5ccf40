//! What a push log must do.

use std::collections::HashMap;

use bytes::Bytes;
use goim_ports::{
    AcceptedAt, AppendError, Appended, Call, LogEntry, Operation, Payload, PushLog, PushLogReader,
    PushRecord, PushTarget, RoomId,
};

/// Creates a record for one session, identified by its body.
#[must_use]
pub fn record_for_key(key: &str, body: impl Into<Bytes>) -> PushRecord {
    let target = PushTarget::Keys { server: "s1".into(), keys: vec![key.into()] };
    PushRecord {
        target,
        operation: Operation(1000),
        payload: Payload::plain(body.into()),
        accepted_at: AcceptedAt(1_700_000_000_000_000),
    }
}

/// Creates a record for a room, identified by its body.
#[must_use]
pub fn record_for_room(room: &str, body: impl Into<Bytes>) -> PushRecord {
    PushRecord { target: PushTarget::Room(RoomId::from(room)), ..record_for_key("", body) }
}

/// Reads until there are `count` records.
async fn read<R: PushLogReader>(reader: &mut R, count: usize) -> Vec<LogEntry> {
    let mut entries = Vec::new();
    while entries.len() < count {
        let more = reader.read().await.unwrap().expect("the log is open");
        assert!(!more.is_empty(), "a read gives at least one record");
        entries.extend(more);
    }
    entries
}

fn bodies(entries: &[LogEntry]) -> Vec<String> {
    entries
        .iter()
        .map(|entry| String::from_utf8_lossy(entry.record.payload.primary_bytes()).into_owned())
        .collect()
}

/// Every accepted record is read once and in order; a record that is too large is refused. The log
/// must have room for 100 records. The time of acceptance needs millisecond precision only.
///
/// # Panics
/// When the adapter does something else than the port promises.
pub async fn push_log<L: PushLog + ?Sized, R: PushLogReader>(make: impl AsyncFn() -> (std::sync::Arc<L>, R)) {
    let (log, mut reader) = make().await;
    all_fields_are_stored(&*log, &mut reader).await;
    order_per_partition_key(&*log, &mut reader).await;
    a_dropped_read_loses_nothing(&*log, &mut reader).await;
    too_large_is_refused(&*log, &mut reader).await;
    many_in_one_go(&*log, &mut reader).await;
    many_in_one_go_end_at_the_first_that_is_too_large(&*log, &mut reader).await;
    let (log, reader) = make().await;
    concurrent_appends_all_arrive(log, reader).await;
}

async fn all_fields_are_stored<L: PushLog + ?Sized, R: PushLogReader>(log: &L, reader: &mut R) {
    let keys = vec!["k1".into(), "ключ".into(), "k1".into()];
    let all_bytes: Vec<u8> = (0..=255).collect();
    let targets = [
        PushTarget::Keys { server: "comet01".into(), keys },
        PushTarget::Room("直播://房间一".into()),
        PushTarget::All { speed: None },
        PushTarget::All { speed: std::num::NonZeroU32::new(64) },
    ];
    let mut sent = Vec::new();
    for (target, operation) in targets.into_iter().zip([1000, -5, 2, i32::MAX]) {
        let body = Bytes::from(all_bytes.clone());
        sent.push(PushRecord {
            target,
            operation: Operation(operation),
            payload: Payload::plain(body),
            accepted_at: AcceptedAt(1_700_000_123_456_000),
        });
    }
    sent.push(record_for_key("empty body", ""));
    for record in &sent {
        log.append(record.clone()).await.unwrap();
    }
    let mut entries = read(reader, sent.len()).await;
    for entry in &entries {
        reader.done(entry.position);
    }
    // Records of different keys may be in any order.
    for record in sent {
        let found = entries.iter().position(|entry| entry.record == record);
        entries.remove(found.unwrap_or_else(|| panic!("not in the log: {record:?}")));
    }
}

async fn order_per_partition_key<L: PushLog + ?Sized, R: PushLogReader>(log: &L, reader: &mut R) {
    for n in 0..100 {
        log.append(record_for_key(&format!("k{}", n % 7), format!("{n}"))).await.unwrap();
    }
    let entries = read(reader, 100).await;
    let (mut last_of_key, mut last_of_partition) = (HashMap::new(), HashMap::new());
    for entry in &entries {
        let n: i32 = bodies(std::slice::from_ref(entry))[0].parse().unwrap();
        let before = last_of_key.insert(entry.record.partition_key().into_owned(), n);
        assert!(before.is_none_or(|before| before < n), "{n} after {before:?}");
        let before = last_of_partition.insert(entry.position.partition, entry.position.offset);
        assert!(before.is_none_or(|before| before < entry.position.offset), "offsets ascend");
        reader.done(entry.position);
    }
}

async fn a_dropped_read_loses_nothing<L: PushLog + ?Sized, R: PushLogReader>(log: &L, reader: &mut R) {
    for n in 0..20 {
        // Polled once and dropped, without and possibly with a record.
        let _ = std::future::poll_fn(|context| {
            std::task::Poll::Ready(reader.read().as_mut().poll(context).is_ready())
        })
        .await
        .then(|| panic!("nothing was appended"));
        log.append(record_for_key("k", format!("{n}"))).await.unwrap();
        let entries = read(reader, 1).await;
        assert_eq!(bodies(&entries), [format!("{n}")]);
        reader.done(entries[0].position);
    }
}

async fn too_large_is_refused<L: PushLog + ?Sized, R: PushLogReader>(log: &L, reader: &mut R) {
    let error = log.append(record_for_room("live://1000", vec![0; 1_000_000])).await.unwrap_err();
    assert!(matches!(error, AppendError::TooLarge { .. }), "{error:?}");
    log.append(record_for_room("live://1000", vec![0; 999_900])).await.unwrap();
    log.append(record_for_key("k", "next")).await.unwrap();
    let entries = read(reader, 2).await;
    let mut sizes: Vec<_> = entries.iter().map(|entry| entry.record.payload.primary_bytes().len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [4, 999_900]);
    entries.iter().for_each(|entry| reader.done(entry.position));
}

async fn many_in_one_go<L: PushLog + ?Sized, R: PushLogReader>(log: &L, reader: &mut R) {
    let all_of_them = |accepted| Appended { accepted, error: None };
    assert_eq!(log.append_all(Vec::new()).await, all_of_them(0));
    let records = |from: usize| (from..from + 20).map(|n| record_for_key("k", format!("{n}"))).collect();
    // Calls keep their order, also with calls for single records.
    let calls =
        (log.append_all(records(0)), log.append(record_for_key("k", "20")), log.append_all(records(21)));
    assert_eq!(calls.0.await, all_of_them(20));
    assert_eq!(calls.1.await, Ok(()));
    assert_eq!(calls.2.await, all_of_them(20));
    let entries = read(reader, 41).await;
    assert_eq!(bodies(&entries), (0..41).map(|n| n.to_string()).collect::<Vec<_>>());
    entries.iter().for_each(|entry| reader.done(entry.position));
}

async fn many_in_one_go_end_at_the_first_that_is_too_large<L: PushLog + ?Sized, R: PushLogReader>(
    log: &L,
    reader: &mut R,
) {
    let large = record_for_key("k", vec![0; 1_000_000]);
    let records = vec![record_for_key("k", "a"), record_for_key("k", "b"), large, record_for_key("k", "c")];
    let Appended { accepted, error } = log.append_all(records).await;
    assert_eq!(accepted, 2);
    assert!(matches!(error, Some(AppendError::TooLarge { .. })), "{error:?}");
    log.append(record_for_key("k", "d")).await.unwrap();
    let entries = read(reader, 3).await;
    assert_eq!(bodies(&entries), ["a", "b", "d"]);
    entries.iter().for_each(|entry| reader.done(entry.position));
}

async fn concurrent_appends_all_arrive<L: PushLog + ?Sized, R: PushLogReader>(
    log: std::sync::Arc<L>,
    mut reader: R,
) {
    const WRITERS: usize = 8;
    const EACH: usize = 200;
    let write = async {
        for n in 0..EACH {
            let calls: Vec<_> =
                (0..WRITERS).map(|w| log.append(record_for_key(&format!("w{w}"), format!("{n}")))).collect();
            for call in calls {
                call.await.unwrap();
            }
        }
    };
    let collect = async {
        let mut seen: HashMap<String, Vec<String>> = HashMap::new();
        for _ in 0..WRITERS * EACH {
            if seen.values().map(Vec::len).sum::<usize>() == WRITERS * EACH {
                break;
            }
            for entry in read(&mut reader, 1).await {
                let bodies = bodies(std::slice::from_ref(&entry));
                seen.entry(entry.record.partition_key().into_owned()).or_default().extend(bodies);
                reader.done(entry.position);
            }
        }
        seen
    };
    let ((), seen) = tokio::join!(write, collect);
    let expected: Vec<_> = (0..EACH).map(|n| n.to_string()).collect();
    for w in 0..WRITERS {
        assert_eq!(seen[&format!("w{w}")], expected, "writer {w}");
    }
}

/// A full log makes writers wait, in order, and refuses them after a deadline. For logs that are
/// bounded on this side; `make` creates one that holds `records_max` records.
///
/// # Panics
/// When the adapter does something else than the port promises.
pub async fn push_log_holds_back<L: PushLog + ?Sized, R: PushLogReader>(
    make: impl AsyncFn() -> (std::sync::Arc<L>, R),
    records_max: usize,
) {
    let (log, mut reader) = make().await;
    for n in 0..records_max {
        log.append(record_for_key("k", format!("{n}"))).await.unwrap();
    }
    let entries = read(&mut reader, records_max).await;
    assert_eq!(
        log.append(record_for_key("k", "late")).await,
        Err(AppendError::Full),
        "read records are not delivered yet"
    );

    // Three writers wait; they are accepted in the order of their calls, not of their polls.
    let mut waiting: Vec<_> = ["a", "b", "c"].map(|body| log.append(record_for_key("k", body))).into();
    assert!(waiting.iter().all(|call| matches!(call, Call::Pending(_))));
    let (c, b, a) = (waiting.pop().unwrap(), waiting.pop().unwrap(), waiting.pop().unwrap());
    drop(b);
    let free = async {
        for entry in &entries {
            reader.done(entry.position);
            tokio::task::yield_now().await;
        }
        read(&mut reader, 2).await
    };
    let (c, a, entries) = tokio::join!(c.into_future(), a.into_future(), free);
    assert_eq!((a, c), (Ok(()), Ok(())));
    assert_eq!(bodies(&entries), ["a", "c"], "a dropped append writes nothing");
    entries.iter().for_each(|entry| reader.done(entry.position));
    holds_back_many(&*log, &mut reader, records_max).await;
}

/// A batch is accepted as far as there is room, without others in between; the result has the
/// number of accepted records.
async fn holds_back_many<L: PushLog + ?Sized, R: PushLogReader>(log: &L, reader: &mut R, records_max: usize) {
    let names = |name: &str, count| (0..count).map(|n| format!("{name}{n}")).collect::<Vec<_>>();
    let records = |name: &str, count| {
        names(name, count).into_iter().map(|body| record_for_key("k", body)).collect::<Vec<_>>()
    };
    let many = log.append_all(records("m", records_max * 2));
    let behind = log.append(record_for_key("k", "behind"));
    assert!(matches!(many, Call::Pending(_)));
    let free = async {
        let mut seen = Vec::new();
        while seen.len() < records_max * 2 + 1 {
            let entries = read(reader, 1).await;
            seen.extend(bodies(&entries));
            entries.iter().for_each(|entry| reader.done(entry.position));
            tokio::task::yield_now().await;
        }
        seen
    };
    let (many, behind, seen) = tokio::join!(many.into_future(), behind.into_future(), free);
    assert_eq!((many, behind), (Appended { accepted: records_max * 2, error: None }, Ok(())));
    let expected = [names("m", records_max * 2), vec!["behind".to_owned()]].concat();
    assert_eq!(seen, expected);

    let refused = log.append_all(records("n", records_max + 2)).await;
    assert_eq!(refused, Appended { accepted: records_max, error: Some(AppendError::Full) });
    let entries = read(reader, records_max).await;
    assert_eq!(bodies(&entries), names("n", records_max));
    entries.iter().for_each(|entry| reader.done(entry.position));
}
