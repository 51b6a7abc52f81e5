//! What one core does, as a state machine: inputs and the time go in, outputs come out. No IO, no clock, no chance.
//!
//! Call [`Shard::handle`] with every input in the order in which it came, and do what the outputs say in their order. After an
//! [`Output::Ready`] call [`Shard::fill`] for that connection, whenever its stream takes bytes, until it writes nothing. After each
//! slice of work publish what [`Shard::take_filter`] gives, then what [`Shard::settled`] and [`Shard::sync_state`] say. Inputs that
//! have come are drained before an [`Input::Tick`]. What takes long is worked off in slices: call [`Shard::work`] once a round.
//!
//! Invariants:
//! - The delivery log and the Gateways' lists of its entries agree.
//! - A subscription is hit only while it is live, and is live only since the ingest thread routes by a filter that holds it.
//! - What is sent to a Gateway under a handle is in the source's order: replays are queued when the handle is bound, and only
//!   entries that come later are queued behind them.
//! - `time` is the time that was given less that for which the shard was stopped; all deadlines are in it.

mod behind;
mod binding;
mod commands;
mod delivery;
mod ingest;
mod life;
mod owing;
mod pressure;
mod requests;
mod sessions;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;
use wire::{ErrorCode, Positions};

use self::ingest::Batch;
use self::work::{Rows, Units};
use crate::config::{STALL_MS, ShardConfig};
use crate::expired::Expired;
use crate::filter::Filter;
use crate::gateway::Gateways;
use crate::hot::{Hot, HotPlace};
use crate::index::Index;
use crate::outbox::{Log, LogLimits, Marks};
use crate::passes::Passes;
use crate::sample::Samples;
use crate::session::{Item, Sent};
use crate::stats::{ShardStats, SubscriptionCounts, SyncState};
use crate::subscription::{GatewayId, Pending, Subscription, Subscriptions};
use crate::{ConnectionId, FilterSnapshot, FilterStep, Input, Millis, Output, Ticket};

#[derive(Debug)]
pub struct Shard {
    config: ShardConfig,
    index: Index,
    filter: Filter,
    /// Version of the filter that the ingest thread is known to route by. 0 before it said so for the first time.
    filter_seen: u64,
    subs: Subscriptions,
    /// Subscriptions that aren't live yet.
    pending: Pending,
    log: Log,
    marks: Marks,
    passes: Passes,
    pub(crate) gateways: Gateways,
    connections: HashMap<ConnectionId, GatewayId>,
    tickets: HashMap<Ticket, Asking>,
    last_ticket: u64,
    expired: Expired,
    sync: SyncState,
    stats: ShardStats,
    rows: Rows,
    /// What inputs may still use up before the next slice.
    credit: Units,

    time: u64,
    /// For how long the shard has been stopped in all.
    stopped_ms: u64,
    last_tick: Millis,
    expiry_check_at: u64,
    batch: Batch,
    /// What an event is sent for. Empty between two; kept for its memory.
    named: Vec<wire::Target>,
    pub(crate) samples: Samples,
    hot: Hot,
}

/// Whom an answer of the control side is for.
#[derive(Debug)]
struct Asking {
    gateway: GatewayId,
    connection: ConnectionId,
    /// Which of the session's requests it is about, counted from 0.
    request: u64,
    /// Places of the items in that request, and their keys.
    keys: Vec<(u32, wire::SubscriptionKey)>,
}

