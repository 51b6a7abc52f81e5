//! What Gateways and shards say to each other. `docs/protocol.md` has the meaning of every message and its place on the wire.
//!
//! Three streams a session: *control* (bidirectional, opened by the Gateway), *acks* (unidirectional, opened by the Gateway),
//! *delivery* (unidirectional, opened by the shard). Each has its own message type here, so that a message on a stream it
//! doesn't belong to can't be decoded.

use std::fmt;

use bincode::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{EventId, Events, Position, Positions, SlotTable};

/// ALPN of the protocol.
pub const ALPN: &[u8] = b"streamer/1";

/// First field of a hello's body. Another version has another meaning of what follows, and is refused.
pub const PROTOCOL_VERSION: u16 = 1;

/// Requests of a session that may wait for their answer at once.
pub const MAX_UNANSWERED_REQUESTS: usize = 1024;

/// Names a subscription towards one Gateway for the length of a session. Never used twice within a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
pub struct Handle(pub u32);

/// Pairs a request with its reply on the control stream. Chosen by the Gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// 128 random bits, new at every start of a node. Fences acks, never positions. As text and in JSON: 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Epoch(pub u128);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Serialize for Epoch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Epoch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16)
            .map(Self)
            .map_err(|_| D::Error::custom(format!("epoch {text:?} is not 32 hexadecimal digits")))
    }
}

/// A subscription's name towards the node: unique within a Gateway and tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
pub struct SubscriptionKey {
    pub tenant: String,
    pub id: String,
}

/// What a Gateway's SDK can do, told in its hello.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Capabilities {
    /// It evaluates filters and expressions itself, so it may be sent candidates marked [`Certainty::Unverified`].
    pub can_verify: bool,
}

/// What a Gateway subscribes to.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Serialize, Deserialize)]
pub struct SubscribeItem {
    pub key: SubscriptionKey,
    pub collection: String,
    /// JSON: a list of `{"field", "op", "value"}`, all ANDed. Empty text means no filters.
    pub filters: String,
    /// A CEL expression, ANDed with the filters. Empty text means none.
    pub expr: String,
    /// Seconds that the subscription outlives its Gateway's session. 0: the server's default.
    pub ttl_s: u32,
    /// Whether documents that stop matching are told as `leave`.
    pub transitions: bool,
    /// Positions up to which the application has everything. Empty: from now on.
    pub positions: Positions,
    /// Members of one group share its deliveries. Carried, not acted upon.
    pub group: Option<String>,
    /// The Gateway would rather lose changes than be moved to catch-up. Carried, not acted upon.
    pub lossy: bool,
}

impl SubscribeItem {
    /// To every change of a collection from now on, `leave` included, with the server's default for the rest.
    pub fn new(key: SubscriptionKey, collection: impl Into<String>) -> Self {
        Self {
            key,
            collection: collection.into(),
            filters: String::new(),
            expr: String::new(),
            ttl_s: 0,
            transitions: true,
            positions: Positions::default(),
            group: None,
            lossy: false,
        }
    }
}

