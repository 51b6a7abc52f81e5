//! A shard's main task: what goes into the shard other than over QUIC, time, and what is published of it.
//!
//! Invariants:
//! - Every source of work has its share of a pass, so that none starves another, and the tasks of the connections have their
//!   turn between two passes.
//! - Inputs that wait go in before time passes: a tick never expires what a waiting renewal would have kept.
//! - The task waits only after a pass that found nothing, and each thing that it doesn't look at while it waits wakes it.

use std::{
    future::pending,
    rc::Rc,
    time::{Duration, Instant},
};

use tracing::{debug, error};

use super::{
    AdmissionAnswer,
    cells::CellWriter,
    core::Core,
    executor::Executor,
    filter_builder::FilterClient,
    hub::{FromShard, Hub},
    ring::RingConsumer,
};
use crate::{Command, FilterBuilt, FilterStep, FromIngest, Input, Reload};

/// Items of the ring a pass. Large enough to amortize a pass, small enough for the network to have its turn every fraction of
/// a millisecond.
const RING_PER_PASS: usize = 256;
const COMMANDS_PER_PASS: usize = 64;
const ADMISSIONS_PER_PASS: usize = 64;
/// The shard wants to hear of time at least every 100 ms. An idle node wakes up for nothing else.
const TICK: Duration = Duration::from_millis(50);
const STATS_EVERY: Duration = Duration::from_millis(100);
/// Counting subscriptions walks over all of them.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// A pass that takes longer has kept everybody waiting.
const SLOW_PASS: Duration = Duration::from_millis(100);

const _: () = assert!(TICK.as_millis() * 2 <= 100, "a tick that is late by one interval is still in time");

/// How far the shard is to end.
pub(super) enum Ending {
    /// Nobody new; those that are there are asked to leave within this time.
    Drain {
        within_ms: u32,
    },
    Stop,
}

pub(super) struct MainLoop<C: Core> {
    pub(super) hub: Rc<Hub<C>>,
    pub(super) executor: Rc<Executor>,
    pub(super) ring: RingConsumer<FromIngest>,
    pub(super) commands: Inbox<Command>,
    pub(super) admissions: Inbox<AdmissionAnswer>,
    pub(super) to_control: Outbox,
    pub(super) filter_builder: FilterClient,
    pub(super) filters_built: Inbox<FilterBuilt>,
    pub(super) reloads: Inbox<Reload>,
    pub(super) stop: Inbox<Ending>,
    pub(super) cells: CellWriter,
}

impl<C: Core> MainLoop<C> {
    /// Runs until the node says stop, or lets go of the handle, or a task has panicked.
    pub(super) async fn run(&mut self) {
        let mut next_tick = Instant::now();
        let mut next_stats = Instant::now();
        let mut next_count = Instant::now();
        loop {
            let began = Instant::now();
            let mut worked = self.take_in();
            if began >= next_tick {
                // Connections first, for the same reason.
                self.executor.breathe().await;
                self.hub.input(Input::Tick);
                self.hub.counters.ticks.add(1);
                next_tick = began + TICK;
                self.executor.guard(next_tick);
            }
            worked |= self.hub.work();
            worked |= self.hub.turn_away();
            worked |= self.step_filter();
            worked |= self.to_control.forward(&self.hub);
            // All that has stirred until here is in what is published now.
            self.hub.stirred.clear();
            self.hub.publish(&mut self.cells);
            if began >= next_stats {
                self.hub.publish_stats(&mut self.cells, self.ring.stats());
                next_stats = began + STATS_EVERY;
            }
            if began >= next_count {
                self.hub.note_hot();
                self.hub.publish_subscriptions(&mut self.cells);
                next_count = began + COUNT_EVERY;
            }
            self.hub.counters.passes.add(1);
            if began.elapsed() > SLOW_PASS {
                self.hub.counters.passes_slow.add(1);
            }
            if self.executor.has_failed() || self.is_told_to_stop() {
                return;
            }
            if worked {
                self.executor.breathe().await;
            } else {
                self.hub.counters.parks.add(1);
                self.park(next_tick.saturating_duration_since(Instant::now())).await;
            }
        }
    }

    /// One last look at what has been sent to the shard and what it says to the control thread.
    pub(super) fn finish(&mut self) {
        while self.take_in() | self.hub.work() {
            self.to_control.forward(&self.hub);
        }
        self.to_control.forward(&self.hub);
        self.hub.publish(&mut self.cells);
        self.hub.publish_stats(&mut self.cells, self.ring.stats());
    }

