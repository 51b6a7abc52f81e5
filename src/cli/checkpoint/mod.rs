//! `streamer checkpoint`: what is kept, and forgetting it, each with what that means for what is delivered.

use std::{fmt::Write, process::ExitCode};

use clap::{Args, Subcommand};

use super::{ConfigFile, Failed, print};
use crate::{
    checkpoint::{Checkpoint, CheckpointStore, FileStore},
    config::Config,
    node::DataFolder,
};

#[derive(Debug, Subcommand)]
pub(super) enum CheckpointCommand {
    /// Prints the place that each backend would be read on from.
    Show(ShowArgs),
    /// Forgets the places: the next start reads from now. The node must not be running.
    Reset(ResetArgs),
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ResetArgs {
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) fn run(command: &CheckpointCommand) -> Result<ExitCode, Failed> {
    match command {
        CheckpointCommand::Show(args) => show(&args.config.load()?, args.json),
        CheckpointCommand::Reset(args) => reset(&args.config.load()?),
    }
}

fn show(config: &Config, json: bool) -> Result<ExitCode, Failed> {
    let kept = FileStore::in_data_folder(&config.node.data_dir)?.load()?;
    let text = match (&kept, json) {
        (Some(kept), true) => serde_json::to_string_pretty(kept)?,
        (None, true) => "null".to_owned(),
        (Some(kept), false) => describe(kept),
        (None, false) => "no checkpoint: the next start reads from now".to_owned(),
    };
    let _ = print(text.trim_end());
    Ok(ExitCode::SUCCESS)
}

fn reset(config: &Config) -> Result<ExitCode, Failed> {
    let _lock = DataFolder::lock(&config.node.data_dir)?;
    let mut store = FileStore::in_data_folder(&config.node.data_dir)?;
    // Slots that can't be read are what this command is for.
    let kept = match store.load() {
        Ok(Some(kept)) => describe(&kept),
        Ok(None) => "there was none\n".to_owned(),
        Err(error) => format!("it could not be read: {error}\n"),
    };
    store.reset()?;
    let _ = print(format_args!(
        "forgotten:\n{}The next start reads from now. What happened since these places is not delivered; subscriptions whose \
         Gateways present older positions are told Resync.",
        kept
    ));
    Ok(ExitCode::SUCCESS)
}

fn describe(kept: &Checkpoint) -> String {
    let mut text = String::new();
    for backend in &kept.backends {
        let token = if backend.token.is_some() { "with a resume token" } else { "by its time alone" };
        // Writing to a text can't fail.
        let _ = writeln!(
            text,
            "backend {:?}: after time {} ({:#x}), event {}, {token}; {}",
            backend.name, backend.time, backend.time, backend.k, backend.source
        );
    }
    let _ = writeln!(
        text,
        "Gateways waited for at the next start: {}",
        match &kept.gateways[..] {
            [] => "none".to_owned(),
            names => names.join(", "),
        }
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::BackendCheckpoint;

    #[test]
    fn a_reset_forgets_and_a_running_node_bars_it() {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("[node]\ndata_dir = {:?}", folder.path().display().to_string());
        let config = Config::from_parts(None, &text, []).unwrap();
        let mut store = FileStore::in_data_folder(folder.path()).unwrap();
        let backend = BackendCheckpoint {
            name: "main".into(),
            lineage: 1,
            source: "replica set rs0".into(),
            time: 7,
            k: 1,
            token: None,
        };
        store.save(&Checkpoint { backends: vec![backend], gateways: vec!["g1".into()] }).unwrap();

        let running = DataFolder::lock(folder.path()).unwrap();
        let Failed(barred) = reset(&config).unwrap_err();
        assert!(barred.contains("in use"), "{barred}");
        assert!(store.load().unwrap().is_some());
        drop(running);

        reset(&config).unwrap();
        assert!(store.load().unwrap().is_none());
    }
}
