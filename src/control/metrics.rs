//! `/metrics`: the counters of all threads in the text form of Prometheus, read from their latest pictures at each scrape.
//!
//! Names are `streamer_<name>_<unit>`; counters end in `_total`. Labels are bounded by the configuration: shards, backends and
//! reasons. Gateways and tenants are in `/v1/topology`, since there may be many.

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text::encode},
    metrics::MetricType,
    registry::Registry,
};
use shards::driver::StatsSnapshot;

use super::state::NodeState;
use crate::ingest::{
    normalize::Skip,
    status::{BackendStatus, CatchUpStatus, IngestPicture, PauseReason, Phase, ShardPauses},
};

/// Content type of what [`render`] gives.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The node's metrics as text.
pub(super) fn render(state: &Arc<NodeState>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(NodeCollector(state.clone())));
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

struct NodeCollector(Arc<NodeState>);

impl fmt::Debug for NodeCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeCollector")
    }
}

type ShardCounter = (&'static str, &'static str, fn(&StatsSnapshot) -> u64);

/// Counters of a shard, without the prefix and without `_total`.
const SHARD_COUNTERS: &[ShardCounter] = &[
    ("shard_events", "Changes that came through the ring", |s| s.shard.events),
    ("shard_events_repeated", "Changes that had come already and were dropped", |s| s.shard.events_repeated),
    ("shard_events_matched", "Changes that at least one subscription matched", |s| s.shard.events_matched),
    ("shard_deliveries", "Pairs of change and subscription put into the delivery log", |s| s.shard.deliveries),
    ("shard_entries_sent", "Event entries written for Gateways", |s| s.shard.entries_sent),
    ("shard_sent_bytes", "Bytes written for Gateways", |s| s.shard.bytes_sent),
    ("shard_candidates", "Subscriptions that the index named for an image", |s| s.shard.candidates),
    ("shard_evaluation_errors", "Evaluations that ended in an error, which is no match", |s| s.shard.evaluation_errors),
    ("shard_evaluations_over_budget", "Evaluations that ran out of budget", |s| s.shard.evaluations_over_budget),
    ("shard_bad_documents", "Images that are no valid BSON", |s| s.shard.bad_documents),
    ("shard_bare_deletes_dropped", "Hard deletes of which not even the tenant is known", |s| {
        s.shard.bare_deletes_without_tenant
    }),
    ("shard_acked", "Deliveries that a Gateway was done with", |s| s.shard.acked),
    ("shard_acks_stale", "Acks of sessions that are over", |s| s.shard.acks_stale),
    ("shard_gaps", "Gaps told", |s| s.shard.gaps),
    ("shard_catch_up_passes", "Passes of catch-up cursors that the shard took part in", |s| s.shard.catch_ups.passes),
    ("shard_catch_up_events", "Changes and gaps that passes brought", |s| s.shard.catch_ups.events),
    ("shard_catch_up_events_dropped", "Changes and gaps of passes that had ended, or that had come already", |s| {
        s.shard.catch_ups.events_dropped
    }),
    ("shard_catch_up_deliveries", "Pairs of change and subscription of passes put into the delivery log", |s| {
        s.shard.catch_ups.deliveries
    }),
    ("shard_caught_up", "Subscriptions that met the live stream", |s| s.shard.catch_ups.caught_up),
    (
        "shard_catch_up_fallen_out",
        "Times that a pass left a subscription behind, because its Gateway took too little",
        |s| s.shard.catch_ups.fallen_out,
    ),
    ("shard_catch_up_interrupted", "Times that a subscription's pass was interrupted", |s| {
        s.shard.catch_ups.interrupted
    }),
    ("shard_evictions", "Entries that left the delivery log", |s| s.shard.evictions),
    ("shard_evictions_unsettled", "Entries that left the delivery log while somebody was owed them", |s| {
        s.shard.evictions_unsettled
    }),
    ("shard_outbox_overruns", "Times that more waited for a Gateway than its outbox may hold", |s| {
        s.shard.outbox_overruns
    }),
    ("shard_sessions_opened", "Sessions of Gateways opened", |s| s.shard.sessions_opened),
    ("shard_sessions_superseded", "Sessions taken over by a newer one of the same Gateway", |s| {
        s.shard.sessions_superseded
    }),
    ("shard_sessions_past_deadline", "Sessions ended because receipt wasn't acknowledged in time", |s| {
        s.shard.sessions_past_received_deadline
    }),
    ("shard_protocol_violations", "Connections closed because what they sent is not the protocol", |s| {
        s.shard.protocol_violations + s.driver.protocol_violations
    }),
    ("shard_requests", "Requests of Gateways", |s| s.shard.requests),
    ("shard_requests_refused", "Requests beyond those that may wait for their answer", |s| {
        s.shard.requests_too_many + s.driver.requests_too_many
    }),
    ("shard_subscriptions_created", "Subscriptions created", |s| s.shard.subscriptions_created),
    ("shard_subscriptions_renewed", "Subscriptions renewed", |s| s.shard.subscriptions_renewed),
    ("shard_subscriptions_replaced", "Subscriptions replaced by other content", |s| s.shard.subscriptions_replaced),
    ("shard_subscriptions_rejected", "Subscriptions refused", |s| s.shard.subscriptions_rejected),
    ("shard_subscriptions_not_owned", "Subscriptions sent to another shard", |s| s.shard.subscriptions_not_owned),
    ("shard_subscriptions_removed", "Subscriptions removed", |s| s.shard.subscriptions_removed),
    ("shard_subscriptions_expired", "Subscriptions whose time ran out", |s| s.shard.subscriptions_expired),
    ("shard_filter_false_positives", "Changes that the filter let through and nobody watches", |s| {
        s.shard.filter_false_positives
    }),
    ("shard_filter_stale", "Changes that the filter let through and nobody watches any more", |s| s.shard.filter_stale),
    ("shard_filter_builds", "Times that the filter was built anew", |s| s.shard.filter_builds),
    ("shard_filter_builds_failed", "Times that building the filter failed", |s| s.shard.filter_builds_failed),
    ("shard_stalls", "Times that the shard stood still for so long that deadlines were moved", |s| s.shard.stalls),
    ("shard_connections_incoming", "Attempts to connect", |s| s.driver.connections_incoming),
    ("shard_connections_retried", "Attempts whose address had to be proven first", |s| s.driver.connections_retried),
    ("shard_connections_refused", "Attempts refused because there were too many", |s| s.driver.connections_refused),
    ("shard_handshakes_failed", "Handshakes that failed or took too long", |s| s.driver.handshakes_failed),
    ("shard_hellos_late", "Connections that said no hello in time", |s| s.driver.hellos_late),
    ("shard_hellos_unauthorized", "Hellos whose token or Gateway was refused", |s| s.driver.unauthorized),
    ("shard_passes", "Passes of the shard's main loop", |s| s.driver.passes),
    ("shard_passes_slow", "Passes that took longer than 100 ms", |s| s.driver.passes_slow),
    ("shard_parks", "Passes after which there was nothing to do", |s| s.driver.parks),
    ("shard_ring_pushed", "Items that the ingest thread put into the ring", |s| s.ring.pushed),
    ("shard_ring_popped", "Items that the shard took from the ring", |s| s.ring.popped),
    ("shard_ring_waits", "Times that the ingest thread waited for room in the ring", |s| s.ring.waits),
];

