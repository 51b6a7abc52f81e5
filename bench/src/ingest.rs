//! One event on the ingest thread, from its bytes to the items for the rings.

use std::sync::Arc;

use bson::{Document, doc};
use bytes::Bytes;
use predicate::Mapping;
use shards::{FilterKey, FilterSnapshot};
use streamer::ingest::{
    core::{IngestCore, ToShard},
    route::ShardIndex,
};
use wire::{BackendId, Lineage, PlaceHash, SlotTable};
use workload::{EventFactory, EventOptions, Preset, Write, WriteKind};

use crate::{Named, Scenario};

pub(crate) const TENANT: &str = "acme";
pub(crate) const COLLECTION: &str = "rooms/lobby/messages";
pub(crate) const BACKEND: BackendId = BackendId(1);
pub(crate) const LINEAGE: Lineage = Lineage(1);
const SHARDS: u16 = 2;
const EVENTS: usize = 1_024;
/// Places that somebody watches, beside the one that is written to.
const OTHER_PLACES: usize = 10_000;

pub fn scenarios() -> Vec<Named> {
    let of = |name: &str, mapping: fn() -> Mapping, events: fn() -> Vec<Vec<u8>>| {
        [(false, "unwatched"), (true, "watched")].map(|(watched, place)| {
            Named::new(format!("ingest {name} {place}"), move || Ingest::new(mapping(), &events(), watched))
        })
    };
    [
        of("plain", || Mapping::Plain, plain_events),
        of("small", Mapping::syntrix, small_events),
        of("large", Mapping::syntrix, large_events),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A document with the fields of a chat message, about 200 bytes as the user wrote it.
pub(crate) fn message(i: usize) -> Document {
    doc! {
        "room": format!("room-{}", i % 97),
        "author": format!("author-{}", i % 31),
        "text": "The quick brown fox jumps over the lazy dog, and back again.",
        "likes": (i % 50) as i32,
        "score": i as f64 / 7.0,
        "pinned": i.is_multiple_of(5),
        "lang": "en",
        "at": bson::DateTime::from_millis(1_700_000_000_000 + i as i64),
        "tags": ["a", "b"],
        "reply": { "to": format!("message-{i}"), "depth": 2 },
    }
}

fn write(i: usize, kind: WriteKind, data: Document) -> Write {
    let document_id = format!("message-{i}");
    Write { tenant: TENANT.into(), collection: COLLECTION.into(), document_id, kind, data }
}

/// Inserts of a document with one field, under the `plain` mapping.
fn plain_events() -> Vec<Vec<u8>> {
    let mut factory = EventFactory::new(EventOptions::new(Preset::Plain));
    (0..EVENTS).map(|i| factory.apply(&write(i, WriteKind::Insert, doc! { "n": i as i32 }))).collect()
}

/// The same under `syntrix`, whose documents have ten fields of their own.
fn small_events() -> Vec<Vec<u8>> {
    let mut factory = EventFactory::new(EventOptions::new(Preset::Syntrix));
    (0..EVENTS).map(|i| factory.apply(&write(i, WriteKind::Insert, doc! { "n": i as i32 }))).collect()
}

/// Updates of a document of ten fields, with both images.
fn large_events() -> Vec<Vec<u8>> {
    let mut factory = EventFactory::new(EventOptions::new(Preset::Syntrix));
    for i in 0..EVENTS {
        factory.apply(&write(i, WriteKind::Insert, message(i)));
    }
    let update = |i| {
        let set = doc! { "likes": 51 };
        let mut data = message(i);
        data.extend(set.clone());
        write(i, WriteKind::Update { set }, data)
    };
    (0..EVENTS).map(|i| factory.apply(&update(i))).collect()
}

/// Slices of one piece of memory, as a source's batch is.
pub(crate) fn batch(events: &[Vec<u8>]) -> Vec<Bytes> {
    let all = Bytes::from(events.concat());
    let mut at = 0;
    let mut slice = |event: &Vec<u8>| {
        at += event.len();
        all.slice(at - event.len()..at)
    };
    events.iter().map(&mut slice).collect()
}

/// A core whose stream is open, and which lets everything through until it is told of filters.
pub(crate) fn core(mapping: Arc<Mapping>, shards: u16) -> IngestCore {
    let mut core = IngestCore::new(mapping, SlotTable { shards }, vec![BACKEND]);
    core.opened(0, LINEAGE, (0, 0), None);
    core
}

/// What a shard with these keys publishes.
pub(crate) fn filter_of(keys: impl IntoIterator<Item = FilterKey>) -> Arc<FilterSnapshot> {
    Arc::new(FilterSnapshot::of(1, keys))
}

struct Ingest {
    mapping: Arc<Mapping>,
    events: Vec<Bytes>,
    filter: Arc<FilterSnapshot>,
    core: IngestCore,
    out: Vec<ToShard>,
}

impl Ingest {
    fn new(mapping: Mapping, events: &[Vec<u8>], watched: bool) -> Self {
        let mapping = Arc::new(mapping);
        let mut places: Vec<PlaceHash> =
            (0..OTHER_PLACES).map(|i| PlaceHash::of(&format!("tenant{}", i / 100), &format!("orders-{i}"))).collect();
        if watched {
            places.push(PlaceHash::of(TENANT, COLLECTION));
        }
        let filter = filter_of(places.into_iter().map(FilterKey::place));
        Self { core: core(mapping.clone(), SHARDS), mapping, events: batch(events), filter, out: Vec::new() }
    }
}

impl Scenario for Ingest {
    fn prepare(&mut self) {
        self.out = Vec::with_capacity(2 * EVENTS);
        self.core = core(self.mapping.clone(), SHARDS);
        for shard in ShardIndex::all(SHARDS) {
            self.core.filter(shard, self.filter.clone(), &mut self.out);
        }
        self.out.clear();
    }

    fn round(&mut self) {
        for event in &self.events {
            self.core.event(0, event, &mut self.out).expect("the factory makes events as a server does");
        }
    }

    fn units(&self) -> u64 {
        self.events.len() as u64
    }

    fn describe(&self) -> String {
        let counters = self.core.counters();
        let bytes = counters.bytes / counters.events;
        format!(
            "{} events of {bytes} bytes, {} routed, {} filtered",
            counters.events, counters.routed, counters.filtered
        )
    }
}
