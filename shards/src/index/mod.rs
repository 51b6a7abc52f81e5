//! Which subscriptions a change concerns, and how.
//!
//! Everything is kept by *partition*: one tenant's one collection, compared in full. Within it a subscription hangs on one
//! *anchor*, something that every document it matches must have: the document's stored id, a field's value, or nothing (the
//! "always" lane). Anchors name candidates; the whole predicate is then evaluated on each.
//!
//! Invariants:
//! - A subscription stands in exactly one lane, at the place that its entry names, and in its partition's list of members.
//! - A document that a predicate holds for is reached through the predicate's anchor; so what isn't reached doesn't match.
//! - Hits depend on subscriptions and change alone, not on the order in which subscriptions came and went.

mod bare;
mod lanes;
mod matching;

use std::sync::Arc;

use bson::RawBsonRef;
use bytestring::ByteString;
use hashbrown::{HashMap, HashTable};
use predicate::mapping::Nested;
use predicate::{Mapping, Predicate, Value};
use smallvec::SmallVec;
use wire::{Certainty, PlaceHash, Transition};

use self::lanes::{Lane, Postings};
use crate::FilterKey;

pub(crate) use self::matching::{MatchCounts, Rules};

#[derive(Debug)]
pub(crate) struct Index {
    mapping: Arc<Mapping>,
    /// The document id in filters.
    id_path: Option<predicate::Path>,
    seed: u64,
    /// By slot.
    entries: Vec<Option<Entry>>,
    partitions: Vec<Partition>,
    free_partitions: Vec<u32>,
    /// Places in `partitions`, by the hash of tenant and collection.
    places: HashTable<u32>,
    tenants: HashMap<ByteString, SmallVec<[u32; 4]>>,
    /// Subscriptions to one document, of all partitions, by its stored id.
    documents: Postings,
    scratch: matching::Scratch,
}

#[derive(Debug)]
struct Partition {
    place: PlaceHash,
    tenant: ByteString,
    collection: ByteString,
    members: Lane,
    always: Lane,
    equalities: Vec<IndexedPath>,
}

#[derive(Debug)]
struct IndexedPath {
    path: predicate::Path,
    postings: Postings,
}

#[derive(Debug)]
struct Entry {
    predicate: Arc<Predicate>,
    partition: u32,
    transitions: bool,
    /// Whether there is more to the predicate than its filters.
    has_expression: bool,
    /// Whether it may be hit. Until the ingest thread routes by a filter that holds it, it may not.
    live: bool,
    anchor: Anchor,
    /// Where in its lane it stands, and where among the members of its partition.
    in_lane: u32,
    in_members: u32,
}

#[derive(Debug)]
enum Anchor {
    Document(Value),
    Equality {
        path: predicate::Path,
        value: Value,
    },
    Always,
    /// Bound to a document id that no document of this layout can have, or to two of them.
    Never,
}

/// What a subscription watches for in its collection.
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    pub(crate) predicate: Arc<Predicate>,
    pub(crate) transitions: bool,
    pub(crate) has_expression: bool,
}

/// A subscription that a change is to be told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hit {
    pub(crate) slot: u32,
    pub(crate) shown: Shown,
    pub(crate) transition: Transition,
    pub(crate) certainty: Certainty,
}

/// Which image of the change a hit is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Shown {
    Before,
    After,
    /// None is known, but the place is: the subscription's own.
    NothingAt(u32),
    /// None is known, nor is the collection.
    Nothing,
}

impl Index {
    pub(crate) fn new(mapping: Arc<Mapping>, seed: u64) -> Self {
        Self {
            id_path: mapping.filter_path("_id").ok(),
            mapping,
            seed,
            entries: Vec::new(),
            partitions: Vec::new(),
            free_partitions: Vec::new(),
            places: HashTable::new(),
            tenants: HashMap::new(),
            documents: Postings::default(),
            scratch: matching::Scratch::default(),
        }
    }

    /// What the ingest thread must let through for this predicate.
    pub(crate) fn filter_key(&self, tenant: &str, collection: &str, predicate: &Predicate) -> FilterKey {
        match predicate.document_id() {
            None => FilterKey::place(PlaceHash::of(tenant, collection)),
            Some(id) => {
                let stored = self.stored_id(tenant, collection, id);
                FilterKey::document(stored.as_ref().unwrap_or(id).as_bytes())
            }
        }
    }

