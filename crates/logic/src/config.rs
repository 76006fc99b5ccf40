//! What an operator can set of logic, with the reasons for the defaults.
//!
//! Nothing here is read from files or the environment: the binary composes this from its own configuration.
//! The defaults are the values of goim's example file. Sizes are bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use goim_ports::{Operation, Secret, ServiceUrl, VersionTable};

use crate::route::config::RouteConfig;
use crate::timelines::send_rule::SendRule;
use crate::webhook::WebhookConfig;

/// Everything that logic can be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// What clients are told of the comets.
    pub node: NodeInfoConfig,
    /// How clients are told to come back after a loss.
    pub backoff: Backoff,
    /// Regions with the provinces that belong to them. Default none. goim never finds out a client's province, so
    /// that only a region with the province `""` is ever a client's.
    pub regions: BTreeMap<String, Vec<String>>,
    /// What is pushed.
    pub push: PushConfig,
    /// The HTTP API.
    pub http: HttpConfig,
    /// Who may connect.
    pub identity: IdentityConfig,
    /// Where packets of clients go.
    pub upstream: UpstreamConfig,
    /// Timelines, where some are kept.
    pub timelines: TimelinesConfig,
    /// What versions of packets mean; comets have the same.
    pub versions: VersionTable,
    /// How long a directory may take to answer. Default 3 s, below comet's handshake timeout. goim waits for ever.
    pub directory_timeout: Duration,
}

/// Who may connect.
#[derive(Debug, Clone, Default)]
pub struct IdentityConfig {
    /// How somebody is identified. Default [`IdentityMethod::Open`].
    pub method: IdentityMethod,
    /// With [`IdentityMethod::Open`]: clients from elsewhere than this machine are let in, whoever they say they are. Default false.
    pub allow_remote: bool,
    /// Without [`IdentityMethod::Open`]: a client may name its session where neither token nor backend does. Whoever knows the key of
    /// somebody else's session can then take it over. Default false.
    pub allow_client_keys: bool,
    /// On how many devices a member may be. Default [`DevicePolicy::All`].
    pub devices: DevicePolicy,
    /// Signed tokens.
    pub jwt: JwtConfig,
    /// Asking the backend.
    pub webhook: WebhookConfig,
}

/// Where packets of clients go that are not goim's own.
#[derive(Debug, Clone, Default)]
pub struct UpstreamConfig {
    /// Routes by operation. Default none: such packets are answered with an empty body, as in goim. Whoever puts logic together makes
    /// them with [`crate::Logic::route`].
    pub routes: Vec<RouteConfig>,
}

/// How timelines are read and written.
#[derive(Debug, Clone)]
pub struct TimelinesConfig {
    /// Messages of one answer at most. Default 200.
    pub reply_messages_max: usize,
    /// Bytes of bodies of one answer; a single larger message is given all the same. Default 256 KiB: what a phone takes in a second.
    pub reply_bytes_max: usize,
    /// How long the store may take. Default 5 s. What was to be kept then may or may not be.
    pub store_timeout: Duration,
    /// How long a request may wait for messages. Default 60 s, below what proxies cut off.
    pub long_poll_timeout: Duration,
    /// Streams and requests that may wait for messages at once. Of more, those that have messages to get are answered at once, the
    /// others refused with 503. Default 10,000, as `logic.http.connections_max`.
    pub long_polls_max: usize,
    /// Those of one member; more are refused with 429. Default 256: a stream is of one timeline. `None`: no limit.
    pub long_polls_per_member_max: Option<NonZeroU32>,
    /// Those from one address, or one /64 network of IPv6; more are refused with 429. Default none, as for connections to comets: whole
    /// offices and carriers share one.
    pub long_polls_per_address_max: Option<NonZeroU32>,
    /// Announcements that may be tried again at once; more are left, and found with the next sync. Default 1,000.
    pub notify_retries_max: usize,
    /// What members may send by themselves, and how fast.
    pub send: SendConfig,
    /// Decides whether a member may send what no rule allows it: to inboxes of others, to rooms. Default without an address: nobody may.
    pub send_webhook: WebhookConfig,
}

