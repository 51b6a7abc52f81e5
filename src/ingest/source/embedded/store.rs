//! The store: a log of change events beside the current documents, in one `fjall` database.
//!
//! Invariants:
//! - Offsets are 1, 2, 3 … without a hole, and only the writer thread assigns them. Offset 0 is "before everything".
//! - An event, the document that it changes and the counters beside it become durable in one batch or not at all, and nothing of a
//!   batch can be read before it is as durable as the options ask for. `durable_upto` only grows, and never names what is not.
//! - The log holds every offset from `trimmed_upto + 1` to `durable_upto`. `trimmed_upto` is moved before the entries go, so a reader
//!   that finds an entry missing sees why.
//! - A history that may have lost its end takes another identity before anything is added to it: an offset never names two events of
//!   one history. The log then begins anew, since the tokens in it are of the old one.
//! - After a failed commit nothing more is written until the store is opened again: what reached the disk is unknown until then.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use bson::{RawDocument, RawDocumentBuf};
use bytes::Bytes;
use fjall::{Database, Guard, Keyspace, KeyspaceCreateOptions, PersistMode};
use predicate::mapping::Nested;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use wire::Lineage;

use super::{
    document::{DOCUMENT_BYTES_MAX, DocumentWrite, Prepared, wall_ms},
    writer::{Asked, Request, Writer},
};

/// How a store is kept.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Whether a write is answered only once it has been synced to the disk. Without it a write survives the end of the process, but
    /// not that of the machine: for folders that are thrown away anyway.
    pub sync: bool,
    /// Names the time since the machine was started; empty where that can't be told.
    pub boot_id: String,
    pub retention: Retention,
    /// Memory for cached blocks.
    pub cache_bytes: u64,
    /// Memory that waiting writes may hold. Beyond it, writers wait.
    pub queue_bytes_max: usize,
    pub clock: Clock,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            sync: true,
            boot_id: std::fs::read_to_string(BOOT_ID_FILE).map(|id| id.trim().to_owned()).unwrap_or_default(),
            retention: Retention::default(),
            cache_bytes: 64 << 20,
            queue_bytes_max: 64 << 20,
            clock: Clock::system(),
        }
    }
}

/// How much of the log is kept. Whatever is over one of the limits goes, oldest first, whenever something is written. Current documents
/// always stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Bytes of events, before compression.
    pub bytes: u64,
    pub events: u64,
    pub age: Option<Duration>,
}

impl Default for Retention {
    fn default() -> Self {
        Self { bytes: 1 << 30, events: 10_000_000, age: None }
    }
}

/// Tells the time for `created_at` and `updated_at`, in ms since 1970.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> i64 + Send + Sync>);

impl Clock {
    pub fn new(now_ms: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now_ms))
    }

    pub fn system() -> Self {
        #[allow(
            clippy::disallowed_methods,
            reason = "the store is where documents get their wall-clock times; no order depends on them"
        )]
        Self::new(|| {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            since.map_or(0, |since| since.as_millis() as i64)
        })
    }

    pub(super) fn now_ms(&self) -> i64 {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// What became of the writes of one call, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteReceipt {
    /// The offset of each write's event; `None` where nothing changed, as for deleting what was not there.
    pub offsets: Vec<Option<u64>>,
    pub first_offset: Option<u64>,
    pub last_offset: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Nothing of the call was written.
    #[error("write {index}: {what}")]
    Invalid { index: usize, what: String },
    /// Nothing of the call was written.
    #[error("write {index}: the document would have {bytes} bytes; allowed are {DOCUMENT_BYTES_MAX}")]
    DocumentTooLarge { index: usize, bytes: usize },
    /// Nothing of the call was written.
    #[error(
        "one call has {writes} writes of {bytes} bytes or more; allowed are {CALL_WRITES_MAX} writes, {CALL_BYTES_MAX} bytes as sent and four \
         times that as stored, with the documents that they replace or delete"
    )]
    CallTooLarge { writes: usize, bytes: usize },
    /// The storage failed. Whether these writes happened is known once the store has been opened again.
    #[error("the store in {folder:?} has failed and takes no more writes until the node is restarted: {what}")]
    Storage { folder: PathBuf, what: String },
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store in {0:?} is in use by another process; end that one, or configure another folder")]
    Locked(PathBuf),
    #[error("{folder:?} holds a store of format {found}; this version reads format {FORMAT}")]
    Format { folder: PathBuf, found: u64 },
    #[error("the store in {folder:?} is damaged: {what}")]
    Damaged { folder: PathBuf, what: String },
    #[error("the store in {folder:?} can't be read or written: {what}")]
    Storage { folder: PathBuf, what: String },
}

