//! What comes through the ring.

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use smallvec::SmallVec;
use wire::{Certainty, Operation, Position, Positions, ResyncReason, Transition};

use super::Shard;
use crate::index::{Hit, Matched, Rules, Shown};
use crate::outbox::{Entry, Group, Target, What};
use crate::session::{Item, Sent};
use crate::subscription::{GatewayId, SubId};
use crate::{Bare, BareDeletes, Change, FromIngest, Gap, Image, Output, Scope};

impl Shard {
    pub(super) fn on_ingest(&mut self, item: FromIngest, out: &mut Vec<Output>) {
        match item {
            FromIngest::Change(change) => self.on_change(&change, out),
            FromIngest::Progress(position) => self.marks.receive(position),
            FromIngest::FilterSeen { version, positions } => self.on_filter_seen(version, &positions, out),
            FromIngest::Gap(gap) => self.on_gap(&gap, out),
        }
    }

    fn on_filter_seen(&mut self, version: u64, positions: &Positions, out: &mut Vec<Output>) {
        positions.iter().for_each(|position| self.marks.receive(*position));
        self.filter_seen = self.filter_seen.max(version);
        let (live, pending) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|id| self.subs.get(*id).is_none_or(|sub| sub.filter_version <= self.filter_seen));
        self.pending = pending;
        let live: Vec<SubId> = live;
        for id in live {
            self.activate(id, positions, out);
        }
    }

    fn on_change(&mut self, change: &Change, out: &mut Vec<Output>) {
        self.stats.events += 1;
        if self.marks.has_received(&change.position) {
            self.stats.events_repeated += 1;
            return;
        }
        let mut matched = std::mem::take(&mut self.matched);
        self.match_change(change, &mut matched);
        let hits = &mut matched.hits;
        let broken = self.promised_image_is_missing(change, hits);
        if !broken.is_empty() {
            // They read the collection's state anew, and with it what this change did.
            hits.retain(|hit| self.subs.at(hit.slot).is_none_or(|(id, _)| broken.binary_search(&id).is_err()));
        }
        let previous = self.marks.received().get(change.position.backend).copied();
        if hits.is_empty() {
            self.marks.receive(change.position);
        } else {
            self.stats.events_matched += 1;
            let entry = self.entry_of(change, previous, hits);
            self.append(entry, out);
        }
        self.matched = matched;
        if !broken.is_empty() {
            self.resync(broken, ResyncReason::PreimageMissing, out);
        }
    }

    fn match_change(&mut self, change: &Change, matched: &mut Matched) {
        let (subs, gateways) = (&self.subs, &self.gateways);
        let can_verify = |slot: u32| {
            subs.at(slot).and_then(|(_, sub)| gateways.session(sub.gateway)).is_some_and(|session| session.can_verify)
        };
        let transitions = |slot: u32| subs.at(slot).is_some_and(|(_, sub)| sub.content.transitions);
        let rules = Rules {
            bare_deletes: self.config.bare_deletes,
            evaluation_units_max: self.config.evaluation_units_max,
            event_units_max: self.config.event_units_max,
            can_verify: &can_verify,
            transitions: &transitions,
        };
        self.index.matches([change], &rules, matched);
        let counts = matched.ends.first().map_or_else(Default::default, |(_, counts)| *counts);
        matched.hits.retain(|hit| {
            subs.at(hit.slot).is_some_and(|(_, sub)| sub.is_live() && !sub.floor.covers(&change.position))
        });
        self.stats.candidates += counts.candidates;
        self.stats.evaluation_errors += counts.errors;
        self.stats.evaluations_over_budget += counts.over_budget;
        self.stats.bad_documents += counts.bad_documents;
        self.stats.bare_deletes_without_tenant += counts.bare_without_tenant;
    }

    /// Subscriptions that were promised a `leave`, which can't be told because the before-image isn't there. In the order of
    /// their names.
    fn promised_image_is_missing(&self, change: &Change, hits: &[Hit]) -> Vec<SubId> {
        let missing = change.before.is_none()
            && change.operation != Operation::Insert
            && self.config.promises_before_images(change.position.backend);
        if !missing {
            return Vec::new();
        }
        let place = match (&change.after, &change.bare) {
            (Some(after), _) => Some((&after.tenant, &after.collection)),
            (None, Some(bare)) => bare.tenant.as_ref().zip(bare.collection.as_ref()),
            (None, None) => None,
        };
        let slots: Vec<u32> = match (place, &change.bare) {
            (Some((tenant, collection)), _) => self.index.members_of(tenant, collection).to_vec(),
            // Those whom it certainly concerns have been found. Of the others any may be meant, and none is told otherwise.
            (None, Some(Bare { tenant: Some(tenant), .. })) if self.config.bare_deletes == BareDeletes::Known => self
                .index
                .members_of_tenant(tenant)
                .filter(|slot| hits.iter().all(|hit| hit.slot != *slot) && !self.index.is_by_id(*slot))
                .collect(),
            _ => return Vec::new(),
        };
        let members = slots.into_iter().filter_map(|slot| self.subs.at(slot));
        // Without transitions, an update that ends a match is not told anyway.
        let mut broken: Vec<SubId> = members
            .filter(|(_, sub)| sub.is_live() && !sub.floor.covers(&change.position))
            .filter(|(_, sub)| sub.content.transitions || change.operation == Operation::Delete)
            .map(|(id, _)| id)
            .collect();
        broken.sort_unstable();
        broken
    }

    fn entry_of(&self, change: &Change, previous: Option<Position>, hits: &[Hit]) -> Entry {
        let mut shown: SmallVec<[Shown; 2]> = SmallVec::new();
        let mut targets: Vec<(GatewayId, Target)> = Vec::with_capacity(hits.len());
        for hit in hits {
            let Some((sub, subscription)) = self.subs.at(hit.slot) else { continue };
            let group = shown.iter().position(|known| *known == hit.shown).unwrap_or_else(|| {
                shown.push(hit.shown);
                shown.len() - 1
            });
            // As many groups as two images have, or as a tenant has collections on this shard with one document's id.
            let group = u16::try_from(group).unwrap_or(u16::MAX);
            let target = Target { sub, group, transition: hit.transition, certainty: hit.certainty, settled: false };
            targets.push((subscription.gateway, target));
        }
        targets.sort_unstable_by_key(|(gateway, target)| (*gateway, target.group, target.sub));
        let groups = self.groups_of(change, &shown);
        Entry::new(change.position, previous, What::Event { operation: change.operation, groups }, targets)
    }

    /// What each group is shown, in one piece of memory of its own.
    fn groups_of(&self, change: &Change, shown: &[Shown]) -> SmallVec<[Group; 1]> {
        let id = change.document_id.as_ref().unwrap_or(&change.key);
        let image_of = |shown: Shown| match shown {
            Shown::Before => change.before.as_ref(),
            Shown::After => change.after.as_ref(),
            Shown::NothingAt(_) | Shown::Nothing => None,
        };
        let documents = shown.iter().filter_map(|shown| image_of(*shown)).map(|image| image.document.len());
        let mut copied = BytesMut::with_capacity(id.len() + documents.sum::<usize>());
        copied.extend_from_slice(id);
        let id = copied.split().freeze();
        shown
            .iter()
            .map(|shown| {
                let (tenant, collection) = match (*shown, image_of(*shown)) {
                    (_, Some(Image { tenant, collection, .. })) => {
                        (ByteString::from(&**tenant), ByteString::from(&**collection))
                    }
                    (Shown::NothingAt(partition), _) => self.index.place_names(partition),
                    _ => {
                        let tenant = change.bare.as_ref().and_then(|bare| bare.tenant.as_deref()).unwrap_or_default();
                        (ByteString::from(tenant), ByteString::new())
                    }
                };
                let document = match image_of(*shown) {
                    Some(image) => {
                        copied.extend_from_slice(&image.document);
                        copied.split().freeze()
                    }
                    None => Bytes::new(),
                };
                Group { tenant, collection, document_id: id.clone(), document }
            })
            .collect()
    }

    fn on_gap(&mut self, gap: &Gap, out: &mut Vec<Output>) {
        self.stats.gaps += 1;
        let mut slots: Vec<u32> = Vec::new();
        for scope in &gap.scopes {
            match scope {
                Scope::Everything => slots.extend(self.subs.iter().map(|(id, _)| id.slot)),
                Scope::Tenant(tenant) => slots.extend(self.index.members_of_tenant(tenant)),
                Scope::Collection { tenant, collection } => slots.extend(self.index.members_of(tenant, collection)),
            }
        }
        slots.sort_unstable();
        slots.dedup();
        let mut targets: Vec<(GatewayId, Target)> = slots
            .iter()
            .filter_map(|slot| self.subs.at(*slot))
            .filter(|(_, sub)| sub.is_live() && !sub.floor.covers(&gap.position))
            .map(|(sub, subscription)| {
                let target = Target {
                    sub,
                    group: 0,
                    transition: Transition::Update,
                    certainty: Certainty::Matched,
                    settled: false,
                };
                (subscription.gateway, target)
            })
            .collect();
        if targets.is_empty() {
            self.marks.receive(gap.position);
            return;
        }
        targets.sort_unstable_by_key(|(gateway, target)| (*gateway, target.sub));
        let previous = self.marks.received().get(gap.position.backend).copied();
        self.append(Entry::new(gap.position, previous, What::Gap(gap.reason), targets), out);
    }

    /// Puts an entry into the log, and into the queues of the Gateways that are there.
    fn append(&mut self, entry: Entry, out: &mut Vec<Output>) {
        self.make_room(entry.bytes, out);
        let position = entry.position;
        self.stats.deliveries += entry.targets.len() as u64;
        for target in &entry.targets {
            if let Some(sub) = self.subs.get_mut(target.sub) {
                sub.owed += 1;
            }
        }
        let slices = entry.slices.clone();
        let number = self.log.append(entry);
        self.marks.receive(position);
        for slice in slices {
            let Some(gateway) = self.gateways.get_mut(slice.gateway) else {
                debug_assert!(false, "a target of a Gateway that isn't known");
                continue;
            };
            gateway.log.push_back(number);
            let Some(session) = gateway.session.as_ref().map(|session| session.connection) else { continue };
            let targets = self.log.get(number).map_or(&[][..], |entry| &entry.targets[slice.range()]);
            // What isn't bound yet stays owed, and is queued when it is.
            if targets.iter().any(|target| self.subs.get(target.sub).is_some_and(|sub| sub.bound_in(session).is_some()))
            {
                self.queue(slice.gateway, Item::Live { number, bytes: slice.bytes as usize }, out);
                self.bound_outbox(slice.gateway, out);
            }
        }
    }

    /// Lets the oldest entries go until one of so many bytes fits.
    fn make_room(&mut self, bytes: usize, out: &mut Vec<Output>) {
        if self.log.has_room(bytes) {
            return;
        }
        let mut broken = Vec::new();
        while !self.log.has_comfortable_room(bytes)
            && let Some((number, entry)) = self.log.evict()
        {
            self.stats.evictions += 1;
            self.stats.evictions_unsettled += u64::from(entry.unsettled > 0);
            for slice in &entry.slices {
                if let Some(gateway) = self.gateways.get_mut(slice.gateway) {
                    let listed = gateway.log.pop_front();
                    debug_assert_eq!(listed, Some(number), "the log and a Gateway's list of it disagree");
                }
            }
            for target in &entry.targets {
                let Some(sub) = self.subs.get_mut(target.sub) else { continue };
                sub.tail.advance(entry.position);
                if target.settled {
                    continue;
                }
                sub.owed -= 1;
                let session = self.gateways.session(sub.gateway).map(|session| session.connection);
                match session.and_then(|session| sub.bound_in(session)) {
                    Some(_) => broken.push(target.sub),
                    None => sub.broken = Some(ResyncReason::OutboxOverrun),
                }
            }
        }
        if !broken.is_empty() {
            self.resync(broken, ResyncReason::OutboxOverrun, out);
        }
    }

    /// Holds a Gateway to what may wait for it. What waits is given up first; if what was sent and isn't done is too much by
    /// itself, that too.
    fn bound_outbox(&mut self, gateway: GatewayId, out: &mut Vec<Output>) {
        let max = self.config.outbox_bytes_max;
        let Some(session) = self.gateways.session_mut(gateway).filter(|session| session.outbox_bytes() > max) else {
            return;
        };
        self.stats.outbox_overruns += 1;
        let connection = session.connection;
        let mut numbers: Vec<u64> = Vec::new();
        session.queue.retain(|item| match item {
            Item::Live { number, .. } => {
                numbers.push(*number);
                false
            }
            _ => true,
        });
        session.waiting_bytes = 0;
        if session.in_flight_bytes > max / 2 {
            for sent in &mut session.in_flight {
                if let Sent::Entry { number, .. } = &sent.sent {
                    numbers.push(*number);
                }
                sent.bytes = 0;
            }
            session.in_flight_bytes = 0;
        }
        let mut broken: Vec<SubId> = Vec::new();
        for number in numbers {
            let Some(entry) = self.log.get(number) else { continue };
            let targets = entry.slice(gateway).map_or(&[][..], |slice| &entry.targets[slice.range()]);
            let open = targets.iter().filter(|target| !target.settled).filter(|target| {
                let sub = self.subs.get(target.sub);
                sub.is_some_and(|sub| sub.bound_in(connection).is_some() && sub.skip_before <= number)
            });
            broken.extend(open.map(|target| target.sub));
        }
        self.resync(broken, ResyncReason::OutboxOverrun, out);
    }
}
