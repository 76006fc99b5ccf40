//! A cluster of one comet, one logic and one job in this process, over its own engines: a Redis
//! server, and a topic on the Kafka broker that `TEST_KAFKA` names.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use goim::cluster::{Running, start_comet, start_job, start_logic};

use super::http::Http;
use super::server::{Addrs, RUNTIME, Settings};
use super::{eventually, unique};

/// A running cluster. It stops when this is dropped, and its Redis with it.
pub struct Cluster {
    /// Where it listens.
    pub addrs: Addrs,
    settings: Settings,
    // Dropped in this order: a role that stops notifies the others.
    job: Option<Running>,
    comet: Option<Running>,
    logic: Running,
    /// Its directories.
    pub redis: Redis,
}

/// A Redis server for this cluster alone.
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
    /// Stops it as a crash would: nothing is stored.
    pub fn kill(&self) {
        script("stop", &self.folder);
    }

    /// Starts it again, empty.
    pub fn start_again(&self) {
        let output = script("start", &self.folder);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// What redis-cli answers to a command. Panics when Redis refuses it.
    pub fn cli(&self, command: &[&str]) -> String {
        let output = Command::new("redis-cli").args(["-u", &self.url, "-e"]).args(command).output();
        let output = output.expect("redis-cli runs");
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Sends a signal to its process.
    pub fn signal(&self, signal: &str) {
        let port = self.url.rsplit(':').next().unwrap();
        let pid = std::fs::read_to_string(self.folder.join(port).join("pid")).unwrap();
        let status = Command::new("kill").arg(format!("-{signal}")).arg(pid.trim()).status().unwrap();
        assert!(status.success());
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
        let mut cluster = Self::without_job(settings);
        cluster.start_comet();
        cluster.start_job();
        cluster
    }

    /// A logic over its engines, and nothing else yet.
    pub fn without_job(settings: &Settings) -> Self {
        let kafka = super::kafka::broker();
        Self::over(&kafka, settings)
    }

    /// The same over this broker.
    pub fn over(kafka: &str, settings: &Settings) -> Self {
        let redis = Redis::start();
        let topic = unique(&format!("e2e-{}", std::process::id()));
        let settings = settings
            .clone()
            .set("redis.url", &redis.url)
            .set("kafka.brokers", kafka)
            .set("kafka.topic", &topic)
            .set("kafka.group", &topic)
            // What is pushed before the group has agreed is read too.
            .set("kafka.auto_offset_reset", "earliest")
            .set("cluster.refresh_interval", "20ms")
            .set("cluster.room_counts_ttl", "20ms")
            .set("cluster.comet_admin_listen", "127.0.0.1:0")
            .set("cluster.job_admin_listen", "127.0.0.1:0");
        let logic = up(RUNTIME.block_on(start_logic(settings.config())));
        let logic_rpc = line(&logic, "rpc").parse().unwrap();
        let settings = settings.set("cluster.logic", &format!("grpc://{logic_rpc}"));
        let nobody = SocketAddr::from(([127, 0, 0, 1], 0));
        let http = line(&logic, "http").parse().unwrap();
        let addrs = Addrs { tcp: nobody, websocket: nobody, http, comet_rpc: nobody, logic_rpc };
        Self { addrs, settings, job: None, comet: None, logic, redis }
    }

    /// Starts the comet; on the same ports as before, when there was one.
    pub fn start_comet(&mut self) {
        let comet = self.another_comet(&self.settings);
        self.addrs = Addrs { logic_rpc: self.addrs.logic_rpc, http: self.addrs.http, ..addrs_of(&comet) };
        let addrs = self.addrs;
        let settings = self.settings.clone();
        self.settings = settings
            .set("comet.listen.tcp", &addrs.tcp.to_string())
            .set("comet.listen.websocket", &addrs.websocket.to_string())
            .set("rpc.comet", &addrs.comet_rpc.to_string());
        self.comet = Some(comet);
    }

    /// A comet with separate settings.
    pub fn another_comet(&self, settings: &Settings) -> Running {
        let comet = up(RUNTIME.block_on(start_comet(settings.config())));
        // A job that starts now finds the comet on the list.
        let key = format!("goim:node:{}", line(&comet, "server"));
        eventually(&format!("there is {key}"), || self.redis.has(&key));
        comet
    }

    /// The settings of its roles.
    pub fn settings(&self) -> Settings {
        self.settings.clone()
    }

    /// Starts the job.
    pub fn start_job(&mut self) {
        self.job = Some(up(RUNTIME.block_on(start_job(self.settings.config()))));
    }

    /// Stops the job gently.
    pub fn stop_job(&mut self) {
        RUNTIME.block_on(self.job.take().expect("a job runs").drain());
    }

    /// Stops the comet gently.
    pub fn stop_comet(&mut self) {
        RUNTIME.block_on(self.comet.take().expect("a comet runs").drain());
    }

    /// Each role's `/readyz`: status and text.
    pub fn readiness(&self) -> [(&'static str, u16, String); 3] {
        let job = line(self.job.as_ref().expect("a job runs"), "admin");
        let comet = line(self.comet.as_ref().expect("a comet runs"), "admin");
        [("job", job), ("comet", comet), ("logic", line(&self.logic, "http"))].map(|(role, pages)| {
            let answer = Http::connect(pages.parse().unwrap()).request("GET", "/readyz", &[], b"");
            (role, answer.status, answer.text())
        })
    }

    /// The value of a metric of the job.
    pub fn job_metric(&self, name: &str) -> Option<f64> {
        metric(line(self.job.as_ref().expect("a job runs"), "admin").parse().unwrap(), name)
    }

    /// The figures of the comet.
    pub fn comet_metrics(&self) -> String {
        let pages = line(self.comet.as_ref().expect("a comet runs"), "admin").parse().unwrap();
        Http::connect(pages).request("GET", "/metrics", &[], b"").text()
    }

    /// The value of a metric of the logic.
    pub fn logic_metric(&self, name: &str) -> Option<f64> {
        metric(line(&self.logic, "http").parse().unwrap(), name)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _inside = RUNTIME.enter();
        (self.job, self.comet) = (None, None);
    }
}

/// A comet that is not awaited on a list.
///
/// # Errors
/// Why it cannot start; for example because another program has one of its ports.
pub fn try_comet(settings: &Settings) -> Result<Running, goim::cluster::StartError> {
    RUNTIME.block_on(start_comet(settings.config()))
}

/// Where a comet listens; it does not know where logic does.
pub fn addrs_of(comet: &Running) -> Addrs {
    let nobody = SocketAddr::from(([127, 0, 0, 1], 0));
    Addrs {
        tcp: line(comet, "tcp").parse().unwrap(),
        websocket: line(comet, "websocket").parse().unwrap(),
        comet_rpc: line(comet, "rpc").parse().unwrap(),
        http: nobody,
        logic_rpc: nobody,
    }
}

fn metric(pages: SocketAddr, name: &str) -> Option<f64> {
    let text = Http::connect(pages).request("GET", "/metrics", &[], b"").text();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn up(started: Result<Running, goim::cluster::StartError>) -> Running {
    started.unwrap_or_else(|error| panic!("{error}"))
}

fn line<'a>(running: &'a Running, name: &str) -> &'a str {
    running.line(name).unwrap_or_else(|| panic!("{name} in {running:?}"))
}