/// Why a stretch of the log can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReadError {
    /// It begins before what is kept.
    Trimmed {
        wanted: u64,
        first_kept: u64,
    },
    Storage(String),
}

/// Documents and their change log in a folder. Dropping the last handle finishes the writes that were taken and closes the folder.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    /// Free memory of the queue, in KiB, which keeps the permits of the largest allowed queue within the semaphore's range.
    room: Arc<Semaphore>,
    room_kib: u32,
    queue: Option<mpsc::Sender<Asked>>,
    writer: Option<thread::JoinHandle<()>>,
}

impl EmbeddedStore {
    /// Opens the store in `folder`, making it where there is none. Blocks while the journal is replayed. The threads that it starts
    /// inherit the affinity of the caller: open it before the caller is pinned.
    pub fn open(folder: impl AsRef<Path>, options: StoreOptions) -> Result<Arc<Self>, StoreError> {
        let folder = folder.as_ref().to_path_buf();
        let (shared, writer) = open_parts(folder.clone(), &options)?;
        let (queue, requests) = mpsc::channel(QUEUE_CALLS_MAX);
        let writer = thread::Builder::new()
            .name("streamer-store".into())
            .spawn(move || writer.run(requests))
            .map_err(|error| StoreError::Storage { folder, what: format!("no thread for the writer: {error}") })?;
        let room_kib =
            u32::try_from((options.queue_bytes_max / 1024).clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX >> 4);
        Ok(Arc::new(Self {
            shared,
            room: Arc::new(Semaphore::new(room_kib as usize)),
            room_kib,
            queue: Some(queue),
            writer: Some(writer),
        }))
    }

    /// Writes all of `writes`, in order and as one, or nothing. Answered once durable; waits while the queue is full. A call given up
    /// by its caller may still be carried out.
    pub async fn write(&self, writes: Vec<DocumentWrite>) -> Result<WriteReceipt, WriteError> {
        self.submit(writes).await?.durable().await
    }

