//! One walk over a document's bytes, which notes the values that are looked at, and makes probes of them as it comes by.
//!
//! Invariant: what is found is what [`predicate::field`] finds, name by name. A walk that isn't sure of that (a broken document, or one
//! of the few types without a simple form) says so, and everything is looked up by `field` then.

use bson::RawDocument;

use crate::key::{kind, same};
use crate::paths::{ID, IN_TAIL, IN_WORD, NO_NODE, Paths, ROOT};
use crate::places::{Asks, Partition, Use};
use crate::probe::Prober;

/// A value of a node: its type, and where its bytes are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) node: u32,
    pub(crate) start: u32,
    pub(crate) length: u32,
    pub(crate) kind: u8,
    /// In the bytes beside the document, because it doesn't stand in it as it is.
    pub(crate) beside: bool,
}

impl Found {
    #[inline]
    pub(crate) fn bytes<'a>(&self, document: &'a [u8], beside: &'a [u8]) -> &'a [u8] {
        let bytes = if self.beside { beside } else { document };
        &bytes[self.start as usize..(self.start + self.length) as usize]
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
pub(crate) struct Other<'w> {
    pub(crate) document: &'w [u8],
    /// The places of what was found in it.
    pub(crate) founds: (u32, u32),
}

/// A walk over one image.
pub(crate) struct Walk<'w> {
    pub(crate) paths: &'w mut Paths,
    pub(crate) founds: &'w mut Vec<Found>,
    /// Of each that was found in the image after.
    pub(crate) made: &'w mut Vec<Made>,
    pub(crate) prober: Prober<'w>,
    pub(crate) after: Option<Other<'w>>,
    /// Whether another image will be compared with this one.
    pub(crate) is_kept: bool,
    /// Where what is found in this image begins.
    pub(crate) start: usize,
    /// The number of the walk.
    pub(crate) stamp: u32,
}

