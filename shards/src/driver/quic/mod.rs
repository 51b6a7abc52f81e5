//! A shard's QUIC endpoint: its settings, its socket, and who may come in.

mod gso;
mod session;

use std::{io, net::UdpSocket, rc::Rc, sync::Arc, time::Duration};

use quinn::{
    AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
    crypto::rustls::{NoInitialCipherSuite, QuicServerConfig},
};
use wire::{ErrorCode, Hello};

pub use self::gso::gso_self_test;

use super::{core::Core, executor::Executor, hub::Hub};
use crate::Refusal;

/// Limits of a shard's endpoint and its connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuicConfig {
    /// A connection on which nothing comes for this long is gone. Keep-alives go out at a third of it. Default 30,000 ms.
    pub idle_timeout_ms: u32,
    /// Bytes in flight and waiting for their ack, a connection. Memory of the node = Gateways × this. More than the network's
    /// bandwidth × delay only adds latency. Default 256 KiB.
    pub send_window_bytes: u64,
    /// Bytes a connection may send before we have read them. Default 1 MiB.
    pub receive_window_bytes: u32,
    /// Connections with a session, a shard. Default 4,096.
    pub sessions_max: usize,
    /// Connections that are shaking hands or haven't said hello, a shard. Beyond it they are refused. Default 1,024.
    pub newcomers_max: usize,
    /// Newcomers beyond which an address must be proven before we spend a handshake on it. Default 64.
    pub newcomers_before_retry: usize,
    /// Time for handshake and hello, each. Default 10,000 ms.
    pub handshake_timeout_ms: u64,
    /// Time for what was sent before a close to arrive. Default 1,000 ms.
    pub flush_timeout_ms: u64,
    /// Most bytes that one write to a delivery stream takes from the shard. Default 64 KiB.
    pub write_bytes_max: usize,
    /// `SO_RCVBUF` asked for. Default 4 MiB.
    pub socket_receive_bytes: usize,
    /// `SO_SNDBUF` asked for. Default 4 MiB.
    pub socket_send_bytes: usize,
    /// Segmentation offload. To be turned off where a network driver claims it wrongly. Default true.
    pub gso: bool,
}

impl Default for QuicConfig {
    fn default() -> Self {
        Self {
            idle_timeout_ms: 30_000,
            send_window_bytes: 256 * 1024,
            receive_window_bytes: 1024 * 1024,
            sessions_max: 4_096,
            newcomers_max: 1_024,
            newcomers_before_retry: 64,
            handshake_timeout_ms: 10_000,
            flush_timeout_ms: 1_000,
            write_bytes_max: 64 * 1024,
            socket_receive_bytes: 4 * 1024 * 1024,
            socket_send_bytes: 4 * 1024 * 1024,
            gso: true,
        }
    }
}

/// Decides whether a hello is who it says. Called on the shard's thread: it must not block.
pub trait Authenticator: Send + Sync {
    fn authenticate(&self, hello: &Hello) -> Result<AuthorizedGateway, Refusal>;
}

impl<F> Authenticator for F
where
    F: Fn(&Hello) -> Result<AuthorizedGateway, Refusal> + Send + Sync,
{
    fn authenticate(&self, hello: &Hello) -> Result<AuthorizedGateway, Refusal> {
        self(hello)
    }
}

/// A Gateway whose credentials were found good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizedGateway {
    /// The id that its subscriptions are kept under.
    pub gateway: String,
}

/// Bytes that the kernel gives a socket's buffers, each as it counts them without its own overhead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketBuffers {
    pub receive_bytes: usize,
    pub send_bytes: usize,
}

/// Asks for the buffers and tells what was given. A small buffer costs throughput, not correctness, so it is no error.
pub(super) fn prepare_socket(socket: &UdpSocket, config: &QuicConfig) -> io::Result<SocketBuffers> {
    socket.set_nonblocking(true)?;
    let socket = socket2::SockRef::from(socket);
    socket.set_recv_buffer_size(config.socket_receive_bytes)?;
    socket.set_send_buffer_size(config.socket_send_bytes)?;
    // Linux reports twice what it grants, the other half being its bookkeeping.
    Ok(SocketBuffers { receive_bytes: socket.recv_buffer_size()? / 2, send_bytes: socket.send_buffer_size()? / 2 })
}

