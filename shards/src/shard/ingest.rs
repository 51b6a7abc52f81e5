//! What comes through the ring: matching, and what becomes of matches.
//!
//! Invariants:
//! - Changes are matched together, up to [`BATCH_MAX`] at a time, and become log entries one by one in their order. Whom a change
//!   matches doesn't depend on what became of the changes before it: only other items of the ring and requests change who
//!   is subscribed, and they end a batch.
//! - Whether a change has come before, and whom it is told to, is decided when it has its turn. Changes of the live stream and of passes
//!   are matched alike, and together.

use std::ops::Range;
use std::sync::Arc;

use bytestring::ByteString;
use smallvec::SmallVec;
use wire::{Certainty, EventBody, Operation, Position, Positions, ResyncReason, Transition};

use super::Shard;
use super::behind::Falls;
use crate::index::{MatchCounts, Matched, Rules, Shown};
use crate::outbox::{GROUPS_MAX, NewEntry, Target, What};
use crate::passes::End;
use crate::stats::Cause;
use crate::subscription::{GatewayId, SubId, Subscription, just_before};
use crate::{Bare, BareDeletes, CatchUp, Change, FromIngest, Gap, Image, Millis, Output, Scope};

/// Changes that are matched together, and what they match. Empty between two inputs; kept for its memory.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Each with the pass that brought it, if one did.
    changes: Vec<(Arc<Change>, Option<u64>)>,
    matched: Matched,
    /// Whom one change is told to.
    told: Vec<Told>,
}

/// A subscription that is told of a change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    pub(super) sub: SubId,
    pub(super) gateway: GatewayId,
    /// Whether it has a handle in its Gateway's session.
    pub(super) bound: bool,
    pub(super) group: u32,
    pub(super) transition: Transition,
    pub(super) certainty: Certainty,
    shown: Shown,
}

impl Told {
    pub(super) fn target(&self) -> Target {
        Target::new(self.sub, self.gateway, self.group, self.transition, self.certainty)
    }
}

impl Batch {
    fn hits_of(&self, at: usize) -> Range<usize> {
        let ends = &self.matched.ends;
        let start = at.checked_sub(1).map_or(0, |before| ends[before].0);
        start as usize..ends[at].0 as usize
    }
}

impl Shard {
    /// Takes in what has come through the ring, in its order: the same as an [`Input::Ingest`](crate::Input::Ingest) for each, at less
    /// cost.
    pub fn ingest(&mut self, items: impl IntoIterator<Item = FromIngest>, now: Millis, out: &mut Vec<Output>) {
        self.set_time(now);
        let mut batch = std::mem::take(&mut self.batch);
        for item in items {
            let (change, pass) = match item {
                FromIngest::Change(change) => (change, None),
                FromIngest::CatchUp(CatchUp::Change { pass, change }) => (change, Some(pass)),
                other => {
                    self.take_batch(&mut batch, out);
                    self.take_other(other, out);
                    continue;
                }
            };
            batch.changes.push((change, pass));
            if batch.changes.len() == BATCH_MAX {
                self.take_batch(&mut batch, out);
            }
        }
        self.take_batch(&mut batch, out);
        self.batch = batch;
    }

    /// What is no change.
    fn take_other(&mut self, item: FromIngest, out: &mut Vec<Output>) {
        match item {
            FromIngest::Progress(position) => self.marks.receive(position),
            FromIngest::FilterSeen { version, positions } => self.on_filter_seen(version, &positions),
            FromIngest::Gap(gap) => self.on_gap(&gap, None, out),
            FromIngest::CatchUp(CatchUp::Began { pass, from }) => self.pass_begins(pass, from),
            FromIngest::CatchUp(CatchUp::Gap { pass, gap }) => self.on_gap(&gap, Some(pass), out),
            FromIngest::CatchUp(CatchUp::Progress { pass, position }) => self.pass_goes_on(pass, position),
            FromIngest::CatchUp(CatchUp::CaughtUp { pass, position }) => {
                self.pass_ends(position.backend, pass, End::CaughtUp(position));
            }
            FromIngest::CatchUp(CatchUp::Failed { pass, backend, failure }) => self.pass_fails(pass, backend, failure),
            FromIngest::Change(_) | FromIngest::CatchUp(CatchUp::Change { .. }) => {
                debug_assert!(false, "changes are taken in batches");
            }
        }
    }

    /// Up to where what brings this has come before it: the live stream, or a pass that is running. None if it has come already, or
    /// nobody brings it. None within: nothing has come before it.
    fn previous(&mut self, position: &Position, pass: Option<u64>) -> Option<Option<Position>> {
        let previous = match pass {
            None => self.marks.received().get(position.backend).copied(),
            Some(pass) => Some(self.passes.running_as(position.backend, pass)?.at),
        };
        (!previous.is_some_and(|previous| position.is_covered_by(&previous))).then_some(previous)
    }

