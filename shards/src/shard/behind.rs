//! Catch-up: subscriptions that lack what the log can't give them, and the passes over the source's history that bring it.
//!
//! Invariants:
//! - What the live stream of a backend brings is not told to a subscription that is behind for it. What a pass brings is told to those
//!   that it serves, above the place where each of them stands; that place moves on with it.
//! - So whoever a pass has served to its end has everything up to there, exactly, and what the live stream brings after that item of the
//!   ring is for it again. That is found when it is hit by either, or in its turn, whichever is first.
//! - A session's lists hold those of its subscriptions that are behind, unless the pass that served them has ended.
//! - From its binding, or from falling behind, to the `CaughtUp` or `Resync` that ends it, a Gateway knows that a subscription is behind,
//!   and no heartbeat that could be taken to speak of it is sent in between.

use std::collections::BTreeSet;

use wire::{BackendId, Position, ResyncReason};

use super::Shard;
use super::work::{BIND_UNITS, Units};
use crate::passes::End;
use crate::session::Item;
use crate::stats::{CatchUpWanted, Cause};
use crate::subscription::{Behind, GatewayId, Lost, PassKey, SubId, earlier, later};
use crate::{CatchUpFailure, Output};

/// Subscriptions whose pass has ended, and that haven't been told.
#[derive(Debug)]
pub(super) struct PassEnded {
    pub(super) backend: BackendId,
    /// None: their history is over, and no pass will serve them.
    pub(super) pass: Option<u64>,
    pub(super) subs: BTreeSet<(PassKey, SubId)>,
}

/// How a subscription is found to be behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Falls {
    /// Something new is not put into the log for it.
    Ahead,
    /// Something that waits for it is given up, and all that stands behind that.
    Back,
    /// It is about to be bound, and it is known where its application is.
    Anew,
}

impl Shard {
    /// What the shard wants of the catch-up cursors.
    pub fn catch_up_wanted(&self) -> CatchUpWanted {
        self.passes.wanted()
    }

    /// [`CatchUpWanted::version`] alone, which costs nothing to ask for.
    pub fn catch_up_version(&self) -> u64 {
        self.passes.version()
    }

    /// It lacks what comes after `at`: that is read from the history.
    pub(super) fn fall_behind(&mut self, id: SubId, at: Position, how: Falls, cause: Cause, out: &mut Vec<Output>) {
        let backend = at.backend;
        let Some(sub) = self.subs.get(id) else { return };
        let gateway = self.subs.gateway_of(sub);
        let is_bound = self.gateways.session(gateway).is_some_and(|session| session.has_bound(sub));
        let is_new = !self.subs.is_behind(id);
        let since = self.stops_waiting(id, backend);
        let next = self.log.next();
        let rare = self.subs.rare_mut(id);
        let at = match rare.behind_mut(backend) {
            Some(behind) => {
                if how == Falls::Anew {
                    (behind.at, behind.done) = (at, at);
                }
                (behind.at, behind.done) = (earlier(behind.at, at), earlier(behind.done, at));
                behind.at
            }
            None => {
                rare.behind.push(Behind { at, done: at, pass: 0, key: at.order() });
                at
            }
        };
        if how != Falls::Ahead {
            rare.skip(next, at);
        }
        if is_new {
            self.stats.subscriptions_behind += 1;
            self.stats.catch_ups.count(cause);
        }
        if how != Falls::Ahead && self.may_be_owed(gateway, id) {
            self.forgive_later(gateway);
        }
        if !is_bound {
            return;
        }
        if how == Falls::Back
            && let Some(session) = self.gateways.session_mut(gateway)
        {
            session.drop_heartbeat();
        }
        if is_new {
            self.queue(gateway, Item::CatchingUp(id), out);
        }
        self.starts_waiting(id, backend, since);
    }

