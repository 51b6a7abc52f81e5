//! Which subscriptions a document matches, however many there are.
//!
//! Everything is kept by *partition*: one tenant's one collection, compared in full. Within it a subscription hangs on *anchors*:
//! something that every document it matches has, such as a value, an element, a value in a range or the document's own id; or, if
//! nothing of that kind is in its predicate, on nothing, and is looked at for every document. Of several ways to find a predicate
//! the one is taken that the fewest others are on.
//!
//! A document is walked once over its bytes, and only what something hangs on is looked up. What is found is a match where the
//! anchor decides the predicate, else a candidate that is evaluated. Several events are worked on at once, each step for all of them
//! before the next step, so that what one waits for from memory is on its way while the others are at work.
//!
//! Invariants:
//! - A document that a predicate holds for meets one of its anchors; so what isn't reached doesn't match.
//! - Matches depend on subscriptions and event alone, not on the order in which subscriptions came and went, nor on which events
//!   were asked about together.
//! - No step is large: nothing is ever copied or rebuilt as a whole.

mod announce;
mod arena;
mod evaluate;
mod event;
mod fields;
mod insert;
mod intervals;
mod key;
mod machine;
mod matching;
mod near;
mod open;
mod paths;
mod places;
mod postings;
mod probe;
mod range;
mod rest;
mod table;
mod walk;

use std::sync::Arc;

use bytestring::ByteString;
use hashbrown::HashMap;
use predicate::{Mapping, Predicate};
use wire::PlaceHash;

use self::arena::{Arena, Slots, Vacant};
use self::key::Seeds;
use self::matching::Scratch;
use self::paths::Paths;
use self::places::Partition;
use self::postings::Postings;
use self::range::RangeSet;
use self::rest::Rest;
use self::table::Table;

pub use event::{Counts, Event, Image, Main, Match, Rules, Verdict};

/// Events that are worked on at once.
pub const BATCH_MAX: usize = 32;

#[derive(Debug)]
pub struct Index {
    mapping: Arc<Mapping>,
    /// The document id in filters.
    id_path: Option<predicate::Path>,
    seeds: Seeds,
    entries: Slots<Entry>,
    partitions: Arena<Partition>,
    places: Table,
    tenants: HashMap<ByteString, Vec<u32>>,
    paths: Paths,
    postings: Postings,
    rests: Arena<Rest>,
    range_sets: Arena<RangeSet>,
    /// Each range that something hangs on.
    bounds: Arena<Bounds>,
    /// Subscriptions that hang on a document's id.
    by_document: usize,
    scratch: Scratch,
}

/// A range, and where it is: the node and the order in one number.
#[derive(Clone, Copy, Debug, Default)]
struct Bounds {
    lower: u64,
    upper: u64,
    at: u32,
}

/// A subscription, by its slot: a quarter of a cache line.
#[derive(Clone, Copy, Debug)]
struct Entry {
    partition: u32,
    /// Where it stands among the members of its partition.
    in_members: u32,
    /// What it hangs on, in two numbers: see [`Entry::hang`].
    what: u32,
    at: u32,
}

/// What it hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hang {
    /// One key that decides it: the record and the place in its list.
    Sure {
        record: u32,
        at: u32,
    },
    /// Several, or one that doesn't decide it.
    Rest {
        rest: u32,
    },
    /// Every document of the partition.
    Everyone {
        at: u32,
    },
    /// No document can match.
    Never,
    Vacant,
}

/// In place of a place in a list, which is less: what else an entry hangs on.
const REST: u32 = u32::MAX;
const EVERYONE: u32 = u32::MAX - 1;
const NEVER: u32 = u32::MAX - 2;
const VACANT: u32 = u32::MAX - 3;

impl Entry {
    fn new(partition: u32, in_members: u32, hang: Hang) -> Self {
        let mut entry = Entry { partition, in_members, ..Entry::VACANT };
        entry.set_hang(hang);
        entry
    }

    fn hang(&self) -> Hang {
        match (self.what, self.at) {
            (rest, REST) => Hang::Rest { rest },
            (at, EVERYONE) => Hang::Everyone { at },
            (_, NEVER) => Hang::Never,
            (_, VACANT) => Hang::Vacant,
            (record, at) => Hang::Sure { record, at },
        }
    }

    fn set_hang(&mut self, hang: Hang) {
        (self.what, self.at) = match hang {
            Hang::Sure { record, at } => (record, at),
            Hang::Rest { rest } => (rest, REST),
            Hang::Everyone { at } => (at, EVERYONE),
            Hang::Never => (0, NEVER),
            Hang::Vacant => (0, VACANT),
        };
    }
}

impl Vacant for Entry {
    const VACANT: Self = Entry { partition: 0, in_members: 0, what: 0, at: VACANT };

    fn is_vacant(&self) -> bool {
        self.at == VACANT
    }
}

