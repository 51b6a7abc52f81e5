//! Against a real server: `STREAMER_TEST_MONGODB_URI` names it, and without it these tests say that they were skipped.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use ::mongodb::{Collection, options::UpdateModifications};
use bytes::Bytes;
use wire::Position;

use super::*;
use crate::ingest::source::{Batch, ResumeToken, SourceStream};

const LONG: Duration = Duration::from_secs(30);
/// Longer than the time that the server holds back an empty answer, shorter than anybody wants to wait.
const SHORT: Duration = Duration::from_millis(600);

/// A database of its own for one test.
struct Fixture {
    client: Client,
    database: ::mongodb::Database,
    options: MongoOptions,
}

impl Fixture {
    /// `None`, and a line that says so, where no server is named.
    async fn new(test: &str) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let Ok(uri) = std::env::var("STREAMER_TEST_MONGODB_URI") else {
            println!("skipped: {test}: STREAMER_TEST_MONGODB_URI names no server");
            return None;
        };
        let client = Client::with_uri_str(&uri).await.expect("the server is reached");
        let name = format!("streamer_test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let database = client.database(&name);
        let mut options = MongoOptions::new("test", &uri);
        options.scope = Scope::Database(name);
        options.await_time = Duration::from_millis(100);
        Some(Self { client, database, options })
    }

    fn source(&self) -> MongoSource {
        MongoSource::new(self.options.clone())
    }

    fn collection(&self, name: &str) -> Collection<Document> {
        self.database.collection(name)
    }

    async fn end(self) {
        self.database.drop().await.expect("the test's database is dropped");
    }
}

async fn open(source: &MongoSource, start: Start) -> Opened {
    source.open(start, Purpose::Live).await.expect("it opens")
}

/// The next `count` events.
async fn take(stream: &mut dyn SourceStream, count: usize) -> Vec<Bytes> {
    let mut events = Vec::new();
    while events.len() < count {
        let batch = stream.next(LONG).await.expect("it reads");
        assert!(!batch.events.is_empty(), "{} of {count} events came", events.len());
        assert!(batch.resume.is_some(), "a batch with events has a token");
        events.extend(batch.events);
    }
    assert_eq!(events.len(), count);
    events
}

fn decoded(event: &[u8]) -> Document {
    bson::deserialize_from_slice(event).expect("an event is BSON")
}

fn operation(event: &[u8]) -> String {
    decoded(event).get_str("operationType").expect("told").to_owned()
}

fn token_of(event: &[u8]) -> ResumeToken {
    let token =
        RawDocument::from_bytes(event).and_then(|event| event.get_document("_id")).expect("every event has a token");
    ResumeToken(Bytes::copy_from_slice(token.as_bytes()))
}

fn time_of(event: &[u8]) -> u64 {
    number(decoded(event).get_timestamp("clusterTime").expect("every event has its time"))
}

fn after(event: &[u8]) -> Start {
    after_token(time_of(event), token_of(event))
}

fn after_token(time: u64, token: ResumeToken) -> Start {
    let position = Position { backend: BackendId::of_name("test"), lineage: Lineage(0), time, k: 1 };
    Start::After { position, token }
}

/// What the other tests need again and again: a handful of changes of every kind, two of them in one transaction.
async fn change_things(fixture: &Fixture) {
    let things = fixture.collection("things");
    things.insert_one(doc! { "_id": 1, "n": 1 }).await.expect("insert");
    things.update_one(doc! { "_id": 1 }, doc! { "$set": { "n": 2 } }).await.expect("update");
    things.replace_one(doc! { "_id": 1 }, doc! { "n": 3 }).await.expect("replace");
    let mut session = fixture.client.start_session().await.expect("session");
    session.start_transaction().await.expect("transaction");
    things.insert_one(doc! { "_id": 2 }).session(&mut session).await.expect("insert");
    things.insert_one(doc! { "_id": 3 }).session(&mut session).await.expect("insert");
    session.commit_transaction().await.expect("commit");
    let add: UpdateModifications = doc! { "$inc": { "n": 10 } }.into();
    things.update_many(doc! {}, add).await.expect("update");
    things.delete_one(doc! { "_id": 1 }).await.expect("delete");
    things.drop().await.expect("drop");
}

