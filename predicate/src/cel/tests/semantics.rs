use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Document, Timestamp, doc, oid::ObjectId};

use super::*;
use crate::cel::native::Node;
use crate::{Value, stored_id};

fn sample() -> Document {
    doc! {
        "i": 5_i32, "l": 9_007_199_254_740_993_i64, "d": 2.5, "nan": f64::NAN, "inf": f64::INFINITY, "zero": -0.0,
        "dec": Bson::Decimal128("9.99".parse().unwrap()), "dec5": Bson::Decimal128("5.00".parse().unwrap()),
        "s": "héllo", "b": true, "f": false, "n": null,
        "t": DateTime::from_millis(1_700_000_000_123), "far": DateTime::from_millis(i64::MAX),
        "o": ObjectId::parse_str("507f1f77bcf86cd799439011").unwrap(),
        "bin": Binary { subtype: BinarySubtype::Uuid, bytes: vec![1, 2, 3] },
        "ts": Timestamp { time: 1, increment: 2 }, "sym": Bson::Symbol("x".into()), "min": Bson::MinKey,
        "list": [1, 2.0, "x", null, [1], { "k": 1 }], "tags": ["a", "b"],
        "m": { "a": { "b": 1 }, "k": "v" }, "m2": { "k": "v", "a": { "b": 1.0 } }, "a.b": 7,
        "_id": "the-id", "id": "users-id",
    }
}

/// `T`, `F` or `E` for true, false and error, native and interpreted alike.
fn check(expr: &str, expect: char) {
    let image = raw(&sample());
    let before = raw(&doc! { "i": 4, "s": "old", "m": { "k": "v", "a": { "b": 1 } } });
    for (what, predicate) in [("native", compile(expr)), ("interpreted", compile_interpreted(expr))] {
        let outcome = evaluate(&predicate.unwrap_or_else(|error| panic!("{expr}: {error}")), &image, Some(&before));
        let found = match outcome {
            Outcome::True => 'T',
            Outcome::False => 'F',
            Outcome::Error => 'E',
            Outcome::OverBudget => 'B',
        };
        assert_eq!(found, expect, "{expr} ({what})");
    }
}

