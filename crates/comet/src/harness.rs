//! One shard without sockets, driven by hand: for benchmarks of more sessions than a machine has descriptors for, and for
//! tests of them. Behind the feature `harness`, which no server has.
//!
//! *Real*: the shard with everything in it (connections, sessions, rooms, timers, the ring of flushes, outboxes), the way
//! that a packet takes through it (accept's admission, framing, the session, what it asks for), the port of job, the
//! inbox with its bounds, the index of keys, the census of rooms, the counts of addresses, the counters. The layout in
//! memory is that of the server: a connection's stand-in for a socket takes no more room than a socket.
//!
//! *Replaced*: the kernel. A write is taken whole and only counted; a read gives what was laid ready for it; nobody polls,
//! so readiness costs nothing; accept hands over a connection that its caller has imagined. Time stands still until
//! [`Harness::advance`] moves it.
//!
//! *Left out*: other shards (there is one), TLS, WebSocket, the thread, and logic: the caller brings a
//! [`LogicPort`], which must answer at once, since nobody runs pending calls here.

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

/// The shard. Stays on the thread that made it: what stands in for the kernel belongs to that thread.
pub struct Harness {
    shard: Shard,
    port: Port,
    shared: Arc<Shared>,
    stats: Arc<ShardStats>,
    nothing: Events,
    input: Vec<u8>,
    /// Pending calls would run here, if there were any.
    _runtime: tokio::runtime::Runtime,
    _stays: PhantomData<*const ()>,
}

impl Harness {
    /// An empty shard at moment zero. Of `config`, listeners and TLS are not looked at.
    ///
    /// # Errors
    /// When the system gives no poll (the inbox wants one to ring, though nobody waits in it) or no runtime.
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

    /// Accepts a connection from `from` whose auth packet, with this token, has come already. `None` when a limit
    /// or logic refused it.
    pub fn open(&mut self, from: SocketAddr, token: &[u8]) -> Option<Opened> {
        self.lay_ready(Operation::AUTH, token);
        let opened = self.shard.simulate_accept(from);
        sink::clear_input();
        opened.map(Opened)
    }

    /// The peer ends the connection. False when it is gone already.
    pub fn end(&mut self, connection: Opened) -> bool {
        self.shard.simulate_end(connection.0)
    }

    /// A heartbeat packet comes on each of these connections. Gives how many of them are there.
    pub fn heartbeat(&mut self, connections: &[Opened]) -> usize {
        self.receive(connections, Operation::HEARTBEAT, &[])
    }

    /// The same with a packet that asks to move to another room; an empty name leaves.
    pub fn change_room(&mut self, connections: &[Opened], room: &str) -> usize {
        self.receive(connections, Operation::CHANGE_ROOM, room.as_bytes())
    }

    /// A packet comes on each of these connections, as one poll would tell it. Gives how many of them are there.
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

    /// Hands a push by key to the port. False when the inbox is full: turn, and try again.
    pub fn push(&self, push: KeyPush) -> bool {
        is_taken(&self.port.push(push))
    }

    /// The same for a room.
    pub fn push_room(&self, push: RoomPush) -> bool {
        is_taken(&self.port.push_room(push))
    }

    /// The same for everybody.
    pub fn broadcast(&self, broadcast: Broadcast) -> bool {
        is_taken(&self.port.broadcast(broadcast))
    }

    /// Moves the shard's clock. Deadlines are looked at in the next turn.
    pub fn advance(&mut self, by: Duration) {
        self.shard.advance(by);
    }

    /// One turn of the loop. True when the shard would go on without waiting.
    pub fn turn(&mut self) -> bool {
        self.shard.simulate_turn(&self.nothing)
    }

    /// Turns until nothing is left to do at this moment.
    pub fn settle(&mut self) {
        while self.turn() {}
    }

    /// Authenticated sessions.
    #[must_use]
    pub fn sessions(&self) -> u64 {
        self.stats.sessions.get()
    }

    /// Rooms with members.
    #[must_use]
    pub fn rooms(&self) -> usize {
        self.shared.rooms.len()
    }

    /// Bytes that a room of one takes by the sizes of its parts, with a name of `name_len` bytes: tables at the load of
    /// seven eighths, the allocator's own costs left out.
    #[must_use]
    pub const fn room_bytes(name_len: usize) -> usize {
        crate::rooms::room_bytes(name_len)
    }

    /// Bytes of a connection in its shard's table.
    #[must_use]
    pub const fn connection_bytes() -> usize {
        size_of::<Option<Connection>>()
    }

    /// What was written so far.
    #[must_use]
    pub fn written() -> Written {
        sink::written()
    }
}

/// A port answers at once or has to wait for room; the shard cannot be gone. A call that is dropped leaves nothing.
const fn is_taken(call: &Call<Result<(), CometError>>) -> bool {
    matches!(call, Call::Ready(Ok(())))
}
