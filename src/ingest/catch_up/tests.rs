//! Passes under a random scheduler, held against brute force: whatever the live stream, the cursor and the rings do in which order, each
//! subscription gets every event after its position once, in order.

mod history;
mod passes;

use std::collections::{BTreeMap, VecDeque};

use bson::{Bson, Timestamp, doc};
use predicate::Mapping;
use rand::{Rng, SeedableRng, rngs::StdRng};
use shards::{FilterKey, FilterSnapshot, Scope};
use wire::{Lineage, PlaceHash, Positions, SlotTable};

use self::history::{History, Kind};
use super::*;
use crate::ingest::{
    source::{Batch, SourceError, Start},
    start::start_after,
};

const BACKEND: BackendId = BackendId(7);
const LINEAGE: Lineage = Lineage(9);
const COLLECTIONS: u64 = 6;
const RING: usize = 8;
const HALVE_WITHIN: Duration = Duration::from_secs(300);

fn at((time, k): (u64, u32)) -> Position {
    Position { backend: BACKEND, lineage: LINEAGE, time, k }
}

fn name(collection: u64) -> String {
    format!("c{collection}")
}

fn place(collection: u64) -> PlaceHash {
    PlaceHash::of("t", &name(collection))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Until the ingest thread routes by this version.
    Pending(u64),
    Waits,
    In(u64),
    Live,
    /// Told to read its state anew.
    Resync,
}

#[derive(Debug)]
struct Sub {
    collection: u64,
    after: (u64, u32),
    state: State,
    at: (u64, u32),
    got: Vec<(u64, u32)>,
}

/// A shard as the rules want it: whoever lacks something is masked until a pass has met the live stream.
struct ModelShard {
    ring: VecDeque<FromIngest>,
    subs: Vec<Sub>,
    version: u64,
    filter: Arc<FilterSnapshot>,
    wanted: Arc<CatchUpWanted>,
    heard: u64,
    running: Option<u64>,
    live: (u64, u32),
    /// How far the pass has come, and the last place that it brought.
    from_pass: (u64, u32),
    brought: Option<(u64, u32)>,
}

impl ModelShard {
    fn new() -> Self {
        Self {
            ring: VecDeque::new(),
            subs: Vec::new(),
            version: 1,
            filter: Arc::new(FilterSnapshot::of(1, [])),
            wanted: Arc::default(),
            heard: 0,
            running: None,
            live: (0, 0),
            from_pass: (0, 0),
            brought: None,
        }
    }

    fn subscribe(&mut self, collection: u64, after: (u64, u32)) {
        self.version += 1;
        let state = State::Pending(self.version);
        self.subs.push(Sub { collection, after, state, at: after, got: Vec::new() });
        self.publish_filter();
    }

    fn publish_filter(&mut self) {
        let keys = self.subs.iter().map(|sub| FilterKey::place(place(sub.collection)));
        self.filter = Arc::new(FilterSnapshot::of(self.version, keys));
    }

    fn publish(&mut self) {
        let waiting = self.subs.iter().filter(|sub| sub.state == State::Waits).map(|sub| at(sub.at));
        let lowest: Positions = waiting.min_by_key(Position::order).into_iter().collect();
        let count = self.subs.iter().filter(|sub| sub.state == State::In(self.heard)).count() as u64;
        let serving = if self.heard > 0 { vec![(BACKEND, self.heard, count)] } else { Vec::new() };
        self.wanted = Arc::new(CatchUpWanted { version: 0, lowest, serving });
    }

    fn concerned(scopes: &[Scope], collection: u64) -> bool {
        scopes.iter().any(|scope| match scope {
            Scope::Everything => true,
            Scope::Tenant(tenant) => &**tenant == "t",
            Scope::Collection { collection: name_of, .. } => **name_of == *name(collection),
        })
    }

    fn give(&mut self, position: Position, state: State, concerns: impl Fn(&Sub) -> bool) {
        for sub in &mut self.subs {
            if sub.state == state && position.order() > sub.at && concerns(sub) {
                sub.at = position.order();
                sub.got.push(position.order());
            }
        }
    }

