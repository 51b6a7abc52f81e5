use bson::{RawDocumentBuf, doc};

use super::*;
use crate::value::raw_of_stored_id;

fn raw(document: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(document).unwrap()
}

fn image() -> RawDocumentBuf {
    raw(&doc! {
        "_id": "acme:00", "database": "old", "tenant_id": "acme", "collection": "rooms/r1/messages",
        "fullpath": "rooms/r1/messages/m1", "collection_hash": 5, "parent": "p", "version": 3_i64, "created_at": 1_i64,
        "updated_at": 2_i64, "deleted": true,
        "data": { "text": "hi", "id": "m-one", "version": "mine", "n": { "x": [1, { "y": 2 }] } },
    })
}

#[test]
fn a_nested_image() {
    let mapping = Mapping::syntrix();
    let image = image();
    assert_eq!(mapping.tenant(&image), Some("acme"));
    assert_eq!(mapping.collection(&image), Some("rooms/r1/messages"));
    assert_eq!(mapping.deleted(&image), Some(true));
    let id = mapping.document_id(&image).unwrap();
    assert_eq!(raw_of_stored_id(&id), Some(RawBsonRef::String("m-one")));
    let view = mapping.flat_view(&image);
    let expect = doc! {
        "collection": "rooms/r1/messages", "createdAt": 1_i64, "deleted": true, "id": "m-one",
        "n": { "x": [1, { "y": 2 }] }, "text": "hi", "updatedAt": 2_i64, "version": 3_i64,
    };
    assert_eq!(view, expect);
}

#[test]
fn document_ids() {
    let nested = Mapping::syntrix();
    for (document, expect) in [
        (doc! { "data": { "id": "a" }, "fullpath": "c/b" }, Some("a")),
        (doc! { "fullpath": "c/b", "data": { "id": "a" } }, Some("a")),
        (doc! { "data": { "id": 5 }, "fullpath": "c/d/b" }, Some("b")),
        (doc! { "data": {}, "fullpath": "b" }, Some("b")),
        (doc! { "fullpath": "c/" }, Some("")),
        (doc! { "data": 5, "fullpath": 5 }, None),
        (doc! {}, None),
    ] {
        let image = raw(&document);
        let found = nested.document_id(&image);
        assert_eq!(found, expect.map(stored_string_id), "{document}");
        assert_eq!(nested.id_path().get(&image), expect.map(RawBsonRef::String), "{document}");
    }
    let image = raw(&doc! { "x": 1, "_id": { "a": 1 } });
    assert_eq!(Mapping::Plain.document_id(&image), Some(stored_id(image.get("_id").unwrap().unwrap())));
    assert_eq!(Mapping::Plain.document_id(&raw(&doc! {})), None);
}

#[test]
fn tenants() {
    let mapping = Mapping::syntrix();
    for (document, expect) in [
        (doc! { "tenant_id": "a", "database": "b" }, Some("a")),
        (doc! { "database": "b", "database_id": "c" }, Some("c")),
        (doc! { "database": "b" }, Some("b")),
        // The first one present wins, even where it is of no use.
        (doc! { "tenant_id": 5, "database": "b" }, None),
        (doc! { "tenant": "x" }, None),
    ] {
        assert_eq!(mapping.tenant(&raw(&document)), expect, "{document}");
        assert_eq!(Mapping::Plain.tenant(&raw(&document)), None);
    }
}

#[test]
fn a_plain_image_is_its_own_view() {
    let document = doc! { "_id": 5, "id": "x", "data": { "a": 1 }, "deleted": true };
    assert_eq!(Mapping::Plain.flat_view(&raw(&document)), document);
    assert_eq!(Mapping::Plain.deleted(&raw(&document)), None);
    assert_eq!(Mapping::Plain.collection(&raw(&document)), None);
}

/// The view and the paths into it agree, for every name of the view.
#[test]
fn paths_find_what_the_view_shows() {
    for mapping in [Mapping::syntrix(), Mapping::Plain] {
        let image = image();
        let view = mapping.flat_view(&image);
        for (name, value) in &view {
            let found = mapping.view_path(&[name.as_str()]).get(&image).map(|raw| Bson::try_from(raw).unwrap());
            assert_eq!(found.as_ref(), Some(value), "{name} {mapping}");
        }
        for name in ["nope", "fullpath.x", "createdAt", "created_at", "text", "tenant_id"] {
            let found = mapping.view_path(&[name]).get(&image).is_some();
            assert_eq!(found, view.contains_key(name), "{name} {mapping}");
        }
    }
}

