//! goim's packet: sixteen bytes, big endian, and a body.

/// One packet.
#[derive(Clone, PartialEq, Eq)]
pub struct Packet {
    /// Bytes 6 and 7.
    pub ver: i16,
    /// Bytes 8 to 11.
    pub op: i32,
    /// Bytes 12 to 15.
    pub seq: i32,
    /// What follows the header.
    pub body: Vec<u8>,
}

impl Packet {
    /// A packet of version 1.
    pub fn new(op: i32, seq: i32, body: impl AsRef<[u8]>) -> Self {
        Self { ver: 1, op, seq, body: body.as_ref().to_vec() }
    }

    /// The bytes of the packet over TCP.
    pub fn encode(&self) -> Vec<u8> {
        let length = i32::try_from(16 + self.body.len()).unwrap();
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend(16i16.to_be_bytes());
        bytes.extend(self.ver.to_be_bytes());
        bytes.extend(self.op.to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(&self.body);
        bytes
    }

    /// Whether the first packet of `bytes` is complete.
    pub fn is_complete(bytes: &[u8]) -> bool {
        bytes.len() >= 16 && u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize <= bytes.len()
    }

    /// The first packet of `bytes` and its length, or `None` while it is not complete.
    ///
    /// # Panics
    /// When the header is one that no server may send.
    pub fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        if bytes.len() < 16 {
            return None;
        }
        let int = |at: usize| i32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let short = |at: usize| i16::from_be_bytes(bytes[at..at + 2].try_into().unwrap());
        let length = usize::try_from(int(0)).unwrap_or(0);
        assert!(length >= 16 && short(4) == 16, "no packet header: {}", super::hex::show(&bytes[..16]));
        let body = bytes.get(16..length)?.to_vec();
        Some((Self { ver: short(6), op: int(8), seq: int(12), body }, length))
    }

    /// The packets that `bytes` consist of.
    ///
    /// # Panics
    /// When something is left over.
    pub fn decode_all(mut bytes: &[u8]) -> Vec<Self> {
        let mut packets = Vec::new();
        while !bytes.is_empty() {
            let (packet, length) = Self::decode(bytes)
                .unwrap_or_else(|| panic!("an incomplete packet: {}", super::hex::show(bytes)));
            packets.push(packet);
            bytes = &bytes[length..];
        }
        packets
    }
}

impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy(&self.body[..self.body.len().min(100)]);
        write!(f, "op {} seq {} ver {} body {} bytes {text:?}", self.op, self.seq, self.ver, self.body.len())
    }
}
