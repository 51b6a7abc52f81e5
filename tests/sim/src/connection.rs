//! A connection between a Gateway and a shard: streams that each keep their order, and break all at once.

use std::collections::{HashMap, VecDeque};

use bytes::BytesMut;
use shards::ConnectionId;
use streamer_gateway::core::SessionId;
use wire::{Ack, Decoder, Delivery, ErrorCode, EventEntry, Handle, Operation, Reply, Request, SubscriptionKey};

use crate::{Broken, expected::Order};

/// Deliveries on the wire at most: beyond it the stream takes no more, as flow control does.
const DELIVERIES_MAX: usize = 16;

/// A connection that carries nothing any more: when each end finds out. `None` once it has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    pub(crate) shard_at: Option<u64>,
    pub(crate) gateway_at: Option<u64>,
}

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
    pub(crate) cut: Option<Cut>,
    /// Up to where the node had read when the session was greeted; `None` before.
    pub(crate) since: Option<Order>,
    /// Whether it was sent anything from before that.
    pub(crate) replayed: bool,
    /// The highest `seq` that was put on the wire.
    sent: u64,
    /// What the shard was told last.
    pub(crate) acked: Ack,

    broken: Option<Broken>,
    /// Where a rule is broken: what was bound, the numbers that stand for others, and the last ack of the session before.
    pub(crate) bound: HashMap<Handle, SubscriptionKey>,
    renamed: HashMap<Handle, Handle>,
    pub(crate) inherited: Option<Ack>,
}

impl Connection {
    pub(crate) fn new(
        id: ConnectionId,
        gateway: usize,
        session: SessionId,
        shard: usize,
        broken: Option<Broken>,
    ) -> Self {
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
            cut: None,
            since: None,
            replayed: false,
            sent: 0,
            acked: Ack::default(),
            broken,
            bound: HashMap::new(),
            renamed: HashMap::new(),
            inherited: None,
        }
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.cut.is_none()
    }

    /// Whether the Gateway still takes it for one.
    pub(crate) fn has_gateway(&self) -> bool {
        self.cut.is_none_or(|cut| cut.gateway_at.is_some())
    }

    /// Whether the shard still takes it for one.
    pub(crate) fn has_shard(&self) -> bool {
        self.cut.is_none_or(|cut| cut.shard_at.is_some())
    }

    pub(crate) fn has_room(&self) -> bool {
        self.deliveries.len() < DELIVERIES_MAX
    }

    /// Puts encoded deliveries on the wire.
    pub(crate) fn send(&mut self, bytes: BytesMut) {
        self.decoder.push(bytes.freeze());
        while let Some(mut delivery) = self.decoder.next().expect("a shard keeps to the protocol") {
            match &delivery {
                Delivery::Events(events) => {
                    let since = self.since.unwrap_or_default();
                    self.replayed |= events.iter().any(|entry| entry.id.order() <= since);
                    self.sent = events.iter().next_back().map_or(self.sent, |entry| entry.seq);
                }
                Delivery::Gap { seq, .. } | Delivery::Resync { seq, .. } => self.sent = *seq,
                _ => {}
            }
            if self.broken.is_some() {
                delivery = self.break_rule(delivery);
            }
            self.deliveries.push_back(delivery);
        }
        assert!(self.decoder.is_between_messages(), "a shard fills whole messages");
    }

    /// What is sent in its place, where a rule is broken that concerns it.
    fn break_rule(&mut self, mut delivery: Delivery) -> Delivery {
        match (&mut delivery, self.broken) {
            (Delivery::Bound(bound), Some(Broken::HandleReusedAcrossTenants)) => {
                let another = self.bound.iter().find(|(_, key)| key.tenant != bound.key.tenant);
                if let Some((handle, _)) = another.filter(|_| bound.handle.0 % 8 == 5) {
                    self.renamed.insert(bound.handle, *handle);
                    bound.handle = *handle;
                }
                self.bound.insert(bound.handle, bound.key.clone());
            }
            (Delivery::Events(events), Some(Broken::HandleReusedAcrossTenants)) => {
                let mut entries = Vec::from(std::mem::take(events));
                for target in entries.iter_mut().flat_map(|entry| &mut entry.targets) {
                    target.handle = self.renamed.get(&target.handle).copied().unwrap_or(target.handle);
                }
                *events = entries.into();
            }
            (Delivery::Bound(bound), Some(Broken::PositionCheckOff)) => {
                self.bound.insert(bound.handle, bound.key.clone());
            }
            (Delivery::CatchingUp { handles }, Some(Broken::CatchingUpUntold)) => handles.clear(),
            (Delivery::Gap { seq, position, .. }, Some(Broken::GapForgotten))
                if Some(position.order()) <= self.since =>
            {
                let nobodys = EventEntry {
                    seq: *seq,
                    id: *position,
                    operation: Operation::Update,
                    tenant: String::new(),
                    collection: String::new(),
                    document_id: Vec::new(),
                    targets: Vec::new(),
                    document: Vec::new(),
                };
                return Delivery::Events(vec![nobodys].into());
            }
            _ => {}
        }
        delivery
    }

    /// The ack that the shard is to be given now.
    pub(crate) fn take_ack(&mut self) -> Option<Ack> {
        let mut ack = self.ack.take()?;
        if let Some(old) = self.inherited {
            let counts = old.done.min(self.sent);
            ack = Ack { received: ack.received.max(counts), done: ack.done.max(counts) };
        }
        self.acked = ack;
        Some(ack)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.is_whole()
            && self.requests.is_empty()
            && self.ack.is_none()
            && self.replies.is_empty()
            && self.deliveries.iter().all(|one| matches!(one, Delivery::Heartbeat { .. }))
            && !self.ready
    }
}
