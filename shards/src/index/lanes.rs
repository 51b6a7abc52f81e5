//! Lists of slots, and lists by value. What leaves a list is replaced by its last element, so that leaving costs the same however
//! long the list is; who was moved is told, so that its entry can be set right.

use hashbrown::HashTable;
use predicate::Value;
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64_with_seed;

#[derive(Debug, Default)]
pub(super) struct Lane(SmallVec<[u32; 2]>);

impl Lane {
    /// Gives the place in the list.
    pub(super) fn add(&mut self, slot: u32) -> u32 {
        self.0.push(slot);
        self.0.len() as u32 - 1
    }

    /// Gives the slot that now stands at that place.
    pub(super) fn remove(&mut self, at: u32) -> Option<u32> {
        self.0.swap_remove(at as usize);
        self.0.get(at as usize).copied()
    }

    pub(super) fn slots(&self) -> &[u32] {
        &self.0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[derive(Debug, Default)]
pub(super) struct Postings(HashTable<Posting>);

#[derive(Debug)]
struct Posting {
    value: Value,
    lane: Lane,
}

impl Postings {
    pub(super) fn add(&mut self, seed: u64, value: &Value, slot: u32) -> u32 {
        let hash = |bytes: &[u8]| xxh3_64_with_seed(bytes, seed);
        self.0
            .entry(hash(value.as_bytes()), |posting| posting.value == *value, |posting| hash(posting.value.as_bytes()))
            .or_insert_with(|| Posting { value: value.clone(), lane: Lane::default() })
            .into_mut()
            .lane
            .add(slot)
    }

    pub(super) fn remove(&mut self, seed: u64, value: &Value, at: u32) -> Option<u32> {
        let hash = xxh3_64_with_seed(value.as_bytes(), seed);
        let mut found = self.0.find_entry(hash, |posting| posting.value == *value).ok()?;
        let moved = found.get_mut().lane.remove(at);
        if found.get().lane.is_empty() {
            found.remove();
        }
        moved
    }

    /// The slots under a value, given by its canonical bytes.
    pub(super) fn get(&self, seed: u64, canonical: &[u8]) -> &[u32] {
        let found = self.0.find(xxh3_64_with_seed(canonical, seed), |posting| posting.value.as_bytes() == canonical);
        found.map_or(&[], |posting| posting.lane.slots())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