/// Gateway to shard, on the control stream.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Serialize, Deserialize)]
pub enum Request {
    /// First message of a session, and only there.
    Hello(Hello),
    /// Upserts subscriptions. Answered by [`Reply::Subscribed`] with one result an item, in the items' order.
    Subscribe { request: RequestId, items: Vec<SubscribeItem> },
    /// Ends subscriptions; idempotent. Answered by [`Reply::Unsubscribed`].
    Unsubscribe { request: RequestId, keys: Vec<SubscriptionKey> },
    /// The Gateway has presented all its subscriptions of this shard. Answered by [`Reply::Synced`].
    SyncDone { request: RequestId },
    /// Answered by [`Reply::Pong`] with the same value.
    Ping { nonce: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Hello {
    /// The Gateway's id: 1 to 128 of `[a-zA-Z0-9_-]`.
    pub gateway: String,
    /// The Gateway's token; empty where the node runs open on loopback.
    pub token: String,
    /// Name and version of the SDK, for logs.
    pub agent: String,
    pub capabilities: Capabilities,
}

/// Where one shard is to be reached.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct ShardAddress {
    pub partition: u16,
    /// `host:port`, as advertised.
    pub address: String,
}

/// Shard to Gateway, on the control stream.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub enum Reply {
    /// Answers the hello.
    Welcome(Box<Welcome>),
    Subscribed {
        request: RequestId,
        results: Vec<SubscribeResult>,
    },
    Unsubscribed {
        request: RequestId,
    },
    Synced {
        request: RequestId,
    },
    Pong {
        nonce: u64,
    },
    /// The session ends for this reason; the connection is closed with the same code.
    Refused {
        code: ErrorCode,
        message: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Welcome {
    pub epoch: Epoch,
    /// The shard that answers.
    pub partition: u16,
    pub slots: SlotTable,
    pub shards: Vec<ShardAddress>,
    /// Milliseconds within which `received` must follow what was sent.
    pub received_deadline_ms: u32,
    /// Milliseconds between heartbeats on an idle delivery stream.
    pub heartbeat_ms: u32,
    /// Bytes of the largest body that the shard accepts.
    pub max_body_bytes: u32,
    /// How documents are laid out, as a name (`syntrix`, `plain`) or the mapping's JSON.
    pub mapping: String,
}

/// Outcome of one [`SubscribeItem`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub enum SubscribeResult {
    /// Registered. `Bound` follows on the delivery stream, possibly before this.
    Accepted {
        registration: Registration,
        expires_in_s: u32,
    },
    /// Another shard owns the collection.
    NotOwner {
        owner: ShardAddress,
    },
    Rejected {
        code: ErrorCode,
        message: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Registration {
    Created,
    /// The same id with the same content: its history goes on.
    Renewed,
    /// The same id with other content: a new generation.
    Replaced,
}

/// Codes of refusals, the same over QUIC and HTTP. [`ErrorCode::quic_code`] is the QUIC application error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    InvalidRequest,
    InvalidFilter,
    CelCompilationFailed,
    Unauthorized,
    Forbidden,
    SubscriptionExists,
    SubscriptionNotFound,
    SubscriptionExpired,
    GatewayQuotaExceeded,
    TenantQuotaExceeded,
    GlobalQuotaExceeded,
    /// A newer session of the same Gateway took over. Terminal: the SDK must not reconnect by itself.
    Superseded,
    /// The bytes are not the protocol's: a frame too large, a body that can't be decoded, a message out of turn.
    ProtocolViolation,
    /// `received` did not follow in time: the connection is taken for half open.
    ReceivedDeadline,
    TooManyRequests,
    ShuttingDown,
    Internal,
    /// The hello speaks another version of the protocol.
    UnsupportedVersion,
}

impl ErrorCode {
    /// All codes, each at the place of its number on the wire.
    pub const ALL: [Self; 18] = [
        Self::InvalidRequest,
        Self::InvalidFilter,
        Self::CelCompilationFailed,
        Self::Unauthorized,
        Self::Forbidden,
        Self::SubscriptionExists,
        Self::SubscriptionNotFound,
        Self::SubscriptionExpired,
        Self::GatewayQuotaExceeded,
        Self::TenantQuotaExceeded,
        Self::GlobalQuotaExceeded,
        Self::Superseded,
        Self::ProtocolViolation,
        Self::ReceivedDeadline,
        Self::TooManyRequests,
        Self::ShuttingDown,
        Self::Internal,
        Self::UnsupportedVersion,
    ];

    /// Code that a connection is closed with: the number on the wire plus 1, because 0 is a connection closed without a reason.
    pub const fn quic_code(self) -> u32 {
        self as u32 + 1
    }

    /// `None` for 0 and for codes of a later version.
    pub fn from_quic_code(code: u64) -> Option<Self> {
        let place = usize::try_from(code.checked_sub(1)?).ok()?;
        Self::ALL.get(place).copied()
    }
}

/// Gateway to shard, on the ack stream. Both are cumulative over the entries of this session's delivery stream that carry a
/// `seq`: the highest one received, and the highest one up to which the application is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Ack {
    pub received: u64,
    pub done: u64,
}

/// Shard to Gateway, on the delivery stream: whatever has a place in the order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delivery {
    /// Encoded by hand, see [`crate::batch`]; this is the decoded form.
    Events(Events),
    /// The handle stands for this subscription from here on.
    Bound(Box<Bound>),
    /// All sent before this is all there is up to these positions, for every handle that is bound and isn't catching up.
    Heartbeat { last_seq: u64, positions: Positions },
    /// Changes of the named subscriptions may be missing or meaningless from here. Acked like an event.
    Gap { seq: u64, position: Position, reason: GapReason, handles: Vec<Handle> },
    /// The subscription's continuity is broken: read its state anew. Changes after `live_from` follow. Acked like an event.
    Resync { seq: u64, handle: Handle, reason: ResyncReason, live_from: Positions },
    /// What these subscriptions lack is read from the source's history. Until they have caught up, heartbeats say nothing of them.
    CatchingUp { handles: Vec<Handle> },
    /// These subscriptions have reached the live stream. Heartbeats speak of them again.
    CaughtUp { handles: Vec<Handle> },
    /// The subscription has ended; its handle is dead.
    Closed { handle: Handle, reason: CloseReason },
    /// The node will close this session soon; reconnect within `within_ms`.
    GoAway { within_ms: u32, reason: ErrorCode },
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Serialize, Deserialize)]
pub struct Bound {
    pub handle: Handle,
    pub key: SubscriptionKey,
    pub generation: u32,
    /// Every matching change after these positions is delivered.
    pub live_from: Positions,
    /// Whether `leave` is promised for this collection: before-images are there.
    pub leaves: bool,
}

