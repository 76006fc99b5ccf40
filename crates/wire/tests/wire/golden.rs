//! Decodes and encodes the golden packets of `testdata/wire`, which were written from goim's
//! protocol.

use crate::golden_file::{captured, entries, hex, load, size_or};
use goim_wire::{
    DecodeError, INBOUND_BODY_MAX, Operation, Packet, PacketBuf, Sequence, StreamDecoder, Version, batch,
    control,
};
use serde_json::Value;

fn packet(value: &Value) -> PacketBuf {
    let number = |member: &str| value[member].as_i64().unwrap_or_else(|| panic!("no {member} in {value}"));
    PacketBuf {
        version: Version(number("version").try_into().unwrap()),
        operation: Operation(number("operation").try_into().unwrap()),
        sequence: Sequence(number("sequence").try_into().unwrap()),
        body: hex(&value["body"]).into(),
    }
}

fn packets(value: &Value) -> Vec<PacketBuf> {
    value.as_array().expect("a list of packets").iter().map(packet).collect()
}

fn name_of(error: DecodeError) -> &'static str {
    match error {
        DecodeError::TooShort(_) => "too_short",
        DecodeError::TooLong { .. } => "too_long",
        DecodeError::BadHeaderLen(_) => "bad_header_len",
        DecodeError::Truncated { .. } => "truncated",
    }
}

/// Decodes `bytes` in pieces of `piece` bytes. Returns the packets, the error, and the number of
/// bytes of an incomplete packet.
fn read(bytes: &[u8], piece: usize, body_max: usize) -> (Vec<PacketBuf>, Result<usize, &'static str>) {
    let mut decoder = StreamDecoder::new();
    let mut found = Vec::new();
    let mut taken = 0;
    for input in bytes.chunks(piece) {
        let mut at = 0;
        loop {
            match decoder.next(input, &mut at, body_max) {
                Ok(Some(packet)) => {
                    taken += packet.encoded_len();
                    found.push(packet.to_owned());
                }
                Ok(None) => break,
                Err(error) => return (found, Err(name_of(error))),
            }
        }
    }
    let kept = bytes.len() - taken;
    assert_eq!(decoder.is_empty(), kept == 0);
    (found, Ok(kept))
}

#[test]
fn streams() {
    for entry in entries(&load("packets.json"), "streams") {
        let bytes = hex(&entry["bytes"]);
        let body_max = size_or(&entry["body_max"], INBOUND_BODY_MAX);
        let end = match entry["error"].as_str() {
            Some(error) => Err(error),
            None => Ok(size_or(&entry["kept"], 0)),
        };
        let expected = (packets(&entry["packets"]), end);
        for piece in [bytes.len().max(1), 1, 2, 3, 7, 15, 16, 17] {
            assert_eq!(read(&bytes, piece, body_max), expected, "{}: in pieces of {piece}", entry["name"]);
        }
        let mut written = Vec::new();
        for packet in &expected.0 {
            packet.as_packet().encode(&mut written);
        }
        assert_eq!(bytes.get(..written.len()), Some(written.as_slice()), "{}: as written", entry["name"]);
    }
}

#[test]
fn messages() {
    for entry in entries(&load("packets.json"), "messages") {
        let bytes = hex(&entry["bytes"]);
        let body_max = size_or(&entry["body_max"], INBOUND_BODY_MAX);
        let read = Packet::from_message(&bytes, body_max);
        if let Some(error) = entry["error"].as_str() {
            assert_eq!(read.map_err(name_of), Err(error), "{}", entry["name"]);
            continue;
        }
        let expected = packet(&entry["packet"]);
        assert_eq!(read, Ok(expected.as_packet()), "{}", entry["name"]);
        let packet_len = bytes.len() - size_or(&entry["trailing"], 0);
        assert_eq!(expected.to_message_bytes(), bytes[..packet_len], "{}: as written", entry["name"]);
        if expected.operation == Operation::RAW {
            check_batch(entry, &expected);
        }
    }
}

