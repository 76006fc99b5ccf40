//! goim's packet format, as bytes and values only.
//!
//! This crate owns the layout of packets, the operations, the bodies of control packets, the table
//! of close reasons and the incremental decoder. It does no I/O, reads no clock and never decodes a
//! body of the backend; `no_std` with `alloc` ensures that.
//!
//! A packet on the wire, all integers big endian and signed:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 4 | PacketLen | header and body, in bytes |
//! | 4 | 2 | HeaderLen | always 16 |
//! | 6 | 2 | Version | how the body is to be read |
//! | 8 | 4 | Operation | what the packet is |
//! | 12 | 4 | Sequence | the sender's mark, echoed in replies |
//! | 16 | PacketLen - 16 | Body | |
//!
//! Modules: [`header`] is the 16-byte header, [`packet`] a header with its body, [`stream`] decodes
//! packets from a byte stream, [`control`] has the bodies of control packets, [`batch`] the run of
//! packets of operation 9, [`sync`] the bodies of the timeline operations, [`reason`] the table of
//! close reasons and request failures.
//!
//! Invariant: no input makes anything here panic, read beyond what was received, or allocate more
//! than the limit that the caller gives.
#![no_std]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic, clippy::unwrap_used)]
#![warn(clippy::pedantic)]
#![allow(clippy::module_name_repetitions)]
#![allow(clippy::doc_markdown, reason = "PacketLen and its like are names of the protocol, not items here")]

extern crate alloc;

pub mod batch;
pub mod control;
pub mod header;
pub mod packet;
pub mod reason;
pub mod stream;
pub mod sync;
pub mod versions;

pub use header::{HEADER_LEN, Header, Operation, Sequence, Version};
pub use packet::{Packet, PacketBuf};
pub use reason::{AuthFailure, CloseReason, ReconnectPolicy, RequestFailure};
pub use stream::StreamDecoder;
pub use versions::{Encoding, Schema, TableError, VersionRow, VersionTable};

/// The largest inbound body that goim accepts, in bytes, and the default here.
pub const INBOUND_BODY_MAX: usize = 4096;

/// Why bytes are not a packet. After any of these the connection must be closed: the stream is out
/// of sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// PacketLen is below 16. goim reads such packets on TCP as empty ones; no client sends them.
    #[error("packet length {0} is shorter than its header")]
    TooShort(i32),
    /// The body is larger than the reader allows.
    #[error("packet length {packet_len} exceeds the limit of {limit} bytes")]
    TooLong {
        /// The announced PacketLen, in bytes.
        packet_len: i32,
        /// The largest allowed PacketLen, in bytes.
        limit: usize,
    },
    /// HeaderLen is not 16.
    #[error("header length is {0}, not 16")]
    BadHeaderLen(i16),
    /// A WebSocket message ends before the packet that it announces.
    #[error("packet of {packet_len} bytes announced in a message of {received}")]
    Truncated {
        /// The announced PacketLen, in bytes.
        packet_len: i32,
        /// Size of the message in bytes.
        received: usize,
    },
}
