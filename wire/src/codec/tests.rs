mod memory;

use bincode::{config::standard, encode_to_vec};
use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::{
    BackendId, Bound, Capabilities, Certainty, CloseReason, Epoch, EventBody, EventEntry, EventEntryRef, Events,
    GapReason, Handle, Hello, Lineage, Operation, Position, Positions, Registration, RequestId, ResyncReason,
    ShardAddress, SlotTable, SubscribeItem, SubscribeResult, SubscriptionKey, Target, Transition, Welcome,
    begin_events,
};

/// Whatever the codec carries, with its encoder.
trait Coded: Message + Clone + PartialEq + std::fmt::Debug {
    fn encode(&self, buffer: &mut BytesMut);
}

macro_rules! coded {
    ($($type:ty: $encode:ident),+) => {
        $(impl Coded for $type {
            fn encode(&self, buffer: &mut BytesMut) {
                $encode(self, buffer);
            }
        })+
    };
}

coded!(Request: encode_request, Reply: encode_reply, Ack: encode_ack, Delivery: encode_delivery);

fn bytes_of<M: Coded>(messages: &[M]) -> BytesMut {
    let mut buffer = BytesMut::new();
    messages.iter().for_each(|message| message.encode(&mut buffer));
    buffer
}

fn all<M: Message>(decoder: &mut Decoder<M>) -> Result<Vec<M>, WireError> {
    let mut messages = Vec::new();
    while let Some(message) = decoder.next()? {
        messages.push(message);
    }
    Ok(messages)
}

fn decode<M: Message>(bytes: &[u8]) -> Result<Vec<M>, WireError> {
    let mut decoder = Decoder::new(MAX_BODY_BYTES);
    decoder.feed(bytes);
    all(&mut decoder)
}

fn raw_frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = header(kind, body.len()).to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// The message in as many frames as its body has bytes, at most `part` bytes in each.
fn in_parts<M: Coded>(message: &M, part: usize) -> Vec<u8> {
    let whole = bytes_of(std::slice::from_ref(message));
    let mut buffer = BytesMut::new();
    let start = open_frame(&mut buffer);
    buffer.extend_from_slice(&whole[HEADER_BYTES..]);
    close_frame(&mut buffer, start, whole[LENGTH_BYTES], part);
    buffer.to_vec()
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9_/-]{0,12}", any::<String>()]
}

fn position() -> impl Strategy<Value = Position> {
    (any::<u32>(), any::<u64>(), any::<u64>(), any::<u32>()).prop_map(|(backend, lineage, time, k)| Position {
        backend: BackendId(backend),
        lineage: Lineage(lineage),
        time,
        k,
    })
}

fn positions() -> impl Strategy<Value = Positions> {
    vec(position(), 0..4).prop_map(|all| all.into_iter().collect())
}

fn key() -> impl Strategy<Value = SubscriptionKey> {
    (text(), text()).prop_map(|(tenant, id)| SubscriptionKey { tenant, id })
}

fn item() -> impl Strategy<Value = SubscribeItem> {
    ((key(), text(), text(), text(), any::<u32>()), (any::<bool>(), positions(), option::of(text()), any::<bool>()))
        .prop_map(|((key, collection, filters, expr, ttl_s), (transitions, positions, group, lossy))| SubscribeItem {
            key,
            collection,
            filters,
            expr,
            ttl_s,
            transitions,
            positions,
            group,
            lossy,
        })
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (text(), text(), text(), any::<bool>()).prop_map(|(gateway, token, agent, can_verify)| {
            Request::Hello(Hello { gateway, token, agent, capabilities: Capabilities { can_verify } })
        }),
        (any::<u64>(), vec(item(), 0..5))
            .prop_map(|(request, items)| Request::Subscribe { request: RequestId(request), items }),
        (any::<u64>(), vec(key(), 0..5))
            .prop_map(|(request, keys)| Request::Unsubscribe { request: RequestId(request), keys }),
        any::<u64>().prop_map(|request| Request::SyncDone { request: RequestId(request) }),
        any::<u64>().prop_map(|nonce| Request::Ping { nonce }),
    ]
}

fn address() -> impl Strategy<Value = ShardAddress> {
    (any::<u16>(), text()).prop_map(|(partition, address)| ShardAddress { partition, address })
}

