//! One run of a node: from a start to the next crash.
//!
//! What the ingest thread's loop does around its core (`src/ingest/pump/`) is done here step by step, in the same order, so that a crash
//! can come between any two: waiting for the Gateways that the checkpoint names, opening the stream, looking at cells, writing checkpoints.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use predicate::Mapping;
use shards::{
    BackendConfig, CatchUpWanted, FilterBuilt, FilterSnapshot, FilterStep, FromIngest, Input, Millis, Output, Shard,
    ShardConfig, SyncState,
};
use streamer::{
    checkpoint::{BackendCheckpoint, Checkpoint, CheckpointStore, SlotStore},
    ingest::{
        core::{IngestCore, ToShard},
        route::ShardIndex,
        settle::ResumePoint,
        source::Start,
        start::start_after,
    },
};
use wire::{Epoch, Position, Positions, ShardAddress, SlotTable};

use crate::{
    Broken, SimConfig,
    disk::SimDisk,
    expected::Order,
    history::{BACKEND, History, LINEAGE, Lost, NAME},
    passes::Passes,
    registrar::{Compiled, Registrar},
    shown::shown,
};

/// Items of a ring.
const RING: usize = 8;

/// Items up to which a ring has room to spare for what a pass brings.
const RING_SPARE: usize = 4;

/// How long a starting node waits for the Gateways that the checkpoint names: the default of `ingest.registration_grace`.
pub(crate) const GRACE_MS: u64 = 10_000;

/// What one shard shows to the ingest thread.
#[derive(Clone)]
struct Cells {
    filter: Arc<FilterSnapshot>,
    settled: Positions,
    sync: SyncState,
    catch_up: Arc<CatchUpWanted>,
}

/// A checkpoint that is being written.
struct Saving {
    checkpoint: Checkpoint,
    /// Of each shard, the filter whose Gateways it names.
    filters: Vec<Arc<FilterSnapshot>>,
    done_at: u64,
}

pub(crate) struct Node {
    pub(crate) core: IngestCore,
    pub(crate) shards: Vec<Shard>,
    rings: Vec<VecDeque<FromIngest>>,
    cells: Vec<Cells>,
    pending: VecDeque<ToShard>,
    pub(crate) registrar: Registrar,
    cursor: Option<usize>,
    passes: Passes,
    store: SlotStore<SimDisk>,
    saving: Option<Saving>,
    pub(crate) written: Option<Checkpoint>,
    /// Gateways that the checkpoint names.
    named: BTreeSet<String>,
    /// The stream was opened, and where it began isn't written down yet: nothing is read until it is.
    begun: bool,
    /// The same until the filter of each shard is in use that holds what the Gateways have presented that are back.
    filters_due: Vec<u64>,
    started_at: u64,
    /// The checkpoint that it started from may be older than the last that was written.
    pub(crate) from_older: bool,
    /// History that the source had lost when it was needed: after this, and up to that.
    pub(crate) lost: Vec<(Order, Order)>,
    broken: Option<Broken>,
    breaking: Breaking,
    /// How many subscriptions of each shard had run out.
    expired: Vec<u64>,
    outputs: Vec<Output>,
    scratch: Vec<ToShard>,
    batch: Vec<Bytes>,
    /// Filters that are being built: the shard, when it is done, and what it will be. One that never is isn't here.
    builds: Vec<(usize, u64, FilterBuilt)>,
}

/// What is remembered of each shard only to break a rule with it.
#[derive(Default)]
struct Breaking {
    /// The filter that was looked at last.
    used: Vec<Arc<FilterSnapshot>>,
    /// The last position that it took from its ring.
    received: Vec<Option<Position>>,
    /// What it had published when the build began that goes on, and what that has become once the base is in use.
    captured: Vec<Option<Arc<FilterSnapshot>>>,
    swapped: Vec<Option<Arc<FilterSnapshot>>>,
}

/// What becomes of the build of a filter.
pub(crate) enum Fate {
    Built { after_ms: u64 },
    Failed { after_ms: u64 },
    Never,
}

pub(crate) fn address(shard: usize) -> String {
    format!("shard:{shard}")
}

