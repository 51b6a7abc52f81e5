//! Which changes a shard wants: what the ingest thread asks before it spends a ring slot on one.
//!
//! Keys stand for collections, and for documents that are watched by id. A [`Filter`] counts who holds which key; a
//! [`FilterSnapshot`], which it publishes under ever higher versions, answers "no" or "maybe" to a key. It is made of a **base**, which
//! is compact, errs now and then, and can't be changed; a **delta**, the keys that came since, which is exact; and a flag that says "maybe"
//! to everything.
//!
//! The base is built elsewhere, from keys that are copied a slice at a time ([`Filter::step`]). Its life:
//!
//! | state | left by |
//! |---|---|
//! | idle | the delta is large, or too much of what it lets through is of keys that are gone, or there is no delta any more |
//! | capturing | [`Filter::step`], until all keys are copied |
//! | building | [`Filter::built`]: the new base takes over, or the old one stays |
//!
//! Invariants:
//! - No snapshot says "no" to a key that is held since its version or earlier. So it may say "maybe" to keys that are gone.
//! - Keys are counted, so that removing one name can't remove another's that has the same hash.
//! - A base that is being built holds every key that was held when its capture began and is held still. Keys that are
//!   added from then on enter the delta, whatever the base in use says of them, and only these stay there when it takes over.
//! - What [`Filter::add`] gives is a version from which on every snapshot says "maybe" to the key as long as it is held.
//! - A key that finds no room in the delta turns everything into "maybe", until a base takes over whose capture began later.
//! - No call does work that grows with the number of keys, beyond a bound; see [`FilterConfig`].

mod base;
mod delta;
#[cfg(test)]
mod interleavings;
mod keys;
mod snapshot;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use base::{BuildFailed, FilterBuild, FilterBuilt};
pub use snapshot::{FilterKey, FilterSnapshot};

use wire::PlaceHash;

use crate::{Bare, Change};
use base::Base;
use delta::DeltaWriter;
use keys::{KeyCounts, Standing, TABLES};
use snapshot::Mixer;

/// When a filter asks for a new base, and how much it may hold until it gets one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FilterConfig {
    /// The delta may hold so many keys, or one in eight of the base's, before a new base is asked for. Default 1,024.
    pub delta_min: usize,
    /// The delta never holds more keys: what finds no room makes the filter say "maybe" to everything. A new base is asked for at
    /// half of it. Default 131,072, which is 4 MiB.
    pub delta_max: usize,
    /// Up to so many keys, the base is an exact set. Default 1,024.
    pub exact_max: usize,
    /// Places for keys that are copied in one go while a capture goes on. Default 8,192, some 50 µs.
    pub copied_max: usize,
    /// Of the changes that reach the shard, the share that only keys may let through that are gone; above it, a new base is asked
    /// for. Default 0.02.
    pub false_positive_max: f64,
    /// Changes over which that share is measured. Default 8,192.
    pub measured_over: u32,
}

impl Default for FilterConfig {
    fn default() -> Self {
        Self {
            delta_min: 1_024,
            delta_max: 131_072,
            exact_max: 1_024,
            copied_max: 8_192,
            false_positive_max: 0.02,
            measured_over: 8_192,
        }
    }
}

/// The delta may grow to one part in this many of the base before a new one is asked for.
const DELTA_SHARE: usize = 8;
/// Pause after a build that failed, doubled with each that fails after it.
const RETRY_MS: u64 = 1_000;
const RETRY_DOUBLINGS_MAX: u32 = 6;

/// What a [`Filter`] has to do beside answering.
#[derive(Debug)]
pub enum FilterStep {
    Nothing,
    /// Part of a capture is done. There is more: come again soon.
    More,
    /// To be run on another thread, and its result to be given back.
    Build(FilterBuild),
}

