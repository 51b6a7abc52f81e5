//! Where changes come from, and what the source itself has in its history when all is over.
//!
//! Documents are only inserted, replaced and deleted: what an event of those shows is settled when it happens, however late it is read.
//! A write whose outcome is not known is tried again until it is: the history says what came of it.

use std::{path::Path, sync::Arc};

use bson::{Bson, Document, doc};
use futures::{StreamExt, future::join_all};
use mongodb::{
    Client,
    change_stream::event::ResumeToken,
    error::{Error, ErrorKind, WriteFailure},
    options::{FullDocumentBeforeChangeType, FullDocumentType},
};
use serde_json::json;
use streamer::ingest::source::{
    Purpose, Source as _, Start,
    embedded::{EmbeddedSource, EmbeddedStore, StoreOptions},
};
use tokio::time::{Duration, sleep};
use wire::{BackendId, Lineage, Position};
use workload::{EventFactory, EventOptions, Numbering, OracleChange, Preset, Profile, Write, WriteKind};

use crate::{
    application::{SENT_FIELD, now_us},
    support::{
        api::{Api, document_path},
        database::TestServer,
        within,
    },
};

#[path = "../integration/mongodb/layout.rs"]
#[allow(dead_code, reason = "the integration tests ask more of it")]
mod layout;

use layout::Layout;

/// The name of the node's backend.
pub(crate) const BACKEND: &str = "main";

/// Written last, or last for now, so that its end is everybody's end. Nobody's filter is met by chance: it has no field that one asks for.
const LAST: (&str, &str) = ("acme", "the-last-write");

pub(crate) enum Source {
    Embedded { api: Api },
    MongoDb(Box<MongoDb>),
}

pub(crate) struct MongoDb {
    pub(crate) server: TestServer,
    layout: Layout,
    /// Keeps the stored form of every document.
    factory: EventFactory,
    /// The history as far as it was read, which is up to a last write.
    history: Vec<Document>,
    /// Where it goes on; before everything at first.
    goes_on: ResumeToken,
    /// Last writes that were made and not read yet.
    last_writes: usize,
    /// As the node connects, so that fail points can mean it alone.
    pub(crate) app_name: String,
}

impl Source {
    pub(crate) async fn mongodb(server: TestServer, profile: Profile) -> Self {
        let layout = Layout::create(&server, profile).await;
        let (database, pipeline) = layout.watched();
        let database = database.expect("the documents of this preset are in one database");
        let stream = database.watch().pipeline(pipeline).await.expect("the server opens a change stream");
        let goes_on = stream.resume_token().expect("a stream that was just opened tells where");
        let factory = EventFactory::new(EventOptions::new(Preset::Syntrix));
        let app_name = format!("{}_node", server.prefix);
        Self::MongoDb(Box::new(MongoDb {
            server,
            layout,
            factory,
            history: Vec::new(),
            goes_on,
            last_writes: 0,
            app_name,
        }))
    }

    /// The `[[backends]]` table of the node.
    pub(crate) fn backend(&self, data: &Path) -> String {
        match self {
            Self::Embedded { .. } => {
                format!(
                    "[[backends]]\nname = {BACKEND:?}\nkind = \"embedded\"\ndirectory = {:?}\n",
                    data.join("store").display().to_string()
                )
            }
            Self::MongoDb(mongodb) => {
                let MongoDb { server, layout, app_name, .. } = &**mongodb;
                let separator = if server.uri.contains('?') { '&' } else { '?' };
                let uri = format!("{}{separator}appName={app_name}", server.uri);
                format!("[[backends]]\nname = {BACKEND:?}\nkind = \"mongodb\"\nuri = {uri:?}\n{}\n", layout.scope())
            }
        }
    }

    /// Carries out writes, in their order for each document, however long that takes.
    pub(crate) async fn write(&mut self, writes: Vec<Write>) {
        match self {
            Self::Embedded { api } => put(api, &writes).await,
            Self::MongoDb(mongodb) => mongodb.write(writes).await,
        }
    }

