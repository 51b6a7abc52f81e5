//! Ranges of one field and one order: which of them a value is in.
//!
//! Few of them are looked through one by one. Many stand in a tree: a range hangs on the highest power of two that it reaches across,
//! so that one look-up for each such power, and a walk over nothing but hits, finds all (the static form of Edelsbrunner's
//! interval tree, whose nodes are not built but computed, as in Kriegel, Pötke and Seidl, "Managing Intervals Efficiently in
//! Object-Relational Databases", 2000). Nothing is ever rebuilt.
//!
//! Invariant: a range is in the tree exactly if the list is empty.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::machine::prefetch;

/// Up to here, looking through all is quicker.
const LISTED_MAX: usize = 64;
/// Below this, a tree becomes a list again.
const LISTED_AGAIN: usize = 32;

/// One range, and whom it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) lower: Option<u64>,
    pub(crate) upper: Option<u64>,
    pub(crate) target: Target,
}

/// A predicate by its number, and its subscription's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Names the range among all; the ranges of one predicate differ in it.
    pub(crate) range: u32,
    pub(crate) rest: u32,
    pub(crate) slot: u32,
}

#[derive(Debug, Default)]
pub(crate) struct RangeSet {
    list: SmallVec<[Listed; 2]>,
    tree: Option<Box<Tree>>,
}

/// A range with bounds that are always there, and whether they were.
#[derive(Clone, Copy, Debug)]
struct Listed {
    lower: u64,
    upper: u64,
    has_lower: bool,
    has_upper: bool,
    target: Target,
}

impl Listed {
    fn of(range: &Range) -> Self {
        Self {
            lower: range.lower.unwrap_or(0),
            upper: range.upper.unwrap_or(u64::MAX),
            has_lower: range.lower.is_some(),
            has_upper: range.upper.is_some(),
            target: range.target,
        }
    }

    #[inline]
    fn stab(&self, key: u64, each: &mut impl FnMut(Target, bool)) {
        if self.lower <= key && key <= self.upper {
            let sure = (!self.has_lower || self.lower < key) && (!self.has_upper || key < self.upper);
            each(self.target, sure);
        }
    }

    fn range(&self) -> Range {
        Range {
            lower: self.has_lower.then_some(self.lower),
            upper: self.has_upper.then_some(self.upper),
            target: self.target,
        }
    }
}

impl RangeSet {
    pub(crate) fn len(&self) -> usize {
        self.tree.as_ref().map_or(self.list.len(), |tree| tree.len)
    }

    /// Announces that it will be looked at.
    #[inline]
    pub(crate) fn prefetch(&self) {
        if let [first, .., last] = &self.list[..] {
            prefetch(first);
            prefetch(last);
        }
    }

    pub(crate) fn insert(&mut self, range: &Range) {
        if let Some(tree) = &mut self.tree {
            tree.insert(range);
            return;
        }
        self.list.push(Listed::of(range));
        if self.list.len() > LISTED_MAX {
            let mut tree = Box::new(Tree::default());
            self.list.drain(..).for_each(|listed| tree.insert(&listed.range()));
            self.list.shrink_to_fit();
            self.tree = Some(tree);
        }
    }

    pub(crate) fn remove(&mut self, range: &Range) {
        let Some(tree) = &mut self.tree else {
            let at = self.list.iter().position(|listed| listed.target.range == range.target.range);
            debug_assert!(at.is_some(), "a range is removed that isn't there");
            at.into_iter().for_each(|at| _ = self.list.swap_remove(at));
            return;
        };
        tree.remove(range);
        if tree.len < LISTED_AGAIN {
            self.list = tree.all().iter().map(Listed::of).collect();
            self.tree = None;
        }
    }

    /// Calls `each` with whom each range that the value is in is for, and whether the value is in it for sure: a value whose key is
    /// that of a bound may be on either side.
    #[inline]
    pub(crate) fn stab(&self, key: u64, mut each: impl FnMut(Target, bool)) {
        for listed in &self.list {
            listed.stab(key, &mut each);
        }
        if let Some(tree) = &self.tree {
            tree.stab(key, each);
        }
    }
}

/// By bound, and by range where bounds are the same.
type Bounds = BTreeMap<(u64, u32), Other>;

/// The other bound, and whom it is for.
#[derive(Clone, Copy, Debug)]
struct Other {
    bound: u64,
    rest: u32,
    slot: u32,
}

#[derive(Debug)]
struct Tree {
    len: usize,
    /// Ranges without an upper bound, by their lower one; and the other way round.
    upwards: Bounds,
    downwards: Bounds,
    /// By level and by the bits above it.
    nodes: HashMap<(u32, u64), Box<Node>>,
    /// Nodes of each level.
    levels: [u32; LEVELS],
    /// Bit by level: whether it has nodes. The highest level has a bit of its own.
    used: u128,
    /// By level, a bit for each remainder of the nodes' names: most levels have few nodes, and none where a value is. Bits of nodes
    /// that are gone stay until the level is empty, and cost a look-up.
    marks: Box<[[u64; MARKS]; LEVELS]>,
}

