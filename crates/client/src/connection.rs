//! A connected socket with the session on it: bytes and time between the two, no decisions.

use std::io;
use std::time::Duration;

use goim_session::client::Ended;
use goim_session::{ClientSession, ClientStep, Moment};
use goim_wire::{Version, VersionTable};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::Instant;

use crate::Endpoint;
use crate::dial::Socket;
use crate::event::{AuthReply, DisconnectReason};
use crate::wanted::Wanted;

/// Bytes that are read at once.
const READ_BYTES: usize = 16 * 1024;

/// An authenticated connection.
pub(crate) struct Connection {
    pub(crate) link: Link,
    pub(crate) endpoint: Endpoint,
    pub(crate) reply: AuthReply,
    /// What the token has said of the application's wishes.
    pub(crate) applied: Wanted,
    /// The token has said where the client is in its timelines: the server answers that without being asked.
    pub(crate) resumes: bool,
}

/// The session's time: milliseconds since the connection was made.
#[derive(Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Moment {
        Moment::default().after(self.0.elapsed())
    }

    /// When `moment` is. What never comes is a year away.
    pub(crate) fn instant(self, moment: Moment) -> Instant {
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        self.0 + Moment::default().until(moment).min(year)
    }
}

/// Socket, session and what was read and not yet looked at.
pub(crate) struct Link {
    pub(crate) session: ClientSession,
    pub(crate) clock: Clock,
    pub(crate) versions: VersionTable,
    /// What a compressed body may grow to.
    body_bytes_max: usize,
    reader: ReadHalf<Box<dyn Socket>>,
    writer: WriteHalf<Box<dyn Socket>>,
    input: Vec<u8>,
    /// How much of `input` was read, and how much of that is dealt with.
    filled: usize,
    at: usize,
    /// Bytes written in all.
    written: u64,
    /// TLS may hold back what it was given until it is flushed.
    needs_flush: bool,
}

/// What became of [`Link::exchange`].
pub(crate) enum Exchange {
    /// So many bytes were read; none: the server has closed.
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

    /// A body that is written as this version says.
    pub(crate) fn inflate(&self, version: Version, body: &[u8]) -> Result<Vec<u8>, DisconnectReason> {
        let unknown = || {
            DisconnectReason::Protocol(format!("a body of version {}, which nobody has explained", version.0))
        };
        let row = self.versions.row(version).ok_or_else(unknown)?;
        goim_compression::inflate(row.encoding, body, self.body_bytes_max)
            .map_err(|error| DisconnectReason::Protocol(format!("a body of version {}: {error}", version.0)))
    }

    /// The next thing that the session makes of the input.
    pub(crate) fn step(&mut self) -> Result<ClientStep<'_>, Ended> {
        let now = self.clock.now();
        let input = self.input.get_mut(..self.filled).unwrap_or_default();
        self.session.step(now, input, &mut self.at)
    }

    /// Place in the stream of everything written, where the next request begins.
    pub(crate) fn output_end(&self) -> u64 {
        self.written.saturating_add(self.session.output().len() as u64)
    }

    /// True when a byte behind this place was written.
    pub(crate) fn has_written_beyond(&self, place: u64) -> bool {
        self.written > place
    }

    /// Reads once; to be called when the input is used up.
    ///
    /// Cancel safe.
    pub(crate) async fn read(&mut self) -> io::Result<usize> {
        let len = self.reader.read(&mut self.input).await?;
        (self.filled, self.at) = (len, 0);
        Ok(len)
    }

    /// Reads or writes once, whichever can be done first. Waits forever when neither is wanted.
    ///
    /// Cancel safe.
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

    /// Writes all that waits. Not cancel safe in that some of it may be written.
    pub(crate) async fn write_all(&mut self) -> io::Result<()> {
        while !self.session.output().is_empty() || self.needs_flush {
            let len = write_or_flush(&mut self.writer, self.session.output()).await?;
            self.note_written(len);
        }
        Ok(())
    }

    /// Says goodbye, as far as the peer lets it within `patience`.
    pub(crate) async fn close(&mut self, patience: Duration) {
        self.session.close();
        let goodbye = async {
            self.write_all().await?;
            self.writer.shutdown().await
        };
        // The connection ends either way.
        let _ = tokio::time::timeout(patience, goodbye).await;
    }
}

/// Writes once, or flushes when there is nothing to write; gives the bytes written.
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
