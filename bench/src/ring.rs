//! The ring between the ingest thread and a shard, at rest: neither side waits, nor touches it while the other does.

use shards::{
    FromIngest,
    driver::{RingConsumer, RingProducer, ring},
};
use wire::Position;

use crate::{
    Named, Scenario,
    ingest::{BACKEND, LINEAGE},
};

/// What a shard takes at once.
const ITEMS: usize = 256;

pub fn scenarios() -> Vec<Named> {
    vec![Named::new("ring push and drain", Ring::new)]
}

struct Ring {
    producer: RingProducer<FromIngest>,
    consumer: RingConsumer<FromIngest>,
    items: Vec<FromIngest>,
    taken: Vec<FromIngest>,
}

impl Ring {
    fn new() -> Self {
        let (producer, consumer) = ring("bench", 4 * ITEMS);
        Self { producer, consumer, items: Vec::new(), taken: Vec::with_capacity(ITEMS) }
    }
}

impl Scenario for Ring {
    fn prepare(&mut self) {
        self.taken.clear();
        let item = |time| FromIngest::Progress(Position { backend: BACKEND, lineage: LINEAGE, time, k: 1 });
        self.items = (0..ITEMS as u64).map(item).collect();
    }

    fn round(&mut self) {
        for item in self.items.drain(..) {
            self.producer.try_push(item).expect("it is drained between two rounds");
        }
        self.consumer.drain(ITEMS, |item| self.taken.push(item));
    }

    fn units(&self) -> u64 {
        ITEMS as u64
    }

    fn describe(&self) -> String {
        format!("{ITEMS} items of {} bytes pushed, then drained", size_of::<FromIngest>())
    }
}
