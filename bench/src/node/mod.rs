//! Whole nodes on real sockets, held against what else could carry their events: what `compare delivery`, `compare scale` and
//! `compare ingest` do.
//!
//! Invariants:
//! - The engines of a case take turns, round by round, so that what the machine does otherwise meets all of them. Of several rounds the
//!   median one is told; what was lost or repeated is added up over all of them.
//! - Every delivery of every engine is checked when it arrives, by the same code (`loadgen::check`).
//! - Whoever holds subscriptions and sends (the shard, nats-server, quinn's sending end) has the last core; whoever makes events and
//!   receives them has the others.
//! - Latency counts from when an event was due.

mod delivery;
mod goals;
mod ingest;
mod nats;
mod quinn;
mod rows;
mod scale;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use loadgen::{
    check::Faults,
    gateways::Common,
    pinned,
    profile::{Kind, Profile, Shape},
    report::Report,
    run::{self, Outcome, SourceKind},
};

pub use self::{
    delivery::{Delivery, Engine},
    goals::print_goals,
    ingest::Ingest,
    rows::{Row, print_head, print_row},
    scale::Scale,
};

/// How long and how often each engine is measured.
#[derive(Clone, Copy, Debug)]
pub struct Turns {
    pub seconds: f64,
    pub rounds: usize,
    /// Whether to say on standard error what goes on.
    pub talk: bool,
}

impl Turns {
    fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Carries all cases once in each round. None: it can't be carried here. `tell` says in words what a round of a case has shown.
    fn take<C>(
        &self,
        cases: &[C],
        mut carry: impl FnMut(&C) -> Result<Option<Figures>, String>,
        tell: impl Fn(&C, &Figures) -> String,
    ) -> Result<Vec<Vec<Figures>>, String> {
        let mut rounds: Vec<Vec<Figures>> = cases.iter().map(|_| Vec::new()).collect();
        for round in 1..=self.rounds {
            for (case, rounds) in cases.iter().zip(&mut rounds) {
                let Some(figures) = carry(case)? else { continue };
                if self.talk {
                    eprintln!("  round {round}: {}", tell(case, &figures));
                }
                rounds.push(figures);
            }
        }
        Ok(rounds)
    }
}

/// Which cores are whose.
#[derive(Clone, Debug)]
struct Cores {
    serve: usize,
    /// All others; the same one where there is no other.
    load: Vec<usize>,
}

impl Cores {
    fn allowed() -> Result<Self, String> {
        let mut load = pinned::allowed();
        let serve = load.pop().ok_or("the cores that this process is allowed can't be read")?;
        if load.is_empty() {
            load.push(serve);
        }
        Ok(Self { serve, load })
    }
}

/// What a round of an engine showed.
#[derive(Clone, Debug, Default)]
struct Figures {
    events_per_s: f64,
    deliveries_per_s: f64,
    /// Subscriptions that an event matched, in the mean.
    fan_out: f64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    cpu_ns_per_event: u64,
    faults: Faults,
    /// What was wrong in words, where something was.
    why: Vec<String>,
    /// Of a node: from its start until it was ready, in milliseconds.
    ready_ms: Option<u64>,
    /// Set where less was sent than was due.
    is_behind: bool,
}

impl From<Report> for Figures {
    fn from(report: Report) -> Self {
        let faults = Faults {
            lost: report.lost,
            duplicates: report.duplicates,
            misdelivered: report.misdelivered,
            out_of_order: report.out_of_order,
        };
        Self {
            events_per_s: report.events_per_s as f64,
            deliveries_per_s: report.deliveries_per_s as f64,
            fan_out: report.matches_per_event,
            p50_us: report.p50_us,
            p99_us: report.p99_us,
            p999_us: report.p999_us,
            cpu_ns_per_event: report.cpu_ns_per_event,
            faults,
            why: report.faults,
            ready_ms: Some(report.ready_ms),
            is_behind: report.behind,
        }
    }
}

