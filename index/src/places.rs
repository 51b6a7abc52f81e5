//! Partitions: what is kept of one collection of one tenant.

use std::collections::BTreeMap;

use bytestring::ByteString;
use smallvec::SmallVec;
use wire::PlaceHash;

use crate::key::same;
use crate::machine::prefetch;
use crate::near::Near;

/// What is asked of a value, as bits: one for each [`Use`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asks(u8);

impl Asks {
    pub(crate) const NONE: Asks = Asks(0);
    /// It is looked up, or looked for in ranges.
    pub(crate) const PROBES: Asks = Asks::of(Use::Equal)
        .or(Asks::of(Use::Element))
        .or(Asks::of(Use::Field))
        .or(Asks::of(Use::Range))
        .or(Asks::PREFIX);
    /// Of a text, more than an equality.
    pub(crate) const TEXT_RARELY: Asks = Asks::of(Use::Field).or(Asks::of(Use::Range)).or(Asks::PREFIX);
    pub(crate) const PREFIX: Asks = Asks::of(Use::Prefix);

    pub(crate) const fn of(what: Use) -> Asks {
        Asks(1 << what as u8)
    }

    const fn or(self, other: Asks) -> Asks {
        Asks(self.0 | other.0)
    }

    /// Whether any of these is asked.
    #[inline(always)]
    pub(crate) const fn any(self, of: Asks) -> bool {
        self.0 & of.0 != 0
    }
}

/// What is asked of each node's values: node `n` has place `n % 64`. More asked than there must be costs time alone.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Asked([Asks; 64]);

impl Asked {
    const NOTHING: Asked = Asked([Asks::NONE; 64]);

    #[inline(always)]
    pub(crate) fn of(&self, node: u32) -> Asks {
        self.0[node as usize % 64]
    }

    fn add(&mut self, node: u32, what: Asks) {
        let asks = &mut self.0[node as usize % 64];
        *asks = asks.or(what);
    }
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

/// What every document needs stands in the first five cache lines, in the order in which it is needed.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Partition {
    pub(crate) keys: Keys,
    pub(crate) asked: Asked,
    pub(crate) near: Near,
    pub(crate) place: PlaceHash,
    /// Subscriptions to every document.
    pub(crate) everyone: Vec<u32>,
    /// Predicates without an anchor, by their numbers in the rests.
    pub(crate) always: Vec<u32>,
    tenant_length: u32,
    /// Ranges in sets that are looked up.
    pub(crate) far_ranges: u32,
    /// Lengths of prefixes that are looked up: bit `n` for one of `n + 1` bytes.
    pub(crate) prefix_lengths: u32,
    /// Whether documents are looked at at all.
    pub(crate) is_walked: bool,
    /// Tenant and collection, one after the other.
    names: SmallVec<[u8; 48]>,
    keys_count: u32,
    keys_gone: u32,
    /// Its place in its tenant's list.
    pub(crate) in_tenant: u32,
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
            is_walked: false,
            keys_count: 0,
            keys_gone: 0,
            place,
            asked: Asked::NOTHING,
            prefix_lengths: 0,
            names,
            tenant_length: tenant.len() as u32,
            in_tenant: 0,
            everyone: Vec::new(),
            always: Vec::new(),
            near: Near::default(),
            far_ranges: 0,
            members: Vec::new(),
            uses: BTreeMap::new(),
        }
    }

    /// Announces that it will be looked at.
    #[inline]
    pub(crate) fn prefetch(&self) {
        prefetch(&self.keys);
        prefetch(&self.asked);
        prefetch(&self.near);
        prefetch(&self.place);
        prefetch(&self.tenant_length);
    }

    #[inline]
    pub(crate) fn is_of(&self, tenant: &str, collection: &str) -> bool {
        self.tenant_length as usize == tenant.len()
            && self.names.len() == tenant.len() + collection.len()
            && same(&self.names[..tenant.len()], tenant.as_bytes())
            && same(&self.names[tenant.len()..], collection.as_bytes())
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
            self.is_walked = true;
            self.ask(node, what as u8 + length);
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
            self.is_walked = !self.uses.is_empty();
            // With many nodes nearly all bits are set whatever is removed.
            if self.uses.len() < USES_RECOUNTED_MAX {
                (self.asked, self.prefix_lengths) = (Asked::NOTHING, 0);
                let uses = std::mem::take(&mut self.uses);
                uses.keys().for_each(|key| self.ask((key >> 8) as u32, *key as u8));
                self.uses = uses;
            }
        }
    }

    /// `what` is a use, and for prefixes their length is added.
    fn ask(&mut self, node: u32, what: u8) {
        let prefix = Use::Prefix as u8;
        if what > prefix {
            self.prefix_lengths |= 1 << (what - prefix - 1);
        }
        self.asked.add(node, Asks(1 << what.min(prefix)));
    }
}

const USES_RECOUNTED_MAX: usize = 256;

fn key(node: u32, what: Use, length: u8) -> u64 {
    u64::from(node) << 8 | u64::from(what as u8 + length)
}
