use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use bson::{Document, doc};
use wire::Position;

use super::*;

mod history;

const NO_WAIT: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);

fn put(id: &str, data: Document) -> DocumentWrite {
    DocumentWrite::Put { tenant: "acme".into(), collection: "rooms/r1/messages".into(), id: id.into(), data }
}

fn soft_delete(id: &str) -> DocumentWrite {
    DocumentWrite::SoftDelete { tenant: "acme".into(), collection: "rooms/r1/messages".into(), id: id.into() }
}

fn delete(id: &str) -> DocumentWrite {
    DocumentWrite::Delete { tenant: "acme".into(), collection: "rooms/r1/messages".into(), id: id.into() }
}

/// A store whose clock stands at 1000 ms; not synced, since no test pulls the plug.
fn open(folder: &Path) -> Arc<EmbeddedStore> {
    open_with(folder, Retention::default(), Clock::new(|| 1_000))
}

fn open_with(folder: &Path, retention: Retention, clock: Clock) -> Arc<EmbeddedStore> {
    EmbeddedStore::open(folder, StoreOptions { sync: false, retention, clock, ..StoreOptions::default() })
        .expect("it opens")
}

fn decoded(event: &[u8]) -> Document {
    bson::deserialize_from_slice(event).expect("an event is BSON")
}

fn offset_of(event: &Document) -> u64 {
    let time = event.get_timestamp("clusterTime").expect("every event has its time");
    (u64::from(time.time) << 32) | u64::from(time.increment)
}

async fn stream(store: &Arc<EmbeddedStore>, start: Start) -> Box<dyn SourceStream> {
    let source = EmbeddedSource::new("test", store.clone());
    source.open(start, Purpose::Live).await.expect("it opens").stream
}

async fn drain(stream: &mut dyn SourceStream) -> Vec<Document> {
    let mut events = Vec::new();
    loop {
        let batch = stream.next(NO_WAIT).await.expect("it reads");
        if batch.events.is_empty() {
            return events;
        }
        events.extend(batch.events.iter().map(|event| decoded(event)));
    }
}

async fn offsets(store: &Arc<EmbeddedStore>, start: Start) -> Vec<u64> {
    drain(&mut *stream(store, start).await).await.iter().map(offset_of).collect()
}

fn after(store: &Arc<EmbeddedStore>, offset: u64, token: ResumeToken) -> Start {
    let position = Position { backend: BackendId::of_name("test"), lineage: store.lineage(), time: offset, k: 1 };
    Start::After { position, token }
}

