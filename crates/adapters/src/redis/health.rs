//! The health of Redis, and which of its answers can be trusted.
//!
//! Redis may fail in part: out of memory, a replica, a full disk, too few replicas. It answers reads and refuses writes. A
//! session that is found can then still be trusted. A session that is *not* found cannot: comets cannot register it, and
//! need some time after the recovery. Every command updates the health, and so does a small periodic write
//! ([`super::RedisConfig::check_interval`]), one for each of [`CANARIES`] ranges of a cluster's slots, since a single
//! master may refuse what the others accept.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use redis::{Cmd, ErrorKind, RedisError as ClientError, ServerErrorKind, Value, cmd};

/// Parts of a cluster's slots that are written to: more than a cluster is likely to have masters.
const CANARIES: u16 = 32;
/// Slots of a cluster.
const SLOTS: u16 = 16_384;
/// Rounds without an answer, one behind the other, until Redis counts as silent: one may be an
/// accident.
const FAILED_ROUNDS: u32 = 2;
/// Servers that are remembered as known.
const SERVERS_MAX: usize = 1_024;

/// What is wrong with Redis at this moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisFault {
    /// It does not answer, or not with what was asked for.
    #[error("redis does not answer: {0}")]
    Unresponsive(String),
    /// It answers, and takes nothing new.
    #[error("redis refuses writes: {0}")]
    RefusesWrites(String),
}

/// What cannot be believed of what Redis says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Untrusted {
    /// It has lost what it had: of a member's sessions some may be entered again and others not
    /// yet.
    Everything(&'static str),
    /// That somebody is not there.
    Absence(String),
}

/// What is known of Redis.
#[derive(Debug, Default)]
pub(super) struct Health {
    epoch: Option<String>,
    lost_at: Option<Instant>,
    fault: Option<RedisFault>,
    /// When the last fault was over.
    recovered_at: Option<Instant>,
    failed_rounds: u32,
    /// What the servers call themselves: another word for each start of each.
    servers: BTreeSet<String>,
    /// It was a master and is one no longer, or the other way round.
    role_changed: bool,
}

/// What has changed for whoever has said something to Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HealthChange {
    Nothing,
    /// Fault has begun, or is of another kind.
    Fault(RedisFault),
    /// It is over. What was said last before may be lost when `is_loss`.
    Recovered {
        fault: RedisFault,
        is_loss: bool,
    },
    /// What was said is lost, all or the last of it.
    Loss,
}

impl Health {
    /// Takes in what stands under [`super::store::EPOCH`]. Another value than before, or none where
    /// there was one, is a loss.
    pub(super) fn record_epoch(&mut self, epoch: Option<String>) -> HealthChange {
        let is_lost = self.epoch.is_some() && self.epoch != epoch;
        // Nobody could say anything again since.
        let is_still_lost = epoch.is_none() && self.lost_at.is_some();
        self.epoch = epoch;
        if is_lost || is_still_lost {
            self.lost_at = Some(Instant::now());
        }
        if is_lost { HealthChange::Loss } else { HealthChange::Nothing }
    }

    /// Time since somebody first wrote into a Redis that was empty, by the clock of who did; `None`
    /// when nobody has, or when it has not been looked at.
    pub(super) fn epoch_age(&self, now: Duration) -> Option<Duration> {
        let began: u64 = self.epoch.as_ref()?.parse().ok()?;
        Some(now.saturating_sub(Duration::from_nanos(began)))
    }

    /// Takes in what the servers call themselves. One that was not there before has been started
    /// since, or has taken another's place: the last that was said before may not be in it.
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

    /// A write was refused.
    pub(super) fn record_refusal(&mut self, reason: String) -> HealthChange {
        self.role_changed |= reason.contains("READONLY");
        self.failed_rounds = 0;
        self.begin(RedisFault::RefusesWrites(reason))
    }

    /// A round of small writes had no answer.
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

    /// A round of small writes was taken.
    pub(super) fn record_success(&mut self) -> HealthChange {
        self.failed_rounds = 0;
        let Some(fault) = self.fault.take() else { return HealthChange::Nothing };
        self.recovered_at = Some(Instant::now());
        // Another server may have taken its place, without the last that was said.
        HealthChange::Recovered { fault, is_loss: std::mem::take(&mut self.role_changed) }
    }

    pub(super) fn fault(&self) -> Option<&RedisFault> {
        self.fault.as_ref()
    }

    pub(super) fn since_loss(&self) -> Option<Duration> {
        self.lost_at.map(|at| at.elapsed())
    }

    /// True when nothing is wrong and nothing was for `time`: whoever is there has had that long to
    /// say so.
    pub(super) fn is_healthy_for(&self, time: Duration) -> bool {
        let is_past = |at: Option<Instant>| at.is_none_or(|at| at.elapsed() >= time);
        self.fault.is_none() && is_past(self.recovered_at) && is_past(self.lost_at)
    }