fn code() -> impl Strategy<Value = ErrorCode> {
    (0..ErrorCode::ALL.len()).prop_map(|place| ErrorCode::ALL[place])
}

fn result() -> impl Strategy<Value = SubscribeResult> {
    let registration =
        prop_oneof![Just(Registration::Created), Just(Registration::Renewed), Just(Registration::Replaced)];
    prop_oneof![
        (registration, any::<u32>())
            .prop_map(|(registration, expires_in_s)| SubscribeResult::Accepted { registration, expires_in_s }),
        address().prop_map(|owner| SubscribeResult::NotOwner { owner }),
        (code(), text()).prop_map(|(code, message)| SubscribeResult::Rejected { code, message }),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    let welcome = (
        (any::<u128>(), any::<u16>(), any::<u16>(), vec(address(), 0..5)),
        (any::<u32>(), any::<u32>(), any::<u32>(), text()),
    )
        .prop_map(|((epoch, partition, shards, addresses), (received, heartbeat, max_body_bytes, mapping))| {
            Reply::Welcome(Box::new(Welcome {
                epoch: Epoch(epoch),
                partition,
                slots: SlotTable { shards },
                shards: addresses,
                received_deadline_ms: received,
                heartbeat_ms: heartbeat,
                max_body_bytes,
                mapping,
            }))
        });
    prop_oneof![
        welcome,
        (any::<u64>(), vec(result(), 0..5))
            .prop_map(|(request, results)| Reply::Subscribed { request: RequestId(request), results }),
        any::<u64>().prop_map(|request| Reply::Unsubscribed { request: RequestId(request) }),
        any::<u64>().prop_map(|request| Reply::Synced { request: RequestId(request) }),
        any::<u64>().prop_map(|nonce| Reply::Pong { nonce }),
        (code(), text()).prop_map(|(code, message)| Reply::Refused { code, message }),
    ]
}

fn target() -> impl Strategy<Value = Target> {
    let transition = prop_oneof![Just(Transition::Enter), Just(Transition::Update), Just(Transition::Leave)];
    let certainty = prop_oneof![Just(Certainty::Matched), Just(Certainty::Unverified), Just(Certainty::Unknown)];
    (any::<u32>(), transition, certainty).prop_map(|(handle, transition, certainty)| Target {
        handle: Handle(handle),
        transition,
        certainty,
    })
}

fn entry() -> impl Strategy<Value = EventEntry> {
    let operation = prop_oneof![Just(Operation::Insert), Just(Operation::Update), Just(Operation::Delete)];
    (
        (any::<u64>(), position(), operation, text(), text()),
        (vec(any::<u8>(), 0..20), vec(target(), 0..5), vec(any::<u8>(), 0..300)),
    )
        .prop_map(|((seq, id, operation, tenant, collection), (document_id, targets, document))| EventEntry {
            seq,
            id,
            operation,
            tenant,
            collection,
            document_id,
            targets,
            document,
        })
}

fn handles() -> impl Strategy<Value = Vec<Handle>> {
    vec(any::<u32>().prop_map(Handle), 0..5)
}

fn delivery() -> impl Strategy<Value = Delivery> {
    let gap = prop_oneof![Just(GapReason::Dropped), Just(GapReason::HistoryLost), Just(GapReason::Oversize)];
    let resync = prop_oneof![
        Just(ResyncReason::LineageChanged),
        Just(ResyncReason::HistoryLost),
        Just(ResyncReason::TooSlow),
        Just(ResyncReason::PreimageMissing),
    ];
    let close = prop_oneof![Just(CloseReason::Unsubscribed), Just(CloseReason::Removed)];
    prop_oneof![
        vec(entry(), 1..5).prop_map(|entries| Delivery::Events(entries.into())),
        (any::<u32>(), key(), any::<u32>(), positions(), any::<bool>()).prop_map(
            |(handle, key, generation, live_from, leaves)| Delivery::Bound(Box::new(Bound {
                handle: Handle(handle),
                key,
                generation,
                live_from,
                leaves
            }))
        ),
        (any::<u64>(), positions()).prop_map(|(last_seq, positions)| Delivery::Heartbeat { last_seq, positions }),
        (any::<u64>(), position(), gap, handles()).prop_map(|(seq, position, reason, handles)| Delivery::Gap {
            seq,
            position,
            reason,
            handles
        }),
        (any::<u64>(), any::<u32>(), resync, positions()).prop_map(|(seq, handle, reason, live_from)| {
            Delivery::Resync { seq, handle: Handle(handle), reason, live_from }
        }),
        handles().prop_map(|handles| Delivery::CatchingUp { handles }),
        handles().prop_map(|handles| Delivery::CaughtUp { handles }),
        (any::<u32>(), close).prop_map(|(handle, reason)| Delivery::Closed { handle: Handle(handle), reason }),
        (any::<u32>(), code()).prop_map(|(within_ms, reason)| Delivery::GoAway { within_ms, reason }),
    ]
}

/// However the bytes are cut, and in however many frames each message comes, the messages are the same.
fn comes_back<M: Coded>(messages: &[M], piece: usize, part: usize) -> Result<(), TestCaseError> {
    let whole = bytes_of(messages);
    let back = decode::<M>(&whole);
    prop_assert_eq!(back.as_deref(), Ok(messages));

    let parts: Vec<u8> = messages.iter().flat_map(|message| in_parts(message, part)).collect();
    for bytes in [&whole[..], &parts] {
        let mut decoder = Decoder::<M>::new(MAX_BODY_BYTES);
        let mut back = Vec::new();
        for (n, piece) in bytes.chunks(piece).enumerate() {
            if n % 2 == 0 {
                decoder.feed(piece)
            } else {
                decoder.push(Bytes::copy_from_slice(piece))
            }
            back.extend(all(&mut decoder).expect("what an encoder writes can be decoded"));
        }
        prop_assert_eq!(&back[..], messages);
        prop_assert!(decoder.is_between_messages());
    }
    Ok(())
}

/// A stream cut anywhere gives whole messages only, no error, and knows that it was cut.
fn survives_a_cut<M: Coded>(messages: &[M], cut: prop::sample::Index) -> Result<(), TestCaseError> {
    let whole = bytes_of(messages);
    let mut decoder = Decoder::<M>::new(MAX_BODY_BYTES);
    decoder.feed(&whole[..cut.index(whole.len())]);
    let back = all(&mut decoder).expect("nothing that came was wrong");
    prop_assert_eq!(&back[..], &messages[..back.len()]);
    prop_assert!(back.len() < messages.len());
    prop_assert_eq!(decoder.is_between_messages(), bytes_of(&back).len() == cut.index(whole.len()));
    Ok(())
}

/// A frame whose body is anything at all, or a good message with one byte changed or bytes left out, does no harm.
fn survives_garbage<M: Coded>(message: &M, body: &[u8], at: prop::sample::Index, byte: u8) {
    let whole = bytes_of(std::slice::from_ref(message));
    let mut changed = whole.to_vec();
    changed[at.index(whole.len())] = byte;
    let _ = decode::<M>(&changed);
    let kind = whole[LENGTH_BYTES];
    let _ = decode::<M>(&raw_frame(kind, body));
    let _ = decode::<M>(&raw_frame(kind, &whole[HEADER_BYTES..][..at.index(whole.len() - HEADER_BYTES + 1)]));
    let _ = decode::<M>(body);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn requests_come_back(messages in vec(request(), 1..6), piece in 1_usize..200, part in 1_usize..100) {
        comes_back(&messages, piece, part)?;
    }

    #[test]
    fn replies_come_back(messages in vec(reply(), 1..6), piece in 1_usize..200, part in 1_usize..100) {
        comes_back(&messages, piece, part)?;
    }

    #[test]
    fn deliveries_come_back(messages in vec(delivery(), 1..6), piece in 1_usize..200, part in 1_usize..100) {
        comes_back(&messages, piece, part)?;
    }

    #[test]
    fn acks_come_back(counters in vec(any::<(u64, u64)>(), 1..6), piece in 1_usize..200, part in 1_usize..100) {
        let messages: Vec<Ack> = counters.into_iter().map(|(received, done)| Ack { received, done }).collect();
        comes_back(&messages, piece, part)?;
    }

    #[test]
    fn a_cut_stream_gives_whole_messages_only(
        requests in vec(request(), 1..4), replies in vec(reply(), 1..4), deliveries in vec(delivery(), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        survives_a_cut(&requests, cut)?;
        survives_a_cut(&replies, cut)?;
        survives_a_cut(&deliveries, cut)?;
    }

    #[test]
    fn garbage_never_panics(
        request in request(), reply in reply(), delivery in delivery(), body in vec(any::<u8>(), 0..300),
        at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        survives_garbage(&request, &body, at, byte);
        survives_garbage(&reply, &body, at, byte);
        survives_garbage(&delivery, &body, at, byte);
        survives_garbage(&Ack { received: 300, done: 2 }, &body, at, byte);
    }

    /// Entries are written by hand, as bincode would.
    #[test]
    fn entries_are_what_bincode_writes(
        mut entry in entry(), targets in vec(target(), 0..60), numbers in any::<[u64; 3]>(), shifts in any::<[u8; 5]>(),
    ) {
        // Numbers of every length.
        let [seq, lineage, time] = numbers;
        (entry.seq, entry.targets) = (seq >> (shifts[0] % 64), targets);
        entry.targets.iter_mut().for_each(|target| target.handle.0 >>= shifts[1] % 32);
        entry.id.lineage.0 = lineage >> (shifts[2] % 64);
        entry.id.time = time >> (shifts[3] % 64);
        entry.id.k >>= shifts[4] % 32;

        let head = encode_to_vec((entry.seq, &entry.targets, entry.id, entry.operation), standard()).unwrap();
        let tail = (&entry.tenant, &entry.collection, &entry.document_id, &entry.document);
        let fields = [head, encode_to_vec(tail, standard()).unwrap()].concat();
        let body = [&(fields.len() as u32).to_le_bytes()[..], &fields].concat();
        let written = bytes_of(&[Delivery::Events(vec![entry.clone()].into())]);
        prop_assert_eq!(&written[HEADER_BYTES..], &body[..]);

        let mut once = Vec::new();
        let shared = EventBody {
            id: entry.id,
            operation: entry.operation,
            tenant: entry.tenant.as_bytes(),
            collection: entry.collection.as_bytes(),
            document_id: &entry.document_id,
            document: &entry.document,
        };
        shared.encode(&mut once);
        prop_assert!(once.len() <= shared.encoded_bytes_max());
        let mut copied = BytesMut::new();
        let mut events = begin_events(&mut copied);
        events.push_encoded(entry.seq, &entry.targets, &once);
        events.finish();
        prop_assert_eq!(copied, written);
    }

    /// Fields are read by hand; what bincode derives from the types says in which order they were written.
    #[test]
    fn bodies_are_what_bincode_derives(
        item in item(), keys in vec(key(), 0..4), results in vec(result(), 0..4), bound in delivery(), welcome in reply(),
    ) {
        let derived = |id: u64, rest: Vec<u8>| [encode_to_vec(id, standard()).unwrap(), rest].concat();
        let subscribe = Request::Subscribe { request: RequestId(300), items: vec![item.clone()] };
        prop_assert_eq!(
            &bytes_of(&[subscribe])[HEADER_BYTES..],
            derived(300, encode_to_vec(vec![item], standard()).unwrap())
        );
        let unsubscribe = Request::Unsubscribe { request: RequestId(1), keys: keys.clone() };
        prop_assert_eq!(&bytes_of(&[unsubscribe])[HEADER_BYTES..], derived(1, encode_to_vec(keys, standard()).unwrap()));
        let subscribed = Reply::Subscribed { request: RequestId(1), results: results.clone() };
        prop_assert_eq!(
            &bytes_of(&[subscribed])[HEADER_BYTES..],
            derived(1, encode_to_vec(results, standard()).unwrap())
        );
        if let Delivery::Bound(inner) = &bound {
            prop_assert_eq!(&bytes_of(std::slice::from_ref(&bound))[HEADER_BYTES..], encode_to_vec(inner, standard()).unwrap());
        }
        if let Reply::Welcome(inner) = &welcome {
            prop_assert_eq!(&bytes_of(std::slice::from_ref(&welcome))[HEADER_BYTES..], encode_to_vec(inner, standard()).unwrap());
        }
    }
}

#[test]
fn a_later_versions_fields_at_the_end_are_ignored() {
    let ping = Request::Ping { nonce: 7 };
    let mut body = bytes_of(std::slice::from_ref(&ping))[HEADER_BYTES..].to_vec();
    body.extend_from_slice(b"later");
    assert_eq!(decode::<Request>(&raw_frame(super::request::PING, &body)), Ok(vec![ping]));
}

#[test]
fn a_later_versions_fields_of_an_entry_are_ignored() {
    let entry = EventEntry {
        seq: 1,
        id: Position { backend: BackendId(1), lineage: Lineage(2), time: 3, k: 4 },
        operation: Operation::Insert,
        tenant: "t".into(),
        collection: "c".into(),
        document_id: vec![2, 0],
        targets: vec![Target { handle: Handle(5), transition: Transition::Enter, certainty: Certainty::Matched }],
        document: vec![5, 0, 0, 0, 0],
    };
    let whole = bytes_of(&[Delivery::Events(vec![entry.clone()].into())]);
    let mut longer = whole[HEADER_BYTES + 4..].to_vec();
    longer.push(0xff);
    let mut body = (longer.len() as u32).to_le_bytes().to_vec();
    body.extend_from_slice(&longer);
    body.extend_from_slice(&whole[HEADER_BYTES..]);
    let back = decode::<Delivery>(&raw_frame(super::delivery::EVENTS, &body));
    assert_eq!(back, Ok(vec![Delivery::Events(vec![entry.clone(), entry].into())]));
}

#[test]
fn types_that_a_server_adds_are_skipped() {
    let pong = Reply::Pong { nonce: 9 };
    let mut bytes = raw_frame(MORE, b"begin of something new");
    bytes.extend(raw_frame(0xee, b"and its end"));
    bytes.extend_from_slice(&bytes_of(std::slice::from_ref(&pong)));
    assert_eq!(decode::<Reply>(&bytes), Ok(vec![pong]));
}

#[test]
fn types_that_a_gateway_invents_are_refused_before_their_body_comes() {
    let bytes = header(0xee, MAX_FRAME_BODY_BYTES);
    assert_eq!(decode::<Request>(&bytes), Err(WireError::UnknownType { kind: 0xee }));
    assert_eq!(decode::<Ack>(&raw_frame(super::request::PING, &[1])), Err(WireError::UnknownType { kind: 5 }));
}

#[test]
fn a_long_body_is_refused_by_its_length_alone() {
    let too_long = header(super::request::PING, MAX_FRAME_BODY_BYTES + 1);
    let error = WireError::FrameTooLarge { len: MAX_FRAME_BODY_BYTES + 1, max: MAX_FRAME_BODY_BYTES };
    assert_eq!(decode::<Request>(&too_long), Err(error.clone()));
    assert_eq!(error.code(), ErrorCode::ProtocolViolation);

    let mut decoder = Decoder::<Request>::new(10);
    decoder.feed(&raw_frame(MORE, &[0; 6]));
    assert_eq!(decoder.next(), Ok(None));
    decoder.feed(&header(super::request::SUBSCRIBE, 5));
    let error = WireError::FrameTooLarge { len: 11, max: 10 };
    assert_eq!(decoder.next(), Err(error.clone()));
    // The first error stays, and nothing more is taken in.
    decoder.feed(&bytes_of(&[Request::Ping { nonce: 1 }]));
    assert_eq!(decoder.next(), Err(error));
    assert!(decoder.piece.is_empty() && decoder.body.is_empty());
}

#[test]
fn a_raised_bound_counts_from_the_next_frame() {
    let hello = Request::Unsubscribe {
        request: RequestId(1),
        keys: vec![SubscriptionKey { tenant: "t".repeat(50), id: "i".into() }],
    };
    let bytes = bytes_of(std::slice::from_ref(&hello));
    let mut decoder = Decoder::<Request>::new(40);
    decoder.set_max_body_bytes(100);
    decoder.feed(&bytes);
    assert_eq!(decoder.next(), Ok(Some(hello)));
}

#[test]
fn a_frame_without_a_type_is_refused() {
    assert!(matches!(decode::<Ack>(&[0, 0, 0, 0]), Err(WireError::Malformed { message: "frame", .. })));
}

#[test]
fn another_version_is_told_as_such() {
    let body = encode_to_vec((2_u16, "whatever", "version 2 has"), standard()).unwrap();
    let error = decode::<Request>(&raw_frame(super::request::HELLO, &body)).unwrap_err();
    assert_eq!(error, WireError::UnsupportedVersion { version: 2, supported: 1 });
    assert_eq!(error.code(), ErrorCode::UnsupportedVersion);
}

#[test]
fn a_count_beyond_the_body_is_refused_without_room_for_it() {
    // A list of 2^40 subscriptions, and a text of 2^40 bytes, in a dozen bytes.
    let huge = encode_to_vec((1_u64, 1_u64 << 40), standard()).unwrap();
    for kind in [super::request::SUBSCRIBE, super::request::UNSUBSCRIBE] {
        let error = decode::<Request>(&raw_frame(kind, &huge)).unwrap_err();
        assert!(error.to_string().contains("a list of 1099511627776 elements is longer than the body"), "{error}");
    }
    let text = encode_to_vec((1_u16, 1_u64 << 40), standard()).unwrap();
    assert!(matches!(decode::<Request>(&raw_frame(super::request::HELLO, &text)), Err(WireError::Malformed { .. })));
}

#[test]
fn two_positions_of_one_backend_are_refused() {
    let position = Position { backend: BackendId(7), lineage: Lineage(1), time: 1, k: 1 };
    let body = encode_to_vec((1_u64, vec![position, position]), standard()).unwrap();
    let error = decode::<Delivery>(&raw_frame(super::delivery::HEARTBEAT, &body)).unwrap_err();
    assert!(error.to_string().contains("two positions of backend 00000007"), "{error}");

    let many: Vec<Position> =
        (0..=crate::MAX_BACKENDS as u32).map(|n| Position { backend: BackendId(n), ..position }).collect();
    let error =
        decode::<Delivery>(&raw_frame(super::delivery::HEARTBEAT, &encode_to_vec((1_u64, many), standard()).unwrap()));
    assert!(error.unwrap_err().to_string().contains("257 backends where 256 are allowed"));
}

#[test]
fn a_body_beyond_one_frame_goes_out_in_several() {
    let entry = EventEntry {
        seq: 1,
        id: Position { backend: BackendId(1), lineage: Lineage(2), time: 3, k: 4 },
        operation: Operation::Insert,
        tenant: "t".into(),
        collection: "c".into(),
        document_id: vec![2, 0],
        targets: Vec::new(),
        document: vec![7; 16 * 1024 * 1024],
    };
    let message = Delivery::Events(vec![entry.clone(), entry.clone(), entry].into());
    let bytes = bytes_of(std::slice::from_ref(&message));
    assert_eq!(bytes[LENGTH_BYTES], MORE);
    assert_eq!(bytes[HEADER_BYTES + MAX_FRAME_BODY_BYTES + LENGTH_BYTES], super::delivery::EVENTS);
    assert_eq!(decode::<Delivery>(&bytes), Ok(vec![message]));
}

#[test]
fn a_batch_without_entries_or_given_up_leaves_no_trace() {
    let mut buffer = bytes_of(&[Ack { received: 1, done: 1 }]);
    let before = buffer.clone();
    assert_eq!(begin_events(&mut buffer).finish(), 0);
    assert_eq!(buffer, before);
    encode_delivery(&Delivery::Events(Events::default()), &mut buffer);
    assert_eq!(buffer, before);

    let mut events = begin_events(&mut buffer);
    events.push(&EventEntryRef {
        seq: 1,
        id: Position { backend: BackendId(1), lineage: Lineage(2), time: 3, k: 4 },
        operation: Operation::Delete,
        tenant: "t",
        collection: "c",
        document_id: &[],
        targets: &[],
        document: &[],
    });
    assert_eq!(events.entries(), 1);
    assert!(events.body_bytes() > 4);
    drop(events);
    assert_eq!(buffer, before);
}

#[test]
fn codes_stand_at_their_numbers() {
    for (place, code) in ErrorCode::ALL.into_iter().enumerate() {
        assert_eq!(code as usize, place);
        assert_eq!(ErrorCode::from_quic_code(u64::from(code.quic_code())), Some(code));
        assert_eq!(encode_to_vec(code, standard()).unwrap(), [place as u8]);
    }
    assert_eq!(ErrorCode::from_quic_code(0), None);
    assert_eq!(ErrorCode::from_quic_code(u64::MAX), None);
}
