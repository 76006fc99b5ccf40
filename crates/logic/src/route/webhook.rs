//! A backend behind a URL. The packet's body is the body of a POST and everything else is in
//! headers. The body of an answer with status 200 is the body of the reply.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use goim_ports::{Call, HttpClient, HttpError, HttpRequest, LogicError, Secret, Upstream, UpstreamPort};

/// The maximum size of an answer in bytes.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// A backend behind a URL.
pub(super) struct WebhookUpstream {
    url: String,
    secret: Option<Secret>,
    http: Arc<dyn HttpClient>,
}

impl WebhookUpstream {
    pub(super) fn new(url: String, secret: Option<Secret>, http: Arc<dyn HttpClient>) -> Self {
        Self { url, secret, http }
    }
}

/// Percent-encodes a key for a header.
fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

impl UpstreamPort for WebhookUpstream {
    fn send(&self, upstream: Upstream, timeout: Duration) -> Call<Result<Bytes, LogicError>> {
        let Upstream { mid, key, packet, schema, .. } = upstream;
        let mut headers = vec![
            ("content-type", "application/octet-stream".to_owned()),
            ("goim-mid", mid.0.to_string()),
            ("goim-key", escape(key.as_str())),
            ("goim-operation", packet.operation.0.to_string()),
            ("goim-sequence", packet.sequence.0.to_string()),
            ("goim-schema", schema.0.to_string()),
        ];
        if let Some(secret) = &self.secret {
            headers.push(("authorization", format!("Bearer {}", secret.reveal())));
        }
        let request = HttpRequest {
            body: Some(packet.body),
            url: self.url.clone(),
            headers,
            timeout,
            answer_bytes_max: ANSWER_BYTES_MAX,
        };
        self.http.send(request).map(|answer| match answer {
            Ok(answer) if answer.status == 200 => Ok(answer.body),
            Ok(answer) if answer.status == 204 => Ok(Bytes::new()),
            Ok(answer) if answer.status >= 500 || answer.status == 429 => {
                Err(LogicError::Unavailable(format!("the backend answers {}", answer.status)))
            }
            Ok(answer) => Err(LogicError::Failed(format!("the backend answers {}", answer.status))),
            Err(error @ HttpError::Timeout(_)) => Err(LogicError::Late(error.to_string())),
            Err(error @ HttpError::TooLarge(_)) => Err(LogicError::Failed(error.to_string())),
            Err(error @ HttpError::Unreachable(_)) => Err(LogicError::Unavailable(error.to_string())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_fit_into_headers() {
        assert_eq!(escape("a-b_c.d~e"), "a-b_c.d~e");
        assert_eq!(escape("100% ключ\n"), "100%25%20%D0%BA%D0%BB%D1%8E%D1%87%0A");
    }
}
