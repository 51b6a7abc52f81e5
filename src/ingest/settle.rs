//! What may be forgotten: resume tokens of one backend, and how far every shard is done.
//!
//! Invariants:
//! - Tokens are kept in the order of their positions; the checkpoint is one at or below the lowest settled position.
//! - A shard whose settled position equals the last one sent to it holds nothing back, nor does an event dropped by the filter.
//! - Thinning never drops the oldest token, so that there is always one at or below what is settled.

use std::collections::VecDeque;

use bytes::Bytes;
use wire::Position;

use super::source::ResumeToken;

/// Tokens kept at most. When there are more, every other one is dropped and the stride doubles.
pub const TOKENS_MAX: usize = 4096;

/// Events between two kept tokens, at least. Each kept token is a copy; each event that the stride skips is one that may be
/// read again after a crash, and dropped by the Gateways.
const STRIDE_MIN: u64 = 32;

/// Where reading can go on: after the event at `position`, with its token; without one, at that place's cluster time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumePoint {
    pub position: Position,
    pub token: Option<ResumeToken>,
}

/// The last event read. Its token is copied over that of the event before, so that no event takes memory, nor keeps the batch that it
/// was read in.
#[derive(Debug)]
struct Latest {
    position: Position,
    token: Vec<u8>,
    has_token: bool,
}

impl Latest {
    fn set(&mut self, position: Position, token: Option<&[u8]>) {
        self.position = position;
        self.has_token = token.is_some();
        self.token.clear();
        self.token.extend_from_slice(token.unwrap_or_default());
    }

    fn point(&self) -> ResumePoint {
        let token = self.has_token.then(|| ResumeToken(Bytes::copy_from_slice(&self.token)));
        ResumePoint { position: self.position, token }
    }
}

/// How far one shard is.
#[derive(Clone, Copy, Debug)]
struct ShardProgress {
    sent: Position,
    settled: Position,
}

/// Settlement of one backend's stream, from the place where it was opened.
#[derive(Debug)]
pub struct Settlement {
    points: VecDeque<ResumePoint>,
    /// A token is recorded once this many events have passed since the last one.
    stride: u64,
    since_last: u64,
    /// The newest token: where to reopen the stream.
    latest: Latest,
    shards: Vec<ShardProgress>,
}

impl Settlement {
    /// Everything at or before `start` is done. `start` is also the first place that a checkpoint can name.
    pub fn new(start: ResumePoint, shards: u16) -> Self {
        let progress = ShardProgress { sent: start.position, settled: start.position };
        let mut latest = Latest { position: start.position, token: Vec::new(), has_token: false };
        latest.set(start.position, start.token.as_ref().map(|token| &token.0[..]));
        Self {
            points: VecDeque::from([start]),
            stride: STRIDE_MIN,
            since_last: 0,
            latest,
            shards: vec![progress; usize::from(shards)],
        }
    }

    /// The event at `position` has been read.
    #[inline]
    pub fn read(&mut self, position: Position, token: Option<&[u8]>) {
        debug_assert!(self.latest.position.is_covered_by(&position), "tokens are recorded in the order of positions");
        self.latest.set(position, token);
        self.since_last += 1;
        if self.since_last >= self.stride {
            self.keep();
        }
    }

    /// A token that stands for the same position as the last event read, but later in the source's history: it keeps a stream on
    /// which nothing happens from ageing out of it.
    pub fn renew(&mut self, token: &ResumeToken) {
        self.latest.set(self.latest.position, Some(&token.0));
        if self.points.back().is_some_and(|last| last.position == self.latest.position) {
            self.points.pop_back();
        }
        self.keep();
    }

    fn keep(&mut self) {
        self.since_last = 0;
        self.points.push_back(self.latest.point());
        if self.points.len() > TOKENS_MAX {
            let mut index = 0;
            self.points.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.stride *= 2;
        }
    }

    /// `position` is the last one that went into this shard's ring.
    pub fn sent(&mut self, shard: usize, position: Position) {
        self.shards[shard].sent = position;
    }

    /// The shard has settled everything up to `position`.
    pub fn settled(&mut self, shard: usize, position: Position) {
        let progress = &mut self.shards[shard];
        if progress.settled.is_covered_by(&position) && position.is_covered_by(&progress.sent) {
            progress.settled = position;
        }
    }