/// What the shard counts of its filter. All but the gauges at the end only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FilterCounts {
    /// Changes that nobody watches and that came through all the same.
    pub(crate) false_positives: u64,
    /// Those of them that somebody watched once: a new base doesn't let them through any more.
    pub(crate) stale: u64,
    pub(crate) builds: u64,
    pub(crate) builds_failed: u64,
    pub(crate) delta: u64,
    pub(crate) base_bytes: u64,
    pub(crate) everything: bool,
}

/// The shard's side: which keys are wanted now, and what was published of them.
#[derive(Debug)]
pub(crate) struct Filter {
    config: FilterConfig,
    mixer: Mixer,
    keys: KeyCounts,
    /// Keys of documents among them.
    documents: usize,

    base: Arc<Base>,
    /// Keys that it was built of.
    base_keys: usize,
    delta: DeltaWriter,
    /// Version of the first snapshot with this base.
    base_since: u64,
    /// Since when there has been "maybe" for everything, if there is.
    everything_since: Option<u64>,
    /// Since when documents have been asked for, if they are.
    documents_since: Option<u64>,
    version: u64,
    /// There is something to publish.
    changed: bool,

    state: State,
    /// Numbers captures, so that nothing is taken for the result of another one.
    captures: u64,
    /// A key has found no room in the delta since the capture began.
    overflowed: bool,
    /// Keys that went since the capture began or, while there is none, since the last one did.
    gone: usize,
    rebuild_wanted: bool,
    failures: u32,
    retry_at: u64,

    /// Since the last look at the share of false positives.
    measured: u32,
    measured_stale: u32,
    counts: FilterCounts,

    #[cfg(test)]
    mutant: Option<Mutant>,
}

#[derive(Debug)]
enum State {
    Idle,
    Capturing { next_table: usize, keys: Vec<Box<[u64]>> },
    Building { keys: usize },
}

impl Filter {
    /// `seed` is a secret of the node's: see [`Mixer`].
    pub(crate) fn new(config: FilterConfig, seed: u64) -> Self {
        Self {
            config,
            mixer: Mixer::new(seed),
            keys: KeyCounts::new(),
            documents: 0,
            base: Arc::default(),
            base_keys: 0,
            delta: DeltaWriter::default(),
            base_since: 1,
            everything_since: None,
            documents_since: None,
            version: 1,
            changed: true,
            state: State::Idle,
            captures: 0,
            overflowed: false,
            gone: 0,
            rebuild_wanted: false,
            failures: 0,
            retry_at: 0,
            measured: 0,
            measured_stale: 0,
            counts: FilterCounts::default(),
            #[cfg(test)]
            mutant: None,
        }
    }

    /// Counts the key in. Gives a version from which on every snapshot says "maybe" to it, for as long as it is held.
    pub(crate) fn add(&mut self, key: FilterKey) -> u64 {
        let mixed = self.mixer.mix(key);
        let first = self.keys.add(mixed);
        let mut since = if first {
            self.enter(mixed)
        } else {
            let since = self.published_since(mixed);
            debug_assert!(since.is_some(), "a key is held that no snapshot shows");
            since.unwrap_or(self.version)
        };
        if key.is_document() {
            self.documents += usize::from(first);
            let asked_for = match self.documents_since {
                Some(since) => since,
                None => *self.documents_since.insert(raise(&mut self.version, &mut self.changed)),
            };
            since = since.max(asked_for);
        }
        since
    }

    /// A version after all that there were: the ingest thread will say when it has seen it, though the keys are the same.
    pub(crate) fn raise(&mut self) -> u64 {
        raise(&mut self.version, &mut self.changed)
    }

    pub(crate) fn remove(&mut self, key: FilterKey) {
        if self.keys.remove(self.mixer.mix(key)) {
            self.documents -= usize::from(key.is_document());
            self.gone += 1;
        }
    }

