//! One task a stream, on the ingest thread: opens the stream and hands on its batches, so that the next one is fetched while
//! this one is worked on.

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::FutureExt;
use shards::{Nanos, driver::now_nanos};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use wire::Position;

use super::source::{Batch, Identity, Purpose, Source, SourceError, Start};

/// How long a stream is asked to wait for an event before it tells how far it has looked.
const AWAIT: Duration = Duration::from_secs(1);

/// Batches read ahead of the one that is worked on.
pub(super) const READ_AHEAD: usize = 1;

/// What a reader says, with the number of the attempt that it was started for: what an older attempt says is ignored.
#[derive(Debug)]
pub(super) struct FromReader {
    pub(super) backend: usize,
    pub(super) attempt: u64,
    /// When it had this in hand.
    pub(super) said_at: Nanos,
    pub(super) what: Said,
}

#[derive(Debug)]
pub(super) enum Said {
    Identified(Identity),
    /// The stream is open and yields every event after this place.
    Opened {
        start: (u64, u32),
    },
    Batch(Batch),
    /// The next event is too large to be read: this is what is known of it. The last thing a reader says.
    TooLarge(Bytes),
    /// The same, and what it is can't be told. The last thing a reader says.
    TooLargeUnknown(SourceError),
    /// The last thing a reader says.
    Failed(SourceError),
}

/// What a reader reads, and how.
pub(super) struct Reading {
    pub(super) source: Arc<dyn Source>,
    pub(super) backend: usize,
    pub(super) attempt: u64,
    pub(super) start: Start,
    pub(super) purpose: Purpose,
    /// Past an event that is too large: with one event in a batch, at most [`ONE_BY_ONE_MAX`] of them.
    pub(super) one_by_one: bool,
    /// A batch is handed on for each permit that is added here, and taken away by it. `None`: whenever the channel has room.
    pub(super) turns: Option<Arc<Semaphore>>,
}

/// Events read one by one before a stream is taken to have passed the one that was too large: as many as a batch holds.
const ONE_BY_ONE_MAX: usize = 1_000;

/// Asks a source who it is, which is to have been read up to `reached` once.
pub(super) fn identify(
    source: Arc<dyn Source>,
    backend: usize,
    attempt: u64,
    reached: Option<Position>,
    to_pump: mpsc::Sender<FromReader>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let identity = async {
            if let Some(reached) = reached {
                source.has_reached(reached).await?;
            }
            source.identity().await
        };
        let what = match caught(identity).await {
            Ok(identity) => Said::Identified(identity),
            Err(error) => Said::Failed(error),
        };
        // The pump is gone only while the node stops.
        let _ = to_pump.send(FromReader { backend, attempt, said_at: now_nanos(), what }).await;
    })
}

/// Reads a source until it fails or the pump is gone.
pub(super) fn read(reading: Reading, to_pump: mpsc::Sender<FromReader>) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Some(last) = reading.read(&to_pump).await {
            reading.say(&to_pump, last).await;
        }
    })
}

impl Reading {
    /// False once the pump is gone.
    async fn say(&self, to_pump: &mpsc::Sender<FromReader>, what: Said) -> bool {
        let said = FromReader { backend: self.backend, attempt: self.attempt, said_at: now_nanos(), what };
        to_pump.send(said).await.is_ok()
    }

    /// Returns what is to be said last; `None` once the pump is gone.
    async fn read(&self, to_pump: &mpsc::Sender<FromReader>) -> Option<Said> {
        let (source, start, purpose) = (&self.source, self.start.clone(), self.purpose);
        let opening = async {
            match self.one_by_one {
                true => source.open_one_by_one(start, purpose).await,
                false => source.open(start, purpose).await,
            }
        };
        let mut opened = match caught(opening).await {
            Ok(opened) => opened,
            Err(SourceError::Oversize(_)) if self.one_by_one => return Some(self.too_large().await),
            Err(error) => return Some(Said::Failed(error)),
        };
        if !self.say(to_pump, Said::Opened { start: opened.start }).await {
            return None;
        }
        let mut events = 0;
        loop {
            match caught(async { opened.stream.next(AWAIT).await }).await {
                Ok(batch) => {
                    events += batch.events.len();
                    if let Some(turns) = &self.turns {
                        turns.acquire().await.ok()?.forget();
                    }
                    if !self.say(to_pump, Said::Batch(batch)).await {
                        return None;
                    }
                    if self.one_by_one && events >= ONE_BY_ONE_MAX {
                        return Some(Said::Failed(SourceError::Ended("it has passed what was too large".into())));
                    }
                }
                Err(SourceError::Oversize(_)) if self.one_by_one && events == 0 => {
                    drop(opened);
                    return Some(self.too_large().await);
                }
                Err(error) => return Some(Said::Failed(error)),
            }
        }
    }

    /// The event after the start is too large.
    async fn too_large(&self) -> Said {
        match caught(async { self.source.too_large(self.start.clone(), self.purpose).await }).await {
            Ok(event) => Said::TooLarge(event),
            Err(SourceError::Transient(why)) => Said::Failed(SourceError::Transient(why)),
            Err(error) => Said::TooLargeUnknown(error),
        }
    }
}

/// A panic as a failure of the source, which is then opened anew: a task that ended without a word would leave its backend unread
/// for ever. Nothing that the panic may have left half done is used again.
async fn caught<T>(source: impl Future<Output = Result<T, SourceError>>) -> Result<T, SourceError> {
    AssertUnwindSafe(source).catch_unwind().await.unwrap_or_else(|panic| {
        Err(SourceError::Transient(format!("the code that reads it panicked: {}", message(&*panic))))
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
