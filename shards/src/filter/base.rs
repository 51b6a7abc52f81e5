//! The large and slow part of a filter: built from all keys at once, on a thread that may take its time, and never changed.

use std::fmt;

use xorf::{BinaryFuse8, Filter as _};

/// All keys of a moment. It never says "no" for one of them.
#[derive(Debug, Default)]
pub(super) enum Base {
    #[default]
    Empty,
    /// Few keys, by open addressing: a fuse filter of so few takes more room and errs more.
    Exact(Box<[u64]>),
    /// 9 bits a key; says "maybe" for 0.4 % of the keys that it doesn't hold. `salt` is the first with which its construction succeeded.
    Fuse { filter: BinaryFuse8, salt: u64 },
    /// Says "maybe" for everything, like a filter that errs. For tests.
    #[cfg(test)]
    Erring,
}

impl Base {
    /// `keys` are distinct, and none is 0.
    pub(super) fn build(keys: &[Box<[u64]>], exact_max: usize) -> Result<Self, BuildFailed> {
        let count = keys.iter().map(|chunk| chunk.len()).sum::<usize>();
        if count == 0 {
            return Ok(Self::Empty);
        }
        if count <= exact_max {
            return Ok(Self::exact(keys.iter().flatten().copied(), count));
        }
        (0..SALTS)
            .map(|salt| salt.wrapping_mul(SALT_STEP))
            .find_map(|salt| {
                let keys = Salted { chunks: keys.iter(), chunk: [].iter(), left: count, salt };
                let filter = BinaryFuse8::try_from_iterator(keys).ok()?;
                Some(Self::Fuse { filter, salt })
            })
            .ok_or(BuildFailed { keys: count })
    }

    fn exact(keys: impl Iterator<Item = u64>, count: usize) -> Self {
        let mut slots = vec![0; (count * 2).next_power_of_two()];
        for key in keys {
            let (Ok(at) | Err(at)) = find(&slots, key);
            slots[at] = key;
        }
        Self::Exact(slots.into())
    }

    #[inline]
    pub(super) fn contains(&self, key: u64) -> bool {
        match self {
            Self::Empty => false,
            Self::Exact(slots) => find(slots, key).is_ok(),
            Self::Fuse { filter, salt } => filter.contains(&(key ^ salt)),
            #[cfg(test)]
            Self::Erring => true,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Exact(slots) => size_of_val(&**slots),
            Self::Fuse { filter, .. } => filter.len(),
            #[cfg(test)]
            Self::Erring => 0,
        }
    }
}

/// The place of this key, or the free one where it belongs. At least half of the slots are free, of which there are two or more.
#[inline]
fn find(slots: &[u64], key: u64) -> Result<usize, usize> {
    let mut at = (key >> (u64::BITS - slots.len().trailing_zeros())) as usize;
    loop {
        match slots[at] {
            0 => return Err(at),
            found if found == key => return Ok(at),
            _ => at = (at + 1) & (slots.len() - 1),
        }
    }
}

/// Times that a construction is tried. Each makes a thousand attempts by itself, of which the first usually succeeds.
const SALTS: u64 = 3;
/// An odd number: no two salts are the same.
const SALT_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Keys of several pieces, one after the other.
#[derive(Clone)]
struct Salted<'a> {
    chunks: std::slice::Iter<'a, Box<[u64]>>,
    chunk: std::slice::Iter<'a, u64>,
    left: usize,
    salt: u64,
}

impl Iterator for Salted<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        loop {
            if let Some(key) = self.chunk.next() {
                self.left -= 1;
                return Some(key ^ self.salt);
            }
            self.chunk = self.chunks.next()?.iter();
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Salted<'_> {}

/// The keys for a base, and the order to build it. For a thread that isn't the shard's: ten million keys take half a second.
pub struct FilterBuild {
    pub(super) number: u64,
    /// Mixed, distinct, none 0.
    pub(super) keys: Vec<Box<[u64]>>,
    pub(super) exact_max: usize,
}

impl FilterBuild {
    /// How many keys it is of.
    pub fn keys(&self) -> usize {
        self.keys.iter().map(|chunk| chunk.len()).sum()
    }

    pub fn run(self) -> FilterBuilt {
        FilterBuilt { number: self.number, base: Base::build(&self.keys, self.exact_max) }
    }

    /// What to tell the shard where it can't be run.
    pub fn fail(&self) -> FilterBuilt {
        FilterBuilt { number: self.number, base: Err(BuildFailed { keys: self.keys() }) }
    }
}

impl fmt::Debug for FilterBuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilterBuild").field("number", &self.number).field("keys", &self.keys()).finish()
    }
}

/// What became of a [`FilterBuild`]: for [`Input::FilterBuilt`](crate::Input::FilterBuilt).
pub struct FilterBuilt {
    pub(super) number: u64,
    pub(super) base: Result<Base, BuildFailed>,
}

impl FilterBuilt {
    /// Whether there is a new base.
    pub fn is_good(&self) -> bool {
        self.base.is_ok()
    }
}

impl fmt::Debug for FilterBuilt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.base.as_ref().map(Base::bytes);
        f.debug_struct("FilterBuilt").field("number", &self.number).field("bytes", &bytes).finish()
    }
}

/// A fuse filter can't be had of these keys, or nobody was there to build it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no filter could be built of {keys} keys")]
pub struct BuildFailed {
    pub keys: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{FilterKey, snapshot::Mixer};

    fn chunks(count: u64, seed: u64) -> Vec<Box<[u64]>> {
        let mixer = Mixer::new(seed);
        let keys: Vec<u64> = (0..count).map(|key| mixer.mix(FilterKey(10 + key))).collect();
        keys.chunks(7).map(Box::from).collect()
    }

    fn holds_all(base: &Base, chunks: &[Box<[u64]>]) {
        for key in chunks.iter().flatten() {
            assert!(base.contains(*key));
        }
    }

    #[test]
    fn every_small_number_of_keys_can_be_built_either_way() {
        for count in (0..300).chain([999, 1_000, 1_024, 1_025, 4_096, 5_000]) {
            for seed in 0..3 {
                let chunks = chunks(count, seed);
                let fuse = Base::build(&chunks, 0).unwrap();
                assert!(count == 0 || matches!(fuse, Base::Fuse { .. }));
                holds_all(&fuse, &chunks);
                let exact = Base::build(&chunks, usize::MAX).unwrap();
                holds_all(&exact, &chunks);
                let mixer = Mixer::new(seed);
                assert!((count..2 * count).all(|key| !exact.contains(mixer.mix(FilterKey(10 + key)))), "{count}");
            }
        }
    }

    #[test]
    fn a_large_one_errs_in_less_than_one_in_two_hundred() {
        let chunks = chunks(100_000, 5);
        let base = Base::build(&chunks, 1_024).unwrap();
        holds_all(&base, &chunks);
        let mixer = Mixer::new(5);
        let wrong = (200_000..400_000).filter(|key| base.contains(mixer.mix(FilterKey(*key)))).count();
        assert!(wrong < 200_000 / 200, "{wrong}");
        assert!(base.bytes() < 120_000, "{}", base.bytes());
    }
}
