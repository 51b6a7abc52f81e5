//! Reading history again for subscriptions that lack a part of it: the state machine of the catch-up cursors. What the shards want
//! and the batches of the cursors go in, ring items come out. No IO, no clock: the ingest loop and the simulator use the same.
//!
//! A *pass* reads one backend from the lowest position that is waited for up to the live stream, for all shards that want it (its
//! members), and ends for each shard by itself.
//!
//! Invariants:
//! - A backend has at most one pass, and a pass at most one cursor. Cursors have numbers, and none has the number of another: what one says
//!   that isn't its pass's any more is not heard, though the next pass may have begun meanwhile.
//! - An event has the same position in a pass as in the live stream: a cursor is opened at the beginning of a cluster time, or after an
//!   event whose position is known, and its events are counted on from there.
//! - A pass puts out what lies above its start and at or below the position that the live stream has come to at that moment. An
//!   event above it is kept back: it is the live stream's as soon as the shard has been told `CaughtUp`.
//! - `Began`, `CaughtUp` and `Failed` are put among the live items. `Began` therefore stands before the `FilterSeen` of every filter that
//!   events of the pass may not have been routed by. `CaughtUp` is put at a moment at which the pass has passed all that the live stream
//!   has, and at which nothing of the pass waits for room in that shard's ring: all of the live stream up to its position, and nothing
//!   above, stands before it. What waits when a pass fails is dropped: whoever it was for starts again from what it got.
//! - A batch without events proves nothing by itself: a server may answer so in the middle of its search. Only a position that was
//!   reached does, or the source's own word that it has come past a cluster time ([`Batch::passed`](super::source::Batch::passed)).
//! - What waits for room in a ring is bounded, and no event is taken while it is at its bound.
//!
//! Call protocol: [`CatchUpCore::wanted`] whenever a shard's cell has changed; then [`CatchUpCore::tick`], [`CatchUpCore::open`],
//! [`CatchUpCore::grant`], [`CatchUpCore::hear`] and [`CatchUpCore::work`] in any order and as often as one likes, between two live events
//! and not within one. What is put out belongs behind everything that [`IngestCore`] has put out before, and in front of what it puts out
//! later. [`CatchUpCore::take`] is to be called when all of that is in the shard's ring.

mod cursor;
mod pass;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use shards::{CatchUp, CatchUpFailure, CatchUpWanted, FromIngest, Gap, Millis};
use wire::{BackendId, Position};

pub use self::cursor::{Opening, Said};
use self::pass::{Cursor, Member, Pace, Pass};
use super::{
    core::{EventError, IngestCore, Routed, ToShard},
    event::{Malformed, RawEvent},
    number::Numbering,
    route::ShardIndex,
    source::ResumeToken,
};

/// Items of passes that may wait for room in one shard's ring before no more is read for it.
pub const BACKLOG_MAX: usize = 256;

/// Openings that find out how far back a source's history reaches, when a pass asks for more than there is.
const PROBES_MAX: u32 = 24;

/// What passes of one backend have done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CatchUpCounters {
    pub begun: u64,
    /// Passes that met the live stream on a shard at least, and those that ended otherwise, by reason.
    pub caught_up: u64,
    pub history_lost: u64,
    pub too_slow: u64,
    pub interrupted: u64,
    /// Events read, and items put into rings.
    pub events: u64,
    pub items: u64,
    /// Times that a cursor broke and was opened again.
    pub reopenings: u64,
}

/// The pass that a backend has now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassNow {
    pub number: u64,
    /// How far it has come.
    pub position: Position,
    pub began: Millis,
}

#[derive(Debug)]
pub struct CatchUpCore {
    /// The distance to the live stream has to halve within this time, as long as that reads.
    halve_within: Duration,
    backends: Vec<Backend>,
    /// Of each shard.
    wanted: Vec<Arc<CatchUpWanted>>,
}

#[derive(Debug)]
struct Backend {
    id: BackendId,
    /// The number of the last pass.
    last: u64,
    /// The number of the last cursor.
    cursors: u64,
    /// The number of the last pass that each shard was told of.
    told: Vec<u64>,
    pass: Option<Pass>,
    counters: CatchUpCounters,
}

/// What is to be done next for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// More at once: the share of one call is used up.
    More,
    /// The next batch of the cursor, the live stream's progress, or room in a ring.
    Wait,
}

