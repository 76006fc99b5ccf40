//! The backend as a gRPC service: `goim.backend.Backend`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use goim_ports::{Call, LogicError, Upstream, UpstreamPort};
use tonic::{Code, Status};

use super::address::AddressError;
use super::channel::{ClientConfig, Connection, REPLY_BYTES_MAX};
use super::convert::handle_req_of;
use super::proto::backend::backend_client::BackendClient;

/// The backend behind its RPC address. One connection.
#[derive(Debug, Clone)]
pub struct GrpcBackend {
    connection: Arc<Connection>,
}

impl GrpcBackend {
    /// Creates a client of the backend at `address`, for example `grpc://10.0.0.5:9000`. Connects
    /// with the first call.
    ///
    /// # Errors
    /// [`AddressError`] if the address is invalid.
    pub fn new(address: &str, config: ClientConfig) -> Result<Self, AddressError> {
        Ok(Self { connection: Arc::new(Connection::new(address, config)?) })
    }
}

impl UpstreamPort for GrpcBackend {
    fn send(&self, upstream: Upstream, timeout: Duration) -> Call<Result<Bytes, LogicError>> {
        let connection = Arc::clone(&self.connection);
        Call::pending(async move {
            let mut request = tonic::Request::new(handle_req_of(upstream));
            // The backend gets the remaining time as the deadline.
            request.set_timeout(timeout);
            let call = async move |channel| {
                let client = BackendClient::new(channel);
                client.max_decoding_message_size(REPLY_BYTES_MAX).handle(request).await
            };
            connection.call(call).await.map(|reply| reply.body).map_err(|status| error_of(&status))
        })
    }
}

fn error_of(status: &Status) -> LogicError {
    let text = status.message().to_owned();
    match status.code() {
        Code::DeadlineExceeded | Code::Cancelled => LogicError::Late(text),
        Code::Unavailable | Code::ResourceExhausted => LogicError::Unavailable(text),
        // The status is of the connection, not of the backend.
        _ if std::error::Error::source(status).is_some() => LogicError::Unavailable(text),
        code => LogicError::Failed(format!("{code:?}: {text}")),
    }
}
