//! Requests that logic makes to others over HTTP: to the backend, and for the keys of whoever signs tokens.

use std::time::Duration;

use bytes::Bytes;

use crate::{Call, ServiceUrl};

/// Somebody who makes requests.
///
/// An implementation keeps connections open between requests, checks certificates, and follows no redirection: an answer of
/// another place than the configured one is no answer.
pub trait HttpClient: Send + Sync {
    /// Makes a request once.
    ///
    /// # Errors
    /// [`HttpError`]; any status is an answer and no error.
    fn send(&self, request: HttpRequest) -> Call<Result<HttpResponse, HttpError>>;
}

/// What is asked.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpRequest {
    /// GET without a body, POST with one.
    pub body: Option<Bytes>,
    /// `http://` or `https://` and so on.
    pub url: String,
    /// Names in lower case, and values.
    pub headers: Vec<(&'static str, String)>,
    /// From now to the last byte of the answer.
    pub timeout: Duration,
    /// Largest body of an answer in bytes.
    pub answer_bytes_max: usize,
}

/// What came back.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpResponse {
    /// The status code.
    pub status: u16,
    /// The body, without any encoding of transfer.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Not in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Nobody there, or the connection broke.
    #[error("{0}")]
    Unreachable(String),
    /// The answer has more bytes than were asked for.
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
