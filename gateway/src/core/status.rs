//! What an operator may want to see of a Gateway.

use wire::Epoch;

use super::GatewayCore;

/// Counts since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Events that shards sent.
    pub received: u64,
    /// Items that the application was given, notices included.
    pub handed: u64,
    /// Events (and gaps) that a subscription had had before.
    pub duplicates_dropped: u64,
    /// Events that came unverified and, looked at here, did not match.
    pub unmatched_dropped: u64,
    /// Events for subscriptions that the application no longer has.
    pub unwanted_dropped: u64,
    pub gaps: u64,
    pub resyncs: u64,
    /// Times that a subscription began to catch up, and that one had.
    pub catch_ups: u64,
    pub caught_up: u64,
    /// Older selves of subscriptions, which shards knew from a process before, that this one had them end.
    pub strays_ended: u64,
    /// Times that a subscription began anew from its application's positions, because what its shard had bound was not yet it.
    pub begun_anew: u64,
    /// Sessions after the first of each shard.
    pub reconnects: u64,
    /// Sessions that were ended because what the shard sent was not the protocol.
    pub violations: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    pub partition: u16,
    pub address: String,
    pub connected: bool,
    /// It has everything that this Gateway had to present when it connected.
    pub synced: bool,
    /// Bytes of its items that wait for the application.
    pub queued_bytes: usize,
    /// Why the last session ended, while there is no new one.
    pub error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Of the node's present run. `None` before the first welcome.
    pub epoch: Option<Epoch>,
    /// One for each shard, by partition.
    pub shards: Vec<ShardStatus>,
    /// Why no shard could be found, while none is.
    pub error: Option<String>,
    pub subscriptions: usize,
    pub live: usize,
    /// Live subscriptions that what they lack is being read for.
    pub catching_up: usize,
    /// Items that the application has not been given, or is not done with.
    pub queued_items: usize,
    pub counters: Counters,
}

impl GatewayCore {
    pub fn status(&self) -> Status {
        let shard = |(partition, link): (usize, &super::Link)| {
            let session = link.session.and_then(|id| self.sessions.get(&id));
            ShardStatus {
                // There are at most `SLOTS` links.
                partition: partition as u16,
                address: link.address.clone(),
                connected: session.is_some_and(|session| session.is_ready()),
                synced: session.is_some_and(|session| session.synced),
                queued_bytes: session.map_or(0, |session| session.queued_bytes),
                error: link.error.clone(),
            }
        };
        Status {
            epoch: self.topology.as_ref().map(|topology| topology.epoch),
            shards: self.links.iter().enumerate().map(shard).collect(),
            error: self.terminal.as_ref().map(ToString::to_string).or_else(|| self.contact.error.clone()),
            subscriptions: self.subscriptions.len(),
            live: self.subscriptions.iter().filter(|(_, s)| s.bound && !s.unclear && !s.ended && !s.condemned).count(),
            catching_up: self.subscriptions.iter().filter(|(_, s)| s.bound && s.catching_up && !s.ended).count(),
            queued_items: self.fifo.len(),
            counters: self.counters,
        }
    }
}
