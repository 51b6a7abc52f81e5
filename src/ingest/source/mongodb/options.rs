//! What can be set of a MongoDB backend, and the pipeline that follows from it.

use std::{fmt, time::Duration};

use ::mongodb::bson::{Document, doc};

/// A MongoDB backend.
#[derive(Clone, PartialEq, Eq)]
pub struct MongoOptions {
    /// The backend's name in the configuration.
    pub name: String,
    /// Connection string, credentials included. Never shown: see [`redact_uri`].
    pub uri: String,
    pub scope: Scope,
    /// Only changes of these are read from the server; empty: of all in the scope. Part of the lineage.
    pub namespaces: Vec<Namespace>,
    pub full_document: FullDocument,
    pub pre_images: PreImages,
    /// Most events in a batch; fewer are asked for while the server doesn't get them done in time. It also ends a batch at 16 MiB.
    pub batch_size: u32,
    /// How long the server holds back its answer when there is nothing to tell.
    pub await_time: Duration,
    /// How long to look for a primary before a call fails.
    pub server_selection_timeout: Duration,
    /// How long after `await_time` a server that doesn't answer is taken for lost. A connection that died without a word is found by this.
    pub stall_timeout: Duration,
}

impl MongoOptions {
    /// Everything in the deployment, with looked-up documents and images where the server has them.
    pub fn new(name: impl Into<String>, uri: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            uri: uri.into(),
            scope: Scope::Deployment,
            namespaces: Vec::new(),
            full_document: FullDocument::UpdateLookup,
            pre_images: PreImages::WhenAvailable,
            batch_size: 1_000,
            await_time: Duration::from_secs(1),
            server_selection_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
        }
    }

    /// The database that the stream is opened on.
    pub(super) fn database(&self) -> &str {
        match &self.scope {
            Scope::Deployment => "admin",
            Scope::Database(name) => name,
        }
    }

    /// `$changeStream` with `start` as its place to begin, then what the server may leave out.
    ///
    /// `showExpandedEvents` stays off: what it adds (create, index builds, sharding) changes no document, and without it drop, rename,
    /// dropDatabase and invalidate come all the same. With `split`, an event that is too large for a document comes in pieces.
    pub(super) fn pipeline(&self, start: Document, split: bool) -> Vec<Document> {
        let mut stage = self.scoped(start);
        stage.insert("fullDocument", self.full_document.as_str());
        if self.pre_images != PreImages::Off {
            // Never `required`: an image that has expired would end the stream at the same event again and again.
            stage.insert("fullDocumentBeforeChange", "whenAvailable");
        }
        let mut pipeline = vec![doc! { "$changeStream": stage }];
        pipeline.extend(self.namespace_filter());
        if split {
            pipeline.push(doc! { "$changeStreamSplitLargeEvent": {} });
        }
        pipeline
    }

    /// The same stream, of whose events only what says where they stand and what they concern is told.
    pub(super) fn outline(&self, start: Document) -> Vec<Document> {
        let mut pipeline = vec![doc! { "$changeStream": self.scoped(start) }];
        pipeline.extend(self.namespace_filter());
        let fields = doc! { "_id": 1, "operationType": 1, "clusterTime": 1, "ns": 1, "to": 1, "documentKey": 1 };
        pipeline.push(doc! { "$project": fields });
        pipeline
    }

    fn scoped(&self, start: Document) -> Document {
        let mut stage = start;
        if self.scope == Scope::Deployment {
            stage.insert("allChangesForCluster", true);
        }
        stage
    }

    /// Matches on `ns` and `operationType` only. What concerns more than one namespace always passes: it names a watched one in other
    /// fields than `ns`, or none at all.
    fn namespace_filter(&self) -> Option<Document> {
        if self.namespaces.is_empty() {
            return None;
        }
        let mut any: Vec<Document> = self
            .namespaces
            .iter()
            .map(|namespace| match &namespace.collection {
                Some(collection) => doc! { "ns.db": &namespace.database, "ns.coll": collection },
                None => doc! { "ns.db": &namespace.database },
            })
            .collect();
        any.push(doc! { "operationType": { "$in": ["rename", "dropDatabase", "invalidate"] } });
        Some(doc! { "$match": { "$or": any } })
    }

    /// What decides which events there are, in which order. How much each of them carries is left out on purpose: with other images
    /// the positions mean the same, so nobody has to start anew.
    pub(super) fn fingerprint(&self) -> String {
        let mut namespaces: Vec<String> = self.namespaces.iter().map(|namespace| format!("{namespace:?}")).collect();
        namespaces.sort();
        namespaces.dedup();
        format!("pipeline {PIPELINE_FORM}, scope {:?}, namespaces [{}]", self.scope, namespaces.join(", "))
    }
}

impl fmt::Debug for MongoOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MongoOptions")
            .field("name", &self.name)
            .field("uri", &redact_uri(&self.uri))
            .field("scope", &self.scope)
            .field("namespaces", &self.namespaces)
            .field("full_document", &self.full_document)
            .field("pre_images", &self.pre_images)
            .field("batch_size", &self.batch_size)
            .field("await_time", &self.await_time)
            .finish_non_exhaustive()
    }
}

/// Which part of the server one stream covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All databases but the server's own.
    Deployment,
    Database(String),
}

/// A collection, or all of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub database: String,
    pub collection: Option<String>,
}

/// Where the document after an update comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FullDocument {
    /// Looked up when the event is read: may be newer than the event, or gone.
    UpdateLookup,
    /// The stored image, in collections with `changeStreamPreAndPostImages`; none in others.
    WhenAvailable,
}

impl FullDocument {
    fn as_str(self) -> &'static str {
        match self {
            Self::UpdateLookup => "updateLookup",
            Self::WhenAvailable => "whenAvailable",
        }
    }
}

/// Whether the document before a change is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreImages {
    Off,
    /// Where the collection stores them; nothing is promised to subscribers.
    WhenAvailable,
    /// The operator says that every collection stores them, so `leave` may be promised.
    Promised,
}

/// A connection string without its secrets: for logs and errors.
///
/// Everything between the scheme and the last `@` is taken for credentials, so that a password with stray reserved characters is
/// hidden too; so are the values of options that hold secrets.
pub fn redact_uri(uri: &str) -> String {
    let (scheme, rest) = uri.split_once("://").unwrap_or(("", uri));
    let rest = match rest.rfind('@') {
        Some(at) => format!("***{}", &rest[at..]),
        None => rest.to_owned(),
    };
    let rest = match rest.split_once('?') {
        None => rest,
        Some((place, options)) => {
            let options: Vec<String> = options.split('&').map(redact_option).collect();
            format!("{place}?{}", options.join("&"))
        }
    };
    if scheme.is_empty() { rest } else { format!("{scheme}://{rest}") }
}

fn redact_option(option: &str) -> String {
    match option.split_once('=') {
        Some((name, _)) if SECRET_OPTIONS.iter().any(|secret| name.eq_ignore_ascii_case(secret)) => {
            format!("{name}=***")
        }
        _ => option.to_owned(),
    }
}

const SECRET_OPTIONS: [&str; 3] = ["authMechanismProperties", "tlsCertificateKeyFilePassword", "proxyPassword"];
/// Version of the stage and its filter. Counted up when they change in a way that changes which events there are.
const PIPELINE_FORM: u32 = 1;