impl CatchUpCore {
    /// For the backends and shards of `live`.
    pub fn new(live: &IngestCore, halve_within: Duration) -> Self {
        let shards = usize::from(live.shards());
        let backend = |id: &BackendId| Backend {
            id: *id,
            last: 0,
            cursors: 0,
            told: vec![0; shards],
            pass: None,
            counters: CatchUpCounters::default(),
        };
        Self {
            halve_within,
            backends: live.backends().iter().map(backend).collect(),
            wanted: vec![Arc::default(); shards],
        }
    }

    pub fn counters(&self, backend: usize) -> CatchUpCounters {
        self.backends[backend].counters
    }

    pub fn pass(&self, backend: usize) -> Option<PassNow> {
        let pass = self.backends[backend].pass.as_ref()?;
        Some(PassNow { number: pass.number, position: pass.done, began: pass.began })
    }

    /// What a shard wants now.
    pub fn wanted(&mut self, shard: ShardIndex, wanted: Arc<CatchUpWanted>) {
        self.wanted[usize::from(shard.0)] = wanted;
    }

    /// Begins and ends passes. `reads` tells whether a backend's live stream is being read: while it isn't, its source is likely to be
    /// away for everybody, and no pass is too slow.
    pub fn tick(&mut self, live: &IngestCore, now: Millis, reads: impl Fn(usize) -> bool, out: &mut Vec<ToShard>) {
        for backend in 0..self.backends.len() {
            let Some(enqueued) = live.enqueued(backend) else { continue };
            self.leave_the_unneeded(backend, out);
            let halve_within_ms = self.halve_within.as_millis() as u64;
            match &mut self.backends[backend].pass {
                Some(pass) if pass.from.lineage != enqueued.lineage => {
                    self.end(backend, CatchUpFailure::Interrupted, out);
                }
                Some(pass) => {
                    let distance = pass.distance(enqueued);
                    if pass.pace.is_too_slow(distance, halve_within_ms, now, reads(backend)) {
                        self.end(backend, CatchUpFailure::TooSlow, out);
                    }
                }
                None => self.begin(live, backend, enqueued, now, out),
            }
        }
    }

    /// Shards of which the pass serves nobody any more are members no longer.
    fn leave_the_unneeded(&mut self, backend: usize, out: &mut Vec<ToShard>) {
        let Backend { id, pass, .. } = &mut self.backends[backend];
        let (id, Some(pass)) = (*id, pass) else { return };
        for (shard, wanted) in self.wanted.iter().enumerate() {
            if heard(wanted, id) == (pass.number, 0) && pass.members[shard].take().is_some() {
                let failure = CatchUpFailure::Interrupted;
                out.push(item(shard, CatchUp::Failed { pass: pass.number, backend: id, failure }));
            }
        }
        self.end_without_members(backend);
    }

    fn begin(&mut self, live: &IngestCore, backend: usize, enqueued: Position, now: Millis, out: &mut Vec<ToShard>) {
        if !live.has_all_starts() {
            return;
        }
        let Backend { id, last, told, .. } = &self.backends[backend];
        let (id, number) = (*id, last + 1);
        // What a shard said before it heard of the last pass, that pass may have brought.
        let wants = |shard: usize| {
            let wanted = &self.wanted[shard];
            let lowest = wanted.lowest.get(id).filter(|lowest| lowest.lineage == enqueued.lineage)?;
            (heard(wanted, id).0 == told[shard]).then_some(*lowest)
        };
        let wants: Vec<Option<Position>> = (0..self.wanted.len()).map(wants).collect();
        let Some(from) = wants.iter().flatten().copied().min_by_key(Position::order) else { return };
        let numbering = Numbering::starting(id, from.lineage, (from.time, 0));
        let mut pass = Pass {
            number,
            from,
            began: now,
            members: wants.iter().map(|wants| wants.map(|_| Member { told: from, backlog: VecDeque::new() })).collect(),
            has_met: false,
            numbering,
            resume: None,
            done: from,
            passed: 0,
            in_hand: VecDeque::new(),
            said: None,
            cursor: Cursor::Closed { until: now },
            failures: 0,
            probe: None,
            pace: Pace { distance: 0, spent_ms: 0, last: now },
        };
        pass.pace.distance = pass.distance(enqueued);
        let backend = &mut self.backends[backend];
        backend.last = number;
        backend.counters.begun += 1;
        backend.pass = Some(pass);
        for (shard, told) in backend.told.iter_mut().enumerate().filter(|(shard, _)| wants[*shard].is_some()) {
            *told = number;
            out.push(item(shard, CatchUp::Began { pass: number, from }));
        }
    }

