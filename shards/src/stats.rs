//! What a shard counts. All but the gauges at the end only grow.

use std::collections::BTreeSet;
use std::sync::Arc;

use wire::ResyncReason;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// Changes that came through the ring.
    pub events: u64,
    /// Changes at or before what had come already; dropped.
    pub events_repeated: u64,
    /// Changes that at least one subscription matched.
    pub events_matched: u64,
    /// (change, subscription) pairs put into the log.
    pub deliveries: u64,
    /// Event entries written for Gateways, each with all its handles.
    pub entries_sent: u64,
    /// Bytes written for Gateways.
    pub bytes_sent: u64,
    /// Subscriptions that the index named for an image, before they were evaluated.
    pub candidates: u64,
    /// Evaluations that ended in an error, which is no match.
    pub evaluation_errors: u64,
    /// Evaluations that ran out of budget.
    pub evaluations_over_budget: u64,
    /// Images that are no valid BSON.
    pub bad_documents: u64,
    /// Hard deletes of which not even the tenant is known; nobody is told.
    pub bare_deletes_without_tenant: u64,
    /// Deliveries that a Gateway was done with.
    pub acked: u64,
    pub acks_stale: u64,
    pub gaps: u64,
    pub resyncs: ResyncCounts,
    /// Log entries that left it, and those of them that somebody was still owed.
    pub evictions: u64,
    pub evictions_unsettled: u64,
    /// Times that more waited for a Gateway than its outbox may hold.
    pub outbox_overruns: u64,
    pub catch_ups: CatchUpCounts,
    pub sessions_opened: u64,
    pub sessions_superseded: u64,
    pub sessions_past_received_deadline: u64,
    pub protocol_violations: u64,
    /// Requests, acks and hellos of connections that have no session.
    pub strays: u64,
    pub requests: u64,
    pub requests_too_many: u64,
    pub subscriptions_created: u64,
    pub subscriptions_renewed: u64,
    pub subscriptions_replaced: u64,
    pub subscriptions_rejected: u64,
    pub subscriptions_not_owned: u64,
    pub subscriptions_removed: u64,
    pub subscriptions_expired: u64,
    /// Changes that nobody watches and that the filter let through all the same, and those of them that somebody watched once.
    pub filter_false_positives: u64,
    pub filter_stale: u64,
    /// Bases of the filter that were built, and builds that failed.
    pub filter_builds: u64,
    pub filter_builds_failed: u64,
    /// Times that the shard was stopped for so long that deadlines were moved.
    pub stalls: u64,

    /// Now: sessions, Gateways known, subscriptions, those of them that wait for the ingest thread to see them.
    pub sessions: u64,
    pub gateways: u64,
    pub subscriptions: u64,
    pub subscriptions_pending: u64,
    /// Now: subscriptions that are behind: what they lack is to be read from the source's history.
    pub subscriptions_behind: u64,
    /// Now: sessions that hold more than their outbox may, and have not come down to half of it since.
    pub outboxes_full: u64,
    /// Now: sessions that come near to that, although their Gateways go on taking things.
    pub outboxes_pressing: u64,
    /// Now: entries and bytes of the log, and entries that somebody is owed.
    pub log_events: u64,
    pub log_bytes: u64,
    pub log_unsettled: u64,
    pub filter_keys: u64,
    pub filter_version: u64,
    /// Now: keys that the filter's base doesn't hold yet, bytes of the base, and whether the filter lets everything through because too
    /// many keys came at once.
    pub filter_delta_keys: u64,
    pub filter_base_bytes: u64,
    pub filter_everything: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResyncCounts {
    pub lineage_changed: u64,
    pub history_lost: u64,
    pub too_slow: u64,
    pub preimage_missing: u64,
}

