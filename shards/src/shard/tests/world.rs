//! The world around a shard: an ingest thread, a control side and Gateways, as plain as can be.

use std::collections::BTreeMap;
use std::sync::Arc;

use bson::{RawDocumentBuf, rawdoc};
use bytes::BytesMut;
use predicate::{Mapping, Predicate, Source, stored_string_id};
use wire::*;

use crate::*;

pub(super) const BACKEND: BackendId = BackendId(1);
pub(super) const LINEAGE: Lineage = Lineage(1);

pub(super) fn position(time: u64) -> Position {
    Position { backend: BACKEND, lineage: LINEAGE, time, k: 1 }
}

/// A second source, for worlds that are made with it.
pub(super) const OTHER: BackendId = BackendId(2);

pub(super) fn positions(time: u64) -> Positions {
    [position(time)].into_iter().collect()
}

/// A subscription of tenant `t` to collection `c` and documents with this field `a`; all of them for an empty text.
pub(super) fn item(id: &str, a: &str) -> SubscribeItem {
    let filters = if a.is_empty() { String::new() } else { format!(r#"[{{"field":"a","op":"==","value":"{a}"}}]"#) };
    SubscribeItem { filters, ..SubscribeItem::new(SubscriptionKey { tenant: "t".into(), id: id.into() }, "c") }
}

/// What a Gateway sees, with its own names for handles, as short text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen(pub(super) Vec<String>);

pub(super) struct World {
    pub(super) shard: Shard,
    pub(super) now: u64,
    /// Of the last thing that [`BACKEND`] had, and that [`OTHER`] had.
    pub(super) time: u64,
    pub(super) other_time: u64,
    /// All that the sources had.
    pub(super) history: Vec<FromIngest>,
    /// The last pass of each, and up to where it is.
    pub(super) passes: BTreeMap<BackendId, (u64, u64)>,
    backends: Vec<BackendId>,
    /// Whether the control side answers at once.
    pub(super) admits: bool,
    pub(super) asked: Vec<(Ticket, Vec<SubscribeItem>)>,
    pub(super) replies: Vec<(ConnectionId, Reply)>,
    pub(super) closed: Vec<(ConnectionId, ErrorCode)>,
    pub(super) released: Vec<String>,
    pub(super) commanded: Vec<CommandReply>,
    pub(super) ready: Vec<ConnectionId>,
    gateways: BTreeMap<ConnectionId, Gateway>,
    mapping: Arc<Mapping>,
    last_connection: u64,
    pub(super) fill_bytes: usize,
    /// Whether the shard's work is done with each input.
    pub(super) works: bool,
    /// Whether the shard's invariants are checked after each input, which walks over everything.
    pub(super) checks: bool,
}

#[derive(Default)]
struct Gateway {
    decoder: Option<Decoder<Delivery>>,
    names: BTreeMap<Handle, String>,
    last_seq: u64,
    /// The `seq` of each line of the last fill.
    seqs: Vec<u64>,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(super) fn with(change: impl FnOnce(&mut ShardConfig)) -> Self {
        let shards = vec![ShardAddress { partition: 0, address: "127.0.0.1:7400".into() }];
        let mut config = ShardConfig::new(0, SlotTable { shards: 1 }, shards, Epoch(1));
        config.mapping = Arc::new(Mapping::Plain);
        config.backends = vec![BackendConfig { id: BACKEND, before_images: false }];
        change(&mut config);
        let mapping = config.mapping.clone();
        let backends = config.backends.iter().map(|backend| backend.id).collect();
        Self {
            shard: Shard::new(config, Millis(0)),
            now: 0,
            time: 0,
            other_time: 0,
            history: Vec::new(),
            passes: BTreeMap::new(),
            backends,
            admits: true,
            asked: Vec::new(),
            replies: Vec::new(),
            closed: Vec::new(),
            released: Vec::new(),
            commanded: Vec::new(),
            ready: Vec::new(),
            gateways: BTreeMap::new(),
            mapping,
            last_connection: 0,
            fill_bytes: 64 * 1024,
            works: true,
            checks: true,
        }
    }

    pub(super) fn input(&mut self, input: Input) {
        let mut out = Vec::new();
        self.shard.handle(input, Millis(self.now), &mut out);
        self.check();
        // Where it is not for a test to say when, all that waits is worked off at once.
        while self.works && self.shard.work(Millis(self.now), &mut out) {
            self.check();
        }
        self.take(out);
    }

    /// One slice of the work that waits.
    pub(super) fn work(&mut self) -> bool {
        let mut out = Vec::new();
        let more = self.shard.work(Millis(self.now), &mut out);
        self.take(out);
        more
    }

    /// All the work that waits, and all answers of the control side.
    pub(super) fn finish(&mut self) {
        while self.work() {
            self.check();
        }
    }

    fn check(&self) {
        if self.checks {
            self.shard.check_invariants();
        }
    }

    fn take(&mut self, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Reply { connection, reply } => self.replies.push((connection, reply)),
                Output::Close { connection, code, .. } => self.closed.push((connection, code)),
                Output::Admit { ticket, items, .. } => self.asked.push((ticket, items)),
                Output::Released { keys, .. } => self.released.extend(keys.into_iter().map(|key| key.id)),
                Output::Commanded { reply, .. } => self.commanded.push(reply),
                Output::Ready { connection } => self.ready.push(connection),
            }
        }
        while self.admits && !self.asked.is_empty() {
            self.admit_one();
        }
    }

    /// Answers the oldest question of the shard.
    pub(super) fn admit_one(&mut self) {
        let (ticket, items) = self.asked.remove(0);
        let results = items.iter().map(|item| self.compile(item)).collect();
        self.input(Input::Admitted { ticket, results });
    }

    fn compile(&self, item: &SubscribeItem) -> Result<Admission, Refusal> {
        Predicate::compile(Source { filters: &item.filters, expr: &item.expr }, &self.mapping)
            .map(|predicate| Admission { predicate: Arc::new(predicate) })
            .map_err(|error| Refusal { code: ErrorCode::InvalidFilter, message: error.to_string() })
    }

    /// The ingest thread routes by the newest filter from here on.
    pub(super) fn seen(&mut self) {
        let _ = self.shard.take_filter();
        let version = self.shard.stats().filter_version;
        let positions = self.backends.iter().map(|backend| self.now_of(*backend)).collect();
        self.input(Input::Ingest(FromIngest::FilterSeen { version, positions }));
    }

    pub(super) fn hello(&mut self, gateway: &str) -> ConnectionId {
        self.last_connection += 1;
        let connection = ConnectionId(self.last_connection);
        let state = Gateway { decoder: Some(Decoder::new(MAX_BODY_BYTES)), ..Gateway::default() };
        self.gateways.insert(connection, state);
        self.input(Input::Hello { connection, gateway: gateway.into(), can_verify: true });
        connection
    }

    pub(super) fn request(&mut self, connection: ConnectionId, request: Request) {
        self.input(Input::Request { connection, request });
    }

    pub(super) fn subscribe(&mut self, connection: ConnectionId, items: Vec<SubscribeItem>) {
        self.request(connection, Request::Subscribe { request: RequestId(1), items });
    }

    pub(super) fn sync_done(&mut self, connection: ConnectionId) {
        self.request(connection, Request::SyncDone { request: RequestId(2) });
    }

    pub(super) fn unsubscribe(&mut self, connection: ConnectionId, id: &str) {
        let keys = vec![item(id, "").key];
        self.request(connection, Request::Unsubscribe { request: RequestId(3), keys });
    }

    /// A Gateway with one live subscription to the whole collection, whose binding it has seen.
    pub(super) fn watching(&mut self, gateway: &str, ids: &[&str]) -> ConnectionId {
        let connection = self.hello(gateway);
        self.subscribe(connection, ids.iter().map(|id| item(id, "")).collect());
        self.sync_done(connection);
        self.seen();
        self.pump(connection);
        connection
    }

    pub(super) fn ack(&mut self, connection: ConnectionId, received: u64, done: u64) {
        self.input(Input::Ack { connection, ack: Ack { received, done } });
    }

    /// Acks all that was sent as done.
    pub(super) fn done(&mut self, connection: ConnectionId) {
        let last = self.gateways[&connection].last_seq;
        self.ack(connection, last, last);
    }

    pub(super) fn disconnect(&mut self, connection: ConnectionId) {
        self.input(Input::Disconnected { connection });
    }

    pub(super) fn tick(&mut self, ms: u64) {
        self.now += ms;
        self.input(Input::Tick);
    }

    /// Lets time pass as it does: with ticks.
    pub(super) fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 1_000 {
            self.tick(1_000);
        }
    }

    pub(super) fn command(&mut self, gateway: &str, what: CommandKind) -> CommandReply {
        self.input(Input::Command(Command { id: CommandId(1), gateway: gateway.into(), what }));
        self.commanded.pop().expect("every command is answered at once")
    }

    pub(super) fn register(&mut self, gateway: &str, item: SubscribeItem) -> CommandReply {
        let admission = self.compile(&item).expect("it compiles");
        self.command(gateway, CommandKind::Register { item, admission })
    }

    pub(super) fn now_of(&self, backend: BackendId) -> Position {
        Position { backend, ..position(if backend == OTHER { self.other_time } else { self.time }) }
    }

    /// The next thing that a source has. `time` has been moved.
    pub(super) fn live(&mut self, item: FromIngest) {
        self.history.push(item.clone());
        self.input(Input::Ingest(item));
    }

    pub(super) fn catch_up(&mut self, item: CatchUp) {
        self.input(Input::Ingest(FromIngest::CatchUp(item)));
    }

    /// A pass of a backend begins at this time.
    pub(super) fn begin(&mut self, backend: BackendId, time: u64) {
        let (last, at) = self.passes.entry(backend).or_default();
        *last += 1;
        *at = time;
        let from = Position { backend, ..position(time) };
        let began = CatchUp::Began { pass: *last, from };
        self.catch_up(began);
    }

    /// The next thing of the backend's history, if its pass hasn't come to the end.
    pub(super) fn bring(&mut self, backend: BackendId) -> bool {
        let (pass, at) = self.passes[&backend];
        let of = |item: &FromIngest| match item {
            FromIngest::Change(change) => change.position,
            FromIngest::Gap(gap) => gap.position,
            _ => unreachable!("only what has a position is history"),
        };
        let next = self.history.iter().find(|item| of(item).backend == backend && of(item).time > at).cloned();
        let Some(next) = next else { return false };
        self.passes.insert(backend, (pass, of(&next).time));
        self.catch_up(match next {
            FromIngest::Change(change) => CatchUp::Change { pass, change },
            FromIngest::Gap(gap) => CatchUp::Gap { pass, gap },
            _ => unreachable!("only what has a position is history"),
        });
        true
    }

    /// The pass brings all that is left, and meets the live stream.
    pub(super) fn merge(&mut self, backend: BackendId) {
        while self.bring(backend) {}
        let position = self.now_of(backend);
        self.catch_up(CatchUp::CaughtUp { pass: self.passes[&backend].0, position });
    }

    /// A whole pass of [`BACKEND`], from where one is wanted.
    pub(super) fn catch_all_up(&mut self) {
        self.begin(BACKEND, self.wanted().expect("somebody waits"));
        self.merge(BACKEND);
    }

    /// The same, while this connection takes all and is done with it. What it sees.
    pub(super) fn catch_up_with(&mut self, connection: ConnectionId) -> Vec<String> {
        let mut seen = Vec::new();
        self.begin(BACKEND, self.wanted().expect("somebody waits"));
        while self.bring(BACKEND) {
            seen.extend(self.pump(connection).0);
            self.done(connection);
        }
        self.merge(BACKEND);
        seen.extend(self.pump(connection).0);
        seen
    }

    pub(super) fn fail(&mut self, backend: BackendId, failure: CatchUpFailure) {
        self.catch_up(CatchUp::Failed { pass: self.passes[&backend].0, backend, failure });
    }

    /// The time before everything that a pass of [`BACKEND`] is to bring.
    pub(super) fn wanted(&self) -> Option<u64> {
        self.wanted_of(BACKEND)
    }

    pub(super) fn wanted_of(&self, backend: BackendId) -> Option<u64> {
        let wanted = self.shard.catch_up_wanted().lowest.get(backend).copied()?;
        // Events have a `k` of 1: the place before one is after all of the time before.
        Some(if wanted.k == 0 { wanted.time - 1 } else { wanted.time })
    }

    /// How many a pass of [`BACKEND`] serves.
    pub(super) fn serving(&self) -> u64 {
        self.shard.catch_up_wanted().serving.first().map_or(0, |(_, _, count)| *count)
    }

    /// The next change: a document with this id and field `a` was inserted.
    pub(super) fn insert(&mut self, id: &str, a: &str) {
        self.change(Operation::Insert, id, None, Some(a));
    }

    pub(super) fn update(&mut self, id: &str, before: Option<&str>, a: &str) {
        self.change(Operation::Update, id, before, Some(a));
    }

    pub(super) fn delete(&mut self, id: &str, before: Option<&str>) {
        self.change(Operation::Delete, id, before, None);
    }

    /// The document is gone, and nothing but its tenant is known.
    pub(super) fn delete_bare(&mut self, id: &str) {
        self.time += 1;
        let change = Change::copied(NewChange {
            position: position(self.time),
            operation: Operation::Delete,
            key: stored_string_id(id).into(),
            document_id: None,
            before: None,
            after: None,
            bare: Some(Bare { tenant: Some("t"), collection: None }),
        });
        self.live(FromIngest::Change(Arc::new(change)));
    }

    fn change(&mut self, operation: Operation, id: &str, before: Option<&str>, after: Option<&str>) {
        self.change_of(BACKEND, operation, id, before, after);
    }

    pub(super) fn change_of(
        &mut self,
        backend: BackendId,
        operation: Operation,
        id: &str,
        before: Option<&str>,
        after: Option<&str>,
    ) {
        *if backend == OTHER { &mut self.other_time } else { &mut self.time } += 1;
        let position = self.now_of(backend);
        let key = stored_string_id(id).into();
        let [before, after] = [before, after].map(|a| a.map(|a| document(id, a)));
        let bare = (before.is_none() && after.is_none()).then_some(Bare { tenant: Some("t"), collection: Some("c") });
        let (before, after) = (before.as_ref().map(image), after.as_ref().map(image));
        let change = Change::copied(NewChange { position, operation, key, document_id: None, before, after, bare });
        self.live(FromIngest::Change(Arc::new(change)));
    }

    pub(super) fn gap(&mut self, scope: Scope) {
        self.gap_of([scope]);
    }

    pub(super) fn gap_of(&mut self, scopes: impl IntoIterator<Item = Scope>) {
        self.time += 1;
        let scopes = scopes.into_iter().collect();
        let gap = Gap { position: position(self.time), scopes, reason: GapReason::Dropped };
        self.live(FromIngest::Gap(Arc::new(gap)));
    }

    pub(super) fn progress(&mut self) {
        self.time += 1;
        self.input(Input::Ingest(FromIngest::Progress(position(self.time))));
    }

    /// The time up to which all is settled.
    pub(super) fn settled(&self) -> Option<u64> {
        self.shard.settled().get(BACKEND).map(|position| position.time)
    }

    /// All that waits for this connection, decoded and told in short.
    pub(super) fn pump(&mut self, connection: ConnectionId) -> Seen {
        let mut all = Vec::new();
        loop {
            let (count, seen) = self.fill(connection);
            all.extend(seen.0);
            if count == 0 {
                return Seen(all);
            }
        }
    }

    /// What one call of `fill` writes.
    pub(super) fn fill(&mut self, connection: ConnectionId) -> (usize, Seen) {
        let mut buffer = BytesMut::new();
        let count = self.shard.fill(connection, Millis(self.now), self.fill_bytes, &mut buffer);
        self.check();
        assert_eq!(count, buffer.len());
        if count == 0 {
            self.ready.retain(|ready| *ready != connection);
        }
        let gateway = self.gateways.get_mut(&connection).expect("it said hello");
        let mut decoder = gateway.decoder.take().expect("made at hello");
        decoder.feed(&buffer);
        let mut seen = Vec::new();
        gateway.seqs.clear();
        while let Some(message) = decoder.next().expect("what a shard writes can be decoded") {
            gateway.see(message, &mut seen);
            gateway.seqs.resize(seen.len(), gateway.last_seq);
        }
        gateway.decoder = Some(decoder);
        (count, Seen(seen))
    }

    pub(super) fn seqs_of_last_fill(&self, connection: ConnectionId) -> Vec<u64> {
        self.gateways[&connection].seqs.clone()
    }

    pub(super) fn last_seq(&self, connection: ConnectionId) -> u64 {
        self.gateways[&connection].last_seq
    }
}

