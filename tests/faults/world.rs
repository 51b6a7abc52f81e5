//! A node, a source and Gateways, each in a process of its own, a load, and the reckoning at the end.

use std::{
    cell::Cell,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use streamer::checkpoint::{CheckpointStore, FileStore};
use tokio::{sync::Mutex, task::JoinHandle, time::sleep};
use wire::{BackendId, Lineage};
use workload::{GeneratedSubscription, Generator, Preset, Profile, Writer};

use crate::{
    application::Command,
    gateway::GatewayProcess,
    reckoning::{Journals, Truth, Verdict},
    source::{BACKEND, Source},
    support::{
        Runtime,
        api::Api,
        cores,
        database::TestServer,
        process::{NodeProcess, free_ports},
        until, wait_for, within,
    },
    weather::Proxy,
};

/// Repeats a run's choices.
const SEED_VARIABLE: &str = "FAULTS_SEED";

/// How often each kind of fault comes.
const ROUNDS_VARIABLE: &str = "FAULTS_ROUNDS";

/// Shards of every node here.
pub(crate) const SHARDS: u16 = 3;

/// Of the ports that a test has: shard 0 as Gateways see it.
const FRONT: u16 = 8;

/// The seed of this run, printed so that it can be repeated.
pub(crate) fn seed(test: &str) -> u64 {
    let given = std::env::var(SEED_VARIABLE).ok().map(|text| text.parse().expect("FAULTS_SEED is a number"));
    let seed = given.unwrap_or_else(|| rand::random::<u32>().into());
    println!("{test}: FAULTS_SEED={seed}");
    seed
}

pub(crate) fn rounds(unless_said: usize) -> usize {
    number_of(ROUNDS_VARIABLE, unless_said)
}

pub(crate) fn number_of(variable: &str, unless_said: usize) -> usize {
    let given = std::env::var(variable).ok().filter(|text| !text.is_empty());
    given.map_or(unless_said, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// What a test wants.
pub(crate) struct Plan {
    pub(crate) profile: Profile,
    pub(crate) subscriptions: usize,
    pub(crate) seed: u64,
    /// More keys of `[quic]`.
    pub(crate) quic: String,
    /// More sections of the node's configuration.
    pub(crate) sections: String,
    /// How often Gateways keep positions and status.
    pub(crate) keep_every_ms: u64,
    /// What runs the node at its first start, where it isn't its program itself.
    pub(crate) program: Option<std::process::Command>,
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            profile: Profile { documents: 40, ..Profile::test(seed) },
            subscriptions: 150,
            seed,
            quic: String::new(),
            sections: CLOSE_CHECKPOINTS.into(),
            keep_every_ms: 20,
            program: None,
        }
    }

    pub(crate) fn with_quic(self, keys: &str) -> Self {
        Self { quic: self.quic + keys + "\n", ..self }
    }

    pub(crate) fn with_sections(self, sections: &str) -> Self {
        Self { sections: self.sections + sections + "\n", ..self }
    }
}

/// Several within every round.
const CLOSE_CHECKPOINTS: &str = "[checkpoint]\nevery = \"200ms\"\n";

pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) subscriptions: Vec<GeneratedSubscription>,
    pub(crate) gateways: Vec<GatewayProcess>,
    pub(crate) proxy: Proxy,
    pub(crate) random: StdRng,
    pub(crate) source: Arc<Mutex<Source>>,
    node: Option<NodeProcess>,
    writer: Arc<Mutex<Writer>>,
    load: Option<Load>,
    config: String,
    http: u16,
    program: Option<std::process::Command>,
}

