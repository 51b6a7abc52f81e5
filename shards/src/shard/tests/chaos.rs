//! Gateways that come, go, crash and lag at random, around a log and an outbox that are too small, two sources, and passes over their
//! history that begin, fail and meet the live stream: whatever happens, a subscription has every match once, in order, or is told that
//! its continuity is broken. That is told only where a pass was made to fail for good.

use proptest::prelude::*;

use super::*;
use crate::*;
use wire::*;

const GATEWAYS: [&str; 2] = ["g", "h"];
/// Ids of each Gateway's subscriptions, and what they want of field `a`.
const WANTED: [(&str, &str); 3] = [("all", ""), ("x", "x"), ("y", "y")];

#[derive(Clone, Debug)]
enum Step {
    Insert {
        other: bool,
        a: usize,
    },
    Gap,
    /// A pass begins, so far from where one is wanted.
    Begin {
        other: bool,
        off: i64,
    },
    Bring {
        other: bool,
        count: usize,
    },
    Merge {
        other: bool,
    },
    Fail {
        other: bool,
        why: usize,
    },
    Progress,
    Tick(u64),
    Fill {
        gateway: usize,
        bytes: usize,
    },
    Done {
        gateway: usize,
        all_but: u64,
    },
    Persist {
        gateway: usize,
    },
    Disconnect {
        gateway: usize,
    },
    Connect {
        gateway: usize,
        crash: bool,
        present: [bool; 3],
    },
    Unsubscribe {
        gateway: usize,
        sub: usize,
    },
    Replace {
        gateway: usize,
        sub: usize,
    },
    Seen,
    Work,
}

fn step() -> impl Strategy<Value = Step> {
    let gateway = || 0..GATEWAYS.len();
    prop_oneof![
        8 => (any::<bool>(), 0..3_usize).prop_map(|(other, a)| Step::Insert { other, a }),
        3 => (any::<bool>(), -2..4_i64).prop_map(|(other, off)| Step::Begin { other, off }),
        5 => (any::<bool>(), 1..12_usize).prop_map(|(other, count)| Step::Bring { other, count }),
        3 => any::<bool>().prop_map(|other| Step::Merge { other }),
        1 => (any::<bool>(), 0..8_usize).prop_map(|(other, why)| Step::Fail { other, why }),
        1 => Just(Step::Gap),
        1 => Just(Step::Progress),
        2 => (50..1_500_u64).prop_map(Step::Tick),
        4 => (gateway(), 1..2_000_usize).prop_map(|(gateway, bytes)| Step::Fill { gateway, bytes }),
        3 => (gateway(), 0..3_u64).prop_map(|(gateway, all_but)| Step::Done { gateway, all_but }),
        2 => gateway().prop_map(|gateway| Step::Persist { gateway }),
        1 => gateway().prop_map(|gateway| Step::Disconnect { gateway }),
        2 => (gateway(), any::<bool>(), any::<[bool; 3]>())
            .prop_map(|(gateway, crash, present)| Step::Connect { gateway, crash, present }),
        1 => (gateway(), 0..3_usize).prop_map(|(gateway, sub)| Step::Unsubscribe { gateway, sub }),
        1 => (gateway(), 0..3_usize).prop_map(|(gateway, sub)| Step::Replace { gateway, sub }),
        2 => Just(Step::Seen),
        4 => Just(Step::Work),
    ]
}

/// Places in the histories of both sources. None: nothing is known.
type Places = [Option<u64>; 2];

const SOURCES: [BackendId; 2] = [BACKEND, OTHER];

fn max(one: Places, other: Places) -> Places {
    [one[0].max(other[0]), one[1].max(other[1])]
}

fn or(one: Places, other: Places) -> Places {
    [one[0].or(other[0]), one[1].or(other[1])]
}

/// What is told as `1`, `none`, `1 other 2`.
fn places(words: &[&str]) -> Places {
    let time = |at: usize| words.get(at).and_then(|word| word.parse().ok());
    [time(0), time(2)]
}

/// One subscription as its application has it.
#[derive(Clone, Debug, Default)]
struct Had {
    bound: bool,
    /// Heartbeats don't speak of it.
    catching_up: bool,
    /// Everything up to here has been handled or excused. None before the first binding.
    upto: Places,
    /// What was acked as done.
    done: Places,
    /// What outlives a crash.
    kept: Places,
    /// Which of two contents it is registered with.
    transitions: bool,
}

