//! Sessions begin, are acked, beat and end.

use wire::{Ack, ErrorCode, Welcome};

use super::Shard;
use super::work::LeftBehind;
use crate::session::{Item, Sent, Session, Waiting};
use crate::subscription::{GatewayId, SubId};
use crate::{ConnectionId, Output, Reload, ShardLimits};

impl Shard {
    pub(super) fn on_hello(&mut self, connection: ConnectionId, name: &str, can_verify: bool, out: &mut Vec<Output>) {
        if let Some(gateway) = self.session_of(connection) {
            self.stats.protocol_violations += 1;
            self.refuse(gateway, ErrorCode::ProtocolViolation, "a second hello on one connection".into(), out);
            return;
        }
        if let Some(gateway) = self.gateways.find(name)
            && self.gateways.session(gateway).is_some()
        {
            self.stats.sessions_superseded += 1;
            self.refuse(gateway, ErrorCode::Superseded, format!("a newer session of Gateway {name} took over"), out);
        }
        // Only now: one that had nothing but the old session was forgotten with it.
        let gateway = self.gateways.open(name);
        let Some(known) = self.gateways.get_mut(gateway) else { return };
        if known.last_mark > MARKS_MAX {
            // They start anew, and what was marked before is in no session any more.
            known.last_mark = 0;
            let ids: Vec<SubId> = self.subs.members(&known.members).map(|(id, _)| id).collect();
            for id in ids {
                if let Some(sub) = self.subs.get_mut(id) {
                    sub.set_mark(0);
                }
            }
        }
        known.session = Some(Session::new(connection, can_verify, self.time, known.last_mark, self.log.next()));
        self.connections.insert(connection, gateway);
        self.stats.sessions_opened += 1;
        let config = &self.config;
        let welcome = Welcome {
            epoch: config.epoch,
            partition: config.partition,
            slots: config.slots,
            shards: config.shards.clone(),
            received_deadline_ms: u32::try_from(config.received_deadline_ms).unwrap_or(u32::MAX),
            heartbeat_ms: u32::try_from(config.heartbeat_ms).unwrap_or(u32::MAX),
            max_body_bytes: config.body_bytes_max,
            mapping: config.mapping_name.clone(),
        };
        out.push(Output::Reply { connection, reply: wire::Reply::Welcome(Box::new(welcome)) });
    }

    pub(super) fn on_disconnected(&mut self, connection: ConnectionId) {
        if let Some(gateway) = self.session_of(connection) {
            self.end_session(gateway);
        }
    }

    /// What it was sent and isn't done with stays owed. Requests that wait for the control side are given up.
    pub(super) fn end_session(&mut self, gateway: GatewayId) {
        let time = self.time;
        let Some(known) = self.gateways.get_mut(gateway) else { return };
        let Some(session) = known.session.take() else { return };
        known.session_ended_at = time;
        known.last_mark = session.last_mark();
        known.ended = (session.base(), session.done());
        self.connections.remove(&session.connection);
        let waiting = session.queue.iter().filter_map(|item| match item {
            Item::Resync { sub, reason } => Some((*sub, *reason)),
            _ => None,
        });
        let in_flight = session.in_flight.iter().filter_map(|sent| match sent.sent {
            Sent::Resync { sub, reason } => Some((sub, reason)),
            Sent::Entry { .. } | Sent::OfPass { .. } => None,
        });
        for (sub, reason) in in_flight.chain(waiting) {
            if self.subs.get(sub).is_some() {
                self.subs.rare_mut(sub).broken = Some(reason);
            }
        }
        for waiting in session.requests {
            // What is still being asked is counted in when the answer comes.
            if let Waiting::Subscribe { items, states, .. } = waiting {
                let (items, states) = (items.into_iter(), states.into_iter());
                self.rows.left_behind.push_back(LeftBehind::Items { gateway, items, states });
            }
        }
        self.stats.outboxes_full -= u64::from(session.full);
        self.stats.outboxes_pressing -= u64::from(session.pressing);
        for waits in session.waits {
            self.passes.want(waits.backend, gateway, waits.wanted, None);
            self.passes.serve(waits.backend, -(waits.served.len() as i64));
            self.rows.left_behind.extend([waits.waiting, waits.served].map(LeftBehind::Waiting));
        }
        self.rows.left_behind.push_back(LeftBehind::Queue(session.queue));
        self.rows.left_behind.push_back(LeftBehind::InFlight(session.in_flight));
        self.gateways.forget_if_idle(gateway);
    }

