//! A cluster of processes, started by `scripts/cluster.sh`, that tests may kill, freeze, restart
//! and cut off.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{DEADLINE, eventually, unique};

/// Short times, so that what has died is noticed soon.
const SETTINGS: [&str; 8] = [
    "redis.command_timeout=500ms",
    "kafka.auto_offset_reset=earliest",
    "kafka.session_timeout=3s",
    "kafka.delivery_timeout=3s",
    "cluster.lease=3s",
    "cluster.refresh_interval=100ms",
    "comet.report_interval=200ms",
    "log.level=info",
];

/// Two comets, two logics, two jobs, a Redis and a Kafka. They stop when this is dropped; their
/// logs stay when a test fails.
pub struct Fleet {
    folder: PathBuf,
    /// Where clients connect: comet1, comet2.
    pub comets: [SocketAddr; 2],
    /// The same over WebSocket.
    pub websockets: [SocketAddr; 2],
    /// Where the push API is: logic1, logic2.
    pub logics: [SocketAddr; 2],
    /// The admin endpoints of job1, job2.
    jobs: [SocketAddr; 2],
}

/// All processes that are goim.
pub const ROLES: [&str; 6] = ["comet1", "comet2", "logic1", "logic2", "job1", "job2"];
/// The partitions of a topic that Kafka creates on first use.
const PARTITIONS: u32 = 8;

impl Fleet {
    /// Starts all of it, on free ports.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more settings, `key=value`.
    pub fn start_with(more: &[&str]) -> Self {
        Self::start_as(&[&SETTINGS, more].concat(), PARTITIONS)
    }

    /// One with these settings and no others, whose topic has so many partitions.
    pub fn start_as(settings: &[&str], partitions: u32) -> Self {
        let folder = std::env::temp_dir().join(unique(&format!("goim-fleet-{}", std::process::id())));
        eprintln!("the cluster's logs are in {}", folder.display());
        let output =
            command("start", &folder, settings).env("KAFKA_PARTITIONS", partitions.to_string()).output();
        succeeded("start", &output.expect("the script runs"));
        let addresses = std::fs::read_to_string(folder.join("addresses")).unwrap();
        let of = |name: &str, what: &str| -> SocketAddr {
            let prefix = format!("{name} {what} ");
            let found = addresses.lines().find_map(|line| line.strip_prefix(&prefix));
            found.unwrap_or_else(|| panic!("no {prefix}in {addresses}")).parse().unwrap()
        };
        let fleet = Self {
            comets: [of("comet1", "tcp"), of("comet2", "tcp")],
            websockets: [of("comet1", "websocket"), of("comet2", "websocket")],
            logics: [of("logic1", "http"), of("logic2", "http")],
            jobs: [of("job1", "pages"), of("job2", "pages")],
            folder,
        };
        let share = partitions / 2;
        eventually("the jobs share the log", || fleet.partitions_read() == [Some(share), Some(share)]);
        fleet
    }

    /// How many partitions each job reads; `None` for a job that does not report it.
    pub fn partitions_read(&self) -> [Option<u32>; 2] {
        self.jobs.map(partitions_of)
    }

    /// `kill`, `again`, `restart`, `freeze` or `thaw` one; see the script.
    pub fn tell(&self, verb: &str, name: &str) {
        script(verb, &self.folder, &[name]);
    }

    /// A setting, `key=value`, of all roles that are started from now on.
    pub fn set(&self, setting: &str) {
        script("set", &self.folder, &[setting]);
    }

    /// The exit status of a role that has ended since it was last started; 128 plus the signal if
    /// one ended it.
    pub fn ended(&self, name: &str) -> Option<i32> {
        let read = |kind: &str| std::fs::read_to_string(self.folder.join(format!("{name}.{kind}"))).ok();
        let (status, pid) = (read("status")?, read("pid")?);
        let (of, status) = status.trim().split_once(' ')?;
        // One of an earlier process may be written late.
        (of == pid.trim()).then(|| status.parse().unwrap())
    }

    /// The broker of Kafka.
    pub fn broker(&self) -> String {
        std::fs::read_to_string(self.folder.join("kafka.broker")).unwrap().trim().to_owned()
    }

    /// True when Redis has something under `key`.
    pub fn redis_has(&self, key: &str) -> bool {
        self.redis(&["exists", key]).starts_with('1')
    }

    /// What Redis answers to a command.
    pub fn redis(&self, notifications: &[&str]) -> String {
        let url = std::fs::read_to_string(self.folder.join("redis.url")).unwrap();
        let output = Command::new("redis-cli").args(["-u", url.trim()]).args(notifications).output();
        String::from_utf8_lossy(&output.expect("redis-cli runs").stdout).into_owned()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for name in ["comet1", "comet2", "logic1", "logic2", "job1", "job2", "kafka", "redis"] {
            let _ = command("kill", &self.folder, &[name]).output();
        }
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// How many partitions a job reads.
fn partitions_of(pages: SocketAddr) -> Option<u32> {
    let metrics = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(pages)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = metrics().ok()?;
    text.lines().find_map(|line| line.strip_prefix("goim_kafka_partitions ")?.parse().ok())
}

fn script(verb: &str, folder: &Path, arguments: &[&str]) {
    let output = command(verb, folder, arguments).output().expect("the script runs");
    succeeded(&format!("{verb} {arguments:?}"), &output);
}

fn succeeded(what: &str, output: &Output) {
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}

fn command(verb: &str, folder: &Path, arguments: &[&str]) -> Command {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/cluster.sh");
    let mut command = Command::new(script);
    command.arg(verb).arg(folder).args(arguments);
    command.env("CLUSTER_BINARY", env!("CARGO_BIN_EXE_goim")).env("CLUSTER_PORTS", "free");
    command
}
