//! A shard with its sessions, and a logic that knows them. Each operation returns the processor
//! time that it took.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use goim_adapters::memory::MemorySessions;
use goim_comet::Config;
use goim_comet::harness::{Harness, Opened};
use goim_ports::{
    Accepted, Broadcast, Call, ConnectError, ConnectRequest, KeyPush, LogicError, LogicPort, Mid,
    OnlineReport, OnlineTotals, Operation, PacketBuf, Payload, RoomPush, ServerId, SessionDirectory as _,
    SessionKey, SessionRef, Upstream,
};

use crate::measure::cpu_ns;

/// The operation of all pushes. Every session has subscribed to it, and to two others.
const OPERATION: Operation = Operation(1000);
/// Sessions are closed without a heartbeat in this time: twice the interval of clients, so that
/// timers fire as often as possible.
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);
/// Length of a message's body.
const BODY_LEN: usize = 64;
/// The room that all sessions are in.
const ONE: &str = "live://1000000";

/// Which room a session is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rooms {
    None,
    Own,
    One,
}

/// Logic with the session directory of a server in one process. A token is `key member room`.
struct Directory(MemorySessions);

impl LogicPort for Directory {
    fn connect(&self, request: ConnectRequest) -> Call<Result<Accepted, ConnectError>> {
        let token = String::from_utf8_lossy(&request.token);
        let mut words = token.splitn(3, ' ');
        let mut word = || words.next().unwrap_or_default();
        let (key, mid, room) = (word(), word().parse().unwrap_or_default(), word());
        Call::Ready(Ok(Accepted {
            mid: Mid(mid),
            key: key.into(),
            room: (!room.is_empty()).then(|| room.into()),
            accepts: vec![OPERATION, Operation(1001), Operation(1002)],
            heartbeat: HEARTBEAT_MAX,
            rooms: Vec::new(),
            scope: None,
            expires_at: None,
            protover: None,
            syncing: None,
        }))
    }

    fn disconnect(&self, _: SessionRef) -> Call<Result<bool, LogicError>> {
        Call::Ready(Ok(true))
    }

    fn heartbeat(&self, session: SessionRef) -> Call<Result<(), LogicError>> {
        drop(self.0.touch(session));
        Call::Ready(Ok(()))
    }

    fn renew_online(&self, _: OnlineReport) -> Call<Result<OnlineTotals, LogicError>> {
        Call::Ready(Ok(OnlineTotals::default()))
    }

    fn receive(&self, _: Upstream) -> Call<Result<Bytes, LogicError>> {
        Call::Ready(Ok(Bytes::new()))
    }
}

/// A shard and its sessions. Session `n` has member `n + 1`, and room `n` when each has a separate
/// room.
pub(crate) struct World {
    harness: Harness,
    logic: Arc<Directory>,
    opened: Vec<Opened>,
    sessions: usize,
    /// The order of heartbeats: far from that in memory, and the same in each round.
    order: Vec<u32>,
    body: Bytes,
    seed: u64,
}

