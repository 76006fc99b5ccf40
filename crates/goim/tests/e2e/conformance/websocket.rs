//! The upgrade and the frames of WebSocket: rows 39 to 50, 82 to 87 and 121 of the conformance
//! table.

use std::time::Duration;

use crate::harness::client::{SWITCHED, UPGRADE};
use crate::harness::frame::{BINARY, MASK, masked, unmasked};
use crate::harness::{Client, Packet, Server, Settings, Transport, Who, hex, shared};

const HEARTBEAT: &str = "00000010001000010000000200000001";

/// The upgrade request with some text replaced.
fn upgrade(replaced: &str, by: &str) -> String {
    assert!(UPGRADE.contains(replaced), "{replaced}");
    UPGRADE.replace(replaced, by)
}

fn session() -> Client {
    Client::login(shared(), Transport::Ws, &Who::new())
}

/// A refusal: the connection ends, with or without an answer of these statuses before it.
fn is_refusal(rest: &[u8]) -> bool {
    let refusals = ["400", "404", "405", "426", "431", "505"];
    rest.is_empty()
        || refusals.iter().any(|status| rest.starts_with(format!("HTTP/1.1 {status} ").as_bytes()))
}

/// The end of a connection that may be announced by a close frame.
fn is_close(rest: &[u8]) -> bool {
    rest.is_empty() || rest[0] == 0x88 && rest.len() == 2 + usize::from(rest[1])
}

#[test]
fn row_039_what_is_no_upgrade_to_the_path_is_refused() {
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let requests = [
        upgrade("/sub", "/sub?x=1"),
        upgrade("/sub", "/sub/"),
        upgrade("/sub", "/"),
        upgrade("/sub", "http://x/sub"),
        upgrade("GET", "POST"),
        upgrade("GET", "get"),
        upgrade("Version: 13", "Version: 8"),
        upgrade("Sec-WebSocket-Version: 13\r\n", ""),
        upgrade(key, ""),
        upgrade("dGhlIHNhbXBsZSBub25jZQ==", ""),
        upgrade("Upgrade: websocket\r\n", ""),
        upgrade("Upgrade: websocket", "Upgrade: h2c, websocket"),
        upgrade("Connection: Upgrade\r\n", ""),
        upgrade("Host: 127.0.0.1", "no colon"),
        "hello\r\n\r\n".to_owned(),
    ];
    for request in requests {
        let mut client = Client::connect(shared(), Transport::Ws);
        client.send_bytes(request.as_bytes());
        let rest = client.rest();
        assert!(is_refusal(&rest), "{request:?} was answered {:?}", String::from_utf8_lossy(&rest));
    }
}

#[test]
fn row_040_spellings_of_the_upgrade_that_are_accepted() {
    let requests = [
        upgrade("Connection: Upgrade", "Connection: keep-alive, Upgrade"),
        upgrade("Upgrade: websocket", "Upgrade: WebSocket"),
        UPGRADE
            .to_ascii_lowercase()
            .replace("get /sub http", "GET /sub HTTP")
            .replace("dghlihnhbxbszsbub25jzq==", "dGhlIHNhbXBsZSBub25jZQ=="),
        upgrade("Host: 127.0.0.1\r\n", ""),
        upgrade("Host: 127.0.0.1", "Host: x\r\nOrigin: http://elsewhere\r\nCookie: a=b"),
    ];
    for request in requests {
        let mut client = Client::connect(shared(), Transport::Ws);
        client.send_bytes(request.as_bytes());
        client.expect_bytes(SWITCHED.as_bytes());
        client.send(&Packet::new(7, 1, "{}"));
        client.expect(&Packet::new(8, 1, ""));
    }
}

#[test]
fn row_041_subprotocols_and_extensions_are_not_answered() {
    let more = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\n\
        Sec-WebSocket-Extensions: x-unknown";
    let mut client = Client::connect(shared(), Transport::Ws);
    client.send_bytes(upgrade("Sec-WebSocket-Version: 13", more).as_bytes());
    client.expect_bytes(SWITCHED.as_bytes());
    client.send(&Packet::new(7, 1, "{}"));
    client.expect(&Packet::new(8, 1, ""));
}

#[test]
fn row_042_a_masked_heartbeat() {
    let server = Server::start(&Settings::new());
    let mut client = Client::open(&server, Transport::Ws);
    let token = r#"{"mid":123,"room_id":"live://1000","platform":"web","accepts":[1000,1001,1002]}"#;
    client.send(&Packet::new(7, 1, token));
    client.expect(&Packet::new(8, 1, ""));
    client.send_bytes(&hex("8290 37fa213d 37fa212d37ea213c37fa213f37fa213c"));
    client.expect_bytes(&hex("8214 0000001400100001000000030000000100000001"));
}

#[test]
fn row_043_the_same_as_text_and_without_a_mask() {
    let mut client = session();
    for first in [0x81, BINARY] {
        for frame in [masked(first, &hex(HEARTBEAT)), unmasked(first, &hex(HEARTBEAT))] {
            client.send_bytes(&frame);
            client.expect(&Packet::new(3, 1, [0; 4]));
        }
    }
}