/// What members may send, and how fast. The quota of a member is for all of its sessions together, in each logic for itself: a member
/// whose sessions' packets come to several logics has it in each.
#[derive(Debug, Clone)]
pub struct SendConfig {
    /// Which operations a member may send to which of its rooms and to its own inbox. Default none: operation 4 to its own inbox, and
    /// nothing else.
    pub allowed: Vec<SendRule>,
    /// Messages a second of one member, on average. Default 10. Raising it costs the store an append for each.
    pub messages_per_second_max: NonZeroU32,
    /// Messages that may come at once before that applies. Default 20.
    pub messages_burst: NonZeroU32,
    /// Bytes of bodies a second of one member, on average. Default 64 KiB. It is what one member can fill a disk with.
    pub bytes_per_second_max: usize,
    /// Bytes that may come at once before that applies; a larger message is taken when nothing is owed. Default 256 KiB.
    pub bytes_burst: usize,
    /// Members whose sending is remembered: those who have sent lately. More share the quota of one. Default 65,536, about 5 MB.
    pub tracked_members_max: usize,
}

impl Default for SendConfig {
    fn default() -> Self {
        Self {
            allowed: Vec::new(),
            messages_per_second_max: NonZeroU32::MIN.saturating_add(9),
            messages_burst: NonZeroU32::MIN.saturating_add(19),
            bytes_per_second_max: 64 * 1024,
            bytes_burst: 256 * 1024,
            tracked_members_max: 65_536,
        }
    }
}

impl Default for TimelinesConfig {
    fn default() -> Self {
        Self {
            reply_messages_max: 200,
            reply_bytes_max: 256 * 1024,
            store_timeout: Duration::from_secs(5),
            long_poll_timeout: Duration::from_secs(60),
            long_polls_max: 10_000,
            long_polls_per_member_max: NonZeroU32::new(256),
            long_polls_per_address_max: None,
            notify_retries_max: 1_000,
            send: SendConfig::default(),
            send_webhook: WebhookConfig::default(),
        }
    }
}

/// On how many devices a member may be at once. Whoever comes last stays. Nobody in particular is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DevicePolicy {
    /// On any number.
    #[default]
    All,
    /// On one of each platform; a client that names none is of the platform without a name.
    OnePerPlatform,
    /// On one.
    Newest,
    /// On so many.
    AtMost(NonZeroU32),
}

/// How somebody is identified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IdentityMethod {
    /// goim's way: the client is believed. For development and trusted networks.
    #[default]
    Open,
    /// By a signed token.
    Jwt,
    /// By asking the backend.
    Webhook,
}

/// Signed tokens: JSON Web Tokens with HS256, RS256, ES256 or EdDSA (Ed25519). A key is taken for one algorithm only.
#[derive(Debug, Clone)]
pub struct JwtConfig {
    /// Shared secrets for HS256, each at least 32 bytes. Default none.
    pub secrets: Vec<Secret>,
    /// Files with public keys in PEM. Default none.
    pub public_keys: Vec<PathBuf>,
    /// Where the backend publishes its public keys, as a JSON Web Key Set. Default none.
    pub jwks_url: Option<ServiceUrl>,
    /// Keys from there are fetched again when they are older. Default 5 min.
    pub jwks_refresh_interval: Duration,
    /// And when a token names a key that is not there, but not sooner than this after the last time. Default 10 s.
    pub jwks_retry_pause: Duration,
    /// Whom a token must be for: one of these. Default none: for anybody, and not looked at.
    pub audience: Vec<String>,
    /// Whom a token must be from: one of these. Default none: from anybody who has a key.
    pub issuer: Vec<String>,
    /// The claim with the member's number. Default `mid`.
    pub mid_claim: String,
    /// Tokens without an end are taken. Default false.
    pub allow_no_exp: bool,
    /// How far the clocks of whoever signs and of this machine may differ. Default 5 s.
    pub leeway: Duration,
}

