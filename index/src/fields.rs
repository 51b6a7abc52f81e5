//! What a partition asks of the fields of its documents: a small open table from nodes to what is asked of their values.
//!
//! Invariants:
//! - A field stands at the first free place from its own one on, around the end, as linear probing has it; so a search ends at the
//!   first place that is free.
//! - At least a quarter of the places is free.

use crate::machine::prefetch;
use crate::paths::NO_NODE;
use crate::places::Asks;

/// Where the ranges of numbers of a node are.
#[derive(Clone, Debug)]
pub(crate) enum Numbers {
    /// Among the bounds of the partition.
    Here(std::ops::Range<usize>),
    /// In the set that this group names.
    Group(usize),
    /// Where they are looked up.
    Elsewhere,
}

/// A quarter of a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Field {
    /// Which keys there may be at this node: a bit for each remainder of their tags. Most values of a document are none that anybody asks
    /// for, and are not even looked up.
    keys: u64,
    node: u32,
    /// Where among the bounds of its partition those of its ranges of numbers stand; or the group of the ranges that stand elsewhere.
    start: u16,
    len: u8,
    pub(crate) asks: Asks,
}

impl Field {
    const FREE: Field = Field { keys: 0, node: NO_NODE, start: 0, len: 0, asks: Asks::NONE };

    /// Whether a key of this tag may be there, as 0 or 1.
    #[inline(always)]
    pub(crate) fn may_have(&self, tag: u32) -> u64 {
        // The table takes the lowest bits and the highest ones.
        self.keys >> (tag >> 6 & 63) & 1
    }

    /// The places of its ranges of numbers among the bounds of its partition.
    #[inline(always)]
    pub(crate) fn ranges(&self) -> std::ops::Range<usize> {
        let start = usize::from(self.start);
        start..start + usize::from(self.len)
    }

