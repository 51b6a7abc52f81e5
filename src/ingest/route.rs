//! Which shards a change concerns: an event that nobody can want costs a probe of a filter here, and nothing after.
//!
//! Invariants:
//! - Before- and after-image are each probed and routed; a change between two places concerns both.
//! - What concerns a namespace, and a delete whose collection is unknown, goes to every shard, past the filters.
//! - A shard's new filter counts only from [`Router::filter`] on, and `FilterSeen` names the last change before that.

use std::sync::Arc;

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

    /// The shards that may want a change at these places, each once. `document` gives the key of the document that was changed, and is
    /// asked for it only where a place alone doesn't tell.
    #[inline]
    pub fn wanting(
        &self,
        places: impl IntoIterator<Item = PlaceHash>,
        mut document: impl FnMut() -> Option<FilterKey>,
    ) -> ShardSet {
        let mut set = ShardSet::new();
        for place in places {
            let owner = self.slots.owner(place);
            let filter = &self.filters[usize::from(owner)];
            let wanted = filter.may_want(FilterKey::place(place))
                || (filter.documents && document().is_some_and(|key| filter.may_want(key)));
            if wanted && !set.contains(&ShardIndex(owner)) {
                set.push(ShardIndex(owner));
            }
        }
        set
    }
}
