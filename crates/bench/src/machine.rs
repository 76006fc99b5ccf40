//! The machine that a benchmark runs on: its facts for the report, its limits, its processors.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use crate::error::BenchError;

/// What a reader of the figures must know of the machine. Its name is left out on purpose.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Facts {
    pub(crate) processors: usize,
    pub(crate) processor: String,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    pub(crate) open_files_max: u64,
    pub(crate) congestion_control: String,
}

/// What this machine is.
pub(crate) fn facts() -> Facts {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpuinfo = read("/proc/cpuinfo");
    let meminfo = read("/proc/meminfo");
    Facts {
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        processor: field(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
        memory_bytes: field(&meminfo, "MemTotal").and_then(kibibytes).unwrap_or_default(),
        kernel: read("/proc/sys/kernel/osrelease"),
        open_files_max: open_files_max(),
        congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control"),
    }
}

/// The value of the first line `name : value`.
pub(crate) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

/// The bytes of a value like `123 kB`.
pub(crate) fn kibibytes(value: &str) -> Option<u64> {
    value.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Time of all processors together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Processors {
    /// Spent on anything.
    pub(crate) busy: Duration,
    /// Passed.
    pub(crate) all: Duration,
}

/// How much time the processors have spent and had since the machine started; zero where that is not told.
pub(crate) fn processors() -> Processors {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    text.lines().next().and_then(sum_processors).unwrap_or_default()
}

/// Reads the first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
fn sum_processors(line: &str) -> Option<Processors> {
    let times: Vec<u64> =
        line.strip_prefix("cpu ")?.split_whitespace().take(8).map_while(|time| time.parse().ok()).collect();
    let all: u64 = times.iter().sum();
    let idle = times.get(3)?.checked_add(*times.get(4)?)?;
    let tick = rustix::param::clock_ticks_per_second().max(1);
    let time = |ticks: u64| Duration::from_micros(ticks.saturating_mul(1_000_000) / tick);
    Some(Processors { busy: time(all.checked_sub(idle)?), all: time(all) })
}

/// Open files that a process started here may have: the hard limit, which our own processes raise themselves to.
pub(crate) fn open_files_max() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Raises this process's limit of open files as far as it goes.
///
/// # Errors
/// What the system said.
pub(crate) fn raise_open_files() -> Result<(), BenchError> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return Ok(());
    }
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    raised.map_err(|error| BenchError::failed("cannot raise the limit of open files", error))
}

/// Open files that another process may have.
pub(crate) fn open_files_of(pid: u32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Ports that the system gives to outgoing connections, for each source address: the first, and how many.
pub(crate) fn outgoing_ports() -> (u16, u16) {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = range.split_whitespace().map_while(|bound| bound.parse::<u16>().ok());
    match (bounds.next(), bounds.next()) {
        (Some(first), Some(last)) if last > first => (first, last - first),
        _ => (32_768, 28_231),
    }
}

/// Processors of this machine.
pub(crate) fn processors_here() -> usize {
    fs::read_to_string("/proc/cpuinfo")
        .map_or(1, |text| text.lines().filter(|line| line.starts_with("processor")).count())
}

/// Bytes in all of the kernel's caches of objects; `None` where that is not told, as to everybody but root.
pub(crate) fn slab_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/slabinfo").ok()?;
    Some(text.lines().filter_map(slab_line).sum())
}

/// The bytes of one line: pages of all slabs, whether or not their objects are in use.
fn slab_line(line: &str) -> Option<u64> {
    let (head, rest) = line.split_once(" : tunables ")?;
    let pages_each = head.split_whitespace().nth(5)?.parse::<u64>().ok()?;
    let (_, data) = rest.split_once(" : slabdata ")?;
    let slabs = data.split_whitespace().nth(1)?.parse::<u64>().ok()?;
    Some(slabs * pages_each * rustix::param::page_size() as u64)
}

/// Has the system wake this thread as soon as a sleep is over, not up to 50 us later.
pub(crate) fn wake_exactly() {
    // A system that does not know this wakes us when it likes; the lateness is not counted as anybody's.
    let _ = fs::write("/proc/self/timerslack_ns", "1");
}

/// Runs `start` with this thread, and therefore what it starts, bound to these processors; empty binds nothing.
///
/// # Errors
/// When the system refuses, and those of `start`.
pub(crate) fn on_processors<T>(
    processors: &[usize],
    start: impl FnOnce() -> io::Result<T>,
) -> Result<T, BenchError> {
    let refused = |error| BenchError::failed("cannot bind to the processors that were named", error);
    if processors.is_empty() {
        return Ok(start()?);
    }
    let before = sched_getaffinity(None).map_err(refused)?;
    let mut wanted = CpuSet::new();
    processors.iter().filter(|at| **at < CpuSet::MAX_CPU).for_each(|at| wanted.set(*at));
    sched_setaffinity(None, &wanted).map_err(refused)?;
    let started = start();
    sched_setaffinity(None, &before).map_err(refused)?;
    Ok(started?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc() {
        let text = "MemTotal:       24633216 kB\nRss:   \t  12 kB\nmodel name\t: Some CPU @ 2 GHz\n";
        assert_eq!(field(text, "MemTotal").and_then(kibibytes), Some(24_633_216 * 1024));
        assert_eq!(field(text, "Rss").and_then(kibibytes), Some(12 * 1024));
        assert_eq!(field(text, "model name"), Some("Some CPU @ 2 GHz"));
        assert_eq!(field(text, "Pss"), None);
        assert_eq!(kibibytes("12 MB"), None);
    }

    #[test]
    fn bytes_of_a_cache() {
        let line = "TCP 120 140 2368 13 8 : tunables 0 0 0 : slabdata 9 10 0";
        assert_eq!(slab_line(line), Some(10 * 8 * rustix::param::page_size() as u64));
        assert_eq!(slab_line("# name <active_objs>"), None);
    }

    #[test]
    fn time_of_all_processors() {
        let tick = Duration::from_secs(1) / u32::try_from(rustix::param::clock_ticks_per_second()).unwrap();
        let line = "cpu  10 2 30 400 50 6 7 8 900 900";
        assert_eq!(sum_processors(line), Some(Processors { busy: tick * 63, all: tick * 513 }));
        assert_eq!(sum_processors("cpu0 1 2 3"), None);
        assert!(processors().all > processors().busy);
    }

    #[test]
    fn this_machine_has_facts() {
        let facts = facts();
        assert!(facts.processors >= 1 && facts.memory_bytes > 0 && !facts.kernel.is_empty(), "{facts:?}");
        assert_eq!(open_files_of(std::process::id()).is_some(), std::path::Path::new("/proc/self").exists());
    }
}
