//! When reading pauses: for Gateways that go on taking things and come near to what may wait for them, and for the room of a full ring.
//!
//! Invariants:
//! - A pause for Gateways ends after `ingest.pause_max` at the latest. Once that is spent, it has to be earned anew by reading, at one part
//!   in [`EARNED_SHARE`]; so a Gateway that is too slow for good costs the others no more than that share.
//! - A full ring pauses reading for as long as it is full: there is nowhere else to put what is read.

use std::time::Duration;

use tokio::time::Instant;

use super::{Link, Pump};
use crate::ingest::status::{PauseReason, ShardLag, ShardPauses};

/// Of the time that reading goes on, what it may pause again.
const EARNED_SHARE: u32 = 16;

/// A ring that has been more than half full for so long is a shard that lags.
pub(super) const LAGS_AFTER: Duration = Duration::from_secs(1);

/// How much longer reading may pause for Gateways.
#[derive(Debug)]
pub(super) struct Budget {
    max: Duration,
    left: Duration,
    /// All of it was used up, and it isn't all earned back yet.
    is_spent: bool,
    paused: bool,
    looked_at: Instant,
}

/// What a look at the budget has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Same,
    /// A pause begins.
    Begins,
    /// It ends, since nobody presses any more.
    Ends,
    /// It ends, since it has lasted for as long as it may.
    Spent,
}

impl Budget {
    /// Zero: reading never pauses.
    pub(super) fn new(max: Duration, now: Instant) -> Self {
        Self { max, left: max, is_spent: max.is_zero(), paused: false, looked_at: now }
    }

    /// Takes in whether anybody presses now.
    pub(super) fn look(&mut self, now: Instant, is_pressed: bool) -> Look {
        let since = now.saturating_duration_since(self.looked_at);
        self.looked_at = now;
        if self.paused {
            self.left = self.left.saturating_sub(since);
            self.is_spent = self.left.is_zero();
        } else {
            self.left = (self.left + since / EARNED_SHARE).min(self.max);
            self.is_spent &= self.left < self.max || self.max.is_zero();
        }
        let pauses = is_pressed && !self.is_spent;
        match (std::mem::replace(&mut self.paused, pauses), pauses) {
            (false, true) => Look::Begins,
            (true, false) if self.is_spent => Look::Spent,
            (true, false) => Look::Ends,
            (false, false) | (true, true) => Look::Same,
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// When it has lasted for as long as it may.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        self.paused.then(|| self.looked_at + self.left)
    }
}

/// The pauses of reading that are for one shard.
#[derive(Debug, Default)]
pub(super) struct OfShard {
    pub(super) counts: ShardPauses,
    /// Of each reason, since when.
    since: [Option<Instant>; PauseReason::ALL.len()],
    /// Since when its ring has been more than half full at every look.
    behind_since: Option<Instant>,
    lags: bool,
}

impl OfShard {
    pub(super) fn begins(&mut self, reason: PauseReason, now: Instant) {
        let since = &mut self.since[reason as usize];
        if since.is_none() {
            *since = Some(now);
            self.counts.count[reason as usize] += 1;
        }
    }

    pub(super) fn ends(&mut self, reason: PauseReason, now: Instant) {
        self.look(now);
        self.since[reason as usize] = None;
    }

    /// Counts up to now.
    pub(super) fn look(&mut self, now: Instant) {
        for (since, time) in self.since.iter_mut().zip(&mut self.counts.time) {
            if let Some(since) = since {
                *time += now.saturating_duration_since(*since);
                *since = now;
            }
        }
    }

    /// Takes in whether its ring has room to spare, and how many items wait in it. What is to be told of its lag.
    pub(super) fn look_at_ring(&mut self, name: &str, has_room: bool, waiting: u64, now: Instant) -> Option<ShardLag> {
        if has_room {
            self.behind_since = None;
            if std::mem::take(&mut self.lags) {
                tracing::info!("{name} has caught up");
            }
            return None;
        }
        let lasts = now.saturating_duration_since(*self.behind_since.get_or_insert(now));
        if lasts < LAGS_AFTER {
            return None;
        }
        if !std::mem::replace(&mut self.lags, true) {
            tracing::warn!("{name} lags: {waiting} items wait in its ring, and reading waits whenever that is full");
        }
        Some(ShardLag { waiting, lasts })
    }
}

impl Pump {
    /// It was not for the sources that nothing was read meanwhile.
    pub(super) fn resumes(&mut self, now: Instant) {
        self.backends.iter_mut().for_each(|backend| backend.signs.excuse(now));
    }

