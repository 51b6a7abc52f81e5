//! The cursor of a pass: when it is opened, which of its words count, when it may hand on its next batch.
//!
//! Whoever reads a cursor says everything with its number. What it says may be heard late, after a tick has ended its pass and begun
//! another that starts further back: by the number that is known, and not heard.

use bytes::Bytes;
use shards::{CatchUpFailure, Millis};
use wire::Position;

use super::{
    CatchUpCore, PROBES_MAX,
    pass::{Cursor, InHand, Probe},
};
use crate::ingest::{
    core::{IngestCore, ToShard},
    number::Numbering,
    settle::ResumePoint,
    source::{Batch, SourceError, Start},
    start::start_after,
};

/// A cursor that is to be opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Opening {
    /// Of the cursor; every later one of this backend has a higher number.
    pub number: u64,
    pub start: Start,
}

/// What is said of a cursor by who reads it.
#[derive(Clone, Debug)]
pub enum Said {
    /// It is open, and yields every event after this place.
    Opened { start: (u64, u32) },
    /// Its next batch, of which one may be said after each that [`CatchUpCore::grant`] has asked for.
    Batch(Batch),
    /// The next event is too large to be read: this is what the source tells of it without its documents. The last word of a cursor; it
    /// is opened again behind the event.
    TooLarge(Bytes),
    /// It broke, or could not be opened. The last word of a cursor; it is opened again at `retry_at`, if that may help, behind what is in
    /// hand.
    Failed { error: SourceError, retry_at: Millis },
}

impl CatchUpCore {
    /// The cursor of a backend that is to be opened now; it counts as being opened from then on. What comes of it is to be told to
    /// [`Self::hear`].
    pub fn open(&mut self, live: &IngestCore, backend: usize, now: Millis) -> Option<Opening> {
        let enqueued = live.enqueued(backend)?;
        let backend = &mut self.backends[backend];
        let pass = backend.pass.as_mut()?;
        // One that has nothing to read is ended by the next `work`.
        let is_due = matches!(pass.cursor, Cursor::Closed { until } if until <= now) && pass.said.is_none();
        if !is_due || pass.has_passed(enqueued) {
            return None;
        }
        backend.cursors += 1;
        let number = backend.cursors;
        pass.cursor = Cursor::Opening { number };
        let start = match &pass.probe {
            Some(probe) => Start::At { time: probe.middle() },
            None => start_after(&ResumePoint { position: pass.numbering.last(), token: pass.resume.clone() }),
        };
        Some(Opening { number, start })
    }

    /// When the cursor of a backend is to be opened; `None` while it is open, being opened, or not needed.
    pub fn opens_at(&self, backend: usize) -> Option<Millis> {
        let pass = self.backends[backend].pass.as_ref()?;
        match pass.cursor {
            Cursor::Closed { until } if pass.said.is_none() => Some(until),
            _ => None,
        }
    }

    /// The number of the cursor that is open or being opened. Any other is to be closed: nothing of it is heard any more.
    pub fn cursor(&self, backend: usize) -> Option<u64> {
        match self.backends[backend].pass.as_ref()?.cursor {
            Cursor::Closed { .. } => None,
            Cursor::Opening { number } | Cursor::Open { number, .. } => Some(number),
        }
    }

    /// Asks for the next batch of a backend's cursor, if there is use for it and none is asked for.
    #[must_use = "a batch that was asked for has to be said"]
    pub fn grant(&mut self, backend: usize) -> bool {
        let Some(pass) = &mut self.backends[backend].pass else { return false };
        match &mut pass.cursor {
            Cursor::Open { is_granted, .. } if pass.said.is_none() => !std::mem::replace(is_granted, true),
            _ => false,
        }
    }

    /// Hears what is said of a cursor. False: it isn't its pass's any more, and nothing has come of it. [`Self::cursor`] tells afterwards
    /// whether it is to be closed.
    pub fn hear(
        &mut self,
        live: &IngestCore,
        backend: usize,
        number: u64,
        said: Said,
        now: Millis,
        out: &mut Vec<ToShard>,
    ) -> bool {
        if self.cursor(backend) != Some(number) {
            return false;
        }
        match said {
            Said::Opened { start } => self.opened(backend, number, start, now, out),
            Said::Batch(batch) => self.batch(backend, number, batch),
            Said::TooLarge(event) => {
                if let Some(pass) = &mut self.backends[backend].pass {
                    pass.in_hand.push_back(InHand { event, too_large: true });
                    pass.said = Some((None, None));
                    pass.cursor = Cursor::Closed { until: now };
                }
            }
            Said::Failed { error, retry_at } => self.failed(live, backend, &error, now, retry_at, out),
        }
        true
    }

