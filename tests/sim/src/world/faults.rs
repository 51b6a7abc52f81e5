//! What goes wrong.

use rand::Rng;
use shards::{Input, Millis};
use streamer_gateway::core::{self as sdk, DisconnectReason};
use workload::GeneratedSubscription;

use super::{DEAD_MS_MAX, World};
use crate::{
    config::{Fault, HALVE_WITHIN_MS},
    expected::Number,
    trace::note,
};

impl World {
    /// Draws whether something goes wrong now, and has it happen.
    pub(super) fn fault(&mut self) {
        let drawn = self.faults.random_range(0..10_000);
        let Some((_, fault)) = self.strikes.iter().find(|(sum, _)| drawn < *sum) else { return };
        match fault {
            Fault::NodeCrash => self.crash_node(),
            Fault::Disconnect => self.disconnect(),
            Fault::HalfOpen => self.half_open(),
            Fault::GatewayCrash => {
                let away_ms = self.faults.random_range(0..500);
                self.kill_gateway(away_ms);
            }
            Fault::GatewayDead => {
                self.outcome.dead += 1;
                let away_ms = self.faults.random_range(500..DEAD_MS_MAX);
                self.kill_gateway(away_ms);
            }
            Fault::GatewayPause => {
                let (gateway, ms) = self.pick_gateway(3_000);
                note!(self, "gateway {gateway} stands still for {ms} ms");
                self.outcome.pauses += 1;
                self.applications[gateway].paused_until = self.now + ms;
            }
            Fault::GatewaySlow => {
                let (gateway, ms) = self.pick_gateway(1_000);
                note!(self, "the application of gateway {gateway} is slow for {ms} ms");
                self.outcome.slow += 1;
                self.applications[gateway].slow_until = self.now + ms;
            }
            Fault::SourceFailure => self.break_source(),
            Fault::HistoryLoss => {
                let kept = self.faults.random_range(0..20);
                note!(self, "the source forgets all but its last {kept} events");
                self.history.forget(kept);
                self.break_source();
            }
            Fault::Dropped => self.history.drop_collection(),
            Fault::Churn => self.churn(),
            Fault::SlowHistory => {
                let ms = self.faults.random_range(HALVE_WITHIN_MS / 2..HALVE_WITHIN_MS * 2);
                note!(self, "history is read by nobody for {ms} ms");
                self.outcome.history_slow += 1;
                self.history_slow_until = self.now + ms;
            }
            Fault::TornCheckpoint | Fault::RottenSlot | Fault::LateLookup | Fault::LateAsking => {
                unreachable!("they don't strike")
            }
        }
    }

    fn pick_gateway(&mut self, ms_max: u64) -> (usize, u64) {
        (self.faults.random_range(0..self.applications.len()), self.faults.random_range(1..ms_max))
    }

    fn crash_node(&mut self) {
        self.count_shards();
        let Some(mut node) = self.node.take() else { return };
        self.outcome.node_crashes += 1;
        self.outcome.node_crashes_owing += u64::from(node.owes());
        let torn = self.faults.random_ratio(self.config.odds(Fault::TornCheckpoint), 10_000);
        let kept = match self.faults.random_range(0..4) {
            0 => None,
            1 => Some(256),
            _ => torn.then(|| self.faults.random_range(0..256)),
        };
        self.outcome.checkpoints_torn += u64::from(node.is_saving() && kept.is_some_and(|kept| kept < 256));
        let at = node.position();
        note!(self, "the node crashes, having read up to {at:?}; kept of what it was saving: {kept:?}");
        node.crash(&self.disk, kept);
        self.node_returns_at = self.now + self.faults.random_range(0..500);
        // A process that dies is told of by its machine, a machine that dies by nobody.
        let silently = self.config.faults.contains(&Fault::HalfOpen) && self.faults.random_ratio(1, 4);
        for connection in &mut self.connections {
            if let Some(cut) = &mut connection.cut {
                cut.shard_at = None;
            }
        }
        self.connections.retain(|one| one.has_gateway());
        if silently {
            for at in 0..self.connections.len() {
                let ms = self.faults.random_range(0..2_000);
                self.cut(at, None, Some(ms));
            }
        } else {
            for id in self.connections.iter().map(|one| one.id).collect::<Vec<_>>() {
                self.hang_up(id, DisconnectReason::Lost("the node is gone".into()));
            }
        }
        self.old_acks.clear();
    }

    fn disconnect(&mut self) {
        if self.connections.is_empty() {
            return;
        }
        let at = self.faults.random_range(0..self.connections.len());
        self.outcome.disconnects += 1;
        self.hang_up(self.connections[at].id, DisconnectReason::Lost("the network".into()));
    }

