//! Compression of bodies, by the encodings of the version table.
//!
//! This crate owns the choice of libraries and the limit on inflated data. When a body is
//! compressed, and who shares the result, is decided by callers.
//!
//! Invariants:
//! - Inflating never takes more memory than the limit and one buffer, whatever the input claims.
//! - Input after the end of its stream is refused: a body is exactly one stream.

use std::io::{self, Read};

use goim_wire::Encoding;

/// Compression levels. A higher level takes more time and makes bodies smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    /// 1 to 9. Default 6.
    pub zlib: u32,
    /// 0 to 11. Default 5: above it the time grows much faster than the size shrinks.
    pub brotli: u32,
    /// 1 to 19. Default 3.
    pub zstd: i32,
}

impl Default for Levels {
    fn default() -> Self {
        Self { zlib: 6, brotli: 5, zstd: 3 }
    }
}

/// Why a body cannot be inflated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    /// It inflates to more bytes than the limit.
    #[error("more than {0} bytes when inflated")]
    TooLarge(usize),
    /// It is not in the encoding of its version.
    #[error("not {0}")]
    Malformed(Encoding),
}

/// Log of the window of brotli. 256 KiB: bodies are small, and a reader needs the same amount.
const BROTLI_WINDOW: u32 = 18;
/// Log of the largest accepted window of zstd: 8 MiB, the maximum of encoders by default.
const ZSTD_WINDOW_MAX: u32 = 23;

/// Compresses a body. `None` if that makes it no smaller, and for [`Encoding::Identity`].
#[must_use]
pub fn compress(encoding: Encoding, body: &[u8], levels: Levels) -> Option<Vec<u8>> {
    if encoding == Encoding::Identity {
        return None;
    }
    Some(compress_always(encoding, body, levels)).filter(|compressed| compressed.len() < body.len())
}

/// Encodes a body even if that makes it larger.
#[must_use]
pub fn compress_always(encoding: Encoding, body: &[u8], levels: Levels) -> Vec<u8> {
    let compressed = match encoding {
        Encoding::Identity => Ok(body.to_vec()),
        Encoding::Zlib => {
            let level = flate2::Compression::new(levels.zlib.min(9));
            read_all(flate2::read::ZlibEncoder::new(body, level))
        }
        Encoding::Brotli => {
            let buffer = body.len().clamp(64, 4096);
            read_all(brotli::CompressorReader::new(body, buffer, levels.brotli.min(11), BROTLI_WINDOW))
        }
        Encoding::Zstd => zstd::bulk::compress(body, levels.zstd),
    };
    // Reading from memory does not fail.
    compressed.unwrap_or_default()
}

fn read_all(mut reader: impl Read) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    reader.read_to_end(&mut out)?;
    Ok(out)
}

/// Inflates a body, up to a limit in bytes.
///
/// # Errors
/// [`InflateError`].
pub fn inflate(encoding: Encoding, body: &[u8], bytes_max: usize) -> Result<Vec<u8>, InflateError> {
    let malformed = |_| InflateError::Malformed(encoding);
    let mut rest = body;
    let inflated = match encoding {
        Encoding::Identity if body.len() > bytes_max => return Err(InflateError::TooLarge(bytes_max)),
        Encoding::Identity => return Ok(body.to_vec()),
        Encoding::Zlib => {
            // `bufread` consumes nothing after the end of the stream.
            let decoder = flate2::bufread::ZlibDecoder::new(&mut rest);
            read_up_to(decoder, bytes_max).map_err(malformed)?
        }
        Encoding::Brotli => return inflate_brotli(body, bytes_max),
        Encoding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(&mut rest).map_err(malformed)?;
            decoder.window_log_max(ZSTD_WINDOW_MAX).map_err(malformed)?;
            read_up_to(decoder.single_frame(), bytes_max).map_err(malformed)?
        }
    };
    if inflated.len() > bytes_max {
        return Err(InflateError::TooLarge(bytes_max));
    }
    if rest.is_empty() { Ok(inflated) } else { Err(InflateError::Malformed(encoding)) }
}

