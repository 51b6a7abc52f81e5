//! What reading a change stream costs: a node's ingest thread against a bare loop over the driver's cursor, on the same history of the
//! same server.
//!
//! Both read on one thread with everything of the driver's on it, from the cluster time before the first write to the last event. What is
//! told is the wall clock between the first batch and the last, and that thread's work in between.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use bson::{Document, RawDocument, Timestamp, doc};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use loadgen::{pinned::Pinned, profile::Profile, run::SourceKind};
use mongodb::{Client, options::ClientOptions};
use streamer::{
    config::Config,
    ingest::source::{
        Batch, Identity, Opened, Purpose, Source, SourceError, SourceStream, Start,
        mongodb::{MongoOptions, MongoSource, Scope},
    },
    node::Node,
};
use wire::BackendId;
use xtask::servers::{Secantus, Server, URI_VARIABLE};

use super::{Cores, Figures, Row, Turns, median, run_node, runtime};
use crate::measure::work_time;

/// What `compare ingest` measures.
#[derive(Clone, Debug)]
pub struct Ingest {
    pub turns: Turns,
    pub events: u64,
    pub payload_bytes: usize,
    /// Events a second that are written meanwhile, for the latency from an acknowledged write to a Gateway's application.
    pub rates: Vec<u64>,
    /// Of a replica set; by default the tests' one, or a server that is installed and started.
    pub uri: Option<String>,
}

/// Documents of one write.
const WRITES_MAX: u64 = 1_000;

/// For how long nothing may come before a round is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Events that a server puts into a batch at most, as the node's source asks for.
const BATCH_EVENTS: u32 = 1_000;

const NAME: &str = "main";

impl Ingest {
    /// Measures all of it. `each` is shown the rows as they come. Where there is no server, the rows say so.
    ///
    /// # Errors
    /// When a server that is there doesn't answer as it should.
    pub fn run(&self, mut each: impl FnMut(&Row)) -> Result<Vec<Row>, String> {
        let cores = Cores::allowed()?;
        let rows = match Place::find(self.uri.as_deref(), &cores) {
            Ok(place) => self.measure(&place, &cores)?,
            Err(why) => [self.row("streamer"), self.row("driver")].map(|row| row.skipped(&why)).to_vec(),
        };
        rows.iter().for_each(&mut each);
        Ok(rows)
    }

    fn row(&self, engine: &'static str) -> Row {
        Row {
            source: Some(SourceKind::Mongodb.name()),
            payload_bytes: self.payload_bytes,
            ..Row::new("ingest", engine)
        }
    }

    fn measure(&self, place: &Place, cores: &Cores) -> Result<Vec<Row>, String> {
        let runtime = runtime().map_err(|error| error.to_string())?;
        let history = runtime.block_on(History::write(self, place)).map_err(|error| error.to_string())?;
        const OURS: &str = "streamer";
        let engines = [OURS, "driver"];
        let carry = |engine: &&str| {
            let read = if *engine == OURS { read_by_node } else { read_bare };
            read(&history, place, cores).map(Some)
        };
        let rounds = self.turns.take(&engines, carry, |engine, figures| {
            format!("{engine}: {:.0} events/s, {} ns of work an event", figures.events_per_s, figures.cpu_ns_per_event)
        })?;
        runtime.block_on(history.drop(place)).map_err(|error| error.to_string())?;
        let mut rows = Vec::new();
        for (engine, rounds) in engines.into_iter().zip(rounds) {
            if let Some(figures) = median(rounds, |round| round.cpu_ns_per_event as f64) {
                let row = self.row(engine).with(&figures);
                rows.push(Row { deliveries_per_s: None, p50_us: None, p99_us: None, p999_us: None, ..row });
            }
        }
        for rate in &self.rates {
            rows.push(self.at_a_rate(*rate, place, cores)?);
        }
        Ok(rows)
    }

    /// From a write's acknowledgement to the Gateways' applications.
    fn at_a_rate(&self, rate: u64, place: &Place, cores: &Cores) -> Result<Row, String> {
        let mut profile = Profile::load("chat").map_err(|error| error.to_string())?;
        // A server makes each collection when the first document comes.
        (profile.tenants, profile.collections) = (2, 10);
        let mut options = super::node(profile, "chat", cores, &self.turns);
        (options.source, options.uri, options.rate) = (SourceKind::Mongodb, Some(place.uri.clone()), Some(rate));
        (options.gateways, options.subscriptions) = (2, SUBSCRIPTIONS);
        let figures = run_node(&options)?;
        let row = Row {
            fan_out: figures.fan_out,
            gateways: 2,
            shards: Some(1),
            subscriptions: SUBSCRIPTIONS as usize,
            payload_bytes: options.profile.document_bytes,
            rate: Some(rate),
            ..self.row("streamer")
        };
        Ok(row.with(&figures))
    }
}

