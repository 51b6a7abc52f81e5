//! `streamer run`: a node until it is told to stop.

use std::{convert::Infallible, process::ExitCode};

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{ConfigFile, Failed, log};
use crate::{node::Node, service};

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) fn run(args: &RunArgs) -> Result<ExitCode, Failed> {
    let config = args.config.load()?;
    log::init(&config.log.level, config.log.format);
    match &config.file {
        Some(file) => tracing::info!(version = env!("CARGO_PKG_VERSION"), config = %file.display(), "starting"),
        None => tracing::info!(version = env!("CARGO_PKG_VERSION"), "starting with the built-in configuration"),
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before the node starts, so that a signal while it does is not the default one.
    let mut signals = runtime.block_on(async { Signals::new() })?;
    let node = Node::start(config)?;
    service::started();
    runtime.block_on(async move {
        let failed = tokio::select! {
            told = signals.next() => {
                tracing::info!(signal = told.name, "told to stop; once more ends it at once");
                false
            }
            () = node.failed() => {
                tracing::error!("a thread of the node has ended by itself");
                true
            }
            never = keep_alive(&node) => match never {},
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

/// Tells the service manager that the node lives, as long as each shard's loop turns. One that stands still isn't told of: the service
/// manager then ends the process, and starts it again.
async fn keep_alive(node: &Node) -> Infallible {
    let Some(every) = service::watchdog_every() else { return std::future::pending().await };
    let mut pulse = service::Pulse::default();
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