impl World {
    /// Everything but the processes of node and Gateways.
    async fn new(plan: Plan, source: impl AsyncFnOnce(Api, Profile) -> Source) -> Self {
        let folder = tempfile::Builder::new().prefix("streamer-faults-").tempdir().expect("a temporary folder");
        let (http, quic) = free_ports();
        let api = Api::new(format!("http://127.0.0.1:{http}"));
        let generator = Generator::new(plan.profile.clone());
        let source = source(api, plan.profile).await;
        let runtime = if Runtime::Glommio.is_available() && plan.seed.is_multiple_of(2) {
            Runtime::Glommio
        } else {
            Runtime::Tokio
        };
        let data = folder.path().join("data");
        let config = format!(
            r#"
            [node]
            data_dir = {data_dir:?}
            runtime = "{runtime}"
            shutdown_flush = "1s"
            [log]
            level = "info,streamer=debug"
            [affinity]
            shards = "{cores}"
            [http]
            listen = "127.0.0.1:{http}"
            [quic]
            listen = "127.0.0.1:{quic}"
            advertise = "127.0.0.1:{front}"
            heartbeat = "100ms"
            {more}
            [ingest]
            registration_grace = "60s"
            {sections}
            {backend}
            "#,
            data_dir = data.display().to_string(),
            runtime = runtime.name(),
            cores = cores(SHARDS.into()),
            front = quic + FRONT,
            more = plan.quic,
            sections = plan.sections,
            backend = source.backend(&data),
        );
        Self {
            subscriptions: generator.subscriptions(plan.subscriptions),
            gateways: Vec::new(),
            proxy: Proxy::start(quic + FRONT, quic, SHARDS, plan.seed).await,
            random: StdRng::seed_from_u64(plan.seed),
            source: Arc::new(Mutex::new(source)),
            node: None,
            writer: Arc::new(Mutex::new(generator.writer())),
            load: None,
            config,
            http,
            program: plan.program,
            folder,
        }
    }

    /// A node on an embedded store, and Gateways, all live.
    pub(crate) async fn embedded(plan: Plan) -> Self {
        Self::started(plan, async |api, _| Source::Embedded { api }).await
    }

    /// The same on a MongoDB-protocol server.
    pub(crate) async fn mongodb(plan: Plan, server: TestServer) -> Self {
        Self::started(plan, async |_, profile| Source::mongodb(server, profile).await).await
    }

    async fn started(plan: Plan, source: impl AsyncFnOnce(Api, Profile) -> Source) -> Self {
        let (keep_every_ms, gateways) = (plan.keep_every_ms, plan.profile.gateways);
        let mut world = Self::new(plan, source).await;
        world.start_node().await;
        let fingerprint = world.api().fingerprint().await;
        let topology = world.api().topology().await;
        let address = topology["shards"][0]["address"].as_str().expect("shards have addresses").to_owned();
        for index in 0..gateways {
            let name = workload::generate::gateway_name(index);
            let mine: Vec<_> = world.subscriptions.iter().filter(|one| one.gateway == index).collect();
            let place = (address.as_str(), fingerprint.as_str());
            let mut gateway = GatewayProcess::new(world.folder.path(), &name, place, &mine, keep_every_ms);
            gateway.start();
            world.gateways.push(gateway);
        }
        world.wait_live().await;
        world
    }

    pub(crate) fn api(&self) -> Api {
        Api::new(format!("http://127.0.0.1:{}", self.http))
    }

    /// Until it serves HTTP; it may yet wait for its Gateways before it reads.
    pub(crate) async fn start_node(&mut self) {
        assert!(self.node.is_none(), "the node runs already");
        let api = self.api();
        let mut node = match self.program.take() {
            None => NodeProcess::spawn(self.folder.path(), &self.config),
            Some(program) => NodeProcess::spawn_as(program, self.folder.path(), &self.config),
        };
        node.answers(&api, "/health/live").await;
        self.node = Some(node);
    }

    pub(crate) fn kill_node(&mut self) {
        self.node.take().expect("it runs").kill();
    }

    pub(crate) fn node_id(&self) -> u32 {
        self.node.as_ref().expect("it runs").id()
    }