impl Shard {
    pub fn new(config: ShardConfig, now: Millis) -> Self {
        let limits = LogLimits { bytes_max: config.log_bytes_max, events_max: config.log_events_max };
        Self {
            index: Index::new(config.mapping.clone(), config.hash_seed),
            filter: Filter::new(config.filter, config.hash_seed),
            filter_seen: 0,
            subs: Subscriptions::new(config.hash_seed),
            pending: Pending::default(),
            log: Log::new(limits),
            marks: Marks::default(),
            passes: Passes::default(),
            gateways: Gateways::default(),
            connections: HashMap::new(),
            tickets: HashMap::new(),
            last_ticket: 0,
            expired: Expired::new(config.expired_remembered_max, config.hash_seed),
            sync: SyncState::default(),
            stats: ShardStats::default(),
            rows: Rows::default(),
            credit: Units::new(config.slice_units),
            time: now.0,
            stopped_ms: 0,
            last_tick: now,
            expiry_check_at: now.0 + config.expiry_check_ms,
            batch: Batch::default(),
            named: Vec::new(),
            samples: Samples::default(),
            hot: Hot::default(),
            config,
        }
    }

    /// Takes one input in, and appends what is to be done about it.
    pub fn handle(&mut self, input: Input, now: Millis, out: &mut Vec<Output>) {
        match input {
            Input::Tick => self.take_tick(now),
            _ => self.set_time(now),
        }
        match input {
            Input::Ingest(item) => self.ingest([item], now, out),
            Input::Request { connection, request } => self.on_request(connection, request, out),
            Input::Hello { connection, gateway, can_verify } => self.on_hello(connection, &gateway, can_verify, out),
            Input::Ack { connection, ack } => self.on_ack(connection, ack, out),
            Input::Disconnected { connection } => self.on_disconnected(connection),
            Input::Admitted { ticket, results } => self.on_admitted(ticket, results, out),
            Input::Command(command) => self.on_command(command, out),
            Input::FilterBuilt(built) => self.filter.built(built, self.time),
            Input::GoAway { within_ms } => self.on_go_away(within_ms, out),
            Input::Reload(reload) => self.on_reload(reload, out),
            Input::Tick => self.on_tick(out),
        }
    }

    /// The highest position of each backend such that nobody is owed anything at or before it. A backend of which nothing is
    /// settled isn't named.
    pub fn settled(&self) -> Positions {
        self.marks.settled(&self.log)
    }

    /// The filter to publish, if it isn't what was taken last. The first one has a version of at least 1.
    pub fn take_filter(&mut self) -> Option<FilterSnapshot> {
        self.filter.take()
    }

    /// Does the next slice of what the filter has to do beside answering. To be called after each slice of work, and again at once after
    /// [`FilterStep::More`]. What is to be built is run on another thread, and its result given back as [`Input::FilterBuilt`].
    pub fn step_filter(&mut self) -> FilterStep {
        self.filter.step(self.time)
    }

    /// What the registration barrier after a restart waits for.
    pub fn sync_state(&self) -> SyncState {
        self.sync.clone()
    }

    /// [`SyncState::version`] alone, which costs nothing to ask for.
    pub fn sync_version(&self) -> u64 {
        self.sync.version
    }

    pub fn stats(&self) -> ShardStats {
        let filter = self.filter.counts();
        ShardStats {
            sessions: self.connections.len() as u64,
            gateways: self.gateways.len() as u64,
            subscriptions: self.subs.len() as u64,
            subscriptions_pending: self.pending.len() as u64,
            log_events: self.log.len() as u64,
            log_bytes: self.log.bytes() as u64,
            log_unsettled: self.log.unsettled_entries() as u64,
            filter_keys: self.filter.len() as u64,
            filter_version: self.filter.version(),
            filter_delta_keys: filter.delta,
            filter_base_bytes: filter.base_bytes,
            filter_everything: u64::from(filter.everything),
            filter_false_positives: filter.false_positives,
            filter_stale: filter.stale,
            filter_builds: filter.builds,
            filter_builds_failed: filter.builds_failed,
            ..self.stats
        }
    }

    /// The collections with the most changes now.
    pub fn hot_places(&self) -> Vec<HotPlace> {
        self.hot.most(HOT_TOLD)
    }

