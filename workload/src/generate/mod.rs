//! Subscriptions and writes, from a seed.
//!
//! Invariants:
//! - The same profile yields the same subscriptions, writes and schedule, on every machine: no floats in choices, no hash order.
//! - Subscriptions, documents and schedule draw from streams of their own, so that asking one for more does not shift the others.
//! - No expression compares a number beyond 2^53, a decimal or a binary value: what CEL answers there is not settled by the
//!   interpreter.

mod documents;
mod subscriptions;
#[cfg(test)]
mod tests;
mod writer;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::oracle::Preset;

pub use subscriptions::{GeneratedSubscription, OPS, gateway_name};
pub use writer::{Write, WriteKind, Writer};

/// How large a world is generated, and how its parts are spread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    pub seed: u64,
    /// Under `plain` nothing is deleted softly, and no collection's path has a `/`.
    pub preset: Preset,
    pub tenants: usize,
    /// Collections of each tenant. All tenants have the same names.
    pub collections: usize,
    pub gateways: usize,
    /// Documents of each collection. All collections have the same document ids.
    pub documents: usize,
    /// Whether writes fall on few tenants, collections and documents more often than on the many others.
    pub skewed: bool,
    /// Whether `cel-change` subscriptions are among the generated ones.
    pub reads_change: bool,
}

impl Profile {
    /// Small enough that everything meets everything.
    pub fn test(seed: u64) -> Self {
        Self {
            seed,
            preset: Preset::Syntrix,
            tenants: 3,
            collections: 3,
            gateways: 3,
            documents: 20,
            skewed: true,
            reads_change: true,
        }
    }

    /// Three tenants and two Gateways; with 3,000 subscriptions an event has about four matches.
    pub fn demo(seed: u64) -> Self {
        Self { collections: 100, gateways: 2, documents: 50, ..Self::test(seed) }
    }

    pub fn with_preset(self, preset: Preset) -> Self {
        Self { preset, ..self }
    }

    /// Names that are good in both presets: as a field's value and as a database's name.
    pub fn tenant(&self, index: usize) -> String {
        const NAMES: [&str; 4] = ["acme", "globex", "initech", "umbrella"];
        NAMES.get(index).map_or_else(|| format!("tenant{index}"), |name| (*name).to_owned())
    }

    pub fn collection(&self, index: usize) -> String {
        match (self.preset, index % 3) {
            (Preset::Syntrix, 1) => format!("rooms/room-{index}/messages"),
            _ => format!("orders-{index}"),
        }
    }

    pub fn document_id(&self, index: usize) -> String {
        format!("doc-{index}")
    }
}

/// Makes what a [`Profile`] describes.
#[derive(Clone, Debug)]
pub struct Generator {
    profile: Profile,
}

/// The random streams, by number.
#[derive(Clone, Copy)]
enum Stream {
    Subscriptions = 1,
    Documents = 2,
    Schedule = 3,
}

impl Generator {
    /// # Panics
    /// When the profile has none of something that it must have at least one of.
    pub fn new(profile: Profile) -> Self {
        let Profile { tenants, collections, gateways, documents, .. } = profile;
        for (what, count) in
            [("tenants", tenants), ("collections", collections), ("gateways", gateways), ("documents", documents)]
        {
            assert!(count > 0, "a profile needs at least one of its {what}");
        }
        Self { profile }
    }

    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The first `n` subscriptions: asking for more yields the same ones first. Ops take turns.
    pub fn subscriptions(&self, n: usize) -> Vec<GeneratedSubscription> {
        subscriptions::generate(&self.profile, self.stream(Stream::Subscriptions), n)
    }

    /// A writer at its first write.
    pub fn writer(&self) -> Writer {
        Writer::new(self.profile.clone(), self.stream(Stream::Documents))
    }

    pub fn schedule(&self) -> Schedule {
        Schedule { random: self.stream(Stream::Schedule) }
    }

    fn stream(&self, stream: Stream) -> ChaCha8Rng {
        let mut random = ChaCha8Rng::seed_from_u64(self.profile.seed);
        random.set_stream(stream as u64);
        random
    }
}

/// How writes come: alone or several in one transaction.
#[derive(Clone, Debug)]
pub struct Schedule {
    random: ChaCha8Rng,
}

impl Schedule {
    /// Writes of the next transaction: one in most cases, at most six.
    pub fn transaction(&mut self) -> usize {
        if self.random.random_ratio(1, 8) { self.random.random_range(2..=6) } else { 1 }
    }

    /// For whatever else a test schedules.
    pub fn random(&mut self) -> &mut ChaCha8Rng {
        &mut self.random
    }
}

/// A choice of `0..n` in which, if it is skewed, the i-th comes 1/(i+1) as often as the first.
#[derive(Clone, Debug)]
struct Choice {
    /// Running sums of the weights.
    sums: Vec<u64>,
}

impl Choice {
    fn new(n: usize, skewed: bool) -> Self {
        let weight = |i: usize| if skewed { (1_000_000 / (i as u64 + 1)).max(1) } else { 1 };
        let sums = (0..n)
            .scan(0, |sum, i| {
                *sum += weight(i);
                Some(*sum)
            })
            .collect();
        Self { sums }
    }

    fn draw(&self, random: &mut ChaCha8Rng) -> usize {
        let total = self.sums.last().copied().expect("a choice is made of at least one");
        let at = random.random_range(0..total);
        self.sums.partition_point(|sum| *sum <= at)
    }
}
