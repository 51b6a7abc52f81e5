//! What was to be reached, beside what was.

use super::Row;
use crate::figures::{self, Goal, grouped};

/// The goals of which anything was measured.
pub fn print_goals(rows: &[Row]) {
    if !figures::print(&goals(rows)) {
        return;
    }
    let wrong: u64 = rows.iter().map(|row| row.wrong).sum();
    let checked: usize = rows.iter().map(|row| row.checked).sum();
    println!("{:<68} {:>16} {wrong:>16}  over {} events", "wrong answers", 0, grouped(checked as f64));
}

fn goals(rows: &[Row]) -> Vec<Goal> {
    let find = |workload: &str, engine: &str, subscriptions: usize| {
        let is_it = |row: &&Row| (row.workload, row.engine, row.subscriptions) == (workload, engine, subscriptions);
        rows.iter().find(is_it)
    };
    let rate = |workload, engine, subscriptions| find(workload, engine, subscriptions)?.events_per_s;
    let ratio = |one: Option<f64>, other: Option<f64>| Some(one? / other?);
    let (some, many, most) = (100_000, 1_000_000, 10_000_000);
    let mixed = rate("mixed", "ours-index", some);
    let mixed_one = rate("mixed-one", "ours-index", some);
    let (at_least, at_most) = (Goal::at_least, Goal::at_most);
    let mut goals = vec![
        at_least("mixed, index, 100k", 3e6, "/s", mixed),
        at_least("mixed, index, 1M", 2e6, "/s", rate("mixed", "ours-index", many)),
        at_least("mixed, index, 10M", 1.2e6, "/s", rate("mixed", "ours-index", most)),
        at_least("mixed-one, index, 100k", 1.8e6, "/s", mixed_one),
        at_least("mixed-one, index, 1M", 1.2e6, "/s", rate("mixed-one", "ours-index", many)),
        at_least("cel against mixed, index, 100k", 0.9, " ×", ratio(rate("cel", "ours-index", some), mixed)),
        at_least("pairs, index, 100k", 2e6, "/s", rate("pairs", "ours-index", some)),
        at_least("mixed, shard against index, 100k", 0.6, " ×", ratio(rate("mixed", "ours-shard", some), mixed)),
        at_least("mixed, index against a-tree, 100k", 12.0, " ×", ratio(mixed, rate("mixed", "a-tree", some))),
        at_least("mixed-one, index against cel, 100k", 5e4, " ×", ratio(mixed_one, rate("mixed-one", "cel", some))),
    ];
    let whole = rows.iter().find(|row| row.engine == "ours-whole" && row.subscriptions == many);
    goals.push(at_most(
        "bytes of an equality subscription, all of it, 1M",
        150.0,
        "",
        whole.and_then(|row| row.bytes_per_subscription),
    ));
    let churn = rows.iter().find(|row| row.workload == "churn" && row.subscriptions == many);
    goals.push(at_least(
        "subscriptions added and removed under load, 1M",
        1e6,
        "/s",
        churn.and_then(|row| row.operations_per_s),
    ));
    for (what, engine, subscriptions) in [
        ("miss, filter over reading, 100k", "ours-filter", some),
        ("miss, filter over reading, 1M", "ours-filter", many),
        ("miss, filter over reading, 10M", "ours-filter", most),
        ("miss, all of the ingest thread over reading, 100k", "ours-ingest", some),
        ("miss, all of the ingest thread over reading, 1M", "ours-ingest", many),
        ("miss, all of the ingest thread over reading, 10M", "ours-ingest", most),
    ] {
        let ns = |engine| find("miss", engine, subscriptions)?.ns_per_event;
        let over = ns(engine).zip(ns("read")).map(|(all, read)| all - read);
        goals.push(at_most(what, 30.0, " ns", over));
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_told_by_the_rows_that_are_there() {
        let row = |workload, engine, rate: f64| {
            let mut row = Row::new(workload, engine, 100_000, 1);
            row.events_per_s = Some(rate);
            row
        };
        let rows = [row("mixed", "ours-index", 3.3e6), row("mixed", "a-tree", 300e3), row("mixed", "ours-shard", 2e6)];
        let found = figures::found(&goals(&rows));
        let expect = [
            ("mixed, index, 100k", "3.30 M/s", true),
            ("mixed, shard against index, 100k", "0.61 ×", true),
            ("mixed, index against a-tree, 100k", "11.00 ×", false),
        ];
        assert_eq!(found, expect.map(|(what, found, reached)| (what, found.to_owned(), reached)));
    }
}
