//! A shard with Gateways that are done with whatever they are sent.

use std::sync::Arc;

use bytes::BytesMut;
use shards::{
    Admission, BackendConfig, ConnectionId, FromIngest, Input, Millis, Output, Refusal, Shard, ShardConfig, ShardStats,
};
use wire::{
    Ack, BackendId, Decoder, Delivery, Epoch, Lineage, MAX_BODY_BYTES, Position, Positions, Request, RequestId,
    ShardAddress, SlotTable, SubscribeItem,
};

use crate::ingest::{BACKEND, LINEAGE};

/// Changes that a shard takes from its ring at once.
pub(crate) const CHANGES: usize = 256;
/// Entries of the log: few, so that it is soon full and every change pushes another one out, as it does in a node after a while.
pub(crate) const LOG_EVENTS: usize = 4_096;
/// Bytes of one write to a delivery stream.
const WRITE_BYTES: usize = 64 << 10;

pub(crate) struct Served {
    pub(crate) shard: Shard,
    gateways: Vec<Gateway>,
    out: Vec<Output>,
    ready: Vec<ConnectionId>,
    time: u64,
}

struct Gateway {
    connection: ConnectionId,
    decoder: Decoder<Delivery>,
    written: BytesMut,
}

/// The configuration of the only shard of a node, which promises before-images or doesn't.
pub(crate) fn config(before_images: bool) -> ShardConfig {
    let address = ShardAddress { partition: 0, address: "127.0.0.1:7400".into() };
    let mut config = ShardConfig::new(0, SlotTable { shards: 1 }, vec![address], Epoch(1));
    config.backends = vec![BackendConfig { id: BACKEND, before_images }];
    config.log_events_max = LOG_EVENTS;
    config.hash_seed = 7;
    config
}

/// Where the next change stands.
pub(crate) fn position(time: u64) -> Position {
    let (backend, lineage): (BackendId, Lineage) = (BACKEND, LINEAGE);
    Position { backend, lineage, time, k: 1 }
}

impl Served {
    /// With this many Gateways, by their connections.
    pub(crate) fn new(config: ShardConfig, gateways: usize) -> Self {
        let mut served = Self {
            shard: Shard::new(config, Millis(0)),
            gateways: Vec::new(),
            out: Vec::new(),
            ready: Vec::new(),
            time: 1,
        };
        for gateway in 0..gateways {
            let connection = ConnectionId(gateway as u64 + 1);
            let gateway = format!("gateway-{gateway}");
            served.input(Input::Hello { connection, gateway, can_verify: true });
            let decoder = Decoder::new(MAX_BODY_BYTES);
            served.gateways.push(Gateway { connection, decoder, written: BytesMut::new() });
        }
        served
    }

    /// Subscribes for a Gateway, at most as many at once as a shard takes; `admit` answers for the control side.
    pub(crate) fn subscribe(
        &mut self,
        gateway: usize,
        items: Vec<SubscribeItem>,
        mut admit: impl FnMut(&str, &SubscribeItem) -> Result<Admission, Refusal>,
    ) {
        let connection = self.gateways[gateway].connection;
        let request = Request::Subscribe { request: RequestId(1), items };
        for asked in self.input(Input::Request { connection, request }) {
            if let Output::Admit { ticket, gateway, items } = asked {
                let results = items.iter().map(|item| admit(&gateway, item)).collect();
                self.input(Input::Admitted { ticket, results });
            }
        }
    }

    /// All Gateways have said what they want, and the ingest thread routes by it.
    pub(crate) fn go_live(&mut self) {
        for gateway in 0..self.gateways.len() {
            let connection = self.gateways[gateway].connection;
            self.input(Input::Request { connection, request: Request::SyncDone { request: RequestId(2) } });
        }
        let version = self.shard.take_filter().expect("subscriptions have come").version;
        let positions: Positions = [position(1)].into_iter().collect();
        self.input(Input::Ingest(FromIngest::FilterSeen { version, positions }));
        assert_eq!(self.stats().subscriptions_pending, 0, "all of them are live");
    }

    pub(crate) fn stats(&self) -> ShardStats {
        self.shard.stats()
    }

    /// The position of the next change.
    pub(crate) fn next_position(&mut self) -> Position {
        self.time += 1;
        position(self.time)
    }

    pub(crate) fn input(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        self.shard.handle(input, Millis(0), &mut out);
        while self.shard.work(Millis(0), &mut out) {}
        for output in &out {
            if let Output::Ready { connection } = output {
                self.ready.push(*connection);
            }
        }
        out
    }

    /// What a shard does of a batch: matches it, and writes the frames for all Gateways concerned.
    pub(crate) fn work(&mut self, changes: impl Iterator<Item = FromIngest>) {
        self.shard.ingest(changes, Millis(0), &mut self.out);
        for output in self.out.drain(..) {
            if let Output::Ready { connection } = output {
                self.ready.push(connection);
            }
        }
        for connection in self.ready.drain(..) {
            let gateway = self.gateways.iter_mut().find(|gateway| gateway.connection == connection);
            let written = &mut gateway.expect("a connection is a Gateway's").written;
            while self.shard.fill(connection, Millis(0), WRITE_BYTES, written) > 0 {}
        }
    }

    /// What the Gateways were sent is done. `seen` is shown it, with the index of the Gateway.
    pub(crate) fn acknowledge(&mut self, mut seen: impl FnMut(usize, &Delivery)) {
        for gateway in 0..self.gateways.len() {
            let Gateway { connection, decoder, written, .. } = &mut self.gateways[gateway];
            let connection = *connection;
            decoder.feed(&written.split());
            let mut last_seq = None;
            while let Some(message) = decoder.next().expect("what a shard writes can be read") {
                match &message {
                    Delivery::Events(events) => {
                        last_seq = events.iter().next_back().map(|entry| entry.seq).or(last_seq)
                    }
                    Delivery::Bound(_) => {}
                    other => panic!("nothing should go wrong here: {other:?}"),
                }
                seen(gateway, &message);
            }
            if let Some(seq) = last_seq {
                self.input(Input::Ack { connection, ack: Ack { received: seq, done: seq } });
            }
        }
    }
}

impl Served {
    /// Sends all that waits, and gives back what the Gateways hold of it, so that what is left is the shard's.
    pub(crate) fn come_to_rest(&mut self) {
        self.work(std::iter::empty());
        self.acknowledge(|_, _| {});
        for gateway in &mut self.gateways {
            gateway.written = BytesMut::new();
            gateway.decoder = Decoder::new(MAX_BODY_BYTES);
        }
        (self.out, self.ready) = (Vec::new(), Vec::new());
    }
}

/// Compiles what is asked for, as the control side would.
pub(crate) fn compiled(item: &SubscribeItem, mapping: &predicate::Mapping) -> Result<Admission, Refusal> {
    let source = predicate::Source { filters: &item.filters, expr: &item.expr };
    let predicate = predicate::Predicate::compile(source, mapping).expect("generated subscriptions compile");
    Ok(Admission { predicate: Arc::new(predicate) })
}
