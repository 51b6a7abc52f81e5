//! What is kept of a subscription that lacks changes which the delivery log can't give it.

use wire::{BackendId, Position};

use super::SubId;

/// A subscription is behind for a backend: what it lacks is read from the source's history. Meanwhile live changes of that backend
/// are not told to it.
#[derive(Debug)]
pub(crate) struct Behind {
    /// Up to here everything has been handed to its Gateway's queue, or was had by it. Of the backend that it is behind for.
    pub(crate) at: Position,
    /// Up to here its Gateway is known to be done: from there it goes on in a session that presents nothing.
    pub(crate) done: Position,
    /// Passes with lower numbers don't serve it.
    pub(crate) pass: u64,
    /// What it stands under in its session's lists. It stays while `at` moves on.
    pub(crate) key: PassKey,
}

/// A place in one backend's history, as those that wait are ordered by it.
pub(crate) type PassKey = (u64, u32);

/// Something of a backend that its session was sent, and that can't be sent again once it is known not to be done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lost {
    /// Before all that is meant.
    pub(crate) from: Position,
    /// The session that it was sent in, see [`crate::session::Session::base`].
    pub(crate) session: u32,
    /// It is done with once that session is done with this one. None: not all of it has been sent.
    pub(crate) seq: Option<u64>,
    /// Log entries before this number may be meant.
    pub(crate) before: u64,
}

/// Log entries of a backend before this number, at positions above this one, are not for the subscription any more: it is sent them
/// from the history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Skip {
    pub(super) before: u64,
    pub(super) above: Position,
}

impl Skip {
    pub(super) fn skips(&self, number: u64, position: &Position) -> bool {
        number < self.before
            && position.backend == self.above.backend
            && !(position.lineage == self.above.lineage && position.is_covered_by(&self.above))
    }
}

/// The place just before an event.
pub(crate) fn just_before(position: &Position) -> Position {
    match position.k.checked_sub(1) {
        Some(k) => Position { k, ..*position },
        None => Position { time: position.time.saturating_sub(1), k: u32::MAX, ..*position },
    }
}

/// The earlier one of two positions of a backend.
pub(crate) fn earlier(one: Position, other: Position) -> Position {
    if other.compare(&one).is_some_and(std::cmp::Ordering::is_lt) { other } else { one }
}

/// The later one of two positions of a backend.
pub(crate) fn later(one: Position, other: Position) -> Position {
    if other.compare(&one).is_some_and(std::cmp::Ordering::is_gt) { other } else { one }
}

impl super::Rare {
    pub(crate) fn behind(&self, backend: BackendId) -> Option<&Behind> {
        self.behind.iter().find(|behind| behind.at.backend == backend)
    }

    pub(crate) fn behind_mut(&mut self, backend: BackendId) -> Option<&mut Behind> {
        self.behind.iter_mut().find(|behind| behind.at.backend == backend)
    }

    /// It is no longer behind for this backend. What it was, if it was.
    pub(crate) fn take_behind(&mut self, backend: BackendId) -> Option<Behind> {
        let at = self.behind.iter().position(|behind| behind.at.backend == backend)?;
        Some(self.behind.swap_remove(at))
    }

    /// Takes note of something that its session may lack if it ends before it is done with `seq`.
    pub(crate) fn lose(&mut self, new: Lost) {
        let Lost { from, session, seq, before } = new;
        match self.lost.iter_mut().find(|lost| lost.from.backend == from.backend) {
            Some(lost) => {
                lost.from = earlier(lost.from, from);
                lost.seq = lost.seq.zip(seq).map(|(one, other)| one.max(other));
                (lost.session, lost.before) = (session, before);
            }
            None => self.lost.push(new),
        }
    }

    pub(super) fn is_skipped(&self, number: u64, position: &Position) -> bool {
        number < self.skip_before || self.skips.iter().any(|skip| skip.skips(number, position))
    }

    /// Log entries that are there now, before this number, are not for it if they stand above `above`.
    pub(crate) fn skip(&mut self, before: u64, above: Position) {
        match self.skips.iter_mut().find(|skip| skip.above.backend == above.backend) {
            Some(skip) => *skip = Skip { before, above },
            None => self.skips.push(Skip { before, above }),
        }
    }
}

impl super::Subscriptions {
    /// Whether something else stands in the place of this log entry: a resync, or what is read from the history.
    pub(crate) fn is_skipped(&self, id: SubId, number: u64, position: &Position) -> bool {
        self.rare(id).is_some_and(|rare| rare.is_skipped(number, position))
    }

    /// Where it stands, if it is behind for this backend.
    pub(crate) fn behind(&self, id: SubId, backend: BackendId) -> Option<&Behind> {
        self.rare(id)?.behind(backend)
    }

    /// What it may be found to lack in its next session.
    pub(crate) fn lost_mut(&mut self, id: SubId) -> &mut [Lost] {
        self.rare_if_any(id).map_or(&mut [], |rare| &mut rare.lost)
    }

    /// Whether it is behind for any backend.
    pub(crate) fn is_behind(&self, id: SubId) -> bool {
        self.rare(id).is_some_and(|rare| !rare.behind.is_empty())
    }
}
