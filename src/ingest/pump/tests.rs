//! The loop with sources, a store and a shard that do what a test says.

#![allow(clippy::disallowed_types, reason = "the test and the loop share what a test has scripted")]

mod catch_up;
mod faults;
mod pauses;
mod store;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use bson::{Bson, Timestamp, doc};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use predicate::Mapping;
use shards::{
    FilterSnapshot, SyncState,
    driver::{CellWriter, RingConsumer, ring},
};
use tokio::sync::{Notify, watch};
use wire::{BackendId, Lineage, Position, SlotTable};

use self::store::{Saves, Store};
use super::*;
use crate::checkpoint::About;
use crate::ingest::source::{Batch, Opened, Purpose, ResumeToken, SourceError, SourceStream, Start};

const LINEAGE: Lineage = Lineage(9);

/// A source with the events of a history, by their times in seconds.
struct Scripted {
    name: &'static str,
    reachable: watch::Receiver<bool>,
    state: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    /// Cluster times, in their order.
    events: Vec<u64>,
    opened: Vec<Start>,
    /// Of these, those of the catch-up cursor.
    opened_again: Vec<Start>,
    /// What becomes of the next openings; those after them succeed.
    refusals: VecDeque<SourceError>,
    /// The same of the catch-up cursor's.
    refusals_again: VecDeque<SourceError>,
    /// Streams that panic when they are read.
    panics: u32,
    /// Events before which streams of each purpose break, each once.
    breaks: Vec<(Purpose, u64, SourceError)>,
    /// Openings at a cluster time before this are refused.
    kept_from: u64,
    /// Events that are too large to be read.
    large: BTreeSet<u64>,
    /// Events in a batch.
    batch_max: usize,
    /// Streams say nothing, not even that there is nothing.
    silent: bool,
    /// Streams that are open now, and the most that have been, by purpose.
    open: [usize; 2],
    open_max: [usize; 2],
}

fn source(name: &'static str, events: &[u64]) -> (Arc<Scripted>, watch::Sender<bool>) {
    let (reach, reachable) = watch::channel(true);
    let events = events.iter().map(|time| time << 32).collect();
    let state = Arc::new(Mutex::new(Script { events, batch_max: 1_000, ..Script::default() }));
    (Arc::new(Scripted { name, reachable, state }), reach)
}

impl Scripted {
    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.state.lock().unwrap()
    }

    fn opened(&self) -> Vec<Start> {
        self.script().opened.clone()
    }

    fn opened_again(&self) -> Vec<Start> {
        self.script().opened_again.clone()
    }

    fn happens(&self, seconds: u64) {
        self.script().events.push(seconds << 32);
    }

    fn open_as(&self, start: Start, purpose: Purpose, one_by_one: bool) -> BoxFuture<'_, Result<Opened, SourceError>> {
        let mut script = self.script();
        let lost = matches!(start, Start::At { time } if time < script.kept_from);
        let refusals = match purpose {
            Purpose::Live => {
                script.opened.push(start.clone());
                &mut script.refusals
            }
            Purpose::CatchUp => {
                script.opened_again.push(start.clone());
                &mut script.refusals_again
            }
        };
        if lost {
            refusals.push_front(SourceError::HistoryLost("too old".into()));
        }
        let outcome = match refusals.pop_front() {
            Some(refusal) => Err(refusal),
            None => {
                let (place, first) = start_of(start);
                let panics = script.panics > 0;
                script.panics = script.panics.saturating_sub(1);
                script.open[purpose as usize] += 1;
                script.open_max[purpose as usize] =
                    script.open_max[purpose as usize].max(script.open[purpose as usize]);
                let stream = Stream { script: self.state.clone(), purpose, next: first, one_by_one, panics };
                Ok(Opened { stream: Box::new(stream), start: place })
            }
        };
        futures::future::ready(outcome).boxed()
    }
}

