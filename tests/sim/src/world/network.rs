//! Connections: dialled, carrying one message of one stream at a time, lost, and found to be lost.

use bytes::BytesMut;
use rand::Rng;
use shards::{ConnectionId, Input, Millis};
use streamer_gateway::core::{self as sdk, DisconnectReason, SessionId};
use wire::{Delivery, Positions, Registration, Reply, Request, SubscribeResult};

use super::World;
use crate::{
    broken::Broken,
    connection::{Connection, Cut},
    history::BACKEND,
    trace::note,
};

impl World {
    pub(super) fn dial(&mut self) -> bool {
        let runs = |gateway: &usize| self.applications[*gateway].runs(self.now);
        let due = self.dialling.iter().position(|(due, gateway, ..)| *due <= self.now && runs(gateway));
        let Some(index) = due else { return false };
        let (_, gateway, session, address) = self.dialling.swap_remove(index);
        let shard: Option<usize> = address.strip_prefix("shard:").and_then(|shard| shard.parse().ok());
        let there = self.node.as_ref().zip(shard).is_some_and(|(node, shard)| shard < node.shards.len());
        let now = sdk::Millis(self.now);
        if let (true, Some(shard)) = (there, shard) {
            self.next_connection += 1;
            let id = ConnectionId(self.next_connection);
            note!(self, "gateway {gateway} connects to shard {shard}: {id:?}");
            self.connections.push(Connection::new(id, gateway, session, shard, self.config.broken));
            self.applications[gateway].core.handle(sdk::Input::Connected { session }, now);
        } else {
            let reason = DisconnectReason::Unreachable("nobody there".into());
            self.applications[gateway].core.handle(sdk::Input::Disconnected { session, reason }, now);
        }
        self.serve(gateway);
        true
    }

    /// One message of one stream of one connection arrives.
    pub(super) fn connection(&mut self) -> bool {
        if self.connections.is_empty() {
            return false;
        }
        let at = self.scheduler.random_range(0..self.connections.len());
        let connection = &mut self.connections[at];
        if !connection.is_whole() {
            return false;
        }
        let (id, shard, gateway, session) = (connection.id, connection.shard, connection.gateway, connection.session);
        let runs = self.applications[gateway].runs(self.now);
        let now = sdk::Millis(self.now);
        let Some(node) = &mut self.node else { return false };
        match self.scheduler.random_range(0..10) {
            0..2 => match connection.requests.pop_front() {
                Some(Request::Hello(hello)) if connection.since.is_none() => {
                    connection.since = Some(node.position().unwrap_or_default());
                    let can_verify = hello.capabilities.can_verify;
                    self.inherit(at);
                    self.give(shard, Input::Hello { connection: id, gateway: hello.gateway, can_verify });
                }
                Some(mut request) => {
                    note!(self, "shard {shard} gets {} by {id:?}", shown_request(&request));
                    let forgets = [Broken::ReplayPastLiveFrom, Broken::BarrierSkippedAndPositionIgnored];
                    if self.config.broken.is_some_and(|broken| forgets.contains(&broken))
                        && let Request::Subscribe { items, .. } = &mut request
                    {
                        let has_all = |positions: &Positions| {
                            positions.get(*BACKEND).is_some_and(|position| Some(position.order()) >= node.position())
                        };
                        items.iter_mut().filter(|item| !has_all(&item.positions)).for_each(|item| {
                            item.positions = Positions::default();
                        });
                    }
                    self.give(shard, Input::Request { connection: id, request });
                }
                None => return false,
            },
            2..4 => match connection.take_ack() {
                Some(ack) => self.give(shard, Input::Ack { connection: id, ack }),
                None => return false,
            },
            4..6 if !runs => return false,
            4..6 => match connection.replies.pop_front() {
                Some(mut reply) => {
                    if self.config.broken == Some(Broken::LateAnswerBelieved)
                        && let Reply::Subscribed { results, .. } = &mut reply
                    {
                        results.iter_mut().for_each(|result| {
                            if let SubscribeResult::Accepted { registration, .. } = result {
                                *registration = Registration::Created;
                            }
                        });
                    }
                    self.applications[gateway].core.handle(sdk::Input::Reply { session, reply }, now);
                    self.serve(gateway);
                }
                None => {
                    let Some((code, message)) = connection.closing.clone() else { return false };
                    self.hang_up(id, DisconnectReason::Closed { code: Some(code), message });
                }
            },
            6..8 => {
                let max = self.scheduler.random_range(1..4_000);
                if !connection.ready || !connection.has_room() {
                    return false;
                }
                let mut bytes = BytesMut::new();
                if node.shards[shard].fill(id, Millis(self.now), max, &mut bytes) == 0 {
                    connection.ready = false;
                }
                let replayed = connection.replayed;
                connection.send(bytes);
                self.outcome.replays += u64::from(connection.replayed && !replayed);
            }
            _ => {
                if !runs || !self.applications[gateway].core.wants_delivery(session) {
                    return false;
                }
                let Some(delivery) = connection.deliveries.pop_front() else { return false };
                if self.trace.is_on() {
                    self.trace.push(self.now, format_args!("gateway {gateway} gets {} by {id:?}", shown(&delivery)));
                }
                let again = self.dropped_as_known(at, &delivery);
                self.applications[gateway].core.handle(sdk::Input::Delivery { session, delivery }, now);
                for (key, id) in again {
                    self.applications[gateway].take_again(&key, id);
                }
                self.serve(gateway);
            }
        }
        true
    }

