//! Writes at a set rate, whether or not the store keeps up: the load is open-loop.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesOrdered};
use workload::{Generator, Write, WriteKind};

use super::{DemoError, DemoOptions};
use crate::ingest::source::embedded::{DocumentWrite, EmbeddedStore};

/// Time between two batches of writes.
const BATCH_EVERY: Duration = Duration::from_millis(2);

/// Batches that may wait for the store at once. Beyond it the writer falls behind its schedule, and latencies, which count from the
/// schedule, show it.
const IN_FLIGHT_MAX: usize = 256;

/// Writes whose time is kept for live latencies.
const KEPT: usize = 1 << 20;

/// When each write was scheduled, by its offset.
#[derive(Debug)]
pub(super) struct Submitted {
    epoch: Instant,
    first_offset: AtomicU64,
    /// Microseconds since `epoch`, by write modulo the length.
    times_us: Vec<AtomicU64>,
    pub(super) count: AtomicU64,
    pub(super) acknowledged: AtomicU64,
}

impl Submitted {
    pub(super) fn new() -> Self {
        let times_us = std::iter::repeat_with(|| AtomicU64::new(0)).take(KEPT).collect();
        let (first_offset, count, acknowledged) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Self { epoch: Instant::now(), first_offset, times_us, count, acknowledged }
    }

    pub(super) fn begin(&self, first_offset: u64) {
        self.first_offset.store(first_offset, Relaxed);
    }

    fn scheduled(&self, at: Instant, writes: usize) {
        let us = at.saturating_duration_since(self.epoch).as_micros() as u64;
        let first = self.count.load(Relaxed);
        for write in first..first + writes as u64 {
            self.times_us[write as usize % KEPT].store(us, Relaxed);
        }
        // The counter is advanced before the writes are handed to the store, so whoever sees a delivery sees its time.
        self.count.store(first + writes as u64, std::sync::atomic::Ordering::Release);
    }

    /// Microseconds since the write that has this offset was scheduled; `None` when it is too long ago to be kept.
    pub(super) fn latency_us(&self, offset: u64, now: Instant) -> Option<u64> {
        let write = offset.checked_sub(self.first_offset.load(Relaxed))?;
        let count = self.count.load(std::sync::atomic::Ordering::Acquire);
        if write >= count || count - write > KEPT as u64 {
            return None;
        }
        let at = self.times_us[write as usize % KEPT].load(Relaxed);
        let now = now.saturating_duration_since(self.epoch).as_micros() as u64;
        Some(now.saturating_sub(at))
    }
}

/// Writes for the demo's duration. Returns how many writes were acknowledged, which are the generator's first ones.
pub(super) async fn write(
    generator: &Generator,
    options: &DemoOptions,
    store: Arc<EmbeddedStore>,
    submitted: Arc<Submitted>,
) -> Result<u64, DemoError> {
    let mut writer = generator.writer();
    let mut in_flight = FuturesOrdered::new();
    let started = Instant::now();
    let total = (options.rate as f64 * options.duration.as_secs_f64()).round().max(1.0) as u64;
    let mut done = 0;
    // Batches are generated ahead of their time, so that making them doesn't count as latency.
    let mut ready: VecDeque<Write> = VecDeque::new();
    let mut made = 0;
    for batch in 1_u32.. {
        let due = started + BATCH_EVERY * batch;
        let upto = (options.rate as f64 * (BATCH_EVERY * batch).as_secs_f64()) as u64;
        let upto = upto.min(total);
        while made < upto {
            ready.push_back(writer.next());
            made += 1;
        }
        loop {
            let early = Instant::now() < due;
            if !early && in_flight.len() < IN_FLIGHT_MAX {
                break;
            }
            tokio::select! {
                Some(receipt) = in_flight.next(), if !in_flight.is_empty() => done += acknowledged(receipt, &submitted)?,
                () = tokio::time::sleep_until(due.into()), if early => {}
            }
        }
        if !ready.is_empty() {
            let writes: Vec<_> = ready.drain(..).map(document_write).collect();
            submitted.scheduled(due, writes.len());
            let queued = store.submit(writes).await.map_err(|error| DemoError::Write(error.to_string()))?;
            in_flight.push_back(queued.durable());
        }
        if made >= total {
            break;
        }
    }
    while let Some(receipt) = in_flight.next().await {
        done += acknowledged(receipt, &submitted)?;
    }
    Ok(done)
}

type Receipt = Result<crate::ingest::source::embedded::WriteReceipt, crate::ingest::source::embedded::WriteError>;

fn acknowledged(receipt: Receipt, submitted: &Submitted) -> Result<u64, DemoError> {
    let receipt = receipt.map_err(|error| DemoError::Write(error.to_string()))?;
    if receipt.offsets.iter().any(Option::is_none) {
        return Err(DemoError::Write("a write changed nothing, though the generator knows what is stored".into()));
    }
    let count = receipt.offsets.len() as u64;
    submitted.acknowledged.fetch_add(count, Relaxed);
    Ok(count)
}

fn document_write(write: Write) -> DocumentWrite {
    let Write { tenant, collection, document_id: id, kind, data } = write;
    match kind {
        WriteKind::Insert | WriteKind::Replace | WriteKind::Update { .. } | WriteKind::Recreate => {
            DocumentWrite::Put { tenant, collection, id, data }
        }
        WriteKind::SoftDelete => DocumentWrite::SoftDelete { tenant, collection, id },
        WriteKind::HardDelete => DocumentWrite::Delete { tenant, collection, id },
    }
}
