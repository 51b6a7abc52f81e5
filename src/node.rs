//! One node: starts the threads, wires them, and stops them in order.
//!
//! Start: sockets first, so that a port in use is an error before anything runs; then the shards, the control side, and last the
//! ingest thread, since whatever it reads must find its way. Stop: nobody new is let in, and Gateways are asked to leave, each at a
//! time of its own, with everything delivered on meanwhile; then the ingest thread stops reading, what was read is flushed, the shards
//! end their sessions, the ingest thread writes the last checkpoint of what they settled, the control side ends.

mod settings;

use std::{
    fs::{File, TryLockError},
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rand::Rng;
use shards::{
    Reload,
    driver::{
        CellSignal, FilterBuilder, ShardFailed, ShardHandle, ShardThread, ShardThreadConfig,
        StartError as ShardStartError, StatsSnapshot,
    },
};
use tokio::sync::watch;
use wire::{Epoch, ShardAddress, SlotTable};

use self::settings::{quic_config, shard_config, shard_limits, use_gso};

use crate::{
    affinity::{self, Misplaced, Placement},
    checkpoint::{self, CheckpointError},
    config::{Backend, BackendKind, Config},
    control::{self, ControlDeps, ControlHandle, Credentials, NodeState, ShardPlace, Topology},
    ingest::{
        core::IngestCore,
        pump::{Link, Phases, Pump, PumpConfig, PumpParts},
        source::{
            Source,
            embedded::{EmbeddedSource, EmbeddedStore, Retention, StoreError, StoreOptions},
            mongodb::MongoSource,
        },
        status::IngestStatus,
    },
    memory,
    reload::{self, Plan, ReloadError},
    telemetry::Exporter,
    tls::{self, Certificate, CertificateError},
};

/// Why a node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("the cores that this process is allowed can't be read: {0}")]
    Affinity(#[source] io::Error),
    #[error("{}", misplaced(.0))]
    Misplaced(Vec<Misplaced>),
    #[error("{0}")]
    Memory(String),
    #[error("{what} {address} can't be listened on: {error}. `streamer check` lists what is in use")]
    Listen { what: &'static str, address: SocketAddr, error: io::Error },
    #[error(transparent)]
    DataFolder(#[from] DataFolderError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("backend {name:?}: {error}")]
    Store { name: String, error: StoreError },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("shard {shard}: {error}")]
    Shard { shard: u16, error: ShardStartError },
    #[error(transparent)]
    Control(#[from] control::StartError),
    #[error("the thread {0:?} can't be started: {1}")]
    Thread(&'static str, #[source] io::Error),
}

fn misplaced(all: &[Misplaced]) -> String {
    let one = |misplaced: &Misplaced| format!("affinity.{} {}", misplaced.key, misplaced.message);
    all.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// How a node ended that was not asked to.
#[derive(Debug, thiserror::Error)]
pub enum NodeFailed {
    #[error(transparent)]
    Shard(#[from] ShardFailed),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{0}")]
    Thread(String),
}

/// A running node.
pub struct Node {
    config: Arc<Config>,
    state: Arc<NodeState>,
    topology: Topology,
    stores: Vec<(String, Arc<EmbeddedStore>)>,
    shards: Vec<ShardHandle>,
    credentials: Credentials,
    certificate: Certificate,
    exporter: Option<Exporter>,
    control: ControlHandle,
    ingest: IngestThread,
    ingest_phase: watch::Sender<Phases>,
    _folder: DataFolder,
}

/// A data folder that no other process uses while this lives.
#[derive(Debug)]
pub struct DataFolder {
    _lock: File,
}

#[derive(Debug, thiserror::Error)]
pub enum DataFolderError {
    #[error("the data folder {folder} can't be used: {error}")]
    Unusable { folder: String, error: io::Error },
    #[error("the data folder {folder} is in use by another node; two nodes must not share one")]
    InUse { folder: String },
}

impl DataFolder {
    /// Makes the folder if there is none, and takes it.
    pub fn lock(folder: &Path) -> Result<Self, DataFolderError> {
        let name = || folder.display().to_string();
        let open = || {
            std::fs::create_dir_all(folder)?;
            File::options().create(true).write(true).truncate(false).open(folder.join("lock"))
        };
        let lock = open().map_err(|error| DataFolderError::Unusable { folder: name(), error })?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(DataFolderError::InUse { folder: name() }),
            Err(TryLockError::Error(error)) => Err(DataFolderError::Unusable { folder: name(), error }),
        }
    }
}

impl Node {
    pub fn start(config: Config) -> Result<Self, NodeError> {
        Self::start_with(config, Vec::new())
    }

    /// The same with sources of the caller's: each is read in the place of the configured backend of its name.
    pub fn start_with(config: Config, given: Vec<Arc<dyn Source>>) -> Result<Self, NodeError> {
        let config = Arc::new(config);
        let started = Instant::now();
        let machine = affinity::Topology::read().map_err(NodeError::Affinity)?;
        let wanted = &config.affinity;
        let placement = affinity::place(&wanted.ingest.value, &wanted.control.value, &wanted.shards.value, &machine)
            .map_err(NodeError::Misplaced)?;
        placement.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));

        let needed = memory::check(&config, placement.shards.len(), memory::there_is())
            .map_err(|(key, message)| NodeError::Memory(format!("{key} {message}")))?;
        tracing::info!("memory by bounds: {needed}");

        let folder = DataFolder::lock(&config.node.data_dir)?;
        let gso = use_gso(&config);
        let listener = listen_http(&config)?;
        let sockets = listen_quic(&config, placement.shards.len())?;
        let certificate = tls::load_or_make(&config)?;
        tracing::info!(
            fingerprint = certificate.fingerprint,
            self_made = certificate.self_made,
            "certificate (SHA-256)"
        );
        let (sources, stores) = open_sources(&config, &given)?;
        let store = checkpoint::open(&config)?;

        let slots = SlotTable { shards: placement.shards.len() as u16 };
        let addresses = advertised(&config, &sockets)?;
        let epoch = Epoch(rand::rng().random());
        let signal = Arc::new(CellSignal::default());
        let (channels, receivers) = control::channels(sockets.len());
        let credentials = Credentials::of(&config);
        let exporter = match config.telemetry.otlp_endpoint.as_str() {
            "" => None,
            _ => {
                let exporter = Exporter::start(&config.telemetry, format!("{:032x}", epoch.0));
                Some(exporter.map_err(|error| NodeError::Thread("streamer-telemetry", error))?)
            }
        };
        let filter_builder = FilterBuilder::spawn().map_err(|error| NodeError::Thread("filter-builder", error))?;
        let mut links = Vec::new();
        let mut shards: Vec<ShardHandle> = Vec::new();
        for ((socket, receivers), core) in sockets.into_iter().zip(receivers).zip(&placement.shards) {
            let partition = shards.len() as u16;
            let thread = ShardThreadConfig {
                shard: shard_config(&config, partition, slots, &addresses, epoch),
                name: format!("shard-{partition}"),
                core: *core,
                runtime: config.node.runtime.into(),
                executors: placement.shards.len(),
                socket,
                tls: certificate.server.clone(),
                quic: quic_config(&config, gso),
                authenticator: Arc::new(credentials.clone()),
                ring_capacity: config.ingest.ring,
                signal: signal.clone(),
                commands: receivers.commands,
                admissions: receivers.admissions,
                to_control: receivers.to_control,
                filter_builder: filter_builder.clone(),
                samples: exporter.as_ref().map(|exporter| exporter.samples.clone()),
            };
            let (ring, shard) =
                ShardThread::spawn(thread).map_err(|error| NodeError::Shard { shard: partition, error })?;
            links.push(Link { ring, cells: shard.cells().clone() });
            shards.push(shard);
        }
        if let Some(shard) = shards.first() {
            tracing::info!("shards run on {}", shard.runtime());
        }

        let status = Arc::new(IngestStatus::default());
        let state = Arc::new(NodeState::new(status.clone(), shards.iter().map(|s| s.cells().clone()), started));
        if let Some(exporter) = &exporter {
            state.set_telemetry(exporter.counters.clone());
        }
        let topology = topology(&placement, slots, epoch, &shards, &addresses, &certificate.fingerprint, &config);
        let control = control::start(ControlDeps {
            config: config.clone(),
            credentials: credentials.clone(),
            listener,
            channels,
            state: state.clone(),
            topology: topology.clone(),
            stores: stores.clone(),
        })?;

        let (ingest_phase, phase) = watch::channel(Phases::Running);
        let pump = Pump::new(PumpParts {
            core: IngestCore::new(
                Arc::new(config.mapping.clone()),
                slots,
                sources.iter().map(|source| source.backend()).collect(),
            ),
            sources,
            links,
            store,
            config: PumpConfig {
                checkpoint_every: config.checkpoint.every,
                checkpoint_events: config.checkpoint.events,
                registration_grace: config.ingest.registration_grace,
                on_history_lost: config.checkpoint.on_history_lost,
                oversize: config.checkpoint.oversize,
                halve_within: config.catch_up.halve_within,
                stalled_after: config.ingest.stalled_after,
                pause_max: config.ingest.pause_max,
                on_missing: config.checkpoint.on_missing,
            },
            status,
            cells_changed: signal,
            phase,
            started,
        })?;
        let ingest = start_ingest(pump, placement.ingest.clone())?;
        Ok(Self {
            config,
            state,
            topology,
            stores,
            shards,
            credentials,
            certificate,
            exporter,
            control,
            ingest,
            ingest_phase,
            _folder: folder,
        })
    }

    /// Takes another configuration while running, as far as that is possible: wholly or not at all. `set_log_level` is asked last, and may
    /// refuse. Gives the keys that have changed.
    pub fn reload(
        &mut self,
        new: Config,
        set_log_level: impl FnOnce(&str) -> Result<(), String>,
    ) -> Result<Vec<&'static str>, ReloadError> {
        let Plan { changed, certificate, revoked } = reload::plan(&self.config, &new)?;
        memory::check(&new, self.shards.len(), memory::there_is())
            .map_err(|(key, message)| ReloadError::Memory(format!("{key} {message}")))?;
        set_log_level(&new.log.level).map_err(ReloadError::LogLevel)?;
        // From here on nothing can fail.
        if certificate.fingerprint != self.certificate.fingerprint {
            tracing::info!(fingerprint = certificate.fingerprint, "new connections see another certificate (SHA-256)");
            self.state.set_fingerprint(certificate.fingerprint.clone());
        }
        self.certificate.replace(certificate);
        // Before the shards: a hello that is found good after they have ended the sessions of others is by these.
        self.credentials.replace(&new);
        self.control.reload(&new);
        let limits = shard_limits(&new);
        for shard in &self.shards {
            shard.reload(Reload { limits, revoked: revoked.clone() });
        }
        self.config = Arc::new(new);
        Ok(changed)
    }

    pub fn state(&self) -> &Arc<NodeState> {
        &self.state
    }

    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    pub fn http_address(&self) -> SocketAddr {
        self.control.local_addr()
    }

    /// The first embedded store, where one is configured.
    pub fn store(&self) -> Option<&Arc<EmbeddedStore>> {
        self.stores.first().map(|(_, store)| store)
    }

    /// Whether every backend is being read and every thread is alive.
    pub fn is_ready(&self) -> bool {
        self.state.is_alive() && self.state.ingest.is_reading()
    }

    /// Waits until it is ready, at most so long. May be dropped at any time.
    ///
    /// # Errors
    /// Why it isn't ready yet, in words.
    pub async fn wait_ready(&self, at_most: Duration) -> Result<(), String> {
        const LOOK_EVERY: Duration = Duration::from_millis(1);
        let started = Instant::now();
        while !self.is_ready() {
            if started.elapsed() > at_most {
                return Err(self.state.health().reasons.join("; "));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// How often each shard's loop has turned.
    pub fn turns(&self) -> Vec<u64> {
        self.state.shards.iter().map(|shard| shard.stats().driver.passes).collect()
    }

    /// Waits until a thread has ended that should not have. May be dropped at any time.
    pub async fn failed(&self) {
        const LOOK_EVERY: Duration = Duration::from_millis(500);
        let shard_ended = futures::future::select_all(self.shards.iter().map(|shard| Box::pin(shard.ended())));
        let thread_ended = async {
            while !self.ingest.is_finished() && !self.control.is_finished() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            ((), shard, _) = shard_ended => self.state.set_shard_ended(shard as u16),
            () = thread_ended => {}
        }
    }

    /// Stops in order and waits for the end, blocking. What has not been acked is read again after the next start.
    ///
    /// # Errors
    /// When a thread had failed.
    pub fn stop(self) -> Result<(), NodeFailed> {
        let Self { config, state, shards, mut control, exporter, ingest, ingest_phase, stores, .. } = self;
        state.set_stopping();
        let (spread, flush) = (config.node.shutdown_spread, config.node.shutdown_flush);
        tracing::info!(?spread, ?flush, "stopping");
        // A node that has failed reads nothing any more: whoever waits on it waits in vain.
        if !ingest.is_finished() {
            shards.iter().for_each(|shard| shard.drain(spread));
            wait_until(spread, || !sessions(&state).any(|stats| stats.driver.sessions > 0));
            ingest_phase.send_replace(Phases::NotReading);
            // Acks of what is on its way may still come: every one of them is less to send again. What a Gateway that isn't there owes will
            // not be settled by waiting.
            wait_until(flush, || {
                !sessions(&state).any(|stats| stats.driver.sessions > 0 && stats.shard.log_unsettled > 0)
            });
        }
        let mut failed = None;
        for shard in &shards {
            shard.stop();
        }
        control.stop();
        for shard in shards {
            if let Err(error) = shard.join() {
                failed.get_or_insert(NodeFailed::Shard(error));
            }
        }
        if let Some(exporter) = exporter {
            exporter.join();
        }
        ingest_phase.send_replace(Phases::Finished);
        match ingest.join() {
            Ok(Ok(())) => {}
            // The first cause: whatever else has ended did so because of it.
            Ok(Err(error)) => failed = Some(NodeFailed::Checkpoint(error)),
            Err(_) => _ = failed.get_or_insert(NodeFailed::Thread("the ingest thread panicked".to_owned())),
        }
        if let Err(error) = control.join() {
            failed.get_or_insert(NodeFailed::Thread(error));
        }
        drop(stores);
        match failed {
            Some(failed) => Err(failed),
            None => {
                tracing::info!("stopped");
                Ok(())
            }
        }
    }
}

/// Counters of the shards that are alive.
fn sessions(state: &NodeState) -> impl Iterator<Item = Arc<StatsSnapshot>> + '_ {
    state.shards.iter().filter(|shard| shard.is_alive()).map(|shard| shard.stats())
}

/// Gives Gateways time for something.
#[allow(clippy::disallowed_methods, reason = "the thread that stops the node is no shard's")]
fn wait_until(at_most: Duration, reached: impl Fn() -> bool) {
    const LOOK_EVERY: Duration = Duration::from_millis(20);
    let deadline = Instant::now() + at_most;
    // Counters are about a tenth of a second old.
    thread::sleep(Duration::from_millis(150).min(at_most));
    while !reached() && Instant::now() < deadline {
        thread::sleep(LOOK_EVERY);
    }
}

type IngestThread = thread::JoinHandle<Result<(), CheckpointError>>;

fn start_ingest(pump: Pump, cores: Vec<usize>) -> Result<IngestThread, NodeError> {
    const NAME: &str = "streamer-ingest";
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| NodeError::Thread(NAME, error))?;
    thread::Builder::new()
        .name(NAME.into())
        .spawn(move || {
            if let Err(error) = affinity::pin(&cores) {
                tracing::warn!(cores = affinity::show(&cores), %error, "the ingest thread could not be pinned");
            }
            runtime.block_on(pump.run())
        })
        .map_err(|error| NodeError::Thread(NAME, error))
}

fn listen_http(config: &Config) -> Result<TcpListener, NodeError> {
    let address = config.http.listen.value;
    TcpListener::bind(address).map_err(|error| NodeError::Listen { what: "HTTP address", address, error })
}

/// One socket a shard, on ports one after the other; each on a free one where the first is 0.
fn listen_quic(config: &Config, shards: usize) -> Result<Vec<UdpSocket>, NodeError> {
    let first = config.quic.listen.value;
    (0..shards)
        .map(|shard| {
            let port = if first.port() == 0 { 0 } else { first.port().saturating_add(shard as u16) };
            let address = SocketAddr::new(first.ip(), port);
            bind_udp(address).map_err(|error| NodeError::Listen { what: "QUIC address", address, error })
        })
        .collect()
}

/// Tries again for a moment while the port is taken: after kill -9 of a node on glommio, the kernel closes what its rings held some
/// milliseconds after the process is gone, and whoever restarts it at once would find the port in use.
#[allow(clippy::disallowed_methods, reason = "the thread that starts the node is no shard's")]
fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    const TRIED_FOR: Duration = Duration::from_secs(1);
    const LOOK_EVERY: Duration = Duration::from_millis(10);
    let deadline = Instant::now() + TRIED_FOR;
    loop {
        match UdpSocket::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(LOOK_EVERY);
            }
            result => return result,
        }
    }
}

