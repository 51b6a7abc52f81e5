//! Raw change events, handed to the ingest thread inside the node's process. What comes after is the real path; what comes before it, a
//! database, isn't there.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bson::{RawDocumentBuf, Timestamp, raw::cstr};
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, future::BoxFuture};
use streamer::ingest::source::{
    Batch, Identity, Opened, Purpose, ResumeToken, Source, SourceError, SourceStream, Start,
};
use wire::{BackendId, Lineage};

use crate::{
    alarm::Alarm,
    plan::{Event, Place, Plan},
    schedule::{Due, Schedule},
};

/// The backend's name.
pub const NAME: &str = "direct";

/// Events of a batch at most: as many as MongoDB puts into one.
const BATCH_MAX: u64 = 200;

/// Stands for the number of an event in its template.
const MARK: u64 = 0x7e57_ab1e_0bad_f00d;

/// Has events 1, 2, 3 … of a plan, each at the cluster time of its number.
pub struct Direct {
    schedule: Arc<Schedule>,
    templates: Arc<[Template]>,
    /// A run is a history of its own.
    lineage: Lineage,
}

/// An event, or a document of one, whose number is to be filled in.
pub struct Template {
    bytes: Bytes,
    /// Where its number stands, each time as eight bytes, lowest first.
    places: Vec<usize>,
}

impl Template {
    /// A document of at least so many bytes.
    pub fn document(event: &Event, document_bytes: usize) -> Self {
        Self::of(Self::build(event, document_bytes))
    }

    /// The insert of such a document.
    pub fn change(event: &Event, place: &Place, document_bytes: usize) -> Self {
        let mark = i64::from_le_bytes(MARK.to_le_bytes());
        let document = Self::build(event, document_bytes);
        let mut key = RawDocumentBuf::new();
        key.append(cstr!("_id"), mark);
        let mut token = RawDocumentBuf::new();
        token.append(cstr!("_data"), mark);
        let mut namespace = RawDocumentBuf::new();
        namespace.append(cstr!("db"), place.tenant.as_str());
        namespace.append(cstr!("coll"), place.collection.as_str());
        let mut change = RawDocumentBuf::new();
        change.append(cstr!("_id"), token);
        change.append(cstr!("operationType"), "insert");
        change.append(cstr!("clusterTime"), Timestamp { time: (MARK >> 32) as u32, increment: MARK as u32 });
        change.append(cstr!("ns"), namespace);
        change.append(cstr!("documentKey"), key);
        change.append(cstr!("fullDocument"), document);
        Self::of(change)
    }

    fn build(event: &Event, document_bytes: usize) -> RawDocumentBuf {
        let mark = i64::from_le_bytes(MARK.to_le_bytes());
        let mut document = RawDocumentBuf::new();
        document.append(cstr!("_id"), mark);
        document.append(cstr!("n"), mark);
        document.append(cstr!("key"), event.key.as_str());
        document.append(cstr!("size"), event.size);
        document.append(cstr!("kind"), event.kind);
        let filling = document_bytes.saturating_sub(document.as_bytes().len() + FIELD_BYTES);
        document.append(cstr!("text"), "x".repeat(filling));
        document
    }

    fn of(document: RawDocumentBuf) -> Self {
        let bytes = document.into_bytes();
        let mark = MARK.to_le_bytes();
        let places: Vec<usize> = (0..bytes.len() - 7).filter(|at| bytes[*at..at + 8] == mark).collect();
        Self { bytes: bytes.into(), places }
    }

    /// Appends it as number `n`.
    pub fn fill(&self, n: u64, into: &mut BytesMut) {
        let start = into.len();
        into.extend_from_slice(&self.bytes);
        for at in &self.places {
            into[start + at..start + at + 8].copy_from_slice(&n.to_le_bytes());
        }
    }
}

/// The number that a document was filled in with.
pub fn number_of(document: &[u8]) -> Option<u64> {
    // The document's length, the type of its first field, and `_id`.
    document.get(9..17)?.try_into().ok().map(u64::from_le_bytes)
}

/// What a field named `text` takes beside its text.
const FIELD_BYTES: usize = 11;

impl Direct {
    pub fn new(plan: &Plan, schedule: Arc<Schedule>, document_bytes: usize) -> Self {
        let template = |event: &Event| Template::change(event, &plan.places[event.place as usize], document_bytes);
        Self { schedule, templates: plan.events.iter().map(template).collect(), lineage: Lineage(rand::random()) }
    }
}

impl Source for Direct {
    fn backend(&self) -> BackendId {
        BackendId::of_name(NAME)
    }

    fn name(&self) -> &str {
        NAME
    }

    fn identity(&self) -> BoxFuture<'_, Result<Identity, SourceError>> {
        let description = "load made in the node's own process".to_owned();
        futures::future::ready(Ok(Identity { lineage: self.lineage, description, before_images: false })).boxed()
    }

    fn open(&self, start: Start, purpose: Purpose) -> BoxFuture<'_, Result<Opened, SourceError>> {
        let (after, start) = match start {
            Start::Now => (self.schedule.sent(), (self.schedule.sent() + 1, 0)),
            Start::At { time } => (time.saturating_sub(1), (time, 0)),
            Start::After { position, .. } => (position.time, (position.time, position.k)),
        };
        let stream = Stream {
            schedule: self.schedule.clone(),
            templates: self.templates.clone(),
            after,
            is_live: purpose == Purpose::Live,
            alarm: None,
        };
        futures::future::ready(Ok(Opened { stream: Box::new(stream), start })).boxed()
    }
}

