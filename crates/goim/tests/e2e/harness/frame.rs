//! WebSocket's framing (RFC 6455, section 5.2), enough of it for a client that also sends what it
//! must not.

/// The mask of all client frames in these tests; it is RFC 6455's example.
pub const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// First byte of a complete binary message.
pub const BINARY: u8 = 0x82;

/// A frame as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// FIN, the reserved bits and the opcode.
    pub first: u8,
    /// Whether the payload was masked; it is shown unmasked.
    pub masked: bool,
    /// Whether the length was written in the shortest form.
    pub shortest: bool,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// A masked frame.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = head(first, 0x80, payload.len());
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A frame without a mask.
pub fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = head(first, 0, payload.len());
    bytes.extend(payload);
    bytes
}

fn head(first: u8, mask_bit: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..=125 => bytes.push(mask_bit | u8::try_from(length).unwrap()),
        126..=0xffff => {
            bytes.push(mask_bit | 126);
            bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        _ => {
            bytes.push(mask_bit | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes
}

/// The offsets in the first frame of `bytes`, as soon as they are known: mask, payload and end.
struct Layout {
    mask: Option<usize>,
    payload: usize,
    end: usize,
    shortest: bool,
}

fn layout(bytes: &[u8]) -> Option<Layout> {
    let second = *bytes.get(1)?;
    let (length, shortest, mut payload) = match second & 0x7f {
        126 => {
            let length = u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()));
            (length, length > 125, 4)
        }
        127 => {
            let length = u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap());
            (length, length > 0xffff, 10)
        }
        short => (u64::from(short), true, 2),
    };
    let mask = (second & 0x80 != 0).then_some(payload);
    payload += mask.map_or(0, |_| 4);
    Some(Layout { mask, payload, end: payload.checked_add(usize::try_from(length).ok()?)?, shortest })
}

/// Whether the first frame of `bytes` is complete.
pub fn is_complete(bytes: &[u8]) -> bool {
    layout(bytes).is_some_and(|layout| layout.end <= bytes.len())
}

/// The first frame of `bytes` and its length, or `None` while it is not complete.
pub fn decode(bytes: &[u8]) -> Option<(Frame, usize)> {
    let Layout { mask, payload, end, shortest } = layout(bytes)?;
    let mut payload = bytes.get(payload..end)?.to_vec();
    if let Some(at) = mask {
        payload.iter_mut().zip(bytes[at..at + 4].iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    }
    Some((Frame { first: bytes[0], masked: mask.is_some(), shortest, payload }, end))
}

/// Whether `bytes` are complete frames and nothing else.
pub fn is_whole(mut bytes: &[u8]) -> bool {
    while let Some((frame, length)) = decode(bytes) {
        if frame.first & 0x70 != 0 || !matches!(frame.first & 0x0f, 0..=2 | 8..=10) {
            return false;
        }
        bytes = &bytes[length..];
    }
    bytes.is_empty()
}