    /// Where nobody checks positions: what of this the SDK may drop because the application has had it.
    fn dropped_as_known(&self, at: usize, delivery: &Delivery) -> Vec<(wire::SubscriptionKey, wire::Position)> {
        let connection = &self.connections[at];
        match delivery {
            Delivery::Events(entries) if self.config.broken == Some(Broken::PositionCheckOff) => entries
                .iter()
                .flat_map(|entry| entry.targets.iter().map(move |target| (target.handle, entry.id)))
                .filter_map(|(handle, id)| Some((connection.bound.get(&handle)?.clone(), id)))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Where acks of an old session count for the next one: what the new one takes over.
    fn inherit(&mut self, at: usize) {
        if self.config.broken == Some(Broken::OldSessionAcks) {
            let (gateway, shard) = (self.connections[at].gateway, self.connections[at].shard);
            self.connections[at].inherited = self.old_acks.remove(&(gateway, shard));
        }
    }

    /// Ends a connection for both sides; what was on the wire is gone.
    pub(super) fn hang_up(&mut self, id: ConnectionId, reason: DisconnectReason) {
        let Some(at) = self.connections.iter().position(|one| one.id == id) else { return };
        note!(self, "{id:?} ends: {reason}");
        let connection = self.connections.swap_remove(at);
        if self.config.broken == Some(Broken::OldSessionAcks) {
            self.old_acks.insert((connection.gateway, connection.shard), connection.acked);
        }
        if connection.has_shard() {
            self.give(connection.shard, Input::Disconnected { connection: id });
        }
        if connection.has_gateway() && self.applications[connection.gateway].dead_until.is_none() {
            let input = sdk::Input::Disconnected { session: connection.session, reason };
            self.applications[connection.gateway].core.handle(input, sdk::Millis(self.now));
            self.serve(connection.gateway);
        }
    }

    /// The connection carries nothing any more. `None`: that end knows already.
    pub(super) fn cut(&mut self, at: usize, shard_ms: Option<u64>, gateway_ms: Option<u64>) {
        let connection = &mut self.connections[at];
        note!(self, "{:?} is cut; the shard knows in {shard_ms:?} ms, the Gateway in {gateway_ms:?}", connection.id);
        let later = |ms: Option<u64>| ms.map(|ms| self.now + ms);
        connection.cut = Some(Cut { shard_at: later(shard_ms), gateway_at: later(gateway_ms) });
    }

    /// Ends of connections that were cut find out.
    pub(super) fn find_cuts(&mut self) {
        let mut at = 0;
        while at < self.connections.len() {
            let connection = &mut self.connections[at];
            let (id, shard, gateway, session) =
                (connection.id, connection.shard, connection.gateway, connection.session);
            let Some(cut) = &mut connection.cut else {
                at += 1;
                continue;
            };
            let shard_knows = cut.shard_at.take_if(|at| *at <= self.now).is_some();
            let gateway_knows = cut.gateway_at.take_if(|at| *at <= self.now).is_some();
            let over = cut.shard_at.is_none() && cut.gateway_at.is_none();
            if over {
                self.connections.swap_remove(at);
            } else {
                at += 1;
            }
            if shard_knows {
                note!(self, "shard {shard} finds out that {id:?} is gone");
                self.give(shard, Input::Disconnected { connection: id });
            }
            if gateway_knows && self.applications[gateway].dead_until.is_none() {
                note!(self, "gateway {gateway} finds out that {id:?} is gone");
                let reason = DisconnectReason::Lost("nothing is heard".into());
                self.applications[gateway]
                    .core
                    .handle(sdk::Input::Disconnected { session, reason }, sdk::Millis(self.now));
                self.serve(gateway);
            }
        }
    }

    /// Does what a Gateway's core asks for.
    pub(super) fn serve(&mut self, gateway: usize) {
        if self.applications[gateway].dead_until.is_some() {
            return;
        }
        while let Some(output) = self.applications[gateway].core.poll_output() {
            match output {
                sdk::Output::Connect { session, address, after_ms, .. } => {
                    self.dialling.push((self.now + after_ms, gateway, session, address));
                }
                sdk::Output::Request { session, request } => {
                    if let Some(connection) = self.of_session(gateway, session) {
                        connection.requests.push_back(request);
                    }
                }
                sdk::Output::Ack { session, mut ack } => {
                    if self.config.broken == Some(Broken::DoneBeforeHandedOn) {
                        ack.done = ack.received;
                    }
                    if let Some(connection) = self.of_session(gateway, session) {
                        connection.ack = Some(ack);
                    }
                }
                sdk::Output::Close { session, message, .. } => {
                    self.dialling.retain(|(_, of, dialled, _)| (*of, *dialled) != (gateway, session));
                    if let Some(connection) = self.of_session(gateway, session) {
                        let id = connection.id;
                        match &mut connection.cut {
                            // What it says doesn't reach the other end.
                            Some(cut) => cut.gateway_at = None,
                            None => self.hang_up(id, DisconnectReason::Lost(message)),
                        }
                    }
                }
                sdk::Output::Terminal(error) => panic!("{}: {error}", self.applications[gateway].name),
                sdk::Output::Resume { .. } | sdk::Output::Available => {}
            }
        }
    }

    fn of_session(&mut self, gateway: usize, session: SessionId) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|one| one.gateway == gateway && one.session == session && one.has_gateway())
    }
}

