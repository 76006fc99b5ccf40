//! Which good values do not go together. Everything here is decided before a port opens.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use goim_comet::TlsConfig;
use goim_logic::IdentityMethod;

use crate::Config;
use crate::settings::{ConfigError, Fault};

impl Config {
    /// Says whether a process can run with this.
    ///
    /// # Errors
    /// [`ConfigError::Faults`] with everything that is impossible, each with what to do.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut faults = Faults(Vec::new());
        tls(self, &mut faults);
        redis(self, &mut faults);
        faults.add_if(
            self.timelines.folder.is_some() && self.timelines.postgres.is_some(),
            "timelines.folder and timelines.postgres are both set: messages are kept in one place, choose it",
        );
        listeners(self, &mut faults);
        limits(self, &mut faults);
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log.level) {
            faults.add(format!(
                "log.level = {:?}: {error}; wants `info` or directives such as `info,goim_comet=debug`",
                self.log.level
            ));
        }
        if faults.0.is_empty() { Ok(()) } else { Err(ConfigError::Faults(faults.0)) }
    }

    /// Every address that is to be listened on, with the setting that says so.
    pub(crate) fn listeners(&self) -> Vec<(&'static str, SocketAddr)> {
        let listen = &self.comet.listen;
        let tls_is_on = self.comet.tls.is_some();
        let mut all = Vec::new();
        let mut add = |key, addrs: &[SocketAddr]| all.extend(addrs.iter().map(|addr| (key, *addr)));
        add("comet.listen.tcp", &listen.tcp);
        add("comet.listen.websocket", &listen.websocket);
        if tls_is_on {
            add("comet.listen.tcp_tls", &listen.tcp_tls);
            add("comet.listen.websocket_tls", &listen.websocket_tls);
            add("comet.listen.danmaku_tcp_tls", &listen.danmaku_tcp_tls);
            add("comet.listen.danmaku_websocket_tls", &listen.danmaku_websocket_tls);
        }
        add("comet.listen.danmaku_tcp", &listen.danmaku_tcp);
        add("comet.listen.danmaku_websocket", &listen.danmaku_websocket);
        add("http.listen", &[self.http.listen]);
        add("rpc.comet", self.rpc.comet.as_slice());
        add("rpc.logic", self.rpc.logic.as_slice());
        all
    }
}

impl Config {
    /// The same for the whole system in one process, where who may connect and where they connect are both known.
    ///
    /// # Errors
    /// [`ConfigError::Faults`], as [`Config::check`].
    pub fn check_serve(&self) -> Result<(), ConfigError> {
        self.check()?;
        let identity = &self.logic.identity;
        if identity.method != IdentityMethod::Open || identity.allow_remote {
            return Ok(());
        }
        let is_public =
            |(key, addr): &(&str, SocketAddr)| key.starts_with("comet.listen.") && !addr.ip().is_loopback();
        let Some((key, addr)) = self.listeners().into_iter().find(is_public) else { return Ok(()) };
        Err(ConfigError::Faults(vec![Fault::Combination(format!(
            "{key} = {addr} lets others in than this machine, and logic.identity.method = \"open\" believes whatever they say they \
             are: choose \"jwt\" or \"webhook\", or listen on 127.0.0.1, or, in a network that you trust, set \
             logic.identity.allow_remote = true"
        ))]))
    }
}

struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, text: impl Into<String>) {
        self.0.push(Fault::Combination(text.into()));
    }

    fn add_if(&mut self, wrong: bool, text: impl Into<String>) {
        if wrong {
            self.add(text);
        }
    }
}

fn redis(config: &Config, faults: &mut Faults) {
    let redis = &config.redis;
    let files = [
        ("redis.ca_file", &redis.ca_file),
        ("redis.cert_file", &redis.cert_file),
        ("redis.key_file", &redis.key_file),
    ];
    for (key, path) in files {
        if let Some(path) = path {
            readable(key, path, faults);
        }
    }
    faults.add_if(
        redis.cert_file.is_some() != redis.key_file.is_some(),
        "redis.cert_file and redis.key_file belong together: set both, or neither",
    );
    let addresses = || redis.cluster.iter().chain(&redis.sentinels).chain([&redis.url]);
    faults.add_if(
        files.iter().any(|(_, path)| path.is_some()) && !addresses().any(|url| url.reveal().starts_with("rediss:")),
        "redis has files for TLS, but no address that begins with rediss://: write redis.url, redis.cluster or redis.sentinels so",
    );
}

