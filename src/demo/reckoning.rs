//! What each subscription must have got, and what it got.

use bson::Document;
use wire::{BackendId, Lineage, Position};
use workload::{
    EventFactory, EventOptions, Expected, GeneratedSubscription, Generator, Ledger, Oracle, OracleChange, Preset,
};

use super::{BACKEND, gateways::Delivered};

/// Threads that the oracle works on.
const WORKERS: usize = 2;

/// Writes that are given to a worker at once.
const CHUNK: usize = 2_048;

pub(super) struct Reckoner {
    pub(super) lineage: Lineage,
    pub(super) first_offset: u64,
    pub(super) written: u64,
}

impl Reckoner {
    /// Generates the acknowledged writes again, in their order, and asks the oracle about each.
    pub(super) fn expected(&self, generator: &Generator, subscriptions: &[GeneratedSubscription]) -> Vec<Expected> {
        let mut oracle = Oracle::new(Preset::Syntrix);
        for subscription in subscriptions {
            oracle.subscribe(subscription.to_oracle()).expect("the generator makes good subscriptions");
        }
        let oracle = &oracle;
        let (to_workers, chunks) = flume::bounded::<Vec<OracleChange>>(WORKERS * 2);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS)
                .map(|_| {
                    let chunks = chunks.clone();
                    scope.spawn(move || {
                        let chunks = chunks.into_iter();
                        chunks.flatten().flat_map(|change| oracle.expect(&change)).collect::<Vec<_>>()
                    })
                })
                .collect();
            drop(chunks);
            let mut writer = generator.writer();
            let mut factory = EventFactory::new(EventOptions::new(Preset::Syntrix));
            let mut offset = self.first_offset;
            let mut left = self.written;
            while left > 0 {
                let count = (CHUNK as u64).min(left);
                left -= count;
                let changes = (0..count)
                    .filter_map(|_| {
                        let event = factory.apply(&writer.next());
                        let event = Document::from_reader(&event[..]).expect("the factory makes BSON");
                        let id = self.position(offset);
                        offset += 1;
                        OracleChange::from_change_event(&event, Preset::Syntrix, id).expect("it makes change events")
                    })
                    .collect();
                to_workers.send(changes).expect("the workers take until this end is gone");
            }
            drop(to_workers);
            workers.into_iter().flat_map(|worker| worker.join().expect("the oracle doesn't panic")).collect()
        })
    }

    fn position(&self, offset: u64) -> Position {
        Position { backend: BackendId::of_name(BACKEND), lineage: self.lineage, time: offset, k: 1 }
    }
}

/// Sets what was expected against what was delivered. What is of another lineage can only be misdelivered.
pub(super) fn reckon(
    subscriptions: &[GeneratedSubscription],
    expected: &[Expected],
    delivered: &[Delivered],
) -> Ledger {
    let mut ledger = Ledger::new();
    for subscription in subscriptions {
        ledger.register(&subscription.gateway_name(), &subscription.key, subscription.op);
    }
    for one in expected {
        ledger.expect(one);
    }
    for kept in delivered.iter().flat_map(|delivered| &delivered.kept) {
        let subscription = &subscriptions[kept.subscription as usize];
        ledger.deliver(&workload::Delivered {
            gateway: subscription.gateway_name(),
            key: subscription.key.clone(),
            id: kept.id,
            transition: kept.transition,
            shard: kept.shard,
        });
    }
    ledger
}