impl Gateway {
    fn take_seq(&mut self, seq: u64) {
        assert_eq!(seq, self.last_seq + 1, "seq counts 1, 2, 3 …");
        self.last_seq = seq;
    }

    fn see(&mut self, message: Delivery, seen: &mut Vec<String>) {
        let time = |positions: &Positions| {
            let time = positions.get(BACKEND).map_or("none".into(), |p| p.time.to_string());
            positions.get(OTHER).map_or(time.clone(), |other| format!("{time} other {}", other.time))
        };
        if let Delivery::Gap { seq, .. } | Delivery::Resync { seq, .. } = &message {
            self.take_seq(*seq);
        }
        match message {
            Delivery::Events(entries) => {
                assert!(!entries.is_empty() && entries.len() <= 100);
                for entry in entries.iter() {
                    self.seqs.resize(seen.len(), self.last_seq);
                    self.take_seq(entry.seq);
                    for &Target { handle, transition, certainty } in entry.targets {
                        let name = &self.names[&handle];
                        let what = match transition {
                            Transition::Enter => "enter",
                            Transition::Update => "update",
                            Transition::Leave => "leave",
                        };
                        let sure = if certainty == Certainty::Matched { "" } else { "?" };
                        let of = if entry.id.backend == OTHER { "other " } else { "" };
                        seen.push(format!("{name} {what}{sure} {of}{}", entry.id.time));
                    }
                }
            }
            Delivery::Bound(bound) => {
                let new = self.names.insert(bound.handle, bound.key.id.clone()).is_none();
                assert!(new, "handles are never used twice");
                seen.push(format!("bound {} from {}", bound.key.id, time(&bound.live_from)));
            }
            Delivery::Heartbeat { last_seq, positions } => {
                assert_eq!(last_seq, self.last_seq);
                seen.push(format!("heartbeat {}", time(&positions)));
            }
            Delivery::Gap { position, handles, .. } => {
                for handle in handles {
                    seen.push(format!("{} gap {}", self.names[&handle], position.time));
                }
            }
            Delivery::Resync { handle, reason, live_from, .. } => {
                seen.push(format!("{} resync {reason:?} from {}", self.names[&handle], time(&live_from)));
            }
            Delivery::CatchingUp { handles } => {
                seen.extend(handles.iter().map(|handle| format!("{} catching up", self.names[handle])));
            }
            Delivery::CaughtUp { handles } => {
                seen.extend(handles.iter().map(|handle| format!("{} caught up", self.names[handle])));
            }
            Delivery::Closed { handle, reason } => seen.push(format!("{} closed {reason:?}", self.names[&handle])),
            Delivery::GoAway { within_ms, .. } => seen.push(format!("go away {within_ms}")),
        }
    }
}

impl Seen {
    #[track_caller]
    pub(super) fn is(&self, expected: &[&str]) {
        assert_eq!(self.0, expected);
    }
}

fn image(document: &RawDocumentBuf) -> Image<'_> {
    Image::new("t", "c", document.as_bytes())
}

fn document(id: &str, a: &str) -> RawDocumentBuf {
    rawdoc! { "_id": id, "a": a }
}
