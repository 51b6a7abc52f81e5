//! The scheduler: draws what happens next until all has been written, then lets everything arrive and reckons.

mod checks;
mod faults;
mod network;

use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shards::{Command, CommandId, CommandKind, Input, Millis, Output};
use streamer_gateway::core::{self as sdk, SessionId};
use wire::{Ack, CloseReason, SubscriptionKey};
use workload::GeneratedSubscription;

use crate::{
    application::{Application, Taken},
    broken::Broken,
    config::{Fault, SimConfig},
    connection::Connection,
    disk::SimDisk,
    expected::{Number, Order},
    history::History,
    node::{self, Fate, GRACE_MS, Node},
    outcome::Outcome,
    trace::{Trace, note},
    workload::Workload,
};

/// Milliseconds between two ticks of a shard.
const TICK_MS: u64 = 20;

/// Milliseconds that the end may take; more means that something never comes to rest.
const SETTLING_MS_MAX: u64 = 600_000;

pub(crate) struct World {
    config: SimConfig,
    trace: Trace,
    workload: Rc<Workload>,
    history: History,
    disk: SimDisk,
    scheduler: ChaCha8Rng,
    faults: ChaCha8Rng,
    builder: ChaCha8Rng,
    now: u64,
    node: Option<Node>,
    node_returns_at: u64,
    starts: u128,
    /// The slot that was written last is lost, and nothing has been written since.
    rotten: bool,
    /// Faults that strike between two events, with their odds summed up.
    strikes: Vec<(u32, Fault)>,
    applications: Vec<Application>,
    by_name: HashMap<String, usize>,
    /// Attempts to connect, by the time they are due.
    dialling: Vec<(u64, usize, SessionId, String)>,
    connections: Vec<Connection>,
    next_connection: u64,
    subscriptions: Vec<GeneratedSubscription>,
    /// Subscriptions that there are, and those that are still to come.
    used: Vec<Number>,
    spare: Vec<Number>,
    /// Subscriptions that ran out while their Gateway had no session: they may be told to start over.
    expired: HashSet<(usize, SubscriptionKey)>,
    /// Gateways that the node has begun to read without, for a good reason: they may be told to start over.
    absent: HashSet<usize>,
    /// Until then, passes read nothing.
    history_slow_until: u64,
    /// Which of those that there are took another's place last.
    churned_last: Option<usize>,
    /// History that the source had lost when it was needed: after this, and up to that.
    lost: Vec<(Order, Order)>,
    /// The last ack of each Gateway's last session with a shard, where that counts for the next one.
    old_acks: HashMap<(usize, usize), Ack>,
    tick_at: u64,
    ticks: usize,
    written: usize,
    outcome: Outcome,
}

/// Runs one world to its end. Panics where a promise is broken.
pub(crate) fn run(config: SimConfig, trace: Trace) -> Outcome {
    World::new(config, trace).run()
}

impl World {
    fn new(config: SimConfig, trace: Trace) -> Self {
        let workload = Workload::of(&config);
        let subscriptions = workload.subscriptions.clone();
        let stream = |number| {
            let mut random = ChaCha8Rng::seed_from_u64(config.seed);
            random.set_stream(number);
            random
        };
        let address = node::address(0);
        let applications: Vec<_> = (0..workload.generator.profile().gateways)
            .map(|index| {
                let name = ::workload::generate::gateway_name(index);
                let early = config.broken == Some(Broken::PositionBeforeDone);
                let seed = config.seed.wrapping_mul(1_000) + index as u64 * 100;
                Application::new(name, seed, address.clone(), early, sdk::Millis(0))
            })
            .collect();
        let mut sum = 0;
        let strikes = Fault::ALL
            .into_iter()
            .filter(|fault| fault.strikes())
            .map(|fault| {
                sum += config.odds(fault);
                (sum, fault)
            })
            .collect();
        let late = config.odds(Fault::LateLookup);
        Self {
            history: History::new(workload.clone(), config.seed, late),
            workload,
            trace,
            disk: SimDisk::default(),
            scheduler: stream(101),
            faults: stream(102),
            builder: stream(103),
            now: 0,
            node: None,
            node_returns_at: 0,
            starts: 0,
            rotten: false,
            strikes,
            by_name: applications.iter().enumerate().map(|(index, one)| (one.name.clone(), index)).collect(),
            applications,
            dialling: Vec::new(),
            connections: Vec::new(),
            next_connection: 0,
            used: (0..config.subscriptions).map(Number).collect(),
            spare: (config.subscriptions..subscriptions.len()).map(Number).collect(),
            subscriptions,
            expired: HashSet::new(),
            absent: HashSet::new(),
            history_slow_until: 0,
            churned_last: None,
            lost: Vec::new(),
            old_acks: HashMap::new(),
            tick_at: 0,
            ticks: 0,
            written: 0,
            outcome: Outcome::default(),
            config,
        }
    }

