//! What the integration tests share: a database of their own on the test server, Gateways that write down what they are told,
//! nodes in this process and in one of their own, and waiting with a bound.

pub(crate) mod database;
pub(crate) mod listener;
pub(crate) mod node;

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// How long something may take that is certain to come. Nothing depends on how long it really takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Looks until `found` yields something. `missing` says what is awaited, for the panic.
pub(crate) async fn wait_for<T>(mut found: impl FnMut() -> Option<T>, missing: impl FnOnce() -> String) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "after {PATIENCE:?} still missing: {}", missing());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The future's result, within the bound.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("after {PATIENCE:?} still missing: {what}"),
    }
}

/// A list of `count` cores for `affinity.shards`, of those that this process is allowed, each as often as needed.
pub(crate) fn cores(count: usize) -> String {
    let allowed = streamer::affinity::allowed().expect("the kernel tells which cores are allowed");
    let names: Vec<String> = allowed.iter().cycle().take(count).map(ToString::to_string).collect();
    names.join(",")
}

/// Different in every call, process and run.
pub(crate) fn unique() -> String {
    format!("{:08x}", rand::random::<u32>())
}
