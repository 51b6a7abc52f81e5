//! Which changes a shard wants: what the ingest thread asks before it spends a ring slot on one.
//!
//! Invariants:
//! - A snapshot never answers "no" for a key that was added at or before its version.
//! - It may answer "yes" for a key that is gone.

use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashSet};
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
