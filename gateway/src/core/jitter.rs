//! Jitter without a source of randomness: SplitMix64 on a seed given at construction.
//! (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014.)

#[derive(Debug)]
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number from 0 to `max`, both included. The modulo's bias does not matter for spreading reconnects.
    pub(super) fn up_to(&mut self, max: u64) -> u64 {
        match max.checked_add(1) {
            Some(values) => self.next() % values,
            None => self.next(),
        }
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// How long to wait before the next attempt: doubles from [`BACKOFF_FIRST_MS`] to [`BACKOFF_MAX_MS`], and of that a random
/// half, so that the Gateways of a node that restarted don't come back together.
pub(super) fn backoff_ms(failures: u32, jitter: &mut Jitter) -> u64 {
    let whole = BACKOFF_FIRST_MS.checked_shl(failures.saturating_sub(1)).unwrap_or(BACKOFF_MAX_MS).min(BACKOFF_MAX_MS);
    whole / 2 + jitter.up_to(whole / 2)
}

const BACKOFF_FIRST_MS: u64 = 100;
const BACKOFF_MAX_MS: u64 = 5_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_end_and_stays_within_the_upper_half() {
        let mut jitter = Jitter::new(7);
        for (failures, whole) in [(1, 100), (2, 200), (3, 400), (6, 3_200), (7, 5_000), (40, 5_000), (u32::MAX, 5_000)]
        {
            for _ in 0..100 {
                let wait = backoff_ms(failures, &mut jitter);
                assert!((whole / 2..=whole).contains(&wait), "{wait} after {failures} failures");
            }
        }
    }

    #[test]
    fn one_seed_gives_one_row_of_numbers() {
        let row = |seed| {
            let mut jitter = Jitter::new(seed);
            [(); 8].map(|()| jitter.up_to(1_000_000))
        };
        assert_eq!(row(1), row(1));
        assert_ne!(row(1), row(2));
    }
}
