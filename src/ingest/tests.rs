//! The ingest state machine on hand-made change events.

use std::{collections::HashSet, sync::Arc};

use bson::{Bson, Document, Timestamp, doc};
use bytes::Bytes;
use predicate::{Mapping, Value, mapping::Nested};
use shards::{FilterKey, FilterSnapshot, FromIngest, Scope};
use wire::{BackendId, GapReason, Lineage, Operation, PlaceHash, SlotTable};

use super::{
    core::{EventError, IngestCore, ToShard},
    normalize::Skip,
    route::ShardIndex,
    source::ResumeToken,
};

const BACKEND: BackendId = BackendId(7);
const LINEAGE: Lineage = Lineage(9);
const SHARDS: u16 = 4;

struct Fixture {
    core: IngestCore,
    out: Vec<ToShard>,
    tokens: u32,
}

impl Fixture {
    fn new(mapping: Mapping) -> Self {
        let mut core = IngestCore::new(Arc::new(mapping), SlotTable { shards: SHARDS }, vec![BACKEND]);
        core.opened(0, LINEAGE, (1 << 32, 0), None);
        Self { core, out: Vec::new(), tokens: 0 }
    }

    /// One whose shards have published filters with nothing in them but `wanted`.
    fn with_filters(mapping: Mapping, wanted: &[FilterKey]) -> Self {
        let mut fixture = Self::new(mapping);
        for shard in ShardIndex::all(SHARDS) {
            fixture.publish(shard, 1, wanted);
        }
        fixture.out.clear();
        fixture
    }

    fn publish(&mut self, shard: ShardIndex, version: u64, wanted: &[FilterKey]) {
        let snapshot = FilterSnapshot::of(version, wanted.iter().copied());
        self.core.filter(shard, Arc::new(snapshot), &mut self.out);
    }

    fn try_event(&mut self, time: u32, fields: Document) -> Result<Vec<ToShard>, EventError> {
        self.tokens += 1;
        let mut event = doc! {
            "_id": { "_data": format!("{:08x}", self.tokens) },
            "clusterTime": Bson::Timestamp(Timestamp { time, increment: 1 }),
        };
        event.extend(fields);
        let bytes = Bytes::from(event.to_vec().unwrap());
        self.core.event(0, &bytes, &mut self.out)?;
        Ok(std::mem::take(&mut self.out))
    }

    fn event(&mut self, time: u32, fields: Document) -> Vec<ToShard> {
        self.try_event(time, fields).unwrap()
    }

    fn skipped(&self, why: Skip) -> u64 {
        self.core.counters().skipped[why as usize]
    }
}

fn stored(tenant: &str, collection: &str, id: &str) -> Document {
    doc! {
        "_id": Nested::storage_id(tenant, collection, id),
        "tenant_id": tenant,
        "collection": collection,
        "fullpath": format!("{collection}/{id}"),
        "data": { "id": id, "n": 1 },
    }
}

fn insert(document: Document) -> Document {
    doc! {
        "operationType": "insert",
        "ns": { "db": "app", "coll": "documents" },
        "documentKey": { "_id": document.get("_id").unwrap().clone() },
        "fullDocument": document,
    }
}

fn update(document: Document, description: Document) -> Document {
    let mut event = insert(document);
    event.insert("operationType", "update");
    event.insert("updateDescription", description);
    event
}

fn delete(document: &Document, before: bool) -> Document {
    let mut event = doc! {
        "operationType": "delete",
        "ns": { "db": "app", "coll": "documents" },
        "documentKey": { "_id": document.get("_id").unwrap().clone() },
    };
    if before {
        event.insert("fullDocumentBeforeChange", document.clone());
    }
    event
}

fn change(items: &[ToShard]) -> &shards::Change {
    match &items[0].1 {
        FromIngest::Change(change) => change,
        other => panic!("not a change: {other:?}"),
    }
}

fn shards_of(items: &[ToShard]) -> HashSet<u16> {
    items.iter().map(|(shard, _)| shard.0).collect()
}

fn owner(tenant: &str, collection: &str) -> u16 {
    SlotTable { shards: SHARDS }.owner(PlaceHash::of(tenant, collection))
}

