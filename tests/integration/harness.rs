//! A node to test, in this process or as a process of its own, and what talks to it.

use std::{
    fmt::Write as _,
    fs::{self, File},
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};
use shards::driver::{Preflight, RuntimeChoice};
use streamer::{affinity, config::Config, node::Node};
use streamer_gateway::{AppEvent, Change, Gateway, GatewayBuilder, SubscriptionKey};
use tempfile::TempDir;

/// How long anything may take that is waited for. Only a test that fails takes this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at what is waited for.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The executors that shards run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runtime {
    Glommio,
    Tokio,
}

impl Runtime {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Glommio => "glommio",
            Self::Tokio => "tokio",
        }
    }

    /// Whether it can run here; where it can't, says so.
    pub(crate) fn is_available(self) -> bool {
        if self == Self::Tokio {
            return true;
        }
        match Preflight::check(SHARDS).decide(RuntimeChoice::Glommio) {
            Ok(_) => true,
            Err(why) => {
                println!("skipped: {why}");
                false
            }
        }
    }
}

/// Shards of a node unless a test says otherwise.
pub(crate) const SHARDS: usize = 4;

/// Makes one test a runtime out of an async function that takes the runtime.
macro_rules! on_both_runtimes {
    ($($name:ident),+ $(,)?) => {
        mod on_glommio {
            $(#[test]
            fn $name() {
                if $crate::harness::Runtime::Glommio.is_available() {
                    $crate::harness::block_on(super::$name($crate::harness::Runtime::Glommio));
                }
            })+
        }
        mod on_tokio {
            $(#[test]
            fn $name() {
                $crate::harness::block_on(super::$name($crate::harness::Runtime::Tokio));
            })+
        }
    };
}
pub(crate) use on_both_runtimes;

/// Runs the test's own side. The node has threads of its own.
pub(crate) fn block_on<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test)
}

/// The value of the future, or a failure that says what did not come.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing within {PATIENCE:?}"),
    }
}

/// Looks until there is something.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    within(what, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    })
    .await
}

/// This many shards on the cores that the process is allowed, one after the other and again from the first.
pub(crate) fn cores_of_shards(shards: usize) -> String {
    let allowed = affinity::allowed().unwrap();
    let cores = allowed.iter().cycle().take(shards).map(ToString::to_string);
    cores.collect::<Vec<_>>().join(",")
}

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
            shards: cores_of_shards(SHARDS),
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
        self.shards = cores_of_shards(shards);
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

    /// Writes the configuration where a process can read it.
    pub(crate) fn config_file(&self) -> PathBuf {
        let path = self.folder().join("streamer.toml");
        fs::write(&path, self.config_text()).unwrap();
        path
    }

    /// The HTTP side, without a token.
    pub(crate) fn api(&self) -> Api {
        Api { url: self.url(), token: None, client: reqwest::Client::new() }
    }

    /// Settings of a Gateway that knows this node.
    pub(crate) fn gateway(&self, id: &str, fingerprint: &str) -> GatewayBuilder {
        Gateway::builder().gateway(id).address(self.address()).fingerprint(fingerprint).connect_timeout(PATIENCE)
    }
}

