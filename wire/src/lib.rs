//! The protocol between Streamer and its Gateways: messages, their encoding, and the hash that tells which shard owns what.

pub mod batch;
mod body;
mod codec;
mod events;
mod message;
mod position;
mod slot;

pub use batch::{EventBody, EventEntryRef, EventsEncoder, begin_events};
pub use body::{MAX_BACKENDS, Message};
pub use codec::{
    Decoder, HEADER_BYTES, MAX_BODY_BYTES, MAX_FRAME_BODY_BYTES, MAX_HELLO_BODY_BYTES, MORE, WireError, encode_ack,
    encode_delivery, encode_reply, encode_request,
};
pub use events::Events;
pub use message::*;
pub use position::{BackendId, BadPosition, EventId, Lineage, Position, Positions};
pub use slot::{PlaceHash, SLOTS, SlotTable};

/// Longest UDP payload, in bytes, that a shard looks for a path to carry, and that our SDK says it takes. It fits into the 9,000 bytes of jumbo frames,
/// and into loopback; where a path carries less, QUIC finds that out. Ten of it, as many as quinn sends with one call, stay below the 65,507 bytes that
/// a call may have: beyond that the kernel refuses them, and quinn takes them for lost on the way.
pub const UDP_PAYLOAD_MAX: u16 = 6_500;
