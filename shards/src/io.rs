//! What goes into a [`Shard`](crate::Shard) and what comes out of it.

use std::sync::Arc;

use predicate::Predicate;
use wire::{Ack, ErrorCode, Registration, Reply, Request, SubscribeItem, SubscriptionKey};

use crate::{FilterBuilt, FromIngest, ShardLimits};

/// Milliseconds of a monotonic clock that the driver owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

/// One QUIC connection, by a number that the driver never uses twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// Pairs an admission with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

#[derive(Debug)]
pub enum Input {
    /// From the ring, in its order.
    Ingest(FromIngest),
    /// A decoded request from a connection's control stream. The first one must be a hello, which the driver has
    /// authenticated: it passes [`Input::Hello`] instead.
    Request {
        connection: ConnectionId,
        request: Request,
    },
    /// A hello whose token was found good for its Gateway.
    Hello {
        connection: ConnectionId,
        gateway: String,
        can_verify: bool,
    },
    Ack {
        connection: ConnectionId,
        ack: Ack,
    },
    Disconnected {
        connection: ConnectionId,
    },
    /// Answer to [`Output::Admit`].
    Admitted {
        ticket: Ticket,
        results: Vec<Result<Admission, Refusal>>,
    },
    Command(Command),
    /// What became of a build that [`Shard::step_filter`](crate::Shard::step_filter) gave out.
    FilterBuilt(FilterBuilt),
    /// The node is about to stop: every session is told to come back within this time.
    GoAway {
        within_ms: u32,
    },
    /// Other limits from here on, and Gateways that may no longer connect.
    Reload(Reload),
    /// Time passes: expiry, deadlines, heartbeats. At most once every few milliseconds, at least every 100 ms.
    Tick,
}

/// What is told to a shard that runs when the node's configuration has changed.
#[derive(Clone, Debug)]
pub struct Reload {
    pub limits: ShardLimits,
    /// Whose token isn't good any more. Their sessions end; what they are owed is kept as for any Gateway that is away.
    pub revoked: Vec<String>,
}

/// A subscription that may enter the index.
#[derive(Clone, Debug)]
pub struct Admission {
    pub predicate: Arc<Predicate>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: ErrorCode,
    pub message: String,
}

/// Pairs a command with its [`Output::Commanded`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandId(pub u64);

/// From the control thread.
#[derive(Debug)]
pub struct Command {
    pub id: CommandId,
    pub gateway: String,
    pub what: CommandKind,
}

#[derive(Debug)]
pub enum CommandKind {
    /// Registers over HTTP; the admission has been made. Same id and content renews, other content is refused.
    Register {
        item: SubscribeItem,
        admission: Admission,
    },
    /// Heartbeat of a subscription over HTTP.
    Renew {
        key: SubscriptionKey,
    },
    Remove {
        key: SubscriptionKey,
        reason: wire::CloseReason,
    },
    /// Removes all subscriptions of the Gateway.
    RemoveAll,
}

#[derive(Debug, PartialEq, Eq)]
pub enum CommandReply {
    Registered {
        registration: Registration,
        filter_version: u64,
        expires_in_ms: u64,
    },
    /// Same id, other content.
    Exists,
    /// The Gateway's session has not read of so many subscriptions that ended, that no more are taken in over HTTP.
    Busy,
    Renewed {
        expires_in_ms: u64,
    },
    /// Never was here, or was removed.
    NotFound,
    /// Was here until its time ran out.
    Expired,
    Removed {
        count: u64,
    },
}

#[derive(Debug)]
pub enum Output {
    Reply {
        connection: ConnectionId,
        reply: Reply,
    },
    /// Ends a connection after what was put out for it before has been flushed.
    Close {
        connection: ConnectionId,
        code: ErrorCode,
        message: String,
    },
    /// Asks the control side to compile these and to count them in. Answered in the order of asking.
    Admit {
        ticket: Ticket,
        gateway: String,
        items: Vec<SubscribeItem>,
    },
    /// These no longer count: expired, unsubscribed, removed by a command, or admitted for a session that has ended since.
    Released {
        gateway: String,
        keys: Vec<SubscriptionKey>,
    },
    Commanded {
        id: CommandId,
        reply: CommandReply,
    },
    /// There is something to [`fill`](crate::Shard::fill) for this connection. Given once until `fill` has returned empty.
    Ready {
        connection: ConnectionId,
    },
}
