//! What a process uses, from `/proc`: memory, and CPU time with that of the kernel's soft
//! interrupts.

use std::fs;
use std::time::Duration;

use serde::Serialize;

use crate::figures::float;
use crate::figures::{Figure, Unit};
use crate::machine::{field, kibibytes};

/// The memory of a process at one time, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    /// Resident memory.
    pub(crate) rss: u64,
    /// Resident memory, with shared pages divided among the processes that share them.
    pub(crate) pss: u64,
}

impl Memory {
    /// Reads the memory of a process. `None` when it does not exist or belongs to another user.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        Some(Self {
            rss: field(&status, "VmRSS").and_then(kibibytes)?,
            pss: field(&rollup, "Pss").and_then(kibibytes).unwrap_or_default(),
        })
    }

    /// Returns the resident memory in MiB.
    pub(crate) fn rss_mebibytes(&self) -> f64 {
        float(self.rss) / 1_048_576.0
    }
}

/// The memory of a server during one run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MemoryProfile {
    /// Before the first client.
    pub(crate) before: Memory,
    /// All clients authenticated, no message sent.
    pub(crate) idle: Memory,
    /// After all messages.
    pub(crate) after_messages: Memory,
    /// After all clients have left.
    pub(crate) after_leaving: Memory,
}

impl MemoryProfile {
    /// Returns the figures of the profile. The reference stores nothing for its clients, so they
    /// are not compared.
    pub(crate) fn figures(&self, clients: u32) -> Vec<Figure> {
        let per_client =
            |now: u64, before: u64| float(now.saturating_sub(before)) / f64::from(clients.max(1));
        let before = self.before;
        let used = self.after_messages.rss.saturating_sub(before.rss);
        let returned = self.after_messages.rss.saturating_sub(self.after_leaving.rss);
        let bytes = |name, value| Figure::absolute(name, Unit::Bytes, value);
        let mebibytes =
            |name, memory: Memory| Figure::absolute(name, Unit::Mebibytes, memory.rss_mebibytes());
        vec![
            bytes("RSS per idle session", per_client(self.idle.rss, before.rss)),
            bytes("PSS per idle session", per_client(self.idle.pss, before.pss)),
            bytes("RSS per session after messages", per_client(self.after_messages.rss, before.rss)),
            mebibytes("RSS before", before),
            mebibytes("RSS, all sessions idle", self.idle),
            mebibytes("RSS after messages", self.after_messages),
            mebibytes("RSS after all have left", self.after_leaving),
            Figure::absolute("memory returned", Unit::Percent, float(returned) / float(used.max(1)) * 100.0),
        ]
    }
}

/// Returns the CPU time of a process so far, with that of the soft interrupt threads of these CPUs.
/// `None` when the process does not exist.
pub(crate) fn cpu_time(pid: Option<u32>, cpus: &[usize]) -> Option<Duration> {
    Some(crate::clock::cpu_of(pid?)? + softirq_time(cpus))
}

/// Returns the CPU time of the kernel's soft interrupt threads of these CPUs, or of all when the
/// list is empty. They do work on sockets that is charged to no process.
fn softirq_time(cpus: &[usize]) -> Duration {
    let names: Vec<String> = cpus.iter().map(|number| format!("ksoftirqd/{number}")).collect();
    let Ok(processes) = fs::read_dir("/proc") else { return Duration::ZERO };
    let paths = processes.flatten().map(|entry| entry.path());
    let threads = paths.filter(|path| {
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        let name = name.trim_end();
        name.starts_with("ksoftirqd/") && (names.is_empty() || names.iter().any(|wanted| wanted == name))
    });
    let nanos = threads.filter_map(|path| {
        let text = fs::read_to_string(path.join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_cpu_time() {
        let memory = Memory::of(std::process::id()).unwrap();
        assert!(memory.rss > 0, "{memory:?}");
        assert_eq!(Memory::of(u32::MAX), None);
        assert!(cpu_time(Some(std::process::id()), &[0]).unwrap() > Duration::ZERO);
        assert_eq!(cpu_time(Some(u32::MAX), &[]), None);
        assert_eq!(cpu_time(None, &[]), None);
    }

    #[test]
    fn memory_per_session_counts_from_before_the_first_client() {
        let memory = |rss| Memory { rss, pss: rss };
        let profile = MemoryProfile {
            before: memory(1_000_000),
            idle: memory(1_500_000),
            after_messages: memory(2_000_000),
            after_leaving: memory(1_100_000),
        };
        let figures = profile.figures(1_000);
        let value = |name| figures.iter().find(|figure| figure.name == name).unwrap().value;
        assert_eq!(value("RSS per idle session"), 500.0);
        assert_eq!(value("RSS per session after messages"), 1_000.0);
        assert_eq!(value("memory returned"), 90.0);
    }
}
