//! A subscription goes live, is bound to a handle, and is told what it missed or that it missed something.

use smallvec::SmallVec;
use wire::{BackendId, Bound, Position, Positions, ResyncReason};

use super::Shard;
use super::behind::Falls;
use super::work::{BIND_UNITS, ENTRY_UNITS, Units};
use crate::Output;
use crate::outbox::Settle;
use crate::session::{Batch, Item, Presented, Walk};
use crate::stats::Cause;
use crate::subscription::{GatewayId, SubId, earlier};

impl Shard {
    /// Has it take note of being live, if it is. Whether it is.
    pub(super) fn wake(&mut self, id: SubId, out: &mut Vec<Output>) -> bool {
        let Some(sub) = self.subs.get(id) else { return false };
        if sub.is_live() {
            return true;
        }
        let Some(number) = self.subs.rest(id).map(|rest| rest.pending_number()) else { return false };
        let Some(live_from) = self.pending.live_from(number).cloned() else { return false };
        self.waits_no_more(number);
        self.activate(id, &live_from, out);
        true
    }

    /// Those of these slots that are live, in the order of their names.
    pub(super) fn woken(&mut self, slots: impl IntoIterator<Item = u32>, out: &mut Vec<Output>) -> Vec<SubId> {
        let ids = slots.into_iter().filter_map(|slot| self.subs.at(slot)).map(|(id, sub)| (id, sub.is_live()));
        let mut ids: Vec<(SubId, bool)> = ids.collect();
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|(id, live)| *live || self.wake(*id, out));
        ids.into_iter().map(|(id, _)| id).collect()
    }

    /// The one of this number has gone live or ended.
    pub(super) fn waits_no_more(&mut self, number: u32) {
        self.pending.remove(number);
        if self.pending.is_sparse() {
            let subs = &mut self.subs;
            self.pending.close_ranks(|id, number| subs.set_pending_number(id, number));
        }
    }

    /// Every match after `live_from` is delivered from here on.
    pub(super) fn activate(&mut self, id: SubId, live_from: &Positions, out: &mut Vec<Output>) {
        self.subs.go_live(id, live_from);
        let of_session = self.subs.get(id).filter(|sub| sub.is_kept_by_session());
        let here = of_session.zip(of_session.and_then(|sub| self.gateways.session(self.subs.gateway_of(sub))));
        if here.is_some_and(|(sub, session)| session.synced && !session.has_met(sub)) {
            self.subs.lower_floor(id, self.marks.received());
        }
        let presented = self.subs.rare_if_any(id).map(|rare| std::mem::take(&mut rare.floor)).unwrap_or_default();
        if !presented.is_empty() {
            match self.judge(id, &presented, live_from) {
                Begin::Anew(reason) => self.subs.rare_mut(id).broken = Some(reason),
                Begin::GoesOn(from) => self.go_on(id, &presented, from, out),
            }
        }
        let Some(sub) = self.subs.get(id) else { return };
        let here = self.gateways.session(self.subs.gateway_of(sub));
        if here.is_some_and(|session| session.synced || session.has_met(sub)) {
            self.bind(id, out);
        }
    }

    /// It is about to be bound, and lacks what comes after `from` of each backend.
    fn go_on(&mut self, id: SubId, presented: &Positions, from: From, out: &mut Vec<Output>) {
        if let Some(rare) = self.subs.rare_if_any(id) {
            rare.broken = None;
            rare.lost.clear();
        }
        self.raise_floor(id, presented);
        for position in presented.iter() {
            if !from.iter().any(|from| from.backend == position.backend) {
                self.has_caught_up(id, position.backend, out);
            }
        }
        let cause = if presented.is_empty() { Cause::LeftLog } else { Cause::Presented };
        for at in from {
            self.fall_behind(id, at, Falls::Anew, cause, out);
        }
    }

    /// Its application has all that has come of a backend.
    fn has_caught_up(&mut self, id: SubId, backend: BackendId, out: &mut Vec<Output>) {
        if let Some(received) = self.marks.received().get(backend).copied() {
            self.meets_the_live_stream(id, received, out);
        }
    }

    /// Its application has everything up to these positions, be it that they haven't been read yet.
    fn raise_floor(&mut self, id: SubId, positions: &Positions) {
        let received = self.marks.received();
        if positions.iter().any(|position| !received.covers(position)) {
            self.subs.rare_mut(id).floor = positions.clone();
        }
    }

    /// The session's batch is complete. What each of it has not had is looked for, and then all are bound.
    pub(super) fn start_batch(&mut self, gateway: GatewayId, units: &mut Units) {
        self.clear(gateway, units);
        let next = self.log.next();
        let Some(known) = self.gateways.get_mut(gateway) else { return };
        let (cleared, Some(session)) = (known.cleared, &mut known.session) else { return };
        let batch = &mut session.batch;
        // Whoever presents nothing is sent what it is owed, none of which stands before what is cleared.
        let presents = batch.presented.iter().any(|presented| !presented.positions.is_empty());
        batch.walk = if presents { Walk::Back(next) } else { Walk::On(cleared) };
    }

    /// Goes on with the walk over the log entries of a batch. An entry that comes meanwhile is met by it too, since none of the batch
    /// is bound before it has reached the end.
    pub(super) fn bind_on(&mut self, gateway: GatewayId, units: &mut Units, out: &mut Vec<Output>) {
        let walk = self.gateways.session(gateway).map_or(Walk::NotYet, |session| session.batch.walk);
        match walk {
            Walk::NotYet => {}
            Walk::Back(before) => self.walk_back(gateway, before, units),
            Walk::On(from) => self.walk_on(gateway, from, units, out),
        }
    }

    /// Back to where nobody of the batch has missed anything, but not beyond what may have to be settled.
    fn walk_back(&mut self, gateway: GatewayId, before: u64, units: &mut Units) {
        let Some(known) = self.gateways.get_mut(gateway) else { return };
        let Some(session) = &mut known.session else { return };
        let lowest = lowest_of(&session.batch, self.marks.received());
        let mut at = known.log.partition_point(|number| *number < before);
        let mut open: Vec<_> = self.marks.received().iter().map(|position| position.backend).collect();
        let mut from = before;
        while !open.is_empty() && at > 0 {
            if units.are_spent() {
                session.batch.walk = Walk::Back(from);
                return;
            }
            units.take(ENTRY_UNITS);
            at -= 1;
            from = known.log[at];
            if let Some(entry) = self.log.get(from).filter(|entry| !entry.of_pass)
                && lowest.covers(&entry.position)
            {
                open.retain(|backend| *backend != entry.position.backend);
            }
        }
        session.batch.walk = Walk::On(if open.is_empty() { from.min(known.cleared) } else { 0 });
    }

    fn walk_on(&mut self, gateway: GatewayId, from: u64, units: &mut Units, out: &mut Vec<Output>) {
        let Some(known) = self.gateways.get(gateway) else { return };
        let Some(session) = &known.session else { return };
        let mut settled: Vec<Settle> = Vec::new();
        let mut items: Vec<Item> = Vec::new();
        let mut next = None;
        let start = known.log.partition_point(|number| *number < from);
        for &number in known.log.range(start..) {
            if units.are_spent() {
                next = Some(number);
                break;
            }
            units.take(ENTRY_UNITS);
            // What a pass brought is read again from where its Gateway has got to.
            let Some(entry) = self.log.get(number).filter(|entry| !entry.of_pass) else { continue };
            let Some(slice) = entry.slice(gateway) else { continue };
            let mut again: Vec<SubId> = Vec::new();
            for at in slice.range() {
                let target = &entry.targets[at];
                let Some(positions) = session.batch.positions_of(target.sub) else { continue };
                if self.subs.get(target.sub).is_none() || self.subs.is_skipped(target.sub, number, &entry.position) {
                    continue;
                }
                if positions.covers(&entry.position) {
                    settled.push(Settle { number, target: at as u32 });
                } else if !target.settled() || !positions.is_empty() {
                    again.push(target.sub);
                }
            }
            units.take(slice.range().len() as u32 / TARGETS_A_UNIT);
            if !again.is_empty() {
                again.sort_unstable();
                let position = Box::new(entry.position);
                items.push(Item::Replay { number, start: 0, subs: again.into(), position });
            }
        }
        settled.into_iter().for_each(|settle| self.settle(settle));
        let Some(session) = self.gateways.session_mut(gateway) else { return };
        session.batch.replays.extend(items);
        match next {
            Some(next) => session.batch.walk = Walk::On(next),
            None => {
                let batch = std::mem::take(&mut session.batch);
                units.take(BIND_UNITS * batch.presented.len() as u32);
                self.bind_all(gateway, batch, out);
            }
        }
    }

    /// Binds subscriptions that went live before, and queues what each has not had.
    fn bind_all(&mut self, gateway: GatewayId, batch: Batch, out: &mut Vec<Output>) {
        let Batch { presented, replays, .. } = batch;
        let mut resyncs: Vec<(SubId, ResyncReason)> = Vec::new();
        for Presented { sub: id, positions } in &presented {
            let Some(sub) = self.subs.get(*id) else { continue };
            if positions.is_empty() && sub.is_kept_by_session() {
                // A process before said that it had what this node has not read yet. This one has not, and is told `live_from`.
                self.subs.lower_floor(*id, self.marks.received());
            }
            match self.judge(*id, positions, self.marks.received()) {
                Begin::Anew(reason) => resyncs.push((*id, reason)),
                Begin::GoesOn(from) => self.go_on(*id, positions, from, out),
            }
        }
        for reason in [
            ResyncReason::LineageChanged,
            ResyncReason::HistoryLost,
            ResyncReason::TooSlow,
            ResyncReason::PreimageMissing,
        ] {
            let broken: Vec<SubId> = resyncs.iter().filter(|(_, why)| *why == reason).map(|(id, _)| *id).collect();
            if !broken.is_empty() {
                self.resync(broken, reason, out);
            }
        }
        for Presented { sub, .. } in &presented {
            self.bind(*sub, out);
        }
        replays.into_iter().for_each(|item| self.queue(gateway, item, out));
    }

    /// Gives it a handle in its Gateway's session. Tells of a break that nobody has been told of, and that it is behind, if it is.
    pub(super) fn bind(&mut self, id: SubId, out: &mut Vec<Output>) {
        let Some(sub) = self.subs.get(id) else { return };
        let gateway = self.subs.gateway_of(sub);
        let Some(session) = self.gateways.session_mut(gateway) else { return };
        let Some((mark, handle)) = session.next_handle() else { return };
        let Some(key) = self.subs.key_of(id) else { return };
        let bound = Bound {
            handle,
            key,
            generation: self.subs.generation_of(id),
            live_from: self.subs.live_from(id).clone(),
            leaves: self.config.promises_leaves(),
        };
        let broken = self.subs.rare_if_any(id).and_then(|rare| rare.broken.take());
        if let Some(sub) = self.subs.get_mut(id) {
            sub.set_mark(mark);
            sub.set_resync_queued(broken.is_some());
        }
        self.queue(gateway, Item::Bound(Box::new(bound)), out);
        if let Some(reason) = broken {
            self.stats.resyncs.count(reason);
            self.queue(gateway, Item::Resync { sub: id, reason }, out);
        }
        let behind = self.subs.rare(id).map(|rare| rare.behind.iter().map(|behind| behind.at.backend));
        let behind: SmallVec<[BackendId; 1]> = behind.into_iter().flatten().collect();
        if !behind.is_empty() {
            self.queue(gateway, Item::CatchingUp(id), out);
            behind.into_iter().for_each(|backend| self.starts_waiting(id, backend, None));
        }
    }

    /// How a subscription begins in a session that presents these positions for it, or none. `now` are the last positions received.
    fn judge(&self, id: SubId, presented: &Positions, now: &Positions) -> Begin {
        let Some(sub) = self.subs.get(id) else { return Begin::GoesOn(From::new()) };
        let rare = self.subs.rare(id);
        let broken = rare.and_then(|rare| rare.broken);
        let lineage_is_over =
            |position: &Position| now.get(position.backend).is_some_and(|now| now.lineage != position.lineage);
        let mut from = From::new();
        if presented.is_empty() {
            if let Some(reason) = broken {
                return Begin::Anew(reason);
            }
            let gateway = self.gateways.get(self.subs.gateway_of(sub));
            let lost = rare.into_iter().flat_map(|rare| &rare.lost);
            let lost = lost.filter(|lost| gateway.is_none_or(|gateway| !gateway.is_done(lost))).map(|lost| lost.from);
            let behind = rare.into_iter().flat_map(|rare| &rare.behind).map(|behind| behind.done);
            for position in behind.chain(lost) {
                match from.iter_mut().find(|from| from.backend == position.backend) {
                    Some(from) => *from = earlier(*from, position),
                    None => from.push(position),
                }
            }
            let is_over = from.iter().any(lineage_is_over);
            return if is_over { Begin::Anew(ResyncReason::LineageChanged) } else { Begin::GoesOn(from) };
        }
        if presented.iter().any(lineage_is_over) {
            return Begin::Anew(ResyncReason::LineageChanged);
        }
        let live_from = self.subs.live_from(id);
        let tail = self.subs.tail_of(id);
        let is_behind = |backend| rare.is_some_and(|rare| rare.behind(backend).is_some());
        let too_old = |position: &Position| {
            let before = |bound: &Positions| {
                let bound = bound.get(position.backend);
                bound.is_some_and(|bound| bound.compare(position).is_some_and(|order| order.is_gt()))
            };
            before(live_from) || before(&tail)
        };
        let has_all = |position: &Position| now.get(position.backend).is_some_and(|now| now.is_covered_by(position));
        let lacks = |position: &&Position| !has_all(position) && (is_behind(position.backend) || too_old(position));
        from.extend(presented.iter().filter(lacks).copied());
        // A backend of which nothing was presented counts as had up to where the subscription began.
        let not_presented = live_from.iter().filter(|from| presented.get(from.backend).is_none());
        from.extend(not_presented.filter(lacks).copied());
        let others = rare.into_iter().flat_map(|rare| &rare.behind).map(|behind| behind.done);
        from.extend(others.filter(|at| presented.get(at.backend).or(live_from.get(at.backend)).is_none()));
        match broken {
            Some(reason) if !from.is_empty() => Begin::Anew(reason),
            _ => Begin::GoesOn(from),
        }
    }
}

/// How a subscription begins in a session.
#[derive(Debug)]
enum Begin {
    /// Its continuity is broken.
    Anew(ResyncReason),
    /// What it has not had is in the log, but for these backends, where it is in the history after these positions.
    GoesOn(From),
}

type From = SmallVec<[Position; 1]>;

/// For each backend, the lowest position that anybody in the batch presents. A backend of which somebody who presents any presents
/// none isn't named, nor one whose history is another one now.
fn lowest_of(batch: &Batch, received: &Positions) -> Positions {
    let presented = || batch.presented.iter().map(|presented| &presented.positions).filter(|all| !all.is_empty());
    let lowest = |now: &wire::Position| {
        let mut lowest = *now;
        for positions in presented() {
            let position = positions.get(now.backend)?;
            if position.compare(&lowest)?.is_lt() {
                lowest = *position;
            }
        }
        Some(lowest)
    };
    received.iter().filter_map(lowest).collect()
}

/// Targets of an entry that are looked at for one unit.
const TARGETS_A_UNIT: u32 = 16;
