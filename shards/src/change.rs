//! What the ingest thread hands to shards.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use bytestring::ByteString;
use smallvec::SmallVec;
use wire::{BackendId, GapReason, Operation, PlaceHash, Position, Positions};

/// One item of the ring from the ingest thread to a shard. Their order is the order of the source; whatever has a place in
/// that order travels here.
#[derive(Clone, Debug)]
pub enum FromIngest {
    Change(Arc<Change>),
    /// Everything at or before this position that concerns this shard has been put into the ring before it.
    Progress(Position),
    /// The ingest thread routes by the shard's filter of this version (or a later one) from here on: each change after
    /// `positions`, which hold one position for every configured backend.
    FilterSeen {
        version: u64,
        positions: Positions,
    },
    Gap(Arc<Gap>),
    /// Of the second cursor, which reads history again.
    CatchUp(CatchUp),
}

/// What a pass of the catch-up cursor brings: a backend's history once more, for subscriptions that lack a part of it.
///
/// A backend has at most one pass at a time. Its items come in the source's order, with the same positions that the live stream gave
/// the same events, between live items of any position. They don't count for settlement.
#[derive(Clone, Debug)]
pub enum CatchUp {
    /// Pass number `pass` of the backend of `from` begins: every change after `from` that the shard's filter wants follows. Numbers
    /// rise, and are never used twice for a backend.
    Began {
        pass: u64,
        from: Position,
    },
    Change {
        pass: u64,
        change: Arc<Change>,
    },
    Gap {
        pass: u64,
        gap: Arc<Gap>,
    },
    /// Everything up to this position that concerns the shard has been put into the ring before it.
    Progress {
        pass: u64,
        position: Position,
    },
    /// The pass has met the live stream, and ends: up to this position, all has been put into the ring by the pass, and after it all is by
    /// the live stream. No live item above it stands before this one in the ring.
    CaughtUp {
        pass: u64,
        position: Position,
    },
    /// The pass ends without having met the live stream.
    Failed {
        pass: u64,
        backend: BackendId,
        failure: CatchUpFailure,
    },
}

/// Why a pass ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchUpFailure {
    /// The source no longer has what comes next, and never will: whoever the pass served and stands at or below `upto` has to read its
    /// state anew. Whoever it served and stands above waits for the next pass.
    HistoryLost { upto: Position },
    /// The distance to the live stream did not halve within the configured time: whoever the pass served has to read its state anew.
    TooSlow,
    /// The cursor broke, or nobody needed the pass any more: whoever it served waits for the next one, from where it was.
    Interrupted,
}

/// `_id` of a document as stored, or its id in the flat view: one byte of BSON type, then the value. In place, unless it is long.
pub type StoredId = SmallVec<[u8; STORED_ID_AT_HAND]>;

/// Room for a tenant and a UUID, or for what stands in its place as a hash.
const STORED_ID_AT_HAND: usize = 48;

/// A change, normalized and numbered.
///
/// Names and documents stand in the event that it was read from, whose bytes it holds on to once: whoever makes or drops a change counts
/// one reference, and takes no memory for its parts.
#[derive(Clone)]
pub struct Change {
    pub position: Position,
    /// What it is to subscribers: a soft delete is a delete, its undoing an insert.
    pub operation: Operation,
    key: StoredId,
    document_id: Option<StoredId>,
    /// What all spans are of.
    bytes: Bytes,
    before: Option<ImageSpans>,
    after: Option<ImageSpans>,
    bare: Option<BareSpans>,
}

/// What a change is made of.
#[derive(Clone, Debug)]
pub struct NewChange<'a> {
    pub position: Position,
    pub operation: Operation,
    /// `_id` of the document as stored.
    pub key: StoredId,
    /// The document's id in the flat view, where it is known and isn't the same as `key`, as it is under `plain`.
    pub document_id: Option<StoredId>,
    pub before: Option<Image<'a>>,
    /// Absent after a hard delete.
    pub after: Option<Image<'a>>,
    /// What is known of the place of a hard delete that came without an image.
    pub bare: Option<Bare<'a>>,
}

