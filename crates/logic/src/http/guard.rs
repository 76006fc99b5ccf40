//! Authorization of the backend: an API key or, when none is configured, a request from this
//! machine.
//!
//! The peer's address does not suffice for the second: a proxy or a browser on this machine
//! forwards requests of others, and shows so in its headers.

use std::net::IpAddr;

use axum::http::header::{AUTHORIZATION, FORWARDED, ORIGIN};
use axum::http::{HeaderMap, HeaderName, StatusCode};

use super::error::ApiError;
use crate::config::ApiKey;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Why a request is not authorized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AuthError {
    /// The API key is missing or wrong.
    Key,
    /// The request is not from this machine, or was forwarded for another one.
    NotLocal,
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Key => Self::unauthorized(
                "a push needs an API key in the header Authorization (Bearer KEY) or X-API-Key (KEY)",
            ),
            AuthError::NotLocal => Self::new(
                StatusCode::FORBIDDEN,
                "without logic.http.api_keys pushes are taken from this machine only; \
                 configure a key there and send it as Authorization: Bearer KEY",
            ),
        }
    }
}

/// Checks that a request is authorized.
pub(super) fn check(keys: &[ApiKey], peer: Option<IpAddr>, headers: &HeaderMap) -> Result<(), AuthError> {
    if keys.is_empty() {
        return if is_local(peer, headers) { Ok(()) } else { Err(AuthError::NotLocal) };
    }
    let presented = bearer_tokens(headers).chain(headers.get_all(X_API_KEY).iter().map(|key| key.as_bytes()));
    for candidate in presented {
        // All keys are compared, so that the time does not reveal which one is close.
        if keys.iter().fold(false, |found, key| found | key.matches(candidate)) {
            return Ok(());
        }
    }
    Err(AuthError::Key)
}

/// The tokens presented as `Authorization: Bearer`.
pub(super) fn bearer_tokens(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers.get_all(AUTHORIZATION).iter().filter_map(|value| {
        let (scheme, token) = value.as_bytes().split_first_chunk::<7>()?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(token.trim_ascii())
    })
}

/// True for a request from this machine that was not forwarded for another one.
pub(super) fn is_local(peer: Option<IpAddr>, headers: &HeaderMap) -> bool {
    let local_peer = peer.is_some_and(|peer| peer.to_canonical().is_loopback());
    // Most requests have none of these headers.
    local_peer
        && headers
            .get_all(X_FORWARDED_FOR)
            .iter()
            .all(|value| all_local(value.as_bytes(), |element| Some(element)))
        && headers.get_all(X_REAL_IP).iter().all(|value| all_local(value.as_bytes(), |element| Some(element)))
        && headers.get_all(FORWARDED).iter().all(|value| all_local(value.as_bytes(), forwarded_for))
        && headers.get_all(ORIGIN).iter().all(|value| local_origin(value.as_bytes()))
}

/// True when each element of a list names an address of this machine. An unreadable element does
/// not.
fn all_local(value: &[u8], address: impl Fn(&str) -> Option<&str>) -> bool {
    let Ok(value) = std::str::from_utf8(value) else { return false };
    value.split(',').all(|element| address(element.trim()).is_some_and(is_local_host))
}

/// The address in an element of `Forwarded`, for example `for="[::1]:80";proto=http`.
fn forwarded_for(element: &str) -> Option<&str> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| value.trim().trim_matches('"'))
    })
}

/// True for the origin of a page on this machine. A local browser shows pages of any origin and
/// sends it along.
fn local_origin(value: &[u8]) -> bool {
    let Ok(origin) = std::str::from_utf8(value) else { return false };
    origin.split_once("://").is_some_and(|(_, host)| is_local_host(host))
}

/// True for `localhost` and loopback addresses, with or without a port.
fn is_local_host(host: &str) -> bool {
    let address: Option<IpAddr> = host.parse().ok();
    let address = address.or_else(|| {
        let bare = match host.strip_prefix('[') {
            Some(bracketed) => bracketed.split_once(']').map_or(bracketed, |(inside, _)| inside),
            None => host.split_once(':').map_or(host, |(name, _)| name),
        };
        if bare.eq_ignore_ascii_case("localhost") {
            return Some(IpAddr::from([127, 0, 0, 1]));
        }
        bare.parse().ok()
    });
    address.is_some_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn without_keys_only_this_machine_may_push() {
        let check = |peer: &str, list: &[(&'static str, &'static str)], expected: bool| {
            let allowed = check(&[], peer.parse().ok(), &headers(list)).is_ok();
            assert_eq!(allowed, expected, "{peer} {list:?}");
        };
        check("127.0.0.1", &[], true);
        check("127.8.8.8", &[], true);
        check("::1", &[], true);
        check("::ffff:127.0.0.1", &[], true);
        check("10.0.0.1", &[], false);
        check("::ffff:10.0.0.1", &[], false);
        check("unknown", &[], false);
        check("127.0.0.1", &[("x-forwarded-for", "127.0.0.1, ::1")], true);
        check("127.0.0.1", &[("x-forwarded-for", "127.0.0.1, 203.0.113.9")], false);
        check("127.0.0.1", &[("x-forwarded-for", "127.0.0.1"), ("x-forwarded-for", "8.8.8.8")], false);
        check("127.0.0.1", &[("x-forwarded-for", "unknown")], false);
        check("127.0.0.1", &[("x-forwarded-for", "")], false);
        check("127.0.0.1", &[("x-real-ip", "203.0.113.9")], false);
        check("127.0.0.1", &[("x-real-ip", "127.0.0.1:5000")], true);
        check("127.0.0.1", &[("forwarded", "proto=http;For=\"[::1]:80\"")], true);
        check("127.0.0.1", &[("forwarded", "for=127.0.0.1, for=192.0.2.60;proto=http")], false);
        check("127.0.0.1", &[("forwarded", "for=_hidden")], false);
        check("127.0.0.1", &[("forwarded", "proto=http")], false);
        check("127.0.0.1", &[("origin", "http://localhost:3111")], true);
        check("127.0.0.1", &[("origin", "http://[::1]:3111")], true);
        check("127.0.0.1", &[("origin", "https://evil.example")], false);
        check("127.0.0.1", &[("origin", "http://127.0.0.1.evil.example")], false);
        check("127.0.0.1", &[("origin", "null")], false);
        check("10.0.0.1", &[("x-forwarded-for", "127.0.0.1")], false);
    }

    #[test]
    fn with_keys_a_key_is_required() {
        let keys = [ApiKey::from("first key".to_owned()), ApiKey::from("second key".to_owned())];
        let check = |list: &[(&'static str, &'static str)], expected: Result<(), AuthError>| {
            assert_eq!(check(&keys, "127.0.0.1".parse().ok(), &headers(list)), expected, "{list:?}");
        };
        check(&[("authorization", "Bearer first key")], Ok(()));
        check(&[("authorization", "bearer second key")], Ok(()));
        check(&[("x-api-key", "second key")], Ok(()));
        check(&[("authorization", "Basic Zm9v"), ("x-api-key", "first key")], Ok(()));
        check(&[], Err(AuthError::Key));
        check(&[("authorization", "Bearer third key")], Err(AuthError::Key));
        check(&[("authorization", "first key")], Err(AuthError::Key));
        check(&[("authorization", "Bearer ")], Err(AuthError::Key));
        check(&[("x-api-key", "")], Err(AuthError::Key));
        check(&[("x-forwarded-for", "203.0.113.9"), ("x-api-key", "first key")], Ok(()));
    }
}
