//! One connection of a Gateway after its hello: what waits to be sent, what was sent and isn't done, and requests that wait for
//! their answer.
//!
//! Invariants:
//! - `done <= received <= last_seq`, and each only grows.
//! - `in_flight` holds what has a `seq` above `done`, in that order.
//! - Handles are given in the order 1, 2, 3 … and never again. A Gateway's sessions count them on one row of numbers: a
//!   subscription keeps the last number that was given for it, which tells by itself whether that was in this session.
//! - Requests are examined in their order, and each before it is acted upon.
//! - While something waits, the driver knows: `ready_told` is set whenever `queue` isn't empty.

use std::collections::{BTreeSet, VecDeque};

use hashbrown::HashMap;
use smallvec::SmallVec;
use wire::{
    Ack, BackendId, Bound, CloseReason, ErrorCode, Handle, Position, Positions, RequestId, ResyncReason, SubscribeItem,
    SubscribeResult, SubscriptionKey,
};

use crate::config::OutboxLimits;
use crate::outbox::Places;
use crate::sample::Timed;
use crate::subscription::{PassKey, SubId, Subscription};
use crate::{Admission, ConnectionId, Refusal};

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) connection: ConnectionId,
    pub(crate) can_verify: bool,
    /// Whether it has presented all its subscriptions.
    pub(crate) synced: bool,

    pub(crate) queue: VecDeque<Item>,
    pub(crate) ready_told: bool,
    pub(crate) waiting_bytes: usize,
    /// Live items in the queue.
    pub(crate) waiting_events: usize,
    /// Replays in the queue.
    pub(crate) waiting_replays: usize,
    /// Log entries before this number don't wait as live items any more, or never did.
    pub(crate) next_live: u64,
    /// It has held more than it may, and has not come down to half of that since. What is for it is not put into its queue; who it is
    /// for falls behind.
    pub(crate) full: bool,
    /// It is counted among those for which reading should pause.
    pub(crate) pressing: bool,
    /// When its Gateway was last done with something; at first when it began.
    pub(crate) progress_at: u64,
    /// `Closed` in the queue. Each has its `Bound` before it, so that this bounds what subscribing and ending can pile up.
    pub(crate) closed_waiting: usize,
    pub(crate) in_flight: VecDeque<InFlight>,
    pub(crate) in_flight_bytes: usize,
    /// The last `seq` of each piece that was handed out, and when.
    pub(crate) unreceived: VecDeque<(u64, u64)>,
    pub(crate) last_seq: u64,
    received: u64,
    done: u64,
    /// The number that stands for the session itself; its handles count from there.
    base: u32,
    last_mark: u32,

    pub(crate) heartbeat_at: u64,
    pub(crate) heartbeat_queued: bool,
    pub(crate) positions_told: Positions,

    pub(crate) requests: VecDeque<Waiting>,
    /// How many of them have been examined.
    pub(crate) examined: usize,
    /// How many have been answered, and so how the first of them is counted.
    pub(crate) answered: u64,
    /// Subscriptions that are about to be bound.
    pub(crate) batch: Batch,
    /// Those of its subscriptions that are behind, by backend.
    pub(crate) waits: SmallVec<[Waits; 1]>,
    /// A change that is being timed.
    pub(crate) sample: Option<Timed>,
}

/// Subscriptions of a session that are behind for a backend, in the order of their places.
#[derive(Debug)]
pub(crate) struct Waits {
    pub(crate) backend: BackendId,
    /// They wait for a pass to begin.
    pub(crate) waiting: BTreeSet<(PassKey, SubId)>,
    /// The running pass serves them.
    pub(crate) served: BTreeSet<(PassKey, SubId)>,
    /// What the shard was told of the first one that waits.
    pub(crate) wanted: Option<PassKey>,
}

/// Tells a session's handles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handles {
    base: u32,
}

impl Handles {
    /// The handle of a subscription of the session's Gateway, if it is bound in the session.
    pub(crate) fn of(self, sub: &Subscription) -> Option<Handle> {
        sub.mark().checked_sub(self.base).filter(|handle| *handle > 0).map(Handle)
    }
}

/// Subscriptions that are to be bound together, since one walk over their Gateway's log entries does for all of them.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) presented: Vec<Presented>,
    /// Places in `presented`.
    pub(crate) places: HashMap<SubId, u32>,
    pub(crate) walk: Walk,
    /// What will be queued behind the bindings.
    pub(crate) replays: Vec<Item>,
}

