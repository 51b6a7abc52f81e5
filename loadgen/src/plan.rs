//! Which subscriptions there are, which events come, and who is to get each: known before anything is sent, so that every delivery
//! can be checked when it arrives, whatever the rate.
//!
//! Events repeat: event number n (from 1) is the one at n modulo [`POOL`] of a pool whose matches were found once. Only what is told
//! by `n` itself differs.

use std::collections::{BTreeSet, HashMap};

use rand::{Rng, SeedableRng, distr::Distribution, distr::weighted::WeightedIndex};
use rand_chacha::ChaCha8Rng;
use streamer_gateway::Subscription;

use crate::profile::{Kind, Profile};

/// Events of a pool.
pub const POOL: usize = 1 << 14;

/// Values of `size`: 0 to one below this.
pub const SIZES: i32 = 1_000;

const KINDS: [&str; 8] = ["created", "edited", "moved", "closed", "opened", "tagged", "liked", "shared"];
const KEYS_OF_A_LIST: u32 = 5;
const BAND: i32 = 10;

#[derive(Debug)]
pub struct Plan {
    pub places: Vec<Place>,
    pub subscriptions: Vec<Planned>,
    pub events: Vec<Event>,
    /// Watched collections, the first of `places`; and how many values `key` has in each.
    collections: u32,
    keys: u32,
}

/// A collection of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub tenant: String,
    pub collection: String,
}

#[derive(Clone, Debug)]
pub struct Planned {
    pub gateway: usize,
    place: u32,
    asks: Asks,
}

#[derive(Clone, Debug)]
enum Asks {
    Key { key: u32 },
    KeyAndSize { key: u32, from: i32 },
    Keys { first: u32, keys: u32 },
    Expression { key: u32, from: i32 },
    Size { from: i32 },
    Everything,
}

#[derive(Clone, Debug)]
pub struct Event {
    /// Index of its place.
    pub place: u32,
    pub key: String,
    pub size: i32,
    pub kind: &'static str,
    /// Numbers of the subscriptions that it matches, in ascending order.
    pub matches: Vec<u32>,
}

impl Plan {
    /// `count` subscriptions dealt out among `gateways`. The same seed gives the same plan, whatever `prefix` tenants have.
    pub fn new(profile: &Profile, count: u32, gateways: usize, seed: u64, prefix: &str) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let places: Vec<Place> = (0..profile.collections)
            .map(|number| Place {
                tenant: format!("{prefix}{}", number % profile.tenants),
                collection: format!("c{number}"),
            })
            .collect();
        let shapes: Vec<Kind> = profile.subscriptions.iter().map(|shape| shape.what).collect();
        let weights = WeightedIndex::new(profile.subscriptions.iter().map(|shape| shape.share));
        let weights = weights.expect("a profile has a shape of a share above 0, and none below");
        let drawn: Vec<Kind> = (0..count).map(|_| shapes[weights.sample(&mut random)]).collect();

        // How many values `key` has decides how many subscriptions an event matches: each subscription on `k` of `keys` values is
        // matched by that share of its collection's events.
        let rates: f64 = drawn.iter().map(|kind| kind.keys() * kind.passes()).sum();
        let fixed: f64 = drawn.iter().filter(|kind| kind.keys() == 0.0).map(|kind| kind.passes()).sum();
        let a_place = f64::from(profile.collections);
        let wanted = (profile.matches - fixed / a_place).max(0.01);
        let keys = ((rates / a_place / wanted).round() as u32).max(KEYS_OF_A_LIST);

        // Round by round over places and keys, so that each key of each place has as many as any other.
        let subscriptions: Vec<Planned> = (0..count)
            .zip(&drawn)
            .map(|(number, kind)| {
                let place = number % profile.collections;
                let key = number / profile.collections % keys;
                let from = random.random_range(0..SIZES / BAND) * BAND;
                let asks = match kind {
                    Kind::Key => Asks::Key { key },
                    Kind::KeyAndSize => Asks::KeyAndSize { key, from },
                    Kind::Keys => Asks::Keys { first: key, keys },
                    Kind::Expression => Asks::Expression { key, from },
                    Kind::Size => Asks::Size { from },
                    Kind::Everything => Asks::Everything,
                };
                Planned { gateway: number as usize % gateways, place, asks }
            })
            .collect();