/// Gauges of a shard.
const SHARD_GAUGES: &[ShardCounter] = &[
    ("shard_sessions", "Sessions of Gateways now", |s| s.driver.sessions),
    ("shard_newcomers", "Connections that are shaking hands or haven't said hello", |s| s.driver.newcomers),
    ("shard_gateways", "Gateways known", |s| s.shard.gateways),
    ("shard_subscriptions", "Subscriptions now", |s| s.shard.subscriptions),
    ("shard_subscriptions_behind", "Subscriptions that lack what the delivery log can't give", |s| {
        s.shard.subscriptions_behind
    }),
    ("shard_outboxes_full", "Sessions for which nothing more is put into the log", |s| s.shard.outboxes_full),
    ("shard_outboxes_pressing", "Sessions near their outbox's bound whose Gateways go on taking things", |s| {
        s.shard.outboxes_pressing
    }),
    ("shard_subscriptions_pending", "Subscriptions that wait for the ingest thread to see them", |s| {
        s.shard.subscriptions_pending
    }),
    ("shard_log_events", "Entries of the delivery log", |s| s.shard.log_events),
    ("shard_log_bytes", "Bytes of the delivery log", |s| s.shard.log_bytes),
    ("shard_log_unsettled", "Entries of the delivery log that somebody is owed", |s| s.shard.log_unsettled),
    ("shard_filter_keys", "Keys of the filter that the ingest thread asks", |s| s.shard.filter_keys),
    ("shard_filter_version", "Version of that filter", |s| s.shard.filter_version),
    ("shard_filter_delta_keys", "Keys that its base doesn't hold yet", |s| s.shard.filter_delta_keys),
    ("shard_filter_base_bytes", "Bytes of its base", |s| s.shard.filter_base_bytes),
    ("shard_filter_everything", "1 while it lets everything through, because too many keys came at once", |s| {
        s.shard.filter_everything
    }),
    ("shard_control_backlog", "Messages that the registrar hasn't had room for", |s| s.driver.control_backlog),
    ("shard_ring_capacity", "Items that the ring holds", |s| s.ring.capacity),
];

