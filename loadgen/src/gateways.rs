//! Gateways over real QUIC in this process. Each has a thread of its own, as a process would, and checks what it is given.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use streamer::{control::Topology, node::Node};
use streamer_gateway::{AppEvent, Gateway};
use workload::Latency;

use crate::{
    check::{Checker, Faults},
    plan::Plan,
    schedule::Schedule,
};

/// What a run shares with its Gateways.
pub struct Common {
    pub plan: Arc<Plan>,
    pub schedule: Arc<Schedule>,
    /// Cluster time of the event before the first one of the plan. `None`: the number stands in the document.
    pub base: Option<u64>,
    /// Subscriptions that are live, over all Gateways.
    pub live: AtomicU64,
    pub delivered: Vec<AtomicU64>,
    pub stop: AtomicBool,
}

/// What one Gateway tells when it has ended.
pub struct Received {
    pub latency: Latency,
    pub checker: Checker,
    /// Items other than changes that break continuity.
    pub breaks: Vec<String>,
    /// Times that a subscription was too far behind for the shard's log, and was read for again.
    pub catch_ups: u64,
    pub count: u64,
    pub last_at: Option<Instant>,
}

pub struct Gateways {
    pub common: Arc<Common>,
    threads: Vec<JoinHandle<Result<Received, String>>>,
    /// Latencies since they were last taken, of any Gateway.
    pub recent: mpsc::Receiver<Latency>,
}

/// How often recent latencies are handed over.
const RECENT_EVERY: Duration = Duration::from_millis(250);

/// How long a Gateway waits for the next item before it looks whether to stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Deliveries between two looks at the clock, when they come one right after another. A look takes as long as checking one does.
const CLOCK_EVERY: u32 = 8;

impl Gateways {
    pub fn start(node: &Node, common: Arc<Common>, manual_slow: Option<Duration>) -> Result<Self, std::io::Error> {
        let (to_run, recent) = mpsc::channel();
        let mut threads = Vec::new();
        for index in 0..common.delivered.len() {
            let (common, topology, to_run) = (common.clone(), node.topology().clone(), to_run.clone());
            let slow = manual_slow.filter(|_| index == 0);
            let thread = std::thread::Builder::new().name(format!("gateway-{index}")).spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(|error| error.to_string())?;
                runtime.block_on(receive(index, &topology, &common, slow, &to_run))
            })?;
            threads.push(thread);
        }
        Ok(Self { common, threads, recent })
    }

    pub fn delivered(&self) -> u64 {
        self.common.delivered.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Whether one has ended already, which none should.
    pub fn any_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Stops them, and gives what each has received and was to receive.
    pub fn finish(self, sent: u64) -> Result<(Vec<Received>, Faults), String> {
        self.common.stop.store(true, Relaxed);
        let mut all = Vec::new();
        let mut faults = Faults::default();
        for (index, thread) in self.threads.into_iter().enumerate() {
            let mut received = thread.join().map_err(|_| format!("the thread of gateway-{index} panicked"))??;
            faults.add(received.checker.finish(&self.common.plan, index, sent));
            all.push(received);
        }
        Ok((all, faults))
    }
}

async fn receive(
    index: usize,
    topology: &Topology,
    common: &Common,
    slow: Option<Duration>,
    to_run: &mpsc::Sender<Latency>,
) -> Result<Received, String> {
    let mut builder = Gateway::builder().gateway(format!("gateway-{index}")).fingerprint(&topology.fingerprint);
    for shard in &topology.shards {
        builder = builder.address(&shard.address);
    }
    let plan = &*common.plan;
    for number in (0..plan.subscriptions.len() as u32).filter(|n| plan.subscriptions[*n as usize].gateway == index) {
        builder = builder.subscription(plan.to_sdk(number));
    }
    let mut gateway = builder.connect().await.map_err(|error| format!("gateway-{index} can't connect: {error}"))?;
    let mut received = Received {
        latency: Latency::new(),
        checker: Checker::new(plan),
        breaks: Vec::new(),
        catch_ups: 0,
        count: 0,
        last_at: None,
    };
    let mut recent = Latency::new();
    let mut handed_over = Instant::now();
    let mut now = Instant::now();
    let mut since_clock = 0;
    loop {
        let event = match futures::FutureExt::now_or_never(gateway.next()) {
            Some(event) if since_clock < CLOCK_EVERY => {
                since_clock += 1;
                event
            }
            Some(event) => {
                (now, since_clock) = (Instant::now(), 0);
                event
            }
            None => {
                let event = tokio::time::timeout(LOOK_EVERY, gateway.next()).await;
                (now, since_clock) = (Instant::now(), 0);
                match event {
                    Ok(event) => event,
                    Err(_) if common.stop.load(Relaxed) => break,
                    Err(_) => continue,
                }
            }
        };
        let Some(event) = event else {
            let error = gateway.error().map(|error| error.to_string()).unwrap_or_default();
            received.breaks.push(format!("gateway-{index} has ended: {error}"));
            break;
        };
        match event.what {
            AppEvent::Change(change) => {
                let n = match common.base {
                    Some(base) => change.id().time.saturating_sub(base),
                    None => change.document().and_then(|document| document.get_i64("n").ok()).unwrap_or(0) as u64,
                };
                // The id is the subscription's number.
                let number = change.subscription().id.parse().unwrap_or(u32::MAX);
                received.checker.delivered(plan, index, number, n);
                received.count += 1;
                received.last_at = Some(now);
                common.delivered[index].store(received.count, Relaxed);
                if let Some(latency) = common.schedule.latency(n, now) {
                    let us = latency.as_micros() as u64;
                    received.latency.record_us(us);
                    recent.record_us(us);
                }
                if now.duration_since(handed_over) >= RECENT_EVERY {
                    // The run may have ended.
                    let _ = to_run.send(std::mem::take(&mut recent));
                    handed_over = now;
                }
            }
            AppEvent::Live { .. } => _ = common.live.fetch_add(1, Relaxed),
            // A Gateway that is behind gets all the same, later.
            AppEvent::CatchingUp { .. } => received.catch_ups += 1,
            AppEvent::CaughtUp { .. } => {}
            other => received.breaks.push(format!("gateway-{index}: {other:?}")),
        }
        if let Some(pause) = slow {
            tokio::time::sleep(pause).await;
        }
    }
    gateway.close().await;
    Ok(received)
}
