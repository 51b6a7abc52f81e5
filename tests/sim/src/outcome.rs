//! What came of a run, and what comes of many.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use shards::ShardStats;

/// What happened in runs that kept every promise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Things that happened: a message arrived, a thread had a turn, a fault struck.
    pub events: u64,
    /// Turns in which there was nothing to do.
    pub idle: u64,
    /// Change events of the source.
    pub changes: u64,
    /// Changes that applications were given.
    pub deliveries: u64,
    /// Gaps that applications were given.
    pub gaps: u64,
    /// Changes and gaps that came again and were dropped by the SDK.
    pub duplicates_dropped: u64,
    /// Sessions that were sent changes from before they began.
    pub replays: u64,
    /// Subscriptions that fell behind what a shard's log could give them, and those that met the live stream again.
    pub catch_ups: u64,
    pub merges: u64,
    /// Those that fell behind, by the cause: the position that was presented, the log was full, their Gateway's outbox was.
    pub presented_old: u64,
    pub left_log: u64,
    pub outbox_full: u64,
    /// Times that an outbox was full; that one was left behind by its pass because of it; that a pass was interrupted for one.
    pub outbox_overruns: u64,
    pub fallen_out: u64,
    pub interrupted: u64,
    /// Sessions that a shard gave up because nothing was received in time.
    pub past_deadline: u64,
    pub checkpoints: u64,
    pub checkpoints_torn: u64,
    pub slots_rotten: u64,
    pub node_crashes: u64,
    /// Crashes of the node while it was owed an ack.
    pub node_crashes_owing: u64,
    pub gateway_crashes: u64,
    /// Crashes of a Gateway that held something that it wasn't done with.
    pub gateway_crashes_owing: u64,
    pub disconnects: u64,
    pub half_open: u64,
    pub pauses: u64,
    pub slow: u64,
    pub dead: u64,
    pub source_failures: u64,
    pub histories_lost: u64,
    pub late_lookups: u64,
    /// Times that passes read nothing for a while.
    pub history_slow: u64,
    pub churned: u64,
    /// Subscriptions that a process asked for only after the node could have bound what it knew of them.
    pub asked_late: u64,
    /// Older selves that the SDK had a shard end, and subscriptions that it began anew.
    pub strays_ended: u64,
    pub begun_anew: u64,
    pub expired: u64,
    pub filters_built: u64,
    pub filters_failed: u64,
    /// By reason; each had a cause that was injected.
    pub resyncs: BTreeMap<String, u64>,
}

impl Outcome {
    pub fn add(&mut self, other: &Self) {
        let Self {
            events,
            idle,
            changes,
            deliveries,
            gaps,
            duplicates_dropped,
            replays,
            catch_ups,
            merges,
            presented_old,
            left_log,
            outbox_full,
            outbox_overruns,
            fallen_out,
            interrupted,
            past_deadline,
            checkpoints,
            checkpoints_torn,
            slots_rotten,
            node_crashes,
            node_crashes_owing,
            gateway_crashes,
            gateway_crashes_owing,
            disconnects,
            half_open,
            pauses,
            slow,
            dead,
            source_failures,
            histories_lost,
            late_lookups,
            history_slow,
            churned,
            asked_late,
            strays_ended,
            begun_anew,
            expired,
            filters_built,
            filters_failed,
            resyncs,
        } = other;
        self.events += events;
        self.idle += idle;
        self.changes += changes;
        self.deliveries += deliveries;
        self.gaps += gaps;
        self.duplicates_dropped += duplicates_dropped;
        self.replays += replays;
        self.catch_ups += catch_ups;
        self.merges += merges;
        self.presented_old += presented_old;
        self.left_log += left_log;
        self.outbox_full += outbox_full;
        self.outbox_overruns += outbox_overruns;
        self.fallen_out += fallen_out;
        self.interrupted += interrupted;
        self.past_deadline += past_deadline;
        self.checkpoints += checkpoints;
        self.checkpoints_torn += checkpoints_torn;
        self.slots_rotten += slots_rotten;
        self.node_crashes += node_crashes;
        self.node_crashes_owing += node_crashes_owing;
        self.gateway_crashes += gateway_crashes;
        self.gateway_crashes_owing += gateway_crashes_owing;
        self.disconnects += disconnects;
        self.half_open += half_open;
        self.pauses += pauses;
        self.slow += slow;
        self.dead += dead;
        self.source_failures += source_failures;
        self.histories_lost += histories_lost;
        self.late_lookups += late_lookups;
        self.history_slow += history_slow;
        self.churned += churned;
        self.asked_late += asked_late;
        self.strays_ended += strays_ended;
        self.begun_anew += begun_anew;
        self.expired += expired;
        self.filters_built += filters_built;
        self.filters_failed += filters_failed;
        for (reason, count) in resyncs {
            *self.resyncs.entry(reason.clone()).or_default() += count;
        }
    }

