//! Which collections have the most changes now, by a sketch of bounded size.
//!
//! Space-Saving (Metwally, Agrawal, El Abbadi: *Efficient Computation of Frequent and Top-k Elements in Data Streams*, ICDT 2005): of so
//! many counters, the lowest is given to whoever has none, and goes on from its count. A count is never too low, and too high by at most
//! what the counter had been at; whoever has more than one part in [`KEPT`] of all changes has a counter. Counts fade, so that they are of
//! about the last [`FADE_SHARE`] seconds.
//!
//! The caller doesn't count each change but one of those that it takes in together, for all of them: which one is by chance where it
//! matters, and alone it is exact.

use wire::PlaceHash;

/// A collection, and about how many changes a second it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotPlace {
    pub tenant: String,
    pub collection: String,
    pub changes_per_s: u64,
}

#[derive(Debug)]
struct Counter {
    place: PlaceHash,
    tenant: Box<str>,
    collection: Box<str>,
    /// In parts of [`ONE`].
    count: u64,
}

/// The sketch.
#[derive(Debug, Default)]
pub(crate) struct Hot {
    counters: Vec<Counter>,
    /// When counts have faded last, in milliseconds of the shard's time.
    faded_at: u64,
}

impl Hot {
    /// So many changes, of which one was at this place.
    pub(crate) fn observe(&mut self, place: PlaceHash, tenant: &str, collection: &str, changes: usize) {
        let added = changes as u64 * ONE;
        if let Some(counter) = self.counters.iter_mut().find(|counter| counter.place == place) {
            counter.count += added;
            return;
        }
        let mut counter = Counter { place, tenant: tenant.into(), collection: collection.into(), count: added };
        if self.counters.len() < KEPT {
            self.counters.push(counter);
        } else if let Some(lowest) = self.counters.iter_mut().min_by_key(|counter| counter.count) {
            counter.count += lowest.count;
            *lowest = counter;
        }
    }

    /// Time has come to this.
    pub(crate) fn tick(&mut self, time_ms: u64) {
        let seconds = time_ms.saturating_sub(self.faded_at) / 1_000;
        if seconds == 0 {
            return;
        }
        self.faded_at += seconds * 1_000;
        for counter in &mut self.counters {
            for _ in 0..seconds.min(FADED_SECONDS_MAX) {
                counter.count -= counter.count.div_ceil(FADE_SHARE);
            }
        }
        self.counters.retain(|counter| counter.count > 0);
    }

    /// The first so many, most changes first.
    pub(crate) fn most(&self, places: usize) -> Vec<HotPlace> {
        let mut counters: Vec<&Counter> = self.counters.iter().collect();
        counters.sort_unstable_by(|a, b| b.count.cmp(&a.count).then_with(|| a.place.0.cmp(&b.place.0)));
        let told = counters.iter().take(places).map(|counter| HotPlace {
            tenant: counter.tenant.to_string(),
            collection: counter.collection.to_string(),
            // What comes every second is counted this often before it fades away.
            changes_per_s: (counter.count / ONE).div_ceil(FADE_SHARE),
        });
        told.collect()
    }
}

/// Counters of a sketch. All of them are looked through for what comes together, so they are few.
const KEPT: usize = 64;
/// A count loses one part in this many each second.
const FADE_SHARE: u64 = 8;
/// After this many seconds nothing is left of a count, however high.
const FADED_SECONDS_MAX: u64 = 512;
/// What one change counts, so that a single one fades slowly too.
const ONE: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn place(number: u64) -> (PlaceHash, String) {
        let name = format!("c{number}");
        (PlaceHash::of("t", &name), name)
    }

    fn observe(hot: &mut Hot, number: u64, changes: usize) {
        let (place, name) = place(number);
        hot.observe(place, "t", &name, changes);
    }

    #[test]
    fn the_heavy_are_found_among_very_many() {
        let mut hot = Hot::default();
        // Three of five changes are of two collections, the rest is spread over ten thousand.
        for round in 0..30_000 {
            observe(&mut hot, 1, 2);
            observe(&mut hot, 2, 1);
            observe(&mut hot, 1_000 + round * 7_919 % 10_000, 2);
        }
        let most = hot.most(2);
        assert_eq!([&*most[0].collection, &*most[1].collection], ["c1", "c2"]);
        assert_eq!(hot.counters.len(), KEPT);
        // Never too low, and too high by at most a share of all.
        let all: u64 = 30_000 * 5;
        for (number, exact) in [(1, 60_000), (2, 30_000)] {
            let count = hot.counters.iter().find(|c| c.place == place(number).0).unwrap().count / ONE;
            assert!((exact..=exact + all / KEPT as u64).contains(&count), "{number}: {count} instead of {exact}");
        }
    }

    #[test]
    fn a_rate_is_that_of_now() {
        let mut hot = Hot::default();
        for second in 1..=60 {
            observe(&mut hot, 1, 1_000);
            hot.tick(second * 1_000);
        }
        observe(&mut hot, 1, 1_000);
        let rate = hot.most(1)[0].changes_per_s;
        assert!((990..=1_010).contains(&rate), "{rate}");
        hot.tick(80_000);
        assert!(hot.most(1)[0].changes_per_s < 100, "it is no longer hot");
        hot.tick(10_000_000);
        assert_eq!(hot.most(1), []);
    }
}
