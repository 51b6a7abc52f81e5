//! One shard thread as a node would start it, with the test in the place of ingest and control.

use std::{net::UdpSocket, sync::Arc};

use predicate::{Mapping, Predicate, Source};
use wire::{BackendId, Epoch, ErrorCode, Hello, Lineage, Operation, Position, Positions, ShardAddress, SlotTable};

use crate::{
    Admission, BackendConfig, Change, Command, FromIngest, Image, NewChange, Refusal, ShardConfig,
    driver::{
        AdmissionAnswer, AuthorizedGateway, CellSignal, FilterBuilder, FromShard, QuicConfig, RingProducer,
        RuntimeChoice, ShardHandle, ShardThread, ShardThreadConfig, core::Core, thread,
    },
};

pub(super) const TOKEN: &str = "open sesame";
pub(super) const RUNTIMES: [RuntimeChoice; 2] = [RuntimeChoice::Glommio, RuntimeChoice::Tokio];
const BACKEND: BackendId = BackendId(7);
const LINEAGE: Lineage = Lineage(9);

pub(super) struct Node {
    pub(super) handle: ShardHandle,
    pub(super) ring: RingProducer<FromIngest>,
    pub(super) signal: Arc<CellSignal>,
    pub(super) commands: flume::Sender<Command>,
    pub(super) admissions: flume::Sender<AdmissionAnswer>,
    pub(super) from_shard: flume::Receiver<FromShard>,
    pub(super) certificate: rustls::pki_types::CertificateDer<'static>,
}

/// What a test may set; the rest is the same for all.
pub(super) struct Options {
    pub(super) runtime: RuntimeChoice,
    pub(super) core: usize,
    pub(super) socket: UdpSocket,
    pub(super) quic: QuicConfig,
}

impl Options {
    pub(super) fn new(runtime: RuntimeChoice) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        // Buffers that need no privilege, so that a test's output has no warnings.
        let quic = QuicConfig {
            socket_receive_bytes: 100_000,
            socket_send_bytes: 100_000,
            flush_timeout_ms: 300,
            ..QuicConfig::default()
        };
        Self { runtime, core: allowed_core(), socket, quic }
    }
}

/// The last core that this process may use: not the one where everything else runs, if there are two.
pub(super) fn allowed_core() -> usize {
    core_affinity::get_core_ids().unwrap().last().unwrap().id
}

pub(super) fn start(runtime: RuntimeChoice) -> Node {
    start_with(Options::new(runtime), |config, _| ShardThread::spawn(config))
}

pub(super) fn start_core<C: Core>(options: Options, make: impl FnOnce() -> C + Send + 'static) -> Node {
    start_with(options, |config, identity| thread::spawn_core(config, identity, |_| make()))
}

pub(super) fn start_with(
    options: Options,
    spawn: impl FnOnce(
        ShardThreadConfig,
        thread::Identity,
    ) -> Result<(RingProducer<FromIngest>, ShardHandle), crate::driver::StartError>,
) -> Node {
    let (config, others) = thread_config(options);
    let identity = thread::Identity { partition: 0, body_bytes_max: config.shard.body_bytes_max as usize };
    let (ring, handle) = spawn(config, identity).unwrap();
    let Others { signal, commands, admissions, from_shard, certificate } = others;
    Node { handle, ring, signal, commands, admissions, from_shard, certificate }
}

pub(super) struct Others {
    signal: Arc<CellSignal>,
    commands: flume::Sender<Command>,
    admissions: flume::Sender<AdmissionAnswer>,
    from_shard: flume::Receiver<FromShard>,
    certificate: rustls::pki_types::CertificateDer<'static>,
}

