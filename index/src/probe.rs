//! From the values of a document to what is looked up.
//!
//! The types that documents are mostly made of have a short way; all others, and nodes of which more than an equality or a range is
//! asked, stand apart, so that they take no registers from it.

use bson::RawBsonRef;
use predicate::{CanonicalBytes, Order, order_key};

use crate::Index;
use crate::key::{At, ELEMENT, FIELD, INT, Keyed, PREFIX, Payload, RANGE, STRING, keyed, kind, raw_of};
use crate::machine::prefetch;
use crate::matching::{Reached, What};
use crate::places::{NearRanges, Partition};
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

/// Makes probes of the values of an image.
pub(crate) struct Prober<'p> {
    pub(crate) index: &'p Index,
    pub(crate) partition: u32,
    pub(crate) place: &'p Partition,
    pub(crate) ranges: &'p [NearRanges],
    pub(crate) mark: u8,
    pub(crate) probes: &'p mut Vec<Probe>,
    pub(crate) reached: &'p mut Vec<Reached>,
    pub(crate) beside: &'p mut Vec<u8>,
}

impl Prober<'_> {
    #[inline]
    pub(crate) fn found(&mut self, found: &Found, document: &[u8], source: Source) {
        let bit = 1_u64 << (found.node % 64);
        match found.kind {
            kind::STRING if !found.beside && self.place.masks.text_rarely & bit == 0 => {
                if self.place.masks.equal & bit != 0 {
                    let (start, length) = (found.start + 4, found.length - 5);
                    let payload = Payload::within(document, start as usize, length as usize, &self.index.seeds);
                    let at = At::new(self.partition, found.node, STRING);
                    self.push(at, payload, start, start + length, source);
                }
            }
            kind::INT32 | kind::INT64 if !found.beside && self.place.masks.int_rarely & bit == 0 => {
                let value = found.bytes(document, &[]);
                let int = match value.first_chunk() {
                    Some(chunk) => i64::from_le_bytes(*chunk),
                    None => value.first_chunk().map_or(0, |chunk| i32::from_le_bytes(*chunk).into()),
                };
                if self.place.masks.equal & bit != 0 {
                    let at = At::new(self.partition, found.node, INT);
                    self.push(at, Payload::of_word(int.cast_unsigned()), 0, 0, source);
                }
                if self.place.masks.range & bit != 0
                    && let Some((order, key)) = order_key(RawBsonRef::Int64(int))
                {
                    self.range(found.node, order, key, source);
                }
            }
            _ => self.found_rarely(found, document, source),
        }
    }

    #[inline(never)]
    fn found_rarely(&mut self, found: &Found, document: &[u8], source: Source) {
        let bit = 1_u64 << (found.node % 64);
        let source = if found.beside { Source::Beside } else { source };
        if self.place.masks.field & bit != 0 {
            // What is malformed doesn't count as found.
            let value = found.bytes(document, self.beside);
            if raw_of(found.kind, value, &mut Vec::new()).is_some() {
                let at = At::new(self.partition, found.node, FIELD);
                self.push(at, Payload::of(&[], &self.index.seeds), 0, 0, source);
            }
        }
        if found.kind == kind::ARRAY {
            if self.place.masks.element & bit != 0 {
                self.array(found, document, source);
            }
            return;
        }
        if found.beside {
            // What it adds to the bytes beside would move them.
            let value = found.bytes(document, self.beside).to_vec();
            self.value(found, bit, &value, source);
        } else {
            self.value(found, bit, found.bytes(document, &[]), source);
        }
    }

    fn value(&mut self, found: &Found, bit: u64, value: &[u8], source: Source) {
        if self.place.masks.equal & bit != 0 {
            self.equal(found.node, 0, found.kind, value, found.start, source, false);
        }
        if self.place.masks.range & bit != 0
            && let Some((order, key)) = raw_of(found.kind, value, &mut Vec::new()).and_then(order_key)
        {
            self.range(found.node, order, key, source);
        }
        if self.place.masks.prefix & bit != 0 && found.kind == kind::STRING {
            let text = value.get(4..value.len() - 1).unwrap_or_default();
            // What is no text is no value.
            if std::str::from_utf8(text).is_ok() {
                self.prefixes(found, text, source);
            }
        }
    }

    #[inline]
    fn range(&mut self, node: u32, order: Order, key: u64, source: Source) {
        for near in self.ranges {
            if near.node == node && near.order == order {
                prefetch(self.index.range_sets.get(near.set));
                self.reached.push(Reached { mark: self.mark, what: What::Ranges(near.set, key) });
                return;
            }
        }
        if self.place.far_ranges > 0 {
            let at = At::new(self.partition, node, RANGE + order as u8);
            // The two halves, on purpose.
            self.push(at, Payload::of(&[], &self.index.seeds), (key >> 32) as u32, key as u32, source);
        }
    }

    fn prefixes(&mut self, found: &Found, text: &[u8], source: Source) {
        let at = At::new(self.partition, found.node, PREFIX);
        let mut lengths = self.place.masks.prefix_lengths;
        while lengths != 0 {
            let length = lengths.trailing_zeros() as usize + 1;
            lengths &= lengths - 1;
            let Some(prefix) = text.get(..length) else { break };
            let start = found.start + 4;
            self.push(at, Payload::of(prefix, &self.index.seeds), start, start + length as u32, source);
        }
    }

    fn array(&mut self, found: &Found, document: &[u8], source: Source) {
        // Copied where it stands beside, for what it adds there would move it.
        let copied;
        let array = match found.beside {
            true => {
                copied = found.bytes(document, self.beside).to_vec();
                &copied[..]
            }
            false => found.bytes(document, &[]),
        };
        let mut count = 0;
        let is_sure = walk::elements(array, |_, _, _| count += 1);
        if is_sure {
            let at_once = count > ELEMENTS_TOGETHER_MAX;
            walk::elements(array, |kind, start, end| {
                let value = &array[start..end];
                self.equal(found.node, ELEMENT, kind, value, found.start + start as u32, source, at_once);
            });
            return;
        }
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
        let seeds = &self.index.seeds;
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
            if let Some(record) = self.index.postings.find(at, payload, bytes) {
                self.index.reach(record, self.mark, 0, self.reached);
            }
            return;
        }
        self.push(at, payload, from, from + bytes.len() as u32, source);
    }

    #[inline]
    fn push(&mut self, at: At, payload: Payload, start: u32, end: u32, source: Source) {
        let tag = at.tag(payload, &self.index.seeds);
        if !self.place.keys.may_have(tag) {
            return;
        }
        self.index.postings.prefetch(tag);
        self.probes.push(Probe { tag, at, payload, start, end, mark: self.mark, source });
    }
}
