//! From the values of a document to what is looked up.
//!
//! The types that documents are mostly made of have a short way; all others, and nodes of which more than an equality or a range is
//! asked, stand apart, so that they take no registers from it.

use predicate::{CanonicalBytes, Order, int_order_key};

use crate::arena::Arena;
use crate::fields::Field;
use crate::key::{
    At, ELEMENT, FIELD, INT, Keyed, PREFIX, Payload, RANGE, STRING, Seeds, Tags, keyed, kind, ordered, raw_of, same,
};
use crate::machine::prefetch;
use crate::matching::{Reached, What, empty};
use crate::near;
use crate::places::{Asks, Partition, Use};
use crate::postings::Postings;
use crate::range::{Answer, RangeSet, Target};
use crate::rest::Rest;
use crate::walk::{self, Found, Source};

/// Elements of an array that are looked up together; more of them are looked up one by one, which takes no memory.
const ELEMENTS_TOGETHER_MAX: usize = 64;

/// A text or an integer to look up, which is a value itself: see [`key_of`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    pub(crate) tag: u32,
    /// The place of the value.
    pub(crate) found: u32,
}

/// Anything else to look up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RareProbe {
    pub(crate) probe: Probe,
    pub(crate) at: At,
    pub(crate) payload: Payload,
    /// Of a long payload, where its bytes are; of a range, the key in two halves.
    start: u32,
    end: u32,
    source: Source,
}

impl RareProbe {
    pub(crate) fn range_key(&self) -> u64 {
        u64::from(self.start) << 32 | u64::from(self.end)
    }

    /// The bytes of a payload that is long.
    pub(crate) fn bytes<'b>(&self, bytes_of: impl FnOnce(Source) -> &'b [u8]) -> &'b [u8] {
        &bytes_of(self.source)[self.start as usize..self.end as usize]
    }
}

/// The class and the payload of a value that is a text or an integer.
#[inline(always)]
pub(crate) fn key_of(found: &Found, document: &[u8], seeds: &Seeds) -> (u8, Payload) {
    if found.kind == kind::STRING {
        return (STRING, Payload::within(document, found.start as usize + 4, found.length as usize - 5, seeds));
    }
    (INT, Payload::of_word(int_of(found.kind, document, found.start as usize).cast_unsigned()))
}

/// The integer of either type that stands in a document.
#[inline(always)]
fn int_of(kind: u8, document: &[u8], start: usize) -> i64 {
    match kind {
        kind::INT64 => document[start..].first_chunk().map_or(0, |chunk| i64::from_le_bytes(*chunk)),
        _ => document[start..].first_chunk().map_or(0, |chunk| i32::from_le_bytes(*chunk).into()),
    }
}

/// All that hangs in an index.
#[derive(Clone, Copy)]
pub(crate) struct Hung<'h> {
    pub(crate) seeds: &'h Seeds,
    pub(crate) postings: &'h Postings,
    pub(crate) rests: &'h Arena<Rest>,
    pub(crate) range_sets: &'h Arena<RangeSet>,
}

impl Hung<'_> {
    /// Takes up what hangs on a record.
    #[inline]
    pub(crate) fn reach(&self, record: u32, found: u32, range_key: u64, reached: &mut Vec<Reached>) {
        let record = self.postings.record(record);
        let class = record.node_class as u8;
        if (RANGE..RANGE + 0x10).contains(&class) {
            let set = record.rest.set();
            prefetch(self.range_sets.get(set));
            reached.push(Reached { found, what: What::Ranges(set, range_key) });
            return;
        }
        if !record.sure.is_none() {
            self.postings.prefetch_items(record.sure);
            reached.push(Reached { found, what: What::Sure(record.sure) });
        }
        if !record.rest.is_none() {
            match self.postings.only(record.rest) {
                Some(rest) => self.rests.get(rest).prefetch(),
                None => self.postings.prefetch_items(record.rest),
            }
            reached.push(Reached { found, what: What::Rest(record.rest) });
        }
    }
}

