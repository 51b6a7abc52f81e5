//! The keys that are wanted now, counted.
//!
//! Invariants:
//! - A key has as many holders as [`KeyCounts::add`] was called for it, less [`KeyCounts::remove`].
//! - No call does more than the work of one of [`TABLES`] small tables, so that ten million keys never stop a shard: growing is
//!   done table by table, and so is giving the keys out ([`KeyCounts::copy_held`]).
//! - A key takes 8 bytes, and the tables are at least 7/10 full once they are large. The key's upper bits are the number of its
//!   table, which leaves room for its count.
//!
//! A key that nobody holds any more stays for a while with a count of nothing: what was published may still say "maybe" for it, and
//! who asks is told so.

use hashbrown::HashMap;

/// A power of two. Each holds its share of the keys, because keys are mixed.
pub(super) const TABLES: usize = 1 << TABLE_BITS;
const TABLE_BITS: u32 = 10;
/// The bits of a slot that say how many hold its key. They are as many as the table's number saves.
const TAG_MASK: u64 = (1 << TABLE_BITS) - 1;
/// Nobody holds the key any more. No slot in use is 0.
const GONE: u64 = 1;
/// The count stands in a map of its own.
const MANY: u64 = TAG_MASK;

const SLOTS_MIN: usize = 4;
/// A table grows by one part in this many when it is 7/8 full.
const GROWTH: usize = 4;

/// How a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Held,
    /// Nobody holds it any more, and what was published may not show it yet.
    Gone,
    Unknown,
}

/// Takes mixed keys only: their upper bits must be evenly spread whatever the keys are.
#[derive(Clone, Debug)]
pub(super) struct KeyCounts {
    tables: Box<[Table]>,
    /// Counts that don't fit into a slot.
    many: HashMap<u64, u32>,
    held: usize,
}

#[derive(Clone, Debug, Default)]
struct Table {
    /// `key << TABLE_BITS | tag`; 0 is free. The tag is the count plus 1, or [`MANY`].
    slots: Box<[u64]>,
    used: usize,
}

impl KeyCounts {
    pub(super) fn new() -> Self {
        Self { tables: vec![Table::default(); TABLES].into(), many: HashMap::new(), held: 0 }
    }

    /// Keys that somebody holds.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    pub(super) fn standing(&self, key: u64) -> Standing {
        let table = &self.tables[table_of(key)];
        match table.find(key) {
            Some(at) if table.slots[at] & TAG_MASK > GONE => Standing::Held,
            Some(_) => Standing::Gone,
            None => Standing::Unknown,
        }
    }

    /// Counts one holder in. True for the first.
    pub(super) fn add(&mut self, key: u64) -> bool {
        let table = &mut self.tables[table_of(key)];
        let Some(at) = table.find(key) else {
            table.insert(key << TABLE_BITS | (GONE + 1));
            self.held += 1;
            return true;
        };
        let slot = &mut table.slots[at];
        match *slot & TAG_MASK {
            MANY => {
                let count = self.many.entry(key).or_default();
                *count = count.saturating_add(1);
            }
            tag if tag + 1 == MANY => {
                *slot |= MANY;
                self.many.insert(key, tag as u32);
            }
            GONE => {
                *slot += 1;
                self.held += 1;
                return true;
            }
            _ => *slot += 1,
        }
        false
    }

    /// Counts one holder out. True for the last.
    pub(super) fn remove(&mut self, key: u64) -> bool {
        let table = &mut self.tables[table_of(key)];
        let Some(at) = table.find(key).filter(|at| table.slots[*at] & TAG_MASK > GONE) else {
            debug_assert!(false, "a key is removed that was never added");
            return false;
        };
        let slot = &mut table.slots[at];
        match *slot & TAG_MASK {
            MANY => {
                let count = self.many.entry(key).or_default();
                *count = count.saturating_sub(1);
                if *count > 0 {
                    return false;
                }
                self.many.remove(&key);
                *slot = *slot & !TAG_MASK | GONE;
            }
            _ => *slot -= 1,
        }
        let last = *slot & TAG_MASK == GONE;
        self.held -= usize::from(last);
        last
    }

    /// Appends the keys of one table that are held, and forgets those that are gone.
    pub(super) fn copy_held(&mut self, table: usize, out: &mut Vec<u64>) {
        let table_bits = (table as u64) << (u64::BITS - TABLE_BITS);
        let table = &mut self.tables[table];
        let before = out.len();
        out.extend(table.held().map(|slot| table_bits | slot >> TABLE_BITS));
        if out.len() - before < table.used {
            table.resize();
        }
    }

    /// Slots of one table, which is what copying it costs.
    pub(super) fn slots(&self, table: usize) -> usize {
        self.tables[table].slots.len()
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let slots: usize = self.tables.iter().map(|table| table.slots.len()).sum();
        size_of_val(&*self.tables) + slots * size_of::<u64>()
    }
}

fn table_of(key: u64) -> usize {
    (key >> (u64::BITS - TABLE_BITS)) as usize
}