fn advertised(config: &Config, sockets: &[UdpSocket]) -> Result<Vec<ShardAddress>, NodeError> {
    let listen = config.quic.listen.value;
    let address = |(partition, socket): (usize, &UdpSocket)| {
        let partition = partition as u16;
        let port = socket
            .local_addr()
            .map_err(|error| NodeError::Listen { what: "QUIC address", address: listen, error })?
            .port();
        Ok(ShardAddress { partition, address: config.advertised_address(partition, port) })
    };
    sockets.iter().enumerate().map(address).collect()
}

type Sources = (Vec<Arc<dyn Source>>, Vec<(String, Arc<EmbeddedStore>)>);

fn open_sources(config: &Config, given: &[Arc<dyn Source>]) -> Result<Sources, NodeError> {
    let mut sources: Vec<Arc<dyn Source>> = Vec::new();
    let mut stores = Vec::new();
    for backend in &config.backends {
        if let Some(source) = given.iter().find(|source| source.name() == backend.name) {
            sources.push(source.clone());
            continue;
        }
        let (source, store) = open_source(backend)?;
        sources.push(source);
        stores.extend(store.map(|store| (backend.name.clone(), store)));
    }
    Ok((sources, stores))
}

/// A source, with its store where it is embedded.
type Opened = (Arc<dyn Source>, Option<Arc<EmbeddedStore>>);