    /// The snapshot to publish, if it isn't what was taken last.
    pub(crate) fn take(&mut self) -> Option<FilterSnapshot> {
        std::mem::take(&mut self.changed).then(|| FilterSnapshot {
            version: self.version,
            everything: self.everything_since.is_some(),
            documents: self.documents_since.is_some(),
            mixer: self.mixer,
            base: Arc::clone(&self.base),
            delta: self.delta.picture(self.version),
        })
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.held()
    }

    pub(crate) fn counts(&self) -> FilterCounts {
        FilterCounts {
            delta: self.delta.len() as u64,
            base_bytes: self.base.bytes() as u64,
            everything: self.everything_since.is_some(),
            ..self.counts
        }
    }

    /// Takes note of a change that came through. `has_watchers`: there are subscriptions to its collections, be it to other documents
    /// than this one.
    pub(crate) fn passed(&mut self, change: &Change, has_watchers: bool) {
        let claimed = has_watchers && self.documents_since.is_none();
        // Nobody asks a filter about a delete whose collection is unknown.
        let [before, after] = change.places();
        let place = match after.or(before) {
            Some(place) => place,
            None if claimed => return,
            None => match change.bare() {
                Some(Bare { tenant: Some(tenant), collection: Some(collection) }) => PlaceHash::of(tenant, collection),
                _ => return,
            },
        };
        let before = before.filter(|before| *before != place);
        let standing = if claimed { Standing::Held } else { self.standing_of([Some(place), before], change.key()) };
        self.measure(standing);
    }

    fn standing_of(&self, places: [Option<PlaceHash>; 2], stored_id: &[u8]) -> Standing {
        let document = || self.documents_since.and_then(|_| FilterKey::of_stored_id(stored_id));
        let keys = places.into_iter().flatten().map(FilterKey::place).chain(std::iter::once_with(document).flatten());
        let mut standing = Standing::Unknown;
        for key in keys {
            match self.keys.standing(self.mixer.mix(key)) {
                Standing::Unknown => {}
                Standing::Gone => standing = Standing::Gone,
                Standing::Held => return Standing::Held,
            }
        }
        standing
    }

    fn measure(&mut self, standing: Standing) {
        let stale = standing == Standing::Gone;
        self.counts.false_positives += u64::from(standing != Standing::Held);
        self.counts.stale += u64::from(stale);
        self.measured_stale += u32::from(stale);
        self.measured += 1;
        if self.measured >= self.config.measured_over {
            let share = f64::from(self.measured_stale) / f64::from(self.measured);
            self.rebuild_wanted |= share > self.config.false_positive_max;
            (self.measured, self.measured_stale) = (0, 0);
        }
    }

    /// Does the next slice of work. To be called again and again; at once after [`FilterStep::More`], else after anything has
    /// happened.
    pub(crate) fn step(&mut self, now_ms: u64) -> FilterStep {
        let begins = now_ms >= self.retry_at && self.wants_base();
        match &mut self.state {
            State::Idle if begins => {
                self.state = State::Capturing { next_table: 0, keys: Vec::new() };
                self.captures += 1;
                self.delta.mark();
                self.overflowed = false;
                self.gone = 0;
                self.rebuild_wanted = false;
                FilterStep::More
            }
            State::Capturing { next_table, keys } => {
                let mut copied = Vec::new();
                let mut slots = 0;
                while *next_table < TABLES && slots < self.config.copied_max {
                    slots += self.keys.slots(*next_table).max(1);
                    self.keys.copy_held(*next_table, &mut copied);
                    *next_table += 1;
                }
                keys.push(copied.into());
                if *next_table < TABLES {
                    return FilterStep::More;
                }
                let build =
                    FilterBuild { number: self.captures, keys: std::mem::take(keys), exact_max: self.config.exact_max };
                if self.is_mutant(Mutant::CutLate) {
                    self.delta.mark();
                }
                self.state = State::Building { keys: build.keys() };
                FilterStep::Build(build)
            }
            State::Idle | State::Building { .. } => FilterStep::Nothing,
        }
    }