#[test]
fn a_change_goes_to_the_owner_of_its_place_with_its_images() {
    let mut fixture = Fixture::new(Mapping::syntrix());
    let document = stored("acme", "messages", "m1");
    let items = fixture.event(2, insert(document.clone()));
    assert_eq!(shards_of(&items), HashSet::from([owner("acme", "messages")]));
    let change = change(&items);
    assert_eq!(change.operation, Operation::Insert);
    assert_eq!(change.position.order(), ((2 << 32) | 1, 1));
    let after = change.after().unwrap();
    assert_eq!(after.names(), ("acme", "messages"));
    assert_eq!(after.document, document.to_vec().unwrap());
    assert_eq!(change.document_id(), predicate::stored_id(bson::RawBsonRef::String("m1")));
}

#[test]
fn what_no_filter_wants_is_dropped_but_counted_and_settled() {
    let mut fixture = Fixture::with_filters(Mapping::syntrix(), &[]);
    assert!(fixture.event(2, insert(stored("acme", "messages", "m1"))).is_empty());
    assert_eq!(fixture.core.counters().filtered, 1);
    assert_eq!(fixture.core.checkpoint()[0].position.order(), ((2 << 32) | 1, 1));
}

#[test]
fn a_watched_document_passes_though_its_collection_is_not_watched() {
    let id = Nested::storage_id("acme", "messages", "m1");
    let key = Value::of(bson::RawBsonRef::String(&id)).unwrap();
    let mut fixture = Fixture::with_filters(Mapping::syntrix(), &[FilterKey::document(key.as_bytes())]);
    assert_eq!(fixture.event(2, insert(stored("acme", "messages", "m1"))).len(), 1);
    assert!(fixture.event(3, insert(stored("acme", "messages", "m2"))).is_empty());
}

#[test]
fn both_images_are_routed() {
    let (from, to) = (("acme", "messages"), ("acme", "archive/1"));
    assert_ne!(owner(from.0, from.1), owner(to.0, to.1), "the test needs two owners");
    let wanted = [FilterKey::place(PlaceHash::of(from.0, from.1)), FilterKey::place(PlaceHash::of(to.0, to.1))];
    let mut fixture = Fixture::with_filters(Mapping::syntrix(), &wanted);
    let mut event = insert(stored(to.0, to.1, "m1"));
    event.insert("operationType", "replace");
    event.insert("fullDocumentBeforeChange", stored(from.0, from.1, "m1"));
    let items = fixture.event(2, event);
    assert_eq!(shards_of(&items), HashSet::from([owner(from.0, from.1), owner(to.0, to.1)]));
}

#[test]
fn a_bare_delete_goes_to_every_shard_with_the_tenant_of_its_key() {
    let mut fixture = Fixture::with_filters(Mapping::syntrix(), &[]);
    let items = fixture.event(2, delete(&stored("acme", "messages", "m1"), false));
    assert_eq!(shards_of(&items), (0..SHARDS).collect());
    let change = change(&items);
    let bare = change.bare().unwrap();
    assert_eq!((bare.tenant, bare.collection), (Some("acme"), None));
    assert!(!change.has_after());
}

#[test]
fn soft_deletes_are_read_from_the_update_never_from_the_document() {
    let cases = [
        (doc! { "updatedFields": { "deleted": true } }, false, Operation::Delete),
        (doc! { "updatedFields": { "deleted": false } }, true, Operation::Insert),
        (doc! { "updatedFields": {}, "removedFields": ["deleted"] }, true, Operation::Insert),
        // The document was looked up after a later soft delete.
        (doc! { "updatedFields": { "data.n": 2 } }, true, Operation::Update),
        (doc! { "updatedFields": { "data.deleted": true } }, false, Operation::Update),
    ];
    let mut fixture = Fixture::new(Mapping::syntrix());
    for (index, (description, looked_up_deleted, expected)) in cases.into_iter().enumerate() {
        let mut document = stored("acme", "messages", "m1");
        document.insert("deleted", looked_up_deleted);
        let items = fixture.event(2 + index as u32, update(document, description));
        assert_eq!(change(&items).operation, expected, "case {index}");
    }
}

#[test]
fn a_replacement_is_judged_by_its_own_documents() {
    let cases = [
        (Some(true), false, Operation::Insert),
        (Some(false), false, Operation::Update),
        (None, false, Operation::Update),
        (Some(false), true, Operation::Delete),
    ];
    let mut fixture = Fixture::new(Mapping::syntrix());
    for (index, (before, after, expected)) in cases.into_iter().enumerate() {
        let with = |deleted: bool| {
            let mut document = stored("acme", "messages", "m1");
            document.insert("deleted", deleted);
            document
        };
        let mut event = insert(with(after));
        event.insert("operationType", "replace");
        if let Some(deleted) = before {
            event.insert("fullDocumentBeforeChange", with(deleted));
        }
        let items = fixture.event(2 + index as u32, event);
        assert_eq!(change(&items).operation, expected, "case {index}");
    }
}

