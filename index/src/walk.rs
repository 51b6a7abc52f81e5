//! One walk over a document's bytes, which notes where the values stand that are looked at.
//!
//! Invariant: what is found is what [`predicate::field`] finds, name by name. A walk that isn't sure of that (a broken document, or one
//! of the few types without a simple form) says so, and everything is looked up by `field` then.

use bson::{RawBsonRef, RawDocument};

use crate::key::kind;
use crate::paths::{ID, IN_TAIL, IN_WORD, NO_NODE, Paths, ROOT};
use crate::places::{Asks, Partition, Use};

/// A value of a node: its type, and where its bytes are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) node: u32,
    pub(crate) start: u32,
    pub(crate) length: u32,
    pub(crate) kind: u8,
    pub(crate) source: Source,
    /// The images of its change that have it.
    pub(crate) mark: u8,
}

/// What has the bytes of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Before,
    After,
    /// The bytes beside the documents, because it doesn't stand in one as it is.
    Beside,
}

impl Found {
    #[inline]
    pub(crate) fn bytes<'a>(&self, document: &'a [u8], beside: &'a [u8]) -> &'a [u8] {
        let bytes = if self.source == Source::Beside { beside } else { document };
        &bytes[self.start as usize..(self.start + self.length) as usize]
    }
}

/// A walk over one image.
pub(crate) struct Walk<'w> {
    pub(crate) paths: &'w mut Paths,
    pub(crate) place: &'w Partition,
    pub(crate) document: &'w [u8],
    pub(crate) founds: &'w mut Vec<Found>,
    /// What the image is to what is found.
    pub(crate) source: Source,
    pub(crate) mark: u8,
}

impl Walk<'_> {
    /// Finds what the partition asks for. False where it isn't sure; what it has found until then doesn't count.
    pub(crate) fn document(&mut self) -> bool {
        let stamp = self.paths.begin();
        self.fields(0, self.document.len(), ROOT, stamp).is_some()
    }

    /// The document from `start` to before `end`, which are five bytes at least. Nests no deeper than the paths that are asked for.
    fn fields(&mut self, start: usize, end: usize, parent: u32, stamp: u32) -> Option<()> {
        // Four bytes of length, elements, and a NUL.
        let bytes = self.document;
        let (source, mark) = (self.source, self.mark);
        let last = end.checked_sub(1)?;
        let mut at = start + 4;
        if at > last || *bytes.get(last)? != 0 {
            return None;
        }
        let mut guess = self.paths.hot()[parent as usize].child;
        let mut previous = NO_NODE;
        while at < last {
            let (kind, named) = bytes[at..].split_first()?;
            let kind = *kind;
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
                        at = end_of_value(kind, bytes, begins, last)?;
                        continue;
                    }
                    (guess, value) = (node, begins);
                    &mut self.paths.hot()[node as usize]
                }
            };
            let node = guess;
            at = end_of_value(kind, bytes, value, last)?;
            (previous, guess) = (node, known.next);
            if known.stamp == stamp || !self.place.may_ask(node) {
                continue;
            }
            known.stamp = stamp;
            let (start, length) = (value as u32, (at - value) as u32);
            self.founds.push(Found { node, start, length, kind, source, mark });
            if kind == kind::DOCUMENT && self.place.fields.of(node).asks.any(Asks::of(Use::Inner)) {
                self.fields(value, at, node, stamp)?;
            }
        }
        Some(())
    }

    /// The node of the name that begins here, or [`NO_NODE`], and where its value begins: where the guess was wrong or isn't enough. Apart,
    /// so that it takes no registers from the walk.
    #[inline(never)]
    fn name(&mut self, at: usize, last: usize, parent: u32, guess: u32, previous: u32) -> Option<(u32, usize)> {
        let named = self.document.get(at..last)?;
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
    pub(crate) fn look_up(&mut self, document: &RawDocument, beside: &mut Vec<u8>) {
        for node in self.place.nodes().filter(|node| *node != ID) {
            let names = self.paths.names(node);
            let Some((last, parents)) = names.split_last() else { continue };
            let parent = parents.iter().try_fold(document, |at, name| predicate::field(at, name)?.as_document());
            let value = parent.and_then(|parent| predicate::field(parent, last));
            self.founds.extend(value.and_then(|value| found_beside(node, value, self.mark, beside)));
        }
    }
}

/// Notes a value that does not stand in the document as it is.
pub(crate) fn found_beside(node: u32, value: RawBsonRef<'_>, mark: u8, beside: &mut Vec<u8>) -> Option<Found> {
    let stored = predicate::stored_id(value);
    let (kind, value) = stored.split_first()?;
    let start = u32::try_from(beside.len()).ok()?;
    beside.extend_from_slice(value);
    Some(Found { node, start, length: u32::try_from(value.len()).ok()?, kind: *kind, source: Source::Beside, mark })
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
#[inline(always)]
fn end_of_value(kind: u8, bytes: &[u8], value: usize, last: usize) -> Option<usize> {
    match kind {
        kind::STRING => {
            // A length below zero is beyond the end of any document.
            let length = u32::from_le_bytes(*bytes.get(value..)?.first_chunk()?) as usize;
            let end = value + 4 + length;
            (length > 0 && end <= last && bytes.get(end - 1) == Some(&0)).then_some(end)
        }
        kind::INT64 => (value + 8 <= last).then_some(value + 8),
        kind::INT32 => (value + 4 <= last).then_some(value + 4),
        _ => end_of_rare_value(kind, bytes, value, last),
    }
}

#[inline(never)]
fn end_of_rare_value(kind: u8, bytes: &[u8], value: usize, last: usize) -> Option<usize> {
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