impl Walk<'_> {
    /// Finds what the partition asks for. False where it isn't sure; what it has found until then doesn't count.
    pub(crate) fn document(&mut self) -> bool {
        self.stamp = self.paths.begin();
        self.fields(0, self.prober.document.len(), ROOT).is_some()
    }

    /// The document from `start` to before `end`, which are five bytes at least. Nests no deeper than the paths that are asked for.
    fn fields(&mut self, start: usize, end: usize, parent: u32) -> Option<()> {
        // Four bytes of length, elements, and a NUL.
        let bytes = self.prober.document;
        let place: &Partition = self.prober.place;
        let last = end.checked_sub(1)?;
        let mut at = start + 4;
        if at > last || *bytes.get(last)? != 0 {
            return None;
        }
        let mut guess = self.paths.hot()[parent as usize].child;
        let mut previous = NO_NODE;
        while at < last {
            let (kind, named) = bytes[at..].split_first()?;
            let value;
            let known = match (self.paths.hot().get_mut(guess as usize), named.first_chunk()) {
                (Some(known), Some(word))
                    if known.begins(parent, u64::from_le_bytes(*word))
                        && (known.length < IN_WORD || known.length < IN_TAIL && known.ends(named)) =>
                {
                    value = at + 2 + known.length as usize;
                    known
                }
                _ => {
                    let (node, begins) = self.name(at + 1, last, parent, guess, previous)?;
                    if node == NO_NODE {
                        at = end_of_value(*kind, bytes, begins, last)?;
                        continue;
                    }
                    (guess, value) = (node, begins);
                    &mut self.paths.hot()[node as usize]
                }
            };
            let node = guess;
            (previous, guess) = (node, known.next);
            let end = end_of_value(*kind, bytes, value, last)?;
            at = end;
            let asks = place.asked.of(node);
            if asks == Asks::NONE || known.stamp == self.stamp {
                continue;
            }
            known.stamp = self.stamp;
            self.note(
                asks,
                Found { node, start: value as u32, length: (end - value) as u32, kind: *kind, beside: false },
            );
            if *kind == kind::DOCUMENT && asks.any(Asks::of(Use::Inner)) {
                self.fields(value, end, node)?;
            }
        }
        Some(())
    }

    /// Takes up what was found.
    #[inline(always)]
    fn note(&mut self, asks: Asks, found: Found) {
        if self.is_kept || self.after.is_some() {
            return self.note_beside_other(asks, found);
        }
        if asks.any(Asks::PROBES) {
            self.prober.found(asks, found);
        }
        if asks.any(Asks::of(Use::Rest)) {
            self.founds.push(found);
        }
    }

    /// The same where there are two images.
    #[inline(never)]
    fn note_beside_other(&mut self, asks: Asks, found: Found) {
        let starts = (self.prober.probes.len() as u32, self.prober.reached.len() as u32);
        if asks.any(Asks::PROBES) && !self.is_as_after(&found) {
            self.prober.found(asks, found);
        }
        if self.is_kept {
            let ends = (self.prober.probes.len() as u32, self.prober.reached.len() as u32);
            self.made.push(Made { probes: (starts.0, ends.0), reached: (starts.1, ends.1) });
        }
        self.founds.push(found);
    }

    /// Whether the image after has the same value: then what was made of that counts for both.
    #[inline]
    fn is_as_after(&mut self, found: &Found) -> bool {
        let Some(after) = &self.after else { return false };
        if found.kind == kind::ARRAY {
            return false;
        }
        let others = &self.founds[after.founds.0 as usize..after.founds.1 as usize];
        // Most likely it stands at the same place.
        let place = self.founds.len() - self.start;
        let place = match others.get(place) {
            Some(other) if other.node == found.node => place,
            _ => match others.iter().position(|other| other.node == found.node) {
                Some(place) => place,
                None => return false,
            },
        };
        let (other, beside) = (&others[place], &*self.prober.beside);
        if other.kind != found.kind
            || !same(other.bytes(after.document, beside), found.bytes(self.prober.document, beside))
        {
            return false;
        }
        let mark = self.prober.mark;
        let Made { probes, reached } = self.made[place];
        let probes = &mut self.prober.probes[probes.0 as usize..probes.1 as usize];
        probes.iter_mut().for_each(|probe| probe.mark |= mark);
        let reached = &mut self.prober.reached[reached.0 as usize..reached.1 as usize];
        reached.iter_mut().for_each(|reached| reached.mark |= mark);
        true
    }

    /// The node of the name that begins here, or [`NO_NODE`], and where its value begins: where the guess was wrong or isn't enough. Apart,
    /// so that it takes no registers from the walk.
    #[inline(never)]
    fn name(&mut self, at: usize, last: usize, parent: u32, guess: u32, previous: u32) -> Option<(u32, usize)> {
        let named = self.prober.document.get(at..last)?;
        let (word, length) = name_of(named)?;
        let value = at + length + 1;
        let name = &named[..length];
        if guess != NO_NODE && self.paths.is(guess, parent, word, name) {
            return Some((guess, value));
        }
        if !self.paths.may_have(parent, word) {
            return Some((NO_NODE, value));
        }
        let Some(node) = self.paths.child(parent, word, name) else { return Some((NO_NODE, value)) };
        // Documents of a collection mostly have their fields in one order.
        match previous {
            NO_NODE => self.paths.hot()[parent as usize].child = node,
            previous => self.paths.hot()[previous as usize].next = node,
        }
        Some((node, value))
    }

    /// Finds the same by `field`, name by name.
    pub(crate) fn look_up(&mut self, document: &RawDocument) {
        let place = self.prober.place;
        for node in place.nodes().filter(|node| *node != ID) {
            let names = self.paths.names(node);
            let Some((last, parents)) = names.split_last() else { continue };
            let parent = parents.iter().try_fold(document, |at, name| predicate::field(at, name)?.as_document());
            if let Some(value) = parent.and_then(|parent| predicate::field(parent, last)) {
                self.note_beside(node, &predicate::stored_id(value));
            }
        }
    }

    /// Takes up a value that does not stand in the document as it is.
    pub(crate) fn note_beside(&mut self, node: u32, stored: &[u8]) {
        let beside = &mut self.prober.beside;
        let (Some((&kind, value)), Ok(start)) = (stored.split_first(), u32::try_from(beside.len())) else { return };
        let Ok(length) = u32::try_from(value.len()) else { return };
        beside.extend_from_slice(value);
        let asks = self.prober.place.asked.of(node);
        self.note(asks, Found { node, start, length, kind, beside: true });
    }
}

/// The first eight bytes of the name that this begins with, and its length. None where it doesn't end, or is no text.
#[inline]
fn name_of(named: &[u8]) -> Option<(u64, usize)> {
    let Some(chunk) = named.first_chunk() else { return name_slowly(named) };
    let word = u64::from_le_bytes(*chunk);
    let zeros = zeros_of(word);
    if zeros == 0 {
        return long_name(named, word);
    }
    let length = zeros.trailing_zeros() as usize / 8;
    let word = word & !(u64::MAX << (8 * length));
    if word & UPPER_BITS == 0 || std::str::from_utf8(&named[..length]).is_ok() {
        return Some((word, length));
    }
    None
}

const UPPER_BITS: u64 = 0x8080_8080_8080_8080;

