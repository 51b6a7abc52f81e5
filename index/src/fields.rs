//! What a partition asks of the fields of its documents, by node.

use crate::machine::prefetch;
use crate::open::{Numbered, Open};
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

impl Numbered for Field {
    const FREE: &'static Field = &Field { keys: 0, node: NO_NODE, start: 0, len: 0, asks: Asks::NONE };

    #[inline(always)]
    fn number(&self) -> u32 {
        self.node
    }
}

#[derive(Debug, Default)]
pub(crate) struct Fields(Open<Field>);

/// Places of a cache line, and lines of them that are announced.
const IN_LINE: usize = 4;
const ANNOUNCED_MAX: usize = 4;

impl Fields {
    /// Announces that they will be looked at.
    #[inline]
    pub(crate) fn prefetch(&self) {
        self.0.places().chunks(IN_LINE).take(ANNOUNCED_MAX).for_each(|line| prefetch(&line[0]));
    }

    /// What is asked of a node, if anything is.
    #[inline(always)]
    pub(crate) fn of(&self, node: u32) -> &Field {
        self.0.of(node)
    }

    /// All nodes of which something is asked, and what.
    pub(crate) fn all(&self) -> impl Iterator<Item = (u32, Asks)> {
        self.0.all().map(|field| (field.node, field.asks))
    }

    /// Sets what is asked of a node, which has a field from now on, or none any more.
    pub(crate) fn set(&mut self, node: u32, asks: Asks) {
        if asks == Asks::NONE {
            return self.0.remove(node);
        }
        match self.0.get_mut(node) {
            Some(field) => field.asks = asks.or(field.asks.only(Asks::FAR)),
            None => self.0.insert(Field { node, asks, ..*Field::FREE }),
        }
    }

    /// Notes a key at a node.
    pub(crate) fn add_key(&mut self, node: u32, tag: u32) {
        if let Some(field) = self.0.get_mut(node) {
            field.keys |= 1 << (tag >> 6 & 63);
        }
    }

    /// Lets the bits of all keys be these.
    pub(crate) fn set_keys(&mut self, bits: u64) {
        self.0.places_mut().iter_mut().for_each(|field| field.keys = bits);
    }

    /// Notes where the ranges of numbers of a node are. What there are too many of for the field to tell is found without it.
    pub(crate) fn set_numbers(&mut self, node: u32, numbers: Numbers) {
        let Some(field) = self.0.get_mut(node) else { return };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::places::Use;

    #[test]
    fn a_field_keeps_what_it_knows_when_more_is_asked() {
        let mut fields = Fields::default();
        let (equal, range) = (Asks::of(Use::Equal), Asks::of(Use::Range));
        fields.set(7, equal);
        fields.add_key(7, 3 << 6);
        // Of a node that has no field there is nothing to note.
        fields.add_key(8, 3 << 6);
        fields.set_numbers(7, Numbers::Elsewhere);
        fields.set(7, equal.or(range));
        let field = fields.of(7);
        assert_eq!((field.asks, field.may_have(3 << 6), field.may_have(4 << 6)), (equal.or(range).or(Asks::FAR), 1, 0));
        fields.set_numbers(7, Numbers::Here(2..5));
        assert_eq!((fields.of(7).asks, fields.of(7).ranges()), (equal.or(range), 2..5));
        assert_eq!(fields.all().collect::<Vec<_>>(), [(7, equal.or(range))]);
        fields.set(7, Asks::NONE);
        assert_eq!((fields.of(7).asks, fields.all().count()), (Asks::NONE, 0));
    }
}
