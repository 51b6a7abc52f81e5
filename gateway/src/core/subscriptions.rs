//! The subscriptions of this Gateway and how far each has come.
//!
//! Invariants:
//! - `adopted` is never ahead of `handed`: what is done was handed first.
//! - A [`SubscriptionRef`] never comes to mean another subscription: places are used again, generations are not.
//! - Of one key at most two subscriptions exist that the node may know of: one that is being removed (`condemned`), and the
//!   one that follows it, which is not presented before the other is gone. So a handle bound to a key by the shard that owns it is never
//!   ambiguous. Another shard may know an older self of it, from a process of this Gateway before: that is nobody's, and is ended.

use std::{collections::HashMap, sync::Arc};

use wire::{Positions, SubscribeItem, SubscriptionKey};

use super::{
    SessionId,
    fifo::Fate,
    session::{Floor, Session},
    verify::Verifier,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SubscriptionRef {
    place: u32,
    generation: u32,
}

impl SubscriptionRef {
    /// Never given out, and so never found.
    pub(super) const NOBODY: Self = Self { place: u32::MAX, generation: u32::MAX };
}

/// How far a subscription has got with its shard's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not yet presented, because its shard is away or its key is still being freed.
    Idle,
    /// Waits for its place in a request.
    Queued,
    Sent,
    Accepted,
}

#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) key: Arc<SubscriptionKey>,
    /// `None` for what was registered over HTTP: it is never presented, the node binds it by itself.
    pub(super) item: Option<Arc<SubscribeItem>>,
    /// The shard that owns its collection, as far as is known.
    pub(super) owner: u16,
    pub(super) phase: Phase,
    /// Whether the node that is there now may have heard of it.
    pub(super) ever_sent: bool,
    /// Whether it was last presented after its shard was told that all had been.
    pub(super) late: bool,
    /// Whether a node has accepted it since it was made.
    pub(super) ever_accepted: bool,
    /// The session that it was presented to or bound in.
    pub(super) session: Option<SessionId>,
    /// Whether a handle stands for it in that session.
    pub(super) bound: bool,
    /// The handle may be an older self's, of a process before or by HTTP: the shard has not said yet what it makes of this one. What comes
    /// meanwhile is held back.
    pub(super) unclear: bool,
    /// It has been ended though it is wanted, and is to be presented again once what was asked is answered.
    pub(super) asks_again: bool,
    /// What it lacks comes from the source's history: the heartbeats of its session are not about it.
    pub(super) catching_up: bool,
    /// To be removed at the node; nothing of it is handed out any more.
    pub(super) condemned: bool,
    /// Its end was told by the node. What came before the end is still handed out.
    pub(super) ended: bool,
    /// Times it was sent on to another shard since it was last accepted.
    pub(super) redirects: u8,
    /// Up to here everything is in the queue or was.
    pub(super) handed: Positions,
    /// Heartbeats of its session after this version tell more of `handed`.
    pub(super) handed_version: u64,
    /// Up to here the application is done.
    pub(super) adopted: Positions,
    /// Heartbeats of its session after this version tell more of `adopted`.
    pub(super) adopted_version: u64,
    /// For changes that came unverified. Compiled when the first of them comes.
    pub(super) verifier: Option<Verifier>,
}

impl Subscription {
    pub(super) fn new(key: Arc<SubscriptionKey>, item: Option<Arc<SubscribeItem>>, positions: Positions) -> Self {
        Self {
            key,
            item,
            owner: 0,
            phase: Phase::Idle,
            ever_sent: false,
            late: false,
            ever_accepted: false,
            session: None,
            bound: false,
            unclear: false,
            asks_again: false,
            catching_up: false,
            condemned: false,
            ended: false,
            redirects: 0,
            handed: positions.clone(),
            handed_version: 0,
            adopted: positions,
            adopted_version: 0,
            verifier: None,
        }
    }

    /// Where the application is, with what the heartbeats of its session add.
    pub(super) fn adopted_with(&self, floor: Option<&Floor>) -> Positions {
        joined(&self.adopted, self.adopted_version, floor)
    }

    pub(super) fn handed_with(&self, floor: Option<&Floor>) -> Positions {
        joined(&self.handed, self.handed_version, floor)
    }

    /// Keeps what the heartbeats of its session said, and stops looking at them.
    pub(super) fn leave_session(&mut self, session: &Session, floor_version: u64) {
        self.keep_floors(session, floor_version);
        self.session = None;
        self.bound = false;
        self.catching_up = false;
        self.asks_again = false;
        self.phase = Phase::Idle;
        self.redirects = 0;
    }

    /// Keeps what the heartbeats up to this version said. Those that follow are looked at again.
    pub(super) fn keep_floors(&mut self, session: &Session, floor_version: u64) {
        // Before it is bound, a session's heartbeats are none of its business.
        if self.bound {
            self.handed = self.handed_with(Some(&session.handed_floor));
            self.adopted = self.adopted_with(Some(&session.adopted_floor));
        }
        self.handed_version = floor_version;
        self.adopted_version = floor_version;
    }

