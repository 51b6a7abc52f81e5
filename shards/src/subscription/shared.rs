//! What many subscriptions have in common, kept once and counted: whose they are, and since when they are live.

use std::sync::Arc;

use wire::Positions;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{GatewayId, split::SplitTable};

/// Things by number, which grow without moving what is there.
#[derive(Debug)]
pub(super) struct Stable<T> {
    chunks: Vec<Vec<T>>,
    vacant: Vec<u32>,
    len: usize,
}

impl<T> Default for Stable<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), vacant: Vec::new(), len: 0 }
    }
}

const CHUNK: usize = 1_024;

impl<T: Default> Stable<T> {
    fn insert(&mut self, thing: T) -> u32 {
        self.len += 1;
        if let Some(number) = self.vacant.pop() {
            self.chunks[number as usize / CHUNK][number as usize % CHUNK] = thing;
            return number;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            // The first one grows as vectors do, so that few things take little.
            self.chunks.push(Vec::with_capacity(if self.chunks.is_empty() { 4 } else { CHUNK }));
        }
        let chunk = self.chunks.len() - 1;
        self.chunks[chunk].push(thing);
        (chunk * CHUNK + self.chunks[chunk].len() - 1) as u32
    }

    fn remove(&mut self, number: u32) -> T {
        let thing = std::mem::take(&mut self.chunks[number as usize / CHUNK][number as usize % CHUNK]);
        self.vacant.push(number);
        self.len -= 1;
        if self.len == 0 {
            *self = Self::default();
        }
        thing
    }

    pub(super) fn get(&self, number: u32) -> &T {
        &self.chunks[number as usize / CHUNK][number as usize % CHUNK]
    }

    fn get_mut(&mut self, number: u32) -> &mut T {
        &mut self.chunks[number as usize / CHUNK][number as usize % CHUNK]
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten()
    }
}

/// A Gateway's subscriptions of one tenant.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) gateway: GatewayId,
    pub(super) tenant: Arc<str>,
    count: u32,
}

impl Default for Owner {
    fn default() -> Self {
        Self { gateway: GatewayId(u32::MAX), tenant: Arc::default(), count: 0 }
    }
}

#[derive(Debug, Default)]
pub(super) struct Owners {
    all: Stable<Owner>,
    lookup: SplitTable,
}

impl Owners {
    pub(super) fn find(&self, seed: u64, gateway: GatewayId, tenant: &str) -> Option<u32> {
        self.lookup.find(hash(seed, gateway, tenant), |number| {
            let owner = self.all.get(*number);
            owner.gateway == gateway && *owner.tenant == *tenant
        })
    }

    /// Counts one more in.
    pub(super) fn enter(&mut self, seed: u64, gateway: GatewayId, tenant: &str) -> u32 {
        let number = self.find(seed, gateway, tenant).unwrap_or_else(|| {
            let number = self.all.insert(Owner { gateway, tenant: tenant.into(), count: 0 });
            let all = &self.all;
            self.lookup.insert(hash(seed, gateway, tenant), number, |number| hash_of(seed, all.get(number)));
            number
        });
        self.all.get_mut(number).count += 1;
        number
    }

    pub(super) fn leave(&mut self, seed: u64, number: u32) {
        let owner = self.all.get_mut(number);
        owner.count -= 1;
        if owner.count == 0 {
            let hash = hash_of(seed, owner);
            let all = &self.all;
            self.lookup.remove(hash, number, |number| hash_of(seed, all.get(number)));
            self.all.remove(number);
        }
    }

    pub(super) fn get(&self, number: u32) -> &Owner {
        self.all.get(number)
    }

    /// Tenants with how many subscriptions a Gateway has of each, in no order; a tenant comes once for each Gateway.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&Arc<str>, u32)> {
        self.all.iter().filter(|owner| owner.count > 0).map(|owner| (&owner.tenant, owner.count))
    }
}

fn hash_of(seed: u64, owner: &Owner) -> u64 {
    hash(seed, owner.gateway, &owner.tenant)
}

fn hash(seed: u64, gateway: GatewayId, tenant: &str) -> u64 {
    xxh3_64_with_seed(tenant.as_bytes(), seed ^ u64::from(gateway.0).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// Positions that subscriptions are live since. Those that go live together share them.
#[derive(Debug, Default)]
pub(super) struct Sinces {
    all: Stable<Since>,
    /// The one that was entered last.
    last: Option<u32>,
}

#[derive(Debug, Default)]
struct Since {
    positions: Positions,
    count: u32,
}

impl Sinces {
    pub(super) fn enter(&mut self, positions: &Positions) -> u32 {
        let number = match self.last.filter(|last| self.all.get(*last).positions == *positions) {
            Some(last) => last,
            None => self.all.insert(Since { positions: positions.clone(), count: 0 }),
        };
        self.last = Some(number);
        self.all.get_mut(number).count += 1;
        number
    }

    pub(super) fn leave(&mut self, number: u32) {
        let since = self.all.get_mut(number);
        since.count -= 1;
        if since.count == 0 {
            self.all.remove(number);
            self.last.take_if(|last| *last == number);
        }
    }

    pub(super) fn get(&self, number: u32) -> &Positions {
        &self.all.get(number).positions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_counted_and_forgotten() {
        let mut owners = Owners::default();
        let (g, h) = (GatewayId(1), GatewayId(2));
        let first = owners.enter(7, g, "t");
        assert_eq!(owners.enter(7, g, "t"), first);
        let other = owners.enter(7, h, "t");
        assert_ne!(other, first);
        assert_eq!(owners.find(7, g, "t"), Some(first));
        assert_eq!(owners.find(7, g, "u"), None);
        let mut counts: Vec<u32> = owners.counts().map(|(_, count)| count).collect();
        counts.sort_unstable();
        assert_eq!(counts, [1, 2]);
        owners.leave(7, first);
        owners.leave(7, first);
        assert_eq!(owners.find(7, g, "t"), None);
        assert_eq!(owners.find(7, h, "t"), Some(other));
    }

    #[test]
    fn equal_positions_are_kept_once() {
        let at = |time| {
            let position = wire::Position { backend: wire::BackendId(1), lineage: wire::Lineage(1), time, k: 1 };
            [position].into_iter().collect::<Positions>()
        };
        let mut sinces = Sinces::default();
        let first = sinces.enter(&at(1));
        assert_eq!(sinces.enter(&at(1)), first);
        let second = sinces.enter(&at(2));
        assert_ne!(second, first);
        sinces.leave(first);
        assert_eq!(*sinces.get(first), at(1));
        sinces.leave(first);
        sinces.leave(second);
        assert_eq!((sinces.all.len, sinces.last), (0, None));
        let again = sinces.enter(&at(3));
        assert_eq!(*sinces.get(again), at(3));
    }
}