#[tokio::test]
async fn a_document_lives_through_every_event() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let writes = vec![
        put("m1", doc! { "text": "hello", "n": 1 }),
        put("m1", doc! { "text": "again", "id": "m1" }),
        DocumentWrite::Merge {
            tenant: "acme".into(),
            collection: "rooms/r1/messages".into(),
            id: "m1".into(),
            set: doc! { "n": 2 },
            unset: vec!["text".into()],
        },
        soft_delete("m1"),
        soft_delete("m1"),
        put("m1", doc! { "text": "back" }),
        delete("m1"),
        delete("m1"),
        put("m1", doc! {}),
    ];
    let receipt = store.write(writes).await.expect("it writes");
    let expected = [Some(1), Some(2), Some(3), Some(4), None, Some(5), Some(6), None, Some(7)];
    assert_eq!(receipt.offsets, expected);
    assert_eq!((receipt.first_offset, receipt.last_offset), (Some(1), Some(7)));
    assert_eq!(store.durable_upto(), 7);

    let events = drain(&mut *stream(&store, Start::At { time: 0 }).await).await;
    let operations: Vec<&str> = events.iter().map(|event| event.get_str("operationType").expect("told")).collect();
    assert_eq!(operations, ["insert", "replace", "update", "update", "replace", "delete", "insert"]);
    let offsets: Vec<u64> = events.iter().map(offset_of).collect();
    assert_eq!(offsets, [1, 2, 3, 4, 5, 6, 7]);

    let id = predicate::mapping::Nested::storage_id("acme", "rooms/r1/messages", "m1");
    let system = |version: i64| {
        doc! {
            "_id": &id, "tenant_id": "acme", "collection": "rooms/r1/messages", "fullpath": "rooms/r1/messages/m1",
            "parent": "rooms/r1", "version": version, "created_at": 1_000_i64, "updated_at": 1_000_i64,
        }
    };
    let with = |mut document: Document, rest: Document| {
        document.extend(rest);
        document
    };
    let first = with(system(1), doc! { "data": { "id": "m1", "text": "hello", "n": 1 } });
    let second = with(system(2), doc! { "data": { "id": "m1", "text": "again" } });
    let third = with(system(3), doc! { "data": { "id": "m1", "n": 2 } });
    let deleted = with(system(4), doc! { "deleted": true, "data": { "id": "m1", "n": 2 } });
    let back = with(system(5), doc! { "data": { "id": "m1", "text": "back" } });
    let anew = with(system(1), doc! { "data": { "id": "m1" } });
    let images: Vec<(Option<&Document>, Option<&Document>)> = events
        .iter()
        .map(|event| (event.get_document("fullDocumentBeforeChange").ok(), event.get_document("fullDocument").ok()))
        .collect();
    let expected = [
        (None, Some(&first)),
        (Some(&first), Some(&second)),
        (Some(&second), Some(&third)),
        (Some(&third), Some(&deleted)),
        (Some(&deleted), Some(&back)),
        (Some(&back), None),
        (None, Some(&anew)),
    ];
    assert_eq!(images, expected);
    assert!(events.iter().all(|event| event.get_document("documentKey").ok() == Some(&doc! { "_id": &id })));

    let merge = events[2].get_document("updateDescription").expect("an update is described");
    assert_eq!(
        merge.get_document("updatedFields").ok(),
        Some(&doc! { "data.n": 2, "updated_at": 1_000_i64, "version": 3_i64 })
    );
    assert_eq!(merge.get_array("removedFields").ok(), Some(&vec!["data.text".into()]));
    let soft = events[3].get_document("updateDescription").expect("an update is described");
    assert_eq!(
        soft.get_document("updatedFields").ok(),
        Some(&doc! { "deleted": true, "updated_at": 1_000_i64, "version": 4_i64 })
    );

    let stored = store.get("acme", "rooms/r1/messages", "m1").expect("it reads").expect("it is there");
    assert_eq!(Document::try_from(stored).expect("a document is BSON"), anew);
    assert_eq!(store.scan("acme", "rooms/r1/messages", 10).expect("it reads").len(), 1);
    assert_eq!(store.scan("acme", "rooms", 10).expect("it reads").len(), 0);
    assert_eq!(store.get("other", "rooms/r1/messages", "m1").expect("it reads"), None);
}

#[tokio::test]
async fn a_recreated_document_starts_its_life_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let now = Arc::new(AtomicI64::new(10));
    let clock = now.clone();
    let store = open_with(folder.path(), Retention::default(), Clock::new(move || clock.load(Ordering::Relaxed)));
    let mut times = Vec::new();
    for (at, write) in
        [(10, put("a", doc! {})), (20, put("a", doc! {})), (30, soft_delete("a")), (40, put("a", doc! {}))]
    {
        now.store(at, Ordering::Relaxed);
        store.write(vec![write]).await.expect("it writes");
        let document = store.get("acme", "rooms/r1/messages", "a").expect("it reads").expect("it is there");
        times.push(["version", "created_at", "updated_at"].map(|field| document.get_i64(field).expect("told")));
    }
    assert_eq!(times, [[1, 10, 10], [2, 10, 20], [3, 10, 30], [4, 40, 40]]);
}

#[tokio::test]
async fn every_token_gives_exactly_the_rest() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    for n in 0..20 {
        store.write(vec![put(&format!("d{n}"), doc! { "n": n })]).await.expect("it writes");
    }
    let events = drain(&mut *stream(&store, Start::At { time: 1 }).await).await;
    assert_eq!(events.len(), 20);
    for event in &events {
        let offset = offset_of(event);
        let token =
            bson::serialize_to_vec(event.get_document("_id").expect("every event has a token")).expect("it encodes");
        let rest = offsets(&store, after(&store, offset, ResumeToken(token.into()))).await;
        assert_eq!(rest, (offset + 1..=20).collect::<Vec<_>>());
        assert_eq!(offsets(&store, Start::At { time: offset }).await, (offset..=20).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn now_is_after_all_that_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    store.write(vec![put("a", doc! {})]).await.expect("it writes");
    let source = EmbeddedSource::new("test", store.clone());
    let mut opened = source.open(Start::Now, Purpose::Live).await.expect("it opens");
    assert_eq!(opened.start, (2, 0));
    let idle = opened.stream.next(NO_WAIT).await.expect("it reads");
    assert!(idle.events.is_empty());
    store.write(vec![put("b", doc! {})]).await.expect("it writes");
    let batch = opened.stream.next(LONG).await.expect("it reads");
    assert_eq!(batch.events.iter().map(|event| offset_of(&decoded(event))).collect::<Vec<_>>(), [2]);

    // The token of an idle batch stands where the stream did.
    let token = idle.resume.expect("an idle batch has a token");
    assert_eq!(offsets(&store, after(&store, 2, token)).await, [2]);
}

#[tokio::test]
async fn a_waiting_stream_is_woken_by_a_write() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let (mut one, mut two) = (stream(&store, Start::Now).await, stream(&store, Start::Now).await);
    let write = async {
        tokio::task::yield_now().await;
        store.write(vec![put("a", doc! {})]).await.expect("it writes");
    };
    let (one, two, ()) = tokio::join!(one.next(LONG), two.next(LONG), write);
    assert_eq!(one.expect("it reads").events.len(), 1);
    assert_eq!(two.expect("it reads").events.len(), 1);
}

