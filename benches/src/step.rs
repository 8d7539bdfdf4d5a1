//! A step: what was measured on our side, the floors beside it, and the goals.

use crate::{
    options::Options,
    sample::{Sample, median},
};
use serde::Serialize;
use std::collections::BTreeMap;

/// One side of a step.
#[derive(Debug, Clone, Serialize)]
pub struct Side {
    pub name: String,
    /// Of each figure by itself.
    pub median: Sample,
    pub windows: Vec<Sample>,
}

/// What should be reached, and whether it was.
#[derive(Debug, Clone, Serialize)]
pub struct Goal {
    pub what: String,
    pub goal: String,
    pub measured: String,
    pub met: bool,
}

/// What is printed together.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    pub mode: String,
    pub name: String,
    /// Connections, in flight, threads.
    pub layout: String,
    /// Finished jobs in the database before.
    pub finished: usize,
    pub ours: Side,
    pub floors: Vec<Side>,
    /// MiB at the end: resident memory by process, and what the service has on disk.
    pub held_mib: BTreeMap<String, f64>,
    pub goals: Vec<Goal>,
}

impl Step {
    /// Of windows of ours.
    pub fn new(mode: &str, name: &str, layout: &str, options: &Options, windows: Vec<Sample>) -> Self {
        let threads = |threads: usize| if threads == 0 { "default".to_owned() } else { threads.to_string() };
        Self {
            mode: mode.to_owned(),
            name: name.to_owned(),
            layout: format!(
                "{layout}; threads: service and raw server {}, application {}, client 1",
                threads(options.threads),
                threads(options.action_threads)
            ),
            finished: options.finished,
            ours: side("backjob", windows),
            floors: Vec::new(),
            held_mib: BTreeMap::new(),
            goals: Vec::new(),
        }
    }

    /// With what all processes hold.
    #[must_use]
    pub fn held(mut self, held_mib: BTreeMap<String, f64>) -> Self {
        self.held_mib = held_mib;
        self
    }

    /// With a floor of the same run.
    #[must_use]
    pub fn floor(mut self, name: &str, windows: Vec<Sample>) -> Self {
        self.floors.push(side(name, windows));
        self
    }

    /// With several.
    #[must_use]
    pub fn floors(self, floors: Vec<(&str, Vec<Sample>)>) -> Self {
        floors.into_iter().fold(self, |step, (name, windows)| step.floor(name, windows))
    }

    /// Ours by a floor's, the median of the ratios of windows that were side by side.
    pub fn ratio(&self, figure: &str, floor: &str, floors: &str) -> f64 {
        let Some(floor) = self.floors.iter().find(|side| side.name == floor) else { return f64::NAN };
        let pairs = self.ours.windows.iter().zip(&floor.windows);
        median(pairs.map(|(ours, floor)| ours.figure(figure) / floor.figure(floors)).collect())
    }

    /// A goal of the issue: one of the bounds is enough.
    #[must_use]
    pub fn goal(mut self, what: &str, bounds: &[Bound]) -> Self {
        let measured: Vec<_> = bounds.iter().map(|bound| bound.measured(&self)).collect();
        let met = bounds.iter().zip(&measured).any(|(bound, measured)| bound.holds(*measured));
        let text = |each: Vec<String>| each.join(" or ");
        self.goals.push(Goal {
            what: what.to_owned(),
            goal: text(bounds.iter().map(Bound::text).collect()),
            measured: text(bounds.iter().zip(&measured).map(|(b, m)| b.said(*m)).collect()),
            met,
        });
        self
    }
}

fn side(name: &str, windows: Vec<Sample>) -> Side {
    Side { name: name.to_owned(), median: Sample::median(&windows), windows }
}

/// What a figure is held to.
pub enum Bound {
    /// At least so often a floor's: (figure, floor, factor).
    AtLeast(&'static str, &'static str, f64),
    /// At most so often a floor's: (figure, floor, figure of the floor, factor).
    AtMost(&'static str, &'static str, &'static str, f64),
    /// At least this: (figure, limit, unit).
    Least(&'static str, f64, &'static str),
    /// At most this: (figure, limit, unit).
    Most(&'static str, f64, &'static str),
    /// At most so often another figure of ours.
    Within(&'static str, &'static str, f64),
}

impl Bound {
    fn measured(&self, step: &Step) -> f64 {
        match self {
            Self::AtLeast(figure, floor, _) => step.ratio(figure, floor, figure),
            Self::AtMost(figure, floor, floors, _) => step.ratio(figure, floor, floors),
            Self::Least(figure, ..) | Self::Most(figure, ..) => step.ours.median.figure(figure),
            Self::Within(figure, other, _) => {
                step.ours.median.figure(figure) / step.ours.median.figure(other)
            }
        }
    }

    fn holds(&self, measured: f64) -> bool {
        match self {
            Self::AtLeast(.., limit) | Self::Least(_, limit, _) => measured >= *limit,
            Self::AtMost(.., limit) | Self::Most(_, limit, _) | Self::Within(.., limit) => measured <= *limit,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::AtLeast(_, floor, limit) => format!("≥ {limit}× {floor}"),
            Self::AtMost(_, floor, _, limit) => format!("≤ {limit}× {floor}"),
            Self::Least(_, limit, unit) => format!("≥ {limit} {unit}"),
            Self::Most(_, limit, unit) => format!("≤ {limit} {unit}"),
            Self::Within(_, other, limit) => format!("≤ {limit}× its {}", other.trim_end_matches("_us")),
        }
    }

    fn said(&self, measured: f64) -> String {
        match self {
            Self::Least(_, _, unit) | Self::Most(_, _, unit) => format!("{measured:.2} {unit}"),
            _ => format!("{measured:.2}×"),
        }
    }
}