/// Words of marks of a level.
const MARKS: usize = 4;

/// The word and the bit of a node's mark.
#[inline]
fn mark_of(above: u64) -> (usize, u64) {
    // Multiplicative hashing: the upper bits depend on all below.
    let hash = above.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
    (hash as usize % MARKS, 1 << (hash / MARKS as u64 % 64))
}

/// A range of level `n` has bounds that differ in bit `n - 1` at the highest; one of level 0 has one value.
const LEVELS: usize = 65;

/// The ranges that reach across one place. Few of them are looked through; of many, only those that the value is in.
#[derive(Debug, Default)]
struct Node {
    few: SmallVec<[Listed; 1]>,
    many: Option<Box<Sorted>>,
}

#[derive(Debug, Default)]
struct Sorted {
    by_lower: Bounds,
    by_upper: Bounds,
}

impl Sorted {
    fn insert(&mut self, lower: u64, upper: u64, Target { range, rest, slot }: Target) {
        self.by_lower.insert((lower, range), Other { bound: upper, rest, slot });
        self.by_upper.insert((upper, range), Other { bound: lower, rest, slot });
    }
}

impl Node {
    fn insert(&mut self, range: &Range) {
        let listed = Listed::of(range);
        if let Some(many) = &mut self.many {
            return many.insert(listed.lower, listed.upper, listed.target);
        }
        self.few.push(listed);
        if self.few.len() > LISTED_MAX {
            let many = self.many.insert(Box::default());
            self.few.drain(..).for_each(|listed| many.insert(listed.lower, listed.upper, listed.target));
            self.few.shrink_to_fit();
        }
    }

    /// Whether it was there.
    fn remove(&mut self, lower: u64, upper: u64, range: u32) -> bool {
        let Some(many) = &mut self.many else {
            let at = self.few.iter().position(|listed| listed.target.range == range);
            at.into_iter().for_each(|at| _ = self.few.swap_remove(at));
            return at.is_some();
        };
        many.by_upper.remove(&(upper, range));
        let removed = many.by_lower.remove(&(lower, range)).is_some();
        if many.by_lower.len() < LISTED_AGAIN {
            self.few = self.all().collect();
            self.many = None;
        }
        removed
    }

    fn is_empty(&self) -> bool {
        self.few.is_empty() && self.many.is_none()
    }

    fn all(&self) -> impl Iterator<Item = Listed> + '_ {
        let many = self.many.iter().flat_map(|many| &many.by_lower);
        let many = many.map(|((lower, number), other)| Listed {
            lower: *lower,
            upper: other.bound,
            has_lower: true,
            has_upper: true,
            target: target(*number, other),
        });
        self.few.iter().copied().chain(many)
    }

    /// `is_upper` is whether the value is in the upper half of the node. Its ranges reach across the middle, so that one bound is
    /// enough to tell; at level 0 they are one value.
    #[inline]
    fn stab(&self, key: u64, is_upper: bool, each: &mut impl FnMut(Target, bool)) {
        for listed in &self.few {
            listed.stab(key, each);
        }
        let Some(many) = &self.many else { return };
        if is_upper {
            for ((upper, number), other) in many.by_upper.range((key, 0)..) {
                each(target(*number, other), key < *upper);
            }
        } else {
            for ((lower, number), other) in many.by_lower.range(..=(key, u32::MAX)) {
                each(target(*number, other), *lower < key);
            }
        }
    }
}

fn target(number: u32, other: &Other) -> Target {
    Target { range: number, rest: other.rest, slot: other.slot }
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            len: 0,
            upwards: Bounds::new(),
            downwards: Bounds::new(),
            nodes: HashMap::new(),
            levels: [0; LEVELS],
            used: 0,
            marks: Box::new([[0; MARKS]; LEVELS]),
        }
    }
}

/// The node that a two-sided range hangs on.
fn node_of(lower: u64, upper: u64) -> (u32, u64) {
    let level = 64 - (lower ^ upper).leading_zeros();
    (level, above(lower, level))
}

/// The bits above a level.
fn above(key: u64, level: u32) -> u64 {
    key.checked_shr(level).unwrap_or(0)
}

