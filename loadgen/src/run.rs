//! One run: a node in this process, Gateways, load for a time, and the reckoning.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use streamer::{
    config::{Config, Problems},
    ingest::source::Source,
    node::{Node, NodeError, NodeFailed},
};
use workload::Latency;

use crate::{
    check::Faults,
    gateways::{Common, Gateways, Habits, Received},
    pinned::{self, Pinned},
    plan::Plan,
    profile::Profile,
    report::{Moment, Report},
    schedule::{CountsFrom, Schedule},
    source::{
        direct::{self, Direct},
        embedded,
        mongodb::{Database, DatabaseFailed},
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SourceKind {
    /// Change events made inside the node's process: everything after the database.
    Direct,
    /// Writes over HTTP to the node's embedded store, each answered once the disk has it.
    Embedded,
    /// Writes to the replica set at --uri, in databases of their own that are dropped in the end.
    Mongodb,
}

impl SourceKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Embedded => "embedded",
            Self::Mongodb => "mongodb",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Options {
    /// As it was named, for the report.
    pub profile_name: String,
    pub profile: Profile,
    pub source: SourceKind,
    /// Of the replica set, for [`SourceKind::Mongodb`].
    pub uri: Option<String>,
    /// Events a second; flat out where there is none.
    pub rate: Option<u64>,
    pub duration: Duration,
    pub gateways: usize,
    pub subscriptions: u32,
    /// Subscriptions beside these, that no event matches.
    pub idle: u32,
    /// Cores of the shards, as in the configuration.
    pub shards: String,
    pub runtime: String,
    pub seed: u64,
    /// The first Gateway takes this long for each change.
    pub slow: Option<Duration>,
    /// A line each second on stderr.
    pub progress: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the temporary folder can't be made: {0}")]
    Folder(#[source] std::io::Error),
    #[error(transparent)]
    Config(#[from] Problems),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    NodeFailed(#[from] NodeFailed),
    #[error("{live} of {all} subscriptions are live after {waited:?}")]
    NotLive { live: u64, all: u64, waited: Duration },
    #[error("the node isn't ready after {0:?}: {1}")]
    NotReady(Duration, String),
    #[error(transparent)]
    Write(#[from] embedded::WriteFailed),
    #[error(transparent)]
    Database(#[from] DatabaseFailed),
    #[error("the mongodb source needs --uri, the URI of a replica set")]
    NoUri,
    #[error("{0}")]
    Gateway(String),
    #[error("threads or timers can't be had: {0}")]
    Threads(#[from] std::io::Error),
}

/// How long the node may take to be ready, and subscriptions to be live.
const READY_MAX: Duration = Duration::from_secs(120);

/// Nothing has come for this long after the last write: no more will.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to go on after the last delivery that was to come.
const MORE: Duration = Duration::from_millis(300);

/// Runs to the end, or until `interrupted` is set; reports in both cases.
///
/// # Errors
/// When the node or a Gateway can't be started, or fails.
pub fn run(options: &Options, interrupted: &Arc<AtomicBool>) -> Result<Report, RunError> {
    let folder = tempfile::Builder::new().prefix("loadgen-").tempdir().map_err(RunError::Folder)?;
    // Runs against one server don't meet.
    let prefix = match options.source {
        SourceKind::Mongodb => format!("loadgen-{:08x}-", rand::random::<u32>()),
        SourceKind::Direct | SourceKind::Embedded => "tenant-".to_owned(),
    };
    let plan = Plan::new(&options.profile, options.subscriptions, options.gateways, options.seed, &prefix);
    let plan = Arc::new(plan.with_idle(options.idle, options.gateways));
    let counts_from = match options.source {
        SourceKind::Mongodb => CountsFrom::Acknowledged,
        SourceKind::Direct | SourceKind::Embedded => CountsFrom::of_rate(options.rate),
    };
    let schedule = Arc::new(Schedule::new(options.rate, options.duration, counts_from));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let database = match (options.source, &options.uri) {
        (SourceKind::Mongodb, Some(uri)) => Some(runtime.block_on(Database::connect(uri))?),
        (SourceKind::Mongodb, None) => return Err(RunError::NoUri),
        _ => None,
    };
    let given: Vec<Arc<dyn Source>> = match options.source {
        SourceKind::Direct => {
            vec![Arc::new(Direct::new(&plan, schedule.clone(), options.profile.document_bytes))]
        }
        SourceKind::Embedded | SourceKind::Mongodb => Vec::new(),
    };
    let started = Instant::now();
    let node = Node::start_with(config(options, &plan, folder.path())?, given)?;
    let result = {
        let _pinned = Pinned::to(&beside_shards(&node));
        runtime.block_on(drive(options, &node, plan.clone(), schedule, database.as_ref(), started, interrupted))
    };
    node.stop()?;
    if let Some(database) = database {
        runtime.block_on(database.clean(&plan))?;
    }
    result
}

/// Cores for load and Gateways: those that no shard has, where there are any.
fn beside_shards(node: &Node) -> Vec<usize> {
    let allowed = pinned::allowed();
    let shards: Vec<usize> = node.topology().shards.iter().map(|shard| shard.core).collect();
    let others: Vec<usize> = allowed.iter().copied().filter(|core| !shards.contains(core)).collect();
    if others.is_empty() { allowed } else { others }
}

fn config(options: &Options, plan: &Plan, folder: &Path) -> Result<Config, RunError> {
    let (mapping, backend) = match options.source {
        // It takes the place of a database that nobody connects to.
        SourceKind::Direct => {
            ("plain", format!("name = {:?}\nkind = \"mongodb\"\nuri = \"mongodb://127.0.0.1:1\"", direct::NAME))
        }
        SourceKind::Embedded => ("syntrix", "name = \"embedded\"\nkind = \"embedded\"".to_owned()),
        SourceKind::Mongodb => {
            let uri = options.uri.as_deref().unwrap_or_default();
            let tenants: Vec<&str> = plan.tenants().into_iter().collect();
            ("plain", format!("name = \"main\"\nkind = \"mongodb\"\nuri = {uri:?}\nnamespaces = {tenants:?}"))
        }
    };
    let text = format!(
        r#"
        [node]
        data_dir = {data_dir:?}
        runtime = {runtime:?}
        shutdown_flush = "1s"
        [affinity]
        shards = {shards:?}
        [http]
        listen = "127.0.0.1:0"
        [quic]
        listen = "127.0.0.1:0"
        [mapping]
        preset = "{mapping}"
        [limits]
        subscriptions_per_gateway = 10000000
        subscriptions_per_tenant = 10000000
        subscriptions_per_node = 10000000
        [[backends]]
        {backend}
        "#,
        data_dir = folder.display().to_string(),
        runtime = options.runtime,
        shards = options.shards,
    );
    Ok(Config::from_parts(None, &text, [])?)
}

async fn drive(
    options: &Options,
    node: &Node,
    plan: Arc<Plan>,
    schedule: Arc<Schedule>,
    database: Option<&Database>,
    started: Instant,
    interrupted: &Arc<AtomicBool>,
) -> Result<Report, RunError> {
    node.wait_ready(READY_MAX).await.map_err(|reasons| RunError::NotReady(READY_MAX, reasons))?;
    let ready_after = started.elapsed();
    let base = match options.source {
        SourceKind::Direct => Some(0),
        SourceKind::Embedded => Some(node.store().map_or(0, |store| store.durable_upto())),
        SourceKind::Mongodb => None,
    };
    let common = Arc::new(Common::new(plan.clone(), schedule.clone(), options.gateways));
    let habits = Habits::new(&options.profile, options.slow);
    let gateways = Gateways::of_node(node.topology(), common, &pinned::allowed(), base, habits)?;
    let registered_after = all_live(&gateways).await?;
    if options.progress {
        let all = plan.subscriptions.len();
        eprintln!("{all} subscriptions of {} Gateways are live after {registered_after:.1?}", options.gateways);
    }

    let mut moments = Vec::new();
    let load = async {
        match options.source {
            SourceKind::Embedded => {
                let base = format!("http://{}", node.http_address());
                embedded::write(&plan, &schedule, &base, options.profile.document_bytes).await?;
            }
            SourceKind::Mongodb => {
                let database = database.ok_or(RunError::NoUri)?;
                database.write(&plan, &schedule, options.profile.document_bytes).await?;
            }
            SourceKind::Direct => {
                while schedule.ended().is_none() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        Ok::<(), RunError>(())
    };
    let begun = Begun::now(&schedule);
    let watch = watch(options, node, &gateways, interrupted, &mut moments);
    tokio::pin!(load);
    tokio::select! {
        done = &mut load => done?,
        () = watch => {}
    }
    let outcome = begun.finish(gateways).await?;
    Ok(Report::new(options, node, &plan, &schedule, outcome, moments).with_start(ready_after, registered_after))
}

/// Waits until every subscription of the plan is live. Gives how long that took.
///
/// # Errors
/// When it takes too long.
pub async fn all_live(gateways: &Gateways) -> Result<Duration, RunError> {
    let registering = Instant::now();
    let common = &gateways.common;
    let all = common.plan.subscriptions.len() as u64;
    while common.live.load(Relaxed) < all && !gateways.any_ended() {
        if registering.elapsed() > READY_MAX {
            let live = common.live.load(Relaxed);
            return Err(RunError::NotLive { live, all, waited: READY_MAX });
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(registering.elapsed())
}

/// A load that has begun.
pub struct Begun {
    at: Instant,
    work_ns: u64,
}

/// What a load has led to, whatever engine carried it.
pub struct Outcome {
    pub sent: u64,
    pub sent_after: Duration,
    /// When the last delivery came, or the last event was sent, whichever was later.
    pub delivered_after: Duration,
    pub received: Vec<Received>,
    pub faults: Faults,
    /// Nanoseconds that all threads of this process were at work: source, engine as far as it is in the process, and Gateways.
    pub work_ns: u64,
}

impl Outcome {
    pub fn delivered(&self) -> u64 {
        self.received.iter().map(|received| received.count).sum()
    }

    pub fn latency(&self) -> Latency {
        let mut latency = Latency::new();
        self.received.iter().for_each(|received| latency.merge(&received.latency));
        latency
    }

    /// So many, by the time until all was delivered.
    pub fn per_s(&self, count: u64) -> f64 {
        count as f64 / self.delivered_after.as_secs_f64().max(0.001)
    }
}

impl Begun {
    /// Time runs from here on.
    pub fn now(schedule: &Schedule) -> Self {
        let work_ns = process_work_ns();
        schedule.begin();
        Self { at: schedule.begun().unwrap_or_else(Instant::now), work_ns }
    }

    /// The load is over: waits for what is on its way, stops the Gateways and reckons.
    ///
    /// # Errors
    /// When a Gateway has failed.
    pub async fn finish(self, gateways: Gateways) -> Result<Outcome, RunError> {
        let common = gateways.common.clone();
        let (sent, sent_after) = (common.schedule.sent(), self.at.elapsed());
        wait_for(&gateways, common.plan.deliveries(sent)).await;
        let work_ns = process_work_ns() - self.work_ns;
        // What should not come would come within this time.
        tokio::time::sleep(MORE).await;
        let (received, faults) = gateways.finish(sent).map_err(RunError::Gateway)?;
        let last_at = received.iter().filter_map(|received| received.last_at).max();
        let last_after = last_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(self.at));
        Ok(Outcome { sent, sent_after, delivered_after: sent_after.max(last_after), received, faults, work_ns })
    }
}

/// For how long the threads of this process have been at work, together.
fn process_work_ns() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Takes a picture each second, until the load is told to end.
async fn watch(
    options: &Options,
    node: &Node,
    gateways: &Gateways,
    interrupted: &Arc<AtomicBool>,
    moments: &mut Vec<Moment>,
) {
    const EVERY: Duration = Duration::from_secs(1);
    let schedule = &gateways.common.schedule;
    let begun = schedule.begun().unwrap_or_else(Instant::now);
    let mut last = (0, vec![0; options.gateways], vec![0; node.state().shards.len()]);
    let mut next = begun + EVERY;
    loop {
        while Instant::now() < next {
            if interrupted.load(Relaxed) || gateways.any_ended() {
                schedule.end();
                return;
            }
            tokio::time::sleep(Duration::from_millis(20).min(next.saturating_duration_since(Instant::now()))).await;
        }
        next += EVERY;
        let mut latency = Latency::new();
        gateways.recent.try_iter().for_each(|recent| latency.merge(&recent));
        let sent = schedule.sent();
        let delivered: Vec<u64> = gateways.common.delivered.iter().map(|count| count.load(Relaxed)).collect();
        let shards: Vec<u64> = node.state().shards.iter().map(|shard| shard.stats().shard.events).collect();
        let rates = |now: &[u64], last: &[u64]| now.iter().zip(last).map(|(now, last)| now - last).collect::<Vec<_>>();
        let moment = Moment {
            second: begun.elapsed().as_secs_f64(),
            events: sent - last.0,
            deliveries_by_gateway: rates(&delivered, &last.1),
            events_by_shard: rates(&shards, &last.2),
            p50_us: latency.p50_us(),
            p99_us: latency.p99_us(),
        };
        if options.progress {
            if moments.len().is_multiple_of(20) {
                eprintln!("{:>6} {:>10} {:>12} {:>9} {:>9}", "s", "events/s", "deliveries/s", "p50 µs", "p99 µs");
            }
            let deliveries: u64 = moment.deliveries_by_gateway.iter().sum();
            let Moment { second, events, p50_us, p99_us, .. } = &moment;
            eprintln!("{second:>6.0} {events:>10} {deliveries:>12} {p50_us:>9} {p99_us:>9}");
        }
        moments.push(moment);
        last = (sent, delivered, shards);
    }
}

/// Waits until all has been delivered or nothing comes any more.
async fn wait_for(gateways: &Gateways, expected: u64) {
    let (mut last, mut changed) = (gateways.delivered(), Instant::now());
    while last < expected && changed.elapsed() < PATIENCE && !gateways.any_ended() {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let now = gateways.delivered();
        if now != last {
            (last, changed) = (now, Instant::now());
        }
    }
}
