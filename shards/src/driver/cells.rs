//! What a shard tells the ingest and control threads: the latest value of each thing, and a signal that one has changed.
//!
//! Invariants:
//! - Nothing is queued. A reader that comes late sees the latest value, and neither side ever waits for the other; so a shard
//!   that waits for ingest and an ingest that waits for room in a ring can't block each other.
//! - A value is published before its change is signalled, and a reader takes the signal down before it reads: what it missed
//!   is signalled again.
//! - A signal costs no system call unless the ingest thread is really waiting for it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use wire::Positions;

use super::stats::StatsSnapshot;
use crate::{CatchUpWanted, FilterSnapshot, SubscriptionCounts, SyncState};

/// The cells of one shard, for reading.
#[derive(Debug)]
pub struct Cells {
    settled: ArcSwap<Positions>,
    filter: ArcSwap<FilterSnapshot>,
    sync: ArcSwap<SyncState>,
    catch_up: ArcSwap<CatchUpWanted>,
    pressing: AtomicU64,
    stats: ArcSwap<StatsSnapshot>,
    subscriptions: ArcSwap<SubscriptionCounts>,
    subscriptions_asked: AtomicBool,
}

impl Cells {
    /// For each backend, the position up to which nothing is owed to anybody any more.
    pub fn settled(&self) -> Arc<Positions> {
        self.settled.load_full()
    }

    /// What the shard wants to see. Until it has published, that is everything.
    pub fn filter(&self) -> Arc<FilterSnapshot> {
        self.filter.load_full()
    }

    /// Which Gateways have presented their subscriptions since the start.
    pub fn sync(&self) -> Arc<SyncState> {
        self.sync.load_full()
    }

    /// From where subscriptions have to be read for again.
    pub fn catch_up(&self) -> Arc<CatchUpWanted> {
        self.catch_up.load_full()
    }

    /// Sessions for which reading should pause for a while: they come near to what they may hold, and their Gateways go on taking things.
    pub fn pressing(&self) -> u64 {
        self.pressing.load(Ordering::Acquire)
    }

    /// Counters, about a tenth of a second old at most while the shard works.
    pub fn stats(&self) -> Arc<StatsSnapshot> {
        self.stats.load_full()
    }

    /// Subscriptions by Gateway and by tenant, and has the shard count them anew for the next call: counting walks over all of
    /// them, so it is only done for somebody who asks, and about once a second at most.
    pub fn subscriptions(&self) -> Arc<SubscriptionCounts> {
        self.subscriptions_asked.store(true, Ordering::Release);
        self.subscriptions.load_full()
    }
}

/// Tells the ingest thread that a cell of any shard has changed. One for all shards.
#[derive(Debug, Default)]
pub struct CellSignal {
    raised: AtomicBool,
    notify: Notify,
}

impl CellSignal {
    /// Whether a cell has changed since the last call. To be called *before* the cells are read.
    pub fn take(&self) -> bool {
        self.raised.swap(false, Ordering::AcqRel)
    }

    /// Waits until a cell has changed since the signal was taken last, and takes it. For one waiter; may be dropped at any
    /// time without losing a change.
    pub async fn changed(&self) {
        loop {
            // A change after this line leaves its mark either in the flag or with the notification.
            let notified = self.notify.notified();
            if self.take() {
                return;
            }
            notified.await;
        }
    }

    fn raise(&self) {
        // While the flag is up the ingest thread has been told already.
        if !self.raised.swap(true, Ordering::AcqRel) {
            self.notify.notify_one();
        }
    }
}

/// The writing end, which the shard's thread holds. It publishes only what has changed.
#[derive(Debug)]
pub struct CellWriter {
    cells: Arc<Cells>,
    signal: Arc<CellSignal>,
    settled: Positions,
    sync_version: u64,
    catch_up_version: u64,
}

