//! What it costs the ingest thread that nobody watches a collection whose hash it has: one probe of the filter of the shard that owns it.
//! Beside it the same probe of an exact set. More collections are asked for than stay in a cache.

use std::sync::Arc;

use hashbrown::HashSet;
use shards::{FilterKey, FilterSnapshot};
use streamer::ingest::route::{Router, ShardIndex};
use wire::{PlaceHash, SlotTable};

use crate::{Named, Scenario};

const SHARDS: u16 = 2;
const PROBES: usize = 1 << 18;

pub fn scenarios() -> Vec<Named> {
    [10_000, 100_000, 1_000_000]
        .into_iter()
        .flat_map(|keys| {
            [
                Named::new(format!("filter miss, {keys} keys"), move || Miss::new(keys)),
                Named::new(format!("exact set miss, {keys} keys"), move || ExactMiss::new(keys)),
            ]
        })
        .collect()
}

fn places(count: usize, name: &str) -> impl Iterator<Item = PlaceHash> {
    (0..count).map(move |i| PlaceHash::of(&format!("tenant{}", i / 100), &format!("rooms/{name}-{i}/messages")))
}

struct Miss {
    router: Router,
    asked: Vec<PlaceHash>,
    keys: usize,
    wanted: u64,
}

impl Miss {
    fn new(keys: usize) -> Self {
        let slots = SlotTable { shards: SHARDS };
        let mut router = Router::new(slots);
        for shard in ShardIndex::all(SHARDS) {
            let owned = places(keys, "watched").filter(|place| slots.owner(*place) == shard.0);
            router.filter(shard, Arc::new(FilterSnapshot::of(1, owned.map(FilterKey::place))));
        }
        Self { router, asked: places(PROBES, "other").collect(), keys, wanted: 0 }
    }
}

impl Scenario for Miss {
    fn prepare(&mut self) {
        self.wanted = 0;
    }

    fn round(&mut self) {
        for place in &self.asked {
            self.wanted += self.router.wanting([*place], || None).len() as u64;
        }
    }

    fn units(&self) -> u64 {
        PROBES as u64
    }

    fn describe(&self) -> String {
        format!("{PROBES} places, {} keys over {SHARDS} shards, {} let through", self.keys, self.wanted)
    }
}

struct ExactMiss {
    keys: HashSet<u64>,
    asked: Vec<PlaceHash>,
    wanted: u64,
}

impl ExactMiss {
    fn new(keys: usize) -> Self {
        let keys = places(keys, "watched").map(|place| FilterKey::place(place).0).collect();
        Self { keys, asked: places(PROBES, "other").collect(), wanted: 0 }
    }
}

impl Scenario for ExactMiss {
    fn prepare(&mut self) {
        self.wanted = 0;
    }

    fn round(&mut self) {
        for place in &self.asked {
            self.wanted += u64::from(self.keys.contains(&FilterKey::place(*place).0));
        }
    }

    fn units(&self) -> u64 {
        PROBES as u64
    }

    fn describe(&self) -> String {
        format!("{PROBES} places, {} keys, {} let through", self.keys.len(), self.wanted)
    }
}
