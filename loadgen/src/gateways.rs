//! Who receives: Gateways over real QUIC in this process, or what stands for one where another engine carries the events. Each has a
//! thread of its own, as a process would, and checks what it is given.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use futures::FutureExt;
use streamer::control::Topology;
use streamer_gateway::{AppEvent, Event, Gateway, SavedPositions};
use tokio::time::timeout;
use workload::Latency;

use crate::{
    check::{Checker, Faults},
    pinned::Pinned,
    plan::Plan,
    profile::Profile,
    schedule::Schedule,
};

/// What a run shares with its Gateways.
pub struct Common {
    pub plan: Arc<Plan>,
    pub schedule: Arc<Schedule>,
    /// Subscriptions that are live, over all Gateways.
    pub live: AtomicU64,
    /// By Gateway.
    pub delivered: Vec<AtomicU64>,
    stop: AtomicBool,
}

impl Common {
    pub fn new(plan: Arc<Plan>, schedule: Arc<Schedule>, gateways: usize) -> Self {
        let delivered = (0..gateways).map(|_| AtomicU64::new(0)).collect();
        Self { plan, schedule, live: AtomicU64::new(0), delivered, stop: AtomicBool::new(false) }
    }

    pub fn delivered(&self) -> u64 {
        self.delivered.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Whether a Gateway is to end.
    pub fn is_over(&self) -> bool {
        self.stop.load(Relaxed)
    }
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
    /// How long it took each time, from a Gateway's leaving until all its subscriptions were live again.
    pub reconnects: Vec<Duration>,
}

/// Takes what arrives at one Gateway.
pub struct Receiver {
    pub index: usize,
    pub common: Arc<Common>,
    pub received: Received,
    recent: Latency,
    handed_over: Instant,
    to_run: mpsc::Sender<Latency>,
}

impl Receiver {
    /// Event `n` has arrived for a subscription.
    pub fn take(&mut self, subscription: u32, n: u64, now: Instant) {
        let received = &mut self.received;
        received.checker.delivered(&self.common.plan, self.index, subscription, n);
        received.count += 1;
        received.last_at = Some(now);
        self.common.delivered[self.index].store(received.count, Relaxed);
        if let Some(latency) = self.common.schedule.latency(n, now) {
            let us = latency.as_micros() as u64;
            received.latency.record_us(us);
            self.recent.record_us(us);
        }
        if now.duration_since(self.handed_over) >= RECENT_EVERY {
            // The run may have ended.
            let _ = self.to_run.send(std::mem::take(&mut self.recent));
            self.handed_over = now;
        }
    }

    /// Numbers of the subscriptions of this Gateway.
    pub fn own(&self) -> Vec<u32> {
        let plan = &self.common.plan;
        let is_own = |number: &u32| plan.subscriptions[*number as usize].gateway == self.index;
        (0..plan.subscriptions.len() as u32).filter(is_own).collect()
    }
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
pub const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Deliveries between two looks at the clock, when they come one right after another. A look takes as long as checking one does.
const CLOCK_EVERY: u32 = 8;

/// Items that are taken at once, by who isn't slow on purpose.
const MANY: usize = 64;

/// When what was taken last arrived.
#[derive(Debug)]
pub struct Clock {
    pub now: Instant,
    since_look: u32,
}

impl Clock {
    pub fn new() -> Self {
        Self { now: Instant::now(), since_look: 0 }
    }

    /// The next item: `ready`, if there is one, else what `wait` gives. The clock is looked at after every wait, and now and then without.
    pub async fn take<T>(&mut self, ready: Option<T>, wait: impl AsyncFnOnce() -> T) -> T {
        match ready {
            Some(item) => {
                self.count();
                item
            }
            None => {
                let item = wait().await;
                *self = Self::new();
                item
            }
        }
    }