/// A subscription that is to be bound, and the positions that its Gateway presented for it. None presented: what it is owed.
#[derive(Debug)]
pub(crate) struct Presented {
    pub(crate) sub: SubId,
    pub(crate) positions: Positions,
}

/// Where the walk of a batch goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Walk {
    /// The batch is being put together.
    #[default]
    NotYet,
    /// Back to the first entry that somebody has not had. The next one is before this number.
    Back(u64),
    /// From there on to the end. This number is next.
    On(u64),
}

impl Batch {
    /// One that is presented twice is bound once, from what was presented last.
    pub(crate) fn add(&mut self, presented: Presented) {
        match self.places.get(&presented.sub) {
            Some(at) => self.presented[*at as usize] = presented,
            None => {
                self.places.insert(presented.sub, self.presented.len() as u32);
                self.presented.push(presented);
            }
        }
    }

    pub(crate) fn positions_of(&self, sub: SubId) -> Option<&Positions> {
        self.places.get(&sub).map(|at| &self.presented[*at as usize].positions)
    }
}

/// Something that waits for its place on the delivery stream.
#[derive(Debug)]
pub(crate) enum Item {
    Bound(Box<Bound>),
    /// A log entry, for all of the Gateway's targets in it that were bound when it came, which are marked up to `marks`: those from
    /// `start` to `end` that haven't been sent.
    Live {
        number: u64,
        start: u32,
        end: u32,
        bytes: usize,
        marks: u32,
    },
    /// A log entry once more, for these, as far as they stand at `start` or later. The log bounds how many bytes wait this way.
    Replay {
        number: u64,
        start: u32,
        subs: Box<[SubId]>,
        position: Box<Position>,
    },
    /// From here on what it lacks comes from the history.
    CatchingUp(SubId),
    /// From here on it has what the live stream brings. What it was brought by passes stands in the log before `upto`.
    CaughtUp {
        sub: SubId,
        upto: u64,
    },
    Resync {
        sub: SubId,
        reason: ResyncReason,
    },
    Closed {
        handle: Handle,
        reason: CloseReason,
    },
    Heartbeat(Positions),
    GoAway {
        within_ms: u32,
        reason: ErrorCode,
    },
}

/// Something sent that has a `seq`.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) seq: u64,
    pub(crate) bytes: usize,
    pub(crate) sent: Sent,
}

#[derive(Debug)]
pub(crate) enum Sent {
    /// A log entry, and its targets that were sent under this `seq`.
    Entry { number: u64, targets: Places },
    /// The same of one that a pass brought.
    OfPass { number: u64, targets: Places },
    /// What it stands for was settled when it was decided. Until it is done, it must be told again in a next session.
    Resync { sub: SubId, reason: ResyncReason },
}

/// A request in its turn. Each is answered once all before it are.
#[derive(Debug)]
pub(crate) enum Waiting {
    Subscribe {
        request: RequestId,
        items: Vec<SubscribeItem>,
        /// Of those that have been examined.
        states: Vec<ItemState>,
        /// Of those that have been acted upon.
        results: Vec<SubscribeResult>,
    },
    Unsubscribe {
        request: RequestId,
        /// Those that are left, in reverse.
        keys: Vec<SubscriptionKey>,
    },
    SyncDone {
        request: RequestId,
        begun: bool,
    },
    Ping {
        nonce: u64,
    },
}

/// How far an item of a `Subscribe` has come.
#[derive(Debug)]
pub(crate) enum ItemState {
    /// Nothing more is to be done.
    Answered(SubscribeResult),
    /// It was here with the same content when it was asked for.
    Renewal,
    /// The control side has been asked.
    Asked,
    Admitted(Admission),
    /// The control side said no.
    Refused(Refusal),
    /// It has been acted upon.
    Done,
}

impl Waits {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.served.is_empty()
    }
}

impl Item {
    /// The log entry that it is, if it is one.
    pub(crate) fn number(&self) -> Option<u64> {
        match self {
            Self::Live { number, .. } | Self::Replay { number, .. } => Some(*number),
            _ => None,
        }
    }
}

impl ItemState {
    pub(crate) fn of_answer(answer: Result<Admission, Refusal>) -> Self {
        match answer {
            Ok(admission) => Self::Admitted(admission),
            Err(refusal) => Self::Refused(refusal),
        }
    }
}

