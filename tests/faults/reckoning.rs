//! Journals of Gateways held against what the oracle makes of the source's history.
//!
//! A process that presents positions has gone back to them: what earlier ones had written down above them is forgotten, must come again,
//! and counts once. What comes at or below them is a duplicate. Within one process nothing may come twice.

use std::{collections::HashMap, fmt};

use wire::{Position, Transition};
use workload::{Delivered, GeneratedSubscription, Latency, Ledger, Oracle, OracleChange, Preset, Report};

use crate::journal::{Line, Told, image_hash};

/// A Gateway's name and its journal.
pub(crate) type Journals = Vec<(String, Vec<Line>)>;

#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) report: Report,
    /// Changes whose document is not the one that the source has for them.
    pub(crate) wrong_images: u64,
    /// Gaps, resyncs, ends.
    pub(crate) breaks: Vec<String>,
    /// Changes that were told to a process that had not kept them, and told again to the next.
    pub(crate) forgotten: u64,
    pub(crate) latency: Latency,
}

impl Verdict {
    pub(crate) fn is_clean(&self) -> bool {
        self.report.is_clean() && self.wrong_images == 0 && self.breaks.is_empty()
    }

    /// Lost, duplicates, misdelivered, out of order, with a wrong document, breaks.
    pub(crate) fn faults(&self) -> [u64; 6] {
        let Report { lost, duplicates, misdelivered, out_of_order, .. } = self.report;
        [lost, duplicates, misdelivered, out_of_order, self.wrong_images, self.breaks.len() as u64]
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [lost, duplicates, misdelivered, out_of_order, wrong_images, breaks] = self.faults();
        writeln!(
            f,
            "{} expected, {} delivered, {} forgotten and told again; lost {lost}, duplicates {duplicates}, misdelivered \
             {misdelivered}, out of order {out_of_order}, wrong documents {wrong_images}, breaks {breaks}",
            self.report.expected, self.report.delivered, self.forgotten
        )?;
        let examples = self.report.examples.iter().chain(self.breaks.iter().take(10));
        examples.into_iter().try_for_each(|example| writeln!(f, "  {example}"))
    }
}

/// What must have been told, from the source's history.
pub(crate) struct Truth {
    subscriptions: Vec<GeneratedSubscription>,
    expected: Vec<workload::Expected>,
    /// Hashes of the images after and before each change.
    images: HashMap<Position, (Option<u64>, Option<u64>)>,
}

impl Truth {
    pub(crate) fn new(subscriptions: &[GeneratedSubscription], changes: &[OracleChange], preset: Preset) -> Self {
        let mut oracle = Oracle::new(preset);
        for subscription in subscriptions {
            oracle.subscribe(subscription.to_oracle()).expect("the oracle reads generated subscriptions");
        }
        let hash = |image: &Option<bson::Document>| {
            image.as_ref().map(|image| image_hash(&image.to_vec().expect("a document becomes BSON")))
        };
        Self {
            subscriptions: subscriptions.to_vec(),
            expected: changes.iter().flat_map(|change| oracle.expect(change)).collect(),
            images: changes.iter().map(|change| (change.id, (hash(&change.after), hash(&change.before)))).collect(),
        }
    }

    pub(crate) fn judge(&self, journals: &Journals) -> Verdict {
        let mut ledger = Ledger::new();
        for subscription in &self.subscriptions {
            ledger.register(&subscription.gateway_name(), &subscription.key, subscription.op);
        }
        self.expected.iter().for_each(|expected| ledger.expect(expected));
        let (mut wrong_images, mut forgotten) = (0, 0);
        let (mut breaks, mut latency) = (Vec::new(), Latency::new());
        for (gateway, lines) in journals {
            let mut kept: Vec<(Position, &Told)> = Vec::new();
            for line in lines {
                match line {
                    Line::Start { presented } => {
                        let before = kept.len();
                        kept.retain(|(id, told)| presented.get(&told.key()).is_some_and(|p| p.covers(id)));
                        forgotten += (before - kept.len()) as u64;
                    }
                    Line::Change(told) => kept.push((told.position(), told)),
                    Line::Break { what } => breaks.push(format!("{gateway}: {what}")),
                    Line::Ended { error } => breaks.push(format!("{gateway} has ended: {error}")),
                }
            }
            for (id, told) in kept {
                let Told { transition, shard, .. } = *told;
                wrong_images += u64::from(!self.has_right_image(id, told));
                told.late_us.into_iter().for_each(|us| latency.record_us(us));
                ledger.deliver(&Delivered { gateway: gateway.clone(), key: told.key(), id, transition, shard });
            }
        }
        Verdict { report: ledger.report(), wrong_images, breaks, forgotten, latency }
    }

