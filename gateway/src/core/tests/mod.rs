//! The core against a shard that does only what a test tells it to. No time passes but what a test adds.

mod catching_up;
mod connecting;
mod delivering;
mod done;
mod older_selves;
mod subscribing;

use std::collections::BTreeMap;

use bson::rawdoc;
use wire::{
    Ack, BackendId, Bound, Certainty, CloseReason, Delivery, Epoch, ErrorCode, EventEntry, Handle, Lineage, Operation,
    PlaceHash, Position, Positions, Registration, Reply, Request, ShardAddress, SlotTable, SubscribeItem,
    SubscribeResult, SubscriptionKey, Target, Transition, Welcome,
};

use super::{
    AppEvent, CoreConfig, DisconnectReason, GatewayCore, Input, Millis, Output, SessionId, TerminalError, Token,
};

const HEARTBEAT_MS: u64 = 1_000;
const TENANT: &str = "t";

/// An [`Output::Connect`] that nobody has answered.
#[derive(Clone, Debug)]
struct Attempt {
    session: SessionId,
    partition: Option<u16>,
    address: String,
    after_ms: u64,
}

/// A core and a node, with everything between them on a table.
struct World {
    core: GatewayCore,
    now: Millis,
    shards: u16,
    epoch: u128,
    max_body_bytes: u32,
    attempts: Vec<Attempt>,
    requests: Vec<(SessionId, Request)>,
    acks: BTreeMap<SessionId, Ack>,
    closed: Vec<(SessionId, Option<ErrorCode>)>,
    resumed: Vec<SessionId>,
    terminal: Option<TerminalError>,
    /// The session of each shard that last was welcomed.
    sessions: BTreeMap<u16, SessionId>,
}

fn config() -> CoreConfig {
    CoreConfig {
        gateway: "g".into(),
        token: "secret".into(),
        agent: "test".into(),
        addresses: vec!["shard-0".into()],
        can_verify: true,
        queue_bytes_max: 1 << 20,
        jitter_seed: 1,
    }
}

impl World {
    fn new(shards: u16) -> Self {
        Self::with(shards, config())
    }

    fn with(shards: u16, config: CoreConfig) -> Self {
        let mut world = Self {
            core: GatewayCore::new(config, Millis(0)),
            now: Millis(0),
            shards,
            epoch: 1,
            max_body_bytes: wire::MAX_BODY_BYTES as u32,
            attempts: Vec::new(),
            requests: Vec::new(),
            acks: BTreeMap::new(),
            closed: Vec::new(),
            resumed: Vec::new(),
            terminal: None,
            sessions: BTreeMap::new(),
        };
        world.collect();
        world
    }

    /// A node of one shard that has welcomed the Gateway and knows that it has presented everything.
    fn connected() -> Self {
        let mut world = Self::new(1);
        world.accept_all();
        assert!(world.next().is_none());
        world.answer();
        world
    }

    /// The same with a live subscription `s` that began at time 10, bound to handle 1.
    fn live() -> Self {
        let mut world = Self::connected();
        world.subscribe("s", "c");
        world.answer();
        world.bind(1, "s", 10);
        assert!(matches!(world.next(), Some((_, AppEvent::Live { .. }))));
        world
    }