    /// Until every Gateway that runs has all its subscriptions live on this run of the node. How long that took.
    pub(crate) async fn wait_live(&mut self) -> Duration {
        let started = Instant::now();
        let epoch = self.epoch().await;
        self.wait_all("live", |gateway| gateway.is_live_on(&epoch)).await;
        started.elapsed()
    }

    async fn wait_all(&self, what: &str, is_so: impl Fn(&GatewayProcess) -> bool) {
        for gateway in self.gateways.iter().filter(|gateway| gateway.is_running()) {
            let missing = || format!("{} {what}: {:?}", gateway.name, gateway.status());
            wait_for(|| is_so(gateway).then_some(()), missing).await;
        }
    }

    /// Starts the node, and waits until every Gateway that runs is live on it.
    pub(crate) async fn start_node_and_wait_live(&mut self) -> Started {
        let started = Instant::now();
        self.start_node().await;
        let serves = started.elapsed();
        let epoch = self.epoch().await;
        self.wait_all("connected", |gateway| gateway.status().epoch.as_deref() == Some(&epoch)).await;
        let connected = started.elapsed();
        self.wait_all("synced", |gateway| gateway.status().is_synced_with(&epoch)).await;
        let synced = started.elapsed();
        self.wait_all("live", |gateway| gateway.is_live_on(&epoch)).await;
        Started { serves, connected, synced, live: started.elapsed() }
    }

    /// Until every Gateway has kept that it is done with everything, a last write included. Nothing is read a second time for anybody then:
    /// what is comes in the order of its subscription, and holds no checkpoint back. All Gateways and the node run, and no load does.
    pub(crate) async fn wait_kept(&self) {
        let lineage = self.lineage();
        let last = within("the last write", self.source.lock().await.write_last(lineage)).await;
        for gateway in &self.gateways {
            let missing = || {
                let behind = gateway.behind(&last);
                format!("{}: {behind} subscriptions at {last}; {:?}", gateway.name, gateway.status())
            };
            wait_for(|| (gateway.behind(&last) == 0).then_some(()), missing).await;
        }
    }

    pub(crate) async fn epoch(&self) -> String {
        self.api().topology().await["epoch"].as_str().expect("a node has an epoch").to_owned()
    }

