//! Asks the backend to authenticate a client.
//!
//! The credential and the facts of the connection are sent as JSON. The answer is a [`Grant`], or a
//! refusal: status 401 or 403, or a member `refuse`. Every other answer, or none, is an error, and
//! the client may retry later.

use std::sync::Arc;

use bytes::Bytes;
use goim_ports::{AuthFailure, Call, ConnectError, HttpClient};
use serde::Deserialize;
use serde_json::json;

use super::authenticator::{Authenticator, Credentials};
use super::grant::Grant;
use crate::webhook::{self, WebhookConfig};

/// The maximum size of an answer in bytes: a thousand rooms fit.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The authenticator of the method `webhook`.
pub(super) struct WebhookAuthenticator(Arc<webhook::Webhook>);

impl WebhookAuthenticator {
    pub(super) fn new(config: WebhookConfig, http: &Arc<dyn HttpClient>) -> Self {
        Self(Arc::new(webhook::Webhook::new("identity", config, Arc::clone(http), ANSWER_BYTES_MAX)))
    }
}

impl Authenticator for WebhookAuthenticator {
    fn authenticate(&self, credentials: Credentials) -> Call<Result<Grant, ConnectError>> {
        let hook = Arc::clone(&self.0);
        Call::pending(async move {
            let question = Bytes::from(question(&credentials).to_string());
            let answer = hook.post("application/json", Vec::new(), question).await;
            let answer =
                answer.map_err(|error| ConnectError::unavailable(format!("the backend: {error}")))?;
            decide(answer.status, &answer.body)
        })
    }
}

fn question(credentials: &Credentials) -> serde_json::Value {
    let Credentials { token, remote, cookie, user_agent, server } = credentials;
    json!({
        "token": token.token,
        "mid": token.mid,
        "key": token.key,
        "room_id": token.room_id,
        "rooms": token.rooms,
        "platform": token.platform,
        "protover": token.protover,
        "ip": remote.to_string(),
        "cookie": cookie,
        "user_agent": user_agent,
        "server": server,
    })
}

/// The backend's refusal.
#[derive(Deserialize)]
struct Refusal {
    refuse: String,
}

fn decide(status: u16, body: &[u8]) -> Result<Grant, ConnectError> {
    // serde would read the elements of a list as the members.
    let object = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(body).ok();
    let object = serde_json::Value::from(object.unwrap_or_default());
    let refusal = serde_json::from_value::<Refusal>(object.clone()).ok();
    if status == 401 || status == 403 || refusal.is_some() {
        let reason = refusal.map(|refusal| refusal.refuse).unwrap_or_default();
        return Err(ConnectError::because(AuthFailure::AuthDenied, format!("the backend refuses: {reason}")));
    }
    if status != 200 {
        return Err(ConnectError::unavailable(format!("the backend answers {status}")));
    }
    // The answer is not quoted, because it may hold secrets.
    serde_json::from_value(object)
        .map_err(|_| ConnectError::unavailable("the answer of the backend is invalid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_backend() {
        let reason = |status, body: &str| decide(status, body.as_bytes()).err().map(|error| error.reason);
        let cases = [
            (200, r#"{"mid":7}"#, None),
            (200, r#"{"mid":7,"anything":{}}"#, None),
            (200, r#"{"refuse":"banned"}"#, Some(AuthFailure::AuthDenied)),
            (403, "", Some(AuthFailure::AuthDenied)),
            (401, "<html>", Some(AuthFailure::AuthDenied)),
            (200, "", Some(AuthFailure::AuthUnavailable)),
            (200, "{}", Some(AuthFailure::AuthUnavailable)),
            (200, "[7]", Some(AuthFailure::AuthUnavailable)),
            (200, r#"["no"]"#, Some(AuthFailure::AuthUnavailable)),
            (200, r#"{"mid":"x"}"#, Some(AuthFailure::AuthUnavailable)),
            (200, r#"{"mid":7,"rooms":"a"}"#, Some(AuthFailure::AuthUnavailable)),
            (204, "", Some(AuthFailure::AuthUnavailable)),
            (302, r#"{"mid":7}"#, Some(AuthFailure::AuthUnavailable)),
            (404, r#"{"mid":7}"#, Some(AuthFailure::AuthUnavailable)),
        ];
        for (status, body, expected) in cases {
            assert_eq!(reason(status, body), expected, "{status} {body}");
        }
    }
}
