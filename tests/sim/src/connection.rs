//! A connection between a Gateway and a shard: streams that each keep their order, and break all at once.

use std::collections::VecDeque;

use bytes::BytesMut;
use shards::ConnectionId;
use streamer_gateway::core::SessionId;
use wire::{Ack, Decoder, Delivery, ErrorCode, Reply, Request};

/// Deliveries on the wire at most: beyond it the stream takes no more, as flow control does.
const DELIVERIES_MAX: usize = 16;

pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) gateway: usize,
    pub(crate) session: SessionId,
    pub(crate) shard: usize,
    pub(crate) requests: VecDeque<Request>,
    /// Only the latest ack matters; it overtakes an older one.
    pub(crate) ack: Option<Ack>,
    pub(crate) replies: VecDeque<Reply>,
    pub(crate) deliveries: VecDeque<Delivery>,
    decoder: Decoder<Delivery>,
    /// The shard has something to fill.
    pub(crate) ready: bool,
    /// The shard closes it, once what was put out before has been taken.
    pub(crate) closing: Option<(ErrorCode, String)>,
    pub(crate) greeted: bool,
}

impl Connection {
    pub(crate) fn new(id: ConnectionId, gateway: usize, session: SessionId, shard: usize) -> Self {
        Self {
            id,
            gateway,
            session,
            shard,
            requests: VecDeque::new(),
            ack: None,
            replies: VecDeque::new(),
            deliveries: VecDeque::new(),
            decoder: Decoder::new(wire::MAX_BODY_BYTES),
            ready: false,
            closing: None,
            greeted: false,
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.deliveries.len() < DELIVERIES_MAX
    }

    /// Puts encoded deliveries on the wire.
    pub(crate) fn send(&mut self, bytes: BytesMut) {
        self.decoder.push(bytes.freeze());
        while let Some(delivery) = self.decoder.next().expect("a shard keeps to the protocol") {
            self.deliveries.push_back(delivery);
        }
        assert!(self.decoder.is_between_messages(), "a shard fills whole messages");
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.requests.is_empty()
            && self.ack.is_none()
            && self.replies.is_empty()
            && self.deliveries.is_empty()
            && !self.ready
    }
}