#[test]
fn each_row_of_the_table() {
    for (expr, expect) in [
        // Numbers are one line.
        ("doc.i == 5 && doc.i == 5.0 && doc.i == 5u", 'T'),
        ("doc.i < 5.5 && doc.d > 2 && doc.d < 3u", 'T'),
        ("doc.zero == 0 && doc.zero == 0.0 && doc.zero == -0.0", 'T'),
        ("doc.nan == doc.nan", 'F'),
        ("doc.nan != doc.nan", 'T'),
        ("doc.nan < 1.0", 'E'),
        ("doc.inf > 9223372036854775807 && doc.inf > 18446744073709551615u", 'T'),
        ("doc.dec > 9.98 && doc.dec < 10 && doc.dec5 == 5", 'T'),
        ("doc.dec == 9.99", 'T'),
        // Missing.
        ("doc.none == 1", 'E'),
        ("doc.none != 1", 'E'),
        ("!(doc.none == 1)", 'E'),
        ("doc.none == 1 || true", 'T'),
        ("true || doc.none == 1", 'T'),
        ("doc.none == 1 && false", 'F'),
        ("false && doc.none == 1", 'F'),
        ("doc.none == 1 && true", 'E'),
        ("doc.none == 1 || false", 'E'),
        ("has(doc.none)", 'F'),
        ("!has(doc.none) && has(doc.n) && has(doc.min)", 'T'),
        ("has(doc.m.a.b) && !has(doc.m.a.c)", 'T'),
        ("has(doc.none.x)", 'E'),
        ("has(doc.n.x)", 'E'),
        ("has(doc.s.x)", 'E'),
        ("has(doc.list.x)", 'E'),
        ("doc.s.x == 1", 'E'),
        ("doc.list.x == 1", 'E'),
        // Null.
        ("doc.n == null && doc.i != null", 'T'),
        ("doc.none == null", 'E'),
        ("doc.n < null", 'E'),
        // Different types.
        ("doc.i == 's' || doc.s == 5 || doc.b == 1 || doc.n == false", 'F'),
        ("doc.i != 's' && doc.s != 5", 'T'),
        ("doc.i < 's'", 'E'),
        ("doc.list == 1 || doc.m == 's' || doc.list == doc.m", 'F'),
        ("doc.list < 1", 'E'),
        // Text.
        ("doc.s == 'héllo' && doc.s > 'hz' && doc.s.size() == 5 && size(doc.s) < 6", 'T'),
        ("doc.s.startsWith('hé') && doc.s.endsWith('llo') && doc.s.contains('é')", 'T'),
        ("doc.i.startsWith('5')", 'E'),
        ("doc.s.startsWith(5)", 'E'),
        ("doc.s.matches('^h.*o$') && !doc.s.matches('^x')", 'T'),
        ("matches(doc.s, 'l+')", 'T'),
        ("doc.i.matches('5')", 'E'),
        // Bools.
        ("doc.b && !doc.f && doc.b == true && doc.f < doc.b", 'T'),
        ("doc.i && true", 'E'),
        ("doc.i && false", 'F'),
        ("!doc.i", 'E'),
        ("doc.b ? doc.i == 5 : doc.none == 1", 'T'),
        ("doc.f ? doc.none == 1 : doc.i == 4", 'F'),
        ("doc.none ? true : true", 'E'),
        // ObjectIds are their digits, bytes have no subtype, dates are timestamps.
        ("doc.o == '507f1f77bcf86cd799439011' && doc.o.startsWith('507f') && size(doc.o) == 24", 'T'),
        ("doc.bin == b'\\x01\\x02\\x03' && doc.bin < b'\\x02' && size(doc.bin) == 3", 'T'),
        ("doc.t == timestamp('2023-11-14T22:13:20.123Z') && doc.t < timestamp('2023-11-14T22:13:20.124Z')", 'T'),
        ("doc.t > timestamp('nonsense')", 'E'),
        ("doc.t.getFullYear() == 2023 && doc.t + duration('1h') > doc.t", 'T'),
        // What CEL does not have.
        ("doc.ts == doc.ts || doc.sym == 'x' || doc.min == doc.min || doc.far == doc.far", 'F'),
        ("doc.ts != 1 && doc.far != null", 'T'),
        ("doc.ts < doc.ts", 'E'),
        // Lists and maps.
        ("1 in doc.list && 2 in doc.list && 'x' in doc.list && null in doc.list && !(3 in doc.list)", 'T'),
        ("[1.0] in doc.list && {'k': 1} in doc.list", 'T'),
        ("doc.m.a in [doc.m2.a] && doc.tags[0] in doc.tags", 'T'),
        ("doc.i in [1, 5.0] && doc.s in ['héllo'] && !(doc.i in ['5']) && !(doc.i in [])", 'T'),
        ("doc.none in [1]", 'E'),
        ("'k' in doc.m && !('z' in doc.m) && !(1 in doc.m)", 'T'),
        ("null in doc.m", 'E'),
        ("1 in doc.s", 'E'),
        ("doc.m == doc.m2 && doc.m.a == before.m.a && doc.list == doc.list && doc.m != doc.list", 'T'),
        ("size(doc.list) == 6 && doc.m.size() == 2 && size(doc.m.a) > 0", 'T'),
        ("size(doc.i) == 1", 'E'),
        ("doc.tags.exists(t, t == 'b') && doc.tags.all(t, size(t) == 1) && doc.tags.exists_one(t, t == 'a')", 'T'),
        ("doc.tags.filter(t, t != 'a') == ['b'] && doc.tags.map(t, t + t) == ['aa', 'bb']", 'T'),
        ("doc.list.exists(x, x > 5)", 'E'),
        ("doc.list[1] == 2 && doc['i'] == 5 && doc['a.b'] == 7 && doc.m['a']['b'] == 1 && doc['m'].k == 'v'", 'T'),
        ("doc.list[10] == 1", 'E'),
        // Variables.
        ("tenant == 'acme' && collection == 'rooms' && type == 'update' && id == 'the-id'", 'T'),
        ("doc._id == 'the-id' && doc.id == 'users-id' && data.i == 5", 'T'),
        ("before.i == 4 && before.s != doc.s && before != null", 'T'),
        ("before.none == 1", 'E'),
        // The document holds a NaN.
        ("doc == data", 'F'),
        ("doc.m == data.m && size(doc) > 5 && 'i' in doc && doc.all(k, k != 'nope')", 'T'),
        ("type(doc.i) == int && type(doc.s) == string && type(doc.t) == google.protobuf.Timestamp", 'T'),
        // Arithmetic.
        ("doc.i + 1 == 6 && doc.i * 2 == 10 && -doc.i == -5 && doc.d / 2.0 == 1.25 && doc.i % 2 == 1", 'T'),
        ("doc.i / 0 == 1", 'E'),
        ("doc.l + 9223372036854775807 > 0", 'E'),
        ("-(-5) == doc.i && doc.i > -9223372036854775808", 'T'),
    ] {
        check(expr, expect);
    }
}

