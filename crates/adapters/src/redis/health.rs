//! Whether Redis can be used, and what of its word can be believed.
//!
//! Half of it may fail: a server without memory, a replica, a full disk, too few replicas: it
//! answers questions, deletes perhaps, and takes no new word. So that somebody is *there* can be
//! believed as long as it is read; that somebody is **not** there cannot, while nobody can say that
//! he is, nor for the time in which comets say it again. Every command teaches it, and so does a
//! small write that is made from time to time ([`super::RedisConfig::check_interval`]): one for
//! each of [`CANARIES`] parts of a cluster, since one of its masters may refuse what the others
//! take.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use redis::{Cmd, ErrorKind, RedisError as ClientError, ServerErrorKind, Value, cmd};

/// Parts of a cluster's slots that are written to: more than a cluster is likely to have masters.
const CANARIES: u16 = 32;
/// Slots of a cluster.
const SLOTS: u16 = 16_384;
/// Rounds without an answer, one behind the other, until Redis counts as silent: one may be an
/// accident.
const SILENT_ROUNDS: u32 = 2;
/// Servers that are remembered as known.
const SERVERS_MAX: usize = 1_024;

/// What is wrong with Redis at this moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisTrouble {
    /// It does not answer, or not with what was asked for.
    #[error("redis does not answer: {0}")]
    Silent(String),
    /// It answers, and takes nothing new.
    #[error("redis refuses writes: {0}")]
    RefusesWrites(String),
}

/// What cannot be believed of what Redis says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Doubt {
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
    trouble: Option<RedisTrouble>,
    /// When the last trouble was over.
    ended_at: Option<Instant>,
    silent_rounds: u32,
    /// What the servers call themselves: another word for each start of each.
    servers: BTreeSet<String>,
    /// It was a master and is one no longer, or the other way round.
    has_moved: bool,
}

/// What has changed for whoever has said something to Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    /// Trouble has begun, or is of another kind.
    Trouble(RedisTrouble),
    /// It is over. What was said last before may be lost when `is_loss`.
    Over {
        trouble: RedisTrouble,
        is_loss: bool,
    },
    /// What was said is lost, all or the last of it.
    Loss,
}

impl Health {
    /// Takes in what stands under [`super::store::EPOCH`]. Another value than before, or none where
    /// there was one, is a loss.
    pub(super) fn learn_epoch(&mut self, epoch: Option<String>) -> Change {
        let is_lost = self.epoch.is_some() && self.epoch != epoch;
        // Nobody could say anything again since.
        let is_still_lost = epoch.is_none() && self.lost_at.is_some();
        self.epoch = epoch;
        if is_lost || is_still_lost {
            self.lost_at = Some(Instant::now());
        }
        if is_lost { Change::Loss } else { Change::Nothing }
    }

    /// Time since somebody first wrote into a Redis that was empty, by the clock of who did; `None`
    /// when nobody has, or when it has not been looked at.
    pub(super) fn epoch_age(&self, now: Duration) -> Option<Duration> {
        let began: u64 = self.epoch.as_ref()?.parse().ok()?;
        Some(now.saturating_sub(Duration::from_nanos(began)))
    }

    /// Takes in what the servers call themselves. One that was not there before has been started
    /// since, or has taken another's place: the last that was said before may not be in it.
    pub(super) fn learn_servers(&mut self, servers: BTreeSet<String>) -> Change {
        if servers.is_empty() {
            return Change::Nothing;
        }
        let is_lost = !self.servers.is_empty() && !servers.is_subset(&self.servers);
        if self.servers.len() > SERVERS_MAX {
            self.servers.clear();
        }
        self.servers.extend(servers);
        if is_lost {
            self.lost_at = Some(Instant::now());
            return Change::Loss;
        }
        Change::Nothing
    }

    /// A write was refused.
    pub(super) fn refused(&mut self, reason: String) -> Change {
        self.has_moved |= reason.contains("READONLY");
        self.silent_rounds = 0;
        self.begins(RedisTrouble::RefusesWrites(reason))
    }

    /// A round of small writes had no answer.
    pub(super) fn silent(&mut self, reason: String) -> Change {
        self.silent_rounds = self.silent_rounds.saturating_add(1);
        if self.silent_rounds < SILENT_ROUNDS {
            return Change::Nothing;
        }
        self.begins(RedisTrouble::Silent(reason))
    }

    fn begins(&mut self, trouble: RedisTrouble) -> Change {
        let is_known = self
            .trouble
            .as_ref()
            .is_some_and(|known| std::mem::discriminant(known) == std::mem::discriminant(&trouble));
        self.trouble = Some(trouble.clone());
        if is_known { Change::Nothing } else { Change::Trouble(trouble) }
    }

