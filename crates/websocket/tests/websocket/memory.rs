//! The memory of a reader: none when idle, and no copy of what is complete in the input.

use goim_websocket::{Event, Kind, Opcode, Reader, Role, Rules, encode_frame};

const RULES: Rules =
    Rules { role: Role::Server, lenient: false, frame_bytes_max: 1 << 20, message_bytes_max: 1 << 20 };
const MASK: Option<[u8; 4]> = Some([1, 2, 3, 4]);

fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_frame(&mut out, opcode, payload, MASK);
    out
}

#[test]
fn an_idle_reader_is_small() {
    assert!(size_of::<Reader>() <= 32, "{} bytes", size_of::<Reader>());
    assert_eq!(Reader::new().heap_bytes(), 0);
    assert!(Reader::new().is_empty());
}

#[test]
fn a_complete_message_is_unmasked_in_place() {
    for len in [0, 1, 125, 126, 65535, 65536] {
        let payload = vec![b'x'; len];
        let mut input = frame(Opcode::Binary, &payload);
        let range = input.as_ptr_range();
        let mut reader = Reader::new();
        let mut at = 0;
        let event = reader.next(&RULES, &mut input, &mut at).unwrap().expect("a message");
        let Event::Message { kind: Kind::Binary, payload: read } = event else { panic!("{event:?}") };
        assert_eq!(read, payload);
        assert_eq!(read.as_ptr_range().end, range.end, "length {len}: not lent from the input");
        assert_eq!(reader.heap_bytes(), 0, "length {len}");
        assert_eq!(at, input.len());
    }
}

#[test]
fn a_ping_inside_a_message_is_not_copied_either() {
    let mut input = frame(Opcode::Binary, b"begin");
    input[0] &= 0x7f;
    input.extend(frame(Opcode::Ping, b"?"));
    let end = input.as_ptr_range().end;
    let mut reader = Reader::new();
    let mut at = 0;
    let event = reader.next(&RULES, &mut input, &mut at).unwrap();
    let Some(Event::Ping(payload)) = event else { panic!("{event:?}") };
    assert_eq!(payload.as_ptr_range().end, end);
    assert!(!reader.is_empty(), "the message is unfinished");
}

/// After any message, once the next call finds no more input, the reader owns nothing.
#[test]
fn memory_is_freed_after_a_message() {
    let mut first = frame(Opcode::Binary, &[7; 5000]);
    first[0] &= 0x7f;
    let fragmented =
        [first, frame(Opcode::Ping, &[8; 100]), frame(Opcode::Continuation, &[9; 3000])].concat();
    for bytes in [frame(Opcode::Binary, &[7; 5000]), frame(Opcode::Ping, &[7; 100]), fragmented] {
        for piece in [1, 7, 1000, bytes.len()] {
            let mut reader = Reader::new();
            let mut kept_most = 0;
            for input in bytes.chunks(piece) {
                let (mut input, mut at) = (input.to_vec(), 0);
                while reader.next(&RULES, &mut input, &mut at).unwrap().is_some() {}
                kept_most = kept_most.max(reader.heap_bytes());
            }
            assert_eq!(reader.heap_bytes(), 0, "in pieces of {piece}");
            assert!(reader.is_empty());
            // At most twice the message, because memory grows by doubling.
            assert!(kept_most <= 2 * 8000 + 256, "{kept_most} bytes kept, in pieces of {piece}");
        }
    }
}

/// An event that was assembled from pieces is not unfinished, even before the next call.
#[test]
fn a_returned_event_is_finished() {
    for opcode in [Opcode::Binary, Opcode::Ping] {
        let bytes = frame(opcode, b"payload");
        let (first, second) = bytes.split_at(9);
        let mut reader = Reader::new();
        assert_eq!(reader.next(&RULES, &mut first.to_vec(), &mut 0), Ok(None));
        assert!(!reader.is_empty());
        assert!(reader.next(&RULES, &mut second.to_vec(), &mut 0).unwrap().is_some());
        assert!(reader.is_empty(), "{opcode:?}");
    }
}

/// A peer that announces a large payload and sends little gets little memory.
#[test]
fn an_announced_length_alone_reserves_no_memory() {
    let mut input = frame(Opcode::Binary, &vec![0; 1 << 20]);
    input.truncate(20);
    let mut reader = Reader::new();
    assert_eq!(reader.next(&RULES, &mut input, &mut 0), Ok(None));
    assert!(reader.heap_bytes() <= 66 * 1024, "{} bytes for 6 received", reader.heap_bytes());
}

/// A million fragments of one byte must not move the buffer a million times: memory grows by
/// doubling.
#[test]
fn tiny_fragments_do_not_cost_a_move_each() {
    let mut reader = Reader::new();
    let mut sizes = Vec::new();
    for n in 0..1 << 20 {
        let opcode = if n == 0 { Opcode::Binary } else { Opcode::Continuation };
        let mut input = frame(opcode, b"x");
        input[0] &= 0x7f;
        assert_eq!(reader.next(&RULES, &mut input, &mut 0), Ok(None));
        if sizes.last() != Some(&reader.heap_bytes()) {
            sizes.push(reader.heap_bytes());
        }
    }
    assert!(sizes.len() < 40, "memory was moved {} times", sizes.len());
    assert!(*sizes.last().unwrap() <= (1 << 20) + 256);
}
