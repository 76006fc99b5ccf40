//! One shard without sockets, driven step by step: for benchmarks of more sessions than a machine
//! has descriptors for, and for tests of these. Behind the feature `harness`, which no server
//! enables.
//!
//! *Real*: the shard with connections, sessions, rooms, timers, flush queue and outboxes; the path
//! of a packet (admission, framing, session, and what it asks for); the port of job; the inbox with
//! its bounds; the key index, the room registry, the address counts, the counters. The memory
//! layout is that of the server: the replacement of a socket is no larger than a socket.
//!
//! *Replaced*: the kernel. A write is taken whole and only counted. A read returns the input that
//! was set. There is no poll, so readiness costs nothing. Accept is a call with an address. Time
//! advances only by [`Harness::advance`].
//!
//! *Missing*: other shards (there is one), TLS, WebSocket, the thread, and logic. The caller
//! provides a [`LogicPort`], which must answer immediately, since pending calls are never polled
//! here.

use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use goim_ports::{
    Broadcast, Call, CometError, CometPort as _, KeyPush, LogicPort, Operation, RoomPush, Sequence, Version,
};
use goim_wire::Packet;
use mio::Events;
use tokio::sync::Semaphore;

use crate::config::Config;
use crate::connection::{Connection, ConnectionId};
use crate::inbox::{self, InboxBounds};
use crate::port::Port;
use crate::prefetch::BLOCK;
use crate::shard::{Shard, WAKE};
use crate::shared::Shared;
use crate::stats::ShardStats;
use crate::transport::sink;
pub use crate::transport::sink::Written;

/// A connection that the harness has opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Opened(ConnectionId);

/// The shard. Stays on the thread that created it, since the replacement of the kernel is per
/// thread.
pub struct Harness {
    shard: Shard,
    port: Port,
    shared: Arc<Shared>,
    stats: Arc<ShardStats>,
    nothing: Events,
    input: Vec<u8>,
    /// For pending calls; there must be none.
    _runtime: tokio::runtime::Runtime,
    _stays: PhantomData<*const ()>,
}

impl Harness {
    /// Creates an empty shard at time zero. Listeners and TLS of `config` are ignored.
    ///
    /// # Errors
    /// When the system provides no poll (the inbox needs one to wake) or no runtime.
    pub fn new(config: Config, logic: Arc<dyn LogicPort>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let bounds = InboxBounds::of(&config.send);
        let pacing = Arc::new(Semaphore::new(config.send.paced_broadcasts_max));
        let shared = Arc::new(Shared::new(config, logic, runtime.handle().clone(), None));
        let poll = mio::Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), WAKE)?;
        let stats = Arc::new(ShardStats::default());
        let (handle, inbox) = inbox::inbox(waker, bounds, stats.inbox_depth.clone());
        let port = Port { shared: shared.clone(), shards: Arc::from([handle.clone()]), pacing };
        let shard = Shard::simulated(shared.clone(), handle, stats.clone(), poll, inbox)?;
        Ok(Self {
            shard,
            port,
            shared,
            stats,
            nothing: Events::with_capacity(1),
            input: Vec::new(),
            _runtime: runtime,
            _stays: PhantomData,
        })
    }

    /// Accepts a connection from `from` that has sent its auth packet with this token. `None` when
    /// a limit or logic refused it.
    pub fn open(&mut self, from: SocketAddr, token: &[u8]) -> Option<Opened> {
        self.lay_ready(Operation::AUTH, token);
        let opened = self.shard.simulate_accept(from);
        sink::clear_input();
        opened.map(Opened)
    }

    /// The peer ends the connection. False when it does not exist any more.
    pub fn end(&mut self, connection: Opened) -> bool {
        self.shard.simulate_end(connection.0)
    }

    /// Receives a heartbeat packet on each of these connections. Returns how many of them exist.
    pub fn heartbeat(&mut self, connections: &[Opened]) -> usize {
        self.receive(connections, Operation::HEARTBEAT, &[])
    }

    /// Receives a packet that moves to another room; an empty name leaves the room.
    pub fn change_room(&mut self, connections: &[Opened], room: &str) -> usize {
        self.receive(connections, Operation::CHANGE_ROOM, room.as_bytes())
    }

    /// Receives a packet on each of these connections, as events of one poll. Returns how many of
    /// them exist.
    pub fn receive(&mut self, connections: &[Opened], operation: Operation, body: &[u8]) -> usize {
        let mut there = 0;
        for block in connections.chunks(BLOCK) {
            self.shard.prefetch_readable(block.iter().map(|opened| opened.0));
            for opened in block {
                self.lay_ready(operation, body);
                there += usize::from(self.shard.simulate_readable(opened.0));
            }
        }
        sink::clear_input();
        there
    }

    fn lay_ready(&mut self, operation: Operation, body: &[u8]) {
        self.input.clear();
        Packet { version: Version::GOIM, operation, sequence: Sequence(1), body }.encode(&mut self.input);
        sink::set_input(&self.input);
    }

    /// Passes a push by key to the port. False when the inbox is full: run a turn and try again.
    pub fn push(&self, push: KeyPush) -> bool {
        is_taken(&self.port.push(push))
    }

    /// The same for a room.
    pub fn push_room(&self, push: RoomPush) -> bool {
        is_taken(&self.port.push_room(push))
    }

    /// The same for all sessions.
    pub fn broadcast(&self, broadcast: Broadcast) -> bool {
        is_taken(&self.port.broadcast(broadcast))
    }

    /// Advances the shard's clock. Deadlines are checked in the next turn.
    pub fn advance(&mut self, by: Duration) {
        self.shard.advance(by);
    }

    /// Runs one turn of the loop. True when the shard would run another without waiting.
    pub fn turn(&mut self) -> bool {
        self.shard.simulate_turn(&self.nothing)
    }

    /// Runs turns until nothing is left to do at this time.
    pub fn settle(&mut self) {
        while self.turn() {}
    }

    /// Returns how many sessions are authenticated.
    #[must_use]
    pub fn sessions(&self) -> u64 {
        self.stats.sessions.get()
    }

    /// Returns how many rooms have members.
    #[must_use]
    pub fn rooms(&self) -> usize {
        self.shared.rooms.len()
    }

    /// Returns the memory of a room with one member and a name of `name_len` bytes, by the sizes of
    /// its parts. Tables are taken at a load of seven eighths; the allocator's overhead is left
    /// out.
    #[must_use]
    pub const fn room_bytes(name_len: usize) -> usize {
        crate::rooms::room_bytes(name_len)
    }

    /// Returns the size of a connection in its shard's table, in bytes.
    #[must_use]
    pub const fn connection_bytes() -> usize {
        size_of::<Option<Connection>>()
    }

    /// Returns what was written so far.
    #[must_use]
    pub fn written() -> Written {
        sink::written()
    }
}

/// True when the port took the push. A call that would wait for room is dropped, which queues
/// nothing.
const fn is_taken(call: &Call<Result<(), CometError>>) -> bool {
    matches!(call, Call::Ready(Ok(())))
}