/// A valid batch is split into `inner`, built from it, and encoded without a header on a stream.
fn check_batch(entry: &Value, expected: &PacketBuf) {
    let inner = packets(&entry["inner"]);
    let read: Vec<_> = batch::packets(&expected.body).map(|packet| packet.unwrap().to_owned()).collect();
    assert_eq!(read, inner, "{}", entry["name"]);
    let mut builder = batch::BatchBuilder::new();
    for packet in &inner {
        builder.push(packet.as_packet());
    }
    assert_eq!(builder.bytes_len(), expected.body.len());
    assert_eq!(builder.is_empty(), inner.is_empty());
    assert_eq!(builder.finish(), *expected, "{}", entry["name"]);
    assert_eq!(expected.to_stream_bytes(), expected.body, "{}", entry["name"]);
}

#[test]
fn broken_batches() {
    for entry in entries(&load("packets.json"), "batches") {
        let body = hex(&entry["body"]);
        let mut read = batch::packets(&body);
        for expected in packets(&entry["inner"]) {
            assert_eq!(read.next(), Some(Ok(expected.as_packet())), "{}", entry["name"]);
        }
        let error = read.next().expect("an error").map_err(name_of);
        assert_eq!(error, Err(entry["error"].as_str().unwrap()), "{}", entry["name"]);
        assert_eq!(read.next(), None, "{}: goes on after an error", entry["name"]);
    }
}

#[test]
fn lists_of_operations() {
    for entry in entries(&load("bodies.json"), "operations") {
        let body = hex(&entry["body"]);
        if let Some(text) = entry["text"].as_str() {
            assert_eq!(body, text.as_bytes(), "{entry}: text and body differ");
        }
        let expected = entry["operations"].as_array().map(|list| {
            list.iter().map(|op| Operation(op.as_i64().unwrap().try_into().unwrap())).collect::<Vec<_>>()
        });
        let read = control::parse_operations(&body);
        assert_eq!(read, expected, "{entry}");
        if let Some(operations) = read {
            assert_eq!(control::parse_operations(&control::format_operations(&operations)), Some(operations));
        }
    }
    let listed = control::format_operations(&[Operation(1000), Operation(-1), Operation(0)]);
    assert_eq!(listed, b"1000,-1,0");
    assert_eq!(control::format_operations(&[]), b"");
}

#[test]
fn online_counts() {
    for entry in entries(&load("bodies.json"), "online_counts") {
        let body = hex(&entry["body"]);
        let expected = entry["count"].as_i64().map(|count| i32::try_from(count).unwrap());
        assert_eq!(control::parse_online_count(&body), expected, "{entry}");
        if let Some(count) = expected.and_then(|count| u32::try_from(count).ok()) {
            assert_eq!(control::online_count(count).as_slice(), body, "{entry}");
        }
    }
    assert_eq!(control::online_count(u32::MAX), [0x7f, 0xff, 0xff, 0xff], "the count saturates");
}

#[test]
fn every_operation_of_goim_is_among_the_golden_packets() {
    let file = load("packets.json");
    let seen: Vec<_> =
        entries(&file, "streams").iter().flat_map(|entry| packets(&entry["packets"])).collect();
    let named = [
        Operation::HEARTBEAT,
        Operation::HEARTBEAT_REPLY,
        Operation::SEND,
        Operation::SEND_REPLY,
        Operation::DISCONNECT,
        Operation::AUTH,
        Operation::AUTH_REPLY,
        Operation::RAW,
        Operation::CHANGE_ROOM,
        Operation::CHANGE_ROOM_REPLY,
        Operation::SUBSCRIBE,
        Operation::SUBSCRIBE_REPLY,
        Operation::UNSUBSCRIBE,
        Operation::UNSUBSCRIBE_REPLY,
        Operation::ERROR,
        Operation::BACKEND_MIN,
    ];
    for operation in named {
        assert!(
            seen.iter().any(|packet| packet.operation == operation),
            "no packet of operation {operation}"
        );
    }
}

#[test]
fn what_goim_sent_is_read_and_written_the_same() {
    let mut packets_seen = 0;
    for (name, bytes) in captured("tcp") {
        let (packets, end) = read(&bytes, bytes.len().max(1), usize::MAX);
        assert_eq!(end, Ok(0), "{name}");
        let mut written = Vec::new();
        for packet in &packets {
            packet.as_packet().encode(&mut written);
        }
        assert_eq!(written, bytes, "{name}");
        packets_seen += packets.len();
    }
    assert!(packets_seen > 100, "only {packets_seen} packets were captured");
}