    /// A write that comes after all others so far, and where it stands.
    pub(crate) async fn write_last(&mut self, lineage: Lineage) -> Position {
        let (tenant, collection) = LAST;
        // Another document each time: one that is there already would be no change.
        let document_id = format!("last-{:08x}", rand::random::<u32>());
        match self {
            Self::Embedded { api } => {
                let path = document_path(tenant, collection, &document_id);
                for attempt in 0.. {
                    // So that an attempt whose answer was lost doesn't make the next one no change.
                    let answer = api.try_call("PUT", &path, json!({ "attempt": attempt }).to_string()).await;
                    if let Ok((200, answer)) = answer {
                        let time = answer["offset"].as_u64().expect("it is a change");
                        return Position { backend: BackendId::of_name(BACKEND), lineage, time, k: 1 };
                    }
                    sleep(Duration::from_millis(10)).await;
                }
                unreachable!("it is tried until it is done")
            }
            Self::MongoDb(mongodb) => {
                let write = Write {
                    tenant: tenant.into(),
                    collection: collection.into(),
                    document_id,
                    kind: WriteKind::Insert,
                    data: doc! { "is_last": true },
                };
                mongodb.write(vec![write]).await;
                mongodb.last_writes += 1;
                self.history(Path::new(""), lineage).await.last().expect("there is the last write").id
            }
        }
    }

    /// Every change of the source, as it has them itself. For the embedded one the node must have ended.
    pub(crate) async fn history(&mut self, data: &Path, lineage: Lineage) -> Vec<OracleChange> {
        let stored;
        let events = match self {
            Self::Embedded { .. } => {
                stored = read_store(&data.join("store")).await;
                &stored
            }
            Self::MongoDb(mongodb) => within("the server's history", mongodb.read_history()).await,
        };
        let mut numbering = Numbering::new(BackendId::of_name(BACKEND), lineage);
        let changes = events.iter().filter_map(|event| {
            let id = numbering.next_event(event).expect("cluster time goes forward");
            OracleChange::from_change_event(event, Preset::Syntrix, id).expect("it is a change event")
        });
        changes.collect()
    }

    pub(crate) async fn clean_up(&self) {
        if let Self::MongoDb(mongodb) = self {
            mongodb.server.clean_up().await;
        }
    }
}

