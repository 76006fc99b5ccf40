//! Stored messages with a slow timeline store.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use goim_logic::{Config, Dependencies, Logic, StoredPush, StoredTo, TimelineRequestError};
use goim_ports::{
    AcceptedAt, Append, AppendResult, Bodies, Call, CursorId, Epoch, Head, Mid, NewMessage, Operation,
    Position, Range, ReadLimit, TimelineError, TimelineId, TimelineSeq, TimelineStore,
};
use tokio::sync::Notify;

use crate::world::World;

/// Stores nothing, and answers when it is notified.
struct Slow(Arc<Notify>);

impl TimelineStore for Slow {
    fn append(&self, appends: Vec<Append>) -> Call<Result<Vec<AppendResult>, TimelineError>> {
        let go = Arc::clone(&self.0);
        Call::pending(async move {
            go.notified().await;
            let position = Position { epoch: Epoch(1), seq: TimelineSeq(1) };
            Ok(appends.iter().map(|_| AppendResult { position, is_duplicate: false }).collect())
        })
    }

    fn read(&self, _: TimelineId, _: TimelineSeq, _: ReadLimit) -> Call<Result<Range, TimelineError>> {
        Call::Ready(Ok(Range::default()))
    }

    fn read_back(
        &self,
        _: TimelineId,
        _: Option<TimelineSeq>,
        _: ReadLimit,
    ) -> Call<Result<Range, TimelineError>> {
        Call::Ready(Ok(Range::default()))
    }

    fn heads(&self, timelines: Vec<TimelineId>) -> Call<Result<Vec<Head>, TimelineError>> {
        Call::Ready(Ok(vec![Head::default(); timelines.len()]))
    }

    fn delete(&self, _: TimelineId, _: TimelineSeq) -> Call<Result<bool, TimelineError>> {
        Call::Ready(Ok(false))
    }

    fn advance(&self, _: CursorId, to: TimelineSeq) -> Call<Result<TimelineSeq, TimelineError>> {
        Call::Ready(Ok(to))
    }

    fn cursors(&self, cursors: Vec<CursorId>) -> Call<Result<Vec<TimelineSeq>, TimelineError>> {
        Call::Ready(Ok(vec![TimelineSeq(0); cursors.len()]))
    }
}

fn push() -> Vec<StoredPush> {
    let message = NewMessage {
        sender: Mid::default(),
        operation: Operation(1000),
        bodies: Bodies::plain(Bytes::from_static(b"x")),
        accepted_at: AcceptedAt::now(),
    };
    vec![StoredPush { to: StoredTo::Room("live://1".into()), message, idempotency_key: None }]
}

async fn notified(world: &World) {
    for _ in 0..20_000 {
        if !world.take_log().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("the sessions are not notified");
}

#[tokio::test(start_paused = true)]
async fn sessions_are_notified_when_the_store_is_late() {
    let (world, go) = (Arc::new(World::default()), Arc::new(Notify::new()));
    let dependencies =
        Dependencies { timelines: Some(Arc::new(Slow(Arc::clone(&go)))), ..world.dependencies() };
    let logic = Logic::new(Config::default(), dependencies).unwrap();

    // The store is late.
    let late = logic.push_stored(push()).await;
    assert!(matches!(late, Err((_, TimelineRequestError::Store(TimelineError::Unknown(_))))), "{late:?}");
    assert!(world.take_log().is_empty(), "not before it is durable");
    go.notify_one();
    notified(&world).await;

    // The caller stopped waiting.
    let gone = tokio::time::timeout(Duration::from_millis(1), logic.push_stored(push())).await;
    assert!(gone.is_err());
    go.notify_one();
    notified(&world).await;

    // The store answers in time.
    go.notify_one();
    assert_eq!(logic.push_stored(push()).await.unwrap()[0].len(), 1);
    notified(&world).await;
}

#[tokio::test(start_paused = true)]
async fn a_durable_message_is_answered_while_the_push_log_hangs() {
    let (world, go) = (Arc::new(World::default()), Arc::new(Notify::new()));
    let dependencies =
        Dependencies { timelines: Some(Arc::new(Slow(Arc::clone(&go)))), ..world.dependencies() };
    let logic = Logic::new(Config::default(), dependencies).unwrap();
    world.state().append_hangs = true;
    go.notify_one();
    let started = tokio::time::Instant::now();
    assert_eq!(logic.push_stored(push()).await.unwrap()[0].len(), 1);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    // The sessions are notified when the log answers again.
    world.state().append_hangs = false;
    notified(&world).await;
}
