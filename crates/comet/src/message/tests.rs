//! The variants of messages as each kind of session gets them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use goim_compression::Levels;
use goim_ports::{
    Bodies, Encoding, Operation, PacketBuf, Payload, Schema, SchemaBody, Version, VersionTable,
};
use goim_session::Transport;
use goim_wire::{Packet, batch};

use super::*;
use crate::config::CompressionConfig;

fn profiles() -> Arc<ReaderProfiles> {
    let more = ["4 = schema 2, identity", "5 = schema 2, zstd", "6 = schema 3, zstd"];
    let mut rows = VersionTable::default().rows().to_vec();
    rows.extend(more.iter().map(|row| row.parse::<goim_ports::VersionRow>().unwrap()));
    Arc::new(ReaderProfiles::new(VersionTable::new(rows).unwrap(), CompressionConfig::default(), 1024))
}

fn push(body: &[u8]) -> PacketBuf {
    batch::BatchBuilder::one(PacketBuf::push(Operation(1000), Bytes::copy_from_slice(body)).as_packet())
}

fn outgoing(body: &[u8], profiles: &Arc<ReaderProfiles>) -> Outgoing {
    Outgoing::new(Payload::plain(push(body)), Operation(1000), profiles)
}

#[test]
fn a_message_is_deflated_once_for_all_sessions_without_an_encoding() {
    let profiles = profiles();
    let [plain, deflating] = [false, true].map(|deflates| profiles.for_goim(None, deflates, SyncMode::Off));
    assert_ne!(plain, deflating);
    assert_eq!(
        profiles.for_goim(Some(Version(3)), true, SyncMode::Off),
        profiles.for_goim(Some(Version(3)), false, SyncMode::Off)
    );
    profiles.session_opened(deflating);
    let message = outgoing(&[b'x'; 3000], &profiles);
    for message in [message.for_another_shard(), message] {
        for _ in 0..3 {
            let bytes = message.for_profile(deflating, &profiles).unwrap().bytes(Transport::WebSocket);
            assert!(bytes[0] == 0xc2 && bytes.len() < 100, "{bytes:x?}");
            let bytes = message.for_profile(plain, &profiles).unwrap().bytes(Transport::WebSocket);
            assert!(bytes[0] == 0x82 && bytes.len() > 3000);
        }
    }
    let counts = profiles.compressor().stats().map(|(name, of)| (name, of.count.load(Ordering::Relaxed)));
    assert_eq!(counts.filter(|(_, count)| *count > 0).collect::<Vec<_>>(), [("deflate", 1)]);
    let small = outgoing(b"small", &profiles);
    assert_eq!(small.for_profile(deflating, &profiles).unwrap().bytes(Transport::WebSocket)[0], 0x82);
}

/// Returns the packets that a session of this protover gets: version and body of each.
fn received(
    message: &Outgoing,
    profiles: &Arc<ReaderProfiles>,
    protover: Option<i16>,
) -> Option<Vec<(i16, Vec<u8>)>> {
    let profile = profiles.for_goim(protover.map(Version), false, SyncMode::Off);
    let encoded = message.for_profile(profile, profiles)?;
    let bytes = encoded.bytes(Transport::Stream);
    let first = Packet::from_message(bytes, usize::MAX).unwrap();
    let run = if first.operation == Operation::RAW {
        let row = profiles.table().row(first.version).unwrap();
        goim_compression::inflate(row.encoding, first.body, 1 << 20).unwrap()
    } else {
        bytes.to_vec()
    };
    let packets = batch::packets(&run).map(|packet| packet.unwrap());
    Some(packets.map(|packet| (packet.version.0, packet.body.to_vec())).collect())
}

#[test]
fn each_session_gets_the_highest_schema_that_it_reads() {
    let profiles = profiles();
    let body = |schema: u16, text: &str| SchemaBody {
        schema: Schema(schema),
        body: Bytes::copy_from_slice(text.as_bytes()),
    };
    let message = |primary| {
        let others = vec![body(2, "two"), body(3, &"three ".repeat(100))];
        let payload = Payload::Message(Bodies::new(primary, others).unwrap());
        Outgoing::new(payload, Operation(1000), &profiles)
    };
    let first = message(Some(push(b"one")));
    let three = {
        let packed =
            goim_compression::compress(Encoding::Zstd, "three ".repeat(100).as_bytes(), Levels::default());
        (6, packed.unwrap())
    };
    for (protover, expected) in [
        (None, (1, b"one".to_vec())),
        (Some(1), (1, b"one".to_vec())),
        (Some(2), (1, b"one".to_vec())),
        (Some(3), (1, b"one".to_vec())),
        (Some(4), (4, b"two".to_vec())),
        (Some(5), (4, b"two".to_vec())),
        (Some(6), three.clone()),
        (Some(99), three.clone()),
    ] {
        assert_eq!(received(&first, &profiles, protover), Some(vec![expected]), "{protover:?}");
    }
    let message = message(None);
    for protover in [None, Some(1), Some(3)] {
        assert_eq!(received(&message, &profiles, protover), None, "{protover:?} can read nothing");
    }
    assert_eq!(received(&message.for_another_shard(), &profiles, Some(4)), Some(vec![(4, b"two".to_vec())]));
}

#[test]
fn a_message_is_compressed_once_for_all_shards_and_sessions() {
    let profiles = profiles();
    let body = b"the same again and again ".repeat(100);
    for protover in [2, 3, 5] {
        profiles.session_opened(profiles.for_goim(Some(Version(protover)), false, SyncMode::Off));
    }
    let message = outgoing(&body, &profiles);
    let shards: Vec<Outgoing> = (0..4).map(|_| message.for_another_shard()).collect();
    for shard in &shards {
        for protover in [None, Some(1), Some(2), Some(3), Some(4), Some(5), Some(6)] {
            assert_eq!(received(shard, &profiles, protover), Some(vec![(1, body.clone())]), "{protover:?}");
        }
    }
    let counts: Vec<u64> =
        profiles.compressor().stats().map(|(_, of)| of.count.load(Ordering::Relaxed)).collect();
    assert_eq!(counts, [1, 1, 1, 0], "zlib, brotli, zstd, deflate");
    let small = outgoing(b"small", &profiles);
    assert_eq!(received(&small, &profiles, Some(3)), Some(vec![(1, b"small".to_vec())]));
    let counts: Vec<u64> =
        profiles.compressor().stats().map(|(_, of)| of.count.load(Ordering::Relaxed)).collect();
    assert_eq!(counts, [1, 1, 1, 0], "nothing is compressed below the threshold");
}

#[test]
fn a_session_opened_after_the_message_was_received_gets_it_too() {
    let profiles = profiles();
    let message = outgoing(b"hello", &profiles);
    assert_eq!(received(&message, &profiles, Some(4)), Some(vec![(1, b"hello".to_vec())]));
    assert_eq!(message.into_payload(), Payload::plain(push(b"hello")));
}
