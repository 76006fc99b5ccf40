//! CityHash32 of version 1.1, as in goim: it selects the field of a comet's report that holds a
//! room.
//!
//! Checked against goim's values, one for each of the four classes of length and their edges. Bytes
//! of the shortest class count with their sign.

const C1: u32 = 0xcc9e_2d51;
const C2: u32 = 0x1b87_3593;
const C3: u32 = 0xe654_6b64;

/// The hash of `text`.
pub(super) fn city_hash32(text: &[u8]) -> u32 {
    let len = text.len() as u32;
    match text.len() {
        0..=4 => {
            let (sum, mixed) = text.iter().fold((0_u32, 9_u32), |(sum, mixed), byte| {
                let sum = sum.wrapping_mul(C1).wrapping_add_signed(i32::from(byte.cast_signed()));
                (sum, mixed ^ sum)
            });
            finish(absorb(absorb(mixed, len), sum))
        }
        5..=12 => {
            let first = len.wrapping_add(word(text, 0));
            let last = (len * 5).wrapping_add(word(text, text.len() - 4));
            let middle = 9_u32.wrapping_add(word(text, (text.len() >> 1) & 4));
            finish([first, last, middle].into_iter().fold(len * 5, absorb))
        }
        13..=24 => {
            let (half, len) = (text.len() >> 1, text.len());
            let places = [half - 4, 4, len - 8, half, 0, len - 4];
            finish(places.into_iter().map(|at| word(text, at)).fold(len as u32, absorb))
        }
        _ => long(text, len),
    }
}

/// More than 24 bytes: the last twenty first, then all in steps of twenty.
fn long(text: &[u8], len: u32) -> u32 {
    let from_end = |back: usize| scramble(word(text, text.len() - back));
    let mut h = turn(turn(len ^ from_end(4), 19) ^ from_end(16), 19);
    let start = len.wrapping_mul(C1);
    let mut g = turn(turn(start ^ from_end(8), 19) ^ from_end(12), 19);
    let mut f = turn(start.wrapping_add(from_end(20)), 19);
    for step in 0..(text.len() - 1) / 20 {
        let at = step * 20;
        let (second, last) = (word(text, at + 4), word(text, at + 16));
        let (first, third, fourth) =
            (scramble(word(text, at)), scramble(word(text, at + 8)), scramble(word(text, at + 12)));
        h = turn(h ^ first, 18);
        f = f.wrapping_add(second).rotate_right(19).wrapping_mul(C1);
        g = turn(g.wrapping_add(third), 18);
        h = turn(h ^ fourth.wrapping_add(second), 19);
        g = (g ^ last).swap_bytes().wrapping_mul(5);
        h = h.wrapping_add(last.wrapping_mul(5)).swap_bytes();
        f = f.wrapping_add(first);
        (f, h, g) = (g, f, h);
    }
    let stir = |value: u32| value.rotate_right(11).wrapping_mul(C1).rotate_right(17).wrapping_mul(C1);
    let join = |h: u32, other: u32| turn(h.wrapping_add(other), 19).rotate_right(17).wrapping_mul(C1);
    join(join(h, stir(g)), stir(f))
}

fn word(text: &[u8], at: usize) -> u32 {
    text.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn scramble(value: u32) -> u32 {
    value.wrapping_mul(C1).rotate_right(17).wrapping_mul(C2)
}

fn turn(value: u32, by: u32) -> u32 {
    value.rotate_right(by).wrapping_mul(5).wrapping_add(C3)
}

fn absorb(hash: u32, value: u32) -> u32 {
    turn(hash ^ scramble(value), 19)
}

fn finish(mut hash: u32) -> u32 {
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hashes_are_goims() {
        let cases: [(&[u8], u32); 16] = [
            (b"", 0xdc56_d17a),
            (b"a", 0x3c97_3d4d),
            (b"\xff\xfe", 0xe734_f6d6),
            (b"abc", 0x2f63_5ec7),
            (b"room", 0xbd21_37a0),
            (b"1000", 0x4c37_e104),
            (b"12345", 0xaf9c_c651),
            (b"test_key", 0x4c98_b52a),
            (b"live://1000", 0x431f_9d2b),
            (b"test://room_01", 0x755e_93b6),
            (b"test://test_room", 0xf93d_eebb),
            ("直播://房间一".as_bytes(), 0x154e_7c44),
            (b"live://chatroom-12345678", 0xcd69_7d85),
            (b"live://chatroom-123456789", 0x23c9_d638),
            (b"550e8400-e29b-41d4-a716-446655440000", 0x1fa5_7f94),
            (&[b'a'; 64], 0x4f01_0d0a),
        ];
        for (text, hash) in cases {
            assert_eq!(city_hash32(text), hash, "{}", String::from_utf8_lossy(text));
        }
    }
}
