//! Turns a raw change event into what subscribers can be told of: a change, a gap, or nothing.
//!
//! In two steps, since most events may concern nobody: [`Normalizer::find`] says where an event belongs, and takes no memory;
//! [`Normalizer::change`] makes the change of it that shards are given. Only the event's own fields and the root of its documents are
//! looked at, never the user's fields: this runs on the one thread that can't be multiplied.

use std::sync::Arc;

use bson::{RawBsonRef, RawDocument};
use bytes::Bytes;
use bytestring::ByteString;
use predicate::{Mapping, field, mapping::Nested};
use shards::{Bare, Change, Image, Scope};
use smallvec::{SmallVec, smallvec};
use wire::{GapReason, Operation, PlaceHash, Position};

use super::{
    event::{Malformed, RawEvent, Verb, document},
    root::{Names, Root},
};

/// What becomes of one change event.
#[derive(Debug)]
pub enum Concern<'a> {
    Document(Found<'a>),
    /// A rename concerns two scopes.
    Gap {
        scopes: SmallVec<[Scope; 2]>,
        reason: GapReason,
    },
    Skip(Skip),
}

/// A change of a document, as the event has it.
#[derive(Debug)]
pub struct Found<'a> {
    operation: Operation,
    /// `_id` as stored.
    pub key: RawBsonRef<'a>,
    before: Option<Placed<'a>>,
    after: Option<Placed<'a>>,
    /// What is known of the place where there is no image.
    bare: Option<BarePlace<'a>>,
}

/// An image and its place. The names are UTF-8.
#[derive(Clone, Copy, Debug)]
struct Placed<'a> {
    place: PlaceHash,
    tenant: &'a [u8],
    collection: &'a [u8],
    document: &'a [u8],
}

#[derive(Clone, Copy, Debug)]
struct BarePlace<'a> {
    tenant: Option<&'a [u8]>,
    collection: Option<&'a [u8]>,
}

impl Found<'_> {
    /// The places that it concerns, each once: two after a move. None where the place isn't known.
    pub fn places(&self) -> Option<SmallVec<[PlaceHash; 2]>> {
        if let Some(bare) = &self.bare {
            let place = PlaceHash::of_bytes(bare.tenant?, bare.collection?);
            return Some(smallvec![place]);
        }
        let mut places = SmallVec::new();
        for image in [&self.after, &self.before].into_iter().flatten() {
            if places.last() != Some(&image.place) {
                places.push(image.place);
            }
        }
        Some(places)
    }
}

/// Why an event concerns no subscriber. Each has its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Skip {
    /// An operation that changes no document, or one that this version doesn't know.
    Operation,
    /// Neither image names a tenant and a collection: not a document of this layout.
    NoPlace,
    /// The tenant in `_id` and the tenant in the document disagree.
    TenantMismatch,
    /// An update whose document was gone when the source looked it up, and of which no earlier image is known either. Its delete
    /// follows in the stream.
    LookedUpNothing,
}

impl Skip {
    pub const ALL: [Skip; 4] = [Skip::Operation, Skip::NoPlace, Skip::TenantMismatch, Skip::LookedUpNothing];

    /// The value of the metric's `reason` label.
    pub fn name(self) -> &'static str {
        match self {
            Skip::Operation => "operation",
            Skip::NoPlace => "no_place",
            Skip::TenantMismatch => "tenant_mismatch",
            Skip::LookedUpNothing => "looked_up_nothing",
        }
    }
}

/// What events are normalized by.
#[derive(Debug)]
pub struct Normalizer {
    mapping: Arc<Mapping>,
    /// Of the nested layout.
    names: Option<Names>,
}

impl Normalizer {
    pub fn new(mapping: Arc<Mapping>) -> Self {
        let names = match &*mapping {
            Mapping::Plain => None,
            Mapping::Nested(nested) => Some(Names::of(nested)),
        };
        Self { mapping, names }
    }