#[tokio::test]
async fn a_long_backlog_comes_in_bounded_batches() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let writes = (0..10_000).map(|n| put(&format!("d{n}"), doc! { "n": n })).collect();
    store.write(writes).await.expect("it writes");
    let large = "x".repeat(700 << 10);
    store
        .write(vec![put("large", doc! { "text": &large }), put("larger", doc! { "text": &large })])
        .await
        .expect("it writes");
    let mut stream = stream(&store, Start::At { time: 1 }).await;
    let mut sizes = Vec::new();
    let mut next = 1;
    loop {
        let batch = stream.next(NO_WAIT).await.expect("it reads");
        if batch.events.is_empty() {
            break;
        }
        for event in &batch.events {
            assert_eq!(offset_of(&decoded(event)), next);
            next += 1;
        }
        sizes.push(batch.events.len());
    }
    assert_eq!(next, 10_003);
    assert!(sizes.iter().all(|size| *size <= BATCH_EVENTS_MAX), "{sizes:?}");
    assert_eq!(sizes.last(), Some(&1), "two of 700 KiB don't fit into one batch: {sizes:?}");
}

#[tokio::test]
async fn tokens_of_others_are_refused() {
    let (folder, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (store, other) = (open(folder.path()), open(other.path()));
    assert_ne!(store.lineage(), other.lineage());
    store.write(vec![put("a", doc! {})]).await.expect("it writes");
    other.write(vec![put("a", doc! {})]).await.expect("it writes");
    let source = EmbeddedSource::new("test", store.clone());
    let foreign = ResumeToken(token(other.shared().id(), 1).into_bytes().into());
    let error = source.open(after(&store, 1, foreign), Purpose::Live).await.err().expect("refused");
    assert!(matches!(error, SourceError::BadToken(_)), "{error}");
    for garbage in [&b"garbage"[..], &[5, 0, 0, 0, 0], &bson::rawdoc! { "_data": "zz" }.into_bytes()] {
        let garbage = ResumeToken(Bytes::copy_from_slice(garbage));
        let error = source.open(after(&store, 1, garbage), Purpose::Live).await.err().expect("refused");
        assert!(matches!(error, SourceError::BadToken(_)), "{error}");
    }
    // The log's end was lost, as with an unsynced folder when the machine goes down.
    let future = ResumeToken(token(store.shared().id(), 99).into_bytes().into());
    let error = source.open(after(&store, 99, future), Purpose::Live).await.err().expect("refused");
    assert!(matches!(error, SourceError::HistoryLost(_)), "{error}");
}

#[tokio::test]
async fn bad_writes_are_refused_whole_and_say_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let at = |tenant: &str, collection: &str, id: &str| DocumentWrite::Delete {
        tenant: tenant.into(),
        collection: collection.into(),
        id: id.into(),
    };
    let cases = [
        (at("", "c", "i"), "tenant"),
        (at("a:b", "c", "i"), "':'"),
        (at("a/b", "c", "i"), "'/'"),
        (at("a", "", "i"), "collection"),
        (at("a", "/c", "i"), "empty segment"),
        (at("a", "c//d", "i"), "empty segment"),
        (at("a", "c\n", "i"), "control"),
        (at("a", "c", ""), "document id"),
        (at("a", "c", "i/j"), "'/'"),
        (at("a", "c", &"i".repeat(ID_BYTES_MAX + 1)), "1 to 1024"),
        (put("i", doc! { "id": "other" }), "`id`"),
        (put("i", doc! { "id": 5 }), "`id`"),
        (put("i", doc! { "a\0b": 5 }), "NUL"),
    ];
    for (write, expect) in cases {
        let error = store.write(vec![put("good", doc! {}), write.clone()]).await.expect_err("refused");
        let text = error.to_string();
        assert!(text.starts_with("write 1: ") && text.contains(expect), "{write:?} gave {text:?}, expected {expect:?}");
    }
    let too_large = put("i", doc! { "text": "x".repeat(DOCUMENT_BYTES_MAX) });
    let error = store.write(vec![too_large]).await.expect_err("refused");
    assert!(matches!(error, WriteError::DocumentTooLarge { index: 0, .. }), "{error}");
    assert_eq!(store.durable_upto(), 0);
    assert_eq!(store.write(Vec::new()).await, Ok(WriteReceipt::default()));

    // Found out only by the writer: the merged document is too large, and the write before it goes with it.
    let half = || "x".repeat(DOCUMENT_BYTES_MAX / 2);
    store.write(vec![put("i", doc! { "a": half() })]).await.expect("it fits");
    let merge = DocumentWrite::Merge {
        tenant: "acme".into(),
        collection: "rooms/r1/messages".into(),
        id: "i".into(),
        set: doc! { "b": half() },
        unset: Vec::new(),
    };
    let error = store.write(vec![put("good", doc! {}), merge]).await.expect_err("refused");
    assert!(matches!(error, WriteError::DocumentTooLarge { index: 1, .. }), "{error}");
    assert_eq!(store.get("acme", "rooms/r1/messages", "good").expect("it reads"), None);
    let receipt = store.write(vec![put("next", doc! {})]).await.expect("it writes");
    assert_eq!(receipt.first_offset, Some(2), "a refused call takes no offset");
}

