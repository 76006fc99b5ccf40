//! Properties of arbitrary frames and bytes, split anywhere: the checks of `fuzz/invariants`, with
//! random bytes, golden entries and damaged golden entries.

use goim_websocket::{Kind, Role, Rules};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::golden_file::{entries, hex, load};
use crate::invariants::{End, Seen, check, check_frames, check_handshake, read, write};
use crate::pieces;

fn any_event() -> impl Strategy<Value = Seen> {
    let bytes = || {
        prop_oneof![
            8 => prop::collection::vec(any::<u8>(), 0..130),
            1 => prop::collection::vec(any::<u8>(), 65530..65540),
        ]
    };
    let control = || prop::collection::vec(any::<u8>(), 0..126);
    prop_oneof![
        bytes().prop_map(|payload| Seen::Message(Kind::Binary, payload)),
        ".{0,40}".prop_map(|text| Seen::Message(Kind::Text, text.into_bytes())),
        control().prop_map(Seen::Ping),
        control().prop_map(Seen::Pong),
    ]
}

/// Returns all bytes of the golden files.
fn golden_bytes() -> Vec<Vec<u8>> {
    let (frames, handshakes) = (load("frames.json"), load("handshakes.json"));
    let mut all: Vec<_> = entries(&frames, "reads").iter().map(|entry| hex(&entry["bytes"])).collect();
    all.retain(|bytes| bytes.len() < 4096);
    for (list, member) in [("requests", "request"), ("answers", "response")] {
        let texts = entries(&handshakes, list).iter().map(|entry| entry[member].as_str().unwrap());
        all.extend(texts.map(|text| text.as_bytes().to_vec()));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_is_written_is_read(
        events in prop::collection::vec(any_event(), 0..6),
        last in prop::option::of((3000_u16..5000, ".{0,30}")),
        mask in any::<[u8; 4]>(),
        seed in any::<u32>(),
    ) {
        let mut events = events;
        let closed = last.is_some();
        events.extend(last.map(|(code, reason)| Seen::Close(Some(code), reason.into_bytes())));
        for (role, mask) in [(Role::Server, Some(mask)), (Role::Client, None)] {
            let rules = Rules { role, lenient: false, frame_bytes_max: 1 << 17, message_bytes_max: 1 << 17 };
            let mut bytes = Vec::new();
            for event in &events {
                write(&mut bytes, event, mask);
            }
            let end = if closed { End::Closed } else { End::Used { whole: true } };
            let outcome = read(&bytes, &pieces::cut(bytes.len(), seed), &rules);
            prop_assert_eq!(outcome, (events.clone(), end));
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(data in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&data);
    }

    #[test]
    fn damaged_bytes_are_read_or_refused(
        which in any::<Index>(),
        control in any::<[u8; 4]>(),
        damage in prop::collection::vec((any::<Index>(), any::<u8>()), 0..4),
    ) {
        let golden = golden_bytes();
        let mut data = control.to_vec();
        data.extend(which.get(&golden));
        for (at, byte) in damage {
            let at = at.index(data.len());
            data[at] = byte;
        }
        check(&data);
    }
}

#[test]
fn golden_bytes_keep_the_invariants() {
    for bytes in golden_bytes() {
        for role in [Role::Server, Role::Client] {
            for lenient in [false, true] {
                for limits in [(1, 4), (125, 200), (1 << 20, 1 << 20)] {
                    let (frame_bytes_max, message_bytes_max) = limits;
                    check_frames(&bytes, &Rules { role, lenient, frame_bytes_max, message_bytes_max }, 7);
                }
            }
        }
        for head_bytes_max in [0, 1, 100, 8192] {
            check_handshake(&bytes, head_bytes_max, 7);
        }
    }
}
