//! The source: change events in order, read through cursors, and what the oracle makes of them.

use std::collections::HashMap;

use bson::Document;
use bytes::Bytes;
use streamer::ingest::source::{ResumeToken, Start};
use wire::{BackendId, EventId, Lineage, Position, Positions, SubscriptionKey, Transition};
use workload::{
    EventFactory, EventOptions, Generator, Oracle, OracleChange, Preset, Writer, generate::Schedule, oracle::Numbering,
};

pub(crate) const BACKEND: BackendId = BackendId(0x51);
pub(crate) const LINEAGE: Lineage = Lineage(0x1A);

/// Cluster time of the place before the first event.
const BEGINNING: u64 = 1;

pub(crate) struct Event {
    pub(crate) bytes: Bytes,
    token: Bytes,
    id: EventId,
}

pub(crate) struct History {
    factory: EventFactory,
    writer: Writer,
    schedule: Schedule,
    numbering: Numbering,
    events: Vec<Event>,
    by_token: HashMap<Bytes, usize>,
    changes: Vec<OracleChange>,
}

impl History {
    pub(crate) fn new(generator: &Generator, before_images: bool) -> Self {
        let options = EventOptions::new(Preset::Syntrix);
        let options = if before_images { options } else { options.without_before_images() };
        Self {
            factory: EventFactory::new(options),
            writer: generator.writer(),
            schedule: generator.schedule(),
            numbering: Numbering::new(BACKEND, LINEAGE),
            events: Vec::new(),
            by_token: HashMap::new(),
            changes: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    /// One more transaction happens.
    pub(crate) fn write(&mut self) {
        let writes: Vec<_> = (0..self.schedule.transaction()).map(|_| self.writer.next()).collect();
        for bytes in self.factory.apply_transaction(&writes) {
            let document = Document::from_reader(&bytes[..]).expect("the factory makes BSON");
            let id = self.numbering.next_event(&document).expect("the factory's time doesn't run backwards");
            let change = OracleChange::from_change_event(&document, Preset::Syntrix, id)
                .expect("the factory makes change events");
            self.changes.extend(change);
            let token =
                document.get_document("_id").expect("every event has a token").to_vec().expect("a document is BSON");
            let token = Bytes::from(token);
            self.by_token.insert(token.clone(), self.events.len());
            self.events.push(Event { bytes: Bytes::from(bytes), token, id });
        }
    }

    /// Opens a cursor: the index of the first event that it yields, and the `(time, k)` after which that is.
    pub(crate) fn open(&self, start: &Start) -> (usize, (u64, u32)) {
        match start {
            Start::After { position, token } => {
                let index = self.by_token.get(&token.0).expect("a token that was handed out is known");
                assert_eq!(self.events[*index].id, *position, "a token stands for the position that it was kept with");
                (index + 1, position.order())
            }
            Start::At { time } => (self.events.partition_point(|event| event.id.time < *time), (*time, 0)),
            Start::Now => (self.events.len(), self.events.last().map_or((BEGINNING, 0), |event| event.id.order())),
        }
    }

    /// Events of a cursor that stands at `from`, at most `max`, and the token after them.
    pub(crate) fn read(&self, from: usize, max: usize) -> (&[Event], Option<ResumeToken>) {
        let events = &self.events[from.min(self.events.len())..(from + max).min(self.events.len())];
        let token =
            self.events[..(from + max).min(self.events.len())].last().map(|event| ResumeToken(event.token.clone()));
        (events, token)
    }

    /// What each subscription must have got of everything after its base, in order.
    pub(crate) fn expected(
        &self,
        oracle: &Oracle,
        base: impl Fn(&str, &SubscriptionKey) -> Option<Positions>,
    ) -> HashMap<(String, SubscriptionKey), Vec<(Position, Transition)>> {
        let mut expected: HashMap<_, Vec<_>> = HashMap::new();
        for change in &self.changes {
            for one in oracle.expect(change) {
                if base(&one.gateway, &one.key).is_some_and(|base| !base.covers(&one.id)) {
                    expected.entry((one.gateway, one.key)).or_default().push((one.id, one.transition));
                }
            }
        }
        expected
    }
}
