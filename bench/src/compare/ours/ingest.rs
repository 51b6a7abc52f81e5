//! The ingest thread on events of collections that nobody watches: what it costs to find that out, over reading the event.

use std::{hint::black_box, ops::Range, sync::Arc, time::Duration};

use bson::{Document, doc};
use bytes::Bytes;
use predicate::Mapping;
use shards::{FilterKey, FilterSnapshot};
use streamer::ingest::{
    core::{IngestCore, ToShard},
    event::RawEvent,
    normalize::{Concern, Found, Normalizer},
    route::{Router, ShardIndex},
};
use wire::{PlaceHash, SlotTable};
use workload::matching::{Answer, Pool, World};

use crate::{
    compare::{Built, Engine, EngineKind, build_timed},
    ingest::{batch, core, filter_of},
};

const SHARDS: u16 = 2;

/// A filter that holds a place for each of so many subscriptions: more places than they have, and so the harder case.
fn filter(world: &World) -> (Arc<FilterSnapshot>, Duration, usize) {
    let mut keys: Vec<FilterKey> = Vec::with_capacity(world.subscriptions);
    let place = |_: &World, subscription: usize| {
        FilterKey::place(PlaceHash::of(&format!("tenant-{}", subscription / 100), &format!("orders-{subscription}")))
    };
    let (build, _) = build_timed(world, place, |_, key| keys.push(key));
    let (filter, bytes) = crate::heap::growth_of(|| filter_of(keys));
    (filter, build, bytes)
}

/// The pool's events as a source delivers them.
fn raw_events(world: &World, pool: &Pool) -> Vec<Bytes> {
    let event = |number: usize| {
        let event = pool.event(number);
        let (database, collection) = world.place(event.collection);
        let document = Document::from_reader(event.after).expect("a generated document is BSON");
        let event = doc! {
            "_id": { "_data": format!("{number:016x}") },
            "operationType": "insert",
            "clusterTime": bson::Timestamp { time: 1_700_000_000, increment: number as u32 + 1 },
            "ns": { "db": database, "coll": collection },
            "documentKey": { "_id": number as i64 },
            "fullDocument": document,
        };
        event.to_vec().expect("an event has no value that BSON can't hold")
    };
    batch(&(0..pool.len()).map(event).collect::<Vec<_>>())
}

/// All that the ingest thread does with an event.
pub(in crate::compare) struct Ingest {
    events: Vec<Bytes>,
    core: IngestCore,
    filter: Arc<FilterSnapshot>,
    out: Vec<ToShard>,
}

impl Ingest {
    pub(in crate::compare) fn build<'a>(world: &World, pool: &'a Pool) -> Built<'a> {
        let (filter, build, bytes) = filter(world);
        let events = raw_events(world, pool);
        let engine = Self { events, core: core(Arc::new(Mapping::Plain), SHARDS), filter, out: Vec::new() };
        Built { engine: Box::new(engine), build, bytes }
    }
}

impl Engine for Ingest {
    fn kind(&self) -> EngineKind {
        EngineKind::OursIngest
    }

    /// The events begin anew with each round, so the core does too: it would drop what it has read.
    fn prepare(&mut self, _events: Range<usize>) {
        self.core = core(Arc::new(Mapping::Plain), SHARDS);
        self.out.clear();
        for shard in ShardIndex::all(SHARDS) {
            self.core.filter(shard, self.filter.clone(), &mut self.out);
        }
        self.out.clear();
    }

    fn round(&mut self, events: Range<usize>) -> u64 {
        for event in &self.events[events] {
            self.core.event(0, event, &mut self.out).expect("events come in their order");
        }
        self.core.counters().routed
    }

    /// What a filter lets through by mistake is no match; the shard finds out.
    fn answer(&mut self, event: usize) -> Vec<Answer> {
        self.prepare(event..event + 1);
        self.round(event..event + 1);
        Vec::new()
    }
}

/// Only the reading of an event, up to where it belongs; or that, and what the filters say.
pub(in crate::compare) struct Reader {
    events: Vec<Bytes>,
    normalizer: Normalizer,
    router: Option<Router>,
}

impl Reader {
    pub(in crate::compare) fn build<'a>(world: &World, pool: &'a Pool, asks_filters: bool) -> Built<'a> {
        let events = raw_events(world, pool);
        let normalizer = Normalizer::new(Arc::new(Mapping::Plain));
        let (router, build, bytes) = if asks_filters {
            let (filter, build, bytes) = filter(world);
            let mut router = Router::new(SlotTable { shards: SHARDS });
            ShardIndex::all(SHARDS).for_each(|shard| {
                router.filter(shard, filter.clone());
            });
            (Some(router), build, bytes)
        } else {
            (None, Duration::ZERO, 0)
        };
        Built { engine: Box::new(Self { events, normalizer, router }), build, bytes }
    }

    /// Whether some shard may want it.
    fn is_wanted(&self, found: &Found<'_>) -> bool {
        let places = found.places().expect("an insert has a place");
        match &self.router {
            Some(router) => !router.wanting(places.into_iter().flatten(), || found.filter_key()).is_empty(),
            None => {
                black_box(places);
                false
            }
        }
    }
}

impl Engine for Reader {
    fn kind(&self) -> EngineKind {
        if self.router.is_some() { EngineKind::OursFilter } else { EngineKind::Read }
    }

    fn round(&mut self, events: Range<usize>) -> u64 {
        let mut wanted = 0;
        for event in &self.events[events] {
            let fields = RawEvent::parse(event).expect("the events are as a source's");
            let mut found = Found::NOTHING;
            match self.normalizer.find(&fields, &mut found) {
                Ok(Concern::Document) => wanted += u64::from(self.is_wanted(&found)),
                other => panic!("an insert concerns a document, not {other:?}"),
            }
            black_box((fields.cluster_time, fields.token));
        }
        wanted
    }

    fn answer(&mut self, event: usize) -> Vec<Answer> {
        self.round(event..event + 1);
        Vec::new()
    }
}