    /// What an event concerns.
    ///
    /// # Errors
    /// When a field is missing that its operation can't be without.
    #[inline]
    pub fn find<'a>(&self, fields: &RawEvent<'a>) -> Result<Concern<'a>, Malformed> {
        let operation = match fields.verb {
            Verb::Insert => Operation::Insert,
            Verb::Update | Verb::Replace => Operation::Update,
            Verb::Delete => Operation::Delete,
            Verb::Drop => return self.gap(fields, GapReason::Dropped),
            Verb::Rename => return self.gap(fields, GapReason::Renamed),
            Verb::DropDatabase => return self.gap(fields, GapReason::DatabaseDropped),
            Verb::Invalidate => {
                return Ok(Concern::Gap { scopes: smallvec![Scope::Everything], reason: GapReason::Invalidated });
            }
            Verb::Missing => return Err(Malformed::Lacks("operationType")),
            Verb::Other => return Ok(Concern::Skip(Skip::Operation)),
        };
        let key = fields.key().ok_or(Malformed::Lacks("documentKey._id"))?;
        if operation == Operation::Insert && fields.after.is_none() {
            return Err(Malformed::Lacks("fullDocument"));
        }
        // An update whose document is gone still tells those whom it concerned before: the delete that follows carries a later image,
        // which may concern others.
        if operation == Operation::Update && fields.after.is_none() && fields.before.is_none() {
            return Ok(Concern::Skip(Skip::LookedUpNothing));
        }
        match &self.names {
            None => plain(fields, operation, key),
            Some(names) => Ok(nested(names, fields, operation, key)),
        }
    }

    /// What concerns a namespace. Under the nested layout one physical collection holds many logical ones, so all are concerned.
    #[cold]
    fn gap<'a>(&self, fields: &RawEvent<'a>, reason: GapReason) -> Result<Concern<'a>, Malformed> {
        let scopes = match &*self.mapping {
            Mapping::Nested(_) => smallvec![Scope::Everything],
            Mapping::Plain => {
                let (database, collection) = fields.namespace();
                let database = database.ok_or(Malformed::Lacks("ns.db"))?;
                match collection {
                    None => smallvec![Scope::Tenant(owned(database))],
                    Some(collection) => [(database, collection)]
                        .into_iter()
                        .chain(fields.renamed_to())
                        .map(|(tenant, collection)| Scope::Collection {
                            tenant: owned(tenant),
                            collection: owned(collection),
                        })
                        .collect(),
                }
            }
        };
        Ok(Concern::Gap { scopes, reason })
    }

    /// The change at `position`. `event` holds the bytes that `fields` and `found` were read from; images are slices of it.
    pub fn change(&self, event: &Bytes, fields: &RawEvent<'_>, found: &Found<'_>, position: Position) -> Change {
        let key = Bytes::from(predicate::stored_id(found.key));
        let image = |placed: &Placed<'_>| Image {
            place: placed.place,
            tenant: slice_of(event, placed.tenant),
            collection: slice_of(event, placed.collection),
            document: event.slice_ref(placed.document),
        };
        let (operation, document_id) = match &*self.mapping {
            Mapping::Plain => (found.operation, Some(key.clone())),
            Mapping::Nested(nested) => {
                let image = found.after.or(found.before).and_then(|image| document(image.document));
                let id = image.and_then(|image| self.mapping.document_id(image));
                (soft(nested, fields, found.operation), id.map(Bytes::from))
            }
        };
        Change {
            position,
            operation,
            key,
            document_id,
            before: found.before.as_ref().map(image),
            after: found.after.as_ref().map(image),
            bare: found.bare.map(|bare| Bare {
                tenant: bare.tenant.map(|tenant| slice_of(event, tenant)),
                collection: bare.collection.map(|collection| slice_of(event, collection)),
            }),
        }
    }
}

/// A text that was read from an event, in memory of its own.
fn owned(text: &[u8]) -> ByteString {
    String::from_utf8_lossy(text).as_ref().into()
}

/// A text that was read from `event`, as a slice of it.
fn slice_of(event: &Bytes, text: &[u8]) -> ByteString {
    ByteString::try_from(event.slice_ref(text)).expect("names are found to be UTF-8 when they are read")
}

