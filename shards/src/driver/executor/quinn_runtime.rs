//! What quinn asks of the world, answered by a shard's executor.

use std::{
    fmt, io,
    net::UdpSocket,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime};
use send_wrapper::SendWrapper;

use super::{Executor, RuntimeKind, glommio_udp::GlommioUdp};

pub(super) fn for_executor(executor: &Rc<Executor>) -> Arc<dyn Runtime> {
    Arc::new(ShardRuntime { executor: SendWrapper::new(Rc::clone(executor)) })
}

/// quinn wants its runtime to be `Send`. Nothing of an endpoint ever leaves its shard's thread, and the wrapper panics if it
/// does.
struct ShardRuntime {
    executor: SendWrapper<Rc<Executor>>,
}

impl fmt::Debug for ShardRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardRuntime({})", self.executor.kind)
    }
}

impl Runtime for ShardRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        match self.executor.kind {
            RuntimeKind::Glommio => {
                let timer = glommio::timer::Timer::new(at.saturating_duration_since(Instant::now()));
                Box::pin(GlommioTimer(SendWrapper::new(timer)))
            }
            RuntimeKind::Tokio => quinn::TokioRuntime.new_timer(at),
        }
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        // Not tokio's own spawn, which would swallow a panic.
        self.executor.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        match self.executor.kind {
            RuntimeKind::Glommio => Ok(Arc::new(GlommioUdp::new(socket, &self.executor)?)),
            RuntimeKind::Tokio => quinn::TokioRuntime.wrap_udp_socket(socket),
        }
    }
}

struct GlommioTimer(SendWrapper<glommio::timer::Timer>);

impl fmt::Debug for GlommioTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GlommioTimer")
    }
}

impl AsyncTimer for GlommioTimer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        self.0.reset(at.saturating_duration_since(Instant::now()));
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut *self.0).poll(cx).map(|_| ())
    }
}