    /// Puts a subscription at a slot that is empty. It isn't hit before [`Index::set_live`].
    pub(crate) fn insert(&mut self, slot: u32, tenant: &str, collection: &str, watch: Watch) {
        let Watch { predicate, transitions, has_expression } = watch;
        let at = self.open_partition(tenant, collection);
        let anchor = self.choose_anchor(at, &predicate);
        let seed = self.seed;
        let partition = &mut self.partitions[at as usize];
        let in_lane = match &anchor {
            Anchor::Document(value) => self.documents.add(seed, value, slot),
            Anchor::Equality { path, value } => partition.postings_mut(path).add(seed, value, slot),
            Anchor::Always => partition.always.add(slot),
            Anchor::Never => 0,
        };
        let in_members = partition.members.add(slot);
        if self.entries.len() <= slot as usize {
            self.entries.resize_with(slot as usize + 1, || None);
        }
        debug_assert!(self.entries[slot as usize].is_none(), "slot {slot} is taken");
        self.entries[slot as usize] = Some(Entry {
            predicate,
            partition: at,
            transitions,
            has_expression,
            live: false,
            anchor,
            in_lane,
            in_members,
        });
    }

    pub(crate) fn set_live(&mut self, slot: u32) {
        if let Some(Some(entry)) = self.entries.get_mut(slot as usize) {
            entry.live = true;
        }
    }

    pub(crate) fn remove(&mut self, slot: u32) {
        let Some(entry) = self.entries.get_mut(slot as usize).and_then(Option::take) else { return };
        let seed = self.seed;
        let partition = &mut self.partitions[entry.partition as usize];
        let moved = match &entry.anchor {
            Anchor::Document(value) => self.documents.remove(seed, value, entry.in_lane),
            Anchor::Equality { path, value } => {
                let at = partition.equalities.iter().position(|known| known.path == *path);
                let at = at.expect("a path stays while a subscription hangs on it");
                let postings = &mut partition.equalities[at].postings;
                let moved = postings.remove(seed, value, entry.in_lane);
                if postings.is_empty() {
                    partition.equalities.swap_remove(at);
                }
                moved
            }
            Anchor::Always => partition.always.remove(entry.in_lane),
            Anchor::Never => None,
        };
        if let Some(Some(other)) = moved.map(|slot| &mut self.entries[slot as usize]) {
            other.in_lane = entry.in_lane;
        }
        if let Some(Some(other)) = partition.members.remove(entry.in_members).map(|s| &mut self.entries[s as usize]) {
            other.in_members = entry.in_members;
        }
        if partition.members.is_empty() {
            self.close_partition(entry.partition);
        }
    }

    /// Whether the subscription at this slot is bound to a document's id, so that a change of another one is none of its business.
    pub(crate) fn is_by_id(&self, slot: u32) -> bool {
        let entry = self.entries.get(slot as usize).and_then(Option::as_ref);
        entry.is_some_and(|entry| matches!(entry.anchor, Anchor::Document(_) | Anchor::Never))
    }

    /// Slots of the subscriptions to a collection.
    pub(crate) fn members_of(&self, tenant: &str, collection: &str) -> &[u32] {
        match self.partition_of(PlaceHash::of(tenant, collection), tenant, collection) {
            Some(at) => self.partitions[at as usize].members.slots(),
            None => &[],
        }
    }

