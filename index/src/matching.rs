//! From events to matches, several events at a time.
//!
//! The steps, each for all events of a batch before the next: where the places are; what the partitions ask for, and the walk over the
//! documents, which gives probes; which records the probes may mean; which they do mean; and, event by event, whom that brings and
//! what is left to evaluate.

use crate::evaluate::Evaluation;
use crate::machine::prefetch;
use crate::paths::ID;
use crate::places::Asks;
use crate::postings::Items;
use crate::probe::{Hung, Made, Other, Probe, Prober, Source};
use crate::range::{Listed, Target};
use crate::walk::{Found, Walk, found_beside};
use crate::{BATCH_MAX, Counts, Event, Image, Index, Match, Rules, Verdict};

/// Marks of the images that reached something.
pub(crate) const BEFORE: u8 = 1;
pub(crate) const AFTER: u8 = 2;
/// Bytes of a document that are announced before it is walked; of a longer one the processor fetches the rest by itself.
const ANNOUNCED_MAX: usize = 512;
/// Room for more than this isn't kept for the next batch.
const KEPT_MAX: usize = 1 << 16;

/// What is needed while a batch is matched, kept to be used again.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    work: Vec<Work>,
    founds: Vec<Found>,
    made: Vec<Made>,
    /// Values that don't stand in a document as they are.
    beside: Vec<u8>,
    probes: Vec<Probe>,
    /// A probe, and a record that it may mean.
    pairs: Vec<(u32, u32)>,
    /// What was reached without a probe, and what the records name.
    early: Vec<Reached>,
    reached: Vec<Reached>,
    stabs: Vec<Stab>,
    touched: Vec<Touched>,
    matches: Vec<Match>,
}

/// One event of a batch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    pub(crate) before: Side,
    pub(crate) after: Side,
    /// Where its parts of the lists end; they begin where those of the event before it do.
    probes_end: u32,
    pairs_end: u32,
    early_end: u32,
    reached_end: u32,
    stabs_end: u32,
}

/// One image of an event.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Side {
    partition: Option<u32>,
    founds: (u32, u32),
    /// Something is asked of the partition's documents that has no anchor.
    is_asked_whole: bool,
}

impl Side {
    pub(crate) fn founds<'f>(&self, founds: &'f [Found]) -> &'f [Found] {
        &founds[self.founds.0 as usize..self.founds.1 as usize]
    }
}

/// What a probe has found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reached {
    pub(crate) mark: u8,
    pub(crate) what: What,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    /// Slots that match.
    Sure(Items),
    /// Predicates to look at.
    Rest(Items),
    /// A set of ranges, and the key of the value.
    Ranges(u32, u64),
    /// A predicate, by number and slot, that a range is for; and how far that decides it.
    Range { rest: u32, slot: u32, is_sure: bool, is_decided: bool },
}

impl What {
    #[inline]
    pub(crate) fn range(listed: &Listed, key: u64) -> Self {
        let Target { rest, slot, is_decided, .. } = listed.target;
        What::Range { rest, slot, is_sure: listed.is_sure(key), is_decided }
    }
}

/// A part of a set of ranges in which there may be some that the value of this key is in.
#[derive(Clone, Copy, Debug)]
struct Stab {
    set: u32,
    part: u32,
    key: u64,
    mark: u8,
}

/// A predicate that was reached, by which images, and by which of them for sure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Touched {
    pub(crate) slot: u32,
    pub(crate) rest: u32,
    pub(crate) marks: u8,
    pub(crate) sure: u8,
    /// It is known to hold where it was reached for sure.
    pub(crate) is_decided: bool,
}