/// A backend's source. MongoDB isn't connected to before it is used.
pub(crate) fn open_source(backend: &Backend) -> Result<Opened, NodeError> {
    match &backend.kind {
        BackendKind::Embedded(embedded) => {
            let options = StoreOptions {
                sync: embedded.sync,
                retention: Retention {
                    bytes: embedded.retain_bytes,
                    events: embedded.retain_events,
                    age: embedded.retain_for,
                },
                ..StoreOptions::default()
            };
            let store = EmbeddedStore::open(&embedded.directory, options)
                .map_err(|error| NodeError::Store { name: backend.name.clone(), error })?;
            Ok((Arc::new(EmbeddedSource::new(&backend.name, store.clone())), Some(store)))
        }
        BackendKind::Mongodb(mongo) => Ok((Arc::new(MongoSource::new(mongo.clone())), None)),
    }
}

fn topology(
    placement: &Placement,
    slots: SlotTable,
    epoch: Epoch,
    shards: &[ShardHandle],
    addresses: &[ShardAddress],
    fingerprint: &str,
    config: &Config,
) -> Topology {
    let place = |((shard, address), core): ((&ShardHandle, &ShardAddress), &usize)| ShardPlace {
        partition: address.partition,
        address: address.address.clone(),
        listen: shard.local_addr().to_string(),
        core: *core,
        runtime: shard.runtime().kind.to_string(),
        runtime_reason: shard.runtime().reason.clone(),
    };
    Topology {
        epoch,
        slots,
        shards: shards.iter().zip(addresses).zip(&placement.shards).map(place).collect(),
        ingest_cores: placement.ingest.clone(),
        control_cores: placement.control.clone(),
        fingerprint: fingerprint.to_owned(),
        mapping: config.mapping.to_string(),
    }
}
