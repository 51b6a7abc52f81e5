//! Passes of the catch-up cursors as a shard sees them, and what it wants of them.
//!
//! Whom a pass serves is a rule, so that its begin and its end are small steps however many it serves: it serves those of a session
//! that are behind at or after the place that the pass began at, and that it had not gone past when they became so
//! ([`Behind::pass`]). What its end means to each of them is found when it is hit, or in its turn.
//!
//! Invariants:
//! - A backend has one pass at a time, and those that have ended stay known until everybody whom they served has been told.
//! - `wanted` holds a session's first that waits, by backend, as long as the session takes things.

use std::collections::{BTreeSet, VecDeque};

use wire::{BackendId, Lineage, Position, Positions};

use crate::stats::CatchUpWanted;
use crate::subscription::{Behind, GatewayId, PassKey};

#[derive(Debug, Default)]
pub(crate) struct Passes {
    all: Vec<OfBackend>,
    wanted: BTreeSet<(BackendId, PassKey, GatewayId)>,
    version: u64,
}

#[derive(Debug)]
struct OfBackend {
    backend: BackendId,
    /// What those that wait are of.
    lineage: Lineage,
    /// Number of the last pass. 0 before the first one.
    last: u64,
    running: Option<Pass>,
    ended: VecDeque<Ended>,
    /// Subscriptions that the running pass serves.
    serving: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass {
    pub(crate) number: u64,
    from: Position,
    /// Up to here, all that concerns the shard has come.
    pub(crate) at: Position,
}

#[derive(Clone, Copy, Debug)]
struct Ended {
    number: u64,
    from: Position,
    end: End,
    /// Lists of subscriptions that haven't been worked off.
    lists: usize,
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It met the live stream here.
    CaughtUp(Position),
    /// Whoever it served waits for the next one, from here.
    Interrupted(Position),
    /// What it was for can't be had by those that stand at or below the second place. The others wait for the next one. It had come to
    /// the first place.
    Lost(Position, Position),
    /// It brought too little.
    TooSlow,
}

impl Pass {
    /// Whether it serves one of a session that stands there.
    pub(crate) fn serves(&self, behind: &Behind) -> bool {
        serves(self.number, &self.from, behind)
    }
}

fn serves(number: u64, from: &Position, behind: &Behind) -> bool {
    behind.pass <= number && from.is_covered_by(&behind.at)
}

impl Passes {
    fn of(&self, backend: BackendId) -> Option<&OfBackend> {
        self.all.iter().find(|one| one.backend == backend)
    }

    fn of_mut(&mut self, backend: BackendId) -> Option<&mut OfBackend> {
        self.all.iter_mut().find(|one| one.backend == backend)
    }

    fn open(&mut self, position: &Position) -> &mut OfBackend {
        let at = self.all.iter().position(|one| one.backend == position.backend).unwrap_or_else(|| {
            let Position { backend, lineage, .. } = *position;
            let ended = VecDeque::new();
            self.all.push(OfBackend { backend, lineage, last: 0, running: None, ended, serving: 0 });
            self.all.len() - 1
        });
        &mut self.all[at]
    }

    /// A pass begins. False for one that has been heard of.
    pub(crate) fn begin(&mut self, number: u64, from: Position) -> bool {
        let one = self.open(&from);
        debug_assert!(one.running.is_none(), "two passes of one backend");
        if number <= one.last {
            return false;
        }
        one.last = number;
        one.running = Some(Pass { number, from, at: from });
        self.version += 1;
        true
    }

    pub(crate) fn running(&self, backend: BackendId) -> Option<&Pass> {
        self.of(backend)?.running.as_ref()
    }

    /// The running pass of a backend, if it has this number.
    pub(crate) fn running_as(&mut self, backend: BackendId, number: u64) -> Option<&mut Pass> {
        self.of_mut(backend)?.running.as_mut().filter(|pass| pass.number == number)
    }