#[inline]
fn plain<'a>(fields: &RawEvent<'a>, operation: Operation, key: RawBsonRef<'a>) -> Result<Concern<'a>, Malformed> {
    let (database, collection) = fields.namespace();
    let tenant = database.ok_or(Malformed::Lacks("ns.db"))?;
    let collection = collection.ok_or(Malformed::Lacks("ns.coll"))?;
    let place = PlaceHash::of_bytes(tenant, collection);
    let image = |document: &'a [u8]| Placed { place, tenant, collection, document };
    let before = fields.before.map(image);
    let after = fields.after.filter(|_| operation != Operation::Delete).map(image);
    let bare = (before.is_none() && after.is_none())
        .then_some(BarePlace { tenant: Some(tenant), collection: Some(collection) });
    Ok(Concern::Document(Found { operation, key, before, after, bare }))
}

#[inline]
fn nested<'a>(names: &Names, fields: &RawEvent<'a>, operation: Operation, key: RawBsonRef<'a>) -> Concern<'a> {
    let root = |image: Option<&'a [u8]>| image.map(|image| names.root(image)).unwrap_or_default();
    let after_image = fields.after.filter(|_| operation != Operation::Delete);
    let (before, after) = (root(fields.before), root(after_image));
    let key_text = key.as_str().unwrap_or_default().as_bytes();
    let disagrees = |root: Root<'_>| root.tenant.is_some_and(|tenant| !may_be_of(key_text, tenant));
    if disagrees(after) || (before.tenant != after.tenant && disagrees(before)) {
        return Concern::Skip(Skip::TenantMismatch);
    }
    let placed = |image: Option<&'a [u8]>, root: Root<'a>, known: Option<Placed<'a>>| {
        let (document, tenant, collection) = (image?, root.tenant?, root.collection?);
        let place = match known {
            Some(known) if known.tenant == tenant && known.collection == collection => known.place,
            _ => PlaceHash::of_bytes(tenant, collection),
        };
        Some(Placed { place, tenant, collection, document })
    };
    let after = placed(after_image, after, None);
    let before = placed(fields.before, before, after);
    let bare = match (&before, &after) {
        (None, None) if operation == Operation::Delete => {
            Some(BarePlace { tenant: tenant_of(key_text), collection: None })
        }
        (None, None) => return Concern::Skip(Skip::NoPlace),
        _ => None,
    };
    Concern::Document(Found { operation, key, before, after, bare })
}

/// The tenant that a stored id names: what stands before its last colon.
fn tenant_of(key: &[u8]) -> Option<&[u8]> {
    key.iter().rposition(|byte| *byte == b':').map(|colon| &key[..colon])
}

/// Whether a document with this stored id may be this tenant's: it is, or the id names none.
#[inline(always)]
fn may_be_of(key: &[u8], tenant: &[u8]) -> bool {
    if let Some((colon, rest)) = key.strip_prefix(tenant).and_then(|rest| rest.split_first())
        && *colon == b':'
    {
        // All of them, which is quicker than to stop at the first one, where there is hardly ever one.
        let more = rest.iter().fold(false, |seen, byte| seen | (*byte == b':'));
        if !more {
            return true;
        }
    }
    tenant_of(key).is_none_or(|named| named == tenant)
}

/// What an operation is to subscribers where documents are deleted softly. An update is judged by what it changed, never by the
/// document that was looked up after it; a replacement carries its own document.
fn soft(names: &Nested, fields: &RawEvent<'_>, operation: Operation) -> Operation {
    if operation != Operation::Update {
        return operation;
    }
    if fields.verb == Verb::Replace {
        let is_deleted = |image: Option<&[u8]>| {
            let mark = image.and_then(document).and_then(|image| field(image, &names.deleted));
            mark.and_then(|mark| mark.as_bool()).unwrap_or(false)
        };
        return match (is_deleted(fields.before), is_deleted(fields.after)) {
            (_, true) => Operation::Delete,
            (true, false) => Operation::Insert,
            (false, false) => Operation::Update,
        };
    }
    let Some(update) = fields.update.and_then(document) else { return operation };
    let set =
        field(update, "updatedFields").and_then(|set| set.as_document()).and_then(|set| field(set, &names.deleted));
    match set.map(|value| value.as_bool()) {
        Some(Some(true)) => Operation::Delete,
        Some(_) => Operation::Insert,
        None if removes(update, &names.deleted) => Operation::Insert,
        None => operation,
    }
}

fn removes(update: &RawDocument, name: &str) -> bool {
    let Some(RawBsonRef::Array(removed)) = field(update, "removedFields") else { return false };
    removed.into_iter().flatten().any(|removed| removed.as_str() == Some(name))
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
