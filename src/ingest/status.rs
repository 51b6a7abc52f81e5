//! What the ingest thread tells the rest of the node about itself: latest values, read by health and metrics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use shards::driver::Histogram;
use wire::Position;

use super::{catch_up::CatchUpCounters, core::IngestCounters};

/// What a backend is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not reached yet.
    Connecting,
    /// Reached; waits for the Gateways that the checkpoint names.
    Registration,
    Opening,
    /// Has been opened; waits until every other backend has been, too.
    Waiting,
    Reading,
    /// Lost or refused; tried again by itself.
    Retrying,
    /// Needs a decision: see the error.
    Halted,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Phase::Connecting => "connecting",
            Phase::Registration => "registration",
            Phase::Opening => "opening",
            Phase::Waiting => "waiting",
            Phase::Reading => "reading",
            Phase::Retrying => "retrying",
            Phase::Halted => "halted",
        }
    }
}

#[derive(Clone, Debug)]
pub struct BackendStatus {
    pub name: String,
    pub phase: Phase,
    /// The source in words, once it has been reached.
    pub source: Option<String>,
    /// How far it has been read.
    pub position: Option<Position>,
    /// Up to here every Gateway is done with what it was owed, or has been told that it lacks it.
    pub settled: Option<Position>,
    pub error: Option<String>,
    pub reopenings: u64,
    /// Resume tokens kept until what they stand for is settled.
    pub tokens: u64,
    /// How long its source has told nothing, though it should have: an alarm. `None` while it does.
    pub stalled: Option<Duration>,
    pub catch_up: CatchUpStatus,
    /// By the shard's index: how much earlier than what was read last is what the shard has settled, by the source's clock.
    pub settled_lag: Vec<Duration>,
}

/// Why reading pauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseReason {
    /// The shard's ring has no room.
    RingFull,
    /// Gateways of the shard that go on taking things come near to what may wait for them.
    OutboxFull,
}

impl PauseReason {
    pub const ALL: [Self; 2] = [Self::RingFull, Self::OutboxFull];

    pub fn name(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::OutboxFull => "outbox_full",
        }
    }
}

/// How often, and for how long in all, reading has paused for a shard, by [`PauseReason`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardPauses {
    pub count: [u64; PauseReason::ALL.len()],
    pub time: [Duration; PauseReason::ALL.len()],
}

/// A shard that doesn't take in what is read as fast as it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardLag {
    /// Items that wait in its ring.
    pub waiting: u64,
    /// For how long that has been more than half full.
    pub lasts: Duration,
}

/// What the catch-up cursor of a backend is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CatchUpStatus {
    pub counters: CatchUpCounters,
    /// Of the pass that runs, if one does: how far it has come, how much earlier that was than what live reading has come to, and for
    /// how long it has run.
    pub position: Option<Position>,
    pub lag: Option<Duration>,
    pub running: Option<Duration>,
}

/// A picture of the ingest thread, replaced as a whole.
#[derive(Clone, Debug, Default)]
pub struct IngestPicture {
    pub backends: Vec<BackendStatus>,
    pub counters: IngestCounters,
    /// From the source's batch in hand to all of it in the rings, a batch.
    pub latency: Histogram,
    /// By shard.
    pub pauses: Vec<ShardPauses>,
    /// By shard; `None` for one that keeps up.
    pub lags: Vec<Option<ShardLag>>,
    pub checkpoints_written: u64,
    pub checkpoints_failed: u64,
    pub checkpoint_bad_slots: u64,
    /// Why the last checkpoint could not be written.
    pub checkpoint_error: Option<String>,
}

/// The cell that pictures are published in.
#[derive(Debug, Default)]
pub struct IngestStatus {
    picture: ArcSwap<IngestPicture>,
    /// Milliseconds of the process's clock at which the last checkpoint was written; 0: none yet.
    checkpoint_at_ms: AtomicU64,
}

impl IngestStatus {
    pub fn publish(&self, picture: IngestPicture) {
        self.picture.store(Arc::new(picture));
    }

    pub fn picture(&self) -> Arc<IngestPicture> {
        self.picture.load_full()
    }

    pub fn checkpointed(&self, now_ms: u64) {
        self.checkpoint_at_ms.store(now_ms.max(1), Relaxed);
    }

    /// Milliseconds since the last checkpoint; `None` before the first.
    pub fn checkpoint_age_ms(&self, now_ms: u64) -> Option<u64> {
        match self.checkpoint_at_ms.load(Relaxed) {
            0 => None,
            at => Some(now_ms.saturating_sub(at)),
        }
    }

    /// Whether every backend is being read.
    pub fn is_reading(&self) -> bool {
        let picture = self.picture.load();
        !picture.backends.is_empty() && picture.backends.iter().all(|backend| backend.phase == Phase::Reading)
    }
}