    /// It waits for the next pass that can serve it. `since`: the pass that has served it so far.
    pub(super) fn starts_waiting(&mut self, id: SubId, backend: BackendId, since: Option<u64>) {
        let Some(gateway) = self.subs.get(id).map(|sub| self.subs.gateway_of(sub)) else { return };
        let Some(at) = self.subs.behind(id, backend).map(|behind| behind.at) else { return };
        let Some(session) = self.gateways.session_mut(gateway) else { return };
        let (pass, is_running) = self.passes.next_for(&at, since);
        let key = at.order();
        let waits = session.waits_for(backend);
        if is_running {
            waits.served.insert((key, id))
        } else {
            waits.waiting.insert((key, id))
        };
        self.passes.serve(backend, i64::from(is_running));
        if let Some(behind) = self.subs.rare_mut(id).behind_mut(backend) {
            (behind.pass, behind.key) = (pass, key);
        }
        self.told_of_wants(gateway);
    }

    /// Takes it off its session's lists. Gives the running pass, if that has served it.
    fn stops_waiting(&mut self, id: SubId, backend: BackendId) -> Option<u64> {
        let gateway = self.subs.get(id).map(|sub| self.subs.gateway_of(sub))?;
        let key = self.subs.behind(id, backend)?.key;
        let session = self.gateways.session_mut(gateway)?;
        let waits = session.waits.iter_mut().find(|waits| waits.backend == backend)?;
        let was_served = waits.served.remove(&(key, id));
        if !was_served && waits.waiting.remove(&(key, id)) {
            self.told_of_wants(gateway);
        }
        self.passes.serve(backend, -i64::from(was_served));
        let running = self.passes.running(backend).map(|pass| pass.number);
        running.filter(|_| was_served)
    }

    /// A session's lists, or how much it holds, have changed.
    pub(super) fn told_of_wants(&mut self, gateway: GatewayId) {
        let limits = self.config.outbox();
        let Some(session) = self.gateways.session_mut(gateway) else { return };
        let is_open = session.is_open(limits);
        for waits in &mut session.waits {
            let first = waits.waiting.first().map(|(key, _)| *key).filter(|_| is_open);
            let before = std::mem::replace(&mut waits.wanted, first);
            self.passes.want(waits.backend, gateway, before, first);
        }
    }

    /// The session holds less than before: what fell behind may be read for, and what is new is for it again.
    pub(super) fn has_drained(&mut self, gateway: GatewayId) {
        let limits = self.config.outbox();
        let Some(session) = self.gateways.session_mut(gateway) else { return };
        if session.full && !session.holds_more_than(limits, crate::session::LOW_SHARE) {
            session.full = false;
            self.stats.outboxes_full -= 1;
        }
        if !session.waits.is_empty() {
            self.told_of_wants(gateway);
        }
        self.look_at_pressure(gateway);
    }

    /// The session holds more than before, and much.
    pub(super) fn has_swollen(&mut self, gateway: GatewayId) {
        let limits = self.config.outbox();
        let Some(session) = self.gateways.session_mut(gateway) else { return };
        if !session.full && session.holds_more_than(limits, 1) {
            session.full = true;
            self.stats.outboxes_full += 1;
            self.stats.outbox_overruns += 1;
        }
        if !session.waits.is_empty() {
            self.told_of_wants(gateway);
        }
        self.look_at_pressure(gateway);
    }

    /// It lacks nothing more of a backend. What it was behind, if it was.
    pub(super) fn is_behind_no_more(&mut self, id: SubId, backend: BackendId) -> Option<Behind> {
        self.subs.behind(id, backend)?;
        self.stops_waiting(id, backend);
        let rare = self.subs.rare_mut(id);
        let behind = rare.take_behind(backend)?;
        self.stats.subscriptions_behind -= u64::from(rare.behind.is_empty());
        Some(behind)
    }

