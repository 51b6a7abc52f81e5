//! One change on a shard: matching, the log, and the frames for the Gateways that it concerns.

use std::sync::Arc;

use bytes::BytesMut;
use predicate::{Mapping, Predicate, Source};
use shards::{
    Admission, BackendConfig, Change, ConnectionId, FromIngest, Input, Millis, Output, Shard, ShardConfig, ShardStats,
};
use wire::{
    Ack, Decoder, Delivery, Epoch, MAX_BODY_BYTES, Positions, Request, RequestId, ShardAddress, SlotTable,
    SubscribeItem, SubscriptionKey,
};
use workload::{EventFactory, EventOptions, Generator, Preset, Profile, Write, WriteKind};

use crate::{
    Named, Scenario,
    ingest::{BACKEND, COLLECTION, LINEAGE, TENANT, batch, core, message},
};

/// Changes of a round: what a shard takes from its ring at once.
const CHANGES: usize = 256;
const TEMPLATES: usize = 2_048;
/// A prime, so that a round is a fair sample of the templates, and all of them have their turn.
const STRIDE: usize = 797;
const GATEWAYS: usize = 2;
/// Entries of the log: few, so that it is soon full and every change pushes another one out, as it does in a node after a while.
const LOG_EVENTS: usize = 4_096;
/// Bytes of one write to a delivery stream.
const WRITE_BYTES: usize = 64 << 10;

pub fn scenarios() -> Vec<Named> {
    vec![
        // Three subscriptions to each of 97 rooms, and the rest in rooms that nobody writes to.
        Named::new("shard equality, 10,000 in a collection", || Work::new(&by_room(10_000), &inserts())),
        Named::new("shard ranges, 100 in a collection", || Work::new(&by_range(100), &inserts())),
        Named::new("shard ranges, 1,000 in a collection", || Work::new(&by_range(1_000), &inserts())),
        Named::new("shard one path", || Work::new(&by_paths(1), &inserts())),
        Named::new("shard eight paths", || Work::new(&by_paths(8), &inserts())),
        Named::new("shard no match", || Work::new(&by_room_without_match(), &inserts())),
        Named::new("shard demo mix, 3,000", || {
            let generator = Generator::new(Profile::demo(1));
            let items: Vec<Item> = generator.subscriptions(3_000).iter().map(|it| (it.gateway, it.to_item())).collect();
            Work::new(&items, &mixed(&generator))
        }),
    ]
}

/// A subscription and the index of its Gateway.
type Item = (usize, SubscribeItem);

fn item(i: usize, filters: String) -> SubscribeItem {
    SubscribeItem {
        key: SubscriptionKey { tenant: TENANT.into(), id: format!("s-{i}") },
        collection: COLLECTION.into(),
        filters,
        expr: String::new(),
        ttl_s: 0,
        transitions: true,
        positions: Positions::default(),
        group: None,
        lossy: false,
    }
}

