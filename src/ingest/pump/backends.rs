//! The life of a backend's stream: reached, identified, opened, read, reopened.

use tokio::time::Instant;

use super::{
    PROGRESS_EVERY, Pump, backoff,
    halt::{Halt, Halted},
};
use crate::{
    checkpoint::BackendCheckpoint,
    config::{HistoryLost, Missing, Oversize},
    ingest::{
        reader::{self, FromReader, Reading, Said},
        source::{Identity, Purpose, SourceError, Start},
        start::start_after,
        status::Phase,
    },
};

impl Pump {
    pub(super) fn identify(&mut self, index: usize) {
        let backend = &mut self.backends[index];
        backend.phase = Phase::Connecting;
        backend.attempt += 1;
        let reached = backend.saved.as_ref().map(|saved| saved.resume_point().position);
        let task = reader::identify(backend.source.clone(), index, backend.attempt, reached, self.to_pump.clone());
        backend.task = Some(task);
    }

    /// Ends all streams; nothing of them is listened to any more.
    pub(super) fn stop_reading(&mut self) {
        for backend in &mut self.backends {
            if let Some(task) = backend.task.take() {
                task.abort();
                backend.attempt += 1;
            }
            backend.retry_at = None;
        }
        self.stop_catching_up();
    }

    pub(super) fn hear(&mut self, said: FromReader) {
        let FromReader { backend: index, attempt, said_at, what } = said;
        if self.backends[index].attempt != attempt {
            return;
        }
        match what {
            Said::Identified(identity) => self.identified(index, identity),
            Said::Opened { start } => self.opened(index, start),
            Said::Batch(batch) => {
                let backend = &mut self.backends[index];
                if backend.signs.hear(&batch, Instant::now()) {
                    tracing::info!(backend = backend.source.name(), "the source goes on");
                }
                if !batch.events.is_empty() {
                    self.in_hand_since.get_or_insert(said_at);
                }
                for event in &batch.events {
                    if let Err(error) = self.core.event(index, event, &mut self.out) {
                        self.take_out();
                        self.failed(index, SourceError::Transient(error.to_string()));
                        return;
                    }
                    self.take_out();
                }
                self.core.batch_end(index, batch.resume);
                // Only now: an event that can't be read comes again at every reopening, and must be asked for ever more rarely.
                self.backends[index].failures = 0;
                if !batch.events.is_empty() && self.progress_at.is_none() {
                    self.progress_at = Some(Instant::now() + PROGRESS_EVERY);
                }
            }
            Said::TooLarge(event) => self.skip(index, &event),
            Said::TooLargeUnknown(error) => self.halt(index, Halt::OversizeUnknown(error)),
            Said::Failed(error) => self.failed(index, error),
        }
    }

    /// Goes past an event that is too large, of which this is known, and tells everybody whom it may concern.
    fn skip(&mut self, index: usize, event: &bytes::Bytes) {
        self.backends[index].one_by_one = false;
        let skipped = self.core.too_large(index, event, &mut self.out);
        self.take_out();
        match skipped {
            Ok(()) => {
                let backend = &self.backends[index];
                tracing::error!(backend = backend.source.name(), "an event was too large to be read, and is skipped");
                self.reopen(index);
            }
            Err(error) => self.failed(index, SourceError::Transient(error.to_string())),
        }
    }

    /// An alarm for every backend whose source has given no sign of life for long. One that is halted, or waits for others, says so by
    /// its phase.
    pub(super) fn look_for_stalls(&mut self, now: Instant) {
        for backend in &mut self.backends {
            match backend.phase {
                Phase::Connecting | Phase::Opening | Phase::Reading | Phase::Retrying => {}
                Phase::Registration | Phase::Waiting | Phase::Halted => backend.signs.is_not_read(now),
            }
            if let Some(silent) = backend.signs.look(now, self.config.stalled_after) {
                tracing::error!(
                    backend = backend.source.name(),
                    "the source has told nothing new for {silent:?}: it doesn't answer, or its stream has stopped though its own time goes on"
                );
            }
        }
    }

    fn identified(&mut self, index: usize, identity: Identity) {
        let backend = &mut self.backends[index];
        let name = backend.source.name().to_owned();
        tracing::info!(backend = name, "source is {}", identity.description);
        let known = backend.saved.as_ref().map(|saved| (saved.lineage, saved.source.clone()));
        let now = identity.description.clone();
        let lineage = identity.lineage;
        backend.identity = Some(identity);
        if let Some((saved_lineage, saved_source)) = known
            && saved_lineage != lineage.0
        {
            self.halt(index, Halt::OtherSource { saved: saved_source, now });
        } else if self.core.resume_point(index).is_some() {
            self.reopen(index);
        } else if self.awaited.is_some() {
            self.backends[index].phase = Phase::Registration;
        } else {
            self.first_open(index);
        }
    }

    /// Opens a stream for the first time in this process: at the checkpoint, if there is one.
    pub(super) fn first_open(&mut self, index: usize) {
        let Some(point) = self.backends[index].saved.as_ref().map(BackendCheckpoint::resume_point) else {
            let name = self.backends[index].source.name();
            match self.config.on_missing {
                Missing::FromNow => {
                    tracing::info!(backend = name, "no checkpoint: reading starts from now");
                    self.open(index, Start::Now);
                }
                Missing::Fail => self.halt(index, Halt::NoCheckpoint),
            }
            return;
        };
        self.open(index, start_after(&point));
    }

