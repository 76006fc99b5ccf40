//! Checks of a whole configuration, before a port opens: values that must fit together across
//! crates, files that must be readable, and what one role needs. What concerns one crate is checked
//! beside its settings.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use goim_comet::ListenerKind;
use goim_logic::IdentityMethod;
use goim_ports::{ServiceUrl, VersionRow, VersionTable};
use goim_settings::Faults;

use crate::Config;
use crate::config::Directory;
use crate::settings::{ConfigError, nearest, shown};

/// What a configuration is to be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Not known: only what every role needs is checked.
    Any,
    /// The whole system in one process.
    Serve,
    /// A comet of a cluster.
    Comet,
    /// A logic of a cluster.
    Logic,
    /// A job of a cluster.
    Job,
}

impl Config {
    /// Checks whether a process can run with this for `purpose`.
    ///
    /// # Errors
    /// [`ConfigError::Faults`] with everything that is wrong.
    pub fn check(&self, purpose: Purpose) -> Result<(), ConfigError> {
        let faults: Vec<_> =
            faults_of(self, purpose).into_iter().map(|fault| shown(self, fault, |_| None)).collect();
        if faults.is_empty() { Ok(()) } else { Err(ConfigError::Faults(faults)) }
    }

    /// Every address to listen on, with its setting.
    pub(crate) fn listeners(&self) -> Vec<(String, SocketAddr)> {
        let is_open = |kind: ListenerKind| !kind.is_tls() || self.comet.tls.is_set();
        let clients = self.comet.listen.addrs.iter().filter(|(kind, _)| is_open(*kind));
        let clients =
            clients.flat_map(|(kind, addrs)| addrs.iter().map(move |addr| (client_setting(kind), *addr)));
        let others = [
            ("http.listen", Some(self.http.listen)),
            ("rpc.comet", self.rpc.comet),
            ("rpc.logic", self.rpc.logic),
        ];
        let others = others.into_iter().filter_map(|(key, addr)| Some((key.to_owned(), addr?)));
        clients.chain(others).collect()
    }
}

/// The setting with the addresses of one kind of listener.
pub(crate) fn client_setting(kind: ListenerKind) -> String {
    format!("comet.listen.{}", kind.name())
}

/// Everything that is wrong with a configuration for `purpose`.
pub(crate) fn faults_of(config: &Config, purpose: Purpose) -> Vec<goim_settings::Fault> {
    let mut faults = Faults::default();
    faults.group("", config);
    files(config, &mut faults);
    match purpose {
        Purpose::Any => {}
        Purpose::Serve => open_identity(config, &mut faults),
        Purpose::Comet => for_comet(config, &mut faults),
        Purpose::Logic => for_logic(config, &mut faults),
        Purpose::Job => listed_comets(config, &mut faults),
    }
    faults.into_vec()
}

/// What concerns several groups; part of [`Config`]'s own checks.
pub(crate) fn combinations(config: &Config, faults: &mut Faults) {
    faults.add_if(
        config.timelines.folder.is_some() && config.timelines.postgres.is_some(),
        "timelines.folder",
        "must not be set together with timelines.postgres: messages are stored in one of them",
    );
    faults.add_if(
        config.push_log.append_timeout >= config.logic.push.append_timeout,
        "push_log.append_timeout",
        "must be less than logic.push.append_timeout, so that a full log is reported as such",
    );
    addresses(config, faults);
    redis(config, faults);
}

fn addresses(config: &Config, faults: &mut Faults) {
    let all = config.listeners();
    for (at, (key, addr)) in all.iter().enumerate() {
        for (other_key, other) in all.iter().skip(at + 1) {
            faults.add_if(
                collide(*addr, *other),
                key,
                format!("conflicts with {other_key}, which also uses {addr}: change one of the ports"),
            );
        }
    }
}

/// True if the two addresses cannot be listened on at the same time.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let everywhere = |ip: IpAddr| ip.is_unspecified();
    let overlap = one.ip() == other.ip()
        || one.is_ipv4() == other.is_ipv4() && (everywhere(one.ip()) || everywhere(other.ip()));
    one.port() != 0 && one.port() == other.port() && overlap
}

