//! The settings of logic, with the reasons for the defaults, which are those of goim's example file
//! where it has them. Sizes are bytes.
//!
//! Nothing is read from files or the environment here: the binary composes this with its own
//! settings.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use goim_ports::{Operation, Secret, ServiceUrl, VersionTable};
use goim_settings::{Faults, SettingType, Value, settings, text_setting};

use crate::route::config::RouteConfig;
use crate::timelines::send_rule::SendRule;

const fn nonzero(number: u32) -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(number - 1)
}

settings! {
    /// Logic: who may connect, what is pushed to whom, which comet a client should use.
    #[derive(Debug, Clone)]
    pub struct Config {
        #[setting(group)]
        pub node: NodeInfoConfig,
        #[setting(group)]
        pub backoff: Backoff,
        #[setting(group)]
        pub push: PushConfig,
        #[setting(group)]
        pub upstream: UpstreamConfig,
        #[setting(group)]
        pub timelines: TimelinesConfig,
        #[setting(group)]
        pub http: HttpConfig,
        #[setting(group)]
        pub identity: IdentityConfig,
        /// The maximum time that a directory may take to answer. It must be below
        /// comet.limits.handshake_timeout. goim waits forever.
        #[setting(above_zero)]
        pub directory_timeout: Duration = Duration::from_secs(3),
        /// Regions with the provinces that belong to them, for example { sh = ["Shanghai",
        /// "Jiangsu"] }. goim never determines a client's province, so that only a region with the
        /// province "" ever matches a client.
        pub regions: BTreeMap<String, Vec<String>> = BTreeMap::new(),
        /// The meaning of packet versions; the same in all comets and logics.
        #[setting(derived)]
        pub versions: VersionTable = VersionTable::default(),
    }
    check = check_together;
}

settings! {
    /// What /goim/nodes/weighted returns to clients about the comets.
    #[derive(Debug, Clone)]
    pub struct NodeInfoConfig {
        /// The domain for clients when no comet is known.
        pub default_domain: String = "conn.goim.io".to_owned(),
        /// The suffix that makes a comet's name its domain.
        pub host_domain: String = ".goim.io".to_owned(),
        /// The port of the comets' TCP listener, as clients see it.
        pub tcp_port: u16 = 3101,
        /// The port of the comets' WebSocket listener, as clients see it.
        pub ws_port: u16 = 3102,
        /// The port of the comets' WebSocket listener inside TLS, as clients see it.
        pub wss_port: u16 = 3103,
        /// How often a client should send a heartbeat. Clients receive whole seconds.
        #[setting(above_zero)]
        pub heartbeat: Duration = Duration::from_secs(4 * 60),
        /// How many heartbeats may be missing before a session is closed. With the defaults a
        /// session is closed after 8 minutes of silence.
        #[setting(above_zero)]
        pub heartbeat_max: u32 = 2,
        /// The factor on the weight of a comet in the client's own region.
        #[setting(above_zero)]
        pub region_weight: f64 = 1.6,
    }
}

settings! {
    /// When clients should reconnect: after base_delay, then factor times longer each time up
    /// to max_delay, each delay randomised by up to jitter of itself.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct Backoff {
        /// The longest delay, in seconds.
        pub max_delay: i32 = 300,
        /// The first delay, in seconds.
        #[setting(at_least = 1)]
        pub base_delay: i32 = 3,
        /// The growth from one delay to the next.
        #[setting(at_least = 1.0)]
        pub factor: f32 = 1.8,
        /// The share of a delay that is random, 0 to 1.
        #[setting(range = 0.0..=1.0)]
        pub jitter: f32 = 0.3,
    }
    check = check_backoff;
}

settings! {
    /// Pushes.
    #[derive(Debug, Clone)]
    pub struct PushConfig {
        /// The maximum size of a record of the push log, counted as goim's Kafka client counts: 26,
        /// the record's key, and goim's message around the body. With the default, a record fits
        /// into every Kafka that goim's did.
        #[setting(bytes, at_least = 1024)]
        pub record_bytes_max: usize = 1_000_000,
        /// The maximum time that the push log may take for one record. After that the push may or
        /// may not be in it, and its publisher learns that. In a cluster it is at least
        /// push_log.append_timeout, kafka.delivery_timeout and 2s together, because Kafka's own
        /// answer is awaited.
        #[setting(above_zero)]
        pub append_timeout: Duration = Duration::from_secs(5),
    }
}