    /// Whoever waited for this version is live from here on. That is noted here, in one step; each takes note of it in its turn, or when
    /// it is hit.
    fn on_filter_seen(&mut self, version: u64, positions: &Positions) {
        positions.iter().for_each(|position| self.marks.receive(*position));
        self.filter_seen = self.filter_seen.max(version);
        self.pending.confirm(self.filter_seen, positions);
    }

    fn take_batch(&mut self, batch: &mut Batch, out: &mut Vec<Output>) {
        batch.changes.retain(|(change, pass)| {
            let is_new = self.previous(&change.position, *pass).is_some();
            let (events, dropped) = match pass {
                None => (&mut self.stats.events, &mut self.stats.events_repeated),
                Some(_) => (&mut self.stats.catch_ups.events, &mut self.stats.catch_ups.events_dropped),
            };
            *events += 1;
            *dropped += u64::from(!is_new);
            is_new
        });
        if batch.changes.is_empty() {
            return;
        }
        self.match_batch(batch);
        self.note_hot(batch);
        let subs = &self.subs;
        std::hint::black_box(batch.matched.hits.iter().fold(0, |sum, hit| sum ^ subs.touch(hit.slot)));
        for at in 0..batch.changes.len() {
            self.on_change(batch, at, out);
        }
        batch.changes.clear();
    }

    /// One of those that came together is noted, for all of them.
    fn note_hot(&mut self, batch: &Batch) {
        let (change, _) = &batch.changes[0];
        if let Some(image) = change.after().or(change.before()) {
            let (tenant, collection) = image.names();
            self.hot.observe(image.place, tenant, collection, batch.changes.len());
        }
    }

    fn match_batch(&mut self, batch: &mut Batch) {
        let (subs, gateways) = (&self.subs, &self.gateways);
        let can_verify = |slot: u32| {
            let session = subs.at(slot).and_then(|(_, sub)| gateways.session(subs.gateway_of(sub)));
            session.is_some_and(|session| session.can_verify)
        };
        let transitions = |slot: u32| subs.at(slot).is_some_and(|(_, sub)| sub.transitions());
        let rules = Rules {
            bare_deletes: self.config.bare_deletes,
            evaluation_units_max: self.config.evaluation_units_max,
            event_units_max: self.config.event_units_max,
            can_verify: &can_verify,
            transitions: &transitions,
        };
        let Batch { changes, matched, .. } = batch;
        self.index.matches(changes.iter().map(|(change, _)| &**change), &rules, matched);
    }

    /// A change of the batch has its turn.
    fn on_change(&mut self, batch: &mut Batch, at: usize, out: &mut Vec<Output>) {
        let (change, pass) = &batch.changes[at];
        let (change, pass) = (&**change, *pass);
        // The same one may come twice in a batch.
        let Some(previous) = self.previous(&change.position, pass) else {
            match pass {
                None => self.stats.events_repeated += 1,
                Some(_) => self.stats.catch_ups.events_dropped += 1,
            }
            return;
        };
        let hits = &batch.matched.hits[batch.hits_of(at)];
        let MatchCounts { candidates, errors, over_budget, bad_documents, bare_without_tenant, is_watched } =
            batch.matched.ends[at].1;
        if pass.is_none() {
            self.filter.passed(change, is_watched);
        }
        self.stats.candidates += candidates;
        self.stats.evaluation_errors += errors;
        self.stats.evaluations_over_budget += over_budget;
        self.stats.bad_documents += bad_documents;
        self.stats.bare_deletes_without_tenant += bare_without_tenant;

        batch.told.clear();
        for hit in hits {
            let Some((id, sub)) = self.subs.at(hit.slot) else { continue };
            // Nearly all are live and have nothing else to be asked.
            let (gateway, bound) = if sub.is_live() && !sub.has_rare() && pass.is_none() {
                self.whose_is(sub)
            } else {
                let is_live = sub.is_live() || self.wake(id, out);
                if !is_live || !self.is_for(id, &change.position, pass, out) {
                    continue;
                }
                let Some(whose) = self.whose(id) else { continue };
                whose
            };
            let (transition, certainty, shown) = (hit.transition, hit.certainty, hit.shown);
            batch.told.push(Told { sub: id, gateway, bound, group: 0, transition, certainty, shown });
        }
        let broken = self.promised_image_is_missing(change, pass, &batch.told, out);
        if !broken.is_empty() {
            // They read the collection's state anew, and with it what this change did.
            batch.told.retain(|told| broken.binary_search(&told.sub).is_err());
        }
        self.hold_back(&change.position, pass, &mut batch.told, out);
        match pass {
            None => self.marks.receive_next(change.position),
            // Before it is told: whoever falls behind by that doesn't get this one by this pass.
            Some(pass) => self.pass_goes_on(pass, change.position),
        }
        if !batch.told.is_empty() {
            self.stats.events_matched += u64::from(pass.is_none());
            self.tell(change, previous, pass, &mut batch.told, out);
        }
        if !broken.is_empty() {
            self.resync(broken, ResyncReason::PreimageMissing, out);
        }
    }

