//! A cluster of processes, started by `scripts/cluster.sh`, that tests may kill, freeze, restart and cut off.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{eventually, unique};

/// Short times, so that what has died is noticed soon.
const SETTINGS: [&str; 8] = [
    "redis.deadline=500ms",
    "kafka.start=oldest",
    "kafka.session_timeout=3s",
    "kafka.acknowledge_deadline=3s",
    "cluster.lease=3s",
    "cluster.refresh=100ms",
    "comet.report_interval=200ms",
    "log.level=info",
];

/// Two comets, two logics, two jobs, a Redis and a Kafka. They end when this is dropped; their logs stay when a test fails.
pub struct Fleet {
    folder: PathBuf,
    /// Where clients connect: comet1, comet2.
    pub comets: [SocketAddr; 2],
    /// Where the push API is: logic1, logic2.
    pub logics: [SocketAddr; 2],
}

impl Fleet {
    /// Starts all of it, on free ports.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more settings, `key=value`.
    pub fn start_with(more: &[&str]) -> Self {
        let folder = std::env::temp_dir().join(unique(&format!("goim-fleet-{}", std::process::id())));
        eprintln!("the cluster's logs are in {}", folder.display());
        script("start", &folder, &[&SETTINGS, more].concat());
        let addresses = std::fs::read_to_string(folder.join("addresses")).unwrap();
        let of = |name: &str, what: &str| -> SocketAddr {
            let prefix = format!("{name} {what} ");
            let found = addresses.lines().find_map(|line| line.strip_prefix(&prefix));
            found.unwrap_or_else(|| panic!("no {prefix}in {addresses}")).parse().unwrap()
        };
        for job in ["job1", "job2"] {
            eventually(&format!("{job} reads"), || is_reading(of(job, "pages")));
        }
        Self {
            comets: [of("comet1", "tcp"), of("comet2", "tcp")],
            logics: [of("logic1", "http"), of("logic2", "http")],
            folder,
        }
    }

    /// `kill`, `again`, `restart`, `freeze` or `thaw` one; see the script.
    pub fn tell(&self, verb: &str, name: &str) {
        script(verb, &self.folder, &[name]);
    }

    /// True when Redis has something under `key`.
    pub fn redis_has(&self, key: &str) -> bool {
        let url = std::fs::read_to_string(self.folder.join("redis.url")).unwrap();
        let output = Command::new("redis-cli").args(["-u", url.trim(), "exists", key]).output();
        output.expect("redis-cli runs").stdout.starts_with(b"1")
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for name in ["comet1", "comet2", "logic1", "logic2", "job1", "job2", "kafka", "redis"] {
            run("kill", &self.folder, &[name]);
        }
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// True when a job has its part of the log.
fn is_reading(pages: SocketAddr) -> bool {
    let metrics = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(pages)?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    metrics().is_ok_and(|text| text.contains("\ngoim_kafka_partitions 4\n"))
}

fn script(verb: &str, folder: &Path, arguments: &[&str]) {
    let output = run(verb, folder, arguments);
    assert!(output.status.success(), "{verb} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn run(verb: &str, folder: &Path, arguments: &[&str]) -> std::process::Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/cluster.sh");
    let mut command = Command::new(script);
    command.arg(verb).arg(folder).args(arguments);
    command.env("CLUSTER_BINARY", env!("CARGO_BIN_EXE_goim")).env("CLUSTER_PORTS", "free");
    command.output().expect("the script runs")
}
