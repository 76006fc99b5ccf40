//! Sockets: the only place in comet that distinguishes plain connections from TLS.
//!
//! Both return plain bytes and take plain bytes; whether packets are in WebSocket frames is up to
//! the session. Nothing here blocks.

#[cfg(any(test, feature = "harness"))]
#[cfg_attr(not(feature = "harness"), expect(dead_code, reason = "only the harness sets input"))]
pub(crate) mod sink;

use std::io::{self, IoSlice, Read as _, Write as _};
use std::sync::Arc;

use goim_session::Outbox;
use mio::net::TcpStream;
use rustls::ServerConfig;

use crate::tls::TlsSession;

/// Bytes read at once, and the most that one write gathers.
pub(crate) const SCRATCH_LEN: usize = 64 * 1024;
/// Pieces in one gathered write. Further ones wait for the next write.
const PIECES_MAX: usize = 64;
/// Pieces are copied together up to this size; beyond it, the kernel gathers them. A copy of this
/// size costs less than the bookkeeping of many pieces.
const COPY_MAX: usize = 16 * 1024;
/// Plain bytes encrypted at once: one TLS record.
const RECORD_LEN: usize = 16 * 1024;

/// The input buffers of a shard, shared by all its connections.
#[derive(Default)]
pub(crate) struct Scratch {
    input: Vec<u8>,
    plain: Vec<u8>,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { input: vec![0; SCRATCH_LEN], plain: Vec::new() }
    }
}

/// The byte stream under a socket.
pub(crate) enum Stream {
    Tcp(TcpStream),
    /// The harness's replacement for a socket: takes every write, and returns the input that was
    /// set.
    #[cfg(any(test, feature = "harness"))]
    Sink,
}

impl Stream {
    fn read(&mut self, input: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(input),
            #[cfg(any(test, feature = "harness"))]
            Self::Sink => sink::read(input),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            #[cfg(any(test, feature = "harness"))]
            Self::Sink => sink::write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write_vectored(slices),
            #[cfg(any(test, feature = "harness"))]
            Self::Sink => slices.iter().map(|slice| sink::write(slice)).sum(),
        }
    }

    fn end(&self) {
        match self {
            // Fails when the peer has closed already, which ends the stream too.
            Self::Tcp(stream) => drop(stream.shutdown(std::net::Shutdown::Write)),
            #[cfg(any(test, feature = "harness"))]
            Self::Sink => {}
        }
    }
}

/// A connection's socket.
pub(crate) struct Socket {
    stream: Stream,
    tls: Option<Box<Tls>>,
}

struct Tls {
    session: TlsSession,
    /// Encrypted bytes that the kernel has not taken yet.
    cipher: Vec<u8>,
    /// The peer has closed its side of the TLS session; its TCP stream may stay open.
    ended: bool,
}

/// The result of a read.
pub(crate) enum Received<'a> {
    /// Bytes for the session. With `more`, the kernel may have more.
    Input { bytes: &'a mut [u8], more: bool },
    /// Nothing for the session: a part of a TLS record, or a handshake message.
    Nothing { more: bool },
    /// The peer has ended its stream.
    End,
    /// The connection broke.
    Lost,
    /// The input was not TLS. An alert may wait to be sent.
    BadTls(String),
}

/// The result of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Bytes of the outbox that were sent, or encrypted to be sent.
    pub(crate) taken: usize,
    /// The kernel takes no more for now.
    pub(crate) full: bool,
}

impl Socket {
    pub(crate) fn new(stream: Stream, tls: Option<&Arc<ServerConfig>>) -> Result<Self, String> {
        let tls = match tls {
            None => None,
            Some(config) => {
                let session = TlsSession::new(config).map_err(|error| error.to_string())?;
                Some(Box::new(Tls { session, cipher: Vec::new(), ended: false }))
            }
        };
        Ok(Self { stream, tls })
    }

    /// Returns what a poll can watch, if there is something.
    pub(crate) fn source(&mut self) -> Option<&mut TcpStream> {
        match &mut self.stream {
            Stream::Tcp(stream) => Some(stream),
            #[cfg(any(test, feature = "harness"))]
            Stream::Sink => None,
        }
    }