impl Node {
    pub(crate) fn start(shards: u16, epoch: u128, disk: &SimDisk, of: &SimConfig, now: Millis) -> Self {
        let slots = SlotTable { shards };
        let addresses: Vec<_> =
            (0..shards).map(|partition| ShardAddress { partition, address: address(usize::from(partition)) }).collect();
        let make = |partition| {
            let mut config = ShardConfig::new(partition, slots, addresses.clone(), Epoch(epoch));
            config.backends = vec![BackendConfig { id: *BACKEND, before_images: of.before_images }];
            config.log_events_max = of.log_events_max;
            config.outbox_events_max = of.outbox_events_max;
            config.slice_units = of.slice_units;
            config.filter = of.filter;
            config.received_deadline_ms = of.received_deadline_ms;
            config.ttl_min_s = 1;
            config.expiry_check_ms = 100;
            Shard::new(config, now)
        };
        let cells = Cells {
            filter: Arc::new(FilterSnapshot::unpublished()),
            settled: Positions::default(),
            sync: SyncState::default(),
            catch_up: Arc::default(),
        };
        let mut store = disk.store();
        let written = store.load().expect("one slot is always whole");
        let count = usize::from(shards);
        let core = IngestCore::new(Arc::new(Mapping::syntrix()), slots, vec![*BACKEND]);
        Self {
            passes: Passes::new(&core, of),
            core,
            shards: (0..shards).map(make).collect(),
            rings: vec![VecDeque::new(); count],
            cells: vec![cells; count],
            pending: VecDeque::new(),
            registrar: Registrar::default(),
            cursor: None,
            store,
            saving: None,
            named: written.iter().flat_map(|written| written.gateways.iter().cloned()).collect(),
            written,
            begun: false,
            filters_due: Vec::new(),
            started_at: now.0,
            from_older: false,
            lost: Vec::new(),
            broken: of.broken,
            breaking: Breaking {
                used: (0..shards).map(|_| Arc::default()).collect(),
                received: vec![None; count],
                captured: vec![None; count],
                swapped: vec![None; count],
            },
            expired: vec![0; count],
            outputs: Vec::new(),
            scratch: Vec::new(),
            batch: Vec::new(),
            builds: Vec::new(),
        }
    }

    fn is_synced(&self, gateway: &str) -> bool {
        self.cells.iter().all(|cells| cells.sync.synced.iter().any(|synced| **synced == *gateway))
    }

    /// Opens the stream, once the Gateways that the checkpoint names are back, or have been waited for long enough. True when it did.
    /// `absent` are then the Gateways that hadn't presented everything by then, now or an earlier time, for a reason that is good.
    pub(crate) fn open(
        &mut self,
        history: &History,
        gateways: &[&str],
        absent: &mut HashSet<usize>,
        now: Millis,
    ) -> bool {
        if self.cursor.is_some() {
            return false;
        }
        let point = self.written.as_ref().map(|written| written.backends[0].resume_point());
        let mut place = None;
        if let Some(point) = &point {
            let skipped = self.broken == Some(Broken::BarrierSkippedAndPositionIgnored);
            let graced = now.0 >= self.started_at + GRACE_MS;
            if !skipped && !graced && !self.named.iter().all(|name| self.is_synced(name)) {
                return false;
            }
            for (index, gateway) in gateways.iter().enumerate() {
                if self.is_synced(gateway) {
                    absent.remove(&index);
                } else if self.from_older || graced && self.named.contains(*gateway) {
                    absent.insert(index);
                }
            }
            place = history.open(&start_after(point)).ok();
        }
        match (place, point) {
            (Some((cursor, place)), Some(point)) => {
                self.cursor = Some(cursor);
                self.core.opened(0, LINEAGE, place, point.token);
            }
            (None, Some(point)) => self.open_after_loss(history, point.position.order()),
            _ => {
                let (cursor, place) = history.open(&Start::Now).expect("now is never forgotten");
                self.cursor = Some(cursor);
                self.core.opened(0, LINEAGE, place, None);
            }
        }
        self.begun = true;
        self.filters_due = self.cells.iter().map(|cells| cells.sync.synced_filter).collect();
        let mut out = std::mem::take(&mut self.scratch);
        self.core.announce_filters(&mut out);
        self.take_out(out);
        true
    }

    fn open_after_loss(&mut self, history: &History, after: Order) {
        let (cursor, place) = history.open(&Start::Now).expect("now is never forgotten");
        self.cursor = Some(cursor);
        let mut out = std::mem::take(&mut self.scratch);
        self.passes.live_lost(&mut out);
        self.core.opened_after_loss(0, LINEAGE, place, &mut out);
        self.take_out(out);
        // Where what was read already reaches further, the gap stands behind that.
        self.lost.push((after, self.position().unwrap_or(place)));
    }

