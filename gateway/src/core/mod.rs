//! The receiving side of the protocol without IO: [`GatewayCore`] takes what came and what time it is, and says what to do. It
//! has no clock, no sockets and no randomness beyond the seed that it is given.
//!
//! Call protocol:
//! - [`GatewayCore::new`], then take outputs with [`GatewayCore::poll_output`] until there is none; the same after every
//!   [`GatewayCore::handle`], [`GatewayCore::next_event`] and [`GatewayCore::done_up_to`].
//! - [`Output::Connect`] names the session. Answer it with [`Input::Connected`], then feed [`Input::Reply`] and
//!   [`Input::Delivery`] in the order of their streams, and end it with [`Input::Disconnected`]. What comes for a session
//!   that is over is ignored.
//! - Before reading more of a delivery stream ask [`GatewayCore::wants_delivery`]; after a "no" wait for [`Output::Resume`].
//! - [`GatewayCore::next_event`] gives the application's next item; [`Input::Done`] says that it is done with one, and
//!   [`GatewayCore::done_up_to`] with all up to one.
//! - [`Input::Tick`] at [`GatewayCore::next_deadline`] or soon after it.
//!
//! Invariants:
//! - Everything goes to the application in one queue. An item takes effect (position adopted, `done` told) once all items
//!   before it, of whatever session, are done.
//! - An event at or below the position that its subscription was last handed is dropped. There is no set of seen ids.
//! - What is presented on reconnect is the adopted position, which is also what the application may keep: presenting a position
//!   says that everything up to it is done. What was handed and isn't done comes again, is dropped, and counts as done once
//!   everything before it in the queue is.
//! - What comes by a handle is a subscription's only once its shard has said so: an older self of it may be bound, from a process before or by
//!   HTTP. What comes before that waits, and is nobody's where the shard knew something else, or knew it without its positions.
//! - While a subscription is catching up, what heartbeats say is neither handed nor adopted for it: what it has is what its own items
//!   brought.
//! - `seq` of a session is 1, 2, 3 … without a hole. A hole ends the session, and the next one brings what was missing.

mod delivery;
mod event;
mod fifo;
mod jitter;
mod links;
mod requests;
mod session;
mod status;
mod subscriptions;
mod terminal;
mod verify;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use predicate::Mapping;
use wire::{
    Ack, Capabilities, Delivery, Epoch, ErrorCode, Hello, PlaceHash, Positions, Reply, Request, SlotTable,
    SubscribeItem, SubscriptionKey,
};

pub use event::{AppEvent, Change};
pub use fifo::Token;
pub use status::{Counters, ShardStatus, Status};
pub use terminal::TerminalError;

use fifo::{Effect, Fifo};
use jitter::Jitter;
use links::Link;
use session::{Session, Stage};
use subscriptions::{NO_FLOORS, Phase, Subscription, SubscriptionRef, Subscriptions};

/// Milliseconds of a monotonic clock that the caller owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    pub fn after(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// One attempt to connect and what comes of it. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// What a [`GatewayCore`] is made of.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    pub gateway: String,
    pub token: String,
    /// Name and version of the SDK, for the node's logs.
    pub agent: String,
    /// `host:port` of any shards of the node.
    pub addresses: Vec<String>,
    /// Whether unverified changes are welcome: they are checked here.
    pub can_verify: bool,
    /// Bytes of one session's items, and of what sessions before have left, that may wait for the application before its delivery stream is
    /// no longer read.
    pub queue_bytes_max: usize,
    pub jitter_seed: u64,
}

#[derive(Debug)]
pub enum Input {
    /// The connection of [`Output::Connect`] stands and its streams can be written to.
    Connected {
        session: SessionId,
    },
    Disconnected {
        session: SessionId,
        reason: DisconnectReason,
    },
    Reply {
        session: SessionId,
        reply: Reply,
    },
    Delivery {
        session: SessionId,
        delivery: Delivery,
    },
    /// Bytes came that make no message yet: a long one is on its way, the session is alive.
    Heard {
        session: SessionId,
    },
    /// Subscribes. The same key with the same content changes nothing, with other content it takes the older one's place.
    Subscribe(SubscribeItem),
    Unsubscribe(SubscriptionKey),
    /// The application is done with this item.
    Done(Token),
    /// Ends all sessions, for good.
    Close,
    Tick,
}

