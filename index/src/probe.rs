//! From the values of a document to what is looked up.
//!
//! The types that documents are mostly made of have a short way; all others, and nodes of which more than an equality or a range is
//! asked, stand apart, so that they take no registers from it.

use bson::RawBsonRef;
use predicate::{CanonicalBytes, Order, order_key};

use crate::arena::Arena;
use crate::key::{
    At, ELEMENT, FIELD, INT, Keyed, PREFIX, Payload, RANGE, STRING, Seeds, keyed, kind, ordered, raw_of, same,
};
use crate::machine::prefetch;
use crate::matching::{Reached, What};
use crate::near;
use crate::places::{Asks, Partition, Use};
use crate::postings::Postings;
use crate::range::RangeSet;
use crate::rest::Rest;
use crate::walk::{self, Found};

/// Elements of an array that are looked up together; more of them are looked up one by one, which takes no memory.
const ELEMENTS_TOGETHER_MAX: usize = 64;

/// Something to look up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    pub(crate) tag: u32,
    pub(crate) at: At,
    pub(crate) payload: Payload,
    /// Of a long payload, where its bytes are; of a range, the key in two halves.
    pub(crate) start: u32,
    pub(crate) end: u32,
    pub(crate) mark: u8,
    pub(crate) source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Before,
    After,
    Beside,
}

impl Probe {
    pub(crate) fn range_key(&self) -> u64 {
        u64::from(self.start) << 32 | u64::from(self.end)
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
    pub(crate) fn reach(&self, record: u32, mark: u8, range_key: u64, reached: &mut Vec<Reached>) {
        let record = self.postings.record(record);
        let class = record.node_class as u8;
        if (RANGE..RANGE + 0x10).contains(&class) {
            let set = record.rest.set();
            prefetch(self.range_sets.get(set));
            reached.push(Reached { mark, what: What::Ranges(set, range_key) });
            return;
        }
        if !record.sure.is_none() {
            self.postings.prefetch_items(record.sure);
            reached.push(Reached { mark, what: What::Sure(record.sure) });
        }
        if !record.rest.is_none() {
            match self.postings.only(record.rest) {
                Some(rest) => self.rests.get(rest).prefetch(),
                None => self.postings.prefetch_items(record.rest),
            }
            reached.push(Reached { mark, what: What::Rest(record.rest) });
        }
    }
}

/// What was made of a value: the probes, and what was reached without one, from the first to before the second place.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Made {
    probes: (u32, u32),
    reached: (u32, u32),
}

/// The image after of a change, as far as it is of the same partition: what is alike in the one before needs no second look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Other<'p> {
    pub(crate) document: &'p [u8],
    pub(crate) founds: &'p [Found],
}

/// Makes probes of the values of an image.
pub(crate) struct Prober<'p> {
    pub(crate) hung: Hung<'p>,
    pub(crate) partition: u32,
    pub(crate) place: &'p Partition,
    pub(crate) document: &'p [u8],
    pub(crate) mark: u8,
    /// What the document is to a probe.
    pub(crate) source: Source,
    pub(crate) probes: &'p mut Vec<Probe>,
    pub(crate) reached: &'p mut Vec<Reached>,
    pub(crate) beside: &'p mut Vec<u8>,
}

