//! Whether reading should pause: a session comes near to what it may hold, although its Gateway goes on taking things.
//!
//! Invariants:
//! - A session presses only while its Gateway progresses, that is while acks of `done` come, and nothing of it is behind already. So a
//!   Gateway that stands still, or that is catching up, never holds up the others.
//! - It begins above three quarters of what its outbox may hold, or of the way to the log's end, and stops at half: reading isn't paused
//!   and resumed for every few entries.

use super::Shard;
use crate::config::OutboxLimits;
use crate::outbox::Log;
use crate::session::{LOW_SHARE, Session};
use crate::subscription::GatewayId;

impl Shard {
    /// Sessions for which the ingest thread should pause for a while, before what they hold is too much and their subscriptions fall behind.
    pub fn pressing(&self) -> u64 {
        self.stats.outboxes_pressing
    }

    /// To be called when what a session holds has changed, and when time has passed.
    pub(super) fn look_at_pressure(&mut self, gateway: GatewayId) {
        let (limits, time) = (self.config.outbox(), self.time);
        let Some(session) = self.gateways.session_mut(gateway) else { return };
        let progresses = time < session.progress_at + PROGRESS_MS;
        let is_spared = session.full || session.waits.iter().any(|waits| !waits.is_empty());
        let presses = progresses && !is_spared && is_near(session, limits, &self.log);
        if presses != std::mem::replace(&mut session.pressing, presses) {
            match presses {
                true => self.stats.outboxes_pressing += 1,
                false => self.stats.outboxes_pressing -= 1,
            }
        }
    }
}

/// Whether the session holds nearly too much, or something that the log will let go of soon.
fn is_near(session: &Session, limits: OutboxLimits, log: &Log) -> bool {
    let (outbox, log_share) = match session.pressing {
        true => (limits.part(1, LOW_SHARE), 2),
        false => (limits.part(3, 4), 4),
    };
    let at_log_end = || {
        let oldest = session.oldest_held()?;
        Some(!log.has_comfortable_room(0) && oldest < log.first() + log.len() as u64 / log_share)
    };
    session.holds_more_than(outbox, 1) || at_log_end().unwrap_or(false)
}

/// A Gateway that has been done with nothing for so long doesn't progress.
const PROGRESS_MS: u64 = 1_000;