/// What clients are told of the comets.
#[derive(Debug, Clone)]
pub struct NodeInfoConfig {
    /// Where clients go when no comet is known. Default `conn.goim.io`.
    pub default_domain: String,
    /// Appended to a comet's name to make its domain. Default `.goim.io`.
    pub host_domain: String,
    /// Port of the comets' TCP listener. Default 3101.
    pub tcp_port: u16,
    /// Port of the comets' WebSocket listener. Default 3102.
    pub ws_port: u16,
    /// Port of the comets' WebSocket listener inside TLS. Default 3103.
    pub wss_port: u16,
    /// How often a client should send a heartbeat. Default 4 min. Clients are told whole seconds.
    pub heartbeat: Duration,
    /// How many heartbeats may be missing before a session is ended. Default 2: a session ends after 8 min of
    /// silence.
    pub heartbeat_max: u32,
    /// A comet in the client's own region counts this many times its weight. Default 1.6.
    pub region_weight: f64,
}

/// How clients are told to come back after a loss: after `base_delay`, then `factor` times longer each time up to
/// `max_delay`, each wait changed at random by up to `jitter` of itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// Longest wait, in seconds. Default 300.
    pub max_delay: i32,
    /// First wait, in seconds. Default 3.
    pub base_delay: i32,
    /// Growth from one wait to the next. Default 1.8.
    pub factor: f32,
    /// Share of a wait that is left to chance, 0 to 1. Default 0.3.
    pub jitter: f32,
}

/// What is pushed.
#[derive(Debug, Clone)]
pub struct PushConfig {
    /// Largest record, counted as goim's Kafka client counts: 26, the record's key, and goim's message around the
    /// body. Default 1,000,000, as in goim, so that a record fits into any Kafka that goim's did.
    pub record_bytes_max: usize,
    /// How long the push log may take for one record. Default 5 s. Then the push may or may not be
    /// in the log. Not less than the log's own deadlines: it knows more.
    pub append_timeout: Duration,
}

/// The HTTP API.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Largest request body. Default 4 MiB, well above `record_bytes_max`, so that goim's users see goim's error for
    /// a message that is a little too large.
    pub body_bytes_max: usize,
    /// Largest request head: request line and headers. Default 128 KiB. A request target ends at 65,534 bytes
    /// whatever this says.
    pub head_bytes_max: usize,
    /// Most headers in a request. Default 100.
    pub headers_max: usize,
    /// Keys of which a push request must present one. Default none: pushes are then taken from this machine only.
    pub api_keys: Vec<ApiKey>,
    /// Requests a second that one client address may make, on average; as many may come at once. An IPv6 client is
    /// its /64 network. `None` (default): no limit.
    pub requests_per_second_max: Option<NonZeroU32>,
    /// Until a request's head is there: from the start of a new connection, then from the first byte of each further
    /// head. Default 10 s.
    pub header_timeout: Duration,
    /// How long a connection may be silent between two requests. Default 5 min. goim never closes one.
    pub idle_timeout: Duration,
    /// From the end of a request's head to its answer. Default 30 s.
    pub request_timeout: Duration,
    /// Connections held at once. Default 10,000. More wait to be accepted.
    pub connections_max: usize,
    /// How long requests under way may take to end when the server stops. Default 10 s.
    pub shutdown_timeout: Duration,
}

/// A secret that lets its holder push.
pub type ApiKey = Secret;

/// A setting that logic cannot work with.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{key} is {value}, {expected}")]
pub struct ConfigError {
    /// The setting, with the path that it has in the configuration file.
    pub key: &'static str,
    /// What was given.
    pub value: String,
    /// What would be right.
    pub expected: &'static str,
}

/// Shortest API key that is taken, in bytes: below it, guessing over the network is realistic.
const API_KEY_BYTES_MIN: usize = 16;

