//! Runs the simulator over a fixed set of seeds and some drawn anew each time, and breaks rules to see that it would tell.

use std::{
    hash::{BuildHasher, RandomState},
    thread,
};

use sim::{Broken, Outcome, Report, SimConfig, run, run_many, run_traced, shrink};

/// Seeds within which a rule that is broken must be found.
const SEEDS_PER_BREAK: u64 = 200;

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// All seeds must keep every promise; the first that doesn't is shown.
fn keep_every_promise(report: Report) -> Outcome {
    println!("{}", report.outcome);
    if let Some(first) = report.violations.first() {
        let traced = run_traced(&first.config, 40).err();
        let trace = traced.map(|violation| violation.trace.join("\n")).unwrap_or_default();
        let seed = first.config.seed;
        panic!("{trace}\nseed {seed}: {}\nagain: cargo xtask sim --seed {seed} --seeds 1", first.what);
    }
    report.outcome
}

#[test]
fn nothing_is_lost_or_repeated_whatever_fails() {
    let outcome = keep_every_promise(run_many(0, 192, cores(), false, SimConfig::new));
    assert!(outcome.deliveries > 80_000, "too little was delivered: {outcome:?}");
    assert!(outcome.node_crashes_owing > 150, "too few crashes of the node with something owed: {outcome:?}");
    assert!(outcome.gateway_crashes_owing > 100, "too few crashes of Gateways that held something: {outcome:?}");
    assert!(outcome.replays > 400 && outcome.duplicates_dropped > 500, "too little was sent again: {outcome:?}");
    assert!(outcome.gaps > 5_000 && outcome.histories_lost > 0, "too few gaps: {outcome:?}");
    assert!(outcome.filters_built > 700 && outcome.filters_failed > 80, "too few filters were built: {outcome:?}");
    assert!(outcome.checkpoints_torn > 10 && outcome.slots_rotten > 3, "too few checkpoints were bad: {outcome:?}");
    assert!(outcome.late_lookups > 500 && outcome.expired > 100, "too little was late: {outcome:?}");
    assert!(outcome.catch_ups > 100 && outcome.merges > 100, "too few caught up: {outcome:?}");
    assert!(outcome.outbox_full > 50 && outcome.past_deadline > 5, "too few Gateways were too slow: {outcome:?}");
    assert!(outcome.asked_late > 100 && outcome.begun_anew > 20, "too little was asked for late: {outcome:?}");
    assert!(outcome.strays_ended > 5, "too few older selves were met: {outcome:?}");
}

#[test]
fn nothing_is_lost_or_repeated_on_seeds_drawn_now() {
    let first = (RandomState::new().hash_one("seed") >> 1) % 1_000_000_000_000;
    println!("seeds from {first} on");
    keep_every_promise(run_many(first, 24, cores(), false, SimConfig::new));
}

#[test]
fn who_falls_off_a_short_log_catches_up() {
    let outcome = keep_every_promise(run_many(1_000, 16, cores(), false, |seed| SimConfig {
        log_events_max: 12,
        ..SimConfig::new(seed)
    }));
    assert!(outcome.catch_ups > 500 && outcome.merges > 500, "nobody fell off: {outcome:?}");
}

#[test]
fn a_seed_leads_to_the_same_run_traced_or_not() {
    let config = SimConfig { transactions: 60, ..SimConfig::new(2) };
    let outcome = run(&config).map_err(|violation| violation.what);
    assert_eq!(outcome, run(&config).map_err(|violation| violation.what));
    assert_eq!(outcome, run_traced(&config, 10).map_err(|violation| violation.what));
}

/// A simulator that finds nothing would prove nothing.
#[test]
fn broken_rules_are_found() {
    let first_found = |broken: Broken| {
        let config = |seed| SimConfig { broken: Some(broken), ..SimConfig::new(seed) };
        let found = run_many(0, SEEDS_PER_BREAK, cores(), true, config).violations.into_iter().next()?;
        // It is the break that was found, not something that goes wrong without it.
        let kept = run(&SimConfig::new(found.config.seed));
        kept.is_ok().then_some(found)
    };
    let mut missed = Vec::new();
    for broken in Broken::ALL {
        match first_found(broken) {
            Some(violation) => println!("{broken}: seed {}: {}", violation.config.seed, violation.what),
            None => missed.push(broken.name()),
        }
    }
    assert!(missed.is_empty(), "broken and not found within {SEEDS_PER_BREAK} seeds: {missed:?}");
}

#[test]
fn what_is_found_is_shrunk_and_shown() {
    let config = |seed| SimConfig { broken: Some(Broken::CheckpointAhead), ..SimConfig::new(seed) };
    let found = run_many(0, SEEDS_PER_BREAK, cores(), true, config).violations.remove(0);
    let (before, seed) = (found.config.clone(), found.config.seed);
    let smallest = shrink(Box::new(found), 100);
    assert!(smallest.config.faults.len() < before.faults.len() && smallest.config.transactions < before.transactions);
    assert_eq!(smallest.config.seed, seed);
    let shown = run_traced(&smallest.config, 20).expect_err("the smallest world still fails");
    assert_eq!(shown.what, smallest.what);
    assert_eq!(shown.trace.len(), 20);
}
