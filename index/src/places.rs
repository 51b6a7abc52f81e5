//! Partitions: what is kept of one collection of one tenant.

use bytestring::ByteString;
use smallvec::SmallVec;
use wire::PlaceHash;

use crate::fields::{Fields, Numbers};
use crate::key::{PREFIX_MAX, same};
use crate::machine::prefetch;
use crate::near::Near;
use crate::open::{Numbered, Open};
use crate::paths::ID;

/// What is asked of a value, as bits: one for each [`Use`], and [`Asks::FAR`].
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
    /// Of its ranges of numbers there may be some that don't stand in the partition.
    pub(crate) const FAR: Asks = Asks(1 << 7);

    pub(crate) const fn of(what: Use) -> Asks {
        Asks(1 << what as u8)
    }

    pub(crate) const fn or(self, other: Asks) -> Asks {
        Asks(self.0 | other.0)
    }

    pub(crate) const fn only(self, of: Asks) -> Asks {
        Asks(self.0 & of.0)
    }

    pub(crate) const fn without(self, of: Asks) -> Asks {
        Asks(self.0 & !of.0)
    }

    /// Whether any of these is asked.
    #[inline(always)]
    pub(crate) const fn any(self, of: Asks) -> bool {
        self.0 & of.0 != 0
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

/// Keys of a partition that are gone since their bits were made, as many as are left but at least these: then the bits tell little.
const KEYS_GONE_MIN: u32 = 128;
/// With ten fields, the bits of each are half of them set.
const MANY_KEYS: u32 = 450;

/// What every document needs stands in the first two cache lines and what these lead to.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Partition {
    pub(crate) place: PlaceHash,
    /// Tenant and collection, one after the other.
    names: SmallVec<[u8; 48]>,
    /// A bit for each remainder of the nodes that have a field.
    nodes: u64,
    pub(crate) fields: Fields,
    tenant_length: u32,
    /// Whether documents are looked at at all.
    pub(crate) is_walked: bool,
    /// Whether the document's computed id is looked at.
    pub(crate) asks_id: bool,
    /// Something is asked of all documents: see `everyone` and `always`.
    pub(crate) is_asked_whole: bool,
    /// Lengths of prefixes that are looked up: bit `n` for one of `n + 1` bytes.
    pub(crate) prefix_lengths: u32,
    /// Ranges in sets that are looked up.
    pub(crate) far_ranges: u32,
    pub(crate) near: Near,
    /// Subscriptions to every document.
    pub(crate) everyone: Vec<u32>,
    /// Predicates without an anchor, by their numbers in the rests.
    pub(crate) always: Vec<u32>,
    keys_count: u32,
    keys_gone: u32,
    /// Its place in its tenant's list.
    pub(crate) in_tenant: u32,
    /// All subscriptions.
    pub(crate) members: Vec<u32>,
    uses: Open<Used>,
}

/// How often a node is used for something.
#[derive(Clone, Copy, Debug)]
struct Used {
    /// See [`key`].
    key: u32,
    count: u32,
}

impl Numbered for Used {
    /// No use has this number, for none is 255.
    const FREE: &'static Self = &Used { key: u32::MAX, count: 0 };