    /// Whether what came is for one that is live, as far as that is rare, or a pass brought it.
    fn is_for(&mut self, id: SubId, position: &Position, pass: Option<u64>, out: &mut Vec<Output>) -> bool {
        match pass {
            None => self.live_is_for(id, position, out),
            Some(_) => self.pass_is_for(id, position, out),
        }
    }

    /// Those whose Gateway's outbox is full fall behind instead of being told.
    fn hold_back(&mut self, position: &Position, pass: Option<u64>, told: &mut Vec<Told>, out: &mut Vec<Output>) {
        if self.stats.outboxes_full == 0 || pass.is_some() {
            return;
        }
        let mut held: Vec<SubId> = Vec::new();
        told.retain(|told| {
            let is_full = || self.gateways.session(told.gateway).is_some_and(|session| session.full);
            let is_held = told.bound && is_full();
            if is_held {
                held.push(told.sub);
            }
            !is_held
        });
        let at = just_before(position);
        held.into_iter().for_each(|id| self.fall_behind(id, at, Falls::Ahead, Cause::OutboxFull, out));
    }

    /// Subscriptions that were promised a `leave`, which can't be told because the before-image isn't there. In the order of
    /// their names.
    fn promised_image_is_missing(
        &mut self,
        change: &Change,
        pass: Option<u64>,
        told: &[Told],
        out: &mut Vec<Output>,
    ) -> Vec<SubId> {
        let missing = !change.has_before()
            && change.operation != Operation::Insert
            && self.config.promises_before_images(change.position.backend);
        if !missing {
            return Vec::new();
        }
        let bare = change.bare();
        let place = match (change.after(), bare) {
            (Some(after), _) => Some(after.names()),
            (None, Some(bare)) => bare.tenant.zip(bare.collection),
            (None, None) => None,
        };
        let slots: Vec<u32> = match (place, bare) {
            (Some((tenant, collection)), _) => self.index.members_of(tenant, collection).to_vec(),
            // Those whom it certainly concerns have been found. Of the others any may be meant, and none is told otherwise.
            (None, Some(Bare { tenant: Some(tenant), .. })) if self.config.bare_deletes == BareDeletes::Known => {
                let mut found: Vec<u32> = told.iter().map(|told| told.sub.slot).collect();
                found.sort_unstable();
                self.index
                    .members_of_tenant(tenant)
                    .filter(|slot| found.binary_search(slot).is_err() && !self.index.is_by_id(*slot))
                    .collect()
            }
            _ => return Vec::new(),
        };
        let mut broken = self.woken(slots, out);
        broken.retain(|id| {
            // Without transitions, an update that ends a match is not told anyway.
            let sub = self.subs.get(*id);
            let told = sub.is_some_and(|sub| sub.transitions() || change.operation == Operation::Delete);
            told && self.is_for(*id, &change.position, pass, out)
        });
        broken
    }

    /// Whose it is, and whether it has a handle in its Gateway's session.
    #[inline]
    fn whose(&self, id: SubId) -> Option<(GatewayId, bool)> {
        self.subs.get(id).map(|sub| self.whose_is(sub))
    }

    #[inline]
    fn whose_is(&self, sub: &Subscription) -> (GatewayId, bool) {
        let gateway = self.subs.gateway_of(sub);
        (gateway, self.gateways.session(gateway).is_some_and(|session| session.has_bound(sub)))
    }

