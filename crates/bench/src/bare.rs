//! The bare send loop that servers are compared with: accepts, answers the token and heartbeats with fixed packets, and
//! sends messages to all of its sockets with one `send` each. No rooms, no queues, no keys: what the kernel itself takes
//! for the same traffic, over the same transport.
//!
//! It runs as a process of its own, so that it is measured like any server.

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

use crate::control::Carrier;
use crate::error::BenchError;
use crate::machine::on_processors;
use crate::message::Message;

const LISTENER: Token = Token(usize::MAX);
const COMMANDS: Token = Token(usize::MAX - 1);

/// Largest packet that clients send here, in bytes. Large tokens do not come here.
const INBOUND_MAX: usize = 4096;

/// The request target that is upgraded.
const PATH: &str = "/sub";

/// What the loop is told to send. It makes the messages itself, so that it is not measured while it reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) run: u32,
    pub(crate) stream: u32,
    /// Number of the first message.
    pub(crate) first: u32,
    /// Messages that each socket gets by one `send`.
    pub(crate) burst: u32,
    /// Bytes in the body of each; by number, see [`crate::sizes::Sizes`].
    pub(crate) sizes: crate::sizes::Sizes,
    /// When they were due. 0: when they are sent.
    pub(crate) due_ns: u64,
    /// Goes on with the next messages until so much time has passed; zero sends once.
    pub(crate) flood_ms: u64,
}

/// The send loop as a child process. Ends with this.
#[derive(Debug)]
pub(crate) struct Bare {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    pub(crate) addr: SocketAddr,
    pub(crate) carrier: Carrier,
}

impl Bare {
    /// Starts it; messages will have this operation.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub(crate) fn start(carrier: Carrier, operation: i32, processors: &[usize]) -> Result<Self, BenchError> {
        let mut command = crate::fleet::own_command("bare")?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = on_processors(processors, || command.spawn())?;
        let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(BenchError::Failed("no pipes to the send loop".into()));
        };
        writeln!(input, "{}", serde_json::to_string(&(carrier, operation)).map_err(io::Error::from)?)?;
        let mut output = BufReader::new(output);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let addr =
            line.trim().parse().map_err(|error| BenchError::failed("no address of the send loop", error))?;
        Ok(Self { child, input, output, addr, carrier })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where clients connect.
    pub(crate) fn target(&self) -> crate::control::Target {
        let (carrier, addr) = (self.carrier, self.addr);
        crate::control::Target { carrier, addr, host: addr.to_string(), path: PATH.to_owned() }
    }

    /// Has messages sent to all sockets and waits until that is done. Gives how many were sent to each.
    ///
    /// # Errors
    /// When a socket did not take one: then the loop is no reference.
    pub(crate) fn send(&mut self, order: &Order) -> Result<u32, BenchError> {
        writeln!(self.input, "{}", serde_json::to_string(order).map_err(io::Error::from)?)?;
        self.input.flush()?;
        let mut answer = String::new();
        self.output.read_line(&mut answer)?;
        match serde_json::from_str(&answer) {
            Ok((0_usize, messages)) => Ok(messages),
            _ => {
                Err(BenchError::Failed(format!("the send loop: {:?} sockets took no message", answer.trim())))
            }
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        crate::server::end(&mut self.child);
    }
}

