//! The executor of one shard: glommio on io_uring, or tokio where that is barred. Both run on one thread pinned to one core.
//!
//! Invariants:
//! - Everything spawned here is polled and dropped on the shard's thread.
//! - No panic is swallowed: the first one of any task is kept and ends the shard.
//! - Once [`Executor::stop_tasks`] has returned, no task is left that holds a socket.

mod glommio_udp;
mod preflight;
mod quinn_runtime;

use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Waker},
    time::{Duration, Instant},
};

use futures::{
    FutureExt,
    future::{AbortHandle, Abortable, Either, select},
};
use send_wrapper::SendWrapper;

pub use self::preflight::{Preflight, RuntimeChoice, RuntimeKind, RuntimeUnavailable, RuntimeUsed, UnknownRuntime};
use super::local::{LocalEvent, yield_now};

/// Bytes that a glommio executor keeps for storage IO. Shards do none, and it is locked memory, three times over: the least that
/// glommio takes. More of it is registered as long as the limit lasts, so that the last executors would find none.
const IO_MEMORY_BYTES: usize = 64 * 1024;
const RING_DEPTH: usize = 128;
/// How long tasks run before glommio looks at the network again, if they don't let it sooner by [`Executor::breathe`]. Its default
/// of 100 ms starves receiving on a busy shard. Much less than this is no option: glommio 0.9 goes to sleep *with tasks that
/// are ready* when this time is already over as it comes to run them, which is what happens to a thread that the kernel takes
/// off its core just then. At 1 ms a crowded machine did that about once in 30,000 turns. See [`Guards`].
const PREEMPT: Duration = Duration::from_millis(10);
/// A wake-up within this time costs a fraction of what waking a parked thread does. Longer spinning would cost an idle node
/// its idleness.
const SPIN_BEFORE_PARK: Duration = Duration::from_micros(50);

/// The executor could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    #[error(transparent)]
    Unavailable(#[from] RuntimeUnavailable),
    #[error(
        "core {core} cannot be had: the kernel refuses to pin a thread to it. It must be online and in this process's cpuset"
    )]
    Core { core: usize },
    #[error("the tokio runtime did not start")]
    Tokio(#[source] io::Error),
}

/// What the tasks of one shard run on.
pub(super) struct Executor {
    kind: RuntimeKind,
    tasks: RefCell<HashMap<u64, AbortHandle>>,
    next_task: Cell<u64>,
    guards: Guards,
    failure: RefCell<Option<String>>,
    has_failed: Cell<bool>,
    /// Set with the first panic of a task.
    failed: LocalEvent,
}

/// An executor that was made on this thread and has not run yet.
pub(super) enum Ready {
    Glommio(Box<glommio::LocalExecutor>),
    Tokio(tokio::runtime::Runtime),
}

/// Pins the calling thread to `core` and makes the executor on it. Where glommio was not asked for by name and does not start
/// in spite of the preflight, it is tokio.
pub(super) fn make(
    choice: RuntimeChoice,
    core: usize,
    preflight: &Preflight,
) -> Result<(Ready, RuntimeUsed), ExecutorError> {
    let mut used = preflight.decide(choice)?;
    if !core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        return Err(ExecutorError::Core { core });
    }
    if used.kind == RuntimeKind::Glommio {
        let missing = match make_glommio(core) {
            Ok(executor) => return Ok((Ready::Glommio(Box::new(executor)), used)),
            Err(missing) => missing,
        };
        let remedy = "The preflight found io_uring and locked memory in order; see the kernel log".to_owned();
        if choice == RuntimeChoice::Glommio {
            return Err(RuntimeUnavailable { missing, remedy }.into());
        }
        used = RuntimeUsed { kind: RuntimeKind::Tokio, reason: format!("glommio cannot be had: {missing}") };
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(ExecutorError::Tokio)?;
    Ok((Ready::Tokio(runtime), used))
}

fn make_glommio(core: usize) -> Result<glommio::LocalExecutor, String> {
    let builder = glommio::LocalExecutorBuilder::new(glommio::Placement::Fixed(core))
        .io_memory(IO_MEMORY_BYTES)
        .ring_depth(RING_DEPTH)
        .preempt_timer(PREEMPT)
        .spin_before_park(SPIN_BEFORE_PARK);
    // Some of what can be missing makes it panic rather than fail.
    match catch_unwind(AssertUnwindSafe(|| builder.make())) {
        Ok(Ok(executor)) => Ok(executor),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => Err(panic_message(&*panic)),
    }
}

impl Ready {
    /// Runs until the future of `main` has ended, then ends all tasks that are left. The first panic, of `main` or of a task,
    /// is the error.
    pub(super) fn run<F, T>(self, main: impl FnOnce(Rc<Executor>) -> F) -> Result<T, String>
    where
        F: Future<Output = T>,
    {
        let kind = match &self {
            Self::Glommio(_) => RuntimeKind::Glommio,
            Self::Tokio(_) => RuntimeKind::Tokio,
        };
        let executor = Rc::new(Executor {
            kind,
            tasks: RefCell::default(),
            next_task: Cell::new(0),
            guards: Guards::default(),
            failure: RefCell::default(),
            has_failed: Cell::new(false),
            failed: LocalEvent::default(),
        });
        let body = async {
            executor.guard(Instant::now());
            let result = AssertUnwindSafe(async { main(Rc::clone(&executor)).await }).catch_unwind().await;
            let result = result.map_err(|panic| panic_message(&*panic));
            executor.stop_tasks().await;
            match executor.failure.take() {
                Some(failure) => Err(failure),
                None => result,
            }
        };
        match self {
            Self::Glommio(glommio) => glommio.run(body),
            Self::Tokio(tokio) => tokio.block_on(body),
        }
    }
}