/// What the values of a batch are noted in.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    pub(crate) founds: Vec<Found>,
    /// Values that don't stand in a document as they are.
    pub(crate) beside: Vec<u8>,
    pub(crate) probes: Vec<Probe>,
    pub(crate) rare_probes: Vec<RareProbe>,
    /// What was reached without a probe.
    pub(crate) reached: Vec<Reached>,
}

impl Lists {
    pub(crate) fn clear(&mut self) {
        empty(&mut self.founds);
        empty(&mut self.beside);
        empty(&mut self.probes);
        empty(&mut self.rare_probes);
        empty(&mut self.reached);
    }
}

/// Makes probes of the values of an image.
pub(crate) struct Prober<'p> {
    pub(crate) hung: &'p Hung<'p>,
    pub(crate) partition: u32,
    pub(crate) tags: Tags,
    pub(crate) place: &'p Partition,
    pub(crate) document: &'p [u8],
    /// What the document is to a probe.
    pub(crate) source: Source,
    pub(crate) lists: &'p mut Lists,
}

impl Prober<'_> {
    /// The values of an image, from the first to before the second place.
    pub(crate) fn all(&mut self, founds: (u32, u32)) {
        for at in founds.0..founds.1 {
            self.probe(at);
        }
    }

    /// The same, compared with those of another image of the change, of which probes were made: what is alike in both is looked up once.
    pub(crate) fn all_beside(&mut self, founds: (u32, u32), others: (u32, u32), other: &[u8]) {
        for at in founds.0..founds.1 {
            match self.same_in(others, other, at, others.0 + (at - founds.0)) {
                Some(other) => self.lists.founds[other as usize].mark |= self.lists.founds[at as usize].mark,
                None => self.probe(at),
            }
        }
    }

    /// The same value among others. An array is always looked at, for some of its elements may not have been noted.
    #[inline(always)]
    fn same_in(&self, others: (u32, u32), document: &[u8], at: u32, likely: u32) -> Option<u32> {
        let founds = &self.lists.founds;
        let found = founds[at as usize];
        // Most likely it stands at the same place.
        let other = match likely {
            at if at < others.1 && founds[at as usize].node == found.node => at,
            _ => (others.0..others.1).find(|other| founds[*other as usize].node == found.node)?,
        };
        let beside = &self.lists.beside;
        let it = founds[other as usize];
        let is_same = it.kind == found.kind
            && found.kind != kind::ARRAY
            && same(it.bytes(document, beside), found.bytes(self.document, beside));
        is_same.then_some(other)
    }

    #[inline(always)]
    #[expect(clippy::collapsible_match, reason = "a text of which no equality is asked is done with")]
    fn probe(&mut self, at: u32) {
        let found = self.lists.founds[at as usize];
        let field = self.place.fields.of(found.node);
        let asks = field.asks;
        match found.kind {
            kind::STRING if !asks.any(Asks::TEXT_RARELY) && found.source != Source::Beside => {
                if asks.any(Asks::of(Use::Equal)) {
                    let (start, length) = (found.start as usize + 4, found.length as usize - 5);
                    let payload = Payload::within(self.document, start, length, self.hung.seeds);
                    self.push(field, at, found.node << 8 | u32::from(STRING), payload);
                }
            }
            kind::INT32 | kind::INT64 if !asks.any(Asks::of(Use::Field)) && found.source != Source::Beside => {
                let int = int_of(found.kind, self.document, found.start as usize);
                if asks.any(Asks::of(Use::Equal)) {
                    let payload = Payload::of_word(int.cast_unsigned());
                    self.push(field, at, found.node << 8 | u32::from(INT), payload);
                }
                if asks.any(Asks::of(Use::Range)) {
                    let key = int_order_key(int);
                    if !asks.any(Asks::FAR) {
                        self.near(field.ranges(), key, at);
                    } else if let Some(set) = self.place.near.set_in(field.group(), near::at(found.node, Order::Number))
                    {
                        self.set(set, key, at);
                    } else {
                        self.range(field, at, found.node, Order::Number, key);
                    }
                }
            }
            _ if asks.any(Asks::PROBES) => self.probe_rarely(field, at, found),
            _ => {}
        }
    }

    #[inline(always)]
    fn push(&mut self, field: &Field, at: u32, node_class: u32, payload: Payload) {
        let tag = self.tags.of(node_class, payload);
        let probes = &mut self.lists.probes;
        let count = probes.len();
        probes.push(Probe { tag, found: at });
        // Whether a key may be there is anybody's guess, so no branch depends on it.
        probes.truncate(count + field.may_have(tag) as usize);
    }

    #[inline(always)]
    fn set(&mut self, set: u32, key: u64, found: u32) {
        prefetch(self.hung.range_sets.get(set));
        self.lists.reached.push(Reached { found, what: What::Ranges(set, key) });
    }

    /// Looks for the value in ranges that stand in the partition.
    #[inline(always)]
    fn near(&mut self, places: std::ops::Range<usize>, key: u64, found: u32) {
        let first = places.start;
        for (at, [lower, span]) in self.place.near.bounds_of(places).iter().enumerate() {
            if key.wrapping_sub(*lower) <= *span {
                self.near_hit(first + at, key, found);
            }
        }
    }

    #[inline(never)]
    fn probe_rarely(&mut self, field: &Field, at: u32, found: Found) {
        let asks = field.asks;
        if asks.any(Asks::of(Use::Field)) {
            // What is malformed doesn't count as found.
            let value = found.bytes(self.document, &self.lists.beside);
            if raw_of(found.kind, value, &mut Vec::new()).is_some() {
                self.push_rare(field, at, (FIELD, found.node), Payload::of(&[], self.hung.seeds), (0, 0), found.source);
            }
        }
        let is_array = found.kind == kind::ARRAY;
        if is_array && !asks.any(Asks::of(Use::Element)) {
            return;
        }
        let copy;
        let value = match found.source {
            // What it adds to the bytes beside would move them.
            Source::Beside => {
                copy = found.bytes(self.document, &self.lists.beside).to_vec();
                &copy
            }
            _ => found.bytes(self.document, &[]),
        };
        if is_array { self.array(field, at, &found, value) } else { self.value(field, at, &found, value) }
    }

    fn value(&mut self, field: &Field, at: u32, found: &Found, value: &[u8]) {
        let asks = field.asks;
        if asks.any(Asks::of(Use::Equal)) {
            self.equal(field, at, (0, found.node), found.kind, value, (found.start, found.source), false);
        }
        if asks.any(Asks::of(Use::Range))
            && let Some((order, key)) = ordered(found.kind, value)
        {
            self.range(field, at, found.node, order, key);
        }
        if asks.any(Asks::PREFIX) && found.kind == kind::STRING {
            let text = value.get(4..value.len() - 1).unwrap_or_default();
            // What is no text is no value.
            if std::str::from_utf8(text).is_ok() {
                self.prefixes(field, at, found, text);
            }
        }
    }

    #[inline(never)]
    fn range(&mut self, field: &Field, found: u32, node: u32, order: Order, key: u64) {
        match self.place.near.find(near::at(node, order)) {
            near::Found::Group(start, end) => self.near(start..end, key, found),
            near::Found::Set(set) => self.set(set, key, found),
            near::Found::Nothing if self.place.far_ranges > 0 => {
                // The two halves, on purpose.
                let halves = ((key >> 32) as u32, key as u32);
                let payload = Payload::of(&[], self.hung.seeds);
                self.push_rare(field, found, (RANGE + order as u8, node), payload, halves, self.source);
            }
            near::Found::Nothing => {}
        }
    }

    #[inline(never)]
    fn near_hit(&mut self, at: usize, key: u64, found: u32) {
        let listed = self.place.near.listed(at);
        let answer = listed.answer(self.lists.founds[found as usize].kind, key);
        if answer == Answer::No {
            return;
        }
        let Target { rest, slot, is_decided, .. } = listed.target;
        let is_sure = answer == Answer::Yes;
        if !is_decided || !is_sure {
            self.hung.rests.get(rest).prefetch();
        }
        self.lists.reached.push(Reached { found, what: What::Range { rest, slot, is_sure, is_decided } });
    }

    fn prefixes(&mut self, field: &Field, at: u32, found: &Found, text: &[u8]) {
        let mut lengths = self.place.prefix_lengths;
        while lengths != 0 {
            let length = lengths.trailing_zeros() as usize + 1;
            lengths &= lengths - 1;
            let Some(prefix) = text.get(..length) else { break };
            let start = found.start + 4;
            let payload = Payload::of(prefix, self.hung.seeds);
            self.push_rare(field, at, (PREFIX, found.node), payload, (start, start + length as u32), found.source);
        }
    }

    fn array(&mut self, field: &Field, at: u32, found: &Found, array: &[u8]) {
        // Noted from the beginning, as if there were few; which there mostly are.
        let probes = self.lists.rare_probes.len();
        let reached = self.lists.reached.len();
        let mut count = 0;
        let is_sure = walk::elements(array, |kind, start, end| {
            count += 1;
            let value = &array[start..end];
            let at_once = count > ELEMENTS_TOGETHER_MAX;
            let from = (found.start + start as u32, found.source);
            self.equal(field, at, (ELEMENT, found.node), kind, value, from, at_once);
        });
        if is_sure {
            return;
        }
        self.lists.rare_probes.truncate(probes);
        self.lists.reached.truncate(reached);
        // As far as the iterator comes.
        let Ok(array) = bson::RawDocument::from_bytes(array) else { return };
        for element in array.iter_elements() {
            let Some(value) = element.ok().and_then(|element| element.value().ok()) else { break };
            let stored = predicate::stored_id(value);
            let from = (self.lists.beside.len() as u32, Source::Beside);
            self.lists.beside.extend_from_slice(&stored[1..]);
            self.equal(field, at, (ELEMENT, found.node), stored[0], &stored[1..], from, true);
        }
    }

    /// `start` is where the value's bytes are in their source.
    #[inline]
    #[expect(clippy::too_many_arguments, reason = "a value is its node, type, bytes and place")]
    fn equal(
        &mut self,
        field: &Field,
        found: u32,
        (add, node): (u8, u32),
        kind: u8,
        value: &[u8],
        (start, source): (u32, Source),
        at_once: bool,
    ) {
        let mut canonical = CanonicalBytes::new();
        let seeds = self.hung.seeds;
        let (class, payload, bytes, from) = match keyed(kind, value, &mut canonical) {
            Keyed::Nothing => return,
            Keyed::Word(class, word) => (class, Payload::of_word(word), &[][..], 0),
            Keyed::Bytes(class, from, to) => {
                (class, Payload::of(&value[from..to], seeds), &value[from..to], start + from as u32)
            }
            Keyed::Canonical(class) => {
                let bytes = &canonical[1..];
                let from = self.lists.beside.len() as u32;
                let payload = Payload::of(bytes, seeds);
                if payload.is_long() {
                    self.lists.beside.extend_from_slice(bytes);
                }
                let places = (from, self.lists.beside.len() as u32);
                return self.push_rare(field, found, (class | add, node), payload, places, Source::Beside);
            }
        };
        if at_once {
            if let Some(record) = self.hung.postings.find(At::new(self.partition, node, class | add), payload, bytes) {
                self.hung.reach(record, found, 0, &mut self.lists.reached);
            }
            return;
        }
        self.push_rare(field, found, (class | add, node), payload, (from, from + bytes.len() as u32), source);
    }

    /// `start` and `end` are those of a [`RareProbe`].
    fn push_rare(
        &mut self,
        field: &Field,
        found: u32,
        (class, node): (u8, u32),
        payload: Payload,
        (start, end): (u32, u32),
        source: Source,
    ) {
        let at = At::new(self.partition, node, class);
        let tag = at.tag(payload, self.hung.seeds);
        if field.may_have(tag) != 0 {
            self.lists.rare_probes.push(RareProbe { probe: Probe { tag, found }, at, payload, start, end, source });
        }
    }
}
