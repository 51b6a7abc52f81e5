//! What is counted by shard and by the ingest thread: the names, and where the values come from.

use shards::driver::{Histogram, StatsSnapshot};

use crate::ingest::status::IngestPicture;

type ShardCounter = (&'static str, &'static str, fn(&StatsSnapshot) -> u64);

/// Counters of a shard, without the prefix and without `_total`.
pub(super) const SHARD_COUNTERS: &[ShardCounter] = &[
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
    ("shard_traces_dropped", "Sampled changes that there was no room for with the exporter of traces", |s| {
        s.driver.samples_dropped
    }),
    ("shard_passes", "Passes of the shard's main loop", |s| s.driver.passes),
    ("shard_passes_slow", "Passes that took longer than 100 ms", |s| s.driver.passes_slow),
    ("shard_parks", "Passes after which there was nothing to do", |s| s.driver.parks),
    ("shard_ring_pushed", "Items that the ingest thread put into the ring", |s| s.ring.pushed),
    ("shard_ring_popped", "Items that the shard took from the ring", |s| s.ring.popped),
    ("shard_ring_waits", "Times that the ingest thread waited for room in the ring", |s| s.ring.waits),
];

/// Gauges of a shard.
pub(super) const SHARD_GAUGES: &[ShardCounter] = &[
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

type ShardLatency = (&'static str, &'static str, fn(&StatsSnapshot) -> &Histogram);

/// Latencies of sampled changes, without the prefix and without `_seconds`.
pub(super) const SHARD_LATENCIES: &[ShardLatency] = &[
    ("shard_queue", "From the ingest thread into the shard's hands, through the ring", |s| &s.latencies.queue),
    ("shard_match", "From out of the ring to in the queues of Gateways", |s| &s.latencies.matching),
    ("shard_send", "From in the queue of a Gateway to encoded for its stream", |s| &s.latencies.send),
    ("shard_ack", "From encoded for a Gateway's stream to its ack of being done", |s| &s.latencies.ack),
    ("shard_end_to_end", "From read from the source to a Gateway's ack of being done", |s| &s.latencies.end_to_end),
];

type IngestCounter = (&'static str, &'static str, fn(&IngestPicture) -> u64);

pub(super) const INGEST_COUNTERS: &[IngestCounter] = &[
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