/// A port for HTTP and the first of a few in a row for QUIC. Below those that the kernel hands out by itself, so that nobody gets
/// one of them while a node is away.
fn free_ports() -> (u16, u16) {
    const FIRST: u16 = 12_000;
    const LAST: u16 = 32_000;
    const EACH: u16 = 20;
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    // Other test processes start elsewhere.
    let offset = (std::process::id() * 7 % u32::from((LAST - FIRST) / EACH)) as u16;
    for _ in 0..(LAST - FIRST) / EACH {
        let block = (offset + TAKEN.fetch_add(1, Relaxed)) % ((LAST - FIRST) / EACH);
        let http = FIRST + block * EACH;
        let quic = http + 1;
        let is_free = TcpListener::bind(("127.0.0.1", http)).is_ok()
            && (quic..quic + EACH - 1).all(|port| UdpSocket::bind(("127.0.0.1", port)).is_ok());
        if is_free {
            return (http, quic);
        }
    }
    panic!("no free ports between {FIRST} and {LAST}");
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

/// `streamer run` as a process.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Started, and reading its source.
    pub(crate) async fn start(setup: &Setup) -> Self {
        let log = setup.folder().join("log");
        let stderr = File::options().create(true).append(true).open(&log).unwrap();
        let child = Command::new(BINARY)
            .arg("run")
            .arg("-c")
            .arg(setup.config_file())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let mut process = Self { child, log };
        let api = setup.api();
        let deadline = Instant::now() + PATIENCE;
        while !api.is_ready().await {
            let ended = process.child.try_wait().unwrap();
            assert!(ended.is_none(), "the node has ended with {ended:?}; it said:\n{}", process.log());
            assert!(Instant::now() < deadline, "the node is not ready; it said:\n{}", process.log());
            tokio::time::sleep(LOOK_EVERY).await;
        }
        process
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to stderr, over all of its starts.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and waits for the end.
    pub(crate) async fn terminate(mut self) -> ExitStatus {
        let sent = Command::new("kill").arg("-TERM").arg(self.id().to_string()).status().unwrap();
        assert!(sent.success());
        let child = &mut self.child;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the node doesn't stop after SIGTERM");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("what the node said:\n{}", self.log());
        }
        // Nothing to do where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_streamer");

/// The HTTP side of a node.
#[derive(Clone)]
pub(crate) struct Api {
    url: String,
    token: Option<String>,
    client: reqwest::Client,
}

/// Status and body; `null` for an empty body, a string for one that isn't JSON.
pub(crate) type Answer = (u16, Value);

impl Api {
    pub(crate) fn with_token(mut self, token: Option<&str>) -> Self {
        self.token = token.map(str::to_owned);
        self
    }

    pub(crate) async fn call(&self, method: &str, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        self.try_call(method, path, body).await.unwrap_or_else(|error| panic!("{method} {path}: {error:?}"))
    }

    /// An error where the connection ended before the answer was here.
    pub(crate) async fn try_call(
        &self,
        method: &str,
        path: &str,
        body: impl Into<reqwest::Body>,
    ) -> Result<Answer, reqwest::Error> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.client.request(method, format!("{}{path}", self.url)).body(body);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = within(path, request.send()).await?;
        let status = response.status().as_u16();
        let text = within(path, response.text()).await?;
        let value = match text.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        };
        Ok((status, value))
    }

    pub(crate) async fn is_ready(&self) -> bool {
        let answer = self.client.get(format!("{}/health/ready", self.url)).send().await;
        answer.is_ok_and(|answer| answer.status().as_u16() == 200)
    }

    pub(crate) async fn topology(&self) -> Value {
        let (status, topology) = self.call("GET", "/v1/topology", "").await;
        assert_eq!(status, 200, "{topology}");
        topology
    }

    pub(crate) async fn fingerprint(&self) -> String {
        self.topology().await["fingerprint"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn health(&self) -> Value {
        self.call("GET", "/health", "").await.1
    }

    /// Stores a document; the offset of its change.
    pub(crate) async fn put(&self, tenant: &str, collection: &str, id: &str, data: Value) -> u64 {
        let (status, answer) = self.call("PUT", &document_path(tenant, collection, id), data.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        answer["offset"].as_u64().unwrap_or_else(|| panic!("{answer}"))
    }

    /// Writes many documents at once, each as (tenant, collection, id, data).
    pub(crate) async fn put_all(&self, documents: impl IntoIterator<Item = (&str, &str, String, Value)>) {
        let mut lines = String::new();
        for (tenant, collection, id, data) in documents {
            let line = json!({"op": "put", "tenant": tenant, "collection": collection, "id": id, "data": data});
            writeln!(lines, "{line}").unwrap();
        }
        let (status, answer) = self.call("POST", "/v1/documents", lines).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["unchanged"], 0, "{answer}");
    }
}

pub(crate) fn document_path(tenant: &str, collection: &str, id: &str) -> String {
    format!("/v1/documents/{}/{}/{}", escaped(tenant), escaped(collection), escaped(id))
}

/// One segment of a path, percent-encoded.
fn escaped(segment: &str) -> String {
    segment.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => text.push(char::from(byte)),
            other => write!(text, "%{other:02X}").unwrap(),
        }
        text
    })
}

pub(crate) fn key(tenant: &str, id: &str) -> SubscriptionKey {
    SubscriptionKey { tenant: tenant.into(), id: id.into() }
}

/// Waits until this many subscriptions are live, without taking what is delivered.
pub(crate) async fn wait_live(gateway: &Gateway, count: usize) {
    let what = format!("{count} subscriptions are live");
    until(&what, async || {
        assert_eq!(gateway.error(), None, "the Gateway has ended");
        (gateway.status().live == count).then_some(())
    })
    .await;
}

/// The next change. News of subscriptions that are live again are passed over; anything else is a failure.
pub(crate) async fn next_change(gateway: &mut Gateway, what: &str) -> Change {
    loop {
        match next_event(gateway, what).await {
            AppEvent::Change(change) => return change,
            AppEvent::Live { .. } => {}
            other => panic!("{what}: {other:?} came instead"),
        }
    }
}

/// The next item of any kind.
pub(crate) async fn next_event(gateway: &mut Gateway, what: &str) -> AppEvent {
    match within(what, gateway.next()).await {
        Some(event) => event.what,
        None => panic!("{what}: the Gateway has ended: {:?}", gateway.error()),
    }
}

/// The number that a test has put into a document's field `n`.
pub(crate) fn number(change: &Change) -> i64 {
    let document = change.flat().unwrap_or_else(|| panic!("{change:?} shows no document"));
    match document.get("n") {
        Some(bson::Bson::Int32(n)) => i64::from(*n),
        Some(bson::Bson::Int64(n)) => *n,
        other => panic!("n is {other:?}"),
    }
}