    /// What is of no known change is misdelivered, which the ledger says.
    fn has_right_image(&self, id: Position, told: &Told) -> bool {
        let Some((after, before)) = self.images.get(&id) else { return true };
        let image = match told.transition {
            Transition::Leave if before.is_some() => before,
            _ => after,
        };
        told.image == *image
    }

    /// Judges, panics at a fault, and makes sure that it would have been seen: each kind of damage to these very journals is.
    pub(crate) fn assert_clean(&self, journals: &Journals) -> Verdict {
        let verdict = self.judge(journals);
        assert!(verdict.is_clean(), "{verdict}");
        assert!(verdict.report.expected > 0, "nothing had to be told");
        for damage in Damage::ALL {
            let mut damaged = journals.clone();
            if damage.inflict(&mut damaged) {
                let verdict = self.judge(&damaged);
                assert_eq!(verdict.faults(), damage.faults(), "after {damage:?}: {verdict}");
            } else {
                assert!(matches!(damage, Damage::Swap | Damage::RepeatInTheNextProcess), "no room for {damage:?}");
            }
        }
        verdict
    }
}

/// What must not go unseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Drop,
    Repeat,
    /// Two of one subscription, in the wrong order.
    Swap,
    /// One more, for another Gateway's subscription.
    Misdeliver,
    OtherDocument,
    Break,
    /// What a process had kept, told to the next.
    RepeatInTheNextProcess,
}

impl Damage {
    const ALL: [Self; 7] = [
        Self::Drop,
        Self::Repeat,
        Self::Swap,
        Self::Misdeliver,
        Self::OtherDocument,
        Self::Break,
        Self::RepeatInTheNextProcess,
    ];

    fn faults(self) -> [u64; 6] {
        match self {
            Self::Drop => [1, 0, 0, 0, 0, 0],
            Self::Repeat | Self::RepeatInTheNextProcess => [0, 1, 0, 0, 0, 0],
            Self::Misdeliver => [0, 0, 1, 0, 0, 0],
            Self::Swap => [0, 0, 0, 1, 0, 0],
            Self::OtherDocument => [0, 0, 0, 0, 1, 0],
            Self::Break => [0, 0, 0, 0, 0, 1],
        }
    }

