//! Gateways that come, go, crash and lag at random, around a log and an outbox that are too small: whatever happens, a
//! subscription has every match once, in order, or is told that its continuity is broken.

use proptest::prelude::*;

use super::*;
use crate::*;
use wire::*;

const GATEWAYS: [&str; 2] = ["g", "h"];
/// Ids of each Gateway's subscriptions, and what they want of field `a`.
const WANTED: [(&str, &str); 3] = [("all", ""), ("x", "x"), ("y", "y")];

#[derive(Clone, Debug)]
enum Step {
    Insert(usize),
    Gap,
    Progress,
    Tick(u64),
    Fill { gateway: usize, bytes: usize },
    Done { gateway: usize, all_but: u64 },
    Persist { gateway: usize },
    Disconnect { gateway: usize },
    Connect { gateway: usize, crash: bool, present: [bool; 3] },
    Unsubscribe { gateway: usize, sub: usize },
    Replace { gateway: usize, sub: usize },
    Seen,
    Work,
}

fn step() -> impl Strategy<Value = Step> {
    let gateway = || 0..GATEWAYS.len();
    prop_oneof![
        8 => (0..3_usize).prop_map(Step::Insert),
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

/// One subscription as its application has it.
#[derive(Clone, Debug, Default)]
struct Had {
    bound: bool,
    /// Everything up to here has been handled or excused. None before the first binding.
    upto: Option<u64>,
    /// What was acked as done.
    done: Option<u64>,
    /// What outlives a crash.
    kept: Option<u64>,
    /// Which of two contents it is registered with.
    transitions: bool,
}

struct Chaos {
    world: World,
    connections: [Option<ConnectionId>; 2],
    had: [[Had; 3]; 2],
    /// `upto` of each subscription after each `seq`.
    history: [Vec<[Option<u64>; 3]>; 2],
    acked: [u64; 2],
    /// Times at which something happened, and what `a` was; None for a gap.
    happened: Vec<(u64, Option<&'static str>)>,
}

impl Chaos {
    /// With few units in a slice, work waits for the step that does it.
    fn new(log_events_max: usize, outbox_bytes_max: usize, slice_units: u32) -> Self {
        let mut world = World::with(|config| {
            config.log_events_max = log_events_max;
            config.outbox_bytes_max = outbox_bytes_max;
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
            happened: Vec::new(),
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Insert(a) => {
                let a = ["x", "y", "z"][a];
                self.world.insert("d", a);
                self.happened.push((self.world.time, Some(a)));
            }
            Step::Gap => {
                self.world.gap(Scope::Everything);
                self.happened.push((self.world.time, None));
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
            after[sub] = None;
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
                had.done = had.done.max(upto);
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
            had.bound = false;
            let position = match (present, crash) {
                // What was kept is presented; without a crash, what is in memory.
                (true, true) => had.kept,
                (true, false) => had.upto,
                (false, _) => None,
            };
            // Nothing presented: whatever wasn't done comes again.
            had.upto = position.or(had.done.filter(|_| had.upto.is_some())).or(had.upto.filter(|_| !crash));
            // What is presented is not owed any more.
            had.done = had.done.max(position);
            let positions = position.map(positions).unwrap_or_default();
            if present {
                items.push(SubscribeItem { positions, transitions: had.transitions, ..item(id, a) });
            }
        }
        self.world.subscribe(connection, items);
        self.world.sync_done(connection);
    }

    /// Whether a subscription must be told of something in this span, the end included.
    fn wanted_in(&self, sub: usize, after: u64, upto: u64) -> Option<u64> {
        let wants = |a: Option<&str>| a.is_none_or(|a| WANTED[sub].1.is_empty() || WANTED[sub].1 == a);
        self.happened.iter().find(|(time, a)| *time > after && *time <= upto && wants(*a)).map(|(time, _)| *time)
    }

    fn see(&mut self, gateway: usize, seen: &Seen) {
        let of = |id: &str| WANTED.iter().position(|(name, _)| *name == id).unwrap();
        let seqs = self.world.seqs_of_last_fill(self.connections[gateway].unwrap());
        for (line, seq) in seen.0.iter().zip(seqs) {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |word: &str| word.parse::<u64>().unwrap();
            match words[..] {
                ["bound", id, "from", from] => {
                    let had = &mut self.had[gateway][of(id)];
                    assert!(!had.bound, "{id} is bound twice");
                    had.bound = true;
                    had.upto.get_or_insert(number(from));
                    continue;
                }
                ["heartbeat", time] => {
                    for sub in 0..3 {
                        let Some(upto) = self.had[gateway][sub].upto.filter(|_| self.had[gateway][sub].bound) else {
                            continue;
                        };
                        assert_eq!(self.wanted_in(sub, upto, number(time)), None, "{line} skips for {sub}");
                        // As an SDK does: a position is adopted, never given back.
                        self.had[gateway][sub].upto = Some(upto.max(number(time)));
                    }
                    continue;
                }
                [id, "closed", _] => {
                    // What was bound and sent before that, and comes only now, is of one that has ended.
                    self.forget(gateway, of(id));
                    continue;
                }
                [id, "resync", _, "from", from] => {
                    self.had[gateway][of(id)].upto = Some(number(from));
                }
                [id, _, time] => {
                    let (sub, time) = (of(id), number(time));
                    let had = &self.had[gateway][sub];
                    assert!(had.bound, "{line} before it is bound");
                    let upto = had.upto.expect("set when it was bound");
                    // At or below what it has: dropped, as an SDK does.
                    if time > upto {
                        assert_eq!(self.wanted_in(sub, upto, time), Some(time), "{line} skips, after {upto}");
                        self.had[gateway][sub].upto = Some(time);
                    }
                }
                _ => panic!("not expected: {line}"),
            }
            let now = [0, 1, 2].map(|sub: usize| self.had[gateway][sub].upto);
            let history = &mut self.history[gateway];
            history.truncate(seq as usize - 1);
            assert_eq!(history.len(), seq as usize - 1);
            history.push(now);
        }
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
        for (gateway, name) in GATEWAYS.iter().enumerate() {
            let connection = self.connections[gateway].unwrap();
            loop {
                let (written, seen) = self.world.fill(connection);
                self.see(gateway, &seen);
                if written == 0 {
                    break;
                }
            }
            self.world.done(connection);
            for sub in 0..3 {
                let had = &self.had[gateway][sub];
                let upto = had.upto.expect("bound, and so told from where");
                assert_eq!(self.wanted_in(sub, upto, self.world.time), None, "{name} {sub} misses it");
            }
        }
        if self.world.time > 0 {
            assert_eq!(self.world.settled(), Some(self.world.time));
        }
    }
}

fn run(log_events_max: usize, outbox_bytes_max: usize, slice_units: u32, steps: &[Step]) -> ShardStats {
    let mut chaos = Chaos::new(log_events_max, outbox_bytes_max, slice_units);
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
        outbox_bytes_max in 300..4_000_usize,
        slice_units in slice_units(),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        run(log_events_max, outbox_bytes_max, slice_units, &steps);
    }

    #[test]
    fn nothing_is_resynced_without_cause(slice_units in slice_units(), steps in prop::collection::vec(step(), 1..200)) {
        let stats = run(10_000, 1 << 30, slice_units, &steps);
        prop_assert_eq!(stats.resyncs.total(), 0);
    }
}