    fn half_open(&mut self) {
        if self.connections.is_empty() {
            return;
        }
        let at = self.faults.random_range(0..self.connections.len());
        if self.connections[at].cut.is_none() {
            self.outcome.half_open += 1;
            let (shard_ms, gateway_ms) = (self.faults.random_range(0..4_000), self.faults.random_range(0..4_000));
            self.cut(at, Some(shard_ms), Some(gateway_ms));
        }
    }

    fn kill_gateway(&mut self, away_ms: u64) {
        let gateway = self.faults.random_range(0..self.applications.len());
        if self.applications[gateway].dead_until.is_some() {
            return;
        }
        note!(self, "gateway {gateway} is gone for {away_ms} ms");
        self.outcome.gateway_crashes += 1;
        self.outcome.gateway_crashes_owing += u64::from(self.applications[gateway].core.status().queued_items > 0);
        self.check_gateway(gateway);
        self.applications[gateway].die(self.now + away_ms);
        if self.config.odds(Fault::Churn) > 0 && self.faults.random_bool(0.5) {
            // While nobody is there to tell the node, so that what comes back asks for something else than the node has.
            let of_it = |number: &Number| self.subscriptions[number.0].gateway == gateway;
            let indices: Vec<usize> = (0..self.used.len()).filter(|at| of_it(&self.used[*at])).collect();
            for _ in 0..self.faults.random_range(1..4) {
                if !indices.is_empty() {
                    let index = indices[self.faults.random_range(0..indices.len())];
                    self.churn_at(index, true);
                }
            }
        }
        self.dialling.retain(|(_, of, ..)| *of != gateway);
        let silently = self.config.faults.contains(&Fault::HalfOpen) && self.faults.random_ratio(1, 4);
        for at in (0..self.connections.len()).rev() {
            if self.connections[at].gateway != gateway {
                continue;
            }
            if let Some(cut) = &mut self.connections[at].cut {
                cut.gateway_at = None;
                if cut.shard_at.is_none() {
                    self.connections.swap_remove(at);
                }
            } else if silently {
                let ms = self.faults.random_range(0..4_000);
                self.cut(at, Some(ms), None);
            } else {
                let connection = self.connections.swap_remove(at);
                self.give(connection.shard, Input::Disconnected { connection: connection.id });
            }
        }
    }

    /// The live stream breaks, and is opened again.
    fn break_source(&mut self) {
        let Some(node) = &mut self.node else { return };
        let at_time = self.faults.random_bool(0.3);
        node.break_pass(Millis(self.now));
        let Some(there) = node.reopen(&self.history, at_time) else { return };
        self.lost.append(&mut node.lost);
        self.outcome.source_failures += 1;
        self.outcome.histories_lost += u64::from(!there);
        let at = node.position();
        note!(self, "the stream breaks, and is opened again after {at:?}; still there: {there}");
    }

    /// One subscription ends, another begins; in one case of three under the same name, in this collection or in one that another
    /// shard owns.
    fn churn(&mut self) {
        // The same name again and again now and then, so that what was asked for before is still under way.
        let again = self.churned_last.filter(|_| self.faults.random_bool(0.5));
        let index = again.unwrap_or_else(|| self.faults.random_range(0..self.used.len()));
        let replaces = again.is_some() || self.faults.random_ratio(1, 3);
        self.churn_at(index, replaces);
    }

    fn churn_at(&mut self, index: usize, replaces: bool) {
        let old = self.used[index];
        self.churned_last = Some(index);
        let content = |one: &GeneratedSubscription| {
            (one.collection.clone(), one.filters.clone(), one.expr.clone(), one.transitions)
        };
        // What nobody has asked for yet has no place in the story.
        let is_known = |old: Number| {
            let old = &self.subscriptions[old.0];
            self.applications[old.gateway].has_ever_asked(&old.key)
        };
        let replaces = replaces && is_known(old);
        let may_replace = |number: &Number| {
            let (one, old) = (&self.subscriptions[number.0], &self.subscriptions[old.0]);
            one.key.tenant == old.key.tenant && content(one) != content(old)
        };
        let same = self.spare.iter().position(|spare| replaces && may_replace(spare));
        let Some(next) = same.map(|at| self.spare.swap_remove(at)).or_else(|| self.spare.pop()) else { return };
        self.used[index] = next;
        self.outcome.churned += 1;
        let (gateway, key) = (self.subscriptions[old.0].gateway, self.subscriptions[old.0].key.clone());
        self.expired.remove(&(gateway, key.clone()));
        let named = if same.is_some() { ", for another under the name" } else { "" };
        note!(self, "gateway {gateway} gives up {}/{}{named}", key.tenant, key.id);
        if same.is_some() {
            let next = &mut self.subscriptions[next.0];
            (next.gateway, next.key) = (gateway, key);
        } else {
            self.applications[gateway].unsubscribe(&key, sdk::Millis(self.now));
            self.serve(gateway);
        }
        self.subscribe(next);
    }
}
