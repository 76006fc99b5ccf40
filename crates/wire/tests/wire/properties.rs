//! Properties of arbitrary packets and bytes, split anywhere: the checks of `fuzz/invariants`, with
//! random packets, golden packets and damaged golden packets.

use goim_wire::{HEADER_LEN, Operation, PacketBuf, Sequence, StreamDecoder, Version, batch::BatchBuilder};
use proptest::prelude::*;

use crate::golden_file::{entries, hex, load};
use crate::{packet, pieces};

fn any_packet() -> impl Strategy<Value = PacketBuf> {
    let body = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40),
        1 => prop::collection::vec(any::<u8>(), 4080..4097),
    ];
    (any::<i16>(), any::<i32>(), any::<i32>(), body).prop_map(|(version, operation, sequence, body)| {
        PacketBuf {
            version: Version(version),
            operation: Operation(operation),
            sequence: Sequence(sequence),
            body: body.into(),
        }
    })
}

fn encode(packets: &[PacketBuf]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for packet in packets {
        packet.as_packet().encode(&mut bytes);
    }
    bytes
}

/// Returns all bytes of the golden files.
fn golden_bytes() -> Vec<Vec<u8>> {
    let (packets, bodies) = (load("packets.json"), load("bodies.json"));
    let of = |file, list, member: &str| -> Vec<_> {
        entries(file, list).iter().map(|entry| hex(&entry[member])).collect()
    };
    [
        of(&packets, "streams", "bytes"),
        of(&packets, "messages", "bytes"),
        of(&packets, "batches", "body"),
        of(&bodies, "operations", "body"),
        of(&bodies, "online_counts", "body"),
    ]
    .concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_pieces_give_the_same_packets(
        packets in prop::collection::vec(any_packet(), 0..6),
        cut_off in 0_usize..20,
        seed in any::<u32>(),
    ) {
        let mut bytes = encode(&packets);
        let (read, end) = packet::decode(&bytes, &pieces::cut(bytes.len(), seed), 4096);
        prop_assert_eq!(read, packets);
        prop_assert_eq!(end, Ok(0));
        bytes.truncate(bytes.len().saturating_sub(cut_off));
        packet::check_stream(&bytes, 4096, seed);
        packet::check_message(&bytes, 4096);
    }

    #[test]
    fn a_batch_gives_back_its_packets(packets in prop::collection::vec(any_packet(), 0..6)) {
        let mut builder = BatchBuilder::new();
        for packet in &packets {
            builder.push(packet.as_packet());
        }
        prop_assert_eq!(builder.len(), packets.len());
        let batch = builder.finish();
        prop_assert_eq!(&batch.body, &encode(&packets));
        let read: Result<Vec<_>, _> =
            goim_wire::batch::packets(&batch.body).map(|packet| packet.map(|p| p.to_owned())).collect();
        prop_assert_eq!(read, Ok(packets));
    }

    #[test]
    fn any_bytes_are_read_or_refused(data in prop::collection::vec(any::<u8>(), 0..200)) {
        packet::check(&data);
    }

    #[test]
    fn damaged_packets_are_read_or_refused(
        which in any::<prop::sample::Index>(),
        control in any::<[u8; 4]>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let golden = golden_bytes();
        let mut data = control.to_vec();
        data.extend(which.get(&golden));
        for (at, byte) in damage {
            let at = at.index(data.len());
            data[at] = byte;
        }
        packet::check(&data);
    }

    #[test]
    fn texts_like_lists_of_operations(text in "[-+0-9,]{0,24}") {
        packet::check_bodies(text.as_bytes());
    }
}

#[test]
fn golden_bytes_keep_the_invariants() {
    for bytes in golden_bytes() {
        for body_max in [0, 4, 16, 4096, 1 << 20] {
            packet::check_stream(&bytes, body_max, 7);
            packet::check_message(&bytes, body_max);
        }
        packet::check_batch(&bytes);
        packet::check_bodies(&bytes);
    }
}

/// A packet that is complete in the input is borrowed from it; only a split one is copied.
#[test]
fn complete_packets_are_not_copied() {
    let packets: Vec<_> =
        [0, 1, 100, 4096].map(|len| PacketBuf::push(Operation(1000), vec![7; len].into())).into();
    let bytes = encode(&packets);
    let mut decoder = StreamDecoder::new();
    let mut at = 0;
    for _ in &packets {
        let body_at = at + HEADER_LEN;
        let packet = decoder.next(&bytes, &mut at, 4096).unwrap().expect("a packet");
        assert_eq!(packet.body.as_ptr(), bytes[body_at..].as_ptr());
        assert_eq!(decoder.heap_bytes(), 0);
    }
    assert_eq!(at, bytes.len());

    let (first, second) = bytes.split_at(bytes.len() - 1);
    let mut at = bytes.len() - 4096 - HEADER_LEN;
    assert_eq!(decoder.next(first, &mut at, 4096), Ok(None));
    assert_eq!(decoder.heap_bytes(), 4096 + HEADER_LEN);
    let mut at = 0;
    let packet = decoder.next(second, &mut at, 4096).unwrap().expect("a packet");
    assert!(!bytes.as_ptr_range().contains(&packet.body.as_ptr()));
    assert!(decoder.is_empty(), "a packet that was handed out counts as unfinished");
    assert_eq!(decoder.next(second, &mut at, 4096), Ok(None));
    assert_eq!(decoder.heap_bytes(), 0, "the memory of a packet that was handed out is kept");
}

/// A header with a length above the limit is refused before any of the body is stored.
#[test]
fn a_refused_length_keeps_nothing() {
    let header = goim_wire::Header::new(Version(1), Operation(1000), Sequence(1), 4097).to_bytes();
    let mut decoder = StreamDecoder::new();
    for input in header.chunks(5) {
        if decoder.next(input, &mut 0, 4096).is_err() {
            assert!(decoder.heap_bytes() <= HEADER_LEN);
            return;
        }
    }
    panic!("not refused");
}

#[test]
fn an_idle_decoder_is_small() {
    assert!(size_of::<StreamDecoder>() <= 32, "{} bytes", size_of::<StreamDecoder>());
}
