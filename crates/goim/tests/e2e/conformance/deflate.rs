//! permessage-deflate (RFC 7692), as browsers offer it: negotiated where it is enabled, in both
//! directions, once for each message.

use crate::harness;
use crate::harness::client::{SWITCHED, UPGRADE};
use crate::harness::frame::{BINARY, masked};
use crate::harness::{Client, Packet, Server, Settings, Transport, eventually, number, unique};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use serde_json::json;

/// What Chromium offers.
const OFFER: &str = "permessage-deflate; client_max_window_bits";
const TAKEN: &str = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n";
const RSV1: u8 = 0x40;

fn server() -> Server {
    Server::start(&Settings::new().set("comet.listen.websocket_deflate", "true"))
}

/// The upgrade with this header, and the server's answer about extensions.
fn open(server: &Server, extensions: &str) -> (Client, String) {
    let mut client = Client::plain(server.client_addr(Transport::Ws), Transport::Ws);
    let header = format!("Sec-WebSocket-Extensions: {extensions}\r\n\r\n");
    client.send_bytes(UPGRADE.replacen("\r\n\r\n", &format!("\r\n{header}"), 1).as_bytes());
    let usual = SWITCHED.strip_suffix("\r\n").unwrap();
    client.expect_bytes(usual.as_bytes());
    let mut more = String::new();
    while !more.ends_with("\r\n") {
        more.push(char::from(client.take(1)[0]));
    }
    if more != "\r\n" {
        client.expect_bytes(b"\r\n");
    }
    (client, more)
}

fn deflated(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 64);
    Compress::new(Compression::best(), false).compress_vec(message, &mut out, FlushCompress::Sync).unwrap();
    out.strip_suffix(&[0, 0, 0xff, 0xff]).expect("the tail").to_vec()
}

fn inflated(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 << 20);
    let payload = [payload, &[0, 0, 0xff, 0xff]].concat();
    Decompress::new(false).decompress_vec(&payload, &mut out, FlushDecompress::Sync).unwrap();
    out
}

fn send(client: &mut Client, first: u8, packet: &Packet) {
    client.send_bytes(&masked(first | RSV1, &deflated(&packet.encode())));
}

/// A session that sends everything deflated, its token first.
fn login(server: &Server, room: &str) -> Client {
    let (mut client, taken) = open(server, OFFER);
    assert_eq!(taken, TAKEN);
    let token = json!({ "mid": number(), "key": unique("k"), "room_id": room, "accepts": [1000] });
    send(&mut client, BINARY, &Packet::new(7, 1, token.to_string()));
    assert_eq!(client.packet(), Packet::new(8, 1, ""));
    client
}

#[test]
fn offers_are_accepted_when_they_can_be_honoured() {
    let server = server();
    for (offer, taken) in [
        (OFFER, true),
        ("permessage-deflate", true),
        ("permessage-deflate; client_max_window_bits=10; server_no_context_takeover", true),
        ("x-webkit-deflate-frame, permessage-deflate;client_no_context_takeover", true),
        ("permessage-deflate; server_max_window_bits=10, permessage-deflate", true),
        // A window that is not used must not be promised.
        ("permessage-deflate; server_max_window_bits=10", false),
        ("permessage-deflate; unheard_of", false),
        ("permessage-bzip2", false),
        ("", false),
    ] {
        assert_eq!(open(&server, offer).1, if taken { TAKEN } else { "\r\n" }, "{offer}");
    }
    // Where it is not switched on nothing is.
    let plain = Server::start(&Settings::new());
    assert_eq!(open(&plain, OFFER).1, "\r\n");
}

#[test]
fn messages_are_deflated_both_ways() {
    let server = server();
    let room = unique("live://r");
    let mut client = login(&server, &room);
    let mut plain = Client::login(&server, Transport::Ws, &harness::Who::new().room(&room));
    for body in ["x".repeat(3000), r#"{"text":"hello"}"#.repeat(200)] {
        server.push_room(1000, &room, &body);
        let frame = client.frame();
        assert_eq!(frame.first, BINARY | RSV1);
        assert!(frame.payload.len() < body.len() / 10, "{}", frame.payload.len());
        let message = inflated(&frame.payload);
        assert_eq!(message[8..12], 9_i32.to_be_bytes(), "a batch, as without compression");
        assert!(message.ends_with(body.as_bytes()));
        plain.expect_push(1000, &body);
    }
    // Small ones and replies leave as they are.
    server.push_room(1000, &room, "small");
    client.expect_push(1000, "small");
    let heartbeat = Packet::new(2, 7, "");
    send(&mut client, BINARY, &heartbeat);
    assert_eq!(client.packet().body, 2_i32.to_be_bytes());
    // Text, as frames that are not compressed among those that are, in fragments.
    send(&mut client, 0x81, &heartbeat);
    assert_eq!(client.packet().op, 3);
    client.send(&heartbeat);
    assert_eq!(client.packet().op, 3);
    let payload = deflated(&Packet::new(2, 8, "some body").encode());
    let (front, back) = payload.split_at(5);
    client.send_bytes(&[masked(0x02 | RSV1, front), masked(0x89, b"ping"), masked(0x80, back)].concat());
    assert_eq!(client.frame().payload, b"ping");
    assert_eq!((client.packet().seq, 3), (8, 3));
}

#[test]
fn bombs_and_what_is_no_stream_end_the_connection() {
    let server = server();
    let mut other = login(&server, "");
    let bomb = deflated(&vec![0; 7 << 20]);
    assert!(bomb.len() < 8 << 10, "{}", bomb.len());
    for (what, bytes) in [
        ("a bomb", masked(BINARY | RSV1, &bomb)),
        ("no stream", masked(BINARY | RSV1, b"no stream at all")),
        ("no packet", masked(BINARY | RSV1, &deflated(b"no packet"))),
        ("nothing", masked(BINARY | RSV1, b"")),
        ("a compressed ping", masked(0x89 | RSV1, b"ping")),
        ("a compressed continuation", [masked(0x02, b"a"), masked(0x80 | RSV1, b"b")].concat()),
        ("another bit", masked(BINARY | 0x20, b"x")),
        ("all bits", masked(BINARY | 0x70, b"x")),
    ] {
        let mut client = login(&server, "");
        client.send_bytes(&bytes);
        assert!(client.rest_within(harness::DEADLINE).is_some(), "{what}");
    }
    // Who has not been granted it may not use it.
    let mut plain = Client::login(&server, Transport::Ws, &harness::Who::new());
    plain.send_bytes(&masked(BINARY | RSV1, &deflated(&Packet::new(2, 1, "").encode())));
    plain.expect_closed();
    eventually("the others are well", || {
        send(&mut other, BINARY, &Packet::new(2, 5, ""));
        other.packet().op == 3
    });
}
