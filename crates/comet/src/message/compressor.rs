//! Compression of outgoing bodies, with its counters.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use goim_compression::{compress, compress_always, deflate_message};
use goim_ports::Encoding;
use goim_session::EncodedPush;

use crate::config::CompressionConfig;

/// Compresses bodies above a threshold.
#[derive(Debug)]
pub(crate) struct Compressor {
    config: CompressionConfig,
    /// By encoding; the one of `Identity` stays zero.
    by_encoding: [CompressionStats; Encoding::ALL.len()],
    /// Whole messages, for permessage-deflate.
    deflated: CompressionStats,
}

/// What was compressed with one encoding.
#[derive(Debug, Default)]
pub(crate) struct CompressionStats {
    pub(crate) count: AtomicU64,
    pub(crate) input_bytes: AtomicU64,
    pub(crate) output_bytes: AtomicU64,
}

impl CompressionStats {
    fn count(&self, input: usize, output: usize) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.input_bytes.fetch_add(input as u64, Ordering::Relaxed);
        self.output_bytes.fetch_add(output as u64, Ordering::Relaxed);
    }
}

impl Compressor {
    pub(super) fn new(config: CompressionConfig) -> Self {
        let (by_encoding, deflated) = Default::default();
        Self { config, by_encoding, deflated }
    }

    /// True when bodies are compressed at all.
    pub(super) fn is_enabled(&self) -> bool {
        self.config.enabled
    }

    /// The best encoding to use for a client that reads `encoding`.
    pub(super) fn permitted(&self, encoding: Encoding) -> Encoding {
        if self.config.enabled { encoding } else { Encoding::Identity }
    }

    /// The largest body that an inflated packet of a client may have.
    pub(crate) fn inflated_bytes_max(&self) -> usize {
        self.config.inflated_bytes_max
    }

    /// Compresses a body. `None` when it is below the threshold or would not get smaller.
    pub(super) fn compress(&self, encoding: Encoding, body: &[u8]) -> Option<Bytes> {
        if encoding == Encoding::Identity || body.len() < self.config.threshold_bytes {
            return None;
        }
        let compressed = compress(encoding, body, self.config.levels.into());
        let output = compressed.as_ref().map_or(body.len(), Vec::len);
        self.by_encoding[encoding as usize].count(body.len(), output);
        compressed.map(Bytes::from)
    }

    /// Encodes a body whose version must be compressed, whatever that gains.
    pub(super) fn compress_always(&self, encoding: Encoding, body: &[u8]) -> Bytes {
        compress_always(encoding, body, self.config.levels.into()).into()
    }

    /// Returns the frame of a message for clients with permessage-deflate. `None` when it is below
    /// the threshold or would not get smaller.
    pub(super) fn deflate(&self, push: &EncodedPush) -> Option<Bytes> {
        push.deflated(|message| {
            if message.len() < self.config.threshold_bytes {
                return None;
            }
            let deflated = deflate_message(message, self.config.levels.into());
            self.deflated.count(message.len(), deflated.as_ref().map_or(message.len(), Vec::len));
            deflated
        })
    }

    /// Returns what was compressed, by the name of the encoding.
    pub(crate) fn stats(&self) -> impl Iterator<Item = (&'static str, &CompressionStats)> {
        let by_encoding = Encoding::ALL.map(Encoding::name).into_iter().zip(&self.by_encoding);
        by_encoding.skip(1).chain([("deflate", &self.deflated)])
    }
}
