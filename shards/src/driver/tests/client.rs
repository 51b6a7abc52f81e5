//! A Gateway's side of a connection, by hand: what the SDK never does is also to be sent.

use std::{net::SocketAddr, sync::Arc};

use bytes::BytesMut;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream, crypto::rustls::QuicClientConfig};
use rustls::pki_types::CertificateDer;
use wire::{
    Ack, Capabilities, Decoder, Delivery, ErrorCode, Hello, MAX_BODY_BYTES, Message, Reply, Request, RequestId,
    SubscribeItem, SubscriptionKey, encode_ack, encode_request,
};

use super::node::{Node, TOKEN};

pub(super) struct Client {
    pub(super) connection: Connection,
    pub(super) control: SendStream,
    replies: Incoming<Reply>,
    endpoint: Endpoint,
}

/// Messages of one stream.
pub(super) struct Incoming<M> {
    stream: RecvStream,
    decoder: Decoder<M>,
}

impl<M: Message> Incoming<M> {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self { stream, decoder: Decoder::new(MAX_BODY_BYTES) }
    }

    /// `None` once the stream or the connection has ended.
    pub(super) async fn next(&mut self) -> Option<M> {
        loop {
            if let Some(message) = self.decoder.next().unwrap() {
                return Some(message);
            }
            match self.stream.read_chunk(1 << 16, true).await {
                Ok(Some(chunk)) => self.decoder.push(chunk.bytes),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

impl Client {
    /// Connects without saying anything yet.
    pub(super) async fn connect(node: &Node) -> Self {
        let (endpoint, connection) = dial(node.handle.local_addr(), &node.certificate, Some(wire::ALPN)).await;
        let connection = connection.unwrap();
        let (control, replies) = connection.open_bi().await.unwrap();
        Self { connection, control, replies: Incoming::new(replies), endpoint }
    }

    /// Connects and is welcomed.
    pub(super) async fn welcomed(node: &Node, gateway: &str) -> Self {
        let mut client = Self::connect(node).await;
        client.send(&hello(gateway, TOKEN)).await;
        assert!(matches!(client.reply().await, Reply::Welcome(_)));
        client
    }

    pub(super) async fn send(&mut self, request: &Request) {
        let mut buffer = BytesMut::new();
        encode_request(request, &mut buffer);
        self.control.write_all(&buffer).await.unwrap();
    }

    pub(super) async fn send_bytes(&mut self, bytes: &[u8]) {
        // The other end may close while they are written; what it closes with is what the test is about.
        let _ = self.control.write_all(bytes).await;
    }

    pub(super) async fn reply(&mut self) -> Reply {
        self.replies.next().await.expect("the control stream goes on")
    }

    pub(super) async fn deliveries(&self) -> Incoming<Delivery> {
        Incoming::new(self.connection.accept_uni().await.unwrap())
    }

    pub(super) async fn open_acks(&self) -> SendStream {
        self.connection.open_uni().await.unwrap()
    }

    /// Closes the connection, and waits until that is said.
    pub(super) async fn leave(self) {
        self.connection.close(0u32.into(), b"");
        self.endpoint.wait_idle().await;
    }

    /// The code that the shard closes the connection with.
    pub(super) async fn closed_with(&mut self) -> ErrorCode {
        match self.connection.closed().await {
            ConnectionError::ApplicationClosed(close) => {
                ErrorCode::from_quic_code(close.error_code.into_inner()).expect("a code of the protocol")
            }
            other => panic!("not closed by the shard's application: {other}"),
        }
    }
}

pub(super) async fn dial(
    address: SocketAddr,
    certificate: &CertificateDer<'static>,
    alpn: Option<&[u8]>,
) -> (Endpoint, Result<Connection, ConnectionError>) {
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connection = endpoint.connect_with(client_config(certificate, alpn), address, "localhost").unwrap().await;
    (endpoint, connection)
}

/// It remembers sessions and sends early data where it may.
pub(super) fn client_config(certificate: &CertificateDer<'static>, alpn: Option<&[u8]>) -> quinn::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = alpn.map(<[u8]>::to_vec).into_iter().collect();
    tls.enable_early_data = true;
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

pub(super) fn hello(gateway: &str, token: &str) -> Request {
    Request::Hello(Hello {
        gateway: gateway.into(),
        token: token.into(),
        agent: "test".into(),
        capabilities: Capabilities::default(),
    })
}

pub(super) fn subscribe(request: u64, id: &str) -> Request {
    let item = SubscribeItem::new(SubscriptionKey { tenant: "t".into(), id: id.into() }, "c");
    Request::Subscribe { request: RequestId(request), items: vec![item] }
}

pub(super) async fn ack(stream: &mut SendStream, seq: u64) {
    let mut buffer = BytesMut::new();
    encode_ack(&Ack { received: seq, done: seq }, &mut buffer);
    stream.write_all(&buffer).await.unwrap();
}

/// Runs a test's client and the node's other threads on one tokio runtime.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
