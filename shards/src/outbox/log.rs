//! The delivery log: what was matched, for whom, and whether they are done with it.
//!
//! Invariants:
//! - Entries are numbered without gaps in the order of the ring; `first` is the number of the oldest one kept.
//! - An entry has at least one target. Its targets are ordered by Gateway, then group, then subscription, so that each
//!   Gateway has one run of them, and each group one within that.
//! - `unsettled` of an entry is the number of its targets that aren't settled. A settled target never becomes unsettled. Those of an
//!   entry that a pass brought are settled from the start.
//! - Bytes of a batch that a change was read in are copied, never kept: one small document must not hold a large batch. They
//!   are kept as they will be sent, so what a Gateway is sent is a copy of them behind its own handles.
//! - Entries come and go in one order, so what they are made of is cut from a few large pieces of memory.

use std::collections::VecDeque;
use std::ops::{Deref, Range};

use wire::{Certainty, EventBody, GapReason, Position, Transition};

use super::arena::{Arena, Run};
use crate::subscription::{GatewayId, SubId};

#[derive(Debug)]
pub(crate) struct Log {
    entries: VecDeque<Entry>,
    first: u64,
    targets: Arena<Target>,
    bodies: Arena<u8>,
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
    /// A pass brought it: nobody is owed it, and nothing is held back for it.
    pub(crate) of_pass: bool,
    pub(crate) unsettled: u32,
    targets: Run,
    /// Events, one for each group, as they are sent. Where there is more than one group, the ends of all of them stand before the first, as
    /// little-endian `u32`s that count from there.
    bodies: Run,
    groups: u32,
}

/// An entry of the log, with its targets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryRef<'a> {
    pub(crate) targets: &'a [Target],
    entry: &'a Entry,
    log: &'a Log,
}

impl Deref for EntryRef<'_> {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        self.entry
    }
}

/// An entry that is to be appended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewEntry<'a> {
    pub(crate) position: Position,
    pub(crate) previous: Option<Position>,
    pub(crate) what: What,
    pub(crate) of_pass: bool,
    /// What is the same for all targets that are shown one image, by group.
    pub(crate) groups: &'a [EventBody<'a>],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Event,
    Gap(GapReason),
}

/// A subscription that an entry is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) sub: SubId,
    pub(crate) gateway: GatewayId,
    /// The group in the upper bits; whether it is settled, certainty and transition in the lower ones.
    bits: u32,
}

/// One Gateway's run of an entry's targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) start: u32,
    pub(crate) end: u32,
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

impl Target {
    pub(crate) fn new(
        sub: SubId,
        gateway: GatewayId,
        group: u32,
        transition: Transition,
        certainty: Certainty,
    ) -> Self {
        debug_assert!(group < GROUPS_MAX, "group {group} of at most {GROUPS_MAX}");
        Self { sub, gateway, bits: group << GROUP_SHIFT | (certainty as u32) << 2 | transition as u32 }
    }

    pub(crate) fn group(&self) -> u32 {
        self.bits >> GROUP_SHIFT
    }

    pub(crate) fn transition(&self) -> Transition {
        match self.bits & 3 {
            0 => Transition::Enter,
            1 => Transition::Update,
            _ => Transition::Leave,
        }
    }

    pub(crate) fn certainty(&self) -> Certainty {
        match self.bits >> 2 & 3 {
            0 => Certainty::Matched,
            1 => Certainty::Unverified,
            _ => Certainty::Unknown,
        }
    }

    pub(crate) fn settled(&self) -> bool {
        self.bits & SETTLED != 0
    }

    /// Gives whether it was settled before.
    fn settle(&mut self) -> bool {
        let before = self.settled();
        self.bits |= SETTLED;
        before
    }

    #[cfg(test)]
    pub(crate) fn of_test() -> Self {
        Self::new(SubId::of_test(0), GatewayId(0), 0, Transition::Enter, Certainty::Matched)
    }
}

