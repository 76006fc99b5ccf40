//! What every [`TimelineStore`] must do.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use goim_ports::{
    AcceptedAt, Append, AppendResult, Bodies, CursorId, Head, IdempotencyKey, Mid, NewMessage, Operation,
    Range, ReadLimit, Retention, RetentionRules, Schema, SchemaBody, StoredMessage, TimelineId, TimelineSeq,
    TimelineStore,
};

const ALL: ReadLimit = ReadLimit { messages: usize::MAX, bytes: usize::MAX };

fn inbox(mid: i64) -> TimelineId {
    TimelineId::Inbox(Mid(mid))
}

fn room(name: &str) -> TimelineId {
    TimelineId::Room(name.into())
}

fn seq(number: u64) -> TimelineSeq {
    TimelineSeq(number)
}

/// Creates a message of the backend, accepted now.
#[must_use]
pub fn message(body: impl Into<Bytes>) -> NewMessage {
    let accepted_at = AcceptedAt::now();
    NewMessage { sender: Mid(0), operation: Operation(1000), bodies: Bodies::plain(body.into()), accepted_at }
}

/// Creates an append of such a message, without an idempotency key.
#[must_use]
pub fn append_of(timeline: TimelineId, body: impl Into<Bytes>) -> Append {
    Append { timeline, message: message(body), idempotency_key: None }
}

async fn append(store: &impl TimelineStore, timeline: &TimelineId, body: impl Into<Bytes>) -> AppendResult {
    store.append(vec![append_of(timeline.clone(), body)]).await.unwrap()[0]
}

async fn read(store: &impl TimelineStore, timeline: &TimelineId, after: u64, limit: ReadLimit) -> Range {
    store.read(timeline.clone(), seq(after), limit).await.unwrap()
}

fn bodies(messages: &[StoredMessage]) -> Vec<&str> {
    messages
        .iter()
        .map(|stored| std::str::from_utf8(stored.message.bodies.primary_bytes()).unwrap())
        .collect()
}

fn seqs(messages: &[StoredMessage]) -> Vec<u64> {
    messages.iter().map(|stored| stored.seq.0).collect()
}

async fn head(store: &impl TimelineStore, timeline: &TimelineId) -> Head {
    store.heads(vec![timeline.clone()]).await.unwrap()[0]
}

/// Sequences, ranges, idempotency keys, tombstones, cursors.
///
/// # Panics
/// When the adapter does something else than the port promises.
pub async fn timelines<S: TimelineStore + 'static>(make: impl AsyncFn() -> S) {
    empty_store(make().await).await;
    in_order(make().await).await;
    concurrently(Arc::new(make().await)).await;
    ranges(make().await).await;
    similar_names(make().await).await;
    every_part_of_a_message(make().await).await;
    idempotency_keys(make().await).await;
    deleted(make().await).await;
    read_cursors(make().await).await;
}

async fn empty_store<S: TimelineStore>(store: S) {
    let timeline = inbox(1);
    assert_eq!(head(&store, &timeline).await, Head::default());
    assert_eq!(read(&store, &timeline, 0, ALL).await, Range::default());
    assert_eq!(store.read_back(timeline.clone(), None, ALL).await.unwrap(), Range::default());
    assert!(!store.delete(timeline.clone(), seq(1)).await.unwrap());
    let cursor = CursorId { mid: Mid(1), timeline };
    assert_eq!(store.advance(cursor.clone(), seq(5)).await.unwrap(), seq(0), "nothing has been read");
    assert_eq!(store.cursors(vec![cursor]).await.unwrap(), [seq(0)]);
    assert!(store.append(Vec::new()).await.unwrap().is_empty());
}

async fn in_order<S: TimelineStore>(store: S) {
    let (mine, other) = (inbox(7), room("live://7"));
    let first = append(&store, &mine, "a").await;
    assert!(first.position.epoch.0 > 0 && first.position.epoch.0 < 1 << 53 && !first.is_duplicate);
    assert_eq!(first.position.seq, seq(1));
    let group = ["b", "x", "c", "y"]
        .map(|body| append_of(if body < "x" { mine.clone() } else { other.clone() }, body));
    let stored = store.append(group.into()).await.unwrap();
    assert_eq!(stored.iter().map(|one| one.position.seq.0).collect::<Vec<_>>(), [2, 1, 3, 2]);
    assert_eq!(stored[0].position.epoch, first.position.epoch, "an epoch lasts");
    assert_ne!(stored[1].position.epoch, first.position.epoch, "each timeline has its own");
    let all = read(&store, &mine, 0, ALL).await;
    assert_eq!(all.head, Head { epoch: first.position.epoch, latest: seq(3), first: seq(1) });
    assert_eq!((bodies(&all.messages), seqs(&all.messages)), (vec!["a", "b", "c"], vec![1, 2, 3]));
    assert_eq!(bodies(&read(&store, &other, 0, ALL).await.messages), ["x", "y"]);
    let heads = store.heads(vec![other.clone(), inbox(99), mine.clone()]).await.unwrap();
    assert_eq!(heads.iter().map(|head| head.latest.0).collect::<Vec<_>>(), [2, 0, 3]);
}