/// The place that a stream tells which is opened so, and the least cluster time that it yields.
fn start_of(start: Start) -> ((u64, u32), u64) {
    match start {
        Start::After { position, token } if token.0.len() == 5 => ((position.time, position.k), position.time + 1),
        Start::After { position, token } => {
            let after: u64 =
                bson::RawDocument::from_bytes(&token.0).unwrap().get_str("_data").unwrap().parse().unwrap();
            (position.order(), after + 1)
        }
        Start::At { time } => ((time, 0), time),
        Start::Now => ((100 << 32, 0), 100 << 32),
    }
}

impl Source for Scripted {
    fn backend(&self) -> BackendId {
        BackendId::of_name(self.name)
    }

    fn name(&self) -> &str {
        self.name
    }

    fn identity(&self) -> BoxFuture<'_, Result<Identity, SourceError>> {
        let mut reachable = self.reachable.clone();
        async move {
            reachable.wait_for(|reachable| *reachable).await.expect("the test holds the other end");
            Ok(Identity { lineage: LINEAGE, description: "scripted".into(), before_images: false })
        }
        .boxed()
    }

    fn open(&self, start: Start, purpose: Purpose) -> BoxFuture<'_, Result<Opened, SourceError>> {
        self.open_as(start, purpose, false)
    }

    fn open_one_by_one(&self, start: Start, purpose: Purpose) -> BoxFuture<'_, Result<Opened, SourceError>> {
        self.open_as(start, purpose, true)
    }

    fn too_large(&self, start: Start, purpose: Purpose) -> BoxFuture<'_, Result<Bytes, SourceError>> {
        let script = self.script();
        assert_eq!(script.open[purpose as usize], 0, "a stream is open beside it");
        let (_, first) = start_of(start);
        let next = script.events.iter().find(|time| **time >= first).copied().expect("there is a next event");
        assert!(script.large.contains(&next), "{} isn't too large", next >> 32);
        futures::future::ready(Ok(event(next))).boxed()
    }
}

struct Stream {
    script: Arc<Mutex<Script>>,
    purpose: Purpose,
    /// The least cluster time of what comes next.
    next: u64,
    one_by_one: bool,
    panics: bool,
}

impl Stream {
    fn batch(&mut self) -> Result<Vec<u64>, SourceError> {
        let mut script = self.script.lock().unwrap();
        let max = if self.one_by_one { 1 } else { script.batch_max };
        let first = script.events.partition_point(|time| *time < self.next);
        let mut batch: Vec<u64> = script.events[first..].iter().take(max).copied().collect();
        if batch.iter().any(|time| script.large.contains(time)) {
            // What comes before it in the batch is lost with it.
            return Err(SourceError::Oversize("16 MB".into()));
        }
        let breaks = |(purpose, at, _): &(Purpose, u64, SourceError)| {
            (*purpose == self.purpose).then(|| batch.iter().position(|time| *time == at << 32)).flatten()
        };
        let broken = script.breaks.iter().enumerate().find_map(|(index, b)| Some((index, breaks(b)?)));
        match broken {
            Some((index, 0)) => return Err(script.breaks.remove(index).2),
            Some((_, at)) => batch.truncate(at),
            None => {}
        }
        self.next = batch.last().map_or(self.next, |last| last + 1);
        Ok(batch)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.script.lock().unwrap_or_else(|error| error.into_inner()).open[self.purpose as usize] -= 1;
    }
}

