//! What the Gateway must be told, held against what it says that it was told.

use std::collections::BTreeMap;

use wire::{Operation, Transition};

use super::lines::{Change, Told};

/// A change that one subscription must get, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected<'a> {
    pub(super) time: u64,
    pub(super) transition: Transition,
    pub(super) operation: Operation,
    pub(super) document: &'a str,
    pub(super) n: i64,
    /// At least so many bytes.
    pub(super) size: usize,
}

#[derive(Debug)]
struct Due {
    time: u64,
    transition: Transition,
    operation: Operation,
    document: String,
    n: i64,
    size: usize,
    got: bool,
}

#[derive(Debug, Default)]
struct Subscription {
    live: bool,
    rejected: Option<String>,
    due: Vec<Due>,
    /// The place of the last one that came, in this program's life.
    last: Option<usize>,
    gaps: Vec<String>,
    resyncs: Vec<String>,
    /// It is told to be catching up, and what had come in this program's life by then.
    catching_up: Option<Option<usize>>,
    /// The same, and what had come by the end, of the last catch-up that has ended.
    caught_up: Option<(Option<usize>, Option<usize>)>,
    breaks_allowed: bool,
    rejection_allowed: bool,
}

#[derive(Debug, Default)]
pub(super) struct Judge {
    subscriptions: BTreeMap<String, Subscription>,
    pub(super) saved: u64,
    pub(super) ended: Option<String>,
    end_allowed: bool,
    faults: Vec<String>,
}

impl Subscription {
    /// The program is another one.
    fn begin_life(&mut self) {
        (self.live, self.last, self.catching_up, self.caught_up) = (false, None, None, None);
    }
}

impl Judge {
    pub(super) fn subscribed(&mut self, id: &str) {
        self.subscriptions.entry(id.to_owned()).or_default().begin_life();
    }

    pub(super) fn expect(&mut self, id: &str, expected: Expected<'_>) {
        let Expected { time, transition, operation, document, n, size } = expected;
        let document = document.to_owned();
        let due = Due { time, transition, operation, document, n, size, got: false };
        self.subscriptions.entry(id.to_owned()).or_default().due.push(due);
    }

    /// Gaps and resyncs of this subscription are part of the scene.
    pub(super) fn allow_breaks(&mut self, id: &str) {
        self.subscriptions.entry(id.to_owned()).or_default().breaks_allowed = true;
    }

    pub(super) fn allow_rejection(&mut self, id: &str) {
        self.subscriptions.entry(id.to_owned()).or_default().rejection_allowed = true;
    }

    pub(super) fn allow_end(&mut self) {
        self.end_allowed = true;
    }

    /// The program was killed: what it had been told from this time on it had not saved, so it comes again.
    pub(super) fn forget_from(&mut self, time: u64) {
        for subscription in self.subscriptions.values_mut() {
            subscription.due.iter_mut().filter(|due| due.time >= time).for_each(|due| due.got = false);
            subscription.begin_life();
        }
    }

    /// What was due is over, as is the history that it was of.
    pub(super) fn begin_again(&mut self) {
        for subscription in self.subscriptions.values_mut() {
            (subscription.due, subscription.last) = (Vec::new(), None);
        }
    }

    /// Why, where no scene wants it to end.
    pub(super) fn ended_wrongly(&self) -> Option<&str> {
        self.ended.as_deref().filter(|_| !self.end_allowed)
    }

    pub(super) fn take(&mut self, told: Told) {
        match told {
            Told::Live { subscription } => self.known(&subscription, |known| known.live = true),
            Told::Change(change) => self.take_change(&change),
            Told::Gap { subscription, reason } => {
                self.take_break(&subscription, "gap", reason, |known| &mut known.gaps)
            }
            Told::Resync { subscription, reason } => {
                self.take_break(&subscription, "resync", reason, |known| &mut known.resyncs);
            }
            Told::CatchingUp { subscription } => {
                // Another session may tell it once more.
                self.known(&subscription, |known| _ = known.catching_up.get_or_insert(known.last));
            }
            Told::CaughtUp { subscription } => {
                let mut was_told = true;
                self.known(&subscription, |known| {
                    let begun = known.catching_up.take();
                    was_told = begun.is_some();
                    known.caught_up = begun.map(|begun| (begun, known.last));
                });
                if !was_told {
                    self.fault(format!(
                        "subscription {subscription} was told to have caught up, and not that it was behind"
                    ));
                }
            }
            Told::Rejected { subscription, code } => {
                let mut allowed = false;
                self.known(&subscription, |known| {
                    allowed = known.rejection_allowed;
                    known.rejected = Some(code.clone());
                });
                if !allowed {
                    self.fault(format!("subscription {subscription} was rejected with {code}"));
                }
            }
            Told::Closed { .. } => {}
            Told::Saved => self.saved += 1,
            Told::Ended { reason } => {
                if !self.end_allowed {
                    self.fault(format!("the Gateway has ended: {reason}"));
                }
                self.ended = Some(reason);
            }
        }
    }

