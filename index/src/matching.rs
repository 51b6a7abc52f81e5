//! From events to matches, several events at a time.
//!
//! The steps, each for all events of a batch before the next: where the places are; what the partitions ask for, and the walk over the
//! documents, which gives probes; which records the probes may mean; which they do mean; and, event by event, whom that brings and
//! what is left to evaluate.

use crate::evaluate::Evaluation;
use crate::key::At;
use crate::machine::prefetch;
use crate::paths::ID;
use crate::postings::{Items, Postings};
use crate::probe::{Hung, Lists, Probe, Prober, key_of};
use crate::range::{Answer, Target};
use crate::rest::Rest;
use crate::walk::{Found, Source, Walk, found_beside};
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
    lists: Lists,
    /// A value that was probed, and a record that may be meant; and the same with the number of a rare probe.
    pairs: Vec<(u32, u32)>,
    rare_pairs: Vec<(u32, u32)>,
    /// What the records name.
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
    rare_probes_end: u32,
    pairs_end: u32,
    rare_pairs_end: u32,
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
    /// The place of the value that has reached it.
    pub(crate) found: u32,
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

/// A part of a set of ranges in which there may be some that the value of this key is in.
#[derive(Clone, Copy, Debug)]
struct Stab {
    set: u32,
    part: u32,
    key: u64,
    /// The place of the value.
    found: u32,
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
            self.probe(events, &mut scratch);
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
                    image.tenant.first().into_iter().for_each(prefetch);
                    image.collection.first().into_iter().for_each(prefetch);
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
                    match self.find_partition(image.place, image.tenant, image.collection) {
                        Some(other) => (at, partition) = (other, self.partitions.get(other)),
                        None => return Side::default(),
                    }
                }
                partition.prefetch_asked();
                Side { partition: Some(at), founds: (0, 0), is_asked_whole: partition.is_asked_whole }
            };
            let (before, after) = (side(&event.before, before), side(&event.after, after));
            scratch.work.push(Work { before, after, ..Work::default() });
        }
    }

    /// Walks over the documents, and notes the values that their partitions ask for.
    fn walk(&mut self, events: &[Event<'_>], scratch: &mut Scratch) {
        for (work, event) in scratch.work.iter_mut().zip(events) {
            if let Some((image, partition)) =
                event.after.as_ref().filter(|_| event.looks_after).zip(work.after.partition)
            {
                work.after.founds = self.find_values(partition, image, Source::After, AFTER, &mut scratch.lists);
            }
            if let Some((image, partition)) =
                event.before.as_ref().filter(|_| event.looks_before).zip(work.before.partition)
            {
                work.before.founds = self.find_values(partition, image, Source::Before, BEFORE, &mut scratch.lists);
            }
        }
    }

    /// Gives the places of the values of an image that its partition asks for.
    fn find_values(
        &mut self,
        partition: u32,
        image: &Image<'_>,
        source: Source,
        mark: u8,
        lists: &mut Lists,
    ) -> (u32, u32) {
        let place = self.partitions.get(partition);
        let Lists { founds, beside, .. } = lists;
        let start = founds.len();
        if place.is_walked {
            let document = image.document.as_bytes();
            let mut walk = Walk { paths: &mut self.paths, place, document, founds, source, mark };
            if !walk.document() {
                walk.founds.truncate(start);
                walk.look_up(image.document, beside);
            }
            if place.asks_id
                && let Some(id) = self.id_path.as_ref().filter(|path| path.fields().is_none())
                && let Some(value) = id.get(image.document)
            {
                founds.extend(found_beside(ID, value, mark, beside));
            }
        }
        (start as u32, founds.len() as u32)
    }

    fn hung(&self) -> Hung<'_> {
        Hung { seeds: &self.seeds, postings: &self.postings, rests: &self.rests, range_sets: &self.range_sets }
    }

    /// Makes probes of the values, and announces them.
    fn probe(&self, events: &[Event<'_>], scratch: &mut Scratch) {
        let Scratch { work, lists, .. } = scratch;
        let hung = self.hung();
        let (mut at, mut rare_at) = (0, 0);
        for (work, event) in work.iter_mut().zip(events) {
            let Work { before, after, .. } = *work;
            if let Some((image, partition)) = event.after.as_ref().zip(after.partition) {
                self.prober(&hung, partition, image, Source::After, lists).all(after.founds);
            }
            if let Some((image, partition)) = event.before.as_ref().zip(before.partition) {
                let mut prober = self.prober(&hung, partition, image, Source::Before, lists);
                match &event.after {
                    Some(other) if before.partition == after.partition => {
                        prober.all_beside(before.founds, after.founds, other.document.as_bytes());
                    }
                    _ => prober.all(before.founds),
                }
            }
            let has_many = |partition: Option<u32>| partition.is_some_and(|at| self.partitions.get(at).has_many_keys());
            if has_many(after.partition) || has_many(before.partition) {
                sieve(&mut lists.probes, at, &self.postings);
            }
            lists.probes[at..].iter().for_each(|probe| self.postings.prefetch(probe.tag));
            lists.rare_probes[rare_at..].iter().for_each(|rare| self.postings.prefetch(rare.probe.tag));
            (at, rare_at) = (lists.probes.len(), lists.rare_probes.len());
            (work.probes_end, work.rare_probes_end) = (at as u32, rare_at as u32);
            work.early_end = lists.reached.len() as u32;
        }
    }

    #[inline(always)]
    fn prober<'s>(
        &'s self,
        hung: &'s Hung<'s>,
        partition: u32,
        image: &Image<'s>,
        source: Source,
        lists: &'s mut Lists,
    ) -> Prober<'s> {
        let (place, document) = (self.partitions.get(partition), image.document.as_bytes());
        let tags = self.seeds.tags(partition);
        Prober { hung, partition, tags, place, document, source, lists }
    }

    /// Finds the records that the probes mean, and what these name.
    fn look_up(&self, events: &[Event<'_>], scratch: &mut Scratch) {
        let Scratch { work, lists, pairs, rare_pairs, reached, .. } = scratch;
        let Lists { founds, beside, probes, rare_probes, .. } = lists;
        let (mut at, mut rare_at) = (0, 0);
        for work in work.iter_mut() {
            for probe in &probes[at..work.probes_end as usize] {
                self.postings.candidates(probe.tag, |record| {
                    self.postings.prefetch_record(record);
                    pairs.push((probe.found, record));
                });
            }
            for number in rare_at..work.rare_probes_end {
                self.postings.candidates(rare_probes[number as usize].probe.tag, |record| {
                    self.postings.prefetch_record(record);
                    rare_pairs.push((number, record));
                });
            }
            (at, rare_at) = (work.probes_end as usize, work.rare_probes_end);
            (work.pairs_end, work.rare_pairs_end) = (pairs.len() as u32, rare_pairs.len() as u32);
        }
        let hung = self.hung();
        let (mut at, mut rare_at) = (0, 0);
        for (work, event) in work.iter_mut().zip(events) {
            let bytes_of = |source| match source {
                Source::Before => event.before.map_or(&[][..], |image| image.document.as_bytes()),
                Source::After => event.after.map_or(&[][..], |image| image.document.as_bytes()),
                Source::Beside => beside,
            };
            for (found, record) in &pairs[at..work.pairs_end as usize] {
                let value = &founds[*found as usize];
                let side = if value.source == Source::Before { work.before } else { work.after };
                let Some(partition) = side.partition else { continue };
                let document = bytes_of(value.source);
                let (class, payload) = key_of(value, document, &self.seeds);
                // All of a text but its length and the NUL.
                let long = || &document[value.start as usize + 4..(value.start + value.length) as usize - 1];
                if self.postings.is(*record, At::new(partition, value.node, class), payload, long) {
                    hung.reach(*record, *found, 0, reached);
                }
            }
            for (number, record) in &rare_pairs[rare_at..work.rare_pairs_end as usize] {
                let rare = &rare_probes[*number as usize];
                if self.postings.is(*record, rare.at, rare.payload, || rare.bytes(bytes_of)) {
                    hung.reach(*record, rare.probe.found, rare.range_key(), reached);
                }
            }
            (at, rare_at) = (work.pairs_end as usize, work.rare_pairs_end as usize);
            work.reached_end = reached.len() as u32;
        }
    }

    /// Announces what is behind that which was reached.
    fn announce(&self, scratch: &mut Scratch) {
        let Scratch { work, lists: Lists { reached: early, .. }, reached, stabs, .. } = scratch;
        let (mut at, mut early_at) = (0, 0);
        for work in work.iter_mut() {
            let early = &early[early_at..work.early_end as usize];
            for Reached { found, what } in early.iter().chain(&reached[at..work.reached_end as usize]) {
                match what {
                    What::Sure(items) => self.postings.prefetch_list(*items),
                    What::Ranges(set, key) => {
                        let (set, key, found) = (*set, *key, *found);
                        self.range_sets.get(set).descend(key, |part| stabs.push(Stab { set, part, key, found }));
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
        let Scratch { work, lists, reached, stabs, touched, matches, .. } = scratch;
        let Lists { founds, beside, reached: early, .. } = lists;
        let (mut at, mut early_at, mut stabs_at) = (0, 0, 0);
        for ((number, event), work) in events.iter().enumerate().zip(work.iter()) {
            matches.clear();
            touched.clear();
            let early = &early[early_at..work.early_end as usize];
            for Reached { found, what } in early.iter().chain(&reached[at..work.reached_end as usize]) {
                let mark = founds[*found as usize].mark;
                match *what {
                    What::Sure(items) => self.postings.items(&items).each(|slot| push_sure(slot, mark, matches)),
                    What::Rest(items) => self.postings.items(&items).each(|rest| {
                        let Rest { slot, is_decided, is_about_change, .. } = *self.rests.get(rest);
                        let is_decided = is_decided && !is_about_change;
                        touched.push(Touched { slot, rest, marks: mark, sure: mark, is_decided });
                    }),
                    What::Range { rest, slot, is_sure, is_decided } => {
                        let sure = if is_sure { mark } else { 0 };
                        touched.push(Touched { slot, rest, marks: mark, sure, is_decided });
                    }
                    What::Ranges(..) => {}
                }
            }
            for Stab { set, part, key, found } in &stabs[stabs_at..work.stabs_end as usize] {
                let Found { kind, mark: marks, .. } = founds[*found as usize];
                self.range_sets.get(*set).stab(*part, *key, |listed| {
                    let Target { slot, rest, is_decided, .. } = listed.target;
                    match listed.answer(kind, *key) {
                        Answer::Yes => touched.push(Touched { slot, rest, marks, sure: marks, is_decided }),
                        Answer::Perhaps => touched.push(Touched { slot, rest, marks, sure: 0, is_decided }),
                        Answer::No => {}
                    }
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

/// Leaves those out of the probes from this place on that find nothing for sure.
fn sieve(probes: &mut Vec<Probe>, from: usize, postings: &Postings) {
    let mut kept = from;
    for at in from..probes.len() {
        let probe = probes[at];
        probes[kept] = probe;
        // As with the bits of a field, no branch depends on it.
        kept += usize::from(postings.may_have(probe.tag));
    }
    probes.truncate(kept);
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
        self.lists.clear();
        empty(&mut self.pairs);
        empty(&mut self.rare_pairs);
        empty(&mut self.reached);
        empty(&mut self.stabs);
        empty(&mut self.touched);
        empty(&mut self.matches);
    }
}

/// A list that was once large gives back what it took.
pub(crate) fn empty<T>(list: &mut Vec<T>) {
    list.clear();
    if list.capacity() > KEPT_MAX {
        list.shrink_to(KEPT_MAX);
    }
}
