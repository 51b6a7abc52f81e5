//! The whole line on an embedded source, held against the oracle.
//!
//! A node on free ports with its change log in a temporary folder; two Gateways over QUIC with subscriptions of every kind in
//! three tenants; a writer at a set rate. Afterwards the same writes are generated again from the seed, and an oracle that shares no
//! code with the node says what each subscription must have got. What is measured is what happened between the two.

mod gateways;
mod reckoning;
mod report;
mod writer;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use workload::{Generator, Profile};

use crate::{
    config::{Config, Problems, Runtime},
    memory,
    node::{Node, NodeError, NodeFailed},
};

pub use self::{gateways::Fault, report::Report};
use self::{gateways::Gateways, writer::Submitted};

/// How large a demo is.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    pub duration: Duration,
    /// Writes a second.
    pub rate: u64,
    pub subscriptions: usize,
    /// Cores of the shards, as in the configuration.
    pub shards: String,
    pub runtime: Runtime,
    pub seed: u64,
    /// A line of figures each second on stderr.
    pub progress: bool,
    /// Makes the Gateways' side break one delivery, so that a test can see the reckoning find it.
    pub fault: Option<Fault>,
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(10),
            rate: 10_000,
            subscriptions: 3_000,
            shards: "auto".into(),
            runtime: Runtime::Auto,
            seed: 1,
            progress: true,
            fault: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("the temporary folder can't be made: {0}")]
    Folder(#[source] std::io::Error),
    #[error(transparent)]
    Config(#[from] Problems),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    NodeFailed(#[from] NodeFailed),
    #[error("a Gateway can't connect: {0}")]
    Gateway(#[from] streamer_gateway::Error),
    #[error("the node isn't ready after {0:?}: {1}")]
    NotReady(Duration, String),
    #[error("{live} of {all} subscriptions are live after {waited:?}")]
    NotLive { live: usize, all: usize, waited: Duration },
    #[error("the source refused a write: {0}")]
    Write(String),
    #[error("the demo can't run: {0}")]
    Runtime(#[source] std::io::Error),
}

/// How long the node may take to be ready, and the subscriptions to be live.
const READY_MAX: Duration = Duration::from_secs(60);

/// The name of the demo's backend.
const BACKEND: &str = "embedded";

/// Runs a demo to its end, blocking.
pub fn run(options: &DemoOptions) -> Result<Report, DemoError> {
    let folder = tempfile::Builder::new().prefix("streamer-demo-").tempdir().map_err(DemoError::Folder)?;
    let node = Node::start(config(options, folder.path())?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(DemoError::Runtime)?;
    let result = runtime.block_on(drive(options, &node));
    runtime.shutdown_timeout(Duration::from_secs(5));
    node.stop()?;
    result
}

fn config(options: &DemoOptions, folder: &Path) -> Result<Config, DemoError> {
    // A quarter of what there is, for as many shards as there may be.
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let log_bytes = (memory::there_is().unwrap_or(u64::MAX) / 4 / cores).clamp(64 << 20, 512 << 20);
    let text = format!(
        r#"
        [node]
        data_dir = {data_dir:?}
        runtime = "{runtime}"
        shutdown_flush = "1s"
        [affinity]
        shards = {shards:?}
        [http]
        listen = "127.0.0.1:0"
        [quic]
        listen = "127.0.0.1:0"
        # The machine may be busy with other things: a Gateway that falls behind is to catch up, not to be told Resync.
        [limits]
        log_bytes = "{log_bytes}B"
        log_events = 1000000
        outbox_bytes = "{log_bytes}B"
        gateways = 8
        [[backends]]
        name = "{BACKEND}"
        kind = "embedded"
        "#,
        data_dir = folder.display().to_string(),
        runtime = match options.runtime {
            Runtime::Auto => "auto",
            Runtime::Glommio => "glommio",
            Runtime::Tokio => "tokio",
        },
        shards = options.shards,
    );
    Ok(Config::from_parts(None, &text, [])?)
}

async fn drive(options: &DemoOptions, node: &Node) -> Result<Report, DemoError> {
    node.wait_ready(READY_MAX).await.map_err(|reasons| DemoError::NotReady(READY_MAX, reasons))?;
    let generator = Generator::new(Profile::demo(options.seed));
    let subscriptions = Arc::new(generator.subscriptions(options.subscriptions));
    let submitted = Arc::new(Submitted::new());
    let (stop, stopped) = watch::channel(false);
    let gateways = Gateways::connect(node, &subscriptions, submitted.clone(), stopped, options.fault).await?;
    gateways.wait_live(READY_MAX).await?;
    if options.progress {
        eprintln!(
            "{} subscriptions of {} Gateways in {} tenants are live; writing {}/s for {:?}",
            subscriptions.len(),
            generator.profile().gateways,
            generator.profile().tenants,
            options.rate,
            options.duration
        );
    }

    let store = node.store().expect("the demo's configuration has an embedded backend").clone();
    let lineage = store.lineage();
    let first_offset = store.durable_upto() + 1;
    submitted.begin(first_offset);
    let started = Instant::now();
    let progress = options
        .progress
        .then(|| tokio::spawn(report::progress(gateways.live(), node.state().clone(), submitted.clone(), started)));
    let writing = writer::write(&generator, options, store, submitted.clone()).await;
    let wrote_for = started.elapsed();
    if let Some(progress) = progress {
        progress.abort();
    }
    let written = writing?;

    // The oracle works while the last deliveries are on their way.
    let reckoner = reckoning::Reckoner { lineage, first_offset, written };
    let expected = {
        let (generator, subscriptions) = (generator.clone(), subscriptions.clone());
        tokio::task::spawn_blocking(move || reckoner.expected(&generator, &subscriptions))
    };
    let expected = expected.await.expect("the oracle doesn't panic on what the generator makes");
    gateways.wait_delivered(expected.len() as u64).await;
    let _ = stop.send(true);
    let delivered = gateways.finish().await;
    let ledger = reckoning::reckon(&subscriptions, &expected, &delivered);
    Ok(Report::new(node, &ledger, &delivered, written, wrote_for))
}