    /// A metric's value, summed over its labels.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        self.api().metric(name).await
    }

    /// Begins to write, about this many documents a second, until the load is stopped.
    pub(crate) fn start_load(&mut self, per_second: u64) {
        /// Documents of one call.
        const CALL: u64 = 20;
        assert!(self.load.is_none(), "one load at a time");
        let is_over = Arc::new(AtomicBool::new(false));
        let (source, writer, over) = (self.source.clone(), self.writer.clone(), is_over.clone());
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs_f64(CALL as f64 / per_second as f64));
            while !over.load(Relaxed) {
                ticks.tick().await;
                let writes: Vec<_> = {
                    let mut writer = writer.lock().await;
                    (0..CALL).map(|_| writer.next()).collect()
                };
                source.lock().await.write(writes).await;
            }
        });
        self.load = Some(Load { is_over, task });
    }

    /// Until what is under way is done; needs a source that is there.
    pub(crate) async fn stop_load(&mut self) {
        let Some(mut load) = self.load.take() else { return };
        load.is_over.store(true, Relaxed);
        within("the last writes of the load", &mut load.task).await.expect("the load doesn't panic");
    }

    /// So many writes, and no load beside them.
    pub(crate) async fn write(&mut self, count: u64) {
        for _ in 0..count.div_ceil(50) {
            let writes: Vec<_> = {
                let mut writer = self.writer.lock().await;
                (0..50).map(|_| writer.next()).collect()
            };
            self.source.lock().await.write(writes).await;
        }
    }

    /// Changes that all Gateways have written down.
    pub(crate) fn changes(&mut self) -> usize {
        self.gateways.iter_mut().map(GatewayProcess::changes).sum()
    }

    /// Until Gateways have written down this many more.
    pub(crate) async fn wait_changes(&mut self, more: usize) {
        let begin = self.changes();
        let gateways = &mut self.gateways;
        let mut so_far = || gateways.iter_mut().map(GatewayProcess::changes).sum::<usize>() - begin;
        let enough = || (so_far() >= more).then_some(());
        wait_for(enough, || format!("{more} changes at the Gateways")).await;
    }

    /// Of a node that was killed while acks are held back: its checkpoint is behind all that a Gateway has been told and isn't done with. Kept
    /// positions follow a moment later, so this is looked at until it is so.
    pub(crate) async fn wait_checkpoint_is_behind(&mut self) {
        let mut store = FileStore::in_data_folder(&self.folder.path().join("data")).expect("the folder is there");
        let checkpoint = store.load().expect("a slot is whole").expect("checkpoints come fast");
        let checkpoint = checkpoint.backends[0].resume_point().position;
        let gateways = &mut self.gateways;
        let lowest = Cell::new(None);
        let is_behind = || {
            let undone = gateways.iter_mut().filter_map(GatewayProcess::first_undone);
            lowest.set(undone.min_by_key(|position| position.order()));
            lowest.get().is_some_and(|lowest| lowest.order() > checkpoint.order()).then_some(())
        };
        wait_for(is_behind, || format!("a checkpoint at {checkpoint} before {:?}", lowest.get())).await;
    }

    pub(crate) async fn pause(&mut self, ms: Range<u64>) {
        let ms = self.random.random_range(ms);
        sleep(Duration::from_millis(ms)).await;
    }

    pub(crate) fn command_all(&mut self, command: Command) {
        self.gateways.iter_mut().filter(|gateway| gateway.is_running()).for_each(|gateway| gateway.command(command));
    }

    /// Ends the load, waits until everybody has kept everything, ends all processes, and reckons. What was wrong panics.
    pub(crate) async fn end(mut self) -> Verdict {
        self.stop_load().await;
        let lineage = self.lineage();
        self.wait_kept().await;
        let api = self.api();
        until("the node is owed nothing", async || {
            let health = api.health().await;
            let shards = health["shards"].as_array()?.clone();
            shards.iter().all(|shard| shard["unsettled"] == 0).then_some(())
        })
        .await;
        let statuses: Vec<_> = self.gateways.iter().map(GatewayProcess::status).collect();
        for (gateway, status) in self.gateways.iter_mut().zip(&statuses) {
            gateway.quit().await;
            assert_eq!((status.resyncs, status.gaps, status.violations), (0, 0, 0), "{}: {status:?}", gateway.name);
        }
        let status = self.node.take().expect("it runs").terminate().await;
        assert!(status.success(), "the node ended with {status}");
        let mut source = self.source.lock().await;
        let changes = source.history(&self.folder.path().join("data"), lineage).await;
        source.clean_up().await;
        let truth = Truth::new(&self.subscriptions, &changes, Preset::Syntrix);
        let journals: Journals =
            self.gateways.iter_mut().map(|gateway| (gateway.name.clone(), gateway.lines().to_vec())).collect();
        let verdict = truth.assert_clean(&journals);
        println!("{} changes of the source; {verdict}", changes.len());
        verdict
    }

    /// As a Gateway knows it.
    fn lineage(&self) -> Lineage {
        let backend = BackendId::of_name(BACKEND);
        let known = |gateway: &GatewayProcess| {
            gateway.positions().iter().find_map(|(_, positions)| Some(positions.get(backend)?.lineage))
        };
        self.gateways.iter().find_map(known).expect("a live subscription has a position")
    }
}

/// How long after the start of its process a node was so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Started {
    /// All Gateways have all subscriptions live.
    pub(crate) live: Duration,
    /// It answers HTTP.
    pub(crate) serves: Duration,
    /// The last Gateway has been let in by a shard, and by all of them with all that it presented.
    pub(crate) connected: Duration,
    pub(crate) synced: Duration,
}

struct Load {
    is_over: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}
