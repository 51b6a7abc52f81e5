//! Which shard holds which subscription: 8 bytes for each, and the little that a table must leave empty.
//!
//! There are many little tables, and each is laid out anew by itself when it is full or has become empty, so that no step is large:
//! also at ten million entries a table holds a few thousand. It grows by a quarter, so that seven tenths of it or more are in use.
//! The upper bits of a fingerprint say in which table it stands, and aren't kept; in their place stands the shard.
//!
//! Invariants:
//! - An entry stands at its home or after it, around the end of its table, and every place between the two is taken.
//! - A fingerprint stands there once.

/// Shards that an entry can name: as many as there are slots to share out.
pub(super) const SHARDS_MAX: usize = 1 << SHARD_BITS;
const SHARD_BITS: u32 = 12;
const PLACES_MIN: usize = 8;
/// What stands in a place that is empty. No entry is this.
const VACANT: u64 = 0;

#[derive(Debug)]
pub(super) struct Ledger {
    /// By the upper [`SHARD_BITS`] bits of the fingerprint.
    tables: Box<[Table]>,
    len: usize,
}

#[derive(Clone, Debug, Default)]
struct Table {
    places: Box<[u64]>,
    len: u32,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { tables: vec![Table::default(); 1 << SHARD_BITS].into(), len: 0 }
    }
}

impl Ledger {
    pub(super) fn get(&self, fingerprint: u64) -> Option<u16> {
        let (table, key) = split(fingerprint);
        let table = &self.tables[table];
        table.find(key).ok().map(|at| (table.places[at] & (SHARDS_MAX as u64 - 1)) as u16)
    }

    /// Puts the entry in, or changes its shard.
    pub(super) fn set(&mut self, fingerprint: u64, shard: u16) {
        debug_assert!(usize::from(shard) < SHARDS_MAX, "shard {shard} of at most {SHARDS_MAX}");
        let (table, key) = split(fingerprint);
        let table = &mut self.tables[table];
        let entry = key | u64::from(shard);
        match table.find(key) {
            Ok(at) => table.places[at] = entry,
            Err(_) => {
                if (table.len as usize + 1) * 8 > table.places.len() * 7 {
                    table.lay_out(table.places.len() * 5 / 4 + 1);
                }
                table.put(entry);
                table.len += 1;
                self.len += 1;
            }
        }
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, fingerprint: u64) -> bool {
        let (table, key) = split(fingerprint);
        let table = &mut self.tables[table];
        let Ok(at) = table.find(key) else { return false };
        table.vacate(at);
        table.len -= 1;
        self.len -= 1;
        if table.len as usize * 2 < table.places.len() && table.places.len() > PLACES_MIN {
            table.lay_out(table.len as usize * 5 / 4 + 1);
        }
        true
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Table {
    fn home(&self, entry: u64) -> usize {
        ((u128::from(entry) * self.places.len() as u128) >> 64) as usize
    }

    fn after(&self, at: usize) -> usize {
        if at + 1 == self.places.len() { 0 } else { at + 1 }
    }

    /// Where it stands, or the vacant place that was found in its stead, if there is one.
    fn find(&self, key: u64) -> Result<usize, Option<usize>> {
        if self.places.is_empty() {
            return Err(None);
        }
        let mut at = self.home(key);
        loop {
            match self.places[at] {
                VACANT => return Err(Some(at)),
                entry if entry >> SHARD_BITS == key >> SHARD_BITS => return Ok(at),
                _ => at = self.after(at),
            }
        }
    }

    /// Puts in an entry that isn't there, of which there is room for.
    fn put(&mut self, entry: u64) {
        if let Err(Some(at)) = self.find(entry) {
            self.places[at] = entry;
        }
    }

    /// Empties a place, and moves those after it up that would not be found any more.
    fn vacate(&mut self, at: usize) {
        let (mut hole, mut next) = (at, self.after(at));
        while self.places[next] != VACANT {
            let home = self.home(self.places[next]);
            // It may move unless its home lies between the hole and where it stands.
            let stays = if hole <= next { hole < home && home <= next } else { home > hole || home <= next };
            if !stays {
                self.places[hole] = self.places[next];
                hole = next;
            }
            next = self.after(next);
        }
        self.places[hole] = VACANT;
    }

    fn lay_out(&mut self, places: usize) {
        let old = std::mem::replace(&mut self.places, vec![VACANT; places.max(PLACES_MIN)].into());
        old.iter().filter(|entry| **entry != VACANT).for_each(|entry| self.put(*entry));
    }
}

/// The table, and what is kept of the fingerprint, above the bits of the shard.
fn split(fingerprint: u64) -> (usize, u64) {
    // The one that would look like an empty place is taken for its neighbour.
    let key = (fingerprint << SHARD_BITS).max(1 << SHARD_BITS);
    ((fingerprint >> (64 - SHARD_BITS)) as usize, key)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    fn spread(number: u64) -> u64 {
        (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    #[test]
    fn takes_ten_bytes_an_entry_at_any_size() {
        let mut ledger = Ledger::default();
        let mut number = 0;
        for size in [100_000, 250_000, 500_000, 1_000_000] {
            while number < size {
                ledger.set(spread(number), (number % 4_096) as u16);
                number += 1;
            }
            let bytes: usize = ledger.tables.iter().map(|table| size_of_val(&*table.places) + size_of::<Table>()).sum();
            let each = bytes as f64 / size as f64;
            assert!(each < 12.0, "{each} bytes an entry at {size}");
        }
        assert_eq!(ledger.len(), 1_000_000);
        assert!((0..number).all(|number| ledger.get(spread(number)) == Some((number % 4_096) as u16)));
        assert!((0..number).all(|number| ledger.remove(spread(number))));
        assert!(ledger.tables.iter().all(|table| table.places.len() <= 2 * PLACES_MIN), "memory is given back");
    }

    #[test]
    fn is_a_map() {
        // Few tables, and homes close to each other around the end.
        let fingerprint = |number: u64, end: bool| if end { (u64::MAX >> SHARD_BITS) - number * 7 } else { number * 5 };
        for seed in 0..64 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut ledger = Ledger::default();
            let mut model: HashMap<u64, u16> = HashMap::new();
            for _ in 0..random.random_range(1..400) {
                let fingerprint = fingerprint(random.random_range(1..60), random.random());
                if random.random_ratio(3, 4) {
                    let shard = random.random_range(0..SHARDS_MAX) as u16;
                    ledger.set(fingerprint, shard);
                    model.insert(fingerprint, shard);
                } else {
                    assert_eq!(ledger.remove(fingerprint), model.remove(&fingerprint).is_some(), "seed {seed}");
                }
                assert_eq!(ledger.len(), model.len(), "seed {seed}");
            }
            for number in 1..60 {
                for end in [false, true] {
                    let fingerprint = fingerprint(number, end);
                    assert_eq!(ledger.get(fingerprint), model.get(&fingerprint).copied(), "seed {seed}");
                }
            }
        }
    }
}
