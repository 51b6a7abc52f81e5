//! `Events`, written entry by entry from borrowed parts, so that a shard copies a document once: into what it sends.
//!
//! The body is a run of entries up to its end, without a count. An entry is `length` (u32, little-endian: the bytes that follow
//! it), then `seq`, `targets`, `id`, `operation`, `tenant`, `collection`, `document_id`, `document` in bincode's encoding. What
//! differs from session to session stands first, what is the same for all of them last: a shard encodes that once, as an
//! [`EventBody`], and copies it into what each session is sent. Bytes of an entry after the document are ignored.
//!
//! Entries are nearly all that a shard ever writes, so they are encoded by hand here; a test compares that with bincode.

use bytes::{BufMut, BytesMut};

use crate::{
    EventEntry, EventId, Operation, Target,
    codec::{HEADER_BYTES, MAX_FRAME_BODY_BYTES, close_frame, delivery, open_frame},
    events::ENTRY_LENGTH_BYTES,
};

/// An [`EventEntry`] that borrows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventEntryRef<'a> {
    pub seq: u64,
    pub id: EventId,
    pub operation: Operation,
    pub tenant: &'a str,
    pub collection: &'a str,
    /// One byte of BSON type, then the BSON value.
    pub document_id: &'a [u8],
    pub targets: &'a [Target],
    /// BSON, or empty.
    pub document: &'a [u8],
}

/// What of an entry is the same in every session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventBody<'a> {
    pub id: EventId,
    pub operation: Operation,
    /// UTF-8, as is the next one.
    pub tenant: &'a [u8],
    pub collection: &'a [u8],
    /// One byte of BSON type, then the BSON value.
    pub document_id: &'a [u8],
    /// BSON, or empty.
    pub document: &'a [u8],
}

impl<'a> From<&'a EventEntry> for EventEntryRef<'a> {
    fn from(entry: &'a EventEntry) -> Self {
        Self {
            seq: entry.seq,
            id: entry.id,
            operation: entry.operation,
            tenant: &entry.tenant,
            collection: &entry.collection,
            document_id: &entry.document_id,
            targets: &entry.targets,
            document: &entry.document,
        }
    }
}

impl From<EventEntryRef<'_>> for EventEntry {
    fn from(entry: EventEntryRef<'_>) -> Self {
        Self {
            seq: entry.seq,
            id: entry.id,
            operation: entry.operation,
            tenant: entry.tenant.to_owned(),
            collection: entry.collection.to_owned(),
            document_id: entry.document_id.to_vec(),
            targets: entry.targets.to_vec(),
            document: entry.document.to_vec(),
        }
    }
}

impl<'a> EventEntryRef<'a> {
    fn body(&self) -> EventBody<'a> {
        let Self { id, operation, document_id, document, .. } = *self;
        let (tenant, collection) = (self.tenant.as_bytes(), self.collection.as_bytes());
        EventBody { id, operation, tenant, collection, document_id, document }
    }
}

impl EventBody<'_> {
    /// As many bytes as [`EventBody::encode`] appends, or a few more.
    pub fn encoded_bytes_max(&self) -> usize {
        BODY_NUMBERS_BYTES_MAX
            + self.tenant.len()
            + self.collection.len()
            + self.document_id.len()
            + self.document.len()
    }

    /// Appends what [`EventsEncoder::push_encoded`] takes.
    pub fn encode(&self, out: &mut impl BufMut) {
        let mut few = Few::new();
        few.int(u64::from(self.id.backend.0));
        few.int(self.id.lineage.0);
        few.int(self.id.time);
        few.int(u64::from(self.id.k));
        few.byte(self.operation as u8);
        for part in [self.tenant, self.collection, self.document_id] {
            few.int(part.len() as u64);
            // Room is left for the next length.
            if part.len() + INT_BYTES_MAX <= few.room() {
                few.copy(part);
            } else {
                out.put_slice(few.bytes());
                out.put_slice(part);
                few.clear();
            }
        }
        few.int(self.document.len() as u64);
        out.put_slice(few.bytes());
        out.put_slice(self.document);
    }
}

/// Begins an `Events` message at the end of `buffer`.
pub fn begin_events(buffer: &mut BytesMut) -> EventsEncoder<'_> {
    let start = open_frame(buffer);
    EventsEncoder { buffer, start, entries: 0 }
}

/// An `Events` message in the making. [`EventsEncoder::push`] its entries in the order of their `seq`, then
/// [`EventsEncoder::finish`] it; dropped before that, or finished without entries, it leaves no trace in the buffer.
#[derive(Debug)]
pub struct EventsEncoder<'a> {
    buffer: &'a mut BytesMut,
    start: usize,
    entries: usize,
}

