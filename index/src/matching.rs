//! From events to matches, several events at a time.
//!
//! The steps, each for all events of a batch before the next: where the places are; what the partitions ask for, and the walk over the
//! documents, which gives probes; which records the probes may mean; which they do mean; and, event by event, whom that brings and
//! what is left to evaluate.

use smallvec::SmallVec;

use crate::evaluate::Evaluation;
use crate::key::{RANGE, kind};
use crate::machine::prefetch;
use crate::paths::ID;
use crate::postings::Items;
use crate::probe::{Probe, Prober, Source};
use crate::rest::value_of;
use crate::walk::{self, Found};
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
    /// Values that don't stand in a document as they are.
    beside: Vec<u8>,
    probes: Vec<Probe>,
    /// A probe, and a record that it may mean.
    pairs: Vec<(u32, u32)>,
    /// What was reached without a probe, and what the records name.
    early: Vec<Reached>,
    reached: Vec<Reached>,
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
}

/// One image of an event.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Side {
    partition: Option<u32>,
    founds: (u32, u32),
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
    /// Ranges, and the key of the value.
    Ranges(u32, u64),
}

/// A predicate that was reached, by which images, and by which of them for sure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Touched {
    pub(crate) slot: u32,
    pub(crate) rest: u32,
    pub(crate) marks: u8,
    pub(crate) sure: u8,
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
            self.announce(&scratch);
            self.finish(batch * BATCH_MAX, events, rules, &mut scratch, sink);
        }
        self.scratch = scratch;
    }

    fn find_partitions(&self, events: &[Event<'_>], scratch: &mut Scratch) {
        let mut tags: SmallVec<[(u32, u32); BATCH_MAX]> = SmallVec::new();
        for event in events {
            let tag = |image: &Option<Image<'_>>| image.map_or(0, |image| self.place_tag(image.place));
            let (before, after) = (tag(&event.before), tag(&event.after));
            for (image, tag) in [(&event.after, after), (&event.before, before)] {
                if let Some(image) = image {
                    self.places.prefetch(tag);
                    // It comes from another core.
                    let bytes = image.document.as_bytes();
                    bytes[..bytes.len().min(ANNOUNCED_MAX)].iter().step_by(64).for_each(prefetch);
                }
            }
            tags.push((before, after));
        }
        let mut guesses: SmallVec<[(Option<u32>, Option<u32>); BATCH_MAX]> = SmallVec::new();
        for ((before, after), event) in tags.iter().zip(events) {
            let guess = |tag: u32| {
                let found = self.places.find(tag, |_| true);
                found.inspect(|at| self.partitions.get(*at).prefetch())
            };
            let after_guess = event.after.and_then(|_| guess(*after));
            let before_guess = match event.before {
                Some(_) if before == after && event.after.is_some() => after_guess,
                Some(_) => guess(*before),
                None => None,
            };
            guesses.push((before_guess, after_guess));
        }
        for (event, (before, after)) in events.iter().zip(&guesses) {
            let partition = |image: &Option<Image<'_>>, guess: &Option<u32>| {
                let (image, guess) = image.as_ref().zip(*guess)?;
                let partition = self.partitions.get(guess);
                if partition.place == image.place && partition.is_of(image.tenant, image.collection) {
                    return Some(guess);
                }
                self.partition(image.place, image.tenant, image.collection)
            };
            let side = |partition| Side { partition, founds: (0, 0) };
            let (before, after) = (partition(&event.before, before), partition(&event.after, after));
            scratch.work.push(Work { before: side(before), after: side(after), ..Work::default() });
        }
    }

    /// Walks over the documents, and makes probes of what they have.
    fn walk(&mut self, events: &[Event<'_>], scratch: &mut Scratch) {
        for (at, event) in events.iter().enumerate() {
            let mut work = scratch.work[at];
            if let (Some(image), Some(partition)) = (&event.after, work.after.partition) {
                work.after.founds = self.find_values(partition, image, scratch);
                if event.looks_after {
                    self.probe(partition, image, work.after, AFTER, None, event.looks_before, scratch);
                }
            }
            if let (Some(image), Some(partition)) = (&event.before, work.before.partition) {
                work.before.founds = self.find_values(partition, image, scratch);
                if event.looks_before {
                    let same = event.looks_after && work.after.partition == Some(partition);
                    let after = event.after.filter(|_| same).map(|image| (work.after, image));
                    self.probe(partition, image, work.before, BEFORE, after, false, scratch);
                }
            }
            work.probes_end = scratch.probes.len() as u32;
            work.early_end = scratch.early.len() as u32;
            scratch.work[at] = work;
        }
    }

    /// Notes the values of an image that its partition asks for. Gives their places.
    fn find_values(&mut self, partition: u32, image: &Image<'_>, scratch: &mut Scratch) -> (u32, u32) {
        let partition = self.partitions.get(partition);
        let start = scratch.founds.len();
        if partition.masks.any != 0 {
            let document = image.document.as_bytes();
            if !walk::walk(&mut self.paths, &partition.masks, document, &mut scratch.founds) {
                scratch.founds.truncate(start);
                let (founds, beside) = (&mut scratch.founds, &mut scratch.beside);
                walk::look_up(&self.paths, partition.nodes(), image.document, founds, beside);
            }
            if partition.masks.values & (1 << (ID % 64)) != 0
                && let Some(id) = self.id_path.as_ref().filter(|path| path.fields().is_none())
                && let Some(value) = id.get(image.document)
            {
                let stored = predicate::stored_id(value);
                scratch.founds.extend(walk::found_beside(ID, &stored, &mut scratch.beside));
            }
        }
        (start as u32, scratch.founds.len() as u32)
    }

    /// Makes the probes of an image. What the image after has in the same way needs no second look; `is_kept` says that it is to be
    /// compared with.
    #[expect(clippy::too_many_arguments, reason = "one image, and what it is compared with")]
    fn probe(
        &self,
        partition: u32,
        image: &Image<'_>,
        side: Side,
        mark: u8,
        after: Option<(Side, Image<'_>)>,
        is_kept: bool,
        scratch: &mut Scratch,
    ) {
        let place = self.partitions.get(partition);
        let masks = &place.masks;
        let asked = masks.equal | masks.element | masks.prefix | masks.range | masks.field;
        let Scratch { founds, beside, probes, early, .. } = scratch;
        let source = if mark == BEFORE { Source::Before } else { Source::After };
        let document = image.document.as_bytes();
        let mut prober =
            Prober { index: self, partition, place, ranges: &place.ranges, mark, probes, reached: early, beside };
        for at in side.founds.0..side.founds.1 {
            let found = founds[at as usize];
            if asked & (1 << (found.node % 64)) == 0 {
                continue;
            }
            if let Some((after, after_image)) = &after
                && found.kind != kind::ARRAY
                && let Some(other) = after.found(founds, at - side.founds.0, found.node)
                && other.kind == found.kind
                && other.bytes(after_image.document.as_bytes(), prober.beside) == found.bytes(document, prober.beside)
            {
                prober.probes[range_of(other.probes)].iter_mut().for_each(|probe| probe.mark |= mark);
                prober.reached[range_of(other.reached)].iter_mut().for_each(|reached| reached.mark |= mark);
                continue;
            }
            let starts = (prober.probes.len() as u32, prober.reached.len() as u32);
            prober.found(&found, document, source);
            if is_kept {
                let found = &mut founds[at as usize];
                found.probes = (starts.0, prober.probes.len() as u32);
                found.reached = (starts.1, prober.reached.len() as u32);
            }
        }
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
                    self.reach(*record, probe.mark, probe.range_key(), reached);
                }
            }
            at = work.pairs_end as usize;
            work.reached_end = reached.len() as u32;
        }
    }

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
                Some(rest) => prefetch(self.rests.get(rest)),
                None => self.postings.prefetch_items(record.rest),
            }
            reached.push(Reached { mark, what: What::Rest(record.rest) });
        }
    }

    /// Announces what is behind that which was reached.
    fn announce(&self, scratch: &Scratch) {
        for Reached { what, .. } in scratch.early.iter().chain(&scratch.reached) {
            match what {
                What::Sure(items) => self.postings.prefetch_list(*items),
                What::Ranges(set, _) => self.range_sets.get(*set).prefetch(),
                What::Rest(items) => match self.postings.only(*items) {
                    Some(rest) => self.rests.get(rest).prefetch(),
                    None => self.postings.prefetch_list(*items),
                },
            }
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
        let Scratch { work, founds, beside, early, reached, touched, matches, .. } = scratch;
        let (mut at, mut early_at) = (0, 0);
        for ((number, event), work) in events.iter().enumerate().zip(work.iter()) {
            matches.clear();
            touched.clear();
            let early = &early[early_at..work.early_end as usize];
            for Reached { mark, what } in early.iter().chain(&reached[at..work.reached_end as usize]) {
                match what {
                    What::Sure(items) => self.postings.items(items).each(|slot| push_sure(slot, *mark, matches)),
                    What::Rest(items) => self.postings.items(items).each(|rest| {
                        let slot = self.rests.get(rest).slot;
                        touched.push(Touched { slot, rest, marks: *mark, sure: *mark });
                    }),
                    What::Ranges(set, key) => self.range_sets.get(*set).stab(*key, |target, sure| {
                        let sure = if sure { *mark } else { 0 };
                        touched.push(Touched { slot: target.slot, rest: target.rest, marks: *mark, sure });
                    }),
                }
            }
            (at, early_at) = (work.reached_end as usize, work.early_end as usize);
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
                touched.push(Touched { slot, rest, marks: mark, sure: 0 });
            }
            if let Some(record) = self.document_record(event.key) {
                self.postings.items(&self.postings.record(record).rest).each(|rest| {
                    let known = self.rests.get(rest);
                    if known.partition == at {
                        touched.push(Touched { slot: known.slot, rest, marks: mark, sure: 0 });
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

fn range_of((start, end): (u32, u32)) -> std::ops::Range<usize> {
    start as usize..end as usize
}

#[inline]
fn push_sure(slot: u32, mark: u8, matches: &mut Vec<Match>) {
    let verdict = |of: u8| if mark & of != 0 { Verdict::Holds } else { Verdict::Fails };
    matches.push(Match { slot, before: verdict(BEFORE), after: verdict(AFTER), about_change: false });
}

impl Side {
    /// What was found of a node, most likely at this place.
    #[inline]
    fn found<'f>(&self, founds: &'f [Found], place: u32, node: u32) -> Option<&'f Found> {
        let founds = self.founds(founds);
        match founds.get(place as usize) {
            Some(found) if found.node == node => Some(found),
            _ => value_of(founds, node),
        }
    }
}

impl Scratch {
    fn begin(&mut self) {
        self.work.clear();
        empty(&mut self.founds);
        empty(&mut self.beside);
        empty(&mut self.probes);
        empty(&mut self.pairs);
        empty(&mut self.early);
        empty(&mut self.reached);
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