    fn take(&mut self, item: FromIngest) {
        let of = |change: &shards::Change| change.after().expect("inserts only").place;
        match item {
            FromIngest::Change(change) => {
                self.live = self.live.max(change.position.order());
                self.give(change.position, State::Live, |sub| place(sub.collection) == of(&change));
            }
            FromIngest::Gap(gap) => {
                self.live = self.live.max(gap.position.order());
                self.give(gap.position, State::Live, |sub| Self::concerned(&gap.scopes, sub.collection));
            }
            FromIngest::Progress(position) => self.live = self.live.max(position.order()),
            FromIngest::FilterSeen { version, positions } => {
                let live_from = positions.get(BACKEND).expect("all have one").order();
                for sub in &mut self.subs {
                    if matches!(sub.state, State::Pending(wants) if wants <= version) {
                        sub.state = if sub.after < live_from { State::Waits } else { State::Live };
                    }
                }
            }
            FromIngest::CatchUp(item) => self.take_catch_up(item, of),
        }
        self.publish();
    }

    fn take_catch_up(&mut self, item: CatchUp, of: impl Fn(&shards::Change) -> PlaceHash) {
        let mut comes = |pass: u64, position: Position| {
            assert_eq!(self.running, Some(pass), "an item of a pass that doesn't run here");
            assert!(position.order() >= self.from_pass, "backwards within a pass");
            self.from_pass = position.order();
            self.brought = Some(position.order());
        };
        match item {
            CatchUp::Began { pass, from } => {
                assert!(pass > self.heard && self.running.is_none(), "one pass at a time, with rising numbers");
                (self.heard, self.running, self.from_pass) = (pass, Some(pass), from.order());
                self.brought = None;
                for sub in &mut self.subs {
                    if sub.state == State::Waits && sub.at >= from.order() {
                        sub.state = State::In(pass);
                    }
                }
            }
            CatchUp::Change { pass, change } => {
                comes(pass, change.position);
                self.give(change.position, State::In(pass), |sub| place(sub.collection) == of(&change));
            }
            CatchUp::Gap { pass, gap } => {
                comes(pass, gap.position);
                self.give(gap.position, State::In(pass), |sub| Self::concerned(&gap.scopes, sub.collection));
            }
            CatchUp::Progress { pass, position } => {
                comes(pass, position);
                self.subs.iter_mut().filter(|sub| sub.state == State::In(pass)).for_each(|sub| {
                    sub.at = sub.at.max(position.order());
                });
            }
            CatchUp::CaughtUp { pass, position } => {
                assert_eq!(self.running.take(), Some(pass));
                assert!(self.live <= position.order(), "{:?} of the live stream before {position:?}", self.live);
                let brought = self.brought.take();
                assert!(brought <= Some(position.order()), "{brought:?} by a pass that met at {position:?}");
                for sub in self.subs.iter_mut().filter(|sub| sub.state == State::In(pass)) {
                    sub.state = State::Live;
                    sub.at = sub.at.max(position.order());
                }
            }
            CatchUp::Failed { pass, failure, .. } => {
                assert_eq!(self.running.take(), Some(pass));
                for sub in self.subs.iter_mut().filter(|sub| sub.state == State::In(pass)) {
                    sub.state = match failure {
                        CatchUpFailure::HistoryLost { upto } if sub.at <= upto.order() => State::Resync,
                        CatchUpFailure::TooSlow => State::Resync,
                        CatchUpFailure::HistoryLost { .. } | CatchUpFailure::Interrupted => State::Waits,
                    };
                }
            }
        }
    }
}

/// Who reads a cursor.
#[derive(Debug)]
struct Reader {
    number: u64,
    at: usize,
    is_granted: bool,
}