/// The end of a message that permessage-deflate omits: RFC 7692, section 7.2.1.
const DEFLATE_TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// Compresses the payload of a WebSocket message for permessage-deflate, without context. `None` if
/// that makes it no smaller.
#[must_use]
pub fn deflate_message(message: &[u8], levels: Levels) -> Option<Vec<u8>> {
    let mut deflate = flate2::Compress::new(flate2::Compression::new(levels.zlib.min(9)), false);
    // A longer result would be no gain, and this leaves space for the tail.
    let mut out = Vec::with_capacity(message.len().checked_add(DEFLATE_TAIL.len())?);
    deflate.compress_vec(message, &mut out, flate2::FlushCompress::Sync).ok()?;
    let is_whole = deflate.total_in() == message.len() as u64 && out.ends_with(&DEFLATE_TAIL);
    out.truncate(out.len().saturating_sub(DEFLATE_TAIL.len()));
    (is_whole && out.len() < message.len()).then_some(out)
}

/// Inflates the payload of a WebSocket message, up to a limit in bytes.
///
/// # Errors
/// [`InflateError`], which names zlib as the encoding.
pub fn inflate_message(payload: &[u8], bytes_max: usize) -> Result<Vec<u8>, InflateError> {
    let malformed = InflateError::Malformed(Encoding::Zlib);
    let mut inflate = flate2::Decompress::new(false);
    let mut out = Vec::new();
    for part in [payload, &DEFLATE_TAIL] {
        let mut rest = part;
        loop {
            if out.len() == out.capacity() {
                if out.len() > bytes_max {
                    return Err(InflateError::TooLarge(bytes_max));
                }
                // One byte above the limit, to detect a message that exceeds it.
                out.reserve_exact(out.len().max(512).min(bytes_max + 1 - out.len()));
            }
            let (before, room) = (inflate.total_in(), out.capacity() - out.len());
            let status = inflate.decompress_vec(rest, &mut out, flate2::FlushDecompress::Sync);
            let status = status.map_err(|_| malformed)?;
            rest = rest
                .get(usize::try_from(inflate.total_in() - before).unwrap_or(usize::MAX)..)
                .unwrap_or_default();
            let is_full = out.len() == out.capacity();
            if status == flate2::Status::StreamEnd {
                // A final block may end a message; only an empty block without its end may follow.
                let ended = part == DEFLATE_TAIL || matches!(rest, [] | [0]);
                return match (ended, out.len() > bytes_max) {
                    (true, false) => Ok(out),
                    (true, true) => Err(InflateError::TooLarge(bytes_max)),
                    (false, _) => Err(malformed),
                };
            }
            if rest.is_empty() && !is_full {
                break;
            }
            if !is_full && inflate.total_in() == before && room > 0 {
                return Err(malformed);
            }
        }
    }
    if out.len() > bytes_max { Err(InflateError::TooLarge(bytes_max)) } else { Ok(out) }
}

/// Reads everything, or one byte more than the limit.
fn read_up_to(reader: impl Read, bytes_max: usize) -> io::Result<Vec<u8>> {
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    read_all(reader.take(limit))
}

