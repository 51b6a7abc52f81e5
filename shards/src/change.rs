//! What the ingest thread hands to shards.

use std::sync::Arc;

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

/// A change, normalized and numbered. Slices refer to the batch it was read in.
#[derive(Clone, Debug)]
pub struct Change {
    pub position: Position,
    /// What it is to subscribers: a soft delete is a delete, its undoing an insert.
    pub operation: Operation,
    /// `_id` of the document as stored: one byte of BSON type, then the value.
    pub key: Bytes,
    /// The document's id in the flat view (for `plain` the same as `key`), where it is known.
    pub document_id: Option<Bytes>,
    pub before: Option<Image>,
    /// Absent after a hard delete.
    pub after: Option<Image>,
    /// What is known of the place of a hard delete that came without an image.
    pub bare: Option<Bare>,
}

/// A document as it was, and where.
#[derive(Clone, Debug)]
pub struct Image {
    /// Hash of the two names below.
    pub place: PlaceHash,
    pub tenant: ByteString,
    pub collection: ByteString,
    /// BSON, as the source gave it.
    pub document: Bytes,
}

impl Image {
    pub fn new(tenant: ByteString, collection: ByteString, document: Bytes) -> Self {
        Self { place: PlaceHash::of(&tenant, &collection), tenant, collection, document }
    }
}

#[derive(Clone, Debug)]
pub struct Bare {
    pub tenant: Option<ByteString>,
    pub collection: Option<ByteString>,
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
