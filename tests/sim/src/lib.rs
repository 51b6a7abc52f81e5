//! A whole node with its Gateways in one thread, on a seed, in virtual time.
//!
//! The state machines are the real ones: [`streamer::ingest::core::IngestCore`] with its router and its settlement, [`shards::Shard`],
//! [`streamer_gateway::core::GatewayCore`], and the store that keeps checkpoints. What is simulated is what stands between them: the source,
//! rings, cells, the registrar, the disk, connections, and the applications behind the Gateways. The scheduler draws what happens next;
//! every delay and every fault ([`Fault`]) is a consequence of the seed.
//!
//! Invariants:
//! - Each stream of a connection keeps its order; streams of one connection, connections, rings and cells don't keep any order
//!   among each other.
//! - Workload, scheduler, faults, builder of filters and look-ups draw from streams of their own, so that more of one doesn't shift the others.
//! - What the application has persisted survives its crash, and what the disk holds that of the node. Nothing else does.
//! - The same configuration leads to the same run, whether it is traced or not.
//! - Eight seeds in a row share what is written and subscribed to, and differ in all else.
//!
//! What is checked:
//! - Each item that an application is given, as it is given: it must be the next one of the oracle's list for its subscription, or a
//!   `Resync` or a gap whose cause was injected.
//! - Each checkpoint as it is written: every application is done with whatever lies at or before it.
//! - Each position that an application keeps: it is done with whatever lies at or before it.
//! - At every tick, all that the parts of one shard must agree on; no side ever sees the other break the protocol; no subscription runs out
//!   while its Gateway has a session.
//! - At the end the faults cease, all that is under way arrives, and nobody may lack anything.
//!
//! `cargo xtask sim` runs it over many seeds. A seed that fails is run again with a trace, and shrunk: see [`shrink`]. [`Broken`] lists
//! what it is known to find.

mod application;
mod broken;
mod config;
mod connection;
mod disk;
mod expected;
mod history;
mod many;
mod node;
mod outcome;
mod passes;
mod registrar;
mod run;
mod shown;
mod trace;
mod workload;
mod world;

pub use broken::Broken;
pub use config::{Fault, SimConfig};
pub use many::{Report, run_many};
pub use outcome::Outcome;
pub use run::{Violation, run, run_traced, shrink};
