//! Builds the engines, checks them, and lets them take turns.

use std::{
    thread,
    time::{Duration, Instant},
};

use loadgen::pinned::Pinned;
use workload::matching::{Answer, HOT_STRIDE, Pool, Workload, World, confirm, expected};

use super::{Built, EngineKind, Row, build, churn, ours::places, whole};
use crate::{heap, measure::work_time};

/// What is measured, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// None: all.
    pub workloads: Vec<Workload>,
    pub engines: Vec<EngineKind>,
    pub sizes: Vec<usize>,
    /// Events of a workload; those at the end of the pool come before the first ones again.
    pub events: Option<usize>,
    pub seed: u64,
    /// Seconds that an engine is at work in all its rounds.
    pub seconds: f64,
    pub rounds: usize,
    /// Events that are checked, where the engine is quick enough.
    pub checked: Option<usize>,
    /// Adding and removing while events flow.
    pub churn: bool,
    /// Memory of a subscription with all that a node keeps of it.
    pub whole: bool,
    /// Whether to say on standard error what goes on.
    pub talk: bool,
}

impl Options {
    pub const SIZES: [usize; 4] = [1_000, 100_000, 1_000_000, 10_000_000];

    fn talk(&self, text: &str) {
        if self.talk {
            eprintln!("{text}");
        }
    }
}

/// Measures all that was asked for. `each` is shown the rows as they come.
///
/// # Errors
/// When a workload is not what it should be: a text that says how.
pub fn run(options: &Options, mut each: impl FnMut(&Row)) -> Result<Vec<Row>, String> {
    heap::pause(true);
    let mut rows = Vec::new();
    let mut add = |some: Vec<Row>| {
        some.iter().for_each(&mut each);
        rows.extend(some);
    };
    for workload in Workload::ALL.into_iter().filter(|workload| options.workloads.contains(workload)) {
        for subscriptions in sizes(workload, options) {
            add(measure(&World::new(workload, subscriptions, options.seed), options)?);
        }
    }
    if options.churn {
        add(churn::measure(options));
    }
    if options.whole {
        add(whole::measure(options));
    }
    heap::pause(false);
    Ok(rows)
}

/// The sizes of a workload: one value with 100,000 subscriptions is hot enough.
fn sizes(workload: Workload, options: &Options) -> Vec<usize> {
    let most = if workload == Workload::HotValue { HOT_SUBSCRIPTIONS_MAX } else { usize::MAX };
    options.sizes.iter().copied().filter(|size| *size <= most).collect()
}

const HOT_SUBSCRIPTIONS_MAX: usize = 100_000;

/// Enough that they are not in the caches when they come round again, where the subscriptions are not either.
fn events(world: &World, options: &Options) -> usize {
    options.events.unwrap_or(if world.subscriptions > 100_000 { 1 << 18 } else { 1 << 16 })
}

pub(super) fn checked(world: &World, options: &Options, pool: &Pool) -> usize {
    let wanted = options.checked.unwrap_or(if world.subscriptions > 1_000_000 { 200 } else { 2_000 });
    wanted.min(pool.len())
}

/// Threads of the brute force: all that there are.
pub(super) fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The oracle's evaluations for one workload and size: about two seconds.
const ORACLE_EVALUATIONS: usize = 1_000_000;

fn measure(world: &World, options: &Options) -> Result<Vec<Row>, String> {
    let name = world.workload.name();
    let began = Instant::now();
    let pool = world.events(events(world, options));
    let checked = checked(world, options, &pool);
    let answers = expected(world, &pool, 0..checked, threads());
    let evaluations = confirm(world, &pool, &answers, ORACLE_EVALUATIONS)?;
    let matches = answers.iter().map(Vec::len).sum::<usize>() as f64 / checked as f64;
    options.talk(&format!(
        "{name}, {} subscriptions in {} collections, {} events of {:.0} bytes, {matches:.2} matches an event; brute force over \
         {checked} events, {evaluations} of its answers confirmed by the oracle ({:.1} s)",
        world.subscriptions,
        world.collections(),
        pool.len(),
        pool.document_bytes(),
        began.elapsed().as_secs_f64(),
    ));
    // With fewer the average is not yet what it will be.
    if let Some(wanted) = world.matches_wanted().filter(|wanted| checked >= 1_000 && !wanted.contains(&matches)) {
        return Err(format!("{name}: {matches:.2} matches an event, wanted are {wanted:?}"));
    }
    if world.workload == Workload::HotValue {
        options.talk(&format!("  one event in {HOT_STRIDE} has the hot value, and matches all"));
    }
    let places = places(world);
    let kinds = options.engines.iter().filter(|kind| kind.takes(world.workload, world.subscriptions));
    let mut runs: Vec<Run<'_>> = Vec::new();
    for kind in kinds {
        let began = Instant::now();
        let mut run = Run::new(build(*kind, world, &pool, &places), &pool);
        let built = began.elapsed();
        run.check(&answers, options);
        options.talk(&format!(
            "  {}: built in {:.1} s, checked on {} events in {:.1} s, {} wrong",
            kind.name(),
            built.as_secs_f64(),
            run.checked,
            (began.elapsed() - built).as_secs_f64(),
            run.wrong,
        ));
        runs.push(run);
    }
    if runs.iter().any(|run| run.built.engine.kind() == EngineKind::ATree) && world.workload != Workload::HotValue {
        options.talk("  a-tree has no prefixes: it is given the beginning of a field as a field of its own");
    }
    {
        let _pinned = Pinned::to_one_core();
        for round in 0..=options.rounds {
            for run in &mut runs {
                // The first one is for the caches.
                let seconds = options.seconds / options.rounds as f64 / if round == 0 { 2.0 } else { 1.0 };
                run.round(Duration::from_secs_f64(seconds), round > 0);
            }
        }
        for run in &mut runs {
            run.one_at_a_time(Duration::from_secs_f64(options.seconds / 4.0));
        }
    }
    Ok(runs.iter().map(|run| run.row(world)).collect())
}

