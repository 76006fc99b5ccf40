//! The harness's stand-in for the kernel's side of a socket. Each thread has one, so that a
//! connection needs no reference to it.

use std::cell::{Cell, RefCell};
use std::io;

/// What all harnesses of this thread have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(not(feature = "harness"), expect(unreachable_pub, reason = "only the harness exports it"))]
pub struct Written {
    /// Calls that wrote; each piece of a gathered write counts.
    pub writes: u64,
    /// Bytes.
    pub bytes: u64,
}

thread_local! {
    static INPUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static WRITTEN: Cell<Written> = const { Cell::new(Written { writes: 0, bytes: 0 }) };
}

/// Sets the bytes that the next reads return.
pub(crate) fn set_input(bytes: &[u8]) {
    INPUT.with_borrow_mut(|input| {
        input.clear();
        input.extend_from_slice(bytes);
    });
}

/// Drops input that was not read.
pub(crate) fn clear_input() {
    INPUT.with_borrow_mut(Vec::clear);
}

/// Returns what was written so far.
pub(crate) fn written() -> Written {
    WRITTEN.get()
}

pub(super) fn read(into: &mut [u8]) -> io::Result<usize> {
    INPUT.with_borrow_mut(|input| {
        if input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let len = input.len().min(into.len());
        into[..len].copy_from_slice(&input[..len]);
        input.drain(..len);
        Ok(len)
    })
}

#[expect(clippy::unnecessary_wraps, reason = "replaces a write that can fail")]
pub(super) fn write(bytes: &[u8]) -> io::Result<usize> {
    let Written { writes, bytes: before } = WRITTEN.get();
    WRITTEN.set(Written { writes: writes + 1, bytes: before + bytes.len() as u64 });
    Ok(bytes.len())
}