/// An entry of [`Events`] by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventEntry {
    /// 1, 2, 3 … within the session.
    pub seq: u64,
    pub id: EventId,
    pub operation: Operation,
    pub tenant: String,
    pub collection: String,
    /// The document's id: one byte of BSON type, then the BSON value.
    #[serde(with = "hexadecimal")]
    pub document_id: Vec<u8>,
    pub targets: Vec<Target>,
    /// BSON of the image that matched, as the source gave it; empty where none is known.
    #[serde(with = "hexadecimal")]
    pub document: Vec<u8>,
}

/// Bytes as hexadecimal text, where a message is shown as JSON.
mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let digit = |digit: u8| char::from(digit).to_digit(16);
        let byte = |[high, low]: [u8; 2]| Some((digit(high)? * 16 + digit(low)?) as u8);
        let bytes: Option<Vec<u8>> = pairs.iter().map(|pair| byte(*pair)).collect();
        bytes
            .filter(|_| rest.is_empty())
            .ok_or_else(|| D::Error::custom(format!("{text:?} is not pairs of hexadecimal digits")))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
pub struct Target {
    pub handle: Handle,
    pub transition: Transition,
    pub certainty: Certainty,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    Insert,
    Update,
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transition {
    /// The document matches now and did not before.
    Enter,
    /// The document matches; it did before, or that is not known.
    Update,
    /// The document no longer matches, or is gone.
    Leave,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Certainty {
    /// Evaluated in full.
    Matched,
    /// A candidate whose evaluation would have cost too much; the receiver verifies it.
    Unverified,
    /// A hard delete of which too little is known to say.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// The collection was dropped.
    Dropped,
    /// The collection was renamed away, or another was renamed onto it.
    Renamed,
    DatabaseDropped,
    /// The source ended the stream.
    Invalidated,
    /// The source no longer has the changes that come next.
    HistoryLost,
    /// A change was too large to be read.
    Oversize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResyncReason {
    /// Its position is of another history than the source's.
    LineageChanged,
    /// Changes that it lacks can't be had any more.
    HistoryLost,
    /// What it lacks could not be read faster than new changes came.
    TooSlow,
    /// A before-image that `leave` depends on was missing.
    PreimageMissing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    Unsubscribed,
    Expired,
    /// Other content under the same id took its place.
    Replaced,
    /// Removed by an administrator or over HTTP.
    Removed,
}