const CHANGES: [&str; 10] =
    ["insert", "update", "replace", "insert", "insert", "update", "update", "update", "delete", "drop"];

#[tokio::test]
async fn every_change_comes_raw_and_in_order() {
    let Some(fixture) = Fixture::new("every_change_comes_raw_and_in_order").await else { return };
    let mut opened = open(&fixture.source(), Start::Now).await;
    change_things(&fixture).await;
    let events = take(&mut *opened.stream, CHANGES.len()).await;
    let operations: Vec<String> = events.iter().map(|event| operation(event)).collect();
    assert_eq!(operations, CHANGES);
    assert!(events.iter().map(|event| time_of(event)).is_sorted(), "cluster time ran backwards");
    assert!(events.iter().all(|event| time_of(event) >= opened.start.0), "an event is from before the start");
    assert_eq!(time_of(&events[3]), time_of(&events[4]), "a transaction has one time");
    let insert = decoded(&events[0]);
    assert_eq!(insert.get_document("fullDocument").ok(), Some(&doc! { "_id": 1, "n": 1 }));
    assert_eq!(insert.get_document("documentKey").ok(), Some(&doc! { "_id": 1 }));
    assert_eq!(decoded(&events[2]).get_document("fullDocument").ok(), Some(&doc! { "_id": 1, "n": 3 }));
    fixture.end().await;
}

#[tokio::test]
async fn every_token_gives_exactly_the_rest() {
    let Some(fixture) = Fixture::new("every_token_gives_exactly_the_rest").await else { return };
    let source = fixture.source();
    let mut opened = open(&source, Start::Now).await;
    change_things(&fixture).await;
    let events = take(&mut *opened.stream, CHANGES.len()).await;
    let stages: Vec<_> = events.iter().map(|event| (token_of(event), time_of(event))).collect();
    for (done, event) in events.iter().enumerate() {
        let rest = &stages[done + 1..];
        let mut resumed = open(&source, after(event)).await;
        assert_eq!(resumed.start, (time_of(event), 1));
        let again = take(&mut *resumed.stream, rest.len()).await;
        let again: Vec<_> = again.iter().map(|event| (token_of(event), time_of(event))).collect();
        assert_eq!(again, rest);
    }
    // From the start again: exactly all, and what comes at a time comes whole, so that `k` counts the same.
    for time in [opened.start.0, stages[0].1, stages[4].1] {
        let mut again = open(&source, Start::At { time }).await;
        assert_eq!(again.start, (time, 0));
        let rest: Vec<_> = stages.iter().filter(|(_, at)| *at >= time).cloned().collect();
        let again = take(&mut *again.stream, rest.len()).await;
        assert_eq!(again.iter().map(|event| (token_of(event), time_of(event))).collect::<Vec<_>>(), rest);
    }
    fixture.end().await;
}

#[tokio::test]
async fn an_idle_batch_has_a_token_that_goes_on() {
    let Some(fixture) = Fixture::new("an_idle_batch_has_a_token_that_goes_on").await else { return };
    let source = fixture.source();
    let mut opened = open(&source, Start::Now).await;
    let token = loop {
        let idle = opened.stream.next(SHORT).await.expect("it reads");
        assert!(idle.events.is_empty());
        if let Some(token) = idle.resume {
            break token;
        }
    };
    fixture.collection("things").insert_one(doc! { "_id": 1 }).await.expect("insert");
    for start in [after_token(opened.start.0, token), Start::At { time: opened.start.0 }] {
        let mut resumed = open(&source, start).await;
        let events = take(&mut *resumed.stream, 1).await;
        assert_eq!(operation(&events[0]), "insert");
    }
    fixture.end().await;
}

