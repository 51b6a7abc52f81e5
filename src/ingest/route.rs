//! Which shards a change concerns: an event that nobody can want costs a probe of a filter here, and nothing after.
//!
//! Invariants:
//! - Before- and after-image are each probed and routed; a change between two places concerns both.
//! - What concerns a namespace, and a delete whose collection is unknown, goes to every shard, past the filters.
//! - A shard's new filter counts only from [`Router::filter`] on, and `FilterSeen` names the last change before that.

use std::sync::Arc;

use bson::RawBsonRef;
use predicate::{CanonicalBytes, write_canonical};
use shards::{FilterKey, FilterSnapshot};
use smallvec::SmallVec;
use wire::{PlaceHash, SlotTable};

/// A shard, by its place in the slot table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardIndex(pub u16);

impl ShardIndex {
    pub fn all(shards: u16) -> impl Iterator<Item = ShardIndex> {
        (0..shards).map(ShardIndex)
    }
}

pub type ShardSet = SmallVec<[ShardIndex; 2]>;

#[derive(Debug)]
pub struct Router {
    slots: SlotTable,
    filters: Vec<Arc<FilterSnapshot>>,
}

impl Router {
    pub fn new(slots: SlotTable) -> Self {
        let unpublished = Arc::new(FilterSnapshot::unpublished());
        Self { slots, filters: vec![unpublished; usize::from(slots.shards)] }
    }

    pub fn shards(&self) -> u16 {
        self.slots.shards
    }

    /// Uses `snapshot` from now on. False when it is not newer than the one in use.
    pub fn filter(&mut self, shard: ShardIndex, snapshot: Arc<FilterSnapshot>) -> bool {
        let current = &mut self.filters[usize::from(shard.0)];
        let newer = snapshot.version > current.version;
        if newer {
            *current = snapshot;
        }
        newer
    }

    /// Every shard.
    pub fn everyone(&self) -> ShardSet {
        ShardIndex::all(self.slots.shards).collect()
    }

    /// The shards that may want a change of the document with this stored `_id`, which stood or stands at these places; each once.
    pub fn wanting(&self, places: impl IntoIterator<Item = PlaceHash>, key: RawBsonRef<'_>) -> ShardSet {
        let mut set = ShardSet::new();
        let mut document = None;
        for place in places {
            let owner = self.slots.owner(place);
            let filter = &self.filters[usize::from(owner)];
            let wanted = filter.may_want(FilterKey::place(place))
                || document.get_or_insert_with(|| document_key(key)).is_some_and(|document| filter.may_want(document));
            if wanted && !set.contains(&ShardIndex(owner)) {
                set.push(ShardIndex(owner));
            }
        }
        set
    }
}

/// The filter's key of a document by its stored `_id`; `None` where that is of a kind that nobody can watch.
fn document_key(key: RawBsonRef<'_>) -> Option<FilterKey> {
    let mut canonical = CanonicalBytes::new();
    write_canonical(key, &mut canonical).then(|| FilterKey::document(&canonical))
}