    fn run(mut self) -> Outcome {
        for number in self.used.clone() {
            self.subscribe(number);
        }
        while self.written < self.config.transactions {
            if self.step() {
                self.fault();
            }
        }
        note!(self, "all is written, and nothing goes wrong any more");
        self.history.end_it();
        let settled_by = self.now + SETTLING_MS_MAX;
        let mut steps = 0_u64;
        while !(steps.is_multiple_of(64) && self.is_quiet()) {
            steps += 1;
            self.step();
            assert!(self.now < settled_by, "the world doesn't come to rest: {}", self.unrest());
        }
        self.reckon();
        self.outcome
    }

    fn subscribe(&mut self, number: Number) {
        let subscription = &self.subscriptions[number.0];
        let gateway = subscription.gateway;
        let mut item = subscription.to_item();
        item.ttl_s = self.config.ttl_s;
        note!(self, "gateway {gateway} subscribes to {:?} as {number:?}", item.key);
        self.applications[gateway].subscribe(number, item, sdk::Millis(self.now));
        self.serve(gateway);
    }

    /// The next thing happens; false where there was nothing to do, and time went by.
    fn step(&mut self) -> bool {
        if self.now >= self.tick_at {
            self.tick();
        }
        self.build_filters();
        let happened = match self.scheduler.random_range(0..100) {
            0..3 => {
                // While the node is down, writing goes on, only slower: there is an end to it.
                let reads = self.node.as_ref().is_some_and(|node| node.position().is_some());
                (reads || self.scheduler.random_ratio(1, 8)) && self.write()
            }
            3..13 => self.ingest(),
            13..33 => self.shard(),
            33..39 => self.registrar(),
            39..76 => self.connection(),
            76..98 => self.application(),
            _ => self.dial(),
        };
        if happened {
            self.outcome.events += 1;
        } else {
            self.outcome.idle += 1;
        }
        self.now += u64::from(self.scheduler.random_ratio(1, 4));
        happened
    }

    fn write(&mut self) -> bool {
        if self.written == self.config.transactions {
            return false;
        }
        self.history.write();
        self.written += 1;
        true
    }

    // ---- the node ----

