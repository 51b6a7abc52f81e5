//! Traces of sampled changes, exported by OTLP over HTTP (`[telemetry]`), where somebody collects them.
//!
//! A trace is the way of one change to one Gateway: a span for the whole, and one for each stage, of the same samples that the
//! latency histograms are of. Nothing is made on the threads that changes go through: a shard hands over a sample that is done, if there
//! is room, and spans are made of it here. OTLP has a JSON form (OpenTelemetry protocol 1.x, `opentelemetry.proto.trace.v1`), which needs
//! nothing but an HTTP client: the crates for its binary form would bring protobuf, tonic and a runtime of their own.
//!
//! The trace id is a hash of the event's id, so a Gateway that makes spans of its own can put them into the same trace.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use shards::{
    Nanos, Sample,
    driver::{DoneSample, now_nanos},
};
use tokio::time::timeout;
use wire::Position;
use xxhash_rust::xxh3::xxh3_128;

use crate::config::Telemetry;

/// Samples that may wait to be exported, of all shards. Beyond that they are dropped, and counted.
const WAITING_MAX: usize = 1_024;
/// Traces in one request, and how long one waits for others.
const BATCH_MAX: usize = 256;
const BATCH_WAIT: Duration = Duration::from_secs(1);
/// A collector that takes longer has not got it.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// What became of traces.
#[derive(Debug, Default)]
pub struct TelemetryCounters {
    pub exported: AtomicU64,
    /// That the collector didn't take.
    pub refused: AtomicU64,
}

/// The thread that exports. It ends once all shards have.
#[derive(Debug)]
pub struct Exporter {
    /// For the shards.
    pub samples: flume::Sender<DoneSample>,
    pub counters: Arc<TelemetryCounters>,
    thread: thread::JoinHandle<()>,
}

impl Exporter {
    /// Starts it. `instance` tells this node from others.
    pub fn start(config: &Telemetry, instance: String) -> io::Result<Self> {
        let (samples, done) = flume::bounded(WAITING_MAX);
        let counters = Arc::new(TelemetryCounters::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let export = Export {
            // The proxy of the environment is not for the collector beside us.
            client: reqwest::Client::builder().no_proxy().build().map_err(io::Error::other)?,
            url: format!("{}/v1/traces", config.otlp_endpoint.trim_end_matches('/')),
            instance,
            epoch_ns: epoch_ns(),
            counters: counters.clone(),
            is_well: true,
        };
        let thread = thread::Builder::new()
            .name("streamer-telemetry".into())
            .spawn(move || runtime.block_on(export.run(done)))?;
        Ok(Self { samples, counters, thread })
    }

    /// Waits for the last export, blocking. The shards must have ended.
    pub fn join(self) {
        let Self { samples, thread, .. } = self;
        drop(samples);
        // It has nothing that others depend on.
        let _ = thread.join();
    }
}

/// When the clock of samples was 0, in nanoseconds of Unix time.
#[allow(clippy::disallowed_methods, reason = "collectors know no other clock; nothing is decided by it")]
fn epoch_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_nanos() as u64).saturating_sub(now_nanos().0)
}

struct Export {
    client: reqwest::Client,
    url: String,
    instance: String,
    epoch_ns: u64,
    counters: Arc<TelemetryCounters>,
    /// Whether the last request was taken. Each change of it is logged, once.
    is_well: bool,
}

impl Export {
    async fn run(mut self, done: flume::Receiver<DoneSample>) {
        while let Ok(first) = done.recv_async().await {
            let mut batch = vec![first];
            let fill = async {
                while batch.len() < BATCH_MAX
                    && let Ok(next) = done.recv_async().await
                {
                    batch.push(next);
                }
            };
            // Late or full: what is there goes.
            let _ = timeout(BATCH_WAIT, fill).await;
            self.export(&batch).await;
        }
    }

    async fn export(&mut self, batch: &[DoneSample]) {
        let body = request(batch, &self.instance, self.epoch_ns).to_string();
        let sent = self.client.post(&self.url).header("content-type", "application/json").body(body).send();
        let why = match timeout(EXPORT_TIMEOUT, sent).await {
            Ok(Ok(answer)) if answer.status().is_success() => None,
            Ok(Ok(answer)) => Some(format!("it answered {}", answer.status())),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("it did not answer within {EXPORT_TIMEOUT:?}")),
        };
        let count = match why {
            None => &self.counters.exported,
            Some(_) => &self.counters.refused,
        };
        count.fetch_add(batch.len() as u64, Relaxed);
        match (&why, self.is_well) {
            (Some(why), true) => {
                tracing::warn!(collector = self.url, "traces can't be exported: {why}; dropped until it takes them");
            }
            (None, false) => tracing::info!(collector = self.url, "traces are exported again"),
            _ => {}
        }
        self.is_well = why.is_none();
    }
}

/// `ExportTraceServiceRequest` in its JSON form.
fn request(batch: &[DoneSample], instance: &str, epoch_ns: u64) -> Value {
    let spans: Vec<Value> = batch.iter().flat_map(|done| spans(done, epoch_ns)).collect();
    json!({"resourceSpans": [{
        "resource": {"attributes": [
            attribute("service.name", "streamer"),
            attribute("service.version", env!("CARGO_PKG_VERSION")),
            attribute("service.instance.id", instance),
        ]},
        "scopeSpans": [{"scope": {"name": "streamer"}, "spans": spans}],
    }]})
}

