//! What runs once per core: the subscription index, the delivery log, sessions with Gateways, and the driver that gives them IO.

mod change;
mod config;
pub mod driver;
mod expired;
mod filter;
mod gateway;
mod hot;
mod index;
mod io;
mod outbox;
mod passes;
mod sample;
mod session;
mod shard;
mod stats;
mod subscription;

pub use change::{Bare, CatchUp, CatchUpFailure, Change, FromIngest, Gap, Image, NewChange, Scope, StoredId};
pub use config::{BackendConfig, BareDeletes, ShardConfig, ShardLimits};
pub use filter::{BuildFailed, FilterBuild, FilterBuilt, FilterConfig, FilterKey, FilterSnapshot, FilterStep};
pub use hot::HotPlace;
pub use io::*;
pub use sample::{Nanos, Sample};
pub use shard::Shard;
pub use stats::{CatchUpCounts, CatchUpWanted, ResyncCounts, ShardStats, SubscriptionCounts, SyncState};
