//! The demo's Gateways: real sessions over QUIC in this process, each in a task that writes down what it is given.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde_json::Value;
use streamer_gateway::{AppEvent, Gateway, Subscription, SubscriptionKey, Transition};
use tokio::{sync::watch, task::JoinHandle};
use wire::Position;
use workload::{GeneratedSubscription, Latency, generate::gateway_name};

use super::{DemoError, writer::Submitted};
use crate::node::Node;

/// A delivery that is broken on purpose, once in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Drop,
    Repeat,
    /// Counted for another subscription.
    Misroute,
}

/// One delivery, as it is kept until the reckoning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    /// Index of the subscription.
    pub(super) subscription: u32,
    pub(super) id: Position,
    pub(super) transition: Transition,
    pub(super) shard: u16,
}

/// What one Gateway was given.
#[derive(Debug, Default)]
pub(super) struct Delivered {
    pub(super) kept: Vec<Kept>,
    pub(super) latency: Latency,
    /// Items other than changes that break continuity; none is expected.
    pub(super) breaks: Vec<String>,
}

/// Deliveries, by the names of something.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) names: Vec<String>,
    counts: Vec<AtomicU64>,
}

impl Tally {
    fn of(names: impl IntoIterator<Item = String>) -> Self {
        let names: Vec<_> = names.into_iter().collect();
        let counts = names.iter().map(|_| AtomicU64::new(0)).collect();
        Self { names, counts }
    }

    fn add(&self, index: usize) {
        if let Some(count) = self.counts.get(index) {
            count.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn counts(&self) -> Vec<u64> {
        self.counts.iter().map(|count| count.load(Relaxed)).collect()
    }
}

/// Figures that change while the demo runs.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) gateways: Tally,
    pub(super) tenants: Tally,
    pub(super) shards: Tally,
    /// The place of each subscription's tenant among the tenants.
    tenant_of: Vec<usize>,
    /// Latencies since they were last taken, by Gateway.
    pub(super) recent: Vec<flume::Receiver<Latency>>,
}

impl Live {
    pub(super) fn total(&self) -> u64 {
        self.gateways.counts().into_iter().sum()
    }
}

pub(super) struct Gateways {
    tasks: Vec<JoinHandle<Delivered>>,
    live: Arc<Live>,
    /// Subscriptions that are live, over all Gateways.
    live_subscriptions: Arc<AtomicU64>,
    subscriptions: usize,
}

/// How often recent latencies are handed over.
const RECENT_EVERY: Duration = Duration::from_millis(500);

impl Gateways {
    pub(super) async fn connect(
        node: &Node,
        subscriptions: &[GeneratedSubscription],
        submitted: Arc<Submitted>,
        stopped: watch::Receiver<bool>,
        fault: Option<Fault>,
    ) -> Result<Self, DemoError> {
        let count = subscriptions.iter().map(|subscription| subscription.gateway + 1).max().unwrap_or(1);
        let mut gateways = Vec::new();
        for index in 0..count {
            let mut builder = Gateway::builder().gateway(gateway_name(index)).fingerprint(&node.topology().fingerprint);
            for shard in &node.topology().shards {
                builder = builder.address(&shard.address);
            }
            gateways.push(builder.connect().await?);
        }
        let mut senders = Vec::new();
        let mut recent = Vec::new();
        for _ in 0..count {
            // One histogram at a time: what isn't taken is merged into the next.
            let (sender, receiver) = flume::bounded(1);
            senders.push(sender);
            recent.push(receiver);
        }
        let tenants: Vec<String> =
            subscriptions.iter().map(|s| s.key.tenant.clone()).collect::<BTreeSet<_>>().into_iter().collect();
        let tenant_of =
            subscriptions.iter().map(|s| tenants.partition_point(|tenant| *tenant < s.key.tenant)).collect();
        let live = Arc::new(Live {
            gateways: Tally::of((0..count).map(gateway_name)),
            tenants: Tally::of(tenants),
            shards: Tally::of(node.topology().shards.iter().map(|shard| format!("shard {}", shard.partition))),
            tenant_of,
            recent,
        });
        let live_subscriptions = Arc::new(AtomicU64::new(0));
        let mut tasks = Vec::new();
        for ((index, gateway), recent) in gateways.into_iter().enumerate().zip(senders) {
            let mine = subscriptions.iter().enumerate().filter(|(_, subscription)| subscription.gateway == index);
            let mut numbers = HashMap::new();
            for (number, subscription) in mine {
                gateway.subscribe(to_sdk(subscription))?;
                numbers.insert(subscription.key.clone(), number as u32);
            }
            let receiver = Receiver {
                index,
                gateway,
                numbers,
                others: subscriptions.len() as u32,
                submitted: submitted.clone(),
                live: live.clone(),
                live_subscriptions: live_subscriptions.clone(),
                recent,
                fault: fault.filter(|_| index == 0),
            };
            tasks.push(tokio::spawn(receiver.run(stopped.clone())));
        }
        Ok(Self { tasks, live, live_subscriptions, subscriptions: subscriptions.len() })
    }

