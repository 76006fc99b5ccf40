//! Invariants of arbitrary bytes that are decoded as packets. The fuzz target `packet` and the
//! tests of `wire` run these checks.
//!
//! Panics if an invariant does not hold.

use goim_wire::{DecodeError, HEADER_LEN, Operation, Packet, PacketBuf, StreamDecoder, batch, control};

/// The result of a stream: its packets, and the error or the number of bytes of an incomplete
/// packet.
type Outcome = (Vec<PacketBuf>, Result<usize, DecodeError>);

/// Runs all checks. The first four bytes choose the limit and the pieces, the rest is decoded.
pub(crate) fn check(data: &[u8]) {
    let Some((control, bytes)) = data.split_first_chunk::<4>() else { return };
    let body_max = [0, 16, 4096, 1 << 20][usize::from(control[0] & 3)];
    check_stream(bytes, body_max, u32::from_be_bytes(*control));
    check_message(bytes, body_max);
    check_batch(bytes);
    check_bodies(bytes);
}

/// Any pieces give the result of a plain decoder, and the limit of stored bytes holds.
pub(crate) fn check_stream(bytes: &[u8], body_max: usize, seed: u32) {
    let expected = plain_reading(bytes, body_max);
    assert_eq!(decode(bytes, &[bytes.len()], body_max), expected, "in one piece");
    let pieces = crate::pieces::cut(bytes.len(), seed);
    assert_eq!(decode(bytes, &pieces, body_max), expected, "in pieces of {pieces:?}");

    let mut encoded = Vec::new();
    for packet in &expected.0 {
        packet.as_packet().encode(&mut encoded);
    }
    assert!(bytes.starts_with(&encoded), "encoding gives other bytes");
}

/// A simple decoder: big endian at fixed offsets, with goim's order of checks.
fn plain_reading(bytes: &[u8], body_max: usize) -> Outcome {
    let mut packets = Vec::new();
    let mut rest = bytes;
    loop {
        if rest.len() < HEADER_LEN {
            return (packets, Ok(rest.len()));
        }
        let number = |at: usize| i32::from_be_bytes(rest[at..at + 4].try_into().unwrap());
        let short = |at: usize| i16::from_be_bytes(rest[at..at + 2].try_into().unwrap());
        let packet_len = number(0);
        let limit = body_max + HEADER_LEN;
        let error = if packet_len < 0 {
            Some(DecodeError::TooShort(packet_len))
        } else if packet_len as usize > limit {
            Some(DecodeError::TooLong { packet_len, limit })
        } else if short(4) != 16 {
            Some(DecodeError::BadHeaderLen(short(4)))
        } else if packet_len < 16 {
            Some(DecodeError::TooShort(packet_len))
        } else {
            None
        };
        if let Some(error) = error {
            return (packets, Err(error));
        }
        let Some(body) = rest.get(HEADER_LEN..packet_len as usize) else { return (packets, Ok(rest.len())) };
        packets.push(PacketBuf {
            version: goim_wire::Version(short(6)),
            operation: Operation(number(8)),
            sequence: goim_wire::Sequence(number(12)),
            body: body.to_vec().into(),
        });
        rest = &rest[packet_len as usize..];
    }
}

/// Passes `bytes` to a decoder in pieces of the given lengths.
pub(crate) fn decode(bytes: &[u8], pieces: &[usize], body_max: usize) -> Outcome {
    let mut decoder = StreamDecoder::new();
    let mut packets = Vec::new();
    let mut start = 0;
    let mut taken = 0;
    for piece in pieces {
        let input = &bytes[start..start + piece];
        start += piece;
        let mut at = 0;
        loop {
            match decoder.next(input, &mut at, body_max) {
                Ok(Some(packet)) => {
                    assert!(packet.body.len() <= body_max);
                    taken += packet.encoded_len();
                    packets.push(packet.to_owned());
                }
                Ok(None) => break,
                Err(error) => return (packets, Err(error)),
            }
        }
        assert_eq!(at, input.len(), "input left over");
        assert!(decoder.heap_bytes() <= body_max + HEADER_LEN, "{} bytes stored", decoder.heap_bytes());
        assert_eq!(decoder.is_empty(), start == taken);
        assert!(!decoder.is_empty() || decoder.heap_bytes() == 0, "an idle decoder owns memory");
    }
    (packets, Ok(start - taken))
}

/// A message is checked like the first packet of a stream, without anything after it.
pub(crate) fn check_message(bytes: &[u8], body_max: usize) {
    let (packets, end) = plain_reading(bytes, body_max);
    let message = Packet::from_message(bytes, body_max);
    match (packets.first(), end) {
        (Some(first), _) => assert_eq!(message, Ok(first.as_packet())),
        (None, Err(error)) => assert_eq!(message, Err(error)),
        (None, Ok(received)) => {
            assert!(matches!(message, Err(DecodeError::Truncated { received: r, .. }) if r == received));
        }
    }
}

/// A batch is a complete stream; a builder restores it from its packets.
pub(crate) fn check_batch(bytes: &[u8]) {
    let (expected, end) = plain_reading(bytes, i32::MAX as usize);
    let mut packets = batch::packets(bytes);
    let mut builder = batch::BatchBuilder::new();
    for expected in &expected {
        let packet = packets.next().expect("a packet is missing").expect("a good packet is refused");
        assert_eq!(packet, expected.as_packet());
        builder.push(packet);
    }
    match end {
        Ok(0) => assert_eq!(packets.next(), None),
        Ok(_) => assert!(matches!(packets.next(), Some(Err(DecodeError::Truncated { .. })))),
        Err(error) => assert_eq!(packets.next(), Some(Err(error))),
    }
    assert_eq!(packets.next(), None, "a packet after an error");
    assert_eq!(builder.len(), expected.len());
    let built = builder.finish();
    assert_eq!(built.operation, Operation::RAW);
    assert!(bytes.starts_with(&built.body));
    assert_eq!(built.to_stream_bytes(), built.body, "a batch is wrapped on a stream");
    assert_eq!(built.to_message_bytes().get(HEADER_LEN..), Some(built.body.as_ref()));
}

/// Lists of operations and online counts: decoded values encode to the same, and nothing else is
/// accepted.
pub(crate) fn check_bodies(bytes: &[u8]) {
    let expected = plain_operations(bytes);
    let operations = control::parse_operations(bytes);
    assert_eq!(operations.as_ref().map(|list| list.iter().map(|op| op.0).collect::<Vec<_>>()), expected);
    if let Some(operations) = operations {
        let text = control::format_operations(&operations);
        assert_eq!(control::parse_operations(&text), Some(operations));
    }
    let count = control::parse_online_count(bytes);
    assert_eq!(count.is_some(), bytes.len() == 4);
    if let Some(count) = count {
        assert_eq!(bytes, count.to_be_bytes());
    }
}

/// An optional sign, then digits, separated by commas; no number beyond 32 bits.
fn plain_operations(bytes: &[u8]) -> Option<Vec<i32>> {
    bytes
        .split(|byte| *byte == b',')
        .map(|element| {
            let (sign, digits) = match element {
                [b'-', digits @ ..] => (-1, digits),
                [b'+', digits @ ..] => (1, digits),
                digits => (1, digits),
            };
            if digits.is_empty() {
                return None;
            }
            let mut value = 0_i64;
            for digit in digits {
                if !digit.is_ascii_digit() {
                    return None;
                }
                value = value.saturating_mul(10).saturating_add(i64::from(digit - b'0'));
            }
            i32::try_from(sign * value).ok()
        })
        .collect()
}