/// Why a connection is no more, or never was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DisconnectReason {
    #[error("can't be reached: {0}")]
    Unreachable(String),
    /// The other side is not who it should be.
    #[error("is not trusted: {0}")]
    Untrusted(String),
    /// Closed by the node.
    #[error("closed the connection ({}): {message}", code_text(*code))]
    Closed { code: Option<ErrorCode>, message: String },
    #[error("connection lost: {0}")]
    Lost(String),
    /// What came was not the protocol.
    #[error("does not keep to the protocol: {0}")]
    Violation(String),
}

fn code_text(code: Option<ErrorCode>) -> String {
    code.map_or_else(|| "no reason given".into(), |code| format!("{code:?}"))
}

#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Connect to this address after that time. `partition` is not known at first contact.
    Connect { session: SessionId, partition: Option<u16>, address: String, after_ms: u64 },
    /// To be sent on the control stream, in this order.
    Request { session: SessionId, request: Request },
    /// To be sent on the ack stream. Only the latest matters.
    Ack { session: SessionId, ack: Ack },
    /// The delivery stream may be read again.
    Resume { session: SessionId },
    /// There is something for [`GatewayCore::next_event`], where there was nothing.
    Available,
    /// End the connection, or the attempt. Acks put out before are to be sent first.
    Close { session: SessionId, code: Option<ErrorCode>, message: String },
    /// Nothing will be connected any more.
    Terminal(TerminalError),
}

/// What the node said of itself.
#[derive(Debug)]
struct Topology {
    epoch: Epoch,
    slots: SlotTable,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct GatewayCore {
    config: CoreConfig,
    now: Millis,
    jitter: Jitter,
    topology: Option<Topology>,
    mapping: Arc<Mapping>,
    mapping_text: String,
    /// One for each shard, by its partition; none before the first welcome.
    links: Vec<Link>,
    /// First contact, and what is gone back to when no shard can be reached where it was.
    contact: Link,
    contact_next: usize,
    sessions: BTreeMap<SessionId, Box<Session>>,
    next_session: u64,
    next_request: u64,
    subscriptions: Subscriptions,
    fifo: Fifo,
    /// Bytes of items in the queue whose sessions are over.
    left_bytes: usize,
    floor_version: u64,
    outputs: VecDeque<Output>,
    counters: Counters,
    /// The application has asked for an item and got none, because the next one is held back.
    waits_for_answer: bool,
    /// Whether shards may be told that all has been presented. Not before the application has had the time to subscribe: a
    /// shard binds what it knows of an earlier process by then, and no longer asks for positions.
    sync_open: bool,
    sync_at: Option<Millis>,
    over: bool,
    terminal: Option<TerminalError>,
}

impl GatewayCore {
    /// Connects to the first address at once.
    pub fn new(config: CoreConfig, now: Millis) -> Self {
        assert!(!config.addresses.is_empty(), "a Gateway without an address can't connect");
        let mut core = Self {
            jitter: Jitter::new(config.jitter_seed),
            now,
            topology: None,
            mapping: Arc::new(Mapping::Plain),
            mapping_text: String::new(),
            links: Vec::new(),
            contact: Link::new(String::new()),
            contact_next: 0,
            sessions: BTreeMap::new(),
            next_session: 0,
            next_request: 0,
            subscriptions: Subscriptions::default(),
            fifo: Fifo::default(),
            left_bytes: 0,
            floor_version: 0,
            outputs: VecDeque::new(),
            counters: Counters::default(),
            waits_for_answer: false,
            sync_open: false,
            sync_at: None,
            over: false,
            terminal: None,
            config,
        };
        core.make_contact(0);
        core
    }