    /// The live stream of this backend has lost history, and goes on behind it.
    pub fn live_lost(&mut self, backend: usize, out: &mut Vec<ToShard>) {
        self.end(backend, CatchUpFailure::Interrupted, out);
    }

    /// Takes up to `events_max` events of the batch in hand. `CaughtUp` is put out where a shard has come to the live stream.
    ///
    /// # Errors
    /// When the cursor's events don't follow one another, or one isn't an event. Nothing is in hand any more, and [`Self::failed`] is to
    /// be called.
    pub fn work(
        &mut self,
        live: &IngestCore,
        backend: usize,
        events_max: usize,
        out: &mut Vec<ToShard>,
    ) -> Result<Next, EventError> {
        let worked = self.work_on(live, backend, events_max, out);
        if worked.is_err()
            && let Some(pass) = &mut self.backends[backend].pass
        {
            pass.in_hand.clear();
            pass.said = None;
        }
        worked
    }

    fn work_on(
        &mut self,
        live: &IngestCore,
        backend: usize,
        events_max: usize,
        out: &mut Vec<ToShard>,
    ) -> Result<Next, EventError> {
        let mut left = events_max;
        loop {
            let (Some(enqueued), Some(pass)) = (live.enqueued(backend), &mut self.backends[backend].pass) else {
                return Ok(Next::Wait);
            };
            if pass.from.lineage != enqueued.lineage {
                self.end(backend, CatchUpFailure::Interrupted, out);
                return Ok(Next::Wait);
            }
            if pass.in_hand.is_empty()
                && let Some((resume, passed)) = pass.said.take()
            {
                pass.failures = 0;
                pass.resume = resume.or(pass.resume.take());
                pass.passed = pass.passed.max(passed.unwrap_or(0));
                self.tell_progress(backend);
                continue;
            }
            if pass.has_passed(enqueued) {
                self.meet(backend, enqueued, out);
                // Shards with a backlog haven't met it: what the live stream reads meanwhile is read for them here.
                return Ok(Next::Wait);
            }
            let Some(next) = pass.in_hand.front() else { return Ok(Next::Wait) };
            if pass.members.iter().flatten().any(|member| member.backlog.len() >= BACKLOG_MAX) {
                return Ok(Next::Wait);
            }
            if left == 0 {
                return Ok(Next::More);
            }
            left -= 1;
            let fields = RawEvent::parse(&next.event)?;
            let time = fields.cluster_time.ok_or(Malformed::Lacks("clusterTime"))?;
            let token = fields.token.ok_or(Malformed::Lacks("_id"))?;
            let mut numbering = pass.numbering;
            let position = numbering.next(time)?;
            if position.order() > enqueued.order() {
                self.meet(backend, enqueued, out);
                return Ok(Next::Wait);
            }
            // One at or below `done` is known: a cursor begins with the first event of a cluster time.
            let routed = match position.order() > pass.done.order() {
                true => live.route_again(&next.event, &fields, position, next.too_large)?,
                false => Routed::Nobody,
            };
            pass.resume = Some(ResumeToken(next.event.slice_ref(token)));
            pass.numbering = numbering;
            if position.order() > pass.done.order() {
                pass.done = position;
            }
            pass.in_hand.pop_front();
            self.backends[backend].counters.events += 1;
            self.put_out(backend, position, routed);
        }
    }

    fn put_out(&mut self, backend: usize, position: Position, routed: Routed) {
        let Backend { pass, counters, .. } = &mut self.backends[backend];
        let Some(pass) = pass else { return };
        let number = pass.number;
        let mut put = |shard: usize, item: CatchUp| {
            if let Some(member) = &mut pass.members[shard] {
                member.told = position;
                member.backlog.push_back(item);
                counters.items += 1;
            }
        };
        match routed {
            Routed::Nobody | Routed::Skip(_) => {}
            Routed::Change(shards, change) => {
                let change = Arc::new(change);
                for shard in shards {
                    put(usize::from(shard.0), CatchUp::Change { pass: number, change: change.clone() });
                }
            }
            Routed::Gap(scopes, reason) => {
                let gap = Arc::new(Gap { position, scopes, reason });
                (0..self.wanted.len()).for_each(|shard| put(shard, CatchUp::Gap { pass: number, gap: gap.clone() }));
            }
        }
    }

