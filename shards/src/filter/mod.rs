//! Which changes a shard wants: what the ingest thread asks before it spends a ring slot on one.
//!
//! Invariants:
//! - A snapshot never answers "no" for a key that was added at or before its version.
//! - It may answer "yes" for a key that is gone.
//! - [`Filter`] counts its keys, so that removing one name can't remove another's that has the same hash.

use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashMap, HashSet};
use wire::PlaceHash;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Seed that keeps the hashes of document keys apart from those of places.
const DOCUMENT_SEED: u64 = 0x646f_6375_6d65_6e74;

/// A key of the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FilterKey(pub u64);

impl FilterKey {
    /// For collections that somebody watches as more than single documents.
    pub fn place(place: PlaceHash) -> Self {
        Self(place.0)
    }

    /// For documents that somebody watches by id. `canonical` is the canonical form of the stored `_id`, in which numbers of
    /// one value are the same bytes whatever their BSON type.
    pub fn document(canonical: &[u8]) -> Self {
        Self(xxh3_64_with_seed(canonical, DOCUMENT_SEED))
    }
}

/// An immutable picture of a shard's filter: a base, shared between versions, and the keys added since it was built.
#[derive(Clone, Debug, Default)]
pub struct FilterSnapshot {
    pub version: u64,
    /// Whoever hasn't got a first version yet must say "maybe" to everything.
    pub everything: bool,
    pub base: Arc<HashSet<u64, DefaultHashBuilder>>,
    pub delta: Arc<HashSet<u64, DefaultHashBuilder>>,
}

impl FilterSnapshot {
    /// What stands in the cell before the shard has published: "maybe" for everything, at version 0.
    pub fn unpublished() -> Self {
        Self { everything: true, ..Self::default() }
    }

    pub fn may_want(&self, key: FilterKey) -> bool {
        self.everything || self.base.contains(&key.0) || self.delta.contains(&key.0)
    }
}

/// The shard's side: which keys are wanted now, and what was published of them.
#[derive(Debug)]
pub(crate) struct Filter {
    keys: HashMap<u64, Key>,
    published: FilterSnapshot,
    changed: bool,
    /// Keys that are gone and still answered "yes".
    lingering: usize,
}

#[derive(Debug)]
struct Key {
    count: u32,
    /// First version that holds the key.
    since: u64,
}

impl Filter {
    pub(crate) fn new() -> Self {
        let published = FilterSnapshot { version: 1, ..FilterSnapshot::default() };
        Self { keys: HashMap::new(), published, changed: true, lingering: 0 }
    }

    /// Counts the key in. Gives the first version that holds it.
    pub(crate) fn add(&mut self, key: FilterKey) -> u64 {
        if let Some(known) = self.keys.get_mut(&key.0) {
            known.count += 1;
            return known.since;
        }
        // A key that was removed may linger in what is published; it gets a new version all the same, because the version at
        // which it was dropped from there is not kept.
        self.published.version += 1;
        self.changed = true;
        self.keys.insert(key.0, Key { count: 1, since: self.published.version });
        Arc::make_mut(&mut self.published.delta).insert(key.0);
        if self.published.delta.len() > DELTA_MIN.max(self.published.base.len() / DELTA_SHARE) {
            self.rebuild();
        }
        self.published.version
    }

    /// A version after all that there were: the ingest thread will say when it has seen it, though the keys are the same.
    pub(crate) fn raise(&mut self) -> u64 {
        self.published.version += 1;
        self.changed = true;
        self.published.version
    }

    pub(crate) fn remove(&mut self, key: FilterKey) {
        let Some(known) = self.keys.get_mut(&key.0) else {
            debug_assert!(false, "a key is removed that was never added");
            return;
        };
        known.count -= 1;
        if known.count == 0 {
            self.keys.remove(&key.0);
            self.lingering += 1;
            if self.lingering > DELTA_MIN.max(self.keys.len()) {
                self.published.version += 1;
                self.changed = true;
                self.rebuild();
            }
        }
    }

    /// The snapshot to publish, if it isn't what was taken last.
    pub(crate) fn take(&mut self) -> Option<FilterSnapshot> {
        std::mem::take(&mut self.changed).then(|| self.published.clone())
    }

    pub(crate) fn version(&self) -> u64 {
        self.published.version
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    fn rebuild(&mut self) {
        self.published.base = Arc::new(self.keys.keys().copied().collect());
        self.published.delta = Arc::default();
        self.lingering = 0;
    }
}

/// Keys that the delta, and what lingers, may always hold.
const DELTA_MIN: usize = 1_024;
/// The delta may grow to one part in this many of the base, because publishing copies it.
const DELTA_SHARE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_take_says_no_to_everything() {
        let mut filter = Filter::new();
        let first = filter.take().expect("the first one");
        assert!(first.version >= 1);
        assert!(!first.may_want(FilterKey(7)));
        assert!(filter.take().is_none());
    }

    #[test]
    fn keys_are_counted() {
        let mut filter = Filter::new();
        let since = filter.add(FilterKey(7));
        assert_eq!(filter.add(FilterKey(7)), since);
        filter.remove(FilterKey(7));
        assert!(filter.take().unwrap().may_want(FilterKey(7)));
        filter.remove(FilterKey(7));
        assert!(filter.add(FilterKey(7)) > since);
    }

    #[test]
    fn a_snapshot_holds_every_key_of_its_version_through_rebuilds() {
        let mut filter = Filter::new();
        let mut versions = Vec::new();
        for key in 0..20_000_u64 {
            versions.push((key, filter.add(FilterKey(key))));
            if key % 3 == 0 && key > 100 {
                filter.remove(FilterKey(key - 99));
            }
            if key % 500 == 0 {
                let snapshot = filter.take().unwrap();
                for (key, since) in &versions {
                    let there = filter.keys.get(key).is_some_and(|known| known.since == *since);
                    assert!(!there || snapshot.may_want(FilterKey(*key)), "{key}");
                }
            }
        }
        assert!(filter.take().unwrap().base.len() > 1_000);
    }
}