/// Of two fields with one name the first counts, for paths and for the view.
#[test]
fn the_first_of_two_fields_counts() {
    let mut twice = raw(&doc! { "a": 1 }).into_bytes();
    let again = raw(&doc! { "a": 2 }).into_bytes();
    twice.pop();
    twice.extend_from_slice(&again[4..]);
    let length = (twice.len() as i32).to_le_bytes();
    twice[..4].copy_from_slice(&length);
    let image = RawDocumentBuf::from_bytes(twice).unwrap();
    assert_eq!(Mapping::Plain.flat_view(&image), doc! { "a": 1 });
    assert_eq!(Mapping::Plain.view_path(&["a"]).get(&image), Some(RawBsonRef::Int32(1)));
}

/// A document cut off anywhere is read up to there.
#[test]
fn malformed_images_are_survived() {
    let whole = image().into_bytes();
    for end in 5..whole.len() {
        let mut bytes = whole[..end].to_vec();
        bytes.push(0);
        let length = (bytes.len() as i32).to_le_bytes();
        bytes[..4].copy_from_slice(&length);
        let Ok(image) = RawDocumentBuf::from_bytes(bytes) else { continue };
        for mapping in [Mapping::syntrix(), Mapping::Plain] {
            mapping.tenant(&image);
            mapping.collection(&image);
            mapping.deleted(&image);
            mapping.document_id(&image);
            mapping.flat_view(&image);
        }
    }
}

#[test]
fn what_lies_too_deep_is_left_out() {
    let mut deep = Bson::Int32(1);
    for _ in 0..150 {
        deep = Bson::Array(vec![deep]);
    }
    let view = Mapping::Plain.flat_view(&raw(&doc! { "a": deep, "b": 1 }));
    assert_eq!(view.get("b"), Some(&Bson::Int32(1)));
    let mut level = view.get("a").unwrap();
    let mut depth = 0;
    while let Bson::Array(items) = level {
        level = &items[0];
        depth += 1;
    }
    assert_eq!((depth, level), (VIEW_DEPTH_MAX, &Bson::Null));
}

#[test]
fn text_forms() {
    for text in ["syntrix", "plain", r#"{"nested":{"data":"payload"}}"#] {
        let mapping: Mapping = text.parse().unwrap();
        let again: Mapping = mapping.to_string().parse().unwrap();
        assert_eq!(again, mapping, "{text}");
        let json = serde_json::to_string(&mapping).unwrap();
        assert_eq!(serde_json::from_str::<Mapping>(&json).unwrap(), mapping, "{text}");
    }
    assert_eq!(Mapping::syntrix().to_string(), "syntrix");
    assert_eq!(serde_json::to_string(&Mapping::Plain).unwrap(), r#""plain""#);
    assert_eq!(r#"{"nested":{}}"#.parse::<Mapping>().unwrap(), Mapping::syntrix());
    for (text, what) in [
        ("syntax", "expected `syntrix`, `plain` or"),
        ("", "expected `syntrix`"),
        (r#"{"nested":{"dat":"x"}}"#, "unknown field `dat`"),
        (r#"{"plain":{}}"#, "expected `nested`"),
        (r#"{}"#, "missing field `nested`"),
        (r#"{"nested":{"data":""}}"#, "`data` is \"\""),
        (r#"{"nested":{"data":"a.b"}}"#, "without a dot"),
        (r#"{"nested":{"tenant":[]}}"#, "1 to 16 names"),
        (r#"{"nested":{"version":"data"}}"#, "already holds"),
        ("{", "mapping: "),
    ] {
        let message = text.parse::<Mapping>().unwrap_err().to_string();
        assert!(message.contains(what), "{text}: {message}");
    }
}

#[test]
fn storage_ids() {
    let id = Nested::storage_id("acme", "rooms", "r1");
    let hash = blake3::hash(b"rooms/r1").to_hex();
    assert_eq!(id, format!("acme:{}", &hash[..32]));
}
