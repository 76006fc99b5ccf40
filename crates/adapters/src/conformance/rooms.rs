//! What a room directory must do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use goim_ports::{RoomCounts, RoomDirectory};

fn counts(rooms: &[(&str, u32)]) -> RoomCounts {
    Arc::new(rooms.iter().map(|(room, count)| ((*room).into(), *count)).collect())
}

async fn totals<D: RoomDirectory>(directory: &D) -> HashMap<String, u32> {
    let totals = directory.totals().await.unwrap();
    totals.iter().map(|(room, count)| (room.to_string(), *count)).collect()
}

fn expected(rooms: &[(&str, u32)]) -> HashMap<String, u32> {
    rooms.iter().map(|(room, count)| ((*room).to_owned(), *count)).collect()
}

/// Reports, their sum, and their replacement.
///
/// # Panics
/// When the adapter does something else than the port promises.
pub async fn rooms<D: RoomDirectory>(make: impl AsyncFn() -> D) {
    let directory = make().await;
    assert!(totals(&directory).await.is_empty());
    directory.report("s1".into(), counts(&[("live://1", 3), ("直播://房间一", 1)])).await.unwrap();
    assert_eq!(totals(&directory).await, expected(&[("live://1", 3), ("直播://房间一", 1)]));
    directory.report("s2".into(), counts(&[("live://1", 40), ("live://2", 5)])).await.unwrap();
    let sum = expected(&[("live://1", 43), ("直播://房间一", 1), ("live://2", 5)]);
    assert_eq!(totals(&directory).await, sum, "rooms are added up over the comets");
    directory.report("s1".into(), counts(&[("live://1", 1)])).await.unwrap();
    let sum = expected(&[("live://1", 41), ("live://2", 5)]);
    assert_eq!(
        totals(&directory).await,
        sum,
        "a report replaces the one before, with the rooms that it left out"
    );
    directory.report("s2".into(), counts(&[])).await.unwrap();
    assert_eq!(totals(&directory).await, expected(&[("live://1", 1)]), "an empty report removes all counts");
    let many: Vec<_> = (0..2000).map(|n| format!("live://{n}")).collect();
    let many: Vec<_> = many.iter().map(|room| (room.as_str(), 2)).collect();
    directory.report("s1".into(), counts(&many)).await.unwrap();
    assert_eq!(totals(&directory).await, expected(&many));
}

/// Reports count for five minutes. `pass` lets time pass for the adapter.
///
/// # Panics
/// When the adapter does something else than the port promises.
pub async fn rooms_expire<D: RoomDirectory, P: Future<Output = ()>>(
    make: impl AsyncFn() -> D,
    pass: impl Fn(Duration) -> P,
) {
    let directory = make().await;
    directory.report("gone".into(), counts(&[("r", 1)])).await.unwrap();
    pass(Duration::from_secs(200)).await;
    directory.report("alive".into(), counts(&[("r", 10)])).await.unwrap();
    pass(Duration::from_secs(99)).await;
    assert_eq!(totals(&directory).await, expected(&[("r", 11)]), "299 s old");
    pass(Duration::from_secs(2)).await;
    assert_eq!(totals(&directory).await, expected(&[("r", 10)]), "301 s old");
    pass(Duration::from_secs(300)).await;
    assert!(totals(&directory).await.is_empty());
}
