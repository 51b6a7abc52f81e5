//! The command line of [`loadgen`].

use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use loadgen::{
    capacity, page,
    profile::{self, Profile},
    run::{self, Options, SourceKind},
};
use mimalloc::MiMalloc;

#[global_allocator]
static HEAP: MiMalloc = MiMalloc;

/// Load for a Streamer node at a set rate or flat out, with every delivery checked.
#[derive(Debug, Parser)]
#[command(name = "loadgen", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One run: throughput, latency, and what was lost, repeated or misdelivered.
    Run(RunArgs),
    /// The highest rate that holds a latency, and what gives way above it.
    Capacity(CapacityArgs),
    /// The profiles that the program brings along.
    Profiles,
}

#[derive(Debug, Args)]
struct LoadArgs {
    /// A built-in profile's name, or a file.
    #[arg(long, default_value = "chat")]
    profile: String,
    #[arg(long, value_enum, default_value_t = SourceKind::Direct)]
    source: SourceKind,
    /// Of the replica set, for the mongodb source.
    #[arg(long)]
    uri: Option<String>,
    /// Seconds of load; of each run, where there are several.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    gateways: u16,
    /// Over all Gateways.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=20_000_000))]
    subscriptions: u32,
    /// Subscriptions beside these, that no event matches.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=20_000_000))]
    idle: u32,
    /// Cores of the shards, as in the configuration.
    #[arg(long, default_value = "auto")]
    shards: String,
    /// auto, glommio or tokio.
    #[arg(long, default_value = "auto")]
    runtime: String,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The first Gateway takes so many milliseconds for each change.
    #[arg(long, value_name = "MS")]
    slow: Option<u64>,
    /// Prints one JSON object, and no lines meanwhile.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// Events a second. Without it: flat out.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate: Option<u64>,
    /// Writes a page with plots there.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct CapacityArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// Milliseconds that 99 of 100 deliveries may take, from when their event was due.
    #[arg(long, default_value_t = 10)]
    p99_ms: u64,
    /// The lowest rate to try, in events a second.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    from: u64,
    /// The highest rate to try.
    #[arg(long, default_value_t = 10_000_000)]
    to: u64,
}

fn main() -> ExitCode {
    match act(Cli::parse().command) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn act(command: Command) -> Result<ExitCode, String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    match command {
        Command::Profiles => {
            for name in profile::names() {
                let profile = Profile::load(name).map_err(|error| said(&error))?;
                println!("{name:<12} {}", profile.description);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(args) => {
            let options = options(&args.load, args.rate)?;
            let report = run::run(&options, &interrupted()?).map_err(|error| said(&error))?;
            if let Some(file) = &args.report {
                fs::write(file, page::render(&report)).map_err(|error| format!("{}: {error}", file.display()))?;
            }
            match args.load.json {
                true => println!("{}", serde_json::to_string_pretty(&report).map_err(|error| said(&error))?),
                false => print!("{report}"),
            }
            Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Capacity(args) => {
            if args.from > args.to {
                return Err(format!("--from {} is above --to {}", args.from, args.to));
            }
            let options = Options { progress: false, ..options(&args.load, None)? };
            let told = |tried: &capacity::Try| {
                if !args.load.json {
                    let end = match tried.why {
                        None => "holds".to_owned(),
                        Some(why) => format!("doesn't: {why:?}"),
                    };
                    eprintln!(
                        "{:>10}/s   {:>10}/s had, p99 {:>8} µs   {end}",
                        tried.rate, tried.events_per_s, tried.p99_us
                    );
                }
            };
            let (bound, range) = (Duration::from_millis(args.p99_ms), (args.from, args.to));
            let found =
                capacity::search(&options, bound, range, &interrupted()?, told).map_err(|error| said(&error))?;
            match args.load.json {
                true => println!("{}", serde_json::to_string_pretty(&found).map_err(|error| said(&error))?),
                false => {
                    let above = match found.bottleneck {
                        Some(bottleneck) => format!("above it, {bottleneck:?} gives way"),
                        None => "more was not tried".to_owned(),
                    };
                    println!("{} events a second with p99 of at most {} ms; {above}", found.rate, args.p99_ms);
                }
            }
            Ok(if found.rate > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

fn options(load: &LoadArgs, rate: Option<u64>) -> Result<Options, String> {
    Ok(Options {
        profile_name: load.profile.clone(),
        profile: Profile::load(&load.profile).map_err(|error| error.to_string())?,
        source: load.source,
        uri: load.uri.clone(),
        rate,
        duration: Duration::from_secs(load.seconds.max(1)),
        gateways: usize::from(load.gateways),
        subscriptions: load.subscriptions,
        idle: load.idle,
        shards: load.shards.clone(),
        runtime: load.runtime.clone(),
        seed: load.seed,
        slow: load.slow.map(Duration::from_millis),
        progress: !load.json,
    })
}

/// Set by Ctrl-C: the load ends, what is on its way arrives, and the report comes as ever.
fn interrupted() -> Result<Arc<AtomicBool>, String> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let set = interrupted.clone();
    std::thread::spawn(move || {
        runtime.block_on(async {
            if tokio::signal::ctrl_c().await.is_ok() {
                eprintln!("ending; the report follows");
                set.store(true, Ordering::Relaxed);
            }
        });
    });
    Ok(interrupted)
}