fn tls(config: &Config, faults: &mut Faults) {
    let listen = &config.comet.listen;
    match &config.comet.tls {
        Some(pair) => {
            let TlsConfig { cert_file, key_file, reload_interval } = pair;
            let (cert, key) = (!cert_file.as_os_str().is_empty(), !key_file.as_os_str().is_empty());
            faults.add_if(
                cert && !key,
                "comet.tls.cert_file is set without comet.tls.key_file: name the key too",
            );
            faults.add_if(
                key && !cert,
                "comet.tls.key_file is set without comet.tls.cert_file: name the certificate too",
            );
            let both = readable("comet.tls.cert_file", cert_file, faults)
                & readable("comet.tls.key_file", key_file, faults);
            if both && let Err(error) = pair.check() {
                faults.add(format!("comet.tls: {error}"));
            }
            positive("comet.tls.reload_interval", *reload_interval, faults);
            faults.add_if(
                listen.tcp_tls.is_empty()
                    && listen.websocket_tls.is_empty()
                    && listen.danmaku_tcp_tls.is_empty()
                    && listen.danmaku_websocket_tls.is_empty(),
                "a certificate is configured, but comet.listen.tcp_tls and comet.listen.websocket_tls are both empty: open one",
            );
        }
        None => {
            let needs = "needs comet.tls.cert_file and comet.tls.key_file";
            faults.add_if(!listen.tcp_tls.is_empty(), format!("comet.listen.tcp_tls {needs}"));
            faults
                .add_if(!listen.danmaku_tcp_tls.is_empty(), format!("comet.listen.danmaku_tcp_tls {needs}"));
            let danmaku = !listen.danmaku_websocket_tls.is_empty();
            faults.add_if(danmaku, format!("comet.listen.danmaku_websocket_tls {needs}"));
            // The default address stays closed without a certificate; one that somebody wrote is meant.
            let usual = goim_comet::ListenConfig::default().websocket_tls;
            let written = !listen.websocket_tls.is_empty() && listen.websocket_tls != usual;
            faults.add_if(written, format!("comet.listen.websocket_tls {needs}"));
        }
    }
}

/// True when the file is named and can be read.
fn readable(key: &str, path: &Path, faults: &mut Faults) -> bool {
    if path.as_os_str().is_empty() {
        return false;
    }
    let result = std::fs::read(path);
    if let Err(error) = &result {
        faults.add(format!("{key} = \"{}\" cannot be read: {error}", path.display()));
    }
    result.is_ok()
}

fn listeners(config: &Config, faults: &mut Faults) {
    let all = config.listeners();
    for (at, (key, addr)) in all.iter().enumerate() {
        for (other_key, other) in all.iter().skip(at + 1) {
            faults.add_if(
                collide(*addr, *other),
                format!("{key} and {other_key} both want {addr}: give one of them another port"),
            );
        }
    }
    let listen = &config.comet.listen;
    faults.add_if(
        listen.tcp.is_empty()
            && listen.websocket.is_empty()
            && listen.danmaku_tcp.is_empty()
            && listen.danmaku_websocket.is_empty()
            && config.comet.tls.is_none(),
        "no client could connect: comet.listen.tcp and comet.listen.websocket are both empty and there is no certificate for TLS",
    );
    faults.add_if(
        !listen.websocket_path.starts_with('/') || listen.websocket_path.contains(char::is_whitespace),
        format!("comet.listen.websocket_path = {:?}: wants a path such as /sub", listen.websocket_path),
    );
    faults.add_if(listen.backlog < 1, "comet.listen.backlog: wants at least 1");
}

