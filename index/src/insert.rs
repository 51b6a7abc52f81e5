//! How subscriptions come and go.
//!
//! Invariants:
//! - What a subscription hangs on names its place there, and the place names the subscription (or its rest).
//! - Each node that a subscription has acquired is used in its partition, and each node above it; removing ends exactly these uses.

use std::sync::Arc;

use bson::RawBsonRef;
use predicate::mapping::Nested;
use predicate::{Anchor, AnchorTest, Mapping, Need, Predicate, Value, Way};
use smallvec::SmallVec;
use wire::PlaceHash;

use crate::key::{At, DOCUMENT, ELEMENT, FIELD, PREFIX, PREFIX_MAX, Payload, RANGE};
use crate::near;
use crate::paths::{ROOT, Spot};
use crate::places::{Partition, Use};
use crate::postings::{Items, Lane};
use crate::range::{Ends, Listed, RangeSet, Target};
use crate::rest::{Anchored, Quick, Rest};
use crate::{Bounds, Entry, Hang, Index};

/// Documents of all partitions share one set of keys: a stored id names its partition already, or is looked at without one.
const ANY_PARTITION: u32 = u32::MAX;
/// The record of predicates without an anchor.
const ALWAYS: u32 = u32::MAX;
/// The record of ranges that their partition names itself.
const NEAR: u32 = u32::MAX - 1;
/// More anchors than this take more memory and time to come and go than looking at the predicate for each document does.
const ANCHORS_MAX: usize = 2_048;
/// What is walked for nobody else yet costs every document of the partition something.
const NEW_NODE_COST: usize = 4;
/// Nobody knows how wide a range is, or how many values have a prefix.
const RANGE_COST: usize = 16;
const PREFIX_COST: usize = 8;

/// Subscriptions of a partition that are looked through to make its bits of keys anew.
const REMADE_MEMBERS_MAX: usize = 4_096;

type Anchors<'p> = SmallVec<[&'p Anchor; 2]>;

impl Index {
    /// Puts a subscription at a slot that is empty. It is matched from now on.
    pub fn insert(&mut self, slot: u32, tenant: &str, collection: &str, predicate: &Arc<Predicate>) {
        debug_assert!(self.entries.get(slot).is_none(), "slot {slot} is taken");
        let at = self.open_partition(tenant, collection);
        let hang = self.hang(slot, at, tenant, collection, predicate);
        let members = &mut self.partitions.get_mut(at).members;
        members.push(slot);
        let in_members = members.len() as u32 - 1;
        self.entries.put(slot, Entry::new(at, in_members, hang));
    }

    pub fn remove(&mut self, slot: u32) {
        let Some(entry) = self.entries.take(slot) else { return };
        match entry.hang() {
            Hang::Sure { record, at } => {
                self.unhang(entry.partition, record, Lane::Sure, at);
            }
            Hang::Rest { rest } => self.remove_rest(rest),
            Hang::Everyone { at } => {
                let partition = self.partitions.get_mut(entry.partition);
                let moved = swap_remove(&mut partition.everyone, at);
                partition.note_asked_whole();
                if let Some(moved) = moved {
                    self.set_hang(moved, Hang::Everyone { at });
                }
            }
            Hang::Never | Hang::Vacant => {}
        }
        let members = &mut self.partitions.get_mut(entry.partition).members;
        if let Some(moved) = swap_remove(members, entry.in_members) {
            if let Some(moved) = self.entries.get_mut(moved) {
                moved.in_members = entry.in_members;
            }
        } else if members.is_empty() {
            self.close_partition(entry.partition);
        }
    }

    /// The stored id of the document with this id in the flat view. None where no document can have it.
    pub fn stored_id(&self, tenant: &str, collection: &str, id: &Value) -> Option<Value> {
        match &*self.mapping {
            Mapping::Plain => Some(id.clone()),
            Mapping::Nested(_) => {
                let stored = Nested::storage_id(tenant, collection, id.as_text()?);
                Value::of(RawBsonRef::String(&stored))
            }
        }
    }

    /// The record of a stored id.
    pub(crate) fn document_record(&self, key: &[u8]) -> Option<u32> {
        if self.by_document == 0 {
            return None;
        }
        let mut canonical = predicate::CanonicalBytes::new();
        predicate::write_canonical(predicate::raw_of_stored_id(key)?, &mut canonical);
        let (class, payload) = canonical.split_first()?;
        self.postings.find(document_at(*class), Payload::of(payload, &self.seeds), payload)
    }

