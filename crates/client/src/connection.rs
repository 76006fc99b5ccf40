//! A connected socket with its protocol session: moves bytes and time between the two.
//!
//! It takes no decisions; those are [`crate::connection_task`]'s.

use std::io;
use std::time::Duration;

use goim_session::client::Ended;
use goim_session::{ClientSession, ClientStep, Millis};
use goim_wire::{Version, VersionTable};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::Instant;

use crate::Endpoint;
use crate::desired_state::DesiredState;
use crate::dialer::Socket;
use crate::event::{AuthReply, DisconnectReason};

/// The maximum number of bytes per read.
const READ_BYTES: usize = 16 * 1024;

/// An authenticated connection.
pub(crate) struct Connection {
    pub(crate) link: Link,
    pub(crate) endpoint: Endpoint,
    pub(crate) reply: AuthReply,
    /// The part of the desired state that was in the token.
    pub(crate) applied: DesiredState,
    /// The revision of the timelines whose positions were in the token; the server syncs those
    /// without being asked. `None` when the token contained none.
    pub(crate) resume_revision: Option<u64>,
}

/// The session's clock: milliseconds since the connection was started.
#[derive(Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Millis {
        Millis::default().after(self.0.elapsed())
    }

    /// Converts a time of the session. [`Millis::NEVER`] becomes a year from now.
    pub(crate) fn instant(self, moment: Millis) -> Instant {
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        self.0 + Millis::default().until(moment).min(year)
    }
}

/// Socket, session, and input that is read but not processed.
pub(crate) struct Link {
    pub(crate) session: ClientSession,
    pub(crate) clock: Clock,
    pub(crate) versions: VersionTable,
    /// The maximum size of a body after decompression.
    body_bytes_max: usize,
    reader: ReadHalf<Box<dyn Socket>>,
    writer: WriteHalf<Box<dyn Socket>>,
    input: Vec<u8>,
    /// How many bytes of `input` were read, and how many of those are processed.
    filled: usize,
    at: usize,
    /// The total number of bytes written.
    written: u64,
    /// TLS may buffer written bytes until it is flushed.
    needs_flush: bool,
}

/// The result of [`Link::exchange`].
pub(crate) enum Exchange {
    /// The number of bytes read; zero when the server has closed.
    Read(io::Result<usize>),
    /// Something was written.
    Wrote(io::Result<()>),
}

impl Link {
    pub(crate) fn new(
        socket: Box<dyn Socket>,
        session: ClientSession,
        clock: Clock,
        versions: VersionTable,
        body_bytes_max: usize,
    ) -> Self {
        let (reader, writer) = tokio::io::split(socket);
        let input = vec![0; READ_BYTES];
        let (filled, at, written, needs_flush) = (0, 0, 0, false);
        Self {
            session,
            clock,
            versions,
            body_bytes_max,
            reader,
            writer,
            input,
            filled,
            at,
            written,
            needs_flush,
        }
    }

    /// Decompresses a body of this version.
    pub(crate) fn inflate(&self, version: Version, body: &[u8]) -> Result<Vec<u8>, DisconnectReason> {
        let unknown = || DisconnectReason::Protocol(format!("a body of the unknown version {}", version.0));
        let row = self.versions.row(version).ok_or_else(unknown)?;
        goim_compression::inflate(row.encoding, body, self.body_bytes_max)
            .map_err(|error| DisconnectReason::Protocol(format!("a body of version {}: {error}", version.0)))
    }

    /// Returns the next step of the session for the input.
    pub(crate) fn step(&mut self) -> Result<ClientStep<'_>, Ended> {
        let now = self.clock.now();
        let input = self.input.get_mut(..self.filled).unwrap_or_default();
        self.session.step(now, input, &mut self.at)
    }

    /// Returns the offset in everything written at which the next request starts.
    pub(crate) fn output_end(&self) -> u64 {
        self.written.saturating_add(self.session.output().len() as u64)
    }

    /// Returns whether a byte at or after this offset was written.
    pub(crate) fn has_written_beyond(&self, offset: u64) -> bool {
        self.written > offset
    }

    /// Reads once. Call it when the input is used up.
    ///
    /// # Cancel safety
    /// No byte is lost.
    pub(crate) async fn read(&mut self) -> io::Result<usize> {
        let len = self.reader.read(&mut self.input).await?;
        (self.filled, self.at) = (len, 0);
        Ok(len)
    }

    /// Reads or writes once, whichever is possible first. Never completes when neither is
    /// requested.
    ///
    /// # Cancel safety
    /// No byte is lost or written twice.
    pub(crate) async fn exchange(&mut self, reading: bool, writing: bool) -> Exchange {
        let output = self.session.output();
        let writing = writing && (!output.is_empty() || self.needs_flush);
        let wrote = tokio::select! {
            result = self.reader.read(&mut self.input), if reading => {
                if let Ok(len) = &result {
                    (self.filled, self.at) = (*len, 0);
                }
                return Exchange::Read(result);
            }
            result = write_or_flush(&mut self.writer, output), if writing => result,
            else => std::future::pending().await,
        };
        Exchange::Wrote(wrote.map(|len| self.note_written(len)))
    }

    fn note_written(&mut self, len: usize) {
        self.needs_flush = len > 0;
        self.session.written(len);
        self.written = self.written.saturating_add(len as u64);
    }

    /// Writes all output of the session. After a cancellation, some of it may be written.
    pub(crate) async fn write_all(&mut self) -> io::Result<()> {
        while !self.session.output().is_empty() || self.needs_flush {
            let len = write_or_flush(&mut self.writer, self.session.output()).await?;
            self.note_written(len);
        }
        Ok(())
    }

    /// Closes the connection gracefully, or abandons it after `timeout`.
    pub(crate) async fn close(&mut self, timeout: Duration) {
        self.session.close();
        let close = async {
            self.write_all().await?;
            self.writer.shutdown().await
        };
        // The connection ends either way.
        let _ = tokio::time::timeout(timeout, close).await;
    }
}

/// Writes once, or flushes when there is nothing to write. Returns the number of bytes written.
async fn write_or_flush(writer: &mut WriteHalf<Box<dyn Socket>>, output: &[u8]) -> io::Result<usize> {
    if output.is_empty() {
        writer.flush().await?;
        return Ok(0);
    }
    match writer.write(output).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        len => Ok(len),
    }
}
