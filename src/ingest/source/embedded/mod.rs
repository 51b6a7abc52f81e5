//! The embedded source: a change log with current documents in a folder of the node, so that before-images, resuming and retention
//! exist without a server.
//!
//! Cluster time is the log offset, and each offset is one event: `k` is always 1.

mod document;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use tokio::{sync::watch, time::Instant};
use wire::{BackendId, Position};

pub use self::{
    document::{COLLECTION_BYTES_MAX, DOCUMENT_BYTES_MAX, DocumentWrite, ID_BYTES_MAX, TENANT_BYTES_MAX},
    store::{
        CALL_BYTES_MAX, CALL_WRITES_MAX, Clock, EmbeddedStore, Queued, Retention, StoreError, StoreOptions, WriteError,
        WriteReceipt,
    },
};
use self::{
    document::{read_token, token},
    store::ReadError,
};
use super::{Batch, Identity, Opened, Purpose, ResumeToken, Source, SourceError, SourceStream, Start};

/// Reads the change log of a store.
#[derive(Debug)]
pub struct EmbeddedSource {
    name: String,
    store: Arc<EmbeddedStore>,
}

impl EmbeddedSource {
    /// `name` is the backend's name in the configuration.
    pub fn new(name: impl Into<String>, store: Arc<EmbeddedStore>) -> Self {
        Self { name: name.into(), store }
    }

    pub fn store(&self) -> &Arc<EmbeddedStore> {
        &self.store
    }

    fn open_at(&self, start: Start) -> Result<Opened, SourceError> {
        let store = &self.store;
        // Subscribed first, so that no move of the durable end is missed.
        let durable = store.shared().durable.subscribe();
        let upto = store.durable_upto();
        let (after, start) = match start {
            Start::Now => (upto, (upto + 1, 0)),
            Start::At { time } => (time.max(1) - 1, (time, 0)),
            Start::After { position, token } => {
                let (id, offset) = read_token(&token.0).ok_or_else(|| {
                    SourceError::BadToken("it is not one of an embedded store: 32 hexadecimal digits in `_data`".into())
                })?;
                let own = store.shared().id();
                if id != own {
                    return Err(SourceError::BadToken(format!(
                        "it was made by store {id:016x}, but {:?} holds store {own:016x}",
                        store.folder()
                    )));
                }
                (offset, (position.time, position.k))
            }
        };
        let first_kept = store.first_kept();
        if after + 1 < first_kept {
            return Err(trimmed(after + 1, first_kept));
        }
        if after > upto {
            return Err(SourceError::HistoryLost(format!(
                "offset {after} was asked for, but the log ends at {upto}: its end was lost"
            )));
        }
        let stream = Stream { store: store.clone(), durable, after };
        Ok(Opened { stream: Box::new(stream), start })
    }
}

impl Source for EmbeddedSource {
    fn backend(&self) -> BackendId {
        BackendId::of_name(&self.name)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> BoxFuture<'_, Result<Identity, SourceError>> {
        let identity = Identity {
            lineage: self.store.lineage(),
            description: format!(
                "embedded store {:016x} in {}",
                self.store.shared().id(),
                self.store.folder().display()
            ),
            before_images: true,
        };
        futures::future::ready(Ok(identity)).boxed()
    }

    fn open(&self, start: Start, _purpose: Purpose) -> BoxFuture<'_, Result<Opened, SourceError>> {
        futures::future::ready(self.open_at(start)).boxed()
    }

    fn has_reached(&self, position: Position) -> BoxFuture<'_, Result<(), SourceError>> {
        async move {
            let store = &self.store;
            // The place before the next event is as far as a reader of a whole log can have come.
            let end = (store.durable_upto() + 1, 0);
            if position.lineage == store.lineage() && position.order() > end {
                let lost = format!("offset {} was read once, but the log ends at {}", position.time, end.0 - 1);
                let begun = store.begin_new_history(&lost).await;
                begun.map_err(|error| SourceError::Fatal(error.to_string()))?;
            }
            Ok(())
        }
        .boxed()
    }

    fn between(&self, older: u64, newer: u64) -> Duration {
        // Offset 0 is the place before the first event. What can't be read lies further back than any bound.
        let Some(older) = self.store.shared().written_ms(older.max(1)) else { return Duration::MAX };
        let newer = self.store.shared().written_ms(newer).unwrap_or(older);
        Duration::from_millis(u64::try_from(newer - older).unwrap_or(0))
    }
}

struct Stream {
    store: Arc<EmbeddedStore>,
    durable: watch::Receiver<u64>,
    /// The offset of the last event handed out.
    after: u64,
}

impl Stream {
    async fn read(&mut self, wait: Duration) -> Result<Batch, SourceError> {
        let deadline = Instant::now() + wait;
        loop {
            let upto = *self.durable.borrow_and_update();
            if self.after < upto {
                let events = self.read_upto(upto).await?;
                self.after += events.len() as u64;
                return Ok(self.batch(events));
            }
            if let Some(failure) = self.store.failure() {
                return Err(SourceError::Fatal(format!(
                    "the store in {:?} has failed: {failure}",
                    self.store.folder()
                )));
            }
            match tokio::time::timeout_at(deadline, self.durable.changed()).await {
                Ok(Ok(())) => {}
                // The sender lives as long as the store, which this stream holds; either way nothing has come.
                Ok(Err(_)) | Err(_) => return Ok(self.batch(Vec::new())),
            }
        }
    }

    /// What is near the end is in memory and read on the spot; what may have to come from the disk is read elsewhere, so that the
    /// ingest thread doesn't wait for a disk.
    async fn read_upto(&self, upto: u64) -> Result<Vec<Bytes>, SourceError> {
        let (shared, after) = (self.store.shared().clone(), self.after);
        let read = move || shared.read(after, upto, BATCH_EVENTS_MAX, BATCH_BYTES_MAX);
        let events = if upto - after <= NEAR_EVENTS {
            read()
        } else {
            tokio::task::spawn_blocking(read).await.map_err(|error| SourceError::Transient(error.to_string()))?
        };
        events.map_err(|error| match error {
            ReadError::Trimmed { wanted, first_kept } => trimmed(wanted, first_kept),
            ReadError::Storage(what) => SourceError::Fatal(format!("the store in {:?}: {what}", self.store.folder())),
        })
    }

    fn batch(&self, events: Vec<Bytes>) -> Batch {
        let resume = ResumeToken(token(self.store.shared().id(), self.after).into_bytes().into());
        Batch { events, resume: Some(resume), passed: Some(self.after + 1), answered: true, time: None }
    }
}

impl SourceStream for Stream {
    fn next(&mut self, wait: Duration) -> BoxFuture<'_, Result<Batch, SourceError>> {
        self.read(wait).boxed()
    }
}

fn trimmed(wanted: u64, first_kept: u64) -> SourceError {
    SourceError::HistoryLost(format!(
        "offset {wanted} was asked for, but the log keeps only what comes from {first_kept} on"
    ))
}

/// Events in a batch.
const BATCH_EVENTS_MAX: usize = 1_000;
/// Bytes in a batch, unless a single event is larger.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// This far from the end of the log, its entries are taken to be in memory.
const NEAR_EVENTS: u64 = 4_096;
