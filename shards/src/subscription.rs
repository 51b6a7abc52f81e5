//! What a shard keeps of each subscription, and names for them that stay unique while anything may refer to them.
//!
//! There may be ten million, so what each has is kept small, and what few have stands beside it ([`Rare`]). No step is large: memory
//! comes and goes a chunk at a time, and nothing here walks over more than one chunk.
//!
//! Invariants:
//! - A slot is used again, its stamp isn't: a [`SubId`] of a subscription that has ended never finds another one.
//! - A subscription that a target in the log names, which isn't settled, is one that may be told from there on
//!   ([`Subscription::may_be_told_from`]).
//! - A subscription is in the look-up table and in its Gateway's list of members as long as it is here.

mod behind;
mod id;
mod members;
mod pending;
mod record;
mod shared;
mod split;
mod tails;

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashMap;
use smallvec::SmallVec;
use wire::{BackendId, Lineage, Position, Positions, SubscribeItem, SubscriptionKey};

pub(crate) use self::behind::{Behind, Lost, PassKey, earlier, just_before, later};
use self::id::{Fingerprint, Id, Sought};
pub(crate) use self::members::Members;
pub(crate) use self::pending::Pending;
use self::record::{BY_SESSION, LIVE, RARE, TAKEN, TRANSITIONS, Tail};
pub(crate) use self::record::{Rare, Rest, Subscription};
use self::shared::{Owners, Sinces};
use self::split::SplitTable;
use crate::FilterKey;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SubId {
    pub(crate) slot: u32,
    stamp: u32,
}

impl SubId {
    /// The first one in their order.
    pub(crate) const FIRST: Self = Self { slot: 0, stamp: 0 };
}

#[cfg(test)]
impl SubId {
    pub(crate) fn of_test(slot: u32) -> Self {
        Self { slot, stamp: 0 }
    }
}

/// A Gateway's place in the shard's list of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GatewayId(pub(crate) u32);

/// What must be equal for a registration to be a renewal: collection, filters and expression as they are written, and the rest of
/// what it wants. Of these texts only a fingerprint is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content(Fingerprint);

/// A subscription that comes in.
#[derive(Debug)]
pub(crate) struct New<'a> {
    pub(crate) gateway: GatewayId,
    pub(crate) key: &'a SubscriptionKey,
    pub(crate) content: Content,
    pub(crate) transitions: bool,
    pub(crate) generation: u32,
    pub(crate) filter_key: FilterKey,
    /// Whether a session keeps it alive.
    pub(crate) by_session: bool,
    pub(crate) ttl_s: u32,
    pub(crate) expires_at: u64,
}

/// What is left of one that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) key: SubscriptionKey,
    pub(crate) filter_key: FilterKey,
    /// Its number among those that wait, if it was one.
    pub(crate) waited: Option<u32>,
}

const NOBODY: u32 = u32::MAX;
const CHUNK_BITS: u32 = 10;
/// Places of a chunk.
pub(crate) const CHUNK: usize = 1 << CHUNK_BITS;

#[derive(Debug)]
pub(crate) struct Subscriptions {
    seed: u64,
    chunks: Vec<Chunk>,
    /// Chunks with a vacant place. The lowest is filled first, so that those at the end become empty.
    open: BTreeSet<u32>,
    /// An empty chunk that still has its memory: there is at most one.
    spare: Option<u32>,
    len: usize,
    /// Slots, by Gateway, tenant and id.
    lookup: SplitTable,
    owners: Owners,
    sinces: Sinces,
    /// Backends and lineages that tails are of: a few, since each is one that the source had while the node ran.
    histories: Vec<(BackendId, Lineage)>,
}

#[derive(Debug, Default)]
struct Chunk {
    places: Vec<Subscription>,
    /// By place.
    rest: Vec<Rest>,
    /// Where the list of vacant places begins.
    vacant: u32,
    taken: u32,
    /// Stamp of places that are new: above all that this chunk has given.
    stamp: u32,
    rare: HashMap<u16, Box<Rare>>,
    /// By place. Empty until something for one of them leaves the log.
    tails: Vec<Tail>,
}

