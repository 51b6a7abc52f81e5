//! One run of a node: from a start to the next crash.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use predicate::{Mapping, Predicate, Source};
use shards::{
    Admission, BackendConfig, FilterBuilt, FilterSnapshot, FilterStep, FromIngest, Input, Millis, Output, Shard,
    ShardConfig, SyncState, Ticket,
};
use streamer::ingest::{
    core::{IngestCore, ToShard},
    route::ShardIndex,
    settle::ResumePoint,
    source::Start,
    start::start_after,
};
use wire::{Epoch, Positions, ShardAddress, SlotTable, SubscribeItem};

use crate::{
    Broken, SimConfig,
    history::{BACKEND, History, LINEAGE},
};

/// Items of a ring.
const RING: usize = 8;

/// What outlives a crash of the node.
#[derive(Clone)]
pub(crate) struct Durable {
    pub(crate) point: ResumePoint,
    pub(crate) gateways: BTreeSet<String>,
}

/// What one shard shows to the ingest thread.
#[derive(Clone)]
struct Cells {
    filter: Arc<FilterSnapshot>,
    settled: Positions,
    sync: SyncState,
}

pub(crate) struct Node {
    pub(crate) core: IngestCore,
    pub(crate) shards: Vec<Shard>,
    rings: Vec<VecDeque<FromIngest>>,
    cells: Vec<Cells>,
    pending: VecDeque<ToShard>,
    admits: VecDeque<(usize, Ticket, Vec<SubscribeItem>)>,
    cursor: Option<usize>,
    /// The filter of each shard that was looked at last.
    used: Vec<Arc<FilterSnapshot>>,
    started_from: Option<Durable>,
    broken: Option<Broken>,
    outputs: Vec<Output>,
    /// Filters that are being built: the shard, when it is done, and what it will be. One that never is isn't here.
    builds: Vec<(usize, u64, FilterBuilt)>,
}

/// What becomes of the build of a filter.
pub(crate) enum Fate {
    Built { after_ms: u64 },
    Failed { after_ms: u64 },
    Never,
}

/// Predicates compiled before: the same few come again at every registration.
pub(crate) type Compiled = HashMap<(String, String), Arc<Predicate>>;

pub(crate) fn address(shard: usize) -> String {
    format!("shard:{shard}")
}

impl Node {
    pub(crate) fn start(shards: u16, epoch: u128, saved: Option<Durable>, of: &SimConfig, now: Millis) -> Self {
        let slots = SlotTable { shards };
        let addresses: Vec<_> =
            (0..shards).map(|partition| ShardAddress { partition, address: address(usize::from(partition)) }).collect();
        let make = |partition| {
            let mut config = ShardConfig::new(partition, slots, addresses.clone(), Epoch(epoch));
            config.backends = vec![BackendConfig { id: BACKEND, before_images: of.before_images }];
            config.log_events_max = of.log_events_max;
            config.slice_units = of.slice_units;
            config.filter = of.filter;
            Shard::new(config, now)
        };
        let cells = Cells {
            filter: Arc::new(FilterSnapshot::unpublished()),
            settled: Positions::default(),
            sync: SyncState::default(),
        };
        Self {
            core: IngestCore::new(Arc::new(Mapping::syntrix()), slots, vec![BACKEND]),
            shards: (0..shards).map(make).collect(),
            rings: vec![VecDeque::new(); usize::from(shards)],
            cells: vec![cells; usize::from(shards)],
            pending: VecDeque::new(),
            admits: VecDeque::new(),
            cursor: None,
            used: (0..shards).map(|_| Arc::new(FilterSnapshot::default())).collect(),
            started_from: saved,
            broken: of.broken,
            outputs: Vec::new(),
            builds: Vec::new(),
        }
    }

    /// Opens the stream, once the Gateways that the checkpoint names are back. True when it did.
    pub(crate) fn open(&mut self, history: &History) -> bool {
        if self.cursor.is_some() {
            return false;
        }
        let start = match &self.started_from {
            None => Start::Now,
            Some(saved) => {
                let is_back = |name: &String| {
                    self.cells.iter().all(|cells| cells.sync.synced.iter().any(|synced| **synced == **name))
                };
                let skipped = self.broken == Some(Broken::BarrierSkipped);
                if !skipped && !saved.gateways.iter().all(is_back) {
                    return false;
                }
                start_after(&saved.point)
            }
        };
        let token = match &start {
            Start::After { token, .. } => Some(token.clone()),
            _ => None,
        };
        let (cursor, place) = history.open(&start);
        self.cursor = Some(cursor);
        self.core.opened(0, LINEAGE, place, token);
        true
    }

    /// The cursor breaks and is opened again at the resume point.
    pub(crate) fn reopen(&mut self, history: &History, at_time: bool) {
        let (Some(_), Some(point)) = (self.cursor, self.core.resume_point(0)) else { return };
        let start = match &point.token {
            Some(token) if !at_time => Start::After { position: point.position, token: token.clone() },
            _ => Start::At { time: point.position.time },
        };
        let (cursor, place) = history.open(&start);
        self.cursor = Some(cursor);
        self.core.opened(0, LINEAGE, place, None);
    }