impl Table {
    /// Where a slot with this key would best stand.
    fn home(&self, key_and_tag: u64) -> usize {
        ((u128::from(key_and_tag) * self.slots.len() as u128) >> u64::BITS) as usize
    }

    fn find(&self, key: u64) -> Option<usize> {
        if self.used == 0 {
            return None;
        }
        let key = key << TABLE_BITS;
        let mut at = self.home(key);
        // It comes to an end: a table is never full.
        while self.slots[at] != 0 {
            if (self.slots[at] ^ key) & !TAG_MASK == 0 {
                return Some(at);
            }
            at = self.after(at);
        }
        None
    }

    fn after(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() { 0 } else { at + 1 }
    }

    /// Puts in a slot whose key isn't there.
    fn insert(&mut self, slot: u64) {
        if (self.used + 1) * 8 > self.slots.len() * 7 {
            self.resize();
        }
        self.place(slot);
    }

    fn place(&mut self, slot: u64) {
        let mut at = self.home(slot & !TAG_MASK);
        while self.slots[at] != 0 {
            at = self.after(at);
        }
        self.slots[at] = slot;
        self.used += 1;
    }

    fn held(&self) -> impl Iterator<Item = u64> {
        self.slots.iter().copied().filter(|slot| slot & TAG_MASK > GONE)
    }

    /// Makes room for some more keys than are held, and forgets those that are gone.
    fn resize(&mut self) {
        let held = self.held().count();
        let room = held + held / GROWTH + 1;
        let slots = (room * 8).div_ceil(7).max(SLOTS_MIN) + 1;
        let old = std::mem::replace(self, Self { slots: vec![0; slots].into(), used: 0 });
        old.held().for_each(|slot| self.place(slot));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::filter::{FilterKey, snapshot::Mixer};

    fn all_held(counts: &mut KeyCounts) -> Vec<u64> {
        let mut keys = Vec::new();
        (0..TABLES).for_each(|table| counts.copy_held(table, &mut keys));
        keys.sort_unstable();
        keys
    }

    proptest! {
        #[test]
        fn counts_as_a_map_does(steps in prop::collection::vec((10_u64..50, 0_u8..5, 1_u32..700), 1..200)) {
            let mixer = Mixer::new(7);
            let mut counts = KeyCounts::new();
            let mut map: HashMap<u64, u32> = HashMap::new();
            for (key, what, times) in steps {
                let key = mixer.mix(FilterKey(key));
                match what {
                    0 => {
                        let mut expected: Vec<u64> = map.keys().copied().collect();
                        expected.sort_unstable();
                        prop_assert_eq!(all_held(&mut counts), expected);
                    }
                    1 | 2 => {
                        for _ in 0..times {
                            let count = map.entry(key).or_default();
                            *count += 1;
                            prop_assert_eq!(counts.add(key), *count == 1);
                        }
                    }
                    _ => {
                        for _ in 0..times.min(map.get(&key).copied().unwrap_or(0)) {
                            let count = map.get_mut(&key).unwrap();
                            *count -= 1;
                            prop_assert_eq!(counts.remove(key), *count == 0);
                        }
                        map.retain(|_, count| *count > 0);
                    }
                }
                prop_assert_eq!(counts.held(), map.len());
                prop_assert_eq!(counts.standing(key) == Standing::Held, map.contains_key(&key));
            }
        }
    }

    #[test]
    fn a_key_that_is_gone_is_known_until_the_keys_are_copied() {
        let key = Mixer::new(1).mix(FilterKey(12));
        let mut counts = KeyCounts::new();
        assert_eq!(counts.standing(key), Standing::Unknown);
        counts.add(key);
        assert_eq!(counts.standing(key), Standing::Held);
        counts.remove(key);
        assert_eq!(counts.standing(key), Standing::Gone);
        assert!(all_held(&mut counts).is_empty());
        assert_eq!(counts.standing(key), Standing::Unknown);
    }

    #[test]
    fn a_key_takes_less_than_sixteen_bytes_and_gives_them_back() {
        let mixer = Mixer::new(3);
        let mut counts = KeyCounts::new();
        let keys = 1_000_000;
        (10..10 + keys).for_each(|key| _ = counts.add(mixer.mix(FilterKey(key))));
        assert!(counts.bytes() < 12 * keys as usize, "{}", counts.bytes());
        (1_010..10 + keys).for_each(|key| _ = counts.remove(mixer.mix(FilterKey(key))));
        assert_eq!(all_held(&mut counts).len(), 1_000);
        assert!(counts.bytes() < 100_000, "{}", counts.bytes());
        // Coming and going without a copy between takes no more than what is held.
        for round in 0..20 {
            let keys = 2 * keys + round * 1_000..2 * keys + (round + 1) * 1_000;
            keys.clone().for_each(|key| _ = counts.add(mixer.mix(FilterKey(key))));
            keys.for_each(|key| _ = counts.remove(mixer.mix(FilterKey(key))));
        }
        assert!(counts.bytes() < 150_000, "{}", counts.bytes());
    }
}