#[tokio::test]
async fn the_largest_document_can_be_soft_deleted() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    store.write(vec![put("i", doc! { "text": "" })]).await.expect("it writes");
    let empty = store.get("acme", "rooms/r1/messages", "i").expect("it reads").expect("it is there").as_bytes().len();
    let room = DOCUMENT_BYTES_MAX - empty - "deleted".len() - 3;
    // One write is bounded by what it brings along, the document by what it has: the second is the tighter one here.
    let put_of = |bytes: usize| put("i", doc! { "text": "x".repeat(bytes) });
    store.write(vec![put_of(room + 1)]).await.expect_err("one byte too many");
    store.write(vec![put_of(room)]).await.expect("it fits");
    let receipt = store.write(vec![soft_delete("i")]).await.expect("it fits");
    assert_eq!(receipt.offsets, [Some(3)]);
}

#[tokio::test]
async fn many_writers_get_one_dense_order() {
    let folder = tempfile::tempdir().expect("a folder");
    // So small a queue that writers have to wait for each other.
    let options = StoreOptions { sync: false, queue_bytes_max: 4 << 10, ..StoreOptions::default() };
    let store = EmbeddedStore::open(folder.path(), options).expect("it opens");
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut offsets = Vec::new();
                for n in 0..100 {
                    let receipt =
                        store.write(vec![put(&format!("d{}", n % 10), doc! { "writer": writer, "n": n })]).await;
                    let offset = receipt.expect("it writes").first_offset.expect("it changed");
                    assert!(store.durable_upto() >= offset, "answered before it was durable");
                    offsets.push(offset);
                }
                offsets
            })
        })
        .collect();
    let mut all = Vec::new();
    for writer in writers {
        let offsets = writer.await.expect("it ends");
        assert!(offsets.is_sorted());
        all.extend(offsets);
    }
    all.sort_unstable();
    assert_eq!(all, (1..=800).collect::<Vec<_>>());

    // Images chain: each event's image before is the image after of the one before it of the same document.
    let mut last = std::collections::HashMap::new();
    for event in drain(&mut *stream(&store, Start::At { time: 1 }).await).await {
        let key = event.get_document("documentKey").expect("told").to_string();
        let before = event.get_document("fullDocumentBeforeChange").ok().cloned();
        assert_eq!(before, last.get(&key).cloned());
        last.insert(key, event.get_document("fullDocument").expect("told").clone());
    }
}

