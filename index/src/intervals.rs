//! Very many ranges of one field and one order, in a tree that finds those which a value is in.
//!
//! The ranges stand in the order of their lower bounds in a B+-tree, and each node knows the greatest upper bound up to each of its places:
//! an augmented search tree (Cormen, Leiserson, Rivest, Stein, "Introduction to Algorithms", chapter on augmenting data structures) with
//! many places a node. Apart from one node of each level, a node is looked at only if it holds a range that the value is in.
//!
//! Invariants:
//! - Within a node keys ascend. The key of a child is at or below all keys in it, and above all keys of the children before it; its upper
//!   bound is the greatest one in it.
//! - No node but the root is empty.

use crate::arena::Arena;
use crate::machine::prefetch;
use crate::range::{Ends, Listed, Target};

const PLACES: usize = 64;
/// What halving the places takes to come to any of them, and behind the last one.
const STEPS: [usize; 7] = [32, 16, 8, 4, 2, 1, 1];
/// Two neighbours become one node when one of them has fewer than this, and both together no more than [`MERGED_MAX`].
const FEW: usize = PLACES / 4;
const MERGED_MAX: usize = PLACES * 3 / 4;

/// What ranges are ordered by: those of one lower bound by their upper one, the widest first, so that those which a value is in stand
/// together; and those of the same bounds by their numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    lower: u64,
    not_upper: u64,
    range: u32,
}

impl Key {
    fn of(listed: &Listed) -> Self {
        Self { lower: listed.lower, not_upper: !listed.upper, range: listed.target.range }
    }
}

/// What a place of a node holds beside its bounds.
trait Held: Copy + Default {
    fn key(&self, lower: u64, upper: u64) -> Key;
}

/// A range without its bounds.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    target: Target,
    ends: Ends,
}

impl Held for Kept {
    fn key(&self, lower: u64, upper: u64) -> Key {
        Key { lower, not_upper: !upper, range: self.target.range }
    }
}

/// What the key of a child has beside its lower bound, and its number.
#[derive(Clone, Copy, Debug, Default)]
struct Child {
    not_upper: u64,
    range: u32,
    node: u32,
}

impl Held for Child {
    fn key(&self, lower: u64, _: u64) -> Key {
        Key { lower, not_upper: self.not_upper, range: self.range }
    }
}

#[derive(Debug)]
struct Node<T> {
    len: usize,
    /// Behind the last one the greatest number there is.
    lowers: [u64; PLACES],
    uppers: [u64; PLACES],
    /// The greatest upper bound up to each place.
    reach: [u64; PLACES],
    held: [T; PLACES],
}

impl<T: Held> Node<T> {
    fn empty() -> Box<Self> {
        Box::new(Self {
            len: 0,
            lowers: [u64::MAX; PLACES],
            uppers: [0; PLACES],
            reach: [0; PLACES],
            held: [T::default(); PLACES],
        })
    }

    fn key(&self, at: usize) -> Key {
        self.held[at].key(self.lowers[at], self.uppers[at])
    }

    /// The greatest upper bound of all.
    fn most(&self) -> u64 {
        self.len.checked_sub(1).map_or(0, |last| self.reach[last])
    }

    /// Places whose key is below this one, or equal to it.
    fn up_to(&self, key: &Key) -> usize {
        let (mut start, mut end) = (0, self.len);
        while start < end {
            let middle = usize::midpoint(start, end);
            if self.key(middle) <= *key { start = middle + 1 } else { end = middle }
        }
        start
    }

    /// Calls `each` with the places whose bounds the value is within.
    #[inline]
    fn stab(&self, value: u64, mut each: impl FnMut(usize)) {
        let mut at = 0;
        for step in STEPS {
            at += if self.lowers[(at + step - 1) % PLACES] <= value { step } else { 0 };
        }
        at = at.min(self.len);
        while at > 0 && self.reach[(at - 1) % PLACES] >= value {
            at -= 1;
            if self.uppers[at % PLACES] >= value {
                each(at);
            }
        }
    }

