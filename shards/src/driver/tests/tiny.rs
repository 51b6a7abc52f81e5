//! The least that can stand in for a shard: says welcome, and panics when it is told to.

use bytes::BytesMut;
use wire::{Delivery, Epoch, Positions, Reply, Request, SlotTable, Welcome, encode_delivery};

use crate::{
    CatchUpWanted, CommandKind, ConnectionId, FilterSnapshot, FilterStep, FromIngest, Input, Millis, Output,
    ShardStats, SubscriptionCounts, SyncState, driver::core::Core,
};

#[derive(Default)]
pub(super) struct Tiny {
    /// Heartbeats that a `fill` still has to write: an endless supply once a client has pinged with the nonce [`FLOOD`].
    flood: bool,
    last_seq: u64,
}

/// The nonce of a ping that asks for deliveries without end.
pub(super) const FLOOD: u64 = 0xf100d;
/// The nonce of a ping that is answered twice as often as a session may have unanswered requests.
pub(super) const TOO_MANY_REPLIES: u64 = 0x2048;

impl Core for Tiny {
    fn handle(&mut self, input: Input, _: Millis, outputs: &mut Vec<Output>) {
        match input {
            Input::Hello { connection, .. } => {
                let welcome = Welcome {
                    epoch: Epoch(1),
                    partition: 0,
                    slots: SlotTable { shards: 1 },
                    shards: Vec::new(),
                    received_deadline_ms: 1,
                    heartbeat_ms: 1,
                    max_body_bytes: 1 << 20,
                    mapping: "plain".into(),
                };
                outputs.push(Output::Reply { connection, reply: Reply::Welcome(Box::new(welcome)) });
            }
            Input::Request { connection, request: Request::Ping { nonce } } => {
                let copies = if nonce == TOO_MANY_REPLIES { 2 * wire::MAX_UNANSWERED_REQUESTS } else { 1 };
                for _ in 0..copies {
                    outputs.push(Output::Reply { connection, reply: Reply::Pong { nonce } });
                }
                if nonce == FLOOD {
                    self.flood = true;
                    outputs.push(Output::Ready { connection });
                }
            }
            Input::Command(command) if matches!(command.what, CommandKind::RemoveAll) => {
                panic!("told to: {}", command.gateway)
            }
            _ => {}
        }
    }

    fn ingest(&mut self, items: &mut Vec<FromIngest>, now: Millis, outputs: &mut Vec<Output>) {
        items.drain(..).for_each(|item| self.handle(Input::Ingest(item), now, outputs));
    }

    fn fill(&mut self, _: ConnectionId, _: Millis, bytes_max: usize, buffer: &mut BytesMut) -> usize {
        let before = buffer.len();
        while self.flood && buffer.len() - before < bytes_max {
            self.last_seq += 1;
            let beat = Delivery::Heartbeat { last_seq: self.last_seq, positions: Positions::default() };
            encode_delivery(&beat, buffer);
        }
        buffer.len() - before
    }

    fn work(&mut self, _now: Millis, _outputs: &mut Vec<Output>) -> bool {
        false
    }

    fn settled(&self) -> Positions {
        Positions::default()
    }

    fn take_filter(&mut self) -> Option<FilterSnapshot> {
        None
    }

    fn step_filter(&mut self) -> FilterStep {
        FilterStep::Nothing
    }

    fn sync_version(&self) -> u64 {
        0
    }

    fn catch_up_version(&self) -> u64 {
        0
    }

    fn catch_up_wanted(&self) -> CatchUpWanted {
        CatchUpWanted::default()
    }

    fn sync_state(&self) -> SyncState {
        SyncState::default()
    }

    fn pressing(&self) -> u64 {
        0
    }

    fn stats(&self) -> ShardStats {
        ShardStats::default()
    }

    fn count_subscriptions(&self) -> SubscriptionCounts {
        SubscriptionCounts::default()
    }
}