/// Below what a comet waits for logic.
const ROUTE_TIMEOUT_MAX: Duration = Duration::from_secs(4);

/// Shortest secret for HS256 (RFC 7518, section 3.2): as long as what it makes.
const JWT_SECRET_BYTES_MIN: usize = 32;

impl Config {
    /// Checks the settings against each other and against what they mean.
    ///
    /// # Errors
    /// [`ConfigError`] names the first setting that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let above_zero = "must be above zero";
        let node = &self.node;
        let http = &self.http;
        refuse(node.heartbeat.is_zero(), "logic.node.heartbeat", &node.heartbeat, above_zero)?;
        refuse(node.heartbeat_max == 0, "logic.node.heartbeat_max", &0, above_zero)?;
        let gain = node.region_weight;
        refuse(!(gain.is_finite() && gain > 0.0), "logic.node.region_weight", &gain, above_zero)?;
        let Backoff { max_delay, base_delay, factor, jitter } = self.backoff;
        refuse(base_delay < 1, "logic.backoff.base_delay", &base_delay, "must be at least 1 s")?;
        refuse(
            max_delay < base_delay,
            "logic.backoff.max_delay",
            &max_delay,
            "must not be below logic.backoff.base_delay",
        )?;
        refuse(
            !(factor.is_finite() && factor >= 1.0),
            "logic.backoff.factor",
            &factor,
            "must be at least 1",
        )?;
        refuse(!(0.0..=1.0).contains(&jitter), "logic.backoff.jitter", &jitter, "must be from 0 to 1")?;
        let timelines = &self.timelines;
        refuse(timelines.reply_messages_max == 0, "logic.timelines.reply_messages_max", &0, above_zero)?;
        for (key, value) in [
            ("logic.timelines.send.bytes_per_second_max", timelines.send.bytes_per_second_max),
            ("logic.timelines.send.bytes_burst", timelines.send.bytes_burst),
            ("logic.timelines.send.tracked_members_max", timelines.send.tracked_members_max),
        ] {
            refuse(value == 0, key, &0, above_zero)?;
        }
        let hook = &timelines.send_webhook.url;
        refuse(
            !hook.is_empty() && !is_http(hook.reveal()),
            "logic.timelines.send_webhook.url",
            hook,
            "must begin with https:// or http://",
        )?;
        refuse(
            self.push.record_bytes_max < 1024,
            "logic.push.record_bytes_max",
            &self.push.record_bytes_max,
            "must be at least 1024 bytes",
        )?;
        refuse(
            http.body_bytes_max < self.push.record_bytes_max,
            "logic.http.body_bytes_max",
            &http.body_bytes_max,
            "must not be below logic.push.record_bytes_max",
        )?;
        refuse(
            http.head_bytes_max < 8192,
            "logic.http.head_bytes_max",
            &http.head_bytes_max,
            "must be at least 8192 bytes",
        )?;
        refuse(http.headers_max < 16, "logic.http.headers_max", &http.headers_max, "must be at least 16")?;
        refuse(http.connections_max == 0, "logic.http.connections_max", &0, above_zero)?;
        refuse(
            http.api_keys.iter().any(|key| key.reveal().len() < API_KEY_BYTES_MIN),
            "logic.http.api_keys",
            &"not shown",
            "each key must have at least 16 bytes",
        )?;
        for (key, value) in [
            ("logic.push.append_timeout", self.push.append_timeout),
            ("logic.directory_timeout", self.directory_timeout),
            ("logic.http.header_timeout", http.header_timeout),
            ("logic.http.idle_timeout", http.idle_timeout),
            ("logic.http.request_timeout", http.request_timeout),
        ] {
            refuse(value.is_zero(), key, &value, above_zero)?;
        }
        for (nth, route) in self.upstream.routes.iter().enumerate() {
            let (first, last) = (*route.operations.start(), *route.operations.end());
            let others = self.upstream.routes.iter().take(nth);
            refuse(
                others
                    .map(|other| &other.operations)
                    .any(|other| first <= *other.end() && *other.start() <= last),
                "logic.upstream.routes",
                &route.operations,
                "and another route has some of them: an operation goes one way",
            )?;
            refuse(
                first < Operation::BACKEND_MIN.0 && last > 0 && first <= 31 && last >= 2,
                "logic.upstream.routes",
                &route.operations,
                "and the operations up to 31 are goim's own; the backend's begin at 1000",
            )?;
            refuse(
                route.timeout.is_zero() || route.timeout > ROUTE_TIMEOUT_MAX,
                "logic.upstream.routes",
                &route.timeout,
                "must be above zero and at most 4 s: a comet waits 5 s for logic",
            )?;
        }
        self.identity.validate()
    }
}

