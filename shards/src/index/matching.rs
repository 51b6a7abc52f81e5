//! From a change to hits: candidates of each image, the evaluation of each, and what becomes of it to subscribers.

use bson::RawDocument;
use predicate::{Budget, ChangeType, Context, Outcome};
use predicate::{CanonicalBytes, raw_of_stored_id, write_canonical};
use wire::{Certainty, Operation, Transition};

use super::{Entry, Hit, Index, Shown};
use crate::config::BareDeletes;
use crate::{Change, Image};

/// What a match depends on beside index and change.
pub(crate) struct Rules<'a> {
    pub(crate) bare_deletes: BareDeletes,
    pub(crate) evaluation_units_max: u64,
    /// Whether the Gateway of the subscription at this slot can evaluate by itself what costs too much here.
    pub(crate) can_verify: &'a dyn Fn(u32) -> bool,
}

/// What it cost, for the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MatchCounts {
    pub(crate) candidates: u64,
    pub(crate) errors: u64,
    pub(crate) over_budget: u64,
    pub(crate) bad_documents: u64,
    pub(crate) bare_without_tenant: u64,
}

/// Marks of the images that reached a slot; all zero between two changes.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    marks: Vec<u8>,
    touched: Vec<u32>,
}

const REACHED_BEFORE: u8 = 1;
const REACHED_AFTER: u8 = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Holds,
    /// Its evaluation costs too much.
    MayHold,
    Fails,
}

/// An image that may be evaluated, and the partition it belongs to, if anybody watches that.
#[derive(Clone, Copy)]
struct Opened<'a> {
    image: &'a Image,
    document: &'a RawDocument,
    partition: Option<u32>,
}

impl Index {
    /// Appends the hits of a change, in the order of their slots. Each slot is hit at most once.
    pub(crate) fn matches(&mut self, change: &Change, rules: &Rules<'_>, hits: &mut Vec<Hit>) -> MatchCounts {
        let mut counts = MatchCounts::default();
        if change.before.is_none() && change.after.is_none() {
            self.match_bare(change, rules, hits, &mut counts);
            hits.sort_unstable();
            return counts;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.marks.resize(self.entries.len().max(scratch.marks.len()), 0);
        let key = self.key_of(change);
        let before = change.before.as_ref().and_then(|image| self.open(image, &mut counts));
        let after = change.after.as_ref().and_then(|image| self.open(image, &mut counts));
        // The before-image of what was soft-deleted doesn't count for an insert; of a delete the last image that matched counts.
        let looks_before = before.filter(|_| change.operation != Operation::Insert);
        let looks_after = after.filter(|_| change.operation != Operation::Delete || change.before.is_none());
        for (opened, mark) in [(looks_before, REACHED_BEFORE), (looks_after, REACHED_AFTER)] {
            if let Some(Opened { document, partition: Some(partition), .. }) = opened {
                self.collect(partition, document, &key, mark, &mut scratch);
            }
        }
        counts.candidates = scratch.touched.len() as u64;
        let evaluation = Evaluation { change, before, after, rules };
        for &slot in &scratch.touched {
            let reached = std::mem::take(&mut scratch.marks[slot as usize]);
            let Some(entry) = &self.entries[slot as usize] else {
                debug_assert!(false, "a lane names slot {slot}, which is empty");
                continue;
            };
            hits.extend(evaluation.hit(slot, entry, reached, &mut counts));
        }
        scratch.touched.clear();
        self.scratch = scratch;
        hits.sort_unstable();
        counts
    }

    /// The canonical bytes of the stored id; empty where it has none, which no subscription hangs on.
    pub(super) fn key_of(&self, change: &Change) -> CanonicalBytes {
        let mut key = CanonicalBytes::new();
        if !self.documents.is_empty()
            && let Some(raw) = raw_of_stored_id(&change.key)
        {
            write_canonical(raw, &mut key);
        }
        key
    }

    fn open<'a>(&self, image: &'a Image, counts: &mut MatchCounts) -> Option<Opened<'a>> {
        let Ok(document) = RawDocument::from_bytes(&image.document) else {
            counts.bad_documents += 1;
            return None;
        };
        let partition = self.partition_of(image.place, &image.tenant, &image.collection);
        Some(Opened { image, document, partition })
    }

    fn collect(&self, partition: u32, document: &RawDocument, key: &[u8], mark: u8, scratch: &mut Scratch) {
        let mut reach = |slots: &[u32]| {
            for &slot in slots {
                let Some(Some(entry)) = self.entries.get(slot as usize) else { continue };
                // Documents of all partitions share one table.
                if !entry.live || entry.partition != partition {
                    continue;
                }
                let marks = &mut scratch.marks[slot as usize];
                if *marks == 0 {
                    scratch.touched.push(slot);
                }
                *marks |= mark;
            }
        };
        if !key.is_empty() {
            reach(self.documents.get(self.seed, key));
        }
        let partition = &self.partitions[partition as usize];
        reach(partition.always.slots());
        let mut canonical = CanonicalBytes::new();
        for indexed in &partition.equalities {
            canonical.clear();
            if let Some(raw) = indexed.path.get(document)
                && write_canonical(raw, &mut canonical)
            {
                reach(indexed.postings.get(self.seed, &canonical));
            }
        }
    }
}