    pub(super) fn fault(&mut self, what: String) {
        self.faults.push(what);
    }

    pub(super) fn is_live(&self, id: &str) -> bool {
        self.subscriptions.get(id).is_some_and(|subscription| subscription.live)
    }

    pub(super) fn rejection(&self, id: &str) -> Option<&str> {
        self.subscriptions.get(id)?.rejected.as_deref()
    }

    pub(super) fn gaps(&self, id: &str) -> &[String] {
        self.subscriptions.get(id).map_or(&[], |subscription| &subscription.gaps)
    }

    pub(super) fn resyncs(&self, id: &str) -> &[String] {
        self.subscriptions.get(id).map_or(&[], |subscription| &subscription.resyncs)
    }

    /// Whether the subscription was told to be catching up before the first change that came, and to have caught up after one of this
    /// time had; else what is wrong with that, in words.
    pub(super) fn caught_up(&self, id: &str, upto: u64) -> Result<(), String> {
        let Some(known) = self.subscriptions.get(id) else { return Err(format!("subscription {id} is not known")) };
        let came = |at: Option<usize>| at.map_or(0, |at| known.due[at].time);
        match (known.caught_up, known.catching_up) {
            (None, None) => Err(format!("no catch-up was told of subscription {id}")),
            (None, Some(_)) => Err(format!("subscription {id} was not told to have caught up")),
            (Some((Some(at), _)), _) => Err(format!(
                "{} of subscription {id} came before it was told to be catching up",
                describe(at, &known.due[at])
            )),
            (Some((None, end)), _) if came(end) < upto => Err(format!(
                "subscription {id} was told to have caught up when the last change to come was of time {}, and those up to {upto} had to",
                came(end)
            )),
            (Some((None, _)), _) => Ok(()),
        }
    }

    /// The first change that has not come, in words.
    pub(super) fn missing(&self) -> Option<String> {
        self.subscriptions.iter().find_map(|(id, subscription)| {
            let at = subscription.due.iter().position(|due| !due.got)?;
            Some(format!("{} of subscription {id} was not delivered", describe(at, &subscription.due[at])))
        })
    }

    /// What was wrong.
    pub(super) fn faults(self) -> Vec<String> {
        self.faults
    }

    fn known(&mut self, id: &str, then: impl FnOnce(&mut Subscription)) {
        match self.subscriptions.get_mut(id) {
            Some(subscription) => then(subscription),
            None => self.fault(format!("something was told of subscription {id:?}, which nobody has asked for")),
        }
    }

    fn take_break(
        &mut self,
        id: &str,
        what: &str,
        reason: String,
        list: impl FnOnce(&mut Subscription) -> &mut Vec<String>,
    ) {
        let mut allowed = true;
        self.known(id, |known| {
            allowed = known.breaks_allowed;
            list(known).push(reason.clone());
        });
        if !allowed {
            self.fault(format!("a {what} ({reason}) was told of subscription {id}, which had none"));
        }
    }

    fn take_change(&mut self, change: &Change) {
        let Change { subscription: id, time, .. } = change;
        let Some(subscription) = self.subscriptions.get_mut(id) else {
            return self.fault(format!("a change was told of subscription {id:?}, which nobody has asked for"));
        };
        let Some(at) = subscription.due.iter().position(|due| due.time == *time) else {
            return self.fault(format!(
                "a change of document {:?} (time {time}) was delivered to subscription {id}, which it does not concern",
                change.document
            ));
        };
        let due = &mut subscription.due[at];
        let name = format!("{} of subscription {id}", describe(at, due));
        if due.got {
            return self.fault(format!("{name} was delivered twice"));
        }
        due.got = true;
        let mut wrong = Vec::new();
        if due.transition != change.transition {
            wrong.push(format!("as {:?}", change.transition));
        }
        if due.operation != change.operation {
            wrong.push(format!("with operation {:?} instead of {:?}", change.operation, due.operation));
        }
        if due.document != change.document {
            wrong.push(format!("as one of document {:?}", change.document));
        }
        if change.n != Some(due.n) {
            wrong.push(format!("with n = {:?} instead of {}", change.n, due.n));
        }
        if change.size < due.size {
            wrong.push(format!("with a document of {} bytes, where at least {} were written", change.size, due.size));
        }
        match subscription.last {
            Some(last) if last > at => wrong.push(format!("after change {}, so out of order", last + 1)),
            _ => subscription.last = Some(at),
        }
        if !wrong.is_empty() {
            self.fault(format!("{name} was delivered {}", wrong.join(" and ")));
        }
    }
}

