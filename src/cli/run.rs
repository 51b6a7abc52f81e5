//! `streamer run`: a node until it is told to stop.

use std::{convert::Infallible, process::ExitCode};

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{ConfigFile, Failed, log};
use crate::{config::Problems, control::Reload, node::Node, service};

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) fn run(args: &RunArgs) -> Result<ExitCode, Failed> {
    let config = args.config.load()?;
    let level = log::init(&config.log.level, config.log.format);
    match &config.file {
        Some(file) => tracing::info!(version = env!("CARGO_PKG_VERSION"), config = %file.display(), "starting"),
        None => tracing::info!(version = env!("CARGO_PKG_VERSION"), "starting with the built-in configuration"),
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before the node starts, so that a signal while it does is not the default one.
    let (mut signals, mut reloads) =
        runtime.block_on(async { Ok::<_, std::io::Error>((Signals::new()?, signal(SignalKind::hangup())?)) })?;
    let mut node = Node::start(config)?;
    service::started();
    runtime.block_on(async move {
        let mut pulse = service::Pulse::default();
        let failed = loop {
            tokio::select! {
                told = signals.next() => {
                    tracing::info!(signal = told.name, "told to stop; once more ends it at once");
                    break false;
                }
                () = node.failed() => {
                    tracing::error!("a thread of the node has ended by itself");
                    break true;
                }
                never = keep_alive(&node, &mut pulse) => match never {},
                _ = reloads.recv() => {}
            }
            reload(&mut node, &args.config, &level);
        };
        service::stopping();
        let stopping = tokio::task::spawn_blocking(move || node.stop());
        tokio::select! {
            stopped = stopping => stopped??,
            // As if it had been killed: what isn't in the checkpoint is read again, and the checkpoint is whole at every moment.
            told = signals.next() => {
                tracing::warn!(signal = told.name, "told to stop once more: ending at once");
                std::process::exit(told.code)
            }
        }
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    })
}

/// Reads the configuration again, and has the node take it. Where that can't be, the node goes on with what it has.
fn reload(node: &mut Node, file: &ConfigFile, level: &log::Level) {
    service::reloading();
    let outcome = match file.load() {
        Ok(config) => match node.reload(config, |wanted| level.set(wanted)) {
            Ok(changed) => {
                tracing::info!(changed = changed.join(", "), "the configuration was read again");
                Reload::Applied
            }
            Err(error) => {
                tracing::error!("the configuration was read again and nothing of it was taken: {error}");
                Reload::Refused
            }
        },
        Err(Problems(problems)) => {
            for problem in problems {
                tracing::error!("the configuration was read again and nothing of it was taken: {problem}");
            }
            Reload::Failed
        }
    };
    node.state().reloaded(outcome);
    service::started();
}

/// Tells the service manager that the node lives, as long as each shard's loop turns. One that stands still isn't told of: the service
/// manager then ends the process, and starts it again.
async fn keep_alive(node: &Node, pulse: &mut service::Pulse) -> Infallible {
    let Some(every) = service::watchdog_every() else { return std::future::pending().await };
    loop {
        tokio::time::sleep(every).await;
        match pulse.beats(node.turns()) {
            true => service::lives(),
            false => tracing::error!("a shard's loop has not turned for {every:?}"),
        }
    }
}

/// A signal that asks for the end.
struct Told {
    name: &'static str,
    /// What a process that is ended by it exits with: 128 and the signal's number.
    code: i32,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> Told {
        let (name, kind) = tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", SignalKind::terminate()),
            _ = self.interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
        };
        Told { name, code: 128 + kind.as_raw_value() }
    }
}
