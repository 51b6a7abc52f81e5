//! Starting and ending a shard's thread.

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, UdpSocket},
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tracing::{info, warn};
use wire::ErrorCode;

use super::{
    AdmissionAnswer, Authenticator, CellSignal, Cells, DoneSample, ExecutorError, FilterBuilder, FromShard, Preflight,
    QuicConfig, RingProducer, RuntimeChoice, RuntimeUsed, SocketBuffers, TlsError,
    cells::CellWriter,
    core::Core,
    executor::{self, Executor, panic_message},
    hub::{Hub, SHUTTING_DOWN},
    main_loop::{Ending, Inbox, MainLoop, Outbox},
    quic,
    ring::{RingConsumer, ring},
};
use crate::{Command, FromIngest, Millis, Reload, Shard, ShardConfig};

/// What a shard's thread is started with.
pub struct ShardThreadConfig {
    pub shard: ShardConfig,
    /// The thread's name; the kernel shows its first 15 bytes.
    pub name: String,
    /// The core that the thread is pinned to. Several shards may share one.
    pub core: usize,
    pub runtime: RuntimeChoice,
    /// How many shards the process runs, for what they need together.
    pub executors: usize,
    /// Bound by the node, so that a port in use is the node's error.
    pub socket: UdpSocket,
    /// Certificate and key. ALPN and early data are set here.
    pub tls: Arc<rustls::ServerConfig>,
    pub quic: QuicConfig,
    pub authenticator: Arc<dyn Authenticator>,
    /// Items that the ring from the ingest thread holds.
    pub ring_capacity: usize,
    /// One for all shards.
    pub signal: Arc<CellSignal>,
    pub commands: flume::Receiver<Command>,
    /// Answers to [`FromShard::Admit`]. Whoever answers must not wait for room here without taking from the other end of
    /// `to_control`, or the two wait for each other.
    pub admissions: flume::Receiver<AdmissionAnswer>,
    pub to_control: flume::Sender<FromShard>,
    /// One for all shards.
    pub filter_builder: FilterBuilder,
    /// Who makes traces of samples, if somebody does. What there is no room for is dropped, and counted.
    pub samples: Option<flume::Sender<DoneSample>>,
}

