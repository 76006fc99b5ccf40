//! Placeholder: RFC 6455 framing and handshake.
#![no_std]
extern crate alloc;