fn attribute(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

/// A change is one trace, also where it goes to several Gateways.
fn trace_id(position: &Position) -> String {
    let mut bytes = Vec::with_capacity(32);
    bytes.extend(position.backend.0.to_le_bytes());
    bytes.extend(position.lineage.0.to_le_bytes());
    bytes.extend(position.time.to_le_bytes());
    bytes.extend(position.k.to_le_bytes());
    format!("{:032x}", xxh3_128(&bytes).max(1))
}

/// The span of the whole, and those of the stages.
fn spans(done: &DoneSample, epoch_ns: u64) -> Vec<Value> {
    const INTERNAL: u32 = 1;
    let DoneSample { sample, partition, done_at } = done;
    let Sample { position, read_at, pushed_at, taken_at, matched_at, sent_at } = sample;
    let id = || format!("{:016x}", rand::random::<u64>().max(1));
    let (trace, root) = (trace_id(position), id());
    let unix = |at: &Nanos| epoch_ns.saturating_add(at.0).to_string();
    let span = |name: &str, id: String, parent: &str, from: &Nanos, to: &Nanos| {
        json!({
            "traceId": trace, "spanId": id, "parentSpanId": parent, "name": name, "kind": INTERNAL,
            "startTimeUnixNano": unix(from), "endTimeUnixNano": unix(to),
            "attributes": [
                {"key": "streamer.shard", "value": {"intValue": partition.to_string()}},
                attribute("streamer.position", &position.to_string()),
            ],
        })
    };
    let stages = [
        ("ingest", read_at, pushed_at),
        ("queue", pushed_at, taken_at),
        ("match", taken_at, matched_at),
        ("send", matched_at, sent_at),
        ("ack", sent_at, done_at),
    ];
    let stages = stages.map(|(name, from, to)| span(name, id(), &root, from, to));
    std::iter::once(span("change", root.clone(), "", read_at, done_at)).chain(stages).collect()
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Bytes, http::StatusCode, routing::post};
    use wire::{BackendId, Lineage};

    use super::*;

    fn done(time: u64) -> DoneSample {
        let at = |ns| Nanos(time * 1_000 + ns);
        DoneSample {
            sample: Sample {
                position: Position { backend: BackendId(7), lineage: Lineage(9), time, k: 1 },
                read_at: at(0),
                pushed_at: at(10),
                taken_at: at(20),
                matched_at: at(40),
                sent_at: at(80),
            },
            partition: 3,
            done_at: at(160),
        }
    }

    /// A collector, and what it was sent.
    fn collector() -> (String, flume::Receiver<Value>, tokio::runtime::Runtime) {
        let (got, requests) = flume::unbounded();
        let answer = move |body: Bytes| {
            let _ = got.send(serde_json::from_slice::<Value>(&body).unwrap());
            async { StatusCode::OK }
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let router = Router::new().route("/v1/traces", post(answer));
        runtime.spawn(async move { axum::serve(listener, router).await });
        (url, requests, runtime)
    }

    #[test]
    fn each_change_is_a_trace_with_its_stages() {
        let (url, requests, runtime) = collector();
        let exporter = Exporter::start(&Telemetry { otlp_endpoint: url }, "node-1".into()).unwrap();
        for time in [1, 2] {
            exporter.samples.send(done(time)).unwrap();
        }
        let counters = exporter.counters.clone();
        exporter.join();
        let requests: Vec<Value> = requests.try_iter().collect();
        assert_eq!((counters.exported.load(Relaxed), counters.refused.load(Relaxed)), (2, 0));
        let resources = || requests.iter().map(|request| &request["resourceSpans"][0]);
        for resource in resources() {
            assert_eq!(resource["resource"]["attributes"][2]["value"]["stringValue"], "node-1");
        }
        let spans: Vec<&Value> =
            resources().flat_map(|resource| resource["scopeSpans"][0]["spans"].as_array().unwrap()).collect();
        assert_eq!(spans.len(), 12);
        let number = |value: &Value| value.as_str().unwrap().parse::<u64>().unwrap();
        for of_change in spans.chunks(6) {
            let root = of_change[0];
            assert_eq!((root["name"].as_str(), root["parentSpanId"].as_str()), (Some("change"), Some("")));
            assert_eq!(root["traceId"].as_str().unwrap().len(), 32);
            assert_eq!(number(&root["endTimeUnixNano"]) - number(&root["startTimeUnixNano"]), 160);
            let mut at = number(&root["startTimeUnixNano"]);
            for (stage, (name, took)) in
                of_change[1..].iter().zip([("ingest", 10), ("queue", 10), ("match", 20), ("send", 40), ("ack", 80)])
            {
                assert_eq!(stage["name"], name);
                assert_eq!((&stage["traceId"], &stage["parentSpanId"]), (&root["traceId"], &root["spanId"]));
                assert_eq!(number(&stage["startTimeUnixNano"]), at, "{name} begins where the stage before it ended");
                at += took;
                assert_eq!(number(&stage["endTimeUnixNano"]), at);
            }
        }
        assert_ne!(spans[0]["traceId"], spans[6]["traceId"]);
        assert_eq!(trace_id(&done(1).sample.position), spans[0]["traceId"].as_str().unwrap(), "told by the event's id");
        drop(runtime);
    }

    #[test]
    fn a_collector_that_is_away_costs_its_traces_and_nothing_else() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let exporter = Exporter::start(&Telemetry { otlp_endpoint: url }, String::new()).unwrap();
        exporter.samples.send(done(1)).unwrap();
        let counters = exporter.counters.clone();
        exporter.join();
        assert_eq!((counters.exported.load(Relaxed), counters.refused.load(Relaxed)), (0, 1));
    }
}
