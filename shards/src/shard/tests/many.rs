//! One change that very many subscriptions match, and changes that come many at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::BytesMut;
use predicate::{Predicate, Source, stored_string_id};
use wire::*;

use super::world::{item, position, positions};
use crate::*;

/// Subscriptions of each Gateway.
const EACH: usize = 50_000;
const GATEWAYS: u64 = 2;
const TENANT: &str = "t";

struct Reader {
    decoder: Decoder<Delivery>,
    /// How often each handle was named.
    named: BTreeMap<Handle, u32>,
    entries: u64,
    documents: Vec<usize>,
}

fn reader() -> Reader {
    Reader { decoder: Decoder::new(MAX_BODY_BYTES), named: BTreeMap::new(), entries: 0, documents: Vec::new() }
}

impl Reader {
    /// Reads all that waits, in pieces of about this size.
    fn pump(&mut self, shard: &mut Shard, connection: ConnectionId, bytes_max: usize) {
        let mut buffer = BytesMut::new();
        while shard.fill(connection, Millis(0), bytes_max, &mut buffer) > 0 {
            self.decoder.feed(&buffer.split());
            while let Some(message) = self.decoder.next().expect("what a shard writes can be read") {
                match message {
                    Delivery::Events(entries) => {
                        assert!(entries.len() <= 100, "{} entries in one message", entries.len());
                        for entry in entries.iter() {
                            self.entries += 1;
                            assert_eq!(entry.seq, self.entries);
                            assert!(entry.targets.len() <= 1_000, "{} targets of one entry", entry.targets.len());
                            self.documents.push(entry.document.len());
                            entry.targets.iter().for_each(|it| *self.named.entry(it.handle).or_default() += 1);
                        }
                    }
                    Delivery::Gap { seq, handles, .. } => {
                        self.entries += 1;
                        assert_eq!(seq, self.entries);
                        assert!(handles.len() <= 1_000, "{} handles of one gap", handles.len());
                        handles.into_iter().for_each(|handle| *self.named.entry(handle).or_default() += 1);
                    }
                    Delivery::Bound(_) | Delivery::Heartbeat { .. } => {}
                    other => panic!("nothing should go wrong here: {other:?}"),
                }
            }
        }
    }

    fn ack(&mut self, shard: &mut Shard, connection: ConnectionId) {
        let ack = Ack { received: self.entries, done: self.entries };
        shard.handle(Input::Ack { connection, ack }, Millis(0), &mut Vec::new());
    }
}

/// A shard whose Gateways have so many subscriptions each, which `item` names. They are bound.
fn shard_of(
    each: usize,
    change: impl FnOnce(&mut ShardConfig),
    item: impl Fn(usize) -> SubscribeItem,
) -> (Shard, Vec<(ConnectionId, Reader)>) {
    let shards = vec![ShardAddress { partition: 0, address: "127.0.0.1:7400".into() }];
    let mut config = ShardConfig::new(0, SlotTable { shards: 1 }, shards, Epoch(1));
    config.mapping = Arc::new(predicate::Mapping::Plain);
    config.subscribe_items_max = each;
    // All that is asked for is done at once.
    config.slice_units = u32::MAX;
    change(&mut config);
    let mapping = config.mapping.clone();
    let mut shard = Shard::new(config, Millis(0));
    let mut out = Vec::new();
    for gateway in 1..=GATEWAYS {
        let connection = ConnectionId(gateway);
        shard.handle(
            Input::Hello { connection, gateway: format!("g{gateway}"), can_verify: true },
            Millis(0),
            &mut out,
        );
        let items = (0..each).map(&item).collect();
        let request = Request::Subscribe { request: RequestId(1), items };
        shard.handle(Input::Request { connection, request }, Millis(0), &mut out);
        let asked: Vec<Output> = std::mem::take(&mut out);
        for output in asked {
            if let Output::Admit { ticket, items, .. } = output {
                let compile = |item: &SubscribeItem| {
                    let source = Source { filters: &item.filters, expr: &item.expr };
                    Ok(Admission { predicate: Arc::new(Predicate::compile(source, &mapping).unwrap()) })
                };
                let results = items.iter().map(compile).collect();
                shard.handle(Input::Admitted { ticket, results }, Millis(0), &mut out);
            }
        }
        let request = Request::SyncDone { request: RequestId(2) };
        shard.handle(Input::Request { connection, request }, Millis(0), &mut out);
    }
    let version = shard.take_filter().expect("subscriptions have come").version;
    let seen = FromIngest::FilterSeen { version, positions: positions(0) };
    shard.handle(Input::Ingest(seen), Millis(0), &mut out);
    while shard.work(Millis(0), &mut out) {}
    let mut readers: Vec<(ConnectionId, Reader)> = (1..=GATEWAYS).map(|id| (ConnectionId(id), reader())).collect();
    for (connection, reader) in &mut readers {
        reader.pump(&mut shard, *connection, 1 << 20);
    }
    assert_eq!(shard.stats().subscriptions_pending, 0);
    (shard, readers)
}