/// A shard's thread could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the UDP socket can't be used")]
    Socket(#[source] io::Error),
    #[error("the thread can't be started")]
    Thread(#[source] io::Error),
    #[error("the thread panicked while starting: {0}")]
    Panicked(String),
}

/// The shard has ended by a panic; its state is gone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("shard thread {name} panicked: {message}")]
pub struct ShardFailed {
    pub name: String,
    pub message: String,
}

/// Starts shards.
pub struct ShardThread;

impl ShardThread {
    /// Starts the thread and returns once its endpoint takes connections in. The ring's end is for the ingest thread, the
    /// handle for the node.
    pub fn spawn(config: ShardThreadConfig) -> Result<(RingProducer<FromIngest>, ShardHandle), StartError> {
        let shard = config.shard.clone();
        let identity = Identity { partition: shard.partition, body_bytes_max: shard.body_bytes_max as usize };
        spawn_core(config, identity, move |now| Shard::new(shard, now))
    }
}

/// The node's hold on a shard's thread. Dropping it stops the shard too, but then nobody hears how it ended.
#[derive(Debug)]
pub struct ShardHandle {
    name: String,
    cells: Arc<Cells>,
    local_addr: SocketAddr,
    runtime: RuntimeUsed,
    buffers: SocketBuffers,
    stop: flume::Sender<Ending>,
    reloads: flume::Sender<Reload>,
    /// Disconnected by the thread's end.
    running: flume::Receiver<Infallible>,
    thread: JoinHandle<Result<(), String>>,
}

impl ShardHandle {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn cells(&self) -> &Arc<Cells> {
        &self.cells
    }

    /// Where the endpoint is bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What it runs on, and why.
    pub fn runtime(&self) -> &RuntimeUsed {
        &self.runtime
    }

    /// What the kernel granted.
    pub fn socket_buffers(&self) -> SocketBuffers {
        self.buffers
    }

    /// Asks every session to leave, each at a random point within this time (none: without asking), and lets nobody in any more: new sessions and new
    /// subscriptions are refused with `ShuttingDown`. Those that are there are served on until [`Self::stop`].
    pub fn drain(&self, within: Duration) {
        let within_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
        // Full: it has been asked already. Disconnected: it has ended.
        let _ = self.stop.try_send(Ending::Drain { within_ms });
    }

    /// Has the shard take other limits, and end the sessions of these Gateways. Waits only while the shard has [`RELOADS_MAX`] before it.
    pub fn reload(&self, reload: Reload) {
        // Disconnected: it has ended.
        let _ = self.reloads.send(reload);
    }

    /// Asks the shard to end: it takes no connection in any more, tells its sessions that it is shutting down, flushes them for
    /// at most `flush_timeout_ms`, and ends.
    pub fn stop(&self) {
        // Full: it has been asked already. Disconnected: it has ended.
        let _ = self.stop.try_send(Ending::Stop);
    }

    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until the thread has ended, for whatever reason; [`Self::join`] then says which. May be dropped at any time.
    pub async fn ended(&self) {
        let _ = self.running.recv_async().await;
    }

    /// Waits for the thread's end, blocking. It doesn't stop it.
    pub fn join(self) -> Result<(), ShardFailed> {
        let Self { name, thread, stop, .. } = self;
        let result = thread.join().unwrap_or_else(|panic| Err(panic_message(&*panic)));
        drop(stop);
        result.map_err(|message| ShardFailed { name, message })
    }
}

/// What the driver must know of the shard that it doesn't ask it.
pub(super) struct Identity {
    pub(super) partition: u16,
    pub(super) body_bytes_max: usize,
}

pub(super) fn spawn_core<C: Core>(
    config: ShardThreadConfig,
    identity: Identity,
    make: impl FnOnce(Millis) -> C + Send + 'static,
) -> Result<(RingProducer<FromIngest>, ShardHandle), StartError> {
    let buffers = quic::prepare_socket(&config.socket, &config.quic).map_err(StartError::Socket)?;
    let local_addr = config.socket.local_addr().map_err(StartError::Socket)?;
    warn_of_small_buffers(&config, buffers);

    let name = config.name.clone();
    let (producer, consumer) = ring(name.clone(), config.ring_capacity);
    // One of each kind.
    let (stop, stopped) = flume::bounded(2);
    let (reloads, reloaded) = flume::bounded(RELOADS_MAX);
    let (alive, running) = flume::bounded(0);
    let (report, started) = flume::bounded(1);
    let thread = std::thread::Builder::new()
        .name(name.clone())
        .spawn(move || {
            let _alive: flume::Sender<Infallible> = alive;
            run_thread(config, identity, make, consumer, Told { stop: stopped, reloads: reloaded }, report)
        })
        .map_err(StartError::Thread)?;
    match started.recv() {
        Ok(Ok((runtime, cells))) => {
            let handle = ShardHandle { name, cells, local_addr, runtime, buffers, stop, reloads, running, thread };
            Ok((producer, handle))
        }
        Ok(Err(error)) => {
            // It ends by itself now, having nothing to run.
            let _ = thread.join();
            Err(error)
        }
        Err(flume::RecvError::Disconnected) => {
            let result = thread.join().unwrap_or_else(|panic| Err(panic_message(&*panic)));
            Err(StartError::Panicked(result.err().unwrap_or_else(|| "it ended without a word".to_owned())))
        }
    }
}

/// What the node tells a shard by its handle.
struct Told {
    stop: flume::Receiver<Ending>,
    reloads: flume::Receiver<Reload>,
}

/// Reloads that a shard may have before it.
const RELOADS_MAX: usize = 4;

type Started = Result<(RuntimeUsed, Arc<Cells>), StartError>;

fn run_thread<C: Core>(
    config: ShardThreadConfig,
    identity: Identity,
    make: impl FnOnce(Millis) -> C,
    ring: RingConsumer<FromIngest>,
    told: Told,
    report: flume::Sender<Started>,
) -> Result<(), String> {
    let preflight = Preflight::check(config.executors);
    let ready = quic::server_config(&config.tls, &config.quic)
        .map_err(StartError::from)
        .and_then(|server| Ok((server, executor::make(config.runtime, config.core, &preflight)?)));
    let (server, (executor, used)) = match ready {
        Ok(ready) => ready,
        Err(error) => {
            // The other end waits for this.
            let _ = report.send(Err(error));
            return Ok(());
        }
    };
    // A panic of glommio itself would come out of `run`; those of tasks are its result.
    let run = || {
        executor.run(|executor| async move {
            let Some((endpoint, mut main_loop)) =
                open(config, identity, make, ring, told, report, server, used, &executor)
            else {
                return;
            };
            main_loop.run().await;
            close(endpoint, &mut main_loop, &executor).await;
        })
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(panic_message(&*panic)))
}

struct Endpoint {
    quinn: quinn::Endpoint,
    config: Rc<QuicConfig>,
}

#[expect(clippy::too_many_arguments, reason = "the parts of a thread meet here, once")]
fn open<C: Core>(
    config: ShardThreadConfig,
    identity: Identity,
    make: impl FnOnce(Millis) -> C,
    ring: RingConsumer<FromIngest>,
    told: Told,
    report: flume::Sender<Started>,
    server: quinn::ServerConfig,
    used: RuntimeUsed,
    executor: &Rc<Executor>,
) -> Option<(Endpoint, MainLoop<C>)> {
    let quinn = match quic::open_endpoint(executor, server, config.socket) {
        Ok(endpoint) => endpoint,
        Err(error) => {
            let _ = report.send(Err(StartError::Socket(error)));
            return None;
        }
    };
    let quic_config = Rc::new(config.quic);
    let core = make(Millis(0));
    let hub = Hub::new(identity.partition, identity.body_bytes_max, core, Rc::clone(executor), config.samples);
    let hub = Rc::new(hub);
    let cells = CellWriter::new(config.signal);
    let (filter_builder, filters_built) = config.filter_builder.client();
    executor.spawn(quic::accept(
        quinn.clone(),
        Rc::clone(&hub),
        Rc::clone(executor),
        Rc::clone(&quic_config),
        config.authenticator,
    ));
    info!(shard = identity.partition, core = config.core, runtime = %used, "shard started");
    let _ = report.send(Ok((used, cells.cells())));
    let main_loop = MainLoop {
        hub,
        executor: Rc::clone(executor),
        ring,
        commands: Inbox::new(config.commands),
        admissions: Inbox::new(config.admissions),
        to_control: Outbox::new(config.to_control),
        filter_builder,
        filters_built: Inbox::new(filters_built),
        reloads: Inbox::new(told.reloads),
        stop: Inbox::new(told.stop),
        cells,
    };
    Some((Endpoint { quinn, config: quic_config }, main_loop))
}

/// How long a closed endpoint goes on, for its last packets to leave.
const FAREWELL: Duration = Duration::from_millis(100);

async fn close<C: Core>(endpoint: Endpoint, main_loop: &mut MainLoop<C>, executor: &Rc<Executor>) {
    let Endpoint { quinn, config } = endpoint;
    executor.guard(Instant::now());
    quinn.set_server_config(None);
    if !executor.has_failed() {
        main_loop.finish();
        let hub = &main_loop.hub;
        hub.refuse_all(ErrorCode::ShuttingDown, SHUTTING_DOWN);
        let all_left = async {
            while !hub.is_empty() {
                hub.left.wait().await;
            }
        };
        executor.timeout(Duration::from_millis(config.flush_timeout_ms), all_left).await;
    }
    let code = if executor.has_failed() { ErrorCode::Internal } else { ErrorCode::ShuttingDown };
    quinn.close(quic::close_code(code), SHUTTING_DOWN.as_bytes());
    executor.timeout(FAREWELL, quinn.wait_idle()).await;
    main_loop.finish();
}

fn warn_of_small_buffers(config: &ShardThreadConfig, given: SocketBuffers) {
    let pairs = [
        ("SO_RCVBUF", "net.core.rmem_max", config.quic.socket_receive_bytes, given.receive_bytes),
        ("SO_SNDBUF", "net.core.wmem_max", config.quic.socket_send_bytes, given.send_bytes),
    ];
    for (option, sysctl, asked, given) in pairs {
        if given < asked {
            warn!(
                shard = config.shard.partition,
                option,
                asked_bytes = asked,
                given_bytes = given,
                "the kernel gives the UDP socket a smaller buffer than asked for; raise it with `sysctl {sysctl}={asked}`"
            );
        }
    }
}
