//! What a writer may ask for, and the stored form of documents and change events.
//!
//! Documents are kept in the layout of the preset `syntrix`; a change event has MongoDB's own form, so that everything behind the
//! source reads one form only.

use std::collections::HashSet;

use bson::{DateTime, Document, RawArrayBuf, RawBsonRef, RawDocument, RawDocumentBuf, Timestamp, raw::cstr};
use bytes::Bytes;
use predicate::mapping::Nested;

/// Largest document, in bytes of BSON. The limit of MongoDB.
pub const DOCUMENT_BYTES_MAX: usize = 16 << 20;
/// Largest tenant name in bytes.
pub const TENANT_BYTES_MAX: usize = 256;
/// Largest collection path in bytes.
pub const COLLECTION_BYTES_MAX: usize = 1_024;
/// Largest document id in bytes.
pub const ID_BYTES_MAX: usize = 1_024;

/// One change that a writer asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum DocumentWrite {
    /// Stores `data` as the whole of the user's fields: an insert, a replace, or the recreation of a soft-deleted document.
    Put { tenant: String, collection: String, id: String, data: Document },
    /// Sets and removes fields of the top level of the user's fields. Nothing happens to a document that is missing or soft-deleted.
    Merge { tenant: String, collection: String, id: String, set: Document, unset: Vec<String> },
    /// Marks the document as deleted and keeps it.
    SoftDelete { tenant: String, collection: String, id: String },
    /// Removes the document, also a soft-deleted one.
    Delete { tenant: String, collection: String, id: String },
}

impl DocumentWrite {
    /// Tenant, collection and document id.
    pub fn place(&self) -> (&str, &str, &str) {
        match self {
            Self::Put { tenant, collection, id, .. }
            | Self::Merge { tenant, collection, id, .. }
            | Self::SoftDelete { tenant, collection, id }
            | Self::Delete { tenant, collection, id } => (tenant, collection, id),
        }
    }
}

/// A validated write, with its values already encoded: the writer thread has only to look up and to copy.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) storage_id: String,
    pub(super) tenant: String,
    pub(super) collection: String,
    pub(super) full_path: String,
    pub(super) action: Action,
}

#[derive(Debug)]
pub(super) enum Action {
    /// The user's fields, `id` first.
    Put(RawDocumentBuf),
    Merge {
        set: RawDocumentBuf,
        unset: Vec<String>,
    },
    SoftDelete,
    Delete,
}

impl Prepared {
    /// The error says what is wrong and what is allowed.
    pub(super) fn new(write: DocumentWrite) -> Result<Self, String> {
        let (tenant, collection, id) = write.place();
        check_tenant(tenant)?;
        check_collection(collection)?;
        check_id(id)?;
        let storage_id = Nested::storage_id(tenant, collection, id);
        let full_path = format!("{collection}/{id}");
        let (tenant, collection, action) = match write {
            DocumentWrite::Put { tenant, collection, id, data } => {
                (tenant, collection, Action::Put(encode_data(&id, &data)?))
            }
            DocumentWrite::Merge { tenant, collection, set, unset, .. } => {
                if set.contains_key("id") || unset.iter().any(|field| field == "id") {
                    return Err("field `id` can't be changed: it is the document id; leave it out".into());
                }
                if let Some(both) = unset.iter().find(|field| set.contains_key(field.as_str())) {
                    return Err(format!("field {both:?} is both set and removed; name it in one of the two"));
                }
                let set = RawDocumentBuf::try_from(&set).map_err(not_bson)?;
                (tenant, collection, Action::Merge { set, unset })
            }
            DocumentWrite::SoftDelete { tenant, collection, .. } => (tenant, collection, Action::SoftDelete),
            DocumentWrite::Delete { tenant, collection, .. } => (tenant, collection, Action::Delete),
        };
        Ok(Self { storage_id, tenant, collection, full_path, action })
    }

    /// What waiting in the queue costs in memory, roughly.
    pub(super) fn bytes(&self) -> usize {
        let values = match &self.action {
            Action::Put(data) => data.as_bytes().len(),
            Action::Merge { set, unset } => set.as_bytes().len() + unset.iter().map(String::len).sum::<usize>(),
            Action::SoftDelete | Action::Delete => 0,
        };
        values + self.storage_id.len() + self.tenant.len() + self.collection.len() + self.full_path.len() + 128
    }
}