    /// It is no longer waited for in anything that it was behind for: it ends, or is told to begin anew.
    pub(super) fn gives_up_catching_up(&mut self, id: SubId) {
        while let Some(backend) = self.subs.rare(id).and_then(|rare| rare.behind.first()).map(|first| first.at.backend)
        {
            self.is_behind_no_more(id, backend);
        }
    }

    /// It has everything up to there, and what comes after it is for it again.
    pub(super) fn meets_the_live_stream(&mut self, id: SubId, at: Position, out: &mut Vec<Output>) {
        let Some(behind) = self.is_behind_no_more(id, at.backend) else { return };
        let received = self.marks.received().covers(&at);
        // From before that, the log has nothing of it.
        self.subs.advance_tail(id, &at);
        let Some(sub) = self.subs.get(id) else { return };
        let gateway = self.subs.gateway_of(sub);
        let session =
            self.gateways.session(gateway).filter(|session| session.has_bound(sub)).map(|session| session.base());
        let next = self.log.next();
        let rare = self.subs.rare_mut(id);
        if !received {
            rare.floor.advance(at);
        }
        let Some(session) = session else { return };
        if behind.done != behind.at {
            rare.lose(Lost { from: behind.done, session, seq: None, before: next });
        }
        if rare.behind.is_empty() {
            self.stats.catch_ups.caught_up += 1;
            self.queue(gateway, Item::CaughtUp { sub: id, upto: next }, out);
        }
    }

    /// Acts on the end of the pass that served it, if that has ended.
    pub(super) fn look_at_pass(&mut self, id: SubId, backend: BackendId, out: &mut Vec<Output>) {
        let Some(sub) = self.subs.get(id) else { return };
        let gateway = self.subs.gateway_of(sub);
        let Some(session) = self.gateways.session(gateway).filter(|session| session.has_bound(sub)) else { return };
        let is_full = session.full;
        let Some(behind) = self.subs.behind(id, backend) else { return };
        let Some((pass, end)) = self.passes.ended(behind) else { return };
        match end {
            End::CaughtUp(at) if !is_full => self.meets_the_live_stream(id, at, out),
            End::TooSlow => self.resync(vec![id], ResyncReason::TooSlow, out),
            End::Lost(at, upto) if later(behind.at, at).is_covered_by(&upto) => {
                self.resync(vec![id], ResyncReason::HistoryLost, out);
            }
            // Nothing can be put into its Gateway's queue. What comes meanwhile is read by the next pass.
            End::CaughtUp(at) | End::Interrupted(at) | End::Lost(at, _) => {
                if let Some(behind) = self.subs.rare_mut(id).behind_mut(backend) {
                    if behind.done == behind.at {
                        behind.done = later(behind.done, at);
                    }
                    behind.at = later(behind.at, at);
                }
                match end {
                    End::CaughtUp(_) => self.stats.catch_ups.fallen_out += 1,
                    _ => self.stats.catch_ups.interrupted += 1,
                }
                self.starts_waiting(id, backend, Some(pass));
            }
        }
    }

    /// Whether what the live stream brings is for one that is live and has something rare.
    pub(super) fn live_is_for(&mut self, id: SubId, position: &Position, out: &mut Vec<Output>) -> bool {
        let backend = position.backend;
        if self.subs.behind(id, backend).is_some() {
            self.look_at_pass(id, backend, out);
        }
        if self.subs.behind(id, backend).is_some_and(|behind| behind.at.lineage != position.lineage) {
            self.resync(vec![id], ResyncReason::LineageChanged, out);
        }
        self.subs.behind(id, backend).is_none() && self.subs.is_above_floor(id, position)
    }