#[tokio::test]
async fn what_is_over_the_limits_goes_and_stays_gone() {
    let folder = tempfile::tempdir().expect("a folder");
    let retention = Retention { events: 5, ..Retention::default() };
    let store = open_with(folder.path(), retention, Clock::new(|| 1_000));
    let mut behind = stream(&store, Start::At { time: 1 }).await;
    for n in 0..12 {
        store.write(vec![put(&format!("d{n}"), doc! {})]).await.expect("it writes");
    }
    // An answer comes before the trimming that follows it; the end of the thread comes after.
    let error = loop {
        match behind.next(NO_WAIT).await {
            Ok(batch) if batch.events.is_empty() => break None,
            Ok(_) => {}
            Err(error) => break Some(error),
        }
    };
    assert!(matches!(error, None | Some(SourceError::HistoryLost(_))), "{error:?}");
    drop(behind);
    let lineage = store.lineage();
    drop(store);

    let store = open_with(folder.path(), retention, Clock::new(|| 1_000));
    assert_eq!((store.lineage(), store.durable_upto(), store.first_kept()), (lineage, 12, 8));
    assert_eq!(offsets(&store, Start::At { time: 8 }).await, [8, 9, 10, 11, 12]);
    let source = EmbeddedSource::new("test", store.clone());
    let at = |offset| after(&store, offset, ResumeToken(token(store.shared().id(), offset).into_bytes().into()));
    let error = source.open(at(6), Purpose::CatchUp).await.err().expect("refused");
    assert!(matches!(error, SourceError::HistoryLost(_)), "{error}");
    let error = source.open(Start::At { time: 7 }, Purpose::CatchUp).await.err().expect("refused");
    assert!(matches!(error, SourceError::HistoryLost(_)), "{error}");
    assert_eq!(offsets(&store, at(7)).await, [8, 9, 10, 11, 12]);
    assert_eq!(store.scan("acme", "rooms/r1/messages", 100).expect("it reads").len(), 12, "documents stay");
}

#[tokio::test]
async fn a_reader_that_falls_off_the_log_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open_with(folder.path(), Retention { events: 5, ..Retention::default() }, Clock::new(|| 1_000));
    let mut behind = stream(&store, Start::At { time: 1 }).await;
    for n in 0..12 {
        store.write(vec![put(&format!("d{n}"), doc! {})]).await.expect("it writes");
    }
    // Whatever a later call is answered, the trimming after the call before it is done.
    store.write(vec![delete("nothing")]).await.expect("it writes");
    let error = behind.next(NO_WAIT).await.expect_err("its next event is gone");
    assert!(matches!(error, SourceError::HistoryLost(_)), "{error}");
}

#[tokio::test]
async fn age_and_bytes_are_limits_too() {
    for by_age in [true, false] {
        let folder = tempfile::tempdir().expect("a folder");
        let now = Arc::new(AtomicI64::new(0));
        let clock = now.clone();
        let retention = match by_age {
            true => Retention { age: Some(Duration::from_millis(100)), ..Retention::default() },
            false => Retention { bytes: 1_500, ..Retention::default() },
        };
        let store = open_with(folder.path(), retention, Clock::new(move || clock.load(Ordering::Relaxed)));
        for n in 0..10 {
            now.store(n * 40, Ordering::Relaxed);
            store.write(vec![put(&format!("d{n}"), doc! {})]).await.expect("it writes");
        }
        store.write(vec![delete("nothing")]).await.expect("it writes");
        // By age: what was written at 260 ms or later stays, which is from the eighth on. By bytes: three of about 450 bytes each.
        assert_eq!(store.first_kept(), 8, "by age: {by_age}");
        assert_eq!(offsets(&store, Start::At { time: 8 }).await, [8, 9, 10]);
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("it lists") {
        let entry = entry.expect("it lists");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("it has a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("it copies");
        }
    }
}

/// Documents by id, from the log alone.
async fn replayed(store: &Arc<EmbeddedStore>) -> std::collections::BTreeMap<String, Document> {
    let mut documents = std::collections::BTreeMap::new();
    for event in drain(&mut *stream(store, Start::At { time: 1 }).await).await {
        let id = event.get_document("documentKey").and_then(|key| key.get_str("_id")).expect("told").to_owned();
        match event.get_document("fullDocument") {
            Ok(document) => documents.insert(id, document.clone()),
            Err(_) => documents.remove(&id),
        };
    }
    documents
}

#[tokio::test]
async fn a_killed_store_comes_back_with_exactly_what_was_durable() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0_i32.. {
                let writes = vec![put(&format!("d{}", n % 7), doc! { "n": n }), delete(&format!("d{}", (n + 3) % 7))];
                if store.write(writes).await.is_err() {
                    break;
                }
            }
        })
    };
    // Copies of the folder while it is written to are what a kill would leave behind; the store itself is never closed for them.
    for round in 0..5_u64 {
        while store.durable_upto() < (round + 1) * 50 {
            tokio::task::yield_now().await;
        }
        let durable = store.durable_upto();
        let image = tempfile::tempdir().expect("a folder");
        copy(folder.path(), image.path());
        let written = store.durable_upto() + 2;
        let found = open(image.path());
        let upto = found.durable_upto();
        assert!(
            (durable..=written).contains(&upto),
            "{durable} was durable before the copy, {written} at most after; found {upto}"
        );
        assert_eq!(offsets(&found, Start::At { time: 1 }).await, (1..=upto).collect::<Vec<_>>());
        let documents = found.scan("acme", "rooms/r1/messages", 100).expect("it reads").into_iter().map(|document| {
            let document = Document::try_from(document).expect("a document is BSON");
            (document.get_str("_id").expect("it has an id").to_owned(), document)
        });
        assert_eq!(documents.collect::<std::collections::BTreeMap<_, _>>(), replayed(&found).await);
        // It goes on where it ended.
        let receipt = found.write(vec![put("next", doc! {})]).await.expect("it writes");
        assert_eq!(receipt.first_offset, Some(upto + 1));
    }
    writer.abort();
}

