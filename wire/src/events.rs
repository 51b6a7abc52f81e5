//! `Events` as they came: the body, and where in it things stand.
//!
//! A Gateway gets far more of these than of all else together, so nothing is taken out of the body: an entry is read where it lies, through
//! [`Events::get`]. Whoever keeps an [`Events`] keeps the whole message, and nothing beside it.

use std::ops::Range;

use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::{
    BackendId, Certainty, EventEntry, EventEntryRef, EventId, Handle, Lineage, Operation, Target, Transition,
    batch::begin_events, body::BodyError, codec::MAX_BODY_BYTES,
};

/// The entries of one message, in the order of their `seq`. Shown as a list of [`EventEntry`].
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(from = "Vec<EventEntry>", into = "Vec<EventEntry>")]
pub struct Events {
    body: Box<[u8]>,
    heads: SmallVec<[Head; 1]>,
    /// Of all entries, one after the other.
    targets: SmallVec<[Target; 4]>,
}

/// What is read of an entry when it comes, and where the rest of it lies in the body.
#[derive(Clone, Debug)]
struct Head {
    seq: u64,
    id: EventId,
    operation: Operation,
    targets_end: u32,
    tenant: Part,
    collection: Part,
    document_id: Part,
    document: Part,
}

/// Bytes of a body, which is far shorter than 4 GiB.
#[derive(Clone, Copy, Debug)]
struct Part {
    start: u32,
    end: u32,
}

const _: () = assert!(MAX_BODY_BYTES <= u32::MAX as usize);

impl Part {
    fn of<'a>(&self, body: &'a [u8]) -> &'a [u8] {
        &body[self.start as usize..self.end as usize]
    }

    fn text<'a>(&self, body: &'a [u8]) -> &'a str {
        str::from_utf8(self.of(body)).expect("a body with another text is refused when it is read")
    }
}

impl Events {
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// The number of an entry.
    ///
    /// # Panics
    /// If there are not so many entries, here and below.
    pub fn seq(&self, entry: usize) -> u64 {
        self.heads[entry].seq
    }

    pub fn id(&self, entry: usize) -> EventId {
        self.heads[entry].id
    }

    pub fn operation(&self, entry: usize) -> Operation {
        self.heads[entry].operation
    }

    pub fn targets(&self, entry: usize) -> &[Target] {
        &self.targets[self.range_of_targets(entry)]
    }

    pub fn tenant(&self, entry: usize) -> &str {
        self.heads[entry].tenant.text(&self.body)
    }

    pub fn collection(&self, entry: usize) -> &str {
        self.heads[entry].collection.text(&self.body)
    }

    /// One byte of BSON type, then the BSON value.
    pub fn document_id(&self, entry: usize) -> &[u8] {
        self.heads[entry].document_id.of(&self.body)
    }

    /// BSON of the image that matched; empty where none is known.
    pub fn document(&self, entry: usize) -> &[u8] {
        self.heads[entry].document.of(&self.body)
    }

    pub fn get(&self, entry: usize) -> EventEntryRef<'_> {
        EventEntryRef {
            seq: self.seq(entry),
            id: self.id(entry),
            operation: self.operation(entry),
            tenant: self.tenant(entry),
            collection: self.collection(entry),
            document_id: self.document_id(entry),
            targets: self.targets(entry),
            document: self.document(entry),
        }
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = EventEntryRef<'_>> + DoubleEndedIterator {
        (0..self.len()).map(|entry| self.get(entry))
    }

    /// What it takes in memory.
    pub fn bytes(&self) -> usize {
        let spilled = |len: usize, inline: usize, each: usize| if len > inline { len * each } else { 0 };
        size_of::<Self>()
            + self.body.len()
            + spilled(self.heads.capacity(), self.heads.inline_size(), size_of::<Head>())
            + spilled(self.targets.capacity(), self.targets.inline_size(), size_of::<Target>())
    }

    /// The body, as it is sent.
    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    /// Reads a body, and keeps it.
    pub(crate) fn read(body: Box<[u8]>) -> Result<Self, BodyError> {
        let mut events = Self { body: Box::default(), heads: SmallVec::new(), targets: SmallVec::new() };
        let mut at = 0;
        while at < body.len() {
            let rest = &body[at..];
            let Some((length, rest)) = rest.split_first_chunk::<ENTRY_LENGTH_BYTES>() else {
                return Err(BodyError::Rule(format!("{} bytes where an entry's length needs 4", rest.len())));
            };
            let length = u32::from_le_bytes(*length) as usize;
            if length > rest.len() {
                return Err(BodyError::Rule(format!("an entry of {length} bytes where {} are left", rest.len())));
            }
            let start = at + ENTRY_LENGTH_BYTES;
            at = start + length;
            // Bytes after the last field are a later version's.
            let mut fields = Fields { bytes: &body[..at], at: start, wrong: None };
            let Some(head) = fields.head(&mut events.targets) else {
                return Err(BodyError::Rule(fields.wrong.unwrap_or_default()));
            };
            if events.heads.is_empty() && at < body.len() {
                // Entries of one message are mostly of one length. Where they are not, this is still no more than the body.
                events.heads.reserve((body.len() / at).min(ENTRIES_USUAL));
            }
            events.heads.push(head);
        }
        events.body = body;
        Ok(events)
    }

    fn range_of_targets(&self, entry: usize) -> Range<usize> {
        let start = entry.checked_sub(1).map_or(0, |before| self.heads[before].targets_end);
        start as usize..self.heads[entry].targets_end as usize
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_list().entries(self.iter()).finish()
    }
}

