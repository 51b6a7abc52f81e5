//! When each event was due. Latency counts from there, not from when it was sent: a source that can't keep up would otherwise hide
//! how long its events had waited ("coordinated omission").

use std::{
    io,
    ops::Range,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::alarm::Alarm;

/// Events whose time is kept where there is no rate.
const KEPT: usize = 1 << 20;

/// What latency counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountsFrom {
    /// When an event was due, whether or not the source was late.
    Due,
    /// When it was handed over: flat out, nothing is due before.
    HandedOver,
    /// When its write was acknowledged. What arrives before took no time.
    Acknowledged,
}

impl CountsFrom {
    /// Where events are not written to a database.
    pub fn of_rate(rate: Option<u64>) -> Self {
        if rate.is_some() { Self::Due } else { Self::HandedOver }
    }

    pub fn describe(self) -> &'static str {
        match self {
            Self::Due => "when the event was due, whether or not the source was late",
            Self::HandedOver => "when the event was handed over: flat out, nothing is due before",
            Self::Acknowledged => "when the database had acknowledged the write",
        }
    }
}

#[derive(Debug)]
pub struct Schedule {
    /// Events a second; flat out where there is none.
    rate: Option<u64>,
    counts_from: CountsFrom,
    duration: Duration,
    begun: OnceLock<Instant>,
    /// Nanoseconds since `begun` at which an event was handed over or acknowledged, by its number modulo the length.
    times_ns: Vec<AtomicU64>,
    /// Events handed over.
    sent: AtomicU64,
    /// No event above this number comes.
    end: OnceLock<u64>,
}

impl Schedule {
    pub fn new(rate: Option<u64>, duration: Duration, counts_from: CountsFrom) -> Self {
        let kept = if counts_from == CountsFrom::Due { 0 } else { KEPT };
        Self {
            rate,
            counts_from,
            duration,
            begun: OnceLock::new(),
            times_ns: std::iter::repeat_with(|| AtomicU64::new(0)).take(kept).collect(),
            sent: AtomicU64::new(0),
            end: OnceLock::new(),
        }
    }

    /// Time runs from here on.
    pub fn begin(&self) {
        let _ = self.begun.set(Instant::now());
    }

    pub fn begun(&self) -> Option<Instant> {
        self.begun.get().copied()
    }

    /// Events handed over so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    /// How many there are in all, once the time is over or it was told to end.
    pub fn ended(&self) -> Option<u64> {
        self.end.get().copied()
    }

    /// No more is to come. What was handed over stays.
    pub fn end(&self) {
        let _ = self.end.set(self.sent());
    }

    /// How many more events are due now, at most `max`, and how long until the next is, where none is. Flat out, as many as are asked for.
    pub fn due(&self, now: Instant, max: u64) -> Due {
        let Some(begun) = self.begun() else { return Due::In(WAIT) };
        let sent = self.sent();
        if self.ended().is_some() {
            return Due::Nothing;
        }
        let since = now.saturating_duration_since(begun);
        if since >= self.duration {
            // Those that were due before the end still come, where there is a rate.
            let left = self.rate.map_or(0, |rate| events_in(rate, self.duration).saturating_sub(sent));
            if left == 0 {
                self.end();
                return Due::Nothing;
            }
            return Due::Now(left.min(max));
        }
        let Some(rate) = self.rate else { return Due::Now(max) };
        match events_in(rate, since).saturating_sub(sent) {
            0 => Due::In(self.due_after(sent + 1).saturating_sub(since)),
            due => Due::Now(due.min(max)),
        }
    }

