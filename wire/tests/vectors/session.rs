//! One whole session, from the hello to the node's farewell: the transcript of `docs/protocol.md`.

use wire::{
    Ack, BackendId, Bound, Capabilities, Certainty, CloseReason, Delivery, Epoch, ErrorCode, EventEntry, GapReason,
    Handle, Hello, Lineage, Operation, PlaceHash, Position, Positions, Registration, Reply, Request, RequestId,
    ResyncReason, ShardAddress, SlotTable, SubscribeItem, SubscribeResult, SubscriptionKey, Target, Transition,
    Welcome,
};

use crate::Any;

pub(crate) struct Step {
    pub(crate) why: &'static str,
    pub(crate) message: Any,
}

/// A place in the history that the vectors speak of.
pub(crate) fn at(increment: u32, k: u32) -> Position {
    Position {
        backend: BackendId::of_name("main"),
        lineage: Lineage(0x5eed_0000_0000_0001),
        time: (0x6650_0000 << 32) | u64::from(increment),
        k,
    }
}

pub(crate) fn key(id: &str) -> SubscriptionKey {
    SubscriptionKey { tenant: "acme".into(), id: id.into() }
}

pub(crate) fn target(handle: u32, transition: Transition) -> Target {
    Target { handle: Handle(handle), transition, certainty: Certainty::Matched }
}

/// An update of a room as the preset `syntrix` stores it, for handle 1.
pub(crate) fn entry(seq: u64, increment: u32, room: &str, status: &str) -> EventEntry {
    let fullpath = format!("rooms/{room}");
    let hash = blake3::hash(fullpath.as_bytes()).to_hex();
    let document = bson::doc! {
        "_id": format!("acme:{}", &hash[..32]),
        "tenant_id": "acme",
        "collection": "rooms",
        "fullpath": fullpath,
        "version": 1_i64,
        "data": { "id": room, "status": status },
    };
    // Type 2 is a string: its length with the zero byte that ends it, its bytes, the zero byte.
    let mut document_id = vec![2];
    document_id.extend_from_slice(&(room.len() as u32 + 1).to_le_bytes());
    document_id.extend_from_slice(room.as_bytes());
    document_id.push(0);
    EventEntry {
        seq,
        id: at(increment, 1),
        operation: Operation::Update,
        tenant: "acme".into(),
        collection: "rooms".into(),
        document_id,
        targets: vec![target(1, Transition::Update)],
        document: document.to_vec().expect("the document is plain"),
    }
}

fn item(id: &str, collection: &str, filters: &str, positions: Positions) -> SubscribeItem {
    SubscribeItem {
        key: key(id),
        collection: collection.into(),
        filters: filters.into(),
        expr: String::new(),
        ttl_s: 0,
        transitions: true,
        positions,
        group: None,
        lossy: false,
    }
}

fn one(position: Position) -> Positions {
    [position].into_iter().collect()
}

