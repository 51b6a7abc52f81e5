//! Gives every event of a stream its place, before any filter.
//!
//! Invariant: the same event gets the same `(time, k)` through whichever stream it is read, since `k` counts the events of one
//! cluster time from the first of them. A stream therefore starts either after an event whose place is known, or with the
//! first event of a cluster time.

use wire::{BackendId, Lineage, Position};

/// The last place handed out in one stream.
#[derive(Clone, Copy, Debug)]
pub struct Numbering {
    last: Position,
}

/// Cluster time ran backwards: the stream no longer continues what was read before it, and must be reopened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cluster time ran backwards, from {last} to {next}")]
pub struct RanBackwards {
    pub last: u64,
    pub next: u64,
}

impl Numbering {
    /// A stream that yields every event after `start`.
    pub fn starting(backend: BackendId, lineage: Lineage, start: (u64, u32)) -> Self {
        Self { last: Position { backend, lineage, time: start.0, k: start.1 } }
    }

    pub fn last(&self) -> Position {
        self.last
    }

    /// The place of the next event, which has this cluster time.
    pub fn next(&mut self, time: u64) -> Result<Position, RanBackwards> {
        if time < self.last.time {
            return Err(RanBackwards { last: self.last.time, next: time });
        }
        let k = if time == self.last.time { self.last.k + 1 } else { 1 };
        self.last = Position { time, k, ..self.last };
        Ok(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbering(start: (u64, u32)) -> Numbering {
        Numbering::starting(BackendId(1), Lineage(2), start)
    }

    fn places(start: (u64, u32), times: &[u64]) -> Vec<(u64, u32)> {
        let mut numbering = numbering(start);
        times.iter().map(|time| numbering.next(*time).unwrap().order()).collect()
    }

    #[test]
    fn events_of_one_cluster_time_are_counted_from_one() {
        assert_eq!(places((5, 0), &[5, 5, 6, 9, 9, 9]), [(5, 1), (5, 2), (6, 1), (9, 1), (9, 2), (9, 3)]);
    }

    #[test]
    fn a_stream_that_resumes_within_a_cluster_time_goes_on_counting() {
        assert_eq!(places((9, 2), &[9, 10]), [(9, 3), (10, 1)]);
    }

    #[test]
    fn time_that_runs_backwards_is_an_error_and_changes_nothing() {
        let mut numbering = numbering((7, 3));
        assert_eq!(numbering.next(6), Err(RanBackwards { last: 7, next: 6 }));
        assert_eq!(numbering.next(7).unwrap().order(), (7, 4));
    }
}
