use bson::{Document, doc};
use wire::{BackendId, Lineage, Position};

use super::*;

const AT: EventId = Position { backend: BackendId(1), lineage: Lineage(1), time: 7, k: 1 };
const ACME: &str = "acme";

fn is_send<T: Send + Sync>() {}

#[test]
fn an_oracle_may_run_on_another_thread() {
    is_send::<Oracle>();
}

/// Subscribes as Gateway `g`, id `s`, to collection `c` of `acme`.
fn oracle(preset: Preset, filters: &str, expr: &str, transitions: bool) -> Oracle {
    let mut oracle = Oracle::new(preset);
    oracle.subscribe(subscription("s", "c", filters, expr, transitions)).unwrap();
    oracle
}

fn subscription(id: &str, collection: &str, filters: &str, expr: &str, transitions: bool) -> OracleSubscription {
    OracleSubscription {
        gateway: "g".into(),
        key: SubscriptionKey { tenant: ACME.into(), id: id.into() },
        collection: collection.into(),
        filters: filters.into(),
        expr: expr.into(),
        transitions,
    }
}

/// A stored document of collection `c` of `acme` with id `d`.
fn stored(data: Document) -> Document {
    doc! { "_id": stored_id(ACME, "c", "d"), "tenant_id": ACME, "collection": "c", "fullpath": "c/d", "data": data }
}

fn change(kind: ChangeKind, before: Option<Document>, after: Option<Document>) -> OracleChange {
    let namespace = Namespace { database: "syntrix".into(), collection: "documents".into() };
    OracleChange { id: AT, kind, namespace, stored_id: stored_id(ACME, "c", "d").into(), before, after }
}

/// The only delivery, if there is one.
fn only(oracle: &Oracle, change: &OracleChange) -> Option<(Transition, Certainty)> {
    let all = oracle.expect(change);
    assert!(all.len() <= 1, "{all:?}");
    all.first().map(|expected| (expected.transition, expected.certainty))
}

/// Whether an insert of a document with this `data` is delivered.
fn matches(filters: &str, expr: &str, data: &Document) -> bool {
    let oracle = oracle(Preset::Syntrix, filters, expr, true);
    only(&oracle, &change(ChangeKind::Insert, None, Some(stored(data.clone())))).is_some()
}

