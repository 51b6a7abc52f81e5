//! What a run is made of, and what came of it.

use std::collections::BTreeMap;

use shards::FilterConfig;

/// What one run is made of. Odds are per 10,000 steps.
#[derive(Clone, Debug)]
pub struct SimConfig {
    pub seed: u64,
    pub transactions: usize,
    pub subscriptions: usize,
    pub shards_max: u16,
    pub before_images: bool,
    pub log_events_max: usize,
    /// Units of a shard's slice of work.
    pub slice_units: u32,
    pub filter: FilterConfig,
    pub node_crashes: u32,
    pub disconnects: u32,
    pub gateway_crashes: u32,
    pub source_failures: u32,
    pub churn: u32,
    /// A rule that is broken on purpose, so that a test can see the simulator find it.
    pub broken: Option<Broken>,
}

/// Rules that can be broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The checkpoint names what was read, not what is settled.
    CheckpointAhead,
    /// The ingest thread says that it routes by a filter, and routes by the one before.
    FilterConfirmedEarly,
    /// Nobody waits for the Gateways that the checkpoint names, nor for the positions that they present.
    BarrierSkipped,
    /// The application's positions are kept when it is given an item, not when it is done with it.
    PositionBeforeDone,
}

impl SimConfig {
    pub(crate) fn log_is_short(&self) -> bool {
        self.log_events_max < 1_000
    }

    /// Everything that can go wrong does, but the log is large enough that nobody falls off it.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            transactions: 300,
            subscriptions: 60,
            shards_max: 5,
            before_images: !seed.is_multiple_of(4),
            log_events_max: 262_144,
            slice_units: [2_048, 40, 5][(seed % 3) as usize],
            // Small enough that filters are built and overflow all the time.
            filter: FilterConfig {
                delta_min: 1,
                delta_max: [3, 8, 131_072][(seed % 3) as usize],
                exact_max: [0, 3][(seed % 2) as usize],
                copied_max: 300,
                measured_over: 50,
                ..FilterConfig::default()
            },
            node_crashes: 8,
            disconnects: 20,
            gateway_crashes: 8,
            source_failures: 10,
            churn: 20,
            broken: None,
        }
    }
}

/// What happened in a run that kept every promise.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub events: u64,
    pub steps: u64,
    /// Changes that applications were given.
    pub deliveries: u64,
    /// Changes that came again and were dropped by the SDK.
    pub duplicates_dropped: u64,
    pub node_crashes: u64,
    /// Crashes of the node while something was unsettled.
    pub node_crashes_owing: u64,
    pub gateway_crashes: u64,
    pub disconnects: u64,
    pub source_failures: u64,
    pub filters_built: u64,
    pub filters_failed: u64,
    pub resyncs: BTreeMap<String, u64>,
}

impl Outcome {
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.steps += other.steps;
        self.deliveries += other.deliveries;
        self.duplicates_dropped += other.duplicates_dropped;
        self.node_crashes += other.node_crashes;
        self.node_crashes_owing += other.node_crashes_owing;
        self.gateway_crashes += other.gateway_crashes;
        self.disconnects += other.disconnects;
        self.source_failures += other.source_failures;
        self.filters_built += other.filters_built;
        self.filters_failed += other.filters_failed;
        for (reason, count) in &other.resyncs {
            *self.resyncs.entry(reason.clone()).or_default() += count;
        }
    }
}
