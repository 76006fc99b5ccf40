//! Arbitrary bytes as compressed bodies: the result never exceeds the limit, and compressed bodies
//! inflate to the same.
#![no_main]

use goim_compression::{Levels, compress, deflate_message, inflate, inflate_message};
use goim_wire::Encoding;

/// Limit of an inflated body.
const BOUND: usize = 4096;

const LEVELS: Levels = Levels { zlib: 1, brotli: 1, zstd: 1 };

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(inflated) = inflate_message(data, BOUND) {
        assert!(inflated.len() <= BOUND);
    }
    if data.len() <= BOUND
        && let Some(deflated) = deflate_message(data, LEVELS)
    {
        assert!(deflated.len() < data.len());
        assert_eq!(inflate_message(&deflated, BOUND).as_deref(), Ok(data));
    }
    for encoding in Encoding::ALL {
        if let Ok(inflated) = inflate(encoding, data, BOUND) {
            assert!(inflated.len() <= BOUND);
        }
        if data.len() <= BOUND
            && let Some(compressed) = compress(encoding, data, LEVELS)
        {
            assert!(compressed.len() < data.len());
            assert_eq!(inflate(encoding, &compressed, BOUND).as_deref(), Ok(data));
        }
    }
});