    pub fn snapshot_subscriptions(&self) -> SubscriptionCounts {
        let mut by_gateway = BTreeMap::new();
        let mut by_tenant: BTreeMap<&Arc<str>, u64> = BTreeMap::new();
        for (_, gateway) in self.gateways.iter().filter(|(_, gateway)| !gateway.members.is_empty()) {
            by_gateway.insert(gateway.name.clone(), u64::from(gateway.members.count));
        }
        for (tenant, count) in self.subs.counts_by_tenant() {
            *by_tenant.entry(tenant).or_default() += u64::from(count);
        }
        SubscriptionCounts {
            by_gateway: by_gateway.into_iter().collect(),
            by_tenant: by_tenant.into_iter().map(|(tenant, count)| (tenant.clone(), count)).collect(),
        }
    }

    /// Whether a subscription is live, and whatever its Gateway isn't done with holds `settled` back: it lacks nothing that has to be read
    /// again from the source's history, nothing of that is on its way, and it isn't told to start over. For tests and simulators.
    pub fn keeps_up(&self, gateway: &str, key: &wire::SubscriptionKey) -> bool {
        let Some(gateway) = self.gateways.find(gateway) else { return false };
        let Some(id) = self.subs.find(gateway, key) else { return false };
        // What the sessions before hadn't done with is still being looked at.
        if !self.rows.left_behind.is_empty() {
            return false;
        }
        let is_plain = self.subs.get(id).is_some_and(|sub| sub.is_live())
            && self
                .subs
                .rare(id)
                .is_none_or(|rare| rare.behind.is_empty() && rare.lost.is_empty() && rare.broken.is_none());
        let Some(session) = self.gateways.session(gateway) else { return is_plain };
        let holds_back = |number| {
            let entry = self.log.get(number).filter(|entry| entry.of_pass);
            entry.is_none_or(|entry| entry.targets.iter().all(|target| target.sub != id))
        };
        let waits = session.queue.iter().all(|item| match item {
            Item::Resync { sub, .. } => *sub != id,
            item => item.number().is_none_or(holds_back),
        });
        let sent = session.in_flight.iter().all(|sent| match sent.sent {
            Sent::Resync { sub, .. } => sub != id,
            Sent::Entry { number, .. } | Sent::OfPass { number, .. } => holds_back(number),
        });
        is_plain && waits && sent
    }