impl Index {
    /// Calls `sink` for each event in turn, with its place among them, its matches in the order of their slots, and what it cost.
    pub fn matches(&mut self, events: &[Event<'_>], rules: &Rules<'_>, sink: &mut impl FnMut(usize, &[Match], Counts)) {
        let mut scratch = std::mem::take(&mut self.scratch);
        for (batch, events) in events.chunks(BATCH_MAX).enumerate() {
            scratch.begin();
            self.find_partitions(events, &mut scratch);
            self.walk(events, &mut scratch);
            self.look_up(events, &mut scratch);
            self.announce(&mut scratch);
            self.finish(batch * BATCH_MAX, events, rules, &mut scratch, sink);
        }
        self.scratch = scratch;
    }

    fn find_partitions(&self, events: &[Event<'_>], scratch: &mut Scratch) {
        let mut tags = [(0, 0); BATCH_MAX];
        for (tags, event) in tags.iter_mut().zip(events) {
            for (image, tag) in [(&event.after, &mut tags.1), (&event.before, &mut tags.0)] {
                if let Some(image) = image {
                    *tag = self.place_tag(image.place);
                    self.places.prefetch(*tag);
                    image.tenant.as_bytes().first().into_iter().for_each(prefetch);
                    image.collection.as_bytes().first().into_iter().for_each(prefetch);
                    // It comes from another core.
                    let bytes = image.document.as_bytes();
                    bytes[..bytes.len().min(ANNOUNCED_MAX)].chunks(64).for_each(|line| prefetch(&line[0]));
                }
            }
        }
        let mut guesses = [(None, None); BATCH_MAX];
        for ((guesses, (before, after)), event) in guesses.iter_mut().zip(&tags).zip(events) {
            let guess = |tag: u32| {
                let found = self.places.find(tag, |_| true);
                found.inspect(|at| self.partitions.get(*at).prefetch())
            };
            guesses.1 = event.after.and_then(|_| guess(*after));
            guesses.0 = match event.before {
                Some(_) if before == after && event.after.is_some() => guesses.1,
                Some(_) => guess(*before),
                None => None,
            };
        }
        for (event, (before, after)) in events.iter().zip(&guesses) {
            let side = |image: &Option<Image<'_>>, guess: &Option<u32>| {
                let Some((image, mut at)) = image.as_ref().zip(*guess) else { return Side::default() };
                let mut partition = self.partitions.get(at);
                if partition.place != image.place || !partition.is_of(image.tenant, image.collection) {
                    match self.partition(image.place, image.tenant, image.collection) {
                        Some(other) => (at, partition) = (other, self.partitions.get(other)),
                        None => return Side::default(),
                    }
                }
                partition.near.prefetch();
                let is_asked_whole = !partition.everyone.is_empty() || !partition.always.is_empty();
                Side { partition: Some(at), founds: (0, 0), is_asked_whole }
            };
            let (before, after) = (side(&event.before, before), side(&event.after, after));
            scratch.work.push(Work { before, after, ..Work::default() });
        }
    }

    fn hung(&self) -> Hung<'_> {
        Hung { seeds: &self.seeds, postings: &self.postings, rests: &self.rests, range_sets: &self.range_sets }
    }

    /// Walks over the documents, and makes probes of what they have.
    fn walk(&mut self, events: &[Event<'_>], scratch: &mut Scratch) {
        for (at, event) in events.iter().enumerate() {
            let Work { mut before, mut after, .. } = scratch.work[at];
            let image_after = event.after.as_ref().filter(|_| event.looks_after).zip(after.partition);
            let image_before = event.before.as_ref().filter(|_| event.looks_before).zip(before.partition);
            if let Some((image, partition)) = image_after {
                after.founds = self.find_values(partition, image, scratch);
            }
            match (image_before, image_after) {
                (None, None) => {}
                (None, Some((image, partition))) => {
                    let (mut prober, _, founds) = self.prober(partition, image, AFTER, scratch);
                    prober.all(after.founds(founds));
                }
                (Some((image, partition)), None) => {
                    before.founds = self.find_values(partition, image, scratch);
                    let (mut prober, _, founds) = self.prober(partition, image, BEFORE, scratch);
                    prober.all(before.founds(founds));
                }
                (Some((image, partition)), Some((image_after, partition_after))) => {
                    before.founds = self.find_values(partition, image, scratch);
                    let (mut prober, made, founds) = self.prober(partition_after, image_after, AFTER, scratch);
                    prober.all_after(after.founds(founds), made);
                    let (mut prober, made, founds) = self.prober(partition, image, BEFORE, scratch);
                    if partition == partition_after {
                        let (document, founds_after) = (image_after.document.as_bytes(), after.founds(founds));
                        let other = Other { document, founds: founds_after };
                        prober.all_before(before.founds(founds), other, made);
                    } else {
                        prober.all(before.founds(founds));
                    }
                }
            }
            let (probes_end, early_end) = (scratch.probes.len() as u32, scratch.early.len() as u32);
            scratch.work[at] = Work { before, after, probes_end, early_end, ..Work::default() };
        }
    }

    /// What makes probes of an image, and lists that it needs.
    #[inline]
    fn prober<'s>(
        &'s self,
        partition: u32,
        image: &Image<'s>,
        mark: u8,
        scratch: &'s mut Scratch,
    ) -> (Prober<'s>, &'s mut Vec<Made>, &'s [Found]) {
        let Scratch { founds, made, beside, probes, early, .. } = scratch;
        let place = self.partitions.get(partition);
        let source = if mark == BEFORE { Source::Before } else { Source::After };
        let document = image.document.as_bytes();
        let hung = self.hung();
        (Prober { hung, partition, place, document, mark, source, probes, reached: early, beside }, made, founds)
    }

