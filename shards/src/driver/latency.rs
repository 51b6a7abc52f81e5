//! How long things take, counted in buckets that are the same everywhere.

use std::{sync::LazyLock, time::Instant};

use crate::{Nanos, Sample};

/// Upper bounds of the buckets, in nanoseconds; what takes longer than the last has a bucket of its own. From what one hand-over between
/// threads takes to the time after which a Gateway is taken for gone, in steps of 2 to 2.5.
pub const LATENCY_BOUNDS_NS: [u64; 21] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    25_000_000_000,
    50_000_000_000,
];

/// Latencies that one thread counts. Others read copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How many took at most as long as the bound of the same place, and longer than the one before. The last: longer than all.
    pub counts: [u64; LATENCY_BOUNDS_NS.len() + 1],
    pub sum_ns: u64,
}

impl Histogram {
    pub fn observe(&mut self, ns: u64) {
        let bucket = LATENCY_BOUNDS_NS.partition_point(|bound| *bound < ns);
        self.counts[bucket] += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// The way of sampled changes through a shard and to its Gateways, from one stage to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// From before the ring to out of it, with what the ingest thread waits for room.
    pub queue: Histogram,
    /// From out of the ring to in the queues of Gateways, with what was taken from the ring together with it.
    pub matching: Histogram,
    /// From there to encoded for a Gateway's stream.
    pub send: Histogram,
    /// From there to the ack that says that the application is done.
    pub ack: Histogram,
    /// From the source's batch in the ingest thread's hands to that ack.
    pub end_to_end: Histogram,
}

/// A sample whose Gateway is done with it, for whoever makes traces of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoneSample {
    pub sample: Sample,
    /// The shard's.
    pub partition: u16,
    pub done_at: Nanos,
}

/// The clock of all samples of this process.
pub fn now() -> Nanos {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    // 500 years fit.
    Nanos(START.elapsed().as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_in_the_first_bucket_that_holds_it() {
        let mut histogram = Histogram::default();
        for ns in [0, 10_000, 10_001, 50_000_000_000, 50_000_000_001, u64::MAX] {
            histogram.observe(ns);
        }
        assert_eq!(histogram.counts[..2], [2, 1]);
        assert_eq!(histogram.counts[LATENCY_BOUNDS_NS.len() - 1..], [1, 2]);
        assert_eq!(histogram.count(), 6);
        assert_eq!(histogram.sum_ns, u64::MAX);
        assert!(LATENCY_BOUNDS_NS.is_sorted());
    }
}