    fn set_hang(&mut self, slot: u32, hang: Hang) {
        if let Some(entry) = self.entries.get_mut(slot) {
            entry.set_hang(hang);
        }
    }

    fn hang(&mut self, slot: u32, at: u32, tenant: &str, collection: &str, predicate: &Arc<Predicate>) -> Hang {
        if predicate.is_always_true() {
            let partition = self.partitions.get_mut(at);
            partition.everyone.push(slot);
            partition.note_asked_whole();
            return Hang::Everyone { at: partition.everyone.len() as u32 - 1 };
        }
        let rest = || Rest {
            predicate: Some(predicate.clone()),
            slot,
            partition: at,
            is_about_change: predicate.reads_change(),
            ..Rest::default()
        };
        if let Some(id) = predicate.document_id() {
            let others = predicate.equalities().iter().filter(|(path, _)| Some(path) == self.id_path.as_ref());
            if others.into_iter().any(|(_, other)| other != id) {
                // Two ids at once.
                return Hang::Never;
            }
            let Some(stored) = self.stored_id(tenant, collection, id) else { return Hang::Never };
            let Some((class, payload)) = stored.as_bytes().split_first() else { return Hang::Never };
            let (record, _) = self.postings.open(document_at(*class), payload);
            self.by_document += 1;
            return self.hang_rest(rest(), &[record]);
        }
        let ways = predicate.ways();
        // With one way there is nothing to compare.
        let is_compared = ways.len() > 1;
        let best = ways.iter().filter_map(|way| {
            let (cost, anchors) = self.cheapest(at, &way.need, is_compared)?;
            (anchors.len() <= ANCHORS_MAX).then_some((cost, way, anchors))
        });
        let Some((_, way, anchors)) = best.min_by_key(|(cost, ..)| *cost) else { return self.hang_always(rest()) };
        if anchors.is_empty() {
            return Hang::Never;
        }
        let Some(nodes) = self.acquire_all(at, &anchors) else { return self.hang_always(rest()) };
        let cut = |anchor: &&Anchor| matches!(&anchor.test, AnchorTest::Prefix(prefix) if prefix.len() > PREFIX_MAX);
        let proves: &[u16] = if anchors.iter().any(cut) { &[] } else { &way.proves };
        let decided = (0..predicate.parts()).all(|part| proves.iter().any(|proven| usize::from(*proven) == part));
        if decided
            && let [anchor] = *anchors
            && matches!(anchor.test, AnchorTest::Equal(_))
        {
            let record = self.open_record(at, nodes[0], &anchor.test);
            let at = self.postings.add(record, Lane::Sure, slot);
            return Hang::Sure { record, at };
        }
        let mut rest = rest();
        rest.is_decided = decided;
        if !decided {
            self.take_parts(at, predicate, &ways, proves, &mut rest);
        }
        self.hang_anchors(at, rest, &anchors, &nodes)
    }

