//! Partitions: what is kept of one collection of one tenant.

use std::collections::BTreeMap;

use bytestring::ByteString;
use predicate::Order;
use smallvec::SmallVec;
use wire::PlaceHash;

use crate::machine::prefetch;

/// What a document of the partition is asked for, by node: bit `n % 64` is set for node `n`. A bit more than there must be costs
/// time alone.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Masks {
    pub(crate) equal: u64,
    pub(crate) element: u64,
    pub(crate) prefix: u64,
    pub(crate) field: u64,
    pub(crate) range: u64,
    /// Nodes whose value is noted.
    pub(crate) values: u64,
    /// Nodes below which others are.
    pub(crate) inner: u64,
    pub(crate) any: u64,
    /// Nodes of which more is asked than an equality, for texts; and than an equality or a range, for integers.
    pub(crate) text_rarely: u64,
    pub(crate) int_rarely: u64,
    /// Bit `n` is set where a prefix of `n + 1` bytes is looked up.
    pub(crate) prefix_lengths: u32,
}

/// Why a node's value is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Use {
    Equal,
    Element,
    Field,
    Range,
    /// By the rest of a predicate.
    Rest,
    /// Something below it is.
    Inner,
    /// A prefix of as many bytes is looked up; the length is added.
    Prefix,
}

/// The ranges of a node and an order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NearRanges {
    pub(crate) node: u32,
    pub(crate) order: Order,
    /// The number of the set.
    pub(crate) set: u32,
}

/// Sets of ranges that a partition names itself; those of further nodes are looked up like values.
pub(crate) const NEAR_MAX: usize = 16;

/// Which keys a partition may have: a bit for each remainder of their tags. Most values of a document are none that anybody asks for, and
/// are not even looked up. A partition of many keys may have any.
#[derive(Clone, Debug, Default)]
#[repr(align(64))]
pub(crate) struct Keys {
    bits: [u64; 8],
}

/// Keys of a partition, and keys that are gone since its bits were made, beyond which its bits tell nothing.
pub(crate) const KEYS_MAX: u32 = 256;

impl Keys {
    #[inline]
    pub(crate) fn may_have(&self, tag: u32) -> bool {
        // The table takes the lowest bits and the highest ones.
        self.bits[(tag >> 6) as usize % 8] >> (tag >> 9 & 63) & 1 == 1
    }

    fn add(&mut self, tag: u32) {
        self.bits[(tag >> 6) as usize % 8] |= 1 << (tag >> 9 & 63);
    }
}

#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) keys: Keys,
    keys_count: u32,
    keys_gone: u32,
    pub(crate) place: PlaceHash,
    pub(crate) masks: Masks,
    /// Tenant and collection, one after the other.
    names: SmallVec<[u8; 48]>,
    tenant_length: u32,
    /// Its place in its tenant's list.
    pub(crate) in_tenant: u32,
    /// Subscriptions to every document.
    pub(crate) everyone: Vec<u32>,
    /// Predicates without an anchor, by their numbers in the rests.
    pub(crate) always: Vec<u32>,
    pub(crate) ranges: SmallVec<[NearRanges; 4]>,
    /// Ranges in sets that are looked up.
    pub(crate) far_ranges: u32,
    /// All subscriptions.
    pub(crate) members: Vec<u32>,
    /// How often a node is used, by `node << 8 | use`.
    uses: BTreeMap<u64, u32>,
}

impl Default for Partition {
    fn default() -> Self {
        Self::new(PlaceHash(0), "", "")
    }
}

impl Partition {
    pub(crate) fn new(place: PlaceHash, tenant: &str, collection: &str) -> Self {
        let mut names = SmallVec::with_capacity(tenant.len() + collection.len());
        names.extend_from_slice(tenant.as_bytes());
        names.extend_from_slice(collection.as_bytes());
        Self {
            keys: Keys::default(),
            keys_count: 0,
            keys_gone: 0,
            place,
            masks: Masks::default(),
            names,
            tenant_length: tenant.len() as u32,
            in_tenant: 0,
            everyone: Vec::new(),
            always: Vec::new(),
            ranges: SmallVec::new(),
            far_ranges: 0,
            members: Vec::new(),
            uses: BTreeMap::new(),
        }
    }

