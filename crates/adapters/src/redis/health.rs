//! The health of Redis, and which of its answers can be trusted.
//!
//! Redis may fail in part: out of memory, a replica, a full disk, too few replicas. It answers
//! reads and refuses writes. A session that is found can then still be trusted. A session that is
//! *not* found cannot: comets cannot register it, and need some time after the recovery. Every
//! command updates the health, and so does a small periodic write
//! ([`super::RedisConfig::check_interval`]), one for each of [`CANARIES`] ranges of a cluster's
//! slots, since a single master may refuse what the others accept.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use redis::{Cmd, ErrorKind, RedisError as ClientError, ServerErrorKind, Value, cmd};

/// The number of slot ranges of a cluster that get a canary write: more than a cluster is likely to
/// have masters.
const CANARIES: u16 = 32;
/// The number of slots of a cluster.
const SLOTS: u16 = 16_384;
/// The number of consecutive rounds without an answer after which Redis counts as unresponsive.
const FAILED_ROUNDS: u32 = 2;
/// The maximum number of remembered server run ids.
const SERVERS_MAX: usize = 1_024;

/// The current fault of Redis.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisFault {
    /// It does not answer, or answers with an unexpected value.
    #[error("redis does not answer: {0}")]
    Unresponsive(String),
    /// It answers reads and refuses writes.
    #[error("redis refuses writes: {0}")]
    RefusesWrites(String),
}

/// Which results cannot be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Untrusted {
    /// All results: Redis lost its data, and of a member's sessions some may be registered again
    /// and others not yet.
    Everything(&'static str),
    /// That a session was not found.
    Absence(String),
}

/// The health of Redis.
#[derive(Debug, Default)]
pub(super) struct Health {
    epoch: Option<String>,
    lost_at: Option<Instant>,
    fault: Option<RedisFault>,
    /// When the last fault ended.
    recovered_at: Option<Instant>,
    failed_rounds: u32,
    /// The run ids of the servers. A server has a new one after each start.
    servers: BTreeSet<String>,
    /// The server refused a write as a replica: a failover may have happened.
    role_changed: bool,
}

/// What a new observation changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HealthChange {
    Nothing,
    /// A fault began, or its kind changed.
    Fault(RedisFault),
    /// The fault ended. With `is_loss` the last writes before it may be lost.
    Recovered {
        fault: RedisFault,
        is_loss: bool,
    },
    /// Data was lost: all of it, or the last writes.
    Loss,
}

impl Health {
    /// Records the value of [`super::store::EPOCH`]. A changed or missing value is a loss.
    pub(super) fn record_epoch(&mut self, epoch: Option<String>) -> HealthChange {
        let is_lost = self.epoch.is_some() && self.epoch != epoch;
        // No comet has been able to write since the loss.
        let is_still_lost = epoch.is_none() && self.lost_at.is_some();
        self.epoch = epoch;
        if is_lost || is_still_lost {
            self.lost_at = Some(Instant::now());
        }
        if is_lost { HealthChange::Loss } else { HealthChange::Nothing }
    }

    /// Returns the time since the first write after Redis was empty, by the writer's clock; `None`
    /// when there was none or the epoch has not been read.
    pub(super) fn epoch_age(&self, now: Duration) -> Option<Duration> {
        let began: u64 = self.epoch.as_ref()?.parse().ok()?;
        Some(now.saturating_sub(Duration::from_nanos(began)))
    }

    /// Records the servers' run ids. A new one means that a server was started or replaced, so the
    /// last writes may be lost.
    pub(super) fn record_servers(&mut self, servers: BTreeSet<String>) -> HealthChange {
        if servers.is_empty() {
            return HealthChange::Nothing;
        }
        let is_lost = !self.servers.is_empty() && !servers.is_subset(&self.servers);
        if self.servers.len() > SERVERS_MAX {
            self.servers.clear();
        }
        self.servers.extend(servers);
        if is_lost {
            self.lost_at = Some(Instant::now());
            return HealthChange::Loss;
        }
        HealthChange::Nothing
    }

