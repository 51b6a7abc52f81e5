//! One pass, and how far it has come.

use std::collections::VecDeque;

use bytes::Bytes;
use shards::{CatchUp, Millis};
use wire::Position;

use crate::ingest::{number::Numbering, source::ResumeToken};

#[derive(Debug)]
pub(super) struct Pass {
    pub(super) number: u64,
    pub(super) from: Position,
    pub(super) began: Millis,
    pub(super) members: Vec<Option<Member>>,
    pub(super) has_met: bool,
    pub(super) numbering: Numbering,
    /// Stands after the last event taken, or later and before the next.
    pub(super) resume: Option<ResumeToken>,
    /// The last event taken, or `from` before there is one above it.
    pub(super) done: Position,
    /// Every event of an earlier cluster time has been taken.
    pub(super) passed: u64,
    pub(super) in_hand: VecDeque<InHand>,
    /// What the source said with the batch in hand.
    pub(super) said: Option<(Option<ResumeToken>, Option<u64>)>,
    pub(super) cursor: Cursor,
    pub(super) failures: u32,
    pub(super) probe: Option<Probe>,
    pub(super) pace: Pace,
}

/// A shard that a pass serves.
#[derive(Debug)]
pub(super) struct Member {
    /// The last position that it was told of.
    pub(super) told: Position,
    /// What the ring has had no room for.
    pub(super) backlog: VecDeque<CatchUp>,
}

#[derive(Debug)]
pub(super) struct InHand {
    pub(super) event: Bytes,
    /// It came without its documents, since it is too large.
    pub(super) too_large: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cursor {
    Closed {
        until: Millis,
    },
    Opening {
        number: u64,
    },
    Open {
        number: u64,
        /// Its next batch was asked for.
        is_granted: bool,
    },
}

/// The search for the beginning of a history that doesn't reach back to where a pass was to start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    /// A cluster time that is lost, and one that isn't.
    pub(super) lost: u64,
    pub(super) kept: u64,
    pub(super) left: u32,
}

impl Probe {
    pub(super) fn middle(&self) -> u64 {
        self.lost + (self.kept - self.lost) / 2
    }

    pub(super) fn is_over(&self) -> bool {
        self.left == 0 || self.kept.saturating_sub(self.lost) <= 1
    }
}

/// Whether the distance to the live stream halves in time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) distance: u128,
    pub(super) spent_ms: u64,
    pub(super) last: Millis,
}

impl Pass {
    /// Whether everything up to where the live stream has come has been taken.
    pub(super) fn has_passed(&self, enqueued: Position) -> bool {
        self.reached() >= enqueued.order()
    }

    /// Everything at or before this has been taken.
    pub(super) fn reached(&self) -> (u64, u32) {
        self.done.order().max((self.passed, 0))
    }

    /// How far the live stream is ahead, in cluster time and then in events of one.
    pub(super) fn distance(&self, enqueued: Position) -> u128 {
        let number = |(time, k): (u64, u32)| (u128::from(time) << 32) | u128::from(k);
        number(enqueued.order()).saturating_sub(number(self.reached()))
    }
}

impl Pace {
    pub(super) fn is_too_slow(&mut self, distance: u128, within_ms: u64, now: Millis, counts: bool) -> bool {
        let since = now.0.saturating_sub(self.last.0).min(TICK_MAX_MS);
        self.last = now;
        if distance < self.distance && distance <= self.distance / 2 {
            self.distance = distance;
            self.spent_ms = 0;
        } else if counts {
            self.spent_ms += since;
        }
        self.spent_ms >= within_ms
    }
}

/// A tick that comes later than this counts no more: a thread that stood still says nothing of the source.
const TICK_MAX_MS: u64 = 1_000;
