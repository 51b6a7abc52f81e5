//! Compares engines on the same workloads, in one run.
//!
//! ```sh
//! cargo run --release -p bench --bin compare -- matching
//! cargo run --release -p bench --bin compare -- matching --only mixed --max-subscriptions 100000 --json
//! ```

use std::{process::ExitCode, thread};

use bench::{
    compare::{EngineKind, Options, Row, print_goals, print_head, print_row, run},
    heap::Counting,
};
use clap::{Args, Parser, Subcommand, ValueEnum, builder::PossibleValue};
use workload::matching::Workload;

#[global_allocator]
static HEAP: Counting = Counting;

/// Compares engines on the same workloads, in one run.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Which subscriptions a document matches: the index and the shard, against what a user would take instead.
    Matching(Matching),
}

#[derive(Args)]
struct Matching {
    /// A JSON list on standard output, instead of tables.
    #[arg(long)]
    json: bool,
    /// Only this workload. May be given several times.
    #[arg(long, value_name = "WORKLOAD")]
    only: Vec<Only>,
    /// Only this engine. May be given several times.
    #[arg(long, value_name = "ENGINE")]
    engine: Vec<Engine>,
    /// The largest of the sizes 1,000, 100,000, 1,000,000 and 10,000,000 that is measured.
    #[arg(long, value_name = "N", default_value_t = 10_000_000)]
    max_subscriptions: usize,
    /// The smallest one.
    #[arg(long, value_name = "N", default_value_t = 0)]
    min_subscriptions: usize,
    /// Different events of a workload. By default 65,536, above 100,000 subscriptions 262,144.
    #[arg(long, value_name = "N")]
    events: Option<usize>,
    /// Seconds that each engine is measured for, at each workload and size.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.5)]
    seconds: f64,
    /// Rounds in which the engines take turns; the median is told.
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// Events of which the answers are checked. By default 2,000, above a million subscriptions 200; a peer that is too slow for so many
    /// is checked on as many as it answers in twice `--seconds`.
    #[arg(long, value_name = "N")]
    checked: Option<usize>,
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Only {
    Workload(Workload),
    Churn,
    Equality,
}

impl Only {
    const EACH: [Only; 9] = [
        Only::Workload(Workload::Mixed),
        Only::Workload(Workload::MixedOne),
        Only::Workload(Workload::Cel),
        Only::Workload(Workload::Range),
        Only::Workload(Workload::HotValue),
        Only::Workload(Workload::Miss),
        Only::Workload(Workload::Pairs),
        Only::Churn,
        Only::Equality,
    ];
}

impl ValueEnum for Only {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::EACH
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Only::Workload(workload) => workload.name(),
            Only::Churn => "churn",
            Only::Equality => "equality",
        }))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Engine(EngineKind);

impl ValueEnum for Engine {
    fn value_variants<'a>() -> &'a [Self] {
        const EACH: [Engine; EngineKind::ALL.len()] = {
            let mut each = [Engine(EngineKind::OursIndex); EngineKind::ALL.len()];
            let mut at = 0;
            while at < each.len() {
                each[at] = Engine(EngineKind::ALL[at]);
                at += 1;
            }
            each
        };
        &EACH
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()))
    }
}

impl Matching {
    fn options(&self) -> Options {
        let only = if self.only.is_empty() { &Only::EACH[..] } else { &self.only };
        let workload = |only: &Only| match only {
            Only::Workload(workload) => Some(*workload),
            _ => None,
        };
        let engines = self.engine.iter().map(|engine| engine.0).collect::<Vec<_>>();
        let has_index = engines.is_empty() || engines.contains(&EngineKind::OursIndex);
        let between = |size: &usize| (self.min_subscriptions..=self.max_subscriptions).contains(size);
        let mut sizes: Vec<usize> = Options::SIZES.into_iter().filter(between).collect();
        if sizes.is_empty() {
            sizes.push(self.max_subscriptions.max(1));
        }
        Options {
            workloads: only.iter().filter_map(workload).collect(),
            engines: if engines.is_empty() { EngineKind::ALL.to_vec() } else { engines },
            sizes,
            events: self.events,
            seed: self.seed,
            seconds: self.seconds,
            rounds: self.rounds.max(1),
            checked: self.checked,
            churn: only.contains(&Only::Churn) && has_index,
            whole: only.contains(&Only::Equality) && has_index,
            talk: true,
        }
    }
}

fn main() -> ExitCode {
    let What::Matching(matching) = Cli::parse().what;
    let options = matching.options();
    // Expressions are compiled on the thread that measures, and need the room.
    let thread = thread::Builder::new().stack_size(predicate::COMPILE_STACK_BYTES);
    let show = if matching.json { |_: &Row| {} } else { print_row };
    if !matching.json {
        print_head();
    }
    let thread = thread.spawn(move || run(&options, show));
    let rows = match thread.map(|thread| thread.join()) {
        Ok(Ok(Ok(rows))) => rows,
        Ok(Ok(Err(what))) => {
            eprintln!("{what}");
            return ExitCode::FAILURE;
        }
        // A panic has said by itself what was wrong.
        Ok(Err(_)) => return ExitCode::FAILURE,
        Err(error) => {
            eprintln!("no thread to measure on: {error}");
            return ExitCode::FAILURE;
        }
    };
    if matching.json {
        match serde_json::to_string_pretty(&rows) {
            Ok(text) => println!("{text}"),
            Err(error) => {
                eprintln!("the rows can't be written: {error}");
                return ExitCode::FAILURE;
            }
        }
    } else {
        print_goals(&rows);
    }
    // Right before quick.
    if rows.iter().any(|row| row.wrong > 0) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