#[tokio::test]
async fn now_leaves_out_what_was_before() {
    let Some(fixture) = Fixture::new("now_leaves_out_what_was_before").await else { return };
    let things = fixture.collection("things");
    things.insert_one(doc! { "_id": "before" }).await.expect("insert");
    let mut opened = open(&fixture.source(), Start::Now).await;
    things.insert_one(doc! { "_id": "after" }).await.expect("insert");
    let events = loop {
        let Batch { mut events, .. } = opened.stream.next(LONG).await.expect("it reads");
        // The last operation before the start may have the start's time, and then comes along.
        events.retain(|event| time_of(event) > opened.start.0);
        if !events.is_empty() {
            break events;
        }
    };
    assert_eq!(decoded(&events[0]).get_document("documentKey").ok(), Some(&doc! { "_id": "after" }));
    fixture.end().await;
}

#[tokio::test]
async fn a_deployment_is_one_stream() {
    let Some(mut fixture) = Fixture::new("a_deployment_is_one_stream").await else { return };
    let names = [format!("{}_a", fixture.database.name()), format!("{}_b", fixture.database.name())];
    fixture.options.scope = Scope::Deployment;
    let namespace = |name: &String, collection: Option<&str>| Namespace {
        database: name.clone(),
        collection: collection.map(str::to_owned),
    };
    fixture.options.namespaces = vec![namespace(&names[0], None), namespace(&names[1], Some("wanted"))];
    let mut opened = open(&fixture.source(), Start::Now).await;
    for (name, collection) in [(0, "any"), (1, "unwanted"), (1, "wanted"), (0, "other")] {
        let collection = fixture.client.database(&names[name]).collection::<Document>(collection);
        collection.insert_one(doc! {}).await.expect("insert");
    }
    // Other tests drop databases meanwhile, which every filter lets pass.
    let mut found = Vec::new();
    while found.len() < 3 {
        for event in opened.stream.next(LONG).await.expect("it reads").events {
            let event = decoded(&event);
            let namespace = event.get_document("ns").cloned().unwrap_or_default();
            if namespace.get_str("db").is_ok_and(|name| names.iter().any(|own| own == name)) {
                found.push(namespace.get_str("coll").expect("an insert has a collection").to_owned());
            }
        }
    }
    assert_eq!(found, ["any", "wanted", "other"]);
    for name in &names {
        fixture.client.database(name).drop().await.expect("drop");
    }
    fixture.end().await;
}

#[tokio::test]
async fn images_come_where_the_collection_stores_them() {
    let Some(fixture) = Fixture::new("images_come_where_the_collection_stores_them").await else { return };
    let images = doc! { "create": "with", "changeStreamPreAndPostImages": { "enabled": true } };
    fixture.database.run_command(images).await.expect("create");
    let mut opened = open(&fixture.source(), Start::Now).await;
    for name in ["with", "without"] {
        let things = fixture.collection(name);
        things.insert_one(doc! { "_id": 1, "n": 1 }).await.expect("insert");
        things.update_one(doc! { "_id": 1 }, doc! { "$set": { "n": 2 } }).await.expect("update");
        things.delete_one(doc! { "_id": 1 }).await.expect("delete");
    }
    let events = take(&mut *opened.stream, 6).await;
    let before: Vec<Option<i32>> = events
        .iter()
        .map(|event| {
            decoded(event).get_document("fullDocumentBeforeChange").ok().and_then(|image| image.get_i32("n").ok())
        })
        .collect();
    assert_eq!(before, [None, Some(1), Some(2), None, None, None]);
    assert!(
        !fixture.source().identity().await.expect("told").before_images,
        "nothing is promised for every collection"
    );
    fixture.end().await;
}

