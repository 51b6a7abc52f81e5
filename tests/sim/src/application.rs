//! What is behind a Gateway: takes items, persists positions, and keeps what it has got for the reckoning.

use std::collections::{BTreeMap, HashMap, VecDeque};

use streamer_gateway::core::{AppEvent, CoreConfig, GatewayCore, Input, Millis, Token};
use wire::{Position, Positions, ResyncReason, SubscribeItem, SubscriptionKey, Transition};

/// What an application has made of one subscription's items.
#[derive(Clone, Default)]
struct Knowledge {
    /// Where it begins: after the first `Live`, or the last `Resync`.
    base: Option<Positions>,
    changes: Vec<(Position, Transition)>,
}

impl Knowledge {
    fn take(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Begin(live_from) => {
                self.base.get_or_insert(live_from);
            }
            Effect::Change(id, transition) => self.changes.push((id, transition)),
            Effect::StartOver(live_from) => *self = Self { base: Some(live_from), changes: Vec::new() },
        }
    }
}

#[derive(Clone)]
enum Effect {
    None,
    Begin(Positions),
    Change(Position, Transition),
    StartOver(Positions),
}

#[derive(Clone, Default)]
struct Subscription {
    now: Knowledge,
    /// The same as of the last item up to which everything is done, with the positions that go with it.
    persisted: Knowledge,
    positions: Option<Positions>,
}

/// An item that the application was given and that isn't persisted yet.
struct Held {
    token: Token,
    key: SubscriptionKey,
    effect: Effect,
    done: bool,
}

pub(crate) struct Application {
    pub(crate) name: String,
    pub(crate) core: GatewayCore,
    items: BTreeMap<SubscriptionKey, SubscribeItem>,
    subscriptions: HashMap<SubscriptionKey, Subscription>,
    /// In the order in which they were given.
    held: VecDeque<Held>,
    pub(crate) changes: u64,
    pub(crate) duplicates_dropped: u64,
    pub(crate) resyncs: BTreeMap<String, u64>,
    restarts: u64,
    seed: u64,
    /// Persists what it was given before it is done with it.
    early: bool,
}

impl Application {
    pub(crate) fn new(name: String, seed: u64, address: &str, early: bool, now: Millis) -> Self {
        let core = core(&name, seed, address, now);
        Self {
            name,
            core,
            items: BTreeMap::new(),
            subscriptions: HashMap::new(),
            held: VecDeque::new(),
            changes: 0,
            duplicates_dropped: 0,
            resyncs: BTreeMap::new(),
            restarts: 0,
            seed,
            early,
        }
    }

    pub(crate) fn subscribe(&mut self, item: SubscribeItem, now: Millis) {
        self.subscriptions.insert(item.key.clone(), Subscription::default());
        self.items.insert(item.key.clone(), item.clone());
        self.core.handle(Input::Subscribe(item), now);
    }

    pub(crate) fn unsubscribe(&mut self, key: &SubscriptionKey, now: Millis) {
        self.items.remove(key);
        self.subscriptions.remove(key);
        self.core.handle(Input::Unsubscribe(key.clone()), now);
    }

    /// Takes the next item, if there is one. Panics when it breaks a promise.
    pub(crate) fn take(&mut self) -> bool {
        let Some((token, event)) = self.core.next_event() else { return false };
        let key = event.subscription().clone();
        let mut effect = Effect::None;
        if let Some(subscription) = self.subscriptions.get_mut(&key) {
            let name = &self.name;
            let known = &mut subscription.now;
            effect = match event {
                AppEvent::Live { live_from, .. } => Effect::Begin(live_from),
                AppEvent::Change(change) => {
                    let id = change.id();
                    let base = known.base.as_ref().unwrap_or_else(|| panic!("{name} {key:?}: a change before Live"));
                    assert!(!base.covers(&id), "{name} {key:?}: {id} is not after its base");
                    if let Some((last, _)) = known.changes.last() {
                        assert!(last.order() < id.order(), "{name} {key:?}: {id} after {last}");
                    }
                    self.changes += 1;
                    if self.early {
                        subscription.positions.get_or_insert_default().advance(id);
                    }
                    Effect::Change(id, change.transition())
                }
                AppEvent::Resync { reason, live_from, .. } => {
                    assert_ne!(reason, ResyncReason::LineageChanged, "there is only one lineage");
                    *self.resyncs.entry(format!("{reason:?}")).or_default() += 1;
                    Effect::StartOver(live_from)
                }
                AppEvent::CatchingUp { .. } | AppEvent::CaughtUp { .. } => Effect::None,
                other => panic!("{name} {key:?}: unexpected {other:?}"),
            };
            known.take(effect.clone());
        }
        self.held.push_back(Held { token, key, effect, done: false });
        true
    }

    /// Items that it holds without being done with them.
    pub(crate) fn holds(&self) -> usize {
        self.held.iter().filter(|held| !held.done).count()
    }

    /// Is done with the `index`-th of the items that it holds, and persists what that completes.
    pub(crate) fn finish(&mut self, index: usize, now: Millis) {
        let Some(held) = self.held.iter_mut().filter(|held| !held.done).nth(index) else { return };
        held.done = true;
        self.core.handle(Input::Done(held.token), now);
        while self.held.front().is_some_and(|held| held.done)
            && let Some(held) = self.held.pop_front()
        {
            if let Some(subscription) = self.subscriptions.get_mut(&held.key) {
                subscription.persisted.take(held.effect);
                if let Some(positions) = self.core.positions(&held.key).filter(|positions| !positions.is_empty()) {
                    subscription.positions = Some(positions);
                }
            }
        }
    }

    /// The process dies and a new one takes its place, with what was persisted.
    pub(crate) fn crash(&mut self, address: &str, now: Millis) {
        self.restarts += 1;
        self.duplicates_dropped += self.core.status().counters.duplicates_dropped;
        self.core = core(&self.name, self.seed + self.restarts, address, now);
        self.held.clear();
        for (key, item) in &self.items {
            let subscription = self.subscriptions.entry(key.clone()).or_default();
            subscription.now = subscription.persisted.clone();
            let positions = subscription.positions.clone().unwrap_or_default();
            self.core.handle(Input::Subscribe(SubscribeItem { positions, ..item.clone() }), now);
        }
    }

    pub(crate) fn base(&self, key: &SubscriptionKey) -> Option<Positions> {
        self.subscriptions.get(key)?.now.base.clone()
    }

    pub(crate) fn all_changes(&self) -> impl Iterator<Item = (&SubscriptionKey, &[(Position, Transition)])> {
        self.subscriptions.iter().map(|(key, subscription)| (key, &subscription.now.changes[..]))
    }

    /// Positions up to which it has persisted everything, of each subscription that has begun.
    pub(crate) fn persisted(&self) -> impl Iterator<Item = (&SubscriptionKey, &Positions, &Positions)> {
        self.subscriptions.iter().filter_map(|(key, subscription)| {
            Some((key, subscription.persisted.base.as_ref()?, subscription.positions.as_ref()?))
        })
    }

    pub(crate) fn is_all_live(&self) -> bool {
        self.items.keys().all(|key| self.core.is_live(key))
    }
}

fn core(name: &str, seed: u64, address: &str, now: Millis) -> GatewayCore {
    let config = CoreConfig {
        gateway: name.to_owned(),
        token: String::new(),
        agent: "sim".into(),
        addresses: vec![address.to_owned()],
        can_verify: true,
        queue_bytes_max: 64 * 1024,
        jitter_seed: seed,
    };
    GatewayCore::new(config, now)
}