settings! {
    /// Packets of clients whose operation is not goim's own. Without a route they are answered with
    /// an empty body, as in goim.
    #[derive(Debug, Clone)]
    pub struct UpstreamConfig {
        /// The destination of packets, by operation: a list of tables with operations
        /// ("1000..1999", or one) and to (http://, https://, grpc://host:port with
        /// goim.backend.Backend, kafka://topic). Optional: timeout (2s, all attempts together),
        /// retries (0; only for calls that may be repeated), calls_max (256 concurrent calls),
        /// duplicates (a time within which a packet with the same sequence of the same member gets
        /// the first answer again; clients must not reuse sequences then) and secret (for HTTP,
        /// sent as `Authorization: Bearer`).
        #[setting(check = check_routes)]
        pub routes: Vec<RouteConfig> = Vec::new(),
    }
}

settings! {
    /// How timelines are read and written. They are stored where timelines.folder or
    /// timelines.postgres names.
    #[derive(Debug, Clone)]
    pub struct TimelinesConfig {
        #[setting(group)]
        pub send: SendConfig,
        /// Whether a member may send what logic.timelines.send.allowed does not cover: a POST with
        /// JSON: mid, to, in_room, operation (4, or from 1000 on), body_bytes. 200 and 204 permit
        /// it, 401 and 403 forbid it; any other status is no decision, and the client may retry.
        /// Without a URL it is forbidden.
        #[setting(group)]
        pub send_webhook: WebhookConfig,
        /// The maximum number of messages in one reply to a sync.
        #[setting(above_zero)]
        pub reply_messages_max: usize = 200,
        /// The maximum size of the bodies in one reply; a single larger message is returned all the
        /// same. The default is what a phone downloads in a second.
        #[setting(bytes)]
        pub reply_bytes_max: usize = 256 * 1024,
        /// The maximum time that the store may take. After that the message may or may not be
        /// stored.
        pub store_timeout: Duration = Duration::from_secs(5),
        /// How long an HTTP request may wait for messages. It must be below the timeout of proxies.
        pub long_poll_timeout: Duration = Duration::from_secs(60),
        /// The maximum number of streams and requests that wait for messages. Beyond it, those with
        /// messages to return are answered immediately, the others rejected with 503 and
        /// Retry-After. It should not exceed logic.http.connections_max.
        pub long_polls_max: usize = 10_000,
        /// The same for one member; more are rejected with 429. A stream covers one timeline.
        /// "none": no limit.
        pub long_polls_per_member_max: Option<NonZeroU32> = NonZeroU32::new(256),
        /// The same for one address, or one /64 network of IPv6; more are rejected with 429. Not
        /// set: no limit, because whole offices and carriers share one.
        #[setting(example = "1000")]
        pub long_polls_per_address_max: Option<NonZeroU32> = None,
        /// The maximum number of notifications of stored messages that are being retried, after the
        /// directory or the push log did not accept them. Further ones are dropped, and clients
        /// find the messages with their next sync.
        pub notify_retries_max: usize = 1_000,
    }
}

settings! {
    /// What members may send themselves, and how fast. A member's quota covers all its sessions
    /// together, in each logic separately. Beyond it a negotiated client receives code 3113 with
    /// the time to wait.
    #[derive(Debug, Clone)]
    pub struct SendConfig {
        /// The operations that a member may send to rooms that its session is in, and to its own
        /// inbox, such as ["live://*: 4, 1000..1999", "mid://*: 1000"]: a name or a prefix with *,
        /// then 4 and ranges from 1000 on. Operation 4 to the member's own inbox is always allowed,
        /// the operations of the protocol never. In text, rules are separated by ;.
        pub allowed: Vec<SendRule> = Vec::new(),
        /// The maximum rate of messages of one member, on average. Each message costs the store an
        /// append.
        pub messages_per_second_max: NonZeroU32 = nonzero(10),
        /// The number of messages that may be sent at once before that applies.
        pub messages_burst: NonZeroU32 = nonzero(20),
        /// The maximum rate of bytes of one member, on average. It bounds how fast one member can
        /// fill a disk.
        #[setting(bytes, above_zero)]
        pub bytes_per_second_max: usize = 64 * 1024,
        /// The number of bytes that may be sent at once before that applies; a larger message is
        /// accepted when the member's quota is unused.
        #[setting(bytes, above_zero)]
        pub bytes_burst: usize = 256 * 1024,
        /// The number of members, of those that sent last, whose quotas are tracked (80 B each).
        /// Further members share one quota.
        #[setting(above_zero)]
        pub tracked_members_max: usize = 65_536,
    }
}

