//! The ranges that stand in their partition itself, as long as there are few of a field and an order: all bounds together, so that a
//! value is compared with those of its field without a look at anything else.

use predicate::Order;

use crate::fields::Numbers;
use crate::machine::prefetch;
use crate::range::{Ends, Listed, Target};

/// Fields and orders of a partition that have a group; the ranges of others are looked up like values.
const GROUPS_MAX: usize = 16;
/// Ranges of a group, as many as a word has bits; more of them have a set of their own.
pub(crate) const GROUP_MAX: usize = 32;
/// A set with fewer than this becomes a group again.
pub(crate) const GROUP_AGAIN: usize = 16;
const NO_SET: u32 = u32::MAX;
/// Bounds of a cache line, and lines of them that are announced.
const IN_LINE: usize = 4;
const ANNOUNCED_MAX: usize = 4;

#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Near {
    groups: Vec<Group>,
    /// Lower ones, and how far the upper ones are above them, group by group.
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
    ends: Ends,
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
    /// Announces that the first bounds will be looked at.
    #[inline]
    pub(crate) fn prefetch(&self) {
        self.bounds.chunks(IN_LINE).take(ANNOUNCED_MAX).for_each(|line| prefetch(&line[0]));
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

    /// The bounds from one place to before another: the lower one, and how far the upper one is above it.
    #[inline(always)]
    pub(crate) fn bounds_of(&self, places: std::ops::Range<usize>) -> &[[u64; 2]] {
        &self.bounds[places]
    }

    pub(crate) fn listed(&self, at: usize) -> Listed {
        let [lower, span] = self.bounds[at];
        let Other { target, ends } = self.others[at];
        Listed { lower, upper: lower + span, ends, target }
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
        let Listed { lower, upper, ends, target } = *listed;
        self.bounds.insert(at, [lower, upper - lower]);
        self.others.insert(at, Other { target, ends });
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

    /// Nodes with ranges of numbers, and where these are.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = (u32, Numbers)> {
        let numbers = self.groups.iter().enumerate().filter(|(_, group)| group.at as u8 == Order::Number as u8);
        numbers.map(|(number, group)| {
            let start = group.start as usize;
            let numbers = match group.set {
                NO_SET => Numbers::Here(start..start + group.len as usize),
                _ => Numbers::Group(number),
            };
            (group.at >> 8, numbers)
        })
    }

    /// The set of a node and an order, if the group of this number is theirs.
    #[inline(always)]
    pub(crate) fn set_in(&self, group: usize, at: u32) -> Option<u32> {
        self.groups.get(group).filter(|group| group.at == at && group.set != NO_SET).map(|group| group.set)
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
        let bound = |key| predicate::Bound { key, on: predicate::OnBound::In };
        Listed::new((lower > 0).then_some(bound(lower)), (upper < 60).then_some(bound(upper)), target)
    }

    fn found(near: &Near, at: u32, key: u64) -> Vec<Listed> {
        let Found::Group(start, end) = near.find(at) else { return Vec::new() };
        let is_hit = |[lower, span]: &[u64; 2]| key.wrapping_sub(*lower) <= *span;
        let hits = near.bounds_of(start..end).iter().enumerate().filter(|(_, bounds)| is_hit(bounds));
        let mut found: Vec<Listed> = hits.map(|(at, _)| near.listed(start + at)).collect();
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