impl Executor {
    #[cfg(test)]
    pub(super) fn kind(&self) -> RuntimeKind {
        self.kind
    }

    /// Runs `future` beside what runs, on this thread. It isn't polled before this returns.
    pub(super) fn spawn(self: &Rc<Self>, future: impl Future<Output = ()> + 'static) {
        let id = self.next_task.replace(self.next_task.get() + 1);
        let (handle, registration) = AbortHandle::new_pair();
        self.tasks.borrow_mut().insert(id, handle);
        let executor = Rc::clone(self);
        let task = async move {
            // Glommio runs a new task at once, within the call that spawns it. Whoever spawns may hold a borrow or, as quinn
            // does, a lock that the task asks for.
            yield_now().await;
            // The inner future is dropped with this block, before the task counts as ended.
            let outcome = AssertUnwindSafe(Abortable::new(future, registration)).catch_unwind().await;
            if let Err(panic) = outcome {
                executor.fail(panic_message(&*panic));
            }
            executor.tasks.borrow_mut().remove(&id);
        };
        match self.kind {
            RuntimeKind::Glommio => {
                glommio::spawn_local(task).detach();
            }
            RuntimeKind::Tokio => {
                // A `current_thread` runtime polls and drops all its tasks on the thread that drives it, which is this one.
                tokio::spawn(SendWrapper::new(task));
            }
        }
    }

    pub(super) async fn sleep(&self, duration: Duration) {
        match self.kind {
            RuntimeKind::Glommio => {
                glommio::timer::Timer::new(duration).await;
            }
            RuntimeKind::Tokio => tokio::time::sleep(duration).await,
        }
    }

    /// Lets every other task that is ready have its turn, and the executor look at its sockets, timers and wake-ups from other
    /// threads.
    pub(super) async fn breathe(&self) {
        match self.kind {
            // A task that only wakes itself keeps the queue from running empty, and until then or until PREEMPT is over glommio
            // looks at nothing else. A timer makes it look.
            RuntimeKind::Glommio => {
                glommio::timer::Timer::new(Duration::from_micros(1)).await;
            }
            RuntimeKind::Tokio => tokio::task::yield_now().await,
        }
    }

    /// Makes sure that the thread doesn't sleep for long after `quiet_until`, unless this is called again before.
    pub(super) fn guard(&self, quiet_until: Instant) {
        if self.kind == RuntimeKind::Glommio {
            self.guards.arm(quiet_until);
        }
    }

    /// `None` when `duration` has passed first.
    pub(super) async fn timeout<T>(&self, duration: Duration, future: impl Future<Output = T>) -> Option<T> {
        match select(pin!(future), pin!(self.sleep(duration))).await {
            Either::Left((output, _)) => Some(output),
            Either::Right(_) => None,
        }
    }

    pub(super) fn quinn_runtime(self: &Rc<Self>) -> Arc<dyn quinn::Runtime> {
        quinn_runtime::for_executor(self)
    }

    /// Waits for the first panic of a task. For one waiter.
    pub(super) async fn failed(&self) {
        self.failed.wait().await;
    }

    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.get()
    }

    fn fail(&self, message: String) {
        self.failure.borrow_mut().get_or_insert(message);
        self.has_failed.set(true);
        self.failed.set();
    }

    /// Ends all tasks and lets go of what they held. A task that doesn't come to an await is waited for.
    async fn stop_tasks(&self) {
        self.guard(Instant::now());
        loop {
            let handles: Vec<AbortHandle> = self.tasks.borrow().values().cloned().collect();
            if handles.is_empty() {
                break;
            }
            for handle in handles {
                handle.abort();
            }
            self.breathe().await;
        }
        // Operations in flight hold their socket until the kernel has reported their end.
        self.sleep(LINGER).await;
    }
}

/// Timers that nobody waits for. They only get a glommio executor out of a sleep that it should not have begun (see [`PREEMPT`]):
/// while all is well they are put off before they expire and cost no wake-up. There are several because the one that expires may
/// meet the same mishap.
#[derive(Default)]
struct Guards(RefCell<Vec<glommio::timer::Timer>>);

/// After `quiet_until`.
const GUARD_DELAYS_MS: [u64; 5] = [5, 25, 100, 1_000, 10_000];

impl Guards {
    fn arm(&self, quiet_until: Instant) {
        let ahead = quiet_until.saturating_duration_since(Instant::now());
        let mut timers = self.0.borrow_mut();
        if timers.is_empty() {
            timers.extend(GUARD_DELAYS_MS.map(|delay| glommio::timer::Timer::new(Duration::from_millis(delay))));
        }
        let mut nobody = Context::from_waker(Waker::noop());
        for (timer, delay) in timers.iter_mut().zip(GUARD_DELAYS_MS) {
            timer.reset(ahead + Duration::from_millis(delay));
            // One that has expired is registered anew only when it is polled.
            let _ = Pin::new(timer).poll(&mut nobody);
        }
    }
}

/// How long the ring goes on after the last task, to reap operations that were cancelled with it.
const LINGER: Duration = Duration::from_millis(2);

pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}