fn insert(time: u64, document: &bson::RawDocumentBuf) -> FromIngest {
    FromIngest::Change(Arc::new(Change::copied(NewChange {
        position: position(time),
        operation: Operation::Insert,
        key: stored_string_id("d").into(),
        document_id: None,
        before: None,
        after: Some(Image::new(TENANT, "c", document.as_bytes())),
        bare: None,
    })))
}

#[test]
fn a_change_that_all_match_is_one_entry_and_reaches_each_once() {
    let (mut shard, mut readers) = shard_of(EACH, |_| {}, |i| item(&format!("s{i}"), ""));
    let large = bson::rawdoc! { "_id": "d", "text": "x".repeat(5_000) };
    let before = shard.stats();
    shard.ingest([insert(1, &large)], Millis(0), &mut Vec::new());
    let stats = shard.stats();
    assert_eq!(stats.log_events, 1);
    assert_eq!(stats.deliveries - before.deliveries, GATEWAYS * EACH as u64);
    let bytes_each = stats.log_bytes as usize / (GATEWAYS as usize * EACH);
    assert!(bytes_each <= 16, "{bytes_each} bytes of the log for each that matches");
    assert_eq!(shard.settled().get(position(1).backend), Some(&position(0)));

    for (connection, reader) in &mut readers {
        reader.pump(&mut shard, *connection, 10_000);
        assert_eq!(reader.named.len(), EACH);
        assert!(reader.named.values().all(|times| *times == 1), "each handle is named once");
        assert_eq!(reader.entries, EACH as u64 / 1_000);
        assert!(reader.documents.iter().all(|bytes| *bytes == large.as_bytes().len()));
        reader.ack(&mut shard, *connection);
    }
    assert_eq!(shard.settled().get(position(1).backend), Some(&position(1)));
    assert_eq!((shard.stats().log_unsettled, shard.stats().acked), (0, GATEWAYS * EACH as u64));
    assert_eq!(shard.stats().resyncs.total(), 0);
    shard.check_invariants();

    let gap =
        Gap { position: position(2), scopes: [Scope::Everything].into_iter().collect(), reason: GapReason::Oversize };
    shard.ingest([FromIngest::Gap(Arc::new(gap))], Millis(0), &mut Vec::new());
    for (connection, reader) in &mut readers {
        reader.pump(&mut shard, *connection, 10_000);
        assert!(reader.named.values().all(|times| *times == 2), "each handle is named once");
        reader.ack(&mut shard, *connection);
    }
    assert_eq!(shard.settled().get(position(1).backend), Some(&position(2)));
}

#[test]
fn what_is_half_sent_is_owed_in_the_next_session() {
    const EACH: usize = 5_000;
    let (mut shard, mut readers) = shard_of(EACH, |_| {}, |i| item(&format!("s{i}"), ""));
    shard.ingest([insert(1, &bson::rawdoc! { "_id": "d" })], Millis(0), &mut Vec::new());
    let (connection, reader) = &mut readers[0];
    let mut buffer = BytesMut::new();
    shard.fill(*connection, Millis(0), 100, &mut buffer);
    reader.decoder.feed(&buffer);
    let Some(Delivery::Events(entries)) = reader.decoder.next().unwrap() else { panic!("an event was sent") };
    assert_eq!((entries.len(), entries.targets(0).len()), (1, 1_000));
    shard.check_invariants();
    let ack = Ack { received: 1, done: 1 };
    shard.handle(Input::Ack { connection: *connection, ack }, Millis(0), &mut Vec::new());
    shard.check_invariants();
    shard.handle(Input::Disconnected { connection: *connection }, Millis(0), &mut Vec::new());
    shard.check_invariants();
    assert_eq!(shard.settled().get(position(1).backend), Some(&position(0)));

    let connection = ConnectionId(9);
    let mut out = Vec::new();
    shard.handle(Input::Hello { connection, gateway: "g1".into(), can_verify: true }, Millis(0), &mut out);
    let items = (0..EACH).map(|i| item(&format!("s{i}"), "")).collect();
    shard.handle(
        Input::Request { connection, request: Request::Subscribe { request: RequestId(1), items } },
        Millis(0),
        &mut out,
    );
    let mut again = reader_of_new_session();
    again.pump(&mut shard, connection, 100);
    assert_eq!(again.named.len(), EACH - 1_000, "those that were done are not told again");
    assert!(again.named.values().all(|times| *times == 1));
    again.ack(&mut shard, connection);
    let (connection, reader) = &mut readers[1];
    reader.pump(&mut shard, *connection, 1 << 20);
    reader.ack(&mut shard, *connection);
    assert_eq!(shard.settled().get(position(1).backend), Some(&position(1)));
    shard.check_invariants();
}