    /// Expects that it isn't full.
    fn insert(&mut self, at: usize, lower: u64, upper: u64, held: T) {
        self.lowers.copy_within(at..self.len, at + 1);
        self.uppers.copy_within(at..self.len, at + 1);
        self.held.copy_within(at..self.len, at + 1);
        self.len += 1;
        (self.lowers[at], self.uppers[at], self.held[at]) = (lower, upper, held);
        self.mend(at);
    }

    fn remove(&mut self, at: usize) {
        self.lowers.copy_within(at + 1..self.len, at);
        self.uppers.copy_within(at + 1..self.len, at);
        self.held.copy_within(at + 1..self.len, at);
        self.len -= 1;
        self.lowers[self.len] = u64::MAX;
        self.mend(at);
    }

    /// Sets right how far the places reach, from this one on.
    fn mend(&mut self, from: usize) {
        let mut most = from.checked_sub(1).map_or(0, |before| self.reach[before]);
        for at in from..self.len {
            most = most.max(self.uppers[at]);
            self.reach[at] = most;
        }
    }

    /// The upper half, as a node of its own.
    fn split(&mut self) -> Box<Self> {
        let mut upper = Self::empty();
        let middle = self.len / 2;
        upper.append(self, middle);
        self.lowers[middle..].fill(u64::MAX);
        self.len = middle;
        upper
    }

    /// Appends what stands in another from a place on.
    fn append(&mut self, other: &Self, from: usize) {
        let (start, end) = (self.len, self.len + other.len - from);
        self.lowers[start..end].copy_from_slice(&other.lowers[from..other.len]);
        self.uppers[start..end].copy_from_slice(&other.uppers[from..other.len]);
        self.held[start..end].copy_from_slice(&other.held[from..other.len]);
        self.len = end;
        self.mend(start);
    }
}

impl Node<Kept> {
    fn listed(&self, at: usize) -> Listed {
        let Kept { target, ends } = self.held[at];
        Listed { lower: self.lowers[at], upper: self.uppers[at], ends, target }
    }
}

type Nodes<T> = Arena<Option<Box<Node<T>>>>;

fn node<T>(nodes: &Nodes<T>, number: u32) -> &Node<T> {
    nodes.get(number).as_ref().expect("a node is named as long as it is there")
}

fn node_mut<T>(nodes: &mut Nodes<T>, number: u32) -> &mut Node<T> {
    nodes.get_mut(number).as_mut().expect("a node is named as long as it is there")
}

#[derive(Debug)]
pub(crate) struct Intervals {
    pub(crate) len: usize,
    /// Levels above the leaves.
    height: u32,
    root: u32,
    leaves: Nodes<Kept>,
    inner: Nodes<Child>,
}

impl Default for Intervals {
    fn default() -> Self {
        let mut leaves = Nodes::default();
        let root = leaves.insert(Some(Node::empty()));
        Self { len: 0, height: 0, root, leaves, inner: Nodes::default() }
    }
}

impl Intervals {
    /// Calls `each` with the leaves that may hold ranges that the value is in, which are on their way from memory then.
    #[inline]
    pub(crate) fn descend(&self, value: u64, mut each: impl FnMut(u32)) {
        self.descend_from(self.root, self.height, value, &mut each);
    }

    fn descend_from(&self, number: u32, height: u32, value: u64, each: &mut impl FnMut(u32)) {
        if height == 0 {
            return each(number);
        }
        let inner = node(&self.inner, number);
        inner.stab(value, |at| {
            let child = inner.held[at % PLACES].node;
            if height > 1 {
                return self.descend_from(child, height - 1, value, each);
            }
            let leaf = node(&self.leaves, child);
            prefetch(&leaf.lowers[PLACES / 2]);
            prefetch(&leaf.reach[PLACES / 2]);
            each(child);
        });
    }