#[tokio::test]
async fn a_torn_last_write_is_as_if_it_never_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    for n in 0..10 {
        store
            .write(vec![put(&format!("d{n}"), doc! { "n": n }), put(&format!("e{n}"), doc! { "n": n })])
            .await
            .expect("it writes");
    }
    let whole = tempfile::tempdir().expect("a folder");
    copy(folder.path(), whole.path());
    let journal = std::fs::read_dir(whole.path())
        .expect("it lists")
        .map(|entry| entry.expect("it lists").path())
        .find(|path| path.extension().is_some_and(|extension| extension == "jnl"))
        .expect("it has a journal");
    let name = journal.file_name().expect("a file has a name").to_owned();
    let content = std::fs::read(&journal).expect("it reads");
    let end = content.len() - content.iter().rev().take_while(|byte| **byte == 0).count();
    let mut found = std::collections::BTreeSet::new();
    for cut in [1, 7, 60, 300, 700, 1_500, 3_000] {
        let image = tempfile::tempdir().expect("a folder");
        copy(whole.path(), image.path());
        std::fs::write(image.path().join(&name), &content[..end - cut]).expect("it writes");
        let torn = open(image.path());
        let upto = torn.durable_upto();
        assert!(
            upto < 20 && upto.is_multiple_of(2),
            "a call of two writes is whole or not there: {upto} after a cut of {cut}"
        );
        assert_eq!(offsets(&torn, Start::At { time: 1 }).await, (1..=upto).collect::<Vec<_>>());
        assert_eq!(torn.scan("acme", "rooms/r1/messages", 100).expect("it reads").len() as u64, upto);
        found.insert(upto);
    }
    assert!(found.len() > 1, "the cuts were of different depth: {found:?}");
}

/// Whoever waits for a change learns that none will come.
#[tokio::test]
async fn a_writer_that_panics_is_a_failure_of_the_store() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open_with(folder.path(), Retention::default(), Clock::new(|| panic!("a clock that breaks")));
    let mut waiting = stream(&store, Start::Now).await;
    let (read, written) = tokio::join!(waiting.next(LONG), store.write(vec![put("m1", doc! {})]));
    let Err(SourceError::Fatal(why)) = read else { panic!("{read:?}") };
    assert!(why.contains("its writer thread has panicked"), "{why}");
    assert!(written.is_err());
    let again = store.write(vec![put("m1", doc! {})]).await.unwrap_err().to_string();
    assert!(again.contains("its writer thread has panicked"), "{again}");
}

#[tokio::test]
async fn a_second_process_is_kept_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let error = EmbeddedStore::open(folder.path(), StoreOptions::default()).expect_err("it is in use");
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
    drop(store);
    open(folder.path());
}

#[tokio::test]
async fn a_synced_store_works_alike() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = EmbeddedStore::open(folder.path(), StoreOptions::default()).expect("it opens");
    let receipt = store.write(vec![put("a", doc! {}), put("a", doc! {})]).await.expect("it writes");
    assert_eq!(receipt.offsets, [Some(1), Some(2)]);
    let document = store.get("acme", "rooms/r1/messages", "a").expect("it reads").expect("it is there");
    assert!(document.get_i64("updated_at").expect("told") > 1_600_000_000_000, "the clock is the system's");
}