/// An ack that can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadAck {
    #[error("ack of done {} above received {}", .0.done, .0.received)]
    DoneAboveReceived(Ack),
    #[error("ack of received {received} where only {last_seq} was sent")]
    AboveSent { received: u64, last_seq: u64 },
    #[error("ack of received {} and done {} after {} and {}", .now.received, .now.done, .before.received, .before.done)]
    Backwards { before: Ack, now: Ack },
}

impl Session {
    /// `last_mark` is the last number that the Gateway's sessions before it gave, `next` the number of the next log entry.
    pub(crate) fn new(connection: ConnectionId, can_verify: bool, time: u64, last_mark: u32, next: u64) -> Self {
        let base = last_mark.saturating_add(1);
        Self {
            connection,
            can_verify,
            synced: false,
            queue: VecDeque::new(),
            ready_told: false,
            waiting_bytes: 0,
            waiting_events: 0,
            waiting_replays: 0,
            next_live: next,
            full: false,
            pressing: false,
            progress_at: time,
            closed_waiting: 0,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            unreceived: VecDeque::new(),
            last_seq: 0,
            received: 0,
            done: 0,
            base,
            last_mark: base,
            heartbeat_at: time,
            heartbeat_queued: false,
            positions_told: Positions::default(),
            requests: VecDeque::new(),
            examined: 0,
            answered: 0,
            batch: Batch::default(),
            waits: SmallVec::new(),
            sample: None,
        }
    }

    /// The mark of the subscription that is bound next, and its handle. None once a session has bound more subscriptions than there
    /// are handles, which takes more than two billion.
    pub(crate) fn next_handle(&mut self) -> Option<(u32, Handle)> {
        self.last_mark = self.last_mark.checked_add(1)?;
        Some((self.last_mark, Handle(self.last_mark - self.base)))
    }

    /// The handle of a subscription of its Gateway, if it is bound in this session.
    pub(crate) fn handle_of(&self, sub: &Subscription) -> Option<Handle> {
        self.handles().of(sub)
    }

    pub(crate) fn has_bound(&self, sub: &Subscription) -> bool {
        sub.mark() > self.base
    }

    pub(crate) fn handles(&self) -> Handles {
        Handles { base: self.base }
    }

    /// What a subscription is marked with that is presented in this session and has no handle yet.
    pub(crate) fn base(&self) -> u32 {
        self.base
    }

    /// Whether it has presented this subscription, or bound it.
    pub(crate) fn has_met(&self, sub: &Subscription) -> bool {
        sub.mark() >= self.base
    }

    pub(crate) fn done(&self) -> u64 {
        self.done
    }

    pub(crate) fn last_mark(&self) -> u32 {
        self.last_mark
    }

    /// Takes the first request off.
    pub(crate) fn pop_request(&mut self) -> Option<Waiting> {
        let waiting = self.requests.pop_front()?;
        debug_assert!(self.examined > 0, "a request is answered before it was examined");
        self.examined -= 1;
        self.answered += 1;
        Some(waiting)
    }

    /// Puts something at the end of the delivery stream. Gives whether the driver is to be told that something waits.
    pub(crate) fn enqueue(&mut self, item: Item) -> bool {
        match &item {
            Item::Live { bytes, .. } => {
                self.waiting_bytes += bytes;
                self.waiting_events += 1;
            }
            Item::Replay { .. } => self.waiting_replays += 1,
            _ => {}
        }
        self.queue.push_back(item);
        !std::mem::replace(&mut self.ready_told, true)
    }

    pub(crate) fn next_seq(&mut self) -> u64 {
        self.last_seq += 1;
        self.last_seq
    }

    /// Takes the ack in. What is done with it is in front of `in_flight`.
    pub(crate) fn ack(&mut self, ack: Ack) -> Result<(), BadAck> {
        if ack.done > ack.received {
            return Err(BadAck::DoneAboveReceived(ack));
        }
        if ack.received > self.last_seq {
            return Err(BadAck::AboveSent { received: ack.received, last_seq: self.last_seq });
        }
        if ack.received < self.received || ack.done < self.done {
            let before = Ack { received: self.received, done: self.done };
            return Err(BadAck::Backwards { before, now: ack });
        }
        self.received = ack.received;
        self.done = ack.done;
        while self.unreceived.front().is_some_and(|(seq, _)| *seq <= ack.received) {
            self.unreceived.pop_front();
        }
        Ok(())
    }