/// From 1, since people count so.
fn describe(at: usize, due: &Due) -> String {
    format!("change {} ({:?} of document {:?}, n = {}, time {})", at + 1, due.transition, due.document, due.n, due.time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge() -> Judge {
        let mut judge = Judge::default();
        judge.subscribed("s");
        for time in 1..=3 {
            let (transition, operation) = (Transition::Update, Operation::Update);
            judge.expect("s", Expected { time, transition, operation, document: "d", n: time as i64, size: 10 });
        }
        judge
    }

    fn change(time: u64) -> Change {
        Change {
            subscription: "s".into(),
            time,
            transition: Transition::Update,
            operation: Operation::Update,
            document: "d".into(),
            n: Some(time as i64),
            size: 12,
        }
    }

    /// What it finds in these changes, missing ones included.
    fn found(changes: impl IntoIterator<Item = Change>) -> Vec<String> {
        let mut judge = judge();
        changes.into_iter().for_each(|change| judge.take(Told::Change(change)));
        let missing = judge.missing();
        judge.faults().into_iter().chain(missing).collect()
    }

    #[test]
    fn what_is_right_is_right() {
        assert_eq!(found([1, 2, 3].map(change)), Vec::<String>::new());
    }

    #[test]
    fn each_fault_is_named_once() {
        for (changes, expect) in [
            (
                vec![change(1), change(3)],
                "change 2 (Update of document \"d\", n = 2, time 2) of subscription s was not delivered",
            ),
            (vec![change(1), change(2), change(2), change(3)], "was delivered twice"),
            (vec![change(2), change(1), change(3)], "after change 2, so out of order"),
            (vec![change(1), change(2), change(4), change(3)], "does not concern"),
            (vec![change(1), Change { n: Some(7), ..change(2) }, change(3)], "with n = Some(7) instead of 2"),
            (vec![change(1), Change { size: 9, ..change(2) }, change(3)], "with a document of 9 bytes"),
            (vec![change(1), Change { transition: Transition::Enter, ..change(2) }, change(3)], "delivered as Enter"),
            (vec![change(1), Change { document: "e".into(), ..change(2) }, change(3)], "as one of document \"e\""),
            (
                vec![change(1), change(2), change(3), Change { subscription: "t".into(), ..change(1) }],
                "nobody has asked for",
            ),
        ] {
            let found = found(changes);
            assert!(found.len() == 1 && found[0].contains(expect), "{expect}: {found:?}");
        }
    }

    #[test]
    fn what_was_not_saved_may_come_again() {
        let mut judge = judge();
        [1, 2, 3].map(change).into_iter().for_each(|change| judge.take(Told::Change(change)));
        judge.forget_from(3);
        assert!(judge.missing().is_some_and(|missing| missing.contains("change 3")));
        judge.take(Told::Change(change(3)));
        judge.take(Told::Change(change(2)));
        assert_eq!(judge.faults().len(), 1);
    }

    #[test]
    fn a_catch_up_is_told_around_what_it_brings() {
        let catching_up = || Told::CatchingUp { subscription: "s".into() };
        let caught_up = || Told::CaughtUp { subscription: "s".into() };
        let change = |time| Told::Change(change(time));
        for (told, expect) in [
            (vec![catching_up(), change(1), change(2), caught_up(), change(3)], None),
            (vec![catching_up(), change(1), catching_up(), change(2), change(3), caught_up()], None),
            (vec![change(1), change(2), change(3)], Some("no catch-up was told")),
            (vec![catching_up(), change(1), change(2)], Some("was not told to have caught up")),
            (vec![change(1), catching_up(), change(2), caught_up()], Some("came before it was told to be catching up")),
            (vec![catching_up(), change(1), caught_up(), change(2)], Some("the last change to come was of time 1")),
        ] {
            let mut judge = judge();
            told.into_iter().for_each(|told| judge.take(told));
            let found = judge.caught_up("s", 2).err();
            assert_eq!(found.is_some(), expect.is_some(), "{found:?}");
            assert!(found.zip(expect).is_none_or(|(found, expect)| found.contains(expect)), "{expect:?}");
            assert_eq!(judge.faults(), Vec::<String>::new());
        }
        let mut judge = judge();
        judge.take(caught_up());
        assert!(judge.faults()[0].contains("not that it was behind"));
    }

    #[test]
    fn breaks_and_ends_that_nobody_made_are_faults() {
        let mut judge = judge();
        judge.take(Told::Gap { subscription: "s".into(), reason: "dropped".into() });
        judge.take(Told::Resync { subscription: "s".into(), reason: "lineage_changed".into() });
        judge.take(Told::Ended { reason: "superseded".into() });
        judge.take(Told::Rejected { subscription: "s".into(), code: "INVALID".into() });
        assert_eq!(judge.faults().len(), 4);
        let mut judge = self::judge();
        judge.allow_breaks("s");
        judge.allow_end();
        judge.allow_rejection("s");
        judge.take(Told::Gap { subscription: "s".into(), reason: "dropped".into() });
        judge.take(Told::Ended { reason: "superseded".into() });
        judge.take(Told::Rejected { subscription: "s".into(), code: "INVALID".into() });
        assert_eq!(judge.faults(), Vec::<String>::new());
    }
}