/// A document as it was, and where.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Image<'a> {
    /// Hash of the two names below.
    pub place: PlaceHash,
    /// UTF-8, as is the next one.
    pub tenant: &'a [u8],
    pub collection: &'a [u8],
    /// BSON, as the source gave it.
    pub document: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bare<'a> {
    pub tenant: Option<&'a str>,
    pub collection: Option<&'a str>,
}

/// Where something stands in a change's bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    start: u32,
    len: u32,
}

#[derive(Clone, Copy, Debug)]
struct ImageSpans {
    place: PlaceHash,
    tenant: Span,
    collection: Span,
    document: Span,
}

#[derive(Clone, Copy, Debug)]
struct BareSpans {
    tenant: Option<Span>,
    collection: Option<Span>,
}

impl Change {
    /// A change whose names and documents are slices of `event`, which it holds on to. Panics where one isn't.
    pub fn of_event(event: &Bytes, new: NewChange<'_>) -> Self {
        Self::of_bytes(event.clone(), new, |part| Span::within(event, part))
    }

    /// A change with a copy of its names and documents.
    pub fn copied(new: NewChange<'_>) -> Self {
        let mut bytes: Vec<u8> = Vec::new();
        let mut change = Self::of_bytes(Bytes::new(), new, |part| {
            bytes.extend_from_slice(part);
            Span::of(bytes.len() - part.len(), part.len())
        });
        change.bytes = bytes.into();
        change
    }

    #[inline(always)]
    fn of_bytes(bytes: Bytes, new: NewChange<'_>, mut span: impl FnMut(&[u8]) -> Span) -> Self {
        let NewChange { position, operation, key, document_id, before, after, bare } = new;
        let mut image = |image: Image<'_>| ImageSpans {
            place: image.place,
            tenant: span(image.tenant),
            collection: span(image.collection),
            document: span(image.document),
        };
        let (before, after) = (before.map(&mut image), after.map(&mut image));
        let mut name = |name: &str| span(name.as_bytes());
        let bare = bare
            .map(|bare| BareSpans { tenant: bare.tenant.map(&mut name), collection: bare.collection.map(&mut name) });
        Self { position, operation, key, document_id, bytes, before, after, bare }
    }

    /// `_id` of the document as stored.
    #[inline]
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The document's id in the flat view; where that isn't known, [`Self::key`].
    #[inline]
    pub fn document_id(&self) -> &[u8] {
        self.document_id.as_ref().unwrap_or(&self.key)
    }

    #[inline]
    pub fn before(&self) -> Option<Image<'_>> {
        self.before.map(|image| self.image(image))
    }

    /// Absent after a hard delete.
    #[inline]
    pub fn after(&self) -> Option<Image<'_>> {
        self.after.map(|image| self.image(image))
    }

    /// Where it was before, and where it is after, as far as there are images.
    #[inline]
    pub fn places(&self) -> [Option<PlaceHash>; 2] {
        [self.before, self.after].map(|image| image.map(|image| image.place))
    }

    #[inline]
    pub fn has_before(&self) -> bool {
        self.before.is_some()
    }

    #[inline]
    pub fn has_after(&self) -> bool {
        self.after.is_some()
    }

    /// What is known of the place of a hard delete that came without an image.
    pub fn bare(&self) -> Option<Bare<'_>> {
        let name = |span: Span| text(self.get(span));
        self.bare.map(|bare| Bare { tenant: bare.tenant.map(name), collection: bare.collection.map(name) })
    }

    #[inline]
    fn image(&self, spans: ImageSpans) -> Image<'_> {
        Image {
            place: spans.place,
            tenant: self.get(spans.tenant),
            collection: self.get(spans.collection),
            document: self.get(spans.document),
        }
    }

    #[inline]
    fn get(&self, Span { start, len }: Span) -> &[u8] {
        &self.bytes[start as usize..][..len as usize]
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Change")
            .field("position", &self.position)
            .field("operation", &self.operation)
            .field("key", &self.key())
            .field("document_id", &self.document_id())
            .field("before", &self.before())
            .field("after", &self.after())
            .field("bare", &self.bare())
            .finish()
    }
}