    #[cfg(test)]
    pub(super) fn knows_servers(&self) -> bool {
        !self.servers.is_empty()
    }

    /// Records a refused write.
    pub(super) fn record_refusal(&mut self, reason: String) -> HealthChange {
        self.role_changed |= reason.contains("READONLY");
        self.failed_rounds = 0;
        self.begin(RedisFault::RefusesWrites(reason))
    }

    /// Records a round of canary writes without an answer.
    pub(super) fn record_no_answer(&mut self, reason: String) -> HealthChange {
        self.failed_rounds = self.failed_rounds.saturating_add(1);
        if self.failed_rounds < FAILED_ROUNDS {
            return HealthChange::Nothing;
        }
        self.begin(RedisFault::Unresponsive(reason))
    }

    fn begin(&mut self, fault: RedisFault) -> HealthChange {
        let is_known = self
            .fault
            .as_ref()
            .is_some_and(|known| std::mem::discriminant(known) == std::mem::discriminant(&fault));
        self.fault = Some(fault.clone());
        if is_known { HealthChange::Nothing } else { HealthChange::Fault(fault) }
    }

    /// Records a successful round of canary writes.
    pub(super) fn record_success(&mut self) -> HealthChange {
        self.failed_rounds = 0;
        let Some(fault) = self.fault.take() else { return HealthChange::Nothing };
        self.recovered_at = Some(Instant::now());
        // After a failover the last writes may be missing.
        HealthChange::Recovered { fault, is_loss: std::mem::take(&mut self.role_changed) }
    }

    pub(super) fn fault(&self) -> Option<&RedisFault> {
        self.fault.as_ref()
    }

    pub(super) fn since_loss(&self) -> Option<Duration> {
        self.lost_at.map(|at| at.elapsed())
    }

    /// Returns whether there is no fault and was none for `time`: every live comet has had that
    /// long to register.
    pub(super) fn is_healthy_for(&self, time: Duration) -> bool {
        let is_past = |at: Option<Instant>| at.is_none_or(|at| at.elapsed() >= time);
        self.fault.is_none() && is_past(self.recovered_at) && is_past(self.lost_at)
    }

    /// Returns what cannot be trusted: for `recovery_grace` after a loss, and for `settling` after
    /// a fault.
    pub(super) fn untrusted(&self, recovery_grace: Duration, settling: Duration) -> Option<Untrusted> {
        if self.since_loss().is_some_and(|since| since < recovery_grace) {
            return Some(Untrusted::Everything(
                "it has lost its sessions, and comets are registering them again",
            ));
        }
        if let Some(fault) = &self.fault {
            return Some(Untrusted::Absence(format!("a session that is not found may exist: {fault}")));
        }
        let is_recent = self.recovered_at.is_some_and(|at| at.elapsed() < settling);
        is_recent.then(|| {
            Untrusted::Absence(
                "it recovered just now, and comets are registering their sessions again".to_owned(),
            )
        })
    }
}

/// Returns the reason when the error is a refused write.
pub(super) fn refusal_of(error: &ClientError) -> Option<String> {
    const REFUSALS: [&str; 10] = [
        "OOM",
        "READONLY",
        "MISCONF",
        "NOREPLICAS",
        "CLUSTERDOWN",
        "TRYAGAIN",
        "MASTERDOWN",
        "NOPERM",
        "EXECABORT",
        "NOMASTERLINK",
    ];
    let of_server = |code: &str, details: Option<&str>| {
        let text = details.filter(|details| !details.is_empty()).unwrap_or("no details");
        REFUSALS.contains(&code).then(|| format!("{code} {text}"))
    };
    if let Some(refusal) = error.code().and_then(|code| of_server(code, error.detail()))
        && !refusal.starts_with("EXECABORT")
    {
        return Some(refusal);
    }
    let errors = error.clone().into_server_errors()?;
    let refusals = errors.iter().filter_map(|(_, error)| of_server(error.code(), error.details()));
    // Prefer the cause to `EXECABORT`, its consequence.
    refusals.min_by_key(|refusal| refusal.starts_with("EXECABORT"))
}