impl Prober<'_> {
    /// All that was found in an image.
    pub(crate) fn all(&mut self, founds: &[Found]) {
        let start = self.probes.len();
        for found in founds {
            self.found(found);
        }
        self.announce(start);
    }

    /// The same, to be compared with another image.
    pub(crate) fn all_after(&mut self, founds: &[Found], made: &mut Vec<Made>) {
        made.clear();
        let start = self.probes.len();
        for found in founds {
            let starts = (self.probes.len() as u32, self.reached.len() as u32);
            self.found(found);
            let ends = (self.probes.len() as u32, self.reached.len() as u32);
            made.push(Made { probes: (starts.0, ends.0), reached: (starts.1, ends.1) });
        }
        self.announce(start);
    }

    /// The same, compared with the image after and what was made of that.
    pub(crate) fn all_before(&mut self, founds: &[Found], after: Other<'_>, made: &[Made]) {
        let start = self.probes.len();
        for (at, found) in founds.iter().enumerate() {
            match self.same_after(at, found, &after).and_then(|at| made.get(at)) {
                Some(Made { probes, reached }) => {
                    let mark = self.mark;
                    let probes = &mut self.probes[probes.0 as usize..probes.1 as usize];
                    probes.iter_mut().for_each(|probe| probe.mark |= mark);
                    let reached = &mut self.reached[reached.0 as usize..reached.1 as usize];
                    reached.iter_mut().for_each(|reached| reached.mark |= mark);
                }
                None => self.found(found),
            }
        }
        self.announce(start);
    }

    /// Announces the look-ups of the probes from this one on.
    fn announce(&self, start: usize) {
        for probe in &self.probes[start..] {
            self.hung.postings.prefetch(probe.tag);
        }
    }

    /// The place of the same value in the image after: then what was made of that counts for both. An array is always looked at, for
    /// some of its elements may not have been noted.
    #[inline]
    fn same_after(&self, at: usize, found: &Found, after: &Other<'_>) -> Option<usize> {
        // Most likely it stands at the same place.
        let (at, other) = match after.founds.get(at) {
            Some(other) if other.node == found.node => (at, other),
            _ => after.founds.iter().enumerate().find(|(_, other)| other.node == found.node)?,
        };
        let is_same = other.kind == found.kind
            && found.kind != kind::ARRAY
            && same(other.bytes(after.document, self.beside), found.bytes(self.document, self.beside));
        is_same.then_some(at)
    }

    #[inline(always)]
    #[expect(clippy::collapsible_match, reason = "a text of which no equality is asked is done with")]
    fn found(&mut self, found: &Found) {
        let Found { node, start, length, kind, beside } = *found;
        let asks = self.place.asked.of(node);
        match kind {
            kind::STRING if !beside && !asks.any(Asks::TEXT_RARELY) => {
                if asks.any(Asks::of(Use::Equal)) {
                    let (start, length) = (start + 4, length - 5);
                    let payload = Payload::within(self.document, start as usize, length as usize, self.hung.seeds);
                    let at = At::new(self.partition, node, STRING);
                    self.push(at, payload, start, start + length, self.source);
                }
            }
            kind::INT32 | kind::INT64 if !beside && !asks.any(Asks::of(Use::Field)) => {
                let value = &self.document[start as usize..];
                let int = match kind {
                    kind::INT64 => value.first_chunk().map_or(0, |chunk| i64::from_le_bytes(*chunk)),
                    _ => value.first_chunk().map_or(0, |chunk| i32::from_le_bytes(*chunk).into()),
                };
                if asks.any(Asks::of(Use::Equal)) {
                    let at = At::new(self.partition, node, INT);
                    self.push(at, Payload::of_word(int.cast_unsigned()), 0, 0, self.source);
                }
                if asks.any(Asks::of(Use::Range)) {
                    self.range_of_int(node, int);
                }
            }
            _ if asks.any(Asks::PROBES) => self.found_rarely(asks, *found),
            _ => {}
        }
    }

    /// Apart, so that it takes no registers from the rest.
    #[inline(never)]
    fn range_of_int(&mut self, node: u32, int: i64) {
        if let Some((order, key)) = order_key(RawBsonRef::Int64(int)) {
            self.range(node, order, key, self.source);
        }
    }

    #[inline(never)]
    fn found_rarely(&mut self, asks: Asks, found: Found) {
        let source = if found.beside { Source::Beside } else { self.source };
        if asks.any(Asks::of(Use::Field)) {
            // What is malformed doesn't count as found.
            let value = found.bytes(self.document, self.beside);
            if raw_of(found.kind, value, &mut Vec::new()).is_some() {
                let at = At::new(self.partition, found.node, FIELD);
                self.push(at, Payload::of(&[], self.hung.seeds), 0, 0, source);
            }
        }
        let is_array = found.kind == kind::ARRAY;
        if is_array && !asks.any(Asks::of(Use::Element)) {
            return;
        }
        if found.beside {
            // What it adds to the bytes beside would move them.
            let value = found.bytes(self.document, self.beside).to_vec();
            if is_array { self.array(&found, &value, source) } else { self.value(&found, asks, &value, source) }
        } else {
            let value = found.bytes(self.document, &[]);
            if is_array { self.array(&found, value, source) } else { self.value(&found, asks, value, source) }
        }
    }

    fn value(&mut self, found: &Found, asks: Asks, value: &[u8], source: Source) {
        if asks.any(Asks::of(Use::Equal)) {
            self.equal(found.node, 0, found.kind, value, found.start, source, false);
        }
        if asks.any(Asks::of(Use::Range))
            && let Some((order, key)) = ordered(found.kind, value)
        {
            self.range(found.node, order, key, source);
        }
        if asks.any(Asks::PREFIX) && found.kind == kind::STRING {
            let text = value.get(4..value.len() - 1).unwrap_or_default();
            // What is no text is no value.
            if std::str::from_utf8(text).is_ok() {
                self.prefixes(found, text, source);
            }
        }
    }

    #[inline(always)]
    fn range(&mut self, node: u32, order: Order, key: u64, source: Source) {
        match self.place.near.find(near::at(node, order)) {
            near::Found::Group(start, end) => {
                let mut hits = self.place.near.hits(start, end, key);
                while hits != 0 {
                    self.near_hit(start + hits.trailing_zeros() as usize, key);
                    hits &= hits - 1;
                }
            }
            near::Found::Set(set) => {
                prefetch(self.hung.range_sets.get(set));
                self.reached.push(Reached { mark: self.mark, what: What::Ranges(set, key) });
            }
            near::Found::Nothing if self.place.far_ranges > 0 => {
                let at = At::new(self.partition, node, RANGE + order as u8);
                // The two halves, on purpose.
                self.push(at, Payload::of(&[], self.hung.seeds), (key >> 32) as u32, key as u32, source);
            }
            near::Found::Nothing => {}
        }
    }

    #[inline(never)]
    fn near_hit(&mut self, at: usize, key: u64) {
        let listed = self.place.near.listed(at);
        if !listed.target.is_decided || !listed.is_sure(key) {
            self.hung.rests.get(listed.target.rest).prefetch();
        }
        self.reached.push(Reached { mark: self.mark, what: What::range(&listed, key) });
    }

    fn prefixes(&mut self, found: &Found, text: &[u8], source: Source) {
        let at = At::new(self.partition, found.node, PREFIX);
        let mut lengths = self.place.prefix_lengths;
        while lengths != 0 {
            let length = lengths.trailing_zeros() as usize + 1;
            lengths &= lengths - 1;
            let Some(prefix) = text.get(..length) else { break };
            let start = found.start + 4;
            self.push(at, Payload::of(prefix, self.hung.seeds), start, start + length as u32, source);
        }
    }

    fn array(&mut self, found: &Found, array: &[u8], source: Source) {
        // Noted from the beginning, as if there were few; which there mostly are.
        let (probes, mut count) = (self.probes.len(), 0);
        let reached = self.reached.len();
        let is_sure = walk::elements(array, |kind, start, end| {
            count += 1;
            let value = &array[start..end];
            let at_once = count > ELEMENTS_TOGETHER_MAX;
            self.equal(found.node, ELEMENT, kind, value, found.start + start as u32, source, at_once);
        });
        if is_sure {
            return;
        }
        self.probes.truncate(probes);
        self.reached.truncate(reached);
        // As far as the iterator comes.
        let Ok(array) = bson::RawDocument::from_bytes(array) else { return };
        for element in array.iter_elements() {
            let Some(value) = element.ok().and_then(|element| element.value().ok()) else { break };
            let stored = predicate::stored_id(value);
            let start = self.beside.len() as u32;
            self.beside.extend_from_slice(&stored[1..]);
            self.equal(found.node, ELEMENT, stored[0], &stored[1..], start, Source::Beside, true);
        }
    }

    /// `start` is where the value's bytes are in their source.
    #[inline]
    #[expect(clippy::too_many_arguments, reason = "a value is its node, type, bytes and place")]
    fn equal(&mut self, node: u32, add: u8, kind: u8, value: &[u8], start: u32, source: Source, at_once: bool) {
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
                let from = self.beside.len() as u32;
                let payload = Payload::of(bytes, seeds);
                if payload.is_long() {
                    self.beside.extend_from_slice(bytes);
                }
                let at = At::new(self.partition, node, class | add);
                return self.push(at, payload, from, self.beside.len() as u32, Source::Beside);
            }
        };
        let at = At::new(self.partition, node, class | add);
        if at_once {
            if let Some(record) = self.hung.postings.find(at, payload, bytes) {
                self.hung.reach(record, self.mark, 0, self.reached);
            }
            return;
        }
        self.push(at, payload, from, from + bytes.len() as u32, source);
    }

    #[inline(always)]
    fn push(&mut self, at: At, payload: Payload, start: u32, end: u32, source: Source) {
        let tag = at.tag(payload, self.hung.seeds);
        let count = self.probes.len();
        self.probes.push(Probe { tag, at, payload, start, end, mark: self.mark, source });
        // Whether a key may be there is anybody's guess, so no branch depends on it.
        self.probes.truncate(count + usize::from(self.place.keys.may_have(tag)));
    }
}
