//! A subscription's life: it comes in, is renewed, may lose its continuity, and ends.

use wire::{CloseReason, Positions, ResyncReason, SubscribeItem, SubscriptionKey};

use super::Shard;
use super::work::{ENTRY_UNITS, Units};
use crate::outbox::Settle;
use crate::session::{Item, Presented};
use crate::subscription::{Content, GatewayId, New, Rest, SubId};
use crate::{Admission, Output};

impl Shard {
    /// Takes in what was admitted, for a Gateway that is known. It is live at once where the ingest thread already routes what it
    /// wants. None if the Gateway isn't known.
    #[expect(clippy::too_many_arguments, reason = "what a subscription is made of comes together here, once")]
    pub(super) fn create(
        &mut self,
        gateway: GatewayId,
        item: SubscribeItem,
        content: Content,
        admission: Admission,
        generation: u32,
        by_session: bool,
        out: &mut Vec<Output>,
    ) -> Option<SubId> {
        let ttl_s = self.ttl_s(&item);
        let SubscribeItem { key, collection, positions, transitions, .. } = item;
        let known = self.gateways.get_mut(gateway)?;
        let filter_key = self.index.filter_key(&key.tenant, &collection, &admission.predicate);
        let added_at = self.filter.add(filter_key);
        if self.sync.registered(&known.name) {
            known.named_at = self.filter.raise();
        }
        let needs = added_at.max(known.named_at);
        let expires_at = self.time + u64::from(ttl_s) * 1_000;
        let id = self.subs.insert(
            &mut known.members,
            New { gateway, key: &key, content, transitions, generation, filter_key, by_session, ttl_s, expires_at },
        );
        if by_session
            && let Some(session) = &known.session
            && let Some(sub) = self.subs.get_mut(id)
        {
            sub.set_mark(session.base());
        }
        self.index.insert(id.slot, &key.tenant, &collection, &admission.predicate);
        if !positions.is_empty() {
            self.subs.rare_mut(id).floor = positions;
        }
        if self.filter_seen > 0 && needs <= self.filter_seen {
            let live_from = self.marks.received().clone();
            self.activate(id, &live_from, out);
        } else {
            // The newest version rather than the one that it needs: so those that wait stand in the order of their versions.
            let number = self.pending.push(self.filter.version(), id);
            self.subs.set_pending_number(id, number);
        }
        Some(id)
    }

    /// The same content under the same name: its history goes on. Gives what is to be bound, if it is.
    pub(super) fn renew(
        &mut self,
        gateway: GatewayId,
        id: SubId,
        ttl_s: u32,
        positions: Positions,
        out: &mut Vec<Output>,
    ) -> Option<Presented> {
        let live = self.wake(id, out);
        let expires_at = self.time + u64::from(ttl_s) * 1_000;
        let known = self.gateways.get_mut(gateway)?;
        let of_session = self.subs.get(id)?.is_kept_by_session();
        self.subs.set_kept_by_session(&mut known.members, id);
        let session = known.session.as_ref()?;
        let rest = self.subs.rest_mut(id)?;
        rest.set_ttl(ttl_s);
        rest.set_expires_at(expires_at.max(rest.expires_at()));
        let sub = self.subs.get_mut(id)?;
        let (bound, met) = (session.has_bound(sub), session.has_met(sub));
        if !bound {
            sub.set_mark(session.base());
        }
        if !live {
            if !positions.is_empty() {
                let presented = &mut self.subs.rare_mut(id).floor;
                positions.iter().for_each(|position| presented.set(*position));
            } else if of_session && !met {
                // What a process before had is not what this one has.
                self.subs.lower_floor(id, self.marks.received());
            }
            return None;
        }
        (!bound).then_some(Presented { sub: id, positions })
    }

    /// Their continuity is broken: what they are owed is given up, and they are told, or will be when they are bound.
    pub(super) fn resync(&mut self, mut subs: Vec<SubId>, reason: ResyncReason, out: &mut Vec<Output>) {
        subs.sort_unstable();
        subs.dedup();
        let next = self.log.next();
        let received = self.marks.received().clone();
        for id in subs {
            let Some(gateway) = self.subs.get(id).map(|sub| self.subs.gateway_of(sub)) else { continue };
            if self.may_be_owed(gateway, id) {
                self.forgive_later(gateway);
            }
            self.gives_up_catching_up(id);
            self.subs.live_anew(id, &received);
            self.subs.clear_tail(id);
            let bound = self.subs.get(id).zip(self.gateways.session(gateway));
            let bound = bound.is_some_and(|(sub, session)| session.has_bound(sub));
            let rare = self.subs.rare_mut(id);
            rare.skip_before = next;
            rare.lost.clear();
            rare.broken = (!bound).then_some(reason);
            if !bound {
                continue;
            }
            if let Some(session) = self.gateways.session_mut(gateway) {
                session.drop_heartbeat();
            }
            if let Some(sub) = self.subs.get_mut(id)
                && !sub.is_resync_queued()
            {
                sub.set_resync_queued(true);
                self.stats.resyncs.count(reason);
                self.queue(gateway, Item::Resync { sub: id, reason }, out);
            }
        }
    }