impl SourceStream for Stream {
    fn next(&mut self, wait: Duration) -> BoxFuture<'_, Result<Batch, SourceError>> {
        assert!(!self.panics, "as the test asked for");
        async move {
            let deadline = Instant::now() + wait;
            loop {
                let events = self.batch()?;
                if !events.is_empty() || Instant::now() >= deadline {
                    let answered = !self.script.lock().unwrap().silent;
                    return Ok(Batch { events: events.into_iter().map(event).collect(), answered, ..Batch::default() });
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        .boxed()
    }
}

fn event(time: u64) -> Bytes {
    let event = doc! {
        "_id": { "_data": time.to_string() },
        "clusterTime": Bson::Timestamp(Timestamp { time: (time >> 32) as u32, increment: 0 }),
        "operationType": "insert",
        "ns": { "db": "app", "coll": "c" },
        "documentKey": { "_id": 1 },
        "fullDocument": { "_id": 1 },
    };
    event.to_vec().unwrap().into()
}

fn at(name: &str, seconds: u64) -> Position {
    Position { backend: BackendId::of_name(name), lineage: LINEAGE, time: seconds << 32, k: 0 }
}

/// A checkpoint of these backends at second 10.
fn checkpoint(names: &[&str], gateways: &[&str]) -> Checkpoint {
    let point = |name: &&str| BackendCheckpoint {
        name: (*name).to_owned(),
        lineage: LINEAGE.0,
        source: String::new(),
        time: 10 << 32,
        k: 0,
        token: Some(vec![5, 0, 0, 0, 0]),
    };
    Checkpoint {
        backends: names.iter().map(point).collect(),
        gateways: gateways.iter().map(|name| (*name).to_owned()).collect(),
    }
}

/// The loop, and the one shard that it feeds.
struct World {
    ring: RingConsumer<FromIngest>,
    cells: CellWriter,
    sync: SyncState,
    saves: Arc<Saves>,
    status: Arc<IngestStatus>,
    phase: watch::Sender<Phases>,
    pump: tokio::task::JoinHandle<Result<(), CheckpointError>>,
    wanted_version: u64,
}

impl World {
    /// `prepare` is called with the shard's cells before the loop runs.
    fn start(sources: &[&Arc<Scripted>], kept: Option<Checkpoint>, prepare: impl FnOnce(&mut Self)) -> Self {
        Self::configured(sources, kept, |_| {}, prepare)
    }

    fn configured(
        sources: &[&Arc<Scripted>],
        kept: Option<Checkpoint>,
        configure: impl FnOnce(&mut PumpConfig),
        prepare: impl FnOnce(&mut Self),
    ) -> Self {
        let (producer, ring) = ring("shard-0", 1_024);
        let signal = Arc::new(CellSignal::default());
        let cells = CellWriter::new(signal.clone());
        let saves = Arc::new(Saves { kept: Mutex::new(kept), ..Saves::default() });
        let status = Arc::new(IngestStatus::default());
        let (phase, running) = watch::channel(Phases::Running);
        let backends = sources.iter().map(|source| source.backend()).collect();
        let started = Arc::new(Notify::new());
        let go = started.clone();
        let mut config = PumpConfig {
            checkpoint_every: Duration::from_millis(20),
            checkpoint_events: 1_000_000,
            registration_grace: Duration::from_secs(3_600),
            on_history_lost: HistoryLost::Fail,
            oversize: Oversize::Fail,
            halve_within: Duration::from_secs(3_600),
            stalled_after: Duration::ZERO,
            pause_max: Duration::from_secs(3_600),
            on_missing: Missing::FromNow,
        };
        configure(&mut config);
        let pump = Pump::new(PumpParts {
            core: IngestCore::new(Arc::new(Mapping::Plain), SlotTable { shards: 1 }, backends),
            sources: sources.iter().map(|source| (*source).clone() as Arc<dyn Source>).collect(),
            links: vec![Link { ring: producer, cells: cells.cells() }],
            store: Box::new(Store(saves.clone())),
            config,
            status: status.clone(),
            cells_changed: signal,
            phase: running,
            started: std::time::Instant::now(),
        })
        .unwrap();
        let pump = tokio::spawn(async move {
            go.notified().await;
            pump.run().await
        });
        let mut world = Self { ring, cells, sync: SyncState::default(), saves, status, phase, pump, wanted_version: 0 };
        world.filter(1);
        prepare(&mut world);
        started.notify_one();
        world
    }

    fn filter(&mut self, version: u64) {
        self.cells.filter(FilterSnapshot::everything(version));
    }

    fn sync(&mut self, change: impl FnOnce(&mut SyncState)) {
        change(&mut self.sync);
        self.sync.version += 1;
        self.cells.sync(self.sync.version, || self.sync.clone());
    }

    fn gateways(&mut self, names: &[&str]) {
        self.sync(|sync| sync.gateways = names.iter().map(|name| Arc::from(*name)).collect());
    }

    /// The next item of the ring.
    async fn item(&mut self) -> FromIngest {
        tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                match self.ring.pop() {
                    Some(item) => return item,
                    None => self.ring.wait().await,
                }
            }
        })
        .await
        .expect("an item comes")
    }

    /// The next item in short, but for progress.
    async fn told(&mut self) -> String {
        loop {
            match self.item().await {
                FromIngest::Change(change) => return format!("change {}", change.position.time >> 32),
                FromIngest::FilterSeen { version, positions } => {
                    let times: Vec<u64> = positions.iter().map(|position| position.time >> 32).collect();
                    return format!("filter {version} from {times:?}");
                }
                FromIngest::Progress(_) => {}
                FromIngest::Gap(gap) => return format!("gap {}", gap.position.time >> 32),
                FromIngest::CatchUp(item) => {
                    if let Some(item) = self.again(item) {
                        return item;
                    }
                }
            }
        }
    }

    fn phase_of(&self, backend: usize) -> Option<Phase> {
        self.status.picture().backends.get(backend).map(|backend| backend.phase)
    }

    async fn stop(self) {
        self.phase.send_replace(Phases::Finished);
        self.pump.await.expect("it ends by itself").expect("it ends well");
    }
}

