//! The bare send loop that servers are compared with: accepts, answers the token and heartbeats with fixed packets, and
//! sends a message to all of its sockets with one `send` each. No rooms, no queues, no keys: what the kernel itself
//! takes for the same traffic.
//!
//! It runs as a process of its own, so that it is measured like any server. Over TCP only: a WebSocket head adds two to
//! four bytes to a packet, which costs nothing that could be measured.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::{self, Receiver, TryRecvError};

use goim_wire::{HEADER_LEN, Operation, Packet, Sequence, StreamDecoder, Version, control};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};

use crate::error::BenchError;
use crate::machine::on_processors;

const LISTENER: Token = Token(usize::MAX);
const COMMANDS: Token = Token(usize::MAX - 1);

/// Largest packet that clients send here, in bytes. Upgrades and large tokens do not come here.
const INBOUND_MAX: usize = 4096;

/// The send loop as a child process. Ends with this.
#[derive(Debug)]
pub(crate) struct Bare {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    pub(crate) addr: SocketAddr,
    operation: i32,
}

impl Bare {
    /// Starts it; messages will have this operation.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub(crate) fn start(operation: i32, processors: &[usize]) -> Result<Self, BenchError> {
        let mut command = crate::fleet::own_command("bare")?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = on_processors(processors, || command.spawn())?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(BenchError::Failed("no pipes to the send loop".into()));
        };
        let mut output = BufReader::new(output);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let addr =
            line.trim().parse().map_err(|error| BenchError::failed("no address of the send loop", error))?;
        Ok(Self { child, input, output, addr, operation })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has a message sent to all sockets and waits until that is done.
    ///
    /// # Errors
    /// When a socket did not take it: then the loop is no reference.
    pub(crate) fn send(&mut self, body: &[u8]) -> Result<(), BenchError> {
        let mut packet = Vec::new();
        let operation = Operation(self.operation);
        Packet { version: Version::GOIM, operation, sequence: Sequence::NONE, body }.encode(&mut packet);
        let line = serde_json::to_string(&packet).map_err(io::Error::from)?;
        writeln!(self.input, "{line}")?;
        self.input.flush()?;
        let mut answer = String::new();
        self.output.read_line(&mut answer)?;
        match answer.trim() {
            "0" => Ok(()),
            refused => Err(BenchError::Failed(format!("the send loop: {refused:?} sockets took no message"))),
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
    let poll = Poll::new().map_err(failed)?;
    let mut listener = listen().map_err(failed)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE).map_err(failed)?;
    let waker = Waker::new(poll.registry(), COMMANDS).map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    answer(&addr.to_string())?;
    let commands = commands(waker);
    Loop { poll, listener, peers: Vec::new(), buffer: vec![0; 64 * 1024] }.run(&commands)
}

fn listen() -> io::Result<TcpListener> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(4096)?;
    Ok(TcpListener::from_std(socket.into()))
}

/// Packets to send, read on a thread of its own.
fn commands(waker: Waker) -> Receiver<Vec<u8>> {
    let (sender, commands) = mpsc::channel();
    std::thread::spawn(move || {
        let lines = io::stdin().lock().lines().map_while(Result::ok);
        for packet in lines.map_while(|line| serde_json::from_str(&line).ok()) {
            if sender.send(packet).is_err() || waker.wake().is_err() {
                return;
            }
        }
        drop(sender);
        let _ = waker.wake();
    });
    commands
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
    buffer: Vec<u8>,
}

struct Peer {
    stream: TcpStream,
    decoder: StreamDecoder,
}

impl Loop {
    fn run(mut self, commands: &Receiver<Vec<u8>>) -> Result<(), BenchError> {
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
                match commands.try_recv() {
                    Ok(packet) => answer(&self.send(&packet).to_string())?,
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
            let registered = self.poll.registry().register(&mut stream, token, Interest::READABLE);
            if registered.is_ok() && stream.set_nodelay(true).is_ok() {
                self.peers.push(Some(Peer { stream, decoder: StreamDecoder::new() }));
            }
        }
    }

    fn serve(&mut self, number: usize) {
        let online = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        let Some(slot) = self.peers.get_mut(number) else { return };
        let Some(peer) = slot else { return };
        if !matches!(peer.serve(&mut self.buffer, online), Ok(true)) {
            *slot = None;
        }
    }

    /// Sends the packet to all; gives how many did not take it.
    fn send(&mut self, packet: &[u8]) -> usize {
        let mut refused = 0;
        for peer in self.peers.iter_mut().flatten() {
            if !matches!(peer.stream.write(packet), Ok(len) if len == packet.len()) {
                refused += 1;
            }
        }
        refused
    }
}

impl Peer {
    /// Answers what has come; false when the peer has closed.
    fn serve(&mut self, buffer: &mut [u8], online: u32) -> io::Result<bool> {
        loop {
            let len = match self.stream.read(buffer) {
                Ok(0) => return Ok(false),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            };
            let input = buffer.get(..len).unwrap_or_default();
            let mut at = 0;
            while let Some(packet) =
                self.decoder.next(input, &mut at, INBOUND_MAX).map_err(io::Error::other)?
            {
                let count = control::online_count(online);
                let reply = match packet.operation {
                    Operation::AUTH => Packet { operation: Operation::AUTH_REPLY, body: &[], ..packet },
                    Operation::HEARTBEAT => {
                        Packet { operation: Operation::HEARTBEAT_REPLY, body: &count, ..packet }
                    }
                    _ => continue,
                };
                let mut bytes = Vec::with_capacity(HEADER_LEN.saturating_add(count.len()));
                reply.encode(&mut bytes);
                self.stream.write_all(&bytes)?;
            }
        }
    }
}