    /// Under [`Asks::FAR`], the group that its ranges of numbers may be in.
    #[inline(always)]
    pub(crate) fn group(&self) -> usize {
        usize::from(self.start)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Fields {
    /// None, or a power of two.
    places: Vec<Field>,
    len: usize,
}

const PLACES_MIN: usize = 4;
/// Places of a cache line, and lines of them that are announced.
const IN_LINE: usize = 4;
const ANNOUNCED_MAX: usize = 4;

impl Fields {
    /// Announces that they will be looked at.
    #[inline]
    pub(crate) fn prefetch(&self) {
        self.places.chunks(IN_LINE).take(ANNOUNCED_MAX).for_each(|line| prefetch(&line[0]));
    }

    /// What is asked of a node, if anything is.
    #[inline(always)]
    pub(crate) fn of(&self, node: u32) -> &Field {
        let mut place = home(node);
        let mask = self.places.len().wrapping_sub(1);
        while let Some(field) = self.places.get(place & mask) {
            if field.node == node || field.node == NO_NODE {
                return field;
            }
            place += 1;
        }
        &Field::FREE
    }

    /// The place of a node's field, or that where it would stand.
    fn place_of(&self, node: u32) -> usize {
        let mask = self.places.len() - 1;
        let mut place = home(node) & mask;
        while self.places[place].node != node && self.places[place].node != NO_NODE {
            place = (place + 1) & mask;
        }
        place
    }

    /// The field of a node, if there is one.
    fn get_mut(&mut self, node: u32) -> Option<&mut Field> {
        if self.places.is_empty() {
            return None;
        }
        let place = self.place_of(node);
        Some(&mut self.places[place]).filter(|field| field.node == node)
    }

    /// Sets what is asked of a node, which has a field from now on, or none any more.
    pub(crate) fn set(&mut self, node: u32, asks: Asks) {
        if asks == Asks::NONE {
            return self.remove(node);
        }
        if let Some(field) = self.get_mut(node) {
            field.asks = asks.or(field.asks.only(Asks::FAR));
            return;
        }
        if (self.len + 1) * 4 > self.places.len() * 3 {
            self.resize((self.places.len() * 2).max(PLACES_MIN));
        }
        self.len += 1;
        self.put(Field { node, asks, ..Field::FREE });
    }

    fn put(&mut self, field: Field) {
        let place = self.place_of(field.node);
        self.places[place] = field;
    }

    fn remove(&mut self, node: u32) {
        if self.get_mut(node).is_none() {
            return;
        }
        let mask = self.places.len() - 1;
        let mut free = self.place_of(node);
        let mut next = (free + 1) & mask;
        while self.places[next].node != NO_NODE {
            let field = self.places[next];
            // What may stand no earlier than behind the free place stays.
            if next.wrapping_sub(home(field.node)) & mask >= next.wrapping_sub(free) & mask {
                self.places[free] = field;
                free = next;
            }
            next = (next + 1) & mask;
        }
        self.places[free] = Field::FREE;
        self.len -= 1;
        match self.len {
            0 => *self = Fields::default(),
            len if len * 8 < self.places.len() && self.places.len() > PLACES_MIN => self.resize(self.places.len() / 2),
            _ => {}
        }
    }

    fn resize(&mut self, places: usize) {
        let old = std::mem::replace(&mut self.places, vec![Field::FREE; places]);
        old.into_iter().filter(|field| field.node != NO_NODE).for_each(|field| self.put(field));
    }

    /// Notes a key at a node.
    pub(crate) fn add_key(&mut self, node: u32, tag: u32) {
        if let Some(field) = self.get_mut(node) {
            field.keys |= 1 << (tag >> 6 & 63);
        }
    }

    /// Lets the bits of all keys be these.
    pub(crate) fn set_keys(&mut self, bits: u64) {
        self.places.iter_mut().for_each(|field| field.keys = bits);
    }

    /// Notes where the ranges of numbers of a node are. What there are too many of for the field to tell is found without it.
    pub(crate) fn set_numbers(&mut self, node: u32, numbers: Numbers) {
        let Some(field) = self.get_mut(node) else { return };
        field.asks = field.asks.without(Asks::FAR);
        let (place, group) = match numbers {
            Numbers::Here(places) => (u16::try_from(places.start).ok().zip(u8::try_from(places.len()).ok()), None),
            Numbers::Group(group) => (None, u16::try_from(group).ok()),
            Numbers::Elsewhere => (None, None),
        };
        if place.is_none() {
            field.asks = field.asks.or(Asks::FAR);
        }
        (field.start, field.len) = place.unwrap_or((group.unwrap_or(u16::MAX), 0));
    }
}

/// Where a node stands if it is free. Nodes are numbered one after the other, and mostly asked for together: multiplying by the golden
/// ratio spreads such numbers evenly (Knuth, "The Art of Computer Programming", volume 3, section 6.4).
#[inline(always)]
fn home(node: u32) -> usize {
    (node.wrapping_mul(0x9E37_79B9) >> 8) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::places::Use;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn finds_what_was_set(steps in prop::collection::vec((0..60_u32, any::<bool>()), 1..300)) {
            let mut fields = Fields::default();
            let mut model = BTreeMap::new();
            for (node, comes) in steps {
                if comes {
                    fields.set(node, Asks::of(Use::Equal));
                    fields.add_key(node, node << 6);
                    model.insert(node, 1_u64 << node);
                } else {
                    fields.set(node, Asks::NONE);
                    model.remove(&node);
                }
                prop_assert_eq!(fields.len, model.len());
                prop_assert!(fields.len * 4 <= fields.places.len() * 3);
                for node in 0..60 {
                    let found = fields.of(node);
                    let is_there = model.contains_key(&node);
                    prop_assert_eq!(found.node, if is_there { node } else { NO_NODE });
                    prop_assert_eq!(found.keys, model.get(&node).copied().unwrap_or(0));
                }
            }
        }
    }
}