    /// Adds what a shard counted in its life.
    pub(crate) fn count_shard(&mut self, stats: &ShardStats) {
        let counts = stats.catch_ups;
        self.catch_ups += counts.presented + counts.left_log + counts.outbox_full + counts.unverifiable;
        self.merges += counts.caught_up;
        self.presented_old += counts.presented;
        self.left_log += counts.left_log;
        self.outbox_full += counts.outbox_full;
        self.outbox_overruns += stats.outbox_overruns;
        self.fallen_out += counts.fallen_out;
        self.interrupted += counts.interrupted;
        self.past_deadline += stats.sessions_past_received_deadline;
    }

    /// Crashes, of the node or of a Gateway, with deliveries that nobody was done with.
    pub fn crashes_owing(&self) -> u64 {
        self.node_crashes_owing + self.gateway_crashes_owing
    }
}

/// Lines for people.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "changes                {:>10}  ({} events)", self.changes, self.events)?;
        writeln!(
            f,
            "deliveries             {:>10}  ({} sent again and dropped)",
            self.deliveries, self.duplicates_dropped
        )?;
        writeln!(f, "replays                {:>10}", self.replays)?;
        let causes =
            format_args!("{} presented, {} log, {} outbox", self.presented_old, self.left_log, self.outbox_full);
        writeln!(f, "catch-ups, merges      {:>10}, {}  ({causes})", self.catch_ups, self.merges)?;
        writeln!(f, "  fallen out           {:>10}  ({} interrupted)", self.fallen_out, self.interrupted)?;
        writeln!(f, "outboxes full          {:>10}", self.outbox_overruns)?;
        writeln!(f, "sessions given up      {:>10}  (nothing received in time)", self.past_deadline)?;
        writeln!(f, "gaps told              {:>10}", self.gaps)?;
        writeln!(f, "resyncs                {:>10}  {:?}", self.resyncs.values().sum::<u64>(), self.resyncs)?;
        let crashes = self.node_crashes + self.gateway_crashes;
        writeln!(f, "crashes                {crashes:>10}  ({} of the node)", self.node_crashes)?;
        writeln!(f, "  with unacked         {:>10}  ({} of the node)", self.crashes_owing(), self.node_crashes_owing)?;
        writeln!(
            f,
            "connections lost       {:>10}  ({} half-open)",
            self.disconnects + self.half_open,
            self.half_open
        )?;
        writeln!(f, "pauses, slow, dead     {:>10}, {}, {}", self.pauses, self.slow, self.dead)?;
        writeln!(
            f,
            "source resumed         {:>10}  ({} with history lost)",
            self.source_failures, self.histories_lost
        )?;
        writeln!(f, "late look-ups          {:>10}", self.late_lookups)?;
        writeln!(f, "history slow           {:>10}", self.history_slow)?;
        writeln!(f, "churned, expired       {:>10}, {}", self.churned, self.expired)?;
        let (strays, anew) = (self.strays_ended, self.begun_anew);
        writeln!(
            f,
            "asked late             {:>10}  ({strays} older selves ended, {anew} begun anew)",
            self.asked_late
        )?;
        let (torn, rotten) = (self.checkpoints_torn, self.slots_rotten);
        writeln!(f, "checkpoints            {:>10}  ({torn} torn, {rotten} rotten)", self.checkpoints)?;
        write!(f, "filters built, failed  {:>10}, {}", self.filters_built, self.filters_failed)
    }
}
