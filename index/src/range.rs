//! Ranges of one field and one order: which of them a value is in.
//!
//! Few of them are looked through one by one; many stand in a tree ([`Intervals`]). Nothing is ever rebuilt.
//!
//! Invariant: a range is in the tree exactly if the list is empty.

use predicate::{Bound, OnBound, has_key_alone};
use smallvec::SmallVec;

use crate::intervals::Intervals;
use crate::machine::prefetch;

/// Up to here, looking through all is quicker.
const LISTED_MAX: usize = 32;
/// Below this, a tree becomes a list again.
const LISTED_AGAIN: usize = 16;
/// In place of the leaf of a tree.
const LIST: u32 = u32::MAX;

/// A predicate by its number, and its subscription's slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Target {
    /// Names the range among all; the ranges of one predicate differ in it.
    pub(crate) range: u32,
    pub(crate) rest: u32,
    pub(crate) slot: u32,
    /// Being in the range for sure is all that the predicate asks.
    pub(crate) is_decided: bool,
}

/// Whether a value is in a range, or what else is checked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    No,
    /// Only the predicate itself can tell.
    Perhaps,
    Yes,
}

/// What is to be said of values on the bounds of a range. None where there is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ends {
    lower: Option<OnBound>,
    upper: Option<OnBound>,
}

impl Ends {
    /// With bounds that are always there.
    pub(crate) fn of(lower: Option<Bound>, upper: Option<Bound>) -> (Self, [u64; 2]) {
        let ends = Self { lower: lower.map(|lower| lower.on), upper: upper.map(|upper| upper.on) };
        (ends, [lower.map_or(0, |lower| lower.key), upper.map_or(u64::MAX, |upper| upper.key)])
    }

    /// Of a value of this BSON type, whose key is within the bounds or on them.
    #[inline]
    pub(crate) fn answer(self, kind: u8, key: u64, [lower, upper]: [u64; 2]) -> Answer {
        if key != lower && key != upper {
            return Answer::Yes;
        }
        let is_on = |bound: u64, end: Option<OnBound>| end.filter(|_| bound == key);
        match (is_on(lower, self.lower), is_on(upper, self.upper)) {
            (None, None) => Answer::Yes,
            _ if !has_key_alone(kind, key) => Answer::Perhaps,
            (Some(OnBound::Out), _) | (_, Some(OnBound::Out)) => Answer::No,
            (Some(OnBound::Unsure), _) | (_, Some(OnBound::Unsure)) => Answer::Perhaps,
            _ => Answer::Yes,
        }
    }
}

/// A range with bounds that are always there, and whom it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) lower: u64,
    pub(crate) upper: u64,
    pub(crate) ends: Ends,
    pub(crate) target: Target,
}

impl Listed {
    pub(crate) fn new(lower: Option<Bound>, upper: Option<Bound>, target: Target) -> Self {
        let (ends, [lower, upper]) = Ends::of(lower, upper);
        Self { lower, upper, ends, target }
    }

    /// Of a value of this BSON type, whose key is within the bounds or on them.
    #[inline]
    pub(crate) fn answer(&self, kind: u8, key: u64) -> Answer {
        self.ends.answer(kind, key, [self.lower, self.upper])
    }
}

#[derive(Debug, Default)]
pub(crate) struct RangeSet {
    list: SmallVec<[Listed; 2]>,
    tree: Option<Box<Intervals>>,
}

impl RangeSet {
    pub(crate) fn len(&self) -> usize {
        self.tree.as_ref().map_or(self.list.len(), |tree| tree.len)
    }

    pub(crate) fn insert(&mut self, listed: &Listed) {
        if let Some(tree) = &mut self.tree {
            tree.insert(listed);
            return;
        }
        self.list.push(*listed);
        if self.list.len() > LISTED_MAX {
            let tree = self.tree.insert(Box::default());
            self.list.drain(..).for_each(|listed| tree.insert(&listed));
            self.list.shrink_to_fit();
        }
    }

    pub(crate) fn remove(&mut self, listed: &Listed) {
        let Some(tree) = &mut self.tree else {
            let at = self.list.iter().position(|other| other.target.range == listed.target.range);
            debug_assert!(at.is_some(), "a range is removed that isn't there");
            at.into_iter().for_each(|at| _ = self.list.swap_remove(at));
            return;
        };
        let removed = tree.remove(listed);
        debug_assert!(removed, "a range is removed that isn't there");
        if tree.len < LISTED_AGAIN {
            self.list = tree.all().into();
            self.tree = None;
        }
    }

    /// All of them. For sets of few.
    pub(crate) fn all(&self) -> Vec<Listed> {
        self.tree.as_ref().map_or_else(|| self.list.to_vec(), |tree| tree.all())
    }

    /// Calls `each` with the parts of the set in which there may be ranges that the value is in. They are on their way from memory then.
    #[inline]
    pub(crate) fn descend(&self, key: u64, mut each: impl FnMut(u32)) {
        match &self.tree {
            Some(tree) => tree.descend(key, each),
            None => {
                if let [first, .., last] = &self.list[..] {
                    prefetch(first);
                    prefetch(last);
                }
                each(LIST);
            }
        }
    }

