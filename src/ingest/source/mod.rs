//! Where changes come from. Each kind of backend implements [`Source`]; only the files in this folder know how a backend is
//! spoken to, and what a resume token looks like inside.
//!
//! A stream yields raw change events in MongoDB's form, in the order of the source, and never skips one silently: what it can't
//! deliver is a [`SourceError`].

pub mod embedded;
pub mod mongodb;

use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use wire::{BackendId, Lineage, Position};

/// An opaque resume token: the bytes of a BSON document. Tokens don't sort and are never looked into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeToken(pub Bytes);

/// Where a stream starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// After the event with this token, which stands at this position.
    After { position: Position, token: ResumeToken },
    /// With the first event of this cluster time.
    At { time: u64 },
    /// With whatever happens from now on.
    Now,
}

/// What a stream is opened for. A backend sees at most one stream of each purpose at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    Live,
    CatchUp,
}

/// Who the source is, asked when it is first reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Identity of the source and fingerprint of pipeline and options.
    pub lineage: Lineage,
    /// The same in words, for logs and the checkpoint: replica set name and id, or the folder of the embedded store.
    pub description: String,
    /// Whether every update and delete comes with the image before it.
    pub before_images: bool,
}

pub struct Opened {
    pub stream: Box<dyn SourceStream>,
    /// Every event after this `(time, k)` comes out of the stream. For [`Start::After`] that of the position given, for
    /// [`Start::At`] `(time, 0)`, for [`Start::Now`] a cluster time that the source told while opening.
    pub start: (u64, u32),
}

/// Raw change events in order. The bytes of each are one BSON document; its `_id` is its resume token.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub events: Vec<Bytes>,
    /// A token that stands after all `events` and everything the source scanned since; present also for an empty batch where the
    /// source tells one.
    pub resume: Option<ResumeToken>,
    /// Every event of an earlier cluster time than this has come out of the stream by the end of this batch; `None` where the source
    /// doesn't say. That a batch is empty says nothing: a server may answer so while it is still searching.
    pub passed: Option<u64>,
    /// The source has answered while this was waited for. An empty batch without it only says that the wait is over.
    pub answered: bool,
    /// The source's own time as it told it with its last answer, if it does: not before the cluster time of anything that it has.
    pub time: Option<u64>,
}

/// A configured backend.
pub trait Source: Send + Sync {
    fn backend(&self) -> BackendId;
    /// The backend's name in the configuration.
    fn name(&self) -> &str;
    fn identity(&self) -> BoxFuture<'_, Result<Identity, SourceError>>;
    fn open(&self, start: Start, purpose: Purpose) -> BoxFuture<'_, Result<Opened, SourceError>>;

    /// The same with one event in a batch: after [`SourceError::Oversize`], so that what comes before the event that is too large isn't
    /// lost with its batch.
    fn open_one_by_one(&self, start: Start, purpose: Purpose) -> BoxFuture<'_, Result<Opened, SourceError>> {
        self.open(start, purpose)
    }

    /// The first event after `start`, which is too large to be read, without its documents: its token, cluster time, operation, key and
    /// namespace. No stream is open meanwhile.
    fn too_large(&self, _start: Start, _purpose: Purpose) -> BoxFuture<'_, Result<Bytes, SourceError>> {
        let error = SourceError::Oversize("this kind of source can't tell what it is".into());
        futures::future::ready(Err(error)).boxed()
    }

    /// Told before the source is asked for its identity: this place in its history was read once. A source that finds its history
    /// ending before that has lost the end of it, and takes a new lineage, since it will give the places that are lost to other events.
    fn has_reached(&self, _position: Position) -> BoxFuture<'_, Result<(), SourceError>> {
        futures::future::ready(Ok(())).boxed()
    }

    /// How much earlier the first of two cluster times was. MongoDB's tell it themselves: they have seconds in the upper half.
    fn between(&self, older: u64, newer: u64) -> Duration {
        Duration::from_secs((newer >> 32).saturating_sub(older >> 32))
    }
}

pub trait SourceStream: Send {
    /// The next batch; an empty one once `wait` has passed without an event. The future must be driven to its end.
    fn next(&mut self, wait: Duration) -> BoxFuture<'_, Result<Batch, SourceError>>;
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// The start asked for is no longer in the source's history (MongoDB: 286, 280 on resume).
    #[error("history lost: {0}")]
    HistoryLost(String),
    /// The token belongs to another source or pipeline (MongoDB: 260).
    #[error("resume token refused: {0}")]
    BadToken(String),
    /// The next event is too large for the source to hand out (MongoDB: 10334).
    #[error("event too large: {0}")]
    Oversize(String),
    /// The stream has ended by itself, as after an invalidate; reopening goes after it.
    #[error("stream ended: {0}")]
    Ended(String),
    /// Expected to go away by itself: lost connection, election, killed cursor. Reopen with backoff.
    #[error("source unavailable: {0}")]
    Transient(String),
    /// Will not go away by itself: authentication, privileges, not a replica set, bad options.
    #[error("source refused: {0}")]
    Fatal(String),
}
