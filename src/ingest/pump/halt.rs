//! Why a backend is halted, in words: what is wrong, where, and the ways on.

use std::fmt;

use wire::Position;

use crate::ingest::source::SourceError;

/// What can't get better without a decision.
#[derive(Debug)]
pub(super) enum Halt {
    /// The checkpoint's source and pipeline, and those that there are now.
    OtherSource {
        saved: String,
        now: String,
    },
    /// There is none to go on from, and `checkpoint.on_missing` says to stay.
    NoCheckpoint,
    HistoryLost(String),
    /// `checkpoint.history_lost_timestamp` is lost as well.
    TimestampLost(String),
    BadToken(String),
    Oversize(String),
    /// What is too large can't be told, so that nobody could be told of it.
    OversizeUnknown(SourceError),
}

/// A reason to halt, of this backend.
pub(super) struct Halted<'a> {
    pub(super) halt: &'a Halt,
    pub(super) backend: &'a str,
    /// The place that reading was to go on from.
    pub(super) place: Option<Position>,
}

impl fmt::Display for Halted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.place {
            Some(place) => place.to_string(),
            None => "the checkpoint".to_owned(),
        };
        match self.halt {
            Halt::OtherSource { saved, now } => write!(
                f,
                "the checkpoint is of another source or of another pipeline ({saved}; now: {now}): its place, {place}, means nothing here. \
                 Put the configuration back, or choose another place"
            ),
            Halt::NoCheckpoint => write!(
                f,
                "there is no checkpoint, and `checkpoint.on_missing` is \"fail\". Set it to \"from_now\" to start reading from now, or choose \
                 a place"
            ),
            Halt::HistoryLost(why) => write!(
                f,
                "the source no longer has what comes after {place}: {why}. `checkpoint.on_history_lost = \"from_now\"` goes on by itself and \
                 tells every subscription of the gap, and \"from_timestamp\" does so from a given time on; or choose another place"
            ),
            Halt::TimestampLost(why) => write!(
                f,
                "the source no longer has what comes after {place}, nor what comes after `checkpoint.history_lost_timestamp`: {why}. Set \
                 that to a later time, or `checkpoint.on_history_lost` to \"from_now\"; or choose another place"
            ),
            Halt::BadToken(why) => write!(
                f,
                "the source refuses to go on from {place}: {why}. Make sure that it is the right source; if it is, choose another place"
            ),
            Halt::Oversize(why) => write!(
                f,
                "the event after {place} is too large to be read: {why}. `checkpoint.oversize = \"skip\"` goes on behind it, and tells every \
                 subscription that it may concern; or choose a place behind it"
            ),
            Halt::OversizeUnknown(error) => write!(
                f,
                "the event after {place} is too large to be read, and what it is can't be found out, so that nobody can be told of it: \
                 {error}. Choose a place behind it"
            ),
        }?;
        write!(
            f,
            " (the node stopped: `streamer checkpoint set --at TIME --backend {}` goes on at TIME, as far as the source still has it, and \
             `streamer checkpoint reset` from now, for every backend; what is left out is not delivered). Then start the node again",
            self.backend
        )
    }
}

#[cfg(test)]
mod tests {
    use wire::{BackendId, Lineage};

    use super::*;

    #[test]
    fn each_tells_what_is_wrong_and_where_and_the_ways_on() {
        let why = || "as the server says".to_owned();
        let place = Position { backend: BackendId(1), lineage: Lineage(9), time: 7 << 32, k: 3 };
        let halts = [
            (Halt::OtherSource { saved: why(), now: "another one".into() }, "Put the configuration back"),
            (Halt::HistoryLost(why()), "`checkpoint.on_history_lost = \"from_now\"`"),
            (Halt::TimestampLost(why()), "`checkpoint.history_lost_timestamp`"),
            (Halt::BadToken(why()), "the right source"),
            (Halt::Oversize(why()), "`checkpoint.oversize = \"skip\"`"),
            (Halt::OversizeUnknown(SourceError::Oversize(why())), "Choose a place behind it"),
        ];
        let commands = ["streamer checkpoint set --at TIME --backend main", "streamer checkpoint reset"];
        for (halt, way) in &halts {
            let told = Halted { halt, backend: "main", place: Some(place) }.to_string();
            for part in ["as the server says", &place.to_string(), way].into_iter().chain(commands) {
                assert!(told.contains(part), "{part} is not in: {told}");
            }
        }
        let told = Halted { halt: &Halt::NoCheckpoint, backend: "main", place: None }.to_string();
        for part in ["`checkpoint.on_missing` is \"fail\"", "\"from_now\""].into_iter().chain(commands) {
            assert!(told.contains(part), "{part} is not in: {told}");
        }
    }
}
