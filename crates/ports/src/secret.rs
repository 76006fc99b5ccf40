//! Secrets, and addresses that may contain some. Neither can be printed by accident.

use std::fmt;

/// The text that is printed instead of a secret.
const REDACTED: &str = "<redacted>";

/// A secret: a password, a key, a token. Printed as `<redacted>`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Returns the secret, to present it or to sign with it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Returns true if `presented` is this secret. Takes constant time for a given length.
    #[must_use]
    pub fn matches(&self, presented: &[u8]) -> bool {
        let own = self.0.as_bytes();
        let differing = own.iter().zip(presented).fold(0, |sum, (a, b)| sum | (a ^ b));
        own.len() == presented.len() && std::hint::black_box(differing) == 0
    }
}

impl<T: Into<String>> From<T> for Secret {
    fn from(secret: T) -> Self {
        Self(secret.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// The address of a service. It may contain credentials: only scheme, host, port and path are
/// printed, and nothing if it cannot be parsed.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ServiceUrl(String);

impl ServiceUrl {
    /// Returns the address, to connect to it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Returns true if no address is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Into<String>> From<T> for ServiceUrl {
    fn from(url: T) -> Self {
        Self(url.into())
    }
}

impl fmt::Display for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(url) = url::Url::parse(&self.0) else {
            return f.write_str("<an address that cannot be read>");
        };
        // Without `//`, the part after the scheme can be anything.
        if !self.0.contains("://") {
            return write!(f, "{}:{REDACTED}", url.scheme());
        }
        write!(f, "{}://{}", url.scheme(), url.host_str().unwrap_or_default())?;
        if let Some(port) = url.port() {
            write!(f, ":{port}")?;
        }
        let path = if url.path() == "/" && !self.0.ends_with('/') { "" } else { url.path() };
        f.write_str(path)?;
        if url.query().is_some() { write!(f, "?{REDACTED}") } else { Ok(()) }
    }
}

impl fmt::Debug for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.to_string(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown_and_matches_itself_only() {
        let secret = Secret::from("correct horse battery");
        for shown in [format!("{secret}"), format!("{secret:?}"), format!("{:#?}", vec![Some(&secret)])] {
            assert!(!shown.contains("horse"), "{shown}");
        }
        assert!(secret.matches(b"correct horse battery"));
        for other in ["", "correct horse batter", "correct horse batteryx", "Correct horse battery"] {
            assert!(!secret.matches(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn an_address_is_shown_without_what_is_secret() {
        for (url, expected) in [
            ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
            ("redis://:p@sesame@host:1/2", "redis://host:1/2"),
            ("rediss://user:sesame@[::1]:1", "rediss://[::1]:1"),
            ("redis://user:ses%40ame@host", "redis://host"),
            ("redis://host?password=sesame", "redis://host?<redacted>"),
            ("redis+unix:///tmp/s?pass=sesame", "redis+unix:///tmp/s?<redacted>"),
            ("https://user:sesame@host/hook?key=sesame#sesame", "https://host/hook?<redacted>"),
            ("https://host/", "https://host/"),
            ("kafka://topic", "kafka://topic"),
            ("grpc://127.0.0.1:3119", "grpc://127.0.0.1:3119"),
            ("http://user:sesame@host:port/x", "<an address that cannot be read>"),
            ("host=h password=sesame", "<an address that cannot be read>"),
            ("password:sesame", "password:<redacted>"),
            ("sesame", "<an address that cannot be read>"),
            ("", "<an address that cannot be read>"),
        ] {
            let url = ServiceUrl::from(url);
            assert_eq!(url.to_string(), expected);
            assert_eq!(format!("{url:?}"), format!("{expected:?}"));
        }
    }
}