struct Evaluation<'a> {
    change: &'a Change,
    before: Option<Opened<'a>>,
    after: Option<Opened<'a>>,
    rules: &'a Rules<'a>,
}

impl Evaluation<'_> {
    fn hit(&self, slot: u32, entry: &Entry, reached: u8, counts: &mut MatchCounts) -> Option<Hit> {
        if entry.predicate.reads_change() {
            return self.hit_of_change(slot, entry, reached, counts);
        }
        let mut verdict = |mark: u8, opened: Option<Opened<'_>>| match opened {
            Some(opened) if reached & mark != 0 => self.evaluate(slot, entry, opened, counts),
            _ => Verdict::Fails,
        };
        let before = verdict(REACHED_BEFORE, self.before);
        let after = verdict(REACHED_AFTER, self.after);
        let (shown, transition, verdict) = match (self.change.operation, before, after) {
            (_, Verdict::Fails, Verdict::Fails) => return None,
            (Operation::Insert, _, after) => (Shown::After, Transition::Enter, after),
            (Operation::Delete, Verdict::Fails, after) => (Shown::After, Transition::Leave, after),
            (Operation::Delete, before, _) => (Shown::Before, Transition::Leave, before),
            (Operation::Update, before, Verdict::Fails) if entry.transitions => {
                (Shown::Before, Transition::Leave, before)
            }
            (Operation::Update, _, Verdict::Fails) => return None,
            (Operation::Update, before, after) => {
                // Without a before-image, nobody knows whether it matched before.
                let transition = match (before, &self.change.before) {
                    (Verdict::Fails, Some(_)) => Transition::Enter,
                    _ => Transition::Update,
                };
                (Shown::After, transition, after)
            }
        };
        Some(Hit { slot, shown, transition, certainty: certainty(verdict) })
    }

    /// An expression that reads `before` or `type` speaks about the change itself, and is evaluated once.
    fn hit_of_change(&self, slot: u32, entry: &Entry, reached: u8, counts: &mut MatchCounts) -> Option<Hit> {
        let (mark, shown, transition) = match self.change.operation {
            Operation::Insert => (REACHED_AFTER, Shown::After, Transition::Enter),
            Operation::Update => (REACHED_AFTER, Shown::After, Transition::Update),
            Operation::Delete if self.change.before.is_some() => (REACHED_BEFORE, Shown::Before, Transition::Leave),
            Operation::Delete => (REACHED_AFTER, Shown::After, Transition::Leave),
        };
        let opened = if shown == Shown::Before { self.before } else { self.after };
        let opened = opened.filter(|_| reached & mark != 0)?;
        match self.evaluate(slot, entry, opened, counts) {
            Verdict::Fails => None,
            verdict => Some(Hit { slot, shown, transition, certainty: certainty(verdict) }),
        }
    }

    fn evaluate(&self, slot: u32, entry: &Entry, opened: Opened<'_>, counts: &mut MatchCounts) -> Verdict {
        let change_type = match self.change.operation {
            Operation::Insert => ChangeType::Insert,
            Operation::Update => ChangeType::Update,
            Operation::Delete => ChangeType::Delete,
        };
        // What a document was in another tenant or collection is nothing that this subscription may learn from.
        let before = self.before.filter(|before| {
            before.image.tenant == opened.image.tenant && before.image.collection == opened.image.collection
        });
        let context = Context {
            tenant: &opened.image.tenant,
            collection: &opened.image.collection,
            change_type,
            before: before.map(|before| before.document),
        };
        let run = |units| entry.predicate.evaluate(opened.document, &context, &mut Budget { units });
        let mut outcome = run(self.rules.evaluation_units_max);
        if outcome == Outcome::OverBudget {
            counts.over_budget += 1;
            if (self.rules.can_verify)(slot) {
                return Verdict::MayHold;
            }
            // A Gateway that can't verify is told the truth, however long it takes.
            outcome = run(u64::MAX);
        }
        match outcome {
            Outcome::True => Verdict::Holds,
            Outcome::False => Verdict::Fails,
            Outcome::Error | Outcome::OverBudget => {
                counts.errors += 1;
                Verdict::Fails
            }
        }
    }
}

fn certainty(verdict: Verdict) -> Certainty {
    match verdict {
        Verdict::MayHold => Certainty::Unverified,
        Verdict::Holds | Verdict::Fails => Certainty::Matched,
    }
}
