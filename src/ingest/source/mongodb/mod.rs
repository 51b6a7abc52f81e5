//! MongoDB as a source: one change stream, raw all the way, read from the primary.
//!
//! The stream is a plain `$changeStream` aggregate. The driver's own change streams resume by themselves, once, from a token that they
//! choose; here every reopening is decided by the ingest loop and names its start.

mod error;
mod options;
mod stream;
#[cfg(test)]
mod tests;

use ::mongodb::{
    Client,
    bson::{Bson, Document, Timestamp, doc},
    options::{ClientOptions, ReadPreference, SelectionCriteria},
};
use bson::RawDocument;
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::OnceCell;
use wire::{BackendId, Lineage};

pub use self::options::{FullDocument, MongoOptions, Namespace, PreImages, Scope, redact_uri};
use self::{
    error::{classify, is_not_available},
    stream::MongoStream,
};
use super::{Identity, Opened, Purpose, Source, SourceError, Start};

/// A MongoDB replica set or sharded cluster. Connects when it is first used, and must be used within one tokio runtime: the driver's
/// tasks live there.
pub struct MongoSource {
    options: MongoOptions,
    connection: OnceCell<Connection>,
}

struct Connection {
    client: Client,
    /// The configured hosts, sorted; from DNS where the URI says so.
    hosts: String,
}

impl MongoSource {
    pub fn new(options: MongoOptions) -> Self {
        Self { options, connection: OnceCell::new() }
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

    async fn open_stream(&self, start: Start) -> Result<Opened, SourceError> {
        let connection = self.connection().await?;
        let (stage, start) = match start {
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
        };
        let database = connection.client.database(self.options.database());
        let aggregate = database
            .aggregate(self.options.pipeline(stage))
            .batch_size(self.options.batch_size)
            .max_await_time(self.options.await_time);
        let stall = self.options.await_time + self.options.stall_timeout;
        let opened = match tokio::time::timeout(stall, aggregate.batch()).await {
            Ok(opened) => opened.map_err(|error| self.told(classify(&error)))?,
            Err(_) => return Err(self.told(SourceError::Transient(format!("no answer for {} s", stall.as_secs_f32())))),
        };
        Ok(Opened { stream: Box::new(MongoStream::start(opened, stall)), start })
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
        self.open_stream(start).boxed()
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
