//! What the server takes, as the system sees it, and whether that grows.

use super::{Fault, load::Tally};
use std::{fmt, fs, path::PathBuf, time::Duration};

/// Where to look.
pub struct Gauge {
    pub pid: u32,
    pub folder: PathBuf,
}

/// One line.
#[derive(Debug, Clone)]
pub struct Sample {
    at: Duration,
    /// Memory that is the process's own, KiB.
    own: u64,
    /// All that is in memory, KiB.
    resident: u64,
    files: u64,
    threads: u64,
    database: u64,
    log: u64,
    jobs: usize,
    start: Latency,
    whole: Latency,
    failures: usize,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Latency {
    half: f64,
    most: f64,
    worst: f64,
}

impl Latency {
    fn of(mut spans: Vec<Duration>) -> Self {
        spans.sort_unstable();
        let at = |share: f64| {
            let place = (spans.len().saturating_sub(1) as f64 * share) as usize;
            spans.get(place).map_or(0.0, |span| span.as_secs_f64() * 1e3)
        };
        Self { half: at(0.5), most: at(0.99), worst: at(1.0) }
    }
}

impl Gauge {
    pub fn sample(&self, at: Duration, tally: &Tally) -> Result<Sample, Fault> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
        };
        let size = |name: &str| fs::metadata(self.folder.join(name)).map_or(0, |file| file.len());
        let (starts, wholes) = tally.take_latencies();
        Ok(Sample {
            at,
            own: field("RssAnon:"),
            resident: field("VmRSS:"),
            threads: field("Threads:"),
            files: fs::read_dir(format!("/proc/{}/fd", self.pid))?.count() as u64,
            database: size("backjob.db"),
            log: size("backjob.db-wal"),
            jobs: tally.jobs(),
            start: Latency::of(starts),
            whole: Latency::of(wholes),
            failures: tally.failures().len(),
        })
    }
}

impl Sample {
    pub const HEAD: &str = "    s  own MiB  rss MiB   fds  thr   db MiB  wal MiB     jobs   \
        Start p50/p99/max ms   to the end p50/p99/max ms  failed";
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
        write!(
            f,
            "{:>5} {:>8.2} {:>8.2} {:>5} {:>4} {:>8.2} {:>8.2} {:>8}  {:>6.1} {:>6.1} {:>7.1}   {:>8.1} {:>7.1} {:>8.1}  {:>6}",
            self.at.as_secs(),
            mib(self.own * 1024),
            mib(self.resident * 1024),
            self.files,
            self.threads,
            mib(self.database),
            mib(self.log),
            self.jobs,
            self.start.half,
            self.start.most,
            self.start.worst,
            self.whole.half,
            self.whole.most,
            self.whole.worst,
            self.failures,
        )
    }
}

/// How each figure went on after the first third, which is taken for warming up:
/// the least and the most, and the growth in an hour by a fitted line.
pub fn verdict(samples: &[Sample]) -> String {
    let warm = &samples[samples.len() / 3..];
    if warm.len() < 3 {
        return "too short for a verdict on growth".to_owned();
    }
    let mib = 1_048_576.0;
    type Figure<'a> = (&'a str, &'a dyn Fn(&Sample) -> f64);
    let figures: [Figure<'_>; 6] = [
        ("own memory, MiB", &|sample| sample.own as f64 / 1024.0),
        ("resident, MiB", &|sample| sample.resident as f64 / 1024.0),
        ("descriptors", &|sample| sample.files as f64),
        ("threads", &|sample| sample.threads as f64),
        ("database, MiB", &|sample| sample.database as f64 / mib),
        ("log, MiB", &|sample| sample.log as f64 / mib),
    ];
    let line = |(name, figure): (&str, &dyn Fn(&Sample) -> f64)| {
        let points: Vec<(f64, f64)> =
            warm.iter().map(|sample| (sample.at.as_secs_f64() / 3_600.0, figure(sample))).collect();
        let least = points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
        let most = points.iter().map(|point| point.1).fold(0.0, f64::max);
        format!("{name:<16} {least:>9.2} to {most:>9.2}   {:>+9.2} in an hour", slope(&points))
    };
    let lines: Vec<String> = figures.into_iter().map(line).collect();
    let (from, to) = (warm[0].at.as_secs(), warm[warm.len() - 1].at.as_secs());
    format!("From {from} s to {to} s:\n{}", lines.join("\n"))
}

/// Of the line with the least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let (x, y) =
        points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0 / count, sum.1 + point.1 / count));
    let (above, below) = points.iter().fold((0.0, 0.0), |sum, point| {
        (sum.0 + (point.0 - x) * (point.1 - y), sum.1 + (point.0 - x).powi(2))
    });
    if below == 0.0 { 0.0 } else { above / below }
}
