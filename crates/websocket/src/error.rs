//! Errors in a stream of frames.

/// Why the peer's frames are invalid. After any of these, send a close frame with
/// [`FrameError::close_code`] if the protocol in use sends one, and close the connection: the
/// stream is out of sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A reserved bit is set without a negotiated extension.
    #[error("reserved bit set without an extension")]
    ReservedBit,
    /// An opcode that RFC 6455 does not define: 3 to 7 and 11 to 15.
    #[error("opcode {0} is reserved")]
    ReservedOpcode(u8),
    /// A client's frame without a mask.
    #[error("frame from a client is not masked")]
    NotMasked,
    /// A server's frame with a mask.
    #[error("frame from a server is masked")]
    Masked,
    /// The top bit of a 64-bit length is set, which RFC 6455 forbids.
    #[error("payload length has its top bit set")]
    LengthTopBit,
    /// The length would fit into a shorter form.
    #[error("payload length {0} is not in its shortest form")]
    LengthNotShortest(u64),
    /// A control frame's payload is longer than 125 bytes.
    #[error("control frame with more than 125 bytes")]
    ControlTooLong,
    /// A control frame without FIN.
    #[error("control frame is fragmented")]
    ControlFragmented,
    /// A continuation frame without a message to continue.
    #[error("continuation of no message")]
    NothingToContinue,
    /// A new message starts inside an unfinished one.
    #[error("new message inside a fragmented one")]
    MessageInterleaved,
    /// A frame's payload exceeds the reader's limit.
    #[error("frame of {len} bytes exceeds the limit of {limit}")]
    FrameTooLong {
        /// The announced payload length, in bytes.
        len: u64,
        /// The largest allowed payload, in bytes.
        limit: usize,
    },
    /// A message exceeds the reader's limit over all of its frames.
    #[error("message exceeds the limit of {limit} bytes")]
    MessageTooLong {
        /// The largest allowed message, in bytes.
        limit: usize,
    },
    /// A text message, or the reason in a close frame, is not UTF-8.
    #[error("text is not UTF-8")]
    NotUtf8,
    /// A close frame with a payload of one byte: half a code.
    #[error("close frame with half a code")]
    CloseCutShort,
    /// A close code that must not appear on the wire.
    #[error("close code {0} is not allowed on the wire")]
    CloseCode(u16),
}

impl FrameError {
    /// Returns the code of RFC 6455, section 7.4.1, for the close frame that answers this error.
    #[must_use]
    pub const fn close_code(&self) -> u16 {
        match self {
            Self::FrameTooLong { .. } | Self::MessageTooLong { .. } => crate::close::TOO_BIG,
            Self::NotUtf8 => crate::close::NOT_UTF8,
            Self::ReservedBit
            | Self::ReservedOpcode(_)
            | Self::NotMasked
            | Self::Masked
            | Self::LengthTopBit
            | Self::LengthNotShortest(_)
            | Self::ControlTooLong
            | Self::ControlFragmented
            | Self::NothingToContinue
            | Self::MessageInterleaved
            | Self::CloseCutShort
            | Self::CloseCode(_) => crate::close::PROTOCOL_ERROR,
        }
    }
}
