//! Rules that are broken on purpose, to see that the simulator would tell.
//!
//! Nothing in the node or the SDK can be told to misbehave. A rule is broken in what passes between the real machines, where that has the
//! same effect on everybody else as the defect itself would have; each variant says how.

use std::{fmt, str::FromStr};

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The checkpoint names what was read, not what is settled.
    CheckpointAhead,
    /// A shard calls settled what it has taken from its ring, be it acked or not: what its cell shows is rewritten.
    SettleBeforeAck,
    /// The ingest thread says that it routes by a filter, and routes by the one before.
    FilterConfirmedEarly,
    /// The ingest thread says that it routes by a filter, and goes on with one that it has had for several versions.
    StaleFilterKept,
    /// When a new base takes over, the keys that were added while it was built are forgotten: what is published then is what was published
    /// when the build began, under the version of now. That holds the keys that were there at the capture, and none that came after it.
    DeltaClearedAtSwap,
    /// The SDK acks as done what it has received, whatever the application has of it: acks are rewritten on their way.
    DoneBeforeHandedOn,
    /// A shard takes a subscription that goes on from a position before its log for one that misses nothing. The positions are taken out
    /// of the request, so that it is bound from where the shard is now, and nobody is told of what lies between.
    ReplayPastLiveFrom,
    /// Nobody waits for the Gateways that the checkpoint names, nor for the positions that they present.
    BarrierSkippedAndPositionIgnored,
    /// The last ack of a session counts for the session that follows it: it is given to the shard as one of the new connection's.
    OldSessionAcks,
    /// The SDK hands on what is at or below the position that a subscription has had: what it is sent again goes to the application.
    PositionCheckOff,
    /// A slot that was torn while it was written is taken for whole: reading it gives a mixture of what it held and of what was written,
    /// under a checksum that fits.
    TornSlotAccepted,
    /// A subscription runs out while its Gateway's session is live: the shard is told to end it as one that has run out.
    TtlDuringSession,
    /// A shard gives a handle out that stands for another tenant's subscription in the same session: the number is rewritten, both where it
    /// is bound and where it is used.
    HandleReusedAcrossTenants,
    /// A session that comes after a gap isn't told of it: in place of the gap comes an entry that is for nobody, since the count must go on.
    GapForgotten,
    /// A shard takes a pass for ended before the last that it brings: that comes after the end.
    MergeOneEarly,
    /// A shard takes a pass for going on when the first of the live stream comes that is not the pass's: that comes before the end.
    MergeOneLate,
    /// What a cursor has read for a pass that has ended is taken for the next one's, which began further back: that one's cursor goes on
    /// where the old one stood when it read it.
    OldCursorHeard,
    /// A Gateway isn't told that a subscription is catching up: what heartbeats say is taken to be about it all the while.
    CatchingUpUntold,
    /// The SDK takes what a shard has bound for what it has asked for late: the answer that it was there before, perhaps with other content,
    /// is rewritten into one that it is new.
    LateAnswerBelieved,
    /// The application's positions are kept when it is given an item, not when it is done with it.
    PositionBeforeDone,
}

impl Broken {
    pub const ALL: [Self; 20] = [
        Self::CheckpointAhead,
        Self::SettleBeforeAck,
        Self::FilterConfirmedEarly,
        Self::StaleFilterKept,
        Self::DeltaClearedAtSwap,
        Self::DoneBeforeHandedOn,
        Self::ReplayPastLiveFrom,
        Self::BarrierSkippedAndPositionIgnored,
        Self::OldSessionAcks,
        Self::PositionCheckOff,
        Self::TornSlotAccepted,
        Self::TtlDuringSession,
        Self::HandleReusedAcrossTenants,
        Self::GapForgotten,
        Self::MergeOneEarly,
        Self::MergeOneLate,
        Self::OldCursorHeard,
        Self::CatchingUpUntold,
        Self::LateAnswerBelieved,
        Self::PositionBeforeDone,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::CheckpointAhead => "checkpoint-ahead",
            Self::SettleBeforeAck => "settle-before-ack",
            Self::FilterConfirmedEarly => "filter-confirmed-early",
            Self::StaleFilterKept => "stale-filter-kept",
            Self::DeltaClearedAtSwap => "delta-cleared-at-swap",
            Self::DoneBeforeHandedOn => "done-before-handed-on",
            Self::ReplayPastLiveFrom => "replay-past-live-from",
            Self::BarrierSkippedAndPositionIgnored => "barrier-skipped-and-position-ignored",
            Self::OldSessionAcks => "old-session-acks",
            Self::PositionCheckOff => "position-check-off",
            Self::TornSlotAccepted => "torn-slot-accepted",
            Self::TtlDuringSession => "ttl-during-session",
            Self::HandleReusedAcrossTenants => "handle-reused-across-tenants",
            Self::GapForgotten => "gap-forgotten",
            Self::MergeOneEarly => "merge-one-early",
            Self::MergeOneLate => "merge-one-late",
            Self::OldCursorHeard => "old-cursor-heard",
            Self::CatchingUpUntold => "catching-up-untold",
            Self::LateAnswerBelieved => "late-answer-believed",
            Self::PositionBeforeDone => "position-before-done",
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Broken {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|broken| broken.name() == name)
            .ok_or_else(|| format!("there is no rule {name:?} to break; there are {}", names()))
    }
}
