//! A hash table of numbers whose steps are all small: many little tables, each of which grows, is cleaned up and shrinks by itself.
//! Whoever asks verifies what a number stands for, and rehashes it when asked to.
//!
//! A little table holds twice as much when it grows. If all held the same, all would grow at the same time, and the table as a whole
//! would take either little or twice that. So hashes are spread unevenly, by up to a factor of two: some tables are before that
//! step and some after it, and what an entry takes is the same at any size.

use hashbrown::HashTable;

/// Little tables. At ten million entries one holds a few thousand.
const TABLES: usize = 1 << TABLES_BITS;
const TABLES_BITS: u32 = 12;
/// Up to so many entries there is but one.
const SINGLE_MAX: usize = 2_048;
/// A little table that is larger than this and a quarter full is made smaller.
const KEPT: usize = 32;

#[derive(Debug)]
pub(crate) struct SplitTable {
    tables: Vec<HashTable<u32>>,
    len: usize,
}

impl Default for SplitTable {
    fn default() -> Self {
        Self { tables: vec![HashTable::new()], len: 0 }
    }
}

impl SplitTable {
    pub(crate) fn find(&self, hash: u64, is: impl FnMut(&u32) -> bool) -> Option<u32> {
        self.tables[self.place(hash)].find(hash, is).copied()
    }

    /// Puts in a number that isn't there. `rehash` gives the hash of a number that is.
    pub(crate) fn insert(&mut self, hash: u64, number: u32, rehash: impl Fn(u32) -> u64) {
        if self.tables.len() == 1 && self.len >= SINGLE_MAX {
            self.spread(TABLES, &rehash);
        }
        let at = self.place(hash);
        self.tables[at].insert_unique(hash, number, |number| rehash(*number));
        self.len += 1;
    }

    pub(crate) fn remove(&mut self, hash: u64, number: u32, rehash: impl Fn(u32) -> u64) {
        let at = self.place(hash);
        let table = &mut self.tables[at];
        let Ok(found) = table.find_entry(hash, |other| *other == number) else {
            debug_assert!(false, "{number} is removed and isn't there");
            return;
        };
        found.remove();
        self.len -= 1;
        if table.capacity() > KEPT && table.len() * 4 < table.capacity() {
            table.shrink_to(table.len() * 2, |number| rehash(*number));
        }
        if self.tables.len() > 1 && self.len < SINGLE_MAX / 2 {
            self.spread(1, &rehash);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn spread(&mut self, tables: usize, rehash: &impl Fn(u32) -> u64) {
        let old = std::mem::replace(&mut self.tables, (0..tables).map(|_| HashTable::new()).collect());
        for number in old.into_iter().flatten() {
            let hash = rehash(number);
            let at = self.place(hash);
            self.tables[at].insert_unique(hash, number, |number| rehash(*number));
        }
    }

    /// `(2x + x²) / 3` for `x` from 0 to 1: the slope goes from 2/3 to 4/3. By bits that the little tables make no use of.
    fn place(&self, hash: u64) -> usize {
        if self.tables.len() == 1 {
            return 0;
        }
        const BITS: u32 = 24;
        let x = hash >> BITS & ((1 << BITS) - 1);
        let y = ((x << (BITS + 1)) + x * x) / 3;
        (y >> (2 * BITS - TABLES_BITS)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u32) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&number.to_le_bytes())
    }

    #[test]
    fn holds_what_was_put_in_at_any_size() {
        const MANY: u32 = 200_000;
        let mut table = SplitTable::default();
        for number in 0..MANY {
            table.insert(hash(number), number, hash);
        }
        assert_eq!(table.tables.len(), TABLES);
        let sizes = table.tables.iter().map(HashTable::len);
        let (least, most) = (sizes.clone().min(), sizes.max());
        assert!(least.is_some_and(|least| least > 10) && most.is_some_and(|most| most < 150), "{least:?} {most:?}");
        for number in 0..MANY {
            assert_eq!(table.find(hash(number), |other| *other == number), Some(number));
        }
        assert_eq!(table.find(hash(MANY), |other| *other == MANY), None);
        for number in 0..MANY - 10 {
            table.remove(hash(number), number, hash);
        }
        assert_eq!((table.len(), table.tables.len()), (10, 1));
        assert!(table.tables[0].capacity() < 64, "memory is given back");
        for number in MANY - 10..MANY {
            assert_eq!(table.find(hash(number), |other| *other == number), Some(number));
        }
    }
}