        let mut all = places;
        all.extend((0..profile.collections).map(|number| Place {
            tenant: format!("{prefix}{}", number % profile.tenants),
            collection: format!("unwatched{number}"),
        }));
        let events = events(profile, &subscriptions, keys, &mut random);
        Self { places: all, subscriptions, events, collections: profile.collections, keys }
    }

    /// The same with `count` more subscriptions that no event matches, each on a key of its own in the same collections.
    pub fn with_idle(mut self, count: u32, gateways: usize) -> Self {
        self.subscriptions.extend((0..count).map(|number| Planned {
            gateway: number as usize % gateways,
            place: number % self.collections,
            asks: Asks::Key { key: self.keys + number / self.collections },
        }));
        self
    }

    /// Each once.
    pub fn tenants(&self) -> BTreeSet<&str> {
        self.places.iter().map(|place| place.tenant.as_str()).collect()
    }

    /// Event number `n`, from 1.
    pub fn event(&self, n: u64) -> &Event {
        &self.events[(n - 1) as usize % self.events.len()]
    }

    /// Whether event `n` is for this subscription.
    pub fn expects(&self, n: u64, subscription: u32) -> bool {
        self.event(n).matches.binary_search(&subscription).is_ok()
    }

    /// Subscriptions that events 1 to `n` match, counted once for each event.
    pub fn deliveries(&self, n: u64) -> u64 {
        let whole: u64 = self.events.iter().map(|event| event.matches.len() as u64).sum();
        let (rounds, rest) = (n / self.events.len() as u64, n as usize % self.events.len());
        let rest: u64 = self.events[..rest].iter().map(|event| event.matches.len() as u64).sum();
        rounds * whole + rest
    }

    /// How often each subscription is matched by events 1 to `n`.
    pub fn expected(&self, n: u64) -> Vec<u64> {
        let (rounds, rest) = (n / self.events.len() as u64, n as usize % self.events.len());
        let mut counts = vec![0; self.subscriptions.len()];
        for (at, event) in self.events.iter().enumerate() {
            let times = rounds + u64::from(at < rest);
            event.matches.iter().for_each(|number| counts[*number as usize] += times);
        }
        counts
    }

    /// A subscription as the SDK takes it; its id is its number.
    pub fn to_sdk(&self, number: u32) -> Subscription {
        let Planned { place, asks, .. } = &self.subscriptions[number as usize];
        let Place { tenant, collection } = &self.places[*place as usize];
        let subscription = Subscription::new(tenant, collection).id(number.to_string()).transitions(false);
        match asks {
            Asks::Key { key } => subscription.filter("key", "==", name(*key)),
            Asks::KeyAndSize { key, from } => subscription.filter("key", "==", name(*key)).filter("size", ">=", *from),
            Asks::Keys { first, keys } => {
                let list: Vec<String> = list(*first, *keys).map(name).collect();
                subscription.filter("key", "in", list)
            }
            Asks::Expression { key, from } => {
                subscription.expr(format!("doc.key == {:?} && doc.size >= {from}", name(*key)))
            }
            Asks::Size { from } => subscription.filter("size", ">=", *from).filter("size", "<", from + BAND),
            Asks::Everything => subscription,
        }
    }
}

impl Kind {
    /// Values of `key` that it takes; 0 where it doesn't look.
    fn keys(self) -> f64 {
        match self {
            Self::Key | Self::KeyAndSize | Self::Expression => 1.0,
            Self::Keys => f64::from(KEYS_OF_A_LIST),
            Self::Size | Self::Everything => 0.0,
        }
    }

    /// The share of events that pass beside that.
    fn passes(self) -> f64 {
        match self {
            Self::Key | Self::Keys | Self::Everything => 1.0,
            // The bound is drawn evenly, and so are sizes.
            Self::KeyAndSize | Self::Expression => 0.5,
            Self::Size => f64::from(BAND) / f64::from(SIZES),
        }
    }
}

fn name(key: u32) -> String {
    format!("key-{key:06}")
}

fn list(first: u32, keys: u32) -> impl Iterator<Item = u32> {
    (0..KEYS_OF_A_LIST).map(move |step| (first + step) % keys)
}