struct World {
    random: StdRng,
    history: History,
    live: IngestCore,
    live_cursor: usize,
    catch_up: CatchUpCore,
    reader: Option<Reader>,
    /// What readers have said, with the numbers of their cursors, and wasn't heard yet.
    said: VecDeque<(u64, Said)>,
    /// How much of it was of no cursor of a pass any more.
    unheard: usize,
    pending: VecDeque<ToShard>,
    shards: Vec<ModelShard>,
    now: Millis,
    /// Openings before this place are refused.
    kept_from: u64,
    /// Whether empty batches tell how far the source has looked.
    tells: bool,
    faults: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut history = History::default();
        for _ in 0..random.random_range(1..40) {
            history.grow(&mut random);
        }
        let shards = random.random_range(1..4);
        let mut live = IngestCore::new(Arc::new(Mapping::Plain), SlotTable { shards }, vec![BACKEND]);
        // After an event, at the cluster time of one, or at one where nothing happens.
        let event = random.random_range(0..history.events.len());
        let (live_cursor, start) = match random.random_range(0..3) {
            0 => (event + 1, history.events[event].position),
            1 => history.open(&Start::At { time: history.events[event].position.0 }),
            _ => history.open(&Start::At { time: history.events[event].position.0 + 5 }),
        };
        history.clock = start.0;
        let token = if start.1 > 0 { history.token_before(live_cursor) } else { None };
        live.opened(0, LINEAGE, start, token);
        let catch_up = CatchUpCore::new(&live, HALVE_WITHIN);
        let tells = random.random_bool(0.7);
        Self {
            random,
            history,
            live,
            live_cursor,
            catch_up,
            reader: None,
            said: VecDeque::new(),
            unheard: 0,
            pending: VecDeque::new(),
            shards: (0..shards).map(|_| ModelShard::new()).collect(),
            now: Millis(1),
            kept_from: 0,
            tells,
            faults: true,
        }
    }

    fn subscribe(&mut self) {
        let collection = self.random.random_range(0..COLLECTIONS);
        let owner = SlotTable { shards: self.shards.len() as u16 }.owner(place(collection));
        let event = self.random.random_range(0..self.history.events.len());
        let (time, k) = self.history.events[event].position;
        let after = if self.random.random_bool(0.2) { (time, 0) } else { (time, k) };
        self.shards[usize::from(owner)].subscribe(collection, after);
    }

    fn flush(&mut self) {
        while let Some((shard, _)) = self.pending.front()
            && self.shards[usize::from(shard.0)].ring.len() < RING
        {
            let (shard, item) = self.pending.pop_front().unwrap();
            self.shards[usize::from(shard.0)].ring.push_back(item);
        }
    }

    fn read_live(&mut self, max: usize) {
        if !self.pending.is_empty() {
            return;
        }
        let mut out = Vec::new();
        for _ in 0..max {
            let Some(event) = self.history.events.get(self.live_cursor) else { break };
            match event.kind {
                Kind::Large => self.live.too_large(0, &event.bytes, &mut out).unwrap(),
                _ => self.live.event(0, &event.bytes, &mut out).unwrap(),
            }
            self.live_cursor += 1;
        }
        self.pending.extend(out);
    }

    fn reopen_live(&mut self) {
        let point = self.live.resume_point(0).unwrap();
        let start = match self.random.random_bool(0.5) {
            true => start_after(&point),
            false => Start::At { time: point.position.time },
        };
        let (cursor, place) = self.history.open(&start);
        self.live_cursor = cursor;
        self.live.opened(0, LINEAGE, place, None);
    }

    fn look(&mut self, shard: usize) {
        let mut out = Vec::new();
        self.live.filter(ShardIndex(shard as u16), self.shards[shard].filter.clone(), &mut out);
        self.pending.extend(out);
        self.catch_up.wanted(ShardIndex(shard as u16), self.shards[shard].wanted.clone());
    }

    fn open_cursor(&mut self) {
        let Some(Opening { number, start }) = self.catch_up.open(&self.live, 0, self.now) else { return };
        if let Some(before) = &self.reader {
            assert!(before.number < number, "numbers rise");
        }
        self.reader = None;
        if self.faults && self.random.random_bool(0.2) {
            self.say_failed(number, SourceError::Transient("a test".into()));
            return;
        }
        if matches!(&start, Start::At { time } if *time < self.kept_from) {
            self.say_failed(number, SourceError::HistoryLost("a test".into()));
            return;
        }
        let (at, place) = self.history.open(&start);
        self.said.push_back((number, Said::Opened { start: place }));
        self.reader = Some(Reader { number, at, is_granted: false });
    }

    fn read_cursor(&mut self, max: usize) {
        let current = self.catch_up.cursor(0);
        let Some(reader) = self.reader.as_mut().filter(|reader| Some(reader.number) == current) else { return };
        reader.is_granted |= self.catch_up.grant(0);
        if !std::mem::take(&mut reader.is_granted) {
            return;
        }
        let (number, from) = (reader.number, reader.at);
        let large = |at: &usize| self.history.is_large(*at);
        let end = (from..self.history.events.len().min(from + max)).find(large);
        let end = end.unwrap_or(self.history.events.len().min(from + max));
        if end == from && max > 0 && self.history.is_large(from) {
            let stub = self.history.events[from].bytes.clone();
            self.reader = None;
            self.said.push_back((number, Said::TooLarge(stub)));
            return;
        }
        reader.at = end;
        let events = self.history.events[from..end].iter().map(|event| event.bytes.clone()).collect();
        let next = self.history.events.get(end).map_or(u64::MAX, |event| event.position.0);
        // More may happen at the time of the last event.
        let passed = next.min(self.history.events.last().map_or(0, |event| event.position.0));
        let resume = self.random.random_bool(0.5).then(|| self.history.token_before(end)).flatten();
        let batch = Batch { events, resume, passed: self.tells.then_some(passed), ..Batch::default() };
        self.said.push_back((number, Said::Batch(batch)));
    }

    fn break_cursor(&mut self) {
        if let Some(Reader { number, .. }) = self.reader.take() {
            self.say_failed(number, SourceError::Transient("a test".into()));
        }
    }

    fn say_failed(&mut self, number: u64, error: SourceError) {
        self.said.push_back((number, Said::Failed { error, retry_at: self.now }));
    }

    /// What was said first is heard.
    fn hear(&mut self) {
        let Some((number, said)) = self.said.pop_front() else { return };
        let mut out = Vec::new();
        let heard = self.catch_up.hear(&self.live, 0, number, said, self.now, &mut out);
        self.unheard += usize::from(!heard);
        self.pending.extend(out);
    }

    fn work(&mut self, max: usize) {
        let mut out = Vec::new();
        self.catch_up.work(&self.live, 0, max, &mut out).unwrap();
        self.pending.extend(out);
    }

    fn release(&mut self, shard: usize) {
        if self.pending.iter().all(|(of, _)| usize::from(of.0) != shard)
            && self.shards[shard].ring.len() <= RING / 2
            && let Some(item) = self.catch_up.take(ShardIndex(shard as u16))
        {
            self.shards[shard].ring.push_back(item);
        }
    }

    fn tick(&mut self) {
        self.now.0 += 1;
        let mut out = Vec::new();
        self.catch_up.tick(&self.live, self.now, |_| true, &mut out);
        self.pending.extend(out);
    }

    fn step(&mut self) {
        let shard = self.random.random_range(0..self.shards.len());
        match self.random.random_range(0..100) {
            0..15 => {
                let max = self.random.random_range(1..4);
                self.read_live(max);
            }
            15..30 => {
                for _ in 0..self.random.random_range(1..6) {
                    if let Some(item) = self.shards[shard].ring.pop_front() {
                        self.shards[shard].take(item);
                    }
                }
            }
            30..40 => self.look(shard),
            40..46 => self.tick(),
            46..53 => self.open_cursor(),
            53..61 => {
                let max = self.random.random_range(0..6);
                self.read_cursor(max);
            }
            61..68 => self.hear(),
            68..80 => {
                let max = self.random.random_range(1..5);
                self.work(max);
            }
            80..92 => self.release(shard),
            92 if self.faults => self.break_cursor(),
            93 if self.faults => self.reopen_live(),
            94 if self.faults => self.subscribe(),
            95 if self.faults => self.history.grow(&mut self.random),
            96 => {
                let mut out = Vec::new();
                self.live.progress(&mut out);
                self.pending.extend(out);
            }
            _ => {}
        }
        self.flush();
    }

    fn is_at_rest(&self) -> bool {
        let settled = |sub: &Sub| matches!(sub.state, State::Live | State::Resync);
        self.live_cursor == self.history.events.len()
            && self.pending.is_empty()
            && self.shards.iter().all(|shard| shard.ring.is_empty() && shard.subs.iter().all(settled))
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
        }
        self.faults = false;
        // Something happens in the end, so that a source that tells nothing comes past all places at which nothing stands.
        let last = self.history.events.last().map_or(0, |event| event.position.0).max(self.history.clock);
        self.history.push(last + (1 << 32), 0, Kind::Insert);
        for _ in 0..100_000 {
            if self.is_at_rest() {
                return;
            }
            self.step();
        }
        let shards: Vec<_> = self.shards.iter().map(|shard| &shard.subs).collect();
        panic!("it doesn't come to rest: {shards:?} {:?}", self.catch_up);
    }

    /// What each subscription got, against what history has for it. Returns how many had to be caught up, and were told to read anew.
    fn check(&self, seed: u64) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for sub in self.shards.iter().flat_map(|shard| &shard.subs) {
            let wanted = self.history.wanted(sub.collection, sub.after);
            match sub.state {
                State::Resync => {
                    assert!(sub.at.0 < self.kept_from, "seed {seed}: {sub:?} lost nothing");
                    assert!(wanted.starts_with(&sub.got), "seed {seed}: {sub:?} wanted {wanted:?}");
                    *counts.entry("lost").or_default() += 1;
                }
                _ => {
                    assert_eq!(sub.got, wanted, "seed {seed}: {sub:?}");
                    *counts.entry("whole").or_default() += 1;
                }
            }
        }
        let counters = self.catch_up.counters(0);
        *counts.entry("caught up").or_default() += counters.caught_up as usize;
        *counts.entry("events").or_default() += counters.items as usize;
        *counts.entry("reopened").or_default() += counters.reopenings as usize;
        *counts.entry("unheard").or_default() += self.unheard;
        counts
    }
}

