//! Turns a raw change event into what subscribers can be told of: a change, a gap, or nothing.
//!
//! Only the event's own fields and the root of its documents are looked at, never the user's fields: this runs on the one
//! thread that can't be multiplied.

use bson::{RawBsonRef, RawDocument};
use bytes::Bytes;
use bytestring::ByteString;
use predicate::{Mapping, field, mapping::Nested};
use shards::{Bare, Change, Image, Scope};
use smallvec::{SmallVec, smallvec};
use wire::{GapReason, Operation, PlaceHash, Position};

/// What becomes of one change event.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "made and taken apart at once, for every event: a box costs more than the move"
)]
pub enum Normalized {
    Change(Change),
    /// A rename concerns two scopes.
    Gap {
        scopes: SmallVec<[Scope; 2]>,
        reason: GapReason,
    },
    Skip(Skip),
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

/// The event is not of the form that the source's protocol promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("change event is not valid BSON: {0}")]
    Bson(String),
    #[error("change event lacks `{0}`")]
    Lacks(&'static str),
}

/// A change event's fields, borrowed from its bytes.
#[derive(Debug, Default)]
pub struct RawEvent<'a> {
    pub token: Option<&'a RawDocument>,
    pub operation: &'a str,
    /// `(seconds << 32) | increment`.
    pub cluster_time: Option<u64>,
    database: Option<&'a str>,
    collection: Option<&'a str>,
    renamed_to: Option<(&'a str, &'a str)>,
    key: Option<RawBsonRef<'a>>,
    after: Option<&'a RawDocument>,
    before: Option<&'a RawDocument>,
    update: Option<&'a RawDocument>,
}

impl<'a> RawEvent<'a> {
    /// Reads the fields of `event`.
    ///
    /// # Errors
    /// When it isn't BSON. Fields that are missing are found out by whoever needs them.
    pub fn parse(event: &'a [u8]) -> Result<Self, Malformed> {
        let bad = |error: bson::error::Error| Malformed::Bson(error.to_string());
        let mut fields = Self::default();
        for element in RawDocument::from_bytes(event).map_err(bad)?.iter_elements() {
            let element = element.map_err(bad)?;
            // A value is read, and its text checked, only where it is wanted.
            let value = || element.value().map_err(bad);
            match element.key().as_str() {
                "_id" => fields.token = value()?.as_document(),
                "operationType" => fields.operation = value()?.as_str().unwrap_or_default(),
                "clusterTime" => {
                    fields.cluster_time =
                        value()?.as_timestamp().map(|t| (u64::from(t.time) << 32) | u64::from(t.increment));
                }
                "ns" => {
                    (fields.database, fields.collection) = value()?.as_document().map(namespace).unwrap_or_default()
                }
                "to" => {
                    if let Some((Some(database), Some(collection))) = value()?.as_document().map(namespace) {
                        fields.renamed_to = Some((database, collection));
                    }
                }
                "documentKey" => fields.key = value()?.as_document().and_then(|key| field(key, "_id")),
                "fullDocument" => fields.after = value()?.as_document(),
                "fullDocumentBeforeChange" => fields.before = value()?.as_document(),
                "updateDescription" => fields.update = value()?.as_document(),
                _ => {}
            }
        }
        Ok(fields)
    }
}

fn namespace(ns: &RawDocument) -> (Option<&str>, Option<&str>) {
    let text = |name| field(ns, name).and_then(|value| value.as_str());
    (text("db"), text("coll"))
}

/// A text that `fields` were read from, as a slice of `event`.
fn slice_of(event: &Bytes, text: &str) -> ByteString {
    ByteString::try_from(event.slice_ref(text.as_bytes())).expect("the bytes of a text are a text")
}

/// The root fields of a document that place it, under the `Nested` mapping.
struct Root<'a> {
    tenant: Option<&'a str>,
    collection: Option<&'a str>,
    deleted: bool,
}

fn root<'a>(document: &'a RawDocument, names: &Nested) -> Root<'a> {
    let text = |name: &String| field(document, name).and_then(|value| value.as_str());
    Root {
        tenant: names.tenant.iter().find_map(text),
        collection: text(&names.collection),
        deleted: field(document, &names.deleted).and_then(|value| value.as_bool()).unwrap_or(false),
    }
}

/// Normalizes a change event whose fields have been read and whose place is known. `event` holds the bytes that `fields` were
/// read from; images are slices of it.
///
/// # Errors
/// When a field is missing that its operation can't be without.
pub fn normalize(
    mapping: &Mapping,
    event: &Bytes,
    fields: &RawEvent<'_>,
    position: Position,
) -> Result<Normalized, Malformed> {
    let operation = match fields.operation {
        "insert" => Operation::Insert,
        "update" | "replace" => Operation::Update,
        "delete" => Operation::Delete,
        "drop" => return gap(mapping, fields, GapReason::Dropped),
        "rename" => return gap(mapping, fields, GapReason::Renamed),
        "dropDatabase" => return gap(mapping, fields, GapReason::DatabaseDropped),
        "invalidate" => {
            return Ok(Normalized::Gap { scopes: smallvec![Scope::Everything], reason: GapReason::Invalidated });
        }
        "" => return Err(Malformed::Lacks("operationType")),
        _ => return Ok(Normalized::Skip(Skip::Operation)),
    };
    let key = fields.key.ok_or(Malformed::Lacks("documentKey._id"))?;
    if operation == Operation::Insert && fields.after.is_none() {
        return Err(Malformed::Lacks("fullDocument"));
    }
    // An update whose document is gone still tells those whom it concerned before: the delete that follows carries a later image,
    // which may concern others.
    if operation == Operation::Update && fields.after.is_none() && fields.before.is_none() {
        return Ok(Normalized::Skip(Skip::LookedUpNothing));
    }
    match mapping {
        Mapping::Plain => plain(event, fields, position, operation, key),
        Mapping::Nested(names) => Ok(nested(names, event, fields, position, operation, key)),
    }
}

