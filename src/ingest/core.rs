//! The ingest thread's state machine: raw events and the shards' cells go in, ring items and resume points come out. No IO, no
//! clock: the thread that drives it and the simulator use the same.
//!
//! Call protocol: [`IngestCore::opened`] before the first event of a backend and again after each reopening;
//! [`IngestCore::event`] for each event in order; [`IngestCore::batch_end`] after a batch. [`IngestCore::filter`] and
//! [`IngestCore::settled`] whenever a shard's cell has changed, between two events. What is put out must reach the rings in
//! that order.

use std::sync::Arc;

use bytes::Bytes;
use predicate::Mapping;
use shards::{Change, FilterSnapshot, FromIngest, Gap, Scope};
use smallvec::{SmallVec, smallvec};
use wire::{BackendId, GapReason, Lineage, Position, Positions, SlotTable};

use super::{
    event::{Malformed, RawEvent},
    normalize::{Concern, Found, Normalizer, Skip},
    number::{Numbering, RanBackwards},
    route::{Router, ShardIndex, ShardSet},
    settle::{ResumePoint, Settlement},
    source::ResumeToken,
};

/// One item for one shard's ring.
pub type ToShard = (ShardIndex, FromIngest);

/// Why a stream can't be read further as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// The stream must be reopened at [`IngestCore::resume_point`].
    #[error(transparent)]
    RanBackwards(#[from] RanBackwards),
    /// The source broke its own protocol; reopening might help.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Counts since the start, for metrics.
#[derive(Clone, Debug, Default)]
pub struct IngestCounters {
    pub events: u64,
    pub bytes: u64,
    pub routed: u64,
    /// Changes that no shard's filter wanted.
    pub filtered: u64,
    /// Events at or below a position already read: after a reopening.
    pub repeated: u64,
    pub gaps: u64,
    pub skipped: [u64; Skip::ALL.len()],
}

/// What becomes of an event, by the filters in use.
pub(super) enum Routed {
    /// No shard wants it.
    Nobody,
    Change(ShardSet, Change),
    /// For every shard.
    Gap(SmallVec<[Scope; 2]>, GapReason),
    Skip(Skip),
}

/// A backend's stream, once it has been opened.
#[derive(Debug)]
struct Stream {
    numbering: Numbering,
    settlement: Settlement,
    /// The last position that went on to routing: whatever is at or below it is a repetition.
    enqueued: Position,
    /// The last position of which each shard was told, by an item of this backend or by `Progress`.
    told: Vec<Position>,
}

#[derive(Debug)]
pub struct IngestCore {
    normalizer: Normalizer,
    router: Router,
    backends: Vec<BackendId>,
    streams: Vec<Option<Stream>>,
    /// The filter version each shard was last sent `FilterSeen` for.
    seen: Vec<u64>,
    /// The newest filter version of each shard that the router uses.
    used: Vec<u64>,
    counters: IngestCounters,
}

impl IngestCore {
    pub fn new(mapping: Arc<Mapping>, slots: SlotTable, backends: Vec<BackendId>) -> Self {
        let shards = usize::from(slots.shards);
        Self {
            normalizer: Normalizer::new(mapping),
            router: Router::new(slots),
            streams: backends.iter().map(|_| None).collect(),
            backends,
            seen: vec![0; shards],
            used: vec![0; shards],
            counters: IngestCounters::default(),
        }
    }

    pub fn counters(&self) -> &IngestCounters {
        &self.counters
    }

    /// The stream of this backend was opened and yields every event after `start`. The first opening fixes where the node's
    /// knowledge begins; a later one in the same lineage only goes on counting.
    pub fn opened(&mut self, backend: usize, lineage: Lineage, start: (u64, u32), token: Option<ResumeToken>) {
        let numbering = Numbering::starting(self.backends[backend], lineage, start);
        let place = numbering.last();
        let shards = self.router.shards();
        match &mut self.streams[backend] {
            Some(stream) if stream.enqueued.lineage == lineage => stream.numbering = numbering,
            slot => {
                let first = ResumePoint { position: place, token };
                *slot = Some(Stream {
                    numbering,
                    settlement: Settlement::new(first, shards),
                    enqueued: place,
                    told: vec![place; usize::from(shards)],
                });
            }
        }
    }

    /// After history was lost: goes on at `start`, telling everybody that something is missing, whether or not that lies after what had been
    /// read. What is read again is dropped.
    pub fn opened_after_loss(&mut self, backend: usize, lineage: Lineage, start: (u64, u32), out: &mut Vec<ToShard>) {
        let before = self.streams[backend].as_ref().map(|stream| stream.enqueued);
        self.opened(backend, lineage, start, None);
        let Some(stream) = &mut self.streams[backend] else { return };
        let mut position = Position { backend: self.backends[backend], lineage, time: start.0, k: start.1 };
        if let Some(before) = before
            && position.is_covered_by(&before)
        {
            // The first place after what was read at which no event can stand. Whoever is told there reads its state after all of the
            // cluster time before it.
            position = match before.k {
                0 => before,
                _ => Position { time: before.time + 1, k: 0, ..before },
            };
        }
        stream.enqueued = position;
        stream.settlement.read(position, None);
        self.gap(backend, position, smallvec![Scope::Everything], GapReason::HistoryLost, out);
    }

    /// Whether every backend has a start position. No subscription is live before.
    pub fn has_all_starts(&self) -> bool {
        self.streams.iter().all(Option::is_some)
    }

    /// Where the stream of a backend must be reopened so that nothing is missed.
    pub fn resume_point(&self, backend: usize) -> Option<ResumePoint> {
        self.streams[backend].as_ref().map(|stream| stream.settlement.latest())
    }

    /// Up to where a backend has been read and all that came of it is settled.
    pub fn watermark(&self, backend: usize) -> Option<Position> {
        self.streams[backend].as_ref().map(|stream| stream.settlement.watermark())
    }

    /// Resume tokens kept for a backend.
    pub fn tokens(&self, backend: usize) -> usize {
        self.streams[backend].as_ref().map_or(0, |stream| stream.settlement.tokens())
    }

    /// The last position of a backend's stream that went on to routing; `None` before the stream was opened.
    pub fn enqueued(&self, backend: usize) -> Option<Position> {
        self.streams[backend].as_ref().map(|stream| stream.enqueued)
    }

    pub fn shards(&self) -> u16 {
        self.router.shards()
    }

    pub fn backends(&self) -> &[BackendId] {
        &self.backends
    }

    /// The last position read, of each backend that has been opened.
    pub fn positions(&self) -> Positions {
        self.streams.iter().flatten().map(|stream| stream.enqueued).collect()
    }

    /// Takes the next event of a backend's stream: `event` is its BSON. Nothing is made of an event that no shard wants.
    ///
    /// # Errors
    /// When the stream must be reopened. The event has had no effect then.
    pub fn event(&mut self, backend: usize, event: &Bytes, out: &mut Vec<ToShard>) -> Result<(), EventError> {
        let fields = RawEvent::parse(event)?;
        let time = fields.cluster_time.ok_or(Malformed::Lacks("clusterTime"))?;
        let token = fields.token.ok_or(Malformed::Lacks("_id"))?;
        let Some(stream) = &mut self.streams[backend] else {
            debug_assert!(false, "an event before its stream was opened");
            return Ok(());
        };
        let mut numbering = stream.numbering;
        let position = numbering.next(time)?;
        self.counters.events += 1;
        self.counters.bytes += event.len() as u64;
        if position.is_covered_by(&stream.enqueued) {
            stream.numbering = numbering;
            self.counters.repeated += 1;
            return Ok(());
        }
        let routed = self.routed(event, &fields, position)?;
        let Some(stream) = &mut self.streams[backend] else { return Ok(()) };
        stream.numbering = numbering;
        stream.enqueued = position;
        stream.settlement.read(position, Some(token));
        match routed {
            Routed::Nobody => self.counters.filtered += 1,
            Routed::Change(shards, change) => self.change(backend, shards, change, out),
            Routed::Gap(scopes, reason) => self.gap(backend, position, scopes, reason, out),
            Routed::Skip(why) => self.counters.skipped[why as usize] += 1,
        }
        Ok(())
    }

    /// Takes an event that is too large to be read: `event` is what the source tells of it without its documents. Everybody whom it may
    /// concern is told that it is missing.
    ///
    /// # Errors
    /// As those of [`Self::event`].
    pub fn too_large(&mut self, backend: usize, event: &Bytes, out: &mut Vec<ToShard>) -> Result<(), EventError> {
        let fields = RawEvent::parse(event)?;
        let time = fields.cluster_time.ok_or(Malformed::Lacks("clusterTime"))?;
        let token = fields.token.ok_or(Malformed::Lacks("_id"))?;
        let scopes = self.normalizer.may_concern(&fields);
        let Some(stream) = &mut self.streams[backend] else { return Ok(()) };
        let position = stream.numbering.next(time)?;
        self.counters.events += 1;
        if position.is_covered_by(&stream.enqueued) {
            self.counters.repeated += 1;
            return Ok(());
        }
        stream.enqueued = position;
        stream.settlement.read(position, Some(token));
        self.gap(backend, position, scopes, GapReason::Oversize, out);
        Ok(())
    }

    /// Whom an event concerns, and what it is to them.
    #[inline(always)]
    fn routed(&self, event: &Bytes, fields: &RawEvent<'_>, position: Position) -> Result<Routed, Malformed> {
        let mut found = Found::NOTHING;
        Ok(match self.normalizer.find(fields, &mut found)? {
            Concern::Document => {
                let shards = match found.places() {
                    Some(places) => self.router.wanting(places.into_iter().flatten(), || found.filter_key()),
                    None => self.router.everyone(),
                };
                if shards.is_empty() {
                    Routed::Nobody
                } else {
                    Routed::Change(shards, self.normalizer.change(event, fields, &found, position))
                }
            }
            Concern::Gap { scopes, reason } => Routed::Gap(scopes, reason),
            Concern::Skip(why) => Routed::Skip(why),
        })
    }

    /// The same for an event that another cursor than the live stream has read; nothing is counted.
    pub(super) fn route_again(
        &self,
        event: &Bytes,
        fields: &RawEvent<'_>,
        position: Position,
        too_large: bool,
    ) -> Result<Routed, Malformed> {
        if too_large {
            return Ok(Routed::Gap(self.normalizer.may_concern(fields), GapReason::Oversize));
        }
        self.routed(event, fields, position)
    }

    fn change(&mut self, backend: usize, shards: ShardSet, change: Change, out: &mut Vec<ToShard>) {
        self.counters.routed += 1;
        let position = change.position;
        let change = Arc::new(change);
        for shard in shards {
            self.tell(backend, shard, position);
            out.push((shard, FromIngest::Change(change.clone())));
        }
    }

    fn gap(
        &mut self,
        backend: usize,
        position: Position,
        scopes: SmallVec<[Scope; 2]>,
        reason: GapReason,
        out: &mut Vec<ToShard>,
    ) {
        self.counters.gaps += 1;
        let gap = Arc::new(Gap { position, scopes, reason });
        for shard in ShardIndex::all(self.router.shards()) {
            self.tell(backend, shard, position);
            out.push((shard, FromIngest::Gap(gap.clone())));
        }
    }

    fn tell(&mut self, backend: usize, shard: ShardIndex, position: Position) {
        if let Some(stream) = &mut self.streams[backend] {
            stream.told[usize::from(shard.0)] = position;
            stream.settlement.sent(usize::from(shard.0), position);
        }
    }

    /// A batch of this backend has been taken in full; `resume` is the token that the source gave after it.
    pub fn batch_end(&mut self, backend: usize, resume: Option<ResumeToken>) {
        if let (Some(stream), Some(token)) = (&mut self.streams[backend], resume) {
            // While what was read already is read again, the token stands before `latest` and would lead back.
            if stream.numbering.last() == stream.enqueued {
                stream.settlement.renew(&token);
            }
        }
    }

    /// Tells each shard how far every backend has been read, where it doesn't know from an event.
    pub fn progress(&mut self, out: &mut Vec<ToShard>) {
        for backend in 0..self.backends.len() {
            let Some(stream) = &self.streams[backend] else { continue };
            let position = stream.enqueued;
            for shard in ShardIndex::all(self.router.shards()) {
                let known = self.streams[backend].as_ref().map(|stream| stream.told[usize::from(shard.0)]);
                if known != Some(position) {
                    self.tell(backend, shard, position);
                    out.push((shard, FromIngest::Progress(position)));
                }
            }
        }
    }

    /// Routes by this filter from the next event on, and says so to the shard once every backend has a start position.
    pub fn filter(&mut self, shard: ShardIndex, snapshot: Arc<FilterSnapshot>, out: &mut Vec<ToShard>) {
        let version = snapshot.version;
        if self.router.filter(shard, snapshot) {
            self.used[usize::from(shard.0)] = version;
        }
        self.announce_filters(out);
    }

    /// Version of the shard's filter that is used.
    pub fn filter_used(&self, shard: ShardIndex) -> u64 {
        self.used[usize::from(shard.0)]
    }

    /// Puts out the `FilterSeen` that have become due: called by itself from [`Self::filter`], and by the driver after
    /// [`Self::opened`].
    pub fn announce_filters(&mut self, out: &mut Vec<ToShard>) {
        if !self.has_all_starts() {
            return;
        }
        let positions = self.positions();
        for shard in ShardIndex::all(self.router.shards()) {
            let index = usize::from(shard.0);
            if self.used[index] > self.seen[index] {
                self.seen[index] = self.used[index];
                out.push((shard, FromIngest::FilterSeen { version: self.used[index], positions: positions.clone() }));
            }
        }
    }

    /// A shard has settled everything up to these positions.
    pub fn settled(&mut self, shard: ShardIndex, positions: &Positions) {
        for (backend, stream) in self.backends.iter().zip(&mut self.streams) {
            if let (Some(stream), Some(position)) = (stream, positions.get(*backend)) {
                stream.settlement.settled(usize::from(shard.0), *position);
            }
        }
    }

    /// Where reading may go on after a restart, of each backend that has been opened.
    pub fn checkpoint(&mut self) -> Vec<ResumePoint> {
        self.streams.iter_mut().flatten().map(|stream| stream.settlement.checkpoint()).collect()
    }
}
