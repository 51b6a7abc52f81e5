//! A whole node with its Gateways in one thread, on a seed, in virtual time.
//!
//! The state machines are the real ones: [`streamer::ingest::core::IngestCore`], [`shards::Shard`],
//! [`streamer_gateway::core::GatewayCore`]. What is simulated is what stands between them: the source, rings, cells, the registrar,
//! connections, and the applications behind the Gateways. The scheduler draws what happens next; every delay and every fault is a
//! consequence of the seed, which is in every panic.
//!
//! Invariants:
//! - Each stream of a connection keeps its order; streams of one connection, connections, rings and cells don't keep any order
//!   among each other.
//! - Workload, scheduler and faults draw from streams of their own, so that more of one doesn't shift the others.
//! - What the application has persisted survives its crash, and nothing else does.
//!
//! At the end the faults cease, all that is under way arrives, and every subscription must have got exactly what the oracle says, in order.

mod application;
mod config;
mod connection;
mod history;
mod node;
mod world;

pub use config::{Broken, Outcome, SimConfig};
pub use world::run;
