//! `streamer demo`: the whole line at work, held against an oracle.

use std::{process::ExitCode, time::Duration};

use clap::{Args, ValueEnum};

use super::{Failed, log, print};
use crate::{
    affinity::Cores,
    config::{LogFormat, Runtime},
    demo::{self, DemoOptions},
};

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// How long to write.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Writes a second.
    #[arg(long, value_name = "R", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: u64,
    /// Subscriptions of the two Gateways together.
    #[arg(long, value_name = "S", default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    subscriptions: u64,
    /// One shard for each core named: "auto", "all", numbers and ranges; a core may be named more than once.
    #[arg(long, value_name = "LIST", default_value = "auto", value_parser = cores)]
    shards: String,
    /// Executor of the shards.
    #[arg(long, value_enum, default_value_t = RuntimeArg::Auto)]
    runtime: RuntimeArg,
    /// Seed of everything that is random in it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One JSON object on stdout at the end, and nothing on the way.
    #[arg(long)]
    json: bool,
    /// Level of the log.
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RuntimeArg {
    Auto,
    Glommio,
    Tokio,
}

/// Refused here, where the message stands beside the usage, rather than when the node starts.
fn cores(text: &str) -> Result<String, String> {
    text.parse::<Cores>().map(|_| text.to_owned())
}

pub(super) fn run(args: &DemoArgs) -> Result<ExitCode, Failed> {
    log::init(&args.log, LogFormat::Text);
    let options = DemoOptions {
        duration: Duration::from_secs(args.seconds),
        rate: args.rate,
        // At most a million, by the argument's range.
        subscriptions: args.subscriptions as usize,
        shards: args.shards.clone(),
        runtime: match args.runtime {
            RuntimeArg::Auto => Runtime::Auto,
            RuntimeArg::Glommio => Runtime::Glommio,
            RuntimeArg::Tokio => Runtime::Tokio,
        },
        seed: args.seed,
        progress: !args.json,
        fault: None,
    };
    let report = demo::run(&options)?;
    // What the demo found is told by the exit code too, whether or not somebody reads.
    let _ = if args.json { print(serde_json::to_string(&report)?) } else { print(&report) };
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