settings! {
    /// A webhook of the backend.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct WebhookConfig {
        /// The URL: https:// or http://.
        #[setting(check = check_optional_url)]
        pub url: ServiceUrl = ServiceUrl::default(),
        /// Sent as `Authorization: Bearer`, so that the backend can authenticate the caller.
        #[setting(secret, example = "the-secret-of-this-hook")]
        pub secret: Option<Secret> = None,
        /// The maximum time from the request to the last byte of the response.
        #[setting(above_zero)]
        pub timeout: Duration = Duration::from_secs(2),
        /// The maximum number of concurrent calls. Further ones wait for `timeout` at most.
        pub calls_max: usize = 256,
    }
}

settings! {
    /// The HTTP API. Its address is http.listen.
    #[derive(Debug, Clone)]
    pub struct HttpConfig {
        /// The maximum size of a request body. The default is well above
        /// logic.push.record_bytes_max, so that goim's users see goim's error for a message that is
        /// slightly too large.
        #[setting(bytes)]
        pub body_bytes_max: usize = 4 * 1024 * 1024,
        /// The maximum size of a request head: request line and headers. A request target ends at
        /// 65,534 bytes in any case.
        #[setting(bytes, at_least = 8192)]
        pub head_bytes_max: usize = 128 * 1024,
        /// The maximum number of headers in a request.
        #[setting(at_least = 16)]
        pub headers_max: usize = 100,
        /// API keys. A push request must present one of them; each has at least 16 bytes. Empty:
        /// pushes are accepted from this machine only. The environment is a better place than a
        /// file: GOIM_LOGIC_HTTP_API_KEYS.
        #[setting(secret, check = check_api_keys)]
        pub api_keys: Vec<ApiKey> = Vec::new(),
        /// The maximum rate of requests of one client address, on average; as many may arrive at
        /// once. An IPv6 client is its /64 network. Not set: no limit.
        #[setting(example = "1000")]
        pub requests_per_second_max: Option<NonZeroU32> = None,
        /// The maximum time until a request's head is received: from the start of a new connection,
        /// then from the first byte of each further head.
        #[setting(above_zero)]
        pub header_timeout: Duration = Duration::from_secs(10),
        /// The maximum time that a connection may be idle between two requests. goim never closes
        /// one.
        #[setting(above_zero)]
        pub idle_timeout: Duration = Duration::from_secs(5 * 60),
        /// The maximum time from the end of a request's head to its response.
        #[setting(above_zero)]
        pub request_timeout: Duration = Duration::from_secs(30),
        /// The maximum number of open connections. Further ones wait to be accepted.
        #[setting(above_zero)]
        pub connections_max: usize = 10_000,
        /// The maximum time that requests in flight may take to end when the server stops.
        pub shutdown_timeout: Duration = Duration::from_secs(10),
    }
}

