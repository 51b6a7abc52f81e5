//! The scheduler: draws what happens next until all has been written, then lets everything arrive and reckons.

use std::collections::{BTreeMap, HashMap};

use bytes::BytesMut;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shards::{ConnectionId, Input, Millis, Output};
use streamer_gateway::core::{self as sdk, DisconnectReason, SessionId};
use wire::{Request, SubscriptionKey};
use workload::{GeneratedSubscription, Generator, Oracle, Preset, Profile};

use crate::{
    application::Application,
    config::{Broken, Outcome, SimConfig},
    connection::Connection,
    history::History,
    node::{self, Compiled, Durable, Fate, Node},
};

/// Milliseconds between two ticks of a shard.
const TICK_MS: u64 = 50;

/// Steps that the end may take; more means that something never comes to rest.
const SETTLING_STEPS_MAX: u64 = 2_000_000;

/// An audit asks the oracle about all that has happened, so only every so many checkpoints are audited.
const CHECKPOINTS_PER_AUDIT: u64 = 100;

struct World {
    config: SimConfig,
    history: History,
    oracle: Oracle,
    compiled: Compiled,
    scheduler: ChaCha8Rng,
    faults: ChaCha8Rng,
    builder: ChaCha8Rng,
    now: u64,
    node: Option<Node>,
    node_returns_at: u64,
    starts: u128,
    saved: Option<Durable>,
    applications: Vec<Application>,
    /// Attempts to connect, by the time they are due.
    dialling: Vec<(u64, usize, SessionId, String)>,
    connections: BTreeMap<ConnectionId, Connection>,
    next_connection: u64,
    spare: Vec<GeneratedSubscription>,
    used: Vec<GeneratedSubscription>,
    tick_at: u64,
    written: usize,
    checkpoints: u64,
    outcome: Outcome,
}

/// Runs one world to its end.
///
/// # Panics
/// When a promise is broken, with the seed.
pub fn run(config: SimConfig) -> Outcome {
    let seed = config.seed;
    let result = std::panic::catch_unwind(move || World::new(config).run());
    result.unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        panic!("seed {seed}: {message}")
    })
}

impl World {
    fn new(config: SimConfig) -> Self {
        let generator = Generator::new(Profile::test(config.seed));
        let mut spare = generator.subscriptions(config.subscriptions * 2);
        let used = spare.drain(..config.subscriptions).collect();
        let stream = |number| {
            let mut random = ChaCha8Rng::seed_from_u64(config.seed);
            random.set_stream(number);
            random
        };
        let names = generator.profile().gateways;
        let address = node::address(0);
        let applications = (0..names)
            .map(|index| {
                let name = workload::generate::gateway_name(index);
                let early = config.broken == Some(Broken::PositionBeforeDone);
                Application::new(name, config.seed * 1_000 + index as u64 * 100, &address, early, sdk::Millis(0))
            })
            .collect();
        Self {
            history: History::new(&generator, config.before_images),
            oracle: Oracle::new(Preset::Syntrix),
            compiled: HashMap::new(),
            scheduler: stream(101),
            faults: stream(102),
            builder: stream(103),
            now: 0,
            node: None,
            node_returns_at: 0,
            starts: 0,
            saved: None,
            applications,
            dialling: Vec::new(),
            connections: BTreeMap::new(),
            next_connection: 0,
            spare,
            used,
            tick_at: 0,
            written: 0,
            checkpoints: 0,
            outcome: Outcome::default(),
            config,
        }
    }

    fn run(mut self) -> Outcome {
        for subscription in self.used.clone() {
            self.subscribe(&subscription);
        }
        while self.written < self.config.transactions {
            self.step();
            self.fault();
        }
        let settled_by = self.outcome.steps + SETTLING_STEPS_MAX;
        while !self.is_quiet() {
            self.step();
            assert!(self.outcome.steps < settled_by, "the world doesn't come to rest: {}", self.unrest());
        }
        self.reckon();
        self.outcome
    }

    fn subscribe(&mut self, subscription: &GeneratedSubscription) {
        self.oracle.subscribe(subscription.to_oracle()).expect("generated subscriptions are good");
        let now = sdk::Millis(self.now);
        self.applications[subscription.gateway].subscribe(subscription.to_item(), now);
        self.serve(subscription.gateway);
    }

