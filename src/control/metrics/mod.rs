//! `/metrics`: the counters of all threads in the text form of Prometheus, read from their latest pictures at each scrape.
//!
//! Names are `streamer_<name>_<unit>`; counters end in `_total`. Labels are bounded by the configuration: shards, backends and
//! reasons. What has a label of a Gateway, a tenant or a collection is in `names`, on an endpoint of its own, since there may be many.

pub(super) mod names;
mod tables;

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text::encode},
    metrics::MetricType,
    registry::Registry,
};
use shards::driver::{Histogram, LATENCY_BOUNDS_NS, StatsSnapshot};

use self::tables::{INGEST_COUNTERS, SHARD_COUNTERS, SHARD_GAUGES, SHARD_LATENCIES};
use super::state::{NodeState, Reload};
use crate::ingest::{
    normalize::Skip,
    status::{BackendStatus, CatchUpStatus, IngestPicture, PauseReason, Phase, ShardPauses},
};

/// Content type of what [`render`] gives.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The node's metrics as text.
pub(super) fn render(state: &Arc<NodeState>) -> Result<String, fmt::Error> {
    text_of(NodeCollector(state.clone()))
}

/// What a collector gives, as text.
fn text_of(collector: impl Collector) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(collector));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// A metric's value in what [`render`] gives, summed over its labels. `None` where it isn't there.
pub fn metric_of(text: &str, name: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labelled) => labelled.split_once("} ")?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.parse::<f64>().ok()
    });
    values.reduce(|sum, value| sum + value)
}

