//! What drives a node and judges it: generated subscriptions and writes, the oracle that says what each change must lead to,
//! and the ledger that compares that with what was delivered. Used by the demo, the load generator, benches, tests and the
//! simulator alike.
//!
//! Invariants:
//! - Nothing here depends on `predicate` or `shards`: what they get wrong must not be wrong here too.
//! - No clock and no ambient randomness: everything generated follows from a seed.

pub mod events;
pub mod generate;
pub mod hostile;
pub mod latency;
pub mod ledger;
pub mod matching;
pub mod oracle;

pub use events::{EventFactory, EventOptions};
pub use generate::{GeneratedSubscription, Generator, Profile, Write, WriteKind, Writer};
pub use latency::Latency;
pub use ledger::{Delivered, Ledger, Report};
pub use oracle::{Expected, Numbering, Oracle, OracleChange, OracleError, OracleSubscription, Preset};
