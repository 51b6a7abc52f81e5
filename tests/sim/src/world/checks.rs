//! What must be true at every step, and at the end.

use streamer_gateway::core::Status;
use wire::{Position, ResyncReason, SubscriptionKey};

use super::World;
use crate::{
    application::{Application, Taken},
    connection::Connection,
    node::Node,
    trace::note,
};

impl World {
    /// What an application was given that isn't judged by the oracle alone.
    pub(super) fn judge(&mut self, gateway: usize, taken: Taken) {
        match taken {
            Taken::Nothing | Taken::Notice => {}
            Taken::Change(key, id) => {
                self.outcome.deliveries += 1;
                note!(self, "the application of gateway {gateway} takes {:?} for {key:?}", id.order());
            }
            Taken::Gap(key, id) => {
                self.outcome.gaps += 1;
                note!(self, "the application of gateway {gateway} takes the gap at {:?} for {key:?}", id.order());
            }
            Taken::Lost { key, next_due, upto } => {
                self.outcome.gaps += 1;
                let lost = self.lost.iter().rfind(|(_, end)| *end == upto);
                let Some((after, _)) = lost else { panic!("{gateway} {key:?}: no history was lost up to {upto:?}") };
                let lost = next_due.is_none_or(|due| due > *after);
                assert!(
                    lost,
                    "{gateway} {key:?}: {next_due:?} is given up, though only what follows {after:?} was lost"
                );
            }
            Taken::Resync(key, reason) => {
                note!(self, "the application of gateway {gateway} starts over with {key:?}: {reason:?}");
                assert!(self.has_cause(reason), "{gateway} {key:?}: {reason:?} without a cause");
                *self.outcome.resyncs.entry(format!("{reason:?}")).or_default() += 1;
            }
            Taken::Closed(key, reason) => panic!("{gateway} {key:?}: ended ({reason:?}) though nobody asked for it"),
        }
    }

    /// Whether something that went wrong may lead to the subscription being told to start over.
    fn has_cause(&self, reason: ResyncReason) -> bool {
        match reason {
            ResyncReason::HistoryLost => self.history.has_forgotten(),
            ResyncReason::TooSlow => self.outcome.history_slow > 0,
            ResyncReason::LineageChanged | ResyncReason::PreimageMissing => false,
        }
    }

    /// A shard no longer counts these, because they have run out, which they may do only while their Gateway has no session.
    pub(super) fn ran_out(&mut self, shard: usize, gateway: &str, keys: Vec<SubscriptionKey>) {
        let gateway = self.by_name[gateway];
        let session = self.connections.iter().find(|one| {
            one.gateway == gateway
                && one.shard == shard
                && one.since.is_some()
                && one.has_shard()
                && one.closing.is_none()
        });
        for key in keys {
            let Some(_) = self.applications[gateway].get(&key) else { continue };
            note!(self, "{key:?} of gateway {gateway} runs out");
            if let Some(session) = session {
                panic!("{gateway} {key:?} runs out during the session of {:?}", session.id);
            }
            self.outcome.expired += 1;
            self.expired.insert((gateway, key));
        }
    }

    /// No checkpoint names a place that somebody isn't done with: whatever concerns a subscription at or before it was persisted by its
    /// application, or the subscription may start over, or is being caught up.
    pub(super) fn audit(&self, point: Position) {
        if self.config.log_is_short() || !self.lost.is_empty() {
            return;
        }
        for (gateway, application) in self.applications.iter().enumerate() {
            if self.absent.contains(&gateway) {
                continue;
            }
            for (key, subscription) in application.subscriptions() {
                let Some(persisted) = subscription.persisted.filter(|_| subscription.asks_at.is_none()) else {
                    continue;
                };
                if self.expired.contains(&(gateway, key.clone())) {
                    continue;
                }
                // What is read again for it holds no checkpoint back.
                let keeps_up = |node: &Node| node.shards.iter().any(|shard| shard.keeps_up(&application.name, key));
                if !self.node.as_ref().is_some_and(keeps_up) {
                    continue;
                }
                if let Some(due) = subscription.next_due(&self.history.expected, persisted) {
                    let name = &application.name;
                    assert!(
                        due > point.order() || due <= subscription.nobodys_upto,
                        "the checkpoint names {point}, but {name} {key:?} isn't done with {due:?}"
                    );
                }
            }
        }
    }

    /// Of the run of the node that is at its end.
    pub(super) fn count_shards(&mut self) {
        for shard in self.node.iter().flat_map(|node| &node.shards) {
            self.outcome.count_shard(&shard.stats());
        }
    }

    /// One shard at a time, for it walks over everything.
    pub(super) fn check_in_turn(&self) {
        if let Some(node) = &self.node {
            let shard = &node.shards[self.ticks % node.shards.len()];
            shard.check_invariants();
            assert_eq!(shard.stats().protocol_violations, 0, "a Gateway doesn't keep to the protocol");
        }
    }

    pub(super) fn check_gateway(&mut self, gateway: usize) {
        let application = &self.applications[gateway];
        let counters = application.core.status().counters;
        assert_eq!(counters.violations, 0, "{}: a shard doesn't keep to the protocol", application.name);
        self.outcome.duplicates_dropped += counters.duplicates_dropped;
        self.outcome.strays_ended += counters.strays_ended;
        self.outcome.begun_anew += counters.begun_anew;
    }

    pub(super) fn is_quiet(&mut self) -> bool {
        let Some(node) = &mut self.node else { return false };
        node.is_idle(&self.history)
            && !node.owes()
            && self.connections.iter().all(Connection::is_idle)
            && self.applications.iter().all(|one| {
                one.runs(self.now)
                    && one.has_asked()
                    && one.holds() == 0
                    && one.is_all_live()
                    && one.core.status().queued_items == 0
            })
    }

    pub(super) fn unrest(&mut self) -> String {
        let node = self.node.as_mut().map(|node| (node.is_idle(&self.history), node.owes()));
        let busy: Vec<_> = self.connections.iter().filter(|one| !one.is_idle()).map(|c| (c.gateway, c.shard)).collect();
        let state =
            |one: &Application| -> (usize, bool, Status) { (one.holds(), one.is_all_live(), one.core.status()) };
        let applications: Vec<_> = self.applications.iter().map(state).collect();
        let waiting: Vec<_> = self.applications.iter().map(Application::not_live).collect();
        format!(
            "not live {waiting:?}, node (idle, owes) {node:?}, busy connections {busy:?}, applications {applications:?}"
        )
    }

    /// Nobody lacks anything of what has happened.
    pub(super) fn reckon(&mut self) {
        for gateway in 0..self.applications.len() {
            self.check_gateway(gateway);
            for (key, subscription) in self.applications[gateway].subscriptions() {
                let last = subscription.last.unwrap_or_else(|| panic!("{gateway} {key:?} never began"));
                let missing = subscription.next_due(&self.history.expected, last);
                assert!(missing.is_none(), "{gateway} {key:?}: {missing:?} never came, the last was {last:?}");
            }
        }
        self.count_shards();
        self.outcome.changes = self.history.len() as u64;
        self.outcome.late_lookups = self.history.late_lookups;
    }
}