/// What became of subscriptions that the log could not give what they lacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CatchUpCounts {
    /// Subscriptions that fell behind, by the cause: their Gateway presented a position from before what the log holds, or before they
    /// were live;
    pub presented: u64,
    /// something that they were owed has left the log;
    pub left_log: u64,
    /// their Gateway's outbox was full;
    pub outbox_full: u64,
    /// or what was matched for an earlier session needs to be verified, which this session can't.
    pub unverifiable: u64,
    /// Passes that began, and changes and gaps that they brought.
    pub passes: u64,
    pub events: u64,
    /// Changes and gaps of passes that are not running, or that had come already.
    pub events_dropped: u64,
    /// (change, subscription) pairs of passes that were put into the log.
    pub deliveries: u64,
    /// Subscriptions that met the live stream, in all that they were behind for.
    pub caught_up: u64,
    /// Times that a subscription was left behind by a pass, because its Gateway took too little.
    pub fallen_out: u64,
    /// Times that a subscription's pass was interrupted, and it waits for the next one.
    pub interrupted: u64,
}

/// Why a subscription falls behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Presented,
    LeftLog,
    OutboxFull,
    Unverifiable,
}

impl CatchUpCounts {
    pub(crate) fn count(&mut self, cause: Cause) {
        *match cause {
            Cause::Presented => &mut self.presented,
            Cause::LeftLog => &mut self.left_log,
            Cause::OutboxFull => &mut self.outbox_full,
            Cause::Unverifiable => &mut self.unverifiable,
        } += 1;
    }

    pub fn begun(&self) -> u64 {
        self.presented + self.left_log + self.outbox_full + self.unverifiable
    }
}

impl ResyncCounts {
    pub(crate) fn count(&mut self, reason: ResyncReason) {
        *match reason {
            ResyncReason::LineageChanged => &mut self.lineage_changed,
            ResyncReason::HistoryLost => &mut self.history_lost,
            ResyncReason::TooSlow => &mut self.too_slow,
            ResyncReason::PreimageMissing => &mut self.preimage_missing,
        } += 1;
    }

    pub fn total(&self) -> u64 {
        self.lineage_changed + self.history_lost + self.too_slow + self.preimage_missing
    }
}

/// How many subscriptions there are, by Gateway and by tenant, each in the order of the names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionCounts {
    pub by_gateway: Vec<(Arc<str>, u64)>,
    pub by_tenant: Vec<(Arc<str>, u64)>,
}

/// What a shard wants of the catch-up cursors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CatchUpWanted {
    /// Rises with every change of the rest.
    pub version: u64,
    /// For each backend, the lowest position from which a subscription waits for a pass to begin. Those that a pass serves already
    /// don't wait.
    pub lowest: wire::Positions,
    /// For each backend that had a pass: the number of the last one that the shard has heard of, and how many subscriptions it still
    /// serves.
    pub serving: Vec<(wire::BackendId, u64, u64)>,
}

/// What the ingest thread waits for before it reads on after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncState {
    /// Rises with every change of the rest.
    pub version: u64,
    /// Gateways that have presented all their subscriptions since the start.
    pub synced: Vec<Arc<str>>,
    /// Version of the filter that holds what all of these have presented.
    pub synced_filter: u64,
    /// Gateways with subscriptions: those that a restarting node is to wait for.
    pub gateways: BTreeSet<Arc<str>>,
}

impl SyncState {
    /// True for one that had no subscription.
    pub(crate) fn registered(&mut self, gateway: &Arc<str>) -> bool {
        let new = self.gateways.insert(gateway.clone());
        self.version += u64::from(new);
        new
    }

    pub(crate) fn gone(&mut self, gateway: &str) {
        if self.gateways.remove(gateway) {
            self.version += 1;
        }
    }

    pub(crate) fn synced(&mut self, gateway: &Arc<str>, filter: u64) {
        if self.synced.len() < SYNCED_MAX && !self.synced.contains(gateway) {
            self.synced.push(gateway.clone());
            self.synced_filter = filter;
            self.version += 1;
        }
    }
}

/// Gateways that are remembered to have synced.
const SYNCED_MAX: usize = 65_536;
