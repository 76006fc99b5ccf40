//! RFC 6455 as bytes and values only: frames, and the HTTP upgrade before them.
//!
//! This crate owns the layout of frames, how frames form messages, and the request and response of
//! the handshake. It does no I/O; answering pings and closing sockets is left to the session.
//! `no_std` with `alloc` ensures that. Subprotocols are never negotiated. The only extension is
//! permessage-deflate without context takeover: it is negotiated and marked in frames here, and
//! callers compress and inflate.
//!
//! Modules: [`frame`] encodes and parses the head of a frame, [`mask`] is the XOR over its payload,
//! [`reader`] decodes events from a byte stream, [`close`] has the codes and bodies of close
//! frames, [`error`] the errors in a stream, [`handshake`] the upgrade.
//!
//! A frame on the wire:
//!
//! | bytes | bits | meaning |
//! |---|---|---|
//! | 1 | 1, 3, 4 | FIN, RSV1 (a compressed message begins), RSV2 and RSV3 (always zero), opcode |
//! | 1 | 1, 7 | MASK, payload length, or 126 or 127 when the length follows |
//! | 0, 2, 8 | | length, big endian |
//! | 0, 4 | | mask, when MASK is set |
//! | length | | payload, under the mask |
//!
//! Invariant: no input makes anything here panic, read beyond what was received, or store more than
//! the limits that the caller gives.
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