    fn step(&mut self) {
        self.outcome.steps += 1;
        self.now += u64::from(self.scheduler.random_ratio(1, 4));
        if self.now >= self.tick_at {
            self.tick();
        }
        self.build_filters();
        match self.scheduler.random_range(0..100) {
            0..4 => {
                if self.written < self.config.transactions && self.node.is_some() {
                    self.history.write();
                    self.written += 1;
                }
            }
            4..14 => self.ingest(),
            14..34 => self.shard(),
            34..40 => self.registrar(),
            40..75 => self.connection(),
            75..97 => self.application(),
            97..98 => {
                // Writing goes on while the node is down.
                if self.written < self.config.transactions {
                    self.history.write();
                    self.written += 1;
                }
            }
            _ => self.dial(),
        }
    }

    // ---- the node ----

    fn tick(&mut self) {
        self.tick_at = self.now + TICK_MS;
        if self.node.is_none() && self.now >= self.node_returns_at {
            let shards = self.scheduler.random_range(1..=self.config.shards_max);
            self.starts += 1;
            self.node = Some(Node::start(shards, self.starts, self.saved.clone(), &self.config, Millis(self.now)));
        }
        let shards = self.node.as_ref().map_or(0, |node| node.shards.len());
        for shard in 0..shards {
            self.give(shard, Input::Tick);
            if let Some(node) = &self.node {
                node.shards[shard].check_invariants();
            }
        }
        if let Some(node) = &mut self.node {
            node.progress();
        }
        for gateway in 0..self.applications.len() {
            let core = &mut self.applications[gateway].core;
            if core.next_deadline().is_some_and(|at| at.0 <= self.now) {
                core.handle(sdk::Input::Tick, sdk::Millis(self.now));
                self.serve(gateway);
            }
        }
    }

    fn ingest(&mut self) {
        let Some(node) = &mut self.node else { return };
        match self.scheduler.random_range(0..10) {
            0..3 => {
                let shard = self.scheduler.random_range(0..node.shards.len());
                node.look(shard, self.saved.as_ref());
            }
            3 => {
                if let Some(mut durable) = node.checkpoint() {
                    if self.config.broken == Some(Broken::CheckpointAhead) {
                        durable.point = node.core.resume_point(0).expect("what has a checkpoint has been read");
                    }
                    self.saved = Some(durable);
                    self.checkpoints += 1;
                    if self.checkpoints.is_multiple_of(CHECKPOINTS_PER_AUDIT) {
                        self.audit();
                    }
                }
            }
            4 => {
                // The first place that a node can go on from is written down as soon as it is known.
                if node.open(&self.history) {
                    self.saved = node.checkpoint();
                    (0..node.shards.len()).for_each(|shard| node.look(shard, self.saved.as_ref()));
                }
            }
            _ => {
                let max = self.scheduler.random_range(1..20);
                node.read(&self.history, max);
            }
        }
    }

    fn shard(&mut self) {
        let Some(node) = &mut self.node else { return };
        let shard = self.scheduler.random_range(0..node.shards.len());
        let max = self.scheduler.random_range(1..6);
        node.drain(shard, max, Millis(self.now));
        self.put_out(shard);
    }

    /// The shards' filters want something done now and then, and one that builds them does it when it gets round to it.
    fn build_filters(&mut self) {
        let now = Millis(self.now);
        let Some(node) = &mut self.node else { return };
        if self.builder.random_ratio(1, 4) {
            let shard = self.builder.random_range(0..node.shards.len());
            let builder = &mut self.builder;
            node.step_filter(shard, now, || match builder.random_range(0..16) {
                0 => Fate::Never,
                1..3 => Fate::Failed { after_ms: builder.random_range(0..100) },
                _ => Fate::Built { after_ms: builder.random_range(0..100) },
            });
        }
        for (shard, built) in node.take_built(now) {
            self.outcome.filters_built += u64::from(built.is_good());
            self.outcome.filters_failed += u64::from(!built.is_good());
            self.give(shard, Input::FilterBuilt(built));
        }
    }