settings! {
    /// Who may connect. "open" trusts the clients, as goim does: for development and trusted
    /// networks. "jwt" accepts tokens signed with a known key. "webhook" asks the backend.
    #[derive(Debug, Clone)]
    pub struct IdentityConfig {
        #[setting(group)]
        pub jwt: JwtConfig,
        /// The backend receives a POST with JSON: token, mid, key, room_id, rooms, platform,
        /// protover, ip, cookie, user_agent, server. It answers 200 with JSON: mid (required), key,
        /// rooms, rooms_allowed, accepts, expires_at (seconds since 1970); or 401 or 403, or
        /// {"refuse": "why"}. Any other answer is no decision, and the client may reconnect.
        /// timeout must be less than logic.directory_timeout.
        #[setting(group)]
        pub webhook: WebhookConfig,
        /// The method: "open", "jwt" or "webhook".
        pub method: IdentityMethod = IdentityMethod::Open,
        /// With "open": accepts clients of other machines, whatever identity they claim. If false,
        /// `goim serve` refuses to listen to others with "open".
        pub allow_remote: bool = false,
        /// Without "open": lets a client choose the key of its session where neither its token nor
        /// the backend does. Anyone who knows the key of another session can then take it over.
        pub allow_client_keys: bool = false,
        /// The maximum number of devices of a member: "all", "one-per-platform", "newest" (one), or
        /// "at-most 3". The newest connection wins; a negotiated client that is disconnected
        /// receives code 3506. Anonymous clients are not limited.
        pub devices: DevicePolicy = DevicePolicy::All,
    }
    check = check_identity;
}

settings! {
    /// JSON Web Tokens with HS256, RS256, ES256 or EdDSA, in the member `token` of the auth packet.
    /// Claims: mid (required), exp, nbf, aud, iss, key, rooms, rooms_allowed, accepts. A key is
    /// used for one algorithm only.
    #[derive(Debug, Clone)]
    pub struct JwtConfig {
        /// Shared secrets for HS256, each at least 32 bytes; several while one replaces another.
        /// The environment is a better place than a file: GOIM_LOGIC_IDENTITY_JWT_SECRETS.
        #[setting(secret, check = check_jwt_secrets)]
        pub secrets: Vec<Secret> = Vec::new(),
        /// Files with public keys in PEM: RSA (RS256), P-256 (ES256) or Ed25519 (EdDSA).
        pub public_keys: Vec<PathBuf> = Vec::new(),
        /// The URL where the public keys are published, as a JSON Web Key Set. Keys are selected by
        /// their id (kid); a new one is fetched when a token names it.
        #[setting(example = "https://login.example.com/.well-known/jwks.json", check = check_jwks_url)]
        pub jwks_url: Option<ServiceUrl> = None,
        /// The age at which fetched keys are fetched again. Known keys stay valid while the URL
        /// does not answer.
        #[setting(above_zero)]
        pub jwks_refresh_interval: Duration = Duration::from_secs(5 * 60),
        /// The minimum time between two fetches, whatever key ids tokens name.
        #[setting(above_zero)]
        pub jwks_retry_pause: Duration = Duration::from_secs(10),
        /// The accepted audiences (aud). Empty: not checked.
        pub audience: Vec<String> = Vec::new(),
        /// The accepted issuers (iss). Empty: every issuer with a known key.
        pub issuer: Vec<String> = Vec::new(),
        /// The claim with the member's number: an integer, or a text that is one.
        #[setting(check = check_claim)]
        pub mid_claim: String = "mid".to_owned(),
        /// Accepts tokens without an expiry (exp).
        pub allow_no_exp: bool = false,
        /// The tolerated clock skew between the issuer and this machine.
        pub leeway: Duration = Duration::from_secs(5),
    }
}

/// How many devices a member may have online. The newest connection wins. Anonymous clients are not
/// limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DevicePolicy {
    /// Any number.
    #[default]
    All,
    /// One per platform; clients that name no platform share one.
    OnePerPlatform,
    /// One.
    Newest,
    /// This number.
    AtMost(NonZeroU32),
}

/// How clients are identified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IdentityMethod {
    /// As goim does: the client is trusted. For development and trusted networks.
    #[default]
    Open,
    /// By a signed token.
    Jwt,
    /// By a webhook of the backend.
    Webhook,
}

/// A secret that permits its holder to push.
pub type ApiKey = Secret;

impl SettingType for IdentityMethod {
    fn expected() -> String {
        "`open`, `jwt` or `webhook`".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        Some(match text {
            "open" => Self::Open,
            "jwt" => Self::Jwt,
            "webhook" => Self::Webhook,
            _ => return None,
        })
    }

    fn to_value(&self) -> Option<Value> {
        let name = match self {
            Self::Open => "open",
            Self::Jwt => "jwt",
            Self::Webhook => "webhook",
        };
        Some(name.into())
    }
}