    /// The running pass ends. So many lists hold those that it served.
    pub(crate) fn end(&mut self, backend: BackendId, end: End, lists: usize) {
        let Some(one) = self.of_mut(backend) else { return };
        let Some(Pass { number, from, .. }) = one.running.take() else { return };
        one.serving = 0;
        if lists > 0 {
            one.ended.push_back(Ended { number, from, end, lists });
        }
        self.version += 1;
    }

    /// How the pass ended that served one of a session that stands there, and the number of the pass. None if none has ended.
    pub(crate) fn ended(&self, behind: &Behind) -> Option<(u64, End)> {
        let ended = &self.of(behind.at.backend)?.ended;
        let one = ended.iter().find(|one| serves(one.number, &one.from, behind))?;
        Some((one.number, one.end))
    }

    /// One of the lists of a pass has been worked off.
    pub(crate) fn worked_off(&mut self, backend: BackendId, number: u64) {
        let Some(one) = self.of_mut(backend) else { return };
        if let Some(ended) = one.ended.iter_mut().find(|ended| ended.number == number) {
            ended.lists -= 1;
        }
        one.ended.retain(|ended| ended.lists > 0);
    }

    /// The number of the next pass that can serve somebody who has begun to wait at this position, and whether that one is running.
    /// `since` is the pass that served it before; whatever came since then has not been for it.
    pub(crate) fn next_for(&mut self, at: &Position, since: Option<u64>) -> (u64, bool) {
        let one = self.open(at);
        one.lineage = at.lineage;
        match &one.running {
            Some(pass) => {
                let reached = if since.is_some_and(|since| since < pass.number) { &pass.from } else { &pass.at };
                if since != Some(pass.number) && reached.is_covered_by(at) {
                    (pass.number, true)
                } else {
                    (pass.number + 1, false)
                }
            }
            None => (one.last + 1, false),
        }
    }

    /// So many subscriptions more are served by the running pass, or fewer.
    pub(crate) fn serve(&mut self, backend: BackendId, change: i64) {
        if let Some(one) = self.of_mut(backend).filter(|_| change != 0) {
            debug_assert!(one.serving.checked_add_signed(change).is_some(), "fewer than nobody is served");
            one.serving = one.serving.saturating_add_signed(change);
            self.version += 1;
        }
    }

    /// The first that waits in a Gateway's session is another.
    pub(crate) fn want(
        &mut self,
        backend: BackendId,
        gateway: GatewayId,
        before: Option<PassKey>,
        now: Option<PassKey>,
    ) {
        if before != now {
            before.map(|key| self.wanted.remove(&(backend, key, gateway)));
            now.map(|key| self.wanted.insert((backend, key, gateway)));
            self.version += 1;
        }
    }

    /// Backends with what those that wait are of.
    pub(crate) fn lineages(&self) -> impl Iterator<Item = (BackendId, Lineage)> {
        self.all.iter().map(|one| (one.backend, one.lineage))
    }

    /// Whoever begins to wait is of this one.
    pub(crate) fn set_lineage(&mut self, backend: BackendId, lineage: Lineage) {
        if let Some(one) = self.of_mut(backend) {
            one.lineage = lineage;
        }
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn wanted(&self) -> CatchUpWanted {
        let lowest = |one: &OfBackend| {
            let from = (one.backend, PassKey::default(), GatewayId(0));
            let (_, (time, k), _) =
                *self.wanted.range(from..).next().filter(|(backend, ..)| *backend == one.backend)?;
            Some(Position { backend: one.backend, lineage: one.lineage, time, k })
        };
        let served = self.all.iter().filter(|one| one.last > 0);
        CatchUpWanted {
            version: self.version,
            lowest: self.all.iter().filter_map(lowest).collect::<Positions>(),
            serving: served.map(|one| (one.backend, one.last, one.serving)).collect(),
        }
    }

    pub(crate) fn check_invariants(&self, serving: impl Fn(BackendId) -> u64, wanting: usize) {
        for one in &self.all {
            assert_eq!(one.serving, serving(one.backend), "whom the pass serves");
            assert!(one.ended.iter().all(|ended| ended.lists > 0), "a pass is remembered for nobody");
        }
        assert_eq!(self.wanted.len(), wanting, "sessions that want a pass");
    }
}
