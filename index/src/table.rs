//! A hash table from 32 bits of a hash to numbers of things, of which the caller verifies which one it meant: extendible hashing
//! (Fagin, Nievergelt, Pippenger, Strong, "Extendible Hashing", 1979) over segments of buckets that are one cache line each.
//!
//! It is our own for two reasons: a look-up can be announced, so that its cache line is on its way while others are worked on; and no
//! step is large, because a segment that is full is split by itself.
//!
//! Invariants:
//! - The directory's index of a hash is its upper bits, a segment's bucket is its lower ones. A segment of depth `d` is named by all
//!   directory places that agree in their upper `d` bits.
//! - An entry stands in its bucket, or, if that was full, in one after it (around the end of the segment); every bucket that it has
//!   passed counts it in `passed`.

use crate::machine::{equal_to, prefetch};

const BUCKETS: usize = 64;
const PER_BUCKET: usize = 7;
/// Where a segment is split: buckets then begin to pass entries on.
const ENTRIES_MAX: u32 = (BUCKETS * PER_BUCKET * 8 / 10) as u32;
/// Two halves are joined again below this.
const JOINED_MAX: u32 = ENTRIES_MAX / 2;
/// Above 25 billion entries hashes no longer tell segments apart.
const DEPTH_MAX: u32 = 26;
const NOTHING: u32 = u32::MAX;
/// Entries that have left a segment since its bits were made, after which they are made anew.
const GONE_MAX: u32 = 64;
const SIEVE_WORDS: usize = 32;

#[derive(Debug)]
pub(crate) struct Table {
    depth: u32,
    directory: Vec<u32>,
    segments: Vec<Option<Box<Segment>>>,
    /// What may be in each segment, so much smaller that it stays in the cache where the segments don't.
    sieves: Vec<Sieve>,
    vacant: Vec<u32>,
    /// Segments of each depth, so that the directory is halved as soon as it can be.
    of_depth: [u32; DEPTH_MAX as usize + 1],
    /// Entries that had no room in their segment, which can't be split further. Nobody who doesn't know the seed can fill it.
    stash: Vec<(u32, u32)>,
    len: usize,
}

/// A bit for each remainder of the tags of a segment.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Sieve([u64; SIEVE_WORDS]);

impl Sieve {
    const EMPTY: Sieve = Sieve([0; SIEVE_WORDS]);

    #[inline(always)]
    fn word(&self, tag: u32) -> &u64 {
        &self.0[(tag >> 6) as usize % SIEVE_WORDS]
    }

    #[inline(always)]
    fn may_have(&self, tag: u32) -> bool {
        self.word(tag) >> (tag % 64) & 1 == 1
    }

    fn add(&mut self, tag: u32) {
        self.0[(tag >> 6) as usize % SIEVE_WORDS] |= 1 << (tag % 64);
    }
}

#[derive(Debug, Clone)]
struct Segment {
    depth: u32,
    count: u32,
    /// Entries that have left since its sieve was made.
    gone: u32,
    buckets: [Bucket; BUCKETS],
}

/// The last tag counts the entries that passed, and the last number is unused.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Bucket {
    tags: [u32; PER_BUCKET + 1],
    numbers: [u32; PER_BUCKET + 1],
}

impl Bucket {
    const EMPTY: Bucket = Bucket { tags: [0; PER_BUCKET + 1], numbers: [NOTHING; PER_BUCKET + 1] };

    fn passed(&mut self) -> &mut u32 {
        &mut self.tags[PER_BUCKET]
    }

    /// Bits of the places whose tag is this one.
    #[inline]
    fn places_of(&self, tag: u32) -> u32 {
        equal_to(&self.tags, tag) & ((1 << PER_BUCKET) - 1)
    }
}

impl Segment {
    fn empty(depth: u32) -> Box<Self> {
        Box::new(Segment { depth, count: 0, gone: 0, buckets: [Bucket::EMPTY; BUCKETS] })
    }