    /// Slots of the subscriptions of a tenant.
    pub(crate) fn members_of_tenant(&self, tenant: &str) -> impl Iterator<Item = u32> + '_ {
        let partitions = self.tenants.get(tenant).map_or(&[][..], SmallVec::as_slice);
        partitions.iter().flat_map(|at| self.partitions[*at as usize].members.slots().iter().copied())
    }

    /// Tenant and collection of a [`Shown::NothingAt`].
    pub(crate) fn place_names(&self, partition: u32) -> (ByteString, ByteString) {
        let partition = &self.partitions[partition as usize];
        (partition.tenant.clone(), partition.collection.clone())
    }

    /// Panics where lanes and entries disagree.
    pub(crate) fn check_invariants(&self) {
        for (slot, entry) in self.entries.iter().enumerate() {
            let Some(entry) = entry else { continue };
            let partition = &self.partitions[entry.partition as usize];
            let slot = slot as u32;
            assert_eq!(partition.members.slots()[entry.in_members as usize], slot, "members disagree with entry");
            let lane = match &entry.anchor {
                Anchor::Document(value) => self.documents.get(self.seed, value.as_bytes()),
                Anchor::Equality { path, value } => {
                    let indexed = partition.equalities.iter().find(|known| known.path == *path).expect("path is known");
                    indexed.postings.get(self.seed, value.as_bytes())
                }
                Anchor::Always => partition.always.slots(),
                Anchor::Never => continue,
            };
            assert_eq!(lane[entry.in_lane as usize], slot, "lane disagrees with entry");
        }
        let members: usize = self.partitions.iter().map(|partition| partition.members.slots().len()).sum();
        assert_eq!(members, self.entries.iter().flatten().count(), "a member that is no entry");
    }

    fn partition_of(&self, place: PlaceHash, tenant: &str, collection: &str) -> Option<u32> {
        self.places
            .find(self.place_hash(place), |at| {
                let partition = &self.partitions[*at as usize];
                partition.place == place && partition.tenant == tenant && partition.collection == collection
            })
            .copied()
    }

    /// The place's hash is a good one already; the seed keeps its low bits from being chosen.
    fn place_hash(&self, place: PlaceHash) -> u64 {
        (place.0 ^ self.seed).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    fn open_partition(&mut self, tenant: &str, collection: &str) -> u32 {
        let place = PlaceHash::of(tenant, collection);
        if let Some(at) = self.partition_of(place, tenant, collection) {
            return at;
        }
        let new = Partition {
            place,
            tenant: tenant.into(),
            collection: collection.into(),
            members: Lane::default(),
            always: Lane::default(),
            equalities: Vec::new(),
        };
        self.tenants.entry(new.tenant.clone()).or_default();
        let at = match self.free_partitions.pop() {
            Some(at) => {
                self.partitions[at as usize] = new;
                at
            }
            None => {
                self.partitions.push(new);
                self.partitions.len() as u32 - 1
            }
        };
        self.tenants.get_mut(tenant).expect("entered just above").push(at);
        let seed = self.seed;
        let partitions = &self.partitions;
        let hash = |at: &u32| (partitions[*at as usize].place.0 ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.places.insert_unique(hash(&at), at, hash);
        at
    }

    fn close_partition(&mut self, at: u32) {
        let place = self.partitions[at as usize].place;
        if let Ok(found) = self.places.find_entry(self.place_hash(place), |other| *other == at) {
            found.remove();
        }
        let tenant = self.partitions[at as usize].tenant.clone();
        if let Some(partitions) = self.tenants.get_mut(&tenant) {
            partitions.retain(|other| *other != at);
            if partitions.is_empty() {
                self.tenants.remove(&tenant);
            }
        }
        self.free_partitions.push(at);
    }

    /// The rarest thing that a matching document must have. A path that isn't walked for others yet counts as a few
    /// candidates, because every change of the collection pays for walking it.
    fn choose_anchor(&self, partition: u32, predicate: &Predicate) -> Anchor {
        let partition = &self.partitions[partition as usize];
        if let Some(id) = predicate.document_id() {
            let mut ids = predicate.equalities().iter().filter(|(path, _)| Some(path) == self.id_path.as_ref());
            if ids.any(|(_, other)| other != id) {
                return Anchor::Never;
            }
            return self
                .stored_id(&partition.tenant, &partition.collection, id)
                .map_or(Anchor::Never, Anchor::Document);
        }
        let cost =
            |path: &predicate::Path, value: &Value| match partition.equalities.iter().find(|known| known.path == *path)
            {
                Some(known) => known.postings.get(self.seed, value.as_bytes()).len(),
                None => NEW_PATH_COST,
            };
        predicate
            .equalities()
            .iter()
            .min_by_key(|(path, value)| cost(path, value))
            .map_or(Anchor::Always, |(path, value)| Anchor::Equality { path: path.clone(), value: value.clone() })
    }

    /// The stored id of the document with this id in the flat view. None where no document can have it.
    fn stored_id(&self, tenant: &str, collection: &str, id: &Value) -> Option<Value> {
        match &*self.mapping {
            Mapping::Plain => Some(id.clone()),
            Mapping::Nested(_) => Value::of(RawBsonRef::String(&Nested::storage_id(tenant, collection, text_of(id)?))),
        }
    }
}

/// The string that the value is, if it is one.
fn text_of(value: &Value) -> Option<&str> {
    // A string's canonical form is a tag and its bytes; making the value again proves that it was one.
    let text = std::str::from_utf8(value.as_bytes().get(1..)?).ok()?;
    (Value::of(RawBsonRef::String(text))? == *value).then_some(text)
}

impl Partition {
    fn postings_mut(&mut self, path: &predicate::Path) -> &mut Postings {
        let at = match self.equalities.iter().position(|known| known.path == *path) {
            Some(at) => at,
            None => {
                self.equalities.push(IndexedPath { path: path.clone(), postings: Postings::default() });
                self.equalities.len() - 1
            }
        };
        &mut self.equalities[at].postings
    }
}

const NEW_PATH_COST: usize = 4;

#[cfg(test)]
mod tests;