    /// Puts a change into the log for these.
    fn tell(
        &mut self,
        change: &Change,
        previous: Option<Position>,
        pass: Option<u64>,
        told: &mut Vec<Told>,
        out: &mut Vec<Output>,
    ) {
        let shown = group(told);
        told.sort_unstable_by_key(|told| (told.gateway, told.group, told.sub));
        let of_pass = pass.is_some();
        let entry = |groups| NewEntry { position: change.position, previous, what: What::Event, of_pass, groups };
        // Nearly always all are shown the same image.
        let image = match *shown {
            [Shown::Before] => change.before(),
            [Shown::After] => change.after(),
            _ => None,
        };
        if let Some(image) = image {
            self.append(&entry(&[body_of_image(change, Some(image))]), told, out);
            return;
        }
        // Names of places that no image tells.
        let places: Vec<(ByteString, ByteString)> = shown
            .iter()
            .filter_map(|shown| match shown {
                Shown::NothingAt(partition) => Some(self.index.place_names(*partition)),
                _ => None,
            })
            .collect();
        let mut places = places.iter();
        let groups: SmallVec<[EventBody<'_>; 2]> = shown
            .iter()
            .map(|shown| match shown {
                Shown::Before => body_of_image(change, change.before()),
                Shown::After => body_of_image(change, change.after()),
                Shown::NothingAt(_) => {
                    let (tenant, collection) = places.next().map_or(("", ""), |(tenant, name)| (&**tenant, &**name));
                    body_of(change, tenant.as_bytes(), collection.as_bytes())
                }
                Shown::Nothing => {
                    let tenant = change.bare().and_then(|bare| bare.tenant).unwrap_or_default();
                    body_of(change, tenant.as_bytes(), &[])
                }
            })
            .collect();
        self.append(&entry(&groups), told, out);
    }

    fn on_gap(&mut self, gap: &Gap, pass: Option<u64>, out: &mut Vec<Output>) {
        let previous = match pass {
            None => {
                self.stats.gaps += 1;
                self.marks.received().get(gap.position.backend).copied()
            }
            Some(_) => {
                self.stats.catch_ups.events += 1;
                let Some(previous) = self.previous(&gap.position, pass) else {
                    self.stats.catch_ups.events_dropped += 1;
                    return;
                };
                previous
            }
        };
        let mut slots: Vec<u32> = Vec::new();
        for scope in &gap.scopes {
            match scope {
                Scope::Everything => slots.extend(self.subs.iter().map(|(id, _)| id.slot)),
                Scope::Tenant(tenant) => slots.extend(self.index.members_of_tenant(tenant)),
                Scope::Collection { tenant, collection } => slots.extend(self.index.members_of(tenant, collection)),
            }
        }
        let woken = self.woken(slots, out);
        let above: Vec<SubId> = woken.into_iter().filter(|id| self.is_for(*id, &gap.position, pass, out)).collect();
        let mut told: Vec<Told> = above
            .into_iter()
            .filter_map(|id| {
                let (gateway, bound) = self.whose(id)?;
                let (transition, certainty) = (Transition::Update, Certainty::Matched);
                Some(Told { sub: id, gateway, bound, group: 0, transition, certainty, shown: Shown::Nothing })
            })
            .collect();
        self.hold_back(&gap.position, pass, &mut told, out);
        match pass {
            None => self.marks.receive(gap.position),
            Some(pass) => self.pass_goes_on(pass, gap.position),
        }
        if !told.is_empty() {
            told.sort_unstable_by_key(|told| (told.gateway, told.sub));
            let (what, of_pass) = (What::Gap(gap.reason), pass.is_some());
            let entry = NewEntry { position: gap.position, previous, what, of_pass, groups: &[] };
            self.append(&entry, &mut told, out);
        }
    }
}

fn body_of_image<'a>(change: &'a Change, image: Option<Image<'a>>) -> EventBody<'a> {
    let Some(image) = image else {
        debug_assert!(false, "an image is shown that isn't there");
        return body_of(change, &[], &[]);
    };
    EventBody { document: image.document, ..body_of(change, image.tenant, image.collection) }
}

fn body_of<'a>(change: &'a Change, tenant: &'a [u8], collection: &'a [u8]) -> EventBody<'a> {
    EventBody {
        id: change.position,
        operation: change.operation,
        tenant,
        collection,
        document_id: change.document_id(),
        document: &[],
    }
}

/// Gives each its group, one for each image that is shown, and says what they are.
fn group(told: &mut [Told]) -> SmallVec<[Shown; 2]> {
    let Some(first) = told.first().map(|told| told.shown) else { return SmallVec::new() };
    if told.iter().all(|told| told.shown == first) {
        return SmallVec::from_elem(first, 1);
    }
    let mut shown: SmallVec<[Shown; 2]> = told.iter().map(|told| told.shown).collect();
    shown.sort_unstable();
    shown.dedup();
    if shown.len() > GROUPS_MAX as usize {
        // A hard delete of which nothing is known but a tenant with millions of collections. `Nothing` is the last in the order.
        shown.truncate(GROUPS_MAX as usize - 1);
        shown.push(Shown::Nothing);
    }
    for told in told {
        let found = shown.binary_search(&told.shown).unwrap_or(shown.len() - 1);
        told.group = found as u32;
    }
    shown
}

/// A batch is large enough for the index to fetch what the next changes need while it looks at one, and small enough for what it
/// found to be at hand when they have their turn.
const BATCH_MAX: usize = ::index::BATCH_MAX;