    /// Whether what a pass brings is for one that is live.
    pub(super) fn pass_is_for(&mut self, id: SubId, position: &Position, out: &mut Vec<Output>) -> bool {
        let backend = position.backend;
        if self.subs.behind(id, backend).is_none() {
            return false;
        }
        self.look_at_pass(id, backend, out);
        if !self.is_served_above(id, position) {
            return false;
        }
        let gateway = self.subs.get(id).map(|sub| self.subs.gateway_of(sub));
        let is_full = gateway.and_then(|gateway| self.gateways.session(gateway)).is_some_and(|session| session.full);
        if is_full {
            // It is left behind here, and nobody else is.
            self.stats.catch_ups.fallen_out += 1;
            let reached = self.passes.running(backend).map(|pass| pass.at);
            if let Some(behind) = self.subs.rare_mut(id).behind_mut(backend) {
                behind.at = reached.map_or(behind.at, |reached| later(behind.at, reached));
            }
            let since = self.stops_waiting(id, backend);
            self.starts_waiting(id, backend, since);
        }
        !is_full
    }

    /// Whether the running pass serves it, and it has not had what stands there.
    pub(super) fn is_served_above(&self, id: SubId, position: &Position) -> bool {
        let Some(sub) = self.subs.get(id) else { return false };
        let Some(pass) = self.passes.running(position.backend) else { return false };
        let bound = self.gateways.session(self.subs.gateway_of(sub)).is_some_and(|session| session.has_bound(sub));
        let is_above = |behind: &Behind| pass.serves(behind) && !position.is_covered_by(&behind.at);
        bound && self.subs.behind(id, position.backend).is_some_and(is_above)
    }

    pub(super) fn pass_begins(&mut self, number: u64, from: Position) {
        let backend = from.backend;
        if let Some(running) = self.passes.running(backend).copied() {
            debug_assert!(false, "a pass begins while another one runs");
            self.pass_ends(backend, running.number, End::Interrupted(running.at));
        }
        if !self.passes.begin(number, from) {
            return;
        }
        self.stats.catch_ups.passes += 1;
        let mut serving = 0;
        for gateway in self.gateways.ids() {
            let Some(session) = self.gateways.session_mut(gateway) else { continue };
            let Some(waits) = session.waits.iter_mut().find(|waits| waits.backend == backend) else { continue };
            debug_assert!(waits.served.is_empty(), "served by no pass");
            // Nearly always all can be served, since it was asked for the lowest of them.
            let first = (from.order(), SubId::FIRST);
            waits.served = match waits.waiting.first() {
                Some(lowest) if *lowest < first => waits.waiting.split_off(&first),
                _ => std::mem::take(&mut waits.waiting),
            };
            serving += waits.served.len();
            self.told_of_wants(gateway);
        }
        self.passes.serve(backend, serving as i64);
    }

    pub(super) fn pass_goes_on(&mut self, number: u64, position: Position) {
        if let Some(pass) = self.passes.running_as(position.backend, number) {
            pass.at = later(pass.at, position);
        }
    }

    pub(super) fn pass_fails(&mut self, number: u64, backend: BackendId, failure: CatchUpFailure) {
        let Some(at) = self.passes.running_as(backend, number).map(|pass| pass.at) else { return };
        let end = match failure {
            CatchUpFailure::Interrupted => End::Interrupted(at),
            CatchUpFailure::HistoryLost { upto } => End::Lost(at, upto),
            CatchUpFailure::TooSlow => End::TooSlow,
        };
        self.pass_ends(backend, number, end);
    }

    pub(super) fn pass_ends(&mut self, backend: BackendId, number: u64, end: End) {
        if self.passes.running_as(backend, number).is_none() {
            return;
        }
        let mut lists = 0;
        for gateway in self.gateways.ids() {
            let Some(session) = self.gateways.session_mut(gateway) else { continue };
            let Some(waits) = session.waits.iter_mut().find(|waits| waits.backend == backend) else { continue };
            let subs = std::mem::take(&mut waits.served);
            if !subs.is_empty() {
                lists += 1;
                self.rows.passes_ended.push_back(PassEnded { backend, pass: Some(number), subs });
            }
        }
        self.passes.end(backend, end, lists);
    }

