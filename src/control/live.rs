//! The node at one moment, as the web page and `streamer top` show it: counters since the start, from whose differences whoever looks
//! makes rates.

use serde::{Deserialize, Serialize};

use super::state::{NodeState, Topology};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// Milliseconds since the node started.
    pub at_ms: u64,
    /// `ready`, `degraded` or `not_ready`.
    pub status: String,
    /// Why it isn't ready, or is degraded.
    pub reasons: Vec<String>,
    pub events: u64,
    pub read_bytes: u64,
    pub routed: u64,
    /// Changes that no shard's filter wanted.
    pub filtered: u64,
    pub gaps: u64,
    pub checkpoint_age_ms: Option<u64>,
    pub backends: Vec<LiveBackend>,
    pub shards: Vec<LiveShard>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LiveBackend {
    pub name: String,
    pub phase: String,
    pub position: Option<String>,
    pub error: Option<String>,
    pub reopenings: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LiveShard {
    pub partition: u16,
    pub core: usize,
    pub alive: bool,
    pub events: u64,
    pub matched: u64,
    pub candidates: u64,
    /// Pairs of change and subscription.
    pub deliveries: u64,
    pub acked: u64,
    pub sent_bytes: u64,
    pub sessions: u64,
    pub subscriptions: u64,
    /// Entries of the log that somebody is owed.
    pub unsettled: u64,
    pub log_bytes: u64,
    /// Items in its ring that it hasn't taken.
    pub ring_waiting: u64,
    pub ring_capacity: u64,
    /// Times that its full ring held up reading.
    pub ring_waits: u64,
    pub resyncs: u64,
    pub passes_slow: u64,
}

impl Live {
    pub fn of(state: &NodeState, topology: &Topology) -> Self {
        let health = state.health();
        let picture = state.ingest.picture();
        let counters = &picture.counters;
        let shards = state.shards.iter().zip(&topology.shards).map(|(shard, place)| {
            let stats = shard.stats();
            let resyncs = &stats.shard.resyncs;
            LiveShard {
                partition: place.partition,
                core: place.core,
                alive: shard.is_alive(),
                events: stats.shard.events,
                matched: stats.shard.events_matched,
                candidates: stats.shard.candidates,
                deliveries: stats.shard.deliveries,
                acked: stats.shard.acked,
                sent_bytes: stats.shard.bytes_sent,
                sessions: stats.driver.sessions,
                subscriptions: stats.shard.subscriptions,
                unsettled: stats.shard.log_unsettled,
                log_bytes: stats.shard.log_bytes,
                ring_waiting: stats.ring.pushed.saturating_sub(stats.ring.popped),
                ring_capacity: stats.ring.capacity,
                ring_waits: stats.ring.waits,
                resyncs: resyncs.total(),
                passes_slow: stats.driver.passes_slow,
            }
        });
        Self {
            at_ms: state.now_ms(),
            status: health.status.name().to_owned(),
            reasons: health.reasons,
            events: counters.events,
            read_bytes: counters.bytes,
            routed: counters.routed,
            filtered: counters.filtered,
            gaps: counters.gaps,
            checkpoint_age_ms: health.checkpoint.age_ms,
            backends: health
                .backends
                .into_iter()
                .map(|backend| LiveBackend {
                    name: backend.name,
                    phase: backend.phase.to_owned(),
                    position: backend.position,
                    error: backend.error,
                    reopenings: backend.reopenings,
                })
                .collect(),
            shards: shards.collect(),
        }
    }
}