    /// Announces that it will be looked at.
    #[inline]
    pub(crate) fn prefetch(&self) {
        prefetch(&self.keys);
        prefetch(&self.place);
        prefetch(&self.masks.any);
        prefetch(&self.names);
        prefetch(&self.everyone);
        prefetch(&self.ranges);
    }

    #[inline]
    pub(crate) fn is_of(&self, tenant: &str, collection: &str) -> bool {
        self.tenant_length as usize == tenant.len()
            && self.names.len() == tenant.len() + collection.len()
            && self.names[..tenant.len()] == *tenant.as_bytes()
            && self.names[tenant.len()..] == *collection.as_bytes()
    }

    pub(crate) fn tenant(&self) -> ByteString {
        self.text(0, self.tenant_length as usize)
    }

    pub(crate) fn collection(&self) -> ByteString {
        self.text(self.tenant_length as usize, self.names.len())
    }

    fn text(&self, start: usize, end: usize) -> ByteString {
        // The names came as two texts.
        String::from_utf8_lossy(&self.names[start..end]).into_owned().into()
    }

    pub(crate) fn add_key(&mut self, tag: u32) {
        self.keys_count += 1;
        match self.keys_count {
            0..KEYS_MAX => self.keys.add(tag),
            _ => self.keys.bits = [u64::MAX; 8],
        }
    }

    /// True when the bits tell so little that they should be made anew.
    pub(crate) fn remove_key(&mut self) -> bool {
        self.keys_count -= 1;
        self.keys_gone += 1;
        self.keys_gone >= KEYS_MAX / 2 && self.keys_count <= KEYS_MAX / 2
    }

    /// Lets the bits say that any key may be there.
    pub(crate) fn forget_keys(&mut self) {
        self.keys_gone = 0;
        self.keys.bits = [u64::MAX; 8];
    }

    /// Makes the bits anew, from the tags of all keys.
    pub(crate) fn set_keys(&mut self, tags: impl Iterator<Item = u32>) {
        self.keys_gone = 0;
        self.keys = Keys::default();
        tags.for_each(|tag| self.keys.add(tag));
    }

    /// Nodes whose values are looked at, each once.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = u32> + '_ {
        let mut last = None;
        self.uses
            .keys()
            .filter(|key| **key & 0xFF != Use::Inner as u64)
            .map(|key| (key >> 8) as u32)
            .filter(move |node| last.replace(*node) != Some(*node))
    }

    pub(crate) fn uses_for(&self, node: u32, (what, length): (Use, u8)) -> bool {
        self.uses.contains_key(&key(node, what, length))
    }

    /// `length` is that of a prefix, else 0.
    pub(crate) fn add_use(&mut self, node: u32, what: Use, length: u8) {
        let count = self.uses.entry(key(node, what, length)).or_insert(0);
        *count += 1;
        if *count == 1 {
            self.masks.add(node, what as u8 + length);
        }
    }

    pub(crate) fn remove_use(&mut self, node: u32, what: Use, length: u8) {
        let key = key(node, what, length);
        let Some(count) = self.uses.get_mut(&key) else {
            debug_assert!(false, "a use of node {node} ends that never began");
            return;
        };
        *count -= 1;
        if *count == 0 {
            self.uses.remove(&key);
            // With many nodes nearly all bits are set whatever is removed.
            if self.uses.len() < USES_RECOUNTED_MAX {
                let mut masks = Masks::default();
                self.uses.keys().for_each(|key| masks.add((key >> 8) as u32, *key as u8));
                self.masks = masks;
            }
        }
    }
}

const USES_RECOUNTED_MAX: usize = 256;

fn key(node: u32, what: Use, length: u8) -> u64 {
    u64::from(node) << 8 | u64::from(what as u8 + length)
}

impl Masks {
    fn add(&mut self, node: u32, what: u8) {
        let bit = 1_u64 << (node % 64);
        let mask = match what {
            0 => &mut self.equal,
            1 => &mut self.element,
            2 => &mut self.field,
            3 => &mut self.range,
            4 => &mut self.values,
            5 => &mut self.inner,
            _ => {
                self.prefix_lengths |= 1 << (what - Use::Prefix as u8 - 1);
                &mut self.prefix
            }
        };
        *mask |= bit;
        self.any |= bit;
        self.text_rarely = self.prefix | self.field | self.range;
        self.int_rarely = self.field;
        if what != Use::Inner as u8 {
            self.values |= bit;
        }
    }
}