struct Chaos {
    world: World,
    connections: [Option<ConnectionId>; 2],
    had: [[Had; 3]; 2],
    /// `upto` of each subscription after each `seq`.
    history: [Vec<[Places; 3]>; 2],
    acked: [u64; 2],
    /// Of each source: times at which something happened, and what `a` was; None for a gap.
    happened: [Vec<(u64, Option<&'static str>)>; 2],
    /// Whether passes may fail for good.
    loses_history: bool,
    lost_history: bool,
    running: [bool; 2],
}

impl Chaos {
    /// With few units in a slice, work waits for the step that does it.
    fn new(log_events_max: usize, outbox: (usize, usize), slice_units: u32, loses_history: bool) -> Self {
        let mut world = World::with(|config| {
            config.log_events_max = log_events_max;
            (config.outbox_bytes_max, config.outbox_events_max) = outbox;
            config.backends.push(BackendConfig { id: OTHER, before_images: false });
            config.received_deadline_ms = u64::MAX / 2;
            config.slice_units = slice_units;
        });
        world.works = slice_units >= SLICE_UNITS_WHOLE;
        Self {
            world,
            connections: [None; 2],
            had: Default::default(),
            history: Default::default(),
            acked: [0; 2],
            happened: Default::default(),
            loses_history,
            lost_history: false,
            running: [false; 2],
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Insert { other, a } => {
                let a = ["x", "y", "z"][a];
                let source = SOURCES[usize::from(other)];
                self.world.change_of(source, Operation::Insert, "d", None, Some(a));
                self.happened[usize::from(other)].push((self.world.now_of(source).time, Some(a)));
            }
            Step::Gap => {
                self.world.gap(Scope::Everything);
                self.happened[0].push((self.world.time, None));
            }
            Step::Begin { other, off } => self.begin(usize::from(other), off),
            Step::Bring { other, count } => {
                for _ in 0..count {
                    if self.running[usize::from(other)] {
                        self.world.bring(SOURCES[usize::from(other)]);
                    }
                }
            }
            Step::Merge { other } => {
                if std::mem::take(&mut self.running[usize::from(other)]) {
                    self.world.merge(SOURCES[usize::from(other)]);
                }
            }
            Step::Fail { other, why } => {
                if std::mem::take(&mut self.running[usize::from(other)]) {
                    let failure = match why {
                        // All of it up to where the source is: whoever waits waited for something before.
                        0 if self.loses_history => {
                            CatchUpFailure::HistoryLost { upto: self.world.now_of(SOURCES[usize::from(other)]) }
                        }
                        1 if self.loses_history => CatchUpFailure::TooSlow,
                        _ => CatchUpFailure::Interrupted,
                    };
                    self.lost_history |= failure != CatchUpFailure::Interrupted;
                    self.world.fail(SOURCES[usize::from(other)], failure);
                }
            }
            Step::Progress => self.world.progress(),
            Step::Tick(ms) => self.world.tick(ms),
            Step::Seen => self.world.seen(),
            Step::Work => _ = self.world.work(),
            Step::Fill { gateway, bytes } => {
                self.world.fill_bytes = bytes;
                if let Some(connection) = self.connections[gateway] {
                    let (_, seen) = self.world.fill(connection);
                    self.see(gateway, &seen);
                }
            }
            Step::Done { gateway, all_but } => self.ack(gateway, all_but),
            Step::Persist { gateway } => {
                for had in &mut self.had[gateway] {
                    // An application keeps what it is done with; now and then it lags behind that.
                    had.kept = had.done;
                }
            }
            Step::Disconnect { gateway } => {
                if let Some(connection) = self.connections[gateway].take() {
                    self.world.disconnect(connection);
                }
            }
            Step::Connect { gateway, crash, present } => self.connect(gateway, crash, present),
            Step::Unsubscribe { gateway, sub } => {
                if let Some(connection) = self.connections[gateway] {
                    self.know_handle(gateway, sub);
                    self.world.unsubscribe(connection, WANTED[sub].0);
                    self.world.finish();
                    self.forget(gateway, sub);
                }
            }
            Step::Replace { gateway, sub } => {
                if let Some(connection) = self.connections[gateway] {
                    self.know_handle(gateway, sub);
                    let transitions = !self.had[gateway][sub].transitions;
                    self.forget(gateway, sub);
                    self.had[gateway][sub].transitions = transitions;
                    let (id, a) = WANTED[sub];
                    self.world.subscribe(connection, vec![SubscribeItem { transitions, ..item(id, a) }]);
                    self.world.finish();
                }
            }
        }
        let settled = self.world.settled().unwrap_or(0);
        assert!(settled <= self.world.time);
    }

    fn begin(&mut self, source: usize, off: i64) {
        if std::mem::replace(&mut self.running[source], true) {
            return;
        }
        let now = self.world.now_of(SOURCES[source]).time;
        let from = self.world.wanted_of(SOURCES[source]).unwrap_or(now);
        self.world.begin(SOURCES[source], from.saturating_add_signed(off).min(now));
    }

    /// Takes what waits, if this one's handle is not known yet: what is bound and ended before it was told is nothing that a
    /// Gateway could tell from what takes its name.
    fn know_handle(&mut self, gateway: usize, sub: usize) {
        self.world.finish();
        while !self.had[gateway][sub].bound {
            let (written, seen) = self.world.fill(self.connections[gateway].unwrap());
            self.see(gateway, &seen);
            if written == 0 {
                return;
            }
        }
    }

    /// It has ended; one of its name begins anew.
    fn forget(&mut self, gateway: usize, sub: usize) {
        let transitions = self.had[gateway][sub].transitions;
        self.had[gateway][sub] = Had { transitions, ..Had::default() };
        for after in &mut self.history[gateway] {
            after[sub] = Places::default();
        }
    }

    fn ack(&mut self, gateway: usize, all_but: u64) {
        let Some(connection) = self.connections[gateway] else { return };
        let last = self.world.last_seq(connection);
        let done = last.saturating_sub(all_but).max(self.acked[gateway]);
        self.acked[gateway] = done;
        self.world.ack(connection, last, done);
        if done > 0 {
            for (had, upto) in self.had[gateway].iter_mut().zip(self.history[gateway][done as usize - 1]) {
                had.done = max(had.done, upto);
            }
        }
    }

    fn connect(&mut self, gateway: usize, crash: bool, present: [bool; 3]) {
        let connection = self.world.hello(GATEWAYS[gateway]);
        self.connections[gateway] = Some(connection);
        self.acked[gateway] = 0;
        self.history[gateway].clear();
        let mut items = Vec::new();
        for ((had, (id, a)), present) in self.had[gateway].iter_mut().zip(WANTED).zip(present) {
            (had.bound, had.catching_up) = (false, false);
            let places = match (present, crash) {
                // What was kept is presented; without a crash, what is in memory.
                (true, true) => had.kept,
                (true, false) => had.upto,
                (false, _) => Places::default(),
            };
            // Nothing presented: whatever wasn't done comes again.
            let memory = if crash { Places::default() } else { had.upto };
            had.upto = match places {
                [None, None] if had.upto == Places::default() => memory,
                [None, None] => or(had.done, memory),
                places => places,
            };
            // What is presented is not owed any more.
            had.done = max(had.done, places);
            let presented = SOURCES.into_iter().zip(places);
            let positions =
                presented.filter_map(|(backend, time)| Some(Position { backend, ..position(time?) })).collect();
            if present {
                items.push(SubscribeItem { positions, transitions: had.transitions, ..item(id, a) });
            }
        }
        self.world.subscribe(connection, items);
        self.world.sync_done(connection);
    }

    /// Whether a subscription must be told of something of a source in this span, the end included.
    fn wanted_in(&self, sub: usize, source: usize, after: u64, upto: u64) -> Option<u64> {
        let wants = |a: Option<&str>| a.is_none_or(|a| WANTED[sub].1.is_empty() || WANTED[sub].1 == a);
        let mut happened = self.happened[source].iter();
        happened.find(|(time, a)| *time > after && *time <= upto && wants(*a)).map(|(time, _)| *time)
    }

    fn see(&mut self, gateway: usize, seen: &Seen) {
        let of = |id: &str| WANTED.iter().position(|(name, _)| *name == id).unwrap();
        let seqs = self.world.seqs_of_last_fill(self.connections[gateway].unwrap());
        for (line, seq) in seen.0.iter().zip(seqs) {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |word: &str| word.parse::<u64>().unwrap();
            let (sub, source, time) = match words[..] {
                ["bound", id, "from", ref from @ ..] => {
                    let had = &mut self.had[gateway][of(id)];
                    assert!(!had.bound, "{id} is bound twice");
                    had.bound = true;
                    had.upto = or(had.upto, places(from));
                    continue;
                }
                ["heartbeat", ref told @ ..] => {
                    for (source, time) in places(told).into_iter().enumerate() {
                        let Some(time) = time else { continue };
                        for sub in 0..3 {
                            let had = &self.had[gateway][sub];
                            if !had.bound || had.catching_up {
                                continue;
                            }
                            let Some(upto) = had.upto[source] else { continue };
                            assert_eq!(self.wanted_in(sub, source, upto, time), None, "{line} skips for {sub}");
                            // As an SDK does: a position is adopted, never given back.
                            self.had[gateway][sub].upto[source] = Some(upto.max(time));
                        }
                    }
                    continue;
                }
                [id, "catching", "up"] => {
                    self.had[gateway][of(id)].catching_up = true;
                    continue;
                }
                [id, "caught", "up"] => {
                    let caught_up = std::mem::take(&mut self.had[gateway][of(id)].catching_up);
                    assert!(caught_up, "{line}, and it never was behind");
                    continue;
                }
                [id, "closed", _] => {
                    // What was bound and sent before that, and comes only now, is of one that has ended.
                    self.forget(gateway, of(id));
                    continue;
                }
                [id, "resync", _, "from", ref from @ ..] => {
                    let had = &mut self.had[gateway][of(id)];
                    (had.upto, had.catching_up) = (places(from), false);
                    (of(id), 0, 0)
                }
                [id, _, time] => (of(id), 0, number(time)),
                [id, _, "other", time] => (of(id), 1, number(time)),
                _ => panic!("not expected: {line}"),
            };
            let had = &self.had[gateway][sub];
            assert!(had.bound, "{line} before it is bound");
            let upto = had.upto[source].expect("set when it was bound");
            // At or below what it has: dropped, as an SDK does.
            if time > upto {
                assert_eq!(self.wanted_in(sub, source, upto, time), Some(time), "{line} skips, after {upto}");
                self.had[gateway][sub].upto[source] = Some(time);
            }
            let now = [0, 1, 2].map(|sub: usize| self.had[gateway][sub].upto);
            let history = &mut self.history[gateway];
            history.truncate(seq as usize - 1);
            assert_eq!(history.len(), seq as usize - 1);
            history.push(now);
        }
    }

    /// Takes all that waits for everybody, and is done with it. Whether there was anything.
    fn take_all(&mut self) -> bool {
        let mut any = false;
        for gateway in 0..GATEWAYS.len() {
            let connection = self.connections[gateway].unwrap();
            loop {
                let (written, seen) = self.world.fill(connection);
                self.see(gateway, &seen);
                if written == 0 {
                    break;
                }
                any = true;
            }
            self.world.done(connection);
        }
        any
    }

    /// Everybody comes, takes all and is done: nothing may be missing.
    fn end(&mut self) {
        self.world.works = true;
        self.world.seen();
        self.world.fill_bytes = 1 << 20;
        for gateway in 0..GATEWAYS.len() {
            self.connect(gateway, false, [true; 3]);
        }
        self.world.seen();
        let mut passes = 0;
        self.take_all();
        while self.world.shard.stats().subscriptions_behind > 0 {
            for (source, backend) in SOURCES.into_iter().enumerate() {
                if !self.running[source] && self.world.wanted_of(backend).is_some() {
                    self.begin(source, 0);
                }
                if std::mem::take(&mut self.running[source]) {
                    while self.world.bring(backend) {
                        self.take_all();
                    }
                    self.world.merge(backend);
                }
            }
            self.take_all();
            passes += 1;
            assert!(passes < 20, "they never catch up");
        }
        for (gateway, name) in GATEWAYS.iter().enumerate() {
            for sub in 0..3 {
                for (source, backend) in SOURCES.into_iter().enumerate() {
                    let had = &self.had[gateway][sub];
                    assert!(!had.catching_up, "{name} {sub} is never told that it has caught up");
                    let upto = had.upto[source].expect("bound, and so told from where");
                    let now = self.world.now_of(backend).time;
                    assert_eq!(self.wanted_in(sub, source, upto, now), None, "{name} {sub} misses it");
                }
            }
        }
        for backend in SOURCES {
            assert_eq!(self.world.shard.settled().get(backend).copied(), Some(self.world.now_of(backend)));
        }
        if !self.lost_history {
            assert_eq!(self.world.shard.stats().resyncs.total(), 0, "a resync without cause");
        }
    }
}

fn run(
    log_events_max: usize,
    outbox: (usize, usize),
    slice_units: u32,
    loses_history: bool,
    steps: &[Step],
) -> ShardStats {
    let mut chaos = Chaos::new(log_events_max, outbox, slice_units, loses_history);
    for gateway in 0..GATEWAYS.len() {
        chaos.connect(gateway, false, [true; 3]);
    }
    for step in steps {
        chaos.take(step);
    }
    chaos.end();
    chaos.world.shard.stats()
}

fn slice_units() -> impl Strategy<Value = u32> {
    prop_oneof![Just(SLICE_UNITS_WHOLE), 1..30_u32]
}

/// A slice in which all is done that these few may ask for.
const SLICE_UNITS_WHOLE: u32 = 100_000;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_in_silence(
        log_events_max in 3..30_usize,
        outbox in (300..4_000_usize, 2..60_usize),
        slice_units in slice_units(),
        loses_history in any::<bool>(),
        steps in prop::collection::vec(step(), 1..300),
    ) {
        run(log_events_max, outbox, slice_units, loses_history, &steps);
    }

    #[test]
    fn nobody_falls_behind_where_there_is_room(slice_units in slice_units(), steps in prop::collection::vec(step(), 1..200)) {
        let stats = run(10_000, (1 << 30, 1 << 30), slice_units, true, &steps);
        prop_assert_eq!(stats.resyncs.total(), 0);
        let CatchUpCounts { left_log, outbox_full, unverifiable, .. } = stats.catch_ups;
        prop_assert_eq!(left_log + outbox_full + unverifiable, 0);
    }
}
