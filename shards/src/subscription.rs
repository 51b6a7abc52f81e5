//! What a shard keeps of each subscription, and names for them that stay unique while anything may refer to them.
//!
//! Invariants:
//! - A slot is used again, its stamp isn't: a [`SubId`] of a subscription that has ended never finds another one.
//! - `owed` counts the targets in the log that name the subscription and aren't settled.

use wire::{Handle, Positions, ResyncReason, SubscribeItem, SubscriptionKey};

use crate::{ConnectionId, FilterKey};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SubId {
    pub(crate) slot: u32,
    stamp: u32,
}

#[cfg(test)]
impl SubId {
    pub(crate) fn of_test(slot: u32) -> Self {
        Self { slot, stamp: 0 }
    }
}

/// A Gateway's place in the shard's list of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GatewayId(pub(crate) u32);

#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) gateway: GatewayId,
    pub(crate) key: SubscriptionKey,
    pub(crate) content: Content,
    pub(crate) generation: u32,
    pub(crate) filter_key: FilterKey,
    /// First version of the filter that holds its key.
    pub(crate) filter_version: u64,
    pub(crate) stage: Stage,

    pub(crate) ttl_ms: u64,
    /// Whether a session keeps it alive; else only its own heartbeats over HTTP do.
    pub(crate) by_session: bool,
    /// In the shard's own time. A session of its Gateway may push this further, see `Shard::expires_at`.
    pub(crate) expires_at: u64,

    /// Indexed without a break since.
    pub(crate) live_from: Positions,
    /// The last event for it that has left the log, by backend: from before that, nothing can be replayed.
    pub(crate) tail: Positions,
    /// Events up to here are not for it: its application said that it has them before they were read.
    pub(crate) floor: Positions,
    /// Something that it was owed is gone, and no session has been told yet.
    pub(crate) broken: Option<ResyncReason>,
    pub(crate) owed: u32,
    /// Log entries before this one are not for it any more: a resync stands in their place.
    pub(crate) skip_before: u64,

    pub(crate) binding: Option<Binding>,
    /// The session that presented it.
    pub(crate) presented_in: Option<ConnectionId>,
}

#[derive(Debug)]
pub(crate) enum Stage {
    /// In the index and the filter, and waiting for the ingest thread to route by that. Holds the positions that its Gateway
    /// presented meanwhile.
    Pending {
        presented: Positions,
    },
    Live,
}

/// A handle, valid in one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Binding {
    pub(crate) session: ConnectionId,
    pub(crate) handle: Handle,
    /// Log entries from this one on are sent as they come; older ones only where they were queued for it again.
    pub(crate) from: u64,
    /// A resync waits in the session's queue. Another one before that is sent needs no second.
    pub(crate) resync_queued: bool,
}

/// What must be equal for a registration to be a renewal. Filters and expression are compared as they are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    collection: Box<str>,
    filters: Box<str>,
    expr: Box<str>,
    pub(crate) transitions: bool,
    group: Option<Box<str>>,
    lossy: bool,
}

impl Content {
    pub(crate) fn of(item: &SubscribeItem) -> Self {
        Self {
            collection: item.collection.as_str().into(),
            filters: item.filters.as_str().into(),
            expr: item.expr.as_str().into(),
            transitions: item.transitions,
            group: item.group.as_deref().map(Box::from),
            lossy: item.lossy,
        }
    }

    pub(crate) fn is_of(&self, item: &SubscribeItem) -> bool {
        *self.collection == *item.collection
            && *self.filters == *item.filters
            && *self.expr == *item.expr
            && self.transitions == item.transitions
            && self.group.as_deref() == item.group.as_deref()
            && self.lossy == item.lossy
    }
}

impl Subscription {
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.stage, Stage::Live)
    }

    /// Its handle, if it is bound in this session.
    pub(crate) fn bound_in(&self, session: ConnectionId) -> Option<&Binding> {
        self.binding.as_ref().filter(|binding| binding.session == session)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    slots: Vec<Slot>,
    free: Vec<u32>,
    len: usize,
}

#[derive(Debug, Default)]
struct Slot {
    stamp: u32,
    subscription: Option<Box<Subscription>>,
}

impl Subscriptions {
    pub(crate) fn insert(&mut self, subscription: Subscription) -> SubId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let place = &mut self.slots[slot as usize];
        debug_assert!(place.subscription.is_none(), "slot {slot} is free and taken");
        place.subscription = Some(Box::new(subscription));
        self.len += 1;
        SubId { slot, stamp: place.stamp }
    }

    pub(crate) fn remove(&mut self, id: SubId) -> Option<Subscription> {
        let place = self.slots.get_mut(id.slot as usize).filter(|place| place.stamp == id.stamp)?;
        let subscription = place.subscription.take()?;
        self.len -= 1;
        // A slot whose stamps are used up stays empty for good.
        if let Some(stamp) = place.stamp.checked_add(1) {
            place.stamp = stamp;
            self.free.push(id.slot);
        }
        Some(*subscription)
    }

    pub(crate) fn get(&self, id: SubId) -> Option<&Subscription> {
        self.slots.get(id.slot as usize).filter(|place| place.stamp == id.stamp)?.subscription.as_deref()
    }

    pub(crate) fn get_mut(&mut self, id: SubId) -> Option<&mut Subscription> {
        self.slots.get_mut(id.slot as usize).filter(|place| place.stamp == id.stamp)?.subscription.as_deref_mut()
    }

    /// Who is at this slot now.
    pub(crate) fn at(&self, slot: u32) -> Option<(SubId, &Subscription)> {
        let place = self.slots.get(slot as usize)?;
        Some((SubId { slot, stamp: place.stamp }, place.subscription.as_deref()?))
    }

    /// All of them, in the order of their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SubId, &Subscription)> {
        (0..self.slots.len() as u32).filter_map(|slot| self.at(slot))
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription() -> Subscription {
        Subscription {
            gateway: GatewayId(0),
            key: SubscriptionKey { tenant: "t".into(), id: "s".into() },
            content: Content {
                collection: "c".into(),
                filters: "".into(),
                expr: "".into(),
                transitions: true,
                group: None,
                lossy: false,
            },
            generation: 1,
            filter_key: FilterKey(0),
            filter_version: 1,
            stage: Stage::Live,
            ttl_ms: 0,
            by_session: true,
            expires_at: 0,
            live_from: Positions::default(),
            tail: Positions::default(),
            floor: Positions::default(),
            broken: None,
            owed: 0,
            skip_before: 0,
            binding: None,
            presented_in: None,
        }
    }

    #[test]
    fn an_old_name_never_finds_the_next_one() {
        let mut all = Subscriptions::default();
        let first = all.insert(subscription());
        all.remove(first).expect("it is there");
        let second = all.insert(subscription());
        assert_eq!(first.slot, second.slot);
        assert!(all.get(first).is_none());
        assert!(all.remove(first).is_none());
        assert!(all.get(second).is_some());
        assert_eq!(all.len(), 1);
    }
}