/// True when both cannot be listened on at once.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let everywhere = |ip: IpAddr| ip.is_unspecified();
    let same_place = one.ip() == other.ip()
        || one.is_ipv4() == other.is_ipv4() && (everywhere(one.ip()) || everywhere(other.ip()));
    one.port() != 0 && one.port() == other.port() && same_place
}

fn limits(config: &Config, faults: &mut Faults) {
    let (comet, job) = (&config.comet, &config.job);
    let packet = comet.limits.body_bytes_max.saturating_add(goim_wire::HEADER_LEN);
    if let Err(error) = goim_ports::VersionTable::new(config.versions.rows.clone()) {
        faults.add(format!("versions.rows: {error}"));
    }
    for (key, to) in
        [("events.url", &config.events.url), ("timelines.offline_url", &config.timelines.offline_url)]
    {
        let Some(to) = to else { continue };
        let known = ["http://", "https://", "kafka://"];
        let is_known =
            known.iter().any(|scheme| to.reveal().strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()));
        faults.add_if(!is_known, format!("{key} = {to:?}: wants http://, https:// or kafka://topic"));
    }
    positive("comet.events.interval", comet.events.interval, faults);
    let levels = comet.compression.levels;
    faults.add_if(!(1..=9).contains(&levels.zlib), "comet.compression.levels.zlib: wants 1 to 9");
    faults.add_if(levels.brotli > 11, "comet.compression.levels.brotli: wants 0 to 11");
    faults.add_if(!(1..=19).contains(&levels.zstd), "comet.compression.levels.zstd: wants 1 to 19");
    faults.add_if(
        comet.compression.inflated_bytes_max < comet.limits.body_bytes_max,
        "comet.compression.inflated_bytes_max: wants no less than comet.limits.body_bytes_max",
    );
    faults.add_if(comet.limits.connections_max == 0, "comet.limits.connections_max: wants at least 1");
    faults.add_if(
        comet.limits.request_head_bytes_max < 256,
        "comet.limits.request_head_bytes_max: wants at least 256 B, or no browser's upgrade request fits",
    );
    faults.add_if(
        comet.send.queue_bytes_max < packet,
        format!(
            "comet.send.queue_bytes_max is smaller than one packet ({packet} B: comet.limits.body_bytes_max and the header): \
             raise it"
        ),
    );
    faults.add_if(comet.send.queued_commands_max == 0, "comet.send.queued_commands_max: wants at least 1");
    faults.add_if(comet.send.paced_broadcasts_max == 0, "comet.send.paced_broadcasts_max: wants at least 1");
    faults.add_if(comet.node.weight < 0, "comet.node.weight: wants 0 or more");
    faults.add_if(config.push_log.records_max == 0, "push_log.records_max: wants at least 1");
    faults.add_if(config.push_log.read_records_max == 0, "push_log.read_records_max: wants at least 1");
    faults.add_if(
        config.push_log.append_timeout >= config.logic.push.append_timeout,
        "push_log.append_timeout: wants less than logic.push.append_timeout, so that a full log says so",
    );
    faults.add_if(job.in_flight.bytes_max == 0, "job.in_flight.bytes_max: wants more than zero");
    faults.add_if(
        config.logic.identity.webhook.timeout >= config.logic.directory_timeout,
        "logic.identity.webhook.timeout: wants less than logic.directory_timeout, which ends the wait for it",
    );
    positive("job.comet.call_timeout", job.comet.call_timeout, faults);
    positive("job.comet.probe_interval", job.comet.probe_interval, faults);
    if let Err(error) = config.logic.validate() {
        faults.add(error.to_string());
    }
    let grpc = &config.rpc.server;
    faults.add_if(grpc.calls_max == 0, "rpc.server.calls_max: wants at least 1");
    positive("rpc.server.keepalive_interval", grpc.keepalive_interval, faults);
    positive("rpc.server.keepalive_timeout", grpc.keepalive_timeout, faults);
    positive("rpc.server.connection_age_max", grpc.connection_age_max.unwrap_or(Duration::MAX), faults);
    positive("comet.limits.handshake_timeout", comet.limits.handshake_timeout, faults);
    positive("comet.report_interval", comet.report_interval, faults);
}

