//! What concerns collections rather than documents: told as a gap to whom it concerns, and the node goes on.

use std::path::Path;

use bson::{Document, doc};
use mongodb::{Collection, IndexModel};
use streamer_gateway::{AppEvent, Subscription};
use workload::{Write, WriteKind, events::stored_form};

use super::{
    super::support::{
        cores,
        database::{TestServer, create},
        listener::{Acks, Listener},
        node::{Settings, place_of, stop, wait_ready},
        wait_for,
    },
    world::BACKEND,
};

fn settings(server: &TestServer, folder: &Path, preset: &'static str, scope: &str) -> Settings {
    let uri = &server.uri;
    Settings {
        data_dir: folder.join("data"),
        shards: cores(4),
        preset,
        backends: format!("[[backends]]\nname = {BACKEND:?}\nkind = \"mongodb\"\nuri = {uri:?}\n{scope}"),
        http_port: 0,
        quic_port: 0,
    }
}

/// What one subscription was told, in short, without its notices.
fn told(listener: &mut Listener, id: &str) -> Vec<String> {
    let mine = listener.told().iter().filter(|event| event.subscription().id == id);
    let short = |event: &AppEvent| match event {
        AppEvent::Change(change) => {
            let id = change.document_id_text().unwrap_or_else(|| "unknown".into());
            Some(format!("{:?} {id}", change.transition()).to_lowercase())
        }
        AppEvent::Gap { reason, .. } => Some(format!("gap {reason:?}")),
        AppEvent::Live { .. } | AppEvent::CatchingUp { .. } | AppEvent::CaughtUp { .. } => None,
        other => Some(format!("{other:?}")),
    };
    mine.filter_map(short).collect()
}

/// Waits until the subscription has been told exactly this, from its beginning.
async fn wait_told(listener: &mut Listener, id: &str, expected: &[&str]) {
    let last = std::cell::RefCell::new(Vec::new());
    let enough = || {
        let told = told(listener, id);
        let enough = told.len() >= expected.len();
        last.replace(told);
        enough.then_some(())
    };
    wait_for(enough, || format!("{id}: {expected:?}, where {:?} was told", last.borrow())).await;
    assert_eq!(*last.borrow(), expected, "what {id} was told");
}

/// Waits until the last that the subscription was told is this. What came before it is for the caller to judge.
async fn wait_last(listener: &mut Listener, id: &str, expected: &str) -> Vec<String> {
    let last = std::cell::RefCell::new(Vec::new());
    let there = || {
        let told = told(listener, id);
        let there = told.last().is_some_and(|last| last == expected);
        last.replace(told);
        there.then_some(())
    };
    wait_for(there, || format!("{id}: {expected:?} at the end of {:?}", last.borrow())).await;
    last.take()
}

async fn connect(node: &streamer::node::Node, subscriptions: Vec<Subscription>) -> Listener {
    let listener = Listener::connect(&place_of(node), "gateway", Acks::Automatic, subscriptions).await;
    wait_for(|| listener.is_live().then_some(()), || format!("live: {:?}", listener.handle().status())).await;
    listener
}