pub(crate) fn steps() -> Vec<Step> {
    let slots = SlotTable { shards: 2 };
    let shard = |partition: u16| ShardAddress { partition, address: format!("10.0.0.1:{}", 7400 + partition) };
    // The transcript is of the shard that owns `rooms`.
    let own = slots.owner(PlaceHash::of("acme", "rooms"));
    let other = slots.owner(PlaceHash::of("acme", OTHER));
    assert_ne!(own, other, "the transcript shows a collection of another shard");

    let mut steps = Vec::new();
    let mut step = |why: &'static str, message: Any| steps.push(Step { why, message });

    step(
        "The Gateway has connected, opened the control stream, and says who it is.",
        Any::Request(Request::Hello(Hello {
            gateway: "gw-1".into(),
            token: "s3cret".into(),
            agent: "example 1.0".into(),
            capabilities: Capabilities { can_verify: false },
        })),
    );
    step(
        "The shard knows it, and opens the delivery stream.",
        Any::Reply(Reply::Welcome(Box::new(Welcome {
            epoch: Epoch(0x0123_4567_89ab_cdef_0011_2233_4455_6677),
            partition: own,
            slots,
            shards: vec![shard(0), shard(1)],
            received_deadline_ms: 30_000,
            heartbeat_ms: 1_000,
            max_body_bytes: 16 * 1024 * 1024,
            mapping: "syntrix".into(),
        }))),
    );
    step(
        "Four subscriptions: a new one, one that goes on from where its application is, one that another shard owns (a Gateway that \
         hashes never sends that), one with a filter that makes no sense.",
        Any::Request(Request::Subscribe {
            request: RequestId(1),
            items: vec![
                item("open", "rooms", r#"[{"field":"status","op":"==","value":"open"}]"#, Positions::default()),
                item("room-1", "rooms", r#"[{"field":"_id","op":"==","value":"room-1"}]"#, one(at(2, 1))),
                item("elsewhere", OTHER, "", Positions::default()),
                item("wrong", "rooms", r#"[{"field":"status","op":"~","value":1}]"#, Positions::default()),
            ],
        }),
    );
    step(
        "No more to present to this shard. The request may follow at once.",
        Any::Request(Request::SyncDone { request: RequestId(2) }),
    );
    step(
        "The first subscription gets handle 1. It had no position: what comes after `live_from` is delivered, and `live_from` is now \
         its position.",
        Any::Delivery(Delivery::Bound(Box::new(Bound {
            handle: Handle(1),
            key: key("open"),
            generation: 1,
            live_from: one(at(4, 1)),
            leaves: true,
        }))),
    );
    step(
        "The second has been known since before the position that it presented, so nothing is missing.",
        Any::Delivery(Delivery::Bound(Box::new(Bound {
            handle: Handle(2),
            key: key("room-1"),
            generation: 1,
            live_from: one(at(1, 1)),
            leaves: true,
        }))),
    );
    step(
        "One result an item, in the items' order.",
        Any::Reply(Reply::Subscribed {
            request: RequestId(1),
            results: vec![
                SubscribeResult::Accepted { registration: Registration::Created, expires_in_s: 300 },
                SubscribeResult::Accepted { registration: Registration::Renewed, expires_in_s: 300 },
                SubscribeResult::NotOwner { owner: shard(other) },
                SubscribeResult::Rejected {
                    code: ErrorCode::InvalidFilter,
                    message: "filters[0].op: \"~\" is not an operator".into(),
                },
            ],
        }),
    );
    step("The shard counts this Gateway as back.", Any::Reply(Reply::Synced { request: RequestId(2) }));

    let replayed = EventEntry { targets: vec![target(2, Transition::Update)], ..entry(1, 3, "room-1", "closed") };
    step(
        "What the second subscription missed while the Gateway was away. The first, at a later position, is not named.",
        Any::Delivery(Delivery::Events(vec![replayed].into())),
    );
    step("It has come. The application has not got to it yet.", Any::Ack(Ack { received: 1, done: 0 }));
    let opened = EventEntry {
        targets: vec![target(1, Transition::Enter), target(2, Transition::Update)],
        ..entry(2, 5, "room-1", "open")
    };
    let mut deleted = entry(3, 6, "room-1", "open");
    deleted.operation = Operation::Delete;
    deleted.targets = vec![target(1, Transition::Leave), target(2, Transition::Leave)];
    step(
        "Two live changes in one batch. The room opens: it enters the first subscription and is updated in the second. Then it is \
         deleted, with its last image.",
        Any::Delivery(Delivery::Events(vec![opened, deleted].into())),
    );
    step(
        "All three have come, and the application is done with two: handle 1 is at the position of entry 2, and so is handle 2.",
        Any::Ack(Ack { received: 3, done: 2 }),
    );
    step("The application is done with the third.", Any::Ack(Ack { received: 3, done: 3 }));
    step(
        "Nothing for this Gateway up to here. All up to entry 3 is done, so both handles move to this position.",
        Any::Delivery(Delivery::Heartbeat { last_seq: 3, positions: one(at(90, 2)) }),
    );
    step("The Gateway looks whether the control stream is alive.", Any::Request(Request::Ping { nonce: 1 }));
    step("It is.", Any::Reply(Reply::Pong { nonce: 1 }));
    step(
        "The collection behind both was renamed at this position. Entry 4, acked like an event.",
        Any::Delivery(Delivery::Gap {
            seq: 4,
            position: at(91, 1),
            reason: GapReason::Renamed,
            handles: vec![Handle(1), Handle(2)],
        }),
    );
    step(
        "A before-image that the first subscription's `leave` depends on had expired: its application has to read its state anew, and goes on \
         from `live_from`. Entry 5.",
        Any::Delivery(Delivery::Resync {
            seq: 5,
            handle: Handle(1),
            reason: ResyncReason::PreimageMissing,
            live_from: one(at(92, 1)),
        }),
    );
    step("Done with both.", Any::Ack(Ack { received: 5, done: 5 }));
    step(
        "More was waiting for this Gateway than the shard keeps for it. What the second subscription lacks from here on will be read from the \
         source's history.",
        Any::Delivery(Delivery::CatchingUp { handles: vec![Handle(2)] }),
    );
    step(
        "Handle 1 moves to this position, handle 2 stays where it is: at the gap, until it has caught up.",
        Any::Delivery(Delivery::Heartbeat { last_seq: 5, positions: one(at(120, 1)) }),
    );
    let missed = EventEntry { targets: vec![target(2, Transition::Update)], ..entry(6, 100, "room-1", "open") };
    step(
        "From the history, and older than what the heartbeat spoke of. It is acked like any other.",
        Any::Delivery(Delivery::Events(vec![missed].into())),
    );
    step("Done with it: handle 2 is at the position of entry 6.", Any::Ack(Ack { received: 6, done: 6 }));
    step(
        "Handle 2 has reached the live stream. From here on heartbeats speak of it again.",
        Any::Delivery(Delivery::CaughtUp { handles: vec![Handle(2)] }),
    );
    step(
        "Both handles move to this position.",
        Any::Delivery(Delivery::Heartbeat { last_seq: 6, positions: one(at(121, 1)) }),
    );
    step(
        "The first subscription is no longer wanted.",
        Any::Request(Request::Unsubscribe { request: RequestId(3), keys: vec![key("open")] }),
    );
    step(
        "Its handle is dead. Whatever was sent for it came before this.",
        Any::Delivery(Delivery::Closed { handle: Handle(1), reason: CloseReason::Unsubscribed }),
    );
    step(
        "The request's own answer, on the other stream: it may come before or after.",
        Any::Reply(Reply::Unsubscribed { request: RequestId(3) }),
    );
    step(
        "The node is about to stop. The Gateway connects again after a random part of ten seconds and presents its positions; until the \
         connection ends, with code 16, this session goes on.",
        Any::Delivery(Delivery::GoAway { within_ms: 10_000, reason: ErrorCode::ShuttingDown }),
    );
    steps
}

/// A collection of `acme` that the other of two shards owns.
const OTHER: &str = "orders";
