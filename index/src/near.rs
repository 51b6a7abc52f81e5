//! The ranges that stand in their partition itself, as long as there are few of a field and an order: all bounds together, so that a
//! value is compared with those of its field without a look at anything else.

use predicate::Order;

use crate::machine::prefetch;
use crate::range::{Listed, Target};

/// Fields and orders of a partition that have a group; the ranges of others are looked up like values.
const GROUPS_MAX: usize = 16;
/// Ranges of a group, as many as a word has bits; more of them have a set of their own.
pub(crate) const GROUP_MAX: usize = 32;
/// A set with fewer than this becomes a group again.
pub(crate) const GROUP_AGAIN: usize = 16;
const NO_SET: u32 = u32::MAX;

#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Near {
    groups: Vec<Group>,
    /// Lower and upper ones, group by group.
    bounds: Vec<[u64; 2]>,
    /// What else there is to each range.
    others: Vec<Other>,
}

/// The ranges of a node and an order.
#[derive(Clone, Copy, Debug)]
struct Group {
    at: u32,
    start: u32,
    len: u32,
    set: u32,
}

#[derive(Clone, Copy, Debug)]
struct Other {
    target: Target,
    has_lower: bool,
    has_upper: bool,
}

/// What a value is looked for in.
pub(crate) enum Found {
    Group(usize, usize),
    Set(u32),
    Nothing,
}

/// A node and an order in one number.
#[inline]
pub(crate) fn at(node: u32, order: Order) -> u32 {
    node << 8 | order as u32
}

impl Near {
    /// Announces that it will be looked at.
    #[inline]
    pub(crate) fn prefetch(&self) {
        if let Some(group) = self.groups.first() {
            prefetch(group);
            // As many as two lines have, each.
            self.groups.get(4).into_iter().for_each(prefetch);
            self.bounds.iter().step_by(4).take(4).for_each(prefetch);
        }
    }

    /// The ranges of a node and an order: see [`at`].
    #[inline]
    pub(crate) fn find(&self, at: u32) -> Found {
        for group in &self.groups {
            if group.at == at {
                return match group.set {
                    NO_SET => Found::Group(group.start as usize, (group.start + group.len) as usize),
                    set => Found::Set(set),
                };
            }
        }
        Found::Nothing
    }

    /// Bit by bit, which of a group the value is within the bounds of, or on them.
    #[inline]
    pub(crate) fn hits(&self, start: usize, end: usize, key: u64) -> u32 {
        let mut hits = 0;
        for (at, [lower, upper]) in (0_u32..).zip(&self.bounds[start..end]) {
            hits |= u32::from(*lower <= key && key <= *upper) << (at % 32);
        }
        hits
    }

    pub(crate) fn listed(&self, at: usize) -> Listed {
        let [lower, upper] = self.bounds[at];
        let Other { target, has_lower, has_upper } = self.others[at];
        Listed { lower, upper, has_lower, has_upper, target }
    }

    /// The place of a group.
    pub(crate) fn group(&self, at: u32) -> Option<usize> {
        self.groups.iter().position(|group| group.at == at)
    }

    /// The same, made where there is none. None where there are too many.
    pub(crate) fn open(&mut self, at: u32) -> Option<usize> {
        if let Some(group) = self.group(at) {
            return Some(group);
        }
        let start = self.bounds.len() as u32;
        (self.groups.len() < GROUPS_MAX).then(|| {
            self.groups.push(Group { at, start, len: 0, set: NO_SET });
            self.groups.len() - 1
        })
    }

    /// Ranges of a group that has no set.
    pub(crate) fn len(&self, group: usize) -> usize {
        self.groups[group].len as usize
    }

    pub(crate) fn set(&self, group: usize) -> Option<u32> {
        Some(self.groups[group].set).filter(|set| *set != NO_SET)
    }

    pub(crate) fn push(&mut self, group: usize, listed: &Listed) {
        let Group { start, len, .. } = self.groups[group];
        let at = (start + len) as usize;
        let Listed { lower, upper, has_lower, has_upper, target } = *listed;
        self.bounds.insert(at, [lower, upper]);
        self.others.insert(at, Other { target, has_lower, has_upper });
        self.groups[group].len += 1;
        self.groups[group + 1..].iter_mut().for_each(|later| later.start += 1);
    }

    /// Takes a range away, given by its number.
    pub(crate) fn remove(&mut self, group: usize, range: u32) {
        let Group { start, len, .. } = self.groups[group];
        let (start, end) = (start as usize, (start + len) as usize);
        let at = self.others[start..end].iter().position(|other| other.target.range == range);
        debug_assert!(at.is_some(), "a range is removed that isn't there");
        let Some(at) = at else { return };
        self.bounds.remove(start + at);
        self.others.remove(start + at);
        self.groups[group].len -= 1;
        self.groups[group + 1..].iter_mut().for_each(|later| later.start -= 1);
    }

