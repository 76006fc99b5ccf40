//! The machine: facts for the report, limits, CPUs.

use std::fs;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use crate::error::BenchError;

/// The facts that figures depend on. The name of the machine is left out on purpose.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Facts {
    pub(crate) processors: usize,
    pub(crate) processor: String,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    pub(crate) open_files_max: u64,
    pub(crate) congestion_control: String,
}

/// Returns the facts of this machine.
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

/// Returns the value of the first line `name : value`.
pub(crate) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

/// Parses a value such as `123 kB`, in bytes.
pub(crate) fn kibibytes(value: &str) -> Option<u64> {
    value.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Returns the limit of open files of processes started here: the hard limit, to which they raise
/// their own.
pub(crate) fn open_files_max() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Raises the limit of open files of this process to the maximum.
///
/// # Errors
/// The error of the system.
pub(crate) fn raise_open_files() -> Result<(), BenchError> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return Ok(());
    }
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    raised.map_err(|error| BenchError::failed("cannot raise the limit of open files", error))
}

/// Returns the ports for outgoing connections per source address: the first, and their number.
pub(crate) fn outgoing_ports() -> (u16, u16) {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = range.split_whitespace().map_while(|bound| bound.parse::<u16>().ok());
    match (bounds.next(), bounds.next()) {
        (Some(first), Some(last)) if last > first => (first, last - first),
        _ => (32_768, 28_231),
    }
}

/// Returns the number of CPUs of this machine.
pub(crate) fn cpu_count() -> usize {
    fs::read_to_string("/proc/cpuinfo")
        .map_or(1, |text| text.lines().filter(|line| line.starts_with("processor")).count())
}

/// Returns the bytes in all object caches of the kernel. `None` where they are not readable: only
/// root can read them.
pub(crate) fn slab_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/slabinfo").ok()?;
    Some(text.lines().filter_map(slab_line).sum())
}

/// Returns the bytes of one cache: the pages of all slabs, whether or not their objects are in use.
fn slab_line(line: &str) -> Option<u64> {
    let (head, rest) = line.split_once(" : tunables ")?;
    let pages_each = head.split_whitespace().nth(5)?.parse::<u64>().ok()?;
    let (_, data) = rest.split_once(" : slabdata ")?;
    let slabs = data.split_whitespace().nth(1)?.parse::<u64>().ok()?;
    Some(slabs * pages_each * rustix::param::page_size() as u64)
}

/// Minimizes the timer slack, so that a sleep ends on time instead of up to 50 us later.
pub(crate) fn set_timer_slack() {
    // Without it, wake-ups are late, which callers do not count as latency.
    let _ = fs::write("/proc/self/timerslack_ns", "1");
}

/// Runs `start` with this thread, and the processes it starts, bound to these CPUs; an empty list
/// binds nothing.
///
/// # Errors
/// When the system refuses; those of `start`.
pub(crate) fn bound_to_cpus<T>(
    cpus: &[usize],
    start: impl FnOnce() -> io::Result<T>,
) -> Result<T, BenchError> {
    let refused = |error| BenchError::failed("cannot bind to the given CPUs", error);
    if cpus.is_empty() {
        return Ok(start()?);
    }
    let before = sched_getaffinity(None).map_err(refused)?;
    let mut wanted = CpuSet::new();
    cpus.iter().filter(|at| **at < CpuSet::MAX_CPU).for_each(|at| wanted.set(*at));
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
    fn this_machine_has_facts() {
        let facts = facts();
        assert!(facts.processors >= 1 && facts.memory_bytes > 0 && !facts.kernel.is_empty(), "{facts:?}");
    }
}
