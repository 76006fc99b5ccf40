//! Which comets a room's messages need not go to, because nobody of the room is there.
//!
//! What is known of a comet's rooms may be old, so absence is never taken from it: a message for a room that is not known there is
//! parked, the comet is asked for its news, and only an answer to a question that was asked after the message had been read decides. Who was in
//! the room when the message was accepted is then in the answer, however slow the way is. That a room is known is enough
//! to send at once. A comet that cannot tell (one of goim's, one with too many rooms, one that does not answer) gets everything.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use goim_ports::{Call, CometError, CometPool, RoomId, RoomsDelta, RoomsRevision, ServerId};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::lanes::Assignment;
use crate::metrics::Metrics;

/// The least time between two questions to one comet: what comes meanwhile is decided by one answer.
const ASK_INTERVAL: Duration = Duration::from_millis(10);
/// How long news may be left alone while the comet is sent to: rooms that have gone are sent to that long in vain.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// How long an answer may take.
const ASK_DEADLINE: Duration = Duration::from_secs(1);
/// How long a comet is not asked again that did not answer.
const SILENT_FOR: Duration = Duration::from_secs(1);
/// How long one is not asked again that does not know the question, or has too many rooms.
const UNABLE_FOR: Duration = Duration::from_secs(60);

/// What is known of the rooms of all comets.
pub(crate) struct Routing {
    pool: Arc<dyn CometPool>,
    metrics: Arc<Metrics>,
    comets: HashMap<ServerId, View>,
    tell: mpsc::UnboundedSender<Answer>,
    /// At most one for each comet.
    answers: mpsc::UnboundedReceiver<Answer>,
}

/// The answer of one comet.
pub(crate) struct Answer {
    server: ServerId,
    news: Result<RoomsDelta, CometError>,
}

/// What is known of one comet's rooms.
#[derive(Default)]
struct View {
    version: RoomsRevision,
    /// With the stripe of the comet that each is in.
    rooms: HashMap<RoomId, u32>,
    /// The comet gets everything until then.
    blind_until: Option<Instant>,
    /// Batches of rooms that are not known here, one of each at most: the next gathers until this one's way is decided.
    parked: VecDeque<(RoomId, Assignment)>,
    /// How many were there when the question that is out was asked.
    asked: Option<usize>,
    last_asked: Option<Instant>,
    /// Sent to since it was asked last.
    is_used: bool,
}

impl Routing {
    pub(crate) fn new(pool: Arc<dyn CometPool>, metrics: Arc<Metrics>) -> Self {
        let (tell, answers) = mpsc::unbounded_channel();
        Self { pool, metrics, comets: HashMap::new(), tell, answers }
    }

    /// Takes a room's batch for one comet: what can leave now goes to `out`.
    pub(crate) fn route(
        &mut self,
        room: &RoomId,
        assignment: Assignment,
        now: Instant,
        out: &mut Vec<Assignment>,
    ) {
        let view = self.comets.entry(assignment.server.clone()).or_default();
        view.is_used = true;
        let is_blind = view.blind_until.is_some_and(|until| until > now);
        if is_blind || view.rooms.contains_key(room) {
            out.push(assignment);
        } else {
            view.parked.push_back((room.clone(), assignment));
        }
    }

    /// Asks the comets that should be asked now.
    pub(crate) fn ask(&mut self, now: Instant) {
        for (server, view) in &mut self.comets {
            if view.due(now).is_none_or(|due| due > now) {
                continue;
            }
            view.asked = Some(view.parked.len());
            (view.last_asked, view.is_used) = (Some(now), false);
            let question = self.pool.get(server).map(|comet| comet.rooms_since(view.version.clone()));
            let (tell, server) = (self.tell.clone(), server.clone());
            tokio::spawn(async move {
                let news = match question {
                    None => Err(CometError::Unavailable("it has gone".to_owned())),
                    Some(Call::Ready(news)) => news,
                    Some(Call::Pending(news)) => {
                        timeout(ASK_DEADLINE, news).await.unwrap_or(Err(CometError::Timeout))
                    }
                };
                // Nobody is there any more when the job ends.
                let _ = tell.send(Answer { server, news });
            });
        }
    }

    /// When [`Routing::ask`] has something to do next.
    pub(crate) fn next_due(&self, now: Instant) -> Option<Instant> {
        self.comets.values().filter_map(|view| view.due(now)).min()
    }

    /// The next answer.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn answer(&mut self) -> Answer {
        match self.answers.recv().await {
            Some(answer) => answer,
            // There is always a sender: this.
            None => std::future::pending().await,
        }
    }

    /// Takes an answer in, and decides what was parked before its question.
    pub(crate) fn learn(&mut self, answer: Answer, now: Instant, out: &mut Vec<Assignment>) {
        let Some(view) = self.comets.get_mut(&answer.server) else { return };
        let decided = view.asked.take().unwrap_or(0);
        match answer.news {
            Ok(news) => {
                view.learn(news);
                let saved = view.decide(decided, out);
                self.metrics.room_calls_saved.inc_by(saved);
            }
            Err(error) => {
                let pause = if matches!(error, CometError::Unsupported | CometError::Invalid(_)) {
                    UNABLE_FOR
                } else {
                    SILENT_FOR
                };
                tracing::debug!(server = %answer.server, %error, "a comet cannot tell its rooms and gets all messages");
                let parked = std::mem::take(&mut view.parked);
                out.extend(parked.into_iter().map(|(_, assignment)| assignment));
                *view = View { blind_until: Some(now + pause), ..View::default() };
            }
        }
    }

    /// Everything that is parked, for the end: nobody waits for answers then.
    pub(crate) fn take_all(&mut self) -> Vec<Assignment> {
        let views = std::mem::take(&mut self.comets);
        views.into_values().flat_map(|view| view.parked).map(|(_, assignment)| assignment).collect()
    }

    /// Forgets comets that have left the pool.
    pub(crate) fn forget_gone(&mut self) {
        self.comets.retain(|server, view| !view.parked.is_empty() || self.pool.get(server).is_some());
    }
}

impl View {
    /// When it should be asked; `now` for one that never was.
    fn due(&self, now: Instant) -> Option<Instant> {
        let is_of_interest = self.is_used || !self.parked.is_empty();
        if self.asked.is_some() || !is_of_interest {
            return None;
        }
        // Nothing is parked while it is blind.
        let pause = if self.parked.is_empty() { REFRESH_INTERVAL } else { ASK_INTERVAL };
        let next = self.last_asked.map_or(now, |last| last + pause);
        Some(self.blind_until.map_or(next, |until| next.max(until)))
    }

    fn learn(&mut self, news: RoomsDelta) {
        self.blind_until = None;
        self.version = news.version;
        for stripe in news.stripes {
            if stripe.complete {
                self.rooms.retain(|_, of| *of != stripe.stripe);
            }
            for gone in &stripe.removed {
                self.rooms.remove(gone);
            }
            self.rooms.extend(stripe.added.into_iter().map(|room| (room, stripe.stripe)));
        }
    }

    /// The first `count` of what is parked leave, or are for nobody. Gives the number of the latter.
    fn decide(&mut self, count: usize, out: &mut Vec<Assignment>) -> u64 {
        let mut saved = 0;
        for (room, assignment) in self.parked.drain(..count.min(self.parked.len())) {
            if self.rooms.contains_key(&room) {
                out.push(assignment);
            } else {
                saved += 1;
            }
        }
        saved
    }
}
