//! One session with one shard: what it was told, what it was asked, how far its stream has come.

use std::collections::{HashMap, VecDeque};

use hashbrown::HashMap as QuickMap;
use wire::{Ack, Delivery, Epoch, Handle, Positions, RequestId, SubscriptionKey};

use super::{Millis, SessionId, subscriptions::SubscriptionRef};

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The first contact: any shard.
    Any,
    Shard(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Connecting,
    /// The hello is out.
    Greeted,
    /// The welcome is in.
    Ready,
}

/// What the last heartbeat said. A subscription bound after that heartbeat is none of its business, which the version tells:
/// heartbeats are numbered, and a subscription remembers the number that was current when it was bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Floor {
    pub(super) positions: Positions,
    pub(super) version: u64,
}

#[derive(Debug)]
pub(super) enum Unanswered {
    Subscribe(Vec<SubscriptionRef>),
    Unsubscribe(Vec<SubscriptionRef>),
    SyncDone,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) place: Place,
    pub(super) stage: Stage,
    pub(super) epoch: Option<Epoch>,
    pub(super) heartbeat_ms: u64,
    pub(super) max_body_bytes: usize,

    /// When a session that isn't ready yet is given up.
    pub(super) ready_by: Millis,
    pub(super) ready_since: Millis,
    pub(super) heard_at: Millis,
    /// The node goes away: when this session is to move.
    pub(super) leave_at: Option<Millis>,

    pub(super) to_present: VecDeque<SubscriptionRef>,
    pub(super) to_unsubscribe: VecDeque<SubscriptionRef>,
    /// Keys under which the shard knows what is no longer asked for: their collections are others' now. They are to end there.
    pub(super) strays: VecDeque<SubscriptionKey>,
    pub(super) unanswered: HashMap<RequestId, Unanswered>,
    pub(super) sync_sent: bool,
    pub(super) synced: bool,

    /// Only looked up, never walked.
    pub(super) handles: QuickMap<Handle, SubscriptionRef>,
    /// What came on the delivery stream before the welcome came on the control stream.
    pub(super) early: VecDeque<Delivery>,
    pub(super) counted: Ack,
    /// What the shard was last told of `counted`.
    pub(super) acked: Ack,
    pub(super) handed_floor: Floor,
    pub(super) adopted_floor: Floor,

    /// Bytes of its items in the queue.
    pub(super) queued_bytes: usize,
    /// Whether the IO layer was told to stop reading the delivery stream.
    pub(super) paused: bool,
}

impl Session {
    pub(super) fn new(id: SessionId, place: Place, ready_by: Millis) -> Self {
        Self {
            id,
            place,
            stage: Stage::Connecting,
            epoch: None,
            heartbeat_ms: 0,
            max_body_bytes: 0,
            ready_by,
            ready_since: Millis(0),
            heard_at: Millis(0),
            leave_at: None,
            to_present: VecDeque::new(),
            to_unsubscribe: VecDeque::new(),
            strays: VecDeque::new(),
            unanswered: HashMap::new(),
            sync_sent: false,
            synced: false,
            handles: QuickMap::new(),
            early: VecDeque::new(),
            counted: Ack::default(),
            acked: Ack::default(),
            handed_floor: Floor::default(),
            adopted_floor: Floor::default(),
            queued_bytes: 0,
            paused: false,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.stage == Stage::Ready
    }

    /// The shard that it is with. Only a session that is ready is asked.
    pub(super) fn partition(&self) -> u16 {
        match self.place {
            Place::Shard(partition) => partition,
            Place::Any => unreachable!("a welcome gives a session its shard before it is ready"),
        }
    }

    /// When silence, or the lack of a welcome, ends it; or when it has to move.
    pub(super) fn deadline(&self) -> Option<Millis> {
        let silent_at = match self.stage {
            Stage::Ready if self.paused || self.heartbeat_ms == 0 => None,
            Stage::Ready => Some(self.heard_at.after(SILENT_HEARTBEATS * self.heartbeat_ms)),
            Stage::Connecting | Stage::Greeted => Some(self.ready_by),
        };
        match (silent_at, self.leave_at) {
            (Some(silent_at), Some(leave_at)) => Some(silent_at.min(leave_at)),
            (one, other) => one.or(other),
        }
    }
}

/// Heartbeats that may be missing before a session is taken for dead.
pub(super) const SILENT_HEARTBEATS: u64 = 3;
