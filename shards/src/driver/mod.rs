//! Gives a shard a thread, a core, a ring, a UDP port and the time.
//!
//! | to change | look in |
//! |---|---|
//! | what runs on the thread and in which order | `main_loop` |
//! | how a Gateway's connection is read, written and ended | `quic/session` |
//! | who may connect, limits of QUIC, TLS | `quic` |
//! | how inputs reach the shard and outputs their place | `hub` |
//! | glommio or tokio, pinning, panics | `executor` |
//! | where filters are built | `filter_builder` |
//! | ingest thread → shard | `ring` |
//! | how long a change takes | `latency`, and `sample.rs` for what is timed |
//! | shard → ingest and control thread | `cells` |
//!
//! Invariants:
//! - One thread a shard. Nothing but the ring, the cells, the two control channels and the way to the filter builder is shared with another thread.
//! - Every queue has a bound with a name, or is bounded by one that has.
//! - A panic ends the shard and is the result of [`ShardHandle::join`]. It is never swallowed.

mod cells;
mod core;
mod executor;
mod filter_builder;
mod hub;
mod latency;
mod local;
mod main_loop;
mod quic;
mod ring;
mod stats;
mod thread;

pub use self::{
    cells::{CellSignal, CellWriter, Cells},
    executor::{ExecutorError, Preflight, RuntimeChoice, RuntimeKind, RuntimeUnavailable, RuntimeUsed, UnknownRuntime},
    filter_builder::FilterBuilder,
    hub::FromShard,
    latency::{DoneSample, Histogram, LATENCY_BOUNDS_NS, Latencies, now as now_nanos},
    quic::{Authenticator, AuthorizedGateway, QuicConfig, SocketBuffers, TlsError, gso_self_test},
    ring::{Closed, PushError, RingConsumer, RingProducer, RingStats, ring},
    stats::{DriverStats, StatsSnapshot},
    thread::{ShardFailed, ShardHandle, ShardThread, ShardThreadConfig, StartError},
};
use crate::{Admission, Refusal, Ticket};

/// The control side's answer to [`FromShard::Admit`], one result an item.
pub type AdmissionAnswer = (Ticket, Vec<Result<Admission, Refusal>>);

#[cfg(test)]
mod tests;