    /// The cursor breaks and is opened again at the resume point. Whether that was still there.
    pub(crate) fn reopen(&mut self, history: &History, at_time: bool) -> Option<bool> {
        let (Some(_), Some(point)) = (self.cursor, self.core.resume_point(0)) else { return None };
        let start = if at_time { Start::At { time: point.position.time } } else { start_after(&point) };
        match history.open(&start) {
            Ok((cursor, place)) => {
                self.cursor = Some(cursor);
                self.core.opened(0, LINEAGE, place, None);
                Some(true)
            }
            Err(Lost) => {
                self.open_after_loss(history, point.position.order());
                Some(false)
            }
        }
    }

    /// The cursor of a pass breaks, if there is one.
    pub(crate) fn break_pass(&mut self, now: Millis) {
        self.passes.fail(now);
    }

    /// The ingest thread does what is due of a pass, if nothing waits for room. Whether there was anything.
    pub(crate) fn pass(&mut self, history: &mut History, max: usize, now: Millis) -> bool {
        self.flush();
        if self.cursor.is_none() || self.begun || !self.pending.is_empty() {
            return false;
        }
        self.fill_rings();
        let mut out = std::mem::take(&mut self.scratch);
        let happened = self.passes.step(&self.core, history, max, now, &mut out);
        self.take_out(out);
        self.flush();
        self.fill_rings();
        happened
    }

    fn fill_rings(&mut self) {
        if self.pending.is_empty() {
            for (shard, ring) in self.rings.iter_mut().enumerate() {
                self.passes.fill(shard, ring, RING_SPARE);
            }
        }
    }

    /// The ingest thread looks at a shard's cells. Its filter is used once what was saved names its Gateways.
    pub(crate) fn look(&mut self, shard: usize) {
        let cells = &self.cells[shard];
        let index = ShardIndex(shard as u16);
        let settled = match (self.broken, self.breaking.received[shard]) {
            (Some(Broken::SettleBeforeAck), Some(received)) => [received].into_iter().collect(),
            _ => cells.settled.clone(),
        };
        self.core.settled(index, &settled);
        self.passes.wanted(index, cells.catch_up.clone());
        if cells.sync.gateways.iter().all(|gateway| self.named.contains(&**gateway)) {
            let filter = cells.filter.clone();
            self.use_filter(shard, filter);
        }
    }

    fn use_filter(&mut self, shard: usize, filter: Arc<FilterSnapshot>) {
        let filter = match self.broken {
            Some(_) => self.break_filter(shard, filter),
            None => filter,
        };
        let mut out = std::mem::take(&mut self.scratch);
        self.core.filter(ShardIndex(shard as u16), filter, &mut out);
        self.take_out(out);
    }

    /// What is used in place of a filter, where a rule is broken that concerns filters.
    fn break_filter(&mut self, shard: usize, filter: Arc<FilterSnapshot>) -> Arc<FilterSnapshot> {
        let used = &mut self.breaking.used[shard];
        let version = filter.version;
        let under_this = |of: &FilterSnapshot| {
            let mut copy = of.clone();
            copy.version = version;
            Arc::new(copy)
        };
        match self.broken {
            Some(Broken::FilterConfirmedEarly) => {
                let before = under_this(used);
                *used = filter;
                before
            }
            Some(Broken::StaleFilterKept) => {
                if version >= used.version + 4 || used.version == 0 {
                    *used = filter;
                }
                under_this(used)
            }
            Some(Broken::DeltaClearedAtSwap) => match &self.breaking.swapped[shard] {
                Some(captured) => under_this(captured),
                None => filter,
            },
            _ => filter,
        }
    }

    /// The ingest thread reads up to `max` events, if nothing waits for room. Returns how many.
    pub(crate) fn read(&mut self, history: &mut History, max: usize) -> usize {
        self.flush();
        let Some(cursor) = self.cursor.filter(|_| !self.begun) else { return 0 };
        let in_use = |(shard, due): (ShardIndex, &u64)| self.core.filter_used(shard) >= *due;
        if ShardIndex::all(self.shards.len() as u16).zip(&self.filters_due).all(in_use) {
            self.filters_due.clear();
        }
        if !self.pending.is_empty() || !self.filters_due.is_empty() {
            return 0;
        }
        let mut batch = std::mem::take(&mut self.batch);
        let token = history.read(cursor, max, &mut batch);
        let count = batch.len();
        let mut out = std::mem::take(&mut self.scratch);
        for event in batch.drain(..) {
            self.core.event(0, &event, &mut out).expect("the simulated source keeps to its protocol");
        }
        self.batch = batch;
        self.cursor = Some(cursor + count);
        self.core.batch_end(0, token);
        self.take_out(out);
        self.flush();
        count
    }

