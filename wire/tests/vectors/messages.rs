//! The messages that the vectors are made of: each kind, and the values at which its bytes change shape.

use bincode::config::standard;
use wire::{
    Ack, Bound, Capabilities, Certainty, CloseReason, Delivery, Epoch, ErrorCode, EventEntry, GapReason, Handle, Hello,
    MAX_BODY_BYTES, MAX_FRAME_BODY_BYTES, MORE, Operation, Registration, Reply, Request, RequestId, ResyncReason,
    ShardAddress, SlotTable, SubscribeItem, SubscribeResult, Target, Transition, Welcome,
};

use crate::{
    Any, Stream,
    session::{self, at, key, target},
};

/// Bytes to accept, with the messages that they carry.
pub(crate) struct Accepted {
    pub(crate) name: &'static str,
    pub(crate) stream: Stream,
    pub(crate) bytes: Vec<u8>,
    pub(crate) messages: Vec<Any>,
}

/// What our encoders write, byte for byte.
pub(crate) fn all() -> Vec<(String, Any)> {
    let mut all: Vec<(String, Any)> = Vec::new();
    let mut add = |name: &str, message: Any| all.push((name.to_owned(), message));

    add(
        "hello of an open node",
        Any::Request(Request::Hello(Hello {
            gateway: "gw-1".into(),
            token: String::new(),
            agent: "example 1.0".into(),
            capabilities: Capabilities { can_verify: false },
        })),
    );
    add(
        "hello with a token",
        Any::Request(Request::Hello(Hello {
            gateway: "gw_2".into(),
            token: "s3cret".into(),
            agent: String::new(),
            capabilities: Capabilities { can_verify: true },
        })),
    );
    add("subscribe to nothing", Any::Request(Request::Subscribe { request: RequestId(0), items: Vec::new() }));
    let whole = SubscribeItem {
        key: key("whole"),
        collection: "rooms".into(),
        filters: String::new(),
        expr: String::new(),
        ttl_s: 0,
        transitions: false,
        positions: [].into_iter().collect(),
        group: None,
        lossy: false,
    };
    let full = SubscribeItem {
        key: key("full"),
        collection: "rooms/room-1/messages".into(),
        filters: r#"[{"field":"status","op":"==","value":"open"}]"#.into(),
        expr: "doc.priority > 3".into(),
        ttl_s: 3600,
        transitions: true,
        positions: [at(1000, 2), wire::Position { backend: wire::BackendId(7), ..at(5, 0) }].into_iter().collect(),
        group: Some("workers".into()),
        lossy: true,
    };
    add(
        "subscribe, every field at its least and at its most",
        Any::Request(Request::Subscribe { request: RequestId(251), items: vec![whole, full] }),
    );
    add("unsubscribe", Any::Request(Request::Unsubscribe { request: RequestId(3), keys: vec![key("a"), key("b")] }));
    add("sync done", Any::Request(Request::SyncDone { request: RequestId(u64::MAX) }));
    add("ping", Any::Request(Request::Ping { nonce: 1 << 32 }));

    add(
        "welcome",
        Any::Reply(Reply::Welcome(Box::new(Welcome {
            epoch: Epoch(0x0123_4567_89ab_cdef_0011_2233_4455_6677),
            partition: 300,
            slots: SlotTable { shards: 301 },
            shards: vec![
                ShardAddress { partition: 0, address: "10.0.0.1:7400".into() },
                ShardAddress { partition: 300, address: "[2001:db8::1]:7700".into() },
            ],
            received_deadline_ms: 30_000,
            heartbeat_ms: 1_000,
            max_body_bytes: MAX_BODY_BYTES as u32,
            mapping: "syntrix".into(),
        }))),
    );
    let mut results: Vec<SubscribeResult> = [Registration::Created, Registration::Renewed, Registration::Replaced]
        .map(|registration| SubscribeResult::Accepted { registration, expires_in_s: 300 })
        .into();
    results.push(SubscribeResult::NotOwner { owner: ShardAddress { partition: 1, address: "10.0.0.1:7401".into() } });
    results.extend(
        ErrorCode::ALL.map(|code| SubscribeResult::Rejected { code, message: format!("because of {}", code as u32) }),
    );
    add("subscribed, every result and every code", Any::Reply(Reply::Subscribed { request: RequestId(251), results }));
    add("unsubscribed", Any::Reply(Reply::Unsubscribed { request: RequestId(3) }));
    add("synced", Any::Reply(Reply::Synced { request: RequestId(u64::MAX) }));
    add("pong", Any::Reply(Reply::Pong { nonce: 1 << 32 }));
    add(
        "refused",
        Any::Reply(Reply::Refused { code: ErrorCode::Unauthorized, message: "the token is not this Gateway's".into() }),
    );

    add("ack of nothing", Any::Ack(Ack { received: 0, done: 0 }));
    add("ack", Any::Ack(Ack { received: 65_536, done: 250 }));

    for (operation, transition, certainty) in [
        (Operation::Insert, Transition::Enter, Certainty::Matched),
        (Operation::Update, Transition::Update, Certainty::Unverified),
        (Operation::Delete, Transition::Leave, Certainty::Unknown),
    ] {
        let mut entry = EventEntry { operation, ..session::entry(1, 1000, "room-1", "open") };
        entry.targets = vec![Target { handle: Handle(1), transition, certainty }];
        add(&format!("events, one {operation:?}"), Any::Delivery(Delivery::Events(vec![entry].into())));
    }
    let mut gone = session::entry(300, 1001, "room-2", "open");
    gone.targets = (0..3).map(|handle| target(handle * 200, Transition::Leave)).collect();
    gone.document.clear();
    add(
        "events, two in a batch, the second without a document and for three handles",
        Any::Delivery(Delivery::Events(vec![session::entry(299, 1000, "room-1", "open"), gone].into())),
    );
    add(
        "bound",
        Any::Delivery(Delivery::Bound(Box::new(Bound {
            handle: Handle(70_000),
            key: key("open-rooms"),
            generation: 2,
            live_from: [at(999, 1)].into_iter().collect(),
            leaves: true,
        }))),
    );
    add(
        "heartbeat",
        Any::Delivery(Delivery::Heartbeat { last_seq: 301, positions: [at(1002, 0)].into_iter().collect() }),
    );
    for reason in [
        GapReason::Dropped,
        GapReason::Renamed,
        GapReason::DatabaseDropped,
        GapReason::Invalidated,
        GapReason::HistoryLost,
        GapReason::Oversize,
    ] {
        add(
            &format!("gap, {reason:?}"),
            Any::Delivery(Delivery::Gap {
                seq: 9,
                position: at(1003, 1),
                reason,
                handles: vec![Handle(1), Handle(251)],
            }),
        );
    }
    for reason in
        [ResyncReason::LineageChanged, ResyncReason::HistoryLost, ResyncReason::TooSlow, ResyncReason::PreimageMissing]
    {
        let live_from = [at(1004, 1)].into_iter().collect();
        add(
            &format!("resync, {reason:?}"),
            Any::Delivery(Delivery::Resync { seq: 10, handle: Handle(1), reason, live_from }),
        );
    }
    add("catching up", Any::Delivery(Delivery::CatchingUp { handles: vec![Handle(1), Handle(251)] }));
    add("caught up", Any::Delivery(Delivery::CaughtUp { handles: vec![Handle(1), Handle(251)] }));
    for reason in [CloseReason::Unsubscribed, CloseReason::Expired, CloseReason::Replaced, CloseReason::Removed] {
        add(&format!("closed, {reason:?}"), Any::Delivery(Delivery::Closed { handle: Handle(1), reason }));
    }
    add("go away", Any::Delivery(Delivery::GoAway { within_ms: 10_000, reason: ErrorCode::ShuttingDown }));
    all
}

