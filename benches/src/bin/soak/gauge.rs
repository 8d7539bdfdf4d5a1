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

/// How a figure went on.
struct Course {
    name: &'static str,
    unit: &'static str,
    /// Medians of the second third and of the last one; the first is for warming up.
    middle: f64,
    last: f64,
    least: f64,
    most: f64,
    /// What it may differ by of itself: pages and files are taken by and by.
    slack: f64,
}

impl Course {
    /// By a tenth, and by more than it does of itself.
    fn grew(&self) -> bool {
        self.last > self.middle * 1.1 && self.last > self.middle + self.slack
    }
}

impl fmt::Display for Course {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, unit, middle, last, least, most, .. } = self;
        let how = if self.grew() { "GREW" } else { "flat" };
        write!(
            f,
            "{name:<12} {middle:>8.2} then {last:>8.2} {unit:<3}  (least {least:.2}, most {most:.2})  {how}"
        )
    }
}

/// What became of memory, descriptors and files.
pub struct Verdict(Vec<Course>);

impl Verdict {
    /// None of a run that is too short to tell.
    pub fn of(samples: &[Sample]) -> Option<Self> {
        let third = samples.len() / 3;
        if third < 3 {
            return None;
        }
        let mib = 1_048_576.0;
        type Figure<'a> = (&'static str, &'static str, f64, &'a dyn Fn(&Sample) -> f64);
        let figures: [Figure<'_>; 6] = [
            ("own memory", "MiB", 1.0, &|sample| sample.own as f64 / 1_024.0),
            ("resident", "MiB", 1.0, &|sample| sample.resident as f64 / 1_024.0),
            ("descriptors", "", 10.0, &|sample| sample.files as f64),
            ("threads", "", 1.0, &|sample| sample.threads as f64),
            ("database", "MiB", 1.0, &|sample| sample.database as f64 / mib),
            ("log", "MiB", 1.0, &|sample| sample.log as f64 / mib),
        ];
        let course = |(name, unit, slack, figure): Figure<'_>| {
            let of = |samples: &[Sample]| {
                let mut values: Vec<f64> = samples.iter().map(figure).collect();
                values.sort_by(f64::total_cmp);
                values
            };
            let median = |samples: &[Sample]| of(samples)[samples.len() / 2];
            let warm = of(&samples[third..]);
            Course {
                name,
                unit,
                middle: median(&samples[third..2 * third]),
                last: median(&samples[2 * third..]),
                least: warm[0],
                most: warm[warm.len() - 1],
                slack,
            }
        };
        Some(Self(figures.into_iter().map(course).collect()))
    }

    /// Whether nothing grew.
    pub fn is_flat(&self) -> bool {
        !self.0.iter().any(Course::grew)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Medians of the second third, then of the last:")?;
        self.0.iter().try_for_each(|course| writeln!(f, "{course}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(own_kib: u64) -> Sample {
        Sample {
            at: Duration::ZERO,
            own: own_kib,
            resident: 20_000,
            files: 30,
            threads: 7,
            database: 1 << 20,
            log: 1 << 24,
            jobs: 1,
            start: Latency::default(),
            whole: Latency::default(),
            failures: 0,
        }
    }

    #[test]
    fn what_grows_is_told_and_what_warms_up_is_not() {
        let verdict = |own: &dyn Fn(u64) -> u64| {
            let samples: Vec<_> = (0..30).map(|place| sample(own(place))).collect();
            Verdict::of(&samples).expect("long enough").is_flat()
        };
        assert!(verdict(&|place| 12_000 + 400 * place.min(10)), "warms up");
        assert!(verdict(&|place| 12_000 + 900 * (place % 2)), "breathes");
        assert!(!verdict(&|place| 12_000 + 400 * place), "grows");
        assert!(Verdict::of(&[sample(1), sample(2)]).is_none(), "too short");
    }
}
