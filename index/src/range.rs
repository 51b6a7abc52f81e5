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
            if listed.lower <= key && key <= listed.upper {
                let sure = (!listed.has_lower || listed.lower < key) && (!listed.has_upper || key < listed.upper);
                each(listed.target, sure);
            }
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
}

/// A range of level `n` has bounds that differ in bit `n - 1` at the highest; one of level 0 has one value.
const LEVELS: usize = 65;

#[derive(Debug, Default)]
struct Node {
    by_lower: Bounds,
    by_upper: Bounds,
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
                    Box::default()
                });
                node.by_lower.insert((lower, number), other(upper));
                node.by_upper.insert((upper, number), other(lower));
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
                let removed = node.by_lower.remove(&(lower, number)).is_some();
                node.by_upper.remove(&(upper, number));
                if node.by_lower.is_empty() {
                    self.nodes.remove(&at);
                    self.levels[at.0 as usize] -= 1;
                    if self.levels[at.0 as usize] == 0 {
                        self.used &= !(1 << at.0);
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
        let target = |number: u32, other: &Other| Target { range: number, rest: other.rest, slot: other.slot };
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
            let Some(node) = self.nodes.get(&(level, above(key, level))) else { continue };
            // Ranges of the node reach across its middle, so that one bound is enough to tell. Those of level 0 are one value.
            let upper_half = level > 0 && key >> (level - 1) & 1 == 1;
            if upper_half {
                for ((upper, number), other) in node.by_upper.range((key, 0)..) {
                    each(target(*number, other), key < *upper);
                }
            } else {
                for ((lower, number), other) in node.by_lower.range(..=(key, u32::MAX)) {
                    each(target(*number, other), *lower < key);
                }
            }
        }
    }

    fn all(&self) -> Vec<Range> {
        let target = |number: &u32, other: &Other| Target { range: *number, rest: other.rest, slot: other.slot };
        let upwards = self.upwards.iter().map(|((lower, number), other)| (Some(*lower), None, target(number, other)));
        let downwards =
            self.downwards.iter().map(|((upper, number), other)| (None, Some(*upper), target(number, other)));
        let both = self.nodes.values().flat_map(|node| &node.by_lower);
        let both = both.map(|((lower, number), other)| (Some(*lower), Some(other.bound), target(number, other)));
        upwards.chain(downwards).chain(both).map(|(lower, upper, target)| Range { lower, upper, target }).collect()
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
