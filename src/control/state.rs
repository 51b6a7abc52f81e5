//! What health, topology and metrics are read from: latest values that the other threads publish, and facts of the start.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use serde::Serialize;
use shards::driver::{Cells, StatsSnapshot};
use wire::{Epoch, SlotTable};

use crate::{
    ingest::status::{CatchUpStatus, IngestStatus, Phase, ShardLag},
    telemetry::TelemetryCounters,
};

/// The node as it is now. The node's threads write, the control thread reads.
#[derive(Debug)]
pub struct NodeState {
    pub ingest: Arc<IngestStatus>,
    /// By the shard's index.
    pub shards: Vec<ShardState>,
    /// The process's clock, from which the milliseconds in [`IngestStatus`] count.
    pub started: Instant,
    stopping: AtomicBool,
    reloads: [AtomicU64; Reload::ALL.len()],
    /// Where traces are exported.
    telemetry: OnceLock<Arc<TelemetryCounters>>,
    /// Of the certificate that Gateways see now, where it is another than at the start.
    fingerprint: ArcSwapOption<String>,
}

/// What became of a reload of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    Applied,
    /// Something in it can't be had while the node runs.
    Refused,
    /// It is wrong.
    Failed,
}

impl Reload {
    pub const ALL: [Self; 3] = [Self::Applied, Self::Refused, Self::Failed];

    pub fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// How a shard's latest counters are read.
type StatsReader = Box<dyn Fn() -> Arc<StatsSnapshot> + Send + Sync>;

pub struct ShardState {
    stats: StatsReader,
    alive: AtomicBool,
}

impl fmt::Debug for ShardState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardState").field("alive", &self.alive).finish_non_exhaustive()
    }
}

impl NodeState {
    /// `shards` in the order of their indexes, each with its cells.
    pub fn new(ingest: Arc<IngestStatus>, shards: impl IntoIterator<Item = Arc<Cells>>, started: Instant) -> Self {
        let readers = shards.into_iter().map(|cells| Box::new(move || cells.stats()) as StatsReader);
        Self::reading(ingest, readers, started)
    }

    fn reading(ingest: Arc<IngestStatus>, readers: impl Iterator<Item = StatsReader>, started: Instant) -> Self {
        let shards = readers.map(|stats| ShardState { stats, alive: AtomicBool::new(true) }).collect();
        Self {
            ingest,
            shards,
            started,
            stopping: AtomicBool::new(false),
            reloads: Default::default(),
            telemetry: OnceLock::new(),
            fingerprint: ArcSwapOption::empty(),
        }
    }

    /// A node of shards that have counted nothing.
    #[cfg(test)]
    pub(super) fn silent(ingest: Arc<IngestStatus>, shards: usize) -> Self {
        let reader = || Box::new(|| Arc::new(StatsSnapshot::default())) as StatsReader;
        Self::reading(ingest, (0..shards).map(|_| reader()), Instant::now())
    }

    /// A node of one shard that has counted this.
    #[cfg(test)]
    pub(super) fn with_stats(ingest: Arc<IngestStatus>, stats: StatsSnapshot) -> Self {
        let stats = Arc::new(stats);
        Self::reading(ingest, std::iter::once(Box::new(move || stats.clone()) as StatsReader), Instant::now())
    }

    /// From here on the node isn't ready.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Relaxed);
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    /// Told once.
    pub fn set_telemetry(&self, counters: Arc<TelemetryCounters>) {
        let _ = self.telemetry.set(counters);
    }

    /// Traces that the collector has taken, and that it hasn't.
    pub fn traces(&self) -> (u64, u64) {
        self.telemetry
            .get()
            .map_or((0, 0), |counters| (counters.exported.load(Relaxed), counters.refused.load(Relaxed)))
    }

    pub fn reloaded(&self, outcome: Reload) {
        self.reloads[outcome as usize].fetch_add(1, Relaxed);
    }

