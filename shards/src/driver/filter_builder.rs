//! The thread that builds the filters of all shards of a node: what takes it half a second would hold up everything on a shard.
//!
//! One thread does: a shard asks for a filter now and then, and until it has it what it publishes is right, if larger. Several would
//! only take cores from the shards.
//!
//! Invariants:
//! - A shard has at most one build here, so the queue is as long as there are shards, and each order is answered exactly once.
//! - The thread ends once all who may ask are gone, after the build that it is at. Nobody waits for it.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
};

use tracing::{debug, error};

use super::executor::panic_message;
use crate::{FilterBuild, FilterBuilt};

struct Order {
    build: FilterBuild,
    done: flume::Sender<FilterBuilt>,
}

/// The way to the thread. One for all shards, cloned for each.
#[derive(Clone)]
pub struct FilterBuilder {
    orders: flume::Sender<Order>,
}

impl FilterBuilder {
    /// Starts the thread, which waits until something is to be built.
    pub fn spawn() -> io::Result<Self> {
        let (orders, receiver) = flume::bounded::<Order>(usize::from(wire::SLOTS));
        std::thread::Builder::new().name("filter-builder".into()).spawn(move || {
            for Order { build, done } in receiver.iter() {
                // Who asked may have ended meanwhile.
                let _ = done.send(run(build));
            }
        })?;
        Ok(Self { orders })
    }

    pub(super) fn client(&self) -> (FilterClient, flume::Receiver<FilterBuilt>) {
        let (done, built) = flume::bounded(1);
        (FilterClient { orders: self.orders.clone(), done }, built)
    }
}

fn run(build: FilterBuild) -> FilterBuilt {
    let failed = build.fail();
    debug!(?build, "building a filter");
    match catch_unwind(AssertUnwindSafe(|| build.run())) {
        Ok(built) => {
            debug!(?built, "a filter is built");
            built
        }
        Err(panic) => {
            error!("building a filter panicked; it will be tried again: {}", panic_message(&*panic));
            failed
        }
    }
}

/// One shard's way to the thread.
pub(super) struct FilterClient {
    orders: flume::Sender<Order>,
    done: flume::Sender<FilterBuilt>,
}

impl FilterClient {
    /// Hands an order over. Gives the answer where there is nobody to do it.
    pub(super) fn order(&self, build: FilterBuild) -> Result<(), FilterBuilt> {
        let order = Order { build, done: self.done.clone() };
        self.orders.try_send(order).map_err(|error| {
            error!("a filter can't be built, since the thread that builds them has no room or has ended");
            error.into_inner().build.fail()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FilterConfig, FilterKey, FilterStep, filter::Filter};

    fn ordered(filter: &mut Filter) -> FilterBuild {
        loop {
            match filter.step(0) {
                FilterStep::More => {}
                FilterStep::Build(build) => return build,
                FilterStep::Nothing => panic!("it wants a base"),
            }
        }
    }

    #[test]
    fn builds_what_shards_ask_for_and_ends_with_them() {
        let builder = FilterBuilder::spawn().unwrap();
        let (client, built) = builder.client();
        let mut filter = Filter::new(FilterConfig::default(), 1);
        for round in 0..3_u64 {
            (10 + round * 5_000..10 + (round + 1) * 5_000).for_each(|key| _ = filter.add(FilterKey(key)));
            client.order(ordered(&mut filter)).unwrap();
            filter.built(built.recv().unwrap(), 0);
            let snapshot = filter.take().unwrap();
            assert!((10..10 + (round + 1) * 5_000).all(|key| snapshot.may_want(FilterKey(key))));
        }
        assert_eq!(filter.counts().builds, 3);
        drop(client);
        drop(builder);
        assert!(built.recv().is_err(), "the thread has let go of its end");
    }

    #[test]
    fn an_order_that_nobody_takes_has_failed() {
        let (orders, receiver) = flume::bounded(1);
        drop(receiver);
        let (client, _built) = FilterBuilder { orders }.client();
        let mut filter = Filter::new(FilterConfig::default(), 1);
        (10..5_010).for_each(|key| _ = filter.add(FilterKey(key)));
        let answer = client.order(ordered(&mut filter)).unwrap_err();
        filter.built(answer, 0);
        assert_eq!(filter.counts().builds_failed, 1);
    }
}