#[derive(Debug)]
struct NodeCollector(Arc<NodeState>);

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let state = &*self.0;
        let picture = state.ingest.picture();
        let stats: Vec<_> = state.shards.iter().map(|shard| shard.stats()).collect();
        let by_shard = |value: fn(&StatsSnapshot) -> u64| {
            stats.iter().enumerate().map(move |(index, stats)| (of_shard(index), value(stats))).collect::<Vec<_>>()
        };
        for (name, help, value) in INGEST_COUNTERS {
            family(&mut encoder, name, help, MetricType::Counter, [(Labels::new(), value(&picture))])?;
        }
        let skipped = Skip::ALL
            .iter()
            .zip(picture.counters.skipped)
            .map(|(skip, count)| (vec![("reason", skip.name().to_owned())], count));
        family(&mut encoder, "ingest_skipped", "Events that concern no subscriber", MetricType::Counter, skipped)?;

        let backends = || picture.backends.iter();
        let reading = backends().map(|b| (of_backend(b), u64::from(b.phase == Phase::Reading)));
        family(&mut encoder, "backend_reading", "Whether the backend is being read", MetricType::Gauge, reading)?;
        let halted = backends().map(|b| (of_backend(b), u64::from(b.phase == Phase::Halted)));
        family(&mut encoder, "backend_halted", "Whether the backend needs a decision", MetricType::Gauge, halted)?;
        let reopened = backends().map(|b| (of_backend(b), b.reopenings));
        family(
            &mut encoder,
            "backend_reopenings",
            "Times that its stream was opened again",
            MetricType::Counter,
            reopened,
        )?;
        let stalled = backends().map(|b| (of_backend(b), u64::from(b.stalled.is_some())));
        let help = "Whether the backend has told nothing for long, though it should have";
        family(&mut encoder, "backend_stalled", help, MetricType::Gauge, stalled)?;
        catch_up(&mut encoder, &picture)?;
        pauses(&mut encoder, &picture)?;
        let tokens = backends().map(|b| (of_backend(b), b.tokens));
        family(&mut encoder, "backend_tokens", "Resume tokens kept until they are settled", MetricType::Gauge, tokens)?;
        if let Some(age) = state.ingest.checkpoint_age_ms(state.now_ms()) {
            let help = "Milliseconds since the last checkpoint";
            family(&mut encoder, "checkpoint_age_milliseconds", help, MetricType::Gauge, [(Labels::new(), age)])?;
        }
        family(
            &mut encoder,
            "uptime_seconds",
            "Seconds since the start",
            MetricType::Gauge,
            [(Labels::new(), state.now_ms() / 1000)],
        )?;

        let help = "From a source's batch in hand to all of it in the rings, a batch";
        histogram(&mut encoder, "ingest_seconds", help, [(Labels::new(), &picture.latency)])?;
        let lag = backends().flat_map(|backend| {
            let lags = backend.settled_lag.iter().enumerate();
            lags.map(|(shard, lag)| ([of_shard(shard), of_backend(backend)].concat(), milliseconds(*lag)))
        });
        let help = "How much earlier than what was read last is what the shard has settled, by the source's clock";
        family(&mut encoder, "shard_settled_lag_milliseconds", help, MetricType::Gauge, lag)?;

        let traces: [(&str, &str, u64); 2] = [
            ("traces_exported", "Traces that the collector has taken", state.traces().0),
            ("traces_refused", "Traces that the collector has not taken, which are dropped", state.traces().1),
        ];
        for (name, help, count) in traces {
            family(&mut encoder, name, help, MetricType::Counter, [(Labels::new(), count)])?;
        }
        let reloads =
            Reload::ALL.iter().map(|outcome| (vec![("outcome", outcome.name().to_owned())], state.reloads(*outcome)));
        let help = "Times that a reload of the configuration was asked for, by what became of it";
        family(&mut encoder, "config_reloads", help, MetricType::Counter, reloads)?;

        let alive = state.shards.iter().enumerate();
        let alive = alive.map(|(index, shard)| (of_shard(index), u64::from(shard.is_alive())));
        family(&mut encoder, "shard_alive", "Whether the shard's thread runs", MetricType::Gauge, alive)?;
        for (name, help, value) in SHARD_COUNTERS {
            family(&mut encoder, name, help, MetricType::Counter, by_shard(*value))?;
        }
        for (name, help, value) in SHARD_GAUGES {
            family(&mut encoder, name, help, MetricType::Gauge, by_shard(*value))?;
        }
        for (name, help, value) in SHARD_LATENCIES {
            let values = stats.iter().enumerate().map(|(index, stats)| (of_shard(index), value(stats)));
            histogram(&mut encoder, &format!("{name}_seconds"), help, values)?;
        }
        let resyncs = stats.iter().enumerate().flat_map(|(index, stats)| {
            let counts = stats.shard.resyncs;
            let by_reason = [
                ("lineage_changed", counts.lineage_changed),
                ("history_lost", counts.history_lost),
                ("too_slow", counts.too_slow),
                ("preimage_missing", counts.preimage_missing),
            ];
            split(of_shard(index), "reason", by_reason)
        });
        let causes = stats.iter().enumerate().flat_map(|(index, stats)| {
            let counts = stats.shard.catch_ups;
            let by_cause = [
                ("presented", counts.presented),
                ("left_log", counts.left_log),
                ("outbox_full", counts.outbox_full),
                ("unverifiable", counts.unverifiable),
            ];
            split(of_shard(index), "cause", by_cause)
        });
        let help = "Subscriptions that fell behind, and are read for again";
        family(&mut encoder, "shard_catch_ups", help, MetricType::Counter, causes)?;
        family(
            &mut encoder,
            "shard_resyncs",
            "Subscriptions told to read their state anew",
            MetricType::Counter,
            resyncs,
        )
    }
}

/// When and for which shard reading pauses, and which shards lag.
fn pauses(encoder: &mut DescriptorEncoder<'_>, picture: &IngestPicture) -> fmt::Result {
    let by_reason = |value: fn(&ShardPauses, PauseReason) -> u64| {
        picture.pauses.iter().enumerate().flat_map(move |(index, pauses)| {
            split(of_shard(index), "reason", PauseReason::ALL.map(|reason| (reason.name(), value(pauses, reason))))
        })
    };
    let counts = by_reason(|pauses, reason| pauses.count[reason as usize]);
    family(encoder, "ingest_pauses", "Times that reading paused for a shard", MetricType::Counter, counts)?;
    let times = by_reason(|pauses, reason| pauses.time[reason as usize].as_millis() as u64);
    let help = "Milliseconds that reading paused for a shard";
    family(encoder, "ingest_paused_milliseconds", help, MetricType::Counter, times)?;
    let lags = picture.lags.iter().enumerate().map(|(index, lag)| (of_shard(index), u64::from(lag.is_some())));
    let help = "Whether the shard takes in less than is read";
    family(encoder, "shard_lagging", help, MetricType::Gauge, lags)
}

