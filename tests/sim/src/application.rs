//! What is behind a Gateway: takes items, persists positions, and keeps what it has got for the reckoning.

use std::collections::{BTreeMap, HashMap};

use streamer_gateway::core::{AppEvent, CoreConfig, GatewayCore, Input, Millis, Token};
use wire::{Position, Positions, ResyncReason, SubscribeItem, SubscriptionKey, Transition};

/// One subscription, as its application knows it.
#[derive(Clone, Default)]
struct Had {
    /// Where its knowledge begins: after the first `Live`, or the last `Resync`.
    base: Option<Positions>,
    changes: Vec<(Position, Transition)>,
    persisted: Option<Positions>,
}

pub(crate) struct Application {
    pub(crate) name: String,
    pub(crate) core: GatewayCore,
    items: BTreeMap<SubscriptionKey, SubscribeItem>,
    had: HashMap<SubscriptionKey, Had>,
    /// Items that it holds without being done with them.
    held: Vec<(Token, SubscriptionKey)>,
    pub(crate) changes: u64,
    pub(crate) duplicates_dropped: u64,
    pub(crate) resyncs: BTreeMap<String, u64>,
    restarts: u64,
    seed: u64,
}

impl Application {
    pub(crate) fn new(name: String, seed: u64, address: &str, now: Millis) -> Self {
        let core = core(&name, seed, address, now);
        Self {
            name,
            core,
            items: BTreeMap::new(),
            had: HashMap::new(),
            held: Vec::new(),
            changes: 0,
            duplicates_dropped: 0,
            resyncs: BTreeMap::new(),
            restarts: 0,
            seed,
        }
    }

    pub(crate) fn subscribe(&mut self, item: SubscribeItem, now: Millis) {
        self.had.insert(item.key.clone(), Had::default());
        self.items.insert(item.key.clone(), item.clone());
        self.core.handle(Input::Subscribe(item), now);
    }

    pub(crate) fn unsubscribe(&mut self, key: &SubscriptionKey, now: Millis) {
        self.items.remove(key);
        self.had.remove(key);
        self.core.handle(Input::Unsubscribe(key.clone()), now);
    }

    /// Takes the next item, if there is one. Panics when it breaks a promise.
    pub(crate) fn take(&mut self) -> bool {
        let Some((token, event)) = self.core.next_event() else { return false };
        let key = event.subscription().clone();
        let name = &self.name;
        if let Some(had) = self.had.get_mut(&key) {
            match event {
                AppEvent::Live { live_from, .. } => {
                    had.base.get_or_insert(live_from);
                }
                AppEvent::Change(change) => {
                    let base = had.base.as_ref().unwrap_or_else(|| panic!("{name} {key:?}: a change before Live"));
                    assert!(!base.covers(&change.id()), "{name} {key:?}: {} is not after its base", change.id());
                    if let Some((last, _)) = had.changes.last() {
                        assert!(last.order() < change.id().order(), "{name} {key:?}: {} after {last}", change.id());
                    }
                    had.changes.push((change.id(), change.transition()));
                    self.changes += 1;
                }
                AppEvent::Resync { reason, live_from, .. } => {
                    *self.resyncs.entry(format!("{reason:?}")).or_default() += 1;
                    assert_ne!(reason, ResyncReason::LineageChanged, "there is only one lineage");
                    had.changes.clear();
                    had.base = Some(live_from);
                }
                other => panic!("{name} {key:?}: unexpected {other:?}"),
            }
        }
        self.held.push((token, key));
        true
    }

    pub(crate) fn holds(&self) -> usize {
        self.held.len()
    }

    /// Is done with the `index`-th of the items that it holds, and persists how far that brings their subscription.
    pub(crate) fn finish(&mut self, index: usize, now: Millis) {
        let (token, key) = self.held.remove(index);
        self.core.handle(Input::Done(token), now);
        if let (Some(had), Some(positions)) = (self.had.get_mut(&key), self.core.positions(&key))
            && !positions.is_empty()
        {
            had.persisted = Some(positions);
        }
    }

    /// The process dies and a new one takes its place, with what was persisted.
    pub(crate) fn crash(&mut self, address: &str, now: Millis) {
        self.restarts += 1;
        self.duplicates_dropped += self.core.status().counters.duplicates_dropped;
        self.core = core(&self.name, self.seed + self.restarts, address, now);
        self.held.clear();
        for (key, item) in &self.items {
            let had = self.had.entry(key.clone()).or_default();
            match &had.persisted {
                Some(persisted) => had.changes.retain(|(id, _)| persisted.covers(id)),
                None => *had = Had::default(),
            }
            let positions = had.persisted.clone().unwrap_or_default();
            self.core.handle(Input::Subscribe(SubscribeItem { positions, ..item.clone() }), now);
        }
    }

    pub(crate) fn base(&self, key: &SubscriptionKey) -> Option<Positions> {
        self.had.get(key)?.base.clone()
    }

    pub(crate) fn all_changes(&self) -> impl Iterator<Item = (&SubscriptionKey, &[(Position, Transition)])> {
        self.had.iter().map(|(key, had)| (key, &had.changes[..]))
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