    fn open(&mut self, index: usize, start: Start) {
        let backend = &mut self.backends[index];
        backend.phase = Phase::Opening;
        backend.attempt += 1;
        let reading = Reading {
            source: backend.source.clone(),
            backend: index,
            attempt: backend.attempt,
            start,
            purpose: Purpose::Live,
            one_by_one: backend.one_by_one,
            turns: None,
        };
        backend.task = Some(reader::read(reading, self.to_pump.clone()));
    }

    /// Opens a stream again where it was left.
    pub(super) fn reopen(&mut self, index: usize) {
        self.backends[index].reopenings += 1;
        if self.backends[index].identity.is_none() {
            self.identify(index);
            return;
        }
        match self.core.resume_point(index) {
            _ if self.backends[index].after_loss => self.open_after_loss(index),
            Some(point) => self.open(index, start_after(&point)),
            None => self.first_open(index),
        }
    }

    /// Opens a stream where it is to go on once history was lost.
    fn open_after_loss(&mut self, index: usize) {
        let start = match self.config.on_history_lost {
            HistoryLost::FromTimestamp { time } => Start::At { time },
            HistoryLost::FromNow | HistoryLost::Fail => Start::Now,
        };
        self.backends[index].after_loss = true;
        self.open(index, start);
    }

    fn opened(&mut self, index: usize, start: (u64, u32)) {
        let backend = &mut self.backends[index];
        let Some(identity) = &backend.identity else { return };
        backend.phase = Phase::Reading;
        backend.error = None;
        backend.signs.opened();
        let first = self.core.resume_point(index).is_none();
        let token = backend
            .saved
            .as_ref()
            .filter(|saved| (saved.time, saved.k) == start)
            .and_then(|saved| saved.resume_point().token);
        if std::mem::take(&mut backend.after_loss) {
            self.catch_up.live_lost(index, &mut self.out);
            self.core.opened_after_loss(index, identity.lineage, start, &mut self.out);
        } else {
            self.core.opened(index, identity.lineage, start, token);
        }
        tracing::info!(backend = backend.source.name(), time = start.0, k = start.1, "reading");
        self.core.announce_filters(&mut self.out);
        self.take_out();
        self.progress_at = Some(Instant::now() + PROGRESS_EVERY);
        // A place to go on from must exist before the first delivery, or a node that dies young would forget it.
        if first {
            self.begun = true;
            self.filters_due = self.links.iter().map(|link| link.cells.sync().synced_filter).collect();
            self.checkpoint_at = Instant::now();
        }
        if !self.core.has_all_starts() {
            self.put_off(index);
            return;
        }
        for other in 0..self.backends.len() {
            if self.backends[other].phase == Phase::Waiting
                && let Some(point) = self.core.resume_point(other)
            {
                self.open(other, start_after(&point));
            }
        }
    }

    /// Ends a stream whose start is known, until all have one.
    fn put_off(&mut self, index: usize) {
        let backend = &mut self.backends[index];
        tracing::info!(backend = backend.source.name(), "read once every other backend has been opened");
        if let Some(task) = backend.task.take() {
            task.abort();
        }
        backend.attempt += 1;
        backend.phase = Phase::Waiting;
    }

    fn failed(&mut self, index: usize, error: SourceError) {
        let name = self.backends[index].source.name().to_owned();
        if let Some(task) = self.backends[index].task.take() {
            task.abort();
        }
        // Whatever this attempt still has in the channel is of no interest.
        self.backends[index].attempt += 1;
        match error {
            // The timestamp that is configured for this case is lost, too.
            SourceError::HistoryLost(why) if self.backends[index].after_loss => {
                self.halt(index, Halt::TimestampLost(why));
            }
            SourceError::HistoryLost(why) if self.config.on_history_lost != HistoryLost::Fail => {
                tracing::error!(
                    backend = name,
                    "history lost ({why}): every subscription is told, and reading goes on"
                );
                self.open_after_loss(index);
            }
            SourceError::HistoryLost(why) => self.halt(index, Halt::HistoryLost(why)),
            SourceError::BadToken(why) => self.halt(index, Halt::BadToken(why)),
            SourceError::Oversize(_) if self.config.oversize == Oversize::Skip => {
                self.backends[index].one_by_one = true;
                self.reopen(index);
            }
            SourceError::Oversize(why) => self.halt(index, Halt::Oversize(why)),
            SourceError::Ended(why) => {
                tracing::warn!(backend = name, "stream ended ({why}); reopening after it");
                self.backends[index].one_by_one = false;
                self.reopen(index);
            }
            SourceError::Transient(why) | SourceError::Fatal(why) => {
                let backend = &mut self.backends[index];
                let pause = backoff(backend.failures);
                if backend.error.as_ref() != Some(&why) {
                    tracing::warn!(backend = name, "source failed: {why}; tried again until it answers");
                }
                backend.failures += 1;
                backend.phase = Phase::Retrying;
                backend.error = Some(why);
                backend.retry_at = Some(Instant::now() + pause);
            }
        }
    }

    fn halt(&mut self, index: usize, halt: Halt) {
        let place = self.core.resume_point(index).map(|point| point.position);
        let backend = &mut self.backends[index];
        let place = place.or_else(|| backend.saved.as_ref().map(|saved| saved.resume_point().position));
        let why = Halted { halt: &halt, backend: backend.source.name(), place }.to_string();
        let backend = &mut self.backends[index];
        tracing::error!(backend = backend.source.name(), "{why}");
        backend.phase = Phase::Halted;
        backend.error = Some(why);
    }
}
