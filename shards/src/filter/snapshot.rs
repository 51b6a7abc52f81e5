//! What the ingest thread has of a shard's filter.

use std::sync::Arc;

use predicate::{CanonicalBytes, raw_of_stored_id, write_canonical};
use wire::PlaceHash;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    base::Base,
    delta::{Delta, DeltaWriter},
};

/// A key of the filter. Its lowest bit tells the two kinds apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FilterKey(pub u64);

impl FilterKey {
    /// For collections that somebody watches as more than single documents.
    pub fn place(place: PlaceHash) -> Self {
        Self(place.0 & !1)
    }

    /// For documents that somebody watches by id. `canonical` is the canonical form of the stored `_id`, in which numbers of
    /// one value are the same bytes whatever their BSON type.
    pub fn document(canonical: &[u8]) -> Self {
        Self(xxh3_64_with_seed(canonical, DOCUMENT_SEED) | 1)
    }

    /// For a document by its stored id, as a change names it. `None` where the id is of a kind that nobody can watch.
    pub fn of_stored_id(stored_id: &[u8]) -> Option<Self> {
        let mut canonical = CanonicalBytes::new();
        write_canonical(raw_of_stored_id(stored_id)?, &mut canonical).then(|| Self::document(&canonical))
    }

    pub(super) fn is_document(self) -> bool {
        self.0 & 1 == 1
    }
}

/// Seed that keeps the hashes of document keys apart from those of places.
const DOCUMENT_SEED: u64 = 0x646f_6375_6d65_6e74;

/// Spreads keys over all 64 bits, by a secret: how places are hashed is public, so that a Gateway could choose names whose hashes
/// share their upper bits. For keys that are given, hardly any two products with a random odd number share theirs (multiply-shift
/// hashing, Dietzfelbinger et al. 1997).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mixer {
    factor: u64,
}

impl Mixer {
    pub(super) fn new(seed: u64) -> Self {
        Self { factor: xxh3_64_with_seed(b"filter keys", seed) | 1 }
    }

    /// One to one, but that the keys 0 and 2, both of places, are one: so no key is mixed to 0.
    #[inline]
    pub(super) fn mix(self, key: FilterKey) -> u64 {
        let key = if key.0 == 0 { 2 } else { key.0 };
        key.wrapping_mul(self.factor)
    }
}

impl Default for Mixer {
    fn default() -> Self {
        Self { factor: 1 }
    }
}

/// A picture of a shard's filter, which never changes: a base that versions share, and the keys added since it was captured.
#[derive(Clone, Debug, Default)]
pub struct FilterSnapshot {
    pub version: u64,
    /// "Maybe" to everything: before the first version, and while there is no room for what was added.
    pub everything: bool,
    /// Whether documents are watched by id at all.
    pub documents: bool,
    pub(super) mixer: Mixer,
    pub(super) base: Arc<Base>,
    pub(super) delta: Delta,
}

impl FilterSnapshot {
    /// What stands in the cell before the shard has published: "maybe" for everything, at version 0.
    pub fn unpublished() -> Self {
        Self { everything: true, ..Self::default() }
    }

    /// "Maybe" for everything, at this version.
    pub fn everything(version: u64) -> Self {
        Self { version, everything: true, ..Self::default() }
    }

    /// One that holds these keys in its base. For benches and tests.
    ///
    /// # Panics
    /// When no filter can be built of them.
    pub fn of(version: u64, keys: impl IntoIterator<Item = FilterKey>) -> Self {
        let mixer = Mixer::new(0);
        let mut documents = false;
        let mut mixed: Vec<u64> = keys
            .into_iter()
            .map(|key| {
                documents |= key.is_document();
                mixer.mix(key)
            })
            .collect();
        mixed.sort_unstable();
        mixed.dedup();
        let base = Base::build(&[mixed.into()], super::FilterConfig::default().exact_max).expect("distinct keys");
        Self { version, everything: false, documents, mixer, base: Arc::new(base), delta: Delta::default() }
    }

    /// The same with these keys added since. For benches and tests.
    #[must_use]
    pub fn with(mut self, keys: impl IntoIterator<Item = FilterKey>) -> Self {
        let mut delta = DeltaWriter::default();
        for key in keys {
            self.documents |= key.is_document();
            let key = self.mixer.mix(key);
            if delta.since(key).is_none() {
                delta.enter(key, self.version);
            }
        }
        self.delta = delta.picture(self.version);
        self
    }

    /// Whether anybody may want changes under this key. A few nanoseconds; no lock, no allocation.
    #[inline]
    pub fn may_want(&self, key: FilterKey) -> bool {
        if self.everything {
            return true;
        }
        let key = self.mixer.mix(key);
        self.base.contains(key) || self.delta.contains(key)
    }

    /// Bytes of the base.
    pub fn base_bytes(&self) -> usize {
        self.base.bytes()
    }
}
