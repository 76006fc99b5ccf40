//! A reader in a child process that tests can kill: this test binary, run for a single test.

use std::future::IntoFuture;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc;

use super::*;

const CONFIG: &str = "GOIM_TEST_READER";

/// A child process that prints the records that it reads, and marks them as done only when
/// `is_working`.
pub(super) struct Reader {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Reader {
    pub(super) fn start(config: &KafkaConfig) -> Self {
        Self::start_with(config, false)
    }

    /// Starts one that marks all records as done.
    pub(super) fn start_working(config: &KafkaConfig) -> Self {
        Self::start_with(config, true)
    }

    fn start_with(config: &KafkaConfig, is_working: bool) -> Self {
        let name = config.instance_id.as_deref().unwrap_or("-");
        let session = config.session_timeout.as_millis();
        let text = format!(
            "{} {} {} {name} {session} {is_working}",
            config.broker_list(),
            config.topic,
            config.group
        );
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kafka::tests::child_process::reads", "--ignored", "--nocapture"])
            .env(CONFIG, text)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (said, lines) = mpsc::channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).all(|line| said.send(line).is_ok()));
        Self { child, lines }
    }

    /// Returns the records read since the last call.
    pub(super) fn has_read(&self) -> Vec<String> {
        self.lines.try_iter().filter_map(|line| Some(line.split_once("read: ")?.1.to_owned())).collect()
    }

    /// Pushes until it reads a record.
    pub(super) async fn reads_after<F>(&mut self, push: impl Fn() -> F)
    where
        F: IntoFuture<Output = Result<(), AppendError>>,
    {
        let until = Instant::now() + Duration::from_secs(30);
        while self.has_read().is_empty() {
            assert!(Instant::now() < until, "the process reads nothing");
            push().await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Kills it, like a crash.
    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the process that other tests start and kill"]
#[allow(clippy::print_stdout, reason = "that is how the other process hears of it")]
async fn reads() {
    let Ok(text) = std::env::var(CONFIG) else { return };
    let words: Vec<&str> = text.split(' ').collect();
    let [broker, topic, group, name, session, is_working] = words[..] else { panic!("{text}") };
    let config = KafkaConfig {
        brokers: vec![broker.to_owned()],
        topic: topic.to_owned(),
        group: group.to_owned(),
        instance_id: (name != "-").then(|| name.to_owned()),
        session_timeout: Duration::from_millis(session.parse().unwrap()),
        commit_interval: Duration::from_millis(100),
        ..KafkaConfig::default()
    };
    let mut reader = KafkaPushLogReader::join(config).await.unwrap();
    loop {
        for entry in reader.read().await.unwrap().unwrap() {
            println!("read: {}", String::from_utf8_lossy(entry.record.payload.primary_bytes()));
            if is_working == "true" {
                reader.done(entry.position);
            }
        }
    }
}
