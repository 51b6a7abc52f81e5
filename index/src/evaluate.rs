//! What was reached is evaluated, as far as its anchors don't decide it.
//!
//! Invariant: a predicate that costs too much is never taken for one that doesn't hold. Where its Gateway can evaluate it, it may hold;
//! where not, it is evaluated to its end.

use std::cell::OnceCell;

use bson::RawDocument;
use predicate::{Budget, Context, Memo, Outcome, Predicate};

use crate::key::raw_of;
use crate::matching::{AFTER, BEFORE, Side, Touched, Work, push_sure};
use crate::range::Answer;
use crate::rest::{Rest, value_of};
use crate::walk::Found;
use crate::{Counts, Event, Image, Index, Main, Match, Rules, Verdict};

/// One event, and all that is known of it.
pub(crate) struct Evaluation<'e> {
    pub(crate) index: &'e Index,
    pub(crate) event: &'e Event<'e>,
    pub(crate) work: &'e Work,
    pub(crate) founds: &'e [Found],
    pub(crate) beside: &'e [u8],
    pub(crate) rules: &'e Rules<'e>,
}

/// What evaluations on one image share.
struct Shared<'e> {
    memo: Memo,
    tenant: &'e str,
    collection: &'e str,
}

impl<'e> Shared<'e> {
    fn of(image: &Image<'e>) -> Self {
        let text = |name| std::str::from_utf8(name).expect("names of an image are UTF-8");
        Self { memo: Memo::default(), tenant: text(image.tenant), collection: text(image.collection) }
    }
}

