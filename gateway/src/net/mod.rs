//! IO around the core: tokio tasks that feed it and do what it says.
//!
//! Invariants:
//! - The core is behind one lock, held for one input and never across an await.
//! - The lock's holder carries out the core's outputs before it lets go, so they are carried out in their order.
//! - A session's tasks end when its `close` fires or is dropped, and with its connection.

mod endpoint;
mod session;
pub(crate) mod tls;

use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use tokio::{
    runtime::Handle as Runtime,
    sync::{Notify, mpsc, oneshot, watch},
};
use wire::{Ack, ErrorCode, Request};

use crate::core::{GatewayCore, Input, Millis, Output, SessionId};
pub(crate) use endpoint::Endpoints;

/// A lock of threads, not of a runtime's tasks: it is held for microseconds, by whoever brings an input, also outside of any
/// runtime.
#[allow(clippy::disallowed_types, reason = "this is a client library, which never runs on a shard's thread")]
type Mutex<T> = std::sync::Mutex<T>;

pub(crate) struct Shared {
    state: Mutex<State>,
    /// Something to give to the application, or nothing ever again.
    pub(crate) available: Notify,
    /// A shard welcomed us, or nothing will be connected any more.
    pub(crate) changed: Notify,
    began: Instant,
    runtime: Runtime,
    endpoints: Endpoints,
    server_name: Option<String>,
    /// Tasks of sessions.
    running: watch::Sender<usize>,
}

pub(crate) struct State {
    pub(crate) core: GatewayCore,
    sessions: HashMap<SessionId, Session>,
}

/// Where the tasks of a session listen.
struct Session {
    /// Unbounded here, because the core bounds what is unanswered.
    requests: mpsc::UnboundedSender<Request>,
    ack: watch::Sender<Ack>,
    resume: Arc<Notify>,
    close: oneshot::Sender<Closing>,
}

/// How to end a connection.
#[derive(Debug)]
struct Closing {
    code: Option<ErrorCode>,
    message: String,
}

/// What a session's tasks are given.
struct Job {
    id: SessionId,
    address: String,
    after: Duration,
    requests: mpsc::UnboundedReceiver<Request>,
    ack: watch::Receiver<Ack>,
    resume: Arc<Notify>,
    close: oneshot::Receiver<Closing>,
}

impl Shared {
    /// Must be called within a tokio runtime.
    pub(crate) fn start(
        core: impl FnOnce(Millis) -> GatewayCore,
        endpoints: Endpoints,
        server_name: Option<String>,
    ) -> Arc<Self> {
        let shared = Arc::new(Self {
            state: Mutex::new(State { core: core(Millis(0)), sessions: HashMap::new() }),
            available: Notify::new(),
            changed: Notify::new(),
            began: Instant::now(),
            runtime: Runtime::current(),
            endpoints,
            server_name,
            running: watch::Sender::new(0),
        });
        shared.with(|_| ());
        shared.runtime.spawn(tick(Arc::downgrade(&shared)));
        shared
    }

    pub(crate) fn input(self: &Arc<Self>, input: Input) {
        let now = self.now();
        self.with(|core| core.handle(input, now));
    }

    /// Runs `use_it` on the core, and carries out what comes of it.
    pub(crate) fn with<T>(self: &Arc<Self>, use_it: impl FnOnce(&mut GatewayCore) -> T) -> T {
        let mut state = self.lock();
        let result = use_it(&mut state.core);
        self.carry_out(&mut state);
        result
    }

    pub(crate) fn now(&self) -> Millis {
        // A process that runs for five hundred million years has other worries.
        Millis(self.began.elapsed().as_millis() as u64)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in the core leaves it in a state that is at worst behind: a poisoned lock would only hide the panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carry_out(self: &Arc<Self>, state: &mut State) {
        while let Some(output) = state.core.poll_output() {
            match output {
                Output::Connect { session, address, after_ms, .. } => {
                    let (requests, requests_out) = mpsc::unbounded_channel();
                    let (ack, ack_out) = watch::channel(Ack::default());
                    let (close, close_out) = oneshot::channel();
                    let resume = Arc::new(Notify::new());
                    let job = Job {
                        id: session,
                        address,
                        after: Duration::from_millis(after_ms),
                        requests: requests_out,
                        ack: ack_out,
                        resume: Arc::clone(&resume),
                        close: close_out,
                    };
                    state.sessions.insert(session, Session { requests, ack, resume, close });
                    self.running.send_modify(|running| *running += 1);
                    let shared = Arc::clone(self);
                    self.runtime.spawn(async move {
                        session::run(&shared, job).await;
                        shared.running.send_modify(|running| *running -= 1);
                    });
                }
                Output::Request { session, request } => {
                    if let Some(session) = state.sessions.get(&session) {
                        // Whoever would have sent it is on its way to saying that the connection is gone.
                        let _ = session.requests.send(request);
                    }
                }
                Output::Ack { session, ack } => {
                    if let Some(session) = state.sessions.get(&session) {
                        session.ack.send_replace(ack);
                    }
                }
                Output::Resume { session } => {
                    if let Some(session) = state.sessions.get(&session) {
                        session.resume.notify_one();
                    }
                }
                Output::Available => self.available.notify_one(),
                Output::Close { session, code, message } => {
                    if let Some(session) = state.sessions.remove(&session) {
                        let _ = session.close.send(Closing { code, message });
                    }
                }
                Output::Terminal(error) => {
                    tracing::error!(%error, "this Gateway can't go on");
                    self.available.notify_one();
                    self.changed.notify_waiters();
                }
            }
        }
    }

    /// The connection is gone by itself.
    fn disconnected(self: &Arc<Self>, id: SessionId, reason: crate::core::DisconnectReason) {
        tracing::debug!(session = id.0, %reason, "disconnected");
        let now = self.now();
        let mut state = self.lock();
        state.sessions.remove(&id);
        state.core.handle(Input::Disconnected { session: id, reason }, now);
        self.carry_out(&mut state);
    }

    /// Until all sessions have ended and their other sides know, or could not be told.
    pub(crate) async fn wait_closed(&self) {
        // An error would mean that the sender is gone, which is in `self`.
        let _ = self.running.subscribe().wait_for(|running| *running == 0).await;
        let _ = tokio::time::timeout(IDLE_WITHIN, self.endpoints.wait_idle()).await;
    }
}

/// Keeps time for the core while somebody holds the Gateway.
async fn tick(shared: Weak<Shared>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        let now = shared.now();
        let over = shared.with(|core| {
            if core.next_deadline().is_some_and(|at| at <= now) {
                core.handle(Input::Tick, now);
            }
            core.is_over()
        });
        if over {
            return;
        }
    }
}

/// The core's deadlines are seconds.
const TICK: Duration = Duration::from_millis(100);

/// For the other sides to hear of the ends of connections.
const IDLE_WITHIN: Duration = Duration::from_secs(1);
