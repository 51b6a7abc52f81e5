//! Runs the simulator over a fixed set of seeds, and some drawn anew each time.

use sim::{Outcome, SimConfig, run};

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
    let outcome = run_all(0..40, SimConfig::new);
    assert!(outcome.resyncs.is_empty(), "a resync without a cause: {:?}", outcome.resyncs);
    assert!(outcome.node_crashes_owing > 20, "too few crashes with something owed: {outcome:?}");
    assert!(outcome.duplicates_dropped > 1_000, "too little was sent again: {outcome:?}");
}