    /// What cannot be believed: for `recovery_grace` after a loss, and for `settling` after any
    /// fault.
    pub(super) fn untrusted(&self, recovery_grace: Duration, settling: Duration) -> Option<Untrusted> {
        if self.since_loss().is_some_and(|since| since < recovery_grace) {
            return Some(Untrusted::Everything(
                "it has lost its sessions, and comets are entering them again",
            ));
        }
        if let Some(fault) = &self.fault {
            return Some(Untrusted::Absence(format!("who is not found may be there all the same: {fault}")));
        }
        let is_recent = self.recovered_at.is_some_and(|at| at.elapsed() < settling);
        is_recent.then(|| {
            Untrusted::Absence(
                "it could not be written to until now, and comets enter their sessions again".to_owned(),
            )
        })
    }
}

/// Why Redis has refused to write, when that is what the error says.
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
        let text = details.filter(|details| !details.is_empty()).unwrap_or("no more is said");
        REFUSALS.contains(&code).then(|| format!("{code} {text}"))
    };
    if let Some(refusal) = error.code().and_then(|code| of_server(code, error.detail()))
        && !refusal.starts_with("EXECABORT")
    {
        return Some(refusal);
    }
    let errors = error.clone().into_server_errors()?;
    let refusals = errors.iter().filter_map(|(_, error)| of_server(error.code(), error.details()));
    // The cause says more than its consequence.
    refusals.min_by_key(|refusal| refusal.starts_with("EXECABORT"))
}

/// True when Redis answers, and will not have us: trying again does not help.
pub(super) fn is_rejection(error: &ClientError) -> bool {
    // An end within the handshake is none of these: a server that goes, or comes, ends it so too.
    let is_certificate = error.is_io_error() && {
        let text = error.to_string().to_lowercase();
        ["certificate", "fatal alert", "invalidcontenttype", "corrupt message", "unknownissuer"]
            .iter()
            .any(|word| text.contains(word))
    };
    let code = error.code().unwrap_or_default();
    matches!(error.kind(), ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig)
        || matches!(error.kind(), ErrorKind::Server(ServerErrorKind::NoPerm))
        || matches!(code, "NOAUTH" | "WRONGPASS" | "NOPERM")
        || is_certificate
        || ["WRONGPASS", "NOAUTH", "invalid username-password", "Password authentication failed"]
            .iter()
            .any(|word| error.to_string().contains(word))
}

/// Small writes: to each part of a cluster, or one.
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

/// A write that writes nothing: only what is there already would be set, and nothing is. Redis
/// refuses it as it would any other.
pub(super) fn canary(name: &str) -> Cmd {
    cmd("SET").arg(name).arg(1).arg("XX").to_owned()
}

/// The slot of a hash tag: CRC16 (XMODEM), as Redis's specification of clusters has it.
fn slot_of(tag: &[u8]) -> u16 {
    let crc =
        tag.iter().fold(0_u16, |crc, byte| {
            (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 }
            })
        });
    crc % SLOTS
}

/// What the servers that have answered `INFO server` call themselves: one text, or one for each.
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
    fn one_silent_round_is_no_trouble_and_one_refusal_is() {
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
        assert_eq!(health.record_refusal("OOM y".to_owned()), HealthChange::Nothing, "said once");
        let hour = Duration::from_secs(3600);
        assert!(
            matches!(health.untrusted(hour, hour), Some(Untrusted::Absence(text)) if text.contains("OOM y"))
        );
        assert!(matches!(health.record_success(), HealthChange::Recovered { is_loss: false, .. }));
        assert!(health.untrusted(hour, hour).is_some() && health.untrusted(hour, Duration::ZERO).is_none());
        assert!(!health.is_healthy_for(hour) && health.is_healthy_for(Duration::ZERO));
    }

    #[test]
    fn refusals_are_told_from_other_errors() {
        let said =
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
            let error = said(&format!("{text}\r\n"));
            assert_eq!(refusal_of(&error).is_some(), refusal, "{text}: {error:?}");
            if let Some(reason) = refusal_of(&error) {
                assert_eq!(reason, text[1..], "as Redis says it");
            }
        }
        for (text, rejection) in [
            ("-WRONGPASS invalid username-password pair or user is disabled.", true),
            ("-NOAUTH Authentication required.", true),
            ("-LOADING Redis is loading the dataset in memory", false),
            ("-OOM command not allowed when used memory > 'maxmemory'.", false),
        ] {
            assert_eq!(is_rejection(&said(&format!("{text}\r\n"))), rejection, "{text}");
        }
    }

    #[test]
    fn another_server_and_an_epoch_that_has_gone_are_losses() {
        let mut health = Health::default();
        let named = |name: &str| BTreeSet::from([name.to_owned()]);
        assert_eq!(health.record_servers(named("a")), HealthChange::Nothing);
        assert_eq!(health.record_servers(BTreeSet::new()), HealthChange::Nothing, "it may not be told");
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