/// The user's fields with `id` as the first of them.
fn encode_data(id: &str, data: &Document) -> Result<RawDocumentBuf, String> {
    match data.get("id") {
        None => {}
        Some(bson::Bson::String(own)) if own == id => {}
        Some(other) => {
            return Err(format!(
                "field `id` of the document is {other}, but it is written as document {id:?}; the two must be equal, or leave `id` out"
            ));
        }
    }
    let fields = RawDocumentBuf::try_from(data).map_err(not_bson)?;
    let mut encoded = RawDocumentBuf::new();
    encoded.append(cstr!("id"), id);
    for field in fields.iter() {
        let (name, value) = field.map_err(not_bson)?;
        if name.as_str() != "id" {
            encoded.append(name, value);
        }
    }
    Ok(encoded)
}

fn not_bson(error: bson::error::Error) -> String {
    format!("the fields can't be stored as BSON: {error}; field names must not contain a NUL character")
}

fn check_text(what: &str, text: &str, bytes_max: usize) -> Result<(), String> {
    if text.is_empty() || text.len() > bytes_max {
        return Err(format!("{what} has {} bytes; allowed are 1 to {bytes_max}", text.len()));
    }
    if let Some(bad) = text.chars().find(|c| c.is_control()) {
        return Err(format!("{what} {text:?} contains {bad:?}; control characters are not allowed"));
    }
    Ok(())
}

fn check_tenant(tenant: &str) -> Result<(), String> {
    check_text("tenant", tenant, TENANT_BYTES_MAX)?;
    match tenant.chars().find(|c| matches!(c, '/' | ':')) {
        Some(bad) => Err(format!(
            "tenant {tenant:?} contains {bad:?}; allowed is everything but `/`, `:` and control characters"
        )),
        None => Ok(()),
    }
}

fn check_collection(collection: &str) -> Result<(), String> {
    check_text("collection", collection, COLLECTION_BYTES_MAX)?;
    if collection.split('/').any(str::is_empty) {
        return Err(format!(
            "collection {collection:?} has an empty segment; allowed are segments of at least one character, joined by single `/`"
        ));
    }
    Ok(())
}

fn check_id(id: &str) -> Result<(), String> {
    check_text("document id", id, ID_BYTES_MAX)?;
    if id.contains('/') {
        return Err(format!("document id {id:?} contains '/'; allowed is everything but `/` and control characters"));
    }
    Ok(())
}

/// What the store needs to know of a stored document before it changes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Current<'a> {
    pub(super) version: i64,
    pub(super) created_at: i64,
    pub(super) deleted: bool,
    pub(super) data: &'a RawDocument,
}

impl<'a> Current<'a> {
    pub(super) fn of(document: &'a RawDocument) -> Result<Self, bson::error::Error> {
        let mut current = Self { version: 0, created_at: 0, deleted: false, data: RawDocument::from_bytes(EMPTY)? };
        for field in document.iter() {
            let (name, value) = field?;
            match (name.as_str(), value) {
                ("version", RawBsonRef::Int64(version)) => current.version = version,
                ("created_at", RawBsonRef::Int64(at)) => current.created_at = at,
                ("deleted", RawBsonRef::Boolean(deleted)) => current.deleted = deleted,
                ("data", RawBsonRef::Document(data)) => current.data = data,
                _ => {}
            }
        }
        Ok(current)
    }
}

/// The fields of a new state of a document that are not in the write itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    pub(super) version: i64,
    pub(super) created_at: i64,
    pub(super) updated_at: i64,
    pub(super) deleted: bool,
}

/// A whole document in the layout of the preset.
pub(super) fn document(write: &Prepared, stamp: Stamp, data: &RawDocument) -> RawDocumentBuf {
    let mut document = RawDocumentBuf::new();
    document.append(cstr!("_id"), write.storage_id.as_str());
    document.append(cstr!("tenant_id"), write.tenant.as_str());
    document.append(cstr!("collection"), write.collection.as_str());
    document.append(cstr!("fullpath"), write.full_path.as_str());
    // The document that a sub-collection belongs to; empty for a collection of the top level.
    let parent = write.collection.rsplit_once('/').map_or("", |(parent, _)| parent);
    document.append(cstr!("parent"), parent);
    document.append(cstr!("version"), stamp.version);
    document.append(cstr!("created_at"), stamp.created_at);
    document.append(cstr!("updated_at"), stamp.updated_at);
    if stamp.deleted {
        document.append(cstr!("deleted"), true);
    }
    document.append(cstr!("data"), data);
    document
}