    fn tick(&mut self) {
        self.tick_at = self.now + TICK_MS;
        self.ticks += 1;
        if self.node.is_none() && self.now >= self.node_returns_at {
            self.start_node();
        }
        self.find_cuts();
        let shards = self.node.as_ref().map_or(0, |node| node.shards.len());
        for shard in 0..shards {
            self.give(shard, Input::Tick);
        }
        self.check_in_turn();
        if let Some(node) = &mut self.node {
            node.progress();
        }
        for gateway in 0..self.applications.len() {
            if self.applications[gateway].dead_until.is_some_and(|until| until <= self.now) {
                note!(self, "gateway {gateway} comes back");
                let (now, faults) = (self.now, &mut self.faults);
                let is_late = faults.random_ratio(self.config.odds(Fault::LateAsking), 10_000);
                self.applications[gateway].come_back(sdk::Millis(now), || {
                    let ms_max = if faults.random_bool(0.5) { LATE_MS_MAX } else { LATE_MS_MAX / 16 };
                    (is_late && faults.random_bool(0.5)).then(|| now + faults.random_range(1..ms_max))
                });
                self.serve(gateway);
            }
            if !self.applications[gateway].runs(self.now) {
                continue;
            }
            let asked = self.applications[gateway].ask_late(self.history.end(), sdk::Millis(self.now));
            if asked > 0 {
                note!(self, "gateway {gateway} asks late for {asked}");
                self.outcome.asked_late += asked;
                self.serve(gateway);
            }
            let core = &mut self.applications[gateway].core;
            if core.next_deadline().is_some_and(|at| at.0 <= self.now) {
                core.handle(sdk::Input::Tick, sdk::Millis(self.now));
                self.serve(gateway);
            }
        }
        if self.config.broken == Some(Broken::TtlDuringSession) && self.ticks.is_multiple_of(64) {
            self.expire_wrongly();
        }
    }

    fn start_node(&mut self) {
        let shards = self.scheduler.random_range(1..=self.config.shards_max);
        self.starts += 1;
        let rots = self.starts > 1 && self.faults.random_ratio(self.config.odds(Fault::RottenSlot), 10_000);
        let rotten = rots && self.disk.rot(self.faults.random_range(0..usize::MAX));
        self.outcome.slots_rotten += u64::from(rotten);
        let mut node = Node::start(shards, self.starts, &self.disk, &self.config, Millis(self.now));
        self.rotten |= rotten;
        node.from_older = self.rotten;
        note!(self, "the node starts with {shards} shards{}", if rotten { ", from a slot that is older" } else { "" });
        self.node = Some(node);
    }

    /// Ends a subscription as if it had run out, whatever its session.
    fn expire_wrongly(&mut self) {
        let number = self.used[self.ticks / 64 % self.used.len()];
        let subscription = &self.subscriptions[number.0];
        let (gateway, key) = (subscription.gateway_name(), subscription.key.clone());
        for shard in 0..self.node.as_ref().map_or(0, |node| node.shards.len()) {
            let what = CommandKind::Remove { key: key.clone(), reason: CloseReason::Expired };
            self.give(shard, Input::Command(Command { id: CommandId(0), gateway: gateway.clone(), what }));
        }
    }

    fn ingest(&mut self) -> bool {
        let Some(node) = &mut self.node else { return false };
        match self.scheduler.random_range(0..12) {
            0..3 => {
                let shard = self.scheduler.random_range(0..node.shards.len());
                node.look(shard);
                true
            }
            3 => {
                let now = Millis(self.now);
                if let Some(point) = node.end_checkpoint(now) {
                    self.outcome.checkpoints += 1;
                    self.rotten = false;
                    let gateways = node.written.as_ref().map(|written| &written.gateways);
                    note!(self, "a checkpoint is written: {:?}, naming {gateways:?}", point.order());
                    self.audit(point);
                    return true;
                }
                node.start_checkpoint(self.now + self.scheduler.random_range(0..60))
            }
            4 => {
                let names: Vec<&str> = self.applications.iter().map(|application| &*application.name).collect();
                let opened = node.open(&self.history, &names, &mut self.absent, Millis(self.now));
                if opened {
                    self.lost.append(&mut node.lost);
                    let at = node.position();
                    note!(self, "the stream is opened after {at:?}; absent: {:?}", self.absent);
                }
                opened
            }
            5 | 6 => {
                let max = self.scheduler.random_range(1..12);
                let max = if self.now < self.history_slow_until { 0 } else { max };
                let happened = node.pass(&mut self.history, max, Millis(self.now));
                if happened {
                    note!(self, "a pass goes on");
                }
                happened
            }
            _ => {
                let max = self.scheduler.random_range(1..20);
                let count = node.read(&mut self.history, max);
                if count > 0 {
                    note!(self, "{count} events are read, up to {:?}", node.position());
                }
                count > 0
            }
        }
    }

