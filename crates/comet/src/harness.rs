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
use std::time::{Duration, Instant};

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
use crate::shard::{BLOCK, Shard, Shared, WAKE};
use crate::stats::ShardStats;

/// A connection that the harness has opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Opened(ConnectionId);

/// What has been written by all harnesses of this thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Calls that wrote; pieces of a gathered one count apart.
    pub writes: u64,
    /// Bytes.
    pub bytes: u64,
}

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
        let limits = &config.limits;
        let addresses =
            crate::address_book::AddressBook::new(limits.connections_max, limits.connections_per_address_max);
        let bounds = InboxBounds {
            commands_max: config.send.queued_commands_max,
            sends_max: config.send.queued_sends_max.get(),
        };
        let pacing = Arc::new(Semaphore::new(config.send.paced_broadcasts_max));
        let shared = Arc::new(Shared {
            server: config.node.server.clone(),
            logic,
            runtime: runtime.handle().clone(),
            events: Arc::new(crate::events::Events::new(config.events.clone(), config.node.server.clone())),
            versions: Arc::new(crate::message::Versions::new(
                config.versions.clone(),
                config.compression.clone(),
                config.sync.inline_bytes_max,
            )),
            keys: crate::key_index::KeyIndex::new(),
            unknown_keys: Arc::default(),
            addresses,
            census: Arc::new(crate::rooms::Census::new()),
            certificates: None,
            farewells: Arc::default(),
            started: Instant::now(),
            recoveries: crate::shard::Recoveries::default(),
            config,
        });
        let poll = mio::Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), WAKE)?;
        let stats = Arc::new(ShardStats::default());
        let (handle, inbox) = inbox::inbox(waker, bounds, stats.inbox_depth.clone());
        let unknown_keys = shared.unknown_keys.clone();
        let port = Port { shared: shared.clone(), shards: vec![handle.clone()], pacing, unknown_keys };
        let shard = Shard::by_hand(shared.clone(), handle, stats.clone(), poll, inbox)?;
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
        let opened = self.shard.admit_by_hand(from);
        wire::clear();
        opened.map(Opened)
    }

    /// The peer ends the connection. False when it is gone already.
    pub fn end(&mut self, connection: Opened) -> bool {
        self.shard.end_by_hand(connection.0)
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
            self.shard.foresee_by_hand(block.iter().map(|opened| opened.0));
            for opened in block {
                self.lay_ready(operation, body);
                there += usize::from(self.shard.readable_by_hand(opened.0));
            }
        }
        wire::clear();
        there
    }

    fn lay_ready(&mut self, operation: Operation, body: &[u8]) {
        self.input.clear();
        Packet { version: Version::GOIM, operation, sequence: Sequence(1), body }.encode(&mut self.input);
        wire::lay_ready(&self.input);
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
        self.shard.turn_by_hand(&self.nothing)
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
        self.shared.census.len()
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
        wire::written()
    }
}

/// A port answers at once or has to wait for room; the shard cannot be gone. A call that is dropped leaves nothing.
const fn is_taken(call: &Call<Result<(), CometError>>) -> bool {
    matches!(call, Call::Ready(Ok(())))
}

/// What stands in for the kernel. One for each thread, so that a connection need not hold a reference to it.
pub(crate) mod wire {
    use std::cell::{Cell, RefCell};
    use std::io;

    use super::Written;

    thread_local! {
        static INPUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        static WRITTEN: Cell<Written> = const { Cell::new(Written { writes: 0, bytes: 0 }) };
    }

    /// The next read gives these bytes.
    pub(super) fn lay_ready(bytes: &[u8]) {
        INPUT.with_borrow_mut(|input| {
            input.clear();
            input.extend_from_slice(bytes);
        });
    }

    /// What was not read is gone.
    pub(super) fn clear() {
        INPUT.with_borrow_mut(Vec::clear);
    }

    pub(super) fn written() -> Written {
        WRITTEN.get()
    }

    pub(crate) fn read(into: &mut [u8]) -> io::Result<usize> {
        INPUT.with_borrow_mut(|input| {
            if input.is_empty() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let len = input.len().min(into.len());
            into[..len].copy_from_slice(&input[..len]);
            input.drain(..len);
            Ok(len)
        })
    }

    #[expect(clippy::unnecessary_wraps, reason = "stands in for a write that can fail")]
    pub(crate) fn write(bytes: &[u8]) -> io::Result<usize> {
        let Written { writes, bytes: before } = WRITTEN.get();
        WRITTEN.set(Written { writes: writes + 1, bytes: before + bytes.len() as u64 });
        Ok(bytes.len())
    }
}