/// Updates a document and deletes it in one transaction, so that nobody who looks it up finds it.
async fn update_and_delete(server: &TestServer, collection: &Collection<Document>, id: &str) {
    let mut session = server.client.start_session().await.expect("a session starts");
    session.start_transaction().await.expect("a transaction starts");
    let query = doc! { "_id": id };
    let update = doc! { "$set": { "n": 2 } };
    collection.update_one(query.clone(), update).session(&mut session).await.expect("it is updated");
    collection.delete_one(query).session(&mut session).await.expect("and deleted");
    session.commit_transaction().await.expect("it commits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain() {
    let Some(server) = TestServer::new("mongodb::namespaces::plain").await else { return };
    let database = server.database("shop");
    let tenant = database.name();
    let orders = create(&database, "orders", false).await;
    let items = create(&database, "items", true).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let node = settings(&server, folder.path(), "plain", &format!("namespaces = [{tenant:?}]")).start_here().await;
    let whole = |name: &str| Subscription::new(tenant, name).id(name);
    let mut listener = connect(&node, ["orders", "items", "archive"].map(whole).to_vec()).await;
    // Operations that concern no document: nothing is told, and nothing stops.
    items.create_index(IndexModel::builder().keys(doc! { "n": 1 }).build()).await.expect("an index is made");
    create(&database, "unwatched", false).await;
    items.drop_indexes().await.expect("indexes are dropped");

    // Looked up too late: where there are images the last known one leaves, twice; where there are none only the delete is told.
    for collection in [&orders, &items] {
        collection.insert_one(doc! { "_id": "a", "n": 1 }).await.expect("it is inserted");
        update_and_delete(&server, collection, "a").await;
        collection.insert_one(doc! { "_id": "b", "n": 1 }).await.expect("it is inserted");
    }
    wait_told(&mut listener, "orders", &["enter a", "leave a", "enter b"]).await;
    wait_told(&mut listener, "items", &["enter a", "leave a", "leave a", "enter b"]).await;

    let rename = doc! { "renameCollection": format!("{tenant}.orders"), "to": format!("{tenant}.archive") };
    server.client.database("admin").run_command(rename).await.expect("it is renamed");
    let archive = database.collection::<Document>("archive");
    archive.insert_one(doc! { "_id": "c" }).await.expect("it is inserted");
    wait_told(&mut listener, "archive", &["gap Renamed", "enter c"]).await;
    wait_told(&mut listener, "orders", &["enter a", "leave a", "enter b", "gap Renamed"]).await;

    items.drop().await.expect("it is dropped");
    items.insert_one(doc! { "_id": "d" }).await.expect("it is inserted");
    let items_so_far = ["enter a", "leave a", "leave a", "enter b", "gap Dropped", "enter d"];
    wait_told(&mut listener, "items", &items_so_far).await;
    wait_told(&mut listener, "archive", &["gap Renamed", "enter c"]).await;

    database.drop().await.expect("it is dropped");
    archive.insert_one(doc! { "_id": "e" }).await.expect("it is inserted");
    let told = wait_last(&mut listener, "archive", "enter e").await;
    assert_eq!(told[..2], ["gap Renamed", "enter c"]);
    // Servers tell of each collection before they tell of the database, or only of the database.
    let gaps = &told[2..told.len() - 1];
    assert!(gaps.iter().all(|gap| gap == "gap Dropped" || gap == "gap DatabaseDropped"), "{told:?}");
    assert!(gaps.contains(&"gap DatabaseDropped".to_owned()), "{told:?}");
    wait_ready(&node).await;
    assert_eq!(listener.handle().status().counters.resyncs, 0);
    stop(node).await;
    listener.end().await;
    server.clean_up().await;
}

/// Under this layout one collection on the server holds those of all tenants, so all are concerned.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn syntrix() {
    let Some(server) = TestServer::new("mongodb::namespaces::syntrix").await else { return };
    let database = server.database("syntrix");
    let documents = create(&database, "documents", true).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let scope = format!("scope = {:?}", database.name());
    let node = settings(&server, folder.path(), "syntrix", &scope).start_here().await;
    let watch = |(id, tenant, collection): (&str, &str, &str)| Subscription::new(tenant, collection).id(id);
    let subscriptions = [("a", "acme", "rooms"), ("b", "acme", "users"), ("c", "globex", "rooms")];
    let mut listener = connect(&node, subscriptions.map(watch).to_vec()).await;
    let insert = async |tenant: &str, collection: &str, id: &str| {
        let write = Write {
            tenant: tenant.into(),
            collection: collection.into(),
            document_id: id.into(),
            kind: WriteKind::Insert,
            data: doc! { "n": 1 },
        };
        let document = stored_form(&write, None, 1_700_000_000_000);
        let id = document.get_str("_id").expect("it is a string").to_owned();
        documents.insert_one(document).await.expect("it is inserted");
        id
    };
    let id = insert("acme", "rooms", "one").await;
    update_and_delete(&server, &documents, &id).await;
    wait_told(&mut listener, "a", &["enter one", "leave one", "leave one"]).await;

    documents.drop().await.expect("it is dropped");
    insert("acme", "users", "two").await;
    insert("globex", "rooms", "three").await;
    wait_told(&mut listener, "a", &["enter one", "leave one", "leave one", "gap Dropped"]).await;
    wait_told(&mut listener, "b", &["gap Dropped", "enter two"]).await;
    wait_told(&mut listener, "c", &["gap Dropped", "enter three"]).await;

    // Ends the stream on this database: it is opened again, after its end.
    database.drop().await.expect("it is dropped");
    insert("acme", "users", "four").await;
    let told = wait_last(&mut listener, "b", "enter four").await;
    for gap in ["gap DatabaseDropped", "gap Invalidated"] {
        assert_eq!(told.iter().filter(|told| *told == gap).count(), 1, "{gap} in {told:?}");
    }
    assert!(told.iter().filter(|told| told.starts_with("enter")).eq(["enter two", "enter four"]), "{told:?}");
    wait_ready(&node).await;
    let reopened = || (node.state().ingest.picture().backends[0].reopenings > 0).then_some(());
    wait_for(reopened, || "a stream that was opened again".to_owned()).await;
    assert_eq!(listener.handle().status().counters.resyncs, 0);
    stop(node).await;
    listener.end().await;
    server.clean_up().await;
}