fn sum(of: &mut BTreeMap<&'static str, usize>, with: BTreeMap<&'static str, usize>) {
    with.into_iter().for_each(|(name, count)| *of.entry(name).or_default() += count);
}

#[test]
fn every_subscription_gets_each_of_its_events_once_and_in_order() {
    let mut counts = BTreeMap::new();
    for seed in 0..1_500 {
        let mut world = World::new(seed);
        for _ in 0..world.random.random_range(1..6) {
            world.subscribe();
        }
        let steps = world.random.random_range(50..900);
        world.run(steps);
        sum(&mut counts, world.check(seed));
    }
    assert!(counts["caught up"] > 1_500 && counts["events"] > 5_000 && counts["reopened"] > 500, "{counts:?}");
}

#[test]
fn only_what_is_lost_is_told_as_lost() {
    let mut counts = BTreeMap::new();
    for seed in 0..600 {
        let mut world = World::new(seed);
        let events = &world.history.events;
        let live = world.live.enqueued(0).unwrap().time;
        // Live reading itself has lost nothing.
        world.kept_from = events[world.random.random_range(0..events.len())].position.0.min(live);
        for _ in 0..6 {
            world.subscribe();
        }
        world.run(300);
        sum(&mut counts, world.check(seed));
    }
    assert!(counts["lost"] > 300 && counts["whole"] > 1_000, "{counts:?}");
}
