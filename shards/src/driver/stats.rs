//! What the driver counts beside the shard's own counters.

use std::{cell::Cell, sync::Arc};

use super::{latency::Latencies, ring::RingStats};
use crate::{HotPlace, ShardStats};

/// A look at a shard's counters.
#[derive(Clone, Debug, Default)]
pub struct StatsSnapshot {
    pub shard: ShardStats,
    pub driver: DriverStats,
    pub ring: RingStats,
    pub latencies: Latencies,
    /// About a second old at most.
    pub hot: Arc<[HotPlace]>,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters of a shard's driver. All but the gauges at the end only grow.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct DriverStats {
            $($(#[$doc])* pub $name: u64,)*
            /// Now: sessions, that is connections whose hello was good.
            pub sessions: u64,
            /// Now: connections that are shaking hands or haven't said hello.
            pub newcomers: u64,
            /// Now: messages that the control side hasn't had room for yet.
            pub control_backlog: u64,
        }

        /// The same while they count, on the shard's thread.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> DriverStats {
                DriverStats { $($name: self.$name.get(),)* ..DriverStats::default() }
            }
        }
    };
}

counters! {
    /// Attempts to connect that came in.
    connections_incoming,
    /// Attempts answered with a retry, so that the address is proven first.
    connections_retried,
    /// Attempts refused because there were too many.
    connections_refused,
    /// Handshakes that failed or took too long.
    handshakes_failed,
    /// Connections that said no hello in time.
    hellos_late,
    /// Hellos whose token or Gateway was refused.
    unauthorized,
    /// Connections closed because what they sent is not the protocol.
    protocol_violations,
    /// Connections closed because more requests were unanswered than a session may have.
    requests_too_many,
    /// Sessions that ended.
    sessions_ended,
    requests,
    acks,
    replies,
    delivery_writes,
    delivery_bytes,
    /// Passes of the main loop.
    passes,
    /// Passes after which there was nothing to do.
    parks,
    /// Passes that took longer than 100 ms.
    passes_slow,
    ticks,
    /// Samples that there was no room for with whoever makes traces of them.
    samples_dropped,
}

#[derive(Debug, Default)]
pub(super) struct Counter(Cell<u64>);

impl Counter {
    pub(super) fn add(&self, by: u64) {
        self.0.set(self.0.get().wrapping_add(by));
    }

    pub(super) fn get(&self) -> u64 {
        self.0.get()
    }
}
