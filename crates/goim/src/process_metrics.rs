//! Metrics of the process as a whole, read on each scrape. The names are those of Prometheus's own
//! clients.

use std::fmt;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::machine;

/// Adds them to `registry`.
pub(crate) fn register(registry: &mut Registry) {
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("goim_build", "The running version", build);
    registry.register_collector(Box::new(Process { started: Instant::now(), started_at: SystemTime::now() }));
}

#[derive(Debug)]
struct Process {
    started: Instant,
    started_at: SystemTime,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let started_at = self.started_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        gauge(
            &mut encoder,
            "process_start_time_seconds",
            "When the process started, since 1970",
            Some(started_at),
        )?;
        let uptime = self.started.elapsed().as_secs_f64();
        gauge(&mut encoder, "process_uptime_seconds", "Time since the process started", Some(uptime))?;
        gauge(&mut encoder, "process_open_fds", "Open files", open_files().map(as_float))?;
        gauge(
            &mut encoder,
            "process_max_fds",
            "Maximum number of open files",
            machine::open_files_max().map(as_float),
        )?;
        gauge(
            &mut encoder,
            "process_resident_memory_bytes",
            "Resident memory",
            resident_bytes().map(as_float),
        )?;
        gauge(&mut encoder, "process_threads", "Threads", threads().map(as_float))?;
        if let Some(seconds) = cpu_seconds() {
            let counter = ConstCounter::new(seconds);
            let metric = encoder.encode_descriptor(
                "process_cpu_seconds",
                "User and system CPU time",
                None,
                counter.metric_type(),
            )?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}

/// Writes a gauge, unless the machine does not provide the value.
fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: Option<f64>,
) -> Result<(), fmt::Error> {
    let Some(value) = value else { return Ok(()) };
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; these are far below 2^53")]
fn as_float(number: u64) -> f64 {
    number as f64
}

/// Since Linux 6.2 the size of the directory is the number of files in it. Before it is zero, and
/// the files are counted.
fn open_files() -> Option<u64> {
    match std::fs::metadata("/proc/self/fd").ok()?.len() {
        0 => Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as u64),
        count => Some(count),
    }
}

/// The number in a line of `/proc/self/status`.
fn status(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

fn resident_bytes() -> Option<u64> {
    status("VmRSS").map(|kib| kib * 1024)
}

fn threads() -> Option<u64> {
    status("Threads")
}

/// User and system time: fields 14 and 15 of `/proc/self/stat`, in ticks of 10 ms, counted after
/// the process's name, which may contain blanks.
fn cpu_seconds() -> Option<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, after_name) = text.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(as_float(user + system) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_provides_all_values() {
        let mut registry = Registry::default();
        register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for name in
            ["process_open_fds", "process_resident_memory_bytes", "process_threads", "process_uptime_seconds"]
        {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            let value: f64 = line.unwrap_or_else(|| panic!("{name} is missing in:\n{text}")).parse().unwrap();
            assert!(value > 0.0, "{name} is {value}");
        }
        assert!(
            text.contains(concat!("goim_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1")),
            "{text}"
        );
        assert!(text.contains("process_cpu_seconds_total "), "{text}");
    }

    #[test]
    fn open_files_are_counted() {
        let before = open_files().unwrap();
        let files: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        // Other tests open and close files meanwhile.
        assert!(open_files().unwrap() >= before + 25, "{before} and 50 more");
        drop(files);
    }
}
