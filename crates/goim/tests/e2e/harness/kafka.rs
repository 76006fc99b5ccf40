//! A Kafka broker of a test's own, which may fall silent.

use std::path::PathBuf;
use std::process::Command;

use super::unique;

/// The broker that scripts/test.sh starts for all tests. A test that calls this is marked
/// `#[ignore]`, so that a run without engines reports it as ignored.
///
/// # Panics
/// When `TEST_KAFKA` names none.
pub fn broker() -> String {
    let broker = std::env::var("TEST_KAFKA").ok().filter(|broker| !broker.is_empty());
    broker.expect("TEST_KAFKA names no broker: run scripts/test.sh")
}

/// A running broker. It ends when this is dropped.
pub struct Kafka {
    folder: PathBuf,
    /// Where it is.
    pub broker: String,
}

impl Kafka {
    /// Starts one.
    pub fn start() -> Self {
        let folder = std::env::temp_dir().join(unique(&format!("goim-kafka-{}", std::process::id())));
        let mut kafka = Self { folder, broker: String::new() };
        kafka.broker = kafka.script("start");
        kafka
    }

    fn script(&self, verb: &str) -> String {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/engines/kafka.sh");
        let output = Command::new(script).arg(verb).arg(&self.folder).output().expect("the script runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// It stops in the midst of what it does: connections stay, and nothing is answered.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Resumes it.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.folder.join("pid")).expect("a broker that runs");
        assert!(Command::new("kill").args([signal, pid.trim()]).status().unwrap().success());
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.script("kill");
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
