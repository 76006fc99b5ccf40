//! A cluster of one comet, one logic and one job in this process, over engines of its own: a Redis server and a topic on the Kafka
//! broker that `TEST_KAFKA` names.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use goim::cluster::{Running, start_comet, start_job, start_logic};

use super::server::{Addrs, RUNTIME, Settings};
use super::{DEADLINE, unique};

/// A running cluster. It stops when this is dropped, and its Redis with it.
pub struct Cluster {
    /// Where it listens.
    pub addrs: Addrs,
    // Dropped in this order: who stops says so to the others.
    _job: Running,
    _comet: Running,
    _logic: Running,
    _redis: Redis,
}

/// A Redis server of its own.
pub struct Redis {
    folder: PathBuf,
    /// Where it is.
    pub url: String,
}

impl Redis {
    /// Starts one.
    pub fn start() -> Self {
        let folder = std::env::temp_dir().join(unique(&format!("goim-test-{}", std::process::id())));
        let output = script("start", &folder);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { folder, url: String::from_utf8(output.stdout).unwrap().trim().to_owned() }
    }
}

impl Redis {
    /// Ends it as a crash would: nothing is kept.
    pub fn kill(&self) {
        script("stop", &self.folder);
    }

    /// Starts it anew, with nothing in it.
    pub fn start_again(&self) {
        let output = script("start", &self.folder);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// True when there is something under `key`.
    pub fn has(&self, key: &str) -> bool {
        let output = Command::new("redis-cli").args(["-u", &self.url, "exists", key]).output();
        output.expect("redis-cli runs").stdout.starts_with(b"1")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        script("stop", &self.folder);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn script(verb: &str, folder: &Path) -> std::process::Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/engines/redis.sh");
    Command::new(script).arg(verb).arg(folder).output().expect("the script runs")
}

impl Cluster {
    /// Starts one, and waits until all know each other.
    pub fn start(settings: &Settings) -> Self {
        let kafka = std::env::var("TEST_KAFKA").expect("TEST_KAFKA names a broker: run scripts/test.sh");
        let redis = Redis::start();
        let topic = unique(&format!("e2e-{}", std::process::id()));
        let settings = settings
            .clone()
            .set("redis.url", &redis.url)
            .set("kafka.brokers", &kafka)
            .set("kafka.topic", &topic)
            .set("kafka.group", &topic)
            // What is pushed before the group has agreed is read too.
            .set("kafka.start", "oldest")
            .set("cluster.refresh", "20ms")
            .set("cluster.counts_refresh", "20ms")
            .set("cluster.comet_pages", "127.0.0.1:0")
            .set("cluster.job_pages", "127.0.0.1:0");
        let logic = up(RUNTIME.block_on(start_logic(settings.config())));
        let settings = settings.set("cluster.logic", &format!("grpc://{}", line(&logic, "rpc")));
        let comet = up(RUNTIME.block_on(start_comet(settings.config())));
        let addrs = Addrs {
            tcp: line(&comet, "tcp").parse().unwrap(),
            websocket: line(&comet, "websocket").parse().unwrap(),
            http: line(&logic, "http").parse().unwrap(),
            comet_rpc: line(&comet, "rpc").parse().unwrap(),
            logic_rpc: line(&logic, "rpc").parse().unwrap(),
        };
        // A job that starts now finds the comet on the list.
        let server = line(&comet, "server").to_owned();
        let started = Instant::now();
        while !redis.has(&format!("goim:node:{server}")) {
            assert!(started.elapsed() < DEADLINE, "{server} is not on the list");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let job = up(RUNTIME.block_on(start_job(settings.config())));
        Self { addrs, _job: job, _comet: comet, _logic: logic, _redis: redis }
    }
}

fn up(started: Result<Running, goim::cluster::StartError>) -> Running {
    started.unwrap_or_else(|error| panic!("{error}"))
}

fn line<'a>(running: &'a Running, name: &str) -> &'a str {
    running.line(name).unwrap_or_else(|| panic!("{name} in {running:?}"))
}
