//! One connection from authentication to its end: requests out, replies and pushes in.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use goim_session::client::RequestError;
use goim_session::follow::{AskId, Follow, Follower};
use goim_session::{ClientStep, Moment};
use goim_wire::sync::{self, Body as _};
use goim_wire::{Encoding, Operation, PacketBuf, Sequence, Version, control};
use tokio::sync::mpsc::OwnedPermit;
use tokio::time::Instant;

use crate::connection::{Connection, Exchange, Link};
use crate::desk::{Answer, Call, Command, Desk, Failure, Offered, Wish};
use crate::dial::closes;
use crate::event::{DisconnectReason, Notice};
use crate::wanted::Change;
use crate::{Event, ServerError, TimelineMessage};

/// How long a connection that cannot be written to is still read: the reason may be on its way.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long a close may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// A request that waits for its reply.
struct Waiting {
    /// Where it begins in the stream of everything written.
    begins: u64,
    /// `None`: the client itself has asked.
    answer: Option<Answer>,
    /// What to take back when the server refuses; `None` for requests of the application.
    change: Option<Change>,
}

/// A packet with its body as it is, whatever it came as.
fn inflated(link: &Link, packet: PacketBuf) -> Result<PacketBuf, DisconnectReason> {
    match link.versions.row(packet.version) {
        Some(row) if row.encoding != Encoding::Identity => {
            let body = link.inflate(packet.version, &packet.body)?.into();
            let version = link.versions.plain(row.schema).map_or(packet.version, |plain| plain.version);
            Ok(PacketBuf { version, body, ..packet })
        }
        _ => Ok(packet),
    }
}

/// A connection at work.
struct Drive<'a> {
    link: &'a mut Link,
    desk: &'a mut Desk,
    waiting: HashMap<Sequence, Waiting>,
    /// Questions of the loop that follows timelines.
    asked: HashMap<Sequence, AskId>,
    /// An event for which there was no room; nothing is read until there is.
    parked: Option<Event>,
    /// A command for which the session had no room.
    held: Option<Command>,
    notice: Option<Notice>,
    /// The socket takes nothing more, and since when.
    broken: Option<(io::Error, Instant)>,
}

/// Serves the connection until it ends. `None`: the application wants nothing more.
pub(crate) async fn drive(connection: &mut Connection, desk: &mut Desk) -> Option<DisconnectReason> {
    let connected =
        Event::Connected { endpoint: connection.endpoint.clone(), reply: connection.reply.clone() };
    let catch_up = desk.wanted.catch_up(&connection.applied);
    let mut drive = Drive {
        link: &mut connection.link,
        desk,
        waiting: HashMap::new(),
        asked: HashMap::new(),
        parked: Some(connected),
        held: None,
        notice: None,
        broken: None,
    };
    drive.restore(catch_up);
    let now = drive.link.clock.now();
    if let Some(follower) = &mut drive.desk.follower {
        follower.connected(now, connection.resumes);
    }
    let reason = drive.run().await;
    if reason.is_none() {
        drive.link.close(GOODBYE).await;
    }
    if let Some(follower) = &mut drive.desk.follower {
        follower.disconnected();
    }
    let parked = drive.finish();
    if reason.is_some()
        && let Some(event) = parked
        && !desk.tell(event).await
    {
        return None;
    }
    reason
}