/// A request in a few words.
fn shown_request(request: &Request) -> String {
    match request {
        Request::Subscribe { items, .. } => {
            let items = items.iter().map(|item| {
                let from = item.positions.get(*BACKEND).map(wire::Position::order);
                format!("{}/{} from {from:?}", item.key.tenant, item.key.id)
            });
            format!("subscriptions: {}", items.collect::<Vec<_>>().join(", "))
        }
        other => format!("{other:?}"),
    }
}

/// A delivery in a few words.
fn shown(delivery: &Delivery) -> String {
    match delivery {
        Delivery::Events(entries) => {
            let entries = entries.iter().map(|entry| {
                let handles: Vec<u32> = entry.targets.iter().map(|target| target.handle.0).collect();
                format!("{} {:?} for {handles:?}", entry.seq, entry.id.order())
            });
            format!("entries {}", entries.collect::<Vec<_>>().join(", "))
        }
        Delivery::Bound(bound) => {
            let from = bound.live_from.get(*BACKEND).map(wire::Position::order);
            format!("handle {} for {}/{}, live from {from:?}", bound.handle.0, bound.key.tenant, bound.key.id)
        }
        Delivery::Heartbeat { last_seq, positions } => {
            format!("a heartbeat after {last_seq}, at {:?}", positions.get(*BACKEND).map(wire::Position::order))
        }
        other => format!("{other:?}"),
    }
}