/// The library's reader ignores bytes after the end; its state machine reports them.
fn inflate_brotli(body: &[u8], bytes_max: usize) -> Result<Vec<u8>, InflateError> {
    use brotli::{BrotliDecompressStream, BrotliResult, BrotliState, HeapAlloc, HuffmanCode};
    let malformed = InflateError::Malformed(Encoding::Brotli);
    let mut state = BrotliState::new(
        HeapAlloc::<u8>::new(0),
        HeapAlloc::<u32>::new(0),
        HeapAlloc::<HuffmanCode>::new(HuffmanCode::default()),
    );
    let (mut left, mut at) = (body.len(), 0);
    let mut total = 0;
    let mut out = Vec::new();
    let mut piece = vec![0; 16 * 1024];
    loop {
        let (mut room, mut written) = (piece.len(), 0);
        let result = BrotliDecompressStream(
            &mut left,
            &mut at,
            body,
            &mut room,
            &mut written,
            &mut piece,
            &mut total,
            &mut state,
        );
        if out.len() + written > bytes_max {
            return Err(InflateError::TooLarge(bytes_max));
        }
        out.extend_from_slice(&piece[..written]);
        match result {
            BrotliResult::ResultSuccess if left == 0 => return Ok(out),
            BrotliResult::NeedsMoreOutput => {}
            BrotliResult::ResultSuccess | BrotliResult::NeedsMoreInput | BrotliResult::ResultFailure => {
                return Err(malformed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const COMPRESSING: [Encoding; 3] = [Encoding::Zlib, Encoding::Brotli, Encoding::Zstd];

    #[test]
    fn a_bomb_costs_no_more_than_the_bound() {
        let zeros = vec![0; 10 << 20];
        for encoding in COMPRESSING {
            let bomb = compress(encoding, &zeros, Levels::default()).unwrap();
            assert!(bomb.len() < 12 << 10, "{encoding}: {}", bomb.len());
            assert_eq!(inflate(encoding, &bomb, 64 << 10), Err(InflateError::TooLarge(64 << 10)));
            assert_eq!(
                inflate(encoding, &bomb, zeros.len() - 1),
                Err(InflateError::TooLarge(zeros.len() - 1))
            );
            assert_eq!(inflate(encoding, &bomb, zeros.len()).map(|inflated| inflated.len()), Ok(zeros.len()));
        }
    }

    #[test]
    fn messages_of_permessage_deflate() {
        // The examples of RFC 7692, section 7.2.3: compressed, in a block without compression, with
        // a last block, in two blocks.
        let hello: [&[u8]; 4] = [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
        ];
        for payload in hello {
            assert_eq!(inflate_message(payload, 5).as_deref(), Ok(&b"Hello"[..]), "{payload:x?}");
            assert_eq!(inflate_message(payload, 4), Err(InflateError::TooLarge(4)), "{payload:x?}");
        }
        assert_eq!(inflate_message(&[0], 10), Ok(Vec::new()), "an empty message");
        for wrong in [
            &b"\xff\xff\xff"[..],
            b"no stream at all",
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00, 9, 9],
        ] {
            assert_eq!(
                inflate_message(wrong, 1000),
                Err(InflateError::Malformed(Encoding::Zlib)),
                "{wrong:x?}"
            );
        }
        let zeros = vec![0; 10 << 20];
        let bomb = deflate_message(&zeros, Levels::default()).unwrap();
        assert!(bomb.len() < 12 << 10);
        assert_eq!(inflate_message(&bomb, 64 << 10), Err(InflateError::TooLarge(64 << 10)));
        assert_eq!(inflate_message(&bomb, zeros.len()).map(|inflated| inflated.len()), Ok(zeros.len()));
        assert_eq!(deflate_message(b"abc", Levels::default()), None);
    }

    #[test]
    fn what_gets_no_smaller_is_left_alone() {
        for encoding in COMPRESSING {
            assert_eq!(compress(encoding, b"", Levels::default()), None, "{encoding}");
            assert_eq!(compress(encoding, b"abc", Levels::default()), None, "{encoding}");
        }
        assert_eq!(compress(Encoding::Identity, &[0; 1000], Levels::default()), None);
    }

    #[test]
    fn what_is_no_stream_is_refused() {
        for encoding in COMPRESSING {
            let good = compress(encoding, &[7; 1000], Levels::default()).unwrap();
            let malformed = Err(InflateError::Malformed(encoding));
            assert_eq!(inflate(encoding, b"", 1000), malformed, "{encoding}: nothing");
            assert_eq!(inflate(encoding, b"<html>", 1000), malformed, "{encoding}: something else");
            assert_eq!(inflate(encoding, &good[..good.len() - 1], 1000), malformed, "{encoding}: cut off");
            assert_eq!(
                inflate(encoding, &[&good[..], b"x"].concat(), 1000),
                malformed,
                "{encoding}: more behind"
            );
        }
    }

    proptest! {
        #[test]
        fn bodies_round_trip(words in prop::collection::vec("[a-z]{1,6}", 0..600), level in 1_u32..9) {
            let body = words.concat().into_bytes();
            for encoding in COMPRESSING {
                let levels = Levels { zlib: level, brotli: level, zstd: level as i32 };
                if let Some(compressed) = compress(encoding, &body, levels) {
                    prop_assert_eq!(&inflate(encoding, &compressed, body.len()).unwrap(), &body);
                }
            }
        }

        #[test]
        fn messages_round_trip(words in prop::collection::vec("[a-z]{1,6}", 0..600), level in 1_u32..9) {
            let message = words.concat().into_bytes();
            if let Some(payload) = deflate_message(&message, Levels { zlib: level, ..Levels::default() }) {
                prop_assert_eq!(&inflate_message(&payload, message.len()).unwrap(), &message);
            }
        }

        #[test]
        fn no_message_breaks_it(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(inflated) = inflate_message(&bytes, 1000) {
                prop_assert!(inflated.len() <= 1000);
            }
        }

        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for encoding in COMPRESSING {
                if let Ok(inflated) = inflate(encoding, &bytes, 4096) {
                    prop_assert!(inflated.len() <= 4096);
                }
            }
        }
    }
}