const SUBSCRIPTIONS: u32 = 10_000;

/// A server, which is ended with this where it was started for it.
struct Place {
    uri: String,
    _server: Option<Server>,
}

impl Place {
    /// The error says why there is none.
    fn find(given: Option<&str>, cores: &Cores) -> Result<Self, String> {
        let set = std::env::var(URI_VARIABLE).ok().filter(|uri| !uri.is_empty());
        if let Some(uri) = given.map(str::to_owned).or(set) {
            return Ok(Self { uri, _server: None });
        }
        let target = std::env::current_exe().map_err(|error| error.to_string())?;
        let target =
            target.ancestors().find(|folder| folder.ends_with("target")).ok_or("this runs outside of target/")?;
        let secantus = Secantus::install(target)?;
        // The server inherits the core.
        let _pinned = Pinned::to(&[cores.serve]);
        let server = secantus.start()?;
        Ok(Self { uri: server.uri.clone(), _server: Some(server) })
    }

    async fn client(&self) -> Result<Client, mongodb::error::Error> {
        let mut options = ClientOptions::parse(&self.uri).await?;
        options.server_selection_timeout.get_or_insert(Duration::from_secs(10));
        Client::with_options(options)
    }
}

/// Events that stand in a server's history.
struct History {
    /// A database of their own.
    database: String,
    /// Cluster time before the first.
    start: Timestamp,
    events: u64,
}

impl History {
    async fn write(ingest: &Ingest, place: &Place) -> Result<Self, mongodb::error::Error> {
        let client = place.client().await?;
        let database = format!("compare-{}", std::process::id());
        let hello = client.database("admin").run_command(doc! { "hello": 1 }).await?;
        let start = hello.get_timestamp("operationTime").unwrap_or(Timestamp { time: 0, increment: 0 });
        let collection = client.database(&database).collection::<Document>("events");
        let filling = "x".repeat(ingest.payload_bytes.saturating_sub(60));
        for first in (0..ingest.events).step_by(WRITES_MAX as usize) {
            let some = first..ingest.events.min(first + WRITES_MAX);
            let document = |n: u64| doc! { "n": n as i64, "key": format!("key-{n:06}"), "text": &filling };
            collection.insert_many(some.map(document)).await?;
        }
        Ok(Self { database, start, events: ingest.events })
    }

    async fn drop(&self, place: &Place) -> Result<(), mongodb::error::Error> {
        place.client().await?.database(&self.database).drop().await
    }
}

/// Where the reading thread stands: the first and the last batch of a history.
#[derive(Clone, Copy, Debug)]
struct Span {
    began: (Instant, Duration),
    ended: (Instant, Duration),
    events: u64,
}

/// Counts what one thread reads.
#[derive(Debug, Default)]
struct Meter {
    /// When the first batch had come, and its events.
    began: Option<((Instant, Duration), u64)>,
    events: u64,
}

impl Meter {
    /// Called on the reading thread with the number of each batch's events. Gives the span once as many as `all` have come; it has no
    /// more than those after the first batch.
    fn count(&mut self, events: u64, all: u64) -> Option<Span> {
        if events == 0 {
            return None;
        }
        let now = (Instant::now(), work_time());
        self.events += events;
        let (began, first) = *self.began.get_or_insert((now, events));
        let after = self.events - first;
        (self.events >= all && after > 0).then_some(Span { began, ended: now, events: after })
    }
}

impl Span {
    fn figures(&self) -> Figures {
        let (wall, work) = (self.ended.0 - self.began.0, self.ended.1.saturating_sub(self.began.1));
        Figures {
            events_per_s: self.events as f64 / wall.as_secs_f64(),
            cpu_ns_per_event: work.as_nanos() as u64 / self.events.max(1),
            ..Figures::default()
        }
    }
}

/// The official driver's cursor, batch by batch, and the fields that a node's ingest thread reads.
fn read_bare(history: &History, place: &Place, cores: &Cores) -> Result<Figures, String> {
    let (place_uri, database, start, all) =
        (place.uri.clone(), history.database.clone(), history.start, history.events);
    let cores = cores.load.clone();
    let thread = std::thread::spawn(move || {
        let _pinned = Pinned::to(&cores);
        let place = Place { uri: place_uri, _server: None };
        runtime().map_err(|error| error.to_string())?.block_on(async {
            let reading = async {
                let client = place.client().await?;
                let pipeline = [doc! { "$changeStream": {
                    "startAtOperationTime": start, "fullDocument": "updateLookup", "fullDocumentBeforeChange": "whenAvailable",
                } }];
                let mut cursor = client.database(&database).aggregate(pipeline).batch_size(BATCH_EVENTS).batch().await?;
                let mut meter = Meter::default();
                let mut sum = 0;
                while let Some(batch) = cursor.next().await {
                    let batch = batch?;
                    let mut events = 0;
                    for event in batch.doc_slices()? {
                        let event = event.ok().and_then(|event| event.as_document()).ok_or("an event is no document");
                        sum += fields(event.map_err(mongodb::error::Error::custom)?);
                        events += 1;
                    }
                    if let Some(span) = meter.count(events, all) {
                        return Ok::<_, mongodb::error::Error>((span, sum));
                    }
                }
                Err(mongodb::error::Error::custom("the cursor has ended"))
            };
            let read = tokio::time::timeout(PATIENCE * 4, reading).await;
            let (span, sum) = read.map_err(|_| "the driver has not read all in time")?.map_err(|error| error.to_string())?;
            std::hint::black_box(sum);
            Ok(span.figures())
        })
    });
    thread.join().map_err(|_| "the reading thread panicked".to_owned())?
}