/// Runs the send loop on standard input and output until the parent has gone.
///
/// # Errors
/// When there is no listener or no events to be had.
pub(crate) fn run() -> Result<(), BenchError> {
    let failed = |error| BenchError::failed("the send loop has no sockets", error);
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let (carrier, operation) =
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
    Loop { poll, listener, peers: Vec::new(), open: Vec::new(), next: 0, carrier, operation, buffer }
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

/// What is to be sent, read on a thread of its own.
fn orders(waker: Waker) -> Receiver<Order> {
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
    /// Numbers of the peers that have shown a token, in that order.
    open: Vec<usize>,
    /// The place in `open` that gets the next message for one.
    next: usize,
    carrier: Carrier,
    operation: Operation,
    buffer: Vec<u8>,
}

struct Peer {
    stream: TcpStream,
    decoder: Decoder,
}

/// Packets off one connection.
enum Decoder {
    Stream(StreamDecoder),
    Upgrading(Vec<u8>),
    WebSocket(websocket::Reader),
}

/// What came from a peer.
#[derive(Debug, Default)]
struct Came {
    ended: bool,
    token: bool,
    /// Messages to be passed on to one peer each.
    relayed: Vec<Vec<u8>>,
}

impl Loop {
    fn run(mut self, orders: &Receiver<Order>) -> Result<(), BenchError> {
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
                        answer(&serde_json::to_string(&self.obey(&order)).map_err(io::Error::from)?)?
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
        }
    }

    fn accept(&mut self) {
        // The event of the listener comes once; all that wait are taken. A full process stops here, and the clients
        // that are missing are reported by those who wanted to connect.
        while let Ok((mut stream, _)) = self.listener.accept() {
            let token = Token(self.peers.len());
            if self.poll.registry().register(&mut stream, token, Interest::READABLE).is_ok() {
                let decoder = match self.carrier {
                    Carrier::WebSocket => Decoder::Upgrading(Vec::new()),
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
        let came = peer.serve(&mut self.buffer, online);
        let came = came.unwrap_or(Came { ended: true, ..Came::default() });
        if came.token {
            self.open.push(number);
        }
        if came.ended {
            *slot = None;
            self.open.retain(|open| *open != number);
        }
        for body in came.relayed {
            self.relay(&body);
        }
    }

    /// Sends a message to the next peer, round and round.
    fn relay(&mut self, body: &[u8]) {
        let Some(number) = self.open.get(self.next % self.open.len().max(1)).copied() else { return };
        self.next = (self.next + 1) % self.open.len().max(1);
        let bytes = frame(self.carrier, self.push(body));
        if let Some(Some(peer)) = self.peers.get_mut(number) {
            // A message that does not go out is lost, and counted where it is missing.
            let _ = peer.stream.write(&bytes);
        }
    }

    fn push<'a>(&self, body: &'a [u8]) -> Packet<'a> {
        Packet { version: Version::GOIM, operation: self.operation, sequence: Sequence::NONE, body }
    }

    /// Does what was ordered; gives how many sockets did not take all of it, and the messages that each got.
    fn obey(&mut self, order: &Order) -> (usize, u32) {
        let until = Instant::now() + Duration::from_millis(order.flood_ms);
        let (mut refused, mut sent) = (0, 0);
        loop {
            let bytes = self.bytes(order, order.first.wrapping_add(sent));
            refused += self.send(&bytes);
            sent += order.burst;
            if Instant::now() >= until {
                return (refused, sent);
            }
        }
    }

    /// The packets of one round, one behind the other.
    fn bytes(&self, order: &Order, first: u32) -> Vec<u8> {
        let due_ns = if order.due_ns == 0 { crate::clock::now_ns() } else { order.due_ns };
        let mut bytes = Vec::new();
        for number in first..first.wrapping_add(order.burst) {
            let message = Message { run: order.run, stream: order.stream, number, due_ns };
            let body = message.encode_with(order.sizes.filler(), order.sizes.of(number));
            bytes.extend(frame(self.carrier, self.push(&body)));
        }
        bytes
    }

    /// Sends to all; gives how many did not take it. A socket that is full is waited for.
    fn send(&mut self, bytes: &[u8]) -> usize {
        let mut refused = 0;
        for number in &self.open {
            let Some(Some(peer)) = self.peers.get_mut(*number) else { continue };
            let sent = match peer.stream.write(bytes) {
                Ok(len) if len == bytes.len() => continue,
                Ok(len) => peer.send_rest(bytes.get(len..).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => peer.send_rest(bytes),
                Err(error) => Err(error),
            };
            refused += usize::from(sent.is_err());
        }
        refused
    }
}

/// A packet as it goes out.
fn frame(carrier: Carrier, packet: Packet<'_>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN.saturating_add(packet.body.len()).saturating_add(4));
    if carrier == Carrier::WebSocket {
        let head = websocket::frame_head(websocket::Opcode::Binary, packet.encoded_len(), None);
        bytes.extend_from_slice(head.as_slice());
    }
    packet.encode(&mut bytes);
    bytes
}

/// Frames of clients: as the server reads them, within the size of their packets.
fn rules() -> websocket::Rules {
    websocket::Rules {
        role: websocket::Role::Server,
        lenient: false,
        frame_bytes_max: INBOUND_MAX,
        message_bytes_max: INBOUND_MAX,
    }
}

impl Peer {
    /// Answers what has come.
    fn serve(&mut self, buffer: &mut [u8], online: u32) -> io::Result<Came> {
        let mut came = Came::default();
        loop {
            let len = match self.stream.read(buffer) {
                Ok(0) => return Ok(Came { ended: true, ..came }),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(came),
                Err(error) => return Err(error),
            };
            let full = len == buffer.len();
            self.take(buffer.get_mut(..len).unwrap_or_default(), online, &mut came)?;
            if !full {
                return Ok(came);
            }
        }
    }

    fn take(&mut self, input: &mut [u8], online: u32, came: &mut Came) -> io::Result<()> {
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
                    came.token = true;
                    Packet { operation: Operation::AUTH_REPLY, body: &[], ..packet }
                }
                Operation::HEARTBEAT => {
                    Packet { operation: Operation::HEARTBEAT_REPLY, body: &count, ..packet }
                }
                Operation::SEND => {
                    came.relayed.push(packet.body.to_vec());
                    continue;
                }
                _ => continue,
            };
            let carrier = match self.decoder {
                Decoder::Stream(_) => Carrier::Tcp,
                _ => Carrier::WebSocket,
            };
            let bytes = frame(carrier, reply);
            self.stream.write_all(&bytes)?;
        }
    }

    /// Sends what the socket did not take at once, waiting for room.
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
