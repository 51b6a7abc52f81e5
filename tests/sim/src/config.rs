//! What a run is made of.

use serde::Serialize;
use shards::FilterConfig;

use crate::{Broken, workload::SEEDS};

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The node is gone at once, and comes back with another number of shards.
    NodeCrash,
    /// A checkpoint that was being written when the node crashed is torn.
    TornCheckpoint,
    /// The slot that was written last can't be read when the node comes back.
    RottenSlot,
    /// A connection is lost, and both ends know.
    Disconnect,
    /// A connection carries nothing any more, and each end finds out in its own time.
    HalfOpen,
    GatewayCrash,
    /// The Gateway is gone for so long that nobody waits for it.
    GatewayDead,
    /// The Gateway's process stands still.
    GatewayPause,
    /// The application takes its time.
    GatewaySlow,
    /// The live stream breaks, and is resumed with repetitions.
    SourceFailure,
    /// The source forgets all that has happened but the latest, and the live stream breaks.
    HistoryLoss,
    /// A collection is dropped.
    Dropped,
    /// A subscription ends, and another comes.
    Churn,
    /// A process that comes back asks for some of its subscriptions only after the node has bound what it knew.
    LateAsking,
    /// What the source has of its history is read so slowly that passes come no nearer to the live stream.
    SlowHistory,
    /// An update comes with the document as it became later, or with none.
    LateLookup,
}

impl Fault {
    pub const ALL: [Self; 16] = [
        Self::NodeCrash,
        Self::TornCheckpoint,
        Self::RottenSlot,
        Self::Disconnect,
        Self::HalfOpen,
        Self::GatewayCrash,
        Self::GatewayDead,
        Self::GatewayPause,
        Self::GatewaySlow,
        Self::SourceFailure,
        Self::HistoryLoss,
        Self::Dropped,
        Self::Churn,
        Self::LateAsking,
        Self::SlowHistory,
        Self::LateLookup,
    ];

    /// How often it happens where it happens at all: in so many of 10,000 events, of crashes while a checkpoint is written (torn), of
    /// returns of the node (rotten) or of a Gateway's process (asking late), or of updates that are read (late).
    fn odds(self) -> u32 {
        match self {
            Self::NodeCrash => 18,
            Self::TornCheckpoint => 10_000,
            Self::RottenSlot => 1_500,
            Self::Disconnect => 20,
            Self::HalfOpen => 8,
            Self::GatewayCrash => 22,
            Self::GatewayDead => 3,
            Self::GatewayPause => 6,
            Self::GatewaySlow => 6,
            Self::SourceFailure => 10,
            Self::HistoryLoss => 3,
            Self::Dropped => 8,
            Self::Churn => 20,
            Self::LateAsking => 5_000,
            Self::SlowHistory => 8,
            Self::LateLookup => 2_000,
        }
    }

    /// Whether it strikes between two events, rather than at an occasion of its own.
    pub(crate) fn strikes(self) -> bool {
        !matches!(self, Self::TornCheckpoint | Self::RottenSlot | Self::LateLookup | Self::LateAsking)
    }
}

/// What one run is made of.
#[derive(Clone, Debug, Serialize)]
pub struct SimConfig {
    pub seed: u64,
    pub transactions: usize,
    pub subscriptions: usize,
    pub shards_max: u16,
    pub before_images: bool,
    /// So short that Gateways fall off it, or so long that none does.
    pub log_events_max: usize,
    /// What a Gateway's outbox holds: so little that who is slow falls behind, or so much that nobody does.
    pub outbox_events_max: usize,
    /// Milliseconds within which the distance of a pass to the live stream has to halve.
    pub halve_within_ms: u64,
    /// Units of a shard's slice of work.
    pub slice_units: u32,
    /// Seconds that a subscription outlives its session.
    pub ttl_s: u32,
    /// Milliseconds after which a shard takes a session for dead that doesn't ack.
    pub received_deadline_ms: u64,
    pub faults: Vec<Fault>,
    #[serde(skip)]
    pub filter: FilterConfig,
    /// A rule that is broken on purpose, so that a test can see the simulator find it.
    #[serde(skip)]
    pub broken: Option<Broken>,
}

impl SimConfig {
    /// What goes wrong, and how tight bounds are, depends on the seed: in most seeds nobody may be told to start over but by faults that
    /// make it so.
    pub fn new(seed: u64) -> Self {
        let mut faults = Fault::ALL.to_vec();
        faults.retain(|fault| match fault {
            Fault::HistoryLoss => seed % 8 == 6,
            Fault::GatewayDead => seed % 4 == 2,
            Fault::RottenSlot => seed % 8 == 4,
            Fault::LateLookup => seed % 4 == 1,
            Fault::SlowHistory => matches!(seed % 8, 5 | 7),
            _ => true,
        });
        let is_slow = faults.contains(&Fault::SlowHistory);
        Self {
            seed,
            transactions: 400,
            subscriptions: 60,
            shards_max: 5,
            before_images: !(seed / SEEDS).is_multiple_of(5),
            log_events_max: if seed % 8 == 7 { 12 } else { LOG_IS_LONG },
            outbox_events_max: match seed % 8 {
                2 => 20,
                5 => 6,
                _ => LOG_IS_LONG,
            },
            // Time is the scheduler's, which owes nobody any.
            halve_within_ms: if is_slow { HALVE_WITHIN_MS } else { u64::MAX },
            slice_units: [2_048, 40, 5][(seed % 3) as usize],
            ttl_s: if seed % 8 == 3 { 1 } else { 300 },
            received_deadline_ms: [30_000, 2_000][(seed / 2 % 2) as usize],
            // Small enough that filters are built and overflow all the time.
            filter: FilterConfig {
                delta_min: 1,
                delta_max: [3, 8, 131_072][(seed % 3) as usize],
                exact_max: [0, 3][(seed % 2) as usize],
                copied_max: 300,
                measured_over: 50,
                ..FilterConfig::default()
            },
            faults,
            broken: None,
        }
    }

    pub(crate) fn log_is_short(&self) -> bool {
        self.log_events_max < LOG_IS_LONG
    }

    /// Odds of a fault out of 10,000; 0 where it isn't to happen.
    pub(crate) fn odds(&self, fault: Fault) -> u32 {
        if self.faults.contains(&fault) { fault.odds() } else { 0 }
    }
}

/// What a pass has where the history may be slow. All else leaves it more than enough.
pub(crate) const HALVE_WITHIN_MS: u64 = 2_500;

/// Entries that no seed comes near.
const LOG_IS_LONG: usize = 262_144;
