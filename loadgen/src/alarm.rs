//! Waits to the microsecond: tokio's own timers have a millisecond's grain, which would be most of what a latency is.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::{
    io::{Errno, read},
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime},
};
use tokio::io::{Interest, unix::AsyncFd};

/// A timer of the kernel's.
#[derive(Debug)]
pub struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    /// # Errors
    /// When the process may have no more descriptors.
    ///
    /// # Panics
    /// Outside of a tokio runtime with IO.
    pub fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "what takes its place is unsafe, and asks that the descriptor stays: an OwnedFd's does"
        )]
        let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
        Ok(Self(timer))
    }

    /// One wait at a time. May be dropped and called again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn wait(&mut self, pause: Duration) -> io::Result<()> {
        if pause.is_zero() {
            return Ok(());
        }
        let value = Timespec {
            tv_sec: i64::try_from(pause.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(pause.subsec_nanos()),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut ready = self.0.readable().await?;
            match read(self.0.get_ref(), &mut [0; 8]) {
                // Never of an earlier wait that was dropped: setting a timer forgets what it told before.
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn it_is_never_early_and_can_be_dropped() {
        let mut alarm = Alarm::new().unwrap();
        let begun = Instant::now();
        assert!(alarm.wait(Duration::from_micros(300)).now_or_never().is_none(), "nobody has looked at the kernel yet");
        alarm.wait(Duration::from_millis(3)).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(3));
        alarm.wait(Duration::ZERO).await.unwrap();
    }
}
