//! A subscription's life: it comes in, goes live, is bound to a handle, is told what it missed or that it missed something, and
//! ends.

use hashbrown::HashMap;
use wire::{Bound, CloseReason, Positions, ResyncReason, SubscribeItem, SubscriptionKey};

use super::Shard;
use crate::outbox::Settle;
use crate::session::Item;
use crate::subscription::{Binding, Content, GatewayId, Stage, SubId, Subscription};
use crate::{Admission, ConnectionId, Output};

/// A subscription that is to be bound, and the positions that its Gateway presented for it. None presented: what it is owed.
pub(super) struct Presented {
    pub(super) sub: SubId,
    pub(super) positions: Positions,
}

impl Shard {
    /// Takes in what was admitted. It is live at once where the ingest thread already routes what it wants.
    pub(super) fn create(
        &mut self,
        gateway: GatewayId,
        item: SubscribeItem,
        admission: Admission,
        generation: u32,
        presented_in: Option<ConnectionId>,
        out: &mut Vec<Output>,
    ) -> SubId {
        let ttl_ms = self.ttl_ms(&item);
        let content = Content::of(&item);
        let SubscribeItem { key, collection, positions, .. } = item;
        let filter_key = self.index.filter_key(&key.tenant, &collection, &admission.predicate);
        let added_at = self.filter.add(filter_key);
        let mut named_at = 0;
        if let Some(known) = self.gateways.get_mut(gateway) {
            if self.sync.registered(&known.name) {
                known.named_at = self.filter.raise();
            }
            named_at = known.named_at;
        }
        let filter_version = added_at.max(named_at);
        let tenant = key.tenant.clone();
        let sub = self.subs.insert(Subscription {
            gateway,
            key: key.clone(),
            content,
            generation,
            filter_key,
            filter_version,
            stage: Stage::Pending { presented: positions },
            ttl_ms,
            by_session: presented_in.is_some(),
            expires_at: self.time + ttl_ms,
            live_from: Positions::default(),
            tail: Positions::default(),
            floor: Positions::default(),
            broken: None,
            owed: 0,
            skip_before: 0,
            binding: None,
            presented_in,
        });
        self.index.insert(sub.slot, &tenant, &collection, &admission.predicate);
        let before = self.gateways.get_mut(gateway).and_then(|known| known.subscriptions.insert(key, sub));
        debug_assert!(before.is_none(), "a subscription takes the place of one that hasn't ended");
        self.pending.push(sub);
        if self.filter_seen > 0 && filter_version <= self.filter_seen {
            self.pending.pop();
            let live_from = self.marks.received().clone();
            self.activate(sub, &live_from, out);
        }
        sub
    }

    /// Every match after `live_from` is delivered from here on.
    pub(super) fn activate(&mut self, id: SubId, live_from: &Positions, out: &mut Vec<Output>) {
        let next = self.log.next();
        let Some(sub) = self.subs.get_mut(id) else { return };
        let Stage::Pending { presented } = std::mem::replace(&mut sub.stage, Stage::Live) else {
            debug_assert!(false, "{:?} goes live twice", sub.key);
            return;
        };
        sub.live_from = live_from.clone();
        sub.skip_before = next;
        sub.broken = judge(sub, &presented, live_from);
        if sub.broken.is_none() {
            sub.floor = presented;
        }
        let (gateway, presented_in) = (sub.gateway, sub.presented_in);
        let here = self.gateways.session(gateway);
        if here.is_some_and(|session| session.synced || presented_in == Some(session.connection)) {
            self.bind(id, out);
        }
    }