fn reader_of_new_session() -> Reader {
    reader()
}

#[test]
fn a_bare_delete_that_concerns_many_collections_names_each() {
    const EACH: usize = 2_500;
    let by_id = r#"[{"field":"_id","op":"==","value":"d"}]"#;
    let of =
        |i: usize| SubscribeItem { collection: format!("c{i}"), filters: by_id.into(), ..item(&format!("s{i}"), "") };
    let (mut shard, mut readers) = shard_of(EACH, |config| config.bare_deletes = BareDeletes::Known, of);
    let change = Change::copied(NewChange {
        position: position(1),
        operation: Operation::Delete,
        key: stored_string_id("d").into(),
        document_id: None,
        before: None,
        after: None,
        bare: Some(Bare { tenant: Some(TENANT), collection: None }),
    });
    shard.ingest([FromIngest::Change(Arc::new(change))], Millis(0), &mut Vec::new());
    shard.check_invariants();
    for (connection, reader) in &mut readers {
        reader.pump(&mut shard, *connection, 1 << 20);
        assert_eq!((reader.entries, reader.named.len()), (EACH as u64, EACH));
        reader.ack(&mut shard, *connection);
    }
    assert_eq!(shard.settled().get(position(1).backend), Some(&position(1)));
}

/// Whether items come alone or together changes nothing that anybody sees.
#[test]
fn many_at_a_time_are_as_many_one_by_one() {
    let value = |i: usize| ["", "a", "b", "c"][i % 4];
    let items = || {
        let mut items: Vec<FromIngest> = Vec::new();
        for time in 1..=300 {
            let a = ["a", "b", "x"][time % 3];
            let time = time as u64;
            // Some come twice, near each other and far apart.
            for time in [time, time.saturating_sub(time % 7).max(1)] {
                items.push(insert(time, &bson::rawdoc! { "_id": "d", "a": a }));
            }
            if time.is_multiple_of(50) {
                items.push(FromIngest::Progress(position(time)));
            }
        }
        items
    };
    let run = |together: usize| {
        let (mut shard, readers) =
            shard_of(40, |config| config.log_events_max = 100, |i| item(&format!("s{i}"), value(i)));
        let mut sent = Vec::new();
        let mut items = items().into_iter().peekable();
        while items.peek().is_some() {
            let mut out = Vec::new();
            shard.ingest(items.by_ref().take(together), Millis(0), &mut out);
        }
        shard.check_invariants();
        for (connection, _) in &readers {
            let mut buffer = BytesMut::new();
            while shard.fill(*connection, Millis(0), 1 << 20, &mut buffer) > 0 {}
            sent.push(buffer);
        }
        (sent, shard.stats(), shard.settled())
    };
    let one_by_one = run(1);
    let (_, stats, _) = &one_by_one;
    assert!(stats.events_repeated > 200 && stats.evictions > 0 && stats.subscriptions_behind > 0, "{stats:?}");
    for together in [2, 31, 32, 33, 1_000] {
        let (sent, stats, settled) = run(together);
        assert_eq!((&sent, &settled), (&one_by_one.0, &one_by_one.2), "{together} together");
        // Repeated ones are counted where they are found out, and matched only if that is late.
        assert_eq!(ShardStats { candidates: 0, ..stats }, ShardStats { candidates: 0, ..one_by_one.1 });
    }
}