/// Three for each room.
fn by_room(count: usize) -> Vec<Item> {
    let filter = |i: usize| format!(r#"[{{"field":"room","op":"==","value":"room-{}"}}]"#, i / 3);
    (0..count).map(|i| (i % GATEWAYS, item(i, filter(i)))).collect()
}

fn by_room_without_match() -> Vec<Item> {
    let filter = |i| format!(r#"[{{"field":"room","op":"==","value":"hall-{i}"}}]"#);
    (0..10_000).map(|i| (i % GATEWAYS, item(i, filter(i)))).collect()
}

/// Bounds of a field, of which a document exceeds three on average: no equality to find them by.
fn by_range(count: usize) -> Vec<Item> {
    let bound = |i: usize| if i < 6 { i as f64 * TEMPLATES as f64 / 7.0 / 6.0 } else { TEMPLATES as f64 };
    let filter = |i| format!(r#"[{{"field":"score","op":">","value":{}}}]"#, bound(i));
    (0..count).map(|i| (i % GATEWAYS, item(i, filter(i)))).collect()
}

/// Equalities on this many fields. Three match whatever the number of fields, all on the first of them.
fn by_paths(paths: usize) -> Vec<Item> {
    const FIELDS: [&str; 8] = ["lang", "room", "author", "text", "likes", "score", "reply.to", "reply.depth"];
    let value = |i: usize| if i.is_multiple_of(paths) && i / paths < 3 { "en".to_owned() } else { format!("none-{i}") };
    let filter = |i: usize| format!(r#"[{{"field":"{}","op":"==","value":"{}"}}]"#, FIELDS[i % paths], value(i));
    (0..1_000).map(|i| (i / paths % GATEWAYS, item(i, filter(i)))).collect()
}

/// Events of inserts of [`message`]s into one collection.
fn inserts() -> Vec<Vec<u8>> {
    let mut factory = EventFactory::new(EventOptions::new(Preset::Syntrix));
    let insert = |i| Write {
        tenant: TENANT.into(),
        collection: COLLECTION.into(),
        document_id: format!("message-{i}"),
        kind: WriteKind::Insert,
        data: message(i),
    };
    (0..TEMPLATES).map(|i| factory.apply(&insert(i))).collect()
}

/// The demo's writes, with before-images.
fn mixed(generator: &Generator) -> Vec<Vec<u8>> {
    let mut factory = EventFactory::new(EventOptions::new(Preset::Syntrix));
    let mut writer = generator.writer();
    (0..TEMPLATES).map(|_| factory.apply(&writer.next())).collect()
}

struct Gateway {
    connection: ConnectionId,
    decoder: Decoder<Delivery>,
    written: BytesMut,
}

/// A shard with its Gateways, which are done with all that a round brought them before the next one.
struct Work {
    shard: Shard,
    gateways: Vec<Gateway>,
    templates: Vec<Change>,
    next_template: usize,
    time: u64,
    changes: Vec<FromIngest>,
    out: Vec<Output>,
    ready: Vec<ConnectionId>,
    started: ShardStats,
}

impl Work {
    fn new(items: &[Item], events: &[Vec<u8>]) -> Self {
        let slots = SlotTable { shards: 1 };
        let address = ShardAddress { partition: 0, address: "127.0.0.1:7400".into() };
        let mut config = ShardConfig::new(0, slots, vec![address], Epoch(1));
        config.backends = vec![BackendConfig { id: BACKEND, before_images: true }];
        config.log_events_max = LOG_EVENTS;
        config.hash_seed = 7;
        let mapping = config.mapping.clone();
        let mut work = Self {
            shard: Shard::new(config, Millis(0)),
            gateways: Vec::new(),
            templates: templates(events),
            next_template: 0,
            time: 1,
            changes: Vec::new(),
            out: Vec::new(),
            ready: Vec::new(),
            started: ShardStats::default(),
        };
        let compile = |item: &SubscribeItem| {
            let source = Source { filters: &item.filters, expr: &item.expr };
            let predicate = Predicate::compile(source, &mapping).expect("generated subscriptions compile");
            Ok(Admission { predicate: Arc::new(predicate) })
        };
        for gateway in 0..GATEWAYS {
            let connection = ConnectionId(gateway as u64 + 1);
            let mine = items.iter().filter(|(of, _)| *of == gateway).map(|(_, item)| item.clone()).collect();
            let gateway = format!("gateway-{gateway}");
            work.input(Input::Hello { connection, gateway, can_verify: true });
            let request = Request::Subscribe { request: RequestId(1), items: mine };
            for asked in work.input(Input::Request { connection, request }) {
                if let Output::Admit { ticket, items, .. } = asked {
                    let results = items.iter().map(compile).collect();
                    work.input(Input::Admitted { ticket, results });
                }
            }
            work.input(Input::Request { connection, request: Request::SyncDone { request: RequestId(2) } });
            let decoder = Decoder::new(MAX_BODY_BYTES);
            work.gateways.push(Gateway { connection, decoder, written: BytesMut::new() });
        }
        let version = work.shard.take_filter().expect("subscriptions have come").version;
        let start = wire::Position { backend: BACKEND, lineage: LINEAGE, time: 1, k: 1 };
        let positions = [start].into_iter().collect();
        work.input(Input::Ingest(FromIngest::FilterSeen { version, positions }));
        let stats = work.shard.stats();
        assert_eq!((stats.subscriptions, stats.subscriptions_pending), (items.len() as u64, 0), "all of them are live");
        // Until the log is full, or all that there is has come by twice.
        for _ in 0..(2 * TEMPLATES.max(LOG_EVENTS)).div_ceil(CHANGES) {
            work.prepare();
            work.round();
        }
        work.prepare();
        work.started = work.shard.stats();
        work
    }

    fn input(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        self.shard.handle(input, Millis(0), &mut out);
        for output in &out {
            if let Output::Ready { connection } = output {
                self.ready.push(*connection);
            }
        }
        out
    }

    /// What the Gateways were sent is done.
    fn acknowledge(&mut self) {
        for gateway in 0..self.gateways.len() {
            let Gateway { connection, decoder, written } = &mut self.gateways[gateway];
            let connection = *connection;
            decoder.feed(&written.split());
            let mut last_seq = None;
            while let Some(message) = decoder.next().expect("what a shard writes can be read") {
                match message {
                    Delivery::Events(entries) => last_seq = entries.last().map(|entry| entry.seq),
                    Delivery::Bound(_) => {}
                    other => panic!("nothing should go wrong here: {other:?}"),
                }
            }
            if let Some(seq) = last_seq {
                self.input(Input::Ack { connection, ack: Ack { received: seq, done: seq } });
            }
        }
    }
}

/// The changes that the ingest thread makes of these events.
fn templates(events: &[Vec<u8>]) -> Vec<Change> {
    let mut core = core(Arc::new(Mapping::syntrix()), 1);
    let mut out = Vec::new();
    for event in batch(events) {
        core.event(0, &event, &mut out).expect("the factory makes events as a server does");
    }
    let change = |(_, item)| match item {
        FromIngest::Change(change) => Some((*change).clone()),
        _ => None,
    };
    out.into_iter().filter_map(change).collect()
}

impl Scenario for Work {
    fn prepare(&mut self) {
        self.acknowledge();
        self.changes.clear();
        for _ in 0..CHANGES {
            self.time += 1;
            let mut change = self.templates[self.next_template].clone();
            change.position.time = self.time;
            self.changes.push(FromIngest::Change(Arc::new(change)));
            self.next_template = (self.next_template + STRIDE) % self.templates.len();
        }
    }

    fn round(&mut self) {
        for change in self.changes.drain(..) {
            self.shard.handle(Input::Ingest(change), Millis(0), &mut self.out);
        }
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

    fn units(&self) -> u64 {
        CHANGES as u64
    }

    fn describe(&self) -> String {
        let (then, now) = (&self.started, self.shard.stats());
        let events = (now.events - then.events) as f64;
        let each = |now: u64, then: u64| (now - then) as f64 / events;
        format!(
            "{} subscriptions; an event: {:.1} candidates, {:.1} matches, {:.0} bytes written for {GATEWAYS} Gateways",
            now.subscriptions,
            each(now.candidates, then.candidates),
            each(now.deliveries, then.deliveries),
            each(now.bytes_sent, then.bytes_sent),
        )
    }
}