    /// Binds subscriptions that went live before, and queues what each has not had. One walk over the Gateway's log entries for
    /// all of them.
    pub(super) fn bind_all(&mut self, gateway: GatewayId, presented: Vec<Presented>, out: &mut Vec<Output>) {
        let mut resyncs: Vec<(SubId, ResyncReason)> = Vec::new();
        let mut replays: HashMap<SubId, Positions> = HashMap::new();
        for Presented { sub: id, positions } in &presented {
            let received = self.marks.received();
            let Some(sub) = self.subs.get_mut(*id) else { continue };
            match judge(sub, positions, received) {
                Some(reason) => resyncs.push((*id, reason)),
                None => {
                    sub.broken = None;
                    if positions.iter().any(|position| !received.covers(position)) {
                        sub.floor = positions.clone();
                    }
                    replays.insert(*id, positions.clone());
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
        self.replay(gateway, &replays, out);
    }

    /// Gives it a handle in its Gateway's session. Tells of a break that nobody has been told of.
    fn bind(&mut self, id: SubId, out: &mut Vec<Output>) {
        let from = self.log.next();
        let Some(sub) = self.subs.get_mut(id) else { return };
        let Some(session) = self.gateways.session_mut(sub.gateway) else { return };
        let Some(handle) = session.next_handle() else { return };
        let broken = sub.broken.take();
        sub.binding = Some(Binding { session: session.connection, handle, from, resync_queued: broken.is_some() });
        let bound = Bound {
            handle,
            key: sub.key.clone(),
            generation: sub.generation,
            live_from: sub.live_from.clone(),
            leaves: self.config.promises_leaves(),
        };
        let gateway = sub.gateway;
        self.queue(gateway, Item::Bound(Box::new(bound)), out);
        if let Some(reason) = broken {
            self.stats.resyncs.count(reason);
            self.queue(gateway, Item::Resync { sub: id, reason }, out);
        }
    }

    /// Queues the entries that these have not had: all above the presented positions, or all that are owed.
    fn replay(&mut self, gateway: GatewayId, subs: &HashMap<SubId, Positions>, out: &mut Vec<Output>) {
        let mut settled: Vec<Settle> = Vec::new();
        let mut items: Vec<Item> = Vec::new();
        let Some(known) = self.gateways.get(gateway) else { return };
        if subs.is_empty() {
            return;
        }
        for &number in &known.log {
            let Some(entry) = self.log.get(number) else { continue };
            let Some(slice) = entry.slice(gateway) else { continue };
            let mut again: Vec<SubId> = Vec::new();
            for at in slice.range() {
                let target = &entry.targets[at];
                let Some(positions) = subs.get(&target.sub) else { continue };
                if self.subs.get(target.sub).is_none_or(|sub| number < sub.skip_before) {
                    continue;
                }
                if positions.covers(&entry.position) {
                    settled.push(Settle { number, target: at as u32 });
                } else if !target.settled() || !positions.is_empty() {
                    again.push(target.sub);
                }
            }
            if !again.is_empty() {
                again.sort_unstable();
                items.push(Item::Replay { number, start: 0, subs: again.into() });
            }
        }
        settled.into_iter().for_each(|settle| self.settle(settle));
        items.into_iter().for_each(|item| self.queue(gateway, item, out));
    }

    /// Their continuity is broken: what they are owed is given up, and they are told, or will be when they are bound.
    pub(super) fn resync(&mut self, mut subs: Vec<SubId>, reason: ResyncReason, out: &mut Vec<Output>) {
        subs.sort_unstable();
        subs.dedup();
        self.forgive(&subs);
        for id in subs {
            let next = self.log.next();
            let Some(sub) = self.subs.get_mut(id) else { continue };
            sub.skip_before = next;
            sub.live_from = self.marks.received().clone();
            sub.tail = Positions::default();
            let gateway = sub.gateway;
            let session = self.gateways.session(gateway).map(|session| session.connection);
            match sub.binding.as_mut().filter(|binding| Some(binding.session) == session) {
                None => sub.broken = Some(reason),
                Some(binding) => {
                    sub.broken = None;
                    if let Some(session) = self.gateways.session_mut(gateway) {
                        session.drop_heartbeat();
                    }
                    if !std::mem::replace(&mut binding.resync_queued, true) {
                        self.stats.resyncs.count(reason);
                        self.queue(gateway, Item::Resync { sub: id, reason }, out);
                    }
                }
            }
        }
    }

    /// Settles all that these are owed. `subs` are in the order of their names.
    fn forgive(&mut self, subs: &[SubId]) {
        let mut owed: HashMap<GatewayId, u32> = HashMap::new();
        for sub in subs.iter().filter_map(|id| self.subs.get(*id)).filter(|sub| sub.owed > 0) {
            *owed.entry(sub.gateway).or_default() += sub.owed;
        }
        for (gateway, mut left) in owed {
            self.clear(gateway);
            let Some(known) = self.gateways.get(gateway) else { continue };
            let mut settled: Vec<Settle> = Vec::new();
            let start = known.log.partition_point(|number| *number < known.cleared);
            for &number in known.log.range(start..) {
                let Some(entry) = self.log.get(number) else { continue };
                let Some(slice) = entry.slice(gateway) else { continue };
                for at in slice.range() {
                    let target = &entry.targets[at];
                    if !target.settled() && subs.binary_search(&target.sub).is_ok() {
                        settled.push(Settle { number, target: at as u32 });
                        left -= 1;
                    }
                }
                if left == 0 {
                    break;
                }
            }
            settled.into_iter().for_each(|settle| self.settle(settle));
        }
    }

    /// Moves a Gateway's mark over entries that it is owed nothing of any more.
    fn clear(&mut self, gateway: GatewayId) {
        let Some(known) = self.gateways.get_mut(gateway) else { return };
        let start = known.log.partition_point(|number| *number < known.cleared);
        known.cleared = self.log.next();
        for &number in known.log.range(start..) {
            let owed = self.log.get(number).filter(|entry| entry.unsettled > 0).is_some_and(|entry| {
                entry.slice(gateway).is_some_and(|slice| entry.targets[slice.range()].iter().any(|t| !t.settled()))
            });
            if owed {
                known.cleared = number;
                break;
            }
        }
    }

    /// The same content under the same name: its history goes on. Gives what is to be bound, if it is.
    pub(super) fn renew(&mut self, id: SubId, item: SubscribeItem, session: ConnectionId) -> Option<Presented> {
        let ttl_ms = self.ttl_ms(&item);
        let time = self.time;
        let sub = self.subs.get_mut(id)?;
        sub.ttl_ms = ttl_ms;
        sub.expires_at = sub.expires_at.max(time + ttl_ms);
        sub.by_session = true;
        sub.presented_in = Some(session);
        if let Stage::Pending { presented } = &mut sub.stage {
            item.positions.iter().for_each(|position| presented.set(*position));
            return None;
        }
        let unbound = sub.bound_in(session).is_none();
        unbound.then_some(Presented { sub: id, positions: item.positions })
    }

    /// Ends subscriptions. Their handles are told closed, and they no longer count unless others take their place.
    pub(super) fn end(&mut self, mut ids: Vec<SubId>, reason: CloseReason, out: &mut Vec<Output>) {
        ids.sort_unstable();
        ids.dedup();
        self.forgive(&ids);
        let mut released: Vec<(GatewayId, SubscriptionKey)> = Vec::new();
        for id in ids {
            self.tell_closed(id, reason, out);
            let Some(sub) = self.subs.remove(id) else { continue };
            self.index.remove(id.slot);
            self.filter.remove(sub.filter_key);
            if !sub.is_live() {
                self.pending.retain(|pending| *pending != id);
            }
            let Some(gateway) = self.gateways.get_mut(sub.gateway) else { continue };
            gateway.subscriptions.remove(&sub.key);
            if gateway.subscriptions.is_empty() && reason != CloseReason::Replaced {
                self.sync.gone(&gateway.name);
            }
            match reason {
                CloseReason::Replaced => {}
                CloseReason::Expired => {
                    self.stats.subscriptions_expired += 1;
                    self.expired.remember(gateway.name.clone(), sub.key.clone());
                    released.push((sub.gateway, sub.key));
                }
                CloseReason::Unsubscribed | CloseReason::Removed => {
                    self.stats.subscriptions_removed += 1;
                    released.push((sub.gateway, sub.key));
                }
            }
        }
        released.sort();
        let mut released = released.into_iter().peekable();
        while let Some((gateway, key)) = released.next() {
            let mut keys = vec![key];
            while let Some((_, key)) = released.next_if(|(other, _)| *other == gateway) {
                keys.push(key);
            }
            self.release(gateway, keys, out);
        }
    }

    fn tell_closed(&mut self, id: SubId, reason: CloseReason, out: &mut Vec<Output>) {
        let Some(sub) = self.subs.get(id) else { return };
        let gateway = sub.gateway;
        let Some(session) = self.gateways.session(gateway).map(|session| session.connection) else { return };
        let told = matches!(reason, CloseReason::Expired | CloseReason::Removed);
        if sub.bound_in(session).is_none() && sub.presented_in == Some(session) && told {
            // It was accepted and then ended by others, before it ever had a handle to say so with.
            self.bind(id, out);
        }
        let handle = self.subs.get(id).and_then(|sub| sub.bound_in(session)).map(|binding| binding.handle);
        if let Some(handle) = handle {
            // A heartbeat that waits would claim that what it was owed has been sent.
            if let Some(session) = self.gateways.session_mut(gateway) {
                session.drop_heartbeat();
                session.closed_waiting += 1;
            }
            self.queue(gateway, Item::Closed { handle, reason }, out);
        }
    }

    /// Tells the control side that these no longer count; not while it is being asked about the same names again, because it
    /// counts a name once.
    pub(super) fn release(&mut self, gateway: GatewayId, keys: Vec<SubscriptionKey>, out: &mut Vec<Output>) {
        let Some(known) = self.gateways.get_mut(gateway) else { return };
        let (later, now): (Vec<_>, Vec<_>) = keys.into_iter().partition(|key| known.asking.contains_key(key));
        known.unreleased.extend(later);
        if !now.is_empty() {
            out.push(Output::Released { gateway: known.name.to_string(), keys: now });
        }
    }

    /// Ends what has run out of time.
    pub(super) fn expire(&mut self, out: &mut Vec<Output>) {
        let gone: Vec<SubId> = self
            .subs
            .iter()
            .filter(|(_, sub)| self.expires_at(sub).is_some_and(|at| at <= self.time))
            .map(|(id, _)| id)
            .collect();
        if !gone.is_empty() {
            self.end(gone, CloseReason::Expired, out);
        }
        for gateway in self.gateways.ids() {
            self.gateways.forget_if_idle(gateway);
        }
    }

    /// None while a session keeps it.
    fn expires_at(&self, sub: &Subscription) -> Option<u64> {
        if !sub.by_session {
            return Some(sub.expires_at);
        }
        let gateway = self.gateways.get(sub.gateway)?;
        match gateway.session {
            Some(_) => None,
            None => Some(sub.expires_at.max(gateway.session_ended_at + sub.ttl_ms)),
        }
    }

    pub(super) fn ttl_ms(&self, item: &SubscribeItem) -> u64 {
        let ttl_s = if item.ttl_s == 0 { self.config.ttl_default_s } else { item.ttl_s };
        u64::from(ttl_s) * 1_000
    }
}

/// Why a subscription can't go on from the presented positions, if it can't. `now` are the last positions received.
fn judge(sub: &Subscription, presented: &Positions, now: &Positions) -> Option<ResyncReason> {
    if presented.is_empty() {
        return sub.broken;
    }
    for position in presented.iter() {
        if now.get(position.backend).is_some_and(|now| now.lineage != position.lineage) {
            return Some(ResyncReason::LineageChanged);
        }
    }
    let too_old = |position: &wire::Position| {
        let before = |bound: &Positions| {
            bound.get(position.backend).is_some_and(|bound| bound.compare(position).is_some_and(|order| order.is_gt()))
        };
        before(&sub.live_from) || before(&sub.tail)
    };
    // A backend of which nothing was presented counts as had up to where the subscription began.
    let lost_of_others =
        sub.tail.iter().filter(|tail| presented.get(tail.backend).is_none()).any(|tail| !sub.live_from.covers(tail));
    (presented.iter().any(too_old) || lost_of_others).then(|| sub.broken.unwrap_or(ResyncReason::PositionTooOld))
}