    /// Panics where parts of the state disagree. For tests and simulators: it walks over everything.
    pub fn check_invariants(&self) {
        self.index.check_invariants();
        self.log.check_invariants();
        self.subs.check_invariants();
        self.pending.check_invariants();
        for (number, entry) in self.log.iter() {
            for (gateway, slice) in entry.slices() {
                let gateway = self.gateways.get(gateway).expect("a Gateway with log entries is known");
                assert!(gateway.log.binary_search(&number).is_ok(), "entry {number} isn't listed at its Gateway");
                let unsettled = entry.targets[slice.range()].iter().filter(|target| !target.settled());
                for target in unsettled {
                    assert!(number >= gateway.cleared, "entry {number} is owed below what is cleared");
                    let waits = self.subs.get(target.sub).is_some()
                        && !self.subs.is_skipped(target.sub, number, &entry.position);
                    assert!(waits || gateway.forgiving.is_some(), "entry {number} is owed to nobody, for good");
                    let is_known = |sub: &Subscription| sub.may_be_told_from(number);
                    assert!(self.subs.get(target.sub).is_none_or(is_known), "entry {number} is owed in secret");
                }
            }
        }
        let mut waiting = 0;
        let mut behind = 0;
        for (id, sub) in self.subs.iter() {
            behind += u64::from(self.subs.is_behind(id));
            self.check_behind(id);
            assert!(self.gateways.get(self.subs.gateway_of(sub)).is_some(), "{id:?} is of no known Gateway");
            waiting += usize::from(!sub.is_live());
            let rest = self.subs.rest(id).filter(|_| !sub.is_live());
            let number = rest.map(|rest| rest.pending_number());
            assert!(number.is_none_or(|number| self.pending.is(number, id)), "{id:?} waits somewhere else");
        }
        assert_eq!(waiting, self.pending.len(), "those that aren't live, and those that wait");
        assert_eq!(behind, self.stats.subscriptions_behind, "those that are behind");
        let waits = || self.gateways.iter().filter_map(|(_, gateway)| gateway.session.as_ref()).flat_map(|s| &s.waits);
        let served = |backend| waits().filter(|waits| waits.backend == backend).map(|w| w.served.len() as u64).sum();
        self.passes.check_invariants(served, waits().filter(|waits| waits.wanted.is_some()).count());
        let pressing = self.gateways.iter().filter(|(_, known)| known.session.as_ref().is_some_and(|s| s.pressing));
        assert_eq!(pressing.count() as u64, self.stats.outboxes_pressing, "those that press");
        let mut sessions = 0;
        for (id, gateway) in self.gateways.iter() {
            let mut count = 0;
            let mut by_http = 0;
            for (member, sub) in self.subs.members(&gateway.members) {
                assert_eq!(self.subs.gateway_of(sub), id, "{member:?} is another Gateway's");
                count += 1;
                by_http += u32::from(!sub.is_kept_by_session());
            }
            assert_eq!(
                (count, by_http),
                (gateway.members.count, gateway.members.by_http),
                "members of {}",
                gateway.name
            );
            for number in &gateway.log {
                let entry = self.log.get(*number).expect("a listed entry is in the log");
                assert!(entry.slice(id).is_some(), "entry {number} is listed at a Gateway that it has no targets of");
            }
            if let Some(session) = &gateway.session {
                session.check_invariants();
                for waits in &session.waits {
                    for (key, sub) in waits.waiting.iter().chain(&waits.served) {
                        let behind = self.subs.behind(*sub, waits.backend).expect("who is listed is behind");
                        assert_eq!(behind.key, *key, "{sub:?} stands elsewhere");
                    }
                }
                assert_eq!(self.connections.get(&session.connection), Some(&id), "a session without its connection");
                sessions += 1;
            }
        }
        let members: usize = self.gateways.iter().map(|(_, gateway)| gateway.members.count as usize).sum();
        assert_eq!(members, self.subs.len(), "subscriptions of no Gateway");
        assert_eq!(sessions, self.connections.len(), "connections without a session");
    }

    /// Between two ticks, time runs on by no more than a stall: what is more than that, the tick takes for one.
    fn set_time(&mut self, now: Millis) {
        let now = now.0.min(self.last_tick.0 + STALL_MS);
        self.time = self.time.max(now.saturating_sub(self.stopped_ms));
    }

    /// A shard that did not run could not be told what would have kept anybody alive: a tick that comes too late moves all
    /// deadlines, by letting time stand still for as long.
    fn take_tick(&mut self, now: Millis) {
        if now.0.saturating_sub(self.last_tick.0) > STALL_MS {
            self.stats.stalls += 1;
            self.stopped_ms = now.0 - self.time;
        }
        self.last_tick = self.last_tick.max(now);
        self.set_time(now);
    }

    fn session_of(&self, connection: ConnectionId) -> Option<GatewayId> {
        self.connections.get(&connection).copied()
    }

    /// Puts something at the end of a session's delivery stream. Without a session it is dropped.
    fn queue(&mut self, gateway: GatewayId, item: Item, out: &mut Vec<Output>) {
        let Some(session) = self.gateways.session_mut(gateway) else { return };
        if session.enqueue(item) {
            out.push(Output::Ready { connection: session.connection });
        }
    }

    /// Ends a session for a reason that its Gateway is told.
    fn refuse(&mut self, gateway: GatewayId, code: ErrorCode, message: String, out: &mut Vec<Output>) {
        let Some(connection) = self.gateways.session(gateway).map(|session| session.connection) else { return };
        out.push(Output::Reply { connection, reply: wire::Reply::Refused { code, message: message.clone() } });
        out.push(Output::Close { connection, code, message });
        self.end_session(gateway);
    }
}

/// Hot collections that are told. The sketch keeps more, so that these are right.
const HOT_TOLD: usize = 10;

#[cfg(test)]
mod tests;
