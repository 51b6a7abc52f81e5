//! A change as the oracle sees it, and how it is read from a change event of MongoDB's form.

use bson::{Bson, Document, Timestamp};
use wire::{BackendId, EventId, Lineage, Operation, Position};

use super::OracleError;

/// How documents are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Preset {
    /// Tenant and collection are fields of the document, the user's fields stand under `data`.
    Syntrix,
    /// The tenant is the database, the collection is the collection, the document is the user's.
    Plain,
}

/// Where the source keeps a document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    pub database: String,
    pub collection: String,
}

/// Where subscribers look for a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) tenant: String,
    pub(super) collection: String,
}

/// What an update did to the mark of a soft delete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletedMark {
    /// Set to true.
    Set,
    /// Set to anything but true, or removed.
    Cleared,
    #[default]
    Untouched,
}

/// What the source did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Insert,
    Update(DeletedMark),
    Replace,
    Delete,
}

#[derive(Clone, Debug, PartialEq)]
pub struct OracleChange {
    pub id: EventId,
    pub kind: ChangeKind,
    pub namespace: Namespace,
    /// `documentKey._id`.
    pub stored_id: Bson,
    pub before: Option<Document>,
    /// Absent after a hard delete, and where a late look-up found nothing.
    pub after: Option<Document>,
}

impl OracleChange {
    /// Reads a change event (`operationType`, `ns`, `documentKey`, `fullDocument`, `fullDocumentBeforeChange`,
    /// `updateDescription`). `None` for operations that are not about one document.
    pub fn from_change_event(event: &Document, preset: Preset, id: EventId) -> Result<Option<Self>, OracleError> {
        let bad = |what: &str| OracleError::Event { what: what.to_owned(), event: event.to_string() };
        let operation = event.get_str("operationType").map_err(|_| bad("`operationType` is not a string"))?;
        let kind = match operation {
            "insert" => ChangeKind::Insert,
            "update" => ChangeKind::Update(match preset {
                Preset::Syntrix => deleted_mark(event),
                Preset::Plain => DeletedMark::Untouched,
            }),
            "replace" => ChangeKind::Replace,
            "delete" => ChangeKind::Delete,
            _ => return Ok(None),
        };
        let ns = event.get_document("ns").map_err(|_| bad("`ns` is not a document"))?;
        let name = |key: &str| ns.get_str(key).map(str::to_owned).map_err(|_| bad("`ns` lacks `db` or `coll`"));
        let namespace = Namespace { database: name("db")?, collection: name("coll")? };
        let key = event.get_document("documentKey").map_err(|_| bad("`documentKey` is not a document"))?;
        let stored_id = key.get("_id").ok_or_else(|| bad("`documentKey` has no `_id`"))?.clone();
        let image = |field: &str| event.get_document(field).ok().cloned();
        let after = if kind == ChangeKind::Delete { None } else { image("fullDocument") };
        Ok(Some(Self { id, kind, namespace, stored_id, before: image("fullDocumentBeforeChange"), after }))
    }

    /// What the change is to subscribers.
    pub fn operation(&self, preset: Preset) -> Operation {
        let is_deleted = |image: &Option<Document>| {
            preset == Preset::Syntrix && image.as_ref().is_some_and(|d| d.get("deleted") == Some(&Bson::Boolean(true)))
        };
        match self.kind {
            ChangeKind::Insert => Operation::Insert,
            ChangeKind::Delete => Operation::Delete,
            ChangeKind::Update(DeletedMark::Set) => Operation::Delete,
            ChangeKind::Update(DeletedMark::Cleared) => Operation::Insert,
            ChangeKind::Update(DeletedMark::Untouched) => Operation::Update,
            ChangeKind::Replace if is_deleted(&self.after) => Operation::Delete,
            ChangeKind::Replace if is_deleted(&self.before) => Operation::Insert,
            ChangeKind::Replace => Operation::Update,
        }
    }
}

fn deleted_mark(event: &Document) -> DeletedMark {
    let Ok(description) = event.get_document("updateDescription") else { return DeletedMark::Untouched };
    let set = description.get_document("updatedFields").ok().and_then(|fields| fields.get("deleted"));
    let removed = description
        .get_array("removedFields")
        .is_ok_and(|names| names.iter().any(|name| name.as_str() == Some("deleted")));
    match set {
        Some(Bson::Boolean(true)) => DeletedMark::Set,
        Some(_) => DeletedMark::Cleared,
        None if removed => DeletedMark::Cleared,
        None => DeletedMark::Untouched,
    }
}

