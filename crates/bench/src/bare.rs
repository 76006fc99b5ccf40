//! The reference: a bare send loop. It accepts, answers tokens and heartbeats with fixed packets,
//! and sends messages to all of its sockets with one `send` each. It has no rooms, queues or keys,
//! so it shows the kernel's share of the cost of the same traffic over the same transport. It is a
//! separate process, so that it is measured like a server.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant};

use goim_websocket::{self as websocket, handshake};
use goim_wire::{HEADER_LEN, Operation, Packet, Sequence, StreamDecoder, Version, control};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use crate::control::Transport;
use crate::error::BenchError;
use crate::machine::bound_to_cpus;
use crate::message::Message;

const LISTENER: Token = Token(usize::MAX);
const COMMANDS: Token = Token(usize::MAX - 1);

/// The maximum size of a packet from a client, in bytes. Clients of a benchmark send short tokens.
const INBOUND_MAX: usize = 4096;

/// The request target of upgrades.
const PATH: &str = "/sub";

/// An order to send messages. The loop encodes them itself, so that reading them is not part of its
/// cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SendOrder {
    pub(crate) run: u32,
    pub(crate) stream: u32,
    /// Number of the first message.
    pub(crate) first: u32,
    /// Messages that each socket gets with one `send`.
    pub(crate) burst: u32,
    /// Bytes in the body of each; by number, see [`crate::sizes::Sizes`].
    pub(crate) sizes: crate::sizes::Sizes,
    /// When the messages were due; 0 for the time at which they are sent.
    pub(crate) due_ns: u64,
    /// Time to repeat with the next messages; 0 sends once.
    pub(crate) flood_ms: u64,
}

/// The send loop as a child process. Dropping it ends the process.
#[derive(Debug)]
pub(crate) struct Bare {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    pub(crate) addr: SocketAddr,
    pub(crate) transport: Transport,
}

impl Bare {
    /// Starts the process. Messages will have this operation.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub(crate) fn start(
        transport: Transport,
        operation: i32,
        processors: &[usize],
    ) -> Result<Self, BenchError> {
        let mut command = crate::fleet::own_command("bare")?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = bound_to_cpus(processors, || command.spawn())?;
        let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(BenchError::Failed("no pipes to the send loop".into()));
        };
        writeln!(input, "{}", serde_json::to_string(&(transport, operation)).map_err(io::Error::from)?)?;
        let mut output = BufReader::new(output);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let addr =
            line.trim().parse().map_err(|error| BenchError::failed("no address of the send loop", error))?;
        Ok(Self { child, input, output, addr, transport })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the address for clients.
    pub(crate) fn target(&self) -> crate::control::Target {
        let (transport, addr) = (self.transport, self.addr);
        crate::control::Target { transport, addr, host: addr.to_string(), path: PATH.to_owned() }
    }

    /// Sends messages to all sockets, and waits until that is done. Returns the number of messages
    /// per socket.
    ///
    /// # Errors
    /// When a socket failed: then the loop cannot serve as a reference.
    pub(crate) fn send(&mut self, order: &SendOrder) -> Result<u32, BenchError> {
        writeln!(self.input, "{}", serde_json::to_string(order).map_err(io::Error::from)?)?;
        self.input.flush()?;
        let mut answer = String::new();
        self.output.read_line(&mut answer)?;
        match serde_json::from_str(&answer) {
            Ok((0_usize, messages)) => Ok(messages),
            _ => Err(BenchError::Failed(format!("the send loop failed: {:?}", answer.trim()))),
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        crate::spawn::stop(&mut self.child);
    }
}

/// Runs the send loop, with orders on standard input, until the parent ends.
///
/// # Errors
/// When a listener or a poll cannot be created.
pub(crate) fn run() -> Result<(), BenchError> {
    let failed = |error| BenchError::failed("the send loop cannot listen", error);
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let (transport, operation) =
        serde_json::from_str(&line).map_err(|error| BenchError::failed("the send loop", error))?;
    let poll = Poll::new().map_err(failed)?;
    let mut listener = listen().map_err(failed)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE).map_err(failed)?;
    let waker = Waker::new(poll.registry(), COMMANDS).map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    answer(&addr.to_string())?;
    let orders = orders(waker);
    let buffer = vec![0; 64 * 1024];
    let operation = Operation(operation);
    Loop { poll, listener, peers: Vec::new(), open: Vec::new(), next: 0, transport, operation, buffer }
        .run(&orders)
}

fn listen() -> io::Result<TcpListener> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.set_tcp_nodelay(true)?;
    socket.listen(4096)?;
    Ok(TcpListener::from_std(socket.into()))
}