#[test]
fn an_update_whose_document_is_gone_is_left_to_its_delete() {
    let mut fixture = Fixture::new(Mapping::syntrix());
    let mut event = update(stored("acme", "messages", "m1"), doc! { "updatedFields": { "data.n": 2 } });
    event.insert("fullDocument", Bson::Null);
    assert!(fixture.event(2, event.clone()).is_empty());
    assert_eq!(fixture.skipped(Skip::LookedUpNothing), 1);
    event.insert("fullDocumentBeforeChange", stored("acme", "messages", "m1"));
    let items = fixture.event(3, event);
    assert!(!change(&items).has_after() && change(&items).has_before(), "whom it concerned is still told");
}

#[test]
fn a_tenant_that_disagrees_with_the_key_is_dropped_and_counted() {
    let mut fixture = Fixture::new(Mapping::syntrix());
    let mut document = stored("acme", "messages", "m1");
    document.insert("tenant_id", "other");
    assert!(fixture.event(2, insert(document)).is_empty());
    assert_eq!(fixture.skipped(Skip::TenantMismatch), 1);
}

#[test]
fn the_tenant_may_stand_under_newer_names() {
    for name in ["tenant_id", "database_id", "database"] {
        let mut fixture = Fixture::new(Mapping::syntrix());
        let mut document = stored("acme", "messages", "m1");
        document.remove("tenant_id");
        document.insert(name, "acme");
        let items = fixture.event(2, insert(document));
        assert_eq!(change(&items).after().unwrap().names().0, "acme", "{name}");
    }
}

#[test]
fn a_document_of_another_layout_is_skipped_and_counted() {
    let mut fixture = Fixture::new(Mapping::syntrix());
    assert!(fixture.event(2, insert(doc! { "_id": 1, "x": 1 })).is_empty());
    assert_eq!(fixture.skipped(Skip::NoPlace), 1);
}

#[test]
fn unknown_operations_are_counted_and_skipped() {
    let mut fixture = Fixture::new(Mapping::syntrix());
    for (index, operation) in ["create", "createIndexes", "shardCollection", "fromTheFuture"].into_iter().enumerate() {
        let event = doc! { "operationType": operation, "ns": { "db": "app", "coll": "documents" } };
        assert!(fixture.event(2 + index as u32, event).is_empty());
    }
    assert_eq!(fixture.skipped(Skip::Operation), 4);
}

#[test]
fn a_plain_document_is_placed_by_its_namespace_and_named_by_its_id() {
    let mut fixture = Fixture::new(Mapping::Plain);
    let items = fixture.event(2, insert(doc! { "_id": 5_i64, "x": 1 }));
    let change = change(&items);
    let after = change.after().unwrap();
    assert_eq!(after.names(), ("app", "documents"));
    assert_eq!(change.document_id(), predicate::stored_id(bson::RawBsonRef::Int64(5)));
}

#[test]
fn namespace_events_are_gaps_on_every_shard() {
    let collection = |name: &str| Scope::Collection { tenant: "app".into(), collection: name.to_owned().into() };
    let drop = doc! { "operationType": "drop", "ns": { "db": "app", "coll": "documents" } };
    let rename = doc! {
        "operationType": "rename",
        "ns": { "db": "app", "coll": "documents" },
        "to": { "db": "app", "coll": "other" },
    };
    let drop_database = doc! { "operationType": "dropDatabase", "ns": { "db": "app" } };
    let invalidate = doc! { "operationType": "invalidate" };
    let cases = [
        (Mapping::Plain, drop.clone(), vec![collection("documents")], GapReason::Dropped),
        (Mapping::Plain, rename, vec![collection("documents"), collection("other")], GapReason::Renamed),
        (Mapping::Plain, drop_database, vec![Scope::Tenant("app".into())], GapReason::DatabaseDropped),
        (Mapping::Plain, invalidate, vec![Scope::Everything], GapReason::Invalidated),
        (Mapping::syntrix(), drop, vec![Scope::Everything], GapReason::Dropped),
    ];
    for (mapping, event, scopes, reason) in cases {
        let mut fixture = Fixture::with_filters(mapping, &[]);
        let items = fixture.event(2, event);
        assert_eq!(items.len(), usize::from(SHARDS), "one item a shard: a position is told once");
        match &items[0].1 {
            FromIngest::Gap(gap) => assert_eq!((gap.reason, gap.scopes.as_slice()), (reason, scopes.as_slice())),
            other => panic!("not a gap: {other:?}"),
        }
    }
}

