//! The writer thread: drains the queue into a group, commits it as one batch, answers, trims.
//!
//! Invariants:
//! - A call is staged whole or not at all; a refused call leaves no trace in the group, its offsets included.
//! - `durable_upto` is moved after the commit and before the answers, so that whoever has an answer finds its events readable.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use bson::{RawDocument, RawDocumentBuf, raw::cstr};
use bytes::Bytes;
use fjall::PersistMode;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::{
    document::{
        Action, Current, DOCUMENT_BYTES_MAX, Happened, Place, Prepared, Stamp, document, event, merged,
        update_description, wall_ms,
    },
    store::{
        CALL_BYTES_MAX, COUNTER_ID, COUNTER_LOG_BYTES, COUNTER_TRIMMED_UPTO, COUNTER_UNSYNCED, Clock, Retention,
        Shared, StoreOptions, WriteError, WriteReceipt,
    },
};

/// What the writer thread is asked for.
pub(super) enum Asked {
    Write(Request),
    NewHistory(oneshot::Sender<Result<(), WriteError>>),
}

/// One call of a writer.
pub(super) struct Request {
    pub(super) writes: Vec<Prepared>,
    pub(super) reply: oneshot::Sender<Result<WriteReceipt, WriteError>>,
    /// Holds the call's share of the queue's memory until it is answered.
    pub(super) _room: OwnedSemaphorePermit,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    persist: PersistMode,
    retention: Retention,
    clock: Clock,
    /// The highest offset given out.
    last: u64,
    /// Bytes of all events in the log.
    log_bytes: u64,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, options: &StoreOptions, last: u64, log_bytes: u64) -> Self {
        let persist = if options.sync { PersistMode::SyncData } else { PersistMode::Buffer };
        Self { shared, persist, retention: options.retention, clock: options.clock.clone(), last, log_bytes }
    }

    /// Until the queue is closed and empty.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Asked>) {
        let mut next = queue.blocking_recv();
        while let Some(asked) = next {
            let mut after = None;
            match (asked, self.shared.failure.get()) {
                // Whoever has given up waiting doesn't want the answer.
                (Asked::Write(request), Some(failure)) => {
                    let _ = request.reply.send(Err(self.shared.write_error(failure)));
                }
                (Asked::NewHistory(reply), Some(failure)) => drop(reply.send(Err(self.shared.write_error(failure)))),
                (Asked::Write(request), None) => after = self.write_group(request, &mut queue),
                (Asked::NewHistory(reply), None) => {
                    let begun = self.begin_new_history();
                    let answer = begun.map_err(|what| {
                        self.fail(what.clone());
                        self.shared.write_error(&what)
                    });
                    let _ = reply.send(answer);
                }
            }
            next = after.or_else(|| queue.blocking_recv());
        }
        self.mark_closed();
    }

    /// Writes `first` and whatever else waits, up to a bound. Gives back what was waiting and is no write.
    fn write_group(&mut self, first: Request, queue: &mut mpsc::Receiver<Asked>) -> Option<Asked> {
        let now_ms = self.clock.now_ms();
        let mut staged = Staged::default();
        let mut answers = Vec::new();
        let mut next = Some(first);
        let mut other = None;
        while let Some(request) = next.take() {
            let outcome = self.stage(&mut staged, &request.writes, now_ms);
            answers.push((request, outcome));
            if staged.bytes < GROUP_BYTES_SOFT {
                match queue.try_recv() {
                    Ok(Asked::Write(request)) => next = Some(request),
                    Ok(asked) => other = Some(asked),
                    Err(_) => {}
                }
            }
        }
        let committed = self.commit(staged);
        for (request, outcome) in answers {
            let answer = match (outcome, &committed) {
                (Ok(_), Err(what)) => Err(self.shared.write_error(what)),
                (outcome, _) => outcome,
            };
            // Whoever has given up waiting doesn't want the answer.
            let _ = request.reply.send(answer);
        }
        if committed.is_ok()
            && let Err(what) = self.trim(now_ms)
        {
            self.fail(what);
        }
        other
    }

    /// Gives the history from here on another identity, and empties the log.
    pub(super) fn begin_new_history(&mut self) -> Result<(), String> {
        let shared = self.shared.clone();
        let id: u64 = rand::random();
        let mut batch = shared.database.batch().durability(Some(PersistMode::SyncAll));
        batch.insert(&shared.counters, COUNTER_ID, id.to_be_bytes());
        batch.insert(&shared.counters, COUNTER_TRIMMED_UPTO, self.last.to_be_bytes());
        batch.insert(&shared.counters, COUNTER_LOG_BYTES, 0_u64.to_be_bytes());
        batch.commit().map_err(|error| error.to_string())?;
        shared.trimmed_upto.store(self.last, Ordering::Release);
        shared.id.store(id, Ordering::Release);
        self.log_bytes = 0;
        // What a crash leaves of it lies before `trimmed_upto`, where nobody reads.
        loop {
            let mut batch = shared.database.batch().durability(Some(PersistMode::Buffer));
            let mut found = 0;
            for entry in shared.log.range(..=self.last.to_be_bytes()).take(TRIM_EVENTS_MAX) {
                batch.remove(&shared.log, entry.key().map_err(|error| error.to_string())?);
                found += 1;
            }
            if found == 0 {
                return Ok(());
            }
            batch.commit().map_err(|error| error.to_string())?;
        }
    }

    /// Writes down, before anything else, that what follows may be lost with the machine; or that it may not.
    pub(super) fn mark_opened(&self, options: &StoreOptions) -> Result<(), String> {
        let shared = &self.shared;
        let mut batch = shared.database.batch().durability(Some(PersistMode::SyncAll));
        if options.sync {
            batch.remove(&shared.counters, COUNTER_UNSYNCED);
        } else {
            batch.insert(&shared.counters, COUNTER_UNSYNCED, options.boot_id.as_bytes());
        }
        batch.commit().map_err(|error| error.to_string())
    }

    /// Nothing that was written can be lost any more. Where this fails, the mark stays, and the next opening takes care.
    fn mark_closed(&self) {
        let shared = &self.shared;
        if shared.failure.get().is_some() || shared.database.persist(PersistMode::SyncAll).is_err() {
            return;
        }
        let mut batch = shared.database.batch().durability(Some(PersistMode::SyncAll));
        batch.remove(&shared.counters, COUNTER_UNSYNCED);
        if let Err(error) = batch.commit() {
            tracing::warn!(folder = %shared.folder.display(), %error, "the embedded store could not be closed cleanly");
        }
    }

    /// Adds one call to the group.
    fn stage(&self, group: &mut Staged, writes: &[Prepared], now_ms: i64) -> Result<WriteReceipt, WriteError> {
        let mut call = Staged::default();
        let mut offsets = Vec::with_capacity(writes.len());
        for (index, write) in writes.iter().enumerate() {
            let id = write.storage_id.as_str();
            let current = match call.documents.get(id).or_else(|| group.documents.get(id)) {
                Some(document) => document.clone(),
                None => {
                    let found = self.shared.documents.get(id);
                    found.map_err(|error| self.shared.write_error(&error.to_string()))?.map(Bytes::from)
                }
            };
            let offset = self.last + (group.events.len() + call.events.len()) as u64 + 1;
            let place = Place { store: self.shared.id(), offset, wall_ms: now_ms };
            match apply(write, current.as_deref(), place) {
                Ok(None) => offsets.push(None),
                Ok(Some(applied)) => {
                    call.bytes += applied.event.len() + applied.document.as_ref().map_or(0, Bytes::len);
                    if call.bytes > CALL_STAGED_BYTES_MAX {
                        return Err(WriteError::CallTooLarge { writes: writes.len(), bytes: call.bytes });
                    }
                    call.events.push(applied.event);
                    call.documents.insert(write.storage_id.clone(), applied.document);
                    offsets.push(Some(offset));
                }
                Err(Refused::TooLarge(bytes)) => return Err(WriteError::DocumentTooLarge { index, bytes }),
                Err(Refused::Damaged(error)) => {
                    let what = format!("the stored document {id:?} is damaged: {error}");
                    return Err(WriteError::Invalid { index, what });
                }
            }
        }
        group.bytes += call.bytes;
        group.events.append(&mut call.events);
        group.documents.extend(call.documents);
        let mut given = offsets.iter().copied().flatten();
        let (first_offset, last_offset) = (given.next(), offsets.iter().rev().find_map(|offset| *offset));
        Ok(WriteReceipt { first_offset, last_offset, offsets })
    }

    fn commit(&mut self, staged: Staged) -> Result<(), String> {
        if staged.events.is_empty() {
            return Ok(());
        }
        let shared = self.shared.clone();
        let mut log_bytes = self.log_bytes;
        let mut last = self.last;
        let mut batch = shared.database.batch().durability(Some(self.persist));
        for event in staged.events {
            last += 1;
            log_bytes += event.len() as u64;
            batch.insert(&shared.log, last.to_be_bytes(), event);
        }
        for (id, document) in staged.documents {
            match document {
                Some(document) => batch.insert(&shared.documents, id, document),
                None => batch.remove(&shared.documents, id),
            }
        }
        batch.insert(&shared.counters, COUNTER_LOG_BYTES, log_bytes.to_be_bytes());
        match batch.commit() {
            Ok(()) => {
                self.last = last;
                self.log_bytes = log_bytes;
                shared.durable.send_replace(last);
                Ok(())
            }
            Err(error) => {
                let what = error.to_string();
                self.fail(what.clone());
                Err(what)
            }
        }
    }

    /// Removes what is over the limits, a bounded number of entries each time. The newest event always stays.
    fn trim(&mut self, now_ms: i64) -> Result<(), String> {
        let trimmed_upto = self.shared.trimmed_upto.load(Ordering::Acquire);
        let oldest_ms =
            self.retention.age.map(|age| now_ms.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)));
        let too_many = |first: u64| self.last - first + 1 > self.retention.events;
        if !too_many(trimmed_upto + 1) && self.log_bytes <= self.retention.bytes && oldest_ms.is_none() {
            return Ok(());
        }
        let mut upto = trimmed_upto;
        let mut log_bytes = self.log_bytes;
        if trimmed_upto + 1 < self.last {
            for entry in
                self.shared.log.range((trimmed_upto + 1).to_be_bytes()..self.last.to_be_bytes()).take(TRIM_EVENTS_MAX)
            {
                let event = entry.value().map_err(|error| error.to_string())?;
                let too_old = || oldest_ms.is_some_and(|oldest| wall_ms(&event).is_some_and(|at| at < oldest));
                if !too_many(upto + 1) && log_bytes <= self.retention.bytes && !too_old() {
                    break;
                }
                upto += 1;
                log_bytes = log_bytes.saturating_sub(event.len() as u64);
            }
        }
        if upto == trimmed_upto {
            return Ok(());
        }
        self.shared.trimmed_upto.store(upto, Ordering::Release);
        // Not synced on its own: a trim that a crash undoes is done again.
        let mut batch = self.shared.database.batch().durability(Some(PersistMode::Buffer));
        for offset in trimmed_upto + 1..=upto {
            batch.remove(&self.shared.log, offset.to_be_bytes());
        }
        batch.insert(&self.shared.counters, COUNTER_TRIMMED_UPTO, upto.to_be_bytes());
        batch.insert(&self.shared.counters, COUNTER_LOG_BYTES, log_bytes.to_be_bytes());
        batch.commit().map_err(|error| error.to_string())?;
        self.log_bytes = log_bytes;
        Ok(())
    }

    fn fail(&self, what: String) {
        tracing::error!(folder = %self.shared.folder.display(), error = %what, "the embedded store has failed and takes no more writes");
        // The first failure is the cause of all later ones.
        let _ = self.shared.failure.set(what);
        // Wakes the readers, so that they see the failure.
        self.shared.durable.send_modify(|_| {});
    }
}