/// `data` with the fields of `set` in place of its own and without those of `unset`.
pub(super) fn merged(
    data: &RawDocument,
    set: &RawDocument,
    unset: &[String],
) -> Result<RawDocumentBuf, bson::error::Error> {
    let mut changed: HashSet<&str> = unset.iter().map(String::as_str).collect();
    for field in set.iter() {
        changed.insert(field?.0.as_str());
    }
    let mut merged = RawDocumentBuf::new();
    for field in data.iter() {
        let (name, value) = field?;
        if !changed.contains(name.as_str()) {
            merged.append(name, value);
        }
    }
    for field in set.iter() {
        let (name, value) = field?;
        merged.append(name, value);
    }
    Ok(merged)
}

/// What happened to a document, with the images that the event carries.
#[derive(Clone, Copy, Debug)]
pub(super) enum Happened<'a> {
    Insert { after: &'a RawDocument },
    Replace { before: &'a RawDocument, after: &'a RawDocument },
    Update { before: &'a RawDocument, after: &'a RawDocument, update: &'a RawDocument },
    Delete { before: &'a RawDocument },
}

/// Where and when an event stands in the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) store: u64,
    pub(super) offset: u64,
    pub(super) wall_ms: i64,
}

/// A change event in MongoDB's form. `clusterTime` is the log offset, its high half as seconds and its low half as increment.
pub(super) fn event(place: Place, storage_id: &str, happened: Happened<'_>) -> Bytes {
    let (operation, before, after, update) = match happened {
        Happened::Insert { after } => ("insert", None, Some(after), None),
        Happened::Replace { before, after } => ("replace", Some(before), Some(after), None),
        Happened::Update { before, after, update } => ("update", Some(before), Some(after), Some(update)),
        Happened::Delete { before } => ("delete", Some(before), None, None),
    };
    let mut key = RawDocumentBuf::new();
    key.append(cstr!("_id"), storage_id);
    let mut namespace = RawDocumentBuf::new();
    namespace.append(cstr!("db"), NAMESPACE.0);
    namespace.append(cstr!("coll"), NAMESPACE.1);

    let mut event = RawDocumentBuf::new();
    event.append(cstr!("_id"), token(place.store, place.offset));
    event.append(cstr!("operationType"), operation);
    event.append(cstr!("clusterTime"), cluster_time(place.offset));
    event.append(cstr!("wallTime"), DateTime::from_millis(place.wall_ms));
    event.append(cstr!("ns"), namespace);
    event.append(cstr!("documentKey"), key);
    if let Some(update) = update {
        event.append(cstr!("updateDescription"), update);
    }
    if let Some(after) = after {
        event.append(cstr!("fullDocument"), after);
    }
    if let Some(before) = before {
        event.append(cstr!("fullDocumentBeforeChange"), before);
    }
    event.into_bytes().into()
}

/// When an event was written, in ms.
pub(super) fn wall_ms(event: &[u8]) -> Option<i64> {
    RawDocument::from_bytes(event).ok()?.get_datetime("wallTime").ok().map(DateTime::timestamp_millis)
}

/// The description of an update that set or removed fields, each under its full path.
pub(super) fn update_description(updated: RawDocumentBuf, removed: &[String]) -> RawDocumentBuf {
    let mut names = RawArrayBuf::new();
    removed.iter().for_each(|field| names.push(format!("data.{field}").as_str()));
    let mut description = RawDocumentBuf::new();
    description.append(cstr!("updatedFields"), updated);
    description.append(cstr!("removedFields"), names);
    description.append(cstr!("truncatedArrays"), RawArrayBuf::new());
    description
}

/// The timestamp whose `(seconds << 32) | increment` is the offset.
pub(super) fn cluster_time(offset: u64) -> Timestamp {
    Timestamp { time: (offset >> 32) as u32, increment: offset as u32 }
}

/// The resume token of the event at `offset`: `{_data: hex of store id and offset}`.
pub(super) fn token(store: u64, offset: u64) -> RawDocumentBuf {
    let mut token = RawDocumentBuf::new();
    token.append(cstr!("_data"), format!("{store:016x}{offset:016x}").as_str());
    token
}

/// Store id and offset of a token made by [`token`].
pub(super) fn read_token(token: &[u8]) -> Option<(u64, u64)> {
    let data = RawDocument::from_bytes(token).ok()?.get_str("_data").ok()?;
    let hexadecimal = data.len() == 32 && data.bytes().all(|byte| byte.is_ascii_hexdigit());
    let half = |range| u64::from_str_radix(data.get(range)?, 16).ok();
    hexadecimal.then(|| Some((half(0..16)?, half(16..32)?))).flatten()
}

/// Database and collection that the events name. The node reads neither: tenant and collection are fields of the document.
const NAMESPACE: (&str, &str) = ("embedded", "documents");
/// An empty BSON document.
const EMPTY: &[u8] = &[5, 0, 0, 0, 0];