    fn registrar(&mut self) {
        let now = Millis(self.now);
        let Some(node) = &mut self.node else { return };
        if let Some(shard) = node.admit(&mut self.compiled, now) {
            self.put_out(shard);
        }
    }

    fn give(&mut self, shard: usize, input: Input) {
        let now = Millis(self.now);
        let Some(node) = &mut self.node else { return };
        node.give(shard, input, now);
        self.put_out(shard);
    }

    fn put_out(&mut self, shard: usize) {
        let Some(node) = &mut self.node else { return };
        for output in node.take_outputs() {
            match output {
                Output::Reply { connection, reply } => {
                    if let Some(connection) = self.connections.get_mut(&connection) {
                        connection.replies.push_back(reply);
                    }
                }
                Output::Ready { connection } => {
                    if let Some(connection) = self.connections.get_mut(&connection) {
                        connection.ready = true;
                    }
                }
                Output::Close { connection, code, message } => {
                    if let Some(connection) = self.connections.get_mut(&connection) {
                        connection.closing = Some((code, message));
                    }
                }
                Output::Admit { ticket, items, .. } => node.ask(shard, ticket, items),
                Output::Released { .. } => {}
                Output::Commanded { .. } => unreachable!("no commands are given"),
            }
        }
    }

    // ---- connections ----

    fn dial(&mut self) {
        let Some(index) = self.dialling.iter().position(|(due, ..)| *due <= self.now) else { return };
        let (_, gateway, session, address) = self.dialling.swap_remove(index);
        let shard: Option<usize> = address.strip_prefix("shard:").and_then(|shard| shard.parse().ok());
        let there = self.node.as_ref().zip(shard).is_some_and(|(node, shard)| shard < node.shards.len());
        let now = sdk::Millis(self.now);
        if let (true, Some(shard)) = (there, shard) {
            self.next_connection += 1;
            let id = ConnectionId(self.next_connection);
            self.connections.insert(id, Connection::new(id, gateway, session, shard));
            self.applications[gateway].core.handle(sdk::Input::Connected { session }, now);
        } else {
            let reason = DisconnectReason::Unreachable("nobody there".into());
            self.applications[gateway].core.handle(sdk::Input::Disconnected { session, reason }, now);
        }
        self.serve(gateway);
    }

    /// One message of one stream of one connection arrives.
    fn connection(&mut self) {
        if self.connections.is_empty() {
            return;
        }
        let nth = self.scheduler.random_range(0..self.connections.len());
        let id = *self.connections.keys().nth(nth).expect("there are that many");
        let connection = self.connections.get_mut(&id).expect("it is there");
        let (shard, gateway, session) = (connection.shard, connection.gateway, connection.session);
        let now = sdk::Millis(self.now);
        match self.scheduler.random_range(0..10) {
            0..2 => match connection.requests.pop_front() {
                Some(Request::Hello(hello)) if !connection.greeted => {
                    connection.greeted = true;
                    let can_verify = hello.capabilities.can_verify;
                    self.give(shard, Input::Hello { connection: id, gateway: hello.gateway, can_verify });
                }
                Some(request) => self.give(shard, Input::Request { connection: id, request }),
                None => {}
            },
            2..4 => {
                if let Some(ack) = connection.ack.take() {
                    self.give(shard, Input::Ack { connection: id, ack });
                }
            }
            4..6 => match connection.replies.pop_front() {
                Some(reply) => {
                    self.applications[gateway].core.handle(sdk::Input::Reply { session, reply }, now);
                    self.serve(gateway);
                }
                None => {
                    if let Some((code, message)) = connection.closing.clone() {
                        let reason = DisconnectReason::Closed { code: Some(code), message };
                        self.hang_up(id, reason);
                    }
                }
            },
            6..8 => {
                let max = self.scheduler.random_range(1..4_000);
                if let (true, true, Some(node)) = (connection.ready, connection.has_room(), &mut self.node) {
                    let mut bytes = BytesMut::new();
                    if node.shards[shard].fill(id, Millis(self.now), max, &mut bytes) == 0 {
                        connection.ready = false;
                    }
                    connection.send(bytes);
                }
            }
            _ => {
                let wants = self.applications[gateway].core.wants_delivery(session);
                if let (true, Some(delivery)) = (wants, connection.deliveries.pop_front()) {
                    self.applications[gateway].core.handle(sdk::Input::Delivery { session, delivery }, now);
                    self.serve(gateway);
                }
            }
        }
    }