/// Reads orders on a separate thread.
fn orders(waker: Waker) -> Receiver<SendOrder> {
    let (sender, orders) = mpsc::channel();
    std::thread::spawn(move || {
        let lines = io::stdin().lock().lines().map_while(Result::ok);
        for order in lines.map_while(|line| serde_json::from_str(&line).ok()) {
            if sender.send(order).is_err() || waker.wake().is_err() {
                return;
            }
        }
        drop(sender);
        let _ = waker.wake();
    });
    orders
}

fn answer(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

struct Loop {
    poll: Poll,
    listener: TcpListener,
    peers: Vec<Option<Peer>>,
    /// Authenticated peers, in the order of authentication.
    open: Vec<usize>,
    /// The index in `open` of the peer that gets the next forwarded message.
    next: usize,
    transport: Transport,
    operation: Operation,
    buffer: Vec<u8>,
}

struct Peer {
    stream: TcpStream,
    decoder: Decoder,
}

/// The decoder of one connection.
enum Decoder {
    Stream(StreamDecoder),
    Upgrading(Vec<u8>),
    WebSocket(websocket::Reader),
}

/// The input of a peer.
#[derive(Debug, Default)]
struct Input {
    ended: bool,
    is_authenticated: bool,
    /// Messages to forward to one peer each.
    relayed: Vec<Vec<u8>>,
}

impl Loop {
    fn run(mut self, orders: &Receiver<SendOrder>) -> Result<(), BenchError> {
        let mut events = Events::with_capacity(1024);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    COMMANDS => {}
                    Token(number) => self.serve(number),
                }
            }
            loop {
                match orders.try_recv() {
                    Ok(order) => {
                        answer(&serde_json::to_string(&self.execute(&order)).map_err(io::Error::from)?)?
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
        }
    }

    fn accept(&mut self) {
        // The poll reports the listener once for all waiting connections. Without a free descriptor
        // this ends, and the clients report the connections that failed.
        while let Ok((mut stream, _)) = self.listener.accept() {
            let token = Token(self.peers.len());
            if self.poll.registry().register(&mut stream, token, Interest::READABLE).is_ok() {
                let decoder = match self.transport {
                    Transport::WebSocket => Decoder::Upgrading(Vec::new()),
                    _ => Decoder::Stream(StreamDecoder::new()),
                };
                self.peers.push(Some(Peer { stream, decoder }));
            }
        }
    }

    fn serve(&mut self, number: usize) {
        let online = u32::try_from(self.open.len()).unwrap_or(u32::MAX);
        let Some(slot) = self.peers.get_mut(number) else { return };
        let Some(peer) = slot else { return };
        let input = peer.serve(&mut self.buffer, online);
        let input = input.unwrap_or(Input { ended: true, ..Input::default() });
        if input.is_authenticated {
            self.open.push(number);
        }
        if input.ended {
            *slot = None;
            self.open.retain(|open| *open != number);
        }
        for body in input.relayed {
            self.relay(&body);
        }
    }

    /// Forwards a message to the next peer in turn.
    fn relay(&mut self, body: &[u8]) {
        let Some(number) = self.open.get(self.next % self.open.len().max(1)).copied() else { return };
        self.next = (self.next + 1) % self.open.len().max(1);
        let bytes = frame(self.transport, self.push(body));
        if let Some(Some(peer)) = self.peers.get_mut(number) {
            // The receiver counts a message that is not sent as lost.
            let _ = peer.stream.write(&bytes);
        }
    }

    fn push<'a>(&self, body: &'a [u8]) -> Packet<'a> {
        Packet { version: Version::GOIM, operation: self.operation, sequence: Sequence::NONE, body }
    }

    /// Executes an order. Returns the number of sockets that failed, and of messages per socket.
    fn execute(&mut self, order: &SendOrder) -> (usize, u32) {
        let until = Instant::now() + Duration::from_millis(order.flood_ms);
        let (mut failed, mut sent) = (0, 0);
        loop {
            let bytes = self.bytes(order, order.first.wrapping_add(sent));
            failed += self.send(&bytes);
            sent += order.burst;
            if Instant::now() >= until {
                return (failed, sent);
            }
        }
    }

    /// Encodes the packets of one `send`.
    fn bytes(&self, order: &SendOrder, first: u32) -> Vec<u8> {
        let due_ns = if order.due_ns == 0 { crate::clock::now_ns() } else { order.due_ns };
        let mut bytes = Vec::new();
        for number in first..first.wrapping_add(order.burst) {
            let message = Message { run: order.run, stream: order.stream, number, due_ns };
            let body = message.encode_with(order.sizes.filler(), order.sizes.of(number));
            bytes.extend(frame(self.transport, self.push(&body)));
        }
        bytes
    }

    /// Sends to all peers, and waits for those whose socket is full. Returns the number of sockets
    /// that failed.
    fn send(&mut self, bytes: &[u8]) -> usize {
        let mut failed = 0;
        for number in &self.open {
            let Some(Some(peer)) = self.peers.get_mut(*number) else { continue };
            let sent = match peer.stream.write(bytes) {
                Ok(len) if len == bytes.len() => continue,
                Ok(len) => peer.send_rest(bytes.get(len..).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => peer.send_rest(bytes),
                Err(error) => Err(error),
            };
            failed += usize::from(sent.is_err());
        }
        failed
    }
}

