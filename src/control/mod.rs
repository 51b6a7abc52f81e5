//! The control side: HTTP, the admission ledger, credentials, health and metrics.
//!
//! | to change | look in |
//! |---|---|
//! | who may subscribe, quotas | `admission` |
//! | who talks to whom about it | `registry` |
//! | tokens | `credentials` |
//! | a path of the HTTP API | `http` |
//! | what health and topology know | `state` |
//!
//! Two threads: `streamer-control` serves HTTP, `streamer-registrar` owns the ledger and compiles predicates, with the stack that this
//! needs. Neither is ever waited for by the match path.

pub mod admission;
pub mod credentials;
mod http;
mod metrics;
pub mod registry;
mod server;
mod state;

pub use credentials::{Credentials, hash_token};
pub use registry::{ShardChannels, ShardReceivers, ShardSenders, channels};
pub use server::{ControlDeps, ControlHandle, StartError, start};
pub use state::{Health, NodeState, ShardPlace, Topology};
