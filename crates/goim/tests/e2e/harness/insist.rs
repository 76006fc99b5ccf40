//! Publishers that try each push until it is answered with success.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::load::{Push, is_accepted, pushes_to};
use super::unique;

/// Each waits for its own answers, so that one that waits for an engine does not silence the
/// others.
const PUBLISHERS: usize = 4;
/// Between two rounds of a publisher: one push to a key, one to a member, one to the room.
const PAUSE: Duration = Duration::from_millis(60);
/// Before a push is tried again, by the other logic.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How long a push is retried after the publishers were stopped.
const TRIED_FOR: Duration = Duration::from_secs(60);

/// What publishers have done.
#[derive(Default)]
pub struct Insisted {
    /// What was answered with success, with the time at which the request was made that was.
    pub accepted: Vec<Push>,
    /// Answers of another kind, or none: so often was a push tried again.
    pub retried: usize,
    /// Pushes that were never answered with success.
    pub unanswered: usize,
}

/// Publishers at work.
pub struct Publishers {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<Insisted>>,
}

impl Publishers {
    /// Starts them; `name` is in each body.
    pub fn start(name: &str, logics: [SocketAddr; 2], sessions: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |nth: usize| {
            let (stop, name) = (Arc::clone(&stop), unique(&format!("{name}-{nth}")));
            std::thread::spawn(move || publish(&name, nth, logics, sessions, &stop))
        };
        let threads = (0..PUBLISHERS).map(start).collect();
        Self { stop, threads }
    }

    /// Stops them, once each has an answer to the push that it is at.
    pub fn stop(self) -> Insisted {
        self.stop.store(true, Ordering::Relaxed);
        let all = self.threads.into_iter().map(|thread| thread.join().unwrap());
        all.fold(Insisted::default(), |mut sum, one| {
            sum.accepted.extend(one.accepted);
            sum.retried += one.retried;
            sum.unanswered += one.unanswered;
            sum
        })
    }
}

/// Pushes to every session in turn, from another one on than the other publishers.
fn publish(
    name: &str,
    first: usize,
    logics: [SocketAddr; 2],
    sessions: usize,
    stop: &AtomicBool,
) -> Insisted {
    let mut insisted = Insisted::default();
    for round in 0.. {
        for (kind, target, to) in pushes_to((first * sessions / PUBLISHERS + round) % sessions) {
            if stop.load(Ordering::Relaxed) {
                return insisted;
            }
            let body = format!("{name}-{kind}-{round}");
            insist(&mut insisted, body, &target, to, logics, stop);
        }
        std::thread::sleep(PAUSE);
    }
    insisted
}

/// One push, tried until it is answered with success: by one logic and the other in turn.
fn insist(
    insisted: &mut Insisted,
    body: String,
    target: &str,
    to: Option<usize>,
    logics: [SocketAddr; 2],
    stop: &AtomicBool,
) {
    let mut told_to_stop = None;
    for attempt in insisted.accepted.len().. {
        let begun_at = Instant::now();
        if is_accepted(logics[attempt % 2], target, &body) {
            insisted.accepted.push(Push { body, to, begun_at, accepted_at: Instant::now() });
            return;
        }
        insisted.retried += 1;
        if stop.load(Ordering::Relaxed) && told_to_stop.get_or_insert_with(Instant::now).elapsed() > TRIED_FOR
        {
            break;
        }
        std::thread::sleep(RETRY_PAUSE);
    }
    insisted.unanswered += 1;
}
