//! `cargo xtask sim`: the simulator over many seeds.

use std::{io::Write, process::ExitCode, thread};

use clap::Parser;
use sim::{Broken, Report, SimConfig, Violation, run_many, run_traced, shrink};

/// Runs a node with its Gateways in virtual time, once a seed, and breaks whatever can break in it.
#[derive(Parser)]
#[command(name = "cargo xtask sim", disable_version_flag = true)]
struct Args {
    /// How many seeds to run.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Breaks a rule on purpose, and ends well if it is found.
    #[arg(long = "break", value_name = "NAME")]
    broken: Option<Broken>,
    /// Prints the report as JSON.
    #[arg(long)]
    json: bool,
    /// Seeds that run at once [default: one a core].
    #[arg(long)]
    jobs: Option<usize>,
    /// Lines of trace that are shown of a seed that fails.
    #[arg(long, default_value_t = 60)]
    trace: usize,
    /// Shows a seed that fails as it is, without looking for a smaller world that fails.
    #[arg(long)]
    no_shrink: bool,
}

/// Runs that shrinking may take.
const SHRINKING_RUNS_MAX: usize = 400;

fn main() -> ExitCode {
    let args = Args::parse();
    let jobs = args.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let config = |seed| SimConfig { broken: args.broken, ..SimConfig::new(seed) };
    let mut report = run_many(args.seed, args.seeds, jobs, args.broken.is_some(), config);
    if let Some(first) = report.violations.first_mut() {
        *first = *looked_into(first.clone(), &args);
    }
    let mut out = std::io::stdout().lock();
    let written =
        if args.json { writeln!(out, "{}", json(&report)) } else { writeln!(out, "{}", text(&report, &args)) };
    let found = !report.violations.is_empty();
    // Where a rule is broken, finding nothing is the failure.
    if written.is_ok() && found == args.broken.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The smallest world that fails in place of this one, with its trace.
fn looked_into(found: Violation, args: &Args) -> Box<Violation> {
    let found = Box::new(found);
    let smallest = if args.no_shrink { found } else { shrink(found, SHRINKING_RUNS_MAX) };
    match run_traced(&smallest.config, args.trace) {
        Err(again) => again,
        Ok(_) => smallest,
    }
}

fn json(report: &Report) -> String {
    let mut value = serde_json::to_value(report).expect("a report has only names for keys");
    if let Some(fields) = value.as_object_mut() {
        fields.insert("crashes_owing".into(), report.outcome.crashes_owing().into());
        fields.insert("seconds".into(), report.took.as_secs_f64().into());
        fields.insert("events_per_s".into(), report.events_per_s().into());
    }
    format!("{value:#}")
}

fn text(report: &Report, args: &Args) -> String {
    let mut text = String::new();
    if let Some(first) = report.violations.first() {
        text += &format!("{}\n", first.trace.join("\n"));
        let SimConfig { seed, transactions, subscriptions, shards_max, faults, .. } = &first.config;
        text += &format!(
            "\nseed {seed}: {}\n  in a world of {transactions} transactions, {subscriptions} subscriptions, up to {shards_max} shards, \
             {faults:?}\n  again: cargo xtask sim --seed {seed} --seeds 1{}\n\n",
            first.what,
            args.broken.map(|broken| format!(" --break {broken}")).unwrap_or_default(),
        );
        let others: Vec<String> = report.violations.iter().skip(1).map(|one| one.config.seed.to_string()).collect();
        if !others.is_empty() {
            text += &format!("other seeds that fail: {}\n\n", others.join(", "));
        }
    }
    let seconds = report.took.as_secs_f64();
    text += &format!("seeds                  {:>10}  in {seconds:.1} s\n", report.seeds);
    text += &format!("violations             {:>10}\n{}\n", report.violations.len(), report.outcome);
    text += &format!("simulated events       {:>10}  a second", report.events_per_s());
    match args.broken {
        Some(broken) if report.violations.is_empty() => text + &format!("\n{broken} was broken, and not found"),
        Some(broken) => text + &format!("\n{broken} was broken, and found after {} seeds", report.seeds),
        None => text,
    }
}