impl Subscriptions {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            chunks: Vec::new(),
            open: BTreeSet::new(),
            spare: None,
            len: 0,
            lookup: SplitTable::default(),
            owners: Owners::default(),
            sinces: Sinces::default(),
            histories: Vec::new(),
        }
    }

    pub(crate) fn content_of(&self, item: &SubscribeItem) -> Content {
        let mut bytes: SmallVec<[u8; 1_024]> = SmallVec::new();
        for text in [&item.collection, &item.filters, &item.expr, item.group.as_ref().unwrap_or(&String::new())] {
            bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes.extend([item.transitions, item.group.is_some(), item.lossy].map(u8::from));
        Content(Fingerprint::of(&bytes, self.seed))
    }

    pub(crate) fn find(&self, gateway: GatewayId, key: &SubscriptionKey) -> Option<SubId> {
        let owner = self.owners.find(self.seed, gateway, &key.tenant)?;
        let sought = Sought::of(&key.id);
        let slot = self.lookup.find(hash(self.seed, owner, |seed| sought.hash(seed)), |slot| {
            let place = self.place(*slot).filter(|place| place.owner == owner);
            place.is_some() && self.rest_at(*slot).id.is(&sought)
        })?;
        self.at(slot).map(|(id, _)| id)
    }

    /// Takes one in whose key isn't there. It waits until [`Subscriptions::go_live`].
    pub(crate) fn insert(&mut self, members: &mut Members, new: New<'_>) -> SubId {
        let New { gateway, key, content, transitions, generation, filter_key, by_session, ttl_s, expires_at } = new;
        debug_assert!(self.find(gateway, key).is_none(), "{key:?} is there already");
        let owner = self.owners.enter(self.seed, gateway, &key.tenant);
        let slot = self.take_place();
        let seed = self.seed;
        let place = self.place_mut(slot);
        let stamp = place.stamp;
        *place = Subscription { stamp, owner, bits: TAKEN, ..Subscription::VACANT };
        place.set(TRANSITIONS, transitions);
        place.set(BY_SESSION, by_session);
        let rest = self.rest_at_mut(slot);
        *rest = Rest { id: Id::of(&key.id), filter_key, content: content.0, before: members.last, ..Rest::VACANT };
        rest.set_ttl(ttl_s);
        rest.set_expires_at(expires_at);
        let hash = hash(seed, owner, |seed| rest.id.hash(seed));
        match members.last {
            NOBODY => members.first = slot,
            last => self.rest_at_mut(last).after = slot,
        }
        members.last = slot;
        members.count += 1;
        members.by_http += u32::from(!by_session);
        let chunks = &self.chunks;
        self.lookup.insert(hash, slot, |slot| hash_of(chunks, seed, slot));
        self.len += 1;
        let id = SubId { slot, stamp };
        if generation > 1 {
            self.rare_mut(id).generations_before = generation - 1;
        }
        id
    }

    pub(crate) fn remove(&mut self, members: &mut Members, id: SubId) -> Option<Ended> {
        let sub = self.get(id)?;
        let (owner, live, by_session) = (sub.owner, sub.is_live(), sub.is_kept_by_session());
        let rest = self.rest_at(id.slot);
        let Rest { since, before, after, filter_key, .. } = *rest;
        let hash = hash(self.seed, owner, |seed| rest.id.hash(seed));
        let key = self.key_of(id)?;

        let (chunks, seed) = (&self.chunks, self.seed);
        self.lookup.remove(hash, id.slot, |slot| hash_of(chunks, seed, slot));
        self.owners.leave(seed, owner);
        if live {
            self.sinces.leave(since);
        }
        match before {
            NOBODY => members.first = after,
            before => self.rest_at_mut(before).after = after,
        }
        match after {
            NOBODY => members.last = before,
            after => self.rest_at_mut(after).before = before,
        }
        if members.walk == id.slot {
            members.walk = after;
        }
        members.count -= 1;
        members.by_http -= u32::from(!by_session);
        self.len -= 1;
        self.give_place_back(id);
        Some(Ended { key, filter_key, waited: (!live).then_some(since) })
    }

    pub(crate) fn get(&self, id: SubId) -> Option<&Subscription> {
        self.place(id.slot).filter(|place| place.stamp == id.stamp)
    }

    pub(crate) fn get_mut(&mut self, id: SubId) -> Option<&mut Subscription> {
        let chunk = self.chunks.get_mut(chunk_of(id.slot))?;
        chunk.places.get_mut(place_of(id.slot)).filter(|place| place.stamp == id.stamp && place.has(TAKEN))
    }

    /// What else there is of it.
    pub(crate) fn rest(&self, id: SubId) -> Option<&Rest> {
        self.get(id).map(|_| self.rest_at(id.slot))
    }

    pub(crate) fn rest_mut(&mut self, id: SubId) -> Option<&mut Rest> {
        self.get(id)?;
        Some(self.rest_at_mut(id.slot))
    }

    /// Who is at this slot now.
    pub(crate) fn at(&self, slot: u32) -> Option<(SubId, &Subscription)> {
        self.place(slot).map(|place| (SubId { slot, stamp: place.stamp }, place))
    }

    /// All of them, in the order of their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SubId, &Subscription)> {
        (0..self.chunks.len()).flat_map(|chunk| self.iter_chunk(chunk, 0))
    }

    /// Those of one chunk, of which there are [`Subscriptions::chunks`], from this place on.
    pub(crate) fn iter_chunk(&self, chunk: usize, from: usize) -> impl Iterator<Item = (SubId, &Subscription)> {
        let places = self.chunks.get(chunk).and_then(|chunk| chunk.places.get(from..)).unwrap_or_default();
        let first = (chunk << CHUNK_BITS | from) as u32;
        let taken = (first..).zip(places).filter(|(_, place)| place.has(TAKEN));
        taken.map(|(slot, place)| (SubId { slot, stamp: place.stamp }, place))
    }

    pub(crate) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn gateway_of(&self, sub: &Subscription) -> GatewayId {
        self.owners.get(sub.owner).gateway
    }

    pub(crate) fn key_of(&self, id: SubId) -> Option<SubscriptionKey> {
        let tenant = self.owners.get(self.get(id)?.owner).tenant.to_string();
        Some(SubscriptionKey { tenant, id: self.rest_at(id.slot).id.text() })
    }

    /// Indexed without a break since. Empty as long as it isn't live.
    pub(crate) fn live_from(&self, id: SubId) -> &Positions {
        match self.get(id) {
            Some(sub) if sub.is_live() => self.sinces.get(self.rest_at(id.slot).since),
            _ => &NOWHERE,
        }
    }

    /// Contents that its id has had, with this one.
    pub(crate) fn generation_of(&self, id: SubId) -> u32 {
        self.rare(id).map_or(1, |rare| rare.generations_before.wrapping_add(1))
    }

    /// Tenants with how many subscriptions a Gateway has of each, in no order; a tenant comes once for each Gateway.
    pub(crate) fn counts_by_tenant(&self) -> impl Iterator<Item = (&Arc<str>, u32)> {
        self.owners.counts()
    }

    /// Whether events of this position are for it, as far as its floor goes.
    pub(crate) fn is_above_floor(&self, id: SubId, position: &Position) -> bool {
        self.rare(id).is_none_or(|rare| !rare.floor.covers(position))
    }

    /// Of what its application was said to have, keeps what has been read by now.
    pub(crate) fn lower_floor(&mut self, id: SubId, received: &Positions) {
        if let Some(rare) = self.rare_if_any(id).filter(|rare| !rare.floor.is_empty()) {
            rare.floor = rare.floor.iter().filter(|position| received.covers(position)).copied().collect();
        }
    }

    pub(crate) fn rare(&self, id: SubId) -> Option<&Rare> {
        self.get(id).filter(|sub| sub.has(RARE))?;
        self.chunks[chunk_of(id.slot)].rare.get(&(place_of(id.slot) as u16)).map(|rare| &**rare)
    }

    /// Where there is nothing rare about it, that becomes what it is by default. Expects one that is here.
    pub(crate) fn rare_mut(&mut self, id: SubId) -> &mut Rare {
        debug_assert!(self.get(id).is_some(), "{id:?} has ended");
        let chunk = &mut self.chunks[chunk_of(id.slot)];
        chunk.places[place_of(id.slot)].set(RARE, true);
        chunk.rare.entry(place_of(id.slot) as u16).or_default()
    }

    /// The same, if there is something rare about it.
    pub(crate) fn rare_if_any(&mut self, id: SubId) -> Option<&mut Rare> {
        self.get(id).filter(|sub| sub.has(RARE))?;
        Some(self.rare_mut(id))
    }

    /// Reads what is soon to be worked on, so that it is at hand then. Those of many that are read one after the other come from memory
    /// at the same time. The result means nothing, but has to be used.
    #[inline]
    pub(crate) fn touch(&self, slot: u32) -> u32 {
        let place = self.chunks.get(chunk_of(slot)).and_then(|chunk| chunk.places.get(place_of(slot)));
        place.map_or(0, |place| place.stamp)
    }

    /// The same of what [`Subscriptions::advance_plain_tail`] works on.
    #[inline]
    pub(crate) fn touch_tail(&self, slot: u32) -> u32 {
        let tail = self.chunks.get(chunk_of(slot)).and_then(|chunk| chunk.tails.get(place_of(slot)));
        tail.map_or(0, |tail| tail.k)
    }

    /// Forgets what says nothing any more: floors that have been reached, what stands in the place of entries that the log no longer
    /// holds, and what has been done with, as `is_done` says of a Gateway. Gives how many it looked at.
    pub(crate) fn tidy_chunk(
        &mut self,
        chunk: usize,
        received: &Positions,
        log_first: u64,
        is_done: impl Fn(GatewayId, &Lost) -> bool,
    ) -> usize {
        let Self { chunks, owners, .. } = self;
        let Some(Chunk { places, rare, .. }) = chunks.get_mut(chunk).filter(|chunk| !chunk.rare.is_empty()) else {
            return 0;
        };
        let looked_at = rare.len();
        rare.retain(|at, rare| {
            let place = &mut places[usize::from(*at)];
            if place.is_live() {
                tidy(rare, received, log_first);
                let gateway = owners.get(place.owner).gateway;
                rare.lost.retain(|lost| !is_done(gateway, lost));
            }
            let keep = rare.says_something();
            place.set(RARE, keep);
            keep
        });
        rare.shrink_to_fit();
        looked_at
    }

    /// It is hit from here on.
    pub(crate) fn go_live(&mut self, id: SubId, from: &Positions) {
        let since = self.sinces.enter(from);
        match self.get_mut(id) {
            Some(sub) => {
                debug_assert!(!sub.is_live(), "{id:?} goes live twice");
                sub.set(LIVE, true);
                self.rest_at_mut(id.slot).since = since;
            }
            None => self.sinces.leave(since),
        }
    }

    /// Its history begins anew.
    pub(crate) fn live_anew(&mut self, id: SubId, from: &Positions) {
        if !self.get(id).is_some_and(Subscription::is_live) {
            return;
        }
        let since = self.sinces.enter(from);
        let old = std::mem::replace(&mut self.rest_at_mut(id.slot).since, since);
        self.sinces.leave(old);
    }

    /// Its number among those that wait is another.
    pub(crate) fn set_pending_number(&mut self, id: SubId, number: u32) {
        if self.get(id).is_some_and(|sub| !sub.is_live()) {
            self.rest_at_mut(id.slot).since = number;
        }
    }

    pub(crate) fn set_kept_by_session(&mut self, members: &mut Members, id: SubId) {
        if let Some(sub) = self.get_mut(id).filter(|sub| !sub.is_kept_by_session()) {
            sub.set(BY_SESSION, true);
            members.by_http -= 1;
        }
    }

    /// The next one of a walk that [`Members::start_walk`] began. Whoever comes in behind it is met too, whoever ends is not.
    pub(crate) fn walk(&self, members: &mut Members) -> Option<SubId> {
        let (id, _) = self.at(members.walk)?;
        members.walk = self.rest_at(id.slot).after;
        Some(id)
    }

    /// All of a Gateway's, in the order in which they came.
    pub(crate) fn members<'a>(
        &'a self,
        members: &Members,
    ) -> impl Iterator<Item = (SubId, &'a Subscription)> + use<'a> {
        let mut next = members.first;
        std::iter::from_fn(move || {
            let (id, sub) = self.at(next)?;
            next = self.rest_at(id.slot).after;
            Some((id, sub))
        })
    }

    fn place(&self, slot: u32) -> Option<&Subscription> {
        let chunk = self.chunks.get(chunk_of(slot))?;
        chunk.places.get(place_of(slot)).filter(|place| place.has(TAKEN))
    }

    /// Expects a slot that has a place.
    fn place_mut(&mut self, slot: u32) -> &mut Subscription {
        &mut self.chunks[chunk_of(slot)].places[place_of(slot)]
    }

    /// Expects a slot that has a place, as does the next one.
    fn rest_at(&self, slot: u32) -> &Rest {
        &self.chunks[chunk_of(slot)].rest[place_of(slot)]
    }

    fn rest_at_mut(&mut self, slot: u32) -> &mut Rest {
        &mut self.chunks[chunk_of(slot)].rest[place_of(slot)]
    }

    /// A vacant place, which is still marked so.
    fn take_place(&mut self) -> u32 {
        let at = self.open.first().copied().unwrap_or_else(|| {
            self.chunks.push(Chunk { vacant: NOBODY, ..Chunk::default() });
            let at = self.chunks.len() as u32 - 1;
            self.open.insert(at);
            at
        });
        self.spare.take_if(|spare| *spare == at);
        let chunk = &mut self.chunks[at as usize];
        let place = match chunk.vacant {
            NOBODY => {
                // The first one grows as vectors do, so that few subscriptions take little.
                if chunk.places.is_empty() && at > 0 {
                    chunk.places.reserve_exact(CHUNK);
                    chunk.rest.reserve_exact(CHUNK);
                }
                chunk.places.push(Subscription { stamp: chunk.stamp, ..Subscription::VACANT });
                chunk.rest.push(Rest::VACANT);
                chunk.places.len() as u32 - 1
            }
            vacant => {
                chunk.vacant = chunk.rest[vacant as usize].after;
                vacant
            }
        };
        chunk.taken += 1;
        if chunk.vacant == NOBODY && chunk.places.len() == CHUNK {
            self.open.remove(&at);
        }
        at << CHUNK_BITS | place
    }

    fn give_place_back(&mut self, id: SubId) {
        let at = chunk_of(id.slot) as u32;
        let chunk = &mut self.chunks[at as usize];
        let place = &mut chunk.places[place_of(id.slot)];
        if place.has(RARE) {
            chunk.rare.remove(&(place_of(id.slot) as u16));
        }
        if let Some(tail) = chunk.tails.get_mut(place_of(id.slot)) {
            *tail = Tail::default();
        }
        *place = Subscription { stamp: place.stamp, ..Subscription::VACANT };
        chunk.rest[place_of(id.slot)] = Rest { after: chunk.vacant, ..Rest::VACANT };
        chunk.taken -= 1;
        // A place whose stamps are used up stays empty for good.
        if let Some(stamp) = place.stamp.checked_add(1) {
            place.stamp = stamp;
            chunk.vacant = place_of(id.slot) as u32;
            self.open.insert(at);
        }
        if chunk.taken == 0 {
            self.emptied(at);
        }
    }

    /// One empty chunk keeps its memory, so that whoever comes and goes at its edge costs nothing.
    fn emptied(&mut self, at: u32) {
        let (keep, free) = match self.spare {
            None => (at, None),
            Some(spare) => (spare.min(at), Some(spare.max(at))),
        };
        self.spare = Some(keep);
        let Some(chunk) = free.map(|at| &mut self.chunks[at as usize]) else { return };
        let stamp = chunk.places.iter().map(|place| place.stamp).max().unwrap_or(chunk.stamp);
        if stamp < u32::MAX {
            *chunk = Chunk { vacant: NOBODY, stamp, ..Chunk::default() };
        }
    }

    pub(crate) fn check_invariants(&self) {
        assert_eq!(self.lookup.len(), self.len, "the look-up table and the places disagree");
        assert_eq!(self.iter().count(), self.len, "places are miscounted");
        for (at, chunk) in self.chunks.iter().enumerate() {
            let taken = chunk.places.iter().filter(|place| place.has(TAKEN)).count();
            assert_eq!(taken, chunk.taken as usize, "chunk {at} miscounts");
            let room = chunk.vacant != NOBODY || chunk.places.len() < CHUNK;
            assert_eq!(self.open.contains(&(at as u32)), room, "chunk {at} has room, and isn't open");
            for (place, sub) in chunk.places.iter().enumerate() {
                assert_eq!(sub.has(RARE), chunk.rare.contains_key(&(place as u16)), "something rare is lost");
            }
        }
        for (id, sub) in self.iter() {
            let key = self.key_of(id).expect("it is here");
            assert_eq!(self.find(self.gateway_of(sub), &key), Some(id), "{id:?} isn't found by its key");
        }
    }
}

static NOWHERE: std::sync::LazyLock<Positions> = std::sync::LazyLock::new(Positions::default);

fn chunk_of(slot: u32) -> usize {
    (slot >> CHUNK_BITS) as usize
}

fn place_of(slot: u32) -> usize {
    slot as usize & (CHUNK - 1)
}

fn hash_of(chunks: &[Chunk], seed: u64, slot: u32) -> u64 {
    let Chunk { places, rest, .. } = &chunks[chunk_of(slot)];
    hash(seed, places[place_of(slot)].owner, |seed| rest[place_of(slot)].id.hash(seed))
}

fn hash(seed: u64, owner: u32, of_id: impl FnOnce(u64) -> u64) -> u64 {
    of_id(seed ^ u64::from(owner).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn tidy(rare: &mut Rare, received: &Positions, log_first: u64) {
    if rare.floor.iter().all(|position| received.covers(position)) {
        rare.floor = Positions::default();
    }
    if rare.skip_before <= log_first {
        rare.skip_before = 0;
    }
    rare.skips.retain(|skip| skip.before > log_first);
}

#[cfg(test)]
mod tests;
