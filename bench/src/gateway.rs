//! One delivered item at a Gateway: from the bytes of its delivery stream to the application's being done with it.

use bytes::{Bytes, BytesMut};
use streamer_gateway::core::{AppEvent, CoreConfig, GatewayCore, Input, Millis, Output, SessionId};
use wire::{
    Bound, Certainty, Decoder, Delivery, Epoch, EventEntryRef, Handle, MAX_BODY_BYTES, Operation, Registration, Reply,
    Request, ShardAddress, SlotTable, SubscribeResult, Target, Transition, Welcome, begin_events,
};

use crate::{
    Named, Scenario,
    ingest::{COLLECTION, TENANT, message},
    served::position,
    shard::{item, key},
};

/// Subscriptions of the Gateway; an event is for the next few of them.
const SUBSCRIPTIONS: usize = 1_024;
/// Items of a round.
const ITEMS: usize = 4_096;
/// Entries of one `Events`, as many as a shard puts into one.
const ENTRIES: usize = 100;
/// Bytes of the stream in one packet.
const PACKET_BYTES: usize = 1_400;
/// Packets that are there when the stream is read.
const PACKETS: usize = 16;
/// Items that the application takes at once.
const MANY: usize = 64;

pub fn scenarios() -> Vec<Named> {
    let of = |targets| Named::new(format!("gateway {targets} of an event"), move || Work::new(targets));
    [1, 4, 64].map(of).into()
}

/// A Gateway whose application is done with all that a round brings.
struct Work {
    core: GatewayCore,
    session: SessionId,
    decoder: Decoder<Delivery>,
    targets: usize,
    documents: Vec<Vec<u8>>,
    /// What a round reads from the stream.
    packets: Vec<Bytes>,
    deliveries: Vec<Delivery>,
    items: Vec<AppEvent>,
    bytes: u64,
    seq: u64,
    next_handle: usize,
    taken: u64,
}

impl Work {
    fn new(targets: usize) -> Self {
        let mut core = GatewayCore::new(
            CoreConfig {
                gateway: "gateway".into(),
                token: String::new(),
                agent: "bench".into(),
                addresses: vec!["127.0.0.1:7400".into()],
                can_verify: true,
                queue_bytes_max: 1 << 30,
                jitter_seed: 1,
            },
            Millis(0),
        );
        let Some(Output::Connect { session, .. }) = core.poll_output() else { panic!("it connects first of all") };
        (0..SUBSCRIPTIONS).for_each(|number| core.handle(Input::Subscribe(item(number, String::new())), Millis(0)));
        core.handle(Input::Connected { session }, Millis(0));
        core.handle(Input::Reply { session, reply: welcome() }, Millis(0));
        while let Some(output) = core.poll_output() {
            let Output::Request { request: Request::Subscribe { request, items }, .. } = output else { continue };
            let accepted = SubscribeResult::Accepted { registration: Registration::Created, expires_in_s: 300 };
            let reply = Reply::Subscribed { request, results: vec![accepted; items.len()] };
            core.handle(Input::Reply { session, reply }, Millis(0));
        }
        for number in 0..SUBSCRIPTIONS {
            core.handle(Input::Delivery { session, delivery: bound(number) }, Millis(0));
        }
        let mut work = Self {
            core,
            session,
            decoder: Decoder::new(MAX_BODY_BYTES),
            targets,
            documents: (0..256).map(|i| message(i).to_vec().expect("it is a document")).collect(),
            packets: Vec::new(),
            deliveries: Vec::new(),
            items: Vec::new(),
            bytes: 0,
            seq: 0,
            next_handle: 0,
            taken: 0,
        };
        work.take_all();
        assert_eq!(work.core.status().live, SUBSCRIPTIONS, "all of them are live");
        // Tables and queues get the size that they need.
        for _ in 0..4 {
            work.prepare();
            work.round();
        }
        work
    }

    /// What the SDK does for an application that takes whatever there is.
    fn take_all(&mut self) {
        let mut last = None;
        loop {
            if let Some(token) = last.take() {
                self.core.done_up_to(token);
            }
            let (core, items) = (&mut self.core, &mut self.items);
            while items.len() < MANY
                && let Some((token, event)) = core.next_event()
            {
                last = Some(token);
                items.push(event);
            }
            while self.core.poll_output().is_some() {}
            if self.items.is_empty() {
                return;
            }
            for event in self.items.drain(..) {
                if let AppEvent::Change(change) = &event {
                    self.taken += u64::from(change.transition() == Transition::Update);
                }
            }
        }
    }
}

impl Scenario for Work {
    fn prepare(&mut self) {
        let mut buffer = BytesMut::new();
        let events = ITEMS / self.targets;
        for batch in 0..events.div_ceil(ENTRIES) {
            let mut encoder = begin_events(&mut buffer);
            for _ in 0..ENTRIES.min(events - batch * ENTRIES) {
                let target = |i: usize| Target {
                    handle: Handle(((self.next_handle + i) % SUBSCRIPTIONS) as u32 + 1),
                    transition: Transition::Update,
                    certainty: Certainty::Matched,
                };
                let targets: Vec<Target> = (0..self.targets).map(target).collect();
                self.next_handle += self.targets;
                self.seq += 1;
                encoder.push(&EventEntryRef {
                    seq: self.seq,
                    id: position(self.seq + 1),
                    operation: Operation::Update,
                    tenant: TENANT,
                    collection: COLLECTION,
                    document_id: b"\x02\x0a\x00\x00\x00message-1\x00",
                    targets: &targets,
                    document: &self.documents[self.seq as usize % self.documents.len()],
                });
            }
            encoder.finish();
        }
        self.bytes = buffer.len() as u64;
        self.packets = buffer.chunks(PACKET_BYTES).map(Bytes::copy_from_slice).collect();
    }

    fn round(&mut self) {
        let session = self.session;
        for packets in std::mem::take(&mut self.packets).chunks_mut(PACKETS) {
            assert!(self.core.wants_delivery(session), "the queue is large enough for a round");
            for packet in packets {
                self.decoder.push(std::mem::take(packet));
                while let Some(delivery) = self.decoder.next().expect("it was encoded so") {
                    self.deliveries.push(delivery);
                }
            }
            for delivery in self.deliveries.drain(..) {
                self.core.handle(Input::Delivery { session, delivery }, Millis(0));
            }
            while self.core.poll_output().is_some() {}
            self.take_all();
        }
    }

    fn units(&self) -> u64 {
        (ITEMS / self.targets * self.targets) as u64
    }

    fn describe(&self) -> String {
        assert_eq!(self.taken % self.units(), 0, "each item of each round was taken");
        let each = self.bytes as f64 / (ITEMS / self.targets) as f64;
        format!("{SUBSCRIPTIONS} subscriptions; an event: {} targets, {each:.0} bytes", self.targets)
    }
}

fn welcome() -> Reply {
    Reply::Welcome(Box::new(Welcome {
        epoch: Epoch(1),
        partition: 0,
        slots: SlotTable { shards: 1 },
        shards: vec![ShardAddress { partition: 0, address: "127.0.0.1:7400".into() }],
        received_deadline_ms: 30_000,
        heartbeat_ms: 1_000,
        max_body_bytes: MAX_BODY_BYTES as u32,
        mapping: "syntrix".into(),
    }))
}

fn bound(number: usize) -> Delivery {
    let live_from = [position(1)].into_iter().collect();
    let handle = Handle(number as u32 + 1);
    Delivery::Bound(Box::new(Bound { handle, key: key(number), generation: 1, live_from, leaves: true }))
}
