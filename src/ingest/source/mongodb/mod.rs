//! MongoDB as a source: one change stream, raw all the way, read from the primary.
//!
//! The stream is a plain `$changeStream` aggregate. The driver's own change streams resume by themselves, once, from a token that they
//! choose; here every reopening is decided by the ingest loop and names its start.

mod error;
mod fragments;
mod options;
mod stream;
#[cfg(test)]
mod tests;
mod token;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use ::mongodb::{
    Client,
    bson::{Bson, Document, Timestamp, doc},
    options::{ClientOptions, ReadPreference, SelectionCriteria},
    raw_batch_cursor::RawBatchCursor,
};
use bson::RawDocument;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use tokio::sync::OnceCell;
use wire::{BackendId, Lineage};

pub use self::options::{FullDocument, MongoOptions, Namespace, PreImages, Scope, redact_uri};
use self::{
    error::{classify, is_not_available, is_out_of_time, is_without_split},
    stream::{BatchSize, MongoStream, Replies},
};
use super::{Identity, Opened, Purpose, Source, SourceError, Start};

/// A MongoDB replica set or sharded cluster. Connects when it is first used, and must be used within one tokio runtime: the driver's
/// tasks live there.
pub struct MongoSource {
    options: MongoOptions,
    connection: OnceCell<Connection>,
    batch_size: Arc<BatchSize>,
    /// Whether the server gives out large events in pieces, once that is known.
    splits: OnceLock<bool>,
}

struct Connection {
    client: Client,
    /// The configured hosts, sorted; from DNS where the URI says so.
    hosts: String,
}

impl MongoSource {
    pub fn new(options: MongoOptions) -> Self {
        let batch_size = Arc::new(BatchSize::new(options.batch_size));
        Self { options, connection: OnceCell::new(), batch_size, splits: OnceLock::new() }
    }

    pub fn options(&self) -> &MongoOptions {
        &self.options
    }

    async fn connection(&self) -> Result<&Connection, SourceError> {
        self.connection.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Connection, SourceError> {
        let failed = |error: &::mongodb::error::Error| self.told(classify(error));
        let mut options = ClientOptions::parse(&self.options.uri).await.map_err(|error| failed(&error))?;
        // Only the primary has the whole history, and its operation time is the newest.
        options.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
        options.app_name.get_or_insert_with(|| "streamer".into());
        options.server_selection_timeout.get_or_insert(self.options.server_selection_timeout);
        let mut hosts: Vec<String> = options.hosts.iter().map(ToString::to_string).collect();
        hosts.sort();
        let client = Client::with_options(options).map_err(|error| failed(&error))?;
        Ok(Connection { client, hosts: hosts.join(",") })
    }

    async fn command(&self, connection: &Connection, command: Document) -> Result<Document, ::mongodb::error::Error> {
        connection.client.database("admin").run_command(command).await
    }

    async fn find_identity(&self) -> Result<Identity, SourceError> {
        let connection = self.connection().await?;
        let hello = self.command(connection, doc! { "hello": 1 }).await.map_err(|error| self.told(classify(&error)))?;
        let found = if let Ok(name) = hello.get_str("setName") {
            self.replica_set(connection, name).await?
        } else if hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid") {
            self.sharded_cluster(connection).await?
        } else {
            return Err(self.told(SourceError::Fatal(
                "it is a standalone server, and change streams need a replica set; start mongod with --replSet and call rs.initiate()".into(),
            )));
        };
        let fingerprint = self.options.fingerprint();
        let hash = blake3::hash(format!("streamer mongodb\0{found}\0{fingerprint}").as_bytes());
        let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
        Ok(Identity {
            lineage: Lineage(u64::from_le_bytes([a, b, c, d, e, f, g, h])),
            description: format!("{found}, {fingerprint}"),
            before_images: self.options.pre_images == PreImages::Promised,
        })
    }

