//! What the driver needs of a shard. [`Shard`] is the one there is; the driver's own tests drive a smaller one.

use bytes::BytesMut;
use wire::Positions;

use crate::{
    CatchUpWanted, ConnectionId, FilterSnapshot, FilterStep, FromIngest, HotPlace, Input, Millis, Output, Sample,
    Shard, ShardStats, SubscriptionCounts, SyncState,
};

pub(super) trait Core: 'static {
    fn handle(&mut self, input: Input, now: Millis, outputs: &mut Vec<Output>);
    /// Items that came through the ring together. Leaves none.
    fn ingest(&mut self, items: &mut Vec<FromIngest>, now: Millis, outputs: &mut Vec<Output>);
    /// A slice of the work that waits. Whether there is more.
    fn work(&mut self, now: Millis, outputs: &mut Vec<Output>) -> bool;
    fn fill(&mut self, connection: ConnectionId, now: Millis, bytes_max: usize, buffer: &mut BytesMut) -> usize;
    fn settled(&self) -> Positions;
    fn take_filter(&mut self) -> Option<FilterSnapshot>;
    fn step_filter(&mut self) -> FilterStep;
    /// Version of what [`Self::sync_state`] gives, without the cost of giving it.
    fn sync_version(&self) -> u64;
    fn sync_state(&self) -> SyncState;
    /// Version of what [`Self::catch_up_wanted`] gives.
    fn catch_up_version(&self) -> u64;
    fn catch_up_wanted(&self) -> CatchUpWanted;
    /// Sessions for which reading should pause.
    fn pressing(&self) -> u64;
    fn stats(&self) -> ShardStats;
    fn hot_places(&self) -> Vec<HotPlace> {
        Vec::new()
    }
    /// See [`crate::Sample`].
    fn follow(&mut self, _sample: Sample) {}
    fn matched_sample(&mut self) -> Option<&mut Sample> {
        None
    }
    fn sent_sample(&mut self) -> Option<&mut Sample> {
        None
    }
    fn done_sample(&mut self) -> Option<Sample> {
        None
    }
    /// Walks over all subscriptions.
    fn count_subscriptions(&self) -> SubscriptionCounts;
}

impl Core for Shard {
    fn handle(&mut self, input: Input, now: Millis, outputs: &mut Vec<Output>) {
        Shard::handle(self, input, now, outputs);
    }

    fn ingest(&mut self, items: &mut Vec<FromIngest>, now: Millis, outputs: &mut Vec<Output>) {
        Shard::ingest(self, items.drain(..), now, outputs);
    }

    fn work(&mut self, now: Millis, outputs: &mut Vec<Output>) -> bool {
        Shard::work(self, now, outputs)
    }

    fn fill(&mut self, connection: ConnectionId, now: Millis, bytes_max: usize, buffer: &mut BytesMut) -> usize {
        Shard::fill(self, connection, now, bytes_max, buffer)
    }

    fn settled(&self) -> Positions {
        Shard::settled(self)
    }

    fn take_filter(&mut self) -> Option<FilterSnapshot> {
        Shard::take_filter(self)
    }

    fn step_filter(&mut self) -> FilterStep {
        Shard::step_filter(self)
    }

    fn sync_version(&self) -> u64 {
        Shard::sync_version(self)
    }

    fn sync_state(&self) -> SyncState {
        Shard::sync_state(self)
    }

    fn catch_up_version(&self) -> u64 {
        Shard::catch_up_version(self)
    }

    fn catch_up_wanted(&self) -> CatchUpWanted {
        Shard::catch_up_wanted(self)
    }

    fn pressing(&self) -> u64 {
        Shard::pressing(self)
    }

    fn stats(&self) -> ShardStats {
        Shard::stats(self)
    }

    fn hot_places(&self) -> Vec<HotPlace> {
        Shard::hot_places(self)
    }

    fn follow(&mut self, sample: Sample) {
        Shard::follow(self, sample);
    }

    fn matched_sample(&mut self) -> Option<&mut Sample> {
        Shard::matched_sample(self)
    }

    fn sent_sample(&mut self) -> Option<&mut Sample> {
        Shard::sent_sample(self)
    }

    fn done_sample(&mut self) -> Option<Sample> {
        Shard::done_sample(self)
    }

    fn count_subscriptions(&self) -> SubscriptionCounts {
        self.snapshot_subscriptions()
    }
}