    fn tell_progress(&mut self, backend: usize) {
        let Some(Pass { number, done, members, .. }) = &mut self.backends[backend].pass else { return };
        for member in members.iter_mut().flatten().filter(|member| member.told.order() < done.order()) {
            member.told = *done;
            member.backlog.push_back(CatchUp::Progress { pass: *number, position: *done });
        }
    }

    /// The pass has passed what the live stream has: every shard for which nothing of the pass waits has met it.
    fn meet(&mut self, backend: usize, enqueued: Position, out: &mut Vec<ToShard>) {
        let Some(pass) = &mut self.backends[backend].pass else { return };
        for (shard, member) in pass.members.iter_mut().enumerate() {
            if member.take_if(|member| member.backlog.is_empty()).is_some() {
                pass.has_met = true;
                out.push(item(shard, CatchUp::CaughtUp { pass: pass.number, position: enqueued }));
            }
        }
        self.end_without_members(backend);
    }

    fn end_without_members(&mut self, backend: usize) {
        let backend = &mut self.backends[backend];
        if let Some(pass) = &backend.pass
            && pass.members.iter().all(Option::is_none)
        {
            match pass.has_met {
                true => backend.counters.caught_up += 1,
                false => backend.counters.interrupted += 1,
            }
            backend.pass = None;
        }
    }

    /// Ends the pass of a backend, if there is one, for all whom it still serves.
    fn end(&mut self, backend: usize, failure: CatchUpFailure, out: &mut Vec<ToShard>) {
        let Backend { id, pass, counters, .. } = &mut self.backends[backend];
        let (id, Some(pass)) = (*id, pass.take()) else { return };
        match failure {
            CatchUpFailure::HistoryLost { .. } => counters.history_lost += 1,
            CatchUpFailure::TooSlow => counters.too_slow += 1,
            CatchUpFailure::Interrupted => counters.interrupted += 1,
        }
        for shard in (0..pass.members.len()).filter(|shard| pass.members[*shard].is_some()) {
            out.push(item(shard, CatchUp::Failed { pass: pass.number, backend: id, failure }));
        }
    }

    /// The next item for a shard's ring; to be asked for only where that has room.
    pub fn take(&mut self, shard: ShardIndex) -> Option<FromIngest> {
        // Of several backends the one that has most, so that none is left waiting for another.
        let member = self.members(shard).max_by_key(|member| member.backlog.len())?;
        member.backlog.pop_front().map(FromIngest::CatchUp)
    }

    /// Whether a pass runs, or somebody waits for one.
    pub fn is_wanted(&self) -> bool {
        let waits = |wanted: &Arc<CatchUpWanted>| !wanted.lowest.is_empty();
        self.backends.iter().any(|backend| backend.pass.is_some()) || self.wanted.iter().any(waits)
    }

    /// Whether something waits for room in a shard's ring.
    pub fn has_backlog(&mut self, shard: ShardIndex) -> bool {
        self.members(shard).any(|member| !member.backlog.is_empty())
    }

    /// What a shard is in the pass of each backend.
    fn members(&mut self, shard: ShardIndex) -> impl Iterator<Item = &mut Member> {
        let passes = self.backends.iter_mut().filter_map(|backend| backend.pass.as_mut());
        passes.filter_map(move |pass| pass.members[usize::from(shard.0)].as_mut())
    }
}

fn item(shard: usize, item: CatchUp) -> ToShard {
    (ShardIndex(shard as u16), FromIngest::CatchUp(item))
}

/// The last pass of a backend that a shard has heard of, and how many that still serves.
fn heard(wanted: &CatchUpWanted, backend: BackendId) -> (u64, u64) {
    let serving = wanted.serving.iter().find(|(id, ..)| *id == backend);
    serving.map_or((0, 0), |(_, pass, count)| (*pass, *count))
}