impl Figures {
    /// `more_work_ns`: what an engine in another process did.
    fn of(outcome: &Outcome, rate: Option<u64>, more_work_ns: u64) -> Self {
        let latency = outcome.latency();
        let why = outcome.received.iter().flat_map(|received| received.checker.examples.iter().chain(&received.breaks));
        Self {
            events_per_s: outcome.per_s(outcome.sent),
            deliveries_per_s: outcome.per_s(outcome.delivered()),
            fan_out: outcome.delivered() as f64 / outcome.sent.max(1) as f64,
            p50_us: latency.p50_us(),
            p99_us: latency.p99_us(),
            p999_us: latency.p999_us(),
            cpu_ns_per_event: (outcome.work_ns + more_work_ns) / outcome.sent.max(1),
            faults: outcome.faults,
            why: why.take(5).cloned().collect(),
            ready_ms: None,
            is_behind: rate
                .is_some_and(|rate| (outcome.sent as f64) < 0.98 * rate as f64 * outcome.sent_after.as_secs_f64()),
        }
    }
}

/// The round whose `key` is in the middle, with the faults of all.
fn median(mut rounds: Vec<Figures>, key: impl Fn(&Figures) -> f64) -> Option<Figures> {
    let mut faults = Faults::default();
    rounds.iter().for_each(|round| faults.add(round.faults));
    let why = rounds.iter().flat_map(|round| round.why.clone()).take(5).collect();
    let ready_ms = rounds.iter().filter_map(|round| round.ready_ms).max();
    rounds.sort_unstable_by(|one, other| key(one).total_cmp(&key(other)));
    let middle = rounds.len() / 2;
    let round = rounds.into_iter().nth(middle)?;
    Some(Figures { faults, why, ready_ms, ..round })
}

/// Rates of flat-out rounds are compared, and tails of those at a rate.
fn median_of(rounds: Vec<Figures>, rate: Option<u64>) -> Option<Figures> {
    median(rounds, |round| if rate.is_some() { round.p99_us as f64 } else { round.events_per_s })
}

/// All subscriptions want every event of the one collection.
fn everything(fan_out: u32, payload_bytes: usize) -> Profile {
    Profile {
        description: "every event to every subscription".to_owned(),
        tenants: 1,
        collections: 1,
        matches: f64::from(fan_out),
        skew: 0.0,
        hot_share: None,
        miss_share: 0.0,
        document_bytes: payload_bytes,
        reconnect_every_ms: None,
        stall_every_ms: None,
        stall_ms: None,
        subscriptions: vec![Shape { what: Kind::Everything, share: 1.0 }],
    }
}

/// A node in this process, with the source that makes its events there, unless that is changed.
fn node(profile: Profile, name: &str, cores: &Cores, turns: &Turns) -> run::Options {
    run::Options {
        profile_name: name.to_owned(),
        profile,
        source: SourceKind::Direct,
        uri: None,
        rate: None,
        duration: turns.duration(),
        gateways: 1,
        subscriptions: 1,
        idle: 0,
        shards: cores.serve.to_string(),
        runtime: "auto".to_owned(),
        seed: 1,
        slow: None,
        progress: false,
    }
}

fn run_node(options: &run::Options) -> Result<Figures, String> {
    let report = run::run(options, &Arc::new(AtomicBool::new(false))).map_err(|error| error.to_string())?;
    Ok(report.into())
}

/// Deliveries for each Gateway that may be on their way before no more is sent: what carries events without flow control of its own
/// would drop some, and be quicker for it.
const WINDOW: u64 = 1 << 15;

/// Whether more may be sent.
fn has_room(common: &Common) -> bool {
    // All Gateways get as many, in these cases; the slowest one decides.
    let each = common.plan.deliveries(common.schedule.sent()) / common.delivered.len() as u64;
    common.delivered.iter().all(|delivered| each.saturating_sub(delivered.load(Relaxed)) < WINDOW)
}

/// Events handed over at once at most, as the node's own source does.
const BATCH_MAX: u64 = 200;

type Failed = Box<dyn std::error::Error + Send + Sync>;

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// How long to wait before that is looked at again.
const ROOM_POLL: Duration = Duration::from_micros(50);

/// Load average of the last minute: what else the machine does shows in every figure.
fn load_now() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}
