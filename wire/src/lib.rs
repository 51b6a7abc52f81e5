//! The protocol between Streamer and its Gateways: messages, their encoding, and the hash that tells which shard owns what.

mod message;
mod position;
mod slot;

pub use message::*;
pub use position::{BackendId, BadPosition, EventId, Lineage, Position, Positions};
pub use slot::{PlaceHash, SLOTS, SlotTable};