impl IdentityConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let jwt = &self.jwt;
        refuse(
            jwt.secrets.iter().any(|secret| secret.reveal().len() < JWT_SECRET_BYTES_MIN),
            "logic.identity.jwt.secrets",
            &"not shown",
            "each secret must have at least 32 bytes",
        )?;
        let url = jwt.jwks_url.as_ref();
        refuse(
            url.is_some_and(|url| !is_http(url.reveal())),
            "logic.identity.jwt.jwks_url",
            &url.cloned().unwrap_or_default(),
            "must begin with https:// or http://",
        )?;
        let has_keys = !jwt.secrets.is_empty() || !jwt.public_keys.is_empty() || url.is_some();
        refuse(
            self.method == IdentityMethod::Jwt && !has_keys,
            "logic.identity.method",
            &"jwt",
            "and needs logic.identity.jwt.secrets, public_keys or jwks_url to check signatures with",
        )?;
        refuse(
            self.method == IdentityMethod::Webhook && !is_http(self.webhook.url.reveal()),
            "logic.identity.webhook.url",
            &self.webhook.url,
            "must begin with https:// or http://",
        )?;
        refuse(jwt.mid_claim.is_empty(), "logic.identity.jwt.mid_claim", &"", "must be the name of a claim")?;
        for (key, value) in [
            ("logic.identity.jwt.jwks_refresh_interval", jwt.jwks_refresh_interval),
            ("logic.identity.jwt.jwks_retry_pause", jwt.jwks_retry_pause),
            ("logic.identity.webhook.timeout", self.webhook.timeout),
        ] {
            refuse(value.is_zero(), key, &value, "must be above zero")?;
        }
        Ok(())
    }
}

/// True for the address of something that speaks HTTP.
pub(crate) fn is_http(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/')) && url.parse::<hyper::Uri>().is_ok()
}

fn refuse(
    wrong: bool,
    key: &'static str,
    value: &dyn fmt::Debug,
    expected: &'static str,
) -> Result<(), ConfigError> {
    if wrong { Err(ConfigError { key, value: format!("{value:?}"), expected }) } else { Ok(()) }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: NodeInfoConfig::default(),
            backoff: Backoff::default(),
            regions: BTreeMap::new(),
            push: PushConfig::default(),
            http: HttpConfig::default(),
            identity: IdentityConfig::default(),
            upstream: UpstreamConfig::default(),
            timelines: TimelinesConfig::default(),
            versions: VersionTable::default(),
            directory_timeout: Duration::from_secs(3),
        }
    }
}

impl Default for JwtConfig {
    fn default() -> Self {
        Self {
            secrets: Vec::new(),
            public_keys: Vec::new(),
            jwks_url: None,
            jwks_refresh_interval: Duration::from_secs(5 * 60),
            jwks_retry_pause: Duration::from_secs(10),
            audience: Vec::new(),
            issuer: Vec::new(),
            mid_claim: "mid".to_owned(),
            allow_no_exp: false,
            leeway: Duration::from_secs(5),
        }
    }
}