    /// The cheapest set of anchors of a need, and about how many candidates they bring, if that `is_compared`. None where it can't be looked
    /// up.
    fn cheapest<'p>(&self, partition: u32, need: &'p Need, is_compared: bool) -> Option<(usize, Anchors<'p>)> {
        match need {
            Need::One(anchor) => {
                let cost = if is_compared { self.cost(partition, anchor)? } else { 0 };
                let is_empty =
                    matches!(anchor.test, AnchorTest::Range { lower: Some(l), upper: Some(u), .. } if l.key > u.key);
                Some((cost, if is_empty { Anchors::new() } else { std::iter::once(anchor).collect() }))
            }
            Need::All(needs) => {
                needs.iter().filter_map(|need| self.cheapest(partition, need, true)).min_by_key(|(cost, _)| *cost)
            }
            Need::Any(needs) => {
                let mut all = (0, Anchors::new());
                for need in needs {
                    let (cost, anchors) = self.cheapest(partition, need, is_compared)?;
                    all.0 += cost;
                    all.1.extend(anchors);
                }
                Some(all)
            }
        }
    }

    fn cost(&self, partition: u32, anchor: &Anchor) -> Option<usize> {
        let at = partition;
        let partition = self.partitions.get(at);
        let what = use_of(&anchor.test);
        let node = match self.paths.find(spot_of(anchor), self.id_path.as_ref()) {
            Ok(node) => node.filter(|node| partition.uses_for(*node, what)),
            Err(()) => return None,
        };
        let Some(node) = node else {
            let base = match anchor.test {
                AnchorTest::Range { .. } => RANGE_COST,
                AnchorTest::Prefix(_) => PREFIX_COST,
                _ => 0,
            };
            return Some(base + NEW_NODE_COST);
        };
        if let AnchorTest::Range { order, .. } = anchor.test
            && let Some(group) = partition.near.group(near::at(node, order))
        {
            let set = partition.near.set(group).map(|set| self.range_sets.get(set).len());
            return Some(RANGE_COST + set.unwrap_or(partition.near.len(group)) / 4);
        }
        let (key, bytes) = key_of(at, node, &anchor.test);
        let record = self.postings.find(key, Payload::of(bytes, &self.seeds), bytes);
        let record = record.map(|record| self.postings.record(record));
        Some(match anchor.test {
            AnchorTest::Range { .. } => {
                RANGE_COST + record.map_or(0, |record| self.range_sets.get(record.rest.set()).len() / 4)
            }
            _ => {
                let base = if matches!(anchor.test, AnchorTest::Prefix(_)) { PREFIX_COST } else { 0 };
                base + record.map_or(0, |record| self.postings.count(&record.sure) + self.postings.count(&record.rest))
            }
        })
    }

    /// Nodes of the anchors, in use. None where one can't be had.
    fn acquire_all(&mut self, partition: u32, anchors: &[&Anchor]) -> Option<SmallVec<[u32; 2]>> {
        let mut nodes = SmallVec::new();
        for anchor in anchors {
            match self.acquire(partition, spot_of(anchor), use_of(&anchor.test)) {
                Some(node) => nodes.push(node),
                None => {
                    for (node, anchor) in nodes.iter().zip(anchors) {
                        self.release(partition, *node, use_of(&anchor.test));
                    }
                    return None;
                }
            }
        }
        Some(nodes)
    }

    /// `what` is the use, and for prefixes their length.
    fn acquire(&mut self, partition: u32, spot: Spot<'_>, (what, length): (Use, u8)) -> Option<u32> {
        let node = self.paths.acquire(spot, self.id_path.as_ref())?;
        let partition = self.partitions.get_mut(partition);
        partition.add_use(node, what, length);
        self.paths.up(node).skip(1).for_each(|above| partition.add_use(above, Use::Inner, 0));
        Some(node)
    }

    fn release(&mut self, partition: u32, node: u32, (what, length): (Use, u8)) {
        let partition = self.partitions.get_mut(partition);
        partition.remove_use(node, what, length);
        self.paths.up(node).skip(1).for_each(|above| partition.remove_use(above, Use::Inner, 0));
        self.paths.release(node);
    }

    fn open_record(&mut self, partition: u32, node: u32, test: &AnchorTest) -> u32 {
        let (key, bytes) = key_of(partition, node, test);
        let (record, is_new) = self.postings.open(key, bytes);
        if let Some(tag) = is_new {
            self.partitions.get_mut(partition).add_key(node, tag);
        }
        record
    }

    /// Takes up what has to be checked beside the anchors.
    fn take_parts(&mut self, partition: u32, predicate: &Predicate, ways: &[Way], proves: &[u16], rest: &mut Rest) {
        let mut proven: SmallVec<[u16; 8]> = SmallVec::from_slice(proves);
        let mut slow = Vec::new();
        for part in 0..predicate.parts() {
            let Ok(part) = u16::try_from(part) else { break };
            if proven.contains(&part) {
                continue;
            }
            if let Some((way, quick)) = self.quick_of(partition, ways, part) {
                rest.quick.push(quick);
                proven.extend_from_slice(&way.proves);
                continue;
            }
            let path = predicate.part_path(part);
            let node = path.and_then(|path| self.acquire(partition, Spot { path, below: None }, (Use::Rest, 0)));
            slow.push((part, node));
        }
        rest.slow = slow.into();
    }

    /// The quick check of a way that proves this part.
    fn quick_of<'w>(&mut self, partition: u32, ways: &'w [Way], part: u16) -> Option<(&'w Way, Quick)> {
        let seeds = self.seeds;
        ways.iter().filter(|way| way.proves.contains(&part)).find_map(|way| {
            let Need::One(anchor) = &way.need else { return None };
            Quick::of(&way.need, ROOT, &seeds)?;
            let node = self.acquire(partition, spot_of(anchor), (Use::Rest, 0))?;
            Some((way, Quick::of(&way.need, node, &seeds)?))
        })
    }

    fn hang_always(&mut self, rest: Rest) -> Hang {
        let partition = rest.partition;
        let number = self.rests.insert(rest);
        let partition = self.partitions.get_mut(partition);
        partition.always.push(number);
        partition.note_asked_whole();
        let at = partition.always.len() as u32 - 1;
        self.rests.get_mut(number).anchors.push(Anchored { record: ALWAYS, at });
        Hang::Rest { rest: number }
    }

    fn hang_rest(&mut self, rest: Rest, records: &[u32]) -> Hang {
        let number = self.rests.insert(rest);
        for &record in records {
            let at = self.postings.add(record, Lane::Rest, number);
            self.rests.get_mut(number).anchors.push(Anchored { record, at });
        }
        Hang::Rest { rest: number }
    }

    fn hang_anchors(&mut self, partition: u32, rest: Rest, anchors: &[&Anchor], nodes: &[u32]) -> Hang {
        let (slot, is_decided) = (rest.slot, rest.is_decided && !rest.is_about_change);
        let number = self.rests.insert(rest);
        for (anchor, node) in anchors.iter().zip(nodes) {
            if let AnchorTest::Range { order, lower, upper } = anchor.test {
                let at = near::at(*node, order);
                let mut listed = Listed::new(lower, upper, Target { range: 0, rest: number, slot, is_decided });
                let range = self.bounds.insert(Bounds { lower: listed.lower, upper: listed.upper, at });
                listed.target.range = range;
                let record = self.insert_range(partition, at, &anchor.test, &listed);
                self.rests.get_mut(number).anchors.push(Anchored { record, at: range });
                continue;
            }
            let record = self.open_record(partition, *node, &anchor.test);
            let at = if self.rests.get(number).anchors.iter().any(|known| known.record == record) {
                // The same value twice.
                self.release(partition, *node, use_of(&anchor.test));
                continue;
            } else {
                self.postings.add(record, Lane::Rest, number)
            };
            self.rests.get_mut(number).anchors.push(Anchored { record, at });
        }
        Hang::Rest { rest: number }
    }

    /// Gives the record that the range hangs on, or [`NEAR`].
    fn insert_range(&mut self, partition: u32, at: u32, test: &AnchorTest, listed: &Listed) -> u32 {
        let (key, _) = key_of(partition, at >> 8, test);
        let place = self.partitions.get_mut(partition);
        // All ranges of a field and an order stand in one place.
        let is_far = place.far_ranges > 0 && self.postings.find(key, Payload::of(&[], &self.seeds), &[]).is_some();
        if !is_far && let Some(group) = place.near.open(at) {
            match place.near.set(group) {
                Some(set) => self.range_sets.get_mut(set).insert(listed),
                None if place.near.len(group) < near::GROUP_MAX => place.near.push(group, listed),
                None => {
                    let mut set = RangeSet::default();
                    place.near.take(group).iter().for_each(|listed| set.insert(listed));
                    set.insert(listed);
                    place.near.be(group, Some(self.range_sets.insert(set)));
                }
            }
            place.note_ranges(at >> 8);
            return NEAR;
        }
        place.far_ranges += 1;
        place.note_ranges(at >> 8);
        let record = self.open_record(partition, at >> 8, test);
        if self.postings.record(record).rest.is_none() {
            let set = self.range_sets.insert(RangeSet::default());
            self.postings.record_mut(record).rest = Items::of_set(set);
        }
        let set = self.postings.record(record).rest.set();
        self.range_sets.get_mut(set).insert(listed);
        record
    }

    fn remove_range(&mut self, partition: u32, record: u32, range: u32) {
        let Bounds { lower, upper, at } = self.bounds.remove(range);
        // What else there is to the range is of no account here.
        let listed = Listed { lower, upper, ends: Ends::default(), target: Target { range, ..Target::default() } };
        let place = self.partitions.get_mut(partition);
        if record != NEAR {
            place.far_ranges -= 1;
            let number = self.postings.record(record).rest.set();
            let set = self.range_sets.get_mut(number);
            set.remove(&listed);
            if set.len() == 0 {
                self.range_sets.remove(number);
                self.postings.record_mut(record).rest = Items::NONE;
            }
            return self.release_record(partition, record);
        }
        let Some(group) = place.near.group(at) else {
            debug_assert!(false, "a range is near and in no group of its partition");
            return;
        };
        match place.near.set(group) {
            Some(number) => {
                let set = self.range_sets.get_mut(number);
                set.remove(&listed);
                if set.len() < near::GROUP_AGAIN {
                    let set = self.range_sets.remove(number);
                    place.near.be(group, None);
                    set.all().iter().for_each(|listed| place.near.push(group, listed));
                }
            }
            None => place.near.remove(group, range),
        }
        place.near.close_if_empty(group);
        place.note_ranges(at >> 8);
        self.release(partition, at >> 8, (Use::Range, 0));
    }

    fn remove_rest(&mut self, number: u32) {
        let anchors = std::mem::take(&mut self.rests.get_mut(number).anchors);
        let partition = self.rests.get(number).partition;
        for Anchored { record, at } in anchors {
            if record == ALWAYS {
                let partition = self.partitions.get_mut(partition);
                let moved = swap_remove(&mut partition.always, at);
                partition.note_asked_whole();
                if let Some(moved) = moved {
                    self.rests.get_mut(moved).anchors[0].at = at;
                }
                continue;
            }
            if record == NEAR {
                self.remove_range(partition, record, at);
                continue;
            }
            let class = self.postings.record(record).node_class as u8;
            if class & DOCUMENT != 0 {
                self.by_document -= 1;
                self.take_item(record, Lane::Rest, at);
                self.postings.close_if_empty(record);
            } else if (RANGE..RANGE + 0x10).contains(&class) {
                self.remove_range(partition, record, at);
            } else {
                self.unhang(partition, record, Lane::Rest, at);
            }
        }
        let rest = self.rests.remove(number);
        for quick in &rest.quick {
            self.release(partition, quick.node, (Use::Rest, 0));
        }
        for node in rest.slow.iter().filter_map(|(_, node)| *node) {
            self.release(partition, node, (Use::Rest, 0));
        }
    }

    fn unhang(&mut self, partition: u32, record: u32, lane: Lane, at: u32) {
        self.take_item(record, lane, at);
        self.release_record(partition, record);
    }

    /// Takes an item off a list, and sets the place of the one that took its place right.
    fn take_item(&mut self, record: u32, lane: Lane, at: u32) {
        let Some((moved, was)) = self.postings.remove(record, lane, at) else { return };
        match lane {
            Lane::Sure => self.set_hang(moved, Hang::Sure { record, at }),
            Lane::Rest => {
                let anchors = &mut self.rests.get_mut(moved).anchors;
                let anchor = anchors.iter_mut().find(|known| known.record == record && known.at == was);
                debug_assert!(anchor.is_some(), "a list names a predicate that doesn't hang on it");
                anchor.into_iter().for_each(|anchor| anchor.at = at);
            }
        }
    }

    /// Ends the use of a record's node by one that hung on it.
    fn release_record(&mut self, partition: u32, record: u32) {
        let node_class = self.postings.record(record).node_class;
        let (node, class) = (node_class >> 8, node_class as u8);
        let what = match class {
            PREFIX => (Use::Prefix, self.postings.payload_length(record) as u8),
            FIELD => (Use::Field, 0),
            RANGE..0x60 => (Use::Range, 0),
            class if class & ELEMENT != 0 => (Use::Element, 0),
            _ => (Use::Equal, 0),
        };
        if self.postings.close_if_empty(record) && self.partitions.get_mut(partition).remove_key() {
            self.remake_keys(partition);
        }
        self.release(partition, node, what);
    }

    /// Records of keys that a subscription hangs on.
    pub(crate) fn records_of(&self, entry: &Entry) -> SmallVec<[u32; 2]> {
        match entry.hang() {
            Hang::Sure { record, .. } => SmallVec::from_slice(&[record]),
            Hang::Rest { rest } => {
                let records = self.rests.get(rest).anchors.iter().map(|anchor| anchor.record);
                records.filter(|record| *record < NEAR).collect()
            }
            Hang::Everyone { .. } | Hang::Never | Hang::Vacant => SmallVec::new(),
        }
    }

    /// Makes a partition's bits of keys anew. It has few keys; if many subscriptions share them, the work isn't worth it.
    fn remake_keys(&mut self, partition: u32) {
        if self.partitions.get(partition).members.len() > REMADE_MEMBERS_MAX {
            return self.partitions.get_mut(partition).forget_keys();
        }
        let mut keys: Vec<(u32, u32)> = Vec::new();
        let key_of = |record: u32| (self.postings.record(record).node_class >> 8, self.postings.tag(record));
        for slot in &self.partitions.get(partition).members {
            let Some(entry) = self.entries.get(*slot) else { continue };
            keys.extend(self.records_of(entry).into_iter().map(key_of));
        }
        self.partitions.get_mut(partition).set_keys(keys.into_iter());
    }

    fn open_partition(&mut self, tenant: &str, collection: &str) -> u32 {
        let place = PlaceHash::of(tenant, collection);
        if let Some(at) = self.partition(place, tenant, collection) {
            return at;
        }
        let at = self.partitions.insert(Partition::new(place, tenant, collection));
        self.places.insert(self.place_tag(place), at);
        let of_tenant = match self.tenants.get_mut(tenant) {
            Some(partitions) => partitions,
            None => self.tenants.entry(tenant.into()).or_default(),
        };
        of_tenant.push(at);
        self.partitions.get_mut(at).in_tenant = of_tenant.len() as u32 - 1;
        at
    }

    fn close_partition(&mut self, at: u32) {
        let closed = self.partitions.remove(at);
        self.places.remove(self.place_tag(closed.place), at);
        let tenant = closed.tenant();
        let Some(of_tenant) = self.tenants.get_mut(&tenant) else { return };
        if let Some(moved) = swap_remove(of_tenant, closed.in_tenant) {
            self.partitions.get_mut(moved).in_tenant = closed.in_tenant;
        } else if of_tenant.is_empty() {
            self.tenants.remove(&tenant);
        }
    }
}

