//! From changes to hits: what the index is asked about each, and what its matches are to subscribers.

use bson::RawDocument;
use index::{Counts, Event, Main, Match, Verdict};
use predicate::ChangeType;
use smallvec::SmallVec;
use wire::{Certainty, Operation, Transition};

use super::{Hit, Index, Shown};
use crate::config::BareDeletes;
use crate::{Change, Image};

/// What a hit depends on beside index and change.
pub(crate) struct Rules<'a> {
    pub(crate) bare_deletes: BareDeletes,
    /// Cost units of one evaluation, and of all evaluations for one change.
    pub(crate) evaluation_units_max: u64,
    pub(crate) event_units_max: u64,
    /// Whether the Gateway of the subscription at this slot can evaluate by itself what costs too much here.
    pub(crate) can_verify: &'a dyn Fn(u32) -> bool,
    /// Whether the subscription at this slot is told of updates that end a match.
    pub(crate) transitions: &'a dyn Fn(u32) -> bool,
}

/// What it cost, for the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MatchCounts {
    pub(crate) candidates: u64,
    pub(crate) errors: u64,
    pub(crate) over_budget: u64,
    pub(crate) bad_documents: u64,
    pub(crate) bare_without_tenant: u64,
    /// Whether anybody watches the document or its collection.
    pub(crate) is_watched: bool,
}

/// Hits of several changes, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Matched {
    pub(crate) hits: Vec<Hit>,
    /// Of each change, where its hits end, and what it cost.
    pub(crate) ends: Vec<(u32, MatchCounts)>,
}

impl Matched {
    fn clear(&mut self) {
        self.hits.clear();
        self.ends.clear();
    }
}

impl Index {
    /// Fills `matched` with the hits of these changes. As many of them as there are waiting is best: they are worked on together.
    pub(crate) fn matches<'c>(
        &mut self,
        changes: impl IntoIterator<Item = &'c Change>,
        rules: &Rules<'_>,
        matched: &mut Matched,
    ) {
        matched.clear();
        let mut events: SmallVec<[Event<'c>; index::BATCH_MAX]> = SmallVec::new();
        let mut asked: SmallVec<[(&'c Change, MatchCounts); index::BATCH_MAX]> = SmallVec::new();
        for change in changes {
            if !change.has_before() && !change.has_after() {
                self.ask(&events, &asked, rules, matched);
                events.clear();
                asked.clear();
                let mut counts = MatchCounts::default();
                let start = matched.hits.len();
                self.match_bare(change, rules, &mut matched.hits, &mut counts);
                matched.hits[start..].sort_unstable();
                matched.ends.push((matched.hits.len() as u32, counts));
                continue;
            }
            if events.len() == index::BATCH_MAX {
                self.ask(&events, &asked, rules, matched);
                events.clear();
                asked.clear();
            }
            let mut counts = MatchCounts::default();
            events.push(event_of(change, &mut counts));
            asked.push((change, counts));
        }
        self.ask(&events, &asked, rules, matched);
    }

    fn ask(
        &mut self,
        events: &[Event<'_>],
        asked: &[(&Change, MatchCounts)],
        rules: &Rules<'_>,
        matched: &mut Matched,
    ) {
        let inner = index::Rules {
            evaluation_units_max: rules.evaluation_units_max,
            event_units_max: rules.event_units_max,
            can_verify: rules.can_verify,
        };
        self.inner.matches(events, &inner, &mut |at, matches: &[Match], cost: Counts| {
            let (change, mut counts) = asked[at];
            counts.candidates = cost.candidates;
            counts.errors = cost.errors;
            counts.over_budget = cost.over_budget;
            counts.is_watched = cost.is_watched;
            matched.hits.extend(matches.iter().filter_map(|found| hit_of(change, found, rules)));
            matched.ends.push((matched.hits.len() as u32, counts));
        });
    }
}

fn event_of<'c>(change: &'c Change, counts: &mut MatchCounts) -> Event<'c> {
    let mut image = |image: Option<Image<'c>>| {
        let image = image?;
        let Ok(document) = RawDocument::from_bytes(image.document) else {
            counts.bad_documents += 1;
            return None;
        };
        let Image { place, tenant, collection, .. } = image;
        Some(index::Image { place, tenant, collection, document })
    };
    let (before, after) = (image(change.before()), image(change.after()));
    let is_delete = change.operation == Operation::Delete;
    Event {
        change_type: match change.operation {
            Operation::Insert => ChangeType::Insert,
            Operation::Update => ChangeType::Update,
            Operation::Delete => ChangeType::Delete,
        },
        key: change.key(),
        // The before-image of what was soft-deleted doesn't count for an insert; of a delete the last image that matched counts.
        looks_before: change.has_before() && change.operation != Operation::Insert,
        looks_after: change.has_after() && (!is_delete || !change.has_before()),
        main: if is_delete && change.has_before() { Main::Before } else { Main::After },
        before,
        after,
    }
}

fn hit_of(change: &Change, found: &Match, rules: &Rules<'_>) -> Option<Hit> {
    let Match { slot, before, after, about_change } = *found;
    let (shown, transition, verdict) = match (change.operation, before, after) {
        (_, Verdict::Fails, Verdict::Fails) => return None,
        (Operation::Insert, _, after) => (Shown::After, Transition::Enter, after),
        (Operation::Delete, Verdict::Fails, after) => (Shown::After, Transition::Leave, after),
        (Operation::Delete, before, _) => (Shown::Before, Transition::Leave, before),
        // An expression that reads `before` or `type` speaks about the change itself, and has been evaluated once.
        (Operation::Update, _, after) if about_change => (Shown::After, Transition::Update, after),
        (Operation::Update, before, Verdict::Fails) => {
            if !(rules.transitions)(slot) {
                return None;
            }
            (Shown::Before, Transition::Leave, before)
        }
        (Operation::Update, before, after) => {
            // Without a before-image, nobody knows whether it matched before.
            let transition = match (before, change.has_before()) {
                (Verdict::Fails, true) => Transition::Enter,
                _ => Transition::Update,
            };
            (Shown::After, transition, after)
        }
    };
    let certainty = match verdict {
        Verdict::MayHold => Certainty::Unverified,
        Verdict::Holds | Verdict::Fails => Certainty::Matched,
    };
    Some(Hit { slot, shown, transition, certainty })
}