#[test]
fn filters_mean_what_the_semantics_say() {
    let data = doc! {
        "s": "größe", "n": 3_i32, "f": 2.5, "nan": f64::NAN, "null": null, "t": true,
        "big": (1_i64 << 53) + 1,
        "when": bson::DateTime::from_millis(1_704_067_200_000),
        "o": { "p": { "q": 1 } },
        "l": [1, "a", { "x": 1 }],
        "id": "d",
    };
    let cases: &[(&str, bool)] = &[
        // Equality, and the other forms of a name.
        (r#"{"field":"s","op":"==","value":"größe"}"#, true),
        (r#"{"field":"s","op":"eq","value":"grösse"}"#, false),
        (r#"{"field":"data.s","op":"==","value":"größe"}"#, true),
        (r#"{"field":"data.data.s","op":"==","value":"größe"}"#, false),
        (r#"{"field":"_id","op":"==","value":"d"}"#, true),
        (r#"{"field":"id","op":"==","value":"d"}"#, true),
        (r#"{"field":"data.id","op":"==","value":"e"}"#, false),
        (r#"{"field":"collection","op":"==","value":"c"}"#, true),
        (r#"{"field":"o.p.q","op":"==","value":1}"#, true),
        (r#"{"field":"o.p","op":"==","value":{"q":1.0}}"#, true),
        (r#"{"field":"null","op":"==","value":null}"#, true),
        // Numbers by exact value.
        (r#"{"field":"n","op":"==","value":3.0}"#, true),
        (r#"{"field":"n","op":"==","value":{"$numberDecimal":"3.00"}}"#, true),
        (r#"{"field":"big","op":"==","value":{"$numberDouble":"9007199254740992.0"}}"#, false),
        (r#"{"field":"big","op":">","value":{"$numberDouble":"9007199254740992.0"}}"#, true),
        (r#"{"field":"nan","op":"==","value":{"$numberDouble":"NaN"}}"#, false),
        (r#"{"field":"nan","op":"!=","value":{"$numberDouble":"NaN"}}"#, true),
        // A missing field satisfies nothing.
        (r#"{"field":"gone","op":"==","value":null}"#, false),
        (r#"{"field":"gone","op":"!=","value":1}"#, false),
        (r#"{"field":"gone","op":"not-in","value":[1]}"#, false),
        (r#"{"field":"gone","op":"<","value":1}"#, false),
        (r#"{"field":"deleted","op":"!=","value":true}"#, false),
        // Other types: unequal, and without order.
        (r#"{"field":"n","op":"==","value":"3"}"#, false),
        (r#"{"field":"n","op":"!=","value":"3"}"#, true),
        (r#"{"field":"n","op":"<","value":"4"}"#, false),
        (r#"{"field":"t","op":"==","value":1}"#, false),
        (r#"{"field":"null","op":"<=","value":0}"#, false),
        // Order.
        (r#"{"field":"f","op":">=","value":2.5}"#, true),
        (r#"{"field":"f","op":">","value":2.5}"#, false),
        (r#"{"field":"f","op":"lte","value":3}"#, true),
        (r#"{"field":"s","op":">","value":"gz"}"#, false),
        (r#"{"field":"s","op":"<","value":"h"}"#, true),
        (r#"{"field":"when","op":"==","value":{"$date":"2024-01-01T00:00:00Z"}}"#, true),
        (r#"{"field":"when","op":"gt","value":{"$date":{"$numberLong":"1704067199999"}}}"#, true),
        // Lists of values.
        (r#"{"field":"n","op":"in","value":["a",3.0]}"#, true),
        (r#"{"field":"n","op":"in","value":[]}"#, false),
        (r#"{"field":"n","op":"not-in","value":[1,2]}"#, true),
        (r#"{"field":"n","op":"not-in","value":[3]}"#, false),
        // Only `contains` looks into arrays.
        (r#"{"field":"l","op":"==","value":1}"#, false),
        (r#"{"field":"l","op":"in","value":[1]}"#, false),
        (r#"{"field":"l.0","op":"==","value":1}"#, false),
        (r#"{"field":"l.x","op":"==","value":1}"#, false),
        (r#"{"field":"l","op":"contains","value":1.0}"#, true),
        (r#"{"field":"l","op":"array-contains","value":{"x":1}}"#, true),
        (r#"{"field":"l","op":"contains","value":2}"#, false),
        (r#"{"field":"s","op":"contains","value":"g"}"#, false),
        (r#"{"field":"l","op":"contains-any","value":[9,"a"]}"#, true),
        (r#"{"field":"l","op":"contains-any","value":[9]}"#, false),
        // Prefixes by bytes.
        (r#"{"field":"s","op":"starts-with","value":"grö"}"#, true),
        (r#"{"field":"s","op":"starts-with","value":""}"#, true),
        (r#"{"field":"s","op":"starts-with","value":"Gr"}"#, false),
        (r#"{"field":"n","op":"starts-with","value":"3"}"#, false),
        // All must hold.
        (r#"{"field":"n","op":"==","value":3},{"field":"t","op":"==","value":false}"#, false),
    ];
    for (filter, expect) in cases {
        assert_eq!(matches(&format!("[{filter}]"), "", &data), *expect, "{filter}");
    }
}

#[test]
fn expressions_are_left_to_the_interpreter() {
    let data = doc! { "s": "x", "n": 3_i32, "tags": ["a", "b"], "when": bson::DateTime::from_millis(0) };
    let cases = [
        ("doc.s == 'x' && data.n == 3", true),
        ("doc.n == 3.0", true),
        ("doc.n > 2 && doc.n < 4", true),
        ("doc.tags.exists(t, t == 'b')", true),
        ("doc.id == 'd' && id == 'd' && tenant == 'acme' && collection == 'c'", true),
        ("doc.when == timestamp('1970-01-01T00:00:00Z')", true),
        // An error is no match, and `||` absorbs it.
        ("doc.gone == 1", false),
        ("!(doc.gone == 1)", false),
        ("doc.gone == 1 || doc.s == 'x'", true),
        // Only true matches.
        ("doc.n", false),
    ];
    for (expr, expect) in cases {
        assert_eq!(matches("", expr, &data), expect, "{expr}");
    }
}

#[test]
fn what_cannot_be_read_is_refused() {
    let mut oracle = Oracle::new(Preset::Syntrix);
    for (filters, expr) in [
        ("{}", ""),
        (r#"[{"field":"a","op":"~","value":1}]"#, ""),
        (r#"[{"field":"a","op":"==" }]"#, ""),
        (r#"[{"field":"a","op":"in","value":1}]"#, ""),
        (r#"[{"field":"a","op":"starts-with","value":1}]"#, ""),
        ("", "doc.a =="),
    ] {
        assert!(oracle.subscribe(subscription("s", "c", filters, expr, true)).is_err(), "{filters} {expr}");
    }
    assert!(oracle.is_empty());
}

#[test]
fn transitions() {
    use ChangeKind::{Delete, Insert, Replace, Update};
    use Transition::{Enter, Leave, Update as Stay};
    const ON: &str = r#"[{"field":"on","op":"==","value":true}]"#;
    let on = |deleted: Option<bool>| {
        let mut document = stored(doc! { "on": true });
        document.extend(deleted.map(|deleted| ("deleted".to_owned(), Bson::Boolean(deleted))));
        Some(document)
    };
    let off = || Some(stored(doc! { "on": false }));
    let touch = Update(DeletedMark::Untouched);
    let cases = [
        ("insert that matches", change(Insert, None, on(None)), Some(Enter), Some(Enter)),
        ("insert that does not", change(Insert, None, off()), None, None),
        ("update without before-image", change(touch, None, on(None)), Some(Stay), Some(Stay)),
        ("update without before-image to no match", change(touch, None, off()), None, None),
        ("update into a match", change(touch, off(), on(None)), Some(Enter), Some(Enter)),
        ("update within", change(touch, on(None), on(None)), Some(Stay), Some(Stay)),
        ("update out of it", change(touch, on(None), off()), Some(Leave), None),
        ("replacement out of it", change(Replace, on(None), off()), Some(Leave), None),
        ("update outside", change(touch, off(), off()), None, None),
        ("look-up found nothing", change(touch, on(None), None), Some(Leave), None),
        ("look-up found nothing, no before-image", change(touch, None, None), None, None),
        ("soft delete, look-up found nothing", change(Update(DeletedMark::Set), None, None), None, None),
        ("hard delete with image", change(Delete, on(None), None), Some(Leave), Some(Leave)),
        ("hard delete of what did not match", change(Delete, off(), None), None, None),
        ("soft delete", change(Update(DeletedMark::Set), on(None), on(Some(true))), Some(Leave), Some(Leave)),
        (
            "soft delete without before-image",
            change(Update(DeletedMark::Set), None, on(Some(true))),
            Some(Leave),
            Some(Leave),
        ),
        ("soft delete of what did not match", change(Update(DeletedMark::Set), off(), on(Some(true))), None, None),
        (
            "recreation: the before-image does not count",
            change(Update(DeletedMark::Cleared), on(Some(true)), on(Some(false))),
            Some(Enter),
            Some(Enter),
        ),
        ("recreation as something else", change(Update(DeletedMark::Cleared), on(Some(true)), off()), None, None),
        ("replacement that deletes", change(Replace, on(None), on(Some(true))), Some(Leave), Some(Leave)),
        ("replacement that recreates", change(Replace, on(Some(true)), on(None)), Some(Enter), Some(Enter)),
    ];
    for (name, change, with_transitions, without) in cases {
        for (transitions, expect) in [(true, with_transitions), (false, without)] {
            let oracle = oracle(Preset::Syntrix, ON, "", transitions);
            let expect = expect.map(|transition| (transition, Certainty::Matched));
            assert_eq!(only(&oracle, &change), expect, "{name}, transitions: {transitions}");
        }
    }
}

#[test]
fn an_expression_about_the_change_is_evaluated_once() {
    use ChangeKind::{Delete, Insert, Update};
    use Transition::{Enter, Leave, Update as Stay};
    let n = |n: i32| Some(stored(doc! { "n": n }));
    let touch = Update(DeletedMark::Untouched);
    let cases = [
        ("type == 'insert'", change(Insert, None, n(1)), Some(Enter)),
        ("type == 'insert' && before == null", change(Insert, None, n(1)), Some(Enter)),
        ("type == 'update'", change(touch, None, n(1)), Some(Stay)),
        ("type == 'update'", change(Insert, None, n(1)), None),
        ("before.n < doc.n", change(touch, n(1), n(2)), Some(Stay)),
        ("before.n < doc.n", change(touch, n(2), n(1)), None),
        ("before.n < doc.n", change(touch, None, n(1)), None),
        ("before == null", change(touch, None, n(1)), Some(Stay)),
        ("type == 'delete' && doc.n == 1", change(Delete, n(1), None), Some(Leave)),
        ("type == 'delete' && before.n == 1", change(Delete, n(1), None), Some(Leave)),
        ("type == 'delete' && doc.n == 2", change(Update(DeletedMark::Set), n(1), n(2)), None),
        ("type == 'delete' && doc.n == 2", change(Update(DeletedMark::Set), None, n(2)), Some(Leave)),
        ("type == 'insert' && before.n == 1", change(Update(DeletedMark::Cleared), n(1), n(2)), Some(Enter)),
    ];
    for (expr, change, expect) in cases {
        let oracle = oracle(Preset::Syntrix, "", expr, true);
        assert_eq!(only(&oracle, &change).map(|found| found.0), expect, "{expr} on {change:?}");
    }
}

#[test]
fn a_move_leaves_one_place_and_enters_the_other() {
    let mut oracle = Oracle::new(Preset::Syntrix);
    for (id, collection, expr) in
        [("old", "c", ""), ("new", "e", ""), ("spy", "e", "before != null"), ("quiet", "c", "doc.n == 1")]
    {
        oracle.subscribe(subscription(id, collection, "", expr, id != "quiet")).unwrap();
    }
    let before = stored(doc! { "n": 1 });
    let mut after = before.clone();
    after.insert("collection", "e");
    let moved = change(ChangeKind::Update(DeletedMark::Untouched), Some(before), Some(after));
    let found: Vec<(String, Transition)> =
        oracle.expect(&moved).into_iter().map(|e| (e.key.id, e.transition)).collect();
    assert_eq!(found, [("old".to_owned(), Transition::Leave), ("new".to_owned(), Transition::Enter)]);
}

#[test]
fn tenants_are_walls() {
    let oracle = oracle(Preset::Syntrix, "", "", true);
    let mut other = stored(doc! {});
    other.insert("tenant_id", "globex");
    let mut inserted = change(ChangeKind::Insert, None, Some(other));
    // The id says acme, the field says globex.
    assert_eq!(only(&oracle, &inserted), None);
    inserted.stored_id = stored_id("globex", "c", "d").into();
    assert_eq!(only(&oracle, &inserted), None);
    // The id names no tenant: the field decides, under any of its names.
    for name in ["tenant_id", "database_id", "database"] {
        inserted.stored_id = Bson::Int32(1);
        inserted.after = Some(doc! { "collection": "c", name: ACME });
        assert_eq!(only(&oracle, &inserted), Some((Transition::Enter, Certainty::Matched)), "{name}");
    }
}

#[test]
fn bare_deletes() {
    const BY_ID: &str = r#"[{"field":"_id","op":"==","value":"d"}]"#;
    const BY_OTHER_ID: &str = r#"[{"field":"_id","op":"==","value":"e"}]"#;
    const BY_NUMBER: &str = r#"[{"field":"_id","op":"==","value":5.0}]"#;
    const STATUS: &str = r#"[{"field":"status","op":"==","value":"x"}]"#;
    let syntrix = change(ChangeKind::Delete, None, None);
    let namespace = Namespace { database: ACME.into(), collection: "c".into() };
    let plain = OracleChange { namespace, stored_id: "d".into(), ..syntrix.clone() };
    let number = OracleChange { stored_id: 5_i64.into(), ..plain.clone() };
    let elsewhere =
        OracleChange { namespace: Namespace { database: ACME.into(), collection: "e".into() }, ..plain.clone() };
    let no_tenant = OracleChange { stored_id: Bson::Int32(1), ..syntrix.clone() };
    let other_tenant = OracleChange { stored_id: stored_id("globex", "c", "d").into(), ..syntrix.clone() };
    let (matched, unknown) = (Some(Certainty::Matched), Some(Certainty::Unknown));
    use Preset::{Plain, Syntrix};
    let cases = [
        (Syntrix, BY_ID, "", &syntrix, matched),
        (Syntrix, BY_OTHER_ID, "", &syntrix, None),
        (Syntrix, BY_NUMBER, "", &syntrix, None),
        (Syntrix, BY_ID, "doc.a == 1", &syntrix, unknown),
        (Syntrix, BY_OTHER_ID, "doc.a == 1", &syntrix, None),
        // The collection isn't known.
        (Syntrix, "", "", &syntrix, unknown),
        (Syntrix, STATUS, "", &syntrix, unknown),
        (Syntrix, "", "type == 'delete'", &syntrix, unknown),
        (Syntrix, "", "", &no_tenant, None),
        (Syntrix, "", "", &other_tenant, None),
        (Syntrix, BY_ID, "", &other_tenant, None),
        (Plain, BY_ID, "", &plain, matched),
        (Plain, BY_ID, "", &number, None),
        (Plain, BY_NUMBER, "", &number, matched),
        (Plain, "", "", &plain, matched),
        (Plain, STATUS, "", &plain, unknown),
        (Plain, "", "doc.a == 1", &plain, unknown),
        (Plain, "", "", &elsewhere, None),
    ];
    for (preset, filters, expr, change, expect) in cases {
        let oracle = oracle(preset, filters, expr, false);
        let expect = expect.map(|certainty| (Transition::Leave, certainty));
        assert_eq!(only(&oracle, change), expect, "{preset:?} {filters} {expr} on {change:?}");
    }
}

#[test]
fn the_flat_view() {
    let syntrix = |extra: Document, data: Document| {
        let mut document = doc! { "tenant_id": ACME, "collection": "a/b", "fullpath": "a/b/c", "data": data };
        document.extend(extra);
        View::of(&document, Preset::Syntrix)
    };
    // The path names the document where `data.id` is no string.
    for (data, id) in [(doc! { "id": "x" }, "x"), (doc! { "id": 7 }, "c"), (doc! {}, "c")] {
        let view = syntrix(doc! {}, data);
        assert_eq!(view.at("_id"), Some(&Bson::from(id)));
        assert_eq!(view.at("id"), Some(&Bson::from(id)));
        assert_eq!(view.id, Some(Bson::from(id)));
    }
    // System fields win over the user's, also by being missing.
    let user = doc! { "version": "mine", "deleted": "mine", "createdAt": "mine", "collection": "mine", "a": 1 };
    let view = syntrix(doc! { "version": 3, "created_at": 4 }, user);
    let expect = doc! { "a": 1, "id": "c", "collection": "a/b", "version": 3, "createdAt": 4 };
    assert_eq!(view.fields.len(), expect.len());
    assert!(expect.iter().all(|(name, value)| view.fields.get(name) == Some(value)), "{:?}", view.fields);
    // Under `plain`, the document is its own view, and only `_id` is its id.
    let document = doc! { "_id": 5, "id": 6, "data": { "a": 1 } };
    let view = View::of(&document, Preset::Plain);
    assert_eq!((view.at("_id"), view.at("id")), (Some(&Bson::Int32(5)), Some(&Bson::Int32(6))));
    assert_eq!(view.at("data.a"), Some(&Bson::Int32(1)));
    assert_eq!((view.fields, view.id), (document, Some(Bson::Int32(5))));
}

#[test]
fn a_subscription_takes_the_place_of_its_predecessor() {
    let mut oracle = oracle(Preset::Syntrix, "", "", true);
    let inserted = change(ChangeKind::Insert, None, Some(stored(doc! {})));
    assert!(only(&oracle, &inserted).is_some());
    oracle.subscribe(subscription("s", "elsewhere", "", "", true)).unwrap();
    assert_eq!((only(&oracle, &inserted), oracle.len()), (None, 1));
    assert!(oracle.unsubscribe("g", &SubscriptionKey { tenant: ACME.into(), id: "s".into() }));
    assert!(!oracle.unsubscribe("g", &SubscriptionKey { tenant: ACME.into(), id: "s".into() }));
    assert!(oracle.is_empty());
}
