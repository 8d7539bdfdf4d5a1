//! The demo's computation: the words of this project's own sources are counted,
//! and every two files compared by the longest sequence of words they share.

use std::collections::HashMap;

macro_rules! sources {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("../../../", $path)))),*]
    };
}

/// What is compared.
const SOURCES: &[(&str, &str)] = sources![
    "app.rs",
    "clock.rs",
    "engine/dispatcher.rs",
    "engine/flusher.rs",
    "engine/live.rs",
    "engine/read.rs",
    "engine/report.rs",
    "engine/runner.rs",
    "engine/schedule.rs",
    "engine/start.rs",
    "engine/timers.rs",
    "job/draft.rs",
    "job/headers.rs",
    "job/state.rs",
    "job/text.rs",
    "job/transition.rs",
    "job/url.rs",
    "rpc/control.rs",
    "rpc/convert.rs",
    "rpc/mask.rs",
    "rpc/status.rs",
    "rpc/worker.rs",
    "secret/root.rs",
    "secret/token.rs",
    "store/open.rs",
    "store/read.rs",
    "store/writer.rs",
    "tasks.rs",
    "verify.rs",
    "watch/hub.rs",
    "watch/inbox.rs",
    "worker.rs",
];

/// What is told on the way.
pub(super) enum Step<'a> {
    /// How far it is.
    At { done: u64, total: u64, unit: &'static str, stage: &'static str },
    /// A line for people.
    Say(&'a str),
}

/// Compares at most `most` words of each source. None if it was stopped.
pub(super) fn compare(most: usize, tell: &dyn Fn(Step<'_>), stop: &dyn Fn() -> bool) -> Option<String> {
    let mut numbers: HashMap<&str, u32> = HashMap::new();
    let mut counts: HashMap<&str, u64> = HashMap::new();
    let mut texts: Vec<(&str, Vec<u32>)> = Vec::new();
    let mut all = 0;
    for (path, source) in SOURCES {
        let words = source.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
        let mut text = Vec::new();
        for word in words {
            *counts.entry(word).or_default() += 1;
            let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
            text.push(*numbers.entry(word).or_insert(next));
            all += 1;
        }
        text.truncate(most);
        texts.push((path, text));
    }
    let mut common: Vec<(&str, u64)> = counts.into_iter().collect();
    common.sort_by_key(|(word, count)| (std::cmp::Reverse(*count), *word));
    common.truncate(5);
    let top: Vec<String> = common.iter().map(|(word, count)| format!("{word} ({count})")).collect();
    tell(Step::Say(&format!("{all} words in {} files; most often {}\n", texts.len(), top.join(", "))));

    let total = (texts.len() * (texts.len() - 1) / 2) as u64;
    let (mut done, mut alike) = (0, Vec::new());
    for (index, (path, text)) in texts.iter().enumerate() {
        let mut closest: Option<(u64, &str)> = None;
        for (other_path, other) in &texts[index + 1..] {
            if stop() {
                return None;
            }
            let percent = 100 * shared(text, other) / text.len().min(other.len()).max(1) as u64;
            closest = closest.max(Some((percent, other_path)));
            alike.push((percent, *path, *other_path));
            done += 1;
            tell(Step::At { done, total, unit: "pairs", stage: "comparing" });
        }
        if let Some((percent, other)) = closest {
            tell(Step::Say(&format!("{path:<22} most like {other} ({percent} % of the words in order)\n")));
        }
    }
    alike.sort_by_key(|(percent, ..)| std::cmp::Reverse(*percent));
    let pairs =
        alike.iter().take(3).map(|(percent, a, b)| serde_json::json!({"a": a, "b": b, "percent": percent}));
    Some(serde_json::json!({"words": all, "most_alike": pairs.collect::<Vec<_>>()}).to_string())
}

/// Length of the longest common subsequence.
fn shared(a: &[u32], b: &[u32]) -> u64 {
    let mut row = vec![0_u32; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (at, y) in b.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if x == y { diagonal + 1 } else { above.max(row[at]) };
            diagonal = above;
        }
    }
    row.last().copied().unwrap_or(0).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn the_longest_common_subsequence_is_found() {
        assert_eq!(shared(&[1, 2, 3, 4], &[2, 4, 3, 4]), 3);
        assert_eq!(shared(&[], &[1]), 0);
    }

    #[test]
    fn it_goes_through_every_pair_and_can_be_stopped() {
        let last = Cell::new((0, 0));
        let tell = |step: Step<'_>| {
            if let Step::At { done, total, .. } = step {
                last.set((done, total));
            }
        };
        let report = compare(10, &tell, &|| false).expect("a report");
        assert!(report.contains("most_alike"));
        assert_eq!(last.get().0, last.get().1);
        assert_eq!(compare(10, &tell, &|| true), None);
    }
}