    /// By the id that the set was given when it was initiated. Where the user may not read it, by name and hosts: a change of the hosts
    /// in the URI then counts as another source, which is the safe way to be wrong.
    async fn replica_set(&self, connection: &Connection, name: &str) -> Result<String, SourceError> {
        let id = match self.command(connection, doc! { "replSetGetConfig": 1 }).await {
            Ok(reply) => {
                let config = reply.get_document("config").ok();
                config.and_then(|config| config.get_document("settings").ok()?.get("replicaSetId").cloned())
            }
            Err(error) if is_not_available(&error) => None,
            Err(error) => return Err(self.told(classify(&error))),
        };
        Ok(match id {
            Some(id) => format!("replica set {name}, id {}", in_words(&id)),
            None => format!("replica set {name} at {}", connection.hosts),
        })
    }

    /// By the cluster's id, else by its routers.
    async fn sharded_cluster(&self, connection: &Connection) -> Result<String, SourceError> {
        let versions = connection.client.database("config").collection::<Document>("version");
        let id = match versions.find_one(doc! {}).await {
            Ok(version) => version.and_then(|version| version.get("clusterId").cloned()),
            Err(error) if is_not_available(&error) => None,
            Err(error) => return Err(self.told(classify(&error))),
        };
        Ok(match id {
            Some(id) => format!("sharded cluster, id {}", in_words(&id)),
            None => format!("sharded cluster at {}", connection.hosts),
        })
    }

    /// The time of the last operation that the primary has carried out: whatever comes after this call has a later one.
    async fn operation_time(&self, connection: &Connection) -> Result<Timestamp, SourceError> {
        let reply = self.command(connection, doc! { "ping": 1 }).await.map_err(|error| self.told(classify(&error)))?;
        let gossiped = || reply.get_document("$clusterTime").ok()?.get_timestamp("clusterTime").ok();
        if let Some(time) = reply.get_timestamp("operationTime").ok().or_else(gossiped) {
            return Ok(time);
        }
        let hello = self.command(connection, doc! { "hello": 1 }).await.map_err(|error| self.told(classify(&error)))?;
        let last_write = || hello.get_document("lastWrite").ok()?.get_document("opTime").ok()?.get_timestamp("ts").ok();
        last_write().ok_or_else(|| {
            self.told(SourceError::Fatal(
                "it tells no operation time, which a change stream from now on has to begin at".into(),
            ))
        })
    }

    async fn open_stream(&self, start: Start, batch_size: u32) -> Result<Opened, SourceError> {
        let connection = self.connection().await?;
        let (stage, start) = self.stage(connection, start).await?;
        let splits = self.splits.get().copied();
        let pipeline = |split| self.options.pipeline(stage.clone(), split);
        let opened = match self.aggregate(connection, pipeline(splits.unwrap_or(true)), batch_size).await? {
            Err(error) if splits.is_none() && is_without_split(&error) => {
                let opened = self.aggregate(connection, pipeline(false), batch_size).await?;
                if opened.is_ok() && self.splits.set(false).is_ok() {
                    tracing::info!(backend = self.options.name, "the server doesn't give out large events in pieces");
                }
                opened
            }
            opened => {
                if opened.is_ok() && splits.is_none() {
                    let _ = self.splits.set(true);
                }
                opened
            }
        };
        let opened = opened.map_err(|error| {
            if is_out_of_time(&error) {
                self.batch_size.was_too_much();
            }
            self.told(classify(&error))
        })?;
        let stream = MongoStream::start(opened, start.0, self.stall(), self.batch_size.clone());
        Ok(Opened { stream: Box::new(stream), start })
    }

    /// What a start is in the stage, and the place that it is.
    async fn stage(&self, connection: &Connection, start: Start) -> Result<(Document, (u64, u32)), SourceError> {
        Ok(match start {
            Start::Now => {
                let time = self.operation_time(connection).await?;
                (doc! { "startAtOperationTime": time }, (number(time), 0))
            }
            Start::At { time } => (doc! { "startAtOperationTime": timestamp(time) }, (time, 0)),
            Start::After { position, token } => {
                let token = RawDocument::from_bytes(&token.0).and_then(Document::try_from);
                let token = token
                    .map_err(|error| self.told(SourceError::BadToken(format!("it is not a BSON document: {error}"))))?;
                // Like `resumeAfter`, and it also goes on after an invalidate.
                (doc! { "startAfter": token }, (position.time, position.k))
            }
        })
    }

