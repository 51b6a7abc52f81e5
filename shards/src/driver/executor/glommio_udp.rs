//! A UDP socket for quinn on glommio, through public interfaces only.
//!
//! Data goes through `quinn::udp` (segmentation offload both ways); glommio is only asked when it is worth trying:
//! - *Readable*: glommio has no "poll this descriptor" that is public. A peek of one byte through the ring, of which one is in
//!   flight at a time, ends exactly when a datagram is there, and takes nothing.
//! - *Writable*: the kernel's send queue of a socket is full only while packets wait in a queue of the host's network stack. A
//!   datagram of one byte from the socket *to itself*, sent through the ring, ends exactly when that queue has room again; the
//!   endpoint throws the byte away as no QUIC packet. Where it can't be sent (a firewall, an address that can't reach itself)
//!   a short pause stands in for it.

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    io::IoSliceMut,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{FromRawFd, IntoRawFd},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use atomic_waker::AtomicWaker;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit, UdpSocketState},
};
use send_wrapper::SendWrapper;

use super::Executor;

/// Pause where the kernel can't tell us. Long enough not to burn the core, short against the round trip of a network whose
/// queue is full.
const PAUSE: Duration = Duration::from_micros(500);

pub(super) struct GlommioUdp(SendWrapper<Inner>);

struct Inner {
    socket: UdpSocket,
    state: UdpSocketState,
    readable: Readable,
    writable: Rc<Writable>,
}

impl GlommioUdp {
    pub(super) fn new(socket: UdpSocket, executor: &Rc<Executor>) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        let ring = Rc::new(through_the_ring(&socket)?);
        let writable = Rc::new(Writable {
            executor: Rc::clone(executor),
            ring: Rc::clone(&ring),
            to_itself: reachable(socket.local_addr()?),
            full: Cell::new(false),
            asking: Cell::new(false),
            waiting: RefCell::default(),
        });
        let readable = Readable { ring, in_flight: RefCell::default(), relay: Arc::default() };
        Ok(Self(SendWrapper::new(Inner { socket, state, readable, writable })))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Ends a peek that the kernel still holds, and with it its hold on the port, at once instead of when the ring is torn
        // down. A UDP socket is "not connected", which doesn't keep this from waking whoever waits.
        let _ = socket2::SockRef::from(&self.socket).shutdown(std::net::Shutdown::Both);
    }
}

impl fmt::Debug for GlommioUdp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GlommioUdp")
    }
}

impl AsyncUdpSocket for GlommioUdp {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(WritePoller(SendWrapper::new(Rc::clone(&self.0.writable))))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let result = self.0.state.send((&self.0.socket).into(), transmit);
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.0.writable.full.set(true);
        }
        result
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.0.state.recv((&self.0.socket).into(), buffers, meta) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
            ready!(self.0.readable.poll(cx));
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.socket.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.0.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.state.gro_segments()
    }
}

type BoxFuture = Pin<Box<dyn Future<Output = ()>>>;

/// Ends when a datagram is there. One operation is in flight at a time, however often somebody asks.
struct Readable {
    ring: Rc<glommio::net::UdpSocket>,
    in_flight: RefCell<Option<BoxFuture>>,
    relay: Arc<Relay>,
}

/// Stands between an operation and who waits for it. Glommio remembers one more waker at every poll of an operation in flight,
/// so it is polled only to start it and to take its result.
#[derive(Default)]
struct Relay {
    fired: AtomicBool,
    waker: AtomicWaker,
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.fired.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl Readable {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut in_flight = self.in_flight.borrow_mut();
        self.relay.waker.register(cx.waker());
        if in_flight.is_some() && !self.relay.fired.swap(false, Ordering::Acquire) {
            return Poll::Pending;
        }
        let operation = in_flight.get_or_insert_with(|| {
            let ring = Rc::clone(&self.ring);
            Box::pin(async move {
                // An error of the socket is told by the receive that follows. It must not turn into a busy loop here, should
                // the peek fail for a reason of its own.
                if ring.peek_from(&mut [0]).await.is_err() {
                    glommio::timer::Timer::new(PAUSE).await;
                }
            })
        });
        let waker = Waker::from(Arc::clone(&self.relay));
        let poll = operation.as_mut().poll(&mut Context::from_waker(&waker));
        if poll.is_ready() {
            *in_flight = None;
            self.relay.fired.store(false, Ordering::Relaxed);
        }
        poll
    }
}

