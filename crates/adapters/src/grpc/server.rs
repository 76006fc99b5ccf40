//! Serving on a socket: accepting, keepalive, limits and the end.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use super::config::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep, timeout};
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::codegen::http::{HeaderValue, Response};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::{Code, Status};
use tower::util::MapResponseLayer;

/// Largest message that is taken, before and after decompression, in bytes: what Go's servers take, so that a message is
/// not taken by one node and refused by another.
pub(super) const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Pause after an accept that failed, for example because the process has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why serving ended early.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve gRPC: {0}")]
pub struct ServeError(#[from] tonic::transport::Error);

/// Serves `services` on `listener` until `shutdown` comes; then takes no more connections and calls, and returns when
/// the calls that are under way have ended, or after [`ServerConfig::connection_age_grace`].
///
/// Accepting survives whatever goes wrong with one connection, and running out of descriptors.
///
/// # Errors
/// [`ServeError`] when the server cannot be set up.
///
/// # Cancel safety
/// Dropping the future stops accepting at once; calls that are under way go on.
pub async fn serve(
    listener: TcpListener,
    config: ServerConfig,
    services: Routes,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(config.keepalive_interval))
        .http2_keepalive_timeout(Some(config.keepalive_timeout))
        .max_concurrent_streams(config.calls_max)
        .max_connection_age_grace(config.connection_age_grace);
    if let Some(age) = config.connection_age_max {
        server = server.max_connection_age(age);
    }
    let (stop, stopped) = oneshot::channel::<()>();
    let mut serving = pin!(
        server
            .layer(MapResponseLayer::new(too_large_is_resource_exhausted))
            .add_routes(services)
            .serve_with_incoming_shutdown(Incoming { listener, pause: None }, async { drop(stopped.await) })
    );
    tokio::select! {
        ended = &mut serving => return Ok(ended?),
        () = shutdown => drop(stop),
    }
    match timeout(config.connection_age_grace, serving).await {
        Ok(ended) => Ok(ended?),
        Err(_) => {
            tracing::warn!("calls from other nodes are still under way and are left behind");
            Ok(())
        }
    }
}

/// What every service of ours takes: gzip, and messages of any size that Go's servers take. Replies are not compressed,
/// since goim's job cannot read them then, and are not limited.
macro_rules! accepting {
    ($service:expr) => {
        $service
            .accept_compressed(tonic::codec::CompressionEncoding::Gzip)
            .max_decoding_message_size($crate::grpc::server::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(usize::MAX)
    };
}
pub(super) use accepting;

/// A message over the limit is RESOURCE_EXHAUSTED in gRPC's own servers; the library says OUT_OF_RANGE, a status that
/// nothing else here uses.
fn too_large_is_resource_exhausted(mut response: Response<Body>) -> Response<Body> {
    let out_of_range = HeaderValue::from(Code::OutOfRange as i32);
    if let Some(status) = response.headers_mut().get_mut(Status::GRPC_STATUS)
        && *status == out_of_range
    {
        *status = HeaderValue::from(Code::ResourceExhausted as i32);
    }
    response
}

/// Connections as they come, without end and without errors.
struct Incoming {
    listener: TcpListener,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Stream for Incoming {
    type Item = std::io::Result<TcpStream>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match std::task::ready!(self.listener.poll_accept(context)) {
                Ok((connection, _)) => {
                    // Only speed is lost without it.
                    let _ = connection.set_nodelay(true);
                    return Poll::Ready(Some(Ok(connection)));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of another node");
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}