    fn collect(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Connect { session, partition, address, after_ms } => {
                    self.attempts.push(Attempt { session, partition, address, after_ms });
                }
                Output::Request { session, request } => self.requests.push((session, request)),
                Output::Ack { session, ack } => drop(self.acks.insert(session, ack)),
                Output::Close { session, code, .. } => {
                    self.attempts.retain(|attempt| attempt.session != session);
                    self.requests.retain(|(other, _)| *other != session);
                    self.closed.push((session, code));
                }
                Output::Resume { session } => self.resumed.push(session),
                Output::Available => {}
                Output::Terminal(error) => self.terminal = Some(error),
            }
        }
    }

    fn input(&mut self, input: Input) {
        self.core.handle(input, self.now);
        self.collect();
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now.after(ms);
        self.input(Input::Tick);
    }

    fn welcome(&self, partition: u16) -> Welcome {
        let shard = |partition: u16| ShardAddress { partition, address: format!("shard-{partition}") };
        Welcome {
            epoch: Epoch(self.epoch),
            partition,
            slots: SlotTable { shards: self.shards },
            shards: (0..self.shards).map(shard).collect(),
            received_deadline_ms: 10_000,
            heartbeat_ms: HEARTBEAT_MS as u32,
            max_body_bytes: self.max_body_bytes,
            mapping: "plain".into(),
        }
    }

    /// The only attempt there is.
    fn attempt(&mut self) -> Attempt {
        assert_eq!(self.attempts.len(), 1, "{:?}", self.attempts);
        self.attempts.remove(0)
    }

    /// Connects as far as the hello.
    fn greet(&mut self) -> SessionId {
        let attempt = self.attempt();
        self.input(Input::Connected { session: attempt.session });
        assert!(matches!(self.requests.pop(), Some((_, Request::Hello(_)))));
        attempt.session
    }

    fn accept(&mut self, attempt: &Attempt) -> SessionId {
        let session = attempt.session;
        self.input(Input::Connected { session });
        let hello =
            self.requests.iter().position(|(of, request)| *of == session && matches!(request, Request::Hello(_)));
        self.requests.remove(hello.expect("a hello comes first"));
        let partition = attempt.address.strip_prefix("shard-").unwrap().parse().unwrap();
        self.reply(session, Reply::Welcome(Box::new(self.welcome(partition))));
        self.sessions.insert(partition, session);
        session
    }

    /// Accepts all attempts, and those that come of them.
    fn accept_all(&mut self) {
        while !self.attempts.is_empty() {
            let attempt = self.attempts.remove(0);
            self.accept(&attempt);
        }
    }

    /// The connection of shard 0 is lost and comes back.
    fn reconnect(&mut self) {
        self.lose(0);
        self.accept_all();
    }

    fn lose(&mut self, partition: u16) {
        let session = self.sessions[&partition];
        self.requests.retain(|(of, _)| *of != session);
        self.input(Input::Disconnected { session, reason: DisconnectReason::Lost("test".into()) });
    }

    fn reply(&mut self, session: SessionId, reply: Reply) {
        self.input(Input::Reply { session, reply });
    }

    fn subscribe(&mut self, id: &str, collection: &str) {
        self.input(Input::Subscribe(item(id, collection)));
    }

    /// Answers everything that was asked, and what is asked then, with yes. Gives what was asked.
    fn answer(&mut self) -> Vec<(SessionId, Request)> {
        let mut asked = Vec::new();
        while !self.requests.is_empty() {
            let (session, request) = self.requests.remove(0);
            asked.push((session, request.clone()));
            let reply = match request {
                Request::Subscribe { request, items } => {
                    Reply::Subscribed { request, results: vec![created(); items.len()] }
                }
                Request::Unsubscribe { request, .. } => Reply::Unsubscribed { request },
                Request::SyncDone { request } => Reply::Synced { request },
                Request::Hello(_) | Request::Ping { .. } => panic!("{request:?} out of turn"),
            };
            self.reply(session, reply);
        }
        asked
    }

    fn deliver(&mut self, delivery: Delivery) {
        let session = self.sessions[&0];
        self.input(Input::Delivery { session, delivery });
    }

    fn bind(&mut self, handle: u32, id: &str, live_from: u64) {
        self.deliver(bound(handle, id, live_from));
    }

    /// An event of time `time` for these handles, from shard 0.
    fn event(&mut self, seq: u64, time: u64, handles: &[u32]) {
        self.deliver(Delivery::Events(vec![entry(seq, time, handles)].into()));
    }

    fn heartbeat(&mut self, last_seq: u64, time: u64) {
        self.deliver(Delivery::Heartbeat { last_seq, positions: at(time) });
    }

    fn next(&mut self) -> Option<(Token, AppEvent)> {
        let next = self.core.next_event();
        self.collect();
        next
    }

    fn done_up_to(&mut self, token: Token) {
        self.core.done_up_to(token);
        self.collect();
    }

    /// Takes everything that waits, done at once. Gives the times of changes, and of all else its name.
    fn drain(&mut self) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some((token, event)) = self.next() {
            seen.push(match &event {
                AppEvent::Change(change) => format!("{}@{}", change.subscription().id, change.cluster_time()),
                AppEvent::Gap { subscription, position, .. } => format!("gap {}@{}", subscription.id, position.time),
                AppEvent::Resync { subscription, .. } => format!("resync {}", subscription.id),
                AppEvent::Closed { subscription, reason } => format!("closed {} {reason:?}", subscription.id),
                AppEvent::Live { subscription, .. } => format!("live {}", subscription.id),
                AppEvent::CatchingUp { subscription } => format!("catching up {}", subscription.id),
                AppEvent::CaughtUp { subscription } => format!("caught up {}", subscription.id),
                AppEvent::Rejected { subscription, code, .. } => format!("rejected {} {code:?}", subscription.id),
            });
            self.input(Input::Done(token));
        }
        seen
    }

    fn ack(&self) -> Ack {
        self.acks.get(&self.sessions[&0]).copied().unwrap_or_default()
    }

    /// Times of the positions that the application may keep of a subscription.
    fn kept(&self, id: &str) -> Option<u64> {
        self.core.positions(&key(id)).and_then(|positions| positions.get(BackendId(1)).map(|position| position.time))
    }

    /// Ids and positions of all that was presented and not answered.
    fn presented(&self) -> Vec<(SessionId, String, Option<u64>)> {
        let mut presented = Vec::new();
        for (session, request) in &self.requests {
            let Request::Subscribe { items, .. } = request else { continue };
            for item in items {
                let time = item.positions.get(BackendId(1)).map(|position| position.time);
                presented.push((*session, item.key.id.clone(), time));
            }
        }
        presented
    }

    /// That shard 0's session was ended for a violation of the protocol, and that another is on its way.
    fn expect_violation(&mut self) {
        let session = self.sessions[&0];
        assert_eq!(self.closed, [(session, Some(ErrorCode::ProtocolViolation))]);
        assert_eq!(self.core.status().counters.violations, 1);
        assert_eq!(self.attempt().partition, Some(0));
        assert_eq!(self.terminal, None);
    }
}