#[test]
fn row_044_the_same_in_fragments() {
    let heartbeat = hex(HEARTBEAT);
    let (head, tail) = heartbeat.split_at(10);
    let stray_pong = masked(0x8a, b"");
    let frames: [&[Vec<u8>]; 4] = [
        &[hex("028a 37fa213d 37fa212d37ea213c37fa"), hex("8086 37fa213d 37f8213d37fb")],
        &[masked(0x02, head), stray_pong, masked(0x80, tail)],
        &[masked(0x80, &heartbeat)],
        &[masked(0x02, head), masked(0x82, tail)],
    ];
    for frames in frames {
        let mut client = session();
        for frame in frames {
            client.send_bytes(frame);
        }
        client.expect(&Packet::new(3, 1, [0; 4]));
        client.expect_nothing();
    }
}

#[test]
fn row_045_a_ping_is_answered_at_once() {
    let mut client = session();
    client.send_bytes(&hex("8982 37fa213d 5f93"));
    client.expect_bytes(&hex("8a02 6869"));
    client.expect_nothing();
}

#[test]
fn row_046_a_close_frame_ends_the_connection() {
    for frame in [hex("8882 37fa213d 3412"), masked(0x88, b"")] {
        let mut client = session();
        client.send_bytes(&frame);
        client.expect_closed_politely();
    }
}

#[test]
fn row_047_reserved_bits_and_opcodes_close() {
    let firsts = [0xc2, 0xa2, 0x92, 0x83, 0x84, 0x85, 0x86, 0x87, 0x8b, 0x8c, 0x8d, 0x8e, 0x8f];
    for first in firsts {
        let mut client = session();
        client.send_bytes(&masked(first, &hex(HEARTBEAT)));
        client.expect_closed_politely();
    }
}

#[test]
fn row_048_a_message_shorter_than_its_packet_closes() {
    let longer = hex("00001010001000010000000200000001");
    let by_one = hex("00000011001000010000000200000001");
    let heartbeat = hex(HEARTBEAT);
    let (head, tail) = longer.split_at(10);
    let sent = [
        masked(BINARY, b""),
        masked(BINARY, &heartbeat[..1]),
        masked(BINARY, &heartbeat[..15]),
        unmasked(BINARY, &longer),
        masked(BINARY, &longer),
        masked(BINARY, &by_one),
        [masked(0x02, head), masked(0x80, tail)].concat(),
        [unmasked(0x02, head), unmasked(0x80, tail)].concat(),
    ];
    for bytes in sent {
        let mut client = session();
        // There is something of other packets to be read by mistake.
        client.send(&Packet::new(4, 1, vec![0xee; 4000]));
        client.expect(&Packet::new(4, 1, ""));
        client.send_bytes(&bytes);
        client.expect_closed_politely();
        let mut stranger = Client::open(shared(), Transport::Ws);
        stranger.send_bytes(&bytes);
        stranger.expect_closed_politely();
    }
}

#[test]
fn row_049_what_follows_the_packet_in_its_message_is_ignored() {
    let mut client = session();
    client.send_as_packet(&[hex(HEARTBEAT), b"trail".to_vec()].concat());
    client.expect(&Packet::new(3, 1, [0; 4]));
    client.send_as_packet(&[Packet::new(4, 2, "").encode(), Packet::new(4, 3, "").encode()].concat());
    client.expect(&Packet::new(4, 2, ""));
    client.expect_nothing();
}

#[test]
fn row_050_a_frame_of_8193_bytes_closes() {
    let mut client = session();
    let mut message = Packet::new(4, 1, "").encode();
    message.resize(8192, 0);
    client.send_as_packet(&message);
    client.expect(&Packet::new(4, 1, ""));
    message.push(0);
    client.send_as_packet(&message);
    client.expect_closed_politely();
}

#[test]
fn row_082_lengths_below_and_above_what_a_packet_can_have() {
    for length in ["00000000", "0000000f"] {
        let mut client = session();
        client.send_as_packet(&hex(&format!("{length} 0010 0001 00000002 00000001")));
        // Go answers as to an empty body; closing is fine.
        match client.rest_within(Duration::from_millis(500)) {
            Some(rest) => assert!(is_close(&rest), "{length}: {rest:02x?}"),
            None => client.expect(&Packet::new(3, 1, [0; 4])),
        }
    }
    for length in ["ffffffff", "80000000", "80000010", "00001011", "7fffffff"] {
        let mut client = session();
        client.send_as_packet(&hex(&format!("{length} 0010 0001 00000002 00000001")));
        client.expect_closed_politely();
    }
}