    /// Where nothing is known of a backend, its history begins at `live_from`.
    pub(super) fn begin_at(&mut self, live_from: &Positions) {
        for position in live_from.iter() {
            if self.handed.get(position.backend).is_none() {
                self.handed.set(*position);
            }
            if self.adopted.get(position.backend).is_none() {
                self.adopted.set(*position);
            }
        }
    }

    /// Whether there are changes between what was handed and `live_from`.
    pub(super) fn is_broken_at(&self, live_from: &Positions) -> bool {
        live_from.iter().any(|live| self.handed.get(live.backend).is_some_and(|have| !live.is_covered_by(have)))
    }
}

/// In the place of a heartbeat's version: no heartbeat tells more.
pub(super) const NO_FLOORS: u64 = u64::MAX;

fn joined(own: &Positions, version: u64, floor: Option<&Floor>) -> Positions {
    let mut positions = own.clone();
    if let Some(floor) = floor.filter(|floor| floor.version > version) {
        floor.positions.iter().for_each(|position| positions.advance(*position));
    }
    positions
}

/// Both subscriptions that a key may stand for.
#[derive(Debug, Default)]
struct Holders {
    current: Option<SubscriptionRef>,
    condemned: Option<SubscriptionRef>,
}

#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    places: Vec<(u32, Option<Subscription>)>,
    free: Vec<u32>,
    /// Only ever looked up, never walked: its order is nobody's business.
    keys: HashMap<Arc<SubscriptionKey>, Holders>,
}

impl Subscriptions {
    /// Adds it as the current one of its key.
    pub(super) fn insert(&mut self, subscription: Subscription) -> SubscriptionRef {
        let key = subscription.key.clone();
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            u32::try_from(self.places.len() - 1).expect("four thousand million subscriptions don't fit into memory")
        });
        let (generation, slot) = &mut self.places[place as usize];
        *slot = Some(subscription);
        let reference = SubscriptionRef { place, generation: *generation };
        self.keys.entry(key).or_default().current = Some(reference);
        reference
    }

    pub(super) fn get(&self, reference: SubscriptionRef) -> Option<&Subscription> {
        let (generation, slot) = self.places.get(reference.place as usize)?;
        slot.as_ref().filter(|_| *generation == reference.generation)
    }

    pub(super) fn get_mut(&mut self, reference: SubscriptionRef) -> Option<&mut Subscription> {
        let (generation, slot) = self.places.get_mut(reference.place as usize)?;
        slot.as_mut().filter(|_| *generation == reference.generation)
    }

    pub(super) fn current(&self, key: &SubscriptionKey) -> Option<SubscriptionRef> {
        self.keys.get(key)?.current
    }

    /// The one of this key that is being removed.
    pub(super) fn condemned(&self, key: &SubscriptionKey) -> Option<SubscriptionRef> {
        self.keys.get(key)?.condemned
    }

    /// From here on it only exists to be removed at the node.
    pub(super) fn condemn(&mut self, reference: SubscriptionRef) {
        let Some(subscription) = self.get_mut(reference) else { return };
        subscription.condemned = true;
        let key = subscription.key.clone();
        let holders = self.keys.entry(key).or_default();
        debug_assert!(holders.condemned.is_none(), "the one that follows a condemned one was never presented");
        holders.condemned = Some(reference);
        if holders.current == Some(reference) {
            holders.current = None;
        }
    }

    /// The key no longer stands for it, but what is queued of it still counts.
    pub(super) fn release_key(&mut self, reference: SubscriptionRef) {
        let Some(key) = self.get(reference).map(|subscription| subscription.key.clone()) else { return };
        if let Some(holders) = self.keys.get_mut(&key) {
            for holder in [&mut holders.current, &mut holders.condemned] {
                if *holder == Some(reference) {
                    *holder = None;
                }
            }
            if holders.current.is_none() && holders.condemned.is_none() {
                self.keys.remove(&key);
            }
        }
    }

    pub(super) fn remove(&mut self, reference: SubscriptionRef) -> Option<Subscription> {
        self.get(reference)?;
        self.release_key(reference);
        let (generation, slot) = &mut self.places[reference.place as usize];
        *generation = generation.wrapping_add(1);
        self.free.push(reference.place);
        slot.take()
    }

    /// Whether the application still wants to see something of it.
    pub(super) fn is_wanted(&self, reference: SubscriptionRef) -> bool {
        self.get(reference).is_some_and(|subscription| !subscription.condemned)
    }

    /// Whether something of it may be given to the application now.
    pub(super) fn fate(&self, reference: SubscriptionRef) -> Fate {
        match self.get(reference).filter(|subscription| !subscription.condemned) {
            Some(subscription) if subscription.unclear => Fate::HeldBack,
            Some(_) => Fate::Wanted,
            None => Fate::Unwanted,
        }
    }

    /// All of them, in an order that depends on nothing but what was done before.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SubscriptionRef, &Subscription)> {
        self.places.iter().enumerate().filter_map(|(place, (generation, slot))| {
            // Places are handed out as u32.
            Some((SubscriptionRef { place: place as u32, generation: *generation }, slot.as_ref()?))
        })
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (SubscriptionRef, &mut Subscription)> {
        self.places.iter_mut().enumerate().filter_map(|(place, (generation, slot))| {
            Some((SubscriptionRef { place: place as u32, generation: *generation }, slot.as_mut()?))
        })
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}
