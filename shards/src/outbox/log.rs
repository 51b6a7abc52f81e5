//! The delivery log: what was matched, for whom, and whether they are done with it.
//!
//! Invariants:
//! - Entries are numbered without gaps in the order of the ring; `first` is the number of the oldest one kept.
//! - An entry has at least one target. Its targets are ordered by Gateway, then group, then subscription, and its slices
//!   name each Gateway's run of them.
//! - `unsettled` of an entry is the number of its targets that aren't settled. A settled target never becomes unsettled.
//! - Bytes of a batch that a change was read in are copied, never kept: one small document must not hold a large batch.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use bytestring::ByteString;
use smallvec::SmallVec;
use wire::{Certainty, GapReason, Operation, Position, Transition};

use crate::subscription::{GatewayId, SubId};

#[derive(Debug)]
pub(crate) struct Log {
    entries: VecDeque<Entry>,
    first: u64,
    bytes: usize,
    unsettled_entries: usize,
    limits: LogLimits,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct LogLimits {
    pub(crate) bytes_max: usize,
    pub(crate) events_max: usize,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) position: Position,
    /// The last position of this backend that came before it.
    pub(crate) previous: Option<Position>,
    pub(crate) what: What,
    pub(crate) targets: Vec<Target>,
    pub(crate) slices: SmallVec<[Slice; 2]>,
    pub(crate) unsettled: u32,
    pub(crate) bytes: usize,
}

#[derive(Debug)]
pub(crate) enum What {
    Event { operation: Operation, groups: SmallVec<[Group; 1]> },
    Gap(GapReason),
}

/// What is the same for all targets that are shown one image.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) tenant: ByteString,
    pub(crate) collection: ByteString,
    pub(crate) document_id: Bytes,
    pub(crate) document: Bytes,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) sub: SubId,
    pub(crate) group: u16,
    pub(crate) transition: Transition,
    pub(crate) certainty: Certainty,
    pub(crate) settled: bool,
}

/// One Gateway's run of an entry's targets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice {
    pub(crate) gateway: GatewayId,
    pub(crate) start: u32,
    pub(crate) end: u32,
    /// What sending it to this Gateway costs.
    pub(crate) bytes: u32,
}

/// Names one target: an entry's number and the target's place in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settle {
    pub(crate) number: u64,
    pub(crate) target: u32,
}