/// What a receiver must take although our encoders don't write it.
pub(crate) fn accepted() -> Vec<Accepted> {
    let ping = Any::Request(Request::Ping { nonce: 251 });
    let pong = Any::Reply(Reply::Pong { nonce: 7 });
    let events = Any::Delivery(Delivery::Events(vec![session::entry(1, 1000, "room-1", "open")].into()));

    let split = |message: &Any, parts: &[usize]| {
        let whole = message.encode();
        let (kind, mut rest) = (whole[4], &whole[5..]);
        let mut bytes = Vec::new();
        for part in parts {
            let (first, others) = rest.split_at(*part);
            bytes.extend(frame(MORE, first));
            rest = others;
        }
        bytes.extend(frame(kind, rest));
        bytes
    };
    let longer = |message: &Any| {
        let whole = message.encode();
        frame(whole[4], &[&whole[5..], b"added later"].concat())
    };
    let longer_entry = {
        let whole = events.encode();
        let entry = [&whole[9..], b"added later"].concat();
        frame(whole[4], &[&(entry.len() as u32).to_le_bytes()[..], &entry].concat())
    };
    let new_types = [frame(0x7f, b"a type added later"), frame(MORE, b"one in "), frame(0x1e, b"two frames")].concat();

    vec![
        Accepted {
            name: "two messages back to back",
            stream: Stream::Requests,
            bytes: [ping.encode(), ping.encode()].concat(),
            messages: vec![ping.clone(), ping.clone()],
        },
        Accepted {
            name: "a body in three frames",
            stream: Stream::Deliveries,
            bytes: split(&events, &[3, 20]),
            messages: vec![events.clone()],
        },
        Accepted {
            name: "a body in frames some of which are empty",
            stream: Stream::Requests,
            bytes: split(&ping, &[0, 3, 0]),
            messages: vec![ping.clone()],
        },
        Accepted {
            name: "bytes after a body's last field",
            stream: Stream::Requests,
            bytes: longer(&ping),
            messages: vec![ping.clone()],
        },
        Accepted {
            name: "bytes after an entry's last field",
            stream: Stream::Deliveries,
            bytes: longer_entry,
            messages: vec![events],
        },
        Accepted {
            name: "types that a server added later, to be skipped",
            stream: Stream::Replies,
            bytes: [new_types, pong.encode()].concat(),
            messages: vec![pong],
        },
    ]
}