    /// Whether there was anything.
    fn take_in(&mut self) -> bool {
        let Self { hub, ring, commands, admissions, filters_built, reloads, .. } = self;
        let mut count = hub.ingest(|mut take| {
            ring.drain(RING_PER_PASS, &mut take);
            ring.marked()
        });
        for _ in 0..ADMISSIONS_PER_PASS {
            let Some((ticket, results)) = admissions.take() else { break };
            hub.input(Input::Admitted { ticket, results });
            count += 1;
        }
        for _ in 0..COMMANDS_PER_PASS {
            let Some(command) = commands.take() else { break };
            hub.input(Input::Command(command));
            count += 1;
        }
        if let Some(reload) = reloads.take() {
            hub.input(Input::Reload(reload));
            count += 1;
        }
        if let Some(built) = filters_built.take() {
            hub.input(Input::FilterBuilt(built));
            count += 1;
        }
        count > 0 && !self.executor.has_failed()
    }

    /// One slice a pass. Whether there was anything to do.
    fn step_filter(&mut self) -> bool {
        match self.hub.step_filter() {
            FilterStep::Nothing => return false,
            FilterStep::More => {}
            FilterStep::Build(build) => {
                if let Err(failed) = self.filter_builder.order(build) {
                    self.hub.input(Input::FilterBuilt(failed));
                }
            }
        }
        true
    }

    fn is_told_to_stop(&mut self) -> bool {
        while let Some(ending) = self.stop.take() {
            match ending {
                Ending::Drain { within_ms } => self.hub.drain(within_ms),
                Ending::Stop => return true,
            }
        }
        // A handle that is gone can't say stop any more.
        self.stop.closed
    }

    /// Waits for anything to do. What it took while it waited is kept for the next pass.
    async fn park(&mut self, until_tick: Duration) {
        let Self { hub, executor, ring, commands, admissions, to_control, filters_built, reloads, stop, .. } = self;
        let ring = async {
            if ring.is_finished() {
                // The ingest thread has ended. This shard goes on until it is told so.
                pending::<()>().await;
            }
            ring.wait().await;
        };
        tokio::select! {
            biased;
            () = ring => {}
            () = hub.stirred.wait() => {}
            () = admissions.wait() => {}
            () = commands.wait() => {}
            () = filters_built.wait() => {}
            () = reloads.wait() => {}
            () = to_control.sent() => {}
            () = executor.failed() => {}
            () = stop.wait() => {}
            () = executor.sleep(until_tick) => {}
        }
    }
}

/// A channel into the shard. One message may have been taken by a wait; it is the next one then.
pub(super) struct Inbox<T> {
    receiver: flume::Receiver<T>,
    taken: Option<T>,
    /// All senders are gone.
    closed: bool,
}

impl<T> Inbox<T> {
    pub(super) fn new(receiver: flume::Receiver<T>) -> Self {
        Self { receiver, taken: None, closed: false }
    }

    fn take(&mut self) -> Option<T> {
        if self.taken.is_some() {
            return self.taken.take();
        }
        match self.receiver.try_recv() {
            Ok(message) => Some(message),
            Err(flume::TryRecvError::Empty) => None,
            Err(flume::TryRecvError::Disconnected) => {
                self.closed = true;
                None
            }
        }
    }

    async fn wait(&mut self) {
        if self.closed {
            return pending().await;
        }
        match self.receiver.recv_async().await {
            Ok(message) => self.taken = Some(message),
            Err(flume::RecvError::Disconnected) => self.closed = true,
        }
    }
}

/// The channel to the control thread, which may be full for a while.
pub(super) struct Outbox {
    sender: flume::Sender<FromShard>,
    /// The message that waits for room. Those after it wait in the hub.
    sending: Option<flume::r#async::SendFut<'static, FromShard>>,
    closed: bool,
}

impl Outbox {
    pub(super) fn new(sender: flume::Sender<FromShard>) -> Self {
        Self { sender, sending: None, closed: false }
    }

    /// Sends what there is room for. Whether that was anything.
    fn forward<C: Core>(&mut self, hub: &Hub<C>) -> bool {
        let mut sent = false;
        while self.sending.is_none() {
            let Some(message) = hub.take_for_control() else { break };
            sent = true;
            match self.sender.try_send(message) {
                Ok(()) => {}
                Err(flume::TrySendError::Full(message)) => {
                    debug!("the control thread is behind");
                    self.sending = Some(self.sender.clone().into_send_async(message));
                }
                Err(flume::TrySendError::Disconnected(_)) => self.lost(),
            }
        }
        sent
    }

    /// Waits until the message that had no room is sent.
    async fn sent(&mut self) {
        let Some(sending) = &mut self.sending else { return pending().await };
        let result = sending.await;
        self.sending = None;
        if result.is_err() {
            self.lost();
        }
    }

    fn lost(&mut self) {
        if !self.closed {
            self.closed = true;
            error!("the control thread has ended; requests that need it go unanswered");
        }
    }
}
