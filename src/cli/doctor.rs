//! `streamer doctor`: what this host is like for a node. `streamer tune`: sets what can be set.

use std::process::ExitCode;

use clap::Args;

use super::{ConfigFile, Failed, print};
use crate::{
    affinity::{self, Topology},
    config::Config,
    doctor::{self, Finding, Host, Process, Severity, Wanted, tune},
};

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Prints the findings as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct TuneArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Sets the values. They last until the next boot.
    #[arg(long, conflicts_with = "dry_run")]
    apply: bool,
    /// Only tells what would be set. This is what happens without either.
    #[arg(long)]
    dry_run: bool,
}

/// Columns where the terminal doesn't tell how many it has.
const COLUMNS: u16 = 140;

/// 1 where the node could not start like this.
pub(super) fn run(args: &DoctorArgs) -> Result<ExitCode, Failed> {
    let (_, findings) = findings(&args.config)?;
    if args.json {
        let text = serde_json::to_string_pretty(&findings)?;
        let _ = print(text);
    } else {
        let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).unwrap_or(COLUMNS);
        let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        let _ = print(doctor::table(&findings, columns));
        let _ = print(format!(
            "{} good, {} to note, {} warnings, {} errors, {} unknown",
            count(Severity::Good),
            count(Severity::Note),
            count(Severity::Warning),
            count(Severity::Error),
            count(Severity::Unknown)
        ));
    }
    let fatal = findings.iter().any(|finding| finding.severity == Severity::Error);
    Ok(if fatal { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// 1 where something could not be set.
pub(super) fn tune(args: &TuneArgs) -> Result<ExitCode, Failed> {
    let (host, findings) = findings(&args.config)?;
    let changes = tune::plan(&findings, &host);
    if changes.is_empty() {
        let _ = print("nothing to set: see `streamer doctor` for what is left to do by hand");
        return Ok(ExitCode::SUCCESS);
    }
    if !args.apply {
        for change in &changes {
            let _ = print(format!("{}   # now {:?}", change.setting, change.before));
        }
        let _ = print("nothing has been set; `streamer tune --apply` does it, until the next boot");
        return Ok(ExitCode::SUCCESS);
    }
    let done = tune::apply(&changes, &host);
    let (set, refused): (Vec<_>, Vec<_>) = done.into_iter().partition(Result::is_ok);
    for change in set.iter().flatten() {
        let _ = print(format!("set: {}", change.setting));
    }
    if !set.is_empty() {
        let _ = print("to undo it:");
        for change in set.iter().flatten() {
            let _ = print(format!("  {}", change.undo()));
        }
    }
    for refused in refused.iter().filter_map(|refused| refused.as_ref().err()) {
        eprintln!("{refused}");
    }
    Ok(if refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn findings(config: &ConfigFile) -> Result<(Host, Vec<Finding>), Failed> {
    let host = Host::this();
    let wanted = wanted(&config.load()?)?;
    let process = Process::this(wanted.placement.shards.len());
    let findings = doctor::examine(&wanted, &process, &host);
    Ok((host, findings))
}

fn wanted(config: &Config) -> Result<Wanted, Failed> {
    let topology = Topology::read()?;
    let cores = &config.affinity;
    let placement = affinity::place(&cores.ingest.value, &cores.control.value, &cores.shards.value, &topology)
        .map_err(|misplaced| {
            let lines = misplaced.iter().map(|misplaced| format!("affinity.{} {}", misplaced.key, misplaced.message));
            Failed(lines.collect::<Vec<_>>().join("\n"))
        })?;
    let quic = shards::driver::QuicConfig::default();
    Ok(Wanted {
        placement,
        topology,
        runtime: config.node.runtime.into(),
        quic: config.quic.listen.value,
        socket_receive_bytes: quic.socket_receive_bytes,
        socket_send_bytes: quic.socket_send_bytes,
    })
}