    /// Queues writes, and returns once they have their place in the order: what is submitted after that comes after them.
    pub async fn submit(&self, writes: Vec<DocumentWrite>) -> Result<Queued, WriteError> {
        if writes.is_empty() {
            return Ok(Queued { answer: None, shared: self.shared.clone() });
        }
        let count = writes.len();
        if count > CALL_WRITES_MAX {
            return Err(WriteError::CallTooLarge { writes: count, bytes: 0 });
        }
        let prepare = |(index, write)| Prepared::new(write).map_err(|what| WriteError::Invalid { index, what });
        let prepared = writes.into_iter().enumerate().map(prepare).collect::<Result<Vec<_>, _>>()?;
        let sizes = prepared.iter().map(Prepared::bytes);
        if let Some((index, bytes)) = sizes.clone().enumerate().find(|(_, bytes)| *bytes > DOCUMENT_BYTES_MAX) {
            return Err(WriteError::DocumentTooLarge { index, bytes });
        }
        let bytes: usize = sizes.sum();
        if bytes > CALL_BYTES_MAX {
            return Err(WriteError::CallTooLarge { writes: count, bytes });
        }

        // A call larger than the whole queue waits until it has the queue for itself.
        let permits = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).clamp(1, self.room_kib);
        let room = self.room.clone().acquire_many_owned(permits).await.map_err(|_| self.failed())?;
        let (reply, answer) = oneshot::channel();
        let queue = self.queue.as_ref().ok_or_else(|| self.failed())?;
        let request = Request { writes: prepared, reply, _room: room };
        queue.send(Asked::Write(request)).await.map_err(|_| self.failed())?;
        Ok(Queued { answer: Some(answer), shared: self.shared.clone() })
    }

    /// Gives the history from here on another identity, because `lost` tells that its end is gone. No reader may be at it.
    pub(super) async fn begin_new_history(&self, lost: &str) -> Result<(), WriteError> {
        tracing::warn!(folder = %self.shared.folder.display(), lost, "the embedded store begins a new history");
        let (reply, answer) = oneshot::channel();
        let queue = self.queue.as_ref().ok_or_else(|| self.failed())?;
        queue.send(Asked::NewHistory(reply)).await.map_err(|_| self.failed())?;
        answer.await.unwrap_or_else(|_| Err(self.shared.writer_failed()))
    }

    /// The stored document, soft-deleted ones included.
    pub fn get(&self, tenant: &str, collection: &str, id: &str) -> Result<Option<RawDocumentBuf>, StoreError> {
        let found = self.shared.documents.get(Nested::storage_id(tenant, collection, id));
        match found.map_err(|error| self.shared.storage_error(&error))? {
            None => Ok(None),
            Some(bytes) => self.decode(&bytes).map(Some),
        }
    }

    /// At most `limit` documents of a collection, soft-deleted ones included, in no order that means anything. Walks over all documents
    /// of the tenant.
    pub fn scan(&self, tenant: &str, collection: &str, limit: usize) -> Result<Vec<RawDocumentBuf>, StoreError> {
        let mut found = Vec::new();
        for entry in self.shared.documents.prefix(format!("{tenant}:")) {
            let bytes = entry.value().map_err(|error| self.shared.storage_error(&error))?;
            let document = self.decode(&bytes)?;
            if document.get_str("collection").is_ok_and(|own| own == collection) {
                if found.len() == limit {
                    break;
                }
                found.push(document);
            }
        }
        Ok(found)
    }

    /// The offset up to which everything is durable; 0 for a store that nothing was ever written to.
    pub fn durable_upto(&self) -> u64 {
        self.shared.durable_upto()
    }

    /// The lowest offset that the log still has, or will have next.
    pub fn first_kept(&self) -> u64 {
        self.shared.first_kept()
    }

    /// Identity of this store's history, made when its folder was, or when the end of an earlier history was lost.
    pub fn lineage(&self) -> Lineage {
        let hash =
            blake3::hash(format!("streamer embedded store {:016x} form {EVENT_FORM}", self.shared.id()).as_bytes());
        let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
        Lineage(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }

    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// Why the store takes no more writes, if it does not.
    pub fn failure(&self) -> Option<&str> {
        self.shared.failure.get().map(String::as_str)
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn decode(&self, bytes: &[u8]) -> Result<RawDocumentBuf, StoreError> {
        let document = RawDocument::from_bytes(bytes);
        document.map(RawDocument::to_owned).map_err(|error| StoreError::Damaged {
            folder: self.shared.folder.clone(),
            what: format!("a stored document is not BSON: {error}"),
        })
    }

    fn failed(&self) -> WriteError {
        self.shared.writer_failed()
    }
}

/// Writes that have their place in the order and aren't known to be durable yet.
pub struct Queued {
    /// `None` where there is nothing to write.
    answer: Option<oneshot::Receiver<Result<WriteReceipt, WriteError>>>,
    shared: Arc<Shared>,
}

impl Queued {
    /// Waits until they are durable. Dropping it doesn't take the writes back.
    pub async fn durable(self) -> Result<WriteReceipt, WriteError> {
        match self.answer {
            None => Ok(WriteReceipt::default()),
            Some(answer) => answer.await.unwrap_or_else(|_| Err(self.shared.writer_failed())),
        }
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        // The writer ends once the queue is closed and empty.
        drop(self.queue.take());
        if let Some(writer) = self.writer.take() {
            // A panicking writer has told its end to whoever waited for it.
            let _ = writer.join();
        }
    }
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore")
            .field("folder", &self.shared.folder)
            .field("durable_upto", &self.durable_upto())
            .finish()
    }
}