fn events(profile: &Profile, subscriptions: &[Planned], keys: u32, random: &mut ChaCha8Rng) -> Vec<Event> {
    // By place and key, with the lowest size; and those of a place that look at no key.
    let mut by_key: HashMap<(u32, u32), Vec<(u32, i32)>> = HashMap::new();
    let mut by_place: HashMap<u32, Vec<(u32, std::ops::Range<i32>)>> = HashMap::new();
    for (number, subscription) in (0..).zip(subscriptions) {
        let place = subscription.place;
        let mut on = |key, from| by_key.entry((place, key)).or_default().push((number, from));
        match subscription.asks {
            Asks::Key { key } => on(key, 0),
            Asks::KeyAndSize { key, from } | Asks::Expression { key, from } => on(key, from),
            Asks::Keys { first, keys } => list(first, keys).for_each(|key| on(key, 0)),
            Asks::Size { from } => by_place.entry(place).or_default().push((number, from..from + BAND)),
            Asks::Everything => by_place.entry(place).or_default().push((number, 0..SIZES)),
        }
    }
    let weights = (1..=keys).map(|rank| f64::from(rank).powf(-profile.skew));
    let weights = WeightedIndex::new(weights).expect("weights of ranks are above 0");
    let event = |_| {
        let place = match profile.hot_share {
            // The first tenant's places are every so many.
            Some(share) if random.random_bool(share) => {
                random.random_range(0..profile.collections.div_ceil(profile.tenants)) * profile.tenants
            }
            _ => random.random_range(0..profile.collections),
        };
        let key = weights.sample(random) as u32;
        let size = random.random_range(0..SIZES);
        let kind = KINDS[random.random_range(0..KINDS.len())];
        if random.random_bool(profile.miss_share) {
            let place = place + profile.collections;
            return Event { place, key: name(key), size, kind, matches: Vec::new() };
        }
        let by_key = by_key.get(&(place, key)).into_iter().flatten().filter(|(_, from)| size >= *from);
        let by_place = by_place.get(&place).into_iter().flatten().filter(|(_, sizes)| sizes.contains(&size));
        let mut matches: Vec<u32> =
            by_key.map(|(number, _)| *number).chain(by_place.map(|(number, _)| *number)).collect();
        matches.sort_unstable();
        Event { place, key: name(key), size, kind, matches }
    };
    (0..POOL).map(event).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile;

    #[test]
    fn an_event_matches_as_many_as_the_profile_says() {
        for name in profile::names() {
            let profile = Profile::load(name).unwrap();
            let plan = Plan::new(&profile, 100_000, 4, 1, "t");
            let watched = plan.events.iter().filter(|event| event.place < profile.collections).count() as f64;
            let mean = plan.deliveries(POOL as u64) as f64 / watched;
            assert!((profile.matches * 0.8..profile.matches * 1.25).contains(&mean), "{name}: {mean}");
        }
    }

    #[test]
    fn idle_subscriptions_change_nothing_for_the_others() {
        let plan = |idle| Plan::new(&Profile::load("orders").unwrap(), 5_000, 3, 7, "t").with_idle(idle, 3);
        let (with, without) = (plan(2_000), plan(0));
        assert_eq!(with.subscriptions.len(), 7_000);
        let n = POOL as u64;
        assert_eq!(with.expected(n)[..5_000], without.expected(n));
        assert!(with.expected(n)[5_000..].iter().all(|count| *count == 0));
        // By what they ask for, and not only by what the plan says of them: no event has such a key.
        let keys: BTreeSet<&str> = with.events.iter().map(|event| event.key.as_str()).collect();
        for planned in &with.subscriptions[5_000..] {
            assert!(matches!(planned.asks, Asks::Key { key } if !keys.contains(name(key).as_str())), "{planned:?}");
        }
    }

    #[test]
    fn what_is_expected_adds_up() {
        let plan = Plan::new(&Profile::load("orders").unwrap(), 5_000, 3, 7, "t");
        for n in [1, 100, POOL as u64, POOL as u64 * 2 + 77] {
            let counts = plan.expected(n);
            assert_eq!(counts.iter().sum::<u64>(), plan.deliveries(n), "{n}");
            let one = (1..=n).filter(|n| plan.expects(*n, 17)).count() as u64;
            assert_eq!(counts[17], one, "{n}");
        }
        assert_eq!(
            format!("{:?}", Plan::new(&Profile::load("orders").unwrap(), 5_000, 3, 7, "t").events),
            format!("{:?}", plan.events)
        );
    }
}
