//! Subscriptions that wait for the ingest thread to route by a filter that holds them.
//!
//! That the ingest thread does so is one small step here, however many have waited: [`Pending::confirm`] marks up to where the
//! queue is confirmed, and since when. Each is then taken out in its turn, or before that if it is hit.
//!
//! Invariants:
//! - The versions in the queue never fall. What is confirmed stands before what isn't.
//! - Numbers follow each other around the end of `u32`; no more than half of them are in use.

use std::collections::VecDeque;

use wire::Positions;

use super::SubId;

#[derive(Debug, Default)]
pub(crate) struct Pending {
    queue: VecDeque<Waiting>,
    /// Number of the first one in the queue.
    first: u32,
    confirmed: VecDeque<Confirmed>,
    /// Places in the queue whose subscription has been taken out.
    vacated: usize,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    version: u64,
    /// None where it has been taken out.
    sub: Option<SubId>,
}

#[derive(Debug)]
struct Confirmed {
    /// Places of the queue before this one, counted from its front, that are confirmed at these positions or earlier ones.
    upto: usize,
    positions: Positions,
}

impl Pending {
    /// Gives the number by which it is found again. `version` is the newest version that there will be for it.
    pub(crate) fn push(&mut self, version: u64, sub: SubId) -> u32 {
        debug_assert!(self.queue.back().is_none_or(|last| last.version <= version), "the filter's version falls");
        self.queue.push_back(Waiting { version, sub: Some(sub) });
        self.first.wrapping_add(self.queue.len() as u32 - 1)
    }

    /// Whoever waits for this version or an earlier one waits no more: each change after `positions` is for them.
    pub(crate) fn confirm(&mut self, version: u64, positions: &Positions) {
        let upto = self.queue.partition_point(|waiting| waiting.version <= version);
        if upto > self.confirmed_upto() {
            self.confirmed.push_back(Confirmed { upto, positions: positions.clone() });
        }
    }

    /// Since when the one of this number is live, if it is.
    pub(crate) fn live_from(&self, number: u32) -> Option<&Positions> {
        let at = self.place(number);
        let batch = self.confirmed.partition_point(|batch| batch.upto <= at);
        self.confirmed.get(batch).map(|batch| &batch.positions)
    }

    /// The version that the one of this number waits for.
    pub(crate) fn version(&self, number: u32) -> u64 {
        self.queue.get(self.place(number)).map_or(0, |waiting| waiting.version)
    }

    /// The next one that is live.
    pub(crate) fn next_confirmed(&self) -> Option<SubId> {
        self.confirmed.front()?;
        self.queue.front()?.sub
    }

    pub(crate) fn has_confirmed(&self) -> bool {
        !self.confirmed.is_empty()
    }

    /// Takes out the one of this number.
    pub(crate) fn remove(&mut self, number: u32) {
        let at = self.place(number);
        let Some(waiting) = self.queue.get_mut(at).filter(|waiting| waiting.sub.is_some()) else {
            debug_assert!(false, "{number} is taken out twice");
            return;
        };
        waiting.sub = None;
        self.vacated += 1;
        let mut gone = 0;
        while self.queue.front().is_some_and(|waiting| waiting.sub.is_none()) {
            self.queue.pop_front();
            gone += 1;
        }
        self.vacated -= gone;
        self.first = self.first.wrapping_add(gone as u32);
        while self.queue.len() > self.confirmed_upto().saturating_sub(gone)
            && self.queue.back().is_some_and(|waiting| waiting.sub.is_none())
        {
            self.queue.pop_back();
            self.vacated -= 1;
        }
        if gone > 0 {
            self.confirmed.iter_mut().for_each(|batch| batch.upto = batch.upto.saturating_sub(gone));
            while self.confirmed.front().is_some_and(|batch| batch.upto == 0) {
                self.confirmed.pop_front();
            }
        }
        if self.queue.capacity() > KEPT && self.queue.len() < self.queue.capacity() / 4 {
            self.queue.shrink_to(self.queue.len() * 2);
        }
    }

    /// Whether more of the queue is vacated than not. [`Pending::close_ranks`] is due then.
    pub(crate) fn is_sparse(&self) -> bool {
        self.vacated > KEPT.max(self.queue.len() / 2)
    }

    /// Closes the gaps. Everyone that is left has another number, which `renumber` is told.
    pub(crate) fn close_ranks(&mut self, mut renumber: impl FnMut(SubId, u32)) {
        let old = std::mem::take(&mut self.queue);
        let mut batches = std::mem::take(&mut self.confirmed).into_iter().peekable();
        for (at, waiting) in old.into_iter().enumerate() {
            while let Some(mut batch) = batches.next_if(|batch| batch.upto <= at) {
                batch.upto = self.queue.len();
                self.confirmed.push_back(batch);
            }
            if let Some(sub) = waiting.sub {
                renumber(sub, self.first.wrapping_add(self.queue.len() as u32));
                self.queue.push_back(waiting);
            }
        }
        self.confirmed.extend(batches.map(|batch| Confirmed { upto: self.queue.len(), ..batch }));
        self.vacated = 0;
        let mut before = 0;
        self.confirmed.retain(|batch| std::mem::replace(&mut before, batch.upto) < batch.upto);
    }

