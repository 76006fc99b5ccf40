//! Numbered messages with a check sum, so that a receiver recognizes exactly what was published.
//!
//! The body of a message, integers big endian:
//!
//! | bytes | contents |
//! |---|---|
//! | 4 | the run, random: messages of other runs are recognized |
//! | 4 | the stream within the run |
//! | 4 | the number: 0, 1, 2, ... in each stream |
//! | 4 | the length of the body |
//! | 8 | when the message was due, in nanoseconds of the monotonic clock |
//! | 8 | FNV-1a over everything else |
//! | rest | filler that depends on the number: a pattern, or JSON |

/// The minimum size of a message, in bytes.
pub(crate) const SIZE_MIN: usize = 32;

const CHECKED: usize = 24;

/// The header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) run: u32,
    pub(crate) stream: u32,
    pub(crate) number: u32,
    /// When the message was due, see [`crate::clock::now_ns`].
    pub(crate) due_ns: u64,
}

/// The filler of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filler {
    /// A pattern of bytes that depends on the number.
    Pattern,
    /// JSON like that of a chat room: objects with different numbers and some hundred different
    /// terms, which compress like such text.
    Json,
}

/// Why a body is not a valid message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// The length differs from the one in the header.
    Length,
    /// The check sum differs.
    Content,
}

impl Message {
    /// Encodes a body of `size` bytes, at least [`SIZE_MIN`].
    pub(crate) fn encode(&self, size: usize) -> Vec<u8> {
        self.encode_with(Filler::Pattern, size)
    }

    /// Encodes a body with a given filler.
    pub(crate) fn encode_with(&self, filler: Filler, size: usize) -> Vec<u8> {
        let size = size.max(SIZE_MIN);
        let mut body = Vec::with_capacity(size);
        body.extend_from_slice(&self.run.to_be_bytes());
        body.extend_from_slice(&self.stream.to_be_bytes());
        body.extend_from_slice(&self.number.to_be_bytes());
        body.extend_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
        body.extend_from_slice(&self.due_ns.to_be_bytes());
        let filler: Vec<u8> = match filler {
            Filler::Pattern => (SIZE_MIN..size).map(|at| pattern(self.number, at)).collect(),
            Filler::Json => json(self.number, size - SIZE_MIN),
        };
        let check = fnv(fnv(FNV_START, &body), &filler);
        body.extend_from_slice(&check.to_be_bytes());
        body.extend_from_slice(&filler);
        body
    }

    /// Returns a number that differs between messages in flight at the same time, without checking
    /// the body; 0 for a short body.
    pub(crate) fn cache_key(body: &[u8]) -> u32 {
        let at = |from: usize| {
            let bytes = body.get(from..from + 4).and_then(|bytes| bytes.first_chunk::<4>());
            bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
        };
        at(8).wrapping_add(at(4).wrapping_mul(509))
    }

    /// Decodes a body and checks all of it.
    pub(crate) fn decode(body: &[u8]) -> Result<Self, Damage> {
        let (head, rest) = body.split_at_checked(CHECKED).ok_or(Damage::Length)?;
        let (check, filler) = rest.split_first_chunk::<8>().ok_or(Damage::Length)?;
        let (run, head_rest) = take_u32(head).ok_or(Damage::Length)?;
        let (stream, head_rest) = take_u32(head_rest).ok_or(Damage::Length)?;
        let (number, head_rest) = take_u32(head_rest).ok_or(Damage::Length)?;
        let (size, due) = take_u32(head_rest).ok_or(Damage::Length)?;
        if usize::try_from(size) != Ok(body.len()) {
            return Err(Damage::Length);
        }
        if fnv(fnv(FNV_START, head), filler) != u64::from_be_bytes(*check) {
            return Err(Damage::Content);
        }
        let due_ns = due.first_chunk::<8>().map(|due| u64::from_be_bytes(*due)).ok_or(Damage::Length)?;
        Ok(Self { run, stream, number, due_ns })
    }
}

fn take_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*number), rest))
}

fn pattern(number: u32, at: usize) -> u8 {
    let at = u32::try_from(at).unwrap_or_default();
    // Only the low byte is used: the pattern differs from message to message.
    number.wrapping_mul(31).wrapping_add(at).to_be_bytes()[3]
}

/// Returns consecutive objects, cut off at the end.
fn json(number: u32, len: usize) -> Vec<u8> {
    const VOCABULARY: &[u8] = b"the room is here and who has seen what they see about it now or later when some people are back \
from work with news of a game that was won by one team after all so everybody writes at once how good they were tonight \
nobody knows why but it was great fun to watch please turn up the sound again thanks see you tomorrow same time";
    let words: Vec<&[u8]> = VOCABULARY.split(|byte| *byte == b' ').collect();
    let mut state = u64::from(number).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap_or_default() % below
    };
    let mut out = Vec::with_capacity(len + 256);
    while out.len() < len {
        let (id, user) = (random(1_000_000_000), random(100_000_000));
        out.extend_from_slice(
            format!(r#"{{"id":{id},"user":{{"id":{user},"level":{}}},"text":""#, random(40)).as_bytes(),
        );
        for nth in 0..3 + random(12) {
            out.extend_from_slice(if nth == 0 { b"" } else { b" " });
            out.extend_from_slice(words[random(words.len())]);
        }
        out.extend_from_slice(
            format!(r#"","at":{},"gift":null}},"#, 1_764_115_200_000_u64 + random(86_400_000) as u64)
                .as_bytes(),
        );
    }
    out.truncate(len);
    out
}

/// Returns a random number for a run, so that messages of an earlier run on the same server are
/// recognized.
pub(crate) fn new_run() -> u32 {
    let now = crate::clock::now_ns();
    let mixed = (now ^ u64::from(std::process::id()).rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    u32::try_from(mixed >> 32).unwrap_or_default()
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MESSAGE: Message = Message { run: 7, stream: 1, number: 300, due_ns: 123_456_789_012 };

    #[test]
    fn sizes() {
        for (asked, len) in [(0, SIZE_MIN), (SIZE_MIN, SIZE_MIN), (64, 64), (1024, 1024)] {
            for filler in [Filler::Pattern, Filler::Json] {
                let body = MESSAGE.encode_with(filler, asked);
                assert_eq!((body.len(), Message::decode(&body)), (len, Ok(MESSAGE)), "{asked} {filler:?}");
            }
        }
    }

    #[test]
    fn a_shorter_or_longer_body_is_damaged() {
        let body = MESSAGE.encode(64);
        for len in 0..body.len() {
            assert_eq!(Message::decode(&body[..len]), Err(Damage::Length), "{len}");
        }
        assert_eq!(Message::decode(&[&body[..], b"x"].concat()), Err(Damage::Length));
        assert_eq!(Message::decode(b"hello"), Err(Damage::Length));
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_found(at in 0_usize..64, flip in 1_u8..=255) {
            let mut body = MESSAGE.encode(64);
            body[at] ^= flip;
            prop_assert!(Message::decode(&body).is_err());
        }
    }
}
