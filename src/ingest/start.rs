//! Where a restarting node starts to read.

use std::time::Duration;

use wire::Position;

use super::{settle::ResumePoint, source::Start};

/// Where to go on after `point`.
pub fn start_after(point: &ResumePoint) -> Start {
    match &point.token {
        Some(token) => Start::After { position: point.position, token: token.clone() },
        // A point without a token stands before the first event of its cluster time.
        None => Start::At { time: point.position.time },
    }
}

/// The start that gives every Gateway what it lacks: the checkpoint, or before it where a Gateway has presented an older
/// position of the same lineage that lies no further back than `rewind_max`. True with it when it lies before. `between` tells how
/// much earlier the first of two cluster times was.
///
/// What is read again is dropped by the Gateways that have had it. A position older than that is for its subscription to be told
/// of, when it has registered.
pub fn restart_at(
    checkpoint: &ResumePoint,
    wanted: impl Iterator<Item = Position>,
    rewind_max: Duration,
    between: impl Fn(u64, u64) -> Duration,
) -> (Start, bool) {
    let here = checkpoint.position;
    let mut older: Vec<Position> =
        wanted.filter(|position| position.is_covered_by(&here) && *position != here).collect();
    older.sort_unstable_by_key(Position::order);
    // The oldest first, so that nothing is asked about those after the one that is taken.
    let lowest = older.into_iter().find(|position| between(position.time, here.time) <= rewind_max);
    match lowest {
        Some(position) => (Start::At { time: position.time }, true),
        None => (start_after(checkpoint), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::source::ResumeToken;
    use wire::{BackendId, Lineage};

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(seconds: u64, k: u32) -> Position {
        Position { backend: BackendId(1), lineage: Lineage(2), time: seconds << 32, k }
    }

    fn point() -> ResumePoint {
        ResumePoint { position: at(1_000, 3), token: Some(ResumeToken(bytes::Bytes::from_static(b"token"))) }
    }

    fn start(wanted: &[Position]) -> (Start, bool) {
        let between = |older: u64, newer: u64| Duration::from_secs((newer >> 32) - (older >> 32));
        restart_at(&point(), wanted.iter().copied(), MINUTE, between)
    }

    #[test]
    fn reading_starts_at_the_checkpoint_when_nobody_lacks_more() {
        for wanted in [&[][..], &[at(1_000, 3)], &[at(1_001, 0), at(1_000, 4)]] {
            assert_eq!(start(wanted), (start_after(&point()), false));
        }
    }

    #[test]
    fn it_starts_at_the_cluster_time_of_the_oldest_position_presented() {
        assert_eq!(start(&[at(990, 2), at(980, 7), at(1_000, 1)]), (Start::At { time: 980 << 32 }, true));
        assert_eq!(start(&[at(1_000, 1)]), (Start::At { time: 1_000 << 32 }, true));
    }

    #[test]
    fn positions_too_old_or_of_another_history_are_not_waited_upon() {
        let other = Position { lineage: Lineage(3), ..at(990, 1) };
        assert_eq!(start(&[at(900, 1), other]), (start_after(&point()), false));
        assert_eq!(start(&[at(900, 1), at(995, 1)]), (Start::At { time: 995 << 32 }, true));
    }
}
