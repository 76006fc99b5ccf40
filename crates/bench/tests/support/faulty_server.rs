//! A server that makes one mistake with one client, which the program must find.
//!
//! It implements only what the program needs: tokens and heartbeats over TCP, pushes over HTTP.
//! Each push is sent to all clients.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use goim_wire::{Operation, Packet, Sequence, StreamDecoder, Version, control};

/// The mistake with the first client, at the third message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Lose,
    Double,
    /// Sent after the fourth.
    Swap,
    Damage,
    /// The connection is closed instead.
    Close,
    /// All pushes are refused.
    Refuse,
}

/// The server. Its threads end with the process.
pub(crate) struct FaultyServer {
    pub(crate) tcp: String,
    pub(crate) http: String,
}

#[derive(Default)]
struct Shared {
    clients: Vec<TcpStream>,
    pushes: usize,
    delayed: Option<Vec<u8>>,
}

impl FaultyServer {
    pub(crate) fn start(fault: Option<Fault>) -> Self {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (tcp, http) = (listen(), listen());
        let addr = |listener: &TcpListener| listener.local_addr().expect("an address").to_string();
        let server = Self { tcp: addr(&tcp), http: format!("http://{}", addr(&http)) };
        let clients = shared.clone();
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let shared = clients.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        std::thread::spawn(move || {
            for stream in http.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || take_pushes(stream, &shared, fault));
            }
        });
        server
    }
}

fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

/// Answers the token and the heartbeats of a client until it disconnects.
fn serve(mut stream: TcpStream, shared: &Mutex<Shared>) -> io::Result<()> {
    let mut decoder = StreamDecoder::new();
    let mut buffer = [0; 4096];
    loop {
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        let mut at = 0;
        while let Some(packet) = decoder.next(&buffer[..len], &mut at, 4096).map_err(io::Error::other)? {
            let mut shared = shared.lock().expect("no thread panics");
            let online = control::online_count(shared.clients.len() as u32);
            let (operation, body): (_, &[u8]) = match packet.operation {
                Operation::AUTH => {
                    shared.clients.push(stream.try_clone()?);
                    (Operation::AUTH_REPLY, &[])
                }
                _ => (Operation::HEARTBEAT_REPLY, &online),
            };
            let mut reply = Vec::new();
            Packet { operation, body, ..packet }.encode(&mut reply);
            stream.write_all(&reply)?;
        }
    }
}

/// Handles the pushes of one HTTP connection.
fn take_pushes(mut stream: TcpStream, shared: &Mutex<Shared>, fault: Option<Fault>) -> io::Result<()> {
    loop {
        let (path, body) = request(&mut stream)?;
        if path == "/v1/push" {
            // Like goim v2, which takes one message per request.
            write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        }
        let (status, answer) = match fault {
            Some(Fault::Refuse) => ("401 Unauthorized", r#"{"code":-401,"message":"no key"}"#),
            _ => ("200 OK", r#"{"code":0,"message":""}"#),
        };
        if fault != Some(Fault::Refuse) {
            shared.lock().expect("no thread panics").push(&body, fault)?;
        }
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{answer}", answer.len())?;
    }
}

/// Reads the path and the body of the next request.
fn request(stream: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let len = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
    let mut body = vec![0; len.parse().expect("a number")];
    stream.read_exact(&mut body)?;
    let path = head.split_whitespace().nth(1).unwrap_or_default().to_owned();
    Ok((path, body))
}

impl Shared {
    /// Sends a message to all clients, with the mistake to the first one.
    fn push(&mut self, body: &[u8], fault: Option<Fault>) -> io::Result<()> {
        let packet = encode(body);
        self.pushes += 1;
        let (first, others) = self.clients.split_first_mut().expect("clients");
        others.iter_mut().try_for_each(|client| client.write_all(&packet))?;
        let mut damaged = body.to_vec();
        damaged[40] ^= 1;
        let third = self.pushes == 3;
        match fault.filter(|_| third) {
            None => write_unless_closed(first, &packet)?,
            Some(Fault::Lose | Fault::Refuse) => {}
            Some(Fault::Double) => {
                [&packet, &packet].into_iter().try_for_each(|bytes| first.write_all(bytes))?
            }
            Some(Fault::Swap) => {
                self.delayed = Some(packet);
                return Ok(());
            }
            Some(Fault::Damage) => first.write_all(&encode(&damaged))?,
            Some(Fault::Close) => first.shutdown(std::net::Shutdown::Both)?,
        }
        match self.delayed.take() {
            Some(late) => first.write_all(&late),
            None => Ok(()),
        }
    }
}

/// Writes, and ignores that the connection was closed.
fn write_unless_closed(client: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    match client.write_all(bytes) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

fn encode(body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let (version, operation, sequence) = (Version::GOIM, Operation(1000), Sequence::NONE);
    Packet { version, operation, sequence, body }.encode(&mut packet);
    packet
}