fn redis(config: &Config, faults: &mut Faults) {
    let redis = &config.redis;
    faults.add_if(
        redis.cert_file.is_some() != redis.key_file.is_some(),
        if redis.cert_file.is_some() { "redis.cert_file" } else { "redis.key_file" },
        "redis.cert_file and redis.key_file must be set together",
    );
    let files = [
        ("redis.ca_file", &redis.ca_file),
        ("redis.cert_file", &redis.cert_file),
        ("redis.key_file", &redis.key_file),
    ];
    let mut urls = redis.cluster.iter().chain(&redis.sentinels).chain([&redis.url]);
    if let Some((key, _)) = files.iter().find(|(_, path)| path.is_some()) {
        faults.add_if(
            !urls.any(|url| url.reveal().starts_with("rediss:")),
            key,
            "is for TLS, but none of redis.url, redis.cluster and redis.sentinels begins with rediss://",
        );
    }
}

/// Files that are named must be readable, and the certificate must match its key.
fn files(config: &Config, faults: &mut Faults) {
    let (redis, tls) = (&config.redis, &config.comet.tls);
    for (key, path) in [
        ("redis.ca_file", &redis.ca_file),
        ("redis.cert_file", &redis.cert_file),
        ("redis.key_file", &redis.key_file),
    ] {
        is_readable(key, path.as_deref(), faults);
    }
    let both = is_readable("comet.tls.cert_file", tls.cert_file.as_deref(), faults)
        & is_readable("comet.tls.key_file", tls.key_file.as_deref(), faults);
    if both {
        faults.add_error("comet.tls.cert_file", tls.check_files());
    }
}

/// True if the file is named and can be read.
fn is_readable(key: &str, path: Option<&Path>, faults: &mut Faults) -> bool {
    let Some(path) = path else { return false };
    let result = std::fs::read(path);
    faults.add_error(key, result.as_ref().map(drop).map_err(|error| format!("cannot be read: {error}")));
    result.is_ok()
}

/// With open identity, only this machine may connect unless the operator permits others.
fn open_identity(config: &Config, faults: &mut Faults) {
    let identity = &config.logic.identity;
    if identity.method != IdentityMethod::Open || identity.allow_remote {
        return;
    }
    let is_public =
        |(key, addr): &(String, SocketAddr)| key.starts_with("comet.listen.") && !addr.ip().is_loopback();
    if let Some((key, addr)) = config.listeners().into_iter().find(is_public) {
        faults.add(
            &key,
            format!(
                "{addr} accepts clients of other machines, and logic.identity.method = \"open\" trusts any identity \
                 that they claim: choose \"jwt\" or \"webhook\", or listen on 127.0.0.1, or, in a network that you \
                 trust, set logic.identity.allow_remote = true"
            ),
        );
    }
}

fn for_comet(config: &Config, faults: &mut Faults) {
    match config.rpc.comet {
        None => faults.add("rpc.comet", "must be set: jobs reach this comet there"),
        Some(addr) => faults.add_if(
            addr.ip().is_unspecified() && config.comet.node.rpc_addr.is_none(),
            "rpc.comet",
            "is every address of this machine: set comet.node.rpc_addr to the address under which jobs reach this comet, \
             or rpc.comet to one that they reach",
        ),
    }
    if config.cluster.directory == Directory::Discovery {
        return;
    }
    faults.add_if(
        config.cluster.logic.is_empty(),
        "cluster.logic",
        "must name a logic, such as [\"grpc://10.0.0.2:3119\"], or dns://name:port",
    );
    node_addresses("cluster.logic", &config.cluster.logic, faults);
}

fn for_logic(config: &Config, faults: &mut Faults) {
    listed_comets(config, faults);
    let is_unspecified = config.rpc.logic.is_some_and(|addr| addr.ip().is_unspecified());
    faults.add_if(
        config.cluster.directory == Directory::Discovery && is_unspecified && config.cluster.logic_addr.is_none(),
        "rpc.logic",
        "is every address of this machine: set cluster.logic_addr to the address under which comets reach this logic, \
         or rpc.logic to one that they reach",
    );
}

fn listed_comets(config: &Config, faults: &mut Faults) {
    if config.cluster.directory != Directory::List {
        return;
    }
    faults.add_if(
        config.cluster.comets.is_empty(),
        "cluster.comets",
        "must name a comet, such as [\"grpc://10.0.0.1:3109\"], or dns://name:port",
    );
    node_addresses("cluster.comets", &config.cluster.comets, faults);
}

/// Names are looked up later; only the form of an address is checked here.
fn node_addresses(key: &str, addresses: &[String], faults: &mut Faults) {
    for address in addresses {
        faults.add_error(key, goim_adapters::grpc::check_address(&address.replacen("dns://", "grpc://", 1)));
    }
}

/// The check of `versions.rows`.
pub(crate) fn rows(rows: &[VersionRow]) -> Result<(), String> {
    VersionTable::new(rows.to_vec()).map(drop).map_err(|error| error.to_string())
}

