//! Authentication: the body of the auth packet, and the provider of new tokens.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use goim_wire::{Operation, Version};
use serde_json::{Map, Value};

use crate::timelines::ResumeFields;

/// A credential. `Debug` shows only its length, so that it appears in no log.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Bytes);

impl Token {
    /// Wraps the bytes of a credential.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({} bytes)", self.0.len())
    }
}

impl<T: Into<Bytes>> From<T> for Token {
    fn from(bytes: T) -> Self {
        Self::new(bytes)
    }
}

/// goim's token: a JSON object with the member, the rooms and the subscriptions of a session.
///
/// ```
/// use goim_client::Identity;
///
/// let identity = Identity::new(123).key("phone-1").room("live://1000").accepts([1000, 1001]);
/// # let _ = identity;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// The member's id; zero or less is anonymous.
    pub mid: i64,
    /// The key of this session, for pushes to keys. A second session with the same key replaces the
    /// first. Default: the server generates one.
    pub key: Option<String>,
    /// The first room, as `type://room`. Default: none.
    pub room_id: Option<String>,
    /// The platform of the client, free text. Default: none.
    pub platform: Option<String>,
    /// The operations to subscribe to, for pushes to keys, to members and to all. Default: none.
    pub accepts: Vec<Operation>,
    /// The highest packet version that the application reads. Default 1. `None` makes the server
    /// treat this client as a goim v2 client: no error replies, no disconnect notices, no
    /// timelines.
    pub protover: Option<Version>,
    /// Further rooms to be in from the start. Default: none. Ignored by a goim v2 server.
    pub rooms: Vec<String>,
    /// A credential, if the server checks one. It must be text, because it is sent in JSON.
    /// Default: none.
    pub token: Option<Token>,
}

impl Identity {
    /// Returns the identity of member `mid`, with defaults for everything else.
    #[must_use]
    pub fn new(mid: i64) -> Self {
        Self {
            mid,
            key: None,
            room_id: None,
            platform: None,
            accepts: Vec::new(),
            protover: Some(Version::GOIM),
            rooms: Vec::new(),
            token: None,
        }
    }

    /// Sets the key of the session.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the first room, as `type://room`.
    #[must_use]
    pub fn room(mut self, room: impl Into<String>) -> Self {
        self.room_id = Some(room.into());
        self
    }

    /// Sets the platform.
    #[must_use]
    pub fn platform(mut self, platform: impl Into<String>) -> Self {
        self.platform = Some(platform.into());
        self
    }

    /// Sets the operations to subscribe to.
    #[must_use]
    pub fn accepts(mut self, operations: impl IntoIterator<Item = i32>) -> Self {
        self.accepts = operations.into_iter().map(Operation).collect();
        self
    }

    /// Sets the highest packet version that the application reads; see
    /// [`crate::ClientConfig::versions`]. With 2 or 3 the server compresses large messages.
    #[must_use]
    pub fn protover(mut self, version: Version) -> Self {
        self.protover = Some(version);
        self
    }

    /// Sets further rooms to be in from the start.
    #[must_use]
    pub fn rooms(mut self, rooms: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.rooms = rooms.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the credential.
    #[must_use]
    pub fn token(mut self, token: impl Into<Token>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Returns the JSON text, with the fields in goim v2's order.
    pub(crate) fn to_json(&self, resume: Option<&ResumeFields>) -> Vec<u8> {
        let mut members = Map::new();
        members.insert("mid".to_owned(), self.mid.into());
        for (name, text) in [("key", &self.key), ("room_id", &self.room_id), ("platform", &self.platform)] {
            if let Some(text) = text {
                members.insert(name.to_owned(), text.as_str().into());
            }
        }
        let accepts: Vec<Value> = self.accepts.iter().map(|operation| operation.0.into()).collect();
        members.insert("accepts".to_owned(), accepts.into());
        if let Some(protover) = self.protover {
            members.insert("protover".to_owned(), protover.0.into());
        }
        if !self.rooms.is_empty() {
            let rooms: Vec<Value> = self.rooms.iter().map(|room| room.as_str().into()).collect();
            members.insert("rooms".to_owned(), rooms.into());
        }
        if let Some(ResumeFields { positions, notify_only, .. }) = resume {
            members.insert("resume".to_owned(), positions.clone());
            if *notify_only {
                members.insert("bare".to_owned(), true.into());
            }
        }
        if let Some(token) = &self.token {
            members.insert("token".to_owned(), String::from_utf8_lossy(token.expose()).into());
        }
        Value::Object(members).to_string().into_bytes()
    }
}

/// The body of the auth packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthBody {
    /// goim's JSON object. The present room, rooms, subscriptions and positions are written into it
    /// at every connection, so that nothing is missed after the auth reply.
    Identity(Identity),
    /// Any bytes, sent unchanged. Rooms and subscriptions that the application has changed are
    /// restored by requests after the auth reply.
    Raw(Token),
}

impl From<Identity> for AuthBody {
    fn from(identity: Identity) -> Self {
        Self::Identity(identity)
    }
}

impl From<Token> for AuthBody {
    fn from(token: Token) -> Self {
        Self::Raw(token)
    }
}

/// Why a [`TokenProvider`] is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenReason {
    /// For the first connection.
    First,
    /// The server no longer accepts the last token, or it closed while checking it.
    Refresh,
}