    /// Calls `each` with the ranges of a leaf that the value is within, or on the bounds of.
    #[inline]
    pub(crate) fn stab(&self, leaf: u32, value: u64, mut each: impl FnMut(Listed)) {
        let leaf = node(&self.leaves, leaf);
        leaf.stab(value, |at| each(leaf.listed(at % PLACES)));
    }

    pub(crate) fn insert(&mut self, listed: &Listed) {
        self.len += 1;
        let Some(beside) = self.insert_below(self.root, self.height, listed) else { return };
        let mut root = Node::empty();
        for child in [self.root, beside] {
            let (key, most) = self.summary(child, self.height);
            let Key { lower, not_upper, range } = key;
            root.insert(root.len, lower, most, Child { not_upper, range, node: child });
        }
        self.root = self.inner.insert(Some(root));
        self.height += 1;
    }

    /// The lowest key, and the greatest upper bound.
    fn summary(&self, number: u32, height: u32) -> (Key, u64) {
        match height {
            0 => (node(&self.leaves, number).key(0), node(&self.leaves, number).most()),
            _ => (node(&self.inner, number).key(0), node(&self.inner, number).most()),
        }
    }

    /// Gives the node that stands beside this one from now on, where it had to be split.
    fn insert_below(&mut self, number: u32, height: u32, listed: &Listed) -> Option<u32> {
        let key = Key::of(listed);
        if height == 0 {
            let Listed { lower, upper, ends, target } = *listed;
            let kept = Kept { target, ends };
            return insert_into(&mut self.leaves, number, key, lower, upper, kept);
        }
        let at = node(&self.inner, number).up_to(&key).saturating_sub(1);
        let child = node(&self.inner, number).held[at].node;
        let beside = self.insert_below(child, height - 1, listed);
        let (_, most) = self.summary(child, height - 1);
        let inner = node_mut(&mut self.inner, number);
        if key < inner.key(at) {
            inner.lowers[at] = key.lower;
            inner.held[at] = Child { not_upper: key.not_upper, range: key.range, node: child };
        }
        inner.uppers[at] = most;
        inner.mend(at);
        let beside = beside?;
        let (key, most) = self.summary(beside, height - 1);
        let child = Child { not_upper: key.not_upper, range: key.range, node: beside };
        insert_into(&mut self.inner, number, key, key.lower, most, child)
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, listed: &Listed) -> bool {
        if !self.remove_below(self.root, self.height, &Key::of(listed)) {
            return false;
        }
        self.len -= 1;
        while self.height > 0 && node(&self.inner, self.root).len == 1 {
            let child = node(&self.inner, self.root).held[0].node;
            self.inner.remove(self.root);
            self.root = child;
            self.height -= 1;
        }
        true
    }

    fn remove_below(&mut self, number: u32, height: u32, key: &Key) -> bool {
        if height == 0 {
            let leaf = node_mut(&mut self.leaves, number);
            let at = leaf.up_to(key).checked_sub(1).filter(|at| leaf.key(*at) == *key);
            at.into_iter().for_each(|at| leaf.remove(at));
            return at.is_some();
        }
        let inner = node(&self.inner, number);
        let Some(at) = inner.up_to(key).checked_sub(1) else { return false };
        let child = inner.held[at].node;
        if !self.remove_below(child, height - 1, key) {
            return false;
        }
        match height {
            1 => shrunk(&mut self.inner, number, at, &mut self.leaves),
            _ => {
                // One list holds both levels, so the upper one is out of it meanwhile.
                let Some(mut parent) = self.inner.get_mut(number).take() else { return true };
                parent.child_shrunk(at, &mut self.inner);
                *self.inner.get_mut(number) = Some(parent);
            }
        }
        true
    }

