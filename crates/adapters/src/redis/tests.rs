//! The directories on a real Redis: a single server, a cluster, a master with Sentinels; each test
//! starts its own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use goim_ports::{
    DirectoryError, Mid, NodeDirectory, RoomCounts, RoomDirectory, ServerId, SessionDirectory, SessionKey,
    SessionRef,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use redis::Commands;

use super::*;
use crate::conformance;

mod failures;
mod records;

/// Redis servers for one test, stopped on drop.
struct TestRedis {
    folder: PathBuf,
    tls: RedisTls,
    urls: Vec<String>,
    kind: &'static str,
}

impl TestRedis {
    /// Starts servers of a kind: `single`, `cluster` or `sentinel`.
    fn start(kind: &'static str) -> Self {
        Self::start_as(kind, false)
    }

    /// Starts servers that accept only TLS with a client certificate.
    fn start_with_tls(kind: &'static str) -> Self {
        Self::start_as(kind, true)
    }

    fn start_as(kind: &'static str, has_tls: bool) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("goim-redis-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        let tls = if has_tls { certify(&folder) } else { RedisTls::default() };
        let mut own = Self { folder, tls, urls: Vec::new(), kind };
        let output = own.script(&["start"], &[kind]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8(output.stdout).unwrap();
        own.urls = printed.split_whitespace().map(str::to_owned).collect();
        own
    }

    fn script(&self, before: &[&str], behind: &[&str]) -> std::process::Output {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/engines/redis.sh");
        let mut command = Command::new(script);
        if self.tls.ca_file.is_some() {
            command.env("REDIS_TLS", self.folder.join("tls"));
        }
        command.args(before).arg(&self.folder).args(behind).output().unwrap()
    }

    fn config(&self) -> RedisConfig {
        let place = match self.kind {
            "single" => RedisPlace::Single(self.urls[0].clone()),
            "cluster" => RedisPlace::Cluster(self.urls.clone()),
            _ => RedisPlace::Sentinel {
                sentinels: self.urls.clone(),
                master: "goim".to_owned(),
                sign_in: self.urls[0].clone(),
            },
        };
        RedisConfig { place, tls: self.tls.clone(), ..RedisConfig::default() }
    }

    async fn store(&self) -> RedisStore {
        RedisStore::connect(self.config()).await.unwrap()
    }

    /// Connects, and empties all masters.
    async fn empty(&self) -> RedisStore {
        let store = self.store().await;
        for mut master in self.masters() {
            let _: () = redis::cmd("FLUSHALL").query(&mut master).unwrap();
        }
        store
    }

    fn masters(&self) -> Vec<redis::Connection> {
        let connect = |url: &String| self.connect(url);
        match self.kind {
            "single" => vec![connect(&self.urls[0])],
            "cluster" => self.urls.iter().map(connect).filter_map(master_only).collect(),
            _ => vec![connect(&self.sentinel_master())],
        }
    }

    fn sentinel_master(&self) -> String {
        let mut sentinel = self.connect(&self.urls[0]);
        let (host, port): (String, String) =
            redis::cmd("SENTINEL").arg("get-master-addr-by-name").arg("goim").query(&mut sentinel).unwrap();
        let (scheme, _) = self.urls[0].split_once(':').unwrap();
        format!("{scheme}://{host}:{port}")
    }

    fn connect(&self, url: &str) -> redis::Connection {
        let config = self.config();
        super::clients::ClientFactory::new(&config).unwrap().single(url).unwrap().get_connection().unwrap()
    }

    fn pid_of(&self, url: &str) -> String {
        let port = url.rsplit(':').next().unwrap();
        std::fs::read_to_string(self.folder.join(port).join("pid")).unwrap().trim().to_owned()
    }

    fn signal(&self, url: &str, signal: &str) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.pid_of(url)).status().unwrap();
        assert!(status.success());
    }
}

/// Creates a CA and one certificate in the folder "tls" of this one.
fn certify(folder: &Path) -> RedisTls {
    let folder = folder.join("tls");
    std::fs::create_dir_all(&folder).unwrap();
    let [ca_key, key] = [(), ()].map(|()| KeyPair::generate().unwrap());
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // The CA needs its own name: a certificate with its issuer's name counts as self-signed.
    ca.distinguished_name.push(DnType::CommonName, "who signs");
    let ca_cert = ca.self_signed(&ca_key).unwrap().pem();
    let own = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let cert = own.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap().pem();
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let identity = (write("cert.pem", cert), write("key.pem", key.serialize_pem()));
    RedisTls { ca_file: Some(write("ca.pem", ca_cert)), identity: Some(identity) }
}

fn master_only(mut connection: redis::Connection) -> Option<redis::Connection> {
    let role: Vec<redis::Value> = redis::cmd("ROLE").query(&mut connection).unwrap();
    (role[0] == redis::Value::BulkString(b"master".to_vec())).then_some(connection)
}

