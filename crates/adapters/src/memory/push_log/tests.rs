//! The push log: its bounds, its order and its end.

use super::*;
use crate::conformance::{self, record_for_key};

fn small(records_max: usize) -> PushLogConfig {
    PushLogConfig { records_max, age_max: Duration::MAX, ..PushLogConfig::default() }
}

fn is_pending<T>(call: &Call<T>) -> bool {
    matches!(call, Call::Pending(_))
}

#[tokio::test(start_paused = true)]
async fn conforms() {
    // Without the bound of age, which lets in only as much unread as is lately read: the suite
    // writes first and reads then.
    conformance::push_log(async || {
        push_log(PushLogConfig { age_max: Duration::MAX, ..PushLogConfig::default() })
    })
    .await;
    conformance::push_log(async || push_log(small(100))).await;
    conformance::push_log_holds_back(async || push_log(small(5)), 5).await;
}

#[tokio::test(start_paused = true)]
async fn an_append_with_room_is_ready_and_one_without_is_refused_at_the_deadline() {
    let (log, _reader) = push_log(small(1));
    assert!(!is_pending(&log.append(record_for_key("k", "1"))));
    let start = Instant::now();
    assert_eq!(log.append(record_for_key("k", "2")).await, Err(AppendError::Full));
    assert_eq!(start.elapsed(), PushLogConfig::default().append_timeout);
    let stats = log.stats();
    assert_eq!((stats.records, stats.waiting, stats.appended, stats.rejected_full), (1, 0, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_counts_from_the_call() {
    let (log, _reader) = push_log(small(1));
    log.append(record_for_key("k", "1")).await.unwrap();
    let call = log.append(record_for_key("k", "2"));
    tokio::time::advance(Duration::from_secs(2)).await;
    let start = Instant::now();
    assert_eq!(call.await, Err(AppendError::Full));
    assert_eq!(start.elapsed(), Duration::from_secs(1));
}

#[tokio::test]
async fn bytes_are_bounded_and_given_back() {
    let bytes_max = 10_000;
    let (log, mut reader) = push_log(PushLogConfig { bytes_max, ..PushLogConfig::default() });
    let mut calls = Vec::new();
    while log.stats().waiting == 0 {
        calls.push(log.append(record_for_key("k", vec![0; 1_000])));
    }
    assert!(
        log.stats().bytes <= bytes_max && log.stats().bytes_peak > bytes_max - 2_000,
        "{:?}",
        log.stats()
    );
    calls.clear();
    let entries = reader.read().await.unwrap().unwrap();
    reader.done(entries.last().unwrap().position);
    assert_eq!((log.stats().records, log.stats().bytes), (0, 0));
    // An empty log takes a record that is larger than all it may hold, and nothing besides.
    assert!(!is_pending(&log.append(record_for_key("k", vec![0; 20_000]))));
    assert!(is_pending(&log.append(record_for_key("k", ""))));
}

#[tokio::test(start_paused = true)]
async fn a_small_record_does_not_overtake_a_large_one_that_waits() {
    let (log, mut reader) = push_log(PushLogConfig { bytes_max: 3_000, ..PushLogConfig::default() });
    log.append(record_for_key("k", vec![b'1'; 1_000])).await.unwrap();
    let large = log.append(record_for_key("k", vec![b'2'; 2_500]));
    let small = log.append(record_for_key("k", "3"));
    assert!(is_pending(&large) && is_pending(&small));
    // When the large one is given up, the small one has room.
    drop(large);
    small.await.unwrap();
    let bodies: Vec<_> = reader
        .read()
        .await
        .unwrap()
        .unwrap()
        .iter()
        .map(|e| e.record.payload.primary_bytes().len())
        .collect();
    assert_eq!(bodies, [1_000, 1]);
}

#[tokio::test]
async fn the_number_of_waiting_appends_is_bounded() {
    let (log, _reader) = push_log(PushLogConfig { pending_appends_max: 2, ..small(1) });
    let calls: Vec<_> = (0..4).map(|_| log.append(record_for_key("k", ""))).collect();
    assert_eq!(calls.iter().map(is_pending).collect::<Vec<_>>(), [false, true, true, false]);
    assert_eq!(log.stats().rejected_full, 1);
}

#[tokio::test]
async fn done_counts_only_what_was_read() {
    let (log, mut reader) = push_log(small(2));
    log.append(record_for_key("k", "1")).await.unwrap();
    log.append(record_for_key("k", "2")).await.unwrap();
    reader.done(LogPosition { partition: 0, offset: i64::MAX - 1 });
    assert_eq!(log.stats().records, 2, "nothing was read yet");
    let entries = reader.read().await.unwrap().unwrap();
    reader.done(entries[1].position);
    reader.done(entries[0].position);
    assert_eq!(log.stats().records, 0);
}

#[tokio::test]
async fn a_closed_log_is_read_to_its_end() {
    for close in [true, false] {
        let (log, mut reader) = push_log(small(2));
        log.append(record_for_key("k", "1")).await.unwrap();
        log.append(record_for_key("k", "2")).await.unwrap();
        let waiting = log.append(record_for_key("k", "3"));
        if close {
            log.close();
            let refused = log.append(record_for_key("k", "4")).await;
            assert!(matches!(refused, Err(AppendError::Unavailable(_))), "{refused:?}");
        } else {
            drop(log);
        }
        assert!(matches!(waiting.await, Err(AppendError::Unavailable(_))));
        assert_eq!(reader.read().await.unwrap().unwrap().len(), 2);
        assert_eq!(reader.read().await.unwrap(), None);
        assert_eq!(reader.read().await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_waiting_reader_is_notified_of_the_end() {
    let (log, mut reader) = push_log(small(2));
    let read = tokio::spawn(async move { reader.read().await });
    tokio::task::yield_now().await;
    drop(log);
    assert_eq!(read.await.unwrap().unwrap(), None);
}

#[tokio::test]
async fn without_a_reader_nothing_is_accepted() {
    let (log, reader) = push_log(small(1));
    log.append(record_for_key("k", "1")).await.unwrap();
    let waiting = log.append(record_for_key("k", "2"));
    drop(reader);
    assert!(matches!(waiting.await, Err(AppendError::Unavailable(_))));
    assert!(matches!(log.append(record_for_key("k", "3")).await, Err(AppendError::Unavailable(_))));
}

/// Writers on several threads against a log that is nearly always full: nothing is lost, doubled or
/// out of order, and the bound holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_on_threads_are_held_back_in_order() {
    const WRITERS: usize = 8;
    const EACH: usize = 500;
    let (log, mut reader) =
        push_log(PushLogConfig { append_timeout: Duration::from_secs(60), read_records_max: 3, ..small(4) });
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                for n in 0..EACH {
                    let first = log.append(record_for_key(&format!("w{writer}"), format!("{}", 2 * n)));
                    let second = log.append(record_for_key(&format!("w{writer}"), format!("{}", 2 * n + 1)));
                    // Awaited the other way round: it is the calls that count.
                    second.await.unwrap();
                    first.await.unwrap();
                }
            })
        })
        .collect();
    let mut next = [0; WRITERS];
    while next.iter().sum::<usize>() < WRITERS * EACH * 2 {
        for entry in reader.read().await.unwrap().unwrap() {
            let writer: usize = entry.record.partition_key()[1..].parse().unwrap();
            assert_eq!(
                entry.record.payload.primary_bytes(),
                next[writer].to_string().as_bytes(),
                "writer {writer}"
            );
            next[writer] += 1;
            assert!(log.stats().records <= 4, "{:?}", log.stats());
            reader.done(entry.position);
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!((log.stats().records, log.stats().bytes, log.stats().waiting), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn unread_records_are_bounded_by_pace_and_age() {
    let (log, mut reader) = push_log(PushLogConfig {
        append_timeout: Duration::ZERO,
        read_records_max: 50,
        ..PushLogConfig::default()
    });
    let fill = || {
        let taken = (0..).take_while(|n: &i32| {
            matches!(log.append(record_for_key("k", n.to_string())), Call::Ready(Ok(())))
        });
        taken.count()
    };
    assert_eq!(fill(), UNREAD_MIN, "at a pace that is not known");
    // A thousand a second are read: a hundred may wait.
    for _ in 0..20 {
        tokio::time::advance(Duration::from_millis(50)).await;
        let read = reader.read().await.unwrap().unwrap();
        reader.done(read.last().unwrap().position);
        fill();
    }
    let unread = log.stats().records;
    assert!((60..=110).contains(&unread), "{unread}");
    // And nothing older than the age lets anything in, however little it is.
    tokio::time::advance(Duration::from_millis(101)).await;
    assert_eq!(fill(), 0);
}
