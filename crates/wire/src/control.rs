//! Bodies of the control packets: lists of operations and the online count.
//!
//! The token of operation 7 is not here: comet passes it to logic without decoding it.

use alloc::vec::Vec;

use crate::Operation;

/// Parses the operations in the body of a subscribe or unsubscribe packet: `i32` numbers in base 10
/// with an optional sign, separated by commas, without spaces.
///
/// `None` if any element is not such a number: the request then changes nothing, but gets its
/// reply. An empty body is an empty element: `None`.
#[must_use]
pub fn parse_operations(body: &[u8]) -> Option<Vec<Operation>> {
    let text = core::str::from_utf8(body).ok()?;
    text.split(',').map(|element| element.parse().ok().map(Operation)).collect()
}

/// Formats `operations` for [`parse_operations`].
#[must_use]
pub fn format_operations(operations: &[Operation]) -> Vec<u8> {
    use core::fmt::Write as _;
    let mut text = alloc::string::String::new();
    for (index, operation) in operations.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{comma}{}", operation.0);
    }
    text.into_bytes()
}

/// Returns the body of a heartbeat reply: the number of sessions in the room.
#[must_use]
pub fn online_count(count: u32) -> [u8; 4] {
    i32::try_from(count).unwrap_or(i32::MAX).to_be_bytes()
}

/// Parses the number of sessions in the body of a heartbeat reply; `None` unless it has four bytes.
#[must_use]
pub fn parse_online_count(body: &[u8]) -> Option<i32> {
    body.try_into().ok().map(i32::from_be_bytes)
}