    /// Goes on with settling what nobody waits for any more in a Gateway's log entries: whoever has ended, and whoever is told
    /// something else in their place, a resync or what is in the history. Whether that is not all yet.
    pub(super) fn forgive(&mut self, gateway: GatewayId, units: &mut Units) -> bool {
        let Some(known) = self.gateways.get(gateway) else { return false };
        let Some(from) = known.forgiving else { return false };
        let mut settled: Vec<Settle> = Vec::new();
        let mut next = None;
        let start = known.log.partition_point(|number| *number < from);
        for &number in known.log.range(start..) {
            if units.are_spent() {
                next = Some(number);
                break;
            }
            units.take(ENTRY_UNITS);
            let Some(entry) = self.log.get(number).filter(|entry| entry.unsettled > 0) else { continue };
            let Some(slice) = entry.slice(gateway) else { continue };
            for at in slice.range() {
                let target = &entry.targets[at];
                let skipped = || self.subs.is_skipped(target.sub, number, &entry.position);
                let waits = || self.subs.get(target.sub).is_some() && !skipped();
                if !target.settled() && !waits() {
                    settled.push(Settle { number, target: at as u32 });
                }
            }
            units.take(slice.range().len() as u32 / TARGETS_A_UNIT);
        }
        units.take(1);
        settled.into_iter().for_each(|settle| self.settle(settle));
        if next.is_none() {
            self.clear(gateway, units);
        }
        let Some(known) = self.gateways.get_mut(gateway) else { return false };
        if next.is_none() && std::mem::take(&mut known.forgive_again) {
            next = Some(known.cleared);
        }
        known.forgiving = next;
        next.is_some()
    }

    /// Moves a Gateway's mark over entries that it is owed nothing of any more, as far as there are units.
    pub(super) fn clear(&mut self, gateway: GatewayId, units: &mut Units) {
        let Some(known) = self.gateways.get_mut(gateway) else { return };
        let start = known.log.partition_point(|number| *number < known.cleared);
        known.cleared = self.log.next();
        for &number in known.log.range(start..) {
            units.take(ENTRY_UNITS);
            let owed = self.log.get(number).filter(|entry| entry.unsettled > 0).is_some_and(|entry| {
                entry.slice(gateway).is_some_and(|slice| entry.targets[slice.range()].iter().any(|t| !t.settled()))
            });
            if owed || units.are_spent() {
                known.cleared = number;
                break;
            }
        }
    }

    /// Ends subscriptions. Their handles are told closed, and they no longer count unless others take their place.
    pub(super) fn end(&mut self, ids: Vec<SubId>, reason: CloseReason, out: &mut Vec<Output>) {
        let mut released: Vec<(GatewayId, SubscriptionKey)> = Vec::new();
        for (at, id) in ids.iter().copied().enumerate() {
            if at % index::BATCH_MAX == 0 {
                self.index.announce_removal(ids[at..].iter().take(index::BATCH_MAX).map(|id| id.slot));
            }
            self.tell_closed(id, reason, out);
            let Some(id_gateway) = self.subs.get(id).map(|sub| self.subs.gateway_of(sub)) else { continue };
            let owed = self.may_be_owed(id_gateway, id);
            self.gives_up_catching_up(id);
            let Some(known) = self.gateways.get_mut(id_gateway) else { continue };
            let Some(ended) = self.subs.remove(&mut known.members, id) else { continue };
            let Some(gateway) = self.gateways.get(id_gateway) else { continue };
            self.index.remove(id.slot);
            self.filter.remove(ended.filter_key);
            if gateway.members.is_empty() && reason != CloseReason::Replaced {
                self.sync.gone(&gateway.name);
            }
            match reason {
                CloseReason::Replaced => {}
                CloseReason::Expired => {
                    self.stats.subscriptions_expired += 1;
                    self.expired.remember(&gateway.name, &ended.key);
                    released.push((id_gateway, ended.key));
                }
                CloseReason::Unsubscribed | CloseReason::Removed => {
                    self.stats.subscriptions_removed += 1;
                    released.push((id_gateway, ended.key));
                }
            }
            if let Some(number) = ended.waited {
                self.waits_no_more(number);
            }
            if owed {
                self.forgive_later(id_gateway);
            }
        }
        released.sort_by_key(|(gateway, _)| *gateway);
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
        let gateway = self.subs.gateway_of(sub);
        let Some(session) = self.gateways.session(gateway) else { return };
        let told = matches!(reason, CloseReason::Expired | CloseReason::Removed);
        if !session.has_bound(sub) && session.has_met(sub) && told {
            // It was accepted and then ended by others, before it ever had a handle to say so with.
            self.wake(id, out);
            let unbound = self.subs.get(id).zip(self.gateways.session(gateway));
            if unbound.is_some_and(|(sub, session)| !session.has_bound(sub)) {
                self.bind(id, out);
            }
        }
        let Some(sub) = self.subs.get(id) else { return };
        let Some(session) = self.gateways.session_mut(gateway) else { return };
        if let Some(handle) = session.handle_of(sub) {
            // A heartbeat that waits would claim that what it was owed has been sent.
            session.drop_heartbeat();
            session.closed_waiting += 1;
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

    /// None while a session keeps it.
    pub(super) fn expires_at(&self, id: SubId) -> Option<u64> {
        let sub = self.subs.get(id)?;
        if !sub.is_kept_by_session() {
            return self.subs.rest(id).map(Rest::expires_at);
        }
        let gateway = self.gateways.get(self.subs.gateway_of(sub))?;
        match gateway.session {
            Some(_) => None,
            None => self.subs.rest(id).map(|rest| rest.expires_at().max(gateway.session_ended_at + rest.ttl_ms())),
        }
    }

    pub(super) fn ttl_s(&self, item: &SubscribeItem) -> u32 {
        if item.ttl_s == 0 { self.config.ttl_default_s } else { item.ttl_s }
    }
}

/// Targets of an entry that are looked at for one unit.
const TARGETS_A_UNIT: u32 = 16;