    /// All ranges of a group, which leave it.
    pub(crate) fn take(&mut self, group: usize) -> Vec<Listed> {
        let Group { start, len, .. } = self.groups[group];
        let (start, end) = (start as usize, (start + len) as usize);
        let all = (start..end).map(|at| self.listed(at)).collect();
        self.bounds.drain(start..end);
        self.others.drain(start..end);
        self.groups[group].len = 0;
        self.groups[group + 1..].iter_mut().for_each(|later| later.start -= len);
        all
    }

    /// Lets a group without ranges be those of a set, or of none.
    pub(crate) fn be(&mut self, group: usize, set: Option<u32>) {
        self.groups[group].set = set.unwrap_or(NO_SET);
    }

    /// Takes a group away that has neither ranges nor a set.
    pub(crate) fn close_if_empty(&mut self, group: usize) {
        if self.groups[group].len == 0 && self.groups[group].set == NO_SET {
            self.groups.remove(group);
            if self.groups.is_empty() {
                *self = Near::default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn listed(range: u32, lower: u64, upper: u64) -> Listed {
        let target = Target { range, rest: range + 1, slot: range + 2, is_decided: range.is_multiple_of(2) };
        Listed::new((lower > 0).then_some(lower), (upper < 60).then_some(upper), target)
    }

    fn found(near: &Near, at: u32, key: u64) -> Vec<Listed> {
        let Found::Group(start, end) = near.find(at) else { return Vec::new() };
        let hits = near.hits(start, end, key);
        let mut found: Vec<Listed> =
            (0..32).filter(|bit| hits >> bit & 1 == 1).map(|bit| near.listed(start + bit)).collect();
        found.sort_unstable_by_key(|listed| listed.target.range);
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn groups_are_lists_by_field_and_order(
            steps in prop::collection::vec((0..6_u32, 0..20_u32, 0..64_u64, 0..64_u64), 1..300),
        ) {
            let mut near = Near::default();
            // Of each group its ranges, or the number of its set.
            let mut model: BTreeMap<u32, Result<BTreeMap<u32, Listed>, u32>> = BTreeMap::new();
            for (number, (what, field, a, b)) in (0_u32..).zip(steps) {
                let at = super::at(field, Order::Number);
                let group = near.open(at);
                prop_assert_eq!(group.is_some(), model.contains_key(&at) || model.len() < GROUPS_MAX);
                let Some(group) = group else { continue };
                let known = model.entry(at).or_insert_with(|| Ok(BTreeMap::new()));
                match (what, &mut *known) {
                    (0, Ok(ranges)) => {
                        if let Some(range) = ranges.keys().next().copied() {
                            near.remove(group, range);
                            ranges.remove(&range);
                        }
                    }
                    (1, Ok(ranges)) => {
                        let mut taken = near.take(group);
                        taken.sort_unstable_by_key(|listed| listed.target.range);
                        prop_assert_eq!(taken, ranges.values().copied().collect::<Vec<_>>());
                        near.be(group, Some(number));
                        *known = Err(number);
                    }
                    (_, Ok(ranges)) if ranges.len() < GROUP_MAX => {
                        let range = listed(number, a.min(b), a.max(b));
                        near.push(group, &range);
                        ranges.insert(number, range);
                    }
                    (_, Ok(_)) => {}
                    (0 | 1, Err(_)) => {
                        near.be(group, None);
                        *known = Ok(BTreeMap::new());
                    }
                    (_, Err(set)) => prop_assert_eq!(near.set(group), Some(*set)),
                }
                if matches!(known, Ok(ranges) if ranges.is_empty()) {
                    model.remove(&at);
                }
                near.close_if_empty(group);
                for (at, known) in &model {
                    let (ranges, set) = match known {
                        Ok(ranges) => (ranges.clone(), None),
                        Err(set) => (BTreeMap::new(), Some(*set)),
                    };
                    let group = near.group(*at).expect("a group that has something is there");
                    prop_assert_eq!((near.len(group), near.set(group)), (ranges.len(), set));
                    for key in [0, a, b, u64::MAX] {
                        let expected: Vec<Listed> =
                            ranges.values().filter(|range| range.lower <= key && key <= range.upper).copied().collect();
                        prop_assert_eq!(found(&near, *at, key), expected);
                    }
                }
                prop_assert_eq!(near.groups.len(), model.len());
            }
        }
    }
}
