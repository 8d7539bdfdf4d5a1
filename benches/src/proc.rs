//! What a process has used: CPU and memory, from /proc.

use std::{collections::BTreeMap, fs, io};

/// CPU used up to a moment, in nanoseconds.
///
/// The scheduler's own figures of the living threads are exact, but a thread that
/// ends takes its share along; then the process's ticks (10 ms) are taken.
pub struct Cpu {
    threads: BTreeMap<u32, u64>,
    ticks: u64,
}

impl Cpu {
    /// Of the process `pid`, now.
    pub fn of(pid: u32) -> io::Result<Self> {
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = entry?.path();
            let Some(thread) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else {
                continue;
            };
            let Ok(text) = fs::read_to_string(path.join("schedstat")) else { continue }; // it has ended
            threads.insert(thread, number(text.split_whitespace().next()));
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in parentheses may hold spaces; utime and stime are the 12th and
        // 13th field after it.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = number(fields.get(11).copied()) + number(fields.get(12).copied());
        Ok(Self { threads, ticks })
    }

    /// Of the process `pid` and all that descend from it, those that have ended too.
    pub fn tree(pid: u32) -> io::Result<Self> {
        let mut whole = Self::of(pid)?;
        // Fields as below: what its children used that have ended.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        whole.ticks += number(fields.get(13).copied()) + number(fields.get(14).copied());
        for child in descendants(pid).into_iter().skip(1) {
            let Ok(child) = Self::of(child) else { continue }; // it has ended
            whole.threads.extend(child.threads);
            whole.ticks += child.ticks;
        }
        Ok(whole)
    }

    /// Nanoseconds used from `earlier` until this.
    pub fn since(&self, earlier: &Self) -> u64 {
        if earlier.threads.keys().all(|thread| self.threads.contains_key(thread)) {
            let before: u64 = earlier.threads.values().sum();
            return self.threads.values().sum::<u64>().saturating_sub(before);
        }
        let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
        (self.ticks - earlier.ticks) * tick
    }
}

/// The process `pid`, its children, theirs, and so on.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut pids = vec![pid];
    let mut place = 0;
    while let Some(pid) = pids.get(place) {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            pids.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        place += 1;
    }
    pids
}

fn number(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Memory of a process, in KiB.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Resident.
    pub rss: f64,
    /// Proportional: shared pages count by share.
    pub pss: f64,
}

impl Memory {
    /// Of the process `pid`, now.
    pub fn of(pid: u32) -> io::Result<Self> {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let kib = |name: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim_end_matches("kB").trim().parse().unwrap_or(0.0)
        };
        Ok(Self { rss: kib("Rss:"), pss: kib("Pss:") })
    }
}