impl<'e> Evaluation<'e> {
    /// Appends the matches among what was touched.
    pub(crate) fn all(&self, touched: &mut Vec<Touched>, matches: &mut Vec<Match>, counts: &mut Counts) {
        if touched.len() > 1 {
            touched.sort_unstable_by_key(|touched| touched.slot);
            touched.dedup_by(|later, first| {
                let same = later.slot == first.slot;
                if same {
                    first.marks |= later.marks;
                    first.sure |= later.sure;
                    first.is_decided |= later.is_decided;
                }
                same
            });
        }
        let mut left = self.rules.event_units_max;
        // What the interpreter reads of an image is the same for all of them.
        let shared = [OnceCell::new(), OnceCell::new()];
        for touched in touched.iter() {
            if touched.is_decided && touched.marks == touched.sure {
                push_sure(touched.slot, touched.marks, matches);
                continue;
            }
            let rest = self.index.rests.get(touched.rest);
            let main = match self.event.main {
                Main::Before => BEFORE,
                Main::After => AFTER,
            };
            let asked = if rest.is_about_change { touched.marks & main } else { touched.marks };
            let mut is_evaluated = false;
            let mut verdict = |mark: u8| {
                let shared = &shared[usize::from(mark == AFTER)];
                self.verdict(rest, mark, touched.sure & mark != 0, shared, &mut left, &mut is_evaluated, counts)
            };
            let before = if asked & BEFORE == 0 { Verdict::Fails } else { verdict(BEFORE) };
            let after = if asked & AFTER == 0 { Verdict::Fails } else { verdict(AFTER) };
            counts.candidates += u64::from(is_evaluated);
            if before != Verdict::Fails || after != Verdict::Fails {
                matches.push(Match { slot: touched.slot, before, after, about_change: rest.is_about_change });
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one verdict is its predicate, image and budget")]
    fn verdict(
        &self,
        rest: &Rest,
        mark: u8,
        mut is_sure: bool,
        shared: &OnceCell<Shared<'e>>,
        left: &mut u64,
        is_evaluated: &mut bool,
        counts: &mut Counts,
    ) -> Verdict {
        if rest.is_decided && is_sure {
            return Verdict::Holds;
        }
        *is_evaluated = true;
        let (image, side) = match mark {
            BEFORE => (self.event.before, self.work.before),
            _ => (self.event.after, self.work.after),
        };
        let Some(image) = image else { return Verdict::Fails };
        let document = image.document.as_bytes();
        let founds = side.founds(self.founds);
        for quick in &rest.quick {
            let Some(found) = value_of(founds, quick.node) else { return Verdict::Fails };
            match quick.answer(found.kind, found.bytes(document, self.beside), &self.index.seeds) {
                Answer::Yes => {}
                Answer::Perhaps => is_sure = false,
                Answer::No => return Verdict::Fails,
            }
        }
        if is_sure && rest.slow.is_empty() && !rest.quick.is_empty() {
            return Verdict::Holds;
        }
        let Some(predicate) = &rest.predicate else { return Verdict::Fails };
        self.evaluate(rest, predicate, &image, side, is_sure, shared, left, counts)
    }

    #[expect(clippy::too_many_arguments, reason = "one evaluation is its predicate, image and budget")]
    fn evaluate(
        &self,
        rest: &Rest,
        predicate: &Predicate,
        image: &Image<'e>,
        side: Side,
        is_sure: bool,
        shared: &OnceCell<Shared<'e>>,
        left: &mut u64,
        counts: &mut Counts,
    ) -> Verdict {
        // What a document was in another tenant or collection is nothing that this subscription may learn from.
        let before = self.event.before.filter(|before| {
            before.place == image.place && before.tenant == image.tenant && before.collection == image.collection
        });
        let Shared { memo, tenant, collection } = shared.get_or_init(|| Shared::of(image));
        let context = Context {
            tenant,
            collection,
            change_type: self.event.change_type,
            before: before.map(|before| before.document),
        };
        let run = |units: u64| {
            let mut budget = Budget { units };
            let outcome = if is_sure && !rest.slow.is_empty() {
                self.parts(rest, predicate, image.document, side, &context, memo, &mut budget)
            } else {
                predicate.evaluate_with(image.document, &context, Some(memo), &mut budget)
            };
            (outcome, units - budget.units)
        };
        let (mut outcome, mut spent) = run(self.rules.evaluation_units_max.min(*left));
        if outcome == Outcome::OverBudget {
            counts.over_budget += 1;
            if (self.rules.can_verify)(rest.slot) {
                *left = left.saturating_sub(spent);
                return Verdict::MayHold;
            }
            // A Gateway that can't verify is told the truth, however long it takes.
            let whole = run(u64::MAX);
            outcome = whole.0;
            spent += whole.1;
        }
        *left = left.saturating_sub(spent);
        match outcome {
            Outcome::True => Verdict::Holds,
            Outcome::False => Verdict::Fails,
            Outcome::Error | Outcome::OverBudget => {
                counts.errors += 1;
                Verdict::Fails
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one evaluation is its predicate, image and budget")]
    /// The parts that neither the anchors nor quick checks have decided.
    fn parts(
        &self,
        rest: &Rest,
        predicate: &Predicate,
        image: &RawDocument,
        side: Side,
        context: &Context<'_>,
        memo: &Memo,
        budget: &mut Budget,
    ) -> Outcome {
        let founds = side.founds(self.founds);
        let mut failed = false;
        for (part, node) in &rest.slow {
            let outcome = match node {
                Some(node) => {
                    let mut room = Vec::new();
                    let found = value_of(founds, *node);
                    let bytes = found.map(|found| (found.kind, found.bytes(image.as_bytes(), self.beside)));
                    let value = bytes.and_then(|(kind, value)| raw_of(kind, value, &mut room));
                    predicate.part_on_value(*part, value, budget)
                }
                None => predicate.part_on_image_with(*part, image, context, Some(memo), budget),
            };
            match outcome {
                Outcome::True => {}
                Outcome::Error => failed = true,
                Outcome::False | Outcome::OverBudget => return outcome,
            }
        }
        if failed { Outcome::Error } else { Outcome::True }
    }
}