impl Index {
    /// `seed` keys the hashes. Random in a node, so that nobody can choose values that collide.
    pub fn new(mapping: Arc<Mapping>, seed: u64) -> Self {
        let seeds = Seeds::new(seed);
        Self {
            id_path: mapping.filter_path("_id").ok(),
            mapping,
            seeds,
            entries: Slots::default(),
            partitions: Arena::default(),
            places: Table::default(),
            tenants: HashMap::new(),
            paths: Paths::new(seeds),
            postings: Postings::new(seeds),
            rests: Arena::default(),
            range_sets: Arena::default(),
            bounds: Arena::default(),
            by_document: 0,
            scratch: Scratch::default(),
        }
    }

    /// Subscriptions.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The partition of a place, if anybody watches it.
    pub fn partition(&self, place: PlaceHash, tenant: &str, collection: &str) -> Option<u32> {
        self.find_partition(place, tenant.as_bytes(), collection.as_bytes())
    }

    fn find_partition(&self, place: PlaceHash, tenant: &[u8], collection: &[u8]) -> Option<u32> {
        self.places.find(self.place_tag(place), |at| {
            let partition = self.partitions.get(at);
            partition.place == place && partition.is_of(tenant, collection)
        })
    }

    /// Partitions of a tenant.
    pub fn partitions_of(&self, tenant: &str) -> &[u32] {
        self.tenants.get(tenant).map_or(&[], Vec::as_slice)
    }

    /// Slots of the subscriptions of a partition.
    pub fn members(&self, partition: u32) -> &[u32] {
        &self.partitions.get(partition).members
    }

    /// Tenant and collection of a partition.
    pub fn place_names(&self, partition: u32) -> (ByteString, ByteString) {
        let partition = self.partitions.get(partition);
        (partition.tenant(), partition.collection())
    }

    /// Whether any subscription hangs on a document's id.
    pub fn watches_documents(&self) -> bool {
        self.by_document > 0
    }

    pub fn partition_of(&self, slot: u32) -> Option<u32> {
        self.entries.get(slot).map(|entry| entry.partition)
    }

    /// Whether it is a subscription to all documents of its collection.
    pub fn is_to_everything(&self, slot: u32) -> bool {
        self.entries.get(slot).is_some_and(|entry| matches!(entry.hang(), Hang::Everyone { .. }))
    }

    /// The predicate of a subscription, where it is still kept: it is for those that hang on a document's id.
    pub fn predicate(&self, slot: u32) -> Option<&Arc<Predicate>> {
        match self.entries.get(slot)?.hang() {
            Hang::Rest { rest } => self.rests.get(rest).predicate.as_ref(),
            _ => None,
        }
    }

    /// Whether the subscription is bound to one document's id, so that a change of another document is none of its business.
    pub fn is_by_document(&self, slot: u32) -> bool {
        let Some(entry) = self.entries.get(slot) else { return false };
        match entry.hang() {
            Hang::Never => true,
            Hang::Rest { rest } => {
                let rest = self.rests.get(rest);
                rest.predicate.as_ref().is_some_and(|predicate| predicate.document_id().is_some())
            }
            _ => false,
        }
    }

    /// Slots of the subscriptions to the document of this stored id, in any partition.
    pub fn by_document(&self, key: &[u8], mut each: impl FnMut(u32)) {
        if let Some(record) = self.document_record(key) {
            let rests = self.postings.items(&self.postings.record(record).rest);
            rests.each(|rest| each(self.rests.get(rest).slot));
        }
    }

    /// Panics where lists and entries disagree. For tests: it looks at everything.
    #[doc(hidden)]
    pub fn check_invariants(&self) {
        let mut members = 0;
        for (slot, entry) in self.entries.iter() {
            let partition = self.partitions.get(entry.partition);
            assert_eq!(partition.members[entry.in_members as usize], slot, "members disagree with entry");
            members += 1;
            match entry.hang() {
                Hang::Sure { record, at } => {
                    let list = self.postings.items(&self.postings.record(record).sure);
                    assert_eq!(list.at(at), Some(slot), "a list disagrees with entry");
                }
                Hang::Rest { rest } => {
                    assert_eq!(self.rests.get(rest).slot, slot, "a predicate disagrees with entry");
                }
                Hang::Everyone { at } => assert_eq!(partition.everyone[at as usize], slot),
                Hang::Never | Hang::Vacant => {}
            }
        }
        assert_eq!(members, self.len());
    }

    /// Panics where something is left behind by subscriptions that are all gone. For tests.
    #[doc(hidden)]
    pub fn check_empty(&self) {
        assert!(self.is_empty() && self.tenants.is_empty() && self.by_document == 0, "subscriptions are left");
        assert_eq!(self.partitions.len(), 0, "partitions are left");
        assert_eq!(self.rests.len(), 0, "predicates are left");
        assert_eq!((self.range_sets.len(), self.bounds.len()), (0, 0), "ranges are left");
        assert!(self.postings.is_empty(), "records are left");
        assert_eq!(self.paths.len(), 0, "paths are left");
    }

    fn place_tag(&self, place: PlaceHash) -> u32 {
        (self.seeds.hash(place.0, 0, [0, 0]) >> 32) as u32
    }
}