    /// What was sent and is done now.
    pub(crate) fn pop_done(&mut self) -> Option<InFlight> {
        self.in_flight.front().filter(|sent| sent.seq <= self.done)?;
        let done = self.in_flight.pop_front()?;
        self.in_flight_bytes -= done.bytes;
        Some(done)
    }

    /// Takes back a heartbeat that waits. It promises that all up to its positions was sent before it, which is not so any more
    /// once something before it is skipped.
    pub(crate) fn drop_heartbeat(&mut self) {
        if std::mem::take(&mut self.heartbeat_queued) {
            self.queue.retain(|item| !matches!(item, Item::Heartbeat(_)));
            self.positions_told = Positions::default();
        }
    }

    /// Whether it holds more than one part in `share` of what it may.
    pub(crate) fn holds_more_than(&self, limits: OutboxLimits, share: usize) -> bool {
        self.waiting_bytes + self.in_flight_bytes > limits.bytes_max / share
            || self.waiting_events + self.in_flight.len() > limits.events_max / share
    }

    /// The number of the oldest log entry that it holds, about: entries that are sent again stand among newer ones.
    pub(crate) fn oldest_held(&self) -> Option<u64> {
        match self.in_flight.front().map(|sent| &sent.sent) {
            Some(Sent::Entry { number, .. } | Sent::OfPass { number, .. }) => Some(*number),
            Some(Sent::Resync { .. }) => None,
            None => self.queue.front()?.number(),
        }
    }

    /// Whether who is behind in it may be read for.
    pub(crate) fn is_open(&self, limits: OutboxLimits) -> bool {
        !self.full && !self.holds_more_than(limits, LOW_SHARE)
    }

    /// The `seq` up to which all has been sent that it was to be sent of the log's past. None while some of that waits.
    pub(crate) fn replayed_upto(&self) -> Option<u64> {
        (self.waiting_replays == 0).then_some(self.last_seq)
    }

    /// Whether a log entry may wait as a live item.
    pub(crate) fn may_wait(&self, number: u64) -> bool {
        number >= self.next_live
    }

    /// Whether one of its lists holds this one.
    pub(crate) fn lists(&self, backend: BackendId, sub: (PassKey, SubId)) -> bool {
        let of_backend = self.waits.iter().find(|waits| waits.backend == backend);
        of_backend.is_some_and(|waits| waits.waiting.contains(&sub) || waits.served.contains(&sub))
    }

    pub(crate) fn waits_for(&mut self, backend: BackendId) -> &mut Waits {
        let at = self.waits.iter().position(|waits| waits.backend == backend).unwrap_or_else(|| {
            self.waits.push(Waits { backend, waiting: BTreeSet::new(), served: BTreeSet::new(), wanted: None });
            self.waits.len() - 1
        });
        &mut self.waits[at]
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.done <= self.received, "done {} above received {}", self.done, self.received);
        assert!(self.received <= self.last_seq, "received {} above sent {}", self.received, self.last_seq);
        assert!(self.queue.is_empty() || self.ready_told, "something waits and the driver was not told");
        let live = || {
            self.queue.iter().filter_map(|item| match item {
                Item::Live { number, bytes, .. } => Some((*number, *bytes)),
                _ => None,
            })
        };
        assert_eq!(live().map(|(_, bytes)| bytes).sum::<usize>(), self.waiting_bytes, "waiting bytes");
        assert_eq!(live().count(), self.waiting_events, "entries that wait");
        let replays = self.queue.iter().filter(|item| matches!(item, Item::Replay { .. })).count();
        assert_eq!(replays, self.waiting_replays, "replays that wait");
        assert!(live().all(|(number, _)| self.may_wait(number)), "an entry waits that is said not to");
        assert!(live().is_sorted_by(|a, b| a.0 < b.0), "entries wait out of order");
        let closed = self.queue.iter().filter(|item| matches!(item, Item::Closed { .. })).count();
        assert_eq!(closed, self.closed_waiting, "endings that wait");
        assert_eq!(
            self.in_flight.iter().map(|sent| sent.bytes).sum::<usize>(),
            self.in_flight_bytes,
            "bytes in flight"
        );
        assert!(self.in_flight.iter().all(|sent| sent.seq > self.done), "in flight and done");
        assert!(
            self.in_flight.iter().zip(self.in_flight.iter().skip(1)).all(|(a, b)| a.seq < b.seq),
            "in flight out of order"
        );
    }
}

/// A session whose outbox holds at most one part in this many of what it may is read for again.
pub(crate) const LOW_SHARE: usize = 2;