    /// Another item, without a wait.
    pub fn count(&mut self) {
        self.since_look += 1;
        if self.since_look > CLOCK_EVERY {
            *self = Self::new();
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// What makes a Gateway other than take what it is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Habits {
    /// The first Gateway takes this long for each change.
    pub slow: Option<Duration>,
    /// Every so often the first Gateway takes nothing for so long.
    pub stalls: Option<Stall>,
    /// Every so often all Gateways leave at once, and come back.
    pub reconnect_every: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
pub struct Stall {
    pub every: Duration,
    pub pause: Duration,
}

impl Habits {
    pub fn new(profile: &Profile, slow: Option<Duration>) -> Self {
        let stall = |(every, pause)| Stall { every: Duration::from_millis(every), pause: Duration::from_millis(pause) };
        Self {
            slow,
            stalls: profile.stall_every_ms.zip(profile.stall_ms).map(stall),
            reconnect_every: profile.reconnect_every_ms.map(Duration::from_millis),
        }
    }
}

impl Gateways {
    /// As many as `common` counts, on these cores; each is what `receive` does on a runtime of its own until [`Common::is_over`].
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn start<F, R>(common: Arc<Common>, cores: &[usize], receive: F) -> std::io::Result<Self>
    where
        F: Fn(Receiver) -> R + Clone + Send + 'static,
        R: Future<Output = Result<Received, String>>,
    {
        let (to_run, recent) = mpsc::channel();
        let mut threads = Vec::new();
        for index in 0..common.delivered.len() {
            let (common, to_run, receive) = (common.clone(), to_run.clone(), receive.clone());
            let cores = cores.to_vec();
            let thread = std::thread::Builder::new().name(format!("gateway-{index}")).spawn(move || {
                let _pinned = Pinned::to(&cores);
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(|error| error.to_string())?;
                let received = Received {
                    latency: Latency::new(),
                    checker: Checker::new(&common.plan),
                    breaks: Vec::new(),
                    catch_ups: 0,
                    count: 0,
                    last_at: None,
                    reconnects: Vec::new(),
                };
                let (recent, handed_over) = (Latency::new(), Instant::now());
                runtime.block_on(receive(Receiver { index, common, received, recent, handed_over, to_run }))
            })?;
            threads.push(thread);
        }
        Ok(Self { common, threads, recent })
    }

    /// Gateways of a node. `base`: cluster time of the event before the first one of the plan, or `None` where the number stands in
    /// the document.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn of_node(
        topology: &Topology,
        common: Arc<Common>,
        cores: &[usize],
        base: Option<u64>,
        habits: Habits,
    ) -> std::io::Result<Self> {
        let topology = Arc::new(topology.clone());
        Self::start(common, cores, move |receiver| {
            let topology = topology.clone();
            async move { receive(receiver, &topology, base, habits).await }
        })
    }

    pub fn delivered(&self) -> u64 {
        self.common.delivered()
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
    mut receiver: Receiver,
    topology: &Topology,
    base: Option<u64>,
    habits: Habits,
) -> Result<Received, String> {
    let mut saved = SavedPositions::default();
    let mut left_at = None;
    loop {
        match stay(&mut receiver, topology, base, habits, saved, left_at).await? {
            Some(positions) => (saved, left_at) = (positions, Some(Instant::now())),
            None => return Ok(receiver.received),
        }
    }
}

/// One connection: until the Gateway is to end, or is to leave and come back at these positions.
async fn stay(
    receiver: &mut Receiver,
    topology: &Topology,
    base: Option<u64>,
    habits: Habits,
    saved: SavedPositions,
    left_at: Option<Instant>,
) -> Result<Option<SavedPositions>, String> {
    let index = receiver.index;
    let common = receiver.common.clone();
    let mut builder =
        Gateway::builder().gateway(format!("gateway-{index}")).fingerprint(&topology.fingerprint).resume_from(saved);
    for shard in &topology.shards {
        builder = builder.address(&shard.address);
    }
    let own = receiver.own();
    let mut left = own.len();
    for number in own {
        builder = builder.subscription(common.plan.to_sdk(number));
    }
    let mut gateway = builder.connect().await.map_err(|error| format!("gateway-{index} can't connect: {error}"))?;
    let mut rhythm = Rhythm { habits, is_first: index == 0, turn: 0 };
    rhythm.skip(&common.schedule, Instant::now());
    let mut clock = Clock::new();
    let limit = if rhythm.is_slow() { 1 } else { MANY };
    let mut events: Vec<Event> = Vec::with_capacity(limit);
    let mut place = 0;
    loop {
        if place == events.len() {
            events.clear();
            place = 0;
            let ready = gateway.next_many(&mut events, limit).now_or_never().map(Ok);
            let next = async || timeout(LOOK_EVERY, gateway.next_many(&mut events, limit)).await;
            match clock.take(ready, next).await {
                Ok(0) => {
                    let error = gateway.error().map(|error| error.to_string()).unwrap_or_default();
                    receiver.received.breaks.push(format!("gateway-{index} has ended: {error}"));
                    break;
                }
                Ok(_) => {}
                Err(_) if common.is_over() => break,
                Err(_) => continue,
            }
        } else {
            clock.count();
        }
        match &events[place].what {
            AppEvent::Change(change) => {
                let n = match base {
                    Some(base) => change.id().time.saturating_sub(base),
                    None => change.document().and_then(|document| document.get_i64("n").ok()).unwrap_or(0) as u64,
                };
                // The id is the subscription's number.
                let number = change.subscription().id.parse().unwrap_or(u32::MAX);
                receiver.take(number, n, clock.now);
            }
            AppEvent::Live { .. } => {
                left = left.saturating_sub(1);
                match left_at {
                    None => _ = common.live.fetch_add(1, Relaxed),
                    Some(left_at) if left == 0 => receiver.received.reconnects.push(left_at.elapsed()),
                    Some(_) => {}
                }
            }
            // A Gateway that is behind gets all the same, later.
            AppEvent::CatchingUp { .. } => receiver.received.catch_ups += 1,
            AppEvent::CaughtUp { .. } => {}
            other => receiver.received.breaks.push(format!("gateway-{index}: {other:?}")),
        }
        place += 1;
        match rhythm.next(&common.schedule, clock.now, left == 0) {
            None => {}
            Some(Turn::Pause(pause)) => tokio::time::sleep(pause).await,
            Some(Turn::Leave) => {
                events.drain(..place).for_each(Event::ack);
                // Dropped without a word, as if the process were gone.
                return Ok(Some(gateway.positions()));
            }
        }
    }
    gateway.close().await;
    Ok(None)
}

/// When a Gateway does something else than to take the next change.
struct Rhythm {
    habits: Habits,
    is_first: bool,
    /// Turns that have passed since the load began.
    turn: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Pause(Duration),
    Leave,
}

impl Rhythm {
    /// Whether each change takes its time.
    fn is_slow(&self) -> bool {
        self.is_first && self.habits.slow.is_some()
    }

    fn turns(&self, schedule: &Schedule, now: Instant) -> u32 {
        let every = match self.habits {
            Habits { reconnect_every: Some(every), .. } => every,
            Habits { stalls: Some(Stall { every, .. }), .. } if self.is_first => every,
            _ => return 0,
        };
        let since = schedule.begun().map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun));
        (since.as_nanos() / every.as_nanos().max(1)) as u32
    }

    /// What has passed doesn't count.
    fn skip(&mut self, schedule: &Schedule, now: Instant) {
        self.turn = self.turns(schedule, now);
    }

    /// What to do now, after a change. Nobody leaves who isn't wholly there, nor once the load is over.
    fn next(&mut self, schedule: &Schedule, now: Instant, is_there: bool) -> Option<Turn> {
        if let Some(pause) = self.habits.slow.filter(|_| self.is_slow()) {
            return Some(Turn::Pause(pause));
        }
        let turns = self.turns(schedule, now);
        if turns == self.turn || !is_there || schedule.ended().is_some() {
            return None;
        }
        self.turn = turns;
        match (self.habits.reconnect_every, self.habits.stalls) {
            (Some(_), _) => Some(Turn::Leave),
            (None, stalls) => stalls.map(|stall| Turn::Pause(stall.pause)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::CountsFrom;

    #[test]
    fn each_turn_comes_once_and_none_after_the_end() {
        let schedule = Schedule::new(None, Duration::from_secs(60), CountsFrom::HandedOver);
        schedule.begin();
        let begun = schedule.begun().unwrap();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let every = Duration::from_millis(100);
        let stalls = Habits { stalls: Some(Stall { every, pause: every / 2 }), ..Habits::default() };
        let storm = Habits { reconnect_every: Some(every), ..Habits::default() };
        for (habits, is_first, turn) in [
            (stalls, true, Some(Turn::Pause(every / 2))),
            (stalls, false, None),
            (storm, true, Some(Turn::Leave)),
            (storm, false, Some(Turn::Leave)),
        ] {
            let mut rhythm = Rhythm { habits, is_first, turn: 0 };
            assert_eq!(rhythm.next(&schedule, at(99), true), None);
            assert_eq!(rhythm.next(&schedule, at(101), false), None, "one that isn't there yet can't leave");
            assert_eq!(rhythm.next(&schedule, at(102), true), turn);
            assert_eq!(rhythm.next(&schedule, at(150), true), None);
            rhythm.skip(&schedule, at(450));
            assert_eq!(rhythm.next(&schedule, at(460), true), None);
        }
        schedule.end();
        assert_eq!(Rhythm { habits: storm, is_first: true, turn: 0 }.next(&schedule, at(500), true), None);
    }
}