    pub fn reloads(&self, outcome: Reload) -> u64 {
        self.reloads[outcome as usize].load(Relaxed)
    }

    /// Gateways see a certificate of this fingerprint from now on.
    pub fn set_fingerprint(&self, fingerprint: String) {
        self.fingerprint.store(Some(Arc::new(fingerprint)));
    }

    /// `None`: that of the start, see [`Topology`].
    pub fn fingerprint(&self) -> Option<Arc<String>> {
        self.fingerprint.load_full()
    }

    /// The thread of this shard has ended.
    pub fn set_shard_ended(&self, shard: u16) {
        if let Some(shard) = self.shards.get(usize::from(shard)) {
            shard.alive.store(false, Relaxed);
        }
    }

    pub fn is_alive(&self) -> bool {
        self.shards.iter().all(ShardState::is_alive)
    }

    pub fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Everything that health knows.
    pub fn health(&self) -> Health {
        let picture = self.ingest.picture();
        let mut reasons = Vec::new();
        if self.stopping.load(Relaxed) {
            reasons.push("the node is stopping".to_owned());
        }
        for (index, shard) in self.shards.iter().enumerate() {
            if !shard.is_alive() {
                reasons.push(format!("shard {index} has ended"));
            }
        }
        if picture.backends.is_empty() {
            reasons.push("no backend has been reached yet".to_owned());
        }
        for backend in &picture.backends {
            if backend.phase != Phase::Reading {
                let why = backend.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
                reasons.push(format!("backend {:?} is {}{why}", backend.name, backend.phase.name()));
            }
        }
        for backend in &picture.backends {
            if let Some(silent) = backend.stalled {
                reasons.push(format!("backend {:?} has told nothing new for {} s", backend.name, silent.as_secs()));
            }
        }
        if let Some(error) = &picture.checkpoint_error {
            reasons.push(format!("the checkpoint can't be written: {error}"));
        }
        let is_ready = reasons.is_empty();
        for (index, lag) in picture.lags.iter().enumerate() {
            if let Some(lag) = lag {
                let ShardLag { waiting, lasts } = lag;
                reasons
                    .push(format!("shard {index} lags: {waiting} items wait in its ring, for {} s", lasts.as_secs()));
            }
        }
        let backends = picture.backends.iter().map(|backend| BackendHealth {
            name: backend.name.clone(),
            phase: backend.phase.name(),
            source: backend.source.clone(),
            position: backend.position.map(|position| position.to_string()),
            settled: backend.settled.map(|position| position.to_string()),
            error: backend.error.clone(),
            reopenings: backend.reopenings,
            stalled_ms: backend.stalled.map(milliseconds),
            catch_up: CatchUpHealth::of(&backend.catch_up),
        });
        let shards = self.shards.iter().enumerate().map(|(index, shard)| {
            let stats = shard.stats();
            ShardHealth {
                partition: index,
                alive: shard.is_alive(),
                sessions: stats.driver.sessions,
                subscriptions: stats.shard.subscriptions,
                unsettled: stats.shard.log_unsettled,
                ring_waits: stats.ring.waits,
                ring_waiting: stats.ring.pushed.saturating_sub(stats.ring.popped),
                lags_ms: picture.lags.get(index).copied().flatten().map(|lag| milliseconds(lag.lasts)),
            }
        });
        Health {
            status: match (is_ready, reasons.is_empty()) {
                (true, true) => Readiness::Ready,
                (true, false) => Readiness::Degraded,
                (false, _) => Readiness::NotReady,
            },
            reasons,
            backends: backends.collect(),
            checkpoint: CheckpointHealth {
                age_ms: self.ingest.checkpoint_age_ms(self.now_ms()),
                written: picture.checkpoints_written,
                failed: picture.checkpoints_failed,
                error: picture.checkpoint_error.clone(),
            },
            shards: shards.collect(),
        }
    }
}