#[tokio::test]
async fn a_stream_ends_with_its_database_and_goes_on_after_it() {
    let Some(fixture) = Fixture::new("a_stream_ends_with_its_database_and_goes_on_after_it").await else { return };
    let source = fixture.source();
    let mut opened = open(&source, Start::Now).await;
    fixture.collection("things").insert_one(doc! { "_id": 1 }).await.expect("insert");
    fixture.database.drop().await.expect("drop");
    let mut events = Vec::new();
    let error = loop {
        match opened.stream.next(LONG).await {
            Ok(batch) => events.extend(batch.events),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SourceError::Ended(_)), "{error}");
    let operations: Vec<String> = events.iter().map(|event| operation(event)).collect();
    assert_eq!(operations, ["insert", "drop", "dropDatabase", "invalidate"]);
    fixture.collection("things").insert_one(doc! { "_id": 2 }).await.expect("insert");
    let mut resumed = open(&source, after(events.last().expect("four came"))).await;
    let rest = take(&mut *resumed.stream, 1).await;
    assert_eq!(operation(&rest[0]), "insert");
    fixture.end().await;
}

#[tokio::test]
async fn a_token_that_is_none_is_refused() {
    let Some(fixture) = Fixture::new("a_token_that_is_none_is_refused").await else { return };
    let source = fixture.source();
    for token in [doc! { "_data": "zz" }, doc! { "_data": "8263" }, doc! { "foo": 1 }] {
        let encoded = bson::serialize_to_vec(&token).expect("it encodes");
        let error = first_error(&source, after_token(1, ResumeToken(encoded.into()))).await;
        assert!(matches!(error, SourceError::BadToken(_)), "{token} gave {error}");
    }
    let error = first_error(&source, after_token(1, ResumeToken(Bytes::from_static(b"garbage")))).await;
    assert!(matches!(error, SourceError::BadToken(_)), "{error}");
}

/// Of opening or of the first read: servers differ.
async fn first_error(source: &MongoSource, start: Start) -> SourceError {
    match source.open(start, Purpose::Live).await {
        Err(error) => error,
        Ok(mut opened) => opened.stream.next(LONG).await.expect_err("it must fail"),
    }
}

/// One test for all that the server is told to fail at: it has only one such switch.
#[tokio::test]
async fn failures_are_told_apart_and_nothing_is_lost() {
    let Some(mut fixture) = Fixture::new("failures_are_told_apart_and_nothing_is_lost").await else { return };
    // Only this test's connections are made to fail.
    let app = fixture.database.name().to_owned();
    let separator = if fixture.options.uri.contains('?') { '&' } else { '?' };
    fixture.options.uri.push_str(&format!("{separator}appName={app}"));
    let source = fixture.source();
    let things = fixture.collection("things");
    let fail = |command: &'static str, how: Document| {
        let mut data = doc! { "failCommands": [command], "appName": &app };
        data.extend(how);
        let command = doc! { "configureFailPoint": "failCommand", "mode": { "times": 1 }, "data": data };
        let admin = fixture.client.database("admin");
        async move { admin.run_command(command).await }
    };
    if let Err(error) = fail("none", doc! { "errorCode": 1 }).await {
        println!("skipped: failures_are_told_apart_and_nothing_is_lost: the server takes no fail points: {error}");
        return;
    }

    for (code, expect) in [(286, "HistoryLost"), (280, "HistoryLost"), (260, "BadToken"), (13, "Fatal")] {
        fail("aggregate", doc! { "errorCode": code }).await.expect("it is armed");
        let error = source.open(Start::Now, Purpose::Live).await.err().expect("it fails");
        assert_eq!(format!("{error:?}").split('(').next(), Some(expect), "{code} gave {error}");
    }

    let mut last = open(&source, Start::Now).await;
    let mut written = 0;
    let mut seen = Vec::new();
    let cursor_not_found = doc! { "errorCode": 43 };
    let killed = doc! { "errorCode": 237 };
    let cut = doc! { "closeConnection": true };
    let oversize = doc! { "errorCode": 10334 };
    for (how, expect) in
        [(cursor_not_found, "Transient"), (killed, "Transient"), (cut, "Transient"), (oversize, "Oversize")]
    {
        things.insert_one(doc! { "_id": written }).await.expect("insert");
        written += 1;
        let events = take(&mut *last.stream, 1).await;
        let token = token_of(&events[0]);
        let time = time_of(&events[0]);
        seen.extend(events);
        fail("getMore", how.clone()).await.expect("it is armed");
        let error = loop {
            match last.stream.next(LONG).await {
                Ok(batch) => assert!(batch.events.is_empty(), "nothing was written"),
                Err(error) => break error,
            }
        };
        assert_eq!(format!("{error:?}").split('(').next(), Some(expect), "{how} gave {error}");
        let again = last.stream.next(SHORT).await.expect_err("an ended stream stays ended");
        assert_eq!(again.to_string(), error.to_string());
        // Written while no stream is open.
        things.insert_one(doc! { "_id": written }).await.expect("insert");
        written += 1;
        last = open(&source, after_token(time, token)).await;
        seen.extend(take(&mut *last.stream, 1).await);
    }
    let ids: Vec<i32> = seen
        .iter()
        .map(|event| decoded(event).get_document("documentKey").and_then(|key| key.get_i32("_id")).expect("told"))
        .collect();
    assert_eq!(ids, (0..written).collect::<Vec<_>>());
    drop(last);
    fixture.end().await;
}