    fn shard(&mut self) -> bool {
        let Some(node) = &mut self.node else { return false };
        let shard = self.scheduler.random_range(0..node.shards.len());
        let max = self.scheduler.random_range(1..6);
        let shown = if self.trace.is_on() { node.shown_ring(shard, max) } else { String::new() };
        if !shown.is_empty() {
            note!(self, "shard {shard} takes {shown}");
        }
        let happened = node.drain(shard, max, Millis(self.now));
        if happened {
            self.put_out(shard);
        }
        happened
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

    fn registrar(&mut self) -> bool {
        let now = Millis(self.now);
        let Some(node) = &mut self.node else { return false };
        let what = if self.scheduler.random_ratio(1, 4) {
            ("ends something that has moved from", node.command(now))
        } else {
            let late_ms = self.scheduler.random_range(0..COMMAND_MS_MAX);
            ("answers", node.admit(&mut self.workload.compiled.borrow_mut(), late_ms, now))
        };
        let (what, Some(shard)) = what else { return false };
        note!(self, "the registrar {what} shard {shard}");
        self.put_out(shard);
        true
    }

    fn give(&mut self, shard: usize, input: Input) {
        let now = Millis(self.now);
        let Some(node) = &mut self.node else { return };
        node.give(shard, input, now);
        self.put_out(shard);
    }

    fn put_out(&mut self, shard: usize) {
        let Some(node) = &mut self.node else { return };
        let outputs = node.take_outputs();
        let ran_out = outputs.iter().any(|one| matches!(one, Output::Released { .. })) && node.has_expired(shard);
        for output in outputs {
            match output {
                Output::Reply { connection, reply } => {
                    if let Some(connection) = self.connections.iter_mut().find(|one| one.id == connection) {
                        connection.replies.push_back(reply);
                    }
                }
                Output::Ready { connection } => {
                    if let Some(connection) = self.connections.iter_mut().find(|one| one.id == connection) {
                        connection.ready = true;
                    }
                }
                Output::Close { connection, code, message } => {
                    if let Some(connection) = self.connections.iter_mut().find(|one| one.id == connection) {
                        note!(self, "shard {shard} closes {:?}: {message}", connection.id);
                        connection.closing = Some((code, message));
                    }
                }
                Output::Admit { ticket, gateway, items } => {
                    if let Some(node) = &mut self.node {
                        node.registrar.ask(shard, ticket, gateway, items);
                    }
                }
                Output::Released { gateway, keys } => {
                    if let Some(node) = &mut self.node {
                        node.registrar.released(shard, &gateway, &keys);
                    }
                    if ran_out {
                        self.ran_out(shard, &gateway, keys);
                    }
                }
                // Nobody waits for the answer.
                Output::Commanded { .. } => {}
            }
        }
    }

    // ---- Gateways ----

    fn application(&mut self) -> bool {
        let gateway = self.scheduler.random_range(0..self.applications.len());
        let application = &mut self.applications[gateway];
        if !application.runs(self.now) || application.slow_until > self.now && !self.scheduler.random_ratio(1, 32) {
            return false;
        }
        let holds = application.holds();
        if holds > 0 && (holds > 8 || self.scheduler.random_bool(0.5)) {
            // By hand and out of order, within what it holds.
            let index = self.scheduler.random_range(0..holds);
            for key in application.finish(index, &self.history.expected, sdk::Millis(self.now)) {
                self.expired.remove(&(gateway, key));
            }
        } else {
            let taken = application.take(&self.history.expected);
            if matches!(taken, Taken::Nothing) {
                return false;
            }
            self.judge(gateway, taken);
        }
        self.serve(gateway);
        true
    }
}

/// How long it takes a command to get to its shard.
const COMMAND_MS_MAX: u64 = 1_500;

/// How late a process may be that asks late.
const LATE_MS_MAX: u64 = 800;

/// How long the longest absence of a Gateway is: longer than a node waits for it.
const DEAD_MS_MAX: u64 = GRACE_MS * 3 / 2;