#[test]
fn row_083_a_packet_in_twenty_fragments() {
    let packet = Packet::new(4, 1, vec![b'x'; 4096]).encode();
    assert_eq!(packet.len(), 4112);
    let mut client = session();
    let parts: Vec<&[u8]> = packet.chunks(206).collect();
    assert_eq!(parts.len(), 20);
    for (nth, part) in parts.iter().enumerate() {
        let first = if nth == 0 { 0x02 } else { 0 } | if nth == 19 { 0x80 } else { 0 };
        client.send_bytes(&masked(first, part));
    }
    client.expect(&Packet::new(4, 1, ""));
    client.expect_nothing();
}

#[test]
fn row_084_pings_of_any_legal_length_and_stray_pongs() {
    let mut client = session();
    for payload in [vec![], vec![b'p'; 125]] {
        client.send_bytes(&[masked(0x8a, b"stray"), masked(0x89, &payload)].concat());
        let pong = client.frame();
        assert_eq!((pong.first, pong.payload), (0x8a, payload));
        client.expect_nothing();
    }
    // Go also accepts pings that RFC 6455 forbids; the lenient default accepts them too, or closes.
    for (ping, payload) in
        [(masked(0x89, &[b'p'; 200]), vec![b'p'; 200]), (masked(0x09, b"x"), b"x".to_vec())]
    {
        let mut client = session();
        client.send_bytes(&ping);
        match client.rest_within(Duration::from_millis(500)) {
            Some(rest) => assert!(is_close(&rest), "{rest:02x?}"),
            None => {
                let pong = client.frame();
                assert_eq!((pong.first, pong.payload), (0x8a, payload));
                client.expect_nothing();
            }
        }
    }
}

#[test]
fn row_085_any_number_of_control_frames_between_messages() {
    let mut client = session();
    for (round, count) in [(0, 101), (1, 101), (2, 102), (3, 1000)] {
        client.send_bytes(&masked(0x8a, b"").repeat(count));
        client.send(&Packet::new(4, round, ""));
        client.expect(&Packet::new(4, round, ""));
    }
    client.send_bytes(&masked(0x89, b"hi").repeat(102));
    for _ in 0..102 {
        client.expect_bytes(&hex("8a026869"));
    }
    client.expect_nothing();
}

#[test]
fn row_086_frames_in_the_segment_of_the_upgrade() {
    let mut client = Client::connect(shared(), Transport::Ws);
    let auth = masked(BINARY, &Packet::new(7, 1, "{}").encode());
    let heartbeat = masked(BINARY, &Packet::new(2, 2, "").encode());
    client.send_bytes(&[UPGRADE.as_bytes(), &auth, &heartbeat].concat());
    client.expect_bytes(SWITCHED.as_bytes());
    client.expect(&Packet::new(8, 1, ""));
    client.expect(&Packet::new(3, 2, [0; 4]));
    // A request in two parts, the second with the first frame.
    let mut client = Client::connect(shared(), Transport::Ws);
    let (head, tail) = UPGRADE.as_bytes().split_at(UPGRADE.len() - 2);
    client.send_bytes(head);
    client.send_bytes(&[tail, &auth].concat());
    client.expect_bytes(SWITCHED.as_bytes());
    client.expect(&Packet::new(8, 1, ""));
}

#[test]
fn row_087_requests_that_go_accepts_are_accepted_or_refused() {
    let long = format!("Host: x\r\nX-Long: {}", "a".repeat(6000));
    let other = |accept: &str| SWITCHED.replace("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", accept);
    let requests = [
        (upgrade("HTTP/1.1", "HTTP/1.0"), SWITCHED.to_owned()),
        (upgrade("HTTP/1.1", "x"), SWITCHED.to_owned()),
        (UPGRADE.replace("\r\n", "\n"), SWITCHED.to_owned()),
        (upgrade("Host: 127.0.0.1", &long), SWITCHED.to_owned()),
        (
            upgrade("Version: 13", "Version: 13\r\nUpgrade: other\r\nSec-WebSocket-Version: 1"),
            SWITCHED.to_owned(),
        ),
        (upgrade("dGhlIHNhbXBsZSBub25jZQ==", "x"), other("JVxkmtKFjDcI/Pm/AGPEKSN6wT8=")),
        (
            upgrade("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ"),
            other("RZWuh2JK/hL0RMgTNJFfZIAppXg="),
        ),
    ];
    for (request, switched) in requests {
        let mut client = Client::connect(shared(), Transport::Ws);
        client.send_bytes(request.as_bytes());
        // Refused or accepted, nothing more arrives before the client sends something or leaves.
        client.finish();
        let rest = client.rest();
        let accepted = rest.starts_with(switched.as_bytes());
        assert!(
            accepted || is_refusal(&rest),
            "{request:?} was answered {:?}",
            String::from_utf8_lossy(&rest)
        );
    }
}

#[test]
fn row_121_a_frame_length_with_the_top_bit_set_closes() {
    let mut head = hex("82ff8000000000000000");
    head.extend(MASK);
    for bytes in [head, hex("827f8000000000000000"), hex("827fffffffffffffffff"), hex("807f8000000000000000")]
    {
        let mut client = session();
        client.send_bytes(&bytes);
        client.expect_closed_politely();
    }
}