    /// Begins or ends a pause for Gateways that come near to what may wait for them.
    pub(super) fn look_at_pressure(&mut self) {
        let now = Instant::now();
        let pressed = |link: &Link| link.cells.pressing() > 0;
        let look = self.pause_budget.look(now, self.links.iter().any(pressed));
        match look {
            Look::Same if !self.pause_budget.is_paused() => return,
            Look::Same | Look::Begins => {}
            Look::Ends => self.resumes(now),
            Look::Spent => {
                self.resumes(now);
                tracing::warn!(
                    "reading goes on after a pause of {:?}, though Gateways of {} still have nearly as much waiting as they may: what \
                     is too much is read for them again once they have taken it",
                    self.config.pause_max,
                    self.names_of(pressed)
                );
            }
        }
        for (link, pauses) in self.links.iter().zip(&mut self.pauses) {
            match self.pause_budget.is_paused() && pressed(link) {
                true => pauses.begins(PauseReason::OutboxFull, now),
                false => pauses.ends(PauseReason::OutboxFull, now),
            }
        }
    }

    fn names_of(&self, which: impl Fn(&Link) -> bool) -> String {
        let names = self.links.iter().filter(|link| which(link)).map(|link| link.ring.name().to_owned());
        names.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_pause_ends_when_nobody_presses() {
        let start = Instant::now();
        let mut budget = Budget::new(100 * MS, start);
        assert_eq!(budget.look(start, false), Look::Same);
        assert_eq!(budget.look(start, true), Look::Begins);
        assert_eq!(budget.ends_at(), Some(start + 100 * MS));
        assert_eq!(budget.look(start + 60 * MS, true), Look::Same);
        assert!(budget.is_paused());
        assert_eq!(budget.look(start + 90 * MS, false), Look::Ends);
        assert_eq!((budget.is_paused(), budget.ends_at()), (false, None));
        // A tenth is left, and a little has been earned.
        assert_eq!(budget.look(start + 106 * MS, true), Look::Begins);
        assert_eq!(budget.ends_at(), Some(start + 117 * MS));
    }

    #[test]
    fn it_is_bounded_and_has_to_be_earned_in_full_again() {
        let start = Instant::now();
        let mut budget = Budget::new(100 * MS, start);
        budget.look(start, true);
        assert_eq!(budget.look(start + 100 * MS, true), Look::Spent);
        assert!(!budget.is_paused());
        assert_eq!(budget.look(start + 1_600 * MS, true), Look::Same, "not all of it is earned");
        assert_eq!(budget.look(start + 1_700 * MS, true), Look::Begins);
    }

    #[test]
    fn it_costs_reading_no_more_than_its_share() {
        let start = Instant::now();
        let mut budget = Budget::new(50 * MS, start);
        let paused: u32 = (0..100_000)
            .map(|ms| u32::from(budget.look(start + MS * ms, true) != Look::Same || budget.is_paused()))
            .sum();
        assert!((4_000..=100_000 / EARNED_SHARE + 200).contains(&paused), "{paused} of 100,000 ms");
    }

    #[test]
    fn zero_is_never() {
        let start = Instant::now();
        let mut budget = Budget::new(Duration::ZERO, start);
        for ms in 0..1_000 {
            assert_eq!(budget.look(start + MS * ms, true), Look::Same);
        }
    }

    #[test]
    fn pauses_are_counted_once_and_timed() {
        let start = Instant::now();
        let mut shard = OfShard::default();
        shard.begins(PauseReason::RingFull, start);
        shard.begins(PauseReason::RingFull, start + 5 * MS);
        shard.look(start + 10 * MS);
        assert_eq!((shard.counts.count, shard.counts.time), ([1, 0], [10 * MS, Duration::ZERO]));
        shard.begins(PauseReason::OutboxFull, start + 20 * MS);
        shard.ends(PauseReason::RingFull, start + 30 * MS);
        shard.look(start + 50 * MS);
        assert_eq!((shard.counts.count, shard.counts.time), ([1, 1], [30 * MS, 30 * MS]));
    }

    #[test]
    fn a_shard_lags_once_its_ring_stays_full_and_until_it_has_room() {
        let start = Instant::now();
        let mut shard = OfShard::default();
        let mut look = |has_room, ms: u32| shard.look_at_ring("shard 0", has_room, 700, start + MS * ms);
        assert_eq!(look(false, 0), None);
        assert_eq!(look(false, 999), None);
        assert_eq!(look(false, 1_500), Some(ShardLag { waiting: 700, lasts: 1_500 * MS }));
        assert_eq!(look(true, 1_600), None);
        assert_eq!(look(false, 1_700), None, "it counts anew");
    }
}
