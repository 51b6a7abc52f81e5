//! Nodes: in this process, and as the process that a user starts.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Instant,
};

use streamer::{config::Config, node::Node};

use super::{LOOK_EVERY, PATIENCE, wait_for};

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

/// `streamer run -c FILE`. Killed when dropped.
pub(crate) struct NodeProcess {
    child: Child,
    log: PathBuf,
    base: String,
}

impl NodeProcess {
    /// Starts it and waits until it serves HTTP. Its log goes beside its data.
    pub(crate) async fn start(settings: &Settings) -> Self {
        let folder = settings.data_dir.parent().expect("the data lies in the test's folder");
        let file = folder.join("streamer.toml");
        let log = folder.join("streamer.log");
        fs::write(&file, settings.to_toml()).expect("the test's folder can be written");
        let output = File::options().create(true).append(true).open(&log).expect("the test's folder can be written");
        let child = Command::new(env!("CARGO_BIN_EXE_streamer"))
            .args([Path::new("run"), Path::new("-c"), &file])
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a file handle can be doubled"))
            .stderr(output)
            .spawn()
            .expect("the node's program was built for this test");
        let mut process = Self { child, log, base: format!("http://127.0.0.1:{}", settings.http_port) };
        let started = Instant::now();
        while process.get("/health/live").await.is_none() {
            let exited = process.child.try_wait().expect("the node is a child of this process");
            assert!(exited.is_none(), "the node ended: {exited:?}\n{}", process.told());
            assert!(started.elapsed() < PATIENCE, "the node serves no HTTP:\n{}", process.told());
            tokio::time::sleep(LOOK_EVERY).await;
        }
        process
    }

    /// Waits until every backend is read.
    pub(crate) async fn wait_ready(&self) {
        let started = Instant::now();
        loop {
            let health = self.get("/health").await;
            if health.as_ref().is_some_and(|(status, _)| *status == 200) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "the node is not ready: {health:?}\n{}", self.told());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    pub(crate) async fn place(&self) -> Place {
        let (_, body) = self.get("/v1/topology").await.expect("the node serves its topology");
        let topology: serde_json::Value = serde_json::from_str(&body).expect("the topology is JSON");
        let text = |value: &serde_json::Value| value.as_str().expect("a string in the topology").to_owned();
        let shards = topology["shards"].as_array().expect("shards in the topology");
        Place {
            addresses: shards.iter().map(|shard| text(&shard["address"])).collect(),
            fingerprint: text(&topology["fingerprint"]),
        }
    }

    /// Status and body, or `None` where nobody answers.
    async fn get(&self, path: &str) -> Option<(u16, String)> {
        let response = reqwest::get(format!("{}{path}", self.base)).await.ok()?;
        let status = response.status().as_u16();
        Some((status, response.text().await.ok()?))
    }

    /// As a service manager stops it. How it ended.
    pub(crate) async fn terminate(mut self) -> ExitStatus {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status().expect("kill is a program everywhere");
        assert!(sent.success(), "SIGTERM can't be sent to {id}");
        let child = &mut self.child;
        let ended = || child.try_wait().expect("the node is a child of this process");
        wait_for(ended, || "the end of a node that was told to stop".to_owned()).await
    }

    /// As the kernel ends it when memory is short.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("and waited for");
    }

    /// What it has logged.
    pub(crate) fn told(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // It may have ended already; there is nothing to do about a failure here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first of `count` UDP ports in a row that are free. They lie below those that the kernel hands out by itself.
pub(crate) fn free_udp_ports(count: u16) -> u16 {
    const TRIES: u32 = 1_000;
    for _ in 0..TRIES {
        let first = 20_000 + rand::random::<u16>() % 10_000;
        let free = |port| UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if (first..first + count).all(free) {
            return first;
        }
    }
    panic!("no {count} free UDP ports in a row after {TRIES} tries")
}

pub(crate) fn free_tcp_port() -> u16 {
    const TRIES: u32 = 1_000;
    for _ in 0..TRIES {
        let port = 20_000 + rand::random::<u16>() % 10_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free TCP port after {TRIES} tries")
}
