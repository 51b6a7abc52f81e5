//! Latencies as percentiles.

use hdrhistogram::Histogram;

/// Longest latency that is told apart, in microseconds: ten minutes. Longer ones count as that.
const LATENCY_MAX_US: u64 = 600_000_000;

/// A histogram of microseconds, to three significant digits.
#[derive(Clone, Debug)]
pub struct Latency {
    histogram: Histogram<u64>,
}

impl Default for Latency {
    fn default() -> Self {
        Self::new()
    }
}

impl Latency {
    pub fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("the bounds are constants in range");
        Self { histogram }
    }

    /// Counts one latency; 0 counts as 1.
    pub fn record_us(&mut self, us: u64) {
        self.histogram.saturating_record(us.max(1));
    }

    pub fn merge(&mut self, other: &Self) {
        self.histogram.add(&other.histogram).expect("both histograms have the same bounds");
    }

    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The latency that `percentile` percent of the recorded ones don't exceed; 0 when there are none.
    pub fn percentile_us(&self, percentile: f64) -> u64 {
        self.histogram.value_at_percentile(percentile)
    }

    pub fn p50_us(&self) -> u64 {
        self.percentile_us(50.0)
    }

    pub fn p99_us(&self) -> u64 {
        self.percentile_us(99.0)
    }

    pub fn p999_us(&self) -> u64 {
        self.percentile_us(99.9)
    }

    pub fn max_us(&self) -> u64 {
        self.histogram.max()
    }

    pub fn clear(&mut self) {
        self.histogram.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_two_merged_histograms() {
        let (mut low, mut high) = (Latency::new(), Latency::new());
        (1..=990).for_each(|us| low.record_us(us));
        (0..10).for_each(|_| high.record_us(5_000));
        low.merge(&high);
        assert_eq!(low.count(), 1000);
        assert_eq!(low.p50_us(), 500);
        assert_eq!(low.p99_us(), 990);
        // Three significant digits: a bucket is named by its upper end.
        assert!((5_000..5_010).contains(&low.p999_us()), "{}", low.p999_us());
        assert!((5_000..5_010).contains(&low.max_us()));
    }

    #[test]
    fn nothing_and_too_much_are_counted() {
        let mut latency = Latency::new();
        assert_eq!(latency.p99_us(), 0);
        latency.record_us(0);
        latency.record_us(u64::MAX);
        assert_eq!(latency.count(), 2);
    }
}
