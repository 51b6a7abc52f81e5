//! The SDK that a Gateway embeds: it subscribes to Streamer, receives the changes that match, and keeps their positions.
//!
//! ```no_run
//! use streamer_gateway::{AppEvent, Gateway, Subscription};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mut gateway = Gateway::builder()
//!     .address("127.0.0.1:7400")
//!     .gateway("edge-1")
//!     .token(std::env::var("STREAMER_TOKEN")?)
//!     .fingerprint(std::env::var("STREAMER_FINGERPRINT")?)
//!     .connect()
//!     .await?;
//! gateway.subscribe(Subscription::new("acme", "users").filter("age", ">=", 18))?;
//! while let Some(event) = gateway.next().await {
//!     match &event.what {
//!         AppEvent::Change(change) => println!("{:?} {:?}", change.transition(), change.flat()),
//!         AppEvent::Resync { subscription, .. } => println!("read {} anew", subscription.id),
//!         other => println!("{other:?}"),
//!     }
//! }
//! println!("ended: {:?}", gateway.error());
//! # Ok(())
//! # }
//! ```
//!
//! # What you can rely on
//! - **Every matching change after a subscription's start**, in the source's order, across lost connections and restarts of
//!   the node. Where that can't be, [`AppEvent::Gap`] or [`AppEvent::Resync`] says so, per subscription.
//! - **Once**: what a subscription has had is dropped by its position, without a memory of ids. After a restart of the
//!   application: nothing at or below the positions that it kept.
//! - **Done means done.** An item is done when the next one is asked for (with [`Gateway::next_many`]: when more are), or with [`GatewayBuilder::manual_ack`] when
//!   [`Event::ack`] says so. The node keeps what is not done, and [`GatewayHandle::positions`] never runs ahead of it.
//! - **A slow application slows only itself**: what waits is bounded, and beyond that the shard is not read from. Requests
//!   and acks go on meanwhile.
//!
//! # Many changes a second
//! [`Gateway::next_many`] gives what is there at once, and costs a fraction of as many [`Gateway::next`]. A [`Change`] shares the message that it came in
//! with up to a hundred others: to keep one for long, keep what [`Change::detached`] gives.
//!
//! # Going on after a restart
//! Keep [`GatewayHandle::positions`] with what you made of the changes, and give it to [`GatewayBuilder::resume_from`].
//!
//! # Two layers
//! [`core`] is the protocol as a state machine without IO, for simulators and for other runtimes. [`Gateway`] runs it on tokio
//! and quinn.

mod builder;
pub mod core;
mod error;
mod gateway;
mod net;
mod saved;
mod subscription;

pub use builder::GatewayBuilder;
pub use core::{AppEvent, Change, Counters, ShardStatus, Status, TerminalError, Token};
pub use error::Error;
pub use gateway::{Event, Gateway, GatewayHandle};
pub use saved::SavedPositions;
pub use subscription::Subscription;
pub use wire::{
    BackendId, Certainty, CloseReason, ErrorCode, EventId, GapReason, Lineage, Operation, Position, Positions,
    ResyncReason, SubscriptionKey, Transition,
};