#[test]
fn before_is_null_where_there_is_none() {
    let image = raw(&sample());
    for (expr, expect) in [
        ("before == null", Outcome::True),
        ("before != null", Outcome::False),
        ("before.i == 4", Outcome::Error),
        ("has(before.i)", Outcome::Error),
        ("before == null || before.i != doc.i", Outcome::True),
        ("before != null && before.i != doc.i", Outcome::False),
    ] {
        for predicate in [compile(expr).unwrap(), compile_interpreted(expr).unwrap()] {
            assert_eq!(evaluate(&predicate, &image, None), expect, "{expr}");
            assert!(predicate.reads_change(), "{expr}");
        }
    }
}

/// The one listed difference: the interpreter compares integers with doubles as doubles.
#[test]
fn beyond_2_to_the_53_only_native_is_exact() {
    let image = raw(&sample());
    let expr = "doc.l == 9007199254740992.0";
    assert_eq!(evaluate(&compile(expr).unwrap(), &image, None), Outcome::False);
    assert_eq!(evaluate(&compile_interpreted(expr).unwrap(), &image, None), Outcome::True);
}

#[test]
fn the_common_subset_is_native() {
    fn native(node: &Node) -> bool {
        match node {
            Node::And(nodes) | Node::Or(nodes) => nodes.iter().all(native),
            Node::Not(node) => native(node),
            Node::If(nodes) => nodes.iter().all(native),
            Node::Const(_) | Node::Test(_) => true,
            Node::Loop(found) => native(&found.body),
            Node::Interpreted(_) => false,
        }
    }
    for (expr, expect) in [
        ("doc.a == 1 && (doc.b in ['x'] || !has(doc.c.d)) && doc.e.startsWith('f') && doc.g", true),
        ("doc.a != before.a && type == 'update' && id == 'x' && 'a' in doc.tags && size(doc.s) > 2", true),
        ("doc.t > timestamp('2024-01-01T00:00:00Z') ? doc.x : doc['y'].matches('z+')", true),
        ("doc.n > -5 && doc.d < -1.5 && before == null", true),
        ("doc.a == 1 && doc.list.exists(x, x == 1 || x.a.startsWith('b') && has(x.c) && !(x.d in [1, 2]))", true),
        (
            "doc.list.all(x, x == 'a') && before.list.exists_one(x, x > doc.a) && doc.l.exists(x, x.exists(y, y == x))",
            true,
        ),
        ("doc.list.exists(x, x + 1 == 2)", false),
        ("doc.list.exists(x, x.map(y, y + 1) == [2])", false),
        ("doc.list.map(x, x).exists(x, x == 1)", false),
        ("doc.a + 1 == 2", false),
    ] {
        let expression = crate::cel::Expression::compile(expr, &Mapping::Plain, true).unwrap();
        assert_eq!(expression.conjuncts.iter().all(native), expect, "{expr}");
    }
}

fn anchors(expr: &str, mapping: &Mapping) -> Vec<(String, Value)> {
    let predicate = Predicate::compile(Source { filters: "", expr }, mapping).unwrap();
    predicate.equalities().iter().map(|(path, value)| (path.to_string(), value.clone())).collect()
}

fn value(bson: impl Into<Bson>) -> Value {
    let holder = raw(&doc! { "v": bson.into() });
    Value::of(holder.get("v").unwrap().unwrap()).unwrap()
}

#[test]
fn equalities_of_conjunctions() {
    let plain = |expr: &str| anchors(expr, &Mapping::Plain);
    assert_eq!(
        plain("doc.a == 'x' && 5 == doc.b.c && doc.d > 1"),
        [("a".to_owned(), value("x")), ("b.c".to_owned(), value(5))]
    );
    assert_eq!(
        plain("doc.flag && doc.n == null"),
        [("flag".to_owned(), value(true)), ("n".to_owned(), value(Bson::Null))]
    );
    assert_eq!(plain("doc.a == 'x' && doc.list.exists(y, y == 1)").len(), 1);
    for none in [
        "doc.a == 'x' || doc.b == 'y'",
        "!(doc.a == 'x')",
        "before.a == 'x'",
        // A decimal may be rounded to it, an ObjectId may be written so, bytes have subtypes.
        "doc.a == 0.5",
        "doc.a == 9007199254740993",
        "doc.a == '507f1f77bcf86cd799439011'",
        "doc.a == b'x'",
        "id == null",
    ] {
        assert_eq!(plain(none), [], "{none}");
    }
}

#[test]
fn document_ids_of_conjunctions() {
    let id = |expr: &str, mapping: &Mapping| {
        Predicate::compile(Source { filters: "", expr }, mapping).unwrap().document_id().cloned()
    };
    let hex = "id == '507f1f77bcf86cd799439011'";
    assert_eq!(id("id == 'x' && doc.a == 1", &Mapping::Plain), Some(value("x")));
    assert_eq!(id("doc._id == 7", &Mapping::Plain), Some(value(7)));
    assert_eq!(id("doc.id == 'x'", &Mapping::Plain), None);
    assert_eq!(id(hex, &Mapping::Plain), None);
    assert_eq!(id(hex, &Mapping::syntrix()), Some(value("507f1f77bcf86cd799439011")));
    assert_eq!(id("doc.id == 'x'", &Mapping::syntrix()), Some(value("x")));
    let image = raw(&doc! { "fullpath": "rooms/r1/messages/m1", "data": { "x": 1 } });
    assert_eq!(Mapping::syntrix().document_id(&image), Some(stored_id(bson::RawBsonRef::String("m1"))));
}