/// The TLS configuration can't carry QUIC.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the TLS configuration has no cipher suite for QUIC: it needs TLS 1.3 and TLS13_AES_128_GCM_SHA256")]
    NoCipherSuite(#[from] NoInitialCipherSuite),
    #[error("idle_timeout_ms is {0}; QUIC carries at most 2^62 - 1")]
    IdleTimeout(u32),
}

pub(super) fn server_config(tls: &rustls::ServerConfig, config: &QuicConfig) -> Result<ServerConfig, TlsError> {
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![wire::ALPN.to_vec()];
    // Early data can be replayed by whoever recorded it.
    tls.max_early_data_size = 0;
    tls.send_half_rtt_data = false;
    let crypto = QuicServerConfig::try_from(tls)?;

    let idle = Duration::from_millis(u64::from(config.idle_timeout_ms));
    let mut mtu_discovery = MtuDiscoveryConfig::default();
    mtu_discovery.upper_bound(wire::UDP_PAYLOAD_MAX);
    let mut ack_frequency = AckFrequencyConfig::default();
    ack_frequency.ack_eliciting_threshold(VarInt::from_u32(PACKETS_UNACKED));
    let mut transport = TransportConfig::default();
    transport
        // What a Gateway that knows the extension needn't send, it needn't seal, nor this shard open.
        .ack_frequency_config(Some(ack_frequency))
        // What a packet costs, its kernel calls, sealing and acks, is shared by more entries.
        .mtu_discovery_config(Some(mtu_discovery))
        .max_idle_timeout(Some(IdleTimeout::try_from(idle).map_err(|_| TlsError::IdleTimeout(config.idle_timeout_ms))?))
        .initial_rtt(INITIAL_RTT)
        .keep_alive_interval(Some(idle / 3))
        .send_window(config.send_window_bytes)
        .receive_window(VarInt::from_u32(config.receive_window_bytes))
        .stream_receive_window(VarInt::from_u32(config.receive_window_bytes / 2))
        // The control stream and the ack stream.
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .datagram_receive_buffer_size(None)
        .enable_segmentation_offload(config.gso);

    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    server
        .transport_config(Arc::new(transport))
        .max_incoming(config.newcomers_max)
        // Of connections that nobody has looked at yet, which is a matter of microseconds: a hello fits, a flood of them doesn't.
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL);
    Ok(server)
}

/// What a round trip is taken to last before one was seen: an answer that is lost is sent again after three times as long.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Packets that a Gateway may leave unacked, by the draft of the extension "QUIC Acknowledgment Frequency": half of those that may be on their way in the
/// smallest congestion window that a connection begins with, so that none waits for the delay of an ack.
const PACKETS_UNACKED: u32 = 4;
const INCOMING_BYTES: u64 = 64 * 1024;
const INCOMING_BYTES_TOTAL: u64 = 16 * 1024 * 1024;

/// Opens the endpoint on the socket that the node has bound.
pub(super) fn open_endpoint(
    executor: &Rc<Executor>,
    server: ServerConfig,
    socket: UdpSocket,
) -> io::Result<quinn::Endpoint> {
    quinn::Endpoint::new(EndpointConfig::default(), Some(server), socket, executor.quinn_runtime())
}

/// Takes connections in until the endpoint is closed.
pub(super) async fn accept<C: Core>(
    endpoint: quinn::Endpoint,
    hub: Rc<Hub<C>>,
    executor: Rc<Executor>,
    config: Rc<QuicConfig>,
    authenticator: Arc<dyn Authenticator>,
) {
    while let Some(incoming) = endpoint.accept().await {
        hub.counters.connections_incoming.add(1);
        let newcomers = hub.newcomers.get();
        if newcomers >= config.newcomers_max || hub.sessions() + newcomers >= config.sessions_max {
            hub.counters.connections_refused.add(1);
            incoming.refuse();
        } else if newcomers >= config.newcomers_before_retry && !incoming.remote_address_validated() {
            hub.counters.connections_retried.add(1);
            // It fails only for an address that is validated already.
            let _ = incoming.retry();
        } else {
            let newcomer = hub.newcomer();
            executor.spawn(session::serve(
                incoming,
                newcomer,
                Rc::clone(&hub),
                Rc::clone(&executor),
                Rc::clone(&config),
                Arc::clone(&authenticator),
            ));
        }
    }
}

/// What a connection is closed with.
pub(super) fn close_code(code: ErrorCode) -> VarInt {
    VarInt::from_u32(code.quic_code())
}