async fn until(mut holds: impl FnMut() -> bool) {
    tokio::time::timeout(Duration::from_secs(20), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("it comes about");
}

/// Long enough for the loop to do what it should not.
async fn a_while() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[tokio::test]
async fn nothing_is_read_before_every_backend_has_a_start() {
    let (quick, _reach_quick) = source("quick", &[11, 12]);
    let (slow, reach) = source("slow", &[13]);
    reach.send_replace(false);
    let mut world = World::start(&[&quick, &slow], Some(checkpoint(&["quick", "slow"], &[])), |_| {});
    until(|| !quick.opened().is_empty() && world.phase_of(0) == Some(Phase::Waiting)).await;
    a_while().await;
    reach.send_replace(true);
    assert_eq!(world.told().await, "filter 1 from [10, 10]", "what comes before this, no subscription gets");
    let mut changes = [world.told().await, world.told().await, world.told().await];
    changes.sort();
    assert_eq!(changes, ["change 11", "change 12", "change 13"]);
    world.stop().await;
}

#[tokio::test]
async fn a_source_that_is_away_for_a_moment_is_opened_at_the_checkpoint() {
    let (a, _reach) = source("a", &[6, 11]);
    a.script().refusals = [SourceError::Transient("an election".into())].into();
    let mut world = World::start(&[&a], Some(checkpoint(&["a"], &[])), |_| {});
    assert_eq!(world.told().await, "filter 1 from [10]");
    assert_eq!(world.told().await, "change 11");
    let token = ResumeToken(Bytes::from_static(&[5, 0, 0, 0, 0]));
    let start = Start::After { position: at("a", 10), token };
    assert_eq!(a.opened(), [start.clone(), start]);
    world.stop().await;
}

#[tokio::test]
async fn a_reader_that_panics_is_started_again() {
    let (a, _reach) = source("a", &[11]);
    a.script().panics = 1;
    let mut world = World::start(&[&a], Some(checkpoint(&["a"], &[])), |_| {});
    assert_eq!(world.told().await, "filter 1 from [10]");
    assert_eq!(world.told().await, "change 11");
    assert_eq!(a.opened().len(), 2);
    world.stop().await;
}

#[tokio::test]
async fn a_checkpoint_that_cant_be_written_is_tried_again_in_a_moment_not_at_once() {
    let (a, _reach) = source("a", &[]);
    let mut world = World::start(&[&a], None, |_| {});
    assert_eq!(world.told().await, "filter 1 from [100]");
    until(|| world.saves.attempts() > 0).await;
    world.saves.fail.store(true, SeqCst);
    let before = world.saves.attempts();
    world.gateways(&["new"]);
    world.filter(2);
    until(|| world.saves.attempts() > before).await;
    a_while().await;
    assert!(world.saves.attempts() <= before + 2, "{} attempts", world.saves.attempts() - before);
    world.saves.fail.store(false, SeqCst);
    assert_eq!(world.told().await, "filter 2 from [100]");
    assert!(world.saves.names("new"));
    world.stop().await;
}

#[tokio::test]
async fn a_store_that_panics_ends_the_thread_for_the_node_to_see() {
    let (a, _reach) = source("a", &[]);
    let world = World::start(&[&a], None, |world| world.saves.panic.store(true, SeqCst));
    assert!(world.pump.await.expect_err("nothing can go on").is_panic());
}

#[tokio::test]
async fn gateways_that_keep_coming_dont_hold_back_the_subscriptions_of_those_that_came_before() {
    let (a, _reach) = source("a", &[]);
    let mut world = World::start(&[&a], None, |_| {});
    assert_eq!(world.told().await, "filter 1 from [100]");
    let saves = world.saves.clone();
    until(|| saves.kept.lock().unwrap().is_some()).await;
    let held = saves.hold();
    let before = saves.attempts();
    world.gateways(&["first"]);
    world.filter(2);
    saves.under_way(before).await;
    world.gateways(&["first", "second"]);
    world.filter(3);
    a_while().await;
    drop(held);
    assert_eq!(world.told().await, "filter 2 from [100]");
    assert!(saves.names("first"));
    assert_eq!(world.told().await, "filter 3 from [100]");
    assert!(saves.names("second"));
    world.stop().await;
}

#[tokio::test]
async fn a_gateway_that_comes_again_while_it_is_written_that_it_left_waits_until_it_is_named_again() {
    let (a, _reach) = source("a", &[]);
    let mut world = World::start(&[&a], None, |_| {});
    assert_eq!(world.told().await, "filter 1 from [100]");
    world.gateways(&["g"]);
    world.filter(2);
    assert_eq!(world.told().await, "filter 2 from [100]");
    let saves = world.saves.clone();
    let held = saves.hold();
    let before = saves.attempts();
    world.gateways(&[]);
    saves.under_way(before).await;
    world.gateways(&["g"]);
    world.filter(3);
    a_while().await;
    assert!(world.ring.pop().is_none(), "the checkpoint that is being written doesn't name it");
    drop(held);
    assert_eq!(world.told().await, "filter 3 from [100]");
    assert!(saves.names("g"));
    world.stop().await;
}

#[tokio::test]
async fn a_checkpoint_that_another_node_has_taken_ends_the_thread_and_is_left_alone() {
    let (a, _reach) = source("a", &[11]);
    let mut world = World::start(&[&a], Some(checkpoint(&["a"], &[])), |_| {});
    assert_eq!(world.told().await, "filter 1 from [10]");
    world.saves.taken.store(true, SeqCst);
    let kept = world.saves.kept.lock().unwrap().clone();
    world.gateways(&["late"]);
    let ended = tokio::time::timeout(Duration::from_secs(20), world.pump).await.expect("it ends");
    let error = ended.expect("it ends by itself").unwrap_err();
    assert!(error.is_final(), "{error}");
    assert_eq!(*world.saves.kept.lock().unwrap(), kept);
    assert!(!world.saves.released.load(SeqCst), "it is not this node's to let go of");
}

#[tokio::test]
async fn a_shared_store_is_written_while_nothing_changes_and_let_go_of_at_the_end() {
    let (a, _reach) = source("a", &[]);
    let mut world = World::start(&[&a], None, |world| world.saves.is_shared.store(true, SeqCst));
    assert_eq!(world.told().await, "filter 1 from [100]");
    let saves = world.saves.clone();
    let before = saves.attempts();
    until(|| saves.attempts() > before + 3).await;
    assert!(!saves.released.load(SeqCst));
    world.stop().await;
    assert!(saves.released.load(SeqCst));
}