impl ShardState {
    /// The latest counters.
    pub fn stats(&self) -> Arc<StatsSnapshot> {
        (self.stats)()
    }

    pub fn is_alive(&self) -> bool {
        self.alive.load(Relaxed)
    }
}

/// What a node can be relied on for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    Ready,
    /// Everything is read and delivered, and some of it late.
    Degraded,
    NotReady,
}

impl Readiness {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::NotReady => "not_ready",
        }
    }
}

/// The body of `/health` and `/health/ready`.
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    pub status: Readiness,
    /// Why it isn't ready, or is degraded; empty when all is well.
    pub reasons: Vec<String>,
    pub backends: Vec<BackendHealth>,
    pub checkpoint: CheckpointHealth,
    pub shards: Vec<ShardHealth>,
}

#[derive(Clone, Debug, Serialize)]
pub struct BackendHealth {
    pub name: String,
    pub phase: &'static str,
    pub source: Option<String>,
    /// How far it has been read.
    pub position: Option<String>,
    /// Up to here every Gateway is done with what it was owed, or has been told that it lacks it.
    pub settled: Option<String>,
    pub error: Option<String>,
    pub reopenings: u64,
    /// For how long it has told nothing, though it should have: an alarm.
    pub stalled_ms: Option<u64>,
    pub catch_up: CatchUpHealth,
}

/// What the catch-up cursor of a backend does.
#[derive(Clone, Debug, Serialize)]
pub struct CatchUpHealth {
    /// Passes that have ended, by how they did.
    pub caught_up: u64,
    pub history_lost: u64,
    pub too_slow: u64,
    pub interrupted: u64,
    /// The pass that runs; absent where none does.
    pub position: Option<String>,
    /// How much earlier it has read than live reading, and how long it has run.
    pub lag_ms: Option<u64>,
    pub running_ms: Option<u64>,
}

impl CatchUpHealth {
    fn of(status: &CatchUpStatus) -> Self {
        let counters = status.counters;
        Self {
            caught_up: counters.caught_up,
            history_lost: counters.history_lost,
            too_slow: counters.too_slow,
            interrupted: counters.interrupted,
            position: status.position.map(|position| position.to_string()),
            lag_ms: status.lag.map(milliseconds),
            running_ms: status.running.map(milliseconds),
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Clone, Debug, Serialize)]
pub struct CheckpointHealth {
    /// Milliseconds since the last one; absent before the first.
    pub age_ms: Option<u64>,
    pub written: u64,
    pub failed: u64,
    pub error: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ShardHealth {
    pub partition: usize,
    pub alive: bool,
    pub sessions: u64,
    pub subscriptions: u64,
    /// Log entries that somebody is owed.
    pub unsettled: u64,
    /// Times that the ingest thread waited for room in this shard's ring.
    pub ring_waits: u64,
    /// Items that wait there.
    pub ring_waiting: u64,
    /// For how long it has been behind with what is read; absent while it keeps up.
    pub lags_ms: Option<u64>,
}

/// What doesn't change after the start.
#[derive(Clone, Debug)]
pub struct Topology {
    pub epoch: Epoch,
    pub slots: SlotTable,
    /// By the shard's index.
    pub shards: Vec<ShardPlace>,
    pub ingest_cores: Vec<usize>,
    pub control_cores: Vec<usize>,
    /// SHA-256 of the certificate that Gateways see at the start, in hexadecimal; [`NodeState::fingerprint`] has what came after.
    pub fingerprint: String,
    /// A preset's name, or the mapping as JSON.
    pub mapping: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct ShardPlace {
    pub partition: u16,
    /// `host:port` as advertised to Gateways.
    pub address: String,
    /// Where it is bound.
    pub listen: String,
    pub core: usize,
    /// `glommio` or `tokio`.
    pub runtime: String,
    /// Why that one.
    pub runtime_reason: String,
}
