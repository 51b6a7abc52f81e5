//! Runs a world, catches what it says when a promise is broken, and looks for the smallest world that still breaks one.

use std::{
    cell::{Cell, RefCell},
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use serde::Serialize;

use crate::{Outcome, SimConfig, trace::Trace, world};

/// A promise that was broken.
#[derive(Clone, Debug, Serialize)]
pub struct Violation {
    /// The run that breaks it: the same one breaks it again.
    pub config: SimConfig,
    /// What was found, and where in the code.
    pub what: String,
    /// What happened last before that. Empty where no trace was asked for.
    pub trace: Vec<String>,
}

thread_local! {
    /// Whether a panic of this thread is to be kept instead of printed.
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static WHAT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs one world to its end.
///
/// # Errors
/// When a promise is broken.
pub fn run(config: &SimConfig) -> Result<Outcome, Box<Violation>> {
    run_traced(config, 0)
}

/// The same, with the last lines of what happened. It is the same run.
///
/// # Errors
/// When a promise is broken.
pub fn run_traced(config: &SimConfig, lines_max: usize) -> Result<Outcome, Box<Violation>> {
    keep_panics();
    let trace = Trace::new(lines_max);
    let (config_of_run, trace_of_run) = (config.clone(), trace.clone());
    QUIET.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(|| world::run(config_of_run, trace_of_run)));
    QUIET.set(false);
    result.map_err(|_| {
        let what = WHAT.take().unwrap_or_else(|| "a panic without a message".into());
        Box::new(Violation { config: config.clone(), what, trace: trace.take() })
    })
}

/// Has panics of runs be kept for [`run`] to return; all others go where they went before.
fn keep_panics() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if QUIET.get() {
                WHAT.set(Some(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

/// The smallest world in which the violation, or another one, is still found: fewer kinds of faults, fewer transactions, subscriptions and
/// shards, each tried as long as there is something left to leave out, with at most `runs_max` runs.
pub fn shrink(found: Box<Violation>, runs_max: usize) -> Box<Violation> {
    let mut best = found;
    let mut runs = 0;
    loop {
        let smaller = smaller_than(&best.config);
        let next = smaller.into_iter().find_map(|config| {
            if runs == runs_max {
                return None;
            }
            runs += 1;
            run(&config).err()
        });
        match next {
            Some(violation) => best = violation,
            None => return best,
        }
    }
}

/// Worlds that lack something of this one, the much smaller ones first.
fn smaller_than(config: &SimConfig) -> Vec<SimConfig> {
    let mut all = Vec::new();
    if config.faults.len() > 2 {
        let (first, second) = config.faults.split_at(config.faults.len() / 2);
        all.extend([first, second].map(|half| SimConfig { faults: half.to_vec(), ..config.clone() }));
    }
    for share in [4, 2] {
        all.push(SimConfig { transactions: config.transactions / share, ..config.clone() });
        all.push(SimConfig { subscriptions: config.subscriptions / share, ..config.clone() });
    }
    all.push(SimConfig { shards_max: 1, ..config.clone() });
    for left_out in 0..config.faults.len() {
        let mut faults = config.faults.clone();
        faults.remove(left_out);
        all.push(SimConfig { faults, ..config.clone() });
    }
    all.push(SimConfig { transactions: config.transactions * 3 / 4, ..config.clone() });
    all.push(SimConfig { subscriptions: config.subscriptions * 3 / 4, ..config.clone() });
    let size = |config: &SimConfig| {
        (config.faults.len(), config.transactions, config.subscriptions, usize::from(config.shards_max))
    };
    all.retain(|smaller| size(smaller) != size(config) && smaller.transactions > 0 && smaller.subscriptions > 0);
    all
}
