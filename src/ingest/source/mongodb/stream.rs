//! An open change stream: a task that keeps one batch read ahead, and the cutting of a reply into events without a copy.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use ::mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};
use bson::RawDocument;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use tokio::{sync::mpsc, task::AbortHandle, time::Instant};

use super::{
    error::{classify, is_out_of_time},
    fragments::Fragments,
    token::TokenTimes,
};
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
    /// Must be called within a tokio runtime. `start` is the cluster time of the place where the stream begins, `stall` how long the server
    /// may take for one answer.
    pub(super) fn start(cursor: RawBatchCursor, start: u64, stall: Duration, size: Arc<BatchSize>) -> Self {
        let (sender, batches) = mpsc::channel(1);
        let replies = Replies::starting(start);
        let reader = tokio::spawn(read_ahead(cursor, replies, sender, stall, size)).abort_handle();
        Self { batches, ended: None, reader }
    }

    async fn read(&mut self, wait: Duration) -> Result<Batch, SourceError> {
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        let deadline = Instant::now() + wait;
        let mut idle = Batch::default();
        loop {
            match tokio::time::timeout_at(deadline, self.batches.recv()).await {
                Ok(Some(Ok(batch))) if batch.events.is_empty() => {
                    idle = Batch {
                        resume: batch.resume.or(idle.resume),
                        passed: batch.passed.or(idle.passed),
                        time: batch.time.or(idle.time),
                        ..batch
                    };
                }
                Ok(Some(Ok(batch))) => return Ok(batch),
                Ok(Some(Err(error))) => {
                    self.ended = Some(error.clone());
                    return Err(error);
                }
                // Only a panic or the runtime's end takes the task away without a last word.
                Ok(None) => {
                    return Err(SourceError::Transient("the task that reads the change stream has ended".into()));
                }
                Err(_) => return Ok(idle),
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

async fn read_ahead(
    mut cursor: RawBatchCursor,
    mut replies: Replies,
    batches: mpsc::Sender<Result<Batch, SourceError>>,
    stall: Duration,
    size: Arc<BatchSize>,
) {
    // The last event so far: after an invalidate the server closes the cursor.
    let mut last: Option<Bytes> = None;
    loop {
        let outcome = match tokio::time::timeout(stall, cursor.next()).await {
            Err(_) => {
                size.was_too_much();
                Err(SourceError::Transient(format!("no answer from the server for {} s", stall.as_secs_f32())))
            }
            Ok(Some(Err(error))) => {
                if is_out_of_time(&error) {
                    size.was_too_much();
                }
                Err(classify(&error))
            }
            Ok(Some(Ok(reply))) => {
                size.was_answered();
                replies.cut(&Bytes::from_owner(Reply(reply)))
            }
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

/// The replies of one stream, in their order.
#[derive(Debug)]
pub(super) struct Replies {
    fragments: Fragments,
    times: TokenTimes,
}

impl Replies {
    /// Of a stream that begins at this cluster time.
    pub(super) fn starting(time: u64) -> Self {
        Self { fragments: Fragments::default(), times: TokenTimes::starting(time) }
    }

    /// Events as slices of the one buffer that the reply arrived in, but for those that came in pieces.
    pub(super) fn cut(&mut self, reply: &Bytes) -> Result<Batch, SourceError> {
        let unlike = |error: &dyn std::fmt::Display| {
            SourceError::Transient(format!("the server's reply is not what a cursor answers: {error}"))
        };
        let mut batch = Batch::default();
        let whole = RawDocument::from_bytes(reply).map_err(|error| unlike(&error))?;
        let cursor = whole.get_document("cursor").map_err(|error| unlike(&error))?;
        let mut token = None;
        for field in cursor.iter() {
            let (name, value) = field.map_err(|error| unlike(&error))?;
            match name.as_str() {
                "firstBatch" | "nextBatch" => {
                    for event in value.as_array().into_iter().flatten() {
                        if let Some(event) = event.map_err(|error| unlike(&error))?.as_document() {
                            let event = self.fragments.take(reply.slice_ref(event.as_bytes()));
                            batch.events.extend(event.map_err(|error| unlike(&error))?);
                        }
                    }
                }
                "postBatchResumeToken" => token = value.as_document(),
                _ => {}
            }
        }
        let last = batch.events.last().and_then(|event| RawDocument::from_bytes(event).ok());
        last.into_iter().for_each(|event| self.times.see(event));
        // A token within an event is none to go on from: the whole event would be missing.
        if !self.fragments.is_between() {
            token = None;
        }
        batch.answered = true;
        batch.time = told_time(whole);
        batch.passed = token.and_then(|token| self.times.passed(token, batch.time));
        let token = token.or_else(|| last?.get_document("_id").ok());
        batch.resume = token.map(|token| ResumeToken(Bytes::copy_from_slice(token.as_bytes())));
        Ok(batch)
    }
}

/// The server's own time, as it tells it with a reply.
fn told_time(reply: &RawDocument) -> Option<u64> {
    let gossiped = || reply.get_document("$clusterTime").ok()?.get_timestamp("clusterTime").ok();
    reply.get_timestamp("operationTime").ok().or_else(gossiped).map(super::number)
}

/// How many events are asked for in one batch: fewer after the server has not got one done in time, more again while it does.
#[derive(Debug)]
pub(super) struct BatchSize {
    max: u32,
    now: AtomicU32,
    answered: AtomicU32,
}

impl BatchSize {
    pub(super) fn new(max: u32) -> Self {
        Self { max, now: AtomicU32::new(max), answered: AtomicU32::new(0) }
    }

    /// For the next stream.
    pub(super) fn get(&self) -> u32 {
        self.now.load(Relaxed)
    }

    pub(super) fn was_too_much(&self) {
        self.answered.store(0, Relaxed);
        self.now.store((self.get() / 2).max(BATCH_MIN.min(self.max)), Relaxed);
    }

    pub(super) fn was_answered(&self) {
        let answered = self.answered.load(Relaxed) + 1;
        self.answered.store(answered % ANSWERS_TO_GROW, Relaxed);
        if answered == ANSWERS_TO_GROW {
            self.now.store(self.get().saturating_mul(2).min(self.max), Relaxed);
        }
    }
}

const BATCH_MIN: u32 = 16;
/// Replies in time after which the next stream asks for twice as many events.
const ANSWERS_TO_GROW: u32 = 64;

fn is_invalidate(event: &[u8]) -> bool {
    RawDocument::from_bytes(event)
        .is_ok_and(|event| event.get_str("operationType").is_ok_and(|name| name == "invalidate"))
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    fn cut_bytes(reply: &Bytes) -> Result<Batch, SourceError> {
        Replies::starting(0).cut(reply)
    }

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

    #[test]
    fn no_token_within_an_event_is_told() {
        let reply = |events: bson::RawArrayBuf, token: &str| -> Bytes {
            rawdoc! { "cursor": { "nextBatch": events, "postBatchResumeToken": { "_data": token } } }
                .into_bytes()
                .into()
        };
        let piece = |token: &str, fragment: i32| {
            rawdoc! { "_id": { "_data": token }, "splitEvent": { "fragment": fragment, "of": 2 }, "x": fragment }
        };
        let token = |batch: &Batch| {
            let token = batch.resume.as_ref()?;
            RawDocument::from_bytes(&token.0).ok()?.get_str("_data").ok().map(str::to_owned)
        };
        let mut replies = Replies::starting(0);
        let events = bson::rawbson!([{ "_id": { "_data": "1" }, "x": 1 }]);
        let mut events = events.as_array().expect("an array").to_owned();
        events.push(piece("2", 1));
        let batch = replies.cut(&reply(events, "2")).expect("well formed");
        assert_eq!((batch.events.len(), token(&batch).as_deref()), (1, Some("1")));
        let batch = replies.cut(&reply(bson::RawArrayBuf::new(), "2")).expect("well formed");
        assert_eq!((batch.events.len(), token(&batch)), (0, None));
        let mut events = bson::RawArrayBuf::new();
        events.push(piece("3", 2));
        let batch = replies.cut(&reply(events, "4")).expect("well formed");
        assert_eq!((batch.events.len(), token(&batch).as_deref()), (1, Some("4")));
        let whole = RawDocument::from_bytes(&batch.events[0]).expect("an event is a document");
        assert_eq!(whole.get_document("_id").and_then(|id| id.get_str("_data")).ok(), Some("3"));
    }

    #[test]
    fn an_empty_batch_tells_how_far_the_server_has_looked() {
        let reply = |time: u32| -> Bytes {
            let token = "8265A1B2C300000007";
            let now = bson::Timestamp { time, increment: 9 };
            rawdoc! { "cursor": { "nextBatch": [], "postBatchResumeToken": { "_data": token } }, "operationTime": now }
                .into_bytes()
                .into()
        };
        let passed = |time| cut_bytes(&reply(time)).expect("well formed").passed;
        assert_eq!(passed(0x65a1_b2c3), Some(0x65a1_b2c3_0000_0007));
        assert_eq!(passed(0x65a1_b2c2), None, "a time that the server hasn't come to");
    }

    #[test]
    fn batches_shrink_when_they_take_too_long_and_grow_again() {
        let size = BatchSize::new(1_000);
        size.was_too_much();
        assert_eq!(size.get(), 500);
        (0..20).for_each(|_| size.was_too_much());
        assert_eq!(size.get(), 16);
        (0..64).for_each(|_| size.was_answered());
        assert_eq!(size.get(), 32);
        (0..64 * 20).for_each(|_| size.was_answered());
        assert_eq!(size.get(), 1_000);
        let small = BatchSize::new(1);
        small.was_too_much();
        assert_eq!(small.get(), 1);
    }
}
