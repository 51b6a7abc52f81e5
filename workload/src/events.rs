//! Change events in MongoDB's form, made from writes: a source without a server.
//!
//! Invariants:
//! - The factory keeps the stored form of every document, so before-images and late fields (`version`, `created_at`) are true.
//! - Every event has a token of its own that counts up, and a cluster time that never runs backwards; events of one transaction
//!   share theirs.

use std::collections::HashMap;

use bson::{Bson, Document, Timestamp, doc};

use crate::{
    generate::{Write, WriteKind},
    oracle::{Preset, short_hash, stored_id},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventOptions {
    pub preset: Preset,
    /// Whether updates, replacements and deletes carry the document as it was.
    pub before_images: bool,
    /// Cluster time of the first event, in seconds since 1970.
    pub start_s: u32,
    /// Events of one second, before the cluster time's seconds go on.
    pub events_per_s: u32,
    /// Under `syntrix`, where all documents are kept.
    pub database: String,
    pub collection: String,
}

impl EventOptions {
    pub fn new(preset: Preset) -> Self {
        Self {
            preset,
            before_images: true,
            start_s: 1_700_000_000,
            events_per_s: 1000,
            database: "syntrix".into(),
            collection: "documents".into(),
        }
    }

    pub fn without_before_images(self) -> Self {
        Self { before_images: false, ..self }
    }
}

/// Makes change events from writes, in the order of the calls.
#[derive(Clone, Debug)]
pub struct EventFactory {
    options: EventOptions,
    /// Documents in storage, by (database, collection, stored id).
    stored: HashMap<(String, String, String), Document>,
    cluster_time: Timestamp,
    tokens: u64,
}

impl EventFactory {
    pub fn new(options: EventOptions) -> Self {
        let cluster_time = Timestamp { time: options.start_s, increment: 0 };
        Self { options, stored: HashMap::new(), cluster_time, tokens: 0 }
    }

    /// The event of one write, as BSON.
    ///
    /// # Panics
    /// When the write does not fit what is stored: an insert of a document that is there, anything else of one that is not.
    pub fn apply(&mut self, write: &Write) -> Vec<u8> {
        self.advance_time();
        bytes_of(&self.event(write))
    }

    /// The events of writes in one transaction: they share their cluster time.
    pub fn apply_transaction(&mut self, writes: &[Write]) -> Vec<Vec<u8>> {
        self.advance_time();
        let number = Bson::Int64(i64::from(self.cluster_time.increment));
        let mut event = |write| {
            let mut event = self.event(write);
            event.insert("txnNumber", number.clone());
            bytes_of(&event)
        };
        writes.iter().map(&mut event).collect()
    }

    /// The document as it is stored now.
    pub fn stored(&self, tenant: &str, collection: &str, document_id: &str) -> Option<&Document> {
        self.stored.get(&self.address(tenant, collection, document_id))
    }

    /// Documents in storage.
    pub fn len(&self) -> usize {
        self.stored.len()
    }

    pub fn is_empty(&self) -> bool {
        self.stored.is_empty()
    }

    fn advance_time(&mut self) {
        let Timestamp { time, increment } = self.cluster_time;
        self.cluster_time = if increment >= self.options.events_per_s {
            Timestamp { time: time + 1, increment: 1 }
        } else {
            Timestamp { time, increment: increment + 1 }
        };
    }

    fn address(&self, tenant: &str, collection: &str, document_id: &str) -> (String, String, String) {
        match self.options.preset {
            Preset::Plain => (tenant.to_owned(), collection.to_owned(), document_id.to_owned()),
            Preset::Syntrix => (
                self.options.database.clone(),
                self.options.collection.clone(),
                stored_id(tenant, collection, document_id),
            ),
        }
    }

    fn event(&mut self, write: &Write) -> Document {
        let address = self.address(&write.tenant, &write.collection, &write.document_id);
        let before = self.stored.remove(&address);
        assert_eq!(
            before.is_none(),
            write.kind == WriteKind::Insert,
            "{:?} of {} in {} of {} does not fit what is stored",
            write.kind,
            write.document_id,
            write.collection,
            write.tenant
        );
        let after = self.after(write, before.as_ref(), &address.2);
        let (operation, description) = match (&write.kind, &before, &after) {
            (WriteKind::Insert, ..) => ("insert", None),
            (WriteKind::Replace, ..) => ("replace", None),
            (_, _, None) => ("delete", None),
            (_, Some(before), Some(after)) => ("update", Some(difference(before, after))),
            (_, None, Some(_)) => unreachable!("only an insert has nothing before it"),
        };
        self.tokens += 1;
        let ms = self.now_ms();
        let mut event = doc! {
            "_id": { "_data": format!("{:016x}", self.tokens) },
            "operationType": operation,
            "clusterTime": self.cluster_time,
            "wallTime": bson::DateTime::from_millis(ms),
            "ns": { "db": &address.0, "coll": &address.1 },
            "documentKey": { "_id": &address.2 },
        };
        if let Some(after) = &after {
            event.insert("fullDocument", after.clone());
        }
        if let Some(before) = before.filter(|_| self.options.before_images) {
            event.insert("fullDocumentBeforeChange", before);
        }
        if let Some(description) = description {
            event.insert("updateDescription", description);
        }
        if let Some(after) = after {
            self.stored.insert(address, after);
        }
        event
    }

    /// The stored form after the write; `None` where it is gone.
    fn after(&self, write: &Write, before: Option<&Document>, stored_id: &str) -> Option<Document> {
        if write.kind == WriteKind::HardDelete {
            return None;
        }
        Some(match self.options.preset {
            Preset::Plain => {
                let mut document = doc! { "_id": stored_id };
                document.extend(write.data.clone());
                document
            }
            Preset::Syntrix => stored_form(write, before, self.now_ms()),
        })
    }

    fn now_ms(&self) -> i64 {
        i64::from(self.cluster_time.time) * 1000 + i64::from(self.cluster_time.increment % 1000)
    }
}

/// How `syntrix` stores what a write leaves behind. `before` is what was stored, `now_ms` the time of the write.
///
/// Undoing a soft delete removes its mark where the version is even, and sets it to false where it is odd: both are met in the
/// field.
pub fn stored_form(write: &Write, before: Option<&Document>, now_ms: i64) -> Document {
    let Write { tenant, collection, document_id, kind, data } = write;
    let version = before.and_then(|before| before.get_i64("version").ok()).unwrap_or(0) + 1;
    let created_at = before.and_then(|before| before.get_i64("created_at").ok()).unwrap_or(now_ms);
    let parent = collection.rsplit_once('/').map_or("", |(parent, _)| parent);
    let mut document = doc! {
        "_id": stored_id(tenant, collection, document_id),
        "tenant_id": tenant,
        "collection": collection,
        "fullpath": format!("{collection}/{document_id}"),
        "collection_hash": short_hash(collection),
        "parent": parent,
        "version": version,
        "created_at": created_at,
        "updated_at": now_ms,
        "data": data.clone(),
    };
    match kind {
        WriteKind::SoftDelete => {
            document.insert("deleted", true);
        }
        WriteKind::Recreate if version % 2 == 1 => {
            document.insert("deleted", false);
        }
        WriteKind::Update { .. } | WriteKind::Replace => {
            // A mark that is there stays, so that setting it is never seen where nobody did.
            if let Some(mark) = before.and_then(|before| before.get("deleted")) {
                document.insert("deleted", mark.clone());
            }
        }
        _ => {}
    }
    document
}

/// `updateDescription`: root fields that differ, and those of `data` one by one.
fn difference(before: &Document, after: &Document) -> Document {
    let mut updated = Document::new();
    let mut removed = Vec::new();
    let mut compare = |prefix: &str, before: &Document, after: &Document| {
        for (name, value) in after {
            if before.get(name) != Some(value) && !(prefix.is_empty() && name == "data") {
                updated.insert(format!("{prefix}{name}"), value.clone());
            }
        }
        let gone = before.keys().filter(|name| !after.contains_key(name));
        removed.extend(gone.map(|name| Bson::String(format!("{prefix}{name}"))));
    };
    compare("", before, after);
    if let (Ok(before), Ok(after)) = (before.get_document("data"), after.get_document("data")) {
        compare("data.", before, after);
    }
    doc! { "updatedFields": updated, "removedFields": removed, "truncatedArrays": [] }
}

fn bytes_of(event: &Document) -> Vec<u8> {
    event.to_vec().expect("an event has no value that BSON can't hold")
}

#[cfg(test)]
mod tests {
    use wire::{BackendId, Lineage};

    use super::*;
    use crate::{
        generate::{Generator, Profile},
        oracle::{ChangeKind, DeletedMark, Numbering, OracleChange},
    };

    fn read(bytes: &[u8]) -> Document {
        Document::from_reader(bytes).unwrap()
    }

    fn write(kind: WriteKind, data: Document) -> Write {
        Write { tenant: "acme".into(), collection: "a/b/c".into(), document_id: "d".into(), kind, data }
    }

    #[test]
    fn the_life_of_a_document() {
        let mut factory = EventFactory::new(EventOptions::new(Preset::Syntrix));
        let set = doc! { "n": 2 };
        let steps = [
            (WriteKind::Insert, doc! { "n": 1, "m": 1 }, "insert", ChangeKind::Insert),
            (WriteKind::Update { set }, doc! { "n": 2, "m": 1 }, "update", ChangeKind::Update(DeletedMark::Untouched)),
            (WriteKind::SoftDelete, doc! { "n": 2, "m": 1 }, "update", ChangeKind::Update(DeletedMark::Set)),
            // Version 4: the mark is removed.
            (WriteKind::Recreate, doc! { "n": 3 }, "update", ChangeKind::Update(DeletedMark::Cleared)),
            (WriteKind::SoftDelete, doc! { "n": 3 }, "update", ChangeKind::Update(DeletedMark::Set)),
            (WriteKind::Replace, doc! { "n": 4 }, "replace", ChangeKind::Replace),
            (WriteKind::HardDelete, doc! { "n": 4 }, "delete", ChangeKind::Delete),
        ];
        let mut numbering = Numbering::new(BackendId(1), Lineage(1));
        let mut before: Option<Document> = None;
        for (step, (kind, data, operation, seen)) in steps.into_iter().enumerate() {
            let write = write(kind, data);
            let event = read(&factory.apply(&write));
            assert_eq!(event.get_str("operationType").unwrap(), operation);
            let id = numbering.next_event(&event).unwrap();
            let change = OracleChange::from_change_event(&event, Preset::Syntrix, id).unwrap().unwrap();
            assert_eq!(change.kind, seen, "step {step}: {event}");
            assert_eq!(change.before, before, "step {step}");
            assert_eq!(change.after.as_ref(), factory.stored("acme", "a/b/c", "d"), "step {step}");
            if let Some(after) = &change.after {
                assert_eq!(after.get_i64("version").unwrap(), step as i64 + 1);
                assert_eq!(after.get_document("data").unwrap(), &write.data);
                assert_eq!(after.get_str("fullpath").unwrap(), "a/b/c/d");
                assert_eq!(after.get_str("parent").unwrap(), "a/b");
            }
            before = change.after;
        }
        assert!(factory.is_empty());
    }

    #[test]
    fn updates_name_what_they_changed() {
        let mut factory = EventFactory::new(EventOptions::new(Preset::Plain).without_before_images());
        factory.apply(&write(WriteKind::Insert, doc! { "n": 1, "m": 1 }));
        let event = read(&factory.apply(&write(WriteKind::Update { set: doc! { "n": 2 } }, doc! { "n": 2 })));
        let expect = doc! { "updatedFields": { "n": 2 }, "removedFields": ["m"], "truncatedArrays": [] };
        assert_eq!(event.get_document("updateDescription").unwrap(), &expect);
        assert_eq!(event.get_document("ns").unwrap(), &doc! { "db": "acme", "coll": "a/b/c" });
        assert_eq!(event.get_document("documentKey").unwrap(), &doc! { "_id": "d" });
        assert!(!event.contains_key("fullDocumentBeforeChange"));
        let gone = read(&factory.apply(&write(WriteKind::HardDelete, doc! {})));
        assert!(!gone.contains_key("fullDocument") && !gone.contains_key("fullDocumentBeforeChange"));
    }

    #[test]
    fn time_and_tokens_count_up_and_a_transaction_shares_its_time() {
        let generator = Generator::new(Profile::test(3));
        let (mut writer, mut schedule) = (generator.writer(), generator.schedule());
        let options = EventOptions { events_per_s: 10, ..EventOptions::new(Preset::Syntrix) };
        let mut factory = EventFactory::new(options);
        let mut numbering = Numbering::new(BackendId(1), Lineage(1));
        let mut tokens: Vec<String> = Vec::new();
        let mut ids = Vec::new();
        for _ in 0..200 {
            let writes: Vec<Write> = (0..schedule.transaction()).map(|_| writer.next()).collect();
            for (k, bytes) in factory.apply_transaction(&writes).iter().enumerate() {
                let event = read(bytes);
                let id = numbering.next_event(&event).unwrap();
                assert_eq!(id.k as usize, k + 1);
                ids.push(id.order());
                tokens.push(event.get_document("_id").unwrap().get_str("_data").unwrap().to_owned());
            }
        }
        assert!(ids.is_sorted_by(|a, b| a < b) && tokens.is_sorted_by(|a, b| a < b));
        assert!(ids.iter().any(|(_, k)| *k > 1));
    }

    #[test]
    #[should_panic(expected = "does not fit what is stored")]
    fn a_write_that_does_not_fit_is_refused() {
        let mut factory = EventFactory::new(EventOptions::new(Preset::Plain));
        factory.apply(&write(WriteKind::Replace, doc! {}));
    }
}
