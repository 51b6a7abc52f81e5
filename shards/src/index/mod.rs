//! Which subscriptions a change concerns, and how: what becomes of the index's matches to subscribers.
//!
//! Invariants:
//! - A slot is hit at most once by a change. Hits come in the order of their slots.
//! - Hits depend on subscriptions and change alone, not on the order in which subscriptions came and went.

mod bare;
mod matching;

use std::sync::Arc;

use bytestring::ByteString;
use predicate::{Mapping, Predicate};
use wire::{Certainty, PlaceHash, Transition};

use crate::FilterKey;

pub(crate) use self::matching::{MatchCounts, Matched, Rules};

#[derive(Debug)]
pub(crate) struct Index {
    mapping: Arc<Mapping>,
    inner: index::Index,
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
        Self { inner: index::Index::new(mapping.clone(), seed), mapping }
    }

    /// What the ingest thread must let through for this predicate.
    pub(crate) fn filter_key(&self, tenant: &str, collection: &str, predicate: &Predicate) -> FilterKey {
        match predicate.document_id() {
            None => FilterKey::place(PlaceHash::of(tenant, collection)),
            Some(id) => {
                let stored = self.inner.stored_id(tenant, collection, id);
                FilterKey::document(stored.as_ref().unwrap_or(id).as_bytes())
            }
        }
    }

    /// Puts a subscription at a slot that is empty. It is hit from now on; whether it is live is for the caller to know.
    pub(crate) fn insert(&mut self, slot: u32, tenant: &str, collection: &str, predicate: &Arc<Predicate>) {
        self.inner.insert(slot, tenant, collection, predicate);
    }

    /// Announces that the subscriptions at these slots will be removed soon, which then takes less time.
    pub(crate) fn announce_removal(&self, slots: impl Iterator<Item = u32> + Clone) {
        self.inner.announce_removal(slots);
    }

    pub(crate) fn remove(&mut self, slot: u32) {
        self.inner.remove(slot);
    }

    /// Whether the subscription at this slot is bound to a document's id, so that a change of another one is none of its business.
    pub(crate) fn is_by_id(&self, slot: u32) -> bool {
        self.inner.is_by_document(slot)
    }

    /// Slots of the subscriptions to a collection.
    pub(crate) fn members_of(&self, tenant: &str, collection: &str) -> &[u32] {
        match self.inner.partition(PlaceHash::of(tenant, collection), tenant, collection) {
            Some(at) => self.inner.members(at),
            None => &[],
        }
    }

    /// Slots of the subscriptions of a tenant.
    pub(crate) fn members_of_tenant(&self, tenant: &str) -> impl Iterator<Item = u32> + '_ {
        self.inner.partitions_of(tenant).iter().flat_map(|at| self.inner.members(*at).iter().copied())
    }

    /// Tenant and collection of a [`Shown::NothingAt`].
    pub(crate) fn place_names(&self, partition: u32) -> (ByteString, ByteString) {
        self.inner.place_names(partition)
    }

    /// Panics where lists and entries disagree.
    pub(crate) fn check_invariants(&self) {
        self.inner.check_invariants();
    }
}

#[cfg(test)]
mod tests;