/// The lowest byte that is zero has its upper bit set here ("Determine if a word has a zero byte", Sean Anderson's Bit Twiddling
/// Hacks).
#[inline]
fn zeros_of(word: u64) -> u64 {
    word.wrapping_sub(0x0101_0101_0101_0101) & !word & UPPER_BITS
}

/// A name of eight bytes or more, of which the first eight are given.
#[inline(never)]
fn long_name(named: &[u8], word: u64) -> Option<(u64, usize)> {
    let mut seen = word;
    let mut at = 8;
    while let Some(chunk) = named.get(at..).and_then(<[u8]>::first_chunk) {
        let next = u64::from_le_bytes(*chunk);
        let zeros = zeros_of(next);
        if zeros != 0 {
            let length = at + zeros.trailing_zeros() as usize / 8;
            seen |= next & !(u64::MAX << (8 * (length - at)));
            let is_text = seen & UPPER_BITS == 0 || std::str::from_utf8(&named[..length]).is_ok();
            return is_text.then_some((word, length));
        }
        seen |= next;
        at += 8;
    }
    name_slowly(named)
}

/// Near the end of a document.
#[cold]
#[inline(never)]
fn name_slowly(named: &[u8]) -> Option<(u64, usize)> {
    let length = named.iter().position(|byte| *byte == 0)?;
    let name = std::str::from_utf8(&named[..length]).ok()?;
    Some((crate::paths::word_of(name), length))
}

const STRING: i8 = -1;
const NESTED: i8 = -2;
const BINARY: i8 = -3;
const UNSURE: i8 = -4;

/// Sizes of values by their type; below zero they say it themselves.
const SIZES: [i8; 256] = {
    let mut sizes = [UNSURE; 256];
    let fixed: [(u8, i8); 12] = [
        (0x01, 8),
        (0x06, 0),
        (0x07, 12),
        (0x08, 1),
        (0x09, 8),
        (0x0A, 0),
        (0x10, 4),
        (0x11, 8),
        (0x12, 8),
        (0x13, 16),
        (0xFF, 0),
        (0x7F, 0),
    ];
    let mut i = 0;
    while i < fixed.len() {
        sizes[fixed[i].0 as usize] = fixed[i].1;
        i += 1;
    }
    sizes[0x02] = STRING;
    sizes[0x0D] = STRING;
    sizes[0x0E] = STRING;
    sizes[0x03] = NESTED;
    sizes[0x04] = NESTED;
    sizes[0x05] = BINARY;
    sizes
};

/// Where the value that begins here ends. None where it is broken, doesn't end before `last`, or is of a type that is better left to
/// others.
#[inline]
fn end_of_value(kind: u8, bytes: &[u8], value: usize, last: usize) -> Option<usize> {
    let fixed = SIZES[kind as usize];
    if fixed >= 0 {
        let end = value + fixed as usize;
        return (end <= last).then_some(end);
    }
    let length = bytes.get(value..)?.first_chunk()?;
    let length = usize::try_from(i32::from_le_bytes(*length)).ok()?;
    let ends_with_nul = |end: usize| (end <= last && bytes.get(end - 1) == Some(&0)).then_some(end);
    match fixed {
        STRING if length > 0 => ends_with_nul(value + 4 + length),
        NESTED if length >= 5 => ends_with_nul(value + length),
        // The old form of a binary says its length twice.
        BINARY if bytes[..last].get(value + 4).is_some_and(|subtype| *subtype != 2) => {
            let end = value + 5 + length;
            (end <= last).then_some(end)
        }
        _ => None,
    }
}

/// Elements of an array, as types and the places where their values begin and end. False where it isn't sure of all of them.
pub(crate) fn elements(array: &[u8], mut each: impl FnMut(u8, usize, usize)) -> bool {
    let Some(last) = array.len().checked_sub(1).filter(|last| *last >= 4 && array[*last] == 0) else { return false };
    let mut at = 4;
    while at < last {
        let kind = array[at];
        let Some((_, length)) = array.get(at + 1..last).and_then(name_of) else { return false };
        let value = at + length + 2;
        let Some(end) = end_of_value(kind, array, value, last) else { return false };
        if !is_well_formed(kind, &array[value..end]) {
            return false;
        }
        each(kind, value, end);
        at = end;
    }
    true
}

/// Whether a value is one: an array counts as ending before the first that isn't.
fn is_well_formed(kind: u8, value: &[u8]) -> bool {
    match kind {
        0x02 | 0x0D | 0x0E => std::str::from_utf8(&value[4..value.len() - 1]).is_ok(),
        0x08 => value[0] <= 1,
        _ => true,
    }
}
