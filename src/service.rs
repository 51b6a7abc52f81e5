//! What a service manager is told by the protocol of systemd (`sd_notify(3)`): that the node has started, that it stops, and that it
//! still lives. Without one (`NOTIFY_SOCKET` isn't set) nothing is told to anybody.

use std::time::Duration;

use sd_notify::NotifyState;

/// How often the service manager wants to hear that the node lives: twice within its own limit, as it recommends. `None` where it
/// doesn't want to.
pub fn watchdog_every() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// It listens, and reads its sources as soon as they can be reached. Whether they can is for `/health/ready` to tell: a service that
/// waits for a database should not be taken for one that fails to start.
pub fn started() {
    tell(&[NotifyState::Ready, NotifyState::Status("running")]);
}

/// It takes its configuration again; [`started`] says when it has.
pub fn reloading() {
    let mut what = vec![NotifyState::Reloading, NotifyState::Status("reading its configuration again")];
    what.extend(NotifyState::monotonic_usec_now().ok());
    tell(&what);
}

pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

pub fn lives() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::warn!(%error, "the service manager can't be told");
    }
}

/// Tells whether every shard's loop still turns, from how often each has turned until now.
#[derive(Debug, Default)]
pub struct Pulse {
    last: Vec<u64>,
}

impl Pulse {
    /// True if each count is another one than at the last call. A loop turns many times a second, also where there is nothing to do.
    pub fn beats(&mut self, turns: Vec<u64>) -> bool {
        let moved = turns.len() != self.last.len() || turns.iter().zip(&self.last).all(|(now, last)| now != last);
        self.last = turns;
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_loop_that_stands_still_stops_the_pulse() {
        let mut pulse = Pulse::default();
        assert!(pulse.beats(vec![1, 1]));
        assert!(pulse.beats(vec![2, 9]));
        assert!(!pulse.beats(vec![3, 9]));
        assert!(pulse.beats(vec![4, 10]));
    }
}