    /// The inner error is the server's or the driver's.
    async fn aggregate(
        &self,
        connection: &Connection,
        pipeline: Vec<Document>,
        batch_size: u32,
    ) -> Result<Result<RawBatchCursor, ::mongodb::error::Error>, SourceError> {
        let database = connection.client.database(self.options.database());
        let aggregate = database.aggregate(pipeline).batch_size(batch_size).max_await_time(self.options.await_time);
        let stall = self.stall();
        tokio::time::timeout(stall, aggregate.batch()).await.map_err(|_| {
            self.batch_size.was_too_much();
            self.told(SourceError::Transient(format!("no answer for {} s", stall.as_secs_f32())))
        })
    }

    /// How long the server may take for one answer.
    fn stall(&self) -> Duration {
        self.options.await_time + self.options.stall_timeout
    }

    /// The next event without its documents.
    async fn outline(&self, start: Start) -> Result<Bytes, SourceError> {
        let connection = self.connection().await?;
        let (stage, place) = self.stage(connection, start).await?;
        let opened = self.aggregate(connection, self.options.outline(stage), 1).await?;
        let mut cursor = opened.map_err(|error| self.told(classify(&error)))?;
        let mut replies = Replies::starting(place.0);
        let first = async {
            while let Some(reply) = cursor.next().await {
                let reply = reply.map_err(|error| self.told(classify(&error)))?;
                let bytes = Bytes::copy_from_slice(reply.as_raw_document().as_bytes());
                if let Some(event) = replies.cut(&bytes)?.events.into_iter().next() {
                    return Ok(event);
                }
            }
            Err(self.told(SourceError::Transient("the server closed the cursor".into())))
        };
        match tokio::time::timeout(self.stall(), first).await {
            Ok(event) => event,
            Err(_) => Err(self.told(SourceError::Transient("the event that was too large doesn't come".into()))),
        }
    }

    /// The same error with the server's name before it, and without the secrets of the connection string, should the driver have
    /// quoted it.
    fn told(&self, error: SourceError) -> SourceError {
        let place = redact_uri(&self.options.uri);
        let tell = |what: String| format!("{place}: {}", what.replace(&self.options.uri, &place));
        match error {
            SourceError::HistoryLost(what) => SourceError::HistoryLost(tell(what)),
            SourceError::BadToken(what) => SourceError::BadToken(tell(what)),
            SourceError::Oversize(what) => SourceError::Oversize(tell(what)),
            SourceError::Ended(what) => SourceError::Ended(tell(what)),
            SourceError::Transient(what) => SourceError::Transient(tell(what)),
            SourceError::Fatal(what) => SourceError::Fatal(tell(what)),
        }
    }
}

impl Source for MongoSource {
    fn backend(&self) -> BackendId {
        BackendId::of_name(&self.options.name)
    }

    fn name(&self) -> &str {
        &self.options.name
    }

    fn identity(&self) -> BoxFuture<'_, Result<Identity, SourceError>> {
        self.find_identity().boxed()
    }

    fn open(&self, start: Start, _purpose: Purpose) -> BoxFuture<'_, Result<Opened, SourceError>> {
        self.open_stream(start, self.batch_size.get()).boxed()
    }

    fn open_one_by_one(&self, start: Start, _purpose: Purpose) -> BoxFuture<'_, Result<Opened, SourceError>> {
        self.open_stream(start, 1).boxed()
    }

    fn too_large(&self, start: Start, _purpose: Purpose) -> BoxFuture<'_, Result<Bytes, SourceError>> {
        self.outline(start).boxed()
    }
}

/// A cluster time as one number.
fn number(time: Timestamp) -> u64 {
    (u64::from(time.time) << 32) | u64::from(time.increment)
}

fn timestamp(time: u64) -> Timestamp {
    Timestamp { time: (time >> 32) as u32, increment: time as u32 }
}

fn in_words(id: &Bson) -> String {
    match id {
        Bson::ObjectId(id) => id.to_hex(),
        other => other.to_string(),
    }
}