/// Room in the send queue. One operation finds it out for all connections of the endpoint; it is a task of its own, so that no
/// connection that ends meanwhile takes the others' wake-up with it.
struct Writable {
    executor: Rc<Executor>,
    ring: Rc<glommio::net::UdpSocket>,
    to_itself: SocketAddr,
    /// A send has met a full queue, and nothing has been heard of room since.
    full: Cell<bool>,
    asking: Cell<bool>,
    /// At most one a connection.
    waiting: RefCell<Vec<Waker>>,
}

impl Writable {
    fn poll(self: &Rc<Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.full.get() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        if !self.asking.replace(true) {
            self.executor.spawn(Rc::clone(self).ask());
        }
        Poll::Pending
    }

    async fn ask(self: Rc<Self>) {
        if self.ring.send_to(&[0], self.to_itself).await.is_err() {
            glommio::timer::Timer::new(PAUSE).await;
        }
        self.full.set(false);
        self.asking.set(false);
        for waker in self.waiting.take() {
            waker.wake();
        }
    }
}

struct WritePoller(SendWrapper<Rc<Writable>>);

impl fmt::Debug for WritePoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WritePoller")
    }
}

impl UdpPoller for WritePoller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll(cx).map(Ok)
    }
}

/// The same socket as glommio's, over a descriptor of its own.
#[allow(unsafe_code)]
fn through_the_ring(socket: &UdpSocket) -> io::Result<glommio::net::UdpSocket> {
    let fd = socket.try_clone()?.into_raw_fd();
    // SAFETY: `fd` is an open socket that `into_raw_fd` has just given up, so nobody else closes it; it is a UDP socket,
    // which is what the wrapper takes it for.
    Ok(unsafe { glommio::net::UdpSocket::from_raw_fd(fd) })
}

/// Where a socket bound to `local` reaches itself.
fn reachable(mut local: SocketAddr) -> SocketAddr {
    if local.ip().is_unspecified() {
        local.set_ip(match local {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    local
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::driver::executor::{Preflight, RuntimeChoice, make};

    fn on_glommio<F: Future<Output = ()>>(body: impl FnOnce(Rc<Executor>) -> F + Send + 'static) {
        let core = core_affinity::get_core_ids().unwrap().last().unwrap().id;
        std::thread::spawn(move || make(RuntimeChoice::Glommio, core, &Preflight::check(1)).unwrap().0.run(body))
            .join()
            .unwrap()
            .unwrap();
    }

    #[test]
    fn room_in_the_send_queue_wakes_all_who_wait_but_for_those_who_left() {
        on_glommio(|executor| async move {
            let udp = Arc::new(GlommioUdp::new(UdpSocket::bind("127.0.0.1:0").unwrap(), &executor).unwrap());
            udp.0.writable.full.set(true);
            let mut leaver = Arc::clone(&udp).create_io_poller();
            let mut first = Arc::clone(&udp).create_io_poller();
            let mut second = Arc::clone(&udp).create_io_poller();
            poll_fn(|cx| {
                for poller in [&mut leaver, &mut first, &mut second] {
                    assert!(poller.as_mut().poll_writable(cx).is_pending());
                }
                Poll::Ready(())
            })
            .await;
            drop(leaver);
            let first = poll_fn(|cx| first.as_mut().poll_writable(cx));
            let second = poll_fn(|cx| second.as_mut().poll_writable(cx));
            let (first, second) = futures::join!(first, second);
            first.unwrap();
            second.unwrap();
            assert!(!udp.0.writable.full.get() && udp.0.writable.waiting.borrow().is_empty());
        });
    }

    #[test]
    fn a_peek_waits_for_a_datagram_however_often_it_is_asked() {
        on_glommio(|executor| async move {
            let udp = GlommioUdp::new(UdpSocket::bind("127.0.0.1:0").unwrap(), &executor).unwrap();
            let address = udp.local_addr().unwrap();
            let mut buffer = vec![0; 65_536];
            let mut receive = async || {
                let mut meta = [RecvMeta::default()];
                let count = poll_fn(|cx| udp.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta)).await;
                (count.unwrap(), meta[0].len, buffer[0])
            };
            // More polls than a task of glommio can have wakers.
            for _ in 0..70_000 {
                let mut receiving = std::pin::pin!(receive());
                poll_fn(|cx| {
                    assert!(receiving.as_mut().poll(cx).is_pending());
                    Poll::Ready(())
                })
                .await;
            }
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            for byte in [7, 8] {
                sender.send_to(&[byte; 100], address).unwrap();
                assert_eq!(receive().await, (1, 100, byte));
            }
        });
    }
}