    /// True when bytes wait here that are not in the outbox any more.
    pub(crate) fn holds_output(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| !tls.cipher.is_empty())
    }

    /// Reads once. With `to_the_end`, a short read does not mean that the socket is empty: the peer
    /// has closed.
    pub(crate) fn read<'a>(&mut self, scratch: &'a mut Scratch, to_the_end: bool) -> Received<'a> {
        if self.tls.as_ref().is_some_and(|tls| tls.ended) {
            return Received::End;
        }
        let len = loop {
            match self.stream.read(&mut scratch.input) {
                Ok(0) => return Received::End,
                Ok(len) => break len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Received::Nothing { more: false };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Received::Lost,
            }
        };
        let more = to_the_end || len == SCRATCH_LEN;
        let Some(tls) = self.tls.as_mut() else {
            return Received::Input { bytes: &mut scratch.input[..len], more };
        };
        scratch.plain.clear();
        match tls.session.read(&mut scratch.input[..len], &mut scratch.plain, &mut tls.cipher) {
            Err(error) => Received::BadTls(error.to_string()),
            Ok(progress) => {
                tls.ended = progress.peer_closed;
                // The next read reports the end, after what precedes it.
                let more = more || tls.ended;
                match scratch.plain.is_empty() {
                    true => Received::Nothing { more },
                    false => Received::Input { bytes: &mut scratch.plain, more },
                }
            }
        }
    }

    /// Writes what waits in the outbox, as much as the kernel takes at once.
    pub(crate) fn write(&mut self, outbox: &Outbox, gather: &mut Vec<u8>) -> io::Result<Sent> {
        match self.tls.as_mut() {
            None => write_plain(&mut self.stream, outbox, gather),
            Some(tls) => write_tls(&mut self.stream, tls, outbox, gather),
        }
    }

    /// Ends our side of the stream: the peer sees the end after all that was written.
    pub(crate) fn end(&mut self) {
        if let Some(tls) = self.tls.as_mut() {
            tls.session.close(&mut tls.cipher);
            // Best effort: a peer that does not read cannot be notified.
            let _ = self.stream.write(&tls.cipher);
            tls.cipher = Vec::new();
        }
        self.stream.end();
    }

    /// Sends an alert that waits, if the kernel takes it.
    pub(crate) fn flush_alert(&mut self) {
        if let Some(tls) = self.tls.as_mut() {
            let _ = self.stream.write(&tls.cipher);
            tls.cipher = Vec::new();
        }
    }
}

fn write_plain(stream: &mut Stream, outbox: &Outbox, gather: &mut Vec<u8>) -> io::Result<Sent> {
    let offered;
    let result = {
        let mut pieces = outbox.pieces();
        let (Some(first), second) = (pieces.next(), pieces.next()) else {
            return Ok(Sent { taken: 0, full: false });
        };
        if second.is_none() {
            offered = first.len();
            retry(|| stream.write(first))
        } else if outbox.len() <= COPY_MAX {
            gather.clear();
            outbox.pieces().for_each(|piece| gather.extend_from_slice(piece));
            offered = gather.len();
            retry(|| stream.write(gather))
        } else {
            let slices: smallvec::SmallVec<[IoSlice<'_>; PIECES_MAX]> =
                outbox.pieces().take(PIECES_MAX).map(IoSlice::new).collect();
            offered = slices.iter().map(|slice| slice.len()).sum();
            retry(|| stream.write_vectored(&slices))
        }
    };
    sent(result, offered)
}

/// Encrypts the next record and writes it. Only a record that the kernel took in part is stored, so
/// a connection holds at most one record besides its outbox.
fn write_tls(stream: &mut Stream, tls: &mut Tls, outbox: &Outbox, gather: &mut Vec<u8>) -> io::Result<Sent> {
    let mut taken = 0;
    if tls.cipher.is_empty() && !outbox.is_empty() {
        if !tls.session.is_established() {
            return Ok(Sent { taken: 0, full: true });
        }
        gather.clear();
        for piece in outbox.pieces() {
            let room = RECORD_LEN - gather.len();
            gather.extend_from_slice(&piece[..piece.len().min(room)]);
            if gather.len() == RECORD_LEN {
                break;
            }
        }
        tls.session.write(gather, &mut tls.cipher).map_err(io::Error::other)?;
        taken = gather.len();
    }
    if tls.cipher.is_empty() {
        return Ok(Sent { taken, full: false });
    }
    let result = sent(retry(|| stream.write(&tls.cipher)), tls.cipher.len())?;
    if result.taken == tls.cipher.len() {
        tls.cipher = Vec::new();
    } else {
        tls.cipher.drain(..result.taken);
    }
    Ok(Sent { taken, full: result.full })
}

fn sent(result: io::Result<usize>, offered: usize) -> io::Result<Sent> {
    match result {
        Ok(0) if offered > 0 => Err(io::ErrorKind::WriteZero.into()),
        Ok(taken) => Ok(Sent { taken, full: taken < offered }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Sent { taken: 0, full: true }),
        Err(error) => Err(error),
    }
}

fn retry(mut write: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match write() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