impl Tree {
    fn insert(&mut self, range: &Range) {
        self.len += 1;
        let Target { range: number, rest, slot } = range.target;
        let other = |bound| Other { bound, rest, slot };
        match (range.lower, range.upper) {
            (Some(lower), Some(upper)) if lower <= upper => {
                let at = node_of(lower, upper);
                let node = self.nodes.entry(at).or_insert_with(|| {
                    self.levels[at.0 as usize] += 1;
                    self.used |= 1 << at.0;
                    let (word, bit) = mark_of(at.1);
                    self.marks[at.0 as usize][word] |= bit;
                    Box::default()
                });
                node.insert(range);
            }
            (Some(lower), None) => _ = self.upwards.insert((lower, number), other(0)),
            (None, Some(upper)) => _ = self.downwards.insert((upper, number), other(0)),
            _ => debug_assert!(false, "nothing is in it, or everything: neither is ever asked for"),
        }
    }

    fn remove(&mut self, range: &Range) {
        let number = range.target.range;
        let removed = match (range.lower, range.upper) {
            (Some(lower), Some(upper)) if lower <= upper => {
                let at = node_of(lower, upper);
                let Some(node) = self.nodes.get_mut(&at) else { return };
                let removed = node.remove(lower, upper, number);
                if node.is_empty() {
                    self.nodes.remove(&at);
                    self.levels[at.0 as usize] -= 1;
                    if self.levels[at.0 as usize] == 0 {
                        self.used &= !(1 << at.0);
                        self.marks[at.0 as usize] = [0; MARKS];
                    }
                }
                removed
            }
            (Some(lower), None) => self.upwards.remove(&(lower, number)).is_some(),
            (None, Some(upper)) => self.downwards.remove(&(upper, number)).is_some(),
            _ => return,
        };
        debug_assert!(removed, "a range is removed that isn't there");
        self.len -= usize::from(removed);
    }

    fn stab(&self, key: u64, mut each: impl FnMut(Target, bool)) {
        for ((lower, number), other) in self.upwards.range(..=(key, u32::MAX)) {
            each(target(*number, other), *lower < key);
        }
        for ((upper, number), other) in self.downwards.range((key, 0)..) {
            each(target(*number, other), key < *upper);
        }
        let mut used = self.used;
        while used != 0 {
            let level = used.trailing_zeros();
            used &= used - 1;
            let above = above(key, level);
            let (word, bit) = mark_of(above);
            if self.marks[level as usize][word] & bit == 0 {
                continue;
            }
            let Some(node) = self.nodes.get(&(level, above)) else { continue };
            let is_upper = level > 0 && key >> (level - 1) & 1 == 1;
            node.stab(key, is_upper, &mut each);
        }
    }

    fn all(&self) -> Vec<Range> {
        let upwards = self.upwards.iter().map(|((lower, number), other)| (Some(*lower), None, target(*number, other)));
        let downwards =
            self.downwards.iter().map(|((upper, number), other)| (None, Some(*upper), target(*number, other)));
        let one_sided = upwards.chain(downwards).map(|(lower, upper, target)| Range { lower, upper, target });
        one_sided.chain(self.nodes.values().flat_map(|node| node.all()).map(|listed| listed.range())).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bound() -> impl Strategy<Value = u64> {
        prop_oneof![
            0..40_u64,
            Just(u64::MAX),
            u64::MAX - 40..=u64::MAX,
            any::<u64>(),
            (0..64_u32).prop_map(|bit| 1 << bit)
        ]
    }

    fn expected(ranges: &[Range], key: u64) -> Vec<(u32, bool)> {
        let is_in = |range: &&Range| {
            range.lower.is_none_or(|lower| lower <= key) && range.upper.is_none_or(|upper| key <= upper)
        };
        let sure = |range: &Range| range.lower != Some(key) && range.upper != Some(key);
        let mut all: Vec<_> = ranges.iter().filter(is_in).map(|range| (range.target.range, sure(range))).collect();
        all.sort_unstable();
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn finds_what_looking_at_each_finds(
            steps in prop::collection::vec((0..4_u32, bound(), bound(), 0..3_u32), 1..400),
            keys in prop::collection::vec(bound(), 20),
        ) {
            let mut set = RangeSet::default();
            let mut model: Vec<Range> = Vec::new();
            for (number, (what, a, b, sides)) in steps.into_iter().enumerate() {
                if what == 0 && !model.is_empty() {
                    let range = model.swap_remove(a as usize % model.len());
                    set.remove(&range);
                } else {
                    let number = number as u32;
                    let lower = (sides != 1).then_some(a.min(b));
                    let upper = (sides != 0).then_some(a.max(b));
                    let range = Range { lower, upper, target: Target { range: number, rest: number + 1, slot: number + 2 } };
                    set.insert(&range);
                    model.push(range);
                }
                prop_assert_eq!(set.len(), model.len());
            }
            for key in keys.iter().copied().chain(model.iter().take(20).filter_map(|range| range.lower)) {
                let mut found = Vec::new();
                set.stab(key, |target, sure| {
                    assert_eq!((target.rest, target.slot), (target.range + 1, target.range + 2));
                    found.push((target.range, sure));
                });
                found.sort_unstable();
                prop_assert_eq!(found, expected(&model, key));
            }
        }
    }
}
