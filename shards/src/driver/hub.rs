//! Where the tasks of one shard meet: the shard's state machine, its connections, and the way to the control thread.
//!
//! Invariants:
//! - The shard is borrowed for the length of one call and never over an await. All tasks run on one thread, so a borrow can't
//!   meet another.
//! - Outputs are handed on in the order they came out, before anything else goes in.
//! - The shard hears of a connection from its hello on, and hears exactly once that it has ended.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use bytes::BytesMut;
use tracing::debug;
use wire::{Ack, ErrorCode, MAX_UNANSWERED_REQUESTS, Reply, Request, SubscribeItem, SubscriptionKey};

use super::{
    cells::CellWriter,
    core::Core,
    executor::Executor,
    latency::{DoneSample, Latencies, now},
    local::LocalEvent,
    ring::{Marked, RingStats},
    stats::*,
};
use crate::{
    CommandId, CommandReply, ConnectionId, FilterStep, FromIngest, HotPlace, Input, Millis, Nanos, Output, Refusal,
    Sample, Ticket,
};

/// From a shard to the control thread.
#[derive(Debug)]
pub enum FromShard {
    /// Asks to compile these and to count them in. The answer goes back with the ticket, to the shard that asked.
    Admit {
        shard: u16,
        ticket: Ticket,
        gateway: String,
        items: Vec<SubscribeItem>,
    },
    /// These no longer count.
    Released {
        shard: u16,
        gateway: String,
        keys: Vec<SubscriptionKey>,
    },
    Commanded {
        shard: u16,
        id: CommandId,
        reply: CommandReply,
    },
}

/// Messages for the control thread beyond which requests of Gateways wait.
const CONTROL_BACKLOG_MAX: usize = 1_024;
/// Replies of one connection that may wait to be written: an answer for each request that may be unanswered, the welcome and a
/// refusal.
const REPLIES_MAX: usize = MAX_UNANSWERED_REQUESTS + 2;

/// What is told to whoever comes while the node stops, and to whoever is there when it has.
pub(super) const SHUTTING_DOWN: &str = "the node is shutting down";

pub(super) struct Hub<C> {
    partition: u16,
    body_bytes_max: usize,
    started: Instant,
    core: RefCell<C>,
    /// These two are empty outside of a call; kept for their memory.
    items: RefCell<Vec<FromIngest>>,
    outputs: RefCell<Vec<Output>>,
    lines: RefCell<HashMap<ConnectionId, Rc<Line>>>,
    next_connection: Cell<u64>,
    /// Connections that are not in `lines` yet.
    pub(super) newcomers: Cell<usize>,
    backlog: RefCell<VecDeque<FromShard>>,
    /// The node is about to stop: nobody is let in any more.
    draining: Cell<bool>,
    /// What was asked of the control thread since then, by its number of items. It is refused here.
    turned_away: RefCell<VecDeque<(Ticket, usize)>>,
    /// Something but the ring went in since the last look: there may be something to publish, or a backlog.
    pub(super) stirred: LocalEvent,
    /// A connection has left.
    pub(super) left: LocalEvent,
    pub(super) counters: Counters,
    latencies: RefCell<Latencies>,
    hot: RefCell<Arc<[HotPlace]>>,
    samples: Option<flume::Sender<DoneSample>>,
    executor: Rc<Executor>,
}

impl<C: Core> Hub<C> {
    pub(super) fn new(
        partition: u16,
        body_bytes_max: usize,
        core: C,
        executor: Rc<Executor>,
        samples: Option<flume::Sender<DoneSample>>,
    ) -> Self {
        Self {
            partition,
            body_bytes_max,
            started: Instant::now(),
            core: RefCell::new(core),
            items: RefCell::default(),
            outputs: RefCell::default(),
            lines: RefCell::default(),
            next_connection: Cell::new(1),
            newcomers: Cell::new(0),
            backlog: RefCell::default(),
            draining: Cell::new(false),
            turned_away: RefCell::default(),
            stirred: LocalEvent::default(),
            left: LocalEvent::default(),
            counters: Counters::default(),
            latencies: RefCell::default(),
            hot: RefCell::default(),
            samples,
            executor,
        }
    }

    pub(super) fn now(&self) -> Millis {
        // Half a billion years fit.
        Millis(self.started.elapsed().as_millis() as u64)
    }

    /// The largest body that a session's requests may have.
    pub(super) fn body_bytes_max(&self) -> usize {
        self.body_bytes_max
    }