    /// False where there is no room.
    fn insert(&mut self, tag: u32, number: u32) -> bool {
        if self.count as usize >= BUCKETS * PER_BUCKET {
            return false;
        }
        let mut at = tag as usize % BUCKETS;
        loop {
            let bucket = &mut self.buckets[at];
            if let Some(place) = bucket.numbers[..PER_BUCKET].iter().position(|number| *number == NOTHING) {
                bucket.tags[place] = tag;
                bucket.numbers[place] = number;
                self.count += 1;
                return true;
            }
            *bucket.passed() += 1;
            at = (at + 1) % BUCKETS;
        }
    }

    fn remove(&mut self, tag: u32, number: u32) -> bool {
        let home = tag as usize % BUCKETS;
        for step in 0..BUCKETS {
            let bucket = &mut self.buckets[(home + step) % BUCKETS];
            if let Some(place) = bucket.numbers[..PER_BUCKET].iter().position(|other| *other == number) {
                bucket.numbers[place] = NOTHING;
                bucket.tags[place] = 0;
                for passed in 0..step {
                    *self.buckets[(home + passed) % BUCKETS].passed() -= 1;
                }
                self.count -= 1;
                self.gone += 1;
                return true;
            }
            if *bucket.passed() == 0 {
                break;
            }
        }
        false
    }

    fn sieve(&self) -> Sieve {
        let mut sieve = Sieve::EMPTY;
        self.entries().for_each(|(tag, _)| sieve.add(tag));
        sieve
    }

    fn entries(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let of = |bucket: &Bucket| std::iter::zip(bucket.tags, bucket.numbers).take(PER_BUCKET);
        self.buckets.iter().flat_map(of).filter(|(_, number)| *number != NOTHING)
    }
}

impl Default for Table {
    fn default() -> Self {
        let mut of_depth = [0; DEPTH_MAX as usize + 1];
        of_depth[0] = 1;
        Self {
            depth: 0,
            directory: vec![0],
            segments: vec![Some(Segment::empty(0))],
            sieves: vec![Sieve::EMPTY],
            vacant: Vec::new(),
            of_depth,
            stash: Vec::new(),
            len: 0,
        }
    }
}

impl Table {
    /// Announces a look-up.
    #[inline]
    pub(crate) fn prefetch(&self, tag: u32) {
        if let Some(segment) = self.segment(tag) {
            prefetch(&segment.buckets[tag as usize % BUCKETS]);
        }
    }

    /// Announces that an entry will be put in or taken out.
    #[inline]
    pub(crate) fn prefetch_change(&self, tag: u32) {
        let at = self.directory[self.place(tag)] as usize;
        if let Some(segment) = &self.segments[at] {
            prefetch(&segment.buckets[tag as usize % BUCKETS]);
            prefetch(&segment.count);
        }
        prefetch(self.sieves[at].word(tag));
    }

    /// False only where there is nothing under this tag.
    #[inline]
    pub(crate) fn may_have(&self, tag: u32) -> bool {
        self.sieves[self.directory[self.place(tag)] as usize].may_have(tag)
    }

    /// Calls `each` with the numbers under this tag, until it says true. The number that it was.
    #[inline]
    pub(crate) fn find(&self, tag: u32, mut each: impl FnMut(u32) -> bool) -> Option<u32> {
        let segment = self.segment(tag)?;
        let mut at = tag as usize % BUCKETS;
        for _ in 0..BUCKETS {
            let bucket = &segment.buckets[at];
            let mut places = bucket.places_of(tag);
            while places != 0 {
                let number = bucket.numbers[places.trailing_zeros() as usize & PER_BUCKET];
                if number != NOTHING && each(number) {
                    return Some(number);
                }
                places &= places - 1;
            }
            if bucket.tags[PER_BUCKET] == 0 {
                break;
            }
            at = (at + 1) % BUCKETS;
        }
        if self.stash.is_empty() {
            return None;
        }
        self.stash.iter().find(|(other, number)| *other == tag && each(*number)).map(|(_, number)| *number)
    }

    /// Calls `each` with all numbers under this tag.
    #[inline]
    pub(crate) fn candidates(&self, tag: u32, each: &mut impl FnMut(u32)) {
        let Some(segment) = self.segment(tag) else { return };
        let bucket = &segment.buckets[tag as usize % BUCKETS];
        let mut places = bucket.places_of(tag);
        // An empty place has a tag of zero.
        if bucket.tags[PER_BUCKET] == 0 && tag != 0 && self.stash.is_empty() {
            while places != 0 {
                each(bucket.numbers[places.trailing_zeros() as usize & PER_BUCKET]);
                places &= places - 1;
            }
            return;
        }
        self.candidates_further(tag, each);
    }

