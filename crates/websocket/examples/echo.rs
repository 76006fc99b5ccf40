//! A WebSocket echo server: the codec over blocking sockets, one thread for each connection.
//!
//! The Autobahn suite runs against it (`scripts/autobahn/check.sh`), so it follows RFC 6455
//! strictly, answers pings and close frames, and closes a faulty connection with the right code.
//!
//! ```sh
//! cargo run -p goim-websocket --example echo -- 127.0.0.1:9001
//! ```
//!
//! Port 0, the default, lets the system choose; the address is printed.
#![allow(clippy::print_stdout, reason = "a program that people and scripts read")]

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use goim_websocket::{Event, Kind, Opcode, Reader, Role, Rules, close_payload, encode_frame, handshake};

/// For the largest messages of the suite, 16 MiB.
const RULES: Rules =
    Rules { role: Role::Server, lenient: false, frame_bytes_max: 32 << 20, message_bytes_max: 32 << 20 };

/// The path that the suite requests.
const PATH: &str = "/";

const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Timeout for a silent peer, and for a peer to close after this side.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const CLOSING_MAX: Duration = Duration::from_secs(2);

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let listener = TcpListener::bind(address)?;
    println!("ws://{}", listener.local_addr()?);
    for stream in listener.incoming() {
        // A connection that failed before it was accepted must not end the server.
        let Ok(stream) = stream else { continue };
        std::thread::spawn(move || {
            if let Err(error) = serve(stream) {
                eprintln!("connection lost: {error}");
            }
        });
    }
    Ok(())
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    let Some(mut input) = upgrade(&mut stream)? else { return Ok(()) };
    let mut reader = Reader::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let goes_on = answer(&mut reader, &mut input, &mut stream)?;
        if !goes_on {
            return part(&mut stream);
        }
        let received = stream.read(&mut buffer)?;
        if received == 0 {
            return Ok(());
        }
        input.clear();
        input.extend_from_slice(&buffer[..received]);
    }
}

/// Does the handshake. Returns the bytes after the request; `None` without an upgrade.
fn upgrade(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        match handshake::read_request(&head, PATH, HEAD_BYTES_MAX) {
            Ok(Some((upgrade, used))) => {
                stream.write_all(&handshake::response(&upgrade.key))?;
                return Ok(Some(head.split_off(used)));
            }
            Ok(None) => {}
            Err(error) => {
                stream.write_all(&handshake::refusal(&error))?;
                part(stream)?;
                return Ok(None);
            }
        }
        let received = stream.read(&mut buffer)?;
        if received == 0 {
            return Ok(None);
        }
        head.extend_from_slice(&buffer[..received]);
    }
}

/// Handles all events of `input`. Returns false if the connection must be closed.
fn answer(reader: &mut Reader, input: &mut [u8], stream: &mut TcpStream) -> io::Result<bool> {
    let mut at = 0;
    let mut out = Vec::new();
    let goes_on = loop {
        match reader.next(&RULES, input, &mut at) {
            Ok(None) => break true,
            Ok(Some(Event::Message { kind: Kind::Text, payload })) => {
                encode_frame(&mut out, Opcode::Text, payload, None);
            }
            Ok(Some(Event::Message { kind: Kind::Binary | Kind::Deflated, payload })) => {
                encode_frame(&mut out, Opcode::Binary, payload, None);
            }
            Ok(Some(Event::Ping(payload))) => encode_frame(&mut out, Opcode::Pong, payload, None),
            Ok(Some(Event::Pong(_))) => {}
            Ok(Some(Event::Close { code, .. })) => {
                let payload = code.map(|code| close_payload(code, "")).unwrap_or_default();
                encode_frame(&mut out, Opcode::Close, &payload, None);
                break false;
            }
            Err(error) => {
                let payload = close_payload(error.close_code(), &error.to_string());
                encode_frame(&mut out, Opcode::Close, &payload, None);
                break false;
            }
        }
    };
    stream.write_all(&out)?;
    Ok(goes_on)
}

/// Closes our side and reads what is still in transit: closing a socket with unread bytes would
/// reset the connection, and the peer could lose our last frame.
fn part(stream: &mut TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(CLOSING_MAX))?;
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer)? > 0 {}
    Ok(())
}