    /// One input that is not from the ring.
    pub(super) fn input(&self, input: Input) {
        if self.executor.has_failed() {
            // What a panic left behind is not to be worked on. The main loop ends the shard.
            return;
        }
        self.core.borrow_mut().handle(input, self.now(), &mut self.outputs.borrow_mut());
        self.dispatch();
        self.stirred.set();
    }

    /// The same for an ack, which may be the end of what is timed.
    pub(super) fn ack(&self, connection: ConnectionId, ack: Ack) {
        self.input(Input::Ack { connection, ack });
        if let Some(sample) = self.core.borrow_mut().done_sample() {
            let done_at = now();
            let mut latencies = self.latencies.borrow_mut();
            latencies.ack.observe(done_at.since(sample.sent_at));
            latencies.end_to_end.observe(done_at.since(sample.read_at));
            if let Some(samples) = &self.samples
                && samples.try_send(DoneSample { sample, partition: self.partition, done_at }).is_err()
            {
                self.counters.samples_dropped.add(1);
            }
        }
    }

    /// Items of the ring, as many as `drain` hands out. It gives the one that is to be timed, if one is.
    pub(super) fn ingest(&self, drain: impl FnOnce(&mut dyn FnMut(FromIngest)) -> Option<Marked>) -> usize {
        if self.executor.has_failed() {
            return 0;
        }
        let now = self.now();
        let mut items = self.items.borrow_mut();
        let marked = drain(&mut |item| items.push(item));
        let count = items.len();
        if count > 0 {
            let mut core = self.core.borrow_mut();
            let sample = marked.and_then(|marked| sample(&items, &marked));
            sample.inspect(|sample| core.follow(*sample));
            core.ingest(&mut items, now, &mut self.outputs.borrow_mut());
            if let Some(sample) = sample {
                self.matched(&mut *core, &sample);
            }
        }
        self.dispatch();
        count
    }

    /// A slice of what the shard could not do at once. Whether there is more.
    pub(super) fn work(&self) -> bool {
        if self.executor.has_failed() {
            return false;
        }
        let more = self.core.borrow_mut().work(self.now(), &mut self.outputs.borrow_mut());
        self.dispatch();
        more
    }

    /// What is to be written to a connection's delivery stream next. 0: nothing until it is told so.
    pub(super) fn fill(&self, connection: ConnectionId, bytes_max: usize, buffer: &mut BytesMut) -> usize {
        if self.executor.has_failed() {
            return 0;
        }
        let mut core = self.core.borrow_mut();
        let bytes = core.fill(connection, self.now(), bytes_max, buffer);
        if let Some(sample) = core.sent_sample() {
            sample.sent_at = now();
            self.latencies.borrow_mut().send.observe(sample.sent_at.since(sample.matched_at));
        }
        bytes
    }

    fn matched(&self, core: &mut C, sample: &Sample) {
        let now = now();
        let mut latencies = self.latencies.borrow_mut();
        latencies.queue.observe(sample.taken_at.since(sample.pushed_at));
        latencies.matching.observe(now.since(sample.taken_at));
        if let Some(sample) = core.matched_sample() {
            sample.matched_at = now;
        }
    }

    pub(super) fn publish(&self, cells: &mut CellWriter) {
        let mut core = self.core.borrow_mut();
        cells.settled(core.settled());
        // Before the filter: whoever sees a filter sees the Gateways whose subscriptions it holds.
        cells.sync(core.sync_version(), || core.sync_state());
        cells.catch_up(core.catch_up_version(), || core.catch_up_wanted());
        cells.pressing(core.pressing());
        if let Some(filter) = core.take_filter() {
            cells.filter(filter);
        }
    }

    /// The next slice of what the filter has to do beside answering.
    pub(super) fn step_filter(&self) -> FilterStep {
        if self.executor.has_failed() {
            return FilterStep::Nothing;
        }
        self.core.borrow_mut().step_filter()
    }

    pub(super) fn publish_stats(&self, cells: &mut CellWriter, ring: RingStats) {
        let driver = DriverStats {
            sessions: self.sessions() as u64,
            newcomers: self.newcomers.get() as u64,
            control_backlog: self.backlog.borrow().len() as u64,
            ..self.counters.snapshot()
        };
        let shard = self.core.borrow().stats();
        let latencies = *self.latencies.borrow();
        cells.stats(StatsSnapshot { shard, driver, ring, latencies, hot: self.hot.borrow().clone() });
    }