/// The check of a destination of events.
pub(crate) fn destination(url: &Option<ServiceUrl>) -> Result<(), &'static str> {
    let Some(url) = url else { return Ok(()) };
    let mut known = ["http://", "https://", "kafka://"].into_iter();
    let is_known = known.any(|scheme| url.reveal().strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()));
    if is_known { Ok(()) } else { Err("must be http://, https:// or kafka://topic") }
}

/// The levels of the log, from silent to verbose.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The check of `log.level`.
pub(crate) fn log_level(level: &str) -> Result<(), String> {
    // The filter takes a text that is no level for the name of a module, and silences all others.
    let is_level = |text: &str| LEVELS.contains(&text.to_lowercase().as_str());
    let alone = level.split(',').map(str::trim).filter(|directive| !directive.contains(['=', '[']));
    if let Some(wrong) = alone.into_iter().find(|text| !is_level(text)) {
        // Other programs write `warning` and `err`.
        let longer = LEVELS.into_iter().find(|level| wrong.starts_with(level) || level.starts_with(wrong));
        let suggestion = longer.or_else(|| nearest(wrong, LEVELS.into_iter()));
        let suggestion = suggestion.map_or_else(String::new, |level| format!("; did you mean `{level}`"));
        return Err(format!(
            "`{wrong}` is not a level ({}){suggestion}; for one module set goim_comet=debug",
            LEVELS.join(", ")
        ));
    }
    let parsed = tracing_subscriber::EnvFilter::try_new(level);
    parsed
        .map(drop)
        .map_err(|error| format!("{error}; must be `info` or directives such as `info,goim_comet=debug`"))
}

#[cfg(test)]
mod tests {
    use super::Purpose;
    use crate::settings::{Sources, load};

    /// Sets these over the defaults and expects one fault with `expect` in it; none when it is
    /// empty.
    fn check(set: &[&str], expect: &str) {
        let sources =
            Sources { set: set.iter().map(|text| (*text).to_owned()).collect(), ..Sources::default() };
        let config = load(&sources).unwrap().config;
        match config.check(Purpose::Any) {
            Ok(()) => assert_eq!(expect, "", "{set:?} passed"),
            Err(error) => {
                let text = error.to_string();
                assert!(!expect.is_empty() && text.contains(expect), "{set:?}: want {expect:?}, got {text}");
                assert_eq!(text.lines().count(), 2, "{set:?}: more than one fault: {text}");
            }
        }
    }

    #[test]
    fn the_default_passes() {
        check(&[], "");
    }