#[test]
fn a_stream_reopened_at_a_cluster_time_repeats_nothing() {
    let mut fixture = Fixture::new(Mapping::syntrix());
    for id in ["a", "b", "c"] {
        fixture.event(5, insert(stored("acme", "messages", id)));
    }
    fixture.core.opened(0, LINEAGE, ((5 << 32) | 1, 0), None);
    for id in ["a", "b", "c"] {
        assert!(fixture.event(5, insert(stored("acme", "messages", id))).is_empty());
    }
    let items = fixture.event(5, insert(stored("acme", "messages", "d")));
    assert_eq!(change(&items).position.k, 4);
    assert_eq!(fixture.core.counters().repeated, 3);
}

#[test]
fn time_that_runs_backwards_asks_for_a_reopening_where_reading_was() {
    let mut fixture = Fixture::new(Mapping::syntrix());
    fixture.event(5, insert(stored("acme", "messages", "a")));
    let error = fixture.try_event(4, insert(stored("acme", "messages", "b"))).unwrap_err();
    assert!(matches!(error, EventError::RanBackwards(_)), "{error}");
    assert_eq!(fixture.core.resume_point(0).unwrap().position.order(), ((5 << 32) | 1, 1));
}

#[test]
fn a_malformed_event_has_no_effect_on_the_numbering() {
    let mut fixture = Fixture::new(Mapping::syntrix());
    fixture.event(5, insert(stored("acme", "messages", "a")));
    let error = fixture.try_event(5, doc! { "operationType": "insert" }).unwrap_err();
    assert!(error.to_string().contains("documentKey"), "{error}");
    let items = fixture.event(5, insert(stored("acme", "messages", "b")));
    assert_eq!(change(&items).position.k, 2);
}

#[test]
fn filters_are_announced_with_the_last_position_before_them_once_every_backend_has_one() {
    let mut core = IngestCore::new(Arc::new(Mapping::syntrix()), SlotTable { shards: 1 }, vec![BACKEND, BackendId(8)]);
    let mut out = Vec::new();
    core.opened(0, LINEAGE, (3, 0), None);
    core.filter(ShardIndex(0), Arc::new(FilterSnapshot::of(4, [])), &mut out);
    assert!(out.is_empty(), "the second backend has no start position yet");
    core.opened(1, LINEAGE, (8, 2), None);
    core.announce_filters(&mut out);
    let [(_, FromIngest::FilterSeen { version: 4, positions })] = &out[..] else { panic!("{out:?}") };
    assert_eq!(positions.get(BACKEND).unwrap().order(), (3, 0));
    assert_eq!(positions.get(BackendId(8)).unwrap().order(), (8, 2));
    core.announce_filters(&mut out);
    assert_eq!(out.len(), 1, "once a version");
}

#[test]
fn progress_is_told_to_shards_that_no_event_told() {
    let mut fixture = Fixture::with_filters(Mapping::syntrix(), &[FilterKey::place(PlaceHash::of("acme", "messages"))]);
    fixture.event(2, insert(stored("acme", "messages", "a")));
    fixture.core.progress(&mut fixture.out);
    let told = shards_of(&fixture.out);
    assert_eq!(told.len(), usize::from(SHARDS) - 1);
    assert!(!told.contains(&owner("acme", "messages")));
    fixture.out.clear();
    fixture.core.progress(&mut fixture.out);
    assert!(fixture.out.is_empty());
}

#[test]
fn the_checkpoint_waits_for_the_shard_that_was_sent_something() {
    let mut fixture = Fixture::new(Mapping::syntrix());
    let items = fixture.event(2, insert(stored("acme", "messages", "a")));
    let (shard, sent) = (items[0].0, change(&items).position);
    let start = (1 << 32, 0);
    assert_eq!(fixture.core.checkpoint()[0].position.order(), start);
    fixture.core.settled(shard, &[sent].into_iter().collect());
    assert_eq!(fixture.core.checkpoint()[0].position, sent);
}