impl EventsEncoder<'_> {
    pub fn push(&mut self, entry: &EventEntryRef<'_>) {
        let body = entry.body();
        let start = self.open_entry(entry.seq, entry.targets, body.encoded_bytes_max());
        body.encode(self.buffer);
        self.close_entry(start);
    }

    /// The same of a body that is encoded already.
    pub fn push_encoded(&mut self, seq: u64, targets: &[Target], body: &[u8]) {
        if targets.len() > TARGETS_AT_HAND {
            let start = self.open_entry(seq, targets, body.len());
            self.buffer.extend_from_slice(body);
            self.close_entry(start);
            return;
        }
        let mut few = Few::new();
        few.skip(ENTRY_LENGTH_BYTES);
        few.int(seq);
        few.int(targets.len() as u64);
        targets.iter().for_each(|target| few.target(target));
        few.bytes[..ENTRY_LENGTH_BYTES].copy_from_slice(&entry_length(few.len + body.len()));
        self.buffer.reserve(few.len + body.len());
        self.buffer.extend_from_slice(few.bytes());
        self.buffer.extend_from_slice(body);
        self.entries += 1;
    }

    /// Entries pushed so far.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// The body so far.
    pub(crate) fn body(&self) -> &[u8] {
        &self.buffer[self.start + HEADER_BYTES..]
    }

    /// Bytes of the body so far, to end a batch by.
    pub fn body_bytes(&self) -> usize {
        self.buffer.len() - self.start - HEADER_BYTES
    }

    /// Writes the header. Gives the number of entries.
    pub fn finish(mut self) -> usize {
        let entries = std::mem::take(&mut self.entries);
        if entries > 0 {
            close_frame(self.buffer, self.start, delivery::EVENTS, MAX_FRAME_BODY_BYTES);
            // What is now complete must outlive the drop of `self`.
            self.start = self.buffer.len();
        }
        entries
    }

    /// Writes what stands before the body. Gives the entry's place for [`Self::close_entry`].
    fn open_entry(&mut self, seq: u64, targets: &[Target], body_bytes: usize) -> usize {
        let start = self.buffer.len();
        // It saves growing the buffer twice.
        self.buffer.reserve(ENTRY_LENGTH_BYTES + 2 * INT_BYTES_MAX + TARGET_BYTES_MAX * targets.len() + body_bytes);
        let mut few = Few::new();
        few.skip(ENTRY_LENGTH_BYTES);
        few.int(seq);
        few.int(targets.len() as u64);
        for target in targets {
            if few.room() < TARGET_BYTES_MAX {
                self.buffer.extend_from_slice(few.bytes());
                few.clear();
            }
            few.target(target);
        }
        self.buffer.extend_from_slice(few.bytes());
        start
    }

    fn close_entry(&mut self, start: usize) {
        let length = entry_length(self.buffer.len() - start);
        self.buffer[start..start + ENTRY_LENGTH_BYTES].copy_from_slice(&length);
        self.entries += 1;
    }
}

impl Drop for EventsEncoder<'_> {
    fn drop(&mut self) {
        self.buffer.truncate(self.start);
    }
}

/// The length of an entry that is so long with it.
fn entry_length(bytes: usize) -> [u8; ENTRY_LENGTH_BYTES] {
    u32::try_from(bytes - ENTRY_LENGTH_BYTES)
        .expect("an event's parts are bounded by the source's largest document, far below 4 GiB")
        .to_le_bytes()
}

/// A few bytes, gathered before they go into a buffer that grows.
struct Few {
    bytes: [u8; FEW_BYTES],
    len: usize,
}

impl Few {
    #[inline]
    fn new() -> Self {
        Self { bytes: [0; FEW_BYTES], len: 0 }
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    #[inline]
    fn room(&self) -> usize {
        FEW_BYTES - self.len
    }

    #[inline]
    fn clear(&mut self) {
        self.len = 0;
    }

    #[inline]
    fn skip(&mut self, bytes: usize) {
        self.len += bytes;
    }

    #[inline]
    fn byte(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    #[inline]
    fn copy(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    #[inline(always)]
    fn target(&mut self, target: &Target) {
        self.int(u64::from(target.handle.0));
        self.byte(target.transition as u8);
        self.byte(target.certainty as u8);
    }

    /// An unsigned integer of any type, or an enum's number: the value alone decides how it is written.
    #[inline(always)]
    fn int(&mut self, value: u64) {
        if value < 251 {
            self.byte(value as u8);
        } else if let Ok(value) = u16::try_from(value) {
            self.marked(251, value.to_le_bytes());
        } else if let Ok(value) = u32::try_from(value) {
            self.marked(252, value.to_le_bytes());
        } else {
            self.marked(253, value.to_le_bytes());
        }
    }

    #[inline]
    fn marked<const L: usize>(&mut self, marker: u8, bytes: [u8; L]) {
        self.byte(marker);
        self.bytes[self.len..self.len + L].copy_from_slice(&bytes);
        self.len += L;
    }
}

/// A marker and the bytes of a `u64`.
const INT_BYTES_MAX: usize = 9;
/// A handle, which is a `u32`, and two enums.
const TARGET_BYTES_MAX: usize = 7;
/// Backend, lineage, time, k, operation and the length of the tenant.
const BODY_START_BYTES_MAX: usize = 5 + INT_BYTES_MAX + INT_BYTES_MAX + 5 + 1 + INT_BYTES_MAX;
const BODY_NUMBERS_BYTES_MAX: usize = BODY_START_BYTES_MAX + 3 * INT_BYTES_MAX;
/// Room for what stands before the body of an entry with [`TARGETS_AT_HAND`], and for a body's numbers with short names.
const FEW_BYTES: usize = 128;
const TARGETS_AT_HAND: usize = 12;

const _: () = assert!(FEW_BYTES >= ENTRY_LENGTH_BYTES + 2 * INT_BYTES_MAX + TARGETS_AT_HAND * TARGET_BYTES_MAX);
const _: () = assert!(FEW_BYTES >= BODY_START_BYTES_MAX + 2 * INT_BYTES_MAX);