    /// Ends a connection for both sides; what was on the wire is gone.
    fn hang_up(&mut self, id: ConnectionId, reason: DisconnectReason) {
        let Some(connection) = self.connections.remove(&id) else { return };
        self.give(connection.shard, Input::Disconnected { connection: id });
        let now = sdk::Millis(self.now);
        let input = sdk::Input::Disconnected { session: connection.session, reason };
        self.applications[connection.gateway].core.handle(input, now);
        self.serve(connection.gateway);
    }

    // ---- Gateways ----

    fn application(&mut self) {
        let gateway = self.scheduler.random_range(0..self.applications.len());
        let application = &mut self.applications[gateway];
        let holds = application.holds();
        if holds > 0 && (holds > 8 || self.scheduler.random_bool(0.5)) {
            // By hand and out of order, within what it holds.
            let index = self.scheduler.random_range(0..holds);
            application.finish(index, sdk::Millis(self.now));
        } else {
            application.take();
        }
        self.serve(gateway);
    }

    /// Does what a Gateway's core asks for.
    fn serve(&mut self, gateway: usize) {
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
                sdk::Output::Ack { session, ack } => {
                    if let Some(connection) = self.of_session(gateway, session) {
                        connection.ack = Some(ack);
                    }
                }
                sdk::Output::Close { session, message, .. } => {
                    self.dialling.retain(|(_, of, dialled, _)| (*of, *dialled) != (gateway, session));
                    if let Some(id) = self.of_session(gateway, session).map(|connection| connection.id) {
                        self.hang_up(id, DisconnectReason::Lost(message));
                    }
                }
                sdk::Output::Terminal(error) => panic!("{}: {error}", self.applications[gateway].name),
                sdk::Output::Resume { .. } | sdk::Output::Available => {}
            }
        }
    }

    fn of_session(&mut self, gateway: usize, session: SessionId) -> Option<&mut Connection> {
        self.connections.values_mut().find(|connection| connection.gateway == gateway && connection.session == session)
    }

    // ---- faults ----

    fn fault(&mut self) {
        let mut strikes = |odds: u32| self.faults.random_ratio(odds.min(10_000), 10_000);
        let strikes = [
            strikes(self.config.node_crashes),
            strikes(self.config.disconnects),
            strikes(self.config.gateway_crashes),
            strikes(self.config.source_failures),
            strikes(self.config.churn),
        ];
        let [node, disconnect, gateway, source, churn] = strikes;
        if node {
            self.crash_node();
        }
        if disconnect && !self.connections.is_empty() {
            let nth = self.faults.random_range(0..self.connections.len());
            let id = *self.connections.keys().nth(nth).expect("there are that many");
            self.outcome.disconnects += 1;
            self.hang_up(id, DisconnectReason::Lost("the network".into()));
        }
        if gateway {
            self.crash_gateway();
        }
        if source && let Some(node) = &mut self.node {
            self.outcome.source_failures += 1;
            let at_time = self.faults.random_bool(0.3);
            node.reopen(&self.history, at_time);
        }
        if churn {
            self.churn();
        }
    }

    fn crash_node(&mut self) {
        let Some(mut node) = self.node.take() else { return };
        self.outcome.node_crashes += 1;
        self.outcome.node_crashes_owing += u64::from(node.owes());
        drop(node);
        self.node_returns_at = self.now + self.faults.random_range(0..500);
        for id in self.connections.keys().copied().collect::<Vec<_>>() {
            self.hang_up(id, DisconnectReason::Lost("the node is gone".into()));
        }
    }

    fn crash_gateway(&mut self) {
        let gateway = self.faults.random_range(0..self.applications.len());
        self.outcome.gateway_crashes += 1;
        self.dialling.retain(|(_, of, ..)| *of != gateway);
        let ids: Vec<_> = self.connections.values().filter(|c| c.gateway == gateway).map(|c| c.id).collect();
        for id in ids {
            if let Some(connection) = self.connections.remove(&id) {
                self.give(connection.shard, Input::Disconnected { connection: id });
            }
        }
        self.applications[gateway].crash(&node::address(0), sdk::Millis(self.now));
        self.serve(gateway);
    }

    /// No checkpoint names a place that somebody isn't done with: whatever concerns a subscription at or before it was persisted by its
    /// application, or the subscription was told to start over.
    fn audit(&self) {
        let Some(saved) = self.saved.as_ref().filter(|_| !self.config.log_is_short()) else { return };
        let point = saved.point.position;
        for application in &self.applications {
            let known: HashMap<_, _> =
                application.persisted().map(|(key, base, positions)| (key, (base, positions))).collect();
            let base = |gateway: &str, key: &SubscriptionKey| {
                (gateway == application.name).then(|| known.get(key).map(|(base, _)| (*base).clone())).flatten()
            };
            for ((_, key), changes) in self.history.expected(&self.oracle, base) {
                let owed = changes.iter().rfind(|(id, _)| id.is_covered_by(&point));
                if let (Some((id, _)), Some((_, positions))) = (owed, known.get(&key)) {
                    assert!(positions.covers(id), "the checkpoint names {point}, but {key:?} isn't done with {id}");
                }
            }
        }
    }

    /// One subscription ends, another begins.
    fn churn(&mut self) {
        let Some(next) = self.spare.pop() else { return };
        let index = self.faults.random_range(0..self.used.len());
        let old = std::mem::replace(&mut self.used[index], next.clone());
        self.oracle.unsubscribe(&old.gateway_name(), &old.key);
        self.applications[old.gateway].unsubscribe(&old.key, sdk::Millis(self.now));
        self.serve(old.gateway);
        self.subscribe(&next);
    }

    // ---- the end ----

    fn is_quiet(&mut self) -> bool {
        if !self.outcome.steps.is_multiple_of(64) {
            return false;
        }
        let Some(node) = &mut self.node else { return false };
        node.is_idle(&self.history)
            && !node.owes()
            && self.connections.values().all(Connection::is_idle)
            && self.applications.iter().all(|application| {
                application.holds() == 0 && application.is_all_live() && application.core.status().queued_items == 0
            })
    }

    fn unrest(&mut self) -> String {
        let node = self.node.as_mut().map(|node| (node.is_idle(&self.history), node.owes()));
        let busy: Vec<_> = self.connections.values().filter(|c| !c.is_idle()).map(|c| (c.gateway, c.shard)).collect();
        let applications: Vec<_> =
            self.applications.iter().map(|a| (a.holds(), a.is_all_live(), a.core.status())).collect();
        format!("node (idle, owes) {node:?}, busy connections {busy:?}, applications {applications:?}")
    }

    fn reckon(&mut self) {
        let by_name: HashMap<&str, &Application> =
            self.applications.iter().map(|application| (&*application.name, application)).collect();
        let base = |gateway: &str, key: &SubscriptionKey| by_name.get(gateway)?.base(key);
        let mut expected = self.history.expected(&self.oracle, base);
        for application in &self.applications {
            for (key, had) in application.all_changes() {
                let expected = expected.remove(&(application.name.clone(), key.clone())).unwrap_or_default();
                if had != expected {
                    let lost: Vec<_> = expected.iter().filter(|one| !had.contains(one)).take(3).collect();
                    let wrong: Vec<_> = had.iter().filter(|one| !expected.contains(one)).take(3).collect();
                    let subscription = self.used.iter().find(|s| s.key == *key && s.gateway_name() == application.name);
                    panic!(
                        "{} {key:?} got {} changes instead of {}; lost {lost:?}, not expected {wrong:?}; {subscription:?}",
                        application.name,
                        had.len(),
                        expected.len()
                    );
                }
            }
        }
        assert!(expected.is_empty(), "nobody has got {:?}", expected.keys().next());
        self.outcome.events = self.history.len() as u64;
        for application in &self.applications {
            self.outcome.deliveries += application.changes;
            self.outcome.duplicates_dropped +=
                application.duplicates_dropped + application.core.status().counters.duplicates_dropped;
            for (reason, count) in &application.resyncs {
                *self.outcome.resyncs.entry(reason.clone()).or_default() += count;
            }
        }
    }
}
