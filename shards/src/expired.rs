//! Subscriptions whose time ran out, remembered so that a renewal is told that it came too late.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use wire::SubscriptionKey;

type Name = (Arc<str>, SubscriptionKey);

#[derive(Debug)]
pub(crate) struct Expired {
    names: BTreeSet<Name>,
    order: VecDeque<Name>,
    remembered_max: usize,
}

impl Expired {
    pub(crate) fn new(remembered_max: usize) -> Self {
        Self { names: BTreeSet::new(), order: VecDeque::new(), remembered_max }
    }

    pub(crate) fn remember(&mut self, gateway: Arc<str>, key: SubscriptionKey) {
        let name = (gateway, key);
        if self.remembered_max == 0 || !self.names.insert(name.clone()) {
            return;
        }
        self.order.push_back(name);
        if self.order.len() > self.remembered_max
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
    }

    pub(crate) fn has(&self, gateway: &str, key: &SubscriptionKey) -> bool {
        self.names.contains(&(Arc::from(gateway), key.clone()))
    }
}