fn key(id: &str) -> SubscriptionKey {
    SubscriptionKey { tenant: TENANT.into(), id: id.into() }
}

fn item(id: &str, collection: &str) -> SubscribeItem {
    SubscribeItem::new(key(id), collection)
}

fn item_from(id: &str, collection: &str, time: u64) -> SubscribeItem {
    SubscribeItem { positions: at(time), ..item(id, collection) }
}

/// A collection that this shard of so many owns.
fn collection_of(partition: u16, shards: u16) -> String {
    let owned = |name: &String| SlotTable { shards }.owner(PlaceHash::of(TENANT, name)) == partition;
    (0..).map(|n| format!("c{n}")).find(owned).unwrap()
}

fn created() -> SubscribeResult {
    SubscribeResult::Accepted { registration: Registration::Created, expires_in_s: 300 }
}

fn position(time: u64) -> Position {
    Position { backend: BackendId(1), lineage: Lineage(1), time, k: 1 }
}

fn at(time: u64) -> Positions {
    [position(time)].into_iter().collect()
}

fn bound(handle: u32, id: &str, live_from: u64) -> Delivery {
    let (handle, key, live_from) = (Handle(handle), key(id), at(live_from));
    Delivery::Bound(Box::new(Bound { handle, key, generation: 1, live_from, leaves: true }))
}

fn entry(seq: u64, time: u64, handles: &[u32]) -> EventEntry {
    let target = |handle: &u32| Target {
        handle: Handle(*handle),
        transition: Transition::Update,
        certainty: Certainty::Matched,
    };
    EventEntry {
        seq,
        id: position(time),
        operation: Operation::Update,
        tenant: TENANT.into(),
        collection: "c".into(),
        document_id: predicate::stored_string_id("d"),
        targets: handles.iter().map(target).collect(),
        document: rawdoc! { "_id": "d", "a": 1 }.into_bytes(),
    }
}

fn closed(handle: u32, reason: CloseReason) -> Delivery {
    Delivery::Closed { handle: Handle(handle), reason }
}