    pub(crate) fn progress(&mut self) {
        let mut out = std::mem::take(&mut self.scratch);
        self.core.progress(&mut out);
        self.take_out(out);
        self.flush();
    }

    fn take_out(&mut self, mut out: Vec<ToShard>) {
        self.pending.extend(out.drain(..));
        self.scratch = out;
    }

    fn flush(&mut self) {
        while let Some((shard, _)) = self.pending.front()
            && self.rings[usize::from(shard.0)].len() < RING
        {
            let (shard, item) = self.pending.pop_front().expect("it has a front");
            let shard = usize::from(shard.0);
            self.passes.in_place_of(shard, item, &mut self.rings[shard]);
        }
    }

    /// A shard takes up to `max` items from its ring, and goes on with other work. Whether there was anything to do.
    pub(crate) fn drain(&mut self, shard: usize, max: usize, now: Millis) -> bool {
        let count = max.min(self.rings[shard].len());
        if count == 0 && !self.shards[shard].has_work() {
            return false;
        }
        for item in self.rings[shard].iter().take(count) {
            match item {
                FromIngest::Change(change) => self.breaking.received[shard] = Some(change.position),
                FromIngest::Gap(gap) => self.breaking.received[shard] = Some(gap.position),
                FromIngest::Progress(position) => self.breaking.received[shard] = Some(*position),
                FromIngest::FilterSeen { .. } | FromIngest::CatchUp(_) => {}
            }
        }
        self.shards[shard].ingest(self.rings[shard].drain(..count), now, &mut self.outputs);
        self.shards[shard].work(now, &mut self.outputs);
        self.publish(shard);
        true
    }

    /// What a shard is about to take from its ring, in a few words.
    pub(crate) fn shown_ring(&self, shard: usize, max: usize) -> String {
        self.rings[shard].iter().take(max).map(shown).collect::<Vec<_>>().join(", ")
    }

    /// Gives a shard an input, and publishes its cells after it.
    pub(crate) fn give(&mut self, shard: usize, input: Input, now: Millis) {
        let is_built = matches!(&input, Input::FilterBuilt(built) if built.is_good());
        self.shards[shard].handle(input, now, &mut self.outputs);
        if is_built {
            self.breaking.swapped[shard] = self.breaking.captured[shard].take();
        }
        self.publish(shard);
    }

    fn publish(&mut self, shard: usize) {
        let cells = &mut self.cells[shard];
        if let Some(filter) = self.shards[shard].take_filter() {
            cells.filter = Arc::new(filter);
        }
        cells.settled = self.shards[shard].settled();
        if cells.sync.version != self.shards[shard].sync_version() {
            cells.sync = self.shards[shard].sync_state();
        }
        if cells.catch_up.version != self.shards[shard].catch_up_version() {
            cells.catch_up = Arc::new(self.shards[shard].catch_up_wanted());
        }
    }

    /// A shard does the next slice of what its filter wants. What is to be built takes as long as `fate` says: it may fail, or never
    /// be done.
    pub(crate) fn step_filter(&mut self, shard: usize, now: Millis, fate: impl FnOnce() -> Fate) {
        if let FilterStep::Build(build) = self.shards[shard].step_filter() {
            if self.broken == Some(Broken::DeltaClearedAtSwap) {
                self.publish(shard);
                self.breaking.captured[shard] = Some(self.cells[shard].filter.clone());
                self.breaking.swapped[shard] = None;
            }
            match fate() {
                Fate::Built { after_ms } => self.builds.push((shard, now.0 + after_ms, build.run())),
                Fate::Failed { after_ms } => self.builds.push((shard, now.0 + after_ms, build.fail())),
                Fate::Never => {}
            }
        }
    }

    /// The filters that are built by now, with their shards.
    pub(crate) fn take_built(&mut self, now: Millis) -> Vec<(usize, FilterBuilt)> {
        self.builds.extract_if(.., |(_, at, _)| *at <= now.0).map(|(shard, _, built)| (shard, built)).collect()
    }

    /// What the shards have put out, of one call to [`Self::give`] or several to the same shard.
    pub(crate) fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// The registrar answers the oldest request. Returns the shard that it was from.
    pub(crate) fn admit(&mut self, compiled: &mut Compiled, late_ms: u64, now: Millis) -> Option<usize> {
        let (shard, answer) = self.registrar.answer(compiled, late_ms, now)?;
        self.give(shard, answer, now);
        Some(shard)
    }