    pub fn handle(&mut self, input: Input, now: Millis) {
        self.now = self.now.max(now);
        match input {
            Input::Connected { session } => self.connected(session),
            Input::Disconnected { session, reason } => self.disconnected(session, reason),
            Input::Reply { session, reply } => self.replied(session, reply),
            Input::Delivery { session, delivery } => self.delivered(session, delivery),
            Input::Heard { session } => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.heard_at = self.now;
                }
            }
            Input::Subscribe(item) => self.subscribe(item),
            Input::Unsubscribe(key) => self.unsubscribe(&key),
            Input::Done(token) => self.fifo.done(token),
            Input::Close => self.end(),
            Input::Tick => self.tick(),
        }
        self.settle();
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The next item for the application. Whoever asks for it has subscribed to what it had before, so shards may be told that
    /// all has been presented.
    pub fn next_event(&mut self) -> Option<(Token, AppEvent)> {
        self.open_sync();
        let subscriptions = &self.subscriptions;
        let Some((token, subscription, event)) = self.fifo.hand(|reference| subscriptions.fate(reference)) else {
            self.waits_for_answer = self.is_held_back();
            return None;
        };
        if let (AppEvent::Closed { .. } | AppEvent::Rejected { .. }, Some(subscription)) = (&event, subscription) {
            // The application knows of the end from here on, so the key is free.
            self.subscriptions.release_key(subscription);
        }
        self.counters.handed += 1;
        if self.fifo.is_front_done() {
            self.settle();
        }
        Some((token, event))
    }

    /// The application is done with all items that it was given up to this one: [`Input::Done`] of each.
    pub fn done_up_to(&mut self, token: Token) {
        self.fifo.done_up_to(token);
        self.settle();
    }

    /// Whether more of this session's delivery stream may be read. After a "no", [`Output::Resume`] says when.
    pub fn wants_delivery(&mut self, session: SessionId) -> bool {
        let Some(session) = self.sessions.get_mut(&session) else { return false };
        // What sessions before have left counts too: an application that stands still would be brought as much again by each.
        session.paused = !session.is_ready() || session.queued_bytes + self.left_bytes >= self.config.queue_bytes_max;
        !session.paused
    }

