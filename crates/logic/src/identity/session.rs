//! The properties of new sessions: key, heartbeat, packet version, names of rooms.

use std::time::Duration;

use goim_ports::{AuthFailure, ConnectError, SessionKey, Version};

/// The properties that all sessions share.
#[derive(Debug, Clone, Copy)]
pub(super) struct SessionTerms {
    /// A session ends after this time without a heartbeat.
    pub(super) heartbeat: Duration,
    /// The highest packet version that this server sends.
    pub(super) protover_max: Version,
}

impl SessionTerms {
    /// Returns the packet version for a client that reads versions up to `offered`. 0 and 1 are the
    /// same version, so the minimum is 1.
    pub(super) fn negotiate(self, offered: i64) -> Version {
        let agreed = offered.clamp(Version::GOIM.0.into(), self.protover_max.0.max(Version::GOIM.0).into());
        Version(i16::try_from(agreed).unwrap_or(Version::GOIM.0))
    }
}

/// Checks that no room of a list has an empty name. goim v2's `room_id` is different: empty means
/// no room.
pub(super) fn check_names<'a>(rooms: impl IntoIterator<Item = &'a String>) -> Result<(), ConnectError> {
    if rooms.into_iter().any(String::is_empty) {
        return Err(ConnectError::because(AuthFailure::RoomNotAllowed, "a room in a list has no name"));
    }
    Ok(())
}

/// Returns a random UUID (version 4) in lower case, as goim v2 generates it for clients without a
/// key.
pub(super) fn random_key() -> Result<SessionKey, ConnectError> {
    use std::fmt::Write as _;
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| ConnectError::unavailable(format!("no random numbers: {error}")))?;
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
        // Writing to a String cannot fail.
        let _ = write!(text, "{dash}{byte:02x}");
    }
    Ok(SessionKey::from(text))
}