    /// Gives a shard the oldest of the registrar's commands that has got there. Returns the shard.
    pub(crate) fn command(&mut self, now: Millis) -> Option<usize> {
        let (shard, command) = self.registrar.command(now)?;
        self.give(shard, command, now);
        Some(shard)
    }

    /// Begins to write a checkpoint of what is settled now, if it isn't what was written last. Whether it began.
    pub(crate) fn start_checkpoint(&mut self, done_at: u64) -> bool {
        if self.saving.is_some() {
            return false;
        }
        // Before the Gateways are listed: those whose subscriptions these hold are then among them.
        let filters = self.cells.iter().map(|cells| cells.filter.clone()).collect();
        let Some(point) = self.core.checkpoint().into_iter().next() else { return false };
        let point = match self.broken {
            Some(Broken::CheckpointAhead) => self.core.resume_point(0).expect("what has a checkpoint has been read"),
            _ => point,
        };
        let gateways: BTreeSet<String> =
            self.cells.iter().flat_map(|cells| &cells.sync.gateways).map(|name| name.to_string()).collect();
        let backends = vec![BackendCheckpoint::new(NAME, "simulated", &point)];
        let checkpoint = Checkpoint { backends, gateways: gateways.into_iter().collect() };
        if self.written.as_ref() == Some(&checkpoint) {
            self.begun = false;
            return false;
        }
        self.named.retain(|name| checkpoint.gateways.contains(name));
        self.saving = Some(Saving { checkpoint, filters, done_at });
        true
    }

    /// Ends the writing of a checkpoint whose time has come. Where it leads to.
    pub(crate) fn end_checkpoint(&mut self, now: Millis) -> Option<Position> {
        let saving = self.saving.take_if(|saving| saving.done_at <= now.0)?;
        self.store.save(&saving.checkpoint).expect("the simulated disk takes everything");
        let point = saving.checkpoint.backends[0].resume_point();
        self.named = saving.checkpoint.gateways.iter().cloned().collect();
        self.written = Some(saving.checkpoint);
        for (shard, filter) in saving.filters.into_iter().enumerate() {
            self.use_filter(shard, filter);
        }
        self.begun = false;
        Some(point.position)
    }

    /// The node is no more. What was being written to the disk is there (256), or cut after so many 256ths, or not even begun.
    pub(crate) fn crash(mut self, disk: &SimDisk, kept: Option<u16>) {
        let (Some(saving), Some(kept)) = (self.saving.take(), kept) else { return };
        match (u8::try_from(kept), &self.written, self.broken) {
            (Ok(_), Some(before), Some(Broken::TornSlotAccepted)) => {
                disk.write_mixed(&mut self.store, before, &saving.checkpoint).expect("it takes everything");
            }
            // Before the first checkpoint is whole there is nothing to fall back to but having none.
            (Ok(_), None, _) => {}
            (Ok(share), Some(_), _) => {
                disk.tear_next(share);
                self.store.save(&saving.checkpoint).expect("the simulated disk takes everything");
            }
            (Err(_), ..) => self.store.save(&saving.checkpoint).expect("the simulated disk takes everything"),
        }
    }

    /// Up to where it has read.
    pub(crate) fn position(&self) -> Option<Order> {
        self.core.positions().get(*BACKEND).map(Position::order)
    }

    /// Whether nothing is under way within the node.
    pub(crate) fn is_idle(&self, history: &History) -> bool {
        self.cursor == Some(history.len())
            && !self.begun
            && self.pending.is_empty()
            && self.registrar.is_idle()
            && self.passes.is_idle()
            && self.shards.iter().all(|shard| shard.stats().subscriptions_behind == 0)
            && self.rings.iter().all(VecDeque::is_empty)
            && !self.shards.iter().any(Shard::has_work)
    }

    /// Whether something that was delivered, or is to be, isn't settled.
    pub(crate) fn owes(&mut self) -> bool {
        let point: Option<ResumePoint> = self.core.checkpoint().into_iter().next();
        point.is_some_and(|point| Some(point.position.order()) != self.position())
    }

    pub(crate) fn is_saving(&self) -> bool {
        self.saving.is_some()
    }

    /// Whether subscriptions of this shard have run out since the last call.
    pub(crate) fn has_expired(&mut self, shard: usize) -> bool {
        let expired = self.shards[shard].stats().subscriptions_expired;
        std::mem::replace(&mut self.expired[shard], expired) != expired
    }
}