fn positive(key: &str, duration: Duration, faults: &mut Faults) {
    faults.add_if(duration.is_zero(), format!("{key}: wants more than zero"));
}

#[cfg(test)]
mod tests {
    use crate::settings::{Sources, load};

    /// Sets these over the defaults and expects one fault with `expect` in it; none when it is empty.
    fn check(set: &[&str], expect: &str) {
        let sources =
            Sources { set: set.iter().map(|text| (*text).to_owned()).collect(), ..Sources::default() };
        let config = load(&sources).unwrap().config;
        match config.check() {
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
        check(&[&cert], "cert_file is set without comet.tls.key_file");
        check(&[&key], "key_file is set without comet.tls.cert_file");
        check(
            &["redis.url=rediss://x", "redis.ca_file=/nonexistent"],
            "redis.ca_file = \"/nonexistent\" cannot be read",
        );
        check(
            &["redis.url=rediss://x", "redis.cert_file=/dev/null"],
            "redis.cert_file and redis.key_file belong together",
        );
        check(&["redis.ca_file=/dev/null"], "no address that begins with rediss://");
        check(&["comet.tls.reload_interval=3s"], "");
        check(
            &[&cert, &key, "comet.tls.reload_interval=0s"],
            "comet.tls.reload_interval: wants more than zero",
        );
        check(
            &[&cert, "comet.tls.key_file=/nonexistent"],
            "comet.tls.key_file = \"/nonexistent\" cannot be read",
        );
        check(&["comet.listen.tcp_tls=:3104"], "comet.listen.tcp_tls needs comet.tls.cert_file");
        check(&["comet.listen.websocket_tls=:3104"], "comet.listen.websocket_tls needs");
        check(&[&cert, &key, "comet.listen.websocket_tls="], "both empty");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn addresses() {
        check(
            &["comet.listen.websocket=:3101"],
            "comet.listen.tcp and comet.listen.websocket both want 127.0.0.1:3101",
        );
        check(&["http.listen=127.0.0.1:3101"], "comet.listen.tcp and http.listen both want");
        check(&["rpc.comet=127.0.0.1:3119"], "rpc.comet and rpc.logic both want 127.0.0.1:3119");
        check(&["comet.listen.tcp=:0", "comet.listen.websocket=:0"], "");
        check(&["comet.listen.tcp=10.0.0.1:3101,10.0.0.2:3101"], "");
        check(&["comet.listen.tcp=", "comet.listen.websocket="], "no client could connect");
        check(&["comet.listen.websocket_path=sub"], "wants a path such as /sub");
        check(&["rpc.comet=none", "rpc.logic=none"], "");
    }

    #[test]
    fn open_identity_is_for_this_machine() {
        let check = |set: &[&str]| {
            let set = set.iter().map(|text| (*text).to_owned()).collect();
            load(&Sources { set, ..Sources::default() }).unwrap().config.check_serve()
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
        check(&["comet.send.queue_bytes_max=1 KiB"], "smaller than one packet (4112 B");
        check(&["comet.limits.handshake_timeout=0s"], "handshake_timeout: wants more than zero");
        check(&["comet.report_interval=0"], "report_interval: wants more than zero");
        check(&["comet.send.queued_commands_max=0"], "queued_commands_max: wants at least 1");
        check(&["logic.node.heartbeat=0s"], "logic.node.heartbeat");
        check(&["logic.http.api_keys=short"], "logic.http.api_keys");
        check(&["push_log.append_timeout=5s"], "push_log.append_timeout: wants less");
        check(&["log.level=goim_comet=loud"], "log.level");
        check(&["log.level=info,goim_comet=debug"], "");
        check(&["versions.rows=0 = schema 1, identity"], "versions.rows: version 1 must be");
        check(&["comet.compression.levels.zstd=20"], "levels.zstd: wants 1 to 19");
    }
}