impl<'a> EntryRef<'a> {
    /// The Gateway's run of the targets. None where it has none.
    pub(crate) fn slice(&self, gateway: GatewayId) -> Option<Slice> {
        let start = self.targets.partition_point(|target| target.gateway < gateway);
        let len = self.targets[start..].partition_point(|target| target.gateway == gateway);
        (len > 0).then_some(Slice { start: start as u32, end: (start + len) as u32 })
    }

    /// The runs of all Gateways.
    pub(crate) fn slices(&self) -> impl Iterator<Item = (GatewayId, Slice)> {
        let mut start = 0;
        self.targets.chunk_by(|a, b| a.gateway == b.gateway).map(move |run| {
            let slice = Slice { start, end: start + run.len() as u32 };
            start = slice.end;
            (run[0].gateway, slice)
        })
    }

    pub(crate) fn groups(&self) -> u32 {
        self.entry.groups
    }

    /// What is sent of a group, see [`EventBody::encode`]. Empty for what has no groups.
    pub(crate) fn body(&self, group: u32) -> &'a [u8] {
        let bodies = self.log.bodies.get(self.entry.bodies);
        match self.entry.groups {
            0 => &[],
            1 => bodies,
            groups => {
                let (ends, bodies) = bodies.split_at(groups as usize * END_BYTES);
                let end = |group: u32| u32::from_le_bytes(ends.as_chunks().0[group as usize]) as usize;
                &bodies[group.checked_sub(1).map_or(0, end)..end(group)]
            }
        }
    }
}

impl NewEntry<'_> {
    /// What an entry with so many targets will count for in the log, at most.
    pub(crate) fn bytes_max(&self, targets: usize) -> usize {
        ENTRY_BYTES + targets * size_of::<Target>() + self.bodies_bytes_max()
    }

    fn bodies_bytes_max(&self) -> usize {
        match self.groups {
            [group] => group.encoded_bytes_max(),
            groups => groups.iter().map(|group| END_BYTES + group.encoded_bytes_max()).sum(),
        }
    }

    fn encode_bodies(&self, out: &mut Vec<u8>) {
        if let [group] = self.groups {
            group.encode(out);
            return;
        }
        let ends = out.len();
        let bodies = ends + self.groups.len() * END_BYTES;
        out.resize(bodies, 0);
        for (at, group) in self.groups.iter().enumerate() {
            group.encode(out);
            let end = u32::try_from(out.len() - bodies)
                .expect("an event has two documents at most, beside names of its tenant's collections");
            out[ends + at * END_BYTES..][..END_BYTES].copy_from_slice(&end.to_le_bytes());
        }
    }
}

impl Log {
    pub(crate) fn new(limits: LogLimits) -> Self {
        Self {
            // Untouched memory costs nothing, and a list that never grows never has to be copied.
            entries: VecDeque::with_capacity(limits.events_max.min(ENTRIES_RESERVED_MAX)),
            first: 0,
            targets: Arena::new(TARGETS_PER_CHUNK),
            bodies: Arena::new(BODY_BYTES_PER_CHUNK),
            bytes: 0,
            unsettled_entries: 0,
            limits,
        }
    }