    /// Whether the journals gave it the opportunity. Always the last process's lines are damaged, since no later one forgets those.
    fn inflict(self, journals: &mut Journals) -> bool {
        let is_change = |line: &Line| matches!(line, Line::Change(_));
        let last = |lines: &[Line]| lines.iter().rposition(|line| matches!(line, Line::Start { .. })).unwrap_or(0);
        let found = journals.iter().position(|(_, lines)| lines[last(lines)..].iter().any(is_change));
        let Some(journal) = found else { return false };
        let lines = &mut journals[journal].1;
        let first = last(lines);
        let at = first + lines[first..].iter().position(is_change).expect("just found");
        match self {
            Self::Drop => drop(lines.remove(at)),
            Self::Repeat => lines.insert(at, lines[at].clone()),
            Self::OtherDocument => {
                if let Line::Change(told) = &mut lines[at] {
                    told.image = Some(told.image.map_or(1, |image| image ^ 1));
                }
            }
            Self::Break => lines.push(Line::Break { what: "a resync".into() }),
            Self::Misdeliver => {
                let line = lines[at].clone();
                let Line::Change(told) = line else { unreachable!("it is one") };
                lines.insert(at, Line::Change(Told { id: "never-subscribed".into(), ..told }));
            }
            Self::Swap => {
                let neighbours = (at + 1..lines.len()).find_map(|later| {
                    let Line::Change(b) = &lines[later] else { return None };
                    let same = |line: &Line| matches!(line, Line::Change(a) if a.key() == b.key());
                    let earlier = (at..later).rev().find(|earlier| same(&lines[*earlier]))?;
                    Some((earlier, later))
                });
                let Some((earlier, later)) = neighbours else { return false };
                lines.swap(earlier, later);
            }
            Self::RepeatInTheNextProcess => {
                let Line::Start { presented } = lines[first].clone() else { return false };
                let kept = |line: &&Line| match line {
                    Line::Change(told) => presented.get(&told.key()).is_some_and(|p| p.covers(&told.position())),
                    _ => false,
                };
                // The latest of its subscription, so that nothing else about it is wrong.
                let Some(line) = lines[..first].iter().rev().find(kept).cloned() else { return false };
                lines.insert(first + 1, line);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use bson::Document;
    use streamer_gateway::SavedPositions;
    use wire::{BackendId, Lineage};
    use workload::{EventFactory, EventOptions, Generator, Numbering, Profile};

    use super::*;

    /// A history, and journals as of Gateways that are restarted once in the middle, with a few lines that they hadn't kept.
    fn world() -> (Truth, Journals) {
        let generator = Generator::new(Profile::test(5));
        let subscriptions = generator.subscriptions(60);
        let mut writer = generator.writer();
        let mut factory = EventFactory::new(EventOptions::new(Preset::Syntrix));
        let mut numbering = Numbering::new(BackendId::of_name("main"), Lineage(7));
        let changes: Vec<OracleChange> = (0..400)
            .filter_map(|_| {
                let event = Document::from_reader(&factory.apply(&writer.next())[..]).unwrap();
                let id = numbering.next_event(&event).unwrap();
                OracleChange::from_change_event(&event, Preset::Syntrix, id).unwrap()
            })
            .collect();
        let truth = Truth::new(&subscriptions, &changes, Preset::Syntrix);
        let mut journals: Journals = Vec::new();
        for index in 0..generator.profile().gateways {
            let name = workload::generate::gateway_name(index);
            let mine: Vec<_> = truth.expected.iter().filter(|expected| expected.gateway == name).collect();
            let line = |expected: &&workload::Expected| {
                let (after, before) = truth.images[&expected.id];
                Line::Change(Told {
                    tenant: expected.key.tenant.clone(),
                    id: expected.key.id.clone(),
                    event: expected.id.to_string(),
                    transition: expected.transition,
                    shard: 0,
                    image: if expected.transition == Transition::Leave { before.or(after) } else { after },
                    late_us: None,
                })
            };
            let middle = mine.len() / 2;
            let kept = mine[middle].id;
            let everywhere = mine.iter().map(|expected| (expected.key.clone(), [kept].into_iter().collect()));
            let presented: SavedPositions = everywhere.collect();
            let mut lines = vec![Line::Start { presented: SavedPositions::default() }];
            lines.extend(mine[..(middle + 20).min(mine.len())].iter().map(line));
            lines.push(Line::Start { presented });
            lines.extend(mine.iter().filter(|expected| expected.id.order() > kept.order()).map(line));
            journals.push((name, lines));
        }
        (truth, journals)
    }

    #[test]
    fn what_is_right_is_clean_and_each_damage_is_told_apart() {
        let (truth, journals) = world();
        let verdict = truth.assert_clean(&journals);
        assert!(verdict.forgotten > 10, "{verdict}");
        for damage in Damage::ALL {
            assert!(damage.inflict(&mut journals.clone()), "no opportunity for {damage:?}");
        }
    }

    #[test]
    fn positions_that_run_ahead_are_a_loss() {
        let (truth, mut journals) = world();
        let lines = &mut journals[0].1;
        let start = lines.iter().rposition(|line| matches!(line, Line::Start { .. })).unwrap();
        // The next process goes on from what it presented, and so leaves out what the earlier one had not had.
        let Some(Line::Change(told)) = lines.get(start + 1).cloned() else { panic!("a change follows") };
        let id = told.position();
        lines.retain(|line| !matches!(line, Line::Change(told) if told.position() == id));
        let verdict = truth.judge(&journals);
        assert!(verdict.report.lost > 0, "{verdict}");
    }

    #[test]
    fn the_end_of_a_gateway_is_told() {
        let (truth, mut journals) = world();
        journals[1].1.push(Line::Ended { error: "superseded".into() });
        assert!(!truth.judge(&journals).is_clean());
    }
}
