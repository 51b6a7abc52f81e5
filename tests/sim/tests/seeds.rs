//! Runs the simulator over a fixed set of seeds and some drawn anew each time, and breaks rules to see that it would tell.

use std::hash::{BuildHasher, RandomState};

use sim::{Broken, Outcome, SimConfig, run};

fn run_all(seeds: impl IntoIterator<Item = u64>, config: impl Fn(u64) -> SimConfig) -> Outcome {
    let mut all = Outcome::default();
    for seed in seeds {
        all.add(&run(config(seed)));
    }
    println!("{all:?}");
    all
}

#[test]
fn nothing_is_lost_or_repeated_whatever_fails() {
    let outcome = run_all(0..60, SimConfig::new);
    assert!(outcome.resyncs.is_empty(), "a resync without a cause: {:?}", outcome.resyncs);
    assert!(outcome.node_crashes_owing > 50, "too few crashes with something owed: {outcome:?}");
    assert!(outcome.filters_built > 200 && outcome.filters_failed > 20, "too few filters were built: {outcome:?}");
    assert!(outcome.duplicates_dropped > 50, "too little was sent again: {outcome:?}");
}

#[test]
fn nothing_is_lost_or_repeated_on_seeds_drawn_now() {
    let first = RandomState::new().hash_one("seed") >> 1;
    let outcome = run_all((0..15).map(|more| (first + more) % 1_000_000_000_000), SimConfig::new);
    assert!(outcome.resyncs.is_empty(), "a resync without a cause, from seed {first} on: {:?}", outcome.resyncs);
}

#[test]
fn who_falls_off_a_short_log_is_told_and_goes_on() {
    let outcome = run_all(1_000..1_020, |seed| SimConfig { log_events_max: 12, ..SimConfig::new(seed) });
    assert!(outcome.resyncs.contains_key("OutboxOverrun"), "nobody fell off: {outcome:?}");
}

/// A simulator that finds nothing would prove nothing.
#[test]
fn broken_rules_are_found() {
    const SEEDS: u64 = 40;
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let rules =
        [Broken::CheckpointAhead, Broken::FilterConfirmedEarly, Broken::BarrierSkipped, Broken::PositionBeforeDone];
    let missed: Vec<_> = rules
        .into_iter()
        .filter(|rule| {
            !(0..SEEDS).any(|seed| {
                let config = SimConfig { broken: Some(*rule), ..SimConfig::new(seed) };
                // A resync without a cause is found, too.
                std::panic::catch_unwind(|| run(config)).map_or(true, |outcome| !outcome.resyncs.is_empty())
            })
        })
        .collect();
    std::panic::set_hook(hook);
    assert!(missed.is_empty(), "broken and not found within {SEEDS} seeds: {missed:?}");
}
