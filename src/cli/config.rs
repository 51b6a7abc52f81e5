//! `streamer config default`: the commented configuration file.

use std::process::ExitCode;

use clap::Subcommand;

use super::{Failed, print};
use crate::config::DEFAULT_FILE;

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Prints a configuration file with every key, its default and what it means.
    Default,
}

pub(super) fn run(command: &ConfigCommand) -> Result<ExitCode, Failed> {
    match command {
        ConfigCommand::Default => {
            let _ = print(DEFAULT_FILE.trim_end());
            Ok(ExitCode::SUCCESS)
        }
    }
}
