//! A shard with two Gateways: changes with raw documents go in, encoded frames come out. What the Gateways do with them, acks
//! included, is not measured.

use std::{collections::HashMap, ops::Range, sync::Arc};

use bytes::Bytes;
use predicate::Mapping;
use shards::{Change, FromIngest, Image, NewChange};
use wire::{Delivery, Handle, Operation, PlaceHash, SubscribeItem, SubscriptionKey, Transition};
use workload::matching::{Answer, MatchSource, Pool, World};

use crate::{
    compare::{Built, Engine, EngineKind, build_timed},
    served::{CHANGES, LOG_EVENTS, Served, compiled, config, position},
};

const GATEWAYS: usize = 2;
/// Items of one request.
pub(in crate::compare) const ITEMS: usize = 1_000;

pub(in crate::compare) struct OursShard {
    served: Served,
    templates: Vec<Change>,
    changes: Vec<FromIngest>,
    /// Number of the subscription, by Gateway and handle.
    handles: Vec<HashMap<Handle, u32>>,
    answers: Vec<Answer>,
}

impl OursShard {
    pub(in crate::compare) fn build<'a>(world: &World, pool: &'a Pool) -> Built<'a> {
        let mut config = config(pool.event(0).before.is_some());
        config.mapping = Arc::new(Mapping::Plain);
        let mut served = Served::new(config, GATEWAYS);
        let mut items: Vec<Vec<SubscribeItem>> = vec![Vec::new(); GATEWAYS];
        let last = world.subscriptions - 1;
        let make = |world: &World, subscription: usize| item(world, subscription, world.source(subscription));
        let (build, bytes) = build_timed(world, make, |subscription, item| {
            items[subscription % GATEWAYS].push(item);
            for (gateway, items) in items.iter_mut().enumerate() {
                if items.len() == ITEMS || subscription == last && !items.is_empty() {
                    served.subscribe(gateway, std::mem::take(items), |_, item| compiled(item, &Mapping::Plain));
                }
            }
            if subscription == last {
                served.go_live();
            }
        });
        assert_eq!(served.stats().subscriptions, world.subscriptions as u64, "all of them were taken");
        let templates = templates(world, pool);
        let handles = vec![HashMap::new(); GATEWAYS];
        let mut ours = Self { served, templates, changes: Vec::new(), handles, answers: Vec::new() };
        // Until the log is full, or all that there is has come by.
        for first in (0..pool.len().min(2 * LOG_EVENTS)).step_by(CHANGES) {
            let events = first..pool.len().min(first + CHANGES);
            ours.prepare(events.clone());
            ours.round(events);
            ours.rest();
        }
        Built { engine: Box::new(ours), build, bytes }
    }
}

/// What a Gateway asks for.
pub(in crate::compare) fn item(world: &World, subscription: usize, source: MatchSource) -> SubscribeItem {
    let (tenant, collection) = world.place(source.collection);
    SubscribeItem {
        filters: source.filters,
        expr: source.expr,
        ..SubscribeItem::new(SubscriptionKey { tenant, id: subscription.to_string() }, collection)
    }
}

/// The changes of the pool's events, as slices of one piece of memory.
fn templates(world: &World, pool: &Pool) -> Vec<Change> {
    let places: Vec<(String, String)> = (0..world.places()).map(|collection| world.place(collection)).collect();
    let mut bytes: Vec<u8> = Vec::new();
    for event in (0..pool.len()).map(|event| pool.event(event)) {
        let (tenant, collection) = &places[event.collection];
        for part in [tenant.as_bytes(), collection.as_bytes(), event.before.unwrap_or_default(), event.after] {
            bytes.extend_from_slice(part);
        }
    }
    let mut rest = Bytes::from(bytes);
    let change = |event: usize| {
        let event = pool.event(event);
        let (tenant, collection) = &places[event.collection];
        let before = event.before.map_or(0, <[u8]>::len);
        let whole = rest.split_to(tenant.len() + collection.len() + before + event.after.len());
        let (tenant, part) = whole.split_at(tenant.len());
        let (collection, part) = part.split_at(collection.len());
        let (before, after) = part.split_at(before);
        let place = PlaceHash::of_bytes(tenant, collection);
        let image = |document| Image { place, tenant, collection, document };
        let new = NewChange {
            position: position(0),
            operation: if event.before.is_some() { Operation::Update } else { Operation::Insert },
            key: event.key.into(),
            document_id: None,
            before: event.before.map(|_| image(before)),
            after: Some(image(after)),
            bare: None,
        };
        Change::of_event(&whole, new)
    };
    (0..pool.len()).map(change).collect()
}

impl Engine for OursShard {
    fn kind(&self) -> EngineKind {
        EngineKind::OursShard
    }

    fn chunk(&self) -> usize {
        CHANGES
    }

    fn prepare(&mut self, events: Range<usize>) {
        self.changes.clear();
        for event in events {
            let mut change = self.templates[event].clone();
            change.position = self.served.next_position();
            self.changes.push(FromIngest::Change(Arc::new(change)));
        }
    }

    /// The matches are only known once the frames have been read.
    fn round(&mut self, _events: Range<usize>) -> u64 {
        let before = self.served.stats().deliveries;
        self.served.work(self.changes.drain(..));
        self.served.stats().deliveries - before
    }

    fn rest(&mut self) {
        let (handles, answers) = (&mut self.handles, &mut self.answers);
        answers.clear();
        self.served.acknowledge(|gateway, message| match message {
            Delivery::Bound(bound) => {
                let number = bound.key.id.parse().expect("subscriptions are named by their numbers");
                handles[gateway].insert(bound.handle, number);
            }
            Delivery::Events(entries) => {
                let targets = entries.iter().flat_map(|entry| entry.targets);
                answers.extend(targets.map(|target| Answer {
                    subscription: handles[gateway][&target.handle],
                    before: target.transition != Transition::Enter,
                    after: target.transition != Transition::Leave,
                }));
            }
            _ => {}
        });
    }

    fn answer(&mut self, event: usize) -> Vec<Answer> {
        self.prepare(event..event + 1);
        self.round(event..event + 1);
        self.rest();
        std::mem::take(&mut self.answers)
    }
}
