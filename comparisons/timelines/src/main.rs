//! Compares embedded engines for timelines: durable groups of appends to many timelines, reading
//! ranges, removing the oldest messages, and the start after a kill. Each run measures one engine,
//! so that memory and files belong to that engine alone.
//!
//! usage: timeline-engines ENGINE FOLDER [TIMELINES [MESSAGES [GROUP]]]

mod engines;

use std::path::Path;
use std::time::{Duration, Instant};

use engines::{Append, Engine, Fjall, Redb, Sqlite};

const USAGE: &str = "usage: timeline-engines fjall|redb|sqlite FOLDER [TIMELINES [MESSAGES [GROUP]]]
Default 100000 timelines, 2000000 messages of 200 bytes, groups of 512.";

/// The work to measure.
struct Plan {
    timelines: u64,
    messages: u64,
    group: usize,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [engine, folder, numbers @ ..] = &arguments[..] else { usage() };
    let number = |at: usize, default: u64| match numbers.get(at) {
        Some(text) => text.parse().unwrap_or_else(|_| usage()),
        None => default,
    };
    let plan = Plan {
        timelines: number(0, 100_000),
        messages: number(1, 2_000_000),
        group: usize::try_from(number(2, 512)).unwrap_or_else(|_| usage()),
    };
    let folder = Path::new(folder);
    match engine.as_str() {
        "fjall" => run::<Fjall>(folder, &plan),
        "redb" => run::<Redb>(folder, &plan),
        "sqlite" => run::<Sqlite>(folder, &plan),
        _ => usage(),
    }
}

fn usage() -> ! {
    eprintln!("{USAGE}");
    std::process::exit(64)
}

fn run<E: Engine>(folder: &Path, plan: &Plan) {
    if folder.join("filled").exists() {
        return after_a_kill::<E>(folder, plan);
    }
    std::fs::create_dir_all(folder).expect("the folder can be made");
    let mut engine = E::open(folder);
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    append(&mut engine, plan, &mut random);
    println!("disk: {:.0} bytes a message", size_of(folder) as f64 / plan.messages as f64);
    read(&engine, plan, &mut random);
    remove(&mut engine, plan);
    println!(
        "disk after half was removed: {:.0} bytes for one written",
        size_of(folder) as f64 / plan.messages as f64
    );
    println!("memory: {} MiB", resident_kib() / 1024);
    std::fs::write(folder.join("filled"), "").expect("a mark can be left");
    // Nothing is closed, as after a kill.
    std::process::abort();
}

/// Appends groups, each durable before the next one starts.
fn append(engine: &mut impl Engine, plan: &Plan, random: &mut Random) {
    let mut next = vec![0_u64; usize::try_from(plan.timelines).expect("fits")];
    let mut took = Vec::new();
    let body: Vec<u8> = (0..4096).map(|_| random.next() as u8).collect();
    let begun = Instant::now();
    let mut written = 0;
    while written < plan.messages {
        let group: Vec<Append<'_>> = (0..plan.group)
            .map(|_| {
                let timeline = random.below(plan.timelines);
                let seq = &mut next[timeline as usize];
                *seq += 1;
                // Half of the body is constant, as in real messages.
                let at = random.below(3_900) as usize;
                Append { timeline, seq: *seq, body: [&body[at..at + 100], &body[..100]] }
            })
            .collect();
        let at = Instant::now();
        engine.append(&group);
        took.push(at.elapsed());
        written += plan.group as u64;
    }
    let all = begun.elapsed();
    println!(
        "append, groups of {}: {:.0} messages/s, group p50 {:.2} ms, p99 {:.2} ms, longest {:.1} ms",
        plan.group,
        written as f64 / all.as_secs_f64(),
        ms(quantile(&mut took, 0.5)),
        ms(quantile(&mut took, 0.99)),
        ms(quantile(&mut took, 1.0)),
    );
}

/// Reads up to 100 messages from the start of random timelines.
fn read(engine: &impl Engine, plan: &Plan, random: &mut Random) {
    let begun = Instant::now();
    let (mut messages, mut ranges) = (0_u64, 0_u64);
    while begun.elapsed() < Duration::from_secs(5) {
        messages += engine.read(random.below(plan.timelines), 1, 100);
        ranges += 1;
    }
    let took = begun.elapsed().as_secs_f64();
    println!("read: {:.0} messages/s, {:.0} ranges/s", messages as f64 / took, ranges as f64 / took);
    let begun = Instant::now();
    let mut heads = 0_u64;
    while begun.elapsed() < Duration::from_secs(3) {
        engine.head(random.below(plan.timelines));
        heads += 1;
    }
    println!("newest of a timeline: {:.0}/s", heads as f64 / begun.elapsed().as_secs_f64());
}

/// Removes the older half of each timeline, with a hundred timelines per commit.
fn remove(engine: &mut impl Engine, plan: &Plan) {
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    let keep = plan.messages / plan.timelines / 2;
    for first in (0..plan.timelines).step_by(100) {
        let timelines: Vec<u64> = (first..plan.timelines.min(first + 100)).collect();
        let at = Instant::now();
        engine.remove_below(&timelines, keep);
        longest = longest.max(at.elapsed());
    }
    let took = begun.elapsed().as_secs_f64();
    println!("removed half in {took:.1} s, longest commit {:.1} ms", ms(longest));
}

fn after_a_kill<E: Engine>(folder: &Path, plan: &Plan) {
    let begun = Instant::now();
    let mut engine = E::open(folder);
    println!("opened after a kill in {:.2} s", begun.elapsed().as_secs_f64());
    let mut random = Random(7);
    let mut took = Vec::new();
    for _ in 0..200 {
        let group: Vec<Append<'_>> = (0..plan.group)
            .map(|_| Append {
                timeline: random.below(plan.timelines),
                seq: 1 << 40 | random.below(1 << 30),
                body: [&[1; 100], &[2; 100]],
            })
            .collect();
        let at = Instant::now();
        engine.append(&group);
        took.push(at.elapsed());
    }
    println!(
        "groups after it: p50 {:.2} ms, longest {:.1} ms",
        ms(quantile(&mut took, 0.5)),
        ms(quantile(&mut took, 1.0))
    );
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn quantile(times: &mut [Duration], at: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * at) as usize]
}

fn size_of(folder: &Path) -> u64 {
    std::fs::read_dir(folder)
        .expect("a folder")
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => size_of(&entry.path()),
            Ok(found) => std::os::unix::fs::MetadataExt::blocks(&found) * 512,
            Err(_) => 0,
        })
        .sum()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

/// Xorshift: the same sequence in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