/// Reads what a node reads of an event, and gives something that depends on all of it.
fn fields(event: &RawDocument) -> usize {
    let token = event.get_document("_id").map_or(0, |token| token.as_bytes().len());
    let operation = event.get_str("operationType").map_or(0, str::len);
    let time = event.get_timestamp("clusterTime").map_or(0, |time| time.increment as usize);
    let place = event
        .get_document("ns")
        .map_or(0, |place| place.get_str("db").map_or(0, str::len) + place.get_str("coll").map_or(0, str::len));
    let key =
        event.get_document("documentKey").map_or(0, |key| key.get("_id").map_or(0, |id| usize::from(id.is_some())));
    let document = event.get_document("fullDocument").map_or(0, |document| document.as_bytes().len());
    token + operation + time + place + key + document
}

/// A node without Gateways on the same history: each event is read, placed and asked for, and nobody wants it.
fn read_by_node(history: &History, place: &Place, cores: &Cores) -> Result<Figures, String> {
    let folder = tempfile::Builder::new().prefix("compare-ingest-").tempdir().map_err(|error| error.to_string())?;
    let text = format!(
        "[node]\ndata_dir = {:?}\nshutdown_flush = \"0s\"\n[http]\nlisten = \"127.0.0.1:0\"\n[quic]\nlisten = \"127.0.0.1:0\"\n\
         [affinity]\nshards = \"{}\"\n[mapping]\npreset = \"plain\"\n\
         [[backends]]\nname = {NAME:?}\nkind = \"mongodb\"\nuri = {:?}\n",
        folder.path().display().to_string(),
        cores.serve,
        place.uri,
    );
    let config = Config::from_parts(None, &text, []).map_err(|error| error.to_string())?;
    let (told, span) = mpsc::channel();
    let scope = Scope::Database(history.database.clone());
    let source = Metered {
        inner: MongoSource::new(MongoOptions { scope, ..MongoOptions::new(NAME, &place.uri) }),
        start: u64::from(history.start.time) << 32 | u64::from(history.start.increment),
        all: history.events,
        told,
    };
    let node = Node::start_with(config, vec![Arc::new(source)]).map_err(|error| error.to_string())?;
    let span: Result<Span, _> = span.recv_timeout(PATIENCE * 4);
    let figures = span.map_err(|_| {
        let reasons = node.state().health().reasons.join("; ");
        format!("the node has not read all in time: {reasons}")
    });
    node.stop().map_err(|error| error.to_string())?;
    Ok(figures?.figures())
}

/// The node's own source, begun at a place in the history, and counted as its thread reads it.
struct Metered {
    inner: MongoSource,
    /// A cluster time.
    start: u64,
    all: u64,
    told: mpsc::Sender<Span>,
}

impl Source for Metered {
    fn backend(&self) -> BackendId {
        self.inner.backend()
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn identity(&self) -> BoxFuture<'_, Result<Identity, SourceError>> {
        self.inner.identity()
    }

    fn open(&self, _: Start, purpose: Purpose) -> BoxFuture<'_, Result<Opened, SourceError>> {
        async move {
            let Opened { stream, start } = self.inner.open(Start::At { time: self.start }, purpose).await?;
            let (all, told) = (self.all, self.told.clone());
            let stream = Box::new(MeteredStream { inner: stream, meter: Meter::default(), all, told });
            Ok(Opened { stream, start })
        }
        .boxed()
    }
}

struct MeteredStream {
    inner: Box<dyn SourceStream>,
    meter: Meter,
    all: u64,
    told: mpsc::Sender<Span>,
}

impl SourceStream for MeteredStream {
    fn next(&mut self, wait: Duration) -> BoxFuture<'_, Result<Batch, SourceError>> {
        async move {
            let batch = self.inner.next(wait).await?;
            if let Some(span) = self.meter.count(batch.events.len() as u64, self.all) {
                // Whoever waits takes the first.
                let _ = self.told.send(span);
            }
            Ok(batch)
        }
        .boxed()
    }
}