/// What writer and readers both hold.
pub(super) struct Shared {
    pub(super) folder: PathBuf,
    pub(super) id: AtomicU64,
    pub(super) database: Database,
    /// Storage id → document.
    pub(super) documents: Keyspace,
    /// Offset, big-endian → event.
    pub(super) log: Keyspace,
    pub(super) counters: Keyspace,
    pub(super) durable: watch::Sender<u64>,
    pub(super) trimmed_upto: AtomicU64,
    pub(super) failure: OnceLock<String>,
}

impl Shared {
    pub(super) fn id(&self) -> u64 {
        self.id.load(Ordering::Acquire)
    }

    /// When the event at this offset was written, in ms since 1970; None where the log doesn't have it.
    pub(super) fn written_ms(&self, offset: u64) -> Option<i64> {
        wall_ms(&self.log.get(offset.to_be_bytes()).ok()??)
    }

    pub(super) fn durable_upto(&self) -> u64 {
        *self.durable.borrow()
    }

    pub(super) fn first_kept(&self) -> u64 {
        self.trimmed_upto.load(Ordering::Acquire) + 1
    }

    /// Events after the offset `after`, the first of them at `after + 1` and none beyond `upto`: as many as fit into both limits, at
    /// least one. `upto` must be durable.
    pub(super) fn read(
        &self,
        after: u64,
        upto: u64,
        events_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Bytes>, ReadError> {
        debug_assert!(upto <= self.durable_upto(), "only what is durable may be read");
        let mut events = Vec::new();
        let mut bytes = 0;
        let mut next = after + 1;
        for entry in self.log.range(next.to_be_bytes()..=upto.to_be_bytes()) {
            let (key, event) = entry.into_inner().map_err(|error| ReadError::Storage(error.to_string()))?;
            if *key != next.to_be_bytes() {
                break;
            }
            bytes += event.len();
            if !events.is_empty() && bytes > bytes_max {
                return Ok(events);
            }
            events.push(event.into());
            next += 1;
            if events.len() == events_max {
                return Ok(events);
            }
        }
        if next > upto {
            return Ok(events);
        }
        let first_kept = self.first_kept();
        if next < first_kept {
            return Err(ReadError::Trimmed { wanted: next, first_kept });
        }
        Err(ReadError::Storage(format!("offset {next} of the log is missing, though {upto} was written")))
    }

    pub(super) fn storage_error(&self, error: &fjall::Error) -> StoreError {
        StoreError::Storage { folder: self.folder.clone(), what: error.to_string() }
    }

    fn writer_failed(&self) -> WriteError {
        self.write_error(self.failure.get().map_or("its writer thread has ended", String::as_str))
    }

    pub(super) fn write_error(&self, what: &str) -> WriteError {
        WriteError::Storage { folder: self.folder.clone(), what: what.to_owned() }
    }
}

fn open_parts(folder: PathBuf, options: &StoreOptions) -> Result<(Arc<Shared>, Writer), StoreError> {
    let failed = |error: fjall::Error| match error {
        fjall::Error::Locked => StoreError::Locked(folder.clone()),
        error => StoreError::Storage { folder: folder.clone(), what: error.to_string() },
    };
    let database = Database::builder(&folder)
        .cache_size(options.cache_bytes)
        .worker_threads(WORKER_THREADS)
        .max_journaling_size(JOURNAL_BYTES_MAX)
        .open()
        .map_err(failed)?;
    let keyspace = |name| database.keyspace(name, KeyspaceCreateOptions::default).map_err(failed);
    let (documents, log, counters) = (keyspace("documents")?, keyspace("log")?, keyspace("counters")?);

    let damaged = |what: String| StoreError::Damaged { folder: folder.clone(), what };
    let counter = |name: &str| match counters.get(name).map_err(failed)? {
        None => Ok(None),
        Some(value) => {
            let bytes = <[u8; 8]>::try_from(&*value);
            bytes
                .map(|bytes| Some(u64::from_be_bytes(bytes)))
                .map_err(|_| damaged(format!("counter {name:?} is not a number")))
        }
    };
    let id = match (counter(COUNTER_FORMAT)?, counter(COUNTER_ID)?) {
        (Some(FORMAT), Some(id)) => id,
        (Some(FORMAT), None) => return Err(damaged("it has no identity".into())),
        (Some(found), _) => return Err(StoreError::Format { folder: folder.clone(), found }),
        // An identity comes with the first batch ever, so whatever is without one has nothing else either.
        (None, _) => {
            let id = rand::random();
            let mut batch = database.batch().durability(Some(PersistMode::SyncAll));
            batch.insert(&counters, COUNTER_FORMAT, FORMAT.to_be_bytes());
            batch.insert(&counters, COUNTER_ID, u64::to_be_bytes(id));
            batch.commit().map_err(failed)?;
            id
        }
    };
    let trimmed_upto = counter(COUNTER_TRIMMED_UPTO)?.unwrap_or(0);
    let log_bytes = counter(COUNTER_LOG_BYTES)?.unwrap_or(0);
    let last = match log.last_key_value().map(Guard::key).transpose().map_err(failed)? {
        None => trimmed_upto,
        Some(key) => {
            let offset = <[u8; 8]>::try_from(&*key).map_err(|_| damaged("a key of the log is not an offset".into()))?;
            u64::from_be_bytes(offset)
        }
    };
    if last < trimmed_upto {
        return Err(damaged(format!("the log ends at {last}, before {trimmed_upto}, up to which it was trimmed")));
    }
    let shared = Arc::new(Shared {
        folder: folder.clone(),
        id: AtomicU64::new(id),
        database,
        documents,
        log,
        counters,
        durable: watch::Sender::new(last),
        trimmed_upto: AtomicU64::new(trimmed_upto),
        failure: OnceLock::new(),
    });
    let mut writer = Writer::new(shared.clone(), options, last, log_bytes);
    let opened_at = shared.counters.get(COUNTER_UNSYNCED).map_err(failed)?;
    let fails = |what: String| StoreError::Storage { folder: folder.clone(), what };
    if opened_at.is_some_and(|boot| boot.is_empty() || *boot != *options.boot_id.as_bytes()) {
        tracing::warn!(
            folder = %folder.display(),
            "the embedded store was written without `sync`, and not closed before the machine ended: it begins a new history"
        );
        writer.begin_new_history().map_err(fails)?;
    }
    writer.mark_opened(options).map_err(fails)?;
    Ok((shared, writer))
}

/// Linux tells which start of the machine this is.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

pub(super) const COUNTER_TRIMMED_UPTO: &str = "trimmed_upto";
pub(super) const COUNTER_LOG_BYTES: &str = "log_bytes";
/// While a store is open that doesn't sync: the `boot_id` that it was opened at.
pub(super) const COUNTER_UNSYNCED: &str = "unsynced_since";
pub(super) const COUNTER_ID: &str = "id";
const COUNTER_FORMAT: &str = "format";
/// Version of the layout in the folder.
const FORMAT: u64 = 1;
/// Version of the events' meaning: positions of a store read under another are not comparable.
const EVENT_FORM: u32 = 1;
/// Calls that may wait for the writer.
const QUEUE_CALLS_MAX: usize = 1_024;
/// Writes in one call.
pub const CALL_WRITES_MAX: usize = 100_000;
/// Bytes of the writes in one call.
pub const CALL_BYTES_MAX: usize = 64 << 20;
/// Threads that write tables and compact them, so that one long compaction does not hold up a flush.
const WORKER_THREADS: usize = 2;
/// Disk space of the journals.
const JOURNAL_BYTES_MAX: u64 = 256 << 20;

const _: () = assert!(CALL_BYTES_MAX >= 2 * DOCUMENT_BYTES_MAX, "the largest document must fit into a call");