impl SettingType for DevicePolicy {
    fn expected() -> String {
        "`all`, `one-per-platform`, `newest`, or `at-most` and a number, such as `at-most 3`".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        Some(match text {
            "all" => Self::All,
            "one-per-platform" => Self::OnePerPlatform,
            "newest" => Self::Newest,
            _ => Self::AtMost(text.strip_prefix("at-most ")?.trim().parse().ok()?),
        })
    }

    fn to_value(&self) -> Option<Value> {
        let text = match self {
            Self::All => "all".to_owned(),
            Self::OnePerPlatform => "one-per-platform".to_owned(),
            Self::Newest => "newest".to_owned(),
            Self::AtMost(most) => format!("at-most {most}"),
        };
        Some(text.into())
    }
}

text_setting! {
    SendRule,
    "a rule such as `live://*: 4, 1000..1999`: a timeline or a prefix with *, then 4 and operations from 1000 on",
    separator ';';
}

/// The URL schemes of a route.
const ROUTE_SCHEMES: [&str; 4] = ["http://", "https://", "grpc://", "kafka://"];

/// Written as a table.
impl SettingType for RouteConfig {
    const SENSITIVE: bool = true;

    fn expected() -> String {
        "a table such as `{ operations = \"1000..1999\", to = \"http://127.0.0.1:8000/chat\" }`, optionally with timeout, \
         retries, calls_max, duplicates and secret"
            .to_owned()
    }

    fn from_text(_text: &str) -> Option<Self> {
        None
    }

    fn from_value(value: &Value) -> Option<Self> {
        let table = value.as_table()?;
        let operations = match table.get("operations")? {
            Value::Integer(one) => one.to_string(),
            other => other.as_text()?.to_owned(),
        };
        let (first, last) = operations.split_once("..").unwrap_or((&operations, &operations));
        let operations: RangeInclusive<i32> = first.trim().parse().ok()?..=last.trim().parse().ok()?;
        let to = table.get("to")?.as_text()?;
        let mut schemes = ROUTE_SCHEMES.iter().filter_map(|scheme| to.strip_prefix(scheme));
        if operations.is_empty() || !schemes.any(|rest| !rest.is_empty()) {
            return None;
        }
        let mut route = Self::new(operations, to.to_owned());
        for (name, value) in table {
            match name.as_str() {
                "operations" | "to" => {}
                "timeout" => route.timeout = Duration::from_value(value)?,
                "retries" => route.retries = u32::from_value(value)?,
                "calls_max" => route.calls_max = usize::from_value(value)?,
                "duplicates" => route.duplicates = Option::from_value(value)?,
                "secret" => route.secret = Option::from_value(value)?,
                _ => return None,
            }
        }
        Some(route)
    }

    fn to_value(&self) -> Option<Value> {
        let (first, last) = (self.operations.start(), self.operations.end());
        let operations = if first == last { first.to_string() } else { format!("{first}..{last}") };
        let entries = [
            ("operations", Some(operations.into())),
            ("to", Some(self.to.to_string().into())),
            ("timeout", self.timeout.to_value()),
            ("retries", self.retries.to_value()),
            ("calls_max", self.calls_max.to_value()),
            ("duplicates", self.duplicates.to_value()),
            ("secret", self.secret.to_value()),
        ];
        let set = entries.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Some(Value::Table(set.collect()))
    }
}

/// The minimum length of an API key, in bytes: below it, guessing over the network is realistic.
const API_KEY_BYTES_MIN: usize = 16;

/// Less than the time that a comet waits for logic.
const ROUTE_TIMEOUT_MAX: Duration = Duration::from_secs(4);

/// The minimum length of a secret for HS256 (RFC 7518, section 3.2): that of the hash.
const JWT_SECRET_BYTES_MIN: usize = 32;

const URL_EXPECTED: &str = "must begin with https:// or http://";

fn check_together(config: &Config, faults: &mut Faults) {
    faults.add_if(
        config.http.body_bytes_max < config.push.record_bytes_max,
        "http.body_bytes_max",
        "must not be less than logic.push.record_bytes_max",
    );
    faults.add_if(
        config.identity.webhook.timeout >= config.directory_timeout,
        "identity.webhook.timeout",
        "must be less than logic.directory_timeout, which ends the wait for it",
    );
}