impl Slice {
    pub(crate) fn range(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

impl Entry {
    /// Makes an entry of targets that are each given with their Gateway, in the order of the invariant.
    pub(crate) fn new(
        position: Position,
        previous: Option<Position>,
        what: What,
        ordered: impl IntoIterator<Item = (GatewayId, Target)>,
    ) -> Self {
        let mut targets = Vec::new();
        let mut slices: SmallVec<[Slice; 2]> = SmallVec::new();
        for (gateway, target) in ordered {
            let at = targets.len() as u32;
            match slices.last_mut() {
                Some(last) if last.gateway == gateway => last.end = at + 1,
                _ => slices.push(Slice { gateway, start: at, end: at + 1, bytes: 0 }),
            }
            targets.push(target);
        }
        let unsettled = targets.len() as u32;
        let mut entry = Self { position, previous, what, targets, slices, unsettled, bytes: 0 };
        for at in 0..entry.slices.len() {
            entry.slices[at].bytes = entry.bytes_to_send(&entry.slices[at]);
        }
        entry.bytes = ENTRY_BYTES
            + entry.targets.len() * size_of::<Target>()
            + entry.groups().iter().map(|group| group.document.len() + group.document_id.len()).sum::<usize>();
        entry
    }

    #[cfg(test)]
    pub(crate) fn test_target() -> (GatewayId, Target) {
        let sub = SubId::of_test(0);
        let (transition, certainty) = (Transition::Enter, Certainty::Matched);
        (GatewayId(0), Target { sub, group: 0, transition, certainty, settled: false })
    }

    pub(crate) fn slice(&self, gateway: GatewayId) -> Option<&Slice> {
        self.slices.iter().find(|slice| slice.gateway == gateway)
    }

    pub(crate) fn groups(&self) -> &[Group] {
        match &self.what {
            What::Event { groups, .. } => groups,
            What::Gap(_) => &[],
        }
    }

    fn bytes_to_send(&self, slice: &Slice) -> u32 {
        let targets = &self.targets[slice.range()];
        let mut bytes = TARGET_SENT_BYTES * targets.len();
        let mut last = None;
        for target in targets {
            if last.replace(target.group) != Some(target.group) {
                bytes += SENT_BYTES + self.groups().get(target.group as usize).map_or(0, Group::bytes);
            }
        }
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}

impl Group {
    pub(crate) fn bytes(&self) -> usize {
        self.tenant.len() + self.collection.len() + self.document_id.len() + self.document.len()
    }
}

impl Log {
    pub(crate) fn new(limits: LogLimits) -> Self {
        Self { entries: VecDeque::new(), first: 0, bytes: 0, unsettled_entries: 0, limits }
    }

    /// The number that the next entry will have.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    pub(crate) fn append(&mut self, entry: Entry) -> u64 {
        debug_assert!(!entry.targets.is_empty(), "an entry for nobody");
        let number = self.next();
        self.bytes += entry.bytes;
        self.unsettled_entries += usize::from(entry.unsettled > 0);
        self.entries.push_back(entry);
        number
    }

    /// Settles one target. False where it was settled before, or has left the log.
    pub(crate) fn settle(&mut self, Settle { number, target }: Settle) -> bool {
        let Some(at) = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok()) else { return false };
        let Some(entry) = self.entries.get_mut(at) else { return false };
        let Some(target) = entry.targets.get_mut(target as usize) else { return false };
        if std::mem::replace(&mut target.settled, true) {
            return false;
        }
        entry.unsettled -= 1;
        self.unsettled_entries -= usize::from(entry.unsettled == 0);
        true
    }

    /// Whether an entry of so many bytes fits.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.entries.len() < self.limits.events_max && self.bytes + bytes <= self.limits.bytes_max
    }

    /// Whether, once entries have to go, more should: making room a little at a time would cost a walk over the Gateways' lists
    /// every time.
    pub(crate) fn has_comfortable_room(&self, bytes: usize) -> bool {
        let comfortable = |max: usize| max - max / ROOM_SHARE;
        self.entries.len() < comfortable(self.limits.events_max)
            && self.bytes + bytes <= comfortable(self.limits.bytes_max)
    }

    pub(crate) fn evict(&mut self) -> Option<(u64, Entry)> {
        let entry = self.entries.pop_front()?;
        let number = self.first;
        self.first += 1;
        self.bytes -= entry.bytes;
        self.unsettled_entries -= usize::from(entry.unsettled > 0);
        Some((number, entry))
    }

    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn unsettled_entries(&self) -> usize {
        self.unsettled_entries
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Entry)> {
        (self.first..).zip(&self.entries)
    }

    pub(crate) fn check_invariants(&self) {
        let mut unsettled_entries = 0;
        for (number, entry) in self.iter() {
            let unsettled = entry.targets.iter().filter(|target| !target.settled).count();
            assert_eq!(unsettled, entry.unsettled as usize, "entry {number} miscounts its unsettled targets");
            unsettled_entries += usize::from(unsettled > 0);
            let covered: usize = entry.slices.iter().map(|slice| slice.range().len()).sum();
            assert_eq!(covered, entry.targets.len(), "entry {number} has targets of no Gateway");
        }
        assert_eq!(unsettled_entries, self.unsettled_entries, "unsettled entries");
        assert_eq!(self.entries.iter().map(|entry| entry.bytes).sum::<usize>(), self.bytes, "bytes of the log");
    }
}

/// What an entry takes beside documents and targets.
const ENTRY_BYTES: usize = size_of::<Entry>() + size_of::<Group>() + 32;
/// What an event takes on the wire beside names, ids, documents and targets.
const SENT_BYTES: usize = 64;
const TARGET_SENT_BYTES: usize = 7;
/// Making room frees one part in this many of the log.
const ROOM_SHARE: usize = 16;