    /// Gives `send` the numbers of the events that have become due, at most `max` at a time and one call after the other, until there are no
    /// more. What becomes due meanwhile goes into the next call.
    ///
    /// # Errors
    /// The first error of `send`, or that there are no timers.
    pub async fn drive<E: From<io::Error>>(
        &self,
        max: u64,
        mut send: impl AsyncFnMut(Range<u64>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut alarm = Alarm::new()?;
        loop {
            let now = Instant::now();
            match self.due(now, max) {
                Due::Now(count) => {
                    let first = self.sent() + 1;
                    self.hand_over(count, now);
                    send(first..first + count).await?;
                }
                Due::In(pause) => alarm.wait(pause).await?,
                Due::Nothing => return Ok(()),
            }
        }
    }

    /// So many more are handed over now. To be called before they are, so that whoever sees one finds its time.
    pub fn hand_over(&self, count: u64, now: Instant) {
        let first = self.sent() + 1;
        match self.counts_from {
            CountsFrom::Due => {}
            CountsFrom::HandedOver => self.note(first, count, now),
            CountsFrom::Acknowledged => {
                (first..first + count).for_each(|n| self.time_of(n).store(NOT_YET, Ordering::Relaxed))
            }
        }
        self.sent.store(first + count - 1, Ordering::Release);
    }

    /// The writes of so many events from `first` on were acknowledged.
    pub fn acknowledged(&self, first: u64, count: u64, now: Instant) {
        if self.counts_from == CountsFrom::Acknowledged {
            self.note(first, count, now);
        }
    }

    fn note(&self, first: u64, count: u64, now: Instant) {
        let since = now.saturating_duration_since(self.begun().unwrap_or(now)).as_nanos() as u64;
        (first..first + count).for_each(|n| self.time_of(n).store(since, Ordering::Relaxed));
    }

    fn time_of(&self, n: u64) -> &AtomicU64 {
        &self.times_ns[n as usize % KEPT]
    }

    pub fn counts_from(&self) -> CountsFrom {
        self.counts_from
    }

    /// How long ago event `n` was due; `None` where that isn't kept any more.
    pub fn latency(&self, n: u64, now: Instant) -> Option<Duration> {
        let since = now.saturating_duration_since(self.begun()?);
        if self.counts_from == CountsFrom::Due {
            return Some(since.saturating_sub(self.due_after(n)));
        }
        let sent = self.sent();
        (n <= sent && sent - n < KEPT as u64 / 2)
            .then(|| since.saturating_sub(Duration::from_nanos(self.time_of(n).load(Ordering::Relaxed))))
    }

    /// When event `n` is due, from the beginning.
    fn due_after(&self, n: u64) -> Duration {
        let rate = self.rate.unwrap_or(1).max(1);
        let (seconds, rest) = (n / rate, n % rate);
        Duration::from_secs(seconds) + Duration::from_nanos(rest * 1_000_000_000 / rate)
    }
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Now(u64),
    In(Duration),
    /// Ever again.
    Nothing,
}

/// Later than any time: what isn't acknowledged yet.
const NOT_YET: u64 = u64::MAX;

/// How often one looks whether it has begun.
const WAIT: Duration = Duration::from_millis(1);

fn events_in(rate: u64, since: Duration) -> u64 {
    (u128::from(rate) * since.as_nanos() / 1_000_000_000) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_on_the_whole_also_by_a_source_that_is_late() {
        let schedule = Schedule::new(Some(1_000), Duration::from_secs(2), CountsFrom::Due);
        assert_eq!(schedule.due(Instant::now(), 100), Due::In(WAIT));
        schedule.begin();
        let begun = schedule.begun().unwrap();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        assert_eq!(schedule.due(at(10), 100), Due::Now(10));
        schedule.hand_over(10, at(10));
        assert_eq!(schedule.due(at(10), 100), Due::In(Duration::from_millis(1)));
        // Half a second late: all of it is due, and counts from when it was.
        assert_eq!(schedule.due(at(510), 100), Due::Now(100));
        schedule.hand_over(100, at(510));
        assert_eq!(schedule.latency(11, at(510)), Some(Duration::from_millis(499)));
        assert_eq!(schedule.due(at(5_000), 10_000), Due::Now(1_890));
        schedule.hand_over(1_890, at(5_000));
        assert_eq!((schedule.due(at(5_000), 10), schedule.ended()), (Due::Nothing, Some(2_000)));
    }

    #[test]
    fn flat_out_counts_from_the_handing_over() {
        let schedule = Schedule::new(None, Duration::from_secs(1), CountsFrom::HandedOver);
        schedule.begin();
        let begun = schedule.begun().unwrap();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        assert_eq!(schedule.due(at(1), 64), Due::Now(64));
        schedule.hand_over(64, at(100));
        assert_eq!(schedule.latency(64, at(130)), Some(Duration::from_millis(30)));
        assert_eq!(schedule.latency(65, at(130)), None);
        assert_eq!((schedule.due(at(1_000), 64), schedule.ended()), (Due::Nothing, Some(64)));
    }

    #[test]
    fn what_comes_before_its_acknowledgement_took_no_time() {
        let schedule = Schedule::new(Some(1_000), Duration::from_secs(1), CountsFrom::Acknowledged);
        schedule.begin();
        let begun = schedule.begun().unwrap();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        schedule.hand_over(10, at(10));
        assert_eq!(schedule.latency(3, at(12)), Some(Duration::ZERO));
        schedule.acknowledged(1, 10, at(15));
        assert_eq!(schedule.latency(3, at(17)), Some(Duration::from_millis(2)));
    }
}