/// An anchor must not miss a document for which the expression holds.
#[test]
fn equalities_agree_with_the_expression() {
    let values: Vec<Bson> = vec![
        Bson::Int32(5),
        Bson::Int64(5),
        Bson::Double(5.0),
        Bson::Decimal128("5.0".parse().unwrap()),
        Bson::Decimal128("5.000000000000000000000000000000001".parse().unwrap()),
        Bson::Decimal128("4.999999999999999999999999999999999".parse().unwrap()),
        Bson::Decimal128("1E-400".parse().unwrap()),
        Bson::Int32(0),
        Bson::Double(-0.0),
        Bson::String("5".into()),
        Bson::Null,
        Bson::Undefined,
        Bson::Boolean(true),
        Bson::Symbol("5".into()),
        Bson::DateTime(DateTime::from_millis(0)),
    ];
    for literal in ["5", "5.0", "5u", "0", "'5'", "null", "true", "timestamp('1970-01-01T00:00:00Z')"] {
        let predicate = compile(&format!("doc.v == {literal}")).unwrap();
        let [(path, anchor)] = predicate.equalities() else { panic!("{literal}") };
        for value in &values {
            let image = raw(&doc! { "v": value.clone() });
            let holds = evaluate(&predicate, &image, None) == Outcome::True;
            let anchored = path.get(&image).and_then(Value::of).as_ref() == Some(anchor);
            assert_eq!(holds, anchored, "{literal} against {value}");
        }
    }
}

#[test]
fn names_and_results_are_checked() {
    for (expr, what) in [
        ("dox.a == 1", "unknown name `dox`; known are doc"),
        ("doc.a.frob()", "unknown method `frob`"),
        ("frob(doc.a)", "unknown function `frob`"),
        ("has(doc)", "has"),
        ("doc.a.all(x)", "it takes a name"),
        ("optional.of(1).hasValue()", "unknown"),
        ("doc.?a == 1", "unsupported"),
        ("Foo{a: 1} == 1", "message"),
        ("1", "yields a int; expected a bool"),
        ("doc", "yields a map"),
        ("'x'", "yields a string"),
        ("doc.a + 1", "expected a bool"),
        ("size(doc.a)", "yields a int"),
        ("[true]", "yields a list"),
        ("doc.l.map(x, x)", "yields a list"),
        ("doc.l.filter(x, true)", "yields a list"),
        ("doc.b ? 1 : 2", "expected a bool"),
        ("doc.s.matches('(')", "bad regular expression"),
        ("doc.s.matches('a{1000}{1000}')", "regular expression"),
        ("doc.a ==", "expression"),
        ("   ", "empty"),
    ] {
        let message = compile(expr).unwrap_err().to_string();
        assert!(message.contains(what), "{expr}: {message}");
    }
    for expr in ["doc.l.all(doc, doc == 1)", "doc.l.exists(type, type == 1)", "doc.l.exists_one(x, x)", "id"] {
        let predicate = compile(expr).unwrap_or_else(|error| panic!("{expr}: {error}"));
        assert!(!predicate.reads_change(), "{expr}");
    }
}

#[test]
fn a_nested_layout_is_seen_flat() {
    let image = raw(&doc! {
        "_id": "acme:00", "tenant_id": "acme", "collection": "rooms", "fullpath": "rooms/r9", "version": 3_i64,
        "created_at": 10_i64, "updated_at": 11_i64, "deleted": false,
        "data": { "status": "open", "version": "mine", "data": { "x": 1 }, "_id": "user" },
    });
    for expr in [
        "doc.status == 'open' && doc.version == 3 && doc.createdAt == 10 && doc.updatedAt == 11 && !doc.deleted",
        "id == 'r9' && doc.id == 'r9' && doc._id == 'user' && doc.collection == 'rooms' && doc.data.x == 1",
        "size(doc) == 9 && has(doc.id) && !has(doc.fullpath) && 'status' in doc",
    ] {
        for predicate in [
            Predicate::compile(Source { filters: "", expr }, &Mapping::syntrix()).unwrap(),
            Predicate::compile_interpreted(Source { filters: "", expr }, &Mapping::syntrix()).unwrap(),
        ] {
            assert_eq!(evaluate(&predicate, &image, None), Outcome::True, "{expr}");
        }
    }
}
