//! For people: a table a step, and all goals at the end.

use crate::step::{Side, Step};
use std::{collections::BTreeSet, fmt::Write as _};

/// Figures of both sides, the ratios under them, and the goals.
pub fn step(step: &Step) -> String {
    let mut text = format!("\n{} · {}", step.mode, step.name);
    if step.finished > 0 {
        write(&mut text, &format!(" · with {} finished jobs", step.finished));
    }
    write(&mut text, &format!("\n  {}\n", step.layout));
    let any = |figure: &str| {
        std::iter::once(&step.ours).chain(&step.floors).any(|side| side.median.figure(figure) > 0.0)
    };
    let columns = [("per_second", "per second"), ("p50_us", "p50 µs"), ("p99_us", "p99 µs")];
    let columns: Vec<_> = columns.into_iter().filter(|(figure, _)| any(figure)).collect();
    let mut head = format!("  {:<36}", "");
    for (_, title) in &columns {
        write(&mut head, &format!("{title:>14}"));
    }
    if columns.is_empty() {
        return text + &others(step);
    }
    write(&mut text, &format!("{head}  CPU µs an operation\n"));
    for side in step.floors.iter().chain([&step.ours]) {
        let mut line = format!("  {:<36}", side.name);
        for (figure, _) in &columns {
            write(&mut line, &format!("{:>14}", number(side.median.figure(figure))));
        }
        write(&mut text, &format!("{line}  {}\n", cpu(side)));
    }
    for floor in &step.floors {
        let mut line = format!("  {:<36}", format!("ratio to {}", floor.name));
        for (figure, _) in &columns {
            let ratio = step.ratio(figure, &floor.name, figure);
            let ratio = if ratio.is_finite() { format!("{ratio:.2}×") } else { String::new() };
            write(&mut line, &format!("{ratio:>14}"));
        }
        write(&mut text, &format!("{}\n", line.trim_end()));
    }
    text + &others(step)
}

/// What has no column, and the goals.
fn others(step: &Step) -> String {
    let mut text = String::new();
    let sides = || step.floors.iter().chain([&step.ours]);
    let names: BTreeSet<_> = sides().flat_map(|side| side.median.more.keys()).collect();
    for name in names {
        let of = sides().filter_map(|side| Some((&side.name, side.median.more.get(name)?)));
        let of: Vec<_> = of.map(|(side, value)| format!("{side} {}", number(*value))).collect();
        let ratios = step.floors.iter().map(|floor| step.ratio(name, &floor.name, name));
        let ratios = ratios.filter(|ratio| ratio.is_finite()).map(|ratio| format!(" ({ratio:.2}×)"));
        write(&mut text, &format!("  {name:<36}  {}{}\n", of.join(", "), ratios.collect::<String>()));
    }
    if !step.held_mib.is_empty() {
        let held: Vec<_> =
            step.held_mib.iter().map(|(name, mib)| format!("{name} {}", number(*mib))).collect();
        write(&mut text, &format!("  {:<36}  {}\n", "MiB at the end", held.join(", ")));
    }
    for goal in &step.goals {
        let met = if goal.met { "met" } else { "NOT met" };
        write(&mut text, &format!("  goal: {}: {}: {} {met}\n", goal.what, goal.goal, goal.measured));
    }
    text
}

/// Every goal of all steps.
pub fn goals(steps: &[Step]) -> String {
    let mut rows = vec![["what", "goal", "measured", ""].map(str::to_owned)];
    for (step, goal) in steps.iter().flat_map(|step| step.goals.iter().map(move |goal| (step, goal))) {
        let what = format!("{} · {} · {}", step.mode, step.name, goal.what);
        let met = if goal.met { "met" } else { "NOT met" };
        rows.push([what, goal.goal.clone(), goal.measured.clone(), met.to_owned()]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0) + 2;
    let widths = [0, 1, 2, 3].map(width);
    let mut text = String::from("\n");
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        write(&mut text, &format!("{}\n", cells.collect::<String>().trim_end()));
    }
    text
}

fn cpu(side: &Side) -> String {
    let used = side.median.cpu_us.iter().filter(|(_, used)| **used >= 0.01);
    used.map(|(name, used)| format!("{name} {used:.1}")).collect::<Vec<_>>().join(", ")
}

fn number(value: f64) -> String {
    match value {
        value if !value.is_finite() => String::new(),
        value if value.abs() >= 1_000.0 => format!("{value:.0}"),
        value => format!("{value:.2}"),
    }
}

/// Into a String it cannot fail.
fn write(text: &mut String, more: &str) {
    let _ = text.write_str(more);
}