fn check_backoff(backoff: &Backoff, faults: &mut Faults) {
    let is_short = backoff.max_delay < backoff.base_delay;
    faults.add_if(is_short, "max_delay", "must not be less than logic.backoff.base_delay");
}

fn check_routes(routes: &[RouteConfig]) -> Result<(), String> {
    for (nth, route) in routes.iter().enumerate() {
        let (first, last) = (*route.operations.start(), *route.operations.end());
        let mut earlier = routes.iter().take(nth).map(|other| &other.operations);
        if earlier.any(|other| first <= *other.end() && *other.start() <= last) {
            return Err(format!(
                "two routes have operations of {first}..{last}: an operation needs exactly one"
            ));
        }
        if first < Operation::BACKEND_MIN.0 && last > 0 && first <= 31 && last >= 2 {
            return Err(format!(
                "{first}..{last} includes operations up to 31, which are goim's own: those of the backend begin at 1000"
            ));
        }
        if route.timeout.is_zero() || route.timeout > ROUTE_TIMEOUT_MAX {
            return Err(format!(
                "the timeout {:?} must be greater than zero and at most 4s: a comet waits 5s for logic",
                route.timeout
            ));
        }
    }
    Ok(())
}

fn check_identity(identity: &IdentityConfig, faults: &mut Faults) {
    let jwt = &identity.jwt;
    let has_keys = !jwt.secrets.is_empty() || !jwt.public_keys.is_empty() || jwt.jwks_url.is_some();
    faults.add_if(
        identity.method == IdentityMethod::Jwt && !has_keys,
        "method",
        "needs logic.identity.jwt.secrets, public_keys or jwks_url to verify signatures with",
    );
    faults.add_if(
        identity.method == IdentityMethod::Webhook && identity.webhook.url.is_empty(),
        "webhook.url",
        URL_EXPECTED,
    );
}

fn check_optional_url(url: &ServiceUrl) -> Result<(), &'static str> {
    if url.is_empty() || is_http(url.reveal()) { Ok(()) } else { Err(URL_EXPECTED) }
}

fn check_jwks_url(url: &Option<ServiceUrl>) -> Result<(), &'static str> {
    let is_good = url.as_ref().is_none_or(|url| is_http(url.reveal()));
    if is_good { Ok(()) } else { Err(URL_EXPECTED) }
}

fn check_claim(name: &str) -> Result<(), &'static str> {
    if name.is_empty() { Err("must be the name of a claim") } else { Ok(()) }
}

fn check_api_keys(keys: &[ApiKey]) -> Result<(), String> {
    check_lengths(keys, API_KEY_BYTES_MIN)
}

fn check_jwt_secrets(secrets: &[Secret]) -> Result<(), String> {
    check_lengths(secrets, JWT_SECRET_BYTES_MIN)
}

fn check_lengths(secrets: &[Secret], min: usize) -> Result<(), String> {
    let is_good = secrets.iter().all(|secret| secret.reveal().len() >= min);
    if is_good { Ok(()) } else { Err(format!("must have at least {min} bytes each")) }
}

/// True for an address that HTTP can reach.
pub(crate) fn is_http(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/')) && url.parse::<hyper::Uri>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The settings that are wrong.
    fn faults(config: &Config) -> Vec<String> {
        Faults::of("logic", config).into_iter().map(|fault| fault.key).collect()
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(faults(&Config::default()), [""; 0]);
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let check = |change: fn(&mut Config), key: &str| {
            let mut config = Config::default();
            change(&mut config);
            assert_eq!(faults(&config), [key]);
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
            assert_eq!(faults(&config), ["logic.upstream.routes"], "{ranges:?}");
        }
    }

    #[test]
    fn every_fault_is_reported() {
        let mut config = Config::default();
        config.node.heartbeat_max = 0;
        config.http.headers_max = 1;
        config.identity.method = IdentityMethod::Jwt;
        assert_eq!(
            faults(&config),
            ["logic.node.heartbeat_max", "logic.http.headers_max", "logic.identity.method"]
        );
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
