//! What a shard is told once, before its first input.

use std::sync::Arc;

use predicate::Mapping;
use wire::{BackendId, Epoch, ShardAddress, SlotTable};

use crate::FilterConfig;

/// How a hard delete of which no image is known is told to subscriptions that it may or may not concern.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BareDeletes {
    /// Only where it is certain: by document id, and to whole collections.
    Known,
    /// Also to all others of the tenant, with certainty `unknown`.
    #[default]
    Unknown,
}

/// A source that feeds the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendConfig {
    pub id: BackendId,
    /// Whether it promises a before-image with every update and delete, and so a `leave` for what stops matching.
    pub before_images: bool,
}

#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Index of this shard.
    pub partition: u16,
    pub slots: SlotTable,
    /// Where all shards are reached, this one included.
    pub shards: Vec<ShardAddress>,
    pub epoch: Epoch,
    pub backends: Vec<BackendConfig>,
    pub mapping: Arc<Mapping>,
    /// The mapping as a Gateway is told it: a preset's name, or JSON.
    pub mapping_name: String,
    pub bare_deletes: BareDeletes,
    /// Key of the index's hash tables. Random in a node, so that nobody can choose values that collide; fixed in a simulation.
    pub hash_seed: u64,
    /// When the filter that the ingest thread asks is built anew.
    pub filter: FilterConfig,
    /// Bytes of the delivery log, documents and bookkeeping. Default 256 MiB.
    pub log_bytes_max: usize,
    /// Entries of the delivery log. Default 262,144.
    pub log_events_max: usize,
    /// Bytes that may wait for one Gateway or be sent to it without being done. Beyond that, its subscriptions fall behind and catch up
    /// from the source's history, once it is down to half of it. Default 64 MiB.
    pub outbox_bytes_max: usize,
    /// The same in log entries. Default 131,072.
    pub outbox_events_max: usize,
    /// Default 1,000 ms.
    pub heartbeat_ms: u64,
    /// Positions that advanced on an idle stream are told after this long. Default 200 ms.
    pub quiet_ms: u64,
    /// Default 30,000 ms.
    pub received_deadline_ms: u64,
    /// Default 300 s.
    pub ttl_default_s: u32,
    /// Default 60 s.
    pub ttl_min_s: u32,
    /// Default 3,600 s.
    pub ttl_max_s: u32,
    /// Default 10,000 ms.
    pub expiry_check_ms: u64,
    /// Subscriptions that ran out and are remembered, so that a renewal is told `expired` instead of `not found`. Default 65,536.
    pub expired_remembered_max: usize,
    /// Items of one `Subscribe`. Default 10,000.
    pub subscribe_items_max: usize,
    /// Bytes of the largest body that is accepted on a control stream. Default 16 MiB.
    pub body_bytes_max: u32,
    /// Cost units of one evaluation; what needs more is sent unverified to Gateways that can verify, and evaluated to its end for
    /// others. Default 100,000.
    pub evaluation_units_max: u64,
    /// The same for all evaluations of one change together. Default 400,000.
    pub event_units_max: u64,
    /// Units of about 100 ns that subscribing, ending and the like may use up at a time, before changes have their turn again.
    /// Default 2,048.
    pub slice_units: u32,
}

impl ShardConfig {
    /// The defaults, for a node of one shard in the `syntrix` layout.
    pub fn new(partition: u16, slots: SlotTable, shards: Vec<ShardAddress>, epoch: Epoch) -> Self {
        Self {
            partition,
            slots,
            shards,
            epoch,
            backends: Vec::new(),
            mapping: Arc::new(Mapping::syntrix()),
            mapping_name: "syntrix".into(),
            bare_deletes: BareDeletes::default(),
            hash_seed: 0,
            filter: FilterConfig::default(),
            log_bytes_max: 256 * 1024 * 1024,
            log_events_max: 262_144,
            outbox_bytes_max: 64 * 1024 * 1024,
            outbox_events_max: 131_072,
            heartbeat_ms: 1_000,
            quiet_ms: 200,
            received_deadline_ms: 30_000,
            ttl_default_s: 300,
            ttl_min_s: 60,
            ttl_max_s: 3_600,
            expiry_check_ms: 10_000,
            expired_remembered_max: 65_536,
            subscribe_items_max: 10_000,
            body_bytes_max: 16 * 1024 * 1024,
            evaluation_units_max: 100_000,
            event_units_max: 400_000,
            slice_units: 2_048,
        }
    }

    /// How much a session may hold.
    pub(crate) fn outbox(&self) -> OutboxLimits {
        OutboxLimits { bytes_max: self.outbox_bytes_max, events_max: self.outbox_events_max }
    }

    /// Whether this backend promises before-images.
    pub(crate) fn promises_before_images(&self, backend: BackendId) -> bool {
        self.backends.iter().any(|known| known.id == backend && known.before_images)
    }

    /// Whether `leave` can be promised whatever backend a change comes from.
    pub(crate) fn promises_leaves(&self) -> bool {
        !self.backends.is_empty() && self.backends.iter().all(|backend| backend.before_images)
    }
}

/// What of a shard's configuration may change while it runs. As the fields of [`ShardConfig`] of the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardLimits {
    pub outbox_bytes_max: usize,
    pub outbox_events_max: usize,
    pub ttl_default_s: u32,
    pub ttl_min_s: u32,
    pub ttl_max_s: u32,
    pub subscribe_items_max: usize,
}

/// What may wait in a session or be sent by it without being done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutboxLimits {
    pub(crate) bytes_max: usize,
    pub(crate) events_max: usize,
}

impl OutboxLimits {
    /// So many parts of that many of it.
    pub(crate) fn part(self, parts: usize, of: usize) -> Self {
        Self { bytes_max: self.bytes_max / of * parts, events_max: self.events_max / of * parts }
    }
}

/// Longest tenant and collection, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 1_024;
/// Longest subscription id, in bytes.
pub(crate) const ID_BYTES_MAX: usize = 128;
/// A tick that comes this late is a stall of the shard, which nobody's deadline may suffer from.
pub(crate) const STALL_MS: u64 = 5_000;
/// Subscriptions of a session whose end waits to be sent, beyond which its requests wait, and its Gateway registers no more over
/// HTTP.
pub(crate) const CLOSED_WAITING_MAX: usize = 4_096;
/// Items that the control side is asked about at once, so that one large request is compiled while others are.
pub(crate) const ITEMS_ASKED_MAX: usize = 256;
/// Subscriptions that are bound together, by one walk over their Gateway's log entries.
pub(crate) const BATCH_MAX: usize = 1_024;
/// Subscriptions that one message names as catching up, or as caught up.
pub(crate) const HANDLES_PER_FRAME_MAX: usize = 65_536;
/// Entries of one `Events` message.
pub(crate) const EVENTS_PER_FRAME_MAX: usize = 100;
