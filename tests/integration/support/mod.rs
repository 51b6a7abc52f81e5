//! What the integration tests share: nodes in this process and in one of their own, their HTTP side, Gateways, some of which write
//! down what they are told, a database of one's own on the test server, and waiting with a bound.

pub(crate) mod api;
pub(crate) mod database;
pub(crate) mod gateway;
pub(crate) mod listener;
pub(crate) mod node;
pub(crate) mod process;
pub(crate) mod setup;

use std::{
    future::Future,
    time::{Duration, Instant},
};

use shards::driver::{Preflight, RuntimeChoice};

/// How long something may take that is certain to come. Nothing depends on how long it really takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(10);

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

/// Looks until there is something.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    within(what, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    })
    .await
}

/// The future's result, within the bound.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("after {PATIENCE:?} still missing: {what}"),
    }
}

/// The executors that shards run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runtime {
    Glommio,
    Tokio,
}

impl Runtime {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Glommio => "glommio",
            Self::Tokio => "tokio",
        }
    }

    /// Whether it can run here; where it can't, says so.
    pub(crate) fn is_available(self) -> bool {
        if self == Self::Tokio {
            return true;
        }
        match Preflight::check(SHARDS).decide(RuntimeChoice::Glommio) {
            Ok(_) => true,
            Err(why) => {
                println!("skipped: {why}");
                false
            }
        }
    }
}

/// Shards of a node unless a test says otherwise.
pub(crate) const SHARDS: usize = 4;

/// Makes one test a runtime out of an async function that takes the runtime.
macro_rules! on_both_runtimes {
    ($($name:ident),+ $(,)?) => {
        mod on_glommio {
            $(#[test]
            fn $name() {
                if $crate::support::Runtime::Glommio.is_available() {
                    $crate::support::block_on(super::$name($crate::support::Runtime::Glommio));
                }
            })+
        }
        mod on_tokio {
            $(#[test]
            fn $name() {
                $crate::support::block_on(super::$name($crate::support::Runtime::Tokio));
            })+
        }
    };
}
pub(crate) use on_both_runtimes;

/// Runs the test's own side. The node has threads of its own.
pub(crate) fn block_on<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test)
}

/// A list of `count` cores for `affinity.shards`, of those that this process is allowed, each as often as needed.
pub(crate) fn cores(count: usize) -> String {
    let allowed = streamer::affinity::Topology::read().expect("the kernel tells which cores are allowed").numbers();
    let names: Vec<String> = allowed.iter().cycle().take(count).map(ToString::to_string).collect();
    names.join(",")
}

/// Different in every call, process and run.
pub(crate) fn unique() -> String {
    format!("{:08x}", rand::random::<u32>())
}