    /// The number that the next entry will have.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    pub(crate) fn get(&self, number: u64) -> Option<EntryRef<'_>> {
        self.entries.get(self.place(number)?).map(|entry| self.seen(entry))
    }

    /// Appends an entry with these targets, which are in the order of the invariant.
    pub(crate) fn append(&mut self, new: &NewEntry<'_>, targets: impl ExactSizeIterator<Item = Target>) -> u64 {
        debug_assert!(targets.len() > 0, "an entry for nobody");
        let number = self.next();
        let targets = self.targets.append(targets.len(), |items| items.extend(targets));
        if new.of_pass {
            for target in self.targets.get_mut(targets) {
                target.settle();
            }
        }
        let bodies = match new.groups {
            [] => Run::default(),
            _ => self.bodies.append(new.bodies_bytes_max(), |out| new.encode_bodies(out)),
        };
        let NewEntry { position, previous, what, of_pass, groups } = *new;
        let unsettled = if of_pass { 0 } else { targets.len() as u32 };
        let entry =
            Entry { position, previous, what, of_pass, unsettled, targets, bodies, groups: groups.len() as u32 };
        self.bytes += entry.bytes();
        self.unsettled_entries += usize::from(unsettled > 0);
        self.entries.push_back(entry);
        number
    }

    /// Settles these targets of an entry. Without effect on what is settled, or has left the log.
    pub(crate) fn settle_all(&mut self, number: u64, targets: Range<u32>) {
        let Some(at) = self.place(number) else { return };
        let Some(entry) = self.entries.get_mut(at) else { return };
        let range = targets.start as usize..targets.end as usize;
        let Some(targets) = self.targets.get_mut(entry.targets).get_mut(range) else {
            debug_assert!(false, "targets {targets:?} of an entry of {}", entry.targets.len());
            return;
        };
        for target in targets {
            if !target.settle() {
                entry.unsettled -= 1;
                self.unsettled_entries -= usize::from(entry.unsettled == 0);
            }
        }
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

    /// The oldest entry, and its number.
    pub(crate) fn oldest(&self) -> Option<(u64, EntryRef<'_>)> {
        self.entries.front().map(|entry| (self.first, self.seen(entry)))
    }

    /// Lets the oldest entry go.
    pub(crate) fn evict(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        self.first += 1;
        self.bytes -= entry.bytes();
        self.unsettled_entries -= usize::from(entry.unsettled > 0);
        self.targets.release(entry.targets);
        if entry.groups > 0 {
            self.bodies.release(entry.bodies);
        }
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

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, EntryRef<'_>)> {
        (self.first..).zip(self.entries.iter().map(|entry| self.seen(entry)))
    }

    pub(crate) fn check_invariants(&self) {
        let mut unsettled_entries = 0;
        for (number, entry) in self.iter() {
            let unsettled = entry.targets.iter().filter(|target| !target.settled()).count();
            assert_eq!(unsettled, entry.unsettled as usize, "entry {number} miscounts its unsettled targets");
            unsettled_entries += usize::from(unsettled > 0);
            let order = |target: &Target| (target.gateway, target.group(), target.sub);
            assert!(entry.targets.is_sorted_by(|a, b| order(a) < order(b)), "targets of entry {number} out of order");
            let groups = if entry.what == What::Event { entry.groups } else { 1 };
            assert!(entry.targets.iter().all(|target| target.group() < groups), "entry {number} lacks a group");
        }
        assert_eq!(unsettled_entries, self.unsettled_entries, "unsettled entries");
        assert_eq!(self.entries.iter().map(Entry::bytes).sum::<usize>(), self.bytes, "bytes of the log");
    }

    fn place(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.first)?).ok()
    }

    fn seen<'a>(&'a self, entry: &'a Entry) -> EntryRef<'a> {
        EntryRef { targets: self.targets.get(entry.targets), entry, log: self }
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        ENTRY_BYTES + self.targets.len() * size_of::<Target>() + self.bodies.len()
    }
}

/// Groups of an entry are fewer than this.
pub(crate) const GROUPS_MAX: u32 = 1 << (u32::BITS - GROUP_SHIFT);
const GROUP_SHIFT: u32 = 5;
const SETTLED: u32 = 1 << 4;
/// Where a group ends, in front of the groups.
const END_BYTES: usize = size_of::<u32>();
/// What an entry takes beside targets and bodies.
const ENTRY_BYTES: usize = size_of::<Entry>() + 32;
/// Room that is made from the start for the entries of a log; a larger one grows.
const ENTRIES_RESERVED_MAX: usize = 1 << 18;
const TARGETS_PER_CHUNK: usize = 16 * 1024;
const BODY_BYTES_PER_CHUNK: usize = 256 * 1024;
/// Making room frees one part in this many of the log.
const ROOM_SHARE: usize = 16;

const _: () = assert!(size_of::<Target>() == 16, "a log is mostly targets where changes match many subscriptions");