/// Gives what stands at the place now.
fn swap_remove(list: &mut Vec<u32>, at: u32) -> Option<u32> {
    list.swap_remove(at as usize);
    if list.capacity() > 64 && list.len() < list.capacity() / 4 {
        list.shrink_to(list.len() * 2);
    }
    list.get(at as usize).copied()
}

fn document_at(class: u8) -> At {
    At::new(ANY_PARTITION, ROOT, class | DOCUMENT)
}

/// Where an anchor hangs: a field's name is one name further down.
fn spot_of(anchor: &Anchor) -> Spot<'_> {
    let below = match &anchor.test {
        AnchorTest::Key(name) => Some(&**name),
        _ => None,
    };
    Spot { path: &anchor.path, below }
}

/// What a node is used for by an anchor, and the length if that is a prefix.
fn use_of(test: &AnchorTest) -> (Use, u8) {
    match test {
        AnchorTest::Equal(_) => (Use::Equal, 0),
        AnchorTest::Element(_) => (Use::Element, 0),
        AnchorTest::Key(_) => (Use::Field, 0),
        AnchorTest::Range { .. } => (Use::Range, 0),
        AnchorTest::Prefix(prefix) => (Use::Prefix, prefix.len().min(PREFIX_MAX) as u8),
    }
}

/// Class and payload of an anchor's key at a node.
fn key_of(partition: u32, node: u32, test: &AnchorTest) -> (At, &[u8]) {
    let of_value = |value: &'_ Value, add: u8| value.as_bytes().first().map_or(add, |class| class | add);
    match test {
        AnchorTest::Equal(value) => (At::new(partition, node, of_value(value, 0)), &value.as_bytes()[1..]),
        AnchorTest::Element(value) => (At::new(partition, node, of_value(value, ELEMENT)), &value.as_bytes()[1..]),
        AnchorTest::Key(_) => (At::new(partition, node, FIELD), &[]),
        AnchorTest::Range { order, .. } => (At::new(partition, node, RANGE + *order as u8), &[]),
        AnchorTest::Prefix(prefix) => {
            (At::new(partition, node, PREFIX), &prefix.as_bytes()[..prefix.len().min(PREFIX_MAX)])
        }
    }
}
