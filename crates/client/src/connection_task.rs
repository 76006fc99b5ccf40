//! One connection from authentication to its end: requests out, replies and pushes in.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use goim_session::client::RequestError;
use goim_session::timeline_sync::{Action, SyncId, TimelineSync};
use goim_session::{ClientStep, Millis};
use goim_wire::sync::{self, Body as _};
use goim_wire::{Encoding, Operation, PacketBuf, Sequence, Version, control};
use tokio::sync::mpsc::OwnedPermit;
use tokio::time::Instant;

use crate::command::{Command, CommandQueue, ReplySender, Request, RequestFailure, SendResult, Wakeup};
use crate::connection::{Connection, Exchange, Link};
use crate::desired_state::{Change, DesiredState};
use crate::dialer::is_close;
use crate::event::{DisconnectReason, Notice};
use crate::timelines::Timelines;
use crate::{Event, ServerError, TimelineMessage};

/// How long a connection is still read after a write failed: the disconnect notice may follow.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a graceful close may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A request in flight.
struct InFlight {
    /// The offset of its first byte in everything written.
    start: u64,
    /// `None` for requests of the client itself.
    reply: Option<ReplySender>,
    /// The change to undo if the server refuses it; `None` for packets of the application.
    change: Option<Change>,
}

/// The state of one connection.
struct ConnectionTask<'a> {
    link: &'a mut Link,
    queue: &'a mut CommandQueue,
    requests: HashMap<Sequence, InFlight>,
    /// Sync requests in flight.
    sync_requests: HashMap<Sequence, SyncId>,
    /// An event that the full queue did not take; nothing is read until it does.
    blocked_event: Option<Event>,
    /// A command that the session did not accept yet; no other is taken until it does.
    blocked_command: Option<Command>,
    notice: Option<Notice>,
    /// The error of the last write, and when it occurred. Nothing is written any more.
    write_error: Option<(io::Error, Instant)>,
}

/// Serves the connection until it ends. Returns `None` when the client is to stop.
pub(crate) async fn run(connection: &mut Connection, queue: &mut CommandQueue) -> Option<DisconnectReason> {
    let connected =
        Event::Connected { endpoint: connection.endpoint.clone(), reply: connection.reply.clone() };
    let resync = queue.desired.resync(&connection.applied);
    let mut task = ConnectionTask {
        link: &mut connection.link,
        queue,
        requests: HashMap::new(),
        sync_requests: HashMap::new(),
        blocked_event: Some(connected),
        blocked_command: None,
        notice: None,
        write_error: None,
    };
    task.resync(resync);
    let now = task.link.clock.now();
    if let Some(timelines) = &mut task.queue.timelines {
        let in_token = timelines.is_at(connection.resume_revision);
        timelines.sync().connected(now, in_token);
    }
    let reason = task.run().await;
    if reason.is_none() {
        task.link.close(CLOSE_TIMEOUT).await;
    }
    if let Some(sync) = task.sync() {
        sync.disconnected();
    }
    let blocked_event = task.finish();
    if reason.is_some()
        && let Some(event) = blocked_event
        && !queue.send_event(event).await
    {
        return None;
    }
    reason
}

