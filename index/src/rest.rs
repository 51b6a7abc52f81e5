//! What is left to check of a predicate once one of its anchors was met.

use std::sync::Arc;

use predicate::{AnchorTest, Need, Order, Predicate};
use smallvec::SmallVec;

use crate::key::{Keyed, Payload, Seeds, keyed, kind, ordered};
use crate::machine::prefetch;
use crate::range::{Answer, Ends};
use crate::walk::Found;

/// A predicate that is not decided by its anchor alone, or that hangs on several.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    /// None in an empty place only.
    pub(crate) predicate: Option<Arc<Predicate>>,
    pub(crate) slot: u32,
    pub(crate) partition: u32,
    /// Its anchors decide it, where they are met for sure.
    pub(crate) is_decided: bool,
    pub(crate) is_about_change: bool,
    /// Parts that can be checked on one value without a look at the predicate.
    pub(crate) quick: SmallVec<[Quick; 1]>,
    /// All others that the anchors don't decide, and the node that a part looks at, if it looks at one.
    pub(crate) slow: Box<[(u16, Option<u32>)]>,
    pub(crate) anchors: SmallVec<[Anchored; 1]>,
}

impl Rest {
    /// Announces that it will be looked at, all of it.
    #[inline]
    pub(crate) fn prefetch(&self) {
        prefetch(&self.slot);
        prefetch(&self.quick);
        prefetch(&self.slow);
        prefetch(&self.is_decided);
    }
}

/// Where a predicate hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Anchored {
    pub(crate) record: u32,
    /// Its place in the record's list. For ranges, the number of the range.
    pub(crate) at: u32,
}

/// A check of one value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quick {
    pub(crate) node: u32,
    check: QuickCheck,
}

#[derive(Clone, Copy, Debug)]
enum QuickCheck {
    Equal { class: u8, payload: [u64; 2] },
    Range { order: Order, ends: Ends, bounds: [u64; 2] },
    Prefix { length: u8, bytes: [u8; 15] },
}

impl Quick {
    /// The check that a need is, if it is one of one value.
    pub(crate) fn of(need: &Need, node: u32, seeds: &Seeds) -> Option<Self> {
        let Need::One(anchor) = need else { return None };
        let check = match &anchor.test {
            AnchorTest::Equal(value) => {
                let (class, bytes) = value.as_bytes().split_first()?;
                let payload = Payload::of(bytes, seeds);
                (!payload.is_long())
                    .then(|| QuickCheck::Equal { class: *class, payload: [payload.low(), payload.high()] })?
            }
            AnchorTest::Range { order, lower, upper } => {
                let (ends, bounds) = Ends::of(*lower, *upper);
                QuickCheck::Range { order: *order, ends, bounds }
            }
            AnchorTest::Prefix(prefix) => {
                let mut bytes = [0; 15];
                bytes.get_mut(..prefix.len())?.copy_from_slice(prefix.as_bytes());
                QuickCheck::Prefix { length: prefix.len() as u8, bytes }
            }
            _ => return None,
        };
        Some(Self { node, check })
    }

    #[inline]
    pub(crate) fn answer(&self, kind: u8, value: &[u8], seeds: &Seeds) -> Answer {
        match &self.check {
            QuickCheck::Equal { class, payload } => {
                let (found, key) = match keyed(kind, value, &mut Default::default()) {
                    Keyed::Word(found, word) => (found, Payload::of_word(word)),
                    Keyed::Bytes(found, start, end) => (found, Payload::of(&value[start..end], seeds)),
                    Keyed::Nothing => return Answer::No,
                    Keyed::Canonical(_) => return Answer::Perhaps,
                };
                if found == *class && [key.low(), key.high()] == *payload { Answer::Yes } else { Answer::No }
            }
            QuickCheck::Range { order, ends, bounds } => {
                let Some((found, key)) = ordered(kind, value) else { return Answer::No };
                if found != *order || key < bounds[0] || key > bounds[1] {
                    return Answer::No;
                }
                ends.answer(kind, key, *bounds)
            }
            QuickCheck::Prefix { length, bytes } => {
                let text = value.get(4..value.len().saturating_sub(1));
                let begins = kind == kind::STRING && text.is_some_and(|t| t.starts_with(&bytes[..*length as usize]));
                match begins {
                    false => Answer::No,
                    true if text.is_some_and(|text| std::str::from_utf8(text).is_ok()) => Answer::Yes,
                    true => Answer::No,
                }
            }
        }
    }
}

/// The value of a node among those that were found.
#[inline]
pub(crate) fn value_of(founds: &[Found], node: u32) -> Option<&Found> {
    founds.iter().find(|found| found.node == node)
}
