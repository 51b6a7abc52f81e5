//! Normalizing as it reads best: every field is looked up when it is wanted, by the iterator of the `bson` crate or by
//! [`predicate::field`], and everything is made at once. The tests hold the quick way against it.

use bson::{RawBsonRef, RawDocument};
use bytes::Bytes;
use predicate::{Mapping, field, mapping::Nested};
use shards::{Bare, Change, Image, NewChange, Scope, StoredId};
use smallvec::{SmallVec, smallvec};
use wire::{GapReason, Operation, Position};

use super::{super::event::Malformed, Skip};

#[derive(Debug)]
#[expect(dead_code, reason = "only the tests have it, and compare it as text")]
pub(super) enum Normalized {
    Change(Change),
    Gap { scopes: SmallVec<[Scope; 2]>, reason: GapReason },
    Skip(Skip),
}

/// What the event is, and its token's bytes and cluster time.
pub(super) type Read = (Option<Vec<u8>>, Option<u64>, Result<Normalized, Malformed>);

pub(super) fn read(mapping: &Mapping, event: &Bytes, position: Position) -> Result<Read, Malformed> {
    let fields = Fields::parse(event)?;
    let normalized = normalize(mapping, &fields, position);
    Ok((fields.token.map(|token| token.as_bytes().to_vec()), fields.cluster_time, normalized))
}

#[derive(Debug, Default)]
struct Fields<'a> {
    token: Option<&'a RawDocument>,
    operation: &'a str,
    cluster_time: Option<u64>,
    database: Option<&'a str>,
    collection: Option<&'a str>,
    renamed_to: Option<(&'a str, &'a str)>,
    key: Option<RawBsonRef<'a>>,
    after: Option<&'a RawDocument>,
    before: Option<&'a RawDocument>,
    update: Option<&'a RawDocument>,
}

impl<'a> Fields<'a> {
    fn parse(event: &'a [u8]) -> Result<Self, Malformed> {
        let bad = |error: bson::error::Error| Malformed::Bson(error.to_string());
        let mut fields = Self::default();
        for element in RawDocument::from_bytes(event).map_err(bad)?.iter_elements() {
            let element = element.map_err(bad)?;
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

fn normalize(mapping: &Mapping, fields: &Fields<'_>, position: Position) -> Result<Normalized, Malformed> {
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
    if operation == Operation::Update && fields.after.is_none() && fields.before.is_none() {
        return Ok(Normalized::Skip(Skip::LookedUpNothing));
    }
    match mapping {
        Mapping::Plain => plain(fields, position, operation, key),
        Mapping::Nested(names) => Ok(nested(mapping, names, fields, position, operation, key)),
    }
}

fn plain(
    fields: &Fields<'_>,
    position: Position,
    operation: Operation,
    key: RawBsonRef<'_>,
) -> Result<Normalized, Malformed> {
    let tenant = fields.database.ok_or(Malformed::Lacks("ns.db"))?;
    let collection = fields.collection.ok_or(Malformed::Lacks("ns.coll"))?;
    let after = if operation == Operation::Delete { None } else { fields.after };
    let [before, after] = [fields.before, after]
        .map(|document| document.map(|document| Image::new(tenant, collection, document.as_bytes())));
    let bare =
        (before.is_none() && after.is_none()).then_some(Bare { tenant: Some(tenant), collection: Some(collection) });
    let key = predicate::stored_id(key).into();
    let change = NewChange { position, operation, key, document_id: None, before, after, bare };
    Ok(Normalized::Change(Change::copied(change)))
}

fn nested(
    mapping: &Mapping,
    names: &Nested,
    fields: &Fields<'_>,
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
    let before = image(fields.before, before_root);
    let after = image(after, after_root);
    let bare = match (&before, &after) {
        (None, None) if operation == Operation::Delete => Some(Bare { tenant: key_tenant, collection: None }),
        (None, None) => return Normalized::Skip(Skip::NoPlace),
        _ => None,
    };
    let document = after.or(before).and_then(|image| RawDocument::from_bytes(image.document).ok());
    let document_id = document.and_then(|document| mapping.document_id(document)).map(StoredId::from);
    let key = predicate::stored_id(key).into();
    let change = NewChange { position, operation: seen_as, key, document_id, before, after, bare };
    Normalized::Change(Change::copied(change))
}

fn image<'a>(document: Option<&'a RawDocument>, found: Option<Root<'a>>) -> Option<Image<'a>> {
    let (document, found) = document.zip(found)?;
    Some(Image::new(found.tenant?, found.collection?, document.as_bytes()))
}

fn soft(
    names: &Nested,
    fields: &Fields<'_>,
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

fn gap(mapping: &Mapping, fields: &Fields<'_>, reason: GapReason) -> Result<Normalized, Malformed> {
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
