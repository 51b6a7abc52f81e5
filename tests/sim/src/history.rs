//! The source: change events in order, read through cursors, which looks documents up and forgets its beginning.

use std::{collections::HashMap, rc::Rc, sync::LazyLock};

use bson::{Bson, doc};
use bytes::Bytes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use streamer::ingest::source::{ResumeToken, Start};
use wire::{BackendId, EventId, GapReason, Lineage};

use crate::{
    expected::{Expected, Order},
    workload::{Workload, Written},
};

/// The backend's name in the checkpoint.
pub(crate) const NAME: &str = "sim";
pub(crate) static BACKEND: LazyLock<BackendId> = LazyLock::new(|| BackendId::of_name(NAME));
pub(crate) const LINEAGE: Lineage = Lineage(0x1A);

/// Cluster time of the place before the first event.
const BEGINNING: u64 = 1;

struct Event {
    written: Rc<Written>,
    read_in_time: bool,
    /// As it was read with something looked up late.
    late: Vec<Bytes>,
}

/// The source no longer has what comes next.
#[derive(Debug)]
pub(crate) struct Lost;

pub(crate) struct History {
    workload: Rc<Workload>,
    transactions: usize,
    events: Vec<Event>,
    by_token: HashMap<Bytes, usize>,
    pub(crate) expected: Expected,
    random: ChaCha8Rng,
    /// Odds of a look-up that comes late, out of 10,000.
    late: u32,
    pub(crate) late_lookups: u64,
    /// Events before this one are forgotten.
    forgotten: usize,
    drops: u64,
    /// Nothing more happens at the cluster time of what happened last.
    is_over: bool,
}

impl History {
    pub(crate) fn new(workload: Rc<Workload>, seed: u64, late: u32) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(104);
        Self {
            transactions: 0,
            events: Vec::new(),
            by_token: HashMap::new(),
            expected: Expected::new(workload.subscriptions.len()),
            workload,
            random,
            late,
            late_lookups: 0,
            forgotten: 0,
            drops: 0,
            is_over: false,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    /// Where the last event stands.
    pub(crate) fn end(&self) -> Order {
        self.events.last().map_or((BEGINNING, 0), |event| event.written.id.order())
    }

    /// One more transaction happens.
    pub(crate) fn write(&mut self) {
        let events = self.workload.transaction(self.transactions);
        self.transactions += 1;
        events.into_iter().for_each(|written| self.push(written));
    }

    /// A collection is dropped, at the cluster time of what happened last. All of them lie in one, so everybody is concerned.
    pub(crate) fn drop_collection(&mut self) {
        let Some(last) = self.events.last().map(|event| &event.written) else { return };
        self.drops += 1;
        let document = doc! {
            "_id": { "_data": format!("drop {}", self.drops) },
            "operationType": "drop",
            "clusterTime": last.document.get_timestamp("clusterTime").expect("every event has a cluster time"),
            "ns": { "db": "syntrix", "coll": "other" },
        };
        let id = EventId { k: last.id.k + 1, ..last.id };
        let bytes = document.to_vec().expect("a document is BSON");
        self.push(Rc::new(Written::new(document, bytes, id)));
        self.expected.gap(id, GapReason::Dropped);
    }

    fn push(&mut self, written: Rc<Written>) {
        self.by_token.insert(written.token.clone(), self.events.len());
        self.events.push(Event { written, read_in_time: false, late: Vec::new() });
    }

    /// Opens a cursor: the index of the first event that it yields, and the `(time, k)` after which that is.
    pub(crate) fn open(&self, start: &Start) -> Result<(usize, Order), Lost> {
        let (index, after) = match start {
            Start::After { position, token } => {
                let index = self.by_token.get(&token.0).expect("a token that was handed out is known");
                let id = self.events[*index].written.id;
                assert_eq!(id, *position, "a token stands for the position that it was kept with");
                (index + 1, position.order())
            }
            Start::At { time } => (self.events.partition_point(|event| event.written.id.time < *time), (*time, 0)),
            Start::Now => return Ok((self.events.len(), self.end())),
        };
        // A cursor goes on after an event that is still there.
        if index < self.forgotten { Err(Lost) } else { Ok((index, after)) }
    }

    /// Forgets all but the latest `kept` events.
    pub(crate) fn forget(&mut self, kept: usize) {
        self.forgotten = self.forgotten.max(self.events.len().saturating_sub(kept));
    }

    /// Nothing more happens, and the source's clock goes on.
    pub(crate) fn end_it(&mut self) {
        self.is_over = true;
    }

    /// The cluster time that a cursor has come past which has read everything.
    pub(crate) fn passed(&self) -> u64 {
        self.end().0 + u64::from(self.is_over)
    }

    /// Whether it has forgotten anything.
    pub(crate) fn has_forgotten(&self) -> bool {
        self.forgotten > 0
    }

    /// Events of a cursor that stands at `from`, at most `max`, and the token after them.
    pub(crate) fn read(&mut self, from: usize, max: usize, out: &mut Vec<Bytes>) -> Option<ResumeToken> {
        let to = (from + max).min(self.events.len());
        for index in from..to {
            out.push(self.read_one(index));
        }
        self.events[..to].last().map(|event| ResumeToken(event.written.token.clone()))
    }

    fn read_one(&mut self, index: usize) -> Bytes {
        let written = self.events[index].written.clone();
        let looks_up = || written.document.get_str("operationType").is_ok_and(|operation| operation == "update");
        if self.late > 0 && looks_up() && self.random.random_ratio(self.late, 10_000) {
            let found = self.look_up(index);
            if written.document.get("fullDocument") != Some(&found) {
                self.late_lookups += 1;
                let mut document = written.document.clone();
                document.insert("fullDocument", found);
                let bytes = Bytes::from(document.to_vec().expect("a document is BSON"));
                let event = &mut self.events[index];
                if !event.late.contains(&bytes) {
                    event.late.push(bytes.clone());
                    self.expected.read(index, written.id, &self.workload.due_of(&document, written.id));
                }
                return bytes;
            }
        }
        if !std::mem::replace(&mut self.events[index].read_in_time, true) {
            self.expected.read(index, written.id, self.workload.due(&written));
        }
        written.bytes.clone()
    }

    /// The document of an event as it is now.
    fn look_up(&self, index: usize) -> Bson {
        let key = |event: &Event| event.written.document.get("documentKey").cloned();
        let wanted = key(&self.events[index]);
        let last = self.events[index..].iter().rfind(|event| key(event) == wanted);
        last.and_then(|event| event.written.document.get("fullDocument").cloned()).unwrap_or(Bson::Null)
    }
}