impl Drop for Writer {
    /// A thread that panics takes no more writes. Readers are told as of any other failure, or the backend would go on as one that
    /// nobody writes to. Not logged: writing a log line may be what panicked, and what panicked was told by the panic.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.shared.failure.set("its writer thread has panicked".to_owned());
            self.shared.durable.send_modify(|_| {});
        }
    }
}

/// What a group will commit: its events in order, and the last state of each document that they touch.
#[derive(Default)]
struct Staged {
    events: Vec<Bytes>,
    documents: HashMap<String, Option<Bytes>>,
    /// Of both.
    bytes: usize,
}

/// The event of one write, and what is stored after it.
struct Applied {
    event: Bytes,
    document: Option<Bytes>,
}

enum Refused {
    TooLarge(usize),
    Damaged(bson::error::Error),
}

impl From<bson::error::Error> for Refused {
    fn from(error: bson::error::Error) -> Self {
        Self::Damaged(error)
    }
}

/// What `write` does to `current`; `None` where that is nothing.
fn apply(write: &Prepared, current: Option<&[u8]>, place: Place) -> Result<Option<Applied>, Refused> {
    let before = current.map(RawDocument::from_bytes).transpose()?;
    let state = before.map(Current::of).transpose()?;
    let now = place.wall_ms;
    let first = Stamp { version: 1, created_at: now, updated_at: now, deleted: false };
    let id = write.storage_id.as_str();
    let told = |happened: Happened<'_>| event(place, id, happened);
    let stored = |event: Bytes, after: RawDocumentBuf| Applied { event, document: Some(after.into_bytes().into()) };
    let applied = match (&write.action, before, state) {
        (Action::Put(data), Some(before), Some(state)) => {
            let version = state.version.saturating_add(1);
            // A document that was soft-deleted starts a new life, under the next version of the old one.
            let created_at = if state.deleted { now } else { state.created_at };
            let after = sized(document(write, Stamp { version, created_at, ..first }, data))?;
            stored(told(Happened::Replace { before, after: &after }), after)
        }
        (Action::Put(data), ..) => {
            let after = sized(document(write, first, data))?;
            stored(told(Happened::Insert { after: &after }), after)
        }
        (Action::Delete, Some(before), _) => Applied { event: told(Happened::Delete { before }), document: None },
        (Action::Merge { set, unset }, Some(before), Some(state)) if !state.deleted => {
            let stamp = Stamp { version: state.version.saturating_add(1), created_at: state.created_at, ..first };
            let after = sized(document(write, stamp, &merged(state.data, set, unset)?))?;
            let mut updated = RawDocumentBuf::new();
            for field in set.iter() {
                let (name, value) = field?;
                let path = format!("data.{name}");
                // The name was one already; the prefix has no NUL.
                if let Ok(path) = <&bson::raw::CStr>::try_from(path.as_str()) {
                    updated.append(path, value);
                }
            }
            updated.append(cstr!("updated_at"), stamp.updated_at);
            updated.append(cstr!("version"), stamp.version);
            let update = update_description(updated, unset);
            stored(told(Happened::Update { before, after: &after, update: &update }), after)
        }
        (Action::SoftDelete, Some(before), Some(state)) if !state.deleted => {
            let version = state.version.saturating_add(1);
            let stamp = Stamp { version, created_at: state.created_at, updated_at: now, deleted: true };
            let after = sized(document(write, stamp, state.data))?;
            let mut updated = RawDocumentBuf::new();
            updated.append(cstr!("deleted"), true);
            updated.append(cstr!("updated_at"), stamp.updated_at);
            updated.append(cstr!("version"), stamp.version);
            let update = update_description(updated, &[]);
            stored(told(Happened::Update { before, after: &after, update: &update }), after)
        }
        (Action::Delete | Action::Merge { .. } | Action::SoftDelete, ..) => return Ok(None),
    };
    Ok(Some(applied))
}

/// A soft delete adds a field: the limit leaves room for it, so that whatever could be stored can be deleted.
fn sized(document: RawDocumentBuf) -> Result<RawDocumentBuf, Refused> {
    let bytes = document.as_bytes().len();
    let deleted = document.get("deleted").ok().flatten().is_some();
    let limit = if deleted { DOCUMENT_BYTES_MAX } else { DOCUMENT_BYTES_MAX - DELETED_BYTES };
    if bytes <= limit { Ok(document) } else { Err(Refused::TooLarge(bytes)) }
}

/// Bytes of the field `deleted: true`: its type, its name with the NUL, its value.
const DELETED_BYTES: usize = 1 + "deleted".len() + 1 + 1;
/// Events and documents of one call. Deleting takes few bytes to ask for and many to do: the event carries the whole document.
const CALL_STAGED_BYTES_MAX: usize = 4 * CALL_BYTES_MAX;
/// From these bytes on a group takes no further call.
const GROUP_BYTES_SOFT: usize = 8 << 20;
/// Entries that one trim removes. More than a group usually adds, so that a lowered limit is reached in time.
const TRIM_EVENTS_MAX: usize = 16_384;