async fn concurrently<S: TimelineStore + 'static>(store: Arc<S>) {
    let timelines = [inbox(1), room("a://1"), room("a://2")];
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (store, timelines) = (Arc::clone(&store), timelines.clone());
            tokio::spawn(async move {
                let mut last = [0; 3];
                for number in 0..50 {
                    let index = number % 3;
                    let stored = append(&*store, &timelines[index], format!("{writer}.{number}")).await;
                    assert!(stored.position.seq.0 > last[index], "later appends have later sequences");
                    last[index] = stored.position.seq.0;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let mut total = 0;
    for timeline in &timelines {
        let all = read(&*store, timeline, 0, ALL).await;
        let count = all.messages.len() as u64;
        assert_eq!(seqs(&all.messages), (1..=count).collect::<Vec<_>>(), "no gaps");
        total += count;
    }
    assert_eq!(total, 400);
}

async fn ranges<S: TimelineStore>(store: S) {
    let timeline = room("live://1");
    let group = (1..=10).map(|number| append_of(timeline.clone(), number.to_string().repeat(10)));
    store.append(group.collect()).await.unwrap();
    let limit = |messages, bytes| ReadLimit { messages, bytes };
    for (after, limit, expected) in [
        (0, ALL, 1..=10),
        (0, limit(3, 1000), 1..=3),
        (3, limit(3, 1000), 4..=6),
        (9, limit(3, 1000), 10..=10),
        (0, limit(10, 25), 1..=2),
        (0, limit(10, 30), 1..=3),
        (0, limit(10, 1), 1..=1),
        (0, limit(0, 0), 1..=1),
        (4, limit(usize::MAX, usize::MAX), 5..=10),
    ] {
        let found = read(&store, &timeline, after, limit).await;
        assert_eq!(seqs(&found.messages), expected.collect::<Vec<_>>(), "after {after}, {limit:?}");
        assert_eq!(found.head.latest, seq(10));
    }
    for after in [10, 11, u64::MAX] {
        assert!(read(&store, &timeline, after, ALL).await.messages.is_empty(), "after {after}");
    }
    for (before, limit, expected) in [
        (None, limit(3, 1000), 8..=10),
        (Some(8), limit(3, 1000), 5..=7),
        (Some(3), limit(9, 1000), 1..=2),
        (None, limit(9, 35), 9..=10),
        (Some(u64::MAX), limit(1, 1), 10..=10),
    ] {
        let found = store.read_back(timeline.clone(), before.map(seq), limit).await.unwrap();
        assert_eq!(seqs(&found.messages), expected.collect::<Vec<_>>(), "before {before:?}, {limit:?}");
    }
    for before in [0, 1] {
        let found = store.read_back(timeline.clone(), Some(seq(before)), ALL).await.unwrap();
        assert!(found.messages.is_empty(), "before {before}");
        assert_eq!(found.head.latest, seq(10));
    }
}

async fn similar_names<S: TimelineStore>(store: S) {
    let long = format!("a://{}", "x".repeat(2000));
    let names = ["a://b", "a://bc", "a://b\0c", "a://b\u{1}", "A://b", "a://ü", "a://1", &long, "b://1"];
    let mut timelines: Vec<TimelineId> = names.iter().map(|name| room(name)).collect();
    timelines.extend([inbox(1), inbox(i64::MAX), inbox(256)]);
    for round in 0..3 {
        for (index, timeline) in timelines.iter().enumerate() {
            let stored = append(&store, timeline, index.to_string()).await;
            assert_eq!(stored.position.seq, seq(round + 1), "{timeline}");
        }
    }
    for (index, timeline) in timelines.iter().enumerate() {
        let all = read(&store, timeline, 0, ALL).await;
        assert_eq!(bodies(&all.messages), [&index.to_string()[..]; 3], "{timeline}");
        let back = store.read_back(timeline.clone(), None, ALL).await.unwrap();
        assert_eq!(back, all);
    }
}

async fn every_part_of_a_message<S: TimelineStore>(store: S) {
    let bodies = vec![
        SchemaBody { schema: Schema(2), body: Bytes::from_static(b"\xffsecond") },
        SchemaBody { schema: Schema(7), body: Bytes::new() },
    ];
    let full = NewMessage {
        sender: Mid(42),
        operation: Operation(-5),
        bodies: Bodies::new(None, bodies).unwrap(),
        accepted_at: AcceptedAt(1_700_000_000_123_456),
    };
    let large = NewMessage { bodies: Bodies::plain(vec![7; 1 << 20].into()), ..full.clone() };
    let group = [&full, &large].map(|message| Append {
        timeline: inbox(1),
        message: message.clone(),
        idempotency_key: None,
    });
    store.append(group.into()).await.unwrap();
    let found = read(&store, &inbox(1), 0, ALL).await.messages;
    let expected = [full, large].into_iter().zip(1..).map(|(message, number)| StoredMessage {
        seq: seq(number),
        message,
        is_deleted: false,
    });
    assert_eq!(found, expected.collect::<Vec<_>>());
}

async fn idempotency_keys<S: TimelineStore>(store: S) {
    let of = |timeline: &TimelineId, sender, name: &str, body: &str| Append {
        timeline: timeline.clone(),
        message: NewMessage { sender: Mid(sender), ..message(body.to_owned()) },
        idempotency_key: IdempotencyKey::new(name.to_owned()),
    };
    let (a, b) = (room("a://1"), room("b://1"));
    // Appends and the expected sequences; negative for duplicates.
    let cases = [
        (vec![of(&a, 1, "x", "first")], vec![1]),
        (vec![of(&a, 1, "x", "again")], vec![-1]),
        (vec![of(&a, 1, "y", "second"), of(&a, 1, "x", "again"), of(&a, 1, "y", "again")], vec![2, -1, -2]),
        // Another sender, another timeline.
        (vec![of(&a, 2, "x", "third"), of(&b, 1, "x", "first")], vec![3, 1]),
        (vec![of(&a, 0, "x", "fourth"), of(&a, 1, "x\0", "fifth"), of(&a, 0, "x", "again")], vec![4, 5, -4]),
    ];
    for (appends, expected) in cases {
        let stored = store.append(appends.clone()).await.unwrap();
        let signed = |stored: &AppendResult| {
            let number = i64::try_from(stored.position.seq.0).unwrap();
            if stored.is_duplicate { -number } else { number }
        };
        assert_eq!(stored.iter().map(signed).collect::<Vec<_>>(), expected, "{appends:?}");
    }
    let all = read(&store, &a, 0, ALL).await;
    assert_eq!(bodies(&all.messages), ["first", "second", "third", "fourth", "fifth"]);
    let [again] = store.append(vec![of(&b, 1, "x", "again")]).await.unwrap()[..] else { panic!() };
    assert_eq!(again.position, head(&store, &b).await.position());
}

async fn deleted<S: TimelineStore>(store: S) {
    let timeline = room("a://1");
    for body in ["a", "b", "c"] {
        append(&store, &timeline, body).await;
    }
    let delete = async |number| store.delete(timeline.clone(), seq(number)).await.unwrap();
    assert!(delete(2).await);
    assert!(delete(3).await);
    for number in [2, 0, 4, u64::MAX] {
        assert!(!delete(number).await, "{number} is not there to be deleted");
    }
    let all = read(&store, &timeline, 0, ALL).await;
    assert_eq!(bodies(&all.messages), ["a", "", ""]);
    assert_eq!(seqs(&all.messages), [1, 2, 3]);
    assert_eq!(all.messages.iter().map(|stored| stored.is_deleted).collect::<Vec<_>>(), [false, true, true]);
    assert_eq!(append(&store, &timeline, "d").await.position.seq, seq(4));
    let empty = append(&store, &timeline, "").await.position.seq;
    assert!(!read(&store, &timeline, 4, ALL).await.messages[0].is_deleted, "{empty} is empty, not deleted");
}

async fn read_cursors<S: TimelineStore>(store: S) {
    let timeline = room("a://1");
    for body in ["a", "b", "c"] {
        append(&store, &timeline, body).await;
    }
    let of = |mid, timeline: &TimelineId| CursorId { mid: Mid(mid), timeline: timeline.clone() };
    for (to, expected) in [(2, 2), (1, 2), (3, 3), (9, 3), (0, 3)] {
        assert_eq!(store.advance(of(1, &timeline), seq(to)).await.unwrap(), seq(expected), "to {to}");
    }
    let asked = vec![of(2, &timeline), of(1, &inbox(1)), of(1, &timeline)];
    assert_eq!(store.cursors(asked).await.unwrap(), [seq(0), seq(0), seq(3)]);
}

/// Retention by age, number and size. `pass` removes messages that are expired as of a moment.
///
/// # Panics
/// When the adapter does something else than the port promises.
pub async fn timelines_retain<S: TimelineStore>(
    make: impl AsyncFn(RetentionRules) -> S,
    pass: impl AsyncFn(&S, AcceptedAt),
) {
    let rule = Retention { messages_max: 5, age_max: Duration::from_secs(1000), bytes_max: 100 };
    let none = Retention::FOREVER;
    let retention_overrides = vec![
        ("mid".to_owned(), Retention { messages_max: 5, ..none }),
        ("old".to_owned(), Retention { age_max: rule.age_max, ..none }),
        ("big".to_owned(), Retention { bytes_max: rule.bytes_max, ..none }),
        ("all".to_owned(), rule),
    ];
    let store = make(RetentionRules { retention_overrides, otherwise: none }).await;
    let at = |seconds: u64| AcceptedAt(seconds * 1_000_000);
    let timelines = [inbox(1), room("old://1"), room("big://1"), room("all://1"), room("other://1")];
    for timeline in &timelines {
        let group = (1..=10).map(|number| {
            let accepted_at = at(1_000_000 + number * 100);
            let message = NewMessage { accepted_at, ..message(vec![b'x'; 30]) };
            Append {
                timeline: timeline.clone(),
                message,
                idempotency_key: IdempotencyKey::new(number.to_string()),
            }
        });
        store.append(group.collect()).await.unwrap();
    }
    // A deleted message counts until it is removed.
    store.delete(room("big://1"), seq(9)).await.unwrap();
    let firsts = async || {
        let heads = store.heads(timelines.to_vec()).await.unwrap();
        assert!(heads.iter().all(|head| head.latest == seq(10)), "{heads:?}");
        heads.iter().map(|head| head.first.0).collect::<Vec<_>>()
    };
    pass(&store, at(1_000_000)).await;
    assert_eq!(firsts().await, [6, 1, 8, 8, 1]);
    pass(&store, at(1_000_000 + 1950)).await;
    assert_eq!(firsts().await, [6, 10, 8, 10, 1]);
    let old = read(&store, &timelines[1], 0, ALL).await;
    assert_eq!(seqs(&old.messages), [10]);
    assert!(!store.delete(timelines[1].clone(), seq(3)).await.unwrap(), "it is removed");
    // All messages have expired: the latest sequence stays.
    pass(&store, at(2_000_000)).await;
    assert_eq!(firsts().await, [6, 11, 8, 11, 1]);
    assert_eq!(read(&store, &timelines[1], 0, ALL).await.messages, []);
    let before = head(&store, &timelines[1]).await;
    let stored = append(&store, &timelines[1], "next").await.position;
    assert_eq!((stored.seq, stored.epoch), (seq(11), before.epoch), "sequences continue");
    assert_eq!(head(&store, &timelines[1]).await.first, seq(11));
    // The largest message stays while it is the latest.
    append(&store, &room("big://1"), vec![b'x'; 1000]).await;
    pass(&store, at(1_000_000)).await;
    assert_eq!(head(&store, &room("big://1")).await.first, seq(11));
    // After the window, a key can be used again.
    let again = Append {
        timeline: inbox(1),
        message: NewMessage { accepted_at: at(3_000_000), ..message("again") },
        idempotency_key: IdempotencyKey::new("10"),
    };
    pass(&store, at(3_000_000)).await;
    pass(&store, at(4_000_000)).await;
    let stored = store.append(vec![again]).await.unwrap()[0];
    assert!(!stored.is_duplicate);
}

/// A reopened store has all its data. `again` ends the store that it is given, in any way, and
/// reopens it.
///
/// # Panics
/// When the adapter does something else than the port promises.
pub async fn timelines_last<S: TimelineStore>(make: impl AsyncFn() -> S, again: impl AsyncFn(S) -> S) {
    let store = make().await;
    let timeline = room("a://1");
    let named = |body: &str| Append {
        idempotency_key: IdempotencyKey::new("name"),
        ..append_of(room("a://1"), body.to_owned())
    };
    for body in ["a", "b"] {
        append(&store, &timeline, body).await;
    }
    let stored = store.append(vec![named("c")]).await.unwrap()[0];
    store.delete(timeline.clone(), seq(1)).await.unwrap();
    let cursor = CursorId { mid: Mid(1), timeline: timeline.clone() };
    store.advance(cursor.clone(), seq(2)).await.unwrap();
    let before = read(&store, &timeline, 0, ALL).await;

    let store = again(store).await;
    assert_eq!(read(&store, &timeline, 0, ALL).await, before);
    assert_eq!(store.cursors(vec![cursor]).await.unwrap(), [seq(2)]);
    let known = store.append(vec![named("again")]).await.unwrap()[0];
    assert_eq!(known, AppendResult { is_duplicate: true, ..stored });
    assert_eq!(append(&store, &timeline, "d").await.position.seq, seq(4));
    let store = again(store).await;
    assert_eq!(bodies(&read(&store, &timeline, 0, ALL).await.messages), ["", "b", "c", "d"]);
}
