//! What is kept of one subscription: what each has, and what few have.

use wire::{Positions, ResyncReason};

use super::behind::{Behind, Lost, Skip};
use super::id::{Fingerprint, Id};
use super::{Content, NOBODY};
use crate::FilterKey;

/// What is looked at for each change that a subscription is told of: four to a cache line, and apart from the [`Rest`], so that those of many
/// subscriptions stay at hand.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(super) stamp: u32,
    /// Whose it is: its Gateway and its tenant.
    pub(super) owner: u32,
    /// Of its Gateway's numbers, the one that stands for it: its handle in the session that counts from below it.
    pub(super) mark: u32,
    /// The block of log entries that the last one for it is in, if it is [`TOLD`]; flags above that.
    pub(super) bits: u32,
}

/// What else every subscription has.
#[derive(Debug)]
pub(crate) struct Rest {
    pub(super) id: Id,
    pub(super) filter_key: FilterKey,
    pub(super) content: Fingerprint,
    /// While it is live: since when. Before that: its number among those that wait.
    pub(super) since: u32,
    /// In seconds of the shard's own time, rounded up. A session of its Gateway may push this further.
    pub(super) expires_at_s: u32,
    /// Seconds.
    pub(super) ttl_s: u32,
    /// In its Gateway's list of members; in the chunk's list of vacant places, if it is one.
    pub(super) before: u32,
    pub(super) after: u32,
}

const _: () = assert!(size_of::<Subscription>() == 16, "four of them are a cache line");
const _: () = assert!(size_of::<Subscription>() + size_of::<Rest>() == 72, "ten million of them are 720 MB");

/// What few have, or only for a while.
#[derive(Debug, Default)]
pub(crate) struct Rare {
    /// Events up to here are not for it: its application said that it has them before they were read. While it isn't live: the
    /// positions that its Gateway presented.
    pub(crate) floor: Positions,
    /// Ends of its tail beside the one in [`Tail`], where its events come from several backends.
    pub(super) tails: Positions,
    /// Log entries before this one are not for it any more: a resync stands in their place.
    pub(crate) skip_before: u64,
    /// Contents that its id had before.
    pub(super) generations_before: u32,
    /// Its continuity is broken, and no session has been told yet.
    pub(crate) broken: Option<ResyncReason>,
    /// What it is behind for, at most once for each backend.
    pub(crate) behind: Vec<Behind>,
    /// What it may be found to lack when its next session presents nothing, at most once for each backend.
    pub(crate) lost: Vec<Lost>,
    pub(super) skips: Vec<Skip>,
}

impl Rare {
    pub(super) fn says_something(&self) -> bool {
        !self.floor.is_empty()
            || !self.tails.is_empty()
            || self.skip_before > 0
            || self.generations_before > 0
            || self.broken.is_some()
            || !(self.behind.is_empty() && self.lost.is_empty() && self.skips.is_empty())
    }
}

/// The last event for a subscription that has left the log: from before that, nothing can be replayed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tail {
    pub(super) time: u64,
    pub(super) k: u32,
    /// Which history it is of, counted from 1. 0: nothing for it has left the log.
    pub(super) history: u32,
}

const FLAGS: u32 = 24;
pub(super) const TAKEN: u32 = 1 << FLAGS;
pub(super) const LIVE: u32 = 2 << FLAGS;
/// A session keeps it alive; else only its own heartbeats over HTTP do.
pub(super) const BY_SESSION: u32 = 4 << FLAGS;
pub(super) const TRANSITIONS: u32 = 8 << FLAGS;
/// A resync waits in the session's queue. Another one before that is sent needs no second.
pub(super) const RESYNC_QUEUED: u32 = 16 << FLAGS;
/// There is a [`Rare`] of it.
pub(super) const RARE: u32 = 32 << FLAGS;
/// Something for it has come into the log.
const TOLD: u32 = 64 << FLAGS;
const BLOCKS: u32 = (1 << FLAGS) - 1;
/// Log entries of a block are as many as this power of two says.
const BLOCK_BITS: u32 = 8;

const _: () =
    assert!((1 << 28 >> BLOCK_BITS) < BLOCKS / 2, "the largest log that can be configured is told from what left it");

fn block_of(number: u64) -> u32 {
    (number >> BLOCK_BITS) as u32 & BLOCKS
}

impl Subscription {
    pub(super) const VACANT: Self = Self { stamp: 0, owner: 0, mark: 0, bits: 0 };

    pub(super) fn has(&self, flag: u32) -> bool {
        self.bits & flag != 0
    }

    pub(super) fn set(&mut self, flag: u32, on: bool) {
        self.bits = if on { self.bits | flag } else { self.bits & !flag };
    }

    /// The log entry of this number is for it.
    #[inline]
    pub(crate) fn told(&mut self, number: u64) {
        self.bits = (self.bits & !BLOCKS) | TOLD | block_of(number);
    }

    /// Whether log entries from this number on may be for it: no later than a block after the last one is there no more. It is told so of
    /// what left the log ages ago, too: nothing is counted when its Gateway is done with an entry, or when one leaves the log.
    pub(crate) fn may_be_told_from(&self, number: u64) -> bool {
        let behind = block_of(number).wrapping_sub(self.bits) & BLOCKS;
        self.has(TOLD) && (behind == 0 || behind > BLOCKS / 2)
    }

    pub(crate) fn is_live(&self) -> bool {
        self.has(LIVE)
    }

    /// Whether there may be something rare about it: a floor, entries that are skipped, or that it is behind.
    pub(crate) fn has_rare(&self) -> bool {
        self.has(RARE)
    }

    /// Whether an update after which a document no longer matches is told.
    pub(crate) fn transitions(&self) -> bool {
        self.has(TRANSITIONS)
    }

    pub(crate) fn is_kept_by_session(&self) -> bool {
        self.has(BY_SESSION)
    }

    pub(crate) fn mark(&self) -> u32 {
        self.mark
    }

    pub(crate) fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }

    pub(crate) fn is_resync_queued(&self) -> bool {
        self.has(RESYNC_QUEUED)
    }

    pub(crate) fn set_resync_queued(&mut self, queued: bool) {
        self.set(RESYNC_QUEUED, queued);
    }
}

impl Rest {
    pub(super) const VACANT: Self = Self {
        id: Id::none(),
        filter_key: FilterKey(0),
        content: Fingerprint::NONE,
        since: 0,
        expires_at_s: 0,
        ttl_s: 0,
        before: NOBODY,
        after: NOBODY,
    };

    pub(crate) fn is_of(&self, content: &Content) -> bool {
        self.content == content.0
    }

    pub(crate) fn filter_key(&self) -> FilterKey {
        self.filter_key
    }

    pub(crate) fn ttl_ms(&self) -> u64 {
        u64::from(self.ttl_s) * 1_000
    }

    pub(crate) fn expires_at(&self) -> u64 {
        u64::from(self.expires_at_s) * 1_000
    }

    pub(crate) fn set_ttl(&mut self, ttl_s: u32) {
        self.ttl_s = ttl_s;
    }

    pub(crate) fn set_expires_at(&mut self, time: u64) {
        self.expires_at_s = u32::try_from(time.div_ceil(1_000)).unwrap_or(u32::MAX);
    }

    /// Its number among those that wait. For one that isn't live.
    pub(crate) fn pending_number(&self) -> u32 {
        self.since
    }
}