    /// Calls `each` with the ranges of a part that the value is within, or on the bounds of.
    #[inline]
    pub(crate) fn stab(&self, part: u32, key: u64, mut each: impl FnMut(Listed)) {
        if let Some(tree) = &self.tree {
            return tree.stab(part, key, each);
        }
        for listed in &self.list {
            if listed.lower <= key && key <= listed.upper {
                each(*listed);
            }
        }
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

    /// A type whose values have their keys alone.
    const DATE: u8 = 0x09;
    const TEXT: u8 = 0x02;

    fn expected(ranges: &[Listed], key: u64) -> Vec<(u32, Ends)> {
        let is_in = |range: &&Listed| range.lower <= key && key <= range.upper;
        let mut all: Vec<_> = ranges.iter().filter(is_in).map(|range| (range.target.range, range.ends)).collect();
        all.sort_unstable_by_key(|(range, _)| *range);
        all
    }

    #[test]
    fn on_a_bound() {
        let bound = |key, on| Some(Bound { key, on });
        let range = |lower, upper| Listed::new(lower, upper, Target::default());
        let range_of = |on| range(bound(3, on), bound(7, OnBound::In));
        for on in [OnBound::In, OnBound::Out, OnBound::Unsure] {
            assert_eq!([4, 6].map(|key| range_of(on).answer(TEXT, key)), [Answer::Yes; 2]);
            assert_eq!([3, 7].map(|key| range_of(on).answer(TEXT, key)), [Answer::Perhaps; 2]);
            assert_eq!(range_of(on).answer(DATE, 7), Answer::Yes);
        }
        assert_eq!(range_of(OnBound::In).answer(DATE, 3), Answer::Yes);
        assert_eq!(range_of(OnBound::Out).answer(DATE, 3), Answer::No);
        assert_eq!(range_of(OnBound::Unsure).answer(DATE, 3), Answer::Perhaps);
        assert_eq!(range(bound(3, OnBound::In), bound(3, OnBound::Out)).answer(DATE, 3), Answer::No);
        assert_eq!(range(None, bound(3, OnBound::Out)).answer(TEXT, 0), Answer::Yes);
        assert_eq!(range(bound(3, OnBound::Out), None).answer(TEXT, u64::MAX), Answer::Yes);
    }

    fn found(set: &RangeSet, key: u64) -> Vec<(u32, Ends)> {
        let mut found = Vec::new();
        set.descend(key, |part| {
            set.stab(part, key, |listed| {
                let Target { range, rest, slot, is_decided } = listed.target;
                assert_eq!((rest, slot, is_decided), (range + 1, range + 2, range.is_multiple_of(3)));
                found.push((range, listed.ends));
            });
        });
        found.sort_unstable_by_key(|(range, _)| *range);
        found
    }

    fn check(set: &RangeSet, model: &[Listed], keys: impl IntoIterator<Item = u64>) {
        assert_eq!(set.len(), model.len());
        if let Some(tree) = &set.tree {
            tree.check();
        }
        for key in keys {
            assert_eq!(found(set, key), expected(model, key), "{key}");
        }
    }

    fn listed(number: u32, a: u64, b: u64, sides: u32) -> Listed {
        let bound = |key| Bound { key, on: [OnBound::In, OnBound::Out, OnBound::Unsure][number as usize % 3] };
        let lower = (sides != 1).then_some(bound(a.min(b)));
        let upper = (sides != 0).then_some(bound(a.max(b)));
        let is_decided = number.is_multiple_of(3);
        Listed::new(lower, upper, Target { range: number, rest: number + 1, slot: number + 2, is_decided })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn finds_what_looking_at_each_finds(
            steps in prop::collection::vec((0..4_u32, bound(), bound(), 0..3_u32), 1..400),
            keys in prop::collection::vec(bound(), 20),
        ) {
            let mut set = RangeSet::default();
            let mut model: Vec<Listed> = Vec::new();
            for (number, (what, a, b, sides)) in steps.into_iter().enumerate() {
                if what == 0 && !model.is_empty() {
                    let range = model.swap_remove(a as usize % model.len());
                    set.remove(&range);
                } else {
                    let range = listed(number as u32, a, b, sides);
                    set.insert(&range);
                    model.push(range);
                }
            }
            let bounds: Vec<u64> = model.iter().take(20).flat_map(|range| [range.lower, range.upper]).collect();
            check(&set, &model, keys.into_iter().chain(bounds));
        }

        /// Deep enough that nodes above nodes are split and joined: thousands come, and most of them go.
        #[test]
        fn deep_trees(seed in any::<u64>(), width in 0..3_usize, order in 0..3_u32) {
            const MANY: u32 = 6_000;
            let mut state = seed;
            let mut next = move || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state >> 33
            };
            let mut set = RangeSet::default();
            let mut model = Vec::new();
            for number in 0..MANY {
                // Rising, falling or anyhow; of one value, narrow or wide; few of them with one end.
                let lower = match order {
                    0 => u64::from(number),
                    1 => u64::from(MANY - number),
                    _ => next() % 10_000,
                };
                let length = [0, next() % 8, next() % 3_000][width];
                let sides = if next() % 50 == 0 { (next() % 2) as u32 } else { 2 };
                let range = listed(number, lower, lower + length, sides);
                set.insert(&range);
                model.push(range);
            }
            let keys: Vec<u64> = (0..40).map(|_| next() % 12_000).collect();
            check(&set, &model, keys.iter().copied());
            while model.len() > 10 {
                let at = match order {
                    0 => model.len() - 1,
                    1 => next() as usize % model.len().min(100),
                    _ => next() as usize % model.len(),
                };
                set.remove(&model.swap_remove(at));
                if model.len().is_multiple_of(1_500) {
                    check(&set, &model, keys.iter().copied());
                }
            }
            check(&set, &model, keys.iter().copied());
        }
    }
}
