//! An open change stream: a task that keeps one batch read ahead, and the cutting of a reply into events without a copy.

use std::time::Duration;

use ::mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};
use bson::RawDocument;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use tokio::{sync::mpsc, task::AbortHandle, time::Instant};

use super::error::classify;
use crate::ingest::source::{Batch, ResumeToken, SourceError, SourceStream};

/// The reading end. The task behind it asks for the next batch while the one before is being worked on; it holds at most one finished
/// batch besides the one that it waits to hand over.
pub(super) struct MongoStream {
    batches: mpsc::Receiver<Result<Batch, SourceError>>,
    /// Told again to whoever asks after the end.
    ended: Option<SourceError>,
    reader: AbortHandle,
}

impl MongoStream {
    /// Must be called within a tokio runtime. `stall` is how long the server may take for one answer.
    pub(super) fn start(cursor: RawBatchCursor, stall: Duration) -> Self {
        let (sender, batches) = mpsc::channel(1);
        let reader = tokio::spawn(read_ahead(cursor, sender, stall)).abort_handle();
        Self { batches, ended: None, reader }
    }

    async fn read(&mut self, wait: Duration) -> Result<Batch, SourceError> {
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        let deadline = Instant::now() + wait;
        let mut resume = None;
        loop {
            match tokio::time::timeout_at(deadline, self.batches.recv()).await {
                Ok(Some(Ok(batch))) if batch.events.is_empty() => resume = batch.resume.or(resume),
                Ok(Some(Ok(batch))) => return Ok(batch),
                Ok(Some(Err(error))) => {
                    self.ended = Some(error.clone());
                    return Err(error);
                }
                // Only a panic or the runtime's end takes the task away without a last word.
                Ok(None) => {
                    return Err(SourceError::Transient("the task that reads the change stream has ended".into()));
                }
                Err(_) => return Ok(Batch { events: Vec::new(), resume, passed: None }),
            }
        }
    }
}

impl SourceStream for MongoStream {
    fn next(&mut self, wait: Duration) -> BoxFuture<'_, Result<Batch, SourceError>> {
        self.read(wait).boxed()
    }
}

impl Drop for MongoStream {
    fn drop(&mut self) {
        // Drops the cursor with the task, which ends it on the server.
        self.reader.abort();
    }
}

async fn read_ahead(mut cursor: RawBatchCursor, batches: mpsc::Sender<Result<Batch, SourceError>>, stall: Duration) {
    // The last event so far: after an invalidate the server closes the cursor.
    let mut last: Option<Bytes> = None;
    loop {
        let outcome = match tokio::time::timeout(stall, cursor.next()).await {
            Err(_) => Err(SourceError::Transient(format!("no answer from the server for {} s", stall.as_secs_f32()))),
            Ok(Some(Err(error))) => Err(classify(&error)),
            Ok(Some(Ok(reply))) => cut(reply),
            Ok(None) if last.as_deref().is_some_and(is_invalidate) => {
                Err(SourceError::Ended("the watched database was dropped or renamed".into()))
            }
            Ok(None) => Err(SourceError::Transient("the server closed the cursor".into())),
        };
        let is_last = outcome.is_err();
        if let Ok(batch) = &outcome
            && let Some(event) = batch.events.last()
        {
            last = Some(event.clone());
        }
        if batches.send(outcome).await.is_err() || is_last {
            return;
        }
    }
}

/// A reply as the owner of its bytes.
struct Reply(RawBatch);

impl AsRef<[u8]> for Reply {
    fn as_ref(&self) -> &[u8] {
        self.0.as_raw_document().as_bytes()
    }
}

/// Events as slices of the one buffer that the reply arrived in.
fn cut(reply: RawBatch) -> Result<Batch, SourceError> {
    cut_bytes(&Bytes::from_owner(Reply(reply)))
        .map_err(|error| SourceError::Transient(format!("the server's reply is not what a cursor answers: {error}")))
}

fn cut_bytes(reply: &Bytes) -> Result<Batch, bson::error::Error> {
    let mut batch = Batch::default();
    let cursor = RawDocument::from_bytes(reply)?.get_document("cursor")?;
    for field in cursor.iter() {
        let (name, value) = field?;
        match name.as_str() {
            "firstBatch" | "nextBatch" => {
                for event in value.as_array().into_iter().flatten() {
                    if let Some(event) = event?.as_document() {
                        batch.events.push(reply.slice_ref(event.as_bytes()));
                    }
                }
            }
            "postBatchResumeToken" => {
                batch.resume = value.as_document().map(|token| ResumeToken(Bytes::copy_from_slice(token.as_bytes())));
            }
            _ => {}
        }
    }
    if batch.resume.is_none()
        && let Some(event) = batch.events.last()
    {
        let token = RawDocument::from_bytes(event)?.get_document("_id")?;
        batch.resume = Some(ResumeToken(Bytes::copy_from_slice(token.as_bytes())));
    }
    Ok(batch)
}

fn is_invalidate(event: &[u8]) -> bool {
    RawDocument::from_bytes(event)
        .is_ok_and(|event| event.get_str("operationType").is_ok_and(|name| name == "invalidate"))
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    #[test]
    fn events_are_slices_of_the_reply() {
        let reply: Bytes = rawdoc! {
            "cursor": { "id": 7_i64, "ns": "db.c", "nextBatch": [{ "_id": { "_data": "1" }, "x": 1 }, { "_id": { "_data": "2" }, "x": 2 }],
                "postBatchResumeToken": { "_data": "3" } },
            "ok": 1.0,
        }
        .into_bytes()
        .into();
        let batch = cut_bytes(&reply).expect("well formed");
        assert_eq!(batch.events.len(), 2);
        let range = reply.as_ptr_range();
        assert!(batch.events.iter().all(|event| range.contains(&event.as_ptr())), "an event was copied");
        let event = RawDocument::from_bytes(&batch.events[1]).expect("an event is a document");
        assert_eq!(event.get_i32("x").ok(), Some(2));
        assert_eq!(&*batch.resume.expect("told").0, rawdoc! { "_data": "3" }.as_bytes());
    }

    #[test]
    fn without_a_token_of_the_batch_its_last_event_tells_it() {
        let reply: Bytes = rawdoc! { "cursor": { "firstBatch": [{ "_id": { "_data": "1" } }] } }.into_bytes().into();
        let batch = cut_bytes(&reply).expect("well formed");
        assert_eq!(&*batch.resume.expect("found").0, rawdoc! { "_data": "1" }.as_bytes());
    }

    #[test]
    fn a_reply_that_is_none_is_an_error() {
        cut_bytes(&rawdoc! { "ok": 1.0 }.into_bytes().into()).expect_err("it has no cursor");
        cut_bytes(&Bytes::from_static(b"garbage")).expect_err("it is no document");
    }
}
