//! The keys that came since the base was captured: one writer on the shard, who enters keys, and a reader on the ingest thread, who
//! looks them up at the same time.
//!
//! Invariants:
//! - An entry is never moved or changed within a table, so a reader may look on while the writer enters more. A table that
//!   is too small is left to those who have it, and a larger one takes its place.
//! - A reader sees what was entered up to the version that its picture was made at, and takes no notice of the rest. What it must see
//!   was written before the picture was published, which is what puts the two in order. Of what it needn't see it may see a half: a
//!   key whose version isn't there yet is "maybe", which is never wrong.
//! - The table is at most half full, so every search ends soon.
//!
//! So publishing costs nothing, however many keys there are.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

const SLOTS_MIN: usize = 32;
const _: () = assert!(SLOTS_MIN.is_power_of_two() && SLOTS_MIN >= 2);

/// What one picture of a shard's filter shows of the keys that came since its base was captured.
#[derive(Clone, Debug, Default)]
pub(super) struct Delta {
    table: Arc<Table>,
    /// Entries of later versions are not of this picture.
    upto: u64,
}

impl Delta {
    #[inline]
    pub(super) fn contains(&self, key: u64) -> bool {
        self.table.since(key).is_some_and(|since| since <= self.upto)
    }
}

#[derive(Debug)]
struct Table {
    slots: Box<[Slot]>,
    /// By which a key's upper bits become its place.
    shift: u32,
}

#[derive(Debug, Default)]
struct Slot {
    /// 0: free. No mixed key is 0.
    key: AtomicU64,
    /// First version that holds the key.
    since: AtomicU64,
}

impl Default for Table {
    fn default() -> Self {
        Self::with_slots(SLOTS_MIN)
    }
}

impl Table {
    fn with_slots(slots: usize) -> Self {
        debug_assert!(slots.is_power_of_two());
        let shift = u64::BITS - slots.trailing_zeros();
        Self { slots: (0..slots).map(|_| Slot::default()).collect(), shift }
    }

    /// The slot of this key, or the free one where it belongs.
    #[inline]
    fn find(&self, key: u64) -> Result<usize, usize> {
        let mut at = (key >> self.shift) as usize;
        loop {
            match self.slots[at].key.load(Relaxed) {
                0 => return Err(at),
                found if found == key => return Ok(at),
                _ => at = (at + 1) & (self.slots.len() - 1),
            }
        }
    }

    #[inline]
    fn since(&self, key: u64) -> Option<u64> {
        self.find(key).ok().map(|at| self.slots[at].since.load(Relaxed))
    }

    /// The key must not be there, and there must be room.
    fn enter(&self, key: u64, since: u64) -> usize {
        let (Ok(at) | Err(at)) = self.find(key);
        self.slots[at].since.store(since, Relaxed);
        self.slots[at].key.store(key, Relaxed);
        at
    }

    fn entries(&self) -> impl Iterator<Item = (usize, u64, u64)> {
        let entry = |(at, slot): (usize, &Slot)| (at, slot.key.load(Relaxed), slot.since.load(Relaxed));
        self.slots.iter().enumerate().map(entry).filter(|(_, key, _)| *key != 0)
    }
}

/// The shard's end.
#[derive(Debug, Default)]
pub(super) struct DeltaWriter {
    table: Arc<Table>,
    len: usize,
    /// A bit for each slot: its key was added, or added again, since the keys for the next base began to be captured.
    young: Vec<u64>,
}

impl DeltaWriter {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// What is there now, as a picture of this version.
    pub(super) fn picture(&self, version: u64) -> Delta {
        Delta { table: Arc::clone(&self.table), upto: version }
    }

    /// First version that holds the key, if it is there.
    pub(super) fn since(&self, key: u64) -> Option<u64> {
        self.table.since(key)
    }

    /// Puts in a key that isn't there.
    pub(super) fn enter(&mut self, key: u64, since: u64) {
        if (self.len + 1) * 2 > self.table.slots.len() {
            self.replace(self.table.slots.len() * 2, |_| true);
        }
        let at = self.table.enter(key, since);
        self.len += 1;
        self.set_young(at);
    }