    pub(super) fn on_go_away(&mut self, within_ms: u32, out: &mut Vec<Output>) {
        for gateway in self.gateways.ids() {
            self.queue(gateway, Item::GoAway { within_ms, reason: ErrorCode::ShuttingDown }, out);
        }
    }

    pub(super) fn on_reload(&mut self, reload: Reload, out: &mut Vec<Output>) {
        let ShardLimits {
            outbox_bytes_max,
            outbox_events_max,
            ttl_default_s,
            ttl_min_s,
            ttl_max_s,
            subscribe_items_max,
        } = reload.limits;
        let config = &mut self.config;
        config.outbox_bytes_max = outbox_bytes_max;
        config.outbox_events_max = outbox_events_max;
        (config.ttl_default_s, config.ttl_min_s, config.ttl_max_s) = (ttl_default_s, ttl_min_s, ttl_max_s);
        config.subscribe_items_max = subscribe_items_max;
        for name in reload.revoked {
            if let Some(gateway) = self.gateways.find(&name) {
                let message = format!("the token of Gateway {name:?} is not good any more");
                self.refuse(gateway, ErrorCode::Unauthorized, message, out);
            }
        }
    }

    pub(super) fn on_ack(&mut self, connection: ConnectionId, ack: Ack, out: &mut Vec<Output>) {
        let Some(gateway) = self.session_of(connection) else {
            self.stats.acks_stale += 1;
            return;
        };
        let Some(session) = self.gateways.session_mut(gateway) else { return };
        let done = session.done();
        if let Err(bad) = session.ack(ack) {
            self.stats.protocol_violations += 1;
            self.refuse(gateway, ErrorCode::ProtocolViolation, bad.to_string(), out);
            return;
        }
        if session.done() > done {
            session.progress_at = self.time;
        }
        self.samples.acked(session);
        self.settle_done(gateway);
        self.has_drained(gateway);
    }

    pub(super) fn on_tick(&mut self, out: &mut Vec<Output>) {
        if self.time >= self.expiry_check_at {
            self.expiry_check_at = self.time + self.config.expiry_check_ms;
            self.start_check();
        }
        self.hot.tick(self.time);
        self.give_credit();
        self.look_at_lineages();
        self.slice(out);
        for gateway in self.gateways.ids() {
            self.answer_on_credit(gateway, out);
            self.check_received(gateway, out);
            self.beat(gateway, out);
            self.look_at_pressure(gateway);
        }
    }

    fn check_received(&mut self, gateway: GatewayId, out: &mut Vec<Output>) {
        let Some(session) = self.gateways.session(gateway) else { return };
        let Some((seq, sent_at)) = session.unreceived.front().copied() else { return };
        let deadline_ms = self.config.received_deadline_ms;
        if sent_at + deadline_ms <= self.time {
            self.stats.sessions_past_received_deadline += 1;
            let message = format!("entry {seq} was not acked as received within {deadline_ms} ms");
            self.refuse(gateway, ErrorCode::ReceivedDeadline, message, out);
        }
    }

    /// Tells positions: soon after a quiet stream's have moved, and in any case every so often, also between events, for
    /// subscriptions that have none.
    fn beat(&mut self, gateway: GatewayId, out: &mut Vec<Output>) {
        let received = self.marks.received();
        let Some(session) = self.gateways.session_mut(gateway) else { return };
        let since = self.time.saturating_sub(session.heartbeat_at);
        let moved = session.queue.is_empty() && session.positions_told != *received;
        if session.heartbeat_queued || !(since >= self.config.heartbeat_ms || (moved && since >= self.config.quiet_ms))
        {
            return;
        }
        session.heartbeat_queued = true;
        session.heartbeat_at = self.time;
        session.positions_told.clone_from(received);
        let positions = received.clone();
        self.queue(gateway, Item::Heartbeat(positions), out);
    }
}

/// Where a Gateway's sessions start to count anew. A session has as many handles as are left above it.
const MARKS_MAX: u32 = u32::MAX / 2;
