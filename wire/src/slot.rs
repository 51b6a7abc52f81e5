//! Which shard owns a collection: part of the protocol, so that a Gateway sends a subscription straight to its owner.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

/// Slots that collections hash to. Shards own ranges of slots.
pub const SLOTS: u16 = 4096;

/// The place of a collection: XXH3-64 (seed 0) over the tenant's bytes, one zero byte, the collection's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlaceHash(pub u64);

impl PlaceHash {
    pub fn of(tenant: &str, collection: &str) -> Self {
        Self::of_bytes(tenant.as_bytes(), collection.as_bytes())
    }

    /// The same, of names whose bytes are at hand.
    #[inline]
    pub fn of_bytes(tenant: &[u8], collection: &[u8]) -> Self {
        /// Nearly all names are shorter together. In one piece they are hashed at once, which costs a fraction of a hash in parts.
        const IN_ONE_PIECE: usize = 128;
        let length = tenant.len() + 1 + collection.len();
        if length <= IN_ONE_PIECE {
            let mut names = [0; IN_ONE_PIECE];
            names[..tenant.len()].copy_from_slice(tenant);
            names[tenant.len() + 1..length].copy_from_slice(collection);
            return Self(xxh3_64(&names[..length]));
        }
        Self::of_parts(tenant, collection)
    }

    fn of_parts(tenant: &[u8], collection: &[u8]) -> Self {
        let mut hasher = Xxh3Default::new();
        hasher.update(tenant);
        hasher.update(&[0]);
        hasher.update(collection);
        Self(hasher.digest())
    }

    /// The hash modulo [`SLOTS`].
    pub fn slot(self) -> u16 {
        (self.0 % u64::from(SLOTS)) as u16
    }
}

/// Slots over shards: shard `i` of `n` owns the slots `s` with `s * n / SLOTS == i`, so that each owns one run of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct SlotTable {
    pub shards: u16,
}

impl SlotTable {
    pub fn owner(&self, place: PlaceHash) -> u16 {
        (u32::from(place.slot()) * u32::from(self.shards) / u32::from(SLOTS)) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slot is the hash modulo [`SLOTS`], so the slot itself will do as a hash here.
    fn owner(shards: u16, slot: u16) -> u16 {
        SlotTable { shards }.owner(PlaceHash(u64::from(slot)))
    }

    #[test]
    fn each_shard_owns_one_run_of_slots_of_nearly_the_same_length() {
        for shards in [1, 2, 3, 5, 8, 64, 4096] {
            let owners: Vec<u16> = (0..SLOTS).map(|slot| owner(shards, slot)).collect();
            assert!(owners.is_sorted());
            assert_eq!((owners[0], owners[usize::from(SLOTS) - 1]), (0, shards - 1));
            for shard in 0..shards {
                let slots = owners.iter().filter(|owner| **owner == shard).count();
                let share = usize::from(SLOTS / shards);
                assert!((share..=share + 1).contains(&slots), "shard {shard} of {shards} owns {slots}");
            }
        }
    }

    #[test]
    fn names_of_every_length_have_one_hash() {
        let text: String = ('a'..='z').cycle().take(600).collect();
        for tenant in [0, 1, 3, 8, 16, 17, 63, 64, 126, 127, 128, 129, 300] {
            for collection in 0..300 {
                let (tenant, collection) = (&text[..tenant], &text[tenant..tenant + collection]);
                let in_parts = PlaceHash::of_parts(tenant.as_bytes(), collection.as_bytes());
                assert_eq!(PlaceHash::of(tenant, collection), in_parts, "{tenant:?} {collection:?}");
                let at_once = xxh3_64(format!("{tenant}\0{collection}").as_bytes());
                assert_eq!(in_parts, PlaceHash(at_once));
            }
        }
    }

    #[test]
    fn the_zero_byte_keeps_names_apart() {
        assert_ne!(PlaceHash::of("ab", "c"), PlaceHash::of("a", "bc"));
    }
}