    /// A round of small writes was taken.
    pub(super) fn is_well(&mut self) -> Change {
        self.silent_rounds = 0;
        let Some(trouble) = self.trouble.take() else { return Change::Nothing };
        self.ended_at = Some(Instant::now());
        // Another server may have taken its place, without the last that was said.
        Change::Over { trouble, is_loss: std::mem::take(&mut self.has_moved) }
    }

    pub(super) fn trouble(&self) -> Option<&RedisTrouble> {
        self.trouble.as_ref()
    }

    pub(super) fn since_loss(&self) -> Option<Duration> {
        self.lost_at.map(|at| at.elapsed())
    }

    /// True when nothing is wrong and nothing was for `time`: whoever is there has had that long to
    /// say so.
    pub(super) fn is_calm(&self, time: Duration) -> bool {
        let is_past = |at: Option<Instant>| at.is_none_or(|at| at.elapsed() >= time);
        self.trouble.is_none() && is_past(self.ended_at) && is_past(self.lost_at)
    }

    /// What cannot be believed: for `recovery_grace` after a loss, and for `settling` after any
    /// trouble.
    pub(super) fn doubt(&self, recovery_grace: Duration, settling: Duration) -> Option<Doubt> {
        if self.since_loss().is_some_and(|since| since < recovery_grace) {
            return Some(Doubt::Everything("it has lost its sessions, and comets are entering them again"));
        }
        if let Some(trouble) = &self.trouble {
            return Some(Doubt::Absence(format!("who is not found may be there all the same: {trouble}")));
        }
        let is_recent = self.ended_at.is_some_and(|at| at.elapsed() < settling);
        is_recent.then(|| {
            Doubt::Absence(
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
pub(super) fn servers_of(answer: &Value) -> BTreeSet<String> {
    match answer {
        Value::BulkString(text) => name_in(&String::from_utf8_lossy(text)).into_iter().collect(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => name_in(text).into_iter().collect(),
        Value::Array(values) => values.iter().flat_map(servers_of).collect(),
        Value::Map(pairs) => pairs.iter().flat_map(|(_, value)| servers_of(value)).collect(),
        _ => BTreeSet::new(),
    }
}

fn name_in(info: &str) -> Option<String> {
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
        assert_eq!(health.silent("late".to_owned()), Change::Nothing);
        assert_eq!(health.is_well(), Change::Nothing);
        assert_eq!(health.silent("late".to_owned()), Change::Nothing);
        assert!(health.is_calm(Duration::MAX));
        assert!(matches!(health.silent("late".to_owned()), Change::Trouble(RedisTrouble::Silent(_))));
        assert!(matches!(
            health.refused("OOM x".to_owned()),
            Change::Trouble(RedisTrouble::RefusesWrites(_))
        ));
        assert_eq!(health.refused("OOM y".to_owned()), Change::Nothing, "said once");
        let hour = Duration::from_secs(3600);
        assert!(matches!(health.doubt(hour, hour), Some(Doubt::Absence(text)) if text.contains("OOM y")));
        assert!(matches!(health.is_well(), Change::Over { is_loss: false, .. }));
        assert!(health.doubt(hour, hour).is_some() && health.doubt(hour, Duration::ZERO).is_none());
        assert!(!health.is_calm(hour) && health.is_calm(Duration::ZERO));
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
        assert_eq!(health.learn_servers(named("a")), Change::Nothing);
        assert_eq!(health.learn_servers(BTreeSet::new()), Change::Nothing, "it may not be told");
        assert_eq!(health.learn_servers(named("a")), Change::Nothing);
        assert_eq!(health.learn_servers(named("b")), Change::Loss);
        let hour = Duration::from_secs(3600);
        assert!(matches!(health.doubt(hour, hour), Some(Doubt::Everything(_))));
        assert_eq!(health.learn_epoch(Some("1".to_owned())), Change::Nothing);
        assert_eq!(health.learn_epoch(None), Change::Loss);
        assert_eq!(health.learn_epoch(None), Change::Nothing);
        assert_eq!(health.learn_epoch(Some("2".to_owned())), Change::Nothing);
    }

    #[test]
    fn the_age_of_what_redis_has_is_that_of_its_epoch() {
        let mut health = Health::default();
        let age = |health: &Health, now_ms: u64| health.epoch_age(Duration::from_millis(now_ms));
        assert_eq!(age(&health, 1), None);
        health.learn_epoch(Some("2000000000".to_owned()));
        assert_eq!(age(&health, 2_700), Some(Duration::from_millis(700)));
        assert_eq!(age(&health, 1_000), Some(Duration::ZERO), "the other clock is ahead");
    }
}
