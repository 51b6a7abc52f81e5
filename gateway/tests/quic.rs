//! The SDK over real QUIC, against a node of one shard that does only what a test tells it to.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use bson::rawdoc;
use bytes::BytesMut;
use quinn::{
    Connection, ConnectionError, Endpoint, RecvStream, SendStream, ServerConfig, VarInt,
    crypto::rustls::QuicServerConfig,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use streamer_gateway::{
    AppEvent, Certainty, Error, ErrorCode, Event, Gateway, GatewayBuilder, Operation, Position, Positions,
    SavedPositions, Subscription, SubscriptionKey, TerminalError, Transition,
};
use wire::{
    Ack, BackendId, Bound, Decoder, Delivery, Epoch, EventEntry, Handle, Hello, Lineage, Message, Registration, Reply,
    Request, ShardAddress, SlotTable, SubscribeItem, SubscribeResult, Target, Welcome,
};

struct Node {
    endpoint: Endpoint,
    address: SocketAddr,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// The node's side of a session.
struct Peer {
    connection: Connection,
    replies: SendStream,
    requests: Incoming<Request>,
    delivery: SendStream,
    hello: Hello,
    acks: Option<Incoming<Ack>>,
}

struct Incoming<M> {
    stream: RecvStream,
    decoder: Decoder<M>,
}

impl<M: Message> Incoming<M> {
    fn new(stream: RecvStream) -> Self {
        Self { stream, decoder: Decoder::new(wire::MAX_BODY_BYTES) }
    }

    /// `None` at the end of the stream or connection.
    async fn next(&mut self) -> Option<M> {
        loop {
            if let Some(message) = self.decoder.next().expect("the SDK sends what can be decoded") {
                return Some(message);
            }
            let chunk = self.stream.read_chunk(64 << 10, true).await.ok()??;
            self.decoder.push(chunk.bytes);
        }
    }
}

impl Node {
    fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![wire::ALPN.to_vec()];
        let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        let endpoint = Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = endpoint.local_addr().unwrap();
        Self { endpoint, address, certificate, pem: made.cert.pem() }
    }

    fn fingerprint(&self) -> String {
        Sha256::digest(&self.certificate).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }

    fn builder(&self) -> GatewayBuilder {
        Gateway::builder()
            .address(self.address.to_string())
            .gateway("g-1")
            .token("secret")
            .fingerprint(self.fingerprint())
    }

    /// The next connection, up to its hello.
    async fn greeted(&self) -> Peer {
        let connection = self.endpoint.accept().await.unwrap().await.unwrap();
        let (replies, requests) = connection.accept_bi().await.unwrap();
        let mut requests = Incoming::new(requests);
        let Some(Request::Hello(hello)) = requests.next().await else { panic!("the first message is a hello") };
        let delivery = connection.open_uni().await.unwrap();
        Peer { connection, replies, requests, delivery, hello, acks: None }
    }

    async fn welcomed(&self) -> Peer {
        let mut peer = self.greeted().await;
        let welcome = Welcome {
            epoch: Epoch(1),
            partition: 0,
            slots: SlotTable { shards: 1 },
            shards: vec![ShardAddress { partition: 0, address: self.address.to_string() }],
            received_deadline_ms: 60_000,
            heartbeat_ms: 60_000,
            max_body_bytes: 1 << 20,
            mapping: "plain".into(),
        };
        peer.reply(Reply::Welcome(Box::new(welcome))).await;
        peer
    }

    /// A connected Gateway with the subscription `s`, bound to handle 1, and the node's side of it.
    async fn live(&self, builder: GatewayBuilder) -> (Gateway, Peer) {
        let builder = builder.subscription(Subscription::new("t", "c").id("s"));
        let (gateway, mut peer) = tokio::join!(builder.connect(), self.welcomed());
        let mut gateway = gateway.unwrap();
        assert_eq!(peer.subscribed().await.len(), 1);
        peer.deliver(bound(1, "s", 10)).await;
        assert!(matches!(gateway.next().await.unwrap().what, AppEvent::Live { .. }));
        peer.synced().await;
        (gateway, peer)
    }
}

impl Peer {
    async fn reply(&mut self, reply: Reply) {
        let mut buffer = BytesMut::new();
        wire::encode_reply(&reply, &mut buffer);
        self.replies.write_chunk(buffer.freeze()).await.unwrap();
    }

    async fn deliver(&mut self, delivery: Delivery) {
        let mut buffer = BytesMut::new();
        wire::encode_delivery(&delivery, &mut buffer);
        self.delivery.write_chunk(buffer.freeze()).await.unwrap();
    }

    async fn event(&mut self, seq: u64, time: u64) {
        self.deliver(Delivery::Events(vec![entry(seq, time)].into())).await;
    }

    /// Takes and accepts a subscribe request.
    async fn subscribed(&mut self) -> Vec<SubscribeItem> {
        let next = self.requests.next().await;
        let Some(Request::Subscribe { request, items }) = next else { panic!("no subscribe but {next:?}") };
        let created = SubscribeResult::Accepted { registration: Registration::Created, expires_in_s: 300 };
        self.reply(Reply::Subscribed { request, results: vec![created; items.len()] }).await;
        items
    }

    async fn synced(&mut self) {
        let Some(Request::SyncDone { request }) = self.requests.next().await else { panic!("no sync") };
        self.reply(Reply::Synced { request }).await;
    }

    /// Reads acks until one is this far.
    async fn acked(&mut self, far: impl Fn(Ack) -> bool) -> Ack {
        if self.acks.is_none() {
            self.acks = Some(Incoming::new(self.connection.accept_uni().await.unwrap()));
        }
        let acks = self.acks.as_mut().unwrap();
        loop {
            let ack = acks.next().await.expect("it is acked before the end");
            if far(ack) {
                return ack;
            }
        }
    }

    async fn refuse(&mut self, code: ErrorCode, message: &str) {
        self.reply(Reply::Refused { code, message: message.into() }).await;
        self.connection.close(VarInt::from_u32(code.quic_code()), message.as_bytes());
    }
}

fn position(time: u64) -> Position {
    Position { backend: BackendId(1), lineage: Lineage(1), time, k: 1 }
}

fn at(time: u64) -> Positions {
    [position(time)].into_iter().collect()
}

fn key(id: &str) -> SubscriptionKey {
    SubscriptionKey { tenant: "t".into(), id: id.into() }
}

fn bound(handle: u32, id: &str, live_from: u64) -> Delivery {
    let (handle, key, live_from) = (Handle(handle), key(id), at(live_from));
    Delivery::Bound(Box::new(Bound { handle, key, generation: 1, live_from, leaves: true }))
}

fn entry(seq: u64, time: u64) -> EventEntry {
    EventEntry {
        seq,
        id: position(time),
        operation: Operation::Insert,
        tenant: "t".into(),
        collection: "c".into(),
        document_id: predicate::stored_string_id("d"),
        targets: vec![Target { handle: Handle(1), transition: Transition::Enter, certainty: Certainty::Matched }],
        document: rawdoc! { "_id": "d", "time": time as i64 }.into_bytes(),
    }
}

/// The time of the next item, which must be a change.
async fn time_of_next(gateway: &mut Gateway) -> u64 {
    match gateway.next().await.expect("more is to come").what {
        AppEvent::Change(change) => change.cluster_time(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn connects_subscribes_receives_acks_and_closes() {
    let node = Node::start();
    let builder = node.builder().agent("tests/1");
    let builder = builder.subscription(Subscription::new("t", "c").id("s").filter("a", "==", 1).from(at(5)));
    let (gateway, mut peer) = tokio::join!(builder.connect(), node.welcomed());
    let mut gateway = gateway.unwrap();
    let Hello { gateway: id, token, agent, capabilities } = peer.hello.clone();
    assert_eq!((id.as_str(), token.as_str(), agent.as_str()), ("g-1", "secret", "tests/1"));
    assert!(capabilities.can_verify);

    let items = peer.subscribed().await;
    assert_eq!((items[0].key.id.as_str(), &items[0].positions), ("s", &at(5)));
    assert!(items[0].filters.contains("\"a\""), "{}", items[0].filters);
    peer.deliver(bound(1, "s", 3)).await;
    peer.event(1, 11).await;
    peer.event(2, 12).await;

    assert!(matches!(gateway.next().await.unwrap().what, AppEvent::Live { .. }));
    assert!(gateway.is_live(&key("s")));
    peer.synced().await;
    let AppEvent::Change(change) = gateway.next().await.unwrap().what else { panic!("no change") };
    assert_eq!((change.cluster_time(), change.transition()), (11, Transition::Enter));
    assert_eq!(change.document().unwrap().get_i64("time").unwrap(), 11);
    assert_eq!(gateway.positions_of(&key("s")), Some(at(5)), "not done yet");
    assert_eq!(time_of_next(&mut gateway).await, 12);
    assert_eq!(gateway.positions_of(&key("s")), Some(at(11)), "asking for the next one makes the one before done");
    peer.acked(|ack| ack == Ack { received: 2, done: 1 }).await;

    let status = gateway.status();
    assert_eq!((status.live, status.shards.len(), status.counters.received), (1, 1, 2));
    assert!(status.shards[0].connected);

    let (_, end) = tokio::join!(gateway.close(), peer.connection.closed());
    assert!(matches!(end, ConnectionError::ApplicationClosed(close) if close.error_code == VarInt::from_u32(0)));
}

#[tokio::test]
async fn many_are_taken_at_once_and_done_when_more_is_asked_for() {
    let node = Node::start();
    let (mut gateway, mut peer) = node.live(node.builder()).await;
    peer.deliver(Delivery::Events((1..=5).map(|seq| entry(seq, 10 + seq)).collect())).await;
    while gateway.status().queued_items < 5 {
        tokio::task::yield_now().await;
    }
    let time = |event: &Event| match &event.what {
        AppEvent::Change(change) => change.cluster_time(),
        other => panic!("{other:?}"),
    };
    let mut events = Vec::new();
    assert_eq!(gateway.next_many(&mut events, 3).await, 3);
    assert_eq!(events.iter().map(time).collect::<Vec<_>>(), [11, 12, 13]);
    assert_eq!(gateway.positions_of(&key("s")), Some(at(10)), "none is done yet");
    // One by one they can be done earlier.
    events.remove(0).ack();
    assert_eq!(gateway.positions_of(&key("s")), Some(at(11)));

    // What there is, though there is room for more; it is appended.
    assert_eq!(gateway.next_many(&mut events, 100).await, 2);
    assert_eq!(events.iter().map(time).collect::<Vec<_>>(), [12, 13, 14, 15]);
    assert_eq!(gateway.positions_of(&key("s")), Some(at(13)), "the first three are done, the others are not");
    peer.acked(|ack| ack == Ack { received: 5, done: 3 }).await;

    // Waits for the next, and is done with all before it.
    let (count, ()) = tokio::join!(gateway.next_many(&mut events, 100), async { peer.event(6, 16).await });
    assert_eq!((count, time(&events[4])), (1, 16));
    assert_eq!(gateway.positions_of(&key("s")), Some(at(15)));
    tokio::select! {
        biased;
        next = gateway.next() => panic!("{next:?}"),
        () = std::future::ready(()) => {}
    }
    assert_eq!(gateway.positions_of(&key("s")), Some(at(16)), "asking is enough, whether or not something comes");
    gateway.close().await;
}

#[tokio::test]
async fn many_by_hand_are_done_when_they_are_acked() {
    let node = Node::start();
    let (mut gateway, mut peer) = node.live(node.builder().manual_ack()).await;
    peer.deliver(Delivery::Events((1..=3).map(|seq| entry(seq, 10 + seq)).collect())).await;
    while gateway.status().queued_items < 3 {
        tokio::task::yield_now().await;
    }
    let mut events = Vec::new();
    assert_eq!(gateway.next_many(&mut events, 2).await, 2);
    assert_eq!(gateway.next_many(&mut events, 2).await, 1);
    for (place, done) in [(1, 10), (0, 12), (0, 13)] {
        events.remove(place).ack();
        assert_eq!(gateway.positions_of(&key("s")), Some(at(done)));
    }
    peer.acked(|ack| ack == Ack { received: 3, done: 3 }).await;
}

#[tokio::test]
async fn the_last_ack_arrives_before_the_end() {
    let node = Node::start();
    let (mut gateway, mut peer) = node.live(node.builder().manual_ack()).await;
    peer.event(1, 11).await;
    let event = gateway.next().await.unwrap();
    event.ack();
    assert_eq!(gateway.positions_of(&key("s")), Some(at(11)));
    let (_, ack) = tokio::join!(gateway.close(), peer.acked(|ack| ack.done == 1));
    assert_eq!(ack, Ack { received: 1, done: 1 });
}

#[tokio::test]
async fn goes_on_after_a_lost_connection_without_repeating() {
    let node = Node::start();
    let (mut gateway, mut peer) = node.live(node.builder()).await;
    peer.event(1, 11).await;
    assert_eq!(time_of_next(&mut gateway).await, 11);
    peer.connection.close(VarInt::from_u32(ErrorCode::ShuttingDown.quic_code()), b"restart");

    let mut peer = node.welcomed().await;
    let items = peer.subscribed().await;
    assert_eq!(items[0].positions, at(10), "the application has not asked for more, so 11 is not done");
    peer.synced().await;
    peer.deliver(bound(4, "s", 10)).await;
    let for_handle = |seq, time| EventEntry {
        targets: vec![Target { handle: Handle(4), ..entry(1, 1).targets[0] }],
        ..entry(seq, time)
    };
    peer.deliver(Delivery::Events(vec![for_handle(1, 11), for_handle(2, 12)].into())).await;
    assert!(matches!(gateway.next().await.unwrap().what, AppEvent::Live { .. }));
    assert_eq!(time_of_next(&mut gateway).await, 12);
    let counters = gateway.status().counters;
    assert_eq!((counters.reconnects, counters.duplicates_dropped, counters.received), (1, 1, 3));
}

#[tokio::test]
async fn a_new_process_goes_on_from_what_was_kept() {
    let node = Node::start();
    let (mut gateway, mut peer) = node.live(node.builder()).await;
    peer.event(1, 11).await;
    peer.event(2, 12).await;
    assert_eq!(time_of_next(&mut gateway).await, 11);
    assert_eq!(time_of_next(&mut gateway).await, 12);
    let kept = serde_json::to_string(&gateway.positions()).unwrap();
    drop(gateway);
    assert!(matches!(peer.connection.closed().await, ConnectionError::ApplicationClosed(_)));

    let saved: SavedPositions = serde_json::from_str(&kept).unwrap();
    let (gateway, mut peer) = tokio::join!(node.builder().resume_from(saved).connect(), node.welcomed());
    let gateway = gateway.unwrap();
    gateway.subscribe(Subscription::new("t", "c").id("s")).unwrap();
    assert_eq!(peer.subscribed().await[0].positions, at(11));
}

#[tokio::test]
async fn another_certificate_than_the_pinned_one_is_refused_with_both_fingerprints() {
    let node = Node::start();
    let pinned = "ab".repeat(32);
    let connecting = node.builder().fingerprint(&pinned).connect();
    let accepting = async { node.endpoint.accept().await.unwrap().await };
    let (gateway, accepted) = tokio::join!(connecting, accepting);
    let error = gateway.err().unwrap();
    assert!(matches!(&error, Error::Terminal(TerminalError::Untrusted { .. })), "{error:?}");
    let expect = format!(
        "{} is not trusted: its certificate has the fingerprint {}, pinned is {pinned}",
        node.address,
        node.fingerprint()
    );
    assert_eq!(error.to_string(), expect);
    assert!(accepted.is_err(), "no connection comes about");
}

#[tokio::test]
async fn roots_are_trusted_for_the_name_in_the_certificate() {
    let node = Node::start();
    let builder = node.builder().roots_pem(node.pem.clone());
    let (gateway, _peer) = tokio::join!(builder.clone().server_name("localhost").connect(), node.welcomed());
    gateway.unwrap();

    let other = Node::start();
    for builder in
        [builder.clone().server_name("elsewhere"), builder.roots_pem(other.pem.clone()).server_name("localhost")]
    {
        let accepting = async { node.endpoint.accept().await.unwrap().await };
        let (gateway, accepted) = tokio::join!(builder.connect(), accepting);
        let error = gateway.err().unwrap();
        assert!(matches!(&error, Error::Terminal(TerminalError::Untrusted { .. })), "{error:?}");
        assert!(accepted.is_err());
    }
}

#[tokio::test]
async fn a_refused_token_is_an_error_at_once() {
    for (code, as_reply) in
        [(ErrorCode::Unauthorized, true), (ErrorCode::Unauthorized, false), (ErrorCode::Forbidden, true)]
    {
        let node = Node::start();
        let refusing = async {
            let mut peer = node.greeted().await;
            if as_reply {
                peer.refuse(code, "no such token").await;
            } else {
                peer.connection.close(VarInt::from_u32(code.quic_code()), b"no such token");
            }
            peer
        };
        let (gateway, _peer) = tokio::join!(node.builder().connect(), refusing);
        let error = gateway.err().unwrap().to_string();
        assert!(error.contains("no such token") && error.contains("g-1"), "{error}");
    }
}

#[tokio::test]
async fn being_superseded_is_terminal() {
    for as_reply in [true, false] {
        let node = Node::start();
        let (mut gateway, mut peer) = node.live(node.builder()).await;
        peer.event(1, 11).await;
        assert_eq!(time_of_next(&mut gateway).await, 11);
        if as_reply {
            peer.refuse(ErrorCode::Superseded, "a newer session").await;
        } else {
            peer.connection.close(VarInt::from_u32(ErrorCode::Superseded.quic_code()), b"a newer session");
        }
        assert!(gateway.next().await.is_none());
        let error = gateway.error().unwrap();
        assert!(matches!(&error, TerminalError::Superseded { gateway, .. } if gateway == "g-1"), "{error}");
        assert!(gateway.next().await.is_none());
        let refused = gateway.subscribe(Subscription::new("t", "c"));
        assert_eq!(refused, Err(Error::Terminal(error)));
    }
}

#[tokio::test]
async fn nobody_there_is_an_error_that_says_so() {
    // A port that is taken by somebody who doesn't answer.
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let gateway = Gateway::builder()
        .address(silent.local_addr().unwrap().to_string())
        .gateway("g")
        .fingerprint("00".repeat(32))
        .connect_timeout(Duration::from_millis(200))
        .connect()
        .await;
    assert!(matches!(gateway.err().unwrap(), Error::Unreachable { timeout_ms: 200, .. }));

    let gateway = Gateway::builder()
        .address("nonsense")
        .gateway("g")
        .fingerprint("00".repeat(32))
        .connect_timeout(Duration::from_millis(200))
        .connect()
        .await;
    let error = gateway.err().unwrap().to_string();
    assert!(error.contains("nonsense") && error.contains("host:port"), "{error}");
}

#[tokio::test]
async fn settings_that_can_not_work_are_refused_without_a_connection() {
    let good = || Gateway::builder().address("localhost:1").gateway("g").fingerprint("00".repeat(32));
    for (builder, says) in [
        (Gateway::builder().gateway("g").fingerprint("00".repeat(32)), "no address"),
        (Gateway::builder().address("localhost:1").gateway("g"), "nothing to trust"),
        (good().gateway("a b"), "[a-zA-Z0-9_-]"),
        (good().gateway("x".repeat(129)), "1 to 128"),
        (good().fingerprint("12"), "64 hexadecimal digits"),
        (good().roots_pem("no pem"), "roots"),
        (good().subscription(Subscription::new("t", "c").ttl(1)), "60 to 3600"),
    ] {
        let error = builder.connect().await.err().unwrap();
        assert!(matches!(error, Error::Invalid(_)), "{error:?}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn garbage_ends_the_session_and_not_the_gateway() {
    let node = Node::start();
    let (mut gateway, mut peer) = node.live(node.builder()).await;
    peer.delivery.write_all(&[0xff; 64]).await.unwrap();
    let end = peer.connection.closed().await;
    let code = VarInt::from_u32(ErrorCode::ProtocolViolation.quic_code());
    assert!(matches!(&end, ConnectionError::ApplicationClosed(close) if close.error_code == code), "{end:?}");

    let mut peer = node.welcomed().await;
    peer.subscribed().await;
    peer.synced().await;
    peer.deliver(bound(1, "s", 10)).await;
    // A hole in the row of numbers ends it as well.
    peer.event(2, 12).await;
    let end = peer.connection.closed().await;
    assert!(matches!(&end, ConnectionError::ApplicationClosed(close) if close.error_code == code), "{end:?}");

    let mut peer = node.welcomed().await;
    peer.subscribed().await;
    peer.deliver(bound(1, "s", 10)).await;
    peer.event(1, 11).await;
    for _ in 0..2 {
        assert!(matches!(gateway.next().await.unwrap().what, AppEvent::Live { .. }));
    }
    assert_eq!(time_of_next(&mut gateway).await, 11);
}

#[tokio::test]
async fn a_slow_application_is_felt_by_the_shard_and_by_nothing_else() {
    const EVENTS: u64 = 600;
    const DOCUMENT_BYTES: usize = 64 << 10;
    let queue_bytes_max = 1 << 20;
    let node = Node::start();
    let (mut gateway, peer) = node.live(node.builder().queue_bytes_max(queue_bytes_max)).await;
    let Peer { connection, mut replies, mut requests, mut delivery, .. } = peer;
    // Far more than queue and windows hold.
    let writing = tokio::spawn(async move {
        for seq in 1..=EVENTS {
            let document = rawdoc! { "text": "x".repeat(DOCUMENT_BYTES) }.into_bytes();
            let mut buffer = BytesMut::new();
            let entry = EventEntry { document, ..entry(seq, 10 + seq) };
            wire::encode_delivery(&Delivery::Events(vec![entry].into()), &mut buffer);
            delivery.write_chunk(buffer.freeze()).await.unwrap();
        }
        delivery
    });
    while gateway.status().shards[0].queued_bytes < queue_bytes_max {
        tokio::task::yield_now().await;
    }
    // Requests go through while nothing is read.
    gateway.subscribe(Subscription::new("t", "other").id("z")).unwrap();
    let Some(Request::Subscribe { request, .. }) = requests.next().await else { panic!("no subscribe") };
    let rejected = SubscribeResult::Rejected { code: ErrorCode::GatewayQuotaExceeded, message: "full".into() };
    let mut buffer = BytesMut::new();
    wire::encode_reply(&Reply::Subscribed { request, results: vec![rejected] }, &mut buffer);
    replies.write_chunk(buffer.freeze()).await.unwrap();
    let queued = gateway.status().shards[0].queued_bytes;
    assert!(queued < queue_bytes_max + (512 << 10), "{queued} bytes are queued");
    assert!(!writing.is_finished(), "the shard can't have written all");

    let mut times = Vec::new();
    let mut rejections = 0;
    while times.len() < EVENTS as usize {
        match gateway.next().await.unwrap().what {
            AppEvent::Change(change) => times.push(change.cluster_time()),
            AppEvent::Rejected { subscription, .. } => {
                assert_eq!(subscription.id, "z");
                rejections += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(times.into_iter().eq(11..=10 + EVENTS));
    assert_eq!(rejections, 1);
    drop((writing.await.unwrap(), connection));
}

#[tokio::test]
async fn a_message_larger_than_queue_and_window_comes_through() {
    let node = Node::start();
    let (mut gateway, mut peer) = node.live(node.builder().queue_bytes_max(1)).await;
    let document = rawdoc! { "text": "x".repeat(12 << 20) }.into_bytes();
    let writing = async {
        peer.deliver(Delivery::Events(vec![EventEntry { document, ..entry(1, 11) }].into())).await;
        peer.event(2, 12).await;
    };
    let reading = async {
        assert_eq!(time_of_next(&mut gateway).await, 11);
        assert_eq!(time_of_next(&mut gateway).await, 12);
    };
    tokio::join!(writing, reading);
}