/// Returns whether Redis rejects this client, so that retrying does not help.
pub(super) fn is_rejection(error: &ClientError) -> bool {
    // A connection closed during the handshake is no rejection: a starting or stopping server does
    // that too.
    let is_certificate = error.is_io_error() && {
        let text = error.to_string().to_lowercase();
        ["certificate", "fatal alert", "invalidcontenttype", "corrupt message", "unknownissuer"]
            .iter()
            .any(|part| text.contains(part))
    };
    let code = error.code().unwrap_or_default();
    matches!(error.kind(), ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig)
        || matches!(error.kind(), ErrorKind::Server(ServerErrorKind::NoPerm))
        || matches!(code, "NOAUTH" | "WRONGPASS" | "NOPERM")
        || is_certificate
        || ["WRONGPASS", "NOAUTH", "invalid username-password", "Password authentication failed"]
            .iter()
            .any(|part| error.to_string().contains(part))
}

/// Returns the keys of the canary writes: one for each slot range of a cluster, or a single one.
pub(super) fn canaries(is_cluster: bool) -> Vec<String> {
    if !is_cluster {
        return vec!["goim:canary".to_owned()];
    }
    let part = SLOTS / CANARIES;
    let mut found: Vec<Option<String>> = vec![None; usize::from(CANARIES)];
    for n in 0_u32.. {
        let tag = n.to_string();
        let of_part = &mut found[usize::from(slot_of(tag.as_bytes()) / part)];
        of_part.get_or_insert_with(|| format!("goim:canary:{{{tag}}}"));
        if found.iter().all(Option::is_some) {
            break;
        }
    }
    found.into_iter().flatten().collect()
}

/// Builds a canary write. It changes nothing: `XX` sets only existing keys, and the key never
/// exists. Redis refuses it like any other write.
pub(super) fn canary(name: &str) -> Cmd {
    cmd("SET").arg(name).arg(1).arg("XX").to_owned()
}

/// Returns the slot of a hash tag: CRC16 (XMODEM), as in the Redis cluster specification.
fn slot_of(tag: &[u8]) -> u16 {
    let crc =
        tag.iter().fold(0_u16, |crc, byte| {
            (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 }
            })
        });
    crc % SLOTS
}