#[tokio::test]
async fn many_events_come_in_batches_without_a_hole() {
    let Some(mut fixture) = Fixture::new("many_events_come_in_batches_without_a_hole").await else { return };
    fixture.options.batch_size = 100;
    let mut opened = open(&fixture.source(), Start::Now).await;
    let documents = (0..3_000).map(|n| doc! { "_id": n });
    fixture.collection("things").insert_many(documents).await.expect("insert");
    let events = take(&mut *opened.stream, 3_000).await;
    for (n, event) in events.iter().enumerate() {
        assert_eq!(decoded(event).get_document("documentKey").ok(), Some(&doc! { "_id": n as i32 }));
    }
    fixture.end().await;
}

#[tokio::test]
async fn a_source_knows_who_it_is() {
    let Some(fixture) = Fixture::new("a_source_knows_who_it_is").await else { return };
    let identity = |options: &MongoOptions| {
        let source = MongoSource::new(options.clone());
        async move { source.identity().await.expect("told") }
    };
    let own = identity(&fixture.options).await;
    assert_eq!(own, identity(&fixture.options).await);
    let mut other = fixture.options.clone();
    other.scope = Scope::Deployment;
    assert_ne!(own.lineage, identity(&other).await.lineage, "another pipeline is another history");
    let mut other = fixture.options.clone();
    other.pre_images = PreImages::Promised;
    other.batch_size = 7;
    let promised = identity(&other).await;
    assert_eq!(own.lineage, promised.lineage, "what events carry doesn't change where they stand");
    assert!(promised.before_images);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_expected_back() {
    let mut options = MongoOptions::new("test", "mongodb://somebody:secret@127.0.0.1:9/?directConnection=true");
    options.server_selection_timeout = Duration::from_millis(200);
    let error = MongoSource::new(options).identity().await.expect_err("nobody listens there");
    assert!(matches!(error, SourceError::Transient(_)), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[tokio::test]
async fn a_bad_uri_is_refused_without_showing_it() {
    for uri in [
        "mongodb://somebody:secret@",
        "mysql://somebody:secret@host",
        "mongodb://somebody:sec@ret/:x@host/?a=b",
        "secret@",
    ] {
        let error = MongoSource::new(MongoOptions::new("test", uri)).identity().await.expect_err("no URI");
        assert!(matches!(error, SourceError::Fatal(_)), "{error}");
        assert!(!error.to_string().contains("sec"), "{uri} gave {error}");
    }
}

#[track_caller]
fn check_redacted(uri: &str, expect: &str) {
    assert_eq!(redact_uri(uri), expect);
    let options = format!("{:?}", MongoOptions::new("test", uri));
    assert!(options.contains(expect), "{options}");
}

#[test]
fn secrets_are_hidden() {
    check_redacted("mongodb://a:b@host:1,other:2/db?x=y", "mongodb://***@host:1,other:2/db?x=y");
    check_redacted("mongodb+srv://a:b@host", "mongodb+srv://***@host");
    check_redacted("mongodb://host/?replicaSet=rs", "mongodb://host/?replicaSet=rs");
    check_redacted("mongodb://a:p/q?r@s@host/", "mongodb://***@host/");
    check_redacted("a:b@host", "***@host");
    check_redacted(
        "mongodb://host/?authMechanismProperties=AWS_SESSION_TOKEN:t&tlsCertificateKeyFilePassword=p&x=y",
        "mongodb://host/?authMechanismProperties=***&tlsCertificateKeyFilePassword=***&x=y",
    );
}

#[test]
fn the_pipeline_asks_for_what_is_configured() {
    let mut options = MongoOptions::new("test", "mongodb://host");
    let start = || doc! { "startAtOperationTime": timestamp(7 << 32 | 3) };
    let time = Timestamp { time: 7, increment: 3 };
    let stage = doc! {
        "startAtOperationTime": time, "allChangesForCluster": true, "fullDocument": "updateLookup",
        "fullDocumentBeforeChange": "whenAvailable",
    };
    assert_eq!(options.pipeline(start(), false), [doc! { "$changeStream": stage.clone() }]);
    let split = doc! { "$changeStreamSplitLargeEvent": {} };
    assert_eq!(
        options.pipeline(start(), true),
        [doc! { "$changeStream": stage }, split.clone()],
        "it has to be the last stage"
    );
    options.scope = Scope::Database("db".into());
    options.pre_images = PreImages::Off;
    options.full_document = FullDocument::WhenAvailable;
    options.namespaces = vec![Namespace { database: "db".into(), collection: Some("c".into()) }];
    let stage = doc! { "startAtOperationTime": time, "fullDocument": "whenAvailable" };
    let any = vec![
        doc! { "ns.db": "db", "ns.coll": "c" },
        doc! { "operationType": { "$in": ["rename", "dropDatabase", "invalidate"] } },
    ];
    let filter = doc! { "$match": { "$or": any } };
    assert_eq!(options.pipeline(start(), true), [doc! { "$changeStream": stage }, filter.clone(), split]);
    let outline = options.outline(start());
    assert_eq!(outline[..2], [doc! { "$changeStream": { "startAtOperationTime": time } }, filter]);
    assert_eq!(outline[2].get_document("$project").expect("it ends so").len(), 6);
}

#[tokio::test]
async fn an_event_is_told_without_its_documents_and_leads_on_behind_itself() {
    let Some(fixture) = Fixture::new("an_event_is_told_without_its_documents_and_leads_on_behind_itself").await else {
        return;
    };
    let source = fixture.source();
    let mut opened = open(&source, Start::Now).await;
    let things = fixture.collection("things");
    for n in 0..3 {
        things.insert_one(doc! { "_id": n, "text": "long" }).await.expect("insert");
    }
    let events = take(&mut *opened.stream, 3).await;
    drop(opened);
    let after_first = || after_token(time_of(&events[0]), token_of(&events[0]));
    let stub = source.too_large(after_first(), Purpose::Live).await.expect("it is told");
    let told = decoded(&stub);
    assert_eq!(told.get_document("documentKey").ok(), Some(&doc! { "_id": 1 }));
    assert!(!told.contains_key("fullDocument") && told.contains_key("ns"), "{told}");
    assert_eq!((token_of(&stub), time_of(&stub)), (token_of(&events[1]), time_of(&events[1])));
    let mut opened =
        source.open_one_by_one(after_token(time_of(&stub), token_of(&stub)), Purpose::Live).await.expect("it opens");
    assert_eq!(take(&mut *opened.stream, 1).await, events[2..]);
    fixture.end().await;
}