    /// Whoever waits for the rest of a history that is over waits in vain.
    pub(super) fn look_at_lineages(&mut self) {
        let received = self.marks.received();
        let over: Vec<Position> = self
            .passes
            .lineages()
            .filter_map(|(backend, lineage)| received.get(backend).filter(|now| now.lineage != lineage).copied())
            .collect();
        for Position { backend, lineage, .. } in over {
            self.passes.set_lineage(backend, lineage);
            for gateway in self.gateways.ids() {
                let Some(session) = self.gateways.session_mut(gateway) else { continue };
                let Some(waits) = session.waits.iter_mut().find(|waits| waits.backend == backend) else { continue };
                let served = std::mem::take(&mut waits.served);
                self.passes.serve(backend, -(served.len() as i64));
                for subs in [std::mem::take(&mut waits.waiting), served] {
                    if !subs.is_empty() {
                        self.rows.passes_ended.push_back(PassEnded { backend, pass: None, subs });
                    }
                }
                self.told_of_wants(gateway);
            }
        }
    }

    pub(super) fn end_passes_in_turn(&mut self, units: &mut Units, out: &mut Vec<Output>) {
        while !units.are_spent()
            && let Some(PassEnded { backend, pass, subs }) = self.rows.passes_ended.front_mut()
        {
            units.take(BIND_UNITS);
            let (backend, pass, next) = (*backend, *pass, subs.pop_first());
            match (next, pass) {
                (Some((_, id)), Some(_)) => self.look_at_pass(id, backend, out),
                (Some((_, id)), None) => self.look_at_lineage(id, backend, out),
                (None, pass) => {
                    pass.inspect(|pass| self.passes.worked_off(backend, *pass));
                    self.rows.passes_ended.pop_front();
                }
            }
        }
    }

    fn look_at_lineage(&mut self, id: SubId, backend: BackendId, out: &mut Vec<Output>) {
        let Some(at) = self.subs.behind(id, backend).map(|behind| behind.at) else { return };
        let now = self.marks.received().get(backend);
        if now.is_some_and(|now| now.lineage != at.lineage) {
            self.resync(vec![id], ResyncReason::LineageChanged, out);
        } else if self.is_unlisted(id, backend) {
            self.starts_waiting(id, backend, None);
        }
    }

    /// Whether it is behind and bound, and its session doesn't know.
    fn is_unlisted(&self, id: SubId, backend: BackendId) -> bool {
        let Some((sub, behind)) = self.subs.get(id).zip(self.subs.behind(id, backend)) else { return false };
        let session = self.gateways.session(self.subs.gateway_of(sub)).filter(|session| session.has_bound(sub));
        session.is_some_and(|session| !session.lists(backend, (behind.key, id)))
    }

    /// Panics where what is said of one that is behind disagrees.
    pub(super) fn check_behind(&self, id: SubId) {
        let Some(sub) = self.subs.get(id) else { return };
        let Some(rare) = self.subs.rare(id) else { return };
        let session = self.gateways.session(self.subs.gateway_of(sub)).filter(|session| session.has_bound(sub));
        for behind in &rare.behind {
            let backend = behind.at.backend;
            assert!(sub.is_live(), "{id:?} is behind what is not for it");
            assert!(behind.done.is_covered_by(&behind.at), "{id:?} is done with what it has not been given");
            let Some(session) = session else { continue };
            let listed = session.lists(backend, (behind.key, id));
            let ended = self.rows.passes_ended.iter().any(|list| list.subs.contains(&(behind.key, id)));
            assert!(listed || ended, "{id:?} is behind, and nobody knows");
            let waits = session.waits.iter().find(|waits| waits.backend == backend);
            let served = waits.is_some_and(|waits| waits.served.contains(&(behind.key, id)));
            let serves = self.passes.running(backend).is_some_and(|pass| pass.serves(behind));
            assert!(!listed || served == serves, "{id:?} is served, and isn't");
            assert!(!listed || self.passes.ended(behind).is_none(), "{id:?} waits, and its pass has ended");
        }
    }
}
