//! The node at one moment, as the web page and `streamer top` show it: counters since the start, from whose differences whoever looks
//! makes rates.

use serde::{Deserialize, Serialize};

use shards::driver::LATENCY_BOUNDS_NS;

use super::state::{NodeState, ShardState, Topology};
use crate::ingest::status::IngestPicture;

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
    /// Collections with the most changes now, most first.
    pub hot: Vec<LiveHot>,
    /// End-to-end latencies of sampled changes since the start: how many took at most as long as the bound of the same place, and
    /// longer than the one before; the last, longer than all.
    pub latency_counts: Vec<u64>,
    pub latency_bounds_us: Vec<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LiveHot {
    pub tenant: String,
    pub collection: String,
    pub changes_per_s: u64,
    pub partition: u16,
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
    /// How much earlier than what was read last is what it has settled, of the backend of which that is most.
    pub lag_ms: u64,
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
                lag_ms: lag_ms(&picture, usize::from(place.partition)),
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
            hot: hot_places(state),
            latency_counts: latency_counts(state),
            latency_bounds_us: LATENCY_BOUNDS_NS.iter().map(|ns| ns / 1_000).collect(),
        }
    }
}

/// Of all shards, those with the most. A collection is on one shard only.
pub(super) fn hot_places(state: &NodeState) -> Vec<LiveHot> {
    let of_shard = |(partition, shard): (usize, &ShardState)| {
        let hot = shard.stats().hot.clone();
        let told = hot.iter().map(|hot| LiveHot {
            tenant: hot.tenant.clone(),
            collection: hot.collection.clone(),
            changes_per_s: hot.changes_per_s,
            partition: partition as u16,
        });
        told.collect::<Vec<_>>()
    };
    let mut all: Vec<LiveHot> = state.shards.iter().enumerate().flat_map(of_shard).collect();
    all.sort_by_key(|hot| std::cmp::Reverse(hot.changes_per_s));
    all.truncate(HOT_TOLD);
    all
}

fn latency_counts(state: &NodeState) -> Vec<u64> {
    let mut sum = vec![0; LATENCY_BOUNDS_NS.len() + 1];
    for shard in &state.shards {
        let counts = shard.stats().latencies.end_to_end.counts;
        sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    sum
}

fn lag_ms(picture: &IngestPicture, shard: usize) -> u64 {
    let lags = picture.backends.iter().filter_map(|backend| backend.settled_lag.get(shard));
    lags.max().map_or(0, |lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX))
}

/// The bound, in microseconds, that this share of the changes between two pictures stayed within. `None` where there were none;
/// `u64::MAX` where it is above all bounds.
pub fn quantile_us(before: &Live, now: &Live, share: f64) -> Option<u64> {
    let before = before.latency_counts.iter().copied().chain(std::iter::repeat(0));
    let counts: Vec<u64> =
        now.latency_counts.iter().zip(before).map(|(now, before)| now.saturating_sub(before)).collect();
    let all: u64 = counts.iter().sum();
    let wanted = ((all as f64 * share).ceil() as u64).max(1);
    let mut sum = 0;
    let at = counts.iter().position(|count| {
        sum += count;
        sum >= wanted
    })?;
    Some(now.latency_bounds_us.get(at).copied().unwrap_or(u64::MAX))
}

/// Hot collections that are told.
const HOT_TOLD: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_of_the_time_between() {
        let bounds = vec![10, 100, 1_000];
        let live = |counts: [u64; 4]| Live {
            latency_counts: counts.into(),
            latency_bounds_us: bounds.clone(),
            ..Live::default()
        };
        let (before, now) = (live([1_000, 0, 0, 0]), live([1_000, 98, 1, 1]));
        assert_eq!(quantile_us(&before, &now, 0.5), Some(100));
        assert_eq!(quantile_us(&before, &now, 0.99), Some(1_000));
        assert_eq!(quantile_us(&before, &now, 1.0), Some(u64::MAX));
        assert_eq!(quantile_us(&now, &now, 0.5), None);
        assert_eq!(quantile_us(&Live::default(), &now, 0.5), Some(10));
    }
}