    /// The earliest time at which [`Input::Tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Millis> {
        let sync_at = self.sync_at.filter(|_| !self.sync_open);
        self.sessions.values().filter_map(|session| session.deadline()).chain(sync_at).min()
    }

    /// Up to where the application is done with this subscription: what it may keep, and give back to the next process.
    pub fn positions(&self, key: &SubscriptionKey) -> Option<Positions> {
        let subscription = self.subscriptions.get(self.subscriptions.current(key)?)?;
        Some(self.adopted_of(subscription))
    }

    /// [`GatewayCore::positions`] of all subscriptions.
    pub fn all_positions(&self) -> impl Iterator<Item = (&SubscriptionKey, Positions)> {
        let current = |reference: &SubscriptionRef, subscription: &Subscription| {
            self.subscriptions.current(&subscription.key) == Some(*reference)
        };
        self.subscriptions
            .iter()
            .filter(move |(reference, subscription)| current(reference, subscription))
            .map(|(_, subscription)| (subscription.key.as_ref(), self.adopted_of(subscription)))
    }

    /// Whether the subscription is registered and every matching change is on its way here.
    pub fn is_live(&self, key: &SubscriptionKey) -> bool {
        let current = self.subscriptions.current(key).and_then(|reference| self.subscriptions.get(reference));
        current.is_some_and(|subscription| subscription.bound && !subscription.unclear && !subscription.ended)
    }

    pub fn terminal(&self) -> Option<&TerminalError> {
        self.terminal.as_ref()
    }

    /// Whether nothing will be connected any more.
    pub fn is_ended(&self) -> bool {
        self.over
    }

    /// Whether nothing will ever come out of [`GatewayCore::next_event`] again.
    pub fn is_over(&self) -> bool {
        self.over && self.fifo.is_drained()
    }

    /// Whether a shard has ever welcomed this Gateway.
    pub fn was_welcomed(&self) -> bool {
        self.topology.is_some()
    }

    fn is_held_back(&self) -> bool {
        self.fifo.is_held_back(|reference| self.subscriptions.fate(reference))
    }

    fn adopted_of(&self, subscription: &Subscription) -> Positions {
        let session = subscription.session.filter(|_| subscription.bound);
        let session = session.and_then(|session| self.sessions.get(&session));
        subscription.adopted_with(session.map(|session| &session.adopted_floor))
    }

    fn connected(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.stage != Stage::Connecting {
            return;
        }
        session.stage = Stage::Greeted;
        let hello = Hello {
            gateway: self.config.gateway.clone(),
            token: self.config.token.clone(),
            agent: self.config.agent.clone(),
            capabilities: Capabilities { can_verify: self.config.can_verify },
        };
        self.outputs.push_back(Output::Request { session: id, request: Request::Hello(hello) });
    }

    /// From here on shards are told when all has been presented to them.
    fn open_sync(&mut self) {
        if !std::mem::replace(&mut self.sync_open, true) {
            let all: Vec<SessionId> = self.sessions.keys().copied().collect();
            all.into_iter().for_each(|id| self.pump(id));
        }
    }

    fn tick(&mut self) {
        if self.sync_at.is_some_and(|at| at <= self.now) {
            self.open_sync();
        }
        let late: Vec<SessionId> =
            self.sessions.values().filter(|s| s.deadline().is_some_and(|at| at <= self.now)).map(|s| s.id).collect();
        for id in late {
            // An earlier one of them may have taken this one with it.
            let Some(session) = self.sessions.get(&id) else { continue };
            if session.leave_at.is_some_and(|at| at <= self.now) {
                self.move_on(id);
                continue;
            }
            let what = match session.stage {
                Stage::Ready => format!("nothing was heard for {} heartbeats", session::SILENT_HEARTBEATS),
                Stage::Connecting => "the connection did not come about in time".into(),
                Stage::Greeted => "no answer to the hello".into(),
            };
            self.session_over(id, DisconnectReason::Lost(what), Some(None));
        }
    }

    fn subscribe(&mut self, item: SubscribeItem) {
        let topology = self.topology.as_ref();
        if let Some(reference) = self.subscriptions.current(&item.key)
            && let Some(subscription) = self.subscriptions.get_mut(reference)
        {
            if subscription.ended {
                self.subscriptions.release_key(reference);
            } else if let Some(had) = &subscription.item {
                if same_content(had, &item) {
                    return;
                }
                self.drop_current(reference);
            } else if topology.is_some_and(|topology| owner_of(&topology.slots, &item) != subscription.owner) {
                // Another shard owns what is asked for: what this one bound is an older self.
                self.counters.strays_ended += 1;
                self.drop_current(reference);
            } else if item.positions.is_empty() && subscription.bound {
                // The node bound it before the application asked for it. Whether it is the same, the shard will say.
                subscription.item = Some(Arc::new(item));
                subscription.phase = Phase::Idle;
                subscription.unclear = true;
                self.present(reference);
                return;
            } else {
                subscription.item = Some(Arc::new(item));
                self.start_over(reference);
                return;
            }
        }
        let positions = item.positions.clone();
        let key = Arc::new(item.key.clone());
        let mut subscription = Subscription::new(key, Some(Arc::new(item)), positions);
        subscription.handed_version = self.floor_version;
        subscription.adopted_version = self.floor_version;
        if let (Some(topology), Some(item)) = (&self.topology, &subscription.item) {
            subscription.owner = owner_of(&topology.slots, item);
        }
        let reference = self.subscriptions.insert(subscription);
        self.present(reference);
    }

    /// The node has bound a subscription, which it knew from before, without having been told the application's positions. It
    /// takes positions for what it has not bound yet, so a new session is needed, in which they are presented in time.
    fn start_over(&mut self, reference: SubscriptionRef) {
        let Some(old) = self.subscriptions.get(reference) else { return };
        let session = old.session.filter(|_| old.bound);
        if let (true, Some(session)) = (old.ever_accepted, session) {
            // It has items in the queue, which stay; its own positions are presented.
            return self.move_on(session);
        }
        match (session, self.make_anew(reference)) {
            (Some(session), _) => self.move_on(session),
            (None, Some(reference)) => self.present(reference),
            (None, None) => {}
        }
    }

    /// Puts one in its place that begins where its application is. Nobody wants what came of it.
    fn make_anew(&mut self, reference: SubscriptionRef) -> Option<SubscriptionRef> {
        let item = self.subscriptions.get(reference)?.item.clone()?;
        let old = self.subscriptions.remove(reference)?;
        self.counters.begun_anew += 1;
        let positions = if old.ever_accepted { old.adopted } else { item.positions.clone() };
        let mut subscription = Subscription::new(old.key, Some(item), positions);
        subscription.owner = old.owner;
        subscription.ever_sent = old.ever_sent;
        subscription.ever_accepted = old.ever_accepted;
        subscription.redirects = old.redirects;
        Some(self.subscriptions.insert(subscription))
    }

    fn unsubscribe(&mut self, key: &SubscriptionKey) {
        let Some(reference) = self.subscriptions.current(key) else { return };
        self.drop_current(reference);
    }

    /// Makes the key free for another, and sees to it that the node forgets this one.
    fn drop_current(&mut self, reference: SubscriptionRef) {
        let Some(subscription) = self.subscriptions.get_mut(reference) else { return };
        if subscription.ended {
            subscription.condemned = true;
            self.subscriptions.release_key(reference);
        } else if !subscription.ever_sent {
            self.subscriptions.remove(reference);
        } else {
            self.subscriptions.condemn(reference);
            self.ask_for_removal(reference);
        }
    }

    /// Removes for good, and lets the one in that waited for its key.
    fn forget(&mut self, reference: SubscriptionRef) {
        let Some(subscription) = self.subscriptions.remove(reference) else { return };
        if let Some(next) = self.subscriptions.current(&subscription.key) {
            self.present(next);
        }
    }

    /// Takes what is done off the queue, and tells the shards.
    fn settle(&mut self) {
        loop {
            let subscriptions = &self.subscriptions;
            let Some(entry) = self.fifo.pop_done(|reference| subscriptions.is_wanted(reference)) else { break };
            match entry.effect {
                Effect::None => {}
                Effect::Advance(position) => {
                    if let Some(subscription) = entry.subscription.and_then(|s| self.subscriptions.get_mut(s)) {
                        subscription.adopted.advance(position);
                    }
                }
                Effect::Replace(floor) => {
                    if let Some(subscription) = entry.subscription.and_then(|s| self.subscriptions.get_mut(s)) {
                        subscription.adopted = floor.positions;
                        if subscription.session == Some(entry.session) {
                            subscription.adopted_version = floor.version;
                        }
                    }
                }
                Effect::Floor(floor) => {
                    if let Some(session) = self.sessions.get_mut(&entry.session) {
                        session.adopted_floor = *floor;
                    }
                }
                Effect::CatchingUp => {
                    let floor = self.sessions.get(&entry.session).map(|session| &session.adopted_floor);
                    if let Some(subscription) = entry.subscription.and_then(|s| self.subscriptions.get_mut(s))
                        && subscription.session == Some(entry.session)
                    {
                        subscription.adopted = subscription.adopted_with(floor);
                        subscription.adopted_version = NO_FLOORS;
                    }
                }
                Effect::CaughtUp { floor_version } => {
                    if let Some(subscription) = entry.subscription.and_then(|s| self.subscriptions.get_mut(s))
                        && subscription.session == Some(entry.session)
                    {
                        subscription.adopted_version = floor_version;
                    }
                }
                Effect::End => {
                    if let Some(reference) = entry.subscription {
                        self.forget(reference);
                    }
                }
            }
            if let Some(session) = self.sessions.get_mut(&entry.session) {
                session.queued_bytes -= entry.bytes;
                session.counted.done = session.counted.done.max(entry.seq);
            } else {
                self.left_bytes -= entry.bytes;
            }
        }
        if self.waits_for_answer && !self.is_held_back() {
            self.waits_for_answer = false;
            self.outputs.push_back(Output::Available);
        }
        for session in self.sessions.values_mut().filter(|session| session.is_ready()) {
            if session.counted != session.acked {
                session.acked = session.counted;
                self.outputs.push_back(Output::Ack { session: session.id, ack: session.counted });
            }
            // Halfway, so that a stream is not stopped and started for every item.
            if session.paused && session.queued_bytes + self.left_bytes <= self.config.queue_bytes_max / 2 {
                session.paused = false;
                session.heard_at = self.now;
                self.outputs.push_back(Output::Resume { session: session.id });
            }
        }
    }
}

/// Whether two registrations ask for the same, wherever they begin.
fn same_content(one: &SubscribeItem, other: &SubscribeItem) -> bool {
    let content = |item: &SubscribeItem| SubscribeItem { positions: Positions::default(), ..item.clone() };
    content(one) == content(other)
}

/// How long an application that has just connected may take to subscribe to what it had before, if it doesn't ask for items
/// earlier.
const SYNC_HELD_MS: u64 = 1_000;

fn owner_of(slots: &SlotTable, item: &SubscribeItem) -> u16 {
    slots.owner(PlaceHash::of(&item.key.tenant, &item.collection))
}

#[cfg(test)]
mod tests;