/// Returns the run ids from the answers to `INFO server`: one text, or one for each server.
pub(super) fn run_ids_of(answer: &Value) -> BTreeSet<String> {
    match answer {
        Value::BulkString(text) => run_id_in(&String::from_utf8_lossy(text)).into_iter().collect(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => {
            run_id_in(text).into_iter().collect()
        }
        Value::Array(values) => values.iter().flat_map(run_ids_of).collect(),
        Value::Map(pairs) => pairs.iter().flat_map(|(_, value)| run_ids_of(value)).collect(),
        _ => BTreeSet::new(),
    }
}

fn run_id_in(info: &str) -> Option<String> {
    info.lines().find_map(|line| line.strip_prefix("run_id:")).map(|name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_redis_own() {
        // From the specification: "123456789" is 0x31C3.
        assert_eq!(slot_of(b"123456789"), 0x31C3);
        assert_eq!(slot_of(b"foo"), 12_182);
        assert_eq!(canaries(false), ["goim:canary"]);
        assert_eq!(canaries(true).len(), 32);
    }

    #[test]
    fn one_failed_round_is_no_fault_and_one_refusal_is() {
        let mut health = Health::default();
        assert_eq!(health.record_no_answer("late".to_owned()), HealthChange::Nothing);
        assert_eq!(health.record_success(), HealthChange::Nothing);
        assert_eq!(health.record_no_answer("late".to_owned()), HealthChange::Nothing);
        assert!(health.is_healthy_for(Duration::MAX));
        assert!(matches!(
            health.record_no_answer("late".to_owned()),
            HealthChange::Fault(RedisFault::Unresponsive(_))
        ));
        assert!(matches!(
            health.record_refusal("OOM x".to_owned()),
            HealthChange::Fault(RedisFault::RefusesWrites(_))
        ));
        assert_eq!(health.record_refusal("OOM y".to_owned()), HealthChange::Nothing, "reported once");
        let hour = Duration::from_secs(3600);
        assert!(
            matches!(health.untrusted(hour, hour), Some(Untrusted::Absence(text)) if text.contains("OOM y"))
        );
        assert!(matches!(health.record_success(), HealthChange::Recovered { is_loss: false, .. }));
        assert!(health.untrusted(hour, hour).is_some() && health.untrusted(hour, Duration::ZERO).is_none());
        assert!(!health.is_healthy_for(hour) && health.is_healthy_for(Duration::ZERO));
    }

    #[test]
    fn refusals_are_distinguished_from_other_errors() {
        let error_of =
            |text: &str| redis::parse_redis_value(text.as_bytes()).unwrap().extract_error().unwrap_err();
        for (text, refusal) in [
            ("-OOM command not allowed when used memory > 'maxmemory'.", true),
            ("-READONLY You can't write against a read only replica.", true),
            (
                "-MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
                true,
            ),
            ("-NOREPLICAS Not enough good replicas to write.", true),
            ("-CLUSTERDOWN The cluster is down", true),
            ("-TRYAGAIN Multiple keys request during rehashing of slot", true),
            ("-NOPERM this user has no permissions to run the 'set' command", true),
            ("-LOADING Redis is loading the dataset in memory", false),
            ("-WRONGTYPE Operation against a key holding the wrong kind of value", false),
            ("-ERR unknown command", false),
        ] {
            let error = error_of(&format!("{text}\r\n"));
            assert_eq!(refusal_of(&error).is_some(), refusal, "{text}: {error:?}");
            if let Some(reason) = refusal_of(&error) {
                assert_eq!(reason, text[1..], "Redis's text");
            }
        }
        for (text, rejection) in [
            ("-WRONGPASS invalid username-password pair or user is disabled.", true),
            ("-NOAUTH Authentication required.", true),
            ("-LOADING Redis is loading the dataset in memory", false),
            ("-OOM command not allowed when used memory > 'maxmemory'.", false),
        ] {
            assert_eq!(is_rejection(&error_of(&format!("{text}\r\n"))), rejection, "{text}");
        }
    }

    #[test]
    fn another_server_and_a_missing_epoch_are_losses() {
        let mut health = Health::default();
        let named = |name: &str| BTreeSet::from([name.to_owned()]);
        assert_eq!(health.record_servers(named("a")), HealthChange::Nothing);
        assert_eq!(health.record_servers(BTreeSet::new()), HealthChange::Nothing, "it may be hidden");
        assert_eq!(health.record_servers(named("a")), HealthChange::Nothing);
        assert_eq!(health.record_servers(named("b")), HealthChange::Loss);
        let hour = Duration::from_secs(3600);
        assert!(matches!(health.untrusted(hour, hour), Some(Untrusted::Everything(_))));
        assert_eq!(health.record_epoch(Some("1".to_owned())), HealthChange::Nothing);
        assert_eq!(health.record_epoch(None), HealthChange::Loss);
        assert_eq!(health.record_epoch(None), HealthChange::Nothing);
        assert_eq!(health.record_epoch(Some("2".to_owned())), HealthChange::Nothing);
    }

    #[test]
    fn the_age_of_what_redis_has_is_that_of_its_epoch() {
        let mut health = Health::default();
        let age = |health: &Health, now_ms: u64| health.epoch_age(Duration::from_millis(now_ms));
        assert_eq!(age(&health, 1), None);
        health.record_epoch(Some("2000000000".to_owned()));
        assert_eq!(age(&health, 2_700), Some(Duration::from_millis(700)));
        assert_eq!(age(&health, 1_000), Some(Duration::ZERO), "the other clock is ahead");
    }
}