impl CellWriter {
    /// Cells that nothing was published in yet.
    pub fn new(signal: Arc<CellSignal>) -> Self {
        let cells = Cells {
            settled: ArcSwap::default(),
            filter: ArcSwap::from_pointee(FilterSnapshot::unpublished()),
            sync: ArcSwap::default(),
            catch_up: ArcSwap::default(),
            pressing: AtomicU64::new(0),
            stats: ArcSwap::default(),
            subscriptions: ArcSwap::default(),
            subscriptions_asked: AtomicBool::new(true),
        };
        Self { cells: Arc::new(cells), signal, settled: Positions::default(), sync_version: 0, catch_up_version: 0 }
    }

    pub fn cells(&self) -> Arc<Cells> {
        Arc::clone(&self.cells)
    }

    pub fn settled(&mut self, settled: Positions) {
        if settled != self.settled {
            self.cells.settled.store(Arc::new(settled.clone()));
            self.settled = settled;
            self.signal.raise();
        }
    }

    pub fn filter(&mut self, filter: FilterSnapshot) {
        self.cells.filter.store(Arc::new(filter));
        self.signal.raise();
    }

    /// `state` is only asked for when `version` is another than the one published.
    pub fn sync(&mut self, version: u64, state: impl FnOnce() -> SyncState) {
        if version != self.sync_version {
            self.sync_version = version;
            self.cells.sync.store(Arc::new(state()));
            self.signal.raise();
        }
    }

    /// `wanted` is only asked for when `version` is another than the one published.
    pub fn catch_up(&mut self, version: u64, wanted: impl FnOnce() -> CatchUpWanted) {
        if version != self.catch_up_version {
            self.catch_up_version = version;
            self.cells.catch_up.store(Arc::new(wanted()));
            self.signal.raise();
        }
    }

    pub fn pressing(&mut self, sessions: u64) {
        // Written by this end only.
        if self.cells.pressing.load(Ordering::Relaxed) != sessions {
            self.cells.pressing.store(sessions, Ordering::Release);
            self.signal.raise();
        }
    }

    pub fn stats(&mut self, stats: StatsSnapshot) {
        self.cells.stats.store(Arc::new(stats));
    }

    /// `count` is only called when somebody has asked since it was called last.
    pub fn subscriptions(&mut self, count: impl FnOnce() -> SubscriptionCounts) {
        if self.cells.subscriptions_asked.swap(false, Ordering::AcqRel) {
            self.cells.subscriptions.store(Arc::new(count()));
        }
    }
}

#[cfg(test)]
mod tests {
    use wire::{BackendId, Lineage, Position};

    use super::*;

    fn at(time: u64) -> Positions {
        [Position { backend: BackendId(1), lineage: Lineage(1), time, k: 1 }].into_iter().collect()
    }

    #[test]
    fn a_reader_that_comes_late_sees_the_latest_value() {
        let signal = Arc::new(CellSignal::default());
        let mut writer = CellWriter::new(Arc::clone(&signal));
        let cells = writer.cells();
        assert!(cells.filter().everything, "before the first version everything is wanted");
        assert!(!signal.take());
        writer.settled(at(1));
        writer.settled(at(2));
        assert!(signal.take());
        assert!(!signal.take());
        assert_eq!(*cells.settled(), at(2));
        writer.settled(at(2));
        assert!(!signal.take(), "nothing has changed");
        writer.filter(FilterSnapshot::of(3, []));
        assert!(signal.take());
        assert_eq!(cells.filter().version, 3);
        writer.sync(1, || SyncState { version: 1, ..SyncState::default() });
        assert!(signal.take());
        writer.sync(1, || unreachable!("it is published already"));
        assert!(!signal.take());
    }

    #[test]
    fn no_change_is_missed_by_a_reader_that_waits() {
        let signal = Arc::new(CellSignal::default());
        let mut writer = CellWriter::new(Arc::clone(&signal));
        let cells = writer.cells();
        let last = 20_000;
        let reader = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
                let mut seen = 0;
                while seen < last {
                    signal.changed().await;
                    let now = cells.settled().iter().next().unwrap().time;
                    assert!(now >= seen);
                    seen = now;
                }
            });
        });
        for time in 1..=last {
            writer.settled(at(time));
        }
        reader.join().unwrap();
    }
}
