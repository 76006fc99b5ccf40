//! Engines and clusters of tests start on a machine where other programs take ports: ports that are
//! taken before the check are not chosen, and ports that are taken after it lead to another try.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::harness::unique;

/// From a node's port of a Redis cluster to that of its bus.
const BUS: u16 = 10_000;

fn script(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts").join(name))
}

fn text(output: &Output) -> String {
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn free_ports(arguments: &[&str]) -> Vec<u16> {
    let output = script("engines/free-ports.py").args(arguments).output().unwrap();
    text(&output).split(' ').map(|port| port.parse().unwrap()).collect()
}

/// A free port; the port so far above it is free as well.
fn a_port() -> u16 {
    free_ports(&["1", "11000", "22000", "--also", &BUS.to_string()])[0]
}

/// Another program, which answers nothing.
fn taken(port: u16) -> TcpListener {
    TcpListener::bind(("127.0.0.1", port)).unwrap()
}

/// A folder of a test, and in it the ports that are tried before others.
struct Folder(PathBuf);

impl Folder {
    /// `first` are lines of the file that `free-ports.py` describes.
    fn new(first: &[String]) -> Self {
        let folder = std::env::temp_dir().join(unique(&format!("goim-ports-{}", std::process::id())));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("first"), first.join("\n")).unwrap();
        Self(folder)
    }

    fn first(&self) -> PathBuf {
        self.0.join("first")
    }

    /// The answer of a script that starts something here.
    fn start(&self, name: &str, kind: &[&str]) -> String {
        let engine = self.0.join("engine");
        let output =
            script(name).arg("start").arg(&engine).args(kind).env("FREE_PORTS_FIRST", self.first()).output();
        let output = output.unwrap();
        let answer = text(&output);
        assert_eq!(std::fs::read_to_string(self.first()).unwrap().trim(), "", "all were tried");
        answer
    }

    fn stop(&self, name: &str) {
        text(&script(name).arg("stop").arg(self.0.join("engine")).output().unwrap());
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// An engine is up, and not on this port, which another program took after the check.
fn comes_up_elsewhere(name: &str, kind: &[&str], before: usize, port: u16) {
    let mut first: Vec<String> = (0..before).map(|_| a_port().to_string()).collect();
    first.push(format!("{port} taken"));
    let folder = Folder::new(&first);
    let answer = folder.start(name, kind);
    assert!(!answer.is_empty() && !answer.contains(&port.to_string()), "{name} {kind:?}: {answer}");
    folder.stop(name);
}

#[test]
fn a_port_is_free_when_its_neighbour_is_and_it_is_free_at_every_address() {
    let port = a_port();
    let ask = |more: &[&str]| {
        let folder = Folder::new(&[port.to_string()]);
        let mut command = script("engines/free-ports.py");
        let output =
            command.args(["1", "11000", "22000"]).args(more).env("FREE_PORTS_FIRST", folder.first()).output();
        std::fs::remove_dir_all(&folder.0).unwrap();
        text(&output.unwrap()).parse::<u16>().unwrap()
    };
    let bus = taken(port + BUS);
    assert_eq!(ask(&[]), port, "the neighbour is not asked for");
    assert_ne!(ask(&["--also", &BUS.to_string()]), port);
    drop(bus);
    let elsewhere = TcpListener::bind(("127.0.0.9", port)).unwrap();
    assert_ne!(ask(&[]), port);
    drop(elsewhere);
    assert_eq!(ask(&["--also", &BUS.to_string()]), port);
}

#[test]
fn ports_are_different_and_their_lack_is_an_error() {
    let mut ports = free_ports(&["50", "11000", "22000", "--also", "10000"]);
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 50);
    let output = script("engines/free-ports.py").args(["3", "11000", "11002"]).output().unwrap();
    assert!(!output.status.success());
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(printed.contains("of 3 ports are free"), "{printed}");
}

#[test]
#[ignore = "needs engines: scripts/test.sh"]
fn redis_starts_beside_others_in_every_mode() {
    for (kind, before) in [("single", 0), ("cluster", 5), ("sentinel", 1), ("sentinel", 4)] {
        let port = a_port();
        let _other = taken(port);
        comes_up_elsewhere("engines/redis.sh", &[kind], before, port);
    }
}

#[test]
#[ignore = "needs engines: scripts/test.sh"]
fn a_redis_cluster_starts_when_the_port_of_a_bus_is_taken() {
    let port = a_port();
    let _other = taken(port + BUS);
    // After the look.
    comes_up_elsewhere("engines/redis.sh", &["cluster"], 2, port);
    // Before it.
    let folder = Folder::new(&[port.to_string()]);
    let answer = folder.start("engines/redis.sh", &["cluster"]);
    assert!(!answer.contains(&port.to_string()), "{answer}");
    folder.stop("engines/redis.sh");
}

#[test]
#[ignore = "needs engines: scripts/test.sh"]
fn kafka_starts_when_the_port_of_its_clients_or_of_its_controller_is_taken() {
    for before in [0, 1] {
        let port = a_port();
        let _other = taken(port);
        comes_up_elsewhere("engines/kafka.sh", &[], before, port);
    }
}

#[test]
#[ignore = "needs engines: scripts/test.sh"]
fn postgres_starts_beside_others() {
    let port = a_port();
    let _other = taken(port);
    comes_up_elsewhere("engines/postgres.sh", &[], 0, port);
}

/// An engine that ran before keeps its port, and waits for the program that has it.
#[test]
#[ignore = "needs engines: scripts/test.sh"]
fn an_engine_that_is_started_again_gets_its_port_back() {
    for name in ["engines/redis.sh", "engines/postgres.sh", "engines/kafka.sh"] {
        let folder = Folder::new(&[]);
        let answer = folder.start(name, &[]);
        text(&script(name).arg("stop").arg(folder.0.join("engine")).output().unwrap());
        let port = std::fs::read_to_string(folder.0.join("engine/port")).unwrap().trim().parse().unwrap();
        let other = taken(port);
        let goes = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(1500));
            drop(other);
        });
        assert_eq!(folder.start(name, &[]), answer, "{name}");
        goes.join().unwrap();
        folder.stop(name);
    }
}

/// All processes of a cluster start when another program has a port that one of them would take.
#[test]
#[ignore = "needs engines: scripts/test.sh"]
fn a_cluster_starts_beside_others() {
    let port = a_port();
    let _other = taken(port);
    // Redis has the first, Kafka the next two.
    let mut first: Vec<String> = (0..8).map(|_| a_port().to_string()).collect();
    first.push(format!("{port} taken"));
    let folder = Folder::new(&first);
    let engine = folder.0.join("engine");
    for name in ["engines/redis.sh", "engines/kafka.sh"] {
        let had = script(name).arg("get").output().unwrap();
        text(&had);
    }
    let mut command = script("cluster.sh");
    command.env("CLUSTER_BINARY", env!("CARGO_BIN_EXE_goim")).env("CLUSTER_PORTS", "free");
    let output = command.arg("start").arg(&engine).env("FREE_PORTS_FIRST", folder.first()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    let status = text(&output);
    assert!(printed.contains("starting on other ports"), "{printed}");
    assert!(status.lines().filter(|line| line.contains(" process ")).count() == 6, "{status}");
    assert!(!status.contains(&format!(":{port}")), "{status}");
    text(&script("cluster.sh").arg("stop").arg(&engine).output().unwrap());
    std::fs::remove_dir_all(&folder.0).unwrap();
}
