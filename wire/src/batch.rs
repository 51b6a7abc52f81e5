//! `Events`, written entry by entry from borrowed parts, so that a shard copies a document once: into what it sends.
//!
//! The body is a run of entries up to its end, without a count. An entry is `length` (u32, little-endian: the bytes that follow
//! it), then `seq`, `targets`, `id`, `operation`, `tenant`, `collection`, `document_id`, `document` in bincode's encoding. What
//! differs from session to session stands first, what is the same for all of them last. Bytes of an entry after the document
//! are ignored.

use bytes::{BufMut, BytesMut};

use crate::{
    EventEntry, EventId, Operation, Target,
    body::{Body, BodyError, Read},
    codec::{HEADER_BYTES, MAX_FRAME_BODY_BYTES, close_frame, delivery, encode_into, open_frame},
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
        let start = self.buffer.len();
        // Ids, lengths and places take less than this; it saves growing the buffer twice.
        self.buffer.reserve(
            96 + entry.tenant.len()
                + entry.collection.len()
                + entry.document_id.len()
                + 8 * entry.targets.len()
                + entry.document.len(),
        );
        self.buffer.put_u32_le(0);
        encode_into(self.buffer, (entry.seq, entry.targets, entry.id, entry.operation));
        encode_into(self.buffer, (entry.tenant, entry.collection, entry.document_id, entry.document));
        let length = u32::try_from(self.buffer.len() - start - ENTRY_LENGTH_BYTES)
            .expect("an event's parts are bounded by the source's largest document, far below 4 GiB");
        self.buffer[start..start + ENTRY_LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        self.entries += 1;
    }

    /// Entries pushed so far.
    pub fn entries(&self) -> usize {
        self.entries
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
}

impl Drop for EventsEncoder<'_> {
    fn drop(&mut self) {
        self.buffer.truncate(self.start);
    }
}

/// The entries of a body.
pub(crate) fn decode_events(mut body: &[u8]) -> Result<Vec<EventEntry>, BodyError> {
    let mut entries = Vec::new();
    while !body.is_empty() {
        let Some((length, rest)) = body.split_first_chunk::<ENTRY_LENGTH_BYTES>() else {
            return Err(BodyError::Rule(format!("{} bytes where an entry's length needs 4", body.len())));
        };
        let length = u32::from_le_bytes(*length) as usize;
        let Some((entry, rest)) = rest.split_at_checked(length) else {
            return Err(BodyError::Rule(format!("an entry of {length} bytes where {} are left", rest.len())));
        };
        entries.push(decode_entry(&mut Body::new(entry))?);
        body = rest;
    }
    Ok(entries)
}

fn decode_entry(body: &mut Body<'_>) -> Result<EventEntry, BodyError> {
    let (seq, targets, id, operation) = (Read::read(body)?, Read::read(body)?, Read::read(body)?, Read::read(body)?);
    Ok(EventEntry {
        seq,
        targets,
        id,
        operation,
        tenant: Read::read(body)?,
        collection: Read::read(body)?,
        document_id: body.bytes()?.to_vec(),
        document: body.bytes()?.to_vec(),
    })
}

const ENTRY_LENGTH_BYTES: usize = 4;