    /// Notes the values of an image that its partition asks for. Gives their places.
    fn find_values(&mut self, partition: u32, image: &Image<'_>, scratch: &mut Scratch) -> (u32, u32) {
        let place = self.partitions.get(partition);
        let Scratch { founds, beside, .. } = scratch;
        let start = founds.len();
        if place.is_walked {
            let mut walk = Walk { paths: &mut self.paths, place, document: image.document.as_bytes(), founds };
            if !walk.document() {
                walk.founds.truncate(start);
                walk.look_up(image.document, beside);
            }
            if place.asked.of(ID) != Asks::NONE
                && let Some(id) = self.id_path.as_ref().filter(|path| path.fields().is_none())
                && let Some(value) = id.get(image.document)
            {
                founds.extend(found_beside(ID, value, beside));
            }
        }
        (start as u32, founds.len() as u32)
    }

    /// Finds the records that the probes mean, and what these name.
    fn look_up(&self, events: &[Event<'_>], scratch: &mut Scratch) {
        let Scratch { work, probes, pairs, reached, beside, .. } = scratch;
        let mut at = 0;
        for work in work.iter_mut() {
            for probe in at..work.probes_end {
                self.postings.candidates(probes[probe as usize].tag, |record| {
                    self.postings.prefetch_record(record);
                    pairs.push((probe, record));
                });
            }
            at = work.probes_end;
            work.pairs_end = pairs.len() as u32;
        }
        let hung =
            Hung { seeds: &self.seeds, postings: &self.postings, rests: &self.rests, range_sets: &self.range_sets };
        let mut at = 0;
        for (work, event) in work.iter_mut().zip(events) {
            for (probe, record) in &pairs[at..work.pairs_end as usize] {
                let probe = &probes[*probe as usize];
                let long: &[u8] = if probe.payload.is_long() {
                    let bytes = match probe.source {
                        Source::Before => event.before.map_or(&[][..], |image| image.document.as_bytes()),
                        Source::After => event.after.map_or(&[][..], |image| image.document.as_bytes()),
                        Source::Beside => beside,
                    };
                    &bytes[probe.start as usize..probe.end as usize]
                } else {
                    &[]
                };
                if self.postings.is(*record, probe.at, probe.payload, long) {
                    hung.reach(*record, probe.mark, probe.range_key(), reached);
                }
            }
            at = work.pairs_end as usize;
            work.reached_end = reached.len() as u32;
        }
    }

    /// Announces what is behind that which was reached.
    fn announce(&self, scratch: &mut Scratch) {
        let Scratch { work, early, reached, stabs, .. } = scratch;
        let (mut at, mut early_at) = (0, 0);
        for work in work.iter_mut() {
            let early = &early[early_at..work.early_end as usize];
            for Reached { mark, what } in early.iter().chain(&reached[at..work.reached_end as usize]) {
                match what {
                    What::Sure(items) => self.postings.prefetch_list(*items),
                    What::Ranges(set, key) => {
                        let (set, key, mark) = (*set, *key, *mark);
                        self.range_sets.get(set).descend(key, |part| stabs.push(Stab { set, part, key, mark }));
                    }
                    What::Rest(items) => self.postings.prefetch_list(*items),
                    What::Range { .. } => {}
                }
            }
            (at, early_at) = (work.reached_end as usize, work.early_end as usize);
            work.stabs_end = stabs.len() as u32;
        }
    }

    /// Whom it brings, event by event.
    fn finish(
        &self,
        first: usize,
        events: &[Event<'_>],
        rules: &Rules<'_>,
        scratch: &mut Scratch,
        sink: &mut impl FnMut(usize, &[Match], Counts),
    ) {
        let Scratch { work, founds, beside, early, reached, stabs, touched, matches, .. } = scratch;
        let (mut at, mut early_at, mut stabs_at) = (0, 0, 0);
        for ((number, event), work) in events.iter().enumerate().zip(work.iter()) {
            matches.clear();
            touched.clear();
            let early = &early[early_at..work.early_end as usize];
            for Reached { mark, what } in early.iter().chain(&reached[at..work.reached_end as usize]) {
                match *what {
                    What::Sure(items) => self.postings.items(&items).each(|slot| push_sure(slot, *mark, matches)),
                    What::Rest(items) => self.postings.items(&items).each(|rest| {
                        let slot = self.rests.get(rest).slot;
                        touched.push(Touched { slot, rest, marks: *mark, sure: *mark, is_decided: false });
                    }),
                    What::Range { rest, slot, is_sure, is_decided } => {
                        let sure = if is_sure { *mark } else { 0 };
                        touched.push(Touched { slot, rest, marks: *mark, sure, is_decided });
                    }
                    What::Ranges(..) => {}
                }
            }
            for Stab { set, part, key, mark } in &stabs[stabs_at..work.stabs_end as usize] {
                self.range_sets.get(*set).stab(*part, *key, |listed| {
                    let Target { slot, rest, is_decided, .. } = listed.target;
                    let sure = if listed.is_sure(*key) { *mark } else { 0 };
                    touched.push(Touched { slot, rest, marks: *mark, sure, is_decided });
                });
            }
            (at, early_at) = (work.reached_end as usize, work.early_end as usize);
            stabs_at = work.stabs_end as usize;
            self.reach_without_anchor(event, work, touched, matches);
            let is_watched = work.before.partition.is_some() || work.after.partition.is_some();
            let mut counts = Counts { is_watched, ..Counts::default() };
            if !touched.is_empty() {
                let evaluation = Evaluation { index: self, event, work, founds, beside, rules };
                evaluation.all(touched, matches, &mut counts);
            }
            if matches.len() > 1 {
                matches.sort_unstable_by_key(|it| it.slot);
                if event.looks_before && event.looks_after {
                    join(matches);
                }
            }
            sink(first + number, matches, counts);
        }
    }

    /// Subscriptions to whole collections, predicates without an anchor, and those that hang on the document's id.
    fn reach_without_anchor(
        &self,
        event: &Event<'_>,
        work: &Work,
        touched: &mut Vec<Touched>,
        matches: &mut Vec<Match>,
    ) {
        if self.by_document == 0 && !work.before.is_asked_whole && !work.after.is_asked_whole {
            return;
        }
        let before = work.before.partition.filter(|_| event.looks_before);
        let after = work.after.partition.filter(|_| event.looks_after);
        let sides = match (before, after) {
            (Some(before), Some(after)) if before == after => [Some((after, BEFORE | AFTER)), None],
            _ => [before.map(|at| (at, BEFORE)), after.map(|at| (at, AFTER))],
        };
        for (at, mark) in sides.into_iter().flatten() {
            let partition = self.partitions.get(at);
            partition.everyone.iter().for_each(|slot| push_sure(*slot, mark, matches));
            for &rest in &partition.always {
                let slot = self.rests.get(rest).slot;
                touched.push(Touched { slot, rest, marks: mark, sure: 0, is_decided: false });
            }
            if let Some(record) = self.document_record(event.key) {
                self.postings.items(&self.postings.record(record).rest).each(|rest| {
                    let known = self.rests.get(rest);
                    if known.partition == at {
                        touched.push(Touched { slot: known.slot, rest, marks: mark, sure: 0, is_decided: false });
                    }
                });
            }
        }
    }
}

/// Makes one match of two of one slot: each image may have a value of its own that is equal to the one that the slot is under, as 2 and
/// 2.0 are.
fn join(matches: &mut Vec<Match>) {
    matches.dedup_by(|later, first| {
        let same = later.slot == first.slot;
        if same {
            first.before = first.before.max(later.before);
            first.after = first.after.max(later.after);
        }
        same
    });
}

#[inline]
pub(crate) fn push_sure(slot: u32, mark: u8, matches: &mut Vec<Match>) {
    let verdict = |of: u8| if mark & of != 0 { Verdict::Holds } else { Verdict::Fails };
    matches.push(Match { slot, before: verdict(BEFORE), after: verdict(AFTER), about_change: false });
}

impl Scratch {
    fn begin(&mut self) {
        self.work.clear();
        empty(&mut self.founds);
        empty(&mut self.made);
        empty(&mut self.beside);
        empty(&mut self.probes);
        empty(&mut self.pairs);
        empty(&mut self.early);
        empty(&mut self.reached);
        empty(&mut self.stabs);
        empty(&mut self.touched);
        empty(&mut self.matches);
    }
}

/// A list that was once large gives back what it took.
fn empty<T>(list: &mut Vec<T>) {
    list.clear();
    if list.capacity() > KEPT_MAX {
        list.shrink_to(KEPT_MAX);
    }
}
