//! How packets are cut out of the byte stream: rows 22 to 28 of the conformance table. What is
//! particular to WebSocket is in `websocket.rs`.

use crate::harness;
use crate::harness::{BOTH, Client, Packet, Transport, Who, eventually, hex, shared, unique};

#[test]
fn row_022_a_body_of_4096_bytes_is_accepted() {
    for transport in BOTH {
        let mut client = Client::login(shared(), transport, &Who::new());
        client.send_as_packet(&[hex("00001010001000010000000400000001"), vec![b'x'; 4096]].concat());
        client.expect(&Packet::new(4, 1, ""));
        client.expect_nothing();
    }
}

/// Sends a header that must end the connection, to a stranger and to a session.
fn check_closes(header: &str, transports: &[Transport]) {
    for &transport in transports {
        let mut stranger = Client::open(shared(), transport);
        stranger.send_as_packet(&hex(header));
        stranger.expect_closed();
        let mut session = Client::login(shared(), transport, &Who::new());
        session.send_as_packet(&hex(header));
        session.expect_closed();
    }
}

#[test]
fn row_023_a_longer_packet_closes_before_its_body_is_read() {
    check_closes("00001011001000010000000400000001", &BOTH);
    check_closes("7fffffff001000010000000400000001", &BOTH);
}

#[test]
fn row_024_another_header_length_closes() {
    for header_len in ["0014", "0000", "000f", "fff0", "0011"] {
        check_closes(&format!("00000010 {header_len} 0001 00000002 00000001"), &BOTH);
    }
}

#[test]
fn row_025_a_packet_shorter_than_its_header_closes() {
    for packet_len in ["00000000", "ffffffff", "0000000f", "00000001"] {
        check_closes(&format!("{packet_len} 0010 0001 00000002 00000001"), &[Transport::Tcp]);
    }
}

#[test]
fn row_026_a_length_that_wraps_around_closes() {
    for packet_len in ["80000000", "8000000f", "80000010"] {
        check_closes(&format!("{packet_len} 0010 0001 00000002 00000001"), &[Transport::Tcp]);
    }
}

#[test]
fn row_027_the_end_inside_a_header_ends_the_session() {
    let mut stranger = Client::open(shared(), Transport::Tcp);
    stranger.send_bytes(&hex("00000010001000010000"));
    stranger.finish();
    stranger.expect_closed();

    let room = unique("r://");
    let mut watcher = Client::login(shared(), Transport::Tcp, &Who::new().room(&room));
    let mut session = Client::login(shared(), Transport::Tcp, &Who::new().room(&room));
    assert_eq!(watcher.heartbeat(), 2);
    session.send_bytes(&hex("00000010001000010000"));
    session.finish();
    session.expect_closed();
    eventually("the session is out of its room", || watcher.heartbeat() == 1);
}

#[test]
fn row_028_packets_glued_and_split() {
    for transport in BOTH {
        let mut client = Client::login(shared(), transport, &Who::new());
        client.send_together(&[Packet::new(4, 1, "a"), Packet::new(2, 2, "")]);
        client.expect(&Packet::new(4, 1, ""));
        client.expect(&Packet::new(3, 2, [0; 4]));
        let bytes = match transport {
            Transport::Tcp => Packet::new(4, 3, "abc").encode(),
            Transport::Ws => {
                harness::frame::masked(harness::frame::BINARY, &Packet::new(4, 3, "abc").encode())
            }
        };
        for byte in bytes {
            // Without Nagle's algorithm each byte is sent alone.
            client.send_bytes(&[byte]);
        }
        client.expect(&Packet::new(4, 3, ""));
    }
}
