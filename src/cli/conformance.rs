//! `streamer conformance`: a Gateway in any language, held against a node with a known answer.

use std::{process::ExitCode, time::Duration};

use clap::Args;

use super::{Failed, print};
use crate::conformance::{self, Options, SCENES};

#[derive(Debug, Args)]
pub(super) struct ConformanceArgs {
    /// TCP port of the node's HTTP API; its shards are on UDP ports above it. Any that are free without it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1_024..=65_000))]
    port: Option<u16>,
    /// Plays this scene only. May be given more than once.
    #[arg(long = "script", value_name = "NAME")]
    scenes: Vec<String>,
    /// How long the Gateway may take for what it has to do.
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    patience: u64,
    /// Says which scenes there are.
    #[arg(long)]
    list: bool,
    /// One JSON object a scene on stdout.
    #[arg(long)]
    json: bool,
    /// The Gateway's program and its arguments. It is started for each scene, and killed in some.
    #[arg(last = true, value_name = "PROGRAM", required_unless_present = "list")]
    program: Vec<String>,
}

pub(super) fn run(args: &ConformanceArgs) -> Result<ExitCode, Failed> {
    if args.list {
        for scene in SCENES {
            // Whoever reads no more has read enough.
            let _ = print(format_args!("{:<12} {}", scene.name, scene.about));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let options = Options {
        port: args.port,
        scenes: args.scenes.clone(),
        patience: Duration::from_secs(args.patience),
        program: args.program.clone(),
        node: std::env::current_exe()?,
    };
    // What was found is told by the exit code too, whether or not somebody reads.
    let reports = conformance::run(&options, |report| {
        let _ = match args.json {
            true => print(serde_json::to_string(report).expect("a report has only strings")),
            false => print(report),
        };
    })?;
    let failed = reports.iter().filter(|report| !report.passed()).count();
    eprintln!("{} of {} scenes passed", reports.len() - failed, reports.len());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
