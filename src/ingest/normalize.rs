//! Turns a raw change event into what subscribers can be told of: a change, a gap, or nothing.
//!
//! In two steps, since most events may concern nobody: [`Normalizer::find`] says where an event belongs, and takes no memory;
//! [`Normalizer::change`] makes the change of it that shards are given. Only the event's own fields and the root of its documents are
//! looked at, never the user's fields: this runs on the one thread that can't be multiplied.

use std::sync::Arc;

use bson::{RawBsonRef, RawDocument};
use bytes::Bytes;
use bytestring::ByteString;
use predicate::{CanonicalBytes, Mapping, field, mapping::Nested, write_canonical};
use shards::{Bare, Change, FilterKey, Image, NewChange, Scope, StoredId};
use smallvec::{SmallVec, smallvec};
use wire::{GapReason, Operation, PlaceHash, Position};

use super::{
    elements::{Unsure, has_byte},
    event::{Key, Malformed, RawEvent, Verb, document, stored_text},
    root::{Names, Root},
};

/// What becomes of one change event.
#[derive(Debug)]
pub enum Concern {
    /// A change of a document, which stands in the [`Found`] that was given.
    Document,
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
    key: Key<'a>,
    before: Placed<'a>,
    after: Placed<'a>,
    /// What is known of the place where there is no image.
    bare: Option<BarePlace<'a>>,
}

/// An image and its place; without an image, nothing of all that. The names are UTF-8.
#[derive(Clone, Copy, Debug)]
struct Placed<'a> {
    place: PlaceHash,
    tenant: &'a [u8],
    collection: &'a [u8],
    /// No document is empty.
    document: &'a [u8],
}

impl<'a> Placed<'a> {
    const NOWHERE: Self = Self { place: PlaceHash(0), tenant: &[], collection: &[], document: &[] };

    #[inline(always)]
    fn is_there(&self) -> bool {
        !self.document.is_empty()
    }

    #[inline(always)]
    fn image(&self) -> Option<Image<'a>> {
        let Self { place, tenant, collection, document } = *self;
        self.is_there().then_some(Image { place, tenant, collection, document })
    }
}

#[derive(Clone, Copy, Debug)]
struct BarePlace<'a> {
    tenant: Option<&'a [u8]>,
    collection: Option<&'a [u8]>,
}

/// The places that a change concerns: two after a move.
pub type Places = [Option<PlaceHash>; 2];

impl<'a> Found<'a> {
    /// What [`Normalizer::find`] writes over. It is filled in place: it isn't small, and is looked at for every event.
    pub const NOTHING: Self = Self {
        operation: Operation::Insert,
        key: Key::Text(&[]),
        before: Placed::NOWHERE,
        after: Placed::NOWHERE,
        bare: None,
    };

    /// The places that it concerns, each once. None where the place isn't known.
    #[inline(always)]
    pub fn places(&self) -> Option<Places> {
        let (after, before) = (&self.after, &self.before);
        match (after.is_there(), before.is_there()) {
            (true, true) if before.place != after.place => Some([Some(after.place), Some(before.place)]),
            (true, _) => Some([Some(after.place), None]),
            (false, true) => Some([Some(before.place), None]),
            (false, false) => {
                let bare = self.bare?;
                Some([Some(PlaceHash::of_bytes(bare.tenant?, bare.collection?)), None])
            }
        }
    }

    /// What the filters know the document by; None where nobody can watch it by its id.
    pub fn filter_key(&self) -> Option<FilterKey> {
        let mut canonical = CanonicalBytes::new();
        write_canonical(self.key.value(), &mut canonical).then(|| FilterKey::document(&canonical))
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

    /// What an event concerns; of a document, what was found is put into `found`.
    ///
    /// # Errors
    /// When a field is missing that its operation can't be without.
    #[inline(always)]
    pub fn find<'a>(&self, fields: &RawEvent<'a>, found: &mut Found<'a>) -> Result<Concern, Malformed> {
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
        found.operation = operation;
        found.key = key;
        match &self.names {
            None => plain(fields, found)?,
            Some(names) => {
                if let Some(skip) = nested(names, fields, found) {
                    return Ok(Concern::Skip(skip));
                }
            }
        }
        Ok(Concern::Document)
    }