/// What a receiver must refuse: name, stream, bytes, the bound on a body that is in force.
pub(crate) fn refused() -> Vec<(&'static str, Stream, Vec<u8>, usize)> {
    let encode = |fields: (u64, u64)| bincode::encode_to_vec(fields, standard()).expect("plain data");
    let too_long = [&(MAX_FRAME_BODY_BYTES as u32 + 2).to_le_bytes()[..], &[0x05]].concat();
    let invalid_text = frame(0x01, &[1, 2, 0xff, 0xfe, 0, 0, 0]);
    let position = bincode::encode_to_vec(at(1, 1), standard()).expect("plain data");
    vec![
        ("a frame of length 0", Stream::Requests, vec![0, 0, 0, 0], MAX_BODY_BYTES),
        ("a frame above the maximum", Stream::Requests, too_long, MAX_BODY_BYTES),
        ("a body above the bound", Stream::Requests, frame(0x02, &[0; 11]), 10),
        (
            "frames that are above the bound together",
            Stream::Requests,
            [frame(MORE, &[0; 6]), frame(0x02, &[0; 5])].concat(),
            10,
        ),
        ("a type that Gateways don't send", Stream::Requests, frame(0x31, &[]), MAX_BODY_BYTES),
        ("an ack on the control stream", Stream::Requests, frame(0x21, &[1, 1]), MAX_BODY_BYTES),
        ("a body that ends within a field", Stream::Requests, frame(0x05, &[252, 1, 0]), MAX_BODY_BYTES),
        ("a body that lacks a field", Stream::Acks, frame(0x21, &[1]), MAX_BODY_BYTES),
        (
            "an integer of a longer form than its type has",
            Stream::Requests,
            frame(0x01, &[252, 1, 0, 0, 0]),
            MAX_BODY_BYTES,
        ),
        ("a reserved integer marker", Stream::Requests, frame(0x05, &[255]), MAX_BODY_BYTES),
        ("text that is not UTF-8", Stream::Requests, invalid_text, MAX_BODY_BYTES),
        ("a list longer than its body", Stream::Requests, frame(0x02, &encode((1, 1 << 40))), MAX_BODY_BYTES),
        ("a bool that is neither 0 nor 1", Stream::Requests, frame(0x01, &[1, 0, 0, 0, 2]), MAX_BODY_BYTES),
        ("an enum's number that doesn't exist", Stream::Deliveries, frame(0x38, &[1, 99]), MAX_BODY_BYTES),
        (
            "two positions of one backend",
            Stream::Deliveries,
            frame(0x33, &[&[1, 2], &position[..], &position].concat()),
            MAX_BODY_BYTES,
        ),
        ("an entry longer than its body", Stream::Deliveries, frame(0x31, &[9, 0, 0, 0, 1]), MAX_BODY_BYTES),
        ("a hello of another version", Stream::Requests, frame(0x01, &[2, 0, 0, 0, 0]), MAX_BODY_BYTES),
    ]
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32 + 1).to_le_bytes()[..], &[kind], body].concat()
}