/// 36 bytes, like the UUIDs that logic generates.
fn key(session: usize) -> SessionKey {
    let mixed = (session as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{mixed:016x}-4c1e-8b7a-{session:09}").into()
}

fn own_room(session: usize) -> String {
    format!("live://{session:07}")
}

impl World {
    /// Creates a shard whose directory knows all sessions; none is open.
    pub(crate) fn with_directory(sessions: usize) -> Result<Self, Box<dyn Error>> {
        let mut config = Config::default();
        config.limits.connections_max = usize::MAX;
        config.send.queued_sends_max = NonZeroU32::MIN.saturating_add(19_999);
        let logic = Arc::new(Directory(MemorySessions::new()));
        let harness = Harness::new(config, logic.clone())?;
        let mut world = Self {
            harness,
            logic,
            opened: Vec::with_capacity(sessions),
            sessions,
            order: (0..sessions as u32).collect(),
            body: Bytes::from(vec![b'm'; BODY_LEN]),
            seed: 0x2545_f491_4f6c_dd1d,
        };
        let server = ServerId::from("localhost");
        for session in 0..sessions {
            let mid = Mid(session as i64 + 1);
            drop(world.logic.0.add(SessionRef { mid, key: key(session), server: server.clone() }));
        }
        for from in (1..sessions).rev() {
            let to = world.random(from + 1);
            world.order.swap(from, to);
        }
        Ok(world)
    }

    pub(crate) fn new(sessions: usize, rooms: Rooms) -> Result<Self, Box<dyn Error>> {
        let mut world = Self::with_directory(sessions)?;
        world.open_all(rooms);
        Ok(world)
    }

    /// Opens all sessions, each from another address. [`World::check`] finds those that were
    /// refused.
    pub(crate) fn open_all(&mut self, rooms: Rooms) {
        for session in 0..self.sessions {
            let [_, a, b, c] = (session as u32).to_be_bytes();
            let from = SocketAddr::from((Ipv4Addr::new(10, a, b, c), 40_000));
            let room = room_of(session, rooms);
            let token = format!("{} {} {room}", key(session), session + 1);
            self.opened.extend(self.harness.open(from, token.as_bytes()));
            if session % 256 == 255 {
                self.harness.settle();
            }
        }
        self.quiet();
    }

    /// Moves all sessions to other rooms.
    pub(crate) fn move_all(&mut self, rooms: Rooms) {
        for session in 0..self.opened.len() {
            self.harness.change_room(&self.opened[session..=session], &room_of(session, rooms));
            if session % 256 == 255 {
                self.harness.settle();
            }
        }
        self.quiet();
    }

    /// Advances time so far that the shard frees idle memory.
    fn quiet(&mut self) {
        for _ in 0..2 {
            self.harness.settle();
            self.harness.advance(Duration::from_secs(2));
        }
        self.harness.settle();
    }

    pub(crate) fn len(&self) -> usize {
        self.sessions
    }

    pub(crate) const fn connection_bytes() -> usize {
        Harness::connection_bytes()
    }

    pub(crate) fn room_bytes() -> usize {
        Harness::room_bytes(own_room(0).len())
    }

    /// Checks that no session was refused or closed.
    pub(crate) fn check(&self) -> Result<(), Box<dyn Error>> {
        match self.harness.sessions() {
            all if all == self.sessions as u64 => Ok(()),
            left => Err(format!("{left} of {} sessions are open", self.sessions).into()),
        }
    }

    fn random(&mut self, below: usize) -> usize {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed % below as u64) as usize
    }

    fn packet(&self) -> PacketBuf {
        PacketBuf::push(OPERATION, self.body.clone())
    }

    fn some(&mut self, count: usize) -> Vec<usize> {
        (0..count).map(|_| self.random(self.sessions)).collect()
    }

    /// Does `operations` operations on random sessions, `together` of them between two turns.
    /// `prepare` is not measured.
    fn timed<T>(
        &mut self,
        operations: usize,
        together: usize,
        prepare: impl Fn(&Self, usize) -> T,
        act: impl Fn(&mut Self, T),
    ) -> u64 {
        let written = Harness::written();
        let mut spent = 0;
        for _ in 0..operations / 64 {
            let mut prepared: Vec<T> =
                self.some(64).into_iter().map(|session| prepare(self, session)).collect();
            let before = cpu_ns();
            while !prepared.is_empty() {
                for one in prepared.drain(prepared.len().saturating_sub(together)..) {
                    act(self, one);
                }
                self.harness.settle();
            }
            spent += cpu_ns() - before;
        }
        let writes = Harness::written().writes - written.writes;
        assert!(writes > 0 && writes <= operations as u64, "{writes} writes of {operations} operations");
        spent
    }

    pub(crate) fn push_keys(&mut self, operations: usize, together: usize) -> u64 {
        let prepare = |world: &Self, session| world.key_push(vec![key(session)]);
        self.timed(operations, together, prepare, |world, push| assert!(world.harness.push(push)))
    }

    fn key_push(&self, keys: Vec<SessionKey>) -> KeyPush {
        KeyPush { keys, operation: OPERATION, payload: Payload::plain(self.packet()), accepted_at: None }
    }

    /// Pushes as logic does: from the member to its sessions, from there to the comet.
    pub(crate) fn push_members(&mut self, operations: usize, together: usize) -> u64 {
        let prepare = |_: &Self, session| Mid(session as i64 + 1);
        self.timed(operations, together, prepare, |world, mid| {
            let Call::Ready(Ok(found)) = world.logic.0.sessions_of(vec![mid]) else {
                panic!("the directory in memory answers at once");
            };
            let push = world.key_push(found.into_iter().map(|record| record.key).collect());
            assert!(world.harness.push(push), "the inbox has room");
        })
    }

    pub(crate) fn push_rooms(&mut self, operations: usize, together: usize) -> u64 {
        let prepare = |world: &Self, session| world.room_push(&own_room(session));
        self.timed(operations, together, prepare, |world, push| assert!(world.harness.push_room(push)))
    }

    fn room_push(&self, room: &str) -> RoomPush {
        RoomPush {
            room: room.into(),
            operation: OPERATION,
            payload: Payload::plain(self.packet()),
            accepted_at: None,
        }
    }

    pub(crate) fn heartbeats(&mut self, operations: usize, together: usize) -> u64 {
        let mut spent = 0;
        for _ in 0..operations / 64 {
            let some: Vec<Opened> = self.some(64).into_iter().map(|session| self.opened[session]).collect();
            let before = cpu_ns();
            for few in some.chunks(together) {
                self.harness.heartbeat(few);
                self.harness.settle();
            }
            spent += cpu_ns() - before;
        }
        spent
    }

    /// Sends a heartbeat of every session, spread over `steps` steps of time.
    pub(crate) fn heartbeat_round(&mut self, steps: usize, step: Duration, together: usize) {
        let order = std::mem::take(&mut self.order);
        for part in order.chunks(order.len().div_ceil(steps)) {
            self.harness.advance(step);
            for few in part.chunks(together) {
                let few: Vec<Opened> = few.iter().map(|session| self.opened[*session as usize]).collect();
                self.harness.heartbeat(&few);
                self.harness.settle();
            }
        }
        self.order = order;
    }

    /// Sessions leave the common room, and join it again: the times of both. With `few` they are
    /// always the same sessions.
    pub(crate) fn leave_and_join(&mut self, operations: usize, together: usize, few: bool) -> (u64, u64) {
        let mut spent = (0, 0);
        for _ in 0..operations / together {
            let mut some = if few { (0..together).collect() } else { self.some(together) };
            some.sort_unstable();
            some.dedup();
            let before = cpu_ns();
            self.change_room(&some, "");
            let between = cpu_ns();
            self.change_room(&some, ONE);
            spent = (spent.0 + between - before, spent.1 + cpu_ns() - between);
        }
        spent
    }

    fn change_room(&mut self, sessions: &[usize], room: &str) {
        let some: Vec<Opened> = sessions.iter().map(|session| self.opened[*session]).collect();
        self.harness.change_room(&some, room);
        self.harness.settle();
    }

    /// Sends messages to the common room, one after another: nanoseconds per receiver.
    pub(crate) fn push_one_room(&mut self, messages: usize) -> f64 {
        self.fan_out(messages, |world| world.harness.push_room(world.room_push(ONE)))
    }

    pub(crate) fn broadcast(&mut self, messages: usize) -> f64 {
        self.fan_out(messages, |world| {
            let (operation, packet) = (OPERATION, world.packet());
            world.harness.broadcast(Broadcast {
                operation,
                payload: Payload::plain(packet),
                accepted_at: None,
                speed: None,
            })
        })
    }

    fn fan_out(&mut self, messages: usize, send: impl Fn(&Self) -> bool) -> f64 {
        let written = Harness::written();
        let before = cpu_ns();
        for _ in 0..messages {
            assert!(send(self), "the inbox is empty");
            self.harness.settle();
        }
        let spent = cpu_ns() - before;
        let receivers = messages * self.sessions;
        let writes = Harness::written().writes - written.writes;
        assert!(writes == receivers as u64, "{writes} of {receivers} were written");
        spent as f64 / receivers as f64
    }
}

fn room_of(session: usize, rooms: Rooms) -> String {
    match rooms {
        Rooms::None => String::new(),
        Rooms::Own => own_room(session),
        Rooms::One => ONE.to_owned(),
    }
}