    /// What is told with the counters from here on, and is dearer than these.
    pub(super) fn note_hot(&self) {
        self.hot.replace(self.core.borrow().hot_places().into());
    }

    /// Only when somebody has asked for it: it walks over all subscriptions.
    pub(super) fn publish_subscriptions(&self, cells: &mut CellWriter) {
        cells.subscriptions(|| self.core.borrow().count_subscriptions());
    }

    /// Counts a connection as a newcomer until the guard is dropped.
    pub(super) fn newcomer(self: &Rc<Self>) -> Newcomer<C> {
        self.newcomers.set(self.newcomers.get() + 1);
        Newcomer { hub: Rc::clone(self) }
    }

    pub(super) fn sessions(&self) -> usize {
        self.lines.borrow().len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sessions() == 0 && self.newcomers.get() == 0
    }

    /// Makes a connection known whose hello was good, before the shard hears of it.
    pub(super) fn connect(self: &Rc<Self>) -> Session<C> {
        let id = ConnectionId(self.next_connection.replace(self.next_connection.get() + 1));
        let line = Rc::new(Line { id, ..Line::default() });
        self.lines.borrow_mut().insert(id, Rc::clone(&line));
        Session { hub: Rc::clone(self), line }
    }

    /// Lets nobody in from here on, and asks all sessions to leave within this time; with none, they aren't asked.
    pub(super) fn drain(&self, within_ms: u32) {
        self.draining.set(true);
        if within_ms > 0 {
            self.input(Input::GoAway { within_ms });
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Answers what would have been asked of the control thread. Whether there was anything.
    pub(super) fn turn_away(&self) -> bool {
        let mut any = false;
        loop {
            let Some((ticket, items)) = self.turned_away.borrow_mut().pop_front() else { return any };
            any = true;
            let refusal = Refusal { code: ErrorCode::ShuttingDown, message: SHUTTING_DOWN.into() };
            self.input(Input::Admitted { ticket, results: vec![Err(refusal); items] });
        }
    }

    /// Ends all sessions for this reason, each once it is flushed.
    pub(super) fn refuse_all(&self, code: ErrorCode, message: &str) {
        for line in self.lines.borrow().values() {
            line.refuse(code, message.to_owned());
        }
    }

    /// Whether so much waits for the control thread that no more should be asked of it.
    pub(super) fn is_congested(&self) -> bool {
        self.backlog.borrow().len() >= CONTROL_BACKLOG_MAX
    }

    /// The oldest message for the control thread.
    pub(super) fn take_for_control(&self) -> Option<FromShard> {
        self.backlog.borrow_mut().pop_front()
    }

    fn dispatch(&self) {
        let mut outputs = self.outputs.take();
        let lines = self.lines.borrow();
        let shard = self.partition;
        for output in outputs.drain(..) {
            match output {
                Output::Reply { connection, reply } => {
                    if let Some(line) = lines.get(&connection) {
                        line.reply(reply, &self.counters);
                    }
                }
                Output::Ready { connection } => {
                    if let Some(line) = lines.get(&connection) {
                        line.ready.set(true);
                        line.delivery.set();
                    }
                }
                Output::Close { connection, code, message } => {
                    if let Some(line) = lines.get(&connection) {
                        line.close(code, message);
                    }
                }
                Output::Admit { ticket, items, .. } if self.draining.get() => {
                    self.turned_away.borrow_mut().push_back((ticket, items.len()));
                }
                Output::Admit { ticket, gateway, items } => {
                    self.backlog.borrow_mut().push_back(FromShard::Admit { shard, ticket, gateway, items });
                }
                Output::Released { gateway, keys } => {
                    self.backlog.borrow_mut().push_back(FromShard::Released { shard, gateway, keys });
                }
                Output::Commanded { id, reply } => {
                    self.backlog.borrow_mut().push_back(FromShard::Commanded { shard, id, reply });
                }
            }
        }
        // The memory goes back, the items are gone.
        self.outputs.replace(outputs);
    }
}

/// The change that the ingest thread has marked, if it is one that a shard follows.
fn sample(items: &[FromIngest], marked: &Marked) -> Option<Sample> {
    let at = items.len().checked_sub(1 + marked.behind)?;
    let FromIngest::Change(change) = items.get(at)? else { return None };
    Some(Sample {
        position: change.position,
        read_at: marked.read_at,
        pushed_at: marked.pushed_at,
        taken_at: now(),
        matched_at: Nanos::default(),
        sent_at: Nanos::default(),
    })
}

/// What the tasks of one connection share with the rest of the shard.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) id: ConnectionId,
    replies: RefCell<VecDeque<Reply>>,
    /// Requests taken in whose answer has not been written.
    unanswered: Cell<usize>,
    /// The shard has something to be filled.
    pub(super) ready: Cell<bool>,
    closing: RefCell<Option<(ErrorCode, String)>>,
    /// Wakes the writer of the control stream.
    pub(super) control: LocalEvent,
    /// Wakes the writer of the delivery stream.
    pub(super) delivery: LocalEvent,
    /// Starts the time that there is for flushing.
    pub(super) closed: LocalEvent,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            id: ConnectionId(0),
            replies: RefCell::default(),
            unanswered: Cell::new(0),
            ready: Cell::new(false),
            closing: RefCell::default(),
            control: LocalEvent::default(),
            delivery: LocalEvent::default(),
            closed: LocalEvent::default(),
        }
    }
}

