//! The catch-up cursors' part of the loop.
//!
//! Invariants:
//! - Live reading comes first: something of a pass is done only when no live batch waits, or once in [`LIVE_TURNS_MAX`] of them. What a pass
//!   puts out goes into a ring only while that has room to spare, and nobody waits for it.
//! - A backend sees one cursor at most: a reader is gone before the next is started.

use std::{sync::Arc, time::Duration};

use shards::Millis;
use tokio::{sync::Semaphore, task::JoinHandle, time::Instant};

use super::{Phases, Pump, ROOM_POLL, backoff};
use crate::{
    config::Oversize,
    ingest::{
        catch_up::{self, Next, Opening},
        reader::{self, FromReader, Reading, Said},
        route::ShardIndex,
        source::{Purpose, SourceError},
        status::{CatchUpStatus, Phase},
    },
};

/// Live batches after which a pass has a turn, though more of them wait.
pub(super) const LIVE_TURNS_MAX: u32 = 16;

/// Events of a pass that are taken in one turn: few, since a live batch may come meanwhile.
const SLICE_EVENTS: usize = 128;

/// How often passes are begun and looked after.
const TICK_EVERY: Duration = Duration::from_millis(100);

/// The reader of a backend's cursor. What it reads for, and when it may hand on a batch, is the business of
/// [`CatchUpCore`](crate::ingest::catch_up::CatchUpCore).
pub(super) struct CursorReader {
    task: Option<JoinHandle<()>>,
    /// That of the cursor.
    number: u64,
    /// Lets it hand on one batch for each permit.
    turns: Arc<Semaphore>,
    /// It is to get past an event that is too large.
    one_by_one: bool,
}

impl CursorReader {
    pub(super) fn new() -> Self {
        Self { task: None, number: 0, turns: Arc::new(Semaphore::new(0)), one_by_one: false }
    }

