//! Serving on a socket: accepting, keep-alive, limits and shutdown.

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

/// Maximum size of a message before and after decompression, in bytes: the limit of Go's servers,
/// so that all nodes accept the same messages.
pub(super) const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Pause after a failed accept, for example if the process has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why serving ended early.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve gRPC: {0}")]
pub struct ServeError(#[from] tonic::transport::Error);

/// Serves `services` on `listener` until `shutdown` resolves. Then accepts no more connections and
/// calls, and returns when the calls in flight have ended, or after
/// [`ServerConfig::connection_age_grace`].
///
/// Errors of single connections, and a lack of descriptors, do not stop accepting.
///
/// # Errors
/// [`ServeError`] if the server cannot be set up.
///
/// # Cancel safety
/// Dropping the future stops accepting immediately; calls in flight continue.
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
            tracing::warn!("calls from other nodes are still in flight; they are dropped");
            Ok(())
        }
    }
}

/// Sets what all services accept: gzip, and messages up to the limit of Go's servers. Replies are
/// not compressed, since goim's job cannot read that, and are not limited.
macro_rules! accepting {
    ($service:expr) => {
        $service
            .accept_compressed(tonic::codec::CompressionEncoding::Gzip)
            .max_decoding_message_size($crate::grpc::server::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(usize::MAX)
    };
}
pub(super) use accepting;

/// Uses RESOURCE_EXHAUSTED for a message above the limit, as gRPC's own servers do; the library
/// uses OUT_OF_RANGE, which nothing else here uses.
fn too_large_is_resource_exhausted(mut response: Response<Body>) -> Response<Body> {
    let out_of_range = HeaderValue::from(Code::OutOfRange as i32);
    if let Some(status) = response.headers_mut().get_mut(Status::GRPC_STATUS)
        && *status == out_of_range
    {
        *status = HeaderValue::from(Code::ResourceExhausted as i32);
    }
    response
}

/// Accepted connections, without end and without errors.
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
                    // Without it only speed is lost.
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