    /// The ingest thread looks at a shard's cells. Its filter is used once what was saved names its Gateways.
    pub(crate) fn look(&mut self, shard: usize, saved: Option<&Durable>) {
        let mut out = Vec::new();
        let index = ShardIndex(shard as u16);
        let cells = &self.cells[shard];
        self.core.settled(index, &cells.settled);
        if saved.is_some_and(|saved| cells.sync.gateways.iter().all(|gateway| saved.gateways.contains(&**gateway))) {
            let mut filter = cells.filter.clone();
            if self.broken == Some(Broken::FilterConfirmedEarly) {
                let mut before = (*self.used[shard]).clone();
                before.version = filter.version;
                filter = Arc::new(before);
                self.used[shard] = cells.filter.clone();
            }
            self.core.filter(index, filter, &mut out);
        }
        self.pending.extend(out);
    }

    /// The ingest thread reads up to `max` events, if nothing waits for room. Returns how many.
    pub(crate) fn read(&mut self, history: &History, max: usize) -> usize {
        self.flush();
        let Some(cursor) = self.cursor else { return 0 };
        if !self.pending.is_empty() {
            return 0;
        }
        let (events, token) = history.read(cursor, max);
        let count = events.len();
        let mut out = Vec::new();
        for event in events {
            self.core.event(0, &event.bytes, &mut out).expect("the simulated source keeps to its protocol");
        }
        self.cursor = Some(cursor + count);
        self.core.batch_end(0, token);
        self.pending.extend(out);
        self.flush();
        count
    }

    pub(crate) fn progress(&mut self) {
        let mut out = Vec::new();
        self.core.progress(&mut out);
        self.pending.extend(out);
        self.flush();
    }

    fn flush(&mut self) {
        while let Some((shard, _)) = self.pending.front()
            && self.rings[usize::from(shard.0)].len() < RING
        {
            let (shard, item) = self.pending.pop_front().expect("it has a front");
            self.rings[usize::from(shard.0)].push_back(item);
        }
    }

    /// A shard takes up to `max` items from its ring, and goes on with other work.
    pub(crate) fn drain(&mut self, shard: usize, max: usize, now: Millis) -> usize {
        let count = max.min(self.rings[shard].len());
        self.shards[shard].ingest(self.rings[shard].drain(..count), now, &mut self.outputs);
        self.shards[shard].work(now, &mut self.outputs);
        self.publish(shard);
        count
    }

    /// Gives a shard an input, and publishes its cells after it.
    pub(crate) fn give(&mut self, shard: usize, input: Input, now: Millis) {
        self.shards[shard].handle(input, now, &mut self.outputs);
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
    }

    /// A shard does the next slice of what its filter wants. What is to be built takes as long as `fate` says: it may fail, or never
    /// be done.
    pub(crate) fn step_filter(&mut self, shard: usize, now: Millis, fate: impl FnOnce() -> Fate) {
        if let FilterStep::Build(build) = self.shards[shard].step_filter() {
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

    pub(crate) fn ask(&mut self, shard: usize, ticket: Ticket, items: Vec<SubscribeItem>) {
        self.admits.push_back((shard, ticket, items));
    }

    /// The registrar answers the oldest request. Returns the shard that it was from.
    pub(crate) fn admit(&mut self, compiled: &mut Compiled, now: Millis) -> Option<usize> {
        let (shard, ticket, items) = self.admits.pop_front()?;
        let results = items
            .into_iter()
            .map(|item| {
                let predicate = compiled
                    .entry((item.filters.clone(), item.expr.clone()))
                    .or_insert_with(|| {
                        let source = Source { filters: &item.filters, expr: &item.expr };
                        Arc::new(Predicate::compile(source, &Mapping::syntrix()).expect("generated predicates compile"))
                    })
                    .clone();
                Ok(Admission { predicate })
            })
            .collect();
        self.give(shard, Input::Admitted { ticket, results }, now);
        Some(shard)
    }

    /// What a checkpoint written now would hold.
    pub(crate) fn checkpoint(&mut self) -> Option<Durable> {
        let point = self.core.checkpoint().into_iter().next()?;
        let gateways = self.cells.iter().flat_map(|cells| &cells.sync.gateways).map(|name| name.to_string()).collect();
        Some(Durable { point, gateways })
    }

    /// Whether nothing is under way within the node.
    pub(crate) fn is_idle(&self, history: &History) -> bool {
        self.cursor == Some(history.len())
            && self.pending.is_empty()
            && self.admits.is_empty()
            && self.rings.iter().all(VecDeque::is_empty)
            && !self.shards.iter().any(Shard::has_work)
    }

    /// Whether something that was delivered, or is to be, isn't settled.
    pub(crate) fn owes(&mut self) -> bool {
        self.core.checkpoint().iter().any(|point| self.core.positions().get(BACKEND) != Some(&point.position))
    }
}