impl Drop for TestRedis {
    fn drop(&mut self) {
        self.script(&["stop"], &[]);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn session(mid: i64, key: &str, server: &str) -> SessionRef {
    SessionRef { mid: Mid(mid), key: key.into(), server: server.into() }
}

async fn server_of(sessions: &RedisSessions, key: &str) -> Option<String> {
    let found = sessions.servers_of(&[SessionKey::from(key)]).await.unwrap();
    found[0].as_ref().map(ServerId::to_string)
}

async fn conforms(own: &TestRedis) {
    conformance::sessions(async || RedisSessions::new(own.empty().await)).await;
    let names = ["a", "b", "c", "one", "two", "comet", "comet01", "s", "s1", "s2"];
    let servers: Servers = Arc::new(move || names.into_iter().map(ServerId::from).collect());
    conformance::rooms(async || RedisRooms::new(own.empty().await, servers.clone(), Duration::ZERO)).await;
    let nodes = async |config| RedisNodes::start(own.empty().await, config, None).await.unwrap();
    conformance::nodes(async || nodes(RedisNodesConfig::default()).await).await;
    let lease = Duration::from_secs(2);
    let config = RedisNodesConfig { lease, refresh: Duration::from_millis(50) };
    conformance::nodes_expire(async || nodes(config).await, lease, tokio::time::sleep).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn one_server_conforms() {
    conforms(&TestRedis::start("single")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_cluster_conforms() {
    conforms(&TestRedis::start("cluster")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_master_with_sentinels_conforms() {
    conforms(&TestRedis::start("sentinel")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_server_inside_tls_conforms() {
    conforms(&TestRedis::start_with_tls("single")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_cluster_inside_tls_conforms() {
    conforms(&TestRedis::start_with_tls("cluster")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_master_with_sentinels_inside_tls_conforms() {
    conforms(&TestRedis::start_with_tls("sentinel")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn tls_verifies_the_server_and_the_client() {
    let own = TestRedis::start_with_tls("single");
    let good = own.config();
    let plain = RedisPlace::Single(own.urls[0].replace("rediss:", "redis:"));
    let missing = Path::new("/nonexistent/ca.pem").to_owned();
    let cases = [
        ("nobody known signed it", RedisTls { ca_file: None, ..own.tls.clone() }, good.place.clone()),
        ("it asks for a certificate", RedisTls { identity: None, ..own.tls.clone() }, good.place.clone()),
        (
            "a file that is not there",
            RedisTls { ca_file: Some(missing), ..own.tls.clone() },
            good.place.clone(),
        ),
        ("no TLS", own.tls.clone(), plain),
    ];
    for (what, tls, place) in cases {
        let config = RedisConfig { tls, place, deadline: Duration::from_secs(1), ..good.clone() };
        let error = RedisStore::connect(config).await.map(|_| what).unwrap_err().to_string();
        let named =
            if what.contains("file") { "/nonexistent/ca.pem" } else { &own.urls[0]["rediss://".len()..] };
        assert!(error.contains(named), "{what}: {error}");
    }
    RedisStore::connect(good).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn sessions_that_are_not_touched_expire() {
    let own = TestRedis::start("single");
    let lifetime = Duration::from_secs(4);
    let make = async || {
        let config = RedisConfig { session_ttl: lifetime, ..own.config() };
        RedisSessions::new(RedisStore::connect(config).await.unwrap())
    };
    conformance::sessions_expire(make, lifetime, async |time| tokio::time::sleep(time).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn startup_errors_name_the_cause() {
    // No server listens on this port.
    let nobody = "127.0.0.1:1";
    let cases = [
        (RedisPlace::Single(format!("redis://:secret@{nobody}")), nobody.to_string()),
        (RedisPlace::Single("http://x".to_owned()), "http://x".to_owned()),
        (RedisPlace::Cluster(vec![format!("redis://{nobody}")]), nobody.to_string()),
        (
            RedisPlace::Sentinel {
                sentinels: vec![format!("redis://{nobody}")],
                master: "goim".to_owned(),
                sign_in: "redis://:secret@x".to_owned(),
            },
            "master goim".to_owned(),
        ),
    ];
    for (place, named) in cases {
        let config = RedisConfig { place, deadline: Duration::from_millis(500), ..RedisConfig::default() };
        let text = RedisStore::connect(config).await.unwrap_err().to_string();
        assert!(text.contains(&named) && !text.contains("secret"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn wrong_passwords_and_untrusted_certificates_are_rejections() {
    let own = TestRedis::start("single");
    let _: () =
        redis::cmd("CONFIG").arg("SET").arg("requirepass").arg("right").query(&mut own.masters()[0]).unwrap();
    let address = own.urls[0].strip_prefix("redis://").unwrap();
    for url in [
        own.urls[0].clone(),
        format!("redis://:wrong@{address}"),
        format!("redis://somebody:right@{address}"),
    ] {
        let config = RedisConfig { place: RedisPlace::Single(url.clone()), ..RedisConfig::default() };
        let error = RedisStore::connect(config).await.unwrap_err();
        assert!(matches!(error, RedisError::Rejected { .. }), "{url}: {error}");
    }
    let right = RedisPlace::Single(format!("redis://:right@{address}"));
    RedisStore::connect(RedisConfig { place: right, ..RedisConfig::default() }).await.unwrap();

    let own = TestRedis::start_with_tls("single");
    let untrusted = RedisConfig { tls: RedisTls::default(), ..own.config() };
    let error = RedisStore::connect(untrusted).await.unwrap_err();
    assert!(matches!(error, RedisError::Rejected { .. }), "{error}");
}