    /// Where to reopen the stream.
    pub fn latest(&self) -> ResumePoint {
        self.latest.point()
    }

    /// The lowest position that some shard still holds back, else the last one read.
    pub fn watermark(&self) -> Position {
        self.shards
            .iter()
            .filter(|shard| shard.settled != shard.sent)
            .map(|shard| shard.settled)
            .chain([self.latest.position])
            .min_by_key(Position::order)
            .unwrap_or(self.latest.position)
    }

    /// The highest place at or below the watermark from which reading can go on. What lies before it is forgotten.
    pub fn checkpoint(&mut self) -> ResumePoint {
        let watermark = self.watermark();
        if watermark == self.latest.position {
            self.points.clear();
            self.points.push_back(self.latest.point());
            self.since_last = 0;
            self.stride = STRIDE_MIN;
        }
        while self.points.get(1).is_some_and(|next| next.position.is_covered_by(&watermark)) {
            self.points.pop_front();
        }
        // Reading that keeps up leaves few tokens behind, so that a fine stride can be afforded again.
        if self.points.len() < TOKENS_MAX / 8 {
            self.stride = STRIDE_MIN;
        }
        self.points[0].clone()
    }

    pub fn tokens(&self) -> usize {
        self.points.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::{BackendId, Lineage};

    fn at(time: u64) -> Position {
        Position { backend: BackendId(1), lineage: Lineage(1), time, k: 1 }
    }

    fn point(time: u64) -> ResumePoint {
        ResumePoint { position: at(time), token: Some(ResumeToken(Bytes::from(time.to_string()))) }
    }

    fn read(settlement: &mut Settlement, time: u64) {
        settlement.read(at(time), Some(time.to_string().as_bytes()));
    }

    #[test]
    fn a_shard_that_has_settled_all_it_was_sent_holds_nothing_back() {
        let mut settlement = Settlement::new(point(0), 2);
        (1..=10).for_each(|time| read(&mut settlement, time));
        settlement.sent(0, at(4));
        assert_eq!(settlement.checkpoint(), point(0));
        settlement.settled(0, at(4));
        assert_eq!(settlement.checkpoint(), point(10));
    }

    #[test]
    fn the_checkpoint_is_at_or_below_the_slowest_shard() {
        let mut settlement = Settlement::new(point(0), 2);
        (1..=10 * STRIDE_MIN).for_each(|time| read(&mut settlement, time));
        settlement.sent(0, at(9 * STRIDE_MIN));
        settlement.sent(1, at(10 * STRIDE_MIN));
        settlement.settled(0, at(3 * STRIDE_MIN + 1));
        settlement.settled(1, at(6 * STRIDE_MIN));
        assert_eq!(settlement.watermark(), at(3 * STRIDE_MIN + 1));
        assert_eq!(settlement.checkpoint(), point(3 * STRIDE_MIN));
    }

    #[test]
    fn a_settled_position_never_moves_back_nor_past_what_was_sent() {
        let mut settlement = Settlement::new(point(0), 1);
        (1..=10).for_each(|time| read(&mut settlement, time));
        settlement.sent(0, at(8));
        settlement.settled(0, at(6));
        settlement.settled(0, at(2));
        settlement.settled(0, at(9));
        assert_eq!(settlement.watermark(), at(6));
    }

    #[test]
    fn thinned_tokens_still_leave_one_at_or_below_every_watermark() {
        let mut settlement = Settlement::new(point(0), 1);
        settlement.sent(0, at(1));
        for time in 1..=100_000 {
            read(&mut settlement, time);
            assert!(settlement.tokens() <= TOKENS_MAX);
        }
        settlement.sent(0, at(100_000));
        assert_eq!(settlement.checkpoint(), point(0));
        for time in (0..100_000).step_by(997) {
            settlement.settled(0, at(time));
            assert!(settlement.checkpoint().position.is_covered_by(&at(time)));
        }
        let behind = 100_000 - settlement.checkpoint().position.time;
        assert!(behind < 2_000, "{behind} events would be read again");
    }

    #[test]
    fn an_idle_stream_renews_its_token_at_the_same_position() {
        let mut settlement = Settlement::new(point(0), 1);
        read(&mut settlement, 1);
        let token = ResumeToken(Bytes::from_static(b"later"));
        settlement.renew(&token);
        assert_eq!(settlement.checkpoint(), ResumePoint { position: at(1), token: Some(token) });
    }
}