/// By what they say: bytes that a later version adds are not looked at.
impl PartialEq for Events {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Events {}

impl FromIterator<EventEntry> for Events {
    fn from_iter<I: IntoIterator<Item = EventEntry>>(entries: I) -> Self {
        let mut buffer = BytesMut::new();
        let mut encoder = begin_events(&mut buffer);
        entries.into_iter().for_each(|entry| encoder.push(&EventEntryRef::from(&entry)));
        Self::read(encoder.body().into()).expect("what is written can be read")
    }
}

impl From<Vec<EventEntry>> for Events {
    fn from(entries: Vec<EventEntry>) -> Self {
        entries.into_iter().collect()
    }
}

impl From<Events> for Vec<EventEntry> {
    fn from(events: Events) -> Self {
        events.iter().map(EventEntry::from).collect()
    }
}

/// A body up to the end of one of its entries, and how far that is read. Where something is wrong, what is read of it is `None`.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
    wrong: Option<String>,
}

impl Fields<'_> {
    fn head(&mut self, targets: &mut SmallVec<[Target; 4]>) -> Option<Head> {
        let seq = self.int(u64::MAX)?;
        self.targets(targets)?;
        let id = EventId {
            backend: BackendId(self.u32()?),
            lineage: Lineage(self.int(u64::MAX)?),
            time: self.int(u64::MAX)?,
            k: self.u32()?,
        };
        let operation = self.one_of([Operation::Insert, Operation::Update, Operation::Delete])?;
        // There can't be more targets than bytes.
        let targets_end = targets.len() as u32;
        let (tenant, collection) = (self.text()?, self.text()?);
        let (document_id, document) = (self.part()?, self.part()?);
        Some(Head { seq, id, operation, targets_end, tenant, collection, document_id, document })
    }

    fn targets(&mut self, targets: &mut SmallVec<[Target; 4]>) -> Option<()> {
        let count = self.int(u64::MAX)?;
        let left = self.bytes.len() - self.at;
        if count > (left / TARGET_BYTES_MIN) as u64 {
            return self.wrong(|| format!("a list of {count} targets where {left} bytes are left"));
        }
        targets.reserve(count as usize);
        for _ in 0..count {
            targets.push(Target {
                handle: Handle(self.u32()?),
                transition: self.one_of([Transition::Enter, Transition::Update, Transition::Leave])?,
                certainty: self.one_of([Certainty::Matched, Certainty::Unverified, Certainty::Unknown])?,
            });
        }
        Some(())
    }

    #[inline]
    fn text(&mut self) -> Option<Part> {
        let part = self.part()?;
        let bytes = part.of(self.bytes);
        // Names are short, and mostly so: this is the quicker look then.
        if !bytes.is_ascii()
            && let Err(error) = str::from_utf8(bytes)
        {
            return self.wrong(|| error.to_string());
        }
        Some(part)
    }

    #[inline]
    fn part(&mut self) -> Option<Part> {
        let length = self.int(u64::MAX)?;
        let left = self.bytes.len() - self.at;
        if length > left as u64 {
            return self.wrong(|| format!("{length} bytes where {left} are left"));
        }
        let start = self.at;
        self.at += length as usize;
        Some(Part { start: start as u32, end: self.at as u32 })
    }

    #[inline]
    fn one_of<T: Copy>(&mut self, all: [T; 3]) -> Option<T> {
        let number = self.u32()?;
        match all.get(number as usize) {
            Some(one) => Some(*one),
            None => self.wrong(|| format!("{number} where 0, 1 and 2 are known")),
        }
    }

    #[inline]
    fn u32(&mut self) -> Option<u32> {
        self.int(u64::from(u32::MAX)).map(|value| value as u32)
    }

    /// An unsigned integer of the type whose largest value is `max`.
    #[inline(always)]
    fn int(&mut self, max: u64) -> Option<u64> {
        match self.bytes.get(self.at) {
            Some(&byte) if byte < 251 => {
                self.at += 1;
                Some(u64::from(byte))
            }
            _ => self.long_int(max),
        }
    }

    fn long_int(&mut self, max: u64) -> Option<u64> {
        let Some((&marker, rest)) = self.bytes[self.at..].split_first() else {
            return self.wrong(|| "an entry that ends before its fields do".into());
        };
        let (value, bytes) = match marker {
            251 => (rest.first_chunk().map(|bytes| u64::from(u16::from_le_bytes(*bytes))), 2),
            252 => (rest.first_chunk().map(|bytes| u64::from(u32::from_le_bytes(*bytes))), 4),
            253 if max > u64::from(u32::MAX) => (rest.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)), 8),
            _ => return self.wrong(|| format!("{marker} marks no integer that is at most {max}")),
        };
        self.at += 1 + bytes;
        value.or_else(|| self.wrong(|| "an entry that ends within an integer".into()))
    }

    #[cold]
    fn wrong<T>(&mut self, what: impl FnOnce() -> String) -> Option<T> {
        self.wrong = Some(what());
        None
    }
}

pub(crate) const ENTRY_LENGTH_BYTES: usize = 4;
/// A handle and two enums.
const TARGET_BYTES_MIN: usize = 3;
/// A shard puts no more entries into one message.
const ENTRIES_USUAL: usize = 100;