/// The error of a [`TokenProvider`]. It reaches the application unchanged.
pub type ProviderError = Box<dyn Error + Send + Sync>;

type ProviderFuture = Pin<Box<dyn Future<Output = Result<AuthBody, ProviderError>> + Send>>;

/// A function of the application that returns the body of the auth packet, for example from its
/// login service.
///
/// ```
/// use goim_client::{Auth, Identity, TokenProvider};
///
/// let provider = TokenProvider::new(|_reason| async {
///     let credential = "fetched over HTTPS";
///     Ok(Identity::new(1).token(credential).into())
/// });
/// let auth = Auth::Provider(provider);
/// # let _ = auth;
/// ```
#[derive(Clone)]
pub struct TokenProvider(Arc<dyn Fn(TokenReason) -> ProviderFuture + Send + Sync>);

impl TokenProvider {
    /// Calls `provide` before the first connection and whenever a new token is needed. If it fails,
    /// the client tries again after a backoff.
    ///
    /// # Cancel safety
    /// The future is dropped when the client is closed.
    pub fn new<F, R>(provide: F) -> Self
    where
        F: Fn(TokenReason) -> R + Send + Sync + 'static,
        R: Future<Output = Result<AuthBody, ProviderError>> + Send + 'static,
    {
        Self(Arc::new(move |reason| Box::pin(provide(reason))))
    }

    pub(crate) async fn provide(&self, reason: TokenReason) -> Result<AuthBody, ProviderError> {
        (self.0)(reason).await
    }
}

impl fmt::Debug for TokenProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenProvider")
    }
}

/// How the client authenticates.
#[derive(Debug, Clone)]
pub enum Auth {
    /// The same body at every connection. If the server asks for a new token, the client stops.
    Fixed(AuthBody),
    /// A body from the provider, cached until the server asks for a new token.
    Provider(TokenProvider),
}

impl From<Identity> for Auth {
    fn from(identity: Identity) -> Self {
        Self::Fixed(identity.into())
    }
}

impl From<Token> for Auth {
    fn from(token: Token) -> Self {
        Self::Fixed(token.into())
    }
}

impl From<TokenProvider> for Auth {
    fn from(provider: TokenProvider) -> Self {
        Self::Provider(provider)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_goims_json() {
        let check = |identity: &Identity, expect: &str| {
            assert_eq!(String::from_utf8(identity.to_json(None)).unwrap(), expect);
        };
        let mut identity = Identity::new(7);
        check(&identity, r#"{"mid":7,"accepts":[],"protover":1}"#);
        identity.protover = None;
        let identity = identity.key("k").room("live://1").platform("web").accepts([1000, -1]).token("t\"");
        let expect =
            r#"{"mid":7,"key":"k","room_id":"live://1","platform":"web","accepts":[1000,-1],"token":"t\""}"#;
        check(&identity, expect);
    }

    #[test]
    fn credentials_do_not_appear_in_debug_output() {
        let identity = Identity::new(7).token("secret");
        assert!(!format!("{identity:?}").contains("secret"));
        assert!(!format!("{:?}", Auth::from(Token::new("secret"))).contains("secret"));
    }
}
