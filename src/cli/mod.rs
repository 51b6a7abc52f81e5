//! The command line: one file a subcommand.
//!
//! What was asked for goes to stdout, everything else to stderr. The exit code is 0 when all is well, 1 when something is wrong with
//! the configuration or the run, 2 when the command line itself is not understood.

mod check;
mod checkpoint;
mod config;
mod conformance;
mod demo;
mod doctor;
mod log;
mod run;
mod tap;
mod token;
mod top;

use std::{fmt, io::Write, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, FILE_VARIABLE, Problems};

/// Reads MongoDB change streams, matches every change against live subscriptions, pushes what matched to Gateways over QUIC.
#[derive(Debug, Parser)]
#[command(name = "streamer", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a node until it is told to stop (SIGTERM or Ctrl-C).
    Run(run::RunArgs),
    /// Shows the whole line at work on an embedded source, held against an oracle.
    Demo(demo::DemoArgs),
    /// Plays scenes with a Gateway in any language, and says what it does wrong.
    Conformance(conformance::ConformanceArgs),
    /// Prints matching changes of a running node as they happen.
    Tap(tap::TapArgs),
    /// Shows a running node in the terminal, live.
    Top(top::TopArgs),
    /// Tells everything that is wrong with a configuration on this machine.
    Check(check::CheckArgs),
    /// Holds this host against what a node needs: kernel, limits, buffers, cores, interrupts.
    Doctor(doctor::DoctorArgs),
    /// Sets what `doctor` finds and can be set while the host runs, and tells how to undo it.
    Tune(doctor::TuneArgs),
    /// Where reading goes on after a start.
    #[command(subcommand)]
    Checkpoint(checkpoint::CheckpointCommand),
    /// The configuration file.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Tokens of Gateways and of the administrator.
    #[command(subcommand)]
    Token(token::TokenCommand),
}

/// Which configuration is meant.
#[derive(Clone, Debug, Args)]
struct ConfigFile {
    /// The TOML file; without it the built-in defaults. The environment (STREAMER__SECTION__KEY) wins over either.
    #[arg(short = 'c', long = "config", value_name = "FILE", env = FILE_VARIABLE)]
    file: Option<PathBuf>,
}

impl ConfigFile {
    fn load(&self) -> Result<Config, Problems> {
        Config::load(self.file.clone())
    }
}

/// Parses the process's arguments and does what they say.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Conformance(args) => conformance::run(&args),
        Command::Tap(args) => tap::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Tune(args) => doctor::tune(&args),
        Command::Checkpoint(command) => checkpoint::run(&command),
        Command::Config(command) => config::run(&command),
        Command::Token(command) => token::run(&command),
    };
    match done {
        Ok(code) => code,
        Err(Failed(message)) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// Why a subcommand did not do what it should, as it is printed.
#[derive(Debug)]
struct Failed(String);

impl<E: std::error::Error> From<E> for Failed {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Some errors say their cause themselves.
            if !message.contains(&cause_text) {
                message.push_str(&format!(": {cause_text}"));
            }
            source = cause.source();
        }
        Self(message)
    }
}

/// Prints to stdout. A reader that has gone, as `head` does, is no failure: there is nobody left to tell.
fn print(text: impl fmt::Display) -> Result<(), ReaderGone> {
    writeln!(std::io::stdout().lock(), "{text}").map_err(|_| ReaderGone)
}

/// Nobody reads stdout any more.
#[derive(Clone, Copy, Debug)]
struct ReaderGone;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_documented_commands_are_understood() {
        for line in [
            "streamer run",
            "streamer run -c f.toml",
            "streamer demo --seconds 10 --json",
            "streamer demo --shards 1,1,1,1 --rate 5000 --subscriptions 100 --runtime tokio",
            "streamer tap --tenant t --collection a/b/c --filter age:>=:18 --filter x:==:y --expr doc.x",
            "streamer conformance --list",
            "streamer conformance --port 7400 --script live --script gap -- python3 gateway.py --fast",
            "streamer check -c f.toml",
            "streamer top --http 10.0.0.1:8083 --once",
            "streamer doctor -c f.toml --json",
            "streamer tune --apply",
            "streamer tune --dry-run",
            "streamer checkpoint show --json",
            "streamer checkpoint set --at now-15m --backend main --yes",
            "streamer checkpoint reset -c f.toml --yes",
            "streamer config default",
            "streamer token new gateway-1",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "streamer",
            "streamer demo --runtime threads",
            "streamer tap --tenant t",
            "streamer run --fast",
            "streamer tune --apply --dry-run",
            "streamer checkpoint set --at soon",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