    /// All ranges.
    pub(crate) fn all(&self) -> Vec<Listed> {
        let mut all = Vec::with_capacity(self.len);
        self.each_below(self.root, self.height, &mut |listed| all.push(listed));
        all
    }

    fn each_below(&self, number: u32, height: u32, each: &mut impl FnMut(Listed)) {
        if height == 0 {
            let leaf = node(&self.leaves, number);
            return (0..leaf.len).for_each(|at| each(leaf.listed(at)));
        }
        let inner = node(&self.inner, number);
        for child in &inner.held[..inner.len] {
            self.each_below(child.node, height - 1, each);
        }
    }

    /// Panics where an invariant is broken. For tests.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let (mut nodes, mut ranges) = ((0, 0), 0);
        self.check_below(self.root, self.height, true, &mut nodes, &mut ranges);
        assert_eq!((nodes, ranges), ((self.leaves.len(), self.inner.len()), self.len), "nodes or ranges are left over");
    }

    #[cfg(test)]
    fn check_below(&self, number: u32, height: u32, is_root: bool, nodes: &mut (usize, usize), ranges: &mut usize) {
        fn each<T: Held>(node: &Node<T>, is_root: bool) {
            assert!(is_root || node.len > 0, "an empty node");
            assert!(node.lowers[node.len..].iter().all(|lower| *lower == u64::MAX), "a bound behind the last");
            assert!((1..node.len).all(|at| node.key(at - 1) < node.key(at)), "keys out of order");
            let reach = |at: usize| node.uppers[..=at].iter().max().copied();
            assert!((0..node.len).all(|at| Some(node.reach[at]) == reach(at)), "a wrong reach");
        }
        if height == 0 {
            nodes.0 += 1;
            *ranges += node(&self.leaves, number).len;
            return each(node(&self.leaves, number), is_root);
        }
        nodes.1 += 1;
        let inner = node(&self.inner, number);
        each(inner, is_root);
        for at in 0..inner.len {
            let child = inner.held[at].node;
            let (first, most) = self.summary(child, height - 1);
            assert!(inner.key(at) <= first && inner.uppers[at] == most, "a child isn't what its parent says");
            self.check_below(child, height - 1, false, nodes, ranges);
        }
    }
}

/// Puts something into a node, which may have to be split: gives the node beside it then.
fn insert_into<T: Held>(nodes: &mut Nodes<T>, number: u32, key: Key, lower: u64, upper: u64, held: T) -> Option<u32> {
    let full = node_mut(nodes, number);
    if full.len < PLACES {
        full.insert(full.up_to(&key), lower, upper, held);
        return None;
    }
    let mut beside = full.split();
    let half = if key < beside.key(0) { full } else { &mut *beside };
    half.insert(half.up_to(&key), lower, upper, held);
    Some(nodes.insert(Some(beside)))
}

fn shrunk<T: Held>(inner: &mut Nodes<Child>, number: u32, at: usize, children: &mut Nodes<T>) {
    node_mut(inner, number).child_shrunk(at, children);
}

impl Node<Child> {
    /// Sets right what is known of a child that has lost something, and joins it with its neighbour where both have become small.
    fn child_shrunk<T: Held>(&mut self, at: usize, children: &mut Nodes<T>) {
        let number = self.held[at].node;
        let child = node(children, number);
        if child.len == 0 {
            children.remove(number);
            return self.remove(at);
        }
        self.uppers[at] = child.most();
        self.mend(at);
        if child.len >= FEW || self.len < 2 {
            return;
        }
        let left = if at + 1 < self.len { at } else { at - 1 };
        let (one, other) = (self.held[left].node, self.held[left + 1].node);
        if node(children, one).len + node(children, other).len > MERGED_MAX {
            return;
        }
        if let Some(other) = children.remove(other) {
            let joined = node_mut(children, one);
            joined.append(&other, 0);
            self.uppers[left] = joined.most();
        }
        self.remove(left + 1);
        self.mend(left);
    }
}
