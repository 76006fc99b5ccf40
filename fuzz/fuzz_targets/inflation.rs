//! Any bytes as compressed bodies: never more comes out than the bound, and what was compressed comes back.
#![no_main]

use goim_compression::{Levels, compress, deflate_message, inflate, inflate_message};
use goim_wire::Encoding;

/// What a body may grow to here.
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