    /// What concerns a namespace. Under the nested layout one physical collection holds many logical ones, so all are concerned.
    #[cold]
    fn gap(&self, fields: &RawEvent<'_>, reason: GapReason) -> Result<Concern, Malformed> {
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

    /// Whom an event may concern of which nothing but its own fields is known.
    #[cold]
    pub fn may_concern(&self, fields: &RawEvent<'_>) -> SmallVec<[Scope; 2]> {
        let scope = match &*self.mapping {
            Mapping::Nested(_) => fields.key().and_then(|key| tenant_of(key.text())).map(|t| Scope::Tenant(owned(t))),
            Mapping::Plain => match fields.namespace() {
                (Some(tenant), Some(collection)) => {
                    Some(Scope::Collection { tenant: owned(tenant), collection: owned(collection) })
                }
                (Some(tenant), None) => Some(Scope::Tenant(owned(tenant))),
                (None, _) => None,
            },
        };
        smallvec![scope.unwrap_or(Scope::Everything)]
    }

    /// The change at `position`. `event` holds the bytes that `fields` and `found` were read from; images are slices of it.
    pub fn change<'a>(&self, event: &'a Bytes, fields: &RawEvent<'a>, found: &Found<'a>, position: Position) -> Change {
        let (operation, document_id) = match (&*self.mapping, &self.names) {
            (Mapping::Nested(nested), Some(names)) => {
                let image = if found.after.is_there() { &found.after } else { &found.before };
                (soft(nested, fields, found.operation), self.document_id(names, image.document))
            }
            // It is the key.
            _ => (found.operation, None),
        };
        let name = |name| std::str::from_utf8(name).expect("names are found to be UTF-8 when they are read");
        let bare = |bare: BarePlace<'a>| Bare { tenant: bare.tenant.map(name), collection: bare.collection.map(name) };
        let new = NewChange {
            position,
            operation,
            key: found.key.stored(),
            document_id,
            before: found.before.image(),
            after: found.after.image(),
            bare: found.bare.map(bare),
        };
        Change::of_event(event, new)
    }

    /// As [`Mapping::document_id`] has it, from the bytes of an image, if there are any.
    fn document_id(&self, names: &Names, image: &[u8]) -> Option<StoredId> {
        match names.id(image) {
            Ok(id) => id.map(stored_text),
            Err(Unsure) => document(image).and_then(|image| self.mapping.document_id(image)).map(StoredId::from),
        }
    }
}

/// A text that was read from an event, in memory of its own.
fn owned(text: &[u8]) -> ByteString {
    String::from_utf8_lossy(text).as_ref().into()
}

#[inline(always)]
fn plain<'a>(fields: &RawEvent<'a>, found: &mut Found<'a>) -> Result<(), Malformed> {
    let (database, collection) = fields.namespace();
    let tenant = database.ok_or(Malformed::Lacks("ns.db"))?;
    let collection = collection.ok_or(Malformed::Lacks("ns.coll"))?;
    let place = PlaceHash::of_bytes(tenant, collection);
    if let Some(document) = fields.before {
        found.before = Placed { place, tenant, collection, document };
    }
    if let Some(document) = fields.after
        && found.operation != Operation::Delete
    {
        found.after = Placed { place, tenant, collection, document };
    }
    if !found.before.is_there() && !found.after.is_there() {
        found.bare = Some(BarePlace { tenant: Some(tenant), collection: Some(collection) });
    }
    Ok(())
}

#[inline(always)]
fn nested<'a>(names: &Names, fields: &RawEvent<'a>, found: &mut Found<'a>) -> Option<Skip> {
    let key = found.key.text();
    let mut after = Root::default();
    if let Some(document) = fields.after
        && found.operation != Operation::Delete
    {
        after = names.root(document);
        if after.tenant.is_some_and(|tenant| !may_be_of(key, tenant)) {
            return Some(Skip::TenantMismatch);
        }
        if let (Some(tenant), Some(collection)) = (after.tenant, after.collection) {
            found.after = Placed { place: PlaceHash::of_bytes(tenant, collection), tenant, collection, document };
        }
    }
    if let Some(document) = fields.before {
        if found.after.is_there() && after.is_that_of(found.after.document, document) {
            found.before = Placed { document, ..found.after };
            return None;
        }
        let root = names.root(document);
        if root.tenant.is_some_and(|tenant| !may_be_of(key, tenant)) {
            return Some(Skip::TenantMismatch);
        }
        if let (Some(tenant), Some(collection)) = (root.tenant, root.collection) {
            let is_same = found.after.is_there() && (after.tenant, after.collection) == (root.tenant, root.collection);
            let place = if is_same { found.after.place } else { PlaceHash::of_bytes(tenant, collection) };
            found.before = Placed { place, tenant, collection, document };
        }
    }
    if !found.after.is_there() && !found.before.is_there() {
        if found.operation != Operation::Delete {
            return Some(Skip::NoPlace);
        }
        found.bare = Some(BarePlace { tenant: tenant_of(key), collection: None });
    }
    None
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
        && !has_byte(rest, b':')
    {
        return true;
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