/// What the catch-up cursors do, by backend.
fn catch_up(encoder: &mut DescriptorEncoder<'_>, picture: &IngestPicture) -> fmt::Result {
    let backends = || picture.backends.iter();
    let passes = backends().flat_map(|backend| {
        let counters = backend.catch_up.counters;
        let by_outcome = [
            ("caught_up", counters.caught_up),
            ("history_lost", counters.history_lost),
            ("too_slow", counters.too_slow),
            ("interrupted", counters.interrupted),
        ];
        split(of_backend(backend), "outcome", by_outcome)
    });
    let help = "Passes of the catch-up cursor that have ended";
    family(encoder, "catch_up_passes", help, MetricType::Counter, passes)?;
    type Value = fn(&CatchUpStatus) -> u64;
    let counters: [(&str, &str, Value); 4] = [
        ("catch_up_passes_begun", "Passes of the catch-up cursor that have begun", |c| c.counters.begun),
        ("catch_up_events", "Events that the catch-up cursor has read", |c| c.counters.events),
        ("catch_up_items", "Items of catch-up put into rings, once for each shard", |c| c.counters.items),
        ("catch_up_reopenings", "Times that the catch-up cursor broke and was opened again", |c| c.counters.reopenings),
    ];
    for (name, help, value) in counters {
        let values = backends().map(|b| (of_backend(b), value(&b.catch_up)));
        family(encoder, name, help, MetricType::Counter, values)?;
    }
    let running = |value: fn(&CatchUpStatus) -> Option<Duration>| {
        let ms = move |status: &CatchUpStatus| value(status).map_or(0, milliseconds);
        backends().map(move |b| (of_backend(b), ms(&b.catch_up))).collect::<Vec<_>>()
    };
    let help = "How much earlier the pass that runs has read than live reading; 0: none runs";
    family(encoder, "catch_up_lag_milliseconds", help, MetricType::Gauge, running(|c| c.lag))?;
    let help = "How long the pass that runs has run; 0: none runs";
    family(encoder, "catch_up_running_milliseconds", help, MetricType::Gauge, running(|c| c.running))
}

type Labels = Vec<(&'static str, String)>;

fn of_shard(index: usize) -> Labels {
    vec![("shard", index.to_string())]
}

fn of_backend(backend: &BackendStatus) -> Labels {
    vec![("backend", backend.name.clone())]
}

/// Counts of one thing, each under its name in one more label.
fn split<const N: usize>(of: Labels, label: &'static str, counts: [(&str, u64); N]) -> [(Labels, u64); N] {
    counts.map(|(name, count)| ([of.clone(), vec![(label, name.to_owned())]].concat(), count))
}

/// What is further back than a source can tell is as far as a gauge goes.
fn milliseconds(time: Duration) -> u64 {
    time.as_millis().min(i64::MAX as u128) as u64
}

/// A histogram for each set of labels, in seconds.
fn histogram<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels, &'a Histogram)>,
) -> fmt::Result {
    const NS_PER_S: f64 = 1e9;
    let bounds = LATENCY_BOUNDS_NS.iter().map(|bound| *bound as f64 / NS_PER_S).chain([f64::INFINITY]);
    let bounds: Vec<f64> = bounds.collect();
    let name = format!("streamer_{name}");
    let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Histogram)?;
    for (labels, histogram) in values {
        let buckets: Vec<_> = bounds.iter().copied().zip(histogram.counts).collect();
        let (sum, count) = (histogram.sum_ns as f64 / NS_PER_S, histogram.count());
        let put = |metric: &mut MetricEncoder<'_>| metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None);
        if labels.is_empty() {
            put(&mut metric)?;
        } else {
            put(&mut metric.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// One metric with a value for each set of labels.
fn family(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    kind: MetricType,
    values: impl IntoIterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let is_counter = matches!(kind, MetricType::Counter);
    let name = format!("streamer_{name}");
    let mut metric = encoder.encode_descriptor(&name, help, None, kind)?;
    for (labels, value) in values {
        let put = |metric: &mut MetricEncoder<'_>| match is_counter {
            true => metric.encode_counter::<NoLabelSet, u64, f64>(&value, None),
            // Nothing that is counted here comes near 2^63.
            false => metric.encode_gauge(&(value as i64)),
        };
        if labels.is_empty() {
            put(&mut metric)?;
        } else {
            put(&mut metric.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