impl Default for NodeInfoConfig {
    fn default() -> Self {
        Self {
            default_domain: "conn.goim.io".to_owned(),
            host_domain: ".goim.io".to_owned(),
            tcp_port: 3101,
            ws_port: 3102,
            wss_port: 3103,
            heartbeat: Duration::from_secs(4 * 60),
            heartbeat_max: 2,
            region_weight: 1.6,
        }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self { max_delay: 300, base_delay: 3, factor: 1.8, jitter: 0.3 }
    }
}

impl Default for PushConfig {
    fn default() -> Self {
        Self { record_bytes_max: 1_000_000, append_timeout: Duration::from_secs(5) }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            body_bytes_max: 4 * 1024 * 1024,
            head_bytes_max: 128 * 1024,
            headers_max: 100,
            api_keys: Vec::new(),
            requests_per_second_max: None,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(5 * 60),
            request_timeout: Duration::from_secs(30),
            connections_max: 10_000,
            shutdown_timeout: Duration::from_secs(10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let check = |change: fn(&mut Config), key: &str| {
            let mut config = Config::default();
            change(&mut config);
            let error = config.validate().expect_err(key);
            assert_eq!(error.key, key);
            assert!(error.to_string().starts_with(key), "{error}");
        };
        check(|c| c.node.heartbeat = Duration::ZERO, "logic.node.heartbeat");
        check(|c| c.node.heartbeat_max = 0, "logic.node.heartbeat_max");
        check(|c| c.node.region_weight = f64::NAN, "logic.node.region_weight");
        check(|c| c.backoff.base_delay = 0, "logic.backoff.base_delay");
        check(|c| c.backoff.max_delay = 2, "logic.backoff.max_delay");
        check(|c| c.backoff.factor = 0.5, "logic.backoff.factor");
        check(|c| c.backoff.jitter = 1.3, "logic.backoff.jitter");
        check(|c| c.push.record_bytes_max = 10, "logic.push.record_bytes_max");
        check(|c| c.http.body_bytes_max = 999_999, "logic.http.body_bytes_max");
        check(|c| c.http.head_bytes_max = 1, "logic.http.head_bytes_max");
        check(|c| c.http.headers_max = 1, "logic.http.headers_max");
        check(|c| c.http.connections_max = 0, "logic.http.connections_max");
        check(|c| c.http.api_keys = vec![ApiKey::from("short".to_owned())], "logic.http.api_keys");
        check(|c| c.http.request_timeout = Duration::ZERO, "logic.http.request_timeout");
        check(|c| c.identity.method = IdentityMethod::Jwt, "logic.identity.method");
        check(|c| c.identity.method = IdentityMethod::Webhook, "logic.identity.webhook.url");
        check(|c| c.identity.jwt.jwks_url = Some("ftp://keys".into()), "logic.identity.jwt.jwks_url");
        check(
            |c| c.identity.jwt.secrets = vec![Secret::from("short".to_owned())],
            "logic.identity.jwt.secrets",
        );
        check(|c| c.identity.jwt.jwks_retry_pause = Duration::ZERO, "logic.identity.jwt.jwks_retry_pause");
        for ranges in [&[5..=9][..], &[1000..=2000, 2000..=2000], &[1500..=1500, 3000..=3001, 1000..=2000]] {
            let to = |range: &std::ops::RangeInclusive<i32>| {
                RouteConfig::new(range.clone(), "http://b".to_owned())
            };
            let mut config = Config::default();
            config.upstream.routes = ranges.iter().map(to).collect();
            assert_eq!(
                config.validate().map_err(|error| error.key),
                Err("logic.upstream.routes"),
                "{ranges:?}"
            );
        }
    }

    #[test]
    fn an_api_key_matches_itself_only_and_is_not_shown() {
        let key = ApiKey::from("correct horse battery".to_owned());
        assert!(key.matches(b"correct horse battery"));
        for other in ["", "correct horse batter", "correct horse batteryx", "Correct horse battery"] {
            assert!(!key.matches(other.as_bytes()), "{other}");
        }
        assert!(!format!("{key:?}").contains("horse"));
    }
}
