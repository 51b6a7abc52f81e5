//! The node of a scene: `streamer run` in a process of its own, on ports that stay when it is started again.

use std::{
    fs::{self, File},
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

use super::ConformanceError;
use crate::{
    affinity,
    control::{hash_token, metric_of},
};

/// The Gateway's id in every scene.
pub(super) const GATEWAY: &str = "conformance";
/// Its token. Everything is on loopback, and the node is gone after the scene.
pub(super) const TOKEN: &str = "conformance-token";
const ADMIN_TOKEN: &str = "conformance-admin";
/// The one tenant that it may name.
pub(super) const TENANT: &str = "acme";

/// HTTP, and UDP ports for shards.
const PORTS: u16 = 5;

/// How long the node may take for what it does by itself.
const NODE_PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(super) struct Node {
    program: PathBuf,
    folder: PathBuf,
    http: u16,
    child: Option<Child>,
    client: reqwest::Client,
    retains_little: bool,
}

impl Node {
    /// Not started yet.
    pub(super) fn new(program: &Path, folder: &Path, port: Option<u16>) -> Result<Self, ConformanceError> {
        let http = match port {
            Some(port) if is_free(port) => port,
            Some(first) => return Err(ConformanceError::Ports { first, last: first + PORTS - 1 }),
            None => free_ports()?,
        };
        let (program, folder) = (program.to_owned(), folder.to_owned());
        Ok(Self { program, folder, http, child: None, client: reqwest::Client::new(), retains_little: false })
    }

    /// Of shard 0.
    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.http + 1)
    }

    pub(super) async fn start(&mut self, shards: usize) -> Result<(), ConformanceError> {
        let config = self.folder.join("streamer.toml");
        let output = || File::options().create(true).append(true).open(self.folder.join("node.log"));
        let started = fs::write(&config, self.config(shards)).and_then(|()| {
            let (stdout, stderr) = (output()?, output()?);
            let mut command = Command::new(&self.program);
            command.arg("run").arg("-c").arg(&config).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
            // A Ctrl-C is for the run, which ends its own processes.
            command.kill_on_drop(true).spawn()
        });
        let what = || self.program.display().to_string();
        self.child = Some(started.map_err(|error| ConformanceError::Start { what: what(), error })?);
        self.until("it does not answer", async |node| Ok(node.get("/health/live").await.ok())).await.map(drop)
    }

    fn config(&self, shards: usize) -> String {
        // All on one core: nothing is measured here.
        let core = affinity::Topology::read().ok().and_then(|cores| cores.numbers().first().map(ToString::to_string));
        let cores = vec![core.unwrap_or_else(|| "0".into()); shards].join(",");
        format!(
            r#"
[node]
data_dir = {data:?}
runtime = "tokio"
shutdown_flush = "1s"
[affinity]
shards = "{cores}"
[http]
listen = "127.0.0.1:{http}"
[quic]
listen = "127.0.0.1:{quic}"
heartbeat = "200ms"
idle_timeout = "5s"
received_deadline = "2s"
[[gateways]]
name = "{GATEWAY}"
token_sha256 = "{token}"
tenants = ["{TENANT}"]
[admin]
token_sha256 = "{admin}"
[[backends]]
name = "embedded"
kind = "embedded"
sync = false
retain_events = {RETAINED}
retain_bytes = "{bytes}"
[checkpoint]
every = "200ms"
on_history_lost = "from_now"
[ingest]
registration_grace = "60s"
"#,
            data = self.data().display().to_string(),
            http = self.http,
            quic = self.http + 1,
            bytes = if self.retains_little { "1MiB" } else { "1GiB" },
            token = hash_text(TOKEN),
            admin = hash_text(ADMIN_TOKEN),
        )
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// As the kernel ends it when memory is short.
    pub(super) async fn kill(&mut self) -> Result<(), ConformanceError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().await.map_err(|error| self.broken(format!("it can't be killed: {error}")))
    }

    /// As a service manager stops it.
    pub(super) async fn stop(&mut self) -> Result<(), ConformanceError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let id = child.id().map(|id| id.to_string()).unwrap_or_default();
        let sent = Command::new("kill").args(["-TERM", &id]).status().await;
        if !sent.is_ok_and(|status| status.success()) {
            return Err(self.broken("it can't be told to stop".into()));
        }
        match tokio::time::timeout(NODE_PATIENCE, child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            other => Err(self.broken(format!("told to stop, it ended with {other:?}"))),
        }
    }

    /// Another history: what it had stored, and where it was, is gone. It must not run.
    pub(super) fn forget(&self) -> Result<(), ConformanceError> {
        ["embedded", "checkpoint"]
            .into_iter()
            .try_for_each(|name| fs::remove_dir_all(self.data().join(name)))
            .map_err(|error| self.broken(format!("its folders can't be removed: {error}")))
    }

    /// From its next start on.
    pub(super) fn retain_little(&mut self) {
        self.retains_little = true;
    }

    pub(super) async fn fingerprint(&self) -> Result<String, ConformanceError> {
        let topology = self.get("/v1/topology").await?;
        topology["fingerprint"].as_str().map(str::to_owned).ok_or_else(|| self.broken("it has no fingerprint".into()))
    }

    pub(super) async fn subscriptions(&self) -> Result<u64, ConformanceError> {
        Ok(self.get("/v1/topology").await?["subscriptions"]["total"].as_u64().unwrap_or_default())
    }

    /// Changes that the Gateway is owed or isn't done with.
    pub(super) async fn unsettled(&self) -> Result<u64, ConformanceError> {
        let health = self.get("/health").await?;
        let shards = health["shards"].as_array().cloned().unwrap_or_default();
        Ok(shards.iter().filter_map(|shard| shard["unsettled"].as_u64()).sum())
    }

    /// The place in the store's history up to which the Gateway is done with everything. It may be further by now.
    pub(super) async fn settled(&self) -> Result<u64, ConformanceError> {
        let health = self.get("/health").await?;
        let position = health["backends"][0]["settled"].as_str().and_then(|text| text.parse().ok());
        Ok(position.map_or(0, |position: wire::Position| position.time))
    }

    /// A counter, over all its labels.
    pub(super) async fn counter(&self, name: &str) -> Result<u64, ConformanceError> {
        let Value::String(text) = self.get("/metrics").await? else { return Ok(0) };
        Ok(metric_of(&text, name).unwrap_or(0.0) as u64)
    }

    /// Writes a document. The place of the change in the store's history.
    pub(super) async fn put(&self, collection: &str, id: &str, body: String) -> Result<u64, ConformanceError> {
        self.write(reqwest::Method::PUT, &format!("/v1/documents/{TENANT}/{collection}/{id}"), body).await
    }

    pub(super) async fn delete(&self, collection: &str, id: &str) -> Result<u64, ConformanceError> {
        let path = format!("/v1/documents/{TENANT}/{collection}/{id}");
        self.write(reqwest::Method::DELETE, &path, String::new()).await
    }

    async fn write(&self, method: reqwest::Method, path: &str, body: String) -> Result<u64, ConformanceError> {
        let answer = self.call(method, path, body).await?;
        answer["offset"].as_u64().ok_or_else(|| self.broken(format!("{path} changed nothing: {answer}")))
    }

    /// Writes lines of the bulk form.
    pub(super) async fn post(&self, lines: String) -> Result<(), ConformanceError> {
        self.call(reqwest::Method::POST, "/v1/documents", lines).await.map(drop)
    }

    async fn get(&self, path: &str) -> Result<Value, ConformanceError> {
        self.call(reqwest::Method::GET, path, String::new()).await
    }

    /// Any answer of `/health` will do, and 200 of the others.
    async fn call(&self, method: reqwest::Method, path: &str, body: String) -> Result<Value, ConformanceError> {
        let url = format!("http://127.0.0.1:{}{path}", self.http);
        let request = self.client.request(method, url).bearer_auth(ADMIN_TOKEN).body(body).timeout(NODE_PATIENCE);
        let broken = |error: reqwest::Error| self.broken(format!("{path}: {error}"));
        let response = request.send().await.map_err(broken)?;
        let status = response.status();
        let text = response.text().await.map_err(broken)?;
        if !status.is_success() && path != "/health" {
            return Err(self.broken(format!("{path} was answered with {status}: {text}")));
        }
        Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Looks until there is something.
    pub(super) async fn until<T>(
        &self,
        what: &str,
        look: impl AsyncFn(&Self) -> Result<Option<T>, ConformanceError>,
    ) -> Result<T, ConformanceError> {
        let started = Instant::now();
        loop {
            if let Some(found) = look(self).await? {
                return Ok(found);
            }
            if started.elapsed() > NODE_PATIENCE {
                return Err(self.broken(format!("{what} within {NODE_PATIENCE:?}")));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    pub(super) fn broken(&self, what: String) -> ConformanceError {
        let log = fs::read_to_string(self.folder.join("node.log")).unwrap_or_default();
        ConformanceError::Node { what, log }
    }
}

fn hash_text(token: &str) -> String {
    format!("{:?}", hash_token(token))
}

/// Changes that the store keeps: few, so that a scene can write more.
pub(super) const RETAINED: u64 = 1_000;

fn is_free(first: u16) -> bool {
    TcpListener::bind(("127.0.0.1", first)).is_ok()
        && (first + 1..first + PORTS).all(|port| UdpSocket::bind(("127.0.0.1", port)).is_ok())
}

/// Below those that the kernel hands out by itself, so that nobody gets one of them while the node is away.
fn free_ports() -> Result<u16, ConformanceError> {
    const FIRST: u16 = 20_000;
    const LAST: u16 = 32_000;
    let blocks = (LAST - FIRST) / PORTS;
    // Another run begins elsewhere.
    let begin = (std::process::id() % u32::from(blocks)) as u16;
    let all = (0..blocks).map(|block| FIRST + (begin + block) % blocks * PORTS);
    all.into_iter().find(|first| is_free(*first)).ok_or(ConformanceError::Ports { first: FIRST, last: LAST })
}
