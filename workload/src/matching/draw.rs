//! Choices that follow from a seed and a number, so that the millionth thing can be made without the ones before it.

/// SplitMix64, started anew for each thing that is made.
#[derive(Clone, Debug)]
pub(super) struct Draw(u64);

/// What is made: each kind draws from a stream of its own.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream {
    Subscription = 1,
    Event = 2,
    Later = 3,
}

impl Draw {
    pub(super) fn new(seed: u64, stream: Stream, number: usize) -> Self {
        Self(mixed(mixed(seed ^ ((stream as u64) << 56)) ^ number as u64))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// One of `0..n`, all alike.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        debug_assert!(n > 0, "a choice is made of at least one");
        // The upper half of the product; what it prefers by is below 1 in 2^30 for all that is drawn here.
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    pub(super) fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Ranks from 0, of which the k-th comes 1/(k+1) as often as the first: Zipf with s = 1.
#[derive(Clone, Debug)]
pub(super) struct Zipf {
    /// Running sums of the weights.
    sums: Vec<u64>,
}

impl Zipf {
    pub(super) fn new(ranks: u64) -> Self {
        let weights = (1..=ranks).scan(0, |sum, rank| {
            *sum += 1_000_000_000 / rank;
            Some(*sum)
        });
        Self { sums: weights.collect() }
    }

    pub(super) fn draw(&self, draw: &mut Draw) -> u64 {
        let total = self.sums.last().copied().unwrap_or(1);
        let at = draw.below(total);
        self.sums.partition_point(|sum| *sum <= at) as u64
    }
}
