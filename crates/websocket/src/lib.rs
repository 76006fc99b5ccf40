//! RFC 6455 as bytes and values only: framing, and the HTTP upgrade that precedes it.
//!
//! This crate owns what a frame looks like, how frames become messages, and the request and the response of the
//! handshake. It does no I/O and decides nothing about a connection's life: who answers a ping, and when a socket
//! is closed, is the session's backend. `no_std` with `alloc` proves it. Subprotocols are never negotiated. The one
//! extension is permessage-deflate without context takeover: it is negotiated here and marked in the frames, and whoever
//! uses this compresses and inflates.
//!
//! Map of the modules: [`frame`] lays out and parses the head of one frame, [`mask`] is the XOR over its payload,
//! [`reader`] takes events off a byte stream that is split and glued anyhow, [`close`] has the codes and bodies of
//! close frames, [`error`] says why a stream is broken off, [`handshake`] is the upgrade.
//!
//! A frame as it stands on the wire:
//!
//! | bytes | bits | meaning |
//! |---|---|---|
//! | 1 | 1, 3, 4 | FIN, RSV1 (a compressed message begins), RSV2 and RSV3 (always zero), opcode |
//! | 1 | 1, 7 | MASK, payload length, or 126 or 127 when the length follows |
//! | 0, 2, 8 | | length, big endian |
//! | 0, 4 | | mask, when MASK is set |
//! | length | | payload, under the mask |
//!
//! Invariant: no input, however hostile, makes anything here panic, read past what was received, or keep more than
//! the limits that the caller gave.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic, clippy::unwrap_used)
)]
#![warn(clippy::pedantic)]
#![allow(clippy::module_name_repetitions)]

extern crate alloc;

pub mod close;
pub mod error;
pub mod frame;
pub mod handshake;
pub mod mask;
pub mod reader;

pub use close::close_payload;
pub use error::FrameError;
pub use frame::{FrameHead, Opcode, encode_frame, frame_head};
pub use mask::apply_mask;
pub use reader::{Event, Kind, Reader, Role, Rules};