struct Stream {
    schedule: Arc<Schedule>,
    templates: Arc<[Template]>,
    /// The last event that was given out.
    after: u64,
    /// It is the one that makes new events; any other reads those again that were made.
    is_live: bool,
    /// Made when it is first needed, on the ingest thread.
    alarm: Option<Alarm>,
}

impl SourceStream for Stream {
    fn next(&mut self, wait: Duration) -> BoxFuture<'_, Result<Batch, SourceError>> {
        let failed = |error| SourceError::Transient(format!("the timer that paces it: {error}"));
        async move { self.read(wait).await.map_err(failed) }.boxed()
    }
}

impl Stream {
    async fn read(&mut self, wait: Duration) -> std::io::Result<Batch> {
        let until = Instant::now() + wait;
        loop {
            let now = Instant::now();
            let known = self.schedule.sent().saturating_sub(self.after).min(BATCH_MAX);
            if known > 0 {
                return Ok(self.batch(known));
            }
            let due = if self.is_live { self.schedule.due(now, BATCH_MAX) } else { Due::Nothing };
            let pause = match due {
                Due::Now(count) => {
                    self.schedule.hand_over(count, now);
                    return Ok(self.batch(count));
                }
                Due::In(pause) => pause,
                Due::Nothing => wait,
            };
            let left = until.saturating_duration_since(now);
            if left.is_zero() {
                return Ok(Batch::default());
            }
            let alarm = match &mut self.alarm {
                Some(alarm) => alarm,
                none => none.insert(Alarm::new()?),
            };
            alarm.wait(pause.min(left)).await?;
        }
    }

    fn batch(&mut self, count: u64) -> Batch {
        let numbers = self.after + 1..=self.after + count;
        self.after += count;
        let template = |n: u64| &self.templates[(n - 1) as usize % self.templates.len()];
        let mut bytes = BytesMut::with_capacity(numbers.clone().map(|n| template(n).bytes.len()).sum());
        numbers.clone().for_each(|n| template(n).fill(n, &mut bytes));
        let mut bytes = bytes.freeze();
        let events = numbers.map(|n| bytes.split_to(template(n).bytes.len())).collect();
        let mut token = RawDocumentBuf::new();
        token.append(cstr!("_data"), self.after as i64);
        Batch { events, resume: Some(ResumeToken(token.into_bytes().into())), ..Batch::default() }
    }
}

#[cfg(test)]
mod tests {
    use bson::RawDocument;

    use super::*;
    use crate::{profile::Profile, schedule::CountsFrom};

    #[test]
    fn a_document_has_the_size_and_the_number_that_it_was_given() {
        let plan = Plan::new(&Profile::load("orders").unwrap(), 1_000, 1, 1, "t");
        let template = Template::document(plan.event(1), 200);
        let mut bytes = BytesMut::new();
        template.fill(77, &mut bytes);
        assert_eq!((bytes.len(), number_of(&bytes)), (200, Some(77)));
        assert_eq!(RawDocument::from_bytes(&bytes).unwrap().get_i64("n").unwrap(), 77);
        // Token, cluster time, key, `_id` and `n`.
        assert_eq!(Template::change(plan.event(1), &plan.places[0], 200).places.len(), 5);
    }

    #[tokio::test]
    async fn events_are_what_the_plan_says_and_can_be_read_again() {
        let plan = Plan::new(&Profile::load("orders").unwrap(), 1_000, 1, 1, "t");
        let schedule = Arc::new(Schedule::new(None, Duration::from_secs(60), CountsFrom::HandedOver));
        let direct = Direct::new(&plan, schedule.clone(), 600);
        schedule.begin();
        let mut live = direct.open(Start::Now, Purpose::Live).await.unwrap();
        assert_eq!(live.start, (1, 0));
        let batch = live.stream.next(Duration::ZERO).await.unwrap();
        assert_eq!(batch.events.len() as u64, BATCH_MAX);
        for (n, bytes) in (1..).zip(&batch.events) {
            let event = RawDocument::from_bytes(bytes).unwrap();
            let document = event.get_document("fullDocument").unwrap();
            assert_eq!(document.get_i64("n").unwrap(), n as i64);
            assert_eq!(document.get_str("key").unwrap(), plan.event(n).key);
            assert!(document.as_bytes().len() >= 600);
            let time = event.get_timestamp("clusterTime").unwrap();
            assert_eq!(u64::from(time.time) << 32 | u64::from(time.increment), n);
            let place = &plan.places[plan.event(n).place as usize];
            assert_eq!(event.get_document("ns").unwrap().get_str("db").unwrap(), place.tenant);
        }
        // Another stream reads the same events, and makes none.
        let mut again = direct.open(Start::At { time: 150 }, Purpose::CatchUp).await.unwrap();
        let rest = again.stream.next(Duration::ZERO).await.unwrap();
        assert_eq!(rest.events, batch.events[149..]);
        assert!(again.stream.next(Duration::ZERO).await.unwrap().events.is_empty());
        assert_eq!(schedule.sent(), BATCH_MAX);
    }
}