fn plain(
    event: &Bytes,
    fields: &RawEvent<'_>,
    position: Position,
    operation: Operation,
    key: RawBsonRef<'_>,
) -> Result<Normalized, Malformed> {
    let tenant = slice_of(event, fields.database.ok_or(Malformed::Lacks("ns.db"))?);
    let collection = slice_of(event, fields.collection.ok_or(Malformed::Lacks("ns.coll"))?);
    let place = PlaceHash::of(&tenant, &collection);
    let image = |document: &RawDocument| Image {
        place,
        tenant: tenant.clone(),
        collection: collection.clone(),
        document: event.slice_ref(document.as_bytes()),
    };
    let before = fields.before.map(image);
    let after = if operation == Operation::Delete { None } else { fields.after.map(image) };
    let bare = (before.is_none() && after.is_none())
        .then(|| Bare { tenant: Some(tenant.clone()), collection: Some(collection.clone()) });
    let key = Bytes::from(predicate::stored_id(key));
    let document_id = Some(key.clone());
    Ok(Normalized::Change(Change { position, operation, key, document_id, before, after, bare }))
}

fn nested(
    names: &Nested,
    event: &Bytes,
    fields: &RawEvent<'_>,
    position: Position,
    operation: Operation,
    key: RawBsonRef<'_>,
) -> Normalized {
    let before_root = fields.before.map(|document| root(document, names));
    let after = if operation == Operation::Delete { None } else { fields.after };
    let after_root = after.map(|document| root(document, names));

    let key_tenant = key.as_str().and_then(|id| id.rsplit_once(':')).map(|(tenant, _)| tenant);
    let disagrees = |found: &Option<Root<'_>>| {
        let in_field = found.as_ref().and_then(|root| root.tenant);
        in_field.zip(key_tenant).is_some_and(|(in_field, in_key)| in_field != in_key)
    };
    if disagrees(&after_root) || disagrees(&before_root) {
        return Normalized::Skip(Skip::TenantMismatch);
    }

    let seen_as = soft(names, fields, operation, &before_root, &after_root);
    let image = |document: Option<&RawDocument>, found: Option<Root<'_>>| {
        let (document, found) = document.zip(found)?;
        let (tenant, collection) = (slice_of(event, found.tenant?), slice_of(event, found.collection?));
        Some(Image::new(tenant, collection, event.slice_ref(document.as_bytes())))
    };
    let before = image(fields.before, before_root);
    let after = image(after, after_root);
    let bare = match (&before, &after) {
        (None, None) if operation == Operation::Delete => {
            Some(Bare { tenant: key_tenant.map(|tenant| slice_of(event, tenant)), collection: None })
        }
        (None, None) => return Normalized::Skip(Skip::NoPlace),
        _ => None,
    };
    let key = Bytes::from(predicate::stored_id(key));
    Normalized::Change(Change { position, operation: seen_as, key, document_id: None, before, after, bare })
}

/// What an operation is to subscribers where documents are deleted softly. An update is judged by what it changed, never by the
/// document that was looked up after it; a replacement carries its own document.
fn soft(
    names: &Nested,
    fields: &RawEvent<'_>,
    operation: Operation,
    before: &Option<Root<'_>>,
    after: &Option<Root<'_>>,
) -> Operation {
    if operation != Operation::Update {
        return operation;
    }
    if fields.operation == "replace" {
        let deleted = after.as_ref().is_some_and(|root| root.deleted);
        let was_deleted = before.as_ref().is_some_and(|root| root.deleted);
        return match (was_deleted, deleted) {
            (_, true) => Operation::Delete,
            (true, false) => Operation::Insert,
            (false, false) => Operation::Update,
        };
    }
    let Some(update) = fields.update else { return operation };
    let set =
        field(update, "updatedFields").and_then(|set| set.as_document()).and_then(|set| field(set, &names.deleted));
    let removed = update
        .get_array("removedFields")
        .is_ok_and(|removed| removed.into_iter().flatten().any(|name| name.as_str() == Some(&names.deleted)));
    match set.map(|value| value.as_bool()) {
        Some(Some(true)) => Operation::Delete,
        Some(_) => Operation::Insert,
        None if removed => Operation::Insert,
        None => operation,
    }
}

/// What concerns a namespace. Under the nested layout one physical collection holds many logical ones, so all are concerned.
fn gap(mapping: &Mapping, fields: &RawEvent<'_>, reason: GapReason) -> Result<Normalized, Malformed> {
    let scopes = match mapping {
        Mapping::Nested(_) => smallvec![Scope::Everything],
        Mapping::Plain => {
            let database = fields.database.ok_or(Malformed::Lacks("ns.db"))?;
            match fields.collection {
                None => smallvec![Scope::Tenant(database.into())],
                Some(collection) => [(database, collection)]
                    .into_iter()
                    .chain(fields.renamed_to)
                    .map(|(tenant, collection)| Scope::Collection {
                        tenant: tenant.into(),
                        collection: collection.into(),
                    })
                    .collect(),
            }
        }
    };
    Ok(Normalized::Gap { scopes, reason })
}
