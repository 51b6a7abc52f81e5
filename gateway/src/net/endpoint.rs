//! Sockets, and connections from them.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, TokioRuntime};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::lookup_host, sync::OnceCell, task::JoinSet};

use super::tls::plain_reason;
use crate::{Error, core::DisconnectReason};

/// One endpoint for each family of addresses, made when first needed.
pub(crate) struct Endpoints {
    config: ClientConfig,
    v4: OnceCell<Endpoint>,
    v6: OnceCell<Endpoint>,
}

impl Endpoints {
    pub(crate) fn new(config: ClientConfig) -> Self {
        Self { config, v4: OnceCell::new(), v6: OnceCell::new() }
    }

    /// Connects to a `host:port`. Where a host has several addresses, the first that answers.
    pub(super) async fn connect(
        &self,
        address: &str,
        server_name: Option<&str>,
    ) -> Result<Connection, DisconnectReason> {
        let unreachable = |what: String| DisconnectReason::Unreachable(what);
        let name = match server_name {
            Some(name) => name,
            None => host_of(address).ok_or_else(|| unreachable("the address is not host:port".into()))?,
        };
        let found = lookup_host(address).await.map_err(|error| unreachable(format!("no such address: {error}")))?;
        let mut attempts = JoinSet::new();
        let mut last = unreachable("the name has no address".into());
        for socket_address in found {
            let endpoint = match self.endpoint(socket_address).await {
                Ok(endpoint) => endpoint,
                Err(error) => {
                    last = unreachable(error.to_string());
                    continue;
                }
            };
            match endpoint.connect_with(self.config.clone(), socket_address, name) {
                Ok(connecting) => drop(attempts.spawn(connecting)),
                Err(error) => last = unreachable(error.to_string()),
            }
        }
        while let Some(attempt) = attempts.join_next().await {
            match attempt {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => {
                    let reason = reason_of(&error, false);
                    // The one that answered has more to say than the one that did not.
                    if !matches!(last, DisconnectReason::Untrusted(_) | DisconnectReason::Closed { .. }) {
                        last = reason;
                    }
                }
                Err(error) => last = unreachable(format!("the attempt failed: {error}")),
            }
        }
        Err(last)
    }

    async fn endpoint(&self, to: SocketAddr) -> Result<&Endpoint, Error> {
        let (cell, any) = match to {
            SocketAddr::V4(_) => (&self.v4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
            SocketAddr::V6(_) => (&self.v6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))),
        };
        cell.get_or_try_init(async || bind(any).map_err(|error| Error::Socket(error.to_string()))).await
    }

    /// Until the other sides have been told of the ends of all connections, or could not be.
    pub(super) async fn wait_idle(&self) {
        for endpoint in [self.v4.get(), self.v6.get()].into_iter().flatten() {
            endpoint.wait_idle().await;
        }
    }
}

fn bind(any: SocketAddr) -> std::io::Result<Endpoint> {
    let socket = Socket::new(Domain::for_address(any), Type::DGRAM, Some(Protocol::UDP))?;
    // All shards' connections come in by this socket. The kernel grants what it allows, which may be less.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&any.into())?;
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(wire::UDP_PAYLOAD_MAX).expect("it is more than the 1,200 bytes that QUIC asks for");
    Endpoint::new(config, None, socket.into(), Arc::new(TokioRuntime))
}

/// `host:port` or `[v6]:port`.
fn host_of(address: &str) -> Option<&str> {
    let (host, _port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then_some(host)
}

/// What the end of a connection means. `stood`: whether it had come about.
pub(super) fn reason_of(error: &ConnectionError, stood: bool) -> DisconnectReason {
    match error {
        ConnectionError::ApplicationClosed(close) => DisconnectReason::Closed {
            code: wire::ErrorCode::from_quic_code(close.error_code.into_inner()),
            message: String::from_utf8_lossy(&close.reason).into_owned(),
        },
        // An error of our own TLS: the certificate is not the one, or not good. The node's alerts come as `ConnectionClosed`.
        ConnectionError::TransportError(error) if !stood && is_tls(u64::from(error.code)) => {
            DisconnectReason::Untrusted(plain_reason(&error.reason))
        }
        ConnectionError::TimedOut if !stood => DisconnectReason::Unreachable("no answer in time".into()),
        other if !stood => DisconnectReason::Unreachable(other.to_string()),
        other => DisconnectReason::Lost(other.to_string()),
    }
}

/// QUIC carries TLS alerts as 0x100 + alert (RFC 9001, section 4.8).
fn is_tls(code: u64) -> bool {
    (0x100..0x200).contains(&code)
}

const SOCKET_BUFFER_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_addresses() {
        for (address, host) in [
            ("localhost:7400", Some("localhost")),
            ("[::1]:7400", Some("::1")),
            ("10.0.0.1:1", Some("10.0.0.1")),
            ("localhost", None),
            (":7400", None),
        ] {
            assert_eq!(host_of(address), host, "{address}");
        }
    }
}
