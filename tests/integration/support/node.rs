//! Nodes on the test server.

use std::path::PathBuf;

use streamer::{config::Config, node::Node};

use super::{api::Api, process::NodeProcess, wait_for};

/// Where Gateways find a node, and what they trust.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) addresses: Vec<String>,
    pub(crate) fingerprint: String,
}

/// A node's configuration, as far as tests vary it.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) data_dir: PathBuf,
    /// `affinity.shards`.
    pub(crate) shards: String,
    /// "syntrix" or "plain".
    pub(crate) preset: &'static str,
    /// The `[[backends]]` tables, in full.
    pub(crate) backends: String,
    pub(crate) http_port: u16,
    /// Of the first shard; 0 for any.
    pub(crate) quic_port: u16,
}

impl Settings {
    pub(crate) fn to_toml(&self) -> String {
        let Self { data_dir, shards, preset, backends, http_port, quic_port } = self;
        format!(
            r#"
            [node]
            data_dir = {data_dir:?}
            [affinity]
            shards = {shards:?}
            [http]
            listen = "127.0.0.1:{http_port}"
            [quic]
            listen = "127.0.0.1:{quic_port}"
            heartbeat = "100ms"
            [mapping]
            preset = {preset:?}
            {backends}
            "#,
            data_dir = data_dir.display().to_string(),
        )
    }

    pub(crate) fn api(&self) -> Api {
        Api::new(format!("http://127.0.0.1:{}", self.http_port))
    }

    /// Starts the node as a process, and waits until it serves HTTP.
    pub(crate) async fn start_process(&self) -> NodeProcess {
        let folder = self.data_dir.parent().expect("the data lies in the test's folder");
        let mut process = NodeProcess::spawn(folder, &self.to_toml());
        process.answers(&self.api(), "/health/live").await;
        process
    }

    /// Where Gateways find a node that serves HTTP.
    pub(crate) async fn place(&self) -> Place {
        let topology = self.api().topology().await;
        let text = |value: &serde_json::Value| value.as_str().expect("a string in the topology").to_owned();
        let shards = topology["shards"].as_array().expect("shards in the topology");
        Place {
            addresses: shards.iter().map(|shard| text(&shard["address"])).collect(),
            fingerprint: text(&topology["fingerprint"]),
        }
    }

    /// Starts the node in this process and waits until it reads.
    pub(crate) async fn start_here(&self) -> Node {
        let config = Config::from_parts(None, &self.to_toml(), []).unwrap_or_else(|problems| panic!("{problems}"));
        let node = Node::start(config).unwrap_or_else(|error| panic!("the node does not start: {error}"));
        wait_ready(&node).await;
        node
    }
}

pub(crate) async fn wait_ready(node: &Node) {
    let missing = || format!("a node that is ready: {}", node.state().health().reasons.join("; "));
    wait_for(|| node.is_ready().then_some(()), missing).await;
}

/// Stops a node without blocking the test's runtime, on which its Gateways live.
pub(crate) async fn stop(node: Node) {
    let stopped = tokio::task::spawn_blocking(move || node.stop()).await.expect("stopping does not panic");
    stopped.unwrap_or_else(|error| panic!("the node had failed: {error}"));
}

pub(crate) fn place_of(node: &Node) -> Place {
    let topology = node.topology();
    Place {
        addresses: topology.shards.iter().map(|shard| shard.address.clone()).collect(),
        fingerprint: topology.fingerprint.clone(),
    }
}