    fn opened(&mut self, backend: usize, number: u64, start: (u64, u32), now: Millis, out: &mut Vec<ToShard>) {
        let Some(pass) = &mut self.backends[backend].pass else { return };
        if let Some(probe) = &mut pass.probe {
            pass.cursor = Cursor::Closed { until: now };
            probe.kept = probe.middle();
            self.probed(backend, out);
            return;
        }
        let last = pass.numbering.last();
        pass.numbering = Numbering::starting(last.backend, last.lineage, start);
        pass.cursor = Cursor::Open { number, is_granted: false };
    }

    fn batch(&mut self, backend: usize, number: u64, batch: Batch) {
        let Some(pass) = &mut self.backends[backend].pass else { return };
        let asked_for = Cursor::Open { number, is_granted: true };
        debug_assert!(pass.said.is_none(), "a batch before the one in hand was done");
        debug_assert_eq!(pass.cursor, asked_for, "a batch that wasn't asked for");
        pass.cursor = Cursor::Open { number, is_granted: false };
        pass.in_hand.extend(batch.events.into_iter().map(|event| InHand { event, too_large: false }));
        pass.said = Some((batch.resume, batch.passed));
    }

    /// Failures of a backend's cursor since it last answered.
    pub fn failures(&self, backend: usize) -> u32 {
        self.backends[backend].pass.as_ref().map_or(0, |pass| pass.failures)
    }

    /// The cursor of the pass broke, or could not be opened, or what it yielded makes no sense; it is opened again at `retry_at`, if that
    /// may help, behind what is in hand.
    pub fn failed(
        &mut self,
        live: &IngestCore,
        backend: usize,
        error: &SourceError,
        now: Millis,
        retry_at: Millis,
        out: &mut Vec<ToShard>,
    ) {
        let Some(pass) = &mut self.backends[backend].pass else { return };
        pass.cursor = Cursor::Closed { until: retry_at };
        match error {
            SourceError::Transient(_) | SourceError::Fatal(_) => pass.failures += 1,
            // What was read last tells where it goes on.
            SourceError::Ended(_) => pass.cursor = Cursor::Closed { until: now },
            SourceError::HistoryLost(_) => {
                let nothing_read = pass.resume.is_none() && pass.said.is_none();
                if let Some(probe) = &mut pass.probe {
                    probe.lost = probe.middle();
                    pass.cursor = Cursor::Closed { until: now };
                    self.probed(backend, out);
                } else if let (true, Some(enqueued)) = (nothing_read, live.enqueued(backend)) {
                    pass.probe = Some(Probe { lost: pass.from.time, kept: enqueued.time, left: PROBES_MAX });
                    pass.cursor = Cursor::Closed { until: now };
                    self.probed(backend, out);
                } else {
                    let upto = pass.done;
                    self.end(backend, CatchUpFailure::HistoryLost { upto }, out);
                }
                return;
            }
            SourceError::BadToken(_) | SourceError::Oversize(_) => {
                let upto = pass.done;
                self.end(backend, CatchUpFailure::HistoryLost { upto }, out);
                return;
            }
        }
        self.backends[backend].counters.reopenings += 1;
    }

    /// An opening has told more of where history begins.
    fn probed(&mut self, backend: usize, out: &mut Vec<ToShard>) {
        let Some(pass) = &mut self.backends[backend].pass else { return };
        let Some(probe) = &mut pass.probe else { return };
        if probe.is_over() {
            // The lowest that was asked for is lost whatever was found; and so is all of a cluster time that can't be opened.
            let upto = Position { time: probe.lost, k: u32::MAX, ..pass.from };
            self.end(backend, CatchUpFailure::HistoryLost { upto }, out);
        } else {
            probe.left -= 1;
        }
    }
}