    /// It was added again.
    pub(super) fn renew(&mut self, key: u64) {
        if let Ok(at) = self.table.find(key) {
            self.set_young(at);
        }
    }

    #[cfg(test)]
    pub(super) fn is_renewed(&self, key: u64) -> bool {
        self.table.find(key).is_ok_and(|at| self.is_young(at))
    }

    /// The keys for the next base begin to be captured: what is here now will be in it, if it is held all the while.
    pub(super) fn mark(&mut self) {
        self.young.clear();
    }

    /// The base whose keys began to be captured at the last mark takes over: only what came since then stays.
    pub(super) fn keep_young(&mut self) {
        let young = self.young.iter().map(|bits| bits.count_ones() as usize).sum::<usize>();
        self.replace((young * 4).next_power_of_two().max(SLOTS_MIN), |is_young| is_young);
    }

    /// Moves those entries to a table of its own.
    fn replace(&mut self, slots: usize, keep: impl Fn(bool) -> bool) {
        let table = Table::with_slots(slots);
        let old = std::mem::replace(self, Self { table: Arc::new(table), len: 0, young: Vec::new() });
        for (at, key, since) in old.table.entries() {
            let is_young = old.is_young(at);
            if keep(is_young) {
                let at = self.table.enter(key, since);
                self.len += 1;
                if is_young {
                    self.set_young(at);
                }
            }
        }
    }

    fn is_young(&self, at: usize) -> bool {
        self.young.get(at / 64).is_some_and(|bits| bits >> (at % 64) & 1 == 1)
    }

    fn set_young(&mut self, at: usize) {
        if self.young.len() <= at / 64 {
            self.young.resize(self.table.slots.len().div_ceil(64), 0);
        }
        self.young[at / 64] |= 1 << (at % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upper bits decide on the place: these spread.
    fn key(i: u64) -> u64 {
        (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn a_picture_shows_what_there_was_at_its_version() {
        let mut delta = DeltaWriter::default();
        for version in 1..=500 {
            delta.enter(key(version), version);
        }
        let picture = delta.picture(500);
        for version in 501..=5_000 {
            delta.enter(key(version), version);
        }
        let early = delta.picture(700);
        assert_eq!(delta.len(), 5_000);
        for version in 1..=5_000 {
            assert_eq!(picture.contains(key(version)), version <= 500, "{version}");
            assert_eq!(early.contains(key(version)), version <= 700, "{version}");
            assert_eq!(delta.since(key(version)), Some(version));
        }
        assert!(!picture.contains(key(0)));
    }

    #[test]
    fn what_was_added_since_the_mark_stays() {
        let mut delta = DeltaWriter::default();
        (0..1_000).for_each(|i| delta.enter(key(i), i));
        delta.mark();
        (1_000..3_000).for_each(|i| delta.enter(key(i), i));
        delta.renew(key(7));
        let before = delta.picture(3_000);
        delta.keep_young();
        assert_eq!(delta.len(), 2_001);
        assert_eq!(delta.since(key(7)), Some(7), "whoever had it, has had it all the time");
        assert_eq!(delta.since(key(8)), None);
        assert_eq!(delta.since(key(2_999)), Some(2_999));
        assert!(before.contains(key(8)), "a picture stays what it is");
    }

    /// Whatever the reader's thread sees while the writer's goes on: what its picture holds is there.
    #[test]
    fn a_reader_beside_the_writer_sees_all_of_its_picture() {
        let mut delta = DeltaWriter::default();
        let (send, pictures) = flume::unbounded::<(u64, Delta)>();
        let reader = std::thread::spawn(move || {
            for (version, picture) in pictures.iter() {
                for i in (1..=version).rev().take(64) {
                    assert!(picture.contains(key(i)), "{i} of {version}");
                }
                assert!(!picture.contains(key(0)));
            }
        });
        for version in 1..=20_000 {
            delta.enter(key(version), version);
            send.send((version, delta.picture(version))).unwrap();
        }
        drop(send);
        reader.join().unwrap();
    }
}
