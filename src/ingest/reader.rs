//! One task a backend, on the ingest thread: opens the stream and hands on its batches, so that the next one is fetched while
//! this one is worked on.

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::{sync::mpsc, task::JoinHandle};
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
    /// The last thing a reader says.
    Failed(SourceError),
}

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
        let _ = to_pump.send(FromReader { backend, attempt, what }).await;
    })
}

/// Reads a source from `start` until it fails or the pump is gone.
pub(super) fn read(
    source: Arc<dyn Source>,
    backend: usize,
    attempt: u64,
    start: Start,
    to_pump: mpsc::Sender<FromReader>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let say = async |what| to_pump.send(FromReader { backend, attempt, what }).await.is_ok();
        let mut opened = match caught(async { source.open(start, Purpose::Live).await }).await {
            Ok(opened) => opened,
            Err(error) => {
                say(Said::Failed(error)).await;
                return;
            }
        };
        if !say(Said::Opened { start: opened.start }).await {
            return;
        }
        loop {
            match caught(async { opened.stream.next(AWAIT).await }).await {
                Ok(batch) => {
                    if !say(Said::Batch(batch)).await {
                        return;
                    }
                }
                Err(error) => {
                    say(Said::Failed(error)).await;
                    return;
                }
            }
        }
    })
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
