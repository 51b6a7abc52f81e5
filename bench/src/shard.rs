//! One change on a shard: matching, the log, and the frames for the Gateways that it concerns.

use std::sync::Arc;

use predicate::Mapping;
use shards::{Change, FromIngest, ShardStats};
use wire::{SubscribeItem, SubscriptionKey};
use workload::{EventFactory, EventOptions, Generator, Preset, Profile, Write, WriteKind};

use crate::{
    Named, Scenario,
    ingest::{COLLECTION, TENANT, batch, core, message},
    served::{CHANGES, LOG_EVENTS, Served, compiled, config},
};

const TEMPLATES: usize = 2_048;
/// A prime, so that a round is a fair sample of the templates, and all of them have their turn.
const STRIDE: usize = 797;
const GATEWAYS: usize = 2;

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

pub(crate) fn key(i: usize) -> SubscriptionKey {
    SubscriptionKey { tenant: TENANT.into(), id: format!("s-{i}") }
}

pub(crate) fn item(i: usize, filters: String) -> SubscribeItem {
    SubscribeItem { filters, ..SubscribeItem::new(key(i), COLLECTION) }
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

/// A shard with its Gateways, which are done with all that a round brought them before the next one.
struct Work {
    served: Served,
    templates: Vec<Change>,
    next_template: usize,
    changes: Vec<FromIngest>,
    started: ShardStats,
}

impl Work {
    fn new(items: &[Item], events: &[Vec<u8>]) -> Self {
        let config = config(true);
        let mapping = config.mapping.clone();
        let mut served = Served::new(config, GATEWAYS);
        for gateway in 0..GATEWAYS {
            let mine = items.iter().filter(|(of, _)| *of == gateway).map(|(_, item)| item.clone()).collect();
            served.subscribe(gateway, mine, |_, item| compiled(item, &mapping));
        }
        served.go_live();
        assert_eq!(served.stats().subscriptions, items.len() as u64, "all of them were taken");
        let mut work = Self {
            served,
            templates: templates(events),
            next_template: 0,
            changes: Vec::new(),
            started: ShardStats::default(),
        };
        // Until the log is full, or all that there is has come by twice.
        for _ in 0..(2 * TEMPLATES.max(LOG_EVENTS)).div_ceil(CHANGES) {
            work.prepare();
            work.round();
        }
        work.prepare();
        work.started = work.served.stats();
        work
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
        self.served.acknowledge(|_, _| {});
        self.changes.clear();
        for _ in 0..CHANGES {
            let mut change = self.templates[self.next_template].clone();
            change.position = self.served.next_position();
            self.changes.push(FromIngest::Change(Arc::new(change)));
            self.next_template = (self.next_template + STRIDE) % self.templates.len();
        }
    }

    fn round(&mut self) {
        self.served.work(self.changes.drain(..));
    }

    fn units(&self) -> u64 {
        CHANGES as u64
    }

    fn describe(&self) -> String {
        let (then, now) = (&self.started, self.served.stats());
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
