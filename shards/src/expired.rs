//! Subscriptions whose time ran out, remembered so that a renewal is told that it came too late.
//!
//! What is remembered is a hash: two names that share one would be told "expired" where "not found" is right, which is as good as
//! never and does no harm.

use std::collections::VecDeque;

use hashbrown::HashSet;
use wire::SubscriptionKey;
use xxhash_rust::xxh3::xxh3_64_with_seed;

#[derive(Debug)]
pub(crate) struct Expired {
    names: HashSet<u64>,
    order: VecDeque<u64>,
    remembered_max: usize,
    seed: u64,
}

impl Expired {
    pub(crate) fn new(remembered_max: usize, seed: u64) -> Self {
        Self { names: HashSet::new(), order: VecDeque::new(), remembered_max, seed }
    }

    pub(crate) fn remember(&mut self, gateway: &str, key: &SubscriptionKey) {
        let name = self.hash(gateway, key);
        if self.remembered_max == 0 || !self.names.insert(name) {
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
        self.names.contains(&self.hash(gateway, key))
    }

    fn hash(&self, gateway: &str, key: &SubscriptionKey) -> u64 {
        [gateway, &key.tenant, &key.id].iter().fold(self.seed, |hash, text| xxh3_64_with_seed(text.as_bytes(), hash))
    }
}