type IngestCounter = (&'static str, &'static str, fn(&IngestPicture) -> u64);

const INGEST_COUNTERS: &[IngestCounter] = &[
    ("ingest_events", "Events read from the sources", |p| p.counters.events),
    ("ingest_read_bytes", "Bytes of events read from the sources", |p| p.counters.bytes),
    ("ingest_routed", "Changes put into rings, once for each shard", |p| p.counters.routed),
    ("ingest_filtered", "Changes that no shard's filter wanted", |p| p.counters.filtered),
    ("ingest_repeated", "Events read again and dropped", |p| p.counters.repeated),
    ("ingest_gaps", "Gaps in what the sources had", |p| p.counters.gaps),
    ("checkpoints_written", "Checkpoints written", |p| p.checkpoints_written),
    ("checkpoints_failed", "Checkpoints that could not be written", |p| p.checkpoints_failed),
    ("checkpoint_bad_slots", "Checkpoint files found damaged at the start", |p| p.checkpoint_bad_slots),
];

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

        let alive = state.shards.iter().enumerate();
        let alive = alive.map(|(index, shard)| (of_shard(index), u64::from(shard.is_alive())));
        family(&mut encoder, "shard_alive", "Whether the shard's thread runs", MetricType::Gauge, alive)?;
        for (name, help, value) in SHARD_COUNTERS {
            family(&mut encoder, name, help, MetricType::Counter, by_shard(*value))?;
        }
        for (name, help, value) in SHARD_GAUGES {
            family(&mut encoder, name, help, MetricType::Gauge, by_shard(*value))?;
        }
        let resyncs = stats.iter().enumerate().flat_map(|(index, stats)| {
            let counts = stats.shard.resyncs;
            [
                ("lineage_changed", counts.lineage_changed),
                ("history_lost", counts.history_lost),
                ("too_slow", counts.too_slow),
                ("preimage_missing", counts.preimage_missing),
            ]
            .map(|(reason, count)| ([of_shard(index), vec![("reason", reason.to_owned())]].concat(), count))
        });
        let causes = stats.iter().enumerate().flat_map(|(index, stats)| {
            let counts = stats.shard.catch_ups;
            [
                ("presented", counts.presented),
                ("left_log", counts.left_log),
                ("outbox_full", counts.outbox_full),
                ("unverifiable", counts.unverifiable),
            ]
            .map(|(cause, count)| ([of_shard(index), vec![("cause", cause.to_owned())]].concat(), count))
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
            PauseReason::ALL.map(|reason| {
                let labels = [of_shard(index), vec![("reason", reason.name().to_owned())]].concat();
                (labels, value(pauses, reason))
            })
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
        [
            ("caught_up", counters.caught_up),
            ("history_lost", counters.history_lost),
            ("too_slow", counters.too_slow),
            ("interrupted", counters.interrupted),
        ]
        .map(|(outcome, count)| ([of_backend(backend), vec![("outcome", outcome.to_owned())]].concat(), count))
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
        // What is further back than a source can tell is as far as a gauge goes.
        let ms =
            move |status: &CatchUpStatus| value(status).map_or(0, |time| time.as_millis().min(i64::MAX as u128) as u64);
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
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::ingest::{catch_up::CatchUpCounters, status::IngestStatus};

    #[test]
    fn names_follow_the_rule_and_come_once() {
        let ingest = Arc::new(IngestStatus::default());
        let backend = BackendStatus {
            name: "main \"x\"".into(),
            phase: Phase::Reading,
            source: None,
            position: None,
            error: None,
            reopenings: 3,
            tokens: 1,
            stalled: None,
            catch_up: CatchUpStatus {
                counters: CatchUpCounters { caught_up: 2, ..CatchUpCounters::default() },
                lag: Some(Duration::from_millis(1_500)),
                ..CatchUpStatus::default()
            },
        };
        ingest.publish(IngestPicture { backends: vec![backend], ..IngestPicture::default() });
        let state = Arc::new(NodeState::silent(ingest, 2));
        let text = render(&state).unwrap();
        let mut types = HashSet::new();
        let mut values = HashSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                assert!(types.insert(rest.split(' ').next().unwrap().to_owned()), "{line}");
            } else if !line.starts_with('#') {
                assert!(line.starts_with("streamer_"), "{line}");
                assert!(values.insert(line.rsplit_once(' ').unwrap().0), "{line}");
            }
        }
        for line in [
            "streamer_ingest_events_total 0",
            "streamer_ingest_skipped_total{reason=\"operation\"} 0",
            r#"streamer_backend_reopenings_total{backend="main \"x\""} 3"#,
            r#"streamer_catch_up_passes_total{backend="main \"x\"",outcome="caught_up"} 2"#,
            r#"streamer_catch_up_lag_milliseconds{backend="main \"x\""} 1500"#,
            r#"streamer_backend_stalled{backend="main \"x\""} 0"#,
            "streamer_shard_sessions{shard=\"1\"} 0",
            "streamer_shard_alive{shard=\"0\"} 1",
            "streamer_shard_resyncs_total{shard=\"0\",reason=\"too_slow\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    /// What alerts and dashboard ask for must be there: a query of a name that isn't gives nothing, and no error.
    #[test]
    fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
        let backend = BackendStatus {
            name: "main".into(),
            phase: Phase::Reading,
            source: None,
            position: None,
            error: None,
            reopenings: 0,
            tokens: 0,
            stalled: None,
            catch_up: CatchUpStatus::default(),
        };
        let ingest = Arc::new(IngestStatus::default());
        ingest.publish(IngestPicture { backends: vec![backend], ..IngestPicture::default() });
        ingest.checkpointed(0);
        let text = render(&Arc::new(NodeState::silent(ingest, 1))).unwrap();
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let known: HashSet<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split([' ', '{']).next())
            .collect();
        for path in ["tuning/prometheus/alerts.yml", "tuning/grafana/streamer.json"] {
            let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
            let queries = std::fs::read_to_string(&file).unwrap();
            let asked: HashSet<&str> =
                queries.split(|c| !is_name(c)).filter(|word| word.starts_with("streamer_")).collect();
            assert!(asked.len() > 5, "{path}");
            for name in asked {
                assert!(known.contains(name), "{path} asks for {name}, which isn't in\n{text}");
            }
        }
        let dashboard = std::fs::read_to_string(
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning/grafana/streamer.json"),
        );
        serde_json::from_str::<serde_json::Value>(&dashboard.unwrap()).unwrap();
    }
}
