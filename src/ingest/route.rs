//! Which shards a change concerns: an event that nobody can want costs a probe of a filter here, and nothing after.
//!
//! Invariants:
//! - Before- and after-image are each probed and routed; a change between two places concerns both.
//! - What concerns a namespace, and a delete whose collection is unknown, goes to every shard, past the filters.
//! - A shard's new filter counts only from [`Router::filter`] on, and `FilterSeen` names the last change before that.

use std::sync::Arc;

use predicate::{CanonicalBytes, raw_of_stored_id, write_canonical};
use shards::{Change, FilterKey, FilterSnapshot};
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

    /// The shards that may want this change, each once.
    pub fn route(&self, change: &Change) -> ShardSet {
        if let Some(bare) = &change.bare {
            return match (&bare.tenant, &bare.collection) {
                (Some(tenant), Some(collection)) => {
                    let mut set = ShardSet::new();
                    self.probe(PlaceHash::of(tenant, collection), change, &mut set);
                    set
                }
                _ => ShardIndex::all(self.slots.shards).collect(),
            };
        }
        let mut set = ShardSet::new();
        let mut seen: Option<PlaceHash> = None;
        for image in [&change.after, &change.before].into_iter().flatten() {
            if seen.replace(image.place) != Some(image.place) {
                self.probe(image.place, change, &mut set);
            }
        }
        set
    }

    fn probe(&self, place: PlaceHash, change: &Change, set: &mut ShardSet) {
        let owner = self.slots.owner(place);
        let filter = &self.filters[usize::from(owner)];
        let wanted = filter.may_want(FilterKey::place(place))
            || document_key(&change.key).is_some_and(|document| filter.may_want(document));
        if wanted && !set.contains(&ShardIndex(owner)) {
            set.push(ShardIndex(owner));
        }
    }
}

/// The filter's key of a document by its stored id; `None` where the id is of a kind that nobody can watch.
fn document_key(stored_id: &[u8]) -> Option<FilterKey> {
    let mut canonical = CanonicalBytes::new();
    write_canonical(raw_of_stored_id(stored_id)?, &mut canonical).then(|| FilterKey::document(&canonical))
}
