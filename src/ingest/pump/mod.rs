//! The ingest thread's loop: gives [`IngestCore`] its events and cells, and carries what comes out into the rings.
//!
//! Invariants:
//! - What the core puts out reaches the rings in its order; while a ring is full nothing is read, and the shard is named.
//! - Before Gateways that go on taking things are given too much, reading pauses for a bounded time (`pause.rs`).
//! - The shards' cells are looked at before every batch and at every wait.
//! - A stream is reopened at the core's resume point, never "now" by accident.
//! - Nothing is read before every backend has a start position: no subscription is live until then, so nobody would get it.
//! - A checkpoint is written only of what the core calls settled.
//! - A shard's filter is used only once the checkpoint names the Gateways whose subscriptions it holds: no subscription is live whose
//!   Gateway a restarting node wouldn't wait for.

mod backends;
mod catch_up;
mod checkpoints;
mod halt;
mod pause;
mod signs;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use self::{
    catch_up::CursorReader,
    pause::{Budget, OfShard},
    signs::Signs,
};
use super::{
    catch_up::CatchUpCore,
    core::{IngestCore, ToShard},
    reader::{FromReader, READ_AHEAD},
    route::ShardIndex,
    source::{Identity, Source},
    status::{BackendStatus, IngestPicture, IngestStatus, PauseReason, Phase},
};
use crate::{
    checkpoint::{BackendCheckpoint, Checkpoint, CheckpointError, CheckpointStore},
    config::{HistoryLost, Missing, Oversize},
};
use rand::Rng;
use shards::{
    FilterSnapshot, FromIngest, Nanos,
    driver::{CellSignal, Cells, PushError, RingProducer, now_nanos},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// Retry of a source: from this, doubling, to [`RETRY_MAX`], each drawn from the upper half of its span.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The pause before the next try, after so many that failed.
fn backoff(failures: u32) -> Duration {
    let span = RETRY_MIN.saturating_mul(1 << failures.min(16)).min(RETRY_MAX);
    span.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// How often shards are told how far reading has come, where no event told them.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How often the picture of the thread is published, while something changes.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);

/// How long a wait for room in a ring lasts before the cells are looked at again.
const ROOM_POLL: Duration = Duration::from_millis(5);

/// How often an item is timed on its way, at most. Beyond that, its clock readings would be a cost.
const MARK_EVERY: Duration = Duration::from_millis(1);

/// Settings of the loop.
#[derive(Clone, Debug)]
pub struct PumpConfig {
    pub checkpoint_every: Duration,
    pub checkpoint_events: u64,
    /// How long a restarting node waits for the Gateways that the checkpoint names.
    pub registration_grace: Duration,
    /// What to do when the source no longer has what comes next.
    pub on_history_lost: HistoryLost,
    /// What to do with an event that is too large to be read.
    pub oversize: Oversize,
    /// A pass of the catch-up cursor halves its distance to the live stream within this time, or ends.
    pub halve_within: Duration,
    /// A source that has told nothing for this long, though it should have, is an alarm. Zero: never.
    pub stalled_after: Duration,
    /// How long reading pauses at most, before Gateways that go on taking things are given more than they may hold. Zero: never.
    pub pause_max: Duration,
    /// What to do with a backend that has no checkpoint.
    pub on_missing: Missing,
}

/// How far the loop is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phases {
    Running,
    /// No more is read; what shards settle still counts.
    NotReading,
    /// The last checkpoint is written.
    Finished,
}

/// One shard, seen from the ingest thread.
pub struct Link {
    pub ring: RingProducer<FromIngest>,
    pub cells: Arc<Cells>,
}

/// What the loop is given.
pub struct PumpParts {
    pub core: IngestCore,
    pub sources: Vec<Arc<dyn Source>>,
    pub links: Vec<Link>,
    pub store: Box<dyn CheckpointStore>,
    pub config: PumpConfig,
    pub status: Arc<IngestStatus>,
    /// Woken by shards whose cells have changed.
    pub cells_changed: Arc<CellSignal>,
    pub phase: watch::Receiver<Phases>,
    /// The process's clock, from which milliseconds in the status count.
    pub started: std::time::Instant,
}

struct Backend {
    source: Arc<dyn Source>,
    phase: Phase,
    identity: Option<Identity>,
    error: Option<String>,
    attempt: u64,
    failures: u32,
    reopenings: u64,
    retry_at: Option<Instant>,
    task: Option<JoinHandle<()>>,
    /// The stream is being opened after history was lost: everybody is to be told.
    after_loss: bool,
    /// The stream is being opened to get past an event that is too large.
    one_by_one: bool,
    signs: Signs,
    saved: Option<BackendCheckpoint>,
}

type Save = JoinHandle<(Box<dyn CheckpointStore>, Checkpoint, Result<(), CheckpointError>)>;

/// See the module's documentation.
pub struct Pump {
    core: IngestCore,
    backends: Vec<Backend>,
    links: Vec<Link>,
    /// Of each shard.
    pauses: Vec<OfShard>,
    pause_budget: Budget,
    config: PumpConfig,
    status: Arc<IngestStatus>,
    cells_changed: Arc<CellSignal>,
    phase: watch::Receiver<Phases>,
    started: std::time::Instant,
    from_readers: mpsc::Receiver<FromReader>,
    to_pump: mpsc::Sender<FromReader>,
    catch_up: CatchUpCore,
    /// Of each backend.
    cursors: Vec<CursorReader>,
    from_cursors: mpsc::Receiver<FromReader>,
    to_catch_up: mpsc::Sender<FromReader>,
    /// Live batches since a pass had its turn.
    live_turns: u32,
    /// A pass has more to do at once.
    catch_up_has_more: bool,
    catch_up_tick_at: Instant,
    pending: VecDeque<ToShard>,
    /// When the batch of which `pending` holds what shards want was read.
    in_hand_since: Option<Nanos>,
    /// When an item was last marked as one to be timed.
    marked_at: Nanos,
    /// Scratch of the core's output.
    out: Vec<ToShard>,
    /// Names of the Gateways that reading waits for; `None` once it no longer does.
    awaited: Option<BTreeSet<String>>,
    grace_ends: Instant,
    progress_at: Option<Instant>,
    checkpoint_at: Instant,
    events_at_checkpoint: u64,
    written: Option<Checkpoint>,
    /// Gateways that the checkpoint names.
    named: HashSet<String>,
    /// A stream has been opened, and the place that it began at isn't written down yet: nothing is read until it is.
    begun: bool,
    /// The same until the filter of each shard is in use that holds what the Gateways have presented that are back: a shard tells
    /// first that a Gateway is back, then its filter, and this thread may run between the two. Empty: nothing is waited for.
    filters_due: Vec<u64>,
    store: Option<Box<dyn CheckpointStore>>,
    save: Option<Save>,
    /// Of each shard, the filter whose Gateways the checkpoint names that is being written.
    saving: Vec<Arc<FilterSnapshot>>,
    /// A checkpoint could not be written: Gateways that wait to be named don't hasten the next one before this time.
    hastened_from: Instant,
    /// Why nothing may be written any more.
    ended: Option<CheckpointError>,
    picture: IngestPicture,
    publish_at: Instant,
}

impl Pump {
    /// # Errors
    /// When the checkpoint can't be claimed, or read.
    pub fn new(parts: PumpParts) -> Result<Self, CheckpointError> {
        let PumpParts { core, sources, links, mut store, config, status, cells_changed, phase, started } = parts;
        let saved = store.claim()?;
        let now = Instant::now();
        let backends: Vec<Backend> = sources
            .into_iter()
            .map(|source| Backend {
                saved: saved
                    .as_ref()
                    .and_then(|saved| saved.backends.iter().find(|backend| backend.name == source.name()).cloned()),
                source,
                phase: Phase::Connecting,
                identity: None,
                error: None,
                attempt: 0,
                failures: 0,
                reopenings: 0,
                retry_at: None,
                task: None,
                after_loss: false,
                one_by_one: false,
                signs: Signs::new(now),
            })
            .collect();
        let awaited = saved
            .as_ref()
            .map(|saved| saved.gateways.iter().cloned().collect::<BTreeSet<_>>())
            .filter(|gateways| !gateways.is_empty());
        let (to_pump, from_readers) = mpsc::channel(READ_AHEAD);
        // Room for what every cursor's reader can say before it waits for its turn.
        let (to_catch_up, from_cursors) = mpsc::channel(2 * backends.len().max(1));
        let pause_budget = Budget::new(config.pause_max, now);
        let mut pump = Self {
            catch_up: CatchUpCore::new(&core, config.halve_within),
            cursors: backends.iter().map(|_| CursorReader::new()).collect(),
            from_cursors,
            to_catch_up,
            live_turns: 0,
            catch_up_has_more: false,
            catch_up_tick_at: now,
            core,
            backends,
            config,
            status,
            cells_changed,
            phase,
            started,
            from_readers,
            to_pump,
            pending: VecDeque::new(),
            in_hand_since: None,
            marked_at: Nanos::default(),
            out: Vec::new(),
            awaited,
            grace_ends: now,
            progress_at: None,
            checkpoint_at: now,
            events_at_checkpoint: 0,
            named: saved.iter().flat_map(|saved| saved.gateways.iter().cloned()).collect(),
            begun: false,
            filters_due: Vec::new(),
            written: saved,
            save: None,
            saving: Vec::new(),
            hastened_from: now,
            ended: None,
            picture: IngestPicture { checkpoint_bad_slots: store.bad_slots(), ..IngestPicture::default() },
            pauses: links.iter().map(|_| OfShard::default()).collect(),
            pause_budget,
            links,
            store: Some(store),
            publish_at: now,
        };
        pump.grace_ends = now + pump.config.registration_grace;
        pump.checkpoint_at = now + pump.config.checkpoint_every;
        Ok(pump)
    }

    /// Runs until the node stops; then writes a last checkpoint.
    ///
    /// # Errors
    /// When the checkpoint is another's now. Nothing is written then, and the node has to end.
    pub async fn run(mut self) -> Result<(), CheckpointError> {
        if let Some(gateways) = &self.awaited {
            tracing::info!(
                "waiting up to {:?} for {} Gateways that the checkpoint names",
                self.config.registration_grace,
                gateways.len()
            );
        }
        for backend in 0..self.backends.len() {
            self.identify(backend);
        }
        while *self.phase.borrow() != Phases::Finished && self.ended.is_none() {
            if *self.phase.borrow() == Phases::NotReading {
                self.stop_reading();
            }
            self.look_at_cells();
            self.flush().await;
            if self.catch_up.is_wanted() {
                // Readers run first, so that it shows whether a live batch waits.
                tokio::task::yield_now().await;
                self.catch_up();
                self.flush().await;
            }
            if Instant::now() >= self.publish_at {
                self.publish();
            }
            self.wait().await;
        }
        self.shut_down().await
    }

    /// Waits for the next thing to do, and does it.
    async fn wait(&mut self) {
        let deadline = self.deadline();
        tokio::select! {
            biased;
            _ = self.phase.changed() => {}
            said = self.from_readers.recv(), if !self.begun && self.filters_due.is_empty() && !self.pause_budget.is_paused() => {
                if let Some(said) = said {
                    self.live_turns = self.live_turns.saturating_add(1);
                    self.hear(said);
                }
            }
            _ = self.cells_changed.changed() => {}
            saved = async { self.save.as_mut().expect("guarded by the branch's condition").await }, if self.save.is_some() => {
                self.save = None;
                match saved {
                    Ok(saved) => self.saved(saved),
                    // Without a store nothing new could ever go live. The node sees this thread end, and ends.
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                }
            }
            said = self.from_cursors.recv() => {
                if let Some(said) = said {
                    self.hear_cursor(said);
                    self.take_out();
                }
            }
            // Readers run while this thread lets them.
            () = tokio::task::yield_now(), if self.catch_up_has_more => {}
            _ = sleep_until(deadline) => {}
        }
        self.on_time();
    }

    fn deadline(&mut self) -> Instant {
        let catch_up = self.catch_up_due();
        let retries = self.backends.iter().filter_map(|backend| backend.retry_at);
        let grace = self.awaited.as_ref().map(|_| self.grace_ends);
        let checkpoint = self.store.as_ref().map(|_| self.checkpoint_at);
        let now = Instant::now();
        let latest = if self.publish_at > now { self.publish_at } else { now + Duration::from_secs(1) };
        retries
            .chain(grace)
            .chain(checkpoint)
            .chain(self.progress_at)
            .chain(catch_up)
            .chain(self.pause_budget.ends_at())
            .chain([latest])
            .min()
            .unwrap_or(latest)
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        if self.awaited.is_some() && now >= self.grace_ends {
            let missing = self.missing_gateways();
            tracing::warn!(
                "reading goes on without {} Gateways that the checkpoint names and that didn't come back in time: {}",
                missing.len(),
                missing.iter().take(8).cloned().collect::<Vec<_>>().join(", ")
            );
            self.pass_barrier();
        }
        for backend in 0..self.backends.len() {
            if self.backends[backend].retry_at.is_some_and(|at| now >= at) {
                self.backends[backend].retry_at = None;
                self.reopen(backend);
            }
        }
        if self.progress_at.is_some_and(|at| now >= at) {
            self.progress_at = None;
            self.core.progress(&mut self.out);
            self.take_out();
        }
        self.look_for_stalls(now);
        let events = self.core.counters().events - self.events_at_checkpoint;
        if now >= self.checkpoint_at || events >= self.config.checkpoint_events {
            self.start_checkpoint();
        }
    }

    // ---- shards ----

    fn look_at_cells(&mut self) {
        for index in 0..self.links.len() {
            let shard = ShardIndex(index as u16);
            let cells = &self.links[index].cells;
            // The filter first: its Gateways are then among those seen after it.
            let filter = cells.filter();
            let sync = cells.sync();
            let settled = cells.settled();
            self.catch_up.wanted(shard, cells.catch_up());
            self.core.settled(shard, &settled);
            if sync.gateways.iter().all(|gateway| self.named.contains(&**gateway)) {
                self.core.filter(shard, filter, &mut self.out);
            } else if !self.core.positions().is_empty() {
                self.checkpoint_at = self.checkpoint_at.min(Instant::now().max(self.hastened_from));
            }
        }
        let used = |(shard, due): (ShardIndex, &u64)| self.core.filter_used(shard) >= *due;
        if ShardIndex::all(self.links.len() as u16).zip(&self.filters_due).all(used) {
            self.filters_due.clear();
        }
        self.take_out();
        self.look_at_pressure();
        if self.awaited.is_some() && self.missing_gateways().is_empty() {
            tracing::info!("all Gateways that the checkpoint names are back");
            self.pass_barrier();
        }
    }

    fn take_out(&mut self) {
        self.pending.extend(self.out.drain(..));
    }

    /// Carries everything that is pending into the rings, waiting for room where there is none.
    async fn flush(&mut self) {
        let in_hand_since = self.in_hand_since.take();
        let waited = self.carry(in_hand_since).await;
        if let Some(since) = in_hand_since {
            self.picture.latency.observe(now_nanos().since(since));
        }
        if waited {
            self.resumes(Instant::now());
        }
    }

    /// How many items go into rings before the one of this batch that is timed. `None`: it is not yet time for another one.
    fn next_marked(&mut self) -> Option<usize> {
        let now = now_nanos();
        let is_due = !self.pending.is_empty() && now.since(self.marked_at) >= MARK_EVERY.as_nanos() as u64;
        is_due.then(|| {
            self.marked_at = now;
            // Any of them: the first of a batch waits less than the rest.
            rand::rng().random_range(0..self.pending.len())
        })
    }

    /// True when it waited.
    async fn carry(&mut self, in_hand_since: Option<Nanos>) -> bool {
        let (mut waited, mut is_full) = (false, false);
        let mut marked = in_hand_since.and_then(|since| Some((self.next_marked()?, since)));
        while let Some((shard, item)) = self.pending.pop_front() {
            let index = usize::from(shard.0);
            if let Some((before, since)) = &mut marked {
                match before.checked_sub(1) {
                    Some(left) => *before = left,
                    None => {
                        self.links[index].ring.mark(*since, now_nanos());
                        marked = None;
                    }
                }
            }
            match self.links[index].ring.try_push(item) {
                Ok(()) => {
                    if std::mem::take(&mut is_full) {
                        self.pauses[index].ends(PauseReason::RingFull, Instant::now());
                    }
                    continue;
                }
                // A shard's thread that has ended is reported by the node, which then stops; there is nobody to give this to.
                Err(PushError::Closed(_)) => continue,
                Err(PushError::Full(item)) => self.pending.push_front((shard, item)),
            }
            (waited, is_full) = (true, true);
            self.pauses[index].begins(PauseReason::RingFull, Instant::now());
            tokio::select! {
                _ = self.links[index].ring.room() => {}
                _ = self.cells_changed.changed() => {}
                _ = tokio::time::sleep(ROOM_POLL) => {}
                _ = self.phase.changed() => {}
            }
            if *self.phase.borrow() == Phases::Finished {
                break;
            }
            self.look_at_cells();
            if Instant::now() >= self.publish_at {
                self.publish();
            }
        }
        waited
    }

    /// Gateways with subscriptions on any shard, and those that are still waited for.
    fn gateways(&self) -> Vec<String> {
        let mut all = self.awaited.clone().unwrap_or_default();
        for link in &self.links {
            all.extend(link.cells.sync().gateways.iter().map(|gateway| gateway.to_string()));
        }
        all.into_iter().collect()
    }

    /// Awaited Gateways that have not yet presented their subscriptions to every shard.
    fn missing_gateways(&self) -> Vec<String> {
        let states: Vec<_> = self.links.iter().map(|link| link.cells.sync()).collect();
        let is_back = |name: &String| states.iter().all(|state| state.synced.iter().any(|synced| **synced == **name));
        self.awaited.iter().flatten().filter(|name| !is_back(name)).cloned().collect()
    }

    fn pass_barrier(&mut self) {
        self.awaited = None;
        for backend in 0..self.backends.len() {
            if self.backends[backend].phase == Phase::Registration {
                self.first_open(backend);
            }
        }
    }

    /// How much earlier than what was read last each shard's settled place is.
    fn settled_lag(&self, backend: usize) -> Vec<Duration> {
        let Some(read) = self.core.enqueued(backend) else { return vec![Duration::ZERO; self.links.len()] };
        let lag = |link: &Link| match link.cells.settled().get(read.backend) {
            Some(settled) if settled.lineage == read.lineage && !read.is_covered_by(settled) => {
                self.backends[backend].source.between(settled.time, read.time)
            }
            _ => Duration::ZERO,
        };
        self.links.iter().map(lag).collect()
    }

    fn publish(&mut self) {
        let now = Instant::now();
        self.publish_at = now + PUBLISH_EVERY;
        let mut picture = self.picture.clone();
        for (link, pauses) in self.links.iter().zip(&mut self.pauses) {
            let (name, ring) = (link.ring.name(), link.ring.stats());
            pauses.look(now);
            picture.pauses.push(pauses.counts);
            picture.lags.push(pauses.look_at_ring(name, link.ring.has_room_to_spare(), ring.pushed - ring.popped, now));
        }
        picture.counters = self.core.counters().clone();
        picture.backends = self
            .backends
            .iter()
            .enumerate()
            .map(|(index, backend)| BackendStatus {
                name: backend.source.name().to_owned(),
                phase: backend.phase,
                source: backend.identity.as_ref().map(|identity| identity.description.clone()),
                position: self.core.resume_point(index).map(|point| point.position),
                settled: self.core.watermark(index),
                error: backend.error.clone(),
                reopenings: backend.reopenings,
                tokens: self.core.tokens(index) as u64,
                stalled: backend.signs.alarm(now),
                catch_up: self.catch_up_status(index),
                settled_lag: self.settled_lag(index),
            })
            .collect();
        self.status.publish(picture);
    }
}