async fn put(api: &Api, writes: &[Write]) {
    let mut lines = String::new();
    for write in writes {
        let Write { tenant, collection, document_id: id, kind, data } = write;
        let line = match kind {
            WriteKind::SoftDelete | WriteKind::HardDelete => {
                let op = if *kind == WriteKind::SoftDelete { "soft-delete" } else { "delete" };
                json!({"op": op, "tenant": tenant, "collection": collection, "id": id})
            }
            _ => {
                let mut data = data.clone();
                data.insert(SENT_FIELD, now_us() as i64);
                let data = Bson::Document(data).into_canonical_extjson();
                json!({"op": "put", "tenant": tenant, "collection": collection, "id": id, "data": data})
            }
        };
        lines.push_str(&line.to_string());
        lines.push('\n');
    }
    loop {
        match api.try_call("POST", "/v1/documents", lines.clone()).await {
            Ok((200, _)) => return,
            Ok((status, answer)) => panic!("a write was refused with {status}: {answer}"),
            // The node is away.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

impl MongoDb {
    async fn write(&mut self, writes: Vec<Write>) {
        // Of one document at most one at a time; all else at once.
        let mut left = writes;
        while !left.is_empty() {
            let mut taken = std::collections::BTreeSet::new();
            let (now, later): (Vec<Write>, Vec<Write>) = left.into_iter().partition(|write| {
                taken.insert((write.tenant.clone(), write.collection.clone(), write.document_id.clone()))
            });
            let (layout, factory) = (&self.layout, &mut self.factory);
            let commands: Vec<_> = now.into_iter().map(|write| command(layout, factory, write)).collect();
            join_all(commands).await;
            left = later;
        }
    }

    /// Read from the beginning to the last write, by a stock client's change stream: what was read before is not read again.
    async fn read_history(&mut self) -> &Vec<Document> {
        if self.last_writes == 0 {
            return &self.history;
        }
        let (database, pipeline) = self.layout.watched();
        let database = database.expect("the documents of this preset are in one database");
        let stream = database
            .watch()
            .pipeline(pipeline)
            .start_after(self.goes_on.clone())
            .full_document(FullDocumentType::UpdateLookup)
            .full_document_before_change(FullDocumentBeforeChangeType::WhenAvailable)
            .await;
        let mut stream = stream.expect("the server opens a change stream").with_type::<Document>();
        while self.last_writes > 0 {
            let event = stream.next().await.expect("a change stream goes on").expect("the server is well by now");
            let is_last = event
                .get_document("fullDocument")
                .is_ok_and(|document| document.get_str("collection").is_ok_and(|name| name == LAST.1));
            self.last_writes -= usize::from(is_last);
            self.history.push(event);
        }
        self.goes_on = stream.resume_token().expect("a stream that has given events tells where");
        &self.history
    }

    pub(crate) fn client(&self) -> &Client {
        &self.server.client
    }

    /// Makes the node's next `times` commands of this kind fail.
    pub(crate) async fn fail_point(&self, command: &str, times: i32, how: Document) {
        let mut data = doc! { "failCommands": [command], "appName": &self.app_name };
        data.extend(how);
        let command = doc! { "configureFailPoint": "failCommand", "mode": { "times": times }, "data": data };
        self.client().database("admin").run_command(command).await.expect("the server takes fail points");
    }

    /// Kills every cursor on the documents' database.
    pub(crate) async fn kill_cursors(&self) -> usize {
        let (database, _) = self.layout.watched();
        let database = database.expect("the documents of this preset are in one database");
        let admin = self.client().database("admin");
        let Ok(reply) = admin.run_command(doc! { "currentOp": 1, "$all": true }).await else { return 0 };
        let namespace = format!("{}.$cmd.aggregate", database.name());
        let all = reply.get_array("inprog").map(Vec::as_slice).unwrap_or_default().iter();
        let mine = all.filter_map(Bson::as_document).filter(|one| one.get_str("ns").is_ok_and(|ns| ns == namespace));
        // Servers differ in where they show it.
        let id =
            |one: &Document| one.get("cursorId").or_else(|| one.get_document("cursor").ok()?.get("cursorId")).cloned();
        let cursors: Vec<Bson> = mine.filter_map(id).collect();
        if cursors.is_empty() {
            return 0;
        }
        let count = cursors.len();
        let killed = database.run_command(doc! { "killCursors": "$cmd.aggregate", "cursors": cursors }).await;
        killed.map_or(0, |_| count)
    }
}

/// One write, tried until its outcome is known.
fn command(layout: &Layout, factory: &mut EventFactory, write: Write) -> impl Future<Output = ()> + use<> {
    let Write { tenant, collection, document_id, kind, .. } = &write;
    factory.apply(&write);
    let document = factory.stored(tenant, collection, document_id).cloned().map(|mut document| {
        if let Ok(data) = document.get_document_mut("data") {
            data.insert(SENT_FIELD, now_us() as i64);
        }
        document
    });
    let (home, id, is_new) = (layout.home(&write), layout.stored_id(&write), *kind == WriteKind::Insert);
    async move {
        let query = doc! { "_id": &id };
        loop {
            let done = match &document {
                Some(document) if is_new => match home.insert_one(document).await {
                    // It had been carried out, whoever repeated it: this task, or the driver by itself.
                    Err(error) if is_duplicate_key(&error) => Ok(()),
                    done => done.map(drop),
                },
                Some(document) => home.replace_one(query.clone(), document).await.map(drop),
                None => home.delete_one(query.clone()).await.map(drop),
            };
            match done {
                Ok(()) => return,
                Err(error) => {
                    if let ErrorKind::Write(failure) = &*error.kind {
                        panic!("the server refused a write to {id}: {failure:?}");
                    }
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

fn is_duplicate_key(error: &Error) -> bool {
    matches!(&*error.kind, ErrorKind::Write(WriteFailure::WriteError(error)) if error.code == 11000)
}

async fn read_store(folder: &Path) -> Vec<Document> {
    let store: Arc<EmbeddedStore> = EmbeddedStore::open(folder, StoreOptions::default()).expect("the node has ended");
    let source = EmbeddedSource::new(BACKEND, store.clone());
    let mut stream = source.open(Start::At { time: 1 }, Purpose::Live).await.expect("nothing was trimmed").stream;
    let mut events = Vec::new();
    while (events.len() as u64) < store.durable_upto() {
        let batch = stream.next(Duration::from_secs(1)).await.expect("the log is read");
        events.extend(batch.events.iter().map(|bytes| Document::from_reader(&bytes[..]).expect("events are BSON")));
    }
    events
}
