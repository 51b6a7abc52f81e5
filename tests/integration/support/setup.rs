//! A node on an embedded store, or as its configuration says: how it is set up, and run in this process.

use std::path::{Path, PathBuf};

use streamer::{config::Config, node::Node};
use streamer_gateway::{Gateway, GatewayBuilder};
use tempfile::TempDir;

use super::{
    PATIENCE, Runtime, SHARDS,
    api::Api,
    cores,
    process::{NodeProcess, free_ports},
    until, within,
};

/// How a node is started. The same setup starts it again with the same ports and the same folder.
pub(crate) struct Setup {
    folder: TempDir,
    http: u16,
    quic: u16,
    pub(crate) runtime: Runtime,
    /// Cores of the shards, as in the configuration.
    pub(crate) shards: String,
    /// More of `[affinity]`.
    pub(crate) affinity: String,
    /// Sections that aren't set otherwise.
    pub(crate) more: String,
}

impl Setup {
    pub(crate) fn new(runtime: Runtime) -> Self {
        let (http, quic) = free_ports();
        Self {
            folder: tempfile::Builder::new().prefix("streamer-test-").tempdir().unwrap(),
            http,
            quic,
            runtime,
            shards: cores(SHARDS),
            affinity: String::new(),
            more: String::new(),
        }
    }

    /// With these sections beside those that every test needs.
    pub(crate) fn with(mut self, more: &str) -> Self {
        self.more.push_str(more);
        self
    }

    /// With another number of shards.
    pub(crate) fn on_shards(mut self, shards: usize) -> Self {
        self.shards = cores(shards);
        self
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the node keeps its things.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder().join("data")
    }

    /// Address of shard 0.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.quic)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    pub(crate) fn config_text(&self) -> String {
        let Self { http, quic, runtime, shards, affinity, more, .. } = self;
        format!(
            r#"
            [node]
            data_dir = {data:?}
            runtime = "{runtime}"
            shutdown_flush = "1s"
            [affinity]
            shards = "{shards}"
            {affinity}
            [http]
            listen = "127.0.0.1:{http}"
            [quic]
            listen = "127.0.0.1:{quic}"
            {more}
            "#,
            data = self.data().display().to_string(),
            runtime = runtime.name(),
        )
    }

    /// The HTTP side, without a token.
    pub(crate) fn api(&self) -> Api {
        Api::new(self.url())
    }

    /// Settings of a Gateway that knows this node.
    pub(crate) fn gateway(&self, id: &str, fingerprint: &str) -> GatewayBuilder {
        Gateway::builder().gateway(id).address(self.address()).fingerprint(fingerprint).connect_timeout(PATIENCE)
    }
}

impl Setup {
    /// The node as a process, reading its source.
    pub(crate) async fn start_process(&self) -> NodeProcess {
        let mut process = NodeProcess::spawn(self.folder(), &self.config_text());
        process.answers(&self.api(), "/health/ready").await;
        process
    }
}

/// A node in this process.
pub(crate) struct Running {
    node: Option<Node>,
}

impl Running {
    /// Started, and reading its source.
    pub(crate) async fn start(setup: &Setup) -> Self {
        let running = Self::launch(setup).await;
        running.wait_ready().await;
        running
    }

    /// Started. It may yet wait for its Gateways before it reads.
    pub(crate) async fn launch(setup: &Setup) -> Self {
        let config = Config::from_parts(None, &setup.config_text(), []).unwrap();
        let node = tokio::task::spawn_blocking(|| Node::start(config)).await.unwrap().unwrap();
        Self { node: Some(node) }
    }

    pub(crate) async fn wait_ready(&self) {
        until("the node is ready", async || self.node().is_ready().then_some(())).await;
    }

    pub(crate) fn node(&self) -> &Node {
        self.node.as_ref().expect("it is there until it is stopped")
    }

    pub(crate) fn fingerprint(&self) -> String {
        self.node().topology().fingerprint.clone()
    }

    /// As SIGTERM does.
    pub(crate) async fn stop(mut self) {
        let node = self.node.take().expect("it is stopped once");
        within("the node stops", tokio::task::spawn_blocking(|| node.stop())).await.unwrap().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Where a test has failed, its node must not go on beside the others.
        if let Some(node) = self.node.take() {
            let _ = node.stop();
        }
    }
}