#[test]
fn the_token_of_an_idle_batch_is_kept_for_the_position_before_it() {
    let mut fixture = Fixture::with_filters(Mapping::syntrix(), &[]);
    fixture.event(2, insert(stored("acme", "messages", "a")));
    let token = ResumeToken(Bytes::from_static(b"post-batch"));
    fixture.core.batch_end(0, Some(token.clone()));
    let point = fixture.core.checkpoint().remove(0);
    assert_eq!((point.position.order(), point.token), (((2 << 32) | 1, 1), Some(token)));
}

#[test]
fn what_is_too_large_is_told_to_whom_it_may_concern() {
    let stub = |key: &str| {
        doc! {
            "_id": { "_data": "large" }, "operationType": "update", "ns": { "db": "app", "coll": "documents" },
            "documentKey": { "_id": key }, "clusterTime": Bson::Timestamp(Timestamp { time: 2, increment: 1 }),
        }
    };
    let collection = Scope::Collection { tenant: "app".into(), collection: "documents".into() };
    for (mapping, key, scope) in [
        (Mapping::syntrix(), "acme:00", Scope::Tenant("acme".into())),
        (Mapping::syntrix(), "of nobody", Scope::Everything),
        (Mapping::Plain, "acme:00", collection),
    ] {
        let mut fixture = Fixture::new(mapping);
        let bytes = Bytes::from(stub(key).to_vec().unwrap());
        fixture.core.too_large(0, &bytes, &mut fixture.out).unwrap();
        let items = std::mem::take(&mut fixture.out);
        assert_eq!(items.len(), usize::from(SHARDS));
        let FromIngest::Gap(gap) = &items[0].1 else { panic!("not a gap: {items:?}") };
        assert_eq!((gap.reason, &gap.scopes[..]), (GapReason::Oversize, &[scope][..]));
        let point = fixture.core.resume_point(0).unwrap();
        assert_eq!(point.position.order(), ((2 << 32) | 1, 1));
        assert!(point.token.is_some(), "reading goes on behind it");
        fixture.core.too_large(0, &bytes, &mut fixture.out).unwrap();
        fixture.event(2, insert(stored("acme", "messages", "a")));
        assert_eq!(fixture.core.resume_point(0).unwrap().position.order(), ((2 << 32) | 1, 3), "it is counted");
    }
}

#[test]
fn lost_history_is_a_gap_for_everybody_and_reading_goes_on_there() {
    let mut fixture = Fixture::new(Mapping::syntrix());
    fixture.event(2, insert(stored("acme", "messages", "a")));
    fixture.core.opened_after_loss(0, LINEAGE, (9 << 32, 0), &mut fixture.out);
    let items = std::mem::take(&mut fixture.out);
    assert_eq!(items.len(), usize::from(SHARDS));
    assert!(matches!(&items[0].1, FromIngest::Gap(gap) if gap.reason == GapReason::HistoryLost));
    assert_eq!(fixture.core.resume_point(0).unwrap().position.order(), (9 << 32, 0));
}

/// A node that starts after its source has lost what came next begins at a place at which nothing stands: what comes next is new.
#[test]
fn the_first_event_after_a_loss_at_the_start_is_not_taken_for_a_repetition() {
    let mut fixture = Fixture::new(Mapping::syntrix());
    fixture.core = IngestCore::new(Arc::new(Mapping::syntrix()), SlotTable { shards: SHARDS }, vec![BACKEND]);
    fixture.core.opened_after_loss(0, LINEAGE, (9 << 32, 0), &mut fixture.out);
    let items = std::mem::take(&mut fixture.out);
    assert!(matches!(&items[0].1, FromIngest::Gap(gap) if gap.position.order() == (9 << 32, 0)), "{items:?}");
    assert_eq!(fixture.event(9, insert(stored("acme", "messages", "a"))).len(), 1);
    // The same again before anything was read, and after something was.
    fixture.core.opened_after_loss(0, LINEAGE, (9 << 32, 0), &mut fixture.out);
    let items = std::mem::take(&mut fixture.out);
    assert!(matches!(&items[0].1, FromIngest::Gap(gap) if gap.position.order() == ((9 << 32) + 2, 0)), "{items:?}");
    fixture.core.opened_after_loss(0, LINEAGE, (9 << 32, 0), &mut fixture.out);
    let items = std::mem::take(&mut fixture.out);
    assert!(matches!(&items[0].1, FromIngest::Gap(gap) if gap.position.order() == ((9 << 32) + 2, 0)), "{items:?}");
}