    /// Ends the reader. What it has said already is told from the words of others by its number.
    fn close(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Pump {
    pub(super) fn millis(&self) -> Millis {
        Millis(self.started.elapsed().as_millis() as u64)
    }

    /// Does what is due of all passes. To be called when everything that was put out before is in the rings.
    pub(super) fn catch_up(&mut self) {
        self.catch_up_has_more = false;
        if *self.phase.borrow() != Phases::Running || self.begun {
            return;
        }
        let now = Instant::now();
        if now >= self.catch_up_tick_at {
            self.catch_up_tick_at = now + TICK_EVERY;
            let reads = |backend: usize| self.backends[backend].phase == Phase::Reading;
            self.catch_up.tick(&self.core, Millis(self.started.elapsed().as_millis() as u64), reads, &mut self.out);
        }
        // What pauses live reading is not to be filled up by passes.
        let has_turn =
            !self.pause_budget.is_paused() && (self.from_readers.is_empty() || self.live_turns >= LIVE_TURNS_MAX);
        if has_turn {
            self.live_turns = 0;
            while let Ok(said) = self.from_cursors.try_recv() {
                self.hear_cursor(said);
            }
        }
        for backend in 0..self.backends.len() {
            if self.catch_up.pass(backend).is_some() || self.cursors[backend].task.is_some() {
                self.catch_up_backend(backend, if has_turn { SLICE_EVENTS } else { 0 });
            }
        }
        self.take_out();
    }

    fn catch_up_backend(&mut self, backend: usize, events_max: usize) {
        self.fill_rings();
        match self.catch_up.work(&self.core, backend, events_max, &mut self.out) {
            Ok(Next::More) => self.catch_up_has_more = true,
            Ok(Next::Wait) => {}
            Err(error) => {
                let error = SourceError::Transient(error.to_string());
                let (now, retry_at) = (self.millis(), self.retry_at(backend, &error));
                self.catch_up.failed(&self.core, backend, &error, now, retry_at, &mut self.out);
            }
        }
        self.look_after_cursor(backend);
    }

    /// Opens or closes a backend's cursor, and lets it go on, as its pass wants.
    fn look_after_cursor(&mut self, backend: usize) {
        let now = self.millis();
        let cursor = &mut self.cursors[backend];
        if self.catch_up.cursor(backend) != Some(cursor.number) {
            cursor.close();
        }
        if self.catch_up.grant(backend) {
            cursor.turns.add_permits(1);
        }
        let Some(Opening { number, start }) = self.catch_up.open(&self.core, backend, now) else { return };
        debug_assert!(cursor.task.is_none(), "a cursor is opened beside another");
        cursor.number = number;
        cursor.turns = Arc::new(Semaphore::new(0));
        let reading = Reading {
            source: self.backends[backend].source.clone(),
            backend,
            attempt: number,
            start,
            purpose: Purpose::CatchUp,
            one_by_one: cursor.one_by_one,
            turns: Some(cursor.turns.clone()),
        };
        cursor.task = Some(reader::read(reading, self.to_catch_up.clone()));
    }

    /// What a pass has put out goes into the rings that have room to spare.
    fn fill_rings(&mut self) {
        // What is put out among the live items goes first.
        if !self.pending.is_empty() || !self.out.is_empty() {
            return;
        }
        for (shard, link) in ShardIndex::all(self.links.len() as u16).zip(&mut self.links) {
            while link.ring.has_room_to_spare()
                && let Some(item) = self.catch_up.take(shard)
            {
                // A shard that has ended ends the node. A ring with room to spare isn't full: only this thread fills it.
                let _ = link.ring.try_push(item);
            }
        }
    }

    pub(super) fn hear_cursor(&mut self, said: FromReader) {
        // Nothing of what is said while the node stops leads anywhere.
        if *self.phase.borrow() != Phases::Running {
            return;
        }
        let FromReader { backend, attempt: number, what, .. } = said;
        let now = self.millis();
        let mut one_by_one = self.cursors[backend].one_by_one;
        let said = match what {
            // Only asked by live reading.
            Said::Identified(_) => return,
            Said::Opened { start } => catch_up::Said::Opened { start },
            Said::Batch(batch) => catch_up::Said::Batch(batch),
            Said::TooLarge(event) => {
                one_by_one = false;
                catch_up::Said::TooLarge(event)
            }
            Said::TooLargeUnknown(error) => self.failed_cursor(backend, error),
            Said::Failed(SourceError::Oversize(_)) if self.config.oversize == Oversize::Skip => {
                one_by_one = true;
                // Opened again at once, where it was.
                self.failed_cursor(backend, SourceError::Ended(String::new()))
            }
            Said::Failed(error) => {
                one_by_one &= !matches!(error, SourceError::Ended(_));
                self.failed_cursor(backend, error)
            }
        };
        if self.catch_up.hear(&self.core, backend, number, said, now, &mut self.out) {
            self.cursors[backend].one_by_one = one_by_one;
        }
        self.look_after_cursor(backend);
    }

    fn failed_cursor(&self, backend: usize, error: SourceError) -> catch_up::Said {
        let retry_at = self.retry_at(backend, &error);
        catch_up::Said::Failed { error, retry_at }
    }

    /// When a backend's cursor that has failed is to be opened again: after a pause that grows.
    fn retry_at(&self, backend: usize, error: &SourceError) -> Millis {
        tracing::debug!(backend = self.backends[backend].source.name(), %error, "the catch-up cursor failed");
        Millis(self.millis().0 + backoff(self.catch_up.failures(backend)).as_millis() as u64)
    }

    /// The cursors of all passes are closed for good.
    pub(super) fn stop_catching_up(&mut self) {
        self.cursors.iter_mut().for_each(CursorReader::close);
    }

    /// When something of a pass is due that nothing else tells of.
    pub(super) fn catch_up_due(&mut self) -> Option<Instant> {
        if *self.phase.borrow() != Phases::Running {
            return None;
        }
        let now = Instant::now();
        let waits_for_room = ShardIndex::all(self.links.len() as u16).any(|shard| self.catch_up.has_backlog(shard));
        if waits_for_room {
            return Some(now + ROOM_POLL);
        }
        let now_ms = self.millis();
        let opens = (0..self.backends.len()).filter_map(|backend| self.catch_up.opens_at(backend)).min();
        let opens = opens.map(|at| now + Duration::from_millis(at.0.saturating_sub(now_ms.0)));
        let looks = self.catch_up.is_wanted().then_some(self.catch_up_tick_at);
        opens.into_iter().chain(looks).min()
    }

    pub(super) fn catch_up_status(&self, backend: usize) -> CatchUpStatus {
        let pass = self.catch_up.pass(backend);
        let (now, live) = (self.millis(), self.core.enqueued(backend));
        let source = &self.backends[backend].source;
        CatchUpStatus {
            counters: self.catch_up.counters(backend),
            position: pass.map(|pass| pass.position),
            lag: pass.zip(live).map(|(pass, live)| source.between(pass.position.time, live.time)),
            running: pass.map(|pass| Duration::from_millis(now.0.saturating_sub(pass.began.0))),
        }
    }
}
