//! HTTP requests of logic: to the backend, and for the keys that tokens are signed with.

use std::time::Duration;

use bytes::Bytes;

use crate::{Call, ServiceUrl};

/// An HTTP client.
///
/// An implementation reuses connections, checks certificates and does not follow redirects: only
/// the configured address may reply.
pub trait HttpClient: Send + Sync {
    /// Sends a request once.
    ///
    /// # Errors
    /// [`HttpError`]. A response with any status is `Ok`.
    fn send(&self, request: HttpRequest) -> Call<Result<HttpResponse, HttpError>>;
}

/// A request.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpRequest {
    /// POST with this body, or GET without one.
    pub body: Option<Bytes>,
    /// An absolute URL, `http://` or `https://`.
    pub url: String,
    /// Header names in lower case, with their values.
    pub headers: Vec<(&'static str, String)>,
    /// Time for the whole request, up to the last byte of the response.
    pub timeout: Duration,
    /// Maximum size of the response body in bytes.
    pub answer_bytes_max: usize,
}

/// A response.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpResponse {
    /// The status code.
    pub status: u16,
    /// The body, without transfer encoding.
    pub body: Bytes,
}

/// Why there is no response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// The request timed out.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection failed.
    #[error("{0}")]
    Unreachable(String),
    /// The response body is larger than the request allows.
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
}

impl std::fmt::Debug for HttpRequest {
    /// Leaves out headers and body: they may hold credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpRequest")
            .field("url", &ServiceUrl::from(self.url.as_str()))
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for HttpResponse {
    /// Leaves out the body: it may hold credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpResponse").field("status", &self.status).finish_non_exhaustive()
    }
}