    /// What became of the build that [`Filter::step`] gave out.
    pub(crate) fn built(&mut self, built: FilterBuilt, now_ms: u64) {
        let State::Building { keys } = self.state else { return };
        if built.number != self.captures {
            return;
        }
        self.state = State::Idle;
        match built.base {
            Err(BuildFailed { .. }) => {
                // What there is stays right: the old base and a delta that nothing was dropped from.
                self.counts.builds_failed += 1;
                self.retry_at = now_ms + (RETRY_MS << self.failures.min(RETRY_DOUBLINGS_MAX));
                self.failures += 1;
                self.rebuild_wanted = true;
            }
            Ok(base) => {
                self.counts.builds += 1;
                self.failures = 0;
                self.base = Arc::new(base);
                self.base_keys = keys;
                self.base_since = self.raise();
                if self.is_mutant(Mutant::DeltaCleared) {
                    self.delta.mark();
                }
                self.delta.keep_young();
                if !self.overflowed || self.is_mutant(Mutant::OverflowForgotten) {
                    self.everything_since = None;
                }
                if self.documents == 0 {
                    self.documents_since = None;
                }
            }
        }
    }

    fn wants_base(&self) -> bool {
        let delta_room = (self.base_keys / DELTA_SHARE).max(self.config.delta_min).min(self.config.delta_max / 2);
        self.rebuild_wanted
            || self.everything_since.is_some()
            || self.delta.len() > delta_room
            || self.gone > self.config.delta_min.max(self.keys.held())
    }

    /// Since when every snapshot has said "maybe" to this key, whether it is held or not.
    fn published_since(&self, mixed: u64) -> Option<u64> {
        let in_base = self.base.contains(mixed).then_some(self.base_since);
        [in_base, self.delta.since(mixed), self.everything_since].into_iter().flatten().min()
    }

    /// Sees to it that every snapshot from the given version on says "maybe" to a key that was not held.
    fn enter(&mut self, mixed: u64) -> u64 {
        let known = self.published_since(mixed);
        let next_base_holds_it = matches!(self.state, State::Idle) || self.is_mutant(Mutant::BaseTrusted);
        if let (true, Some(since)) = (next_base_holds_it, known) {
            // The next base is made of what is held then, and this one stays until it takes over.
            return since;
        }
        if self.delta.since(mixed).is_some() {
            if !self.is_mutant(Mutant::NotRenewed) {
                self.delta.renew(mixed);
            }
            return known.unwrap_or(self.version);
        }
        if self.delta.len() >= self.config.delta_max {
            self.overflowed = true;
            let since = match self.everything_since {
                Some(since) => since,
                None => *self.everything_since.insert(raise(&mut self.version, &mut self.changed)),
            };
            return known.map_or(since, |known| known.min(since));
        }
        let since = known.unwrap_or_else(|| raise(&mut self.version, &mut self.changed));
        self.delta.enter(mixed, since);
        since - u64::from(self.is_mutant(Mutant::NotRaised))
    }

    #[cfg(test)]
    fn is_mutant(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    #[cfg(not(test))]
    fn is_mutant(&self, _: Mutant) -> bool {
        false
    }
}

/// Rules that a test breaks to see that it would tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// A swap drops the whole delta, not only what came before the capture.
    DeltaCleared,
    /// A key that is added again while a base is built counts as added before.
    NotRenewed,
    /// A key that the base in use knows does not enter the delta while the next is built.
    BaseTrusted,
    /// Whoever adds a key is told the version before the one that holds it.
    NotRaised,
    /// What was added while keys were copied counts as copied.
    CutLate,
    /// A swap ends "maybe to everything" though a key found no room meanwhile.
    OverflowForgotten,
}

fn raise(version: &mut u64, changed: &mut bool) -> u64 {
    *version += 1;
    *changed = true;
    *version
}