pub(super) fn thread_config(options: Options) -> (ShardThreadConfig, Others) {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = key.cert.der().clone();
    let private = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], private)
        .unwrap();
    let local = options.socket.local_addr().unwrap();
    let mut shard = ShardConfig::new(
        0,
        SlotTable { shards: 1 },
        vec![ShardAddress { partition: 0, address: local.to_string() }],
        Epoch(42),
    );
    shard.backends = vec![BackendConfig { id: BACKEND, before_images: true }];
    shard.mapping = Arc::new(Mapping::Plain);
    shard.mapping_name = "plain".into();
    let signal = Arc::new(CellSignal::default());
    let (commands, commands_in) = flume::bounded(16);
    let (admissions, admissions_in) = flume::bounded(16);
    let (to_control, from_shard) = flume::bounded(2);
    let config = ShardThreadConfig {
        samples: None,
        shard,
        name: "shard-under-test".into(),
        core: options.core,
        runtime: options.runtime,
        executors: 1,
        socket: options.socket,
        tls: Arc::new(tls),
        quic: options.quic,
        authenticator: Arc::new(authenticate),
        ring_capacity: 64,
        signal: Arc::clone(&signal),
        commands: commands_in,
        admissions: admissions_in,
        to_control,
        filter_builder: FilterBuilder::spawn().unwrap(),
    };
    (config, Others { signal, commands, admissions, from_shard, certificate })
}

fn authenticate(hello: &Hello) -> Result<AuthorizedGateway, Refusal> {
    if hello.token == TOKEN {
        Ok(AuthorizedGateway { gateway: hello.gateway.clone() })
    } else {
        Err(Refusal { code: ErrorCode::Unauthorized, message: "the token is not one of this node's".into() })
    }
}

impl Node {
    /// Answers one request for admission: every item may come in.
    pub(super) async fn admit(&self) -> usize {
        loop {
            match self.from_shard.recv_async().await.unwrap() {
                FromShard::Admit { ticket, items, .. } => {
                    let results: Vec<_> = items
                        .iter()
                        .map(|item| {
                            let source = Source { filters: &item.filters, expr: &item.expr };
                            let predicate = Predicate::compile(source, &Mapping::Plain).unwrap();
                            Ok(Admission { predicate: Arc::new(predicate) })
                        })
                        .collect();
                    let count = results.len();
                    self.admissions.send_async((ticket, results)).await.unwrap();
                    return count;
                }
                FromShard::Released { .. } | FromShard::Commanded { .. } => {}
            }
        }
    }

    /// Does what the ingest thread does with a new filter: from here on it routes by it.
    pub(super) async fn see_filter(&mut self, positions: Positions) {
        loop {
            let version = self.handle.cells().filter().version;
            if version > 0 {
                self.ring.push(FromIngest::FilterSeen { version, positions }).await.unwrap();
                return;
            }
            self.signal.changed().await;
        }
    }

    pub(super) async fn settled_at(&self, position: &Position) {
        while !self.handle.cells().settled().covers(position) {
            self.signal.changed().await;
        }
    }

    /// The session's end takes a moment to arrive.
    pub(super) async fn until_no_sessions(&self) {
        loop {
            let driver = self.handle.cells().stats().driver;
            if driver.sessions == 0 && driver.newcomers == 0 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    pub(super) fn stop(self) {
        self.handle.stop();
        self.handle.join().unwrap();
    }
}

pub(super) fn at(time: u64) -> Position {
    Position { backend: BACKEND, lineage: LINEAGE, time, k: 1 }
}

pub(super) fn before(time: u64) -> Positions {
    [Position { k: 0, ..at(time) }].into_iter().collect()
}

/// An insert of `{_id: number}` into the collection `c` of the tenant `t`.
pub(super) fn insert(position: Position, number: i32) -> Arc<Change> {
    let document = bson::serialize_to_raw_document_buf(&bson::doc! { "_id": number }).unwrap();
    let mut key = vec![bson::spec::ElementType::Int32 as u8];
    key.extend_from_slice(&number.to_le_bytes());
    Arc::new(Change::copied(NewChange {
        position,
        operation: Operation::Insert,
        key: key.into(),
        document_id: None,
        before: None,
        after: Some(Image::new("t", "c", document.as_bytes())),
        bare: None,
    }))
}