impl<'a> Image<'a> {
    pub fn new(tenant: &'a str, collection: &'a str, document: &'a [u8]) -> Self {
        let place = PlaceHash::of(tenant, collection);
        Self { place, tenant: tenant.as_bytes(), collection: collection.as_bytes(), document }
    }

    /// The names as texts.
    #[inline]
    pub fn names(&self) -> (&'a str, &'a str) {
        (text(self.tenant), text(self.collection))
    }
}

impl fmt::Debug for Image<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tenant, collection) = self.names();
        let mut shown = f.debug_struct("Image");
        shown.field("place", &self.place).field("tenant", &tenant).field("collection", &collection);
        shown.field("document", &self.document).finish()
    }
}

impl Span {
    #[inline(always)]
    fn of(start: usize, len: usize) -> Self {
        let place = |at: usize| u32::try_from(at).expect("an event is far smaller than 4 GiB");
        Self { start: place(start), len: place(len) }
    }

    /// Where `part` stands in `whole`, of which it is a slice. What is empty stands anywhere.
    #[inline(always)]
    fn within(whole: &[u8], part: &[u8]) -> Self {
        if part.is_empty() {
            return Self::default();
        }
        let start = part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr());
        assert!(start < whole.len() && part.len() <= whole.len() - start, "a part of a change isn't one of its event");
        Self::of(start, part.len())
    }
}

/// A name of a place.
#[inline]
fn text(name: &[u8]) -> &str {
    std::str::from_utf8(name).expect("names are found to be UTF-8 before a change is made of them")
}

/// From this position on, changes of these scopes may be missing or meaningless. One item for all of them: a position is settled once
/// all that stands at it is.
#[derive(Clone, Debug)]
pub struct Gap {
    pub position: Position,
    pub scopes: SmallVec<[Scope; 2]>,
    pub reason: GapReason,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    Everything,
    Tenant(ByteString),
    Collection { tenant: ByteString, collection: ByteString },
}

#[cfg(test)]
mod tests {
    use wire::{BackendId, Lineage};

    use super::*;

    fn new<'a>(before: Option<Image<'a>>, after: Option<Image<'a>>, bare: Option<Bare<'a>>) -> NewChange<'a> {
        let position = Position { backend: BackendId(1), lineage: Lineage(1), time: 1, k: 1 };
        let key = StoredId::from_slice(b"key");
        NewChange { position, operation: Operation::Update, key, document_id: None, before, after, bare }
    }

    #[test]
    fn parts_come_back_whether_they_are_slices_or_copies() {
        let event = Bytes::from_static(b"..acme..rooms..DOCUMENT..BEFORE");
        let within = |from: usize, to: usize| std::str::from_utf8(&event[from..to]).unwrap();
        let (tenant, collection) = (within(2, 6), within(8, 13));
        let before = Image::new(tenant, collection, &event[25..31]);
        // What is empty need not stand in the event.
        let after = Image::new("", collection, &event[15..23]);
        let bare = Bare { tenant: Some(tenant), collection: None };
        for change in [
            Change::of_event(&event, new(Some(before), Some(after), Some(bare))),
            Change::copied(new(Some(before), Some(after), Some(bare))),
        ] {
            assert_eq!((change.before(), change.after(), change.bare()), (Some(before), Some(after), Some(bare)));
            assert_eq!(before.names(), ("acme", "rooms"));
            assert_eq!((change.key(), change.document_id()), (&b"key"[..], &b"key"[..]));
        }
        let named = NewChange { document_id: Some(StoredId::from_slice(b"id")), ..new(None, None, None) };
        let change = Change::of_event(&event, named);
        assert_eq!((change.document_id(), change.has_before(), change.has_after()), (&b"id"[..], false, false));
    }

    #[test]
    #[should_panic(expected = "a part of a change isn't one of its event")]
    fn what_is_no_slice_of_the_event_is_refused() {
        let event = Bytes::from_static(b"an event");
        Change::of_event(&event, new(None, Some(Image::new("acme", "rooms", b"another")), None));
    }
}
