//! Starts and ends the control threads.

use std::{io, net::SocketAddr, sync::Arc, thread, time::Duration};

use axum::Router;
use shards::{
    Refusal,
    driver::{Authenticator, AuthorizedGateway},
};
use tokio::sync::oneshot;
use tracing::{info, warn};
use wire::{ErrorCode, Hello};

use super::{
    admission::{Limits, RegistrarConfig, SharedLimits},
    credentials::{Credentials, Denied},
    http::{App, router},
    registry::{self, ShardChannels},
    state::{NodeState, Topology},
};
use crate::{affinity, config::Config, ingest::source::embedded::EmbeddedStore};

/// How long requests in work may take to end when the node stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What the control side is started with.
pub struct ControlDeps {
    pub config: Arc<Config>,
    /// Shared with the shards.
    pub credentials: Credentials,
    /// Bound by the node, so that a port in use is the node's error.
    pub listener: std::net::TcpListener,
    /// The control side's ends of [`registry::channels`].
    pub channels: ShardChannels,
    pub state: Arc<NodeState>,
    pub topology: Topology,
    /// The embedded stores, by the names of their backends.
    pub stores: Vec<(String, Arc<EmbeddedStore>)>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the thread {0:?} can't be started: {1}")]
    Thread(&'static str, #[source] io::Error),
    #[error("the HTTP socket can't be used: {0}")]
    Socket(#[source] io::Error),
}

/// The node's hold on the control threads.
#[derive(Debug)]
pub struct ControlHandle {
    local_addr: SocketAddr,
    limits: SharedLimits,
    stop: Option<oneshot::Sender<()>>,
    control: thread::JoinHandle<()>,
    registrar: thread::JoinHandle<()>,
}

impl ControlHandle {
    /// Where HTTP is bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Takes the limits of this configuration instead, for what is asked from now on.
    pub fn reload(&self, config: &Config) {
        self.limits.store(Arc::new(Limits::of(config)));
    }

    /// Takes no more requests in; those in work end, or are cut off after a few seconds.
    pub fn stop(&mut self) {
        // Sent or gone, it stops either way.
        drop(self.stop.take());
    }

    pub fn is_finished(&self) -> bool {
        self.control.is_finished() || self.registrar.is_finished()
    }

    /// Waits for the end of both threads, blocking. The registrar ends once all shards have: stop these first.
    pub fn join(mut self) -> Result<(), String> {
        self.stop();
        let panicked = |name: &str| format!("thread {name} panicked");
        let control = self.control.join().map_err(|_| panicked("streamer-control"));
        let registrar = self.registrar.join().map_err(|_| panicked("streamer-registrar"));
        control.and(registrar)
    }
}

/// Starts both threads, pinned to the cores that the topology names for control.
pub fn start(deps: ControlDeps) -> Result<ControlHandle, StartError> {
    let ControlDeps { config, credentials, listener, channels, state, topology, stores } = deps;
    let local_addr = listener.local_addr().map_err(StartError::Socket)?;
    listener.set_nonblocking(true).map_err(StartError::Socket)?;
    let shards = topology.slots.shards;
    let cores = topology.control_cores.clone();
    let pin = {
        let cores = cores.clone();
        move || pin_here("streamer-registrar", &cores)
    };
    let registrar_config = RegistrarConfig::of(&config, shards);
    let limits = registrar_config.limits.clone();
    let (registry, registrar) = registry::start(registrar_config, credentials.clone(), channels, pin)
        .map_err(|error| StartError::Thread("streamer-registrar", error))?;
    let open = credentials.is_open();
    let app = Arc::new(App::new(registry, credentials, state, topology, stores, limits.clone(), &config));
    let router = router(app);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| StartError::Thread("streamer-control", error))?;
    let (stop, stopped) = oneshot::channel();
    let control = thread::Builder::new()
        .name("streamer-control".into())
        .spawn(move || {
            pin_here("streamer-control", &cores);
            runtime.block_on(serve(listener, router, stopped));
        })
        .map_err(|error| StartError::Thread("streamer-control", error))?;
    if open {
        info!(address = %local_addr, "HTTP is open to everyone on this machine: no [[gateways]] are configured, so the node listens on loopback only");
    } else {
        info!(address = %local_addr, "HTTP is up");
    }
    Ok(ControlHandle { local_addr, limits, stop: Some(stop), control, registrar })
}

async fn serve(listener: std::net::TcpListener, router: Router, stopped: oneshot::Receiver<()>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            warn!(%error, "the HTTP socket can't be used");
            return;
        }
    };
    let (cut, cut_off) = oneshot::channel::<()>();
    let graceful = async move {
        // An error means that the handle is gone, which asks for the same.
        let _ = stopped.await;
        drop(cut);
    };
    let served = axum::serve(listener, router).with_graceful_shutdown(graceful);
    let deadline = async move {
        let _ = cut_off.await;
        tokio::time::sleep(STOP_TIMEOUT).await;
    };
    tokio::select! {
        result = served => if let Err(error) = result {
            warn!(%error, "HTTP has ended");
        },
        () = deadline => warn!("requests were cut off: they took too long to end"),
    }
}

fn pin_here(name: &str, cores: &[usize]) {
    if let Err(error) = affinity::pin(cores) {
        warn!(thread = name, cores = affinity::show(cores), %error, "the thread could not be pinned");
    }
}

/// Shards ask this who a hello comes from.
impl Authenticator for Credentials {
    fn authenticate(&self, hello: &Hello) -> Result<AuthorizedGateway, Refusal> {
        let token = (!hello.token.is_empty()).then_some(hello.token.as_str());
        match self.gateway(token, Some(&hello.gateway)) {
            Ok(identity) => Ok(AuthorizedGateway { gateway: identity.gateway }),
            Err(denied) => {
                let (code, message) = match denied {
                    Denied::Unauthorized(message) => (ErrorCode::Unauthorized, message),
                    Denied::Forbidden(message) => (ErrorCode::Forbidden, message),
                    Denied::Invalid(message) => (ErrorCode::InvalidRequest, message),
                };
                Err(Refusal { code, message })
            }
        }
    }
}