/// Encodes a packet for a transport.
fn frame(transport: Transport, packet: Packet<'_>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN.saturating_add(packet.body.len()).saturating_add(4));
    if transport == Transport::WebSocket {
        let head = websocket::frame_head(websocket::Opcode::Binary, packet.encoded_len(), None);
        bytes.extend_from_slice(head.as_slice());
    }
    packet.encode(&mut bytes);
    bytes
}

/// Returns the rules for frames of clients.
fn rules() -> websocket::Rules {
    websocket::Rules {
        role: websocket::Role::Server,
        lenient: false,
        frame_bytes_max: INBOUND_MAX,
        message_bytes_max: INBOUND_MAX,
    }
}

impl Peer {
    /// Reads and answers all packets of a peer.
    fn serve(&mut self, buffer: &mut [u8], online: u32) -> io::Result<Input> {
        let mut result = Input::default();
        loop {
            let len = match self.stream.read(buffer) {
                Ok(0) => return Ok(Input { ended: true, ..result }),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(result),
                Err(error) => return Err(error),
            };
            let full = len == buffer.len();
            self.take(buffer.get_mut(..len).unwrap_or_default(), online, &mut result)?;
            if !full {
                return Ok(result);
            }
        }
    }

    fn take(&mut self, input: &mut [u8], online: u32, result: &mut Input) -> io::Result<()> {
        let mut at = 0;
        if let Decoder::Upgrading(head) = &mut self.decoder {
            head.extend_from_slice(input);
            let read = handshake::read_request(head, PATH, INBOUND_MAX)
                .map_err(|error| io::Error::other(error.to_string()))?;
            let Some((upgrade, _)) = read else { return Ok(()) };
            self.stream.write_all(&handshake::response(&upgrade.key))?;
            self.decoder = Decoder::WebSocket(websocket::Reader::new());
            return Ok(());
        }
        loop {
            let packet = match &mut self.decoder {
                Decoder::Stream(decoder) => {
                    decoder.next(input, &mut at, INBOUND_MAX).map_err(io::Error::other)?
                }
                Decoder::WebSocket(reader) => {
                    match reader.next(&rules(), input, &mut at).map_err(io::Error::other)? {
                        Some(websocket::Event::Message { payload, .. }) => {
                            Some(Packet::from_message(payload, INBOUND_MAX).map_err(io::Error::other)?)
                        }
                        Some(_) => continue,
                        None => None,
                    }
                }
                Decoder::Upgrading(_) => None,
            };
            let Some(packet) = packet else { return Ok(()) };
            let count = control::online_count(online);
            let reply = match packet.operation {
                Operation::AUTH => {
                    result.is_authenticated = true;
                    Packet { operation: Operation::AUTH_REPLY, body: &[], ..packet }
                }
                Operation::HEARTBEAT => {
                    Packet { operation: Operation::HEARTBEAT_REPLY, body: &count, ..packet }
                }
                Operation::SEND => {
                    result.relayed.push(packet.body.to_vec());
                    continue;
                }
                _ => continue,
            };
            let transport = match self.decoder {
                Decoder::Stream(_) => Transport::Tcp,
                _ => Transport::WebSocket,
            };
            let bytes = frame(transport, reply);
            self.stream.write_all(&bytes)?;
        }
    }

    /// Sends the rest of a message that a full socket did not take, waiting until it can be
    /// written.
    fn send_rest(&mut self, mut rest: &[u8]) -> io::Result<()> {
        while !rest.is_empty() {
            rustix::event::poll(&mut [PollFd::new(&self.stream, PollFlags::OUT)], None)?;
            match self.stream.write(rest) {
                Ok(len) => rest = rest.get(len..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