    #[cold]
    #[inline(never)]
    fn candidates_further(&self, tag: u32, each: &mut impl FnMut(u32)) {
        self.find(tag, |number| {
            each(number);
            false
        });
    }

    pub(crate) fn insert(&mut self, tag: u32, number: u32) {
        debug_assert!(number != NOTHING, "the number that stands for nothing");
        self.len += 1;
        loop {
            let at = self.directory[self.place(tag)];
            let Some(segment) = &mut self.segments[at as usize] else { return };
            // Hashes that don't tell entries apart must not double the directory in vain.
            let depth_max = self.len.ilog2().saturating_sub(5).clamp(1, DEPTH_MAX);
            if segment.count < ENTRIES_MAX || segment.depth >= depth_max {
                if !segment.insert(tag, number) {
                    self.stash.push((tag, number));
                }
                self.sieves[at as usize].add(tag);
                return;
            }
            self.split(at, tag);
        }
    }

    /// Expects an entry that is there.
    pub(crate) fn remove(&mut self, tag: u32, number: u32) {
        let at = self.directory[self.place(tag)];
        let removed = self.segments[at as usize].as_mut().is_some_and(|segment| segment.remove(tag, number));
        if !removed {
            let before = self.stash.len();
            self.stash.retain(|entry| *entry != (tag, number));
            debug_assert!(self.stash.len() < before, "an entry is removed that isn't there");
        }
        self.len -= 1;
        if self.stash.is_empty()
            && let Some(segment) = &mut self.segments[at as usize]
            && segment.gone >= GONE_MAX
        {
            segment.gone = 0;
            self.sieves[at as usize] = segment.sieve();
        }
        self.join(tag);
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn place(&self, tag: u32) -> usize {
        // A shift by 32 is no shift at all to the processor.
        (u64::from(tag) >> (32 - self.depth)) as usize
    }

    #[inline]
    fn segment(&self, tag: u32) -> Option<&Segment> {
        self.segments[self.directory[self.place(tag)] as usize].as_deref()
    }

    /// Splits a segment, given by its number and a tag that belongs to it.
    fn split(&mut self, at: u32, tag: u32) {
        let Some(old) = self.segments[at as usize].take() else { return };
        if old.depth == self.depth {
            self.directory = self.directory.iter().flat_map(|at| [*at, *at]).collect();
            self.depth += 1;
        }
        let depth = old.depth + 1;
        let mut halves = [Segment::empty(depth), Segment::empty(depth)];
        for (tag, number) in old.entries() {
            let half = tag >> (32 - depth) & 1;
            // A half has as many places as the whole.
            halves[half as usize].insert(tag, number);
        }
        let [lower, upper] = halves;
        // What is in the stash is in neither half, and in the sieve of both.
        let whole = self.sieves[at as usize];
        let sieve = |half: &Segment| if self.stash.is_empty() { half.sieve() } else { whole };
        let sieves = (sieve(&lower), sieve(&upper));
        self.segments[at as usize] = Some(lower);
        self.sieves[at as usize] = sieves.0;
        let new = self.add(upper, sieves.1);
        self.of_depth[old.depth as usize] -= 1;
        self.of_depth[depth as usize] += 2;
        // The places of the old segment; the upper half of them are the new one's.
        let run = 1_usize << (self.depth - old.depth);
        let start = self.place(tag) & !(run - 1);
        self.directory[start + run / 2..start + run].fill(new);
    }

    fn add(&mut self, segment: Box<Segment>, sieve: Sieve) -> u32 {
        match self.vacant.pop() {
            Some(at) => {
                self.segments[at as usize] = Some(segment);
                self.sieves[at as usize] = sieve;
                at
            }
            None => {
                self.segments.push(Some(segment));
                self.sieves.push(sieve);
                self.segments.len() as u32 - 1
            }
        }
    }

    /// Joins the segment of this tag with its other half where both have become small.
    fn join(&mut self, tag: u32) {
        loop {
            let place = self.place(tag);
            let at = self.directory[place];
            let Some(segment) = &self.segments[at as usize] else { return };
            let depth = segment.depth;
            if depth == 0 || segment.count > JOINED_MAX / 2 || !self.stash.is_empty() {
                return;
            }
            let run = 1_usize << (self.depth - depth);
            let start = place & !(run - 1);
            let other_start = start ^ run;
            let other_at = self.directory[other_start];
            let Some(other) = &self.segments[other_at as usize] else { return };
            if other.depth != depth || segment.count + other.count > JOINED_MAX {
                return;
            }
            let mut joined = Segment::empty(depth - 1);
            for (tag, number) in segment.entries().chain(other.entries()) {
                joined.insert(tag, number);
            }
            self.sieves[at as usize] = joined.sieve();
            self.segments[at as usize] = Some(joined);
            self.segments[other_at as usize] = None;
            self.vacant.push(other_at);
            self.directory[other_start..other_start + run].fill(at);
            self.of_depth[depth as usize] -= 2;
            self.of_depth[depth as usize - 1] += 1;
            while self.depth > 0 && self.of_depth[self.depth as usize] == 0 {
                self.directory = self.directory.iter().step_by(2).copied().collect();
                self.depth -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A weak hash on purpose in its middle bits, so that segments fill up unevenly.
    fn tag(number: u32) -> u32 {
        number.wrapping_mul(0x9E37_79B9) ^ (number >> 3)
    }

    fn check(table: &Table) {
        let mut seen = BTreeSet::new();
        assert!(table.stash.iter().all(|(tag, _)| table.may_have(*tag)), "the stash is sieved out");
        for (place, at) in table.directory.iter().enumerate() {
            let segment = table.segments[*at as usize].as_ref().expect("the directory names segments");
            let entries: Vec<_> = segment.entries().collect();
            assert_eq!(entries.len(), segment.count as usize);
            for (tag, number) in entries {
                assert_eq!(table.directory[table.place(tag)], *at, "{number} of place {place}");
                assert!(table.may_have(tag), "{number} is there and its sieve has it not");
                seen.insert(number);
            }
        }
        assert_eq!(seen.len() + table.stash.len(), table.len());
        assert_eq!(table.of_depth.iter().sum::<u32>() as usize, table.segments.iter().flatten().count());
    }

    #[test]
    fn grows_and_shrinks_without_losing_any() {
        const MANY: u32 = 100_000;
        let mut table = Table::default();
        for number in 0..MANY {
            table.insert(tag(number), number);
        }
        check(&table);
        for number in 0..MANY {
            assert_eq!(table.find(tag(number), |other| other == number), Some(number));
            assert_eq!(table.find(tag(number), |other| other == number + MANY), None);
        }
        let full = table.segments.iter().flatten().count();
        for number in 0..MANY {
            table.remove(tag(number), number);
        }
        check(&table);
        assert_eq!(table.len(), 0);
        let left = table.segments.iter().flatten().count();
        assert!(full > 200 && left == 1 && table.directory.len() == 1, "{full} segments, {left} left");
    }

    #[test]
    fn one_hash_by_the_thousand() {
        let mut table = Table::default();
        for number in 0..2_000 {
            table.insert(0xABCD_0123, number);
        }
        for number in 0..2_000 {
            assert_eq!(table.find(0xABCD_0123, |other| other == number), Some(number));
        }
        for number in 0..2_000 {
            table.remove(0xABCD_0123, number);
        }
        check(&table);
        assert_eq!(table.len(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn is_a_set(steps in prop::collection::vec((0..3_u32, 0..2_000_u32), 1..6_000)) {
            let mut table = Table::default();
            let mut model = BTreeSet::new();
            for (what, number) in steps {
                if what > 0 && model.insert(number) {
                    table.insert(tag(number), number);
                } else if what == 0 && model.remove(&number) {
                    table.remove(tag(number), number);
                }
            }
            check(&table);
            for number in 0..2_000 {
                prop_assert_eq!(table.find(tag(number), |other| other == number).is_some(), model.contains(&number));
            }
        }
    }
}