/// Gives each event of one stream its id, from the sequence of cluster times. Every event of the stream must be passed, in
/// order, whatever becomes of it.
#[derive(Clone, Debug)]
pub struct Numbering {
    backend: BackendId,
    lineage: Lineage,
    time: u64,
    k: u32,
}

impl Numbering {
    pub fn new(backend: BackendId, lineage: Lineage) -> Self {
        Self { backend, lineage, time: 0, k: 0 }
    }

    pub fn next(&mut self, cluster_time: Timestamp) -> Result<EventId, OracleError> {
        let time = u64::from(cluster_time.time) << 32 | u64::from(cluster_time.increment);
        if time < self.time {
            return Err(OracleError::TimeRanBackwards { from: self.time, to: time });
        }
        self.k = if time == self.time { self.k + 1 } else { 1 };
        self.time = time;
        Ok(Position { backend: self.backend, lineage: self.lineage, time, k: self.k })
    }

    /// The id of a change event, from its `clusterTime`.
    pub fn next_event(&mut self, event: &Document) -> Result<EventId, OracleError> {
        let cluster_time = event.get_timestamp("clusterTime").map_err(|_| OracleError::Event {
            what: "`clusterTime` is not a timestamp".to_owned(),
            event: event.to_string(),
        })?;
        self.next(cluster_time)
    }
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;

    const AT: EventId = Position { backend: BackendId(1), lineage: Lineage(2), time: 3, k: 1 };

    #[test]
    fn events_of_one_cluster_time_are_counted_from_one() {
        let mut numbering = Numbering::new(BackendId(1), Lineage(2));
        let places: Vec<(u64, u32)> = [(5, 1), (5, 1), (5, 2), (6, 1), (6, 1), (6, 1)]
            .map(|(time, increment)| numbering.next(Timestamp { time, increment }).unwrap().order())
            .to_vec();
        let (a, b, c) = (5 << 32 | 1, 5 << 32 | 2, 6 << 32 | 1);
        assert_eq!(places, [(a, 1), (a, 2), (b, 1), (c, 1), (c, 2), (c, 3)]);
        assert!(numbering.next(Timestamp { time: 5, increment: 9 }).is_err());
    }

    #[test]
    fn what_a_change_is_to_subscribers() {
        use Operation::{Delete, Insert, Update};
        let event = |kind: &str, description: Document, before: Option<bool>, after: Option<bool>| {
            let image = |deleted: bool| {
                if deleted {
                    doc! { "deleted": true }
                } else {
                    doc! {}
                }
            };
            doc! {
                "operationType": kind,
                "ns": { "db": "d", "coll": "c" },
                "documentKey": { "_id": "t:1" },
                "fullDocument": after.map(image),
                "fullDocumentBeforeChange": before.map(image),
                "updateDescription": description,
            }
        };
        let set = |value: Bson| doc! { "updatedFields": { "deleted": value }, "removedFields": [] };
        let cases = [
            (event("insert", doc! {}, None, Some(false)), Insert, Insert),
            (event("insert", doc! {}, None, Some(true)), Insert, Insert),
            (event("update", set(true.into()), None, Some(true)), Delete, Update),
            // The look-up came late: what it found does not decide.
            (event("update", set(true.into()), None, Some(false)), Delete, Update),
            (event("update", set(false.into()), None, Some(false)), Insert, Update),
            (event("update", doc! { "removedFields": ["deleted"] }, None, Some(false)), Insert, Update),
            (event("update", doc! { "updatedFields": { "a": 1 } }, None, Some(true)), Update, Update),
            (event("update", set(Bson::Null), None, Some(false)), Insert, Update),
            (event("replace", doc! {}, None, Some(true)), Delete, Update),
            (event("replace", doc! {}, Some(true), Some(false)), Insert, Update),
            (event("replace", doc! {}, None, Some(false)), Update, Update),
            (event("delete", doc! {}, Some(false), None), Delete, Delete),
        ];
        for (event, syntrix, plain) in cases {
            for (preset, expect) in [(Preset::Syntrix, syntrix), (Preset::Plain, plain)] {
                let change = OracleChange::from_change_event(&event, preset, AT).unwrap().unwrap();
                assert_eq!(change.operation(preset), expect, "{event} under {preset:?}");
            }
        }
        let drop = doc! { "operationType": "drop", "ns": { "db": "d", "coll": "c" } };
        assert_eq!(OracleChange::from_change_event(&drop, Preset::Plain, AT).unwrap(), None);
    }
}
