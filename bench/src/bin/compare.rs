//! Compares engines on the same workloads, in one run.
//!
//! ```sh
//! cargo run --release -p bench --bin compare -- matching
//! cargo run --release -p bench --bin compare -- matching --only mixed --max-subscriptions 100000 --json
//! cargo run --release -p bench --bin compare -- delivery
//! cargo run --release -p bench --bin compare -- scale --max-idle 100000
//! cargo run --release -p bench --bin compare -- ingest
//! ```

use std::{path::PathBuf, process::ExitCode, thread};

use bench::{
    compare::{EngineKind, Options, print_goals, print_head, print_row, run},
    heap::{self, Counting},
    node::{self, Turns},
};
use clap::{Args, Parser, Subcommand, ValueEnum, builder::PossibleValue};
use serde::Serialize;
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
    /// Events to all who want them: a node, NATS without and with acks, and QUIC alone.
    Delivery(DeliveryArgs),
    /// A node by the number of its shards and of its idle subscriptions, and at a rate.
    Scale(ScaleArgs),
    /// What reading a change stream costs: a node's ingest thread against a bare loop over the driver's cursor.
    Ingest(IngestArgs),
}

#[derive(Args)]
struct TurnsArgs {
    /// A JSON list on standard output, instead of tables.
    #[arg(long)]
    json: bool,
    /// Seconds of each round.
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    seconds: f64,
    /// Rounds in which the engines take turns; the median is told.
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
}

impl TurnsArgs {
    fn turns(&self) -> Turns {
        Turns { seconds: self.seconds.clamp(0.1, 3_600.0), rounds: self.rounds.max(1), talk: true }
    }
}

#[derive(Args)]
struct DeliveryArgs {
    #[command(flatten)]
    turns: TurnsArgs,
    /// Only this engine. May be given several times.
    #[arg(long, value_name = "ENGINE")]
    engine: Vec<Carrier>,
    /// Only this many subscriptions of an event. May be given several times. By default 1, 4 and 64.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    fan_out: Vec<u32>,
    /// Bytes of a document, at least.
    #[arg(long, value_name = "BYTES", default_value_t = 200)]
    payload: usize,
    /// Events a second of the rounds at a rate; with a fan-out above 4 so many fewer that deliveries are as many.
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    rate: u64,
    /// The program, where it isn't on the PATH.
    #[arg(long, value_name = "PATH")]
    nats_server: Option<PathBuf>,
}

#[derive(Args)]
struct ScaleArgs {
    #[command(flatten)]
    turns: TurnsArgs,
    /// Live subscriptions, of which some 3 match an event.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    subscriptions: u32,
    /// The largest of 10,000, 100,000 and 1,000,000 idle subscriptions that is measured.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    max_idle: u32,
    /// Events a second of the rounds at a rate.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: u64,
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1_024))]
    gateways: u16,
}

#[derive(Args)]
struct IngestArgs {
    #[command(flatten)]
    turns: TurnsArgs,
    /// Events of the history that is read.
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    events: u64,
    /// Bytes of a document, at least.
    #[arg(long, value_name = "BYTES", default_value_t = 400)]
    payload: usize,
    /// Events a second that are written and timed from their acknowledgement. May be given several times. By default 1,000 and 10,000.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: Vec<u64>,
    /// Of a replica set, in a database of its own that is dropped in the end. By default STREAMER_TEST_MONGODB_URI, or else SecantusDB
    /// is installed under target/ and started.
    #[arg(long, value_name = "URI")]
    uri: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Carrier(node::Engine);

impl ValueEnum for Carrier {
    fn value_variants<'a>() -> &'a [Self] {
        const EACH: [Carrier; 4] = [
            Carrier(node::Engine::Streamer),
            Carrier(node::Engine::NatsCore),
            Carrier(node::Engine::NatsJetstream),
            Carrier(node::Engine::Quinn),
        ];
        &EACH
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()))
    }
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
    match Cli::parse().what {
        What::Matching(matching) => {
            let options = matching.options();
            show(
                matching.json,
                print_head,
                print_row,
                print_goals,
                move |each| run(&options, each),
                |row| row.wrong > 0,
            )
        }
        What::Delivery(args) => {
            let or_all = |some: Vec<node::Engine>| if some.is_empty() { node::Engine::ALL.to_vec() } else { some };
            let delivery = node::Delivery {
                turns: args.turns.turns(),
                engines: or_all(args.engine.iter().map(|engine| engine.0).collect()),
                fan_outs: if args.fan_out.is_empty() { node::Delivery::FAN_OUTS.to_vec() } else { args.fan_out },
                payload_bytes: args.payload.max(PAYLOAD_BYTES_MIN),
                rate: args.rate,
                nats_server: args.nats_server,
            };
            show_nodes(args.turns.json, move |each| delivery.run(each))
        }
        What::Scale(args) => {
            let idle = node::Scale::IDLE.into_iter().filter(|idle| *idle <= args.max_idle).collect();
            let scale = node::Scale {
                turns: args.turns.turns(),
                live: args.subscriptions,
                idle,
                rate: args.rate,
                gateways: usize::from(args.gateways),
            };
            show_nodes(args.turns.json, move |each| scale.run(each))
        }
        What::Ingest(args) => {
            let ingest = node::Ingest {
                turns: args.turns.turns(),
                events: args.events,
                payload_bytes: args.payload.max(PAYLOAD_BYTES_MIN),
                rates: if args.rate.is_empty() { vec![1_000, 10_000] } else { args.rate },
                uri: args.uri,
            };
            show_nodes(args.turns.json, move |each| ingest.run(each))
        }
    }
}

/// What a document's fields take.
const PAYLOAD_BYTES_MIN: usize = 110;

fn show_nodes(
    json: bool,
    run: impl FnOnce(fn(&node::Row)) -> Result<Vec<node::Row>, String> + Send + 'static,
) -> ExitCode {
    // Nobody asks here what is taken from the heap.
    heap::pause(true);
    // What others get wrong is shown, and no failure of ours.
    let is_wrong = |row: &node::Row| row.engine == "streamer" && row.wrong() > 0;
    show(json, node::print_head, node::print_row, node::print_goals, run, is_wrong)
}

/// Runs, and shows what comes out. Fails if anything of ours was wrong: right before quick.
fn show<Row: Serialize + Send + 'static>(
    json: bool,
    head: fn(),
    line: fn(&Row),
    goals: fn(&[Row]),
    run: impl FnOnce(fn(&Row)) -> Result<Vec<Row>, String> + Send + 'static,
    is_wrong: impl Fn(&Row) -> bool,
) -> ExitCode {
    let each = if json { |_: &Row| {} } else { line };
    if !json {
        head();
    }
    // Expressions are compiled on the thread that measures, and need the room.
    let thread = thread::Builder::new().stack_size(predicate::COMPILE_STACK_BYTES);
    let rows = match thread.spawn(move || run(each)).map(|thread| thread.join()) {
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
    if json {
        match serde_json::to_string_pretty(&rows) {
            Ok(text) => println!("{text}"),
            Err(error) => {
                eprintln!("the rows can't be written: {error}");
                return ExitCode::FAILURE;
            }
        }
    } else {
        goals(&rows);
    }
    if rows.iter().any(is_wrong) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
