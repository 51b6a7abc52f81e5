//! A Gateway's side of a connection, by hand: what the SDK never does is also to be sent.

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream, crypto::rustls::QuicClientConfig};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use wire::{
    Capabilities, Decoder, ErrorCode, Hello, MAX_BODY_BYTES, Reply, Request, RequestId, SubscribeItem, SubscribeResult,
    SubscriptionKey, encode_request,
};

use crate::support::{setup::Setup, within};

pub(crate) struct Client {
    pub(crate) connection: Connection,
    pub(crate) control: SendStream,
    replies: RecvStream,
    decoder: Decoder<Reply>,
    /// Lives as long as the connection is to be driven.
    _endpoint: Endpoint,
}

impl Client {
    /// Connects to shard 0 without saying anything yet.
    pub(crate) async fn connect(setup: &Setup) -> Self {
        let (endpoint, connection) = dial(setup, Some(wire::ALPN)).await;
        let connection = connection.unwrap();
        let (control, replies) = connection.open_bi().await.unwrap();
        Self { connection, control, replies, decoder: Decoder::new(MAX_BODY_BYTES), _endpoint: endpoint }
    }

    /// Connects and is welcomed.
    pub(crate) async fn welcomed(setup: &Setup, gateway: &str) -> Self {
        let mut client = Self::connect(setup).await;
        client.send(&hello(gateway, "")).await;
        let reply = client.reply().await;
        assert!(matches!(reply, Some(Reply::Welcome(_))), "{reply:?}");
        client
    }

    pub(crate) async fn send(&mut self, request: &Request) {
        self.send_bytes(&encoded(request)).await;
    }

    /// The other end may close while they are written; what it closes with is what tests are about.
    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = within("the shard reads", self.control.write_all(bytes)).await;
    }

    /// `None` once the stream or the connection has ended.
    pub(crate) async fn reply(&mut self) -> Option<Reply> {
        loop {
            if let Some(reply) = self.decoder.next().unwrap() {
                return Some(reply);
            }
            match within("a reply", self.replies.read_chunk(1 << 16, true)).await {
                Ok(Some(chunk)) => self.decoder.push(chunk.bytes),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// What becomes of one subscription.
    pub(crate) async fn subscribe(&mut self, item: SubscribeItem) -> SubscribeResult {
        self.send(&Request::Subscribe { request: RequestId(1), items: vec![item] }).await;
        match self.reply().await {
            Some(Reply::Subscribed { results, .. }) if results.len() == 1 => results.into_iter().next().unwrap(),
            other => panic!("{other:?} instead of one result"),
        }
    }

    /// The code that the shard closes the connection with.
    pub(crate) async fn closed_with(&self, after: &str) -> ErrorCode {
        code_of(within(&format!("the shard closes the connection after {after}"), self.connection.closed()).await)
    }
}

/// The protocol's code in the end of a connection.
pub(crate) fn code_of(end: ConnectionError) -> ErrorCode {
    match end {
        ConnectionError::ApplicationClosed(close) => {
            ErrorCode::from_quic_code(close.error_code.into_inner()).expect("a code of the protocol")
        }
        other => panic!("not closed by the shard: {other}"),
    }
}

/// Connects to shard 0, trusting the certificate that the node has made itself.
pub(crate) async fn dial(setup: &Setup, alpn: Option<&[u8]>) -> (Endpoint, Result<Connection, ConnectionError>) {
    let certificate = CertificateDer::from_pem_file(setup.data().join("tls/certificate.pem")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = alpn.map(<[u8]>::to_vec).into_iter().collect();
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_secs(3)));
    config.transport_config(Arc::new(transport));
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connecting = endpoint.connect_with(config, setup.address().parse().unwrap(), "localhost").unwrap();
    let connection = within("the handshake ends", connecting).await;
    (endpoint, connection)
}

pub(crate) fn encoded(request: &Request) -> Vec<u8> {
    let mut buffer = BytesMut::new();
    encode_request(request, &mut buffer);
    buffer.to_vec()
}

pub(crate) fn hello(gateway: &str, token: &str) -> Request {
    Request::Hello(Hello {
        gateway: gateway.into(),
        token: token.into(),
        agent: "test".into(),
        capabilities: Capabilities::default(),
    })
}

/// A subscription to a whole collection, to be changed.
pub(crate) fn item(tenant: &str, id: &str, collection: &str) -> SubscribeItem {
    SubscribeItem::new(SubscriptionKey { tenant: tenant.into(), id: id.into() }, collection)
}

/// A collection of the tenant that this shard of so many owns.
pub(crate) fn collection_of_shard(tenant: &str, shard: u16, shards: u16) -> String {
    let slots = wire::SlotTable { shards };
    let owned = |name: &String| slots.owner(wire::PlaceHash::of(tenant, name)) == shard;
    (0..).map(|n| format!("c{n}")).find(owned).expect("hashes spread")
}