    #[test]
    fn certificates() {
        let folder = std::env::temp_dir().join(format!("goim-check-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let file = |name: &str, text: String| {
            std::fs::write(folder.join(name), text).unwrap();
            folder.join(name).display().to_string()
        };
        let cert = format!("comet.tls.cert_file={}", file("cert.pem", made.cert.pem()));
        let key = format!("comet.tls.key_file={}", file("key.pem", made.signing_key.serialize_pem()));
        let junk = format!("comet.tls.key_file={}", file("junk.pem", "no key".to_owned()));
        check(&[&cert, &junk], "junk.pem");
        check(&[&cert, &key], "");
        check(&[&cert], "comet.tls.cert_file = ");
        check(&[&key], "comet.tls.key_file = ");
        check(
            &["redis.url=rediss://x", "redis.ca_file=/nonexistent"],
            "redis.ca_file = \"/nonexistent\": cannot be read",
        );
        check(
            &["redis.url=rediss://x", "redis.cert_file=/dev/null"],
            "redis.cert_file and redis.key_file must be set together",
        );
        check(&["redis.ca_file=/dev/null"], "begins with rediss://");
        check(&["comet.tls.reload_interval=3s"], "");
        check(
            &[&cert, &key, "comet.tls.reload_interval=0s"],
            "comet.tls.reload_interval = \"0s\": must be greater than zero",
        );
        check(
            &[&cert, "comet.tls.key_file=/nonexistent"],
            "comet.tls.key_file = \"/nonexistent\": cannot be read",
        );
        check(
            &["comet.listen.tcp_tls=:3104"],
            "comet.listen.tcp_tls = [\"0.0.0.0:3104\"]: needs comet.tls.cert_file",
        );
        check(
            &["comet.listen.websocket_tls=:3104"],
            "comet.listen.websocket_tls = [\"0.0.0.0:3104\"]: needs",
        );
        check(&[&cert, &key, "comet.listen.websocket_tls="], "both empty");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn addresses() {
        check(
            &["comet.listen.websocket=:3101"],
            "comet.listen.tcp = [\"127.0.0.1:3101\"]: conflicts with comet.listen.websocket",
        );
        check(&["http.listen=127.0.0.1:3101"], "conflicts with http.listen");
        check(&["rpc.comet=127.0.0.1:3119"], "rpc.comet = \"127.0.0.1:3119\": conflicts with rpc.logic");
        check(&["comet.listen.tcp=:0", "comet.listen.websocket=:0"], "");
        check(&["comet.listen.tcp=10.0.0.1:3101,10.0.0.2:3101"], "");
        check(&["comet.listen.tcp=", "comet.listen.websocket="], "no client could connect");
        check(&["comet.listen.websocket_path=sub"], "must be a path such as /sub");
        check(&["rpc.comet=none", "rpc.logic=none"], "");
    }

    #[test]
    fn open_identity_is_for_this_machine() {
        let check = |set: &[&str]| {
            let set = set.iter().map(|text| (*text).to_owned()).collect();
            load(&Sources { set, ..Sources::default() }).unwrap().config.check(Purpose::Serve)
        };
        check(&[]).unwrap();
        let secret = format!("logic.identity.jwt.secrets={}", "x".repeat(32));
        for listener in
            ["comet.listen.tcp=:3101", "comet.listen.websocket=10.0.0.1:3102", "comet.listen.tcp=[::]:3101"]
        {
            let error = check(&[listener]).unwrap_err().to_string();
            assert!(error.contains("logic.identity.allow_remote"), "{listener}: {error}");
            check(&[listener, "logic.identity.allow_remote=true"]).unwrap();
            check(&[listener, "logic.identity.method=jwt", &secret]).unwrap();
        }
        // The API has its own protection.
        check(&["http.listen=:3111"]).unwrap();
    }

    #[test]
    fn sizes_and_times() {
        check(&["comet.send.queue_bytes_max=1 KiB"], "must be at least one packet (4112 B");
        check(
            &["comet.limits.handshake_timeout=0s"],
            "handshake_timeout = \"0s\": must be greater than zero",
        );
        check(&["comet.report_interval=0"], "report_interval = \"0s\": must be greater than zero");
        check(&["comet.send.queued_commands_max=0"], "queued_commands_max = 0: must be at least 1");
        check(&["logic.node.heartbeat=0s"], "logic.node.heartbeat");
        check(&["logic.http.api_keys=short"], "logic.http.api_keys");
        check(&["push_log.append_timeout=5s"], "must be less than logic.push.append_timeout");
        check(&["log.level=goim_comet=loud"], "log.level");
        check(&["log.level=info,goim_comet=debug"], "");
        check(&["log.level=WARN"], "");
        check(&["log.level=goim_comet=debug"], "");
        check(
            &["log.level=warning"],
            "`warning` is not a level (off, error, warn, info, debug, trace); did you mean `warn`; for one module",
        );
        check(&["log.level=info,goim_comet"], "`goim_comet` is not a level");
        check(&["log.level=verbose"], "`verbose` is not a level");
        check(&["versions.rows=0 = schema 1, identity"], "version 1 must be");
        check(&["comet.compression.levels.zstd=20"], "levels.zstd = 20: must be from 1 to 19");
    }

    #[test]
    fn each_role_checks_what_it_needs() {
        let check = |purpose, set: &[&str], expect: &str| {
            let set = set.iter().map(|text| (*text).to_owned()).collect();
            let config = load(&Sources { set, ..Sources::default() }).unwrap().config;
            let text = config.check(purpose).map_or_else(|error| error.to_string(), |()| String::new());
            assert!(text.contains(expect) && text.is_empty() == expect.is_empty(), "{text}");
        };
        check(Purpose::Comet, &[], "");
        check(Purpose::Comet, &["rpc.comet=none"], "rpc.comet: must be set");
        check(Purpose::Comet, &["rpc.comet=:3109"], "is every address of this machine");
        check(Purpose::Comet, &["rpc.comet=:3109", "comet.node.rpc_addr=10.0.0.1:3109"], "");
        check(Purpose::Comet, &["cluster.logic="], "cluster.logic = []: must name a logic");
        check(Purpose::Job, &["cluster.directory=list"], "cluster.comets = []: must name a comet");
        check(Purpose::Logic, &["cluster.directory=list", "cluster.comets=x"], "cluster.comets = ");
        check(Purpose::Logic, &["cluster.directory=discovery", "rpc.logic=:3119"], "set cluster.logic_addr");
    }
}
