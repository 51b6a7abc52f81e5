//! One walk over a document's bytes, which notes where the values stand that are looked at.
//!
//! Invariant: what is found is what [`predicate::field`] finds, name by name. A walk that isn't sure of that (a broken document, or one
//! of the few types without a simple form) says so, and everything is looked up by `field` then.

use bson::RawDocument;

use crate::key::kind;
use crate::paths::{ID, NO_NODE, Paths, ROOT, place};
use crate::places::Masks;

/// A value of a node: its type, and where its bytes are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    pub(crate) node: u32,
    pub(crate) kind: u8,
    /// In the bytes beside the document, because it doesn't stand in it as it is.
    pub(crate) beside: bool,
    pub(crate) start: u32,
    pub(crate) length: u32,
    /// The probes that were made of it, from the first to before the second.
    pub(crate) probes: (u32, u32),
    /// The same of what was reached without a probe.
    pub(crate) reached: (u32, u32),
}

impl Found {
    #[inline]
    pub(crate) fn bytes<'a>(&self, document: &'a [u8], beside: &'a [u8]) -> &'a [u8] {
        let bytes = if self.beside { beside } else { document };
        &bytes[self.start as usize..(self.start + self.length) as usize]
    }
}

/// Finds what `masks` ask for. False where it isn't sure; what it has found until then doesn't count.
pub(crate) fn walk(paths: &mut Paths, masks: &Masks, document: &[u8], founds: &mut Vec<Found>) -> bool {
    let stamp = paths.begin();
    let mut walk = Walk { paths, masks, bytes: document, stamp, founds };
    walk.document(0, document.len(), ROOT).is_some()
}

struct Walk<'w> {
    paths: &'w mut Paths,
    masks: &'w Masks,
    bytes: &'w [u8],
    stamp: u32,
    founds: &'w mut Vec<Found>,
}

impl Walk<'_> {
    /// The document from `start` to before `end`. Nests no deeper than the paths that are asked for.
    fn document(&mut self, start: usize, end: usize, parent: u32) -> Option<()> {
        // Four bytes of length, elements, and a NUL.
        let (zero, inside) = self.bytes.get(start..end)?.split_last()?;
        let mut rest = inside.get(4..)?;
        if *zero != 0 {
            return None;
        }
        let last = end - 1;
        let (any, values) = (self.masks.any, self.masks.values);
        let mut guess = self.paths.hot()[parent as usize].child;
        let mut previous = NO_NODE;
        while let Some((&kind, named)) = rest.split_first() {
            let (word, length) = name_of(named)?;
            let value = named.get(length + 1..)?;
            let size = size_of_value(kind, value)?;
            let at = last - value.len();
            rest = value.get(size..)?;
            let hot = self.paths.hot();
            let mut node = guess;
            let guessed = hot.get(node as usize).is_some_and(|hot| hot.is(word, place(parent, length)));
            if !guessed || length > 8 {
                if !guessed && !self.paths.may_have(parent, word) {
                    continue;
                }
                let Some(found) = self.find(parent, word, &named[..length], guess, previous) else { continue };
                node = found;
            }
            previous = node;
            let hot = &mut self.paths.hot()[node as usize];
            guess = hot.next;
            let bit = 1 << (node % 64);
            if any & bit == 0 || hot.stamp == self.stamp {
                continue;
            }
            hot.stamp = self.stamp;
            if values & bit != 0 {
                let (start, length) = (at as u32, size as u32);
                self.founds.push(Found { node, kind, beside: false, start, length, ..Found::default() });
            }
            if kind == kind::DOCUMENT && self.masks.inner & bit != 0 {
                self.document(at, at + size, node)?;
            }
        }
        Some(())
    }

    /// The node of a name, where the guess was wrong or isn't enough. Apart, so that it takes no registers from the walk.
    #[inline(never)]
    fn find(&mut self, parent: u32, word: u64, name: &[u8], guess: u32, previous: u32) -> Option<u32> {
        if guess != NO_NODE && self.paths.is(guess, parent, word, name) {
            return Some(guess);
        }
        let node = self.paths.child(parent, word, name)?;
        // Documents of a collection mostly have their fields in one order.
        match previous {
            NO_NODE => self.paths.hot()[parent as usize].child = node,
            previous => self.paths.hot()[previous as usize].next = node,
        }
        Some(node)
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

/// Bytes of the value that `rest` begins with. None where it is broken, or of a type that is better left to others. The value may
/// still be longer than `rest` where its size is fixed.
#[inline]
fn size_of_value(kind: u8, rest: &[u8]) -> Option<usize> {
    let fixed = SIZES[kind as usize];
    if fixed >= 0 {
        return Some(fixed as usize);
    }
    let length = usize::try_from(i32::from_le_bytes(*rest.first_chunk()?)).ok()?;
    let ends_with_nul = |size: usize| (rest.get(size - 1) == Some(&0)).then_some(size);
    match fixed {
        STRING if length > 0 => ends_with_nul(length + 4),
        NESTED if length >= 5 => ends_with_nul(length),
        // The old form of a binary says its length twice.
        BINARY if rest.get(4) != Some(&2) => Some(length + 5),
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
        let Some(size) = array.get(value..last).and_then(|rest| size_of_value(kind, rest)) else { return false };
        at = value + size;
        if at > last || !is_well_formed(kind, &array[value..at]) {
            return false;
        }
        each(kind, value, at);
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

/// Notes a value that does not stand in the document as it is.
pub(crate) fn found_beside(node: u32, stored: &[u8], beside: &mut Vec<u8>) -> Option<Found> {
    let (kind, value) = stored.split_first()?;
    let start = u32::try_from(beside.len()).ok()?;
    beside.extend_from_slice(value);
    let length = u32::try_from(value.len()).ok()?;
    Some(Found { node, kind: *kind, beside: true, start, length, ..Found::default() })
}

/// The same by `field`, name by name, for these nodes.
pub(crate) fn look_up(
    paths: &Paths,
    nodes: impl Iterator<Item = u32>,
    document: &RawDocument,
    founds: &mut Vec<Found>,
    beside: &mut Vec<u8>,
) {
    for node in nodes.filter(|node| *node != ID) {
        let names = paths.names(node);
        let Some((last, parents)) = names.split_last() else { continue };
        let parent = parents.iter().try_fold(document, |at, name| predicate::field(at, name)?.as_document());
        let value = parent.and_then(|parent| predicate::field(parent, last));
        founds.extend(value.and_then(|value| found_beside(node, &predicate::stored_id(value), beside)));
    }
}