impl Line {
    fn reply(&self, reply: Reply, counters: &Counters) {
        if self.replies.borrow().len() >= REPLIES_MAX {
            // Only a shard that answers twice gets here: requests are counted before they go in.
            debug!(connection = self.id.0, "more replies than requests");
            counters.requests_too_many.add(1);
            self.close(ErrorCode::Internal, "more replies than requests".into());
            return;
        }
        self.replies.borrow_mut().push_back(reply);
        self.control.set();
    }

    /// The reply to be written next. What it answers counts as answered.
    pub(super) fn next_reply(&self) -> Option<Reply> {
        let reply = self.replies.borrow_mut().pop_front()?;
        if !matches!(reply, Reply::Welcome(_) | Reply::Refused { .. }) {
            self.unanswered.set(self.unanswered.get().saturating_sub(1));
        }
        Some(reply)
    }

    /// Ends the connection once what was put out for it is flushed. The first reason stands.
    pub(super) fn close(&self, code: ErrorCode, message: String) {
        let mut closing = self.closing.borrow_mut();
        if closing.is_none() {
            *closing = Some((code, message));
            self.control.set();
            self.delivery.set();
            self.closed.set();
        }
    }

    /// The same with the reason told on the control stream.
    pub(super) fn refuse(&self, code: ErrorCode, message: String) {
        if self.closing().is_none() {
            self.replies.borrow_mut().push_back(Reply::Refused { code, message: message.clone() });
            self.close(code, message);
        }
    }

    pub(super) fn closing(&self) -> Option<(ErrorCode, String)> {
        self.closing.borrow().clone()
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.borrow().is_some()
    }
}

/// A session's hold on the hub. Its end is the session's end.
pub(super) struct Session<C: Core> {
    hub: Rc<Hub<C>>,
    pub(super) line: Rc<Line>,
}

impl<C: Core> Session<C> {
    /// Hands a request to the shard, unless more are unanswered than may be.
    pub(super) fn request(&self, request: Request) {
        let unanswered = self.line.unanswered.get() + 1;
        if unanswered > MAX_UNANSWERED_REQUESTS {
            self.hub.counters.requests_too_many.add(1);
            let message = format!("{unanswered} unanswered requests where {MAX_UNANSWERED_REQUESTS} are allowed");
            self.line.refuse(ErrorCode::TooManyRequests, message);
            return;
        }
        self.line.unanswered.set(unanswered);
        self.hub.counters.requests.add(1);
        self.hub.input(Input::Request { connection: self.line.id, request });
    }
}

impl<C: Core> Drop for Session<C> {
    fn drop(&mut self) {
        self.hub.lines.borrow_mut().remove(&self.line.id);
        self.hub.counters.sessions_ended.add(1);
        // Not while a panic unwinds through the shard, which may be borrowed then.
        if !std::thread::panicking() {
            self.hub.input(Input::Disconnected { connection: self.line.id });
        }
        self.hub.left.set();
    }
}

pub(super) struct Newcomer<C: Core> {
    hub: Rc<Hub<C>>,
}

impl<C: Core> Drop for Newcomer<C> {
    fn drop(&mut self) {
        self.hub.newcomers.set(self.hub.newcomers.get() - 1);
        self.hub.left.set();
    }
}
