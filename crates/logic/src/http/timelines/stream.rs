//! Server-sent events: a sync reply for each change of a timeline, until the member or the server
//! ends the stream.
//!
//! Each event's id is the position after its messages, so that a client resumes with
//! `Last-Event-ID`.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use goim_wire::sync;
use hyper::body::Frame;
use serde_json::json;

use super::render::{EndNotice, reply_json};
use crate::http::error::Reply;
use crate::http::reply;
use crate::timelines::reader::{LongPollOutcome, Reader};
use crate::timelines::{LongPoll, LongPollEnd, Timelines};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The interval of keep-alive comments. Proxies close silent connections.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// Parses `Last-Event-ID`, which is `epoch:seq`.
pub(super) fn last_event(headers: &HeaderMap) -> Option<sync::Position> {
    let (epoch, seq) = headers.get(LAST_EVENT_ID)?.to_str().ok()?.trim().split_once(':')?;
    Some(sync::Position { epoch: epoch.parse().ok()?, seq: seq.parse().ok()? })
}

/// Opens a stream of the messages after `request`'s position.
///
/// # Errors
/// The reader may not read the timeline, a limit of streams is reached, or the store does not
/// answer. The checks run before the head of the response is sent, so that the status reports them.
pub(super) async fn open(
    timelines: Arc<Timelines>,
    reader: Reader,
    request: sync::SyncRequest,
    address: Option<IpAddr>,
) -> Reply {
    let wait = timelines.begin_long_poll(&reader, &request.timeline, address)?;
    timelines.sync(&reader, &sync::SyncRequest { limit: 1, ..request.clone() }).await?;
    let stream = EventStream { timelines, reader, request, wait, consecutive_gaps: 0 };
    let mut response = reply::with_body("text/event-stream", Bytes::new());
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    *response.body_mut() = Body::new(EventStreamBody { next: Some(stream.next()) });
    Ok(response)
}

/// The future of the next chunk; `None` ends the body.
type NextChunk = Pin<Box<dyn Future<Output = Option<StreamChunk>> + Send>>;

/// A chunk of the body and the future of the one after it; the last chunk has none.
struct StreamChunk {
    text: Bytes,
    next: Option<NextChunk>,
}

struct EventStreamBody {
    next: Option<NextChunk>,
}

/// A stream between two events.
struct EventStream {
    timelines: Arc<Timelines>,
    reader: Reader,
    request: sync::SyncRequest,
    /// Held for the whole stream, because it counts against the limits of streams.
    wait: LongPoll,
    consecutive_gaps: u32,
}

impl EventStream {
    fn next(self) -> NextChunk {
        Box::pin(self.next_chunk())
    }

    /// Produces the next event or a keep-alive comment. Every call waits for something: for
    /// messages, for the keep-alive interval, or for a second when the timeline reports one gap
    /// after another.
    async fn next_chunk(mut self) -> Option<StreamChunk> {
        if self.consecutive_gaps > 1 {
            Timelines::pause(&self.wait).await;
        }
        let outcome =
            self.timelines.sync_waiting(&self.reader, &self.request, &self.wait, KEEP_ALIVE_INTERVAL).await;
        let found = match outcome {
            Ok(LongPollOutcome::Found(found)) => found,
            Ok(LongPollOutcome::Ended(end)) => return Some(self.end_chunk(end)),
            Err(error) => {
                tracing::debug!(%error, "a stream of messages ends; its client reconnects");
                return None;
            }
        };
        let has_news = found.gap || !found.messages.is_empty();
        let seq = found.messages.last().map_or(found.after, |message| message.seq);
        let text = if has_news {
            format!("id: {}:{seq}\nevent: messages\ndata: {}\n\n", found.epoch, reply_json(&found))
        } else {
            ":\n\n".to_owned()
        };
        // Epoch 0 is a timeline without messages: the stream continues as one without a position.
        self.request.position = (found.epoch != 0).then_some(sync::Position { epoch: found.epoch, seq });
        self.consecutive_gaps = if found.gap { self.consecutive_gaps + 1 } else { 0 };
        Some(StreamChunk { text: text.into(), next: Some(self.next()) })
    }

    /// The last event: why the stream ends and whether the client should reconnect. The delay
    /// spreads the reconnects of the clients of a draining process over 0.5 to 5 s.
    fn end_chunk(&self, end: LongPollEnd) -> StreamChunk {
        let EndNotice { code, reason, may_reconnect } = EndNotice::of(end);
        let delay_ms = match end {
            LongPollEnd::Draining => 500 + self.wait.number() % 45 * 100,
            _ => 0,
        };
        let data = json!({
            "code": code,
            "reason": reason,
            "reconnect": may_reconnect,
            "delay_ms": delay_ms,
        });
        let retry = if delay_ms > 0 { format!("retry: {delay_ms}\n") } else { String::new() };
        StreamChunk { text: format!("{retry}event: end\ndata: {data}\n\n").into(), next: None }
    }
}

impl HttpBody for EventStreamBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(pending) = &mut self.next else { return Poll::Ready(None) };
        let chunk = std::task::ready!(pending.as_mut().poll(context));
        self.next = None;
        Poll::Ready(chunk.map(|StreamChunk { text, next }| {
            self.next = next;
            Ok(Frame::data(text))
        }))
    }
}