    pub(super) fn live(&self) -> Arc<Live> {
        self.live.clone()
    }

    /// Waits until every subscription is live.
    pub(super) async fn wait_live(&self, at_most: Duration) -> Result<(), DemoError> {
        let started = Instant::now();
        loop {
            let live = self.live_subscriptions.load(Relaxed) as usize;
            if live >= self.subscriptions {
                return Ok(());
            }
            if started.elapsed() > at_most {
                return Err(DemoError::NotLive { live, all: self.subscriptions, waited: at_most });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until this many changes were delivered, or nothing has come for a while; then a moment more, for what should not come.
    pub(super) async fn wait_delivered(&self, expected: u64) {
        const PATIENCE: Duration = Duration::from_secs(10);
        const MORE: Duration = Duration::from_millis(300);
        let (mut last, mut changed) = (self.live.total(), Instant::now());
        while last < expected && changed.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = self.live.total();
            if now != last {
                (last, changed) = (now, Instant::now());
            }
        }
        tokio::time::sleep(MORE).await;
    }

    /// What each Gateway was given. They must have been told to stop.
    pub(super) async fn finish(self) -> Vec<Delivered> {
        let mut all = Vec::new();
        for task in self.tasks {
            all.push(task.await.expect("a Gateway's task doesn't panic"));
        }
        all
    }
}

struct Receiver {
    index: usize,
    gateway: Gateway,
    numbers: HashMap<SubscriptionKey, u32>,
    /// Number of all subscriptions.
    others: u32,
    submitted: Arc<Submitted>,
    live: Arc<Live>,
    live_subscriptions: Arc<AtomicU64>,
    recent: flume::Sender<Latency>,
    fault: Option<Fault>,
}

impl Receiver {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) -> Delivered {
        let mut delivered = Delivered::default();
        let mut recent = Latency::new();
        let mut handed_over = Instant::now();
        let mut seen_live = HashSet::new();
        loop {
            let event = tokio::select! {
                biased;
                event = self.gateway.next() => event,
                _ = stopped.wait_for(|stopped| *stopped) => break,
            };
            let Some(event) = event else {
                let error = self.gateway.error().map(|error| error.to_string()).unwrap_or_default();
                delivered.breaks.push(format!("the Gateway has ended: {error}"));
                break;
            };
            match event.what {
                AppEvent::Change(change) => {
                    let now = Instant::now();
                    let Some(number) = self.numbers.get(change.subscription()) else {
                        delivered.breaks.push(format!("a change for {:?}, never subscribed", change.subscription()));
                        continue;
                    };
                    let kept = Kept {
                        subscription: *number,
                        id: change.id(),
                        transition: change.transition(),
                        shard: change.partition(),
                    };
                    self.keep(kept, &mut delivered);
                    if let Some(us) = self.submitted.latency_us(kept.id.time, now) {
                        delivered.latency.record_us(us);
                        recent.record_us(us);
                    }
                    if now.duration_since(handed_over) >= RECENT_EVERY && self.recent.try_send(recent.clone()).is_ok() {
                        recent.clear();
                        handed_over = now;
                    }
                }
                AppEvent::Live { subscription, .. } => {
                    if seen_live.insert(subscription) {
                        self.live_subscriptions.fetch_add(1, Relaxed);
                    }
                }
                AppEvent::CatchingUp { .. } | AppEvent::CaughtUp { .. } => {}
                other => delivered.breaks.push(format!("{other:?}")),
            }
        }
        self.gateway.close().await;
        delivered
    }

    fn keep(&mut self, kept: Kept, delivered: &mut Delivered) {
        self.live.gateways.add(self.index);
        self.live.tenants.add(self.live.tenant_of[kept.subscription as usize]);
        self.live.shards.add(usize::from(kept.shard));
        match self.fault.take() {
            None => delivered.kept.push(kept),
            Some(Fault::Drop) => {}
            Some(Fault::Repeat) => delivered.kept.extend([kept, kept]),
            Some(Fault::Misroute) => {
                // Beside the right one, so that nothing is lost by it.
                let subscription = (kept.subscription + 1) % self.others;
                delivered.kept.extend([kept, Kept { subscription, ..kept }]);
            }
        }
    }
}

/// The same subscription through the SDK's own interface.
fn to_sdk(generated: &GeneratedSubscription) -> Subscription {
    let GeneratedSubscription { key, collection, filters, expr, transitions, .. } = generated;
    let mut subscription = Subscription::new(&key.tenant, collection).id(&key.id).transitions(*transitions);
    let filters: Vec<Value> =
        if filters.is_empty() { Vec::new() } else { serde_json::from_str(filters).expect("the generator writes JSON") };
    for filter in filters {
        let text = |name: &str| filter[name].as_str().expect("the generator writes strings there").to_owned();
        subscription = subscription.filter(&text("field"), &text("op"), filter["value"].clone());
    }
    if !expr.is_empty() {
        subscription = subscription.expr(expr);
    }
    subscription
}
