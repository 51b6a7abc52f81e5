//! A subscription is added, removed and added again, and matching changes are written, at every interleaving of publishing, looking,
//! confirming, capturing, building and swapping: none is lost.
//!
//! The filter is the real one, and so are its snapshots and builds. Around it stands the least of a shard and of an ingest thread that
//! makes the promise: a subscription is live from a position on, and no change after that is dropped. All states that can be
//! reached are visited, each once.

use std::collections::{HashSet, VecDeque};

use super::*;

const SEED: u64 = 1;

/// What a run is made of.
#[derive(Clone)]
struct Model {
    key: FilterKey,
    /// Each subscription is added and removed in turn so many times in all.
    scripts: Vec<usize>,
    writes: usize,
    builds: usize,
    config: FilterConfig,
    mutant: Option<Mutant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// The next of a subscription's own.
    Subscription(usize),
    /// The shard puts its filter into the cell.
    Publish,
    /// The ingest thread takes it from there, and says so in the ring.
    Look,
    /// A change of the key is read.
    Write,
    /// The shard takes one item from its ring.
    Drain,
    /// A capture begins.
    Begin,
    /// The next slice of it.
    Copy,
    Built(Outcome),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Outcome {
    Good,
    /// A base that errs on every key that it doesn't hold.
    Erring,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Item {
    Change(u64),
    Seen { version: u64, after: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Sub {
    Off,
    Pending { since: u64 },
    Live { from: u64 },
}

struct World<'m> {
    model: &'m Model,
    filter: Filter,
    build: Option<FilterBuild>,
    cell: FilterSnapshot,
    used: FilterSnapshot,
    ring: VecDeque<Item>,
    /// The last change read, those of them that were dropped, and the last that the shard knows of.
    read: u64,
    dropped: Vec<u64>,
    received: u64,
    seen: u64,
    subs: Vec<(Sub, usize)>,
    builds_begun: usize,
}

impl<'m> World<'m> {
    fn new(model: &'m Model) -> Self {
        let mut filter = Filter::new(model.config, SEED);
        filter.mutant = model.mutant;
        Self {
            model,
            filter,
            build: None,
            cell: FilterSnapshot::unpublished(),
            used: FilterSnapshot::unpublished(),
            ring: VecDeque::new(),
            read: 0,
            dropped: Vec::new(),
            received: 0,
            seen: 0,
            subs: vec![(Sub::Off, 0); model.scripts.len()],
            builds_begun: 0,
        }
    }

    fn possible(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let unfinished = (0..self.subs.len()).filter(|sub| self.subs[*sub].1 < self.model.scripts[*sub]);
        steps.extend(unfinished.map(Step::Subscription));
        if self.filter.changed {
            steps.push(Step::Publish);
        }
        if self.cell.version > self.used.version {
            steps.push(Step::Look);
        }
        if (self.read as usize) < self.model.writes {
            steps.push(Step::Write);
        }
        if !self.ring.is_empty() {
            steps.push(Step::Drain);
        }
        match self.filter.state {
            State::Idle if self.builds_begun < self.model.builds => steps.push(Step::Begin),
            State::Capturing { .. } => steps.push(Step::Copy),
            State::Building { .. } => {
                steps.extend([Outcome::Good, Outcome::Erring, Outcome::Failed].map(Step::Built));
            }
            State::Idle => {}
        }
        steps
    }

    fn take(&mut self, step: Step) -> Result<(), String> {
        let key = self.model.key;
        match step {
            Step::Subscription(sub) => {
                self.subs[sub].1 += 1;
                if self.subs[sub].0 == Sub::Off {
                    let since = self.filter.add(key);
                    self.subs[sub].0 = Sub::Pending { since };
                    if self.seen > 0 && since <= self.seen {
                        self.activate(sub, self.received)?;
                    }
                } else {
                    self.filter.remove(key);
                    self.subs[sub].0 = Sub::Off;
                }
            }
            Step::Publish => self.cell = self.filter.take().expect("it has changed"),
            Step::Look => {
                self.used = self.cell.clone();
                self.ring.push_back(Item::Seen { version: self.used.version, after: self.read });
            }
            Step::Write => {
                self.read += 1;
                if self.lets_through(&self.used) {
                    self.ring.push_back(Item::Change(self.read));
                } else {
                    self.dropped.push(self.read);
                    if let Some(sub) = self.subs.iter().position(|(sub, _)| matches!(sub, Sub::Live { .. })) {
                        return Err(format!("subscription {sub} is live, and change {} was dropped", self.read));
                    }
                }
            }
            Step::Drain => match self.ring.pop_front().expect("it isn't empty") {
                Item::Change(at) => self.received = at,
                Item::Seen { version, after } => {
                    self.received = after;
                    self.seen = version;
                    for sub in 0..self.subs.len() {
                        if matches!(self.subs[sub].0, Sub::Pending { since } if since <= version) {
                            self.activate(sub, after)?;
                        }
                    }
                }
            },
            Step::Begin => {
                self.builds_begun += 1;
                self.filter.rebuild_wanted = true;
                self.filter.retry_at = 0;
                assert!(matches!(self.filter.step(0), FilterStep::More));
            }
            Step::Copy => {
                if let FilterStep::Build(build) = self.filter.step(0) {
                    self.build = Some(build);
                }
            }
            Step::Built(outcome) => {
                let build = self.build.take().expect("it is being built");
                let built = match outcome {
                    Outcome::Good => build.run(),
                    Outcome::Erring => FilterBuilt { number: build.number, base: Ok(Base::Erring) },
                    Outcome::Failed => build.fail(),
                };
                self.filter.built(built, 0);
            }
        }
        Ok(())
    }

    /// As the router asks.
    fn lets_through(&self, snapshot: &FilterSnapshot) -> bool {
        let asked = !self.model.key.is_document() || snapshot.documents || snapshot.everything;
        asked && snapshot.may_want(self.model.key)
    }

    fn activate(&mut self, sub: usize, from: u64) -> Result<(), String> {
        self.subs[sub].0 = Sub::Live { from };
        match self.dropped.iter().find(|change| **change > from) {
            Some(change) => Err(format!("subscription {sub} is live after {from}, and change {change} was dropped")),
            None => Ok(()),
        }
    }

    /// All that what happens next depends on.
    fn state(&self) -> impl Eq + std::hash::Hash + use<> {
        let filter = &self.filter;
        let mixed = filter.mixer.mix(self.model.key);
        let picture = |snapshot: &FilterSnapshot| (snapshot.version, self.lets_through(snapshot));
        let capture = match &filter.state {
            State::Idle => (0, false),
            State::Capturing { next_table, keys } => (1 + *next_table, keys.iter().any(|chunk| chunk.contains(&mixed))),
            State::Building { .. } => {
                let keys = &self.build.as_ref().expect("it is being built").keys;
                (usize::MAX, keys.iter().any(|chunk| chunk.contains(&mixed)))
            }
        };
        (
            (filter.version, filter.changed, filter.base_since, filter.everything_since, filter.documents_since),
            (filter.base.contains(mixed), filter.delta.since(mixed), filter.delta.is_renewed(mixed), filter.overflowed),
            (filter.keys.standing(mixed) as u8, capture, self.builds_begun),
            (picture(&self.cell), picture(&self.used), self.ring.clone()),
            (self.read, self.dropped.clone(), self.received, self.seen, self.subs.clone()),
        )
    }
}

/// Visits every state that can be reached. Gives how many there are, or the shortest way to one in which a change is lost.
fn explore(model: &Model) -> Result<usize, String> {
    let mut known = HashSet::new();
    // Ways to states, and what is possible there.
    let mut ways: VecDeque<(Vec<Step>, Vec<Step>)> = VecDeque::from([(Vec::new(), World::new(model).possible())]);
    while let Some((way, possible)) = ways.pop_front() {
        for step in possible {
            // A filter shares its tables with its snapshots, so a world can't be copied: it is made again.
            let mut world = World::new(model);
            way.iter().for_each(|step| world.take(*step).expect("it went well before"));
            let way = || way.iter().copied().chain([step]).collect::<Vec<_>>();
            world.take(step).map_err(|lost| format!("{lost}, after {:?}", way()))?;
            if known.insert(world.state()) {
                ways.push_back((way(), world.possible()));
            }
        }
    }
    Ok(known.len())
}

/// Models in which every branch of the filter is taken.
fn models(mutant: Option<Mutant>) -> impl Iterator<Item = Model> {
    let roomy = FilterConfig { copied_max: TABLES / 2, exact_max: 0, ..FilterConfig::default() };
    let full = FilterConfig { delta_max: 0, ..roomy };
    // A key that is copied late in a capture, so that much can happen before as well as after it.
    let late = |first: u64| (first..).step_by(2).map(FilterKey).find(|key| Mixer::new(SEED).mix(*key) >> 62 == 2);
    let (place, document) = (late(10).expect("every fourth is"), late(11).expect("every fourth is"));
    let model = move |key, scripts: &[usize], writes, builds, config| Model {
        key,
        scripts: scripts.into(),
        writes,
        builds,
        config,
        mutant,
    };
    [
        model(place, &[3], 2, 2, roomy),
        model(place, &[3], 1, 2, full),
        model(document, &[3], 1, 1, roomy),
        model(place, &[3, 1], 1, 1, roomy),
        model(place, &[2, 2], 1, 1, full),
    ]
    .into_iter()
}

#[test]
fn no_interleaving_loses_a_change() {
    for model in models(None) {
        let states = explore(&model).unwrap_or_else(|lost| panic!("{lost}"));
        println!("{states} states");
        assert!(states > 1_000, "{states} states are too few to be all");
    }
}

#[test]
fn every_broken_rule_is_found() {
    let mutants = [
        Mutant::DeltaCleared,
        Mutant::NotRenewed,
        Mutant::BaseTrusted,
        Mutant::NotRaised,
        Mutant::CutLate,
        Mutant::OverflowForgotten,
    ];
    for mutant in mutants {
        let found = models(Some(mutant)).find_map(|model| explore(&model).err());
        println!("{mutant:?}: {}", found.as_deref().unwrap_or("not found"));
        assert!(found.is_some(), "{mutant:?} loses nothing");
    }
}
