//! A subscription goes live, is bound to a handle, and is told what it missed or that it missed something.

use wire::{Bound, Positions, ResyncReason};

use super::Shard;
use super::work::{BIND_UNITS, ENTRY_UNITS, Units};
use crate::Output;
use crate::outbox::Settle;
use crate::session::{Batch, Item, Presented, Walk};
use crate::subscription::{GatewayId, SubId, Subscriptions};

impl Shard {
    /// Has it take note of being live, if it is. Whether it is.
    pub(super) fn wake(&mut self, id: SubId, out: &mut Vec<Output>) -> bool {
        let Some(sub) = self.subs.get(id) else { return false };
        if sub.is_live() {
            return true;
        }
        let number = sub.pending_number();
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
        let presented = self.subs.rare_if_any(id).map(|rare| std::mem::take(&mut rare.floor)).unwrap_or_default();
        if !presented.is_empty() {
            match judge(&self.subs, id, &presented, live_from) {
                Some(reason) => self.subs.rare_mut(id).broken = Some(reason),
                None => self.raise_floor(id, &presented),
            }
        }
        let Some(sub) = self.subs.get(id) else { return };
        let here = self.gateways.session(self.subs.gateway_of(sub));
        if here.is_some_and(|session| session.synced || session.has_met(sub)) {
            self.bind(id, out);
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
            if let Some(entry) = self.log.get(from)
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
            let Some(entry) = self.log.get(number) else { continue };
            let Some(slice) = entry.slice(gateway) else { continue };
            let mut again: Vec<SubId> = Vec::new();
            for at in slice.range() {
                let target = &entry.targets[at];
                let Some(positions) = session.batch.positions_of(target.sub) else { continue };
                if self.subs.get(target.sub).is_none() || self.subs.is_skipped(target.sub, number) {
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
                items.push(Item::Replay { number, start: 0, subs: again.into() });
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
            if self.subs.get(*id).is_none() {
                continue;
            }
            match judge(&self.subs, *id, positions, self.marks.received()) {
                Some(reason) => resyncs.push((*id, reason)),
                None => {
                    if let Some(rare) = self.subs.rare_if_any(*id) {
                        rare.broken = None;
                    }
                    self.raise_floor(*id, positions);
                }
            }
        }
        for reason in [
            ResyncReason::LineageChanged,
            ResyncReason::PositionTooOld,
            ResyncReason::OutboxOverrun,
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

    /// Gives it a handle in its Gateway's session. Tells of a break that nobody has been told of.
    pub(super) fn bind(&mut self, id: SubId, out: &mut Vec<Output>) {
        let Some(sub) = self.subs.get(id) else { return };
        let gateway = self.subs.gateway_of(sub);
        let Some(session) = self.gateways.session_mut(gateway) else { return };
        let Some((mark, handle)) = session.next_handle() else { return };
        let bound = Bound {
            handle,
            key: self.subs.key_of(sub),
            generation: self.subs.generation_of(id),
            live_from: self.subs.live_from(sub).clone(),
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
    }
}

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

/// Why a subscription can't go on from the presented positions, if it can't. `now` are the last positions received.
fn judge(subs: &Subscriptions, id: SubId, presented: &Positions, now: &Positions) -> Option<ResyncReason> {
    let broken = subs.rare(id).and_then(|rare| rare.broken);
    if presented.is_empty() {
        return broken;
    }
    for position in presented.iter() {
        if now.get(position.backend).is_some_and(|now| now.lineage != position.lineage) {
            return Some(ResyncReason::LineageChanged);
        }
    }
    let live_from = subs.live_from(subs.get(id)?);
    let tail = subs.tail_of(id);
    let too_old = |position: &wire::Position| {
        let before = |bound: &Positions| {
            bound.get(position.backend).is_some_and(|bound| bound.compare(position).is_some_and(|order| order.is_gt()))
        };
        before(live_from) || before(&tail)
    };
    // A backend of which nothing was presented counts as had up to where the subscription began.
    let lost_of_others =
        tail.iter().filter(|tail| presented.get(tail.backend).is_none()).any(|tail| !live_from.covers(tail));
    (presented.iter().any(too_old) || lost_of_others).then(|| broken.unwrap_or(ResyncReason::PositionTooOld))
}

/// Targets of an entry that are looked at for one unit.
const TARGETS_A_UNIT: u32 = 16;