impl Drive<'_> {
    async fn run(&mut self) -> Option<DisconnectReason> {
        loop {
            if let Err(reason) = self.take_input() {
                return Some(reason);
            }
            if let Some(command) = self.held.take() {
                self.obey(command);
            }
            self.follow();
            let reading = self.parked.is_none();
            self.link.session.set_reading(reading, self.link.clock.now());
            let writing = self.broken.is_none();
            let commands = self.held.is_none() && writing && self.link.session.takes_requests();
            let deadline = match &self.broken {
                Some((_, since)) => *since + LAST_WORDS,
                None => {
                    let follower = self.desk.follower.as_ref().filter(|_| reading);
                    let followed = follower.map_or(Moment::NEVER, Follower::deadline);
                    self.link.clock.instant(self.link.session.deadline().min(followed))
                }
            };
            tokio::select! {
                exchange = self.link.exchange(reading, writing) => match exchange {
                    Exchange::Read(Ok(0)) => return Some(self.reason(DisconnectReason::Closed)),
                    Exchange::Read(Ok(_)) | Exchange::Wrote(Ok(())) => {}
                    Exchange::Read(Err(error)) if closes(&error) => {
                        return Some(self.reason(DisconnectReason::Closed));
                    }
                    Exchange::Read(Err(error)) => return Some(self.reason(DisconnectReason::Io(error))),
                    Exchange::Wrote(Err(error)) => self.broken = Some((error, Instant::now())),
                },
                call = self.desk.next(commands, !reading) => match call {
                    Call::Command(command) => self.obey(command),
                    Call::Room(permit) => self.unpark(permit),
                    Call::Stop => return None,
                },
                () = tokio::time::sleep_until(deadline) => {
                    if let Some((error, _)) = self.broken.take() {
                        return Some(self.reason(DisconnectReason::Io(error)));
                    }
                    let now = self.link.clock.now();
                    if let Some(follower) = &mut self.desk.follower {
                        follower.handle_timeout(now);
                    }
                    if now >= self.link.session.deadline()
                        && let Err(ended) = self.link.session.handle_timeout(now)
                    {
                        return Some(self.reason(ended.into()));
                    }
                }
            }
        }
    }

    /// What the server has said counts for more than how the socket ended.
    fn reason(&mut self, otherwise: DisconnectReason) -> DisconnectReason {
        match (self.notice.take(), self.broken.take()) {
            (Some(notice), _) => DisconnectReason::Notice(notice),
            (None, Some((error, _))) => DisconnectReason::Io(error),
            (None, None) => otherwise,
        }
    }

    /// Deals with what was read, until it is used up or the application has no room for more.
    fn take_input(&mut self) -> Result<(), DisconnectReason> {
        while self.parked.is_none() {
            let event = match self.link.step() {
                Err(ended) => return Err(self.reason(ended.into())),
                Ok(ClientStep::Idle) => break,
                Ok(ClientStep::Handled | ClientStep::Authenticated { .. }) => continue,
                Ok(ClientStep::Push(packet)) if packet.operation == Operation::NOTIFY => {
                    let body = Bytes::copy_from_slice(packet.body);
                    self.notified(body);
                    continue;
                }
                Ok(ClientStep::Push(packet)) if packet.operation == Operation::MEMBER_MESSAGE => {
                    match member_message(packet.body) {
                        Some(event) => {
                            self.desk.shared.counters.pushes.add_one();
                            event
                        }
                        None => continue,
                    }
                }
                Ok(ClientStep::Push(packet)) => {
                    let packet = packet.to_owned();
                    let packet = inflated(self.link, packet).map_err(|wrong| self.reason(wrong))?;
                    self.desk.shared.counters.pushes.add_one();
                    Event::Push(packet)
                }
                Ok(ClientStep::Compressed { version, body }) => {
                    let body = Bytes::copy_from_slice(body);
                    match self.link.inflate(version, &body) {
                        Ok(run) => self.link.session.take_run(run),
                        Err(wrong) => return Err(self.reason(wrong)),
                    }
                    continue;
                }
                Ok(ClientStep::Online { count }) => Event::Online(u32::try_from(count).unwrap_or(0)),
                Ok(ClientStep::Reply { request, packet }) if self.asked.contains_key(&request) => {
                    let body = Bytes::copy_from_slice(packet.body);
                    let id = self.asked.remove(&request);
                    self.synced(id, body);
                    continue;
                }
                Ok(ClientStep::Failed { request, .. }) if self.asked.contains_key(&request) => {
                    let id = self.asked.remove(&request);
                    self.not_synced(id);
                    continue;
                }
                Ok(ClientStep::Reply { request, packet }) => {
                    let packet = packet.to_owned();
                    let packet = inflated(self.link, packet).map_err(|wrong| self.reason(wrong))?;
                    self.answer(request, Ok(packet.body));
                    continue;
                }
                Ok(ClientStep::Failed { request, error }) => {
                    let error = ServerError::from_json(error);
                    self.answer(request, Err(Failure::Refused(error)));
                    continue;
                }
                Ok(ClientStep::Unmatched(packet)) if packet.operation == Operation::SYNC_REPLY => {
                    let body = Bytes::copy_from_slice(packet.body);
                    self.synced(None, body);
                    continue;
                }
                Ok(ClientStep::Unmatched(packet)) => {
                    let (operation, sequence) = (packet.operation, packet.sequence.0);
                    tracing::debug!(%operation, sequence, "reply to no request");
                    self.desk.shared.counters.replies_late.add_one();
                    continue;
                }
                Ok(ClientStep::Disconnect { body, .. }) => {
                    self.notice = Some(Notice::from_json(body));
                    continue;
                }
            };
            if let Offered::Full(event) = self.desk.offer(event) {
                self.desk.shared.counters.pauses.add_one();
                self.parked = Some(event);
            }
        }
        Ok(())
    }

    /// The word of a timeline.
    fn notified(&mut self, body: Bytes) {
        let now = self.link.clock.now();
        if let (Some(follower), Some(notify)) = (&mut self.desk.follower, sync::Notify::read(body)) {
            follower.notified(now, notify);
            self.follow();
        }
    }

    /// The answer to a question of the loop, or what the server gives for a position in the token.
    fn synced(&mut self, id: Option<AskId>, body: Bytes) {
        let now = self.link.clock.now();
        let Some(follower) = &mut self.desk.follower else { return };
        match (sync::SyncReply::read(body), id) {
            // A server that knows nothing of timelines echoes an empty body.
            (Some(reply), id) if !reply.timeline.is_empty() => follower.replied(now, id, reply),
            (_, Some(id)) => follower.failed(now, id),
            (_, None) => {}
        }
        self.follow();
    }

    fn not_synced(&mut self, id: Option<AskId>) {
        let now = self.link.clock.now();
        if let (Some(follower), Some(id)) = (&mut self.desk.follower, id) {
            follower.failed(now, id);
        }
    }

    /// Does what the loop wants, as long as the application has room for what it gives.
    fn follow(&mut self) {
        let now = self.link.clock.now();
        while self.parked.is_none() {
            let Some(follower) = &mut self.desk.follower else { return };
            let event = match follower.poll(now) {
                None => return,
                Some(Follow::Ask { id, request }) => {
                    match self.link.session.request(Version::GOIM, Operation::SYNC, &request.write()) {
                        Ok(sequence) => drop(self.asked.insert(sequence, id)),
                        Err(error) => {
                            tracing::debug!(%error, "a timeline is asked for later");
                            follower.failed(now, id);
                        }
                    }
                    continue;
                }
                Some(Follow::Give { timeline, messages, position }) => {
                    let messages = messages.into_iter().map(TimelineMessage::from).collect();
                    Event::Messages { timeline, messages, position: position.into() }
                }
                Some(Follow::Gap { timeline, position }) => {
                    Event::Gap { timeline, position: position.into() }
                }
            };
            if let Offered::Full(event) = self.desk.offer(event) {
                self.desk.shared.counters.pauses.add_one();
                self.parked = Some(event);
            }
        }
    }

    /// There is room for the event that waits, or nobody left to take it.
    fn unpark(&mut self, permit: Option<OwnedPermit<Event>>) {
        match (self.parked.take(), permit) {
            (Some(event), Some(permit)) => {
                permit.send(event);
            }
            (Some(_), None) => self.desk.shared.counters.events_discarded.add_one(),
            (None, _) => {}
        }
    }

    fn answer(&mut self, request: Sequence, result: Result<Bytes, Failure>) {
        let Some(waiting) = self.waiting.remove(&request) else { return };
        if let (Err(_), Some(change)) = (&result, &waiting.change) {
            self.desk.wanted.take_back(change);
        }
        if let Some(answer) = waiting.answer
            && answer.send(result).is_err()
        {
            self.desk.shared.counters.replies_late.add_one();
        }
    }

    /// Passes a command on to the session, or holds it until there is room.
    fn obey(&mut self, command: Command) {
        if command.answer.is_closed() {
            // Whoever asked has gone before anything was sent.
            return;
        }
        let mut after = self.desk.wanted.clone();
        let (version, operation, body) = match &command.wish {
            Wish::Request { version, operation, body } => (*version, *operation, body.clone()),
            Wish::Room(room) => {
                after.room = Some(room.clone());
                (Version::GOIM, Operation::CHANGE_ROOM, room.clone().unwrap_or_default().into())
            }
            Wish::Rooms { rooms, .. } if !after.has_room_for_rooms(rooms) => {
                let _ = command.answer.send(Err(Failure::TooManyChanges));
                return;
            }
            Wish::Rooms { rooms, wanted } => {
                after.set_rooms(rooms, *wanted);
                let operation = if *wanted { Operation::JOIN_ROOMS } else { Operation::LEAVE_ROOMS };
                (Version::GOIM, operation, serde_json::Value::from(rooms.clone()).to_string().into())
            }
            Wish::Operations { operations, .. } if !after.has_room_for(operations) => {
                let _ = command.answer.send(Err(Failure::TooManyChanges));
                return;
            }
            Wish::Operations { operations, wanted } => {
                after.set(operations, *wanted);
                let operation = if *wanted { Operation::SUBSCRIBE } else { Operation::UNSUBSCRIBE };
                (Version::GOIM, operation, control::format_operations(operations).into())
            }
        };
        let begins = self.link.output_end();
        match self.link.session.request(version, operation, &body) {
            Ok(request) => {
                let change = match command.wish {
                    Wish::Request { .. } => None,
                    Wish::Room(_) | Wish::Operations { .. } | Wish::Rooms { .. } => {
                        let before = std::mem::replace(&mut self.desk.wanted, after.clone());
                        Some(Change { before, after })
                    }
                };
                self.waiting.insert(request, Waiting { begins, answer: Some(command.answer), change });
            }
            Err(RequestError::BodyTooLong { len, limit }) => {
                let _ = command.answer.send(Err(Failure::TooLong { len, limit }));
            }
            Err(_) => self.held = Some(command),
        }
    }

    /// Asks a new connection for what its token did not say.
    fn restore(&mut self, requests: Vec<(Operation, Vec<u8>)>) {
        for (operation, body) in requests {
            // Few and small: a new connection has room for them.
            match self.link.session.request(Version::GOIM, operation, &body) {
                Ok(request) => {
                    let waiting = Waiting { begins: self.link.output_end(), answer: None, change: None };
                    self.waiting.insert(request, waiting);
                }
                Err(error) => tracing::debug!(%error, %operation, "not restored"),
            }
        }
    }

    /// Answers all that still waits, and gives the event for which there was no room.
    fn finish(self) -> Option<Event> {
        for waiting in self.waiting.into_values() {
            let Some(answer) = waiting.answer else { continue };
            let result = match waiting.change {
                // The wish is kept, and goes into the next connection.
                Some(_) => Ok(Bytes::new()),
                None => {
                    self.desk.shared.counters.requests_cut.add_one();
                    let may_have_arrived = self.link.has_written_beyond(waiting.begins);
                    Err(Failure::Disconnected { may_have_arrived })
                }
            };
            let _ = answer.send(result);
        }
        if let Some(command) = self.held {
            self.desk.refuse(command);
        }
        self.parked
    }
}

/// A member's message out of its packet; `None` for a body that is none.
fn member_message(body: &[u8]) -> Option<Event> {
    let sync::Notify { timeline, messages, .. } = sync::Notify::read(Bytes::copy_from_slice(body))?;
    let message = messages.into_iter().next()?.into();
    Some(Event::MemberMessage { timeline, message })
}
