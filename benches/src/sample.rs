//! The figures of one measured window, and the median of several.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What one window gave.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Operations in the window.
    pub operations: f64,
    /// Operations a second.
    pub per_second: f64,
    /// Half of the operations took at most so many microseconds.
    pub p50_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
    /// CPU microseconds an operation, by process.
    pub cpu_us: BTreeMap<String, f64>,
    /// What else was measured, with the unit in the name.
    pub more: BTreeMap<String, f64>,
}

impl Sample {
    /// From latencies in nanoseconds.
    pub fn of(mut latencies: Vec<u32>, seconds: f64) -> Self {
        latencies.sort_unstable();
        let operations = latencies.len() as f64;
        let [p50_us, p99_us] = [50, 99].map(|percent| percentile(&latencies, percent));
        Self { operations, per_second: operations / seconds, p50_us, p99_us, ..Self::default() }
    }

    /// A single figure, of `more`.
    pub fn one(name: &str, value: f64) -> Self {
        Self { more: [(name.to_owned(), value)].into(), ..Self::default() }
    }

    /// The median of each figure by itself.
    pub fn median(samples: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(samples.iter().map(figure).collect());
        let by_name = |map: fn(&Self) -> &BTreeMap<String, f64>| {
            let names = samples.iter().flat_map(|sample| map(sample).keys().cloned());
            let figure = |name: String| {
                let values = samples.iter().filter_map(|sample| map(sample).get(&name).copied()).collect();
                (name, median(values))
            };
            names.map(figure).collect()
        };
        Self {
            operations: of(|sample| sample.operations),
            per_second: of(|sample| sample.per_second),
            p50_us: of(|sample| sample.p50_us),
            p99_us: of(|sample| sample.p99_us),
            cpu_us: by_name(|sample| &sample.cpu_us),
            more: by_name(|sample| &sample.more),
        }
    }

    /// A figure of `more`, or of the CPU an operation as `cpu NAME`.
    pub fn figure(&self, name: &str) -> f64 {
        match name {
            "per_second" => self.per_second,
            "p50_us" => self.p50_us,
            "p99_us" => self.p99_us,
            _ => match name.strip_prefix("cpu ") {
                Some(process) => self.cpu_us.get(process).copied().unwrap_or(f64::NAN),
                None => self.more.get(name).copied().unwrap_or(f64::NAN),
            },
        }
    }
}

/// In microseconds, of sorted nanoseconds.
pub fn percentile(sorted: &[u32], percent: usize) -> f64 {
    let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(place).map_or(f64::NAN, |nanos| f64::from(*nanos) / 1e3)
}

/// Of an even number the mean of the two in the middle; NaN of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}