    #[inline(always)]
    fn number(&self) -> u32 {
        self.key
    }
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
            nodes: 0,
            fields: Fields::default(),
            is_walked: false,
            keys_count: 0,
            keys_gone: 0,
            place,
            asks_id: false,
            is_asked_whole: false,
            prefix_lengths: 0,
            names,
            tenant_length: tenant.len() as u32,
            in_tenant: 0,
            everyone: Vec::new(),
            always: Vec::new(),
            near: Near::default(),
            far_ranges: 0,
            members: Vec::new(),
            uses: Open::default(),
        }
    }

    /// Announces that it will be looked at.
    #[inline]
    pub(crate) fn prefetch(&self) {
        prefetch(&self.place);
        prefetch(&self.fields);
        prefetch(&self.near);
    }

    /// The same of all of it.
    pub(crate) fn prefetch_all(&self) {
        self.prefetch();
        prefetch(&self.everyone);
        prefetch(&self.in_tenant);
        prefetch(&self.members);
        prefetch(&self.uses);
    }

    /// Whether anything may be asked of a node.
    #[inline(always)]
    pub(crate) fn may_ask(&self, node: u32) -> bool {
        self.nodes >> (node % 64) & 1 == 1
    }

    /// Announces what its documents will be held against.
    #[inline]
    pub(crate) fn prefetch_asked(&self) {
        self.fields.prefetch();
        self.near.prefetch();
    }

    #[inline]
    pub(crate) fn is_of(&self, tenant: &[u8], collection: &[u8]) -> bool {
        self.tenant_length as usize == tenant.len()
            && self.names.len() == tenant.len() + collection.len()
            && same(&self.names[..tenant.len()], tenant)
            && same(&self.names[tenant.len()..], collection)
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

    /// To be called when something has come to or gone from `everyone` or `always`.
    pub(crate) fn note_asked_whole(&mut self) {
        self.is_asked_whole = !self.everyone.is_empty() || !self.always.is_empty();
    }

    pub(crate) fn add_key(&mut self, node: u32, tag: u32) {
        self.keys_count += 1;
        self.fields.add_key(node, tag);
    }

    /// True when the bits tell so little that they should be made anew.
    pub(crate) fn remove_key(&mut self) -> bool {
        self.keys_count -= 1;
        self.keys_gone += 1;
        self.keys_gone >= self.keys_count.max(KEYS_GONE_MIN)
    }

    /// Whether it has so many keys that the bits of its fields tell little.
    #[inline]
    pub(crate) fn has_many_keys(&self) -> bool {
        self.keys_count >= MANY_KEYS
    }

    /// Lets the bits say that any key may be there.
    pub(crate) fn forget_keys(&mut self) {
        self.keys_gone = 0;
        self.fields.set_keys(u64::MAX);
    }

    /// Makes the bits anew, from the nodes and tags of all keys.
    pub(crate) fn set_keys(&mut self, keys: impl Iterator<Item = (u32, u32)>) {
        self.keys_gone = 0;
        self.fields.set_keys(0);
        keys.for_each(|(node, tag)| self.fields.add_key(node, tag));
    }

    /// Lets fields know where their ranges of numbers are, after those of a node have changed.
    pub(crate) fn note_ranges(&mut self, node: u32) {
        let numbers = if self.far_ranges == 0 { Numbers::Here(0..0) } else { Numbers::Elsewhere };
        self.fields.set_numbers(node, numbers);
        for (node, numbers) in self.near.numbers() {
            self.fields.set_numbers(node, numbers);
        }
    }

    /// Nodes whose values are looked at, each once.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = u32> + '_ {
        let beside_inner = Asks::PROBES.or(Asks::of(Use::Rest));
        self.fields.all().filter(move |(_, asks)| asks.any(beside_inner)).map(|(node, _)| node)
    }

    pub(crate) fn uses_for(&self, node: u32, (what, length): (Use, u8)) -> bool {
        self.uses.of(key(node, what, length)).count > 0
    }

    /// Announces that a use will begin or end.
    pub(crate) fn prefetch_use(&self, node: u32, what: Use) {
        self.uses.prefetch(key(node, what, 0));
    }

    /// `length` is that of a prefix, else 0.
    pub(crate) fn add_use(&mut self, node: u32, what: Use, length: u8) {
        let key = key(node, what, length);
        if let Some(used) = self.uses.get_mut(key) {
            used.count += 1;
            return;
        }
        self.uses.insert(Used { key, count: 1 });
        self.is_walked = true;
        self.ask(node, self.fields.of(node).asks.or(Asks::of(what)));
        self.ask_prefix(key as u8);
    }

    pub(crate) fn remove_use(&mut self, node: u32, what: Use, length: u8) {
        let key = key(node, what, length);
        let Some(used) = self.uses.get_mut(key) else {
            debug_assert!(false, "a use of node {node} ends that never began");
            return;
        };
        used.count -= 1;
        if used.count > 0 {
            return;
        }
        self.uses.remove(key);
        self.is_walked = self.uses.len() > 0;
        let is_last = what != Use::Prefix || (0..=PREFIX_MAX).all(|length| !self.uses_for(node, (what, length as u8)));
        if is_last {
            self.ask(node, self.fields.of(node).asks.without(Asks::of(what)));
        }
        if what == Use::Prefix && self.uses.len() < USES_RECOUNTED_MAX {
            self.prefix_lengths = 0;
            let uses = std::mem::take(&mut self.uses);
            uses.all().for_each(|used| self.ask_prefix(used.key as u8));
            self.uses = uses;
        }
    }

    /// Lets this be asked of the field of a node.
    fn ask(&mut self, node: u32, asks: Asks) {
        let asks = asks.without(Asks::FAR);
        self.fields.set(node, asks);
        match asks {
            Asks::NONE if self.uses.len() < USES_RECOUNTED_MAX => {
                self.nodes = self.fields.all().fold(0, |nodes, (node, _)| nodes | 1 << (node % 64));
            }
            Asks::NONE => {}
            _ => self.nodes |= 1 << (node % 64),
        }
        if node == ID {
            self.asks_id = asks != Asks::NONE;
        }
    }

    /// `what` is a use, and for prefixes their length is added.
    fn ask_prefix(&mut self, what: u8) {
        let prefix = Use::Prefix as u8;
        if what > prefix {
            self.prefix_lengths |= 1 << (what - prefix - 1);
        }
    }
}

const USES_RECOUNTED_MAX: usize = 256;

/// A node and what it is used for in one number. Of prefixes, each length is a use of its own.
fn key(node: u32, what: Use, length: u8) -> u32 {
    node << 8 | u32::from(what as u8 + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_looked_at_as_long_as_it_is_used() {
        let mut partition = Partition::default();
        let nodes = |partition: &Partition| {
            let mut nodes: Vec<u32> = partition.nodes().collect();
            nodes.sort_unstable();
            nodes
        };
        partition.add_use(5, Use::Rest, 0);
        partition.add_use(6, Use::Inner, 0);
        partition.add_use(7, Use::Prefix, 3);
        partition.add_use(7, Use::Prefix, 9);
        partition.add_use(7, Use::Prefix, 9);
        assert_eq!(nodes(&partition), [5, 7]);
        partition.remove_use(7, Use::Prefix, 3);
        partition.remove_use(7, Use::Prefix, 9);
        assert!(partition.uses_for(7, (Use::Prefix, 9)) && !partition.uses_for(7, (Use::Prefix, 3)));
        assert_eq!((nodes(&partition), partition.prefix_lengths), (vec![5, 7], 1 << 8));
        partition.remove_use(7, Use::Prefix, 9);
        partition.remove_use(5, Use::Rest, 0);
        assert!(nodes(&partition).is_empty() && partition.is_walked && partition.may_ask(6) && !partition.may_ask(7));
        partition.remove_use(6, Use::Inner, 0);
        assert!(!partition.is_walked && !partition.may_ask(6));
    }
}
