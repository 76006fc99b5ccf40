//! The sizes and the contents of messages: fixed, or as in a chat.

use serde::{Deserialize, Serialize};

use crate::message::{Filler, SIZE_MIN};

/// The distribution of 31,465 real chat messages: the share of messages up to a size in UTF-8
/// bytes.
const CHAT: [(f64, usize); 7] =
    [(0.0, 3), (0.1, 12), (0.5, 30), (0.9, 84), (0.99, 186), (0.999, 400), (1.0, 621)];

/// The size of the body of a message, which depends only on its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Sizes {
    /// The same size for all messages.
    Fixed(usize),
    /// The distribution of a real chat, plus the header of a message.
    Chat,
    /// The same size for all messages, filled with JSON.
    Json(usize),
}

impl Sizes {
    /// Returns the size of a message.
    pub(crate) fn of(self, number: u32) -> usize {
        match self {
            Self::Fixed(size) | Self::Json(size) => size,
            Self::Chat => SIZE_MIN.saturating_add(chat(share(number))),
        }
    }

    /// Returns the filler of the messages.
    pub(crate) fn filler(self) -> Filler {
        match self {
            Self::Fixed(_) | Self::Chat => Filler::Pattern,
            Self::Json(_) => Filler::Json,
        }
    }

    /// Parses `64`, `json:2048` or `chat`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == "chat" {
            return Ok(Self::Chat);
        }
        let (kind, number): (fn(usize) -> Self, _) =
            text.strip_prefix("json:").map_or((Self::Fixed, text), |number| (Self::Json, number));
        let size = number.parse().ok().filter(|size| (SIZE_MIN..=900_000).contains(size));
        size.map(kind).ok_or_else(|| {
            format!("{text:?} is not a size: expected {SIZE_MIN} to 900000, json:2048 or chat")
        })
    }
}

impl std::fmt::Display for Sizes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size} B"),
            Self::Json(size) => write!(f, "{size} B of JSON"),
            Self::Chat => f.write_str("chat sizes"),
        }
    }
}

/// Maps a number to a value between 0 and 1. Values of consecutive numbers are spread evenly.
fn share(number: u32) -> f64 {
    f64::from(number.wrapping_mul(0x9e37_79b9)) / 4_294_967_296.0
}

/// Returns the size of this quantile, interpolated between the rows of the table.
fn chat(share: f64) -> usize {
    let above = CHAT.iter().position(|(at, _)| *at > share).unwrap_or(CHAT.len() - 1).max(1);
    let ((from, low), (to, high)) = (CHAT[above - 1], CHAT[above]);
    let part = (share - from) / (to - from) * (high - low) as f64;
    low + part as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_a_chat_have_the_quantiles_of_the_chat() {
        let mut sizes: Vec<usize> = (0..10_000).map(|number| Sizes::Chat.of(number) - SIZE_MIN).collect();
        sizes.sort_unstable();
        for (quantile, size) in [(1_000, 12), (5_000, 30), (9_000, 84), (9_900, 186)] {
            assert!(sizes[quantile].abs_diff(size) <= 2, "{quantile}: {}", sizes[quantile]);
        }
        assert!(*sizes.last().unwrap() <= 621);
    }

    #[test]
    fn sizes_are_parsed() {
        assert_eq!(Sizes::parse("64"), Ok(Sizes::Fixed(64)));
        assert_eq!(Sizes::parse("chat"), Ok(Sizes::Chat));
        assert_eq!(Sizes::parse("json:2048"), Ok(Sizes::Json(2048)));
        for wrong in ["", "json", "json:", "json:31", "json:x", "31", "900001", "chats"] {
            assert!(Sizes::parse(wrong).unwrap_err().contains("expected 32"), "{wrong}");
        }
    }
}