impl ConnectionTask<'_> {
    async fn run(&mut self) -> Option<DisconnectReason> {
        loop {
            if let Err(reason) = self.read_input() {
                return Some(reason);
            }
            if self.link.session.takes_requests()
                && let Some(command) = self.blocked_command.take()
            {
                self.handle(command);
            }
            self.run_sync();
            let reading = self.blocked_event.is_none();
            self.link.session.set_reading(reading, self.link.clock.now());
            let writing = self.write_error.is_none();
            let commands = self.blocked_command.is_none() && writing;
            let deadline = self.deadline(reading);
            tokio::select! {
                exchange = self.link.exchange(reading, writing) => match exchange {
                    Exchange::Read(Ok(0)) => return Some(self.end_reason(DisconnectReason::Closed)),
                    Exchange::Read(Ok(_)) | Exchange::Wrote(Ok(())) => {}
                    Exchange::Read(Err(error)) if is_close(&error) => {
                        return Some(self.end_reason(DisconnectReason::Closed));
                    }
                    Exchange::Read(Err(error)) => return Some(self.end_reason(DisconnectReason::Io(error))),
                    Exchange::Wrote(Err(error)) => self.write_error = Some((error, Instant::now())),
                },
                wakeup = self.queue.next(commands, !reading) => match wakeup {
                    Wakeup::Command(command) => self.accept(command),
                    Wakeup::EventPermit(permit) => self.send_blocked_event(permit),
                    Wakeup::Stop => return None,
                },
                () = tokio::time::sleep_until(deadline) => {
                    if let Err(reason) = self.handle_timeout() {
                        return Some(reason);
                    }
                }
            }
        }
    }

    fn sync(&mut self) -> Option<&mut TimelineSync> {
        self.queue.timelines.as_mut().map(Timelines::sync)
    }

    fn deadline(&mut self, reading: bool) -> Instant {
        if let Some((_, since)) = &self.write_error {
            return *since + NOTICE_TIMEOUT;
        }
        let sync = self.sync().filter(|_| reading).map_or(Millis::NEVER, |sync| sync.deadline());
        self.link.clock.instant(self.link.session.deadline().min(sync))
    }

    fn handle_timeout(&mut self) -> Result<(), DisconnectReason> {
        if let Some((error, _)) = self.write_error.take() {
            return Err(self.end_reason(DisconnectReason::Io(error)));
        }
        let now = self.link.clock.now();
        if let Some(sync) = self.sync() {
            sync.handle_timeout(now);
        }
        if now >= self.link.session.deadline()
            && let Err(ended) = self.link.session.handle_timeout(now)
        {
            return Err(self.end_reason(ended.into()));
        }
        Ok(())
    }

    /// A disconnect notice explains the end better than the state of the socket does.
    fn end_reason(&mut self, otherwise: DisconnectReason) -> DisconnectReason {
        match (self.notice.take(), self.write_error.take()) {
            (Some(notice), _) => DisconnectReason::Notice(notice),
            (None, Some((error, _))) => DisconnectReason::Io(error),
            (None, None) => otherwise,
        }
    }

    /// Processes what was read, until it is used up or the event queue is full.
    fn read_input(&mut self) -> Result<(), DisconnectReason> {
        while self.blocked_event.is_none() {
            match self.read_step() {
                Ok(Input::Event(event)) => self.send_event(event),
                Ok(Input::Handled) => {}
                Ok(Input::Idle) => break,
                Err(reason) => return Err(self.end_reason(reason)),
            }
        }
        Ok(())
    }

    /// Processes one step of the session.
    fn read_step(&mut self) -> Result<Input, DisconnectReason> {
        match self.link.step()? {
            ClientStep::Idle => return Ok(Input::Idle),
            ClientStep::Handled | ClientStep::Authenticated { .. } => {}
            ClientStep::Push(packet) if packet.operation == Operation::NOTIFY => {
                let body = Bytes::copy_from_slice(packet.body);
                self.notified(body);
            }
            ClientStep::Push(packet) if packet.operation == Operation::MEMBER_MESSAGE => {
                if let Some(event) = member_message(packet.body) {
                    self.queue.shared.counters.pushes.add_one();
                    return Ok(Input::Event(event));
                }
            }
            ClientStep::Push(packet) => {
                let packet = packet.to_owned();
                let packet = inflated(self.link, packet)?;
                self.queue.shared.counters.pushes.add_one();
                return Ok(Input::Event(Event::Push(packet)));
            }
            ClientStep::Compressed { version, body } => {
                let body = Bytes::copy_from_slice(body);
                let run = self.link.inflate(version, &body)?;
                self.link.session.take_run(run);
            }
            ClientStep::Online { count } => {
                return Ok(Input::Event(Event::Online(u32::try_from(count).unwrap_or(0))));
            }
            ClientStep::Reply { request, packet } => {
                let packet = packet.to_owned();
                match self.sync_requests.remove(&request) {
                    Some(id) => self.synced(Some(id), packet.body),
                    None => {
                        let packet = inflated(self.link, packet)?;
                        self.reply(request, Ok(packet.body));
                    }
                }
            }
            ClientStep::Failed { request, error } => {
                let error = ServerError::from_json(error);
                match self.sync_requests.remove(&request) {
                    Some(id) => self.sync_failed(id),
                    None => self.reply(request, Err(RequestFailure::Refused(error))),
                }
            }
            // The server syncs the positions in the token without being asked.
            ClientStep::Unmatched(packet) if packet.operation == Operation::SYNC_REPLY => {
                let body = Bytes::copy_from_slice(packet.body);
                self.synced(None, body);
            }
            ClientStep::Unmatched(packet) => {
                let (operation, sequence) = (packet.operation, packet.sequence.0);
                tracing::debug!(%operation, sequence, "reply to no request");
                self.queue.shared.counters.replies_late.add_one();
            }
            ClientStep::Disconnect { body, .. } => self.notice = Some(Notice::from_json(body)),
        }
        Ok(Input::Handled)
    }

    /// Handles the notification of a timeline (operation 20).
    fn notified(&mut self, body: Bytes) {
        let now = self.link.clock.now();
        if let (Some(sync), Some(notify)) = (self.sync(), sync::Notify::read(body)) {
            sync.notified(now, notify);
            self.run_sync();
        }
    }

    /// Handles the reply to a sync request, or to a position in the token (`id` is `None`).
    fn synced(&mut self, id: Option<SyncId>, body: Bytes) {
        let now = self.link.clock.now();
        let Some(sync) = self.sync() else { return };
        match (sync::SyncReply::read(body), id) {
            // A server without timelines echoes an empty body.
            (Some(reply), id) if !reply.timeline.is_empty() => sync.replied(now, id, reply),
            (_, Some(id)) => sync.failed(now, id),
            (_, None) => {}
        }
        self.run_sync();
    }

    fn sync_failed(&mut self, id: SyncId) {
        let now = self.link.clock.now();
        if let Some(sync) = self.sync() {
            sync.failed(now, id);
        }
    }

    /// Performs the actions of the sync loop while the event queue has room.
    fn run_sync(&mut self) {
        let now = self.link.clock.now();
        while self.blocked_event.is_none() {
            let Some(action) = self.sync().and_then(|sync| sync.poll(now)) else { return };
            match action {
                Action::SendSync { id, request } => {
                    match self.link.session.request(Version::GOIM, Operation::SYNC, &request.write()) {
                        Ok(sequence) => drop(self.sync_requests.insert(sequence, id)),
                        Err(error) => {
                            tracing::debug!(%error, "sync request postponed");
                            self.sync_failed(id);
                        }
                    }
                }
                Action::Deliver { timeline, messages, position } => {
                    let messages = messages.into_iter().map(TimelineMessage::from).collect();
                    self.send_event(Event::Messages { timeline, messages, position: position.into() });
                }
                Action::Gap { timeline, position } => {
                    self.send_event(Event::Gap { timeline, position: position.into() });
                }
            }
        }
    }

    /// Queues an event. With a full queue the event is held, and reading stops.
    fn send_event(&mut self, event: Event) {
        if let SendResult::Full(event) = self.queue.try_send_event(event) {
            self.queue.shared.counters.pauses.add_one();
            self.blocked_event = Some(event);
        }
    }

    /// Queues the event that was held; discards it when the application dropped its events.
    fn send_blocked_event(&mut self, permit: Option<OwnedPermit<Event>>) {
        match (self.blocked_event.take(), permit) {
            (Some(event), Some(permit)) => {
                permit.send(event);
            }
            (Some(_), None) => self.queue.shared.counters.events_discarded.add_one(),
            (None, _) => {}
        }
    }

    fn reply(&mut self, request: Sequence, result: Result<Bytes, RequestFailure>) {
        let Some(in_flight) = self.requests.remove(&request) else { return };
        if let (Err(_), Some(change)) = (&result, &in_flight.change) {
            self.queue.desired.rollback(change);
        }
        if let Some(reply) = in_flight.reply
            && reply.send(result).is_err()
        {
            self.queue.shared.counters.replies_late.add_one();
        }
    }

    /// Handles a new command.
    fn accept(&mut self, command: Command) {
        self.handle(command);
        if self.blocked_command.is_some() {
            self.queue.shared.counters.requests_delayed.add_one();
        }
    }

    /// Passes a command to the session, or holds it until the session accepts it.
    fn handle(&mut self, command: Command) {
        if command.reply.is_closed() {
            // The caller gave up before anything was sent.
            return;
        }
        let prepared = match self.prepare(&command.request) {
            Ok(Some(prepared)) => prepared,
            Ok(None) => {
                let _ = command.reply.send(Ok(Bytes::new()));
                return;
            }
            Err(failure) => {
                let _ = command.reply.send(Err(failure));
                return;
            }
        };
        let Prepared { version, operation, body, change } = prepared;
        let start = self.link.output_end();
        match self.link.session.request(version, operation, &body) {
            Ok(request) => {
                if let Some(Change { after, .. }) = &change {
                    self.queue.desired.clone_from(after);
                }
                self.requests.insert(request, InFlight { start, reply: Some(command.reply), change });
            }
            Err(RequestError::BodyTooLong { len, limit }) => {
                let _ = command.reply.send(Err(RequestFailure::TooLong { len, limit }));
            }
            Err(_) => self.blocked_command = Some(command),
        }
    }

    /// Returns the packet for a request, and the change of state if it is one; `None` when no
    /// packet is needed.
    fn prepare(&mut self, request: &Request) -> Result<Option<Prepared>, RequestFailure> {
        let (operation, body, change) = match request {
            Request::Packet { version, operation, body } => {
                let (version, operation, body) = (*version, *operation, body.clone());
                return Ok(Some(Prepared { version, operation, body, change: None }));
            }
            Request::ChangeRoom(room) => {
                let change = self.change(|state| {
                    state.room = Some(room.clone());
                    Ok(())
                })?;
                (Operation::CHANGE_ROOM, room.clone().unwrap_or_default().into(), change)
            }
            Request::ChangeRooms { rooms, wanted } => {
                let change = self.change(|state| state.change_rooms(rooms, *wanted))?;
                let operation = if *wanted { Operation::JOIN_ROOMS } else { Operation::LEAVE_ROOMS };
                (operation, serde_json::Value::from(rooms.clone()).to_string().into(), change)
            }
            Request::ChangeOperations { operations, wanted } => {
                let change = self.change(|state| state.change_operations(operations, *wanted))?;
                let operation = if *wanted { Operation::SUBSCRIBE } else { Operation::UNSUBSCRIBE };
                (operation, control::format_operations(operations).into(), change)
            }
            // The server need not know: it answers sync requests for any permitted timeline.
            Request::SubscribeTimeline { timeline, position } => {
                self.queue.subscribe_timeline(timeline, *position)?;
                return Ok(None);
            }
            Request::UnsubscribeTimeline { timeline } => {
                self.queue.unsubscribe_timeline(timeline)?;
                return Ok(None);
            }
        };
        Ok(Some(Prepared { version: Version::GOIM, operation, body, change: Some(change) }))
    }

    fn change(
        &self,
        apply: impl FnOnce(&mut DesiredState) -> Result<(), RequestFailure>,
    ) -> Result<Change, RequestFailure> {
        let before = self.queue.desired.clone();
        let mut after = before.clone();
        apply(&mut after)?;
        Ok(Change { before, after })
    }

    /// Sends the requests that bring a new connection to the desired state.
    fn resync(&mut self, requests: Vec<(Operation, Vec<u8>)>) {
        for (operation, body) in requests {
            let start = self.link.output_end();
            // Few and small: a new connection has room for them.
            match self.link.session.request(Version::GOIM, operation, &body) {
                Ok(request) => {
                    self.requests.insert(request, InFlight { start, reply: None, change: None });
                }
                Err(error) => tracing::debug!(%error, %operation, "not restored"),
            }
        }
    }

    /// Replies to all requests in flight, and returns the event that was held.
    fn finish(self) -> Option<Event> {
        for InFlight { start, reply, change } in self.requests.into_values() {
            let Some(reply) = reply else { continue };
            let result = match change {
                // The change is part of the next connection.
                Some(_) => Ok(Bytes::new()),
                None => {
                    self.queue.shared.counters.requests_cut.add_one();
                    let may_have_arrived = self.link.has_written_beyond(start);
                    Err(RequestFailure::Disconnected { may_have_arrived })
                }
            };
            let _ = reply.send(result);
        }
        if let Some(command) = self.blocked_command {
            self.queue.handle_disconnected(command);
        }
        self.blocked_event
    }
}

/// The packet for a request.
struct Prepared {
    version: Version,
    operation: Operation,
    body: Bytes,
    /// The change of state that the server confirms or refuses.
    change: Option<Change>,
}

/// The result of [`ConnectionTask::read_step`].
enum Input {
    Event(Event),
    Handled,
    /// The input is used up.
    Idle,
}

/// Returns a packet with its body uncompressed, in the uncompressed version of the same schema.
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

/// Parses a member's message (operation 32); `None` for an invalid body.
fn member_message(body: &[u8]) -> Option<Event> {
    let sync::Notify { timeline, messages, .. } = sync::Notify::read(Bytes::copy_from_slice(body))?;
    let message = messages.into_iter().next()?.into();
    Some(Event::MemberMessage { timeline, message })
}