/// An engine and what was found out about it.
struct Run<'a> {
    built: Built<'a>,
    pool: &'a Pool,
    /// The next event of the pool.
    next: usize,
    /// Events of a step: so many that reading the clock doesn't count.
    step: usize,
    /// Nanoseconds an event, by round.
    rounds: Vec<f64>,
    /// Nanoseconds of events, each for itself.
    single: Vec<u64>,
    events: u64,
    matches: u64,
    checked: usize,
    wrong: u64,
}

impl<'a> Run<'a> {
    fn new(built: Built<'a>, pool: &'a Pool) -> Self {
        Self {
            built,
            pool,
            next: 0,
            step: 1,
            rounds: Vec::new(),
            single: Vec::new(),
            events: 0,
            matches: 0,
            checked: 0,
            wrong: 0,
        }
    }

    /// Compares its answers to these, as far as it gets.
    fn check(&mut self, answers: &[Vec<Answer>], options: &Options) {
        // Our own answer all of them, however long it takes.
        let slow = matches!(self.built.engine.kind(), EngineKind::Cel | EngineKind::Native | EngineKind::ATree);
        let enough = Duration::from_secs_f64(CHECK_SECONDS_PER_SECOND * options.seconds);
        let began = Instant::now();
        for (event, wanted) in answers.iter().enumerate() {
            if slow && began.elapsed() > enough {
                break;
            }
            let mut found = self.built.engine.answer(event);
            found.sort_unstable();
            self.wrong += difference(&found, wanted);
            self.checked += 1;
        }
    }

    /// Lets it work for about this long.
    fn round(&mut self, enough: Duration, counts: bool) {
        let (mut events, mut took) = (0, Duration::ZERO);
        while took < enough {
            let range = self.next..self.pool.len().min(self.next + self.step);
            self.next = if range.end == self.pool.len() { 0 } else { range.end };
            let engine = &mut self.built.engine;
            engine.prepare(range.clone());
            let began = work_time();
            let matches = engine.round(range.clone());
            let step = work_time().saturating_sub(began);
            engine.rest();
            if step < Duration::from_micros(500) {
                self.step = (2 * self.step).min(engine.chunk()).min(self.pool.len());
            }
            took += step;
            events += range.len() as u64;
            if counts {
                self.matches += matches;
            }
        }
        if counts {
            self.events += events;
            self.rounds.push(took.as_nanos() as f64 / events as f64);
        }
    }

    /// Measures each event by itself.
    fn one_at_a_time(&mut self, enough: Duration) {
        let began = Instant::now();
        while began.elapsed() < enough && self.single.len() < SINGLE_MAX {
            let event = self.next..self.next + 1;
            self.next = (self.next + 1) % self.pool.len();
            let engine = &mut self.built.engine;
            engine.prepare(event.clone());
            let began = Instant::now();
            engine.round(event);
            self.single.push(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
            engine.rest();
        }
    }

    fn row(&self, world: &World) -> Row {
        let mut rounds = self.rounds.clone();
        rounds.sort_unstable_by(f64::total_cmp);
        let ns = rounds.get(rounds.len() / 2).copied();
        let mut single = self.single.clone();
        single.sort_unstable();
        // The lowest that 99 of 100 do not exceed.
        let p99 = (single.len() * 99).div_ceil(100).checked_sub(1).and_then(|at| single.get(at)).map(|ns| *ns as f64);
        let mut row = Row::new(world.workload.name(), self.built.engine.kind().name(), world.subscriptions, world.seed);
        row.events_per_s = ns.map(|ns| 1e9 / ns);
        row.ns_per_event = ns;
        row.p99_ns = p99;
        row.bytes_per_subscription =
            (self.built.bytes > 0).then(|| self.built.bytes as f64 / world.subscriptions as f64);
        row.build_ms = Some(self.built.build.as_secs_f64() * 1e3);
        row.matches_per_event = Some(self.matches as f64 / self.events as f64);
        row.doc_bytes = Some(self.pool.document_bytes());
        row.checked = self.checked;
        row.wrong = self.wrong;
        row
    }
}

/// Seconds that a peer may take to be checked, for each second that it is measured.
const CHECK_SECONDS_PER_SECOND: f64 = 2.0;
/// Events that are measured each for itself.
const SINGLE_MAX: usize = 100_000;

/// Answers that are in one of two ordered lists and not in the other.
pub(super) fn difference(found: &[Answer], wanted: &[Answer]) -> u64 {
    let lacks = |of: &[Answer], other: &[Answer]| of.iter().filter(|a| other.binary_search(a).is_err()).count();
    let twice = found.windows(2).filter(|pair| pair[0] == pair[1]).count();
    (lacks(found, wanted) + lacks(wanted, found) + twice) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_counted() {
        let answer = |subscription, before, after| Answer { subscription, before, after };
        let (one, two) = (answer(1, false, true), answer(2, false, true));
        assert_eq!(difference(&[one, two], &[one, two]), 0);
        assert_eq!(difference(&[one], &[one, two]), 1);
        assert_eq!(difference(&[one, two], &[two]), 1);
        assert_eq!(difference(&[one, one], &[one]), 1);
        assert_eq!(difference(&[answer(1, true, true)], &[one]), 2);
    }
}