    /// How many wait, or are confirmed and haven't been taken out.
    pub(crate) fn len(&self) -> usize {
        self.queue.len() - self.vacated
    }

    /// Whether this is the number of that one.
    pub(crate) fn is(&self, number: u32, sub: SubId) -> bool {
        self.queue.get(self.place(number)).is_some_and(|waiting| waiting.sub == Some(sub))
    }

    fn place(&self, number: u32) -> usize {
        number.wrapping_sub(self.first) as usize
    }

    fn confirmed_upto(&self) -> usize {
        self.confirmed.back().map_or(0, |batch| batch.upto)
    }

    pub(crate) fn check_invariants(&self) {
        assert_eq!(self.queue.iter().filter(|waiting| waiting.sub.is_none()).count(), self.vacated, "vacated places");
        assert!(self.queue.iter().is_sorted_by_key(|waiting| waiting.version), "versions fall");
        assert!(self.queue.front().is_none_or(|first| first.sub.is_some()), "nobody stands in front");
        assert!(self.confirmed.iter().is_sorted_by(|a, b| a.upto < b.upto), "confirmed twice");
        assert!(self.confirmed_upto() <= self.queue.len(), "more is confirmed than waits");
        assert!(self.confirmed.front().is_none_or(|first| first.upto > 0), "nothing is confirmed, in so many words");
    }
}

/// Places of the queue that are kept, used or not.
const KEPT: usize = 1_024;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use wire::{BackendId, Lineage, Position};

    use super::*;

    fn at(time: u64) -> Positions {
        [Position { backend: BackendId(1), lineage: Lineage(1), time, k: 1 }].into_iter().collect()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push { raise: u64 },
        Confirm { below: u64 },
        Remove(usize),
        Next,
        CloseRanks,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..2_u64).prop_map(|raise| Step::Push { raise }),
            2 => (0..4_u64).prop_map(|below| Step::Confirm { below }),
            3 => any::<usize>().prop_map(Step::Remove),
            2 => Just(Step::Next),
            1 => Just(Step::CloseRanks),
        ]
    }

    proptest! {
        #[test]
        fn each_is_live_since_the_first_that_confirms_it(steps in prop::collection::vec(step(), 1..200)) {
            let mut pending = Pending { first: u32::MAX - 20, ..Pending::default() };
            // Number, version and since when, by slot.
            let mut model: BTreeMap<u32, (u32, u64, Option<Positions>)> = BTreeMap::new();
            let (mut version, mut time) = (1, 0);
            for (slot, step) in steps.into_iter().enumerate() {
                let slot = slot as u32;
                match step {
                    Step::Push { raise } => {
                        version += raise;
                        let number = pending.push(version, SubId::of_test(slot));
                        model.insert(slot, (number, version, None));
                    }
                    Step::Confirm { below } => {
                        time += 1;
                        let confirmed = version.saturating_sub(below);
                        pending.confirm(confirmed, &at(time));
                        for (_, version, since) in model.values_mut() {
                            if *version <= confirmed && since.is_none() {
                                *since = Some(at(time));
                            }
                        }
                        // Versions that are confirmed stay so: nobody may wait for one again.
                        version += 1;
                    }
                    Step::Remove(which) if !model.is_empty() => {
                        let slot = *model.keys().nth(which % model.len()).unwrap();
                        let (number, ..) = model.remove(&slot).unwrap();
                        pending.remove(number);
                    }
                    Step::Remove(_) => {}
                    Step::Next => {
                        let next = pending.next_confirmed();
                        let expected = model.iter().find(|(_, (_, _, since))| since.is_some()).map(|(slot, _)| *slot);
                        prop_assert_eq!(next.map(|sub| sub.slot), expected);
                        if let Some(slot) = expected {
                            let (number, ..) = model.remove(&slot).unwrap();
                            pending.remove(number);
                        }
                    }
                    Step::CloseRanks => pending.close_ranks(|sub, number| model.get_mut(&sub.slot).unwrap().0 = number),
                }
                pending.check_invariants();
                prop_assert_eq!(pending.len(), model.len());
                for (number, version, since) in model.values() {
                    prop_assert_eq!(pending.version(*number), *version);
                    prop_assert_eq!(pending.live_from(*number), since.as_ref());
                }
            }
        }
    }
}
