use bson::spec::BinarySubtype;
use bson::{Binary, DateTime, Document, RawDocumentBuf, Timestamp, doc, oid::ObjectId};

use super::*;
use crate::{ChangeType, Context, EVALUATION_UNITS_MAX, Outcome, Predicate, Source};

const CONTEXT: Context<'static> =
    Context { tenant: "t", collection: "c", change_type: ChangeType::Update, before: None };

fn raw(document: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(document).unwrap()
}

fn compile(filters: &str, mapping: &Mapping) -> Result<Predicate, CompileError> {
    Predicate::compile(Source { filters, expr: "" }, mapping)
}

fn holds(document: &Document, filters: &str, mapping: &Mapping) -> bool {
    let predicate = compile(filters, mapping).unwrap_or_else(|error| panic!("{filters}: {error}"));
    match predicate.evaluate(&raw(document), &CONTEXT, &mut Budget { units: EVALUATION_UNITS_MAX }) {
        Outcome::True => true,
        Outcome::False => false,
        other => panic!("{filters}: {other:?}"),
    }
}

fn one(document: &Document, field: &str, op: &str, value: &str) -> bool {
    holds(document, &format!(r#"[{{"field":"{field}","op":"{op}","value":{value}}}]"#), &Mapping::Plain)
}

/// A field of a type, and a value that equals it, one below, one above (where it has an order), as JSON.
type Typed = (Bson, &'static str, Option<(&'static str, &'static str)>);

fn typed() -> Vec<Typed> {
    vec![
        (Bson::Int32(5), "5", Some(("4.5", "6"))),
        (
            Bson::Int64(5),
            r#"{"$numberDecimal":"5.000"}"#,
            Some((r#"{"$numberDecimal":"4.999999999999999999999"}"#, "5.5")),
        ),
        (Bson::Int64((1 << 53) + 1), "9007199254740993", Some(("9007199254740992.0", "9007199254740994.0"))),
        (Bson::Int64(i64::MAX), "9223372036854775807", Some(("9223372036854775806", "9223372036854775808"))),
        (Bson::Double(0.1), r#"{"$numberDouble":"0.1"}"#, Some((r#"{"$numberDecimal":"0.1"}"#, "0.2"))),
        (Bson::Double(-0.0), "0", Some(("-1e-300", "1e-300"))),
        (Bson::Double(f64::INFINITY), r#"{"$numberDecimal":"Infinity"}"#, None),
        (Bson::Decimal128("2.50".parse().unwrap()), "2.5", Some((r#"{"$numberInt":"2"}"#, r#"{"$numberLong":"3"}"#))),
        (Bson::String("m".into()), r#""m""#, Some((r#""lz""#, r#""m0""#))),
        (Bson::Boolean(true), "true", None),
        (Bson::Null, "null", None),
        (
            Bson::DateTime(DateTime::from_millis(1_000)),
            r#"{"$date":"1970-01-01T00:00:01Z"}"#,
            Some((r#"{"$date":{"$numberLong":"999"}}"#, r#"{"$date":"1970-01-01T00:00:01.001Z"}"#)),
        ),
        (
            Bson::ObjectId(ObjectId::from_bytes([16; 12])),
            r#"{"$oid":"101010101010101010101010"}"#,
            Some((r#"{"$oid":"10101010101010101010100f"}"#, r#"{"$oid":"200000000000000000000000"}"#)),
        ),
        (
            Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: vec![1, 2] }),
            r#"{"$binary":{"base64":"AQI=","subType":"00"}}"#,
            Some((
                r#"{"$binary":{"base64":"/w==","subType":"00"}}"#,
                r#"{"$binary":{"base64":"AQM=","subType":"00"}}"#,
            )),
        ),
        (
            Bson::Timestamp(Timestamp { time: 1, increment: 2 }),
            r#"{"$timestamp":{"t":1,"i":2}}"#,
            Some((r#"{"$timestamp":{"t":1,"i":1}}"#, r#"{"$timestamp":{"t":2,"i":0}}"#)),
        ),
        (Bson::Array(vec![Bson::Int32(1), Bson::Null]), "[1.0, null]", None),
        (Bson::Document(doc! { "b": 1, "a": [2] }), r#"{"b": 1, "a": [2.0]}"#, None),
        (Bson::Symbol("m".into()), r#"{"$symbol":"m"}"#, None),
        (Bson::MinKey, r#"{"$minKey":1}"#, None),
    ]
}

#[test]
fn every_op_with_every_type() {
    for (index, (value, same, around)) in typed().into_iter().enumerate() {
        let document = doc! { "v": value.clone(), "list": [7, value.clone()], "m": { "v": value.clone() } };
        let has = |field: &str, op: &str, operand: &str| one(&document, field, op, operand);
        let ordered =
            crate::compare(raw(&document).get("v").unwrap().unwrap(), raw(&document).get("v").unwrap().unwrap())
                .is_some();
        for field in ["v", "m.v"] {
            for (op, expect) in [
                ("==", true),
                ("eq", true),
                ("!=", false),
                ("ne", false),
                (">", false),
                ("gt", false),
                ("<", false),
                ("lt", false),
                (">=", ordered),
                ("gte", ordered),
                ("<=", ordered),
                ("lte", ordered),
            ] {
                assert_eq!(has(field, op, same), expect, "{value} {op} {same}");
            }
            assert!(has(field, "in", &format!("[\"zz\", {same}]")), "{value}");
            assert!(!has(field, "not-in", &format!("[\"zz\", {same}]")), "{value}");
            assert!(has(field, "not-in", "[\"zz\"]"), "{value}");
            assert!(!has(field, "in", "[]") && has(field, "not-in", "[]"), "{value}");
            // Long lists are looked up, short ones compared.
            let long = format!("[{}, {same}]", (100..120).map(|i| i.to_string()).collect::<Vec<_>>().join(","));
            assert!(has(field, "in", &long) && !has(field, "not-in", &long), "{value}");
        }
        if let Some((below, above)) = around {
            for (op, with_below, with_above) in
                [(">", true, false), (">=", true, false), ("<", false, true), ("<=", false, true), ("!=", true, true)]
            {
                assert_eq!(has("v", op, below), with_below, "{value} {op} {below}");
                assert_eq!(has("v", op, above), with_above, "{value} {op} {above}");
            }
        }
        // Only `contains` looks into arrays.
        assert!(has("list", "contains", same) && has("list", "array-contains", same), "{value}");
        assert!(has("list", "contains-any", &format!("[\"zz\", {same}]")), "{value}");
        assert!(!has("list", "==", same) && !has("list", "in", &format!("[{same}]")), "{value}");
        assert!(!has("list", ">=", same), "{value}");
        assert!(!has("list", "contains", "\"zz\"") && !has("list", "contains-any", "[]"), "{value}");
        // Against every other type: not equal, no order.
        for (other, (_, foreign, _)) in typed().into_iter().enumerate() {
            let class = |index: usize| if index <= 7 { 0 } else { index };
            if class(index) != class(other) {
                assert!(!has("v", "==", foreign) && has("v", "!=", foreign), "{value} {foreign}");
                for op in [">", ">=", "<", "<="] {
                    assert!(!has("v", op, foreign), "{value} {op} {foreign}");
                }
            }
        }
    }
}

#[test]
fn nothing_holds_for_a_missing_field() {
    let document = doc! { "a": 1, "m": { "x": 1 }, "l": [{ "x": 1 }] };
    for field in ["b", "m.y", "a.x", "l.x", "l.0", "l.0.x", "m.x.y"] {
        for (op, value) in [
            ("==", "1"),
            ("==", "null"),
            ("!=", "1"),
            ("!=", "null"),
            (">", "0"),
            ("<=", "9"),
            ("in", "[1, null]"),
            ("not-in", "[2]"),
            ("not-in", "[]"),
            ("contains", "1"),
            ("contains-any", "[1]"),
            ("starts-with", "\"\""),
        ] {
            assert!(!one(&document, field, op, value), "{field} {op} {value}");
        }
    }
}

#[test]
fn nan_equals_nothing() {
    let nan = r#"{"$numberDouble":"NaN"}"#;
    for value in [Bson::Double(f64::NAN), Bson::Decimal128("NaN".parse().unwrap())] {
        let document = doc! { "v": value.clone(), "l": [value] };
        for op in ["==", ">", ">=", "<", "<="] {
            assert!(!one(&document, "v", op, nan) && !one(&document, "v", op, "1"), "{op}");
        }
        assert!(one(&document, "v", "!=", nan) && one(&document, "v", "!=", "1"));
        assert!(!one(&document, "v", "in", &format!("[{nan}]")) && !one(&document, "l", "contains", nan));
    }
}

#[test]
fn prefixes() {
    let document = doc! { "s": "héllo", "n": 5, "l": ["h"] };
    for (field, value, expect) in [
        ("s", "\"\"", true),
        ("s", "\"hé\"", true),
        ("s", "\"héllo!\"", false),
        ("n", "\"5\"", false),
        ("l", "\"h\"", false),
    ] {
        assert_eq!(one(&document, field, "starts-with", value), expect, "{field} {value}");
    }
}

#[test]
fn all_filters_must_hold() {
    let document = doc! { "a": 1, "b": 2 };
    let both = r#"[{"field":"a","op":"==","value":1},{"field":"b","op":">","value":1}]"#;
    assert!(holds(&document, both, &Mapping::Plain));
    assert!(!holds(&doc! { "a": 1, "b": 1 }, both, &Mapping::Plain));
    assert!(holds(&document, "[]", &Mapping::Plain) && holds(&document, "", &Mapping::Plain));
    assert!(compile("[]", &Mapping::Plain).unwrap().is_always_true());
}

#[test]
fn paths_follow_the_mapping() {
    let document = doc! {
        "_id": "acme:00", "tenant_id": "acme", "collection": "rooms", "fullpath": "rooms/r1", "version": 2_i64,
        "created_at": 1_i64, "updated_at": 2_i64,
        "data": { "status": "open", "data": { "status": "inner" }, "version": "mine", "deleted": true, "m": { "x": 1 } },
    };
    let nested = Mapping::syntrix();
    for (field, value, expect) in [
        ("status", "\"open\"", true),
        ("data.status", "\"open\"", true),
        ("data.data.status", "\"inner\"", true),
        ("m.x", "1", true),
        ("data.m.x", "1", true),
        ("id", "\"r1\"", true),
        ("_id", "\"r1\"", true),
        ("data.id", "\"r1\"", true),
        ("_id", "\"acme:00\"", false),
        ("_id.x", "1", false),
        ("collection", "\"rooms\"", true),
        ("version", "2", true),
        ("data.version", "\"mine\"", false),
        ("createdAt", "1", true),
        ("updatedAt", "2", true),
        // The document has no such mark; the user's field of that name does not take its place.
        ("deleted", "true", false),
        ("fullpath", "\"rooms/r1\"", false),
        ("tenant_id", "\"acme\"", false),
    ] {
        let filter = format!(r#"[{{"field":"{field}","op":"==","value":{value}}}]"#);
        assert_eq!(holds(&document, &filter, &nested), expect, "{field}");
    }
    let plain = doc! { "_id": { "x": 1 }, "id": 3, "data": { "status": 4 }, "status": 5 };
    for (field, value, expect) in [
        ("_id", r#"{"x":1}"#, true),
        ("_id.x", "1", true),
        ("id", "3", true),
        ("data.status", "4", true),
        ("status", "5", true),
    ] {
        assert_eq!(one(&plain, field, "==", value), expect, "{field}");
    }
}

#[test]
fn equalities_and_document_ids() {
    let filters = r#"[{"field":"a","op":"==","value":1},{"field":"b","op":"in","value":[1]},{"field":"data.c","op":"eq","value":"x"},
        {"field":"a","op":"==","value":1.0},{"field":"d","op":"==","value":[1]},{"field":"e","op":"!=","value":1}]"#;
    let predicate = compile(filters, &Mapping::syntrix()).unwrap();
    let names: Vec<String> = predicate.equalities().iter().map(|(path, _)| path.to_string()).collect();
    // A list of one is an equality.
    assert_eq!(names, ["data.a", "data.b", "data.c"]);
    assert_eq!(predicate.document_id(), None);
    for (field, mapping, expect) in [
        ("_id", Mapping::syntrix(), true),
        ("id", Mapping::syntrix(), true),
        ("data.id", Mapping::syntrix(), true),
        ("_id", Mapping::Plain, true),
        ("id", Mapping::Plain, false),
    ] {
        let predicate = compile(&format!(r#"[{{"field":"{field}","op":"==","value":"x"}}]"#), &mapping).unwrap();
        let value = Value::of(RawBsonRef::String("x"));
        assert_eq!(predicate.document_id(), value.as_ref().filter(|_| expect), "{field} {mapping}");
    }
}

#[test]
fn refusals_say_what_and_where() {
    let filter = |json: &str| format!(r#"[{{"field":"ok","op":"==","value":1}}, {json}]"#);
    for (json, what) in [
        (filter(r#"{"field":"a","op":"~","value":1}"#), "filter 1 on `a` with `~`: unknown op; allowed are ==, !="),
        (filter(r#"{"field":"a","op":"in","value":1}"#), "filter 1 on `a` with `in`: expected a list"),
        (filter(r#"{"field":"a","op":"starts-with","value":1}"#), "expected a string"),
        (filter(r#"{"field":"a..b","op":"==","value":1}"#), "names joined by single dots"),
        (filter(r#"{"field":"","op":"==","value":1}"#), "bad field"),
        (filter(r#"{"field":"a\u0000","op":"==","value":1}"#), "NUL"),
        (
            filter(r#"{"field":"a","op":"==","value":{"$date":"tomorrow"}}"#),
            "filter 1 on `a` with `==`: bad value: $date",
        ),
        (filter(r#"{"field":"a","op":"==","value":{"$oid":"xyz"}}"#), "$oid"),
        (filter(r#"{"field":"a","op":"==","value":{"$numberDecimal":"1é"}}"#), "ASCII"),
        (filter(r#"{"field":"a","op":"==","value":{"$where":"1"}}"#), "no type of extended JSON"),
        (filter(r#"{"field":"a","op":"==","value":{"a":1,"a":2}}"#), "given twice"),
        (filter(r#"{"field":"a","op":"=="}"#), "missing field `value`"),
        (filter(r#"{"field":"a","op":"==","value":1,"x":1}"#), "unknown field `x`"),
        (filter(r#"{"field":"a","field":"b","op":"==","value":1}"#), "duplicate field `field`"),
        (filter("5"), "filter 1: expected"),
        ("{}".into(), "filter: expected a JSON list"),
        ("[".into(), "expected a JSON list"),
        ("null".into(), "expected a JSON list"),
        (filter(&format!(r#"{{"field":"{}","op":"==","value":1}}"#, vec!["a"; 33].join("."))), "at most 32"),
        (filter(&format!(r#"{{"field":"{}","op":"==","value":1}}"#, "a".repeat(2_000))), "at most 1024"),
        (filter(&format!(r#"{{"field":"a","op":"in","value":[{}]}}"#, vec!["1"; 1_001].join(","))), "at most 1000"),
        (
            filter(&format!(r#"{{"field":"a","op":"==","value":{}1{}}}"#, "[".repeat(40), "]".repeat(40))),
            "32 deep within each other",
        ),
        (format!("[{}]", vec![r#"{"field":"a","op":"==","value":1}"#; 101].join(",")), "at most 100"),
        (" ".repeat(70_000), "at most 65536"),
    ] {
        let error = compile(&json, &Mapping::Plain).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(what) && message.len() < 1_200, "{json:.200}: {message}");
        assert_eq!(error.code(), "INVALID_FILTER");
    }
}

#[test]
fn hostile_json_is_answered() {
    let sizes = [1, 31, 33, 126, 129, 1_000, 30_000];
    let mut sources = Vec::new();
    for n in sizes {
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}"), (r#"{"$date":"#, "}"), (r#"{"$code":"x","$scope":"#, "}")]
        {
            let nested = format!("{}1{}", open.repeat(n), close.repeat(n));
            sources.push(nested.clone());
            sources.push(open.repeat(n));
            sources.push(format!(r#"[{{"field":"a","op":"==","value":{nested}}}]"#));
            sources.push(format!(r#"[{{"field":"a","op":"in","value":[{nested}]}}]"#));
        }
        for text in ["\\", "\\u0000", "\u{0}", "é", "\u{202e}", "."] {
            sources.push(format!(r#"[{{"field":"{}","op":"==","value":1}}]"#, text.repeat(n)));
            sources.push(format!(r#"[{{"field":"a","op":"{}","value":1}}]"#, text.repeat(n)));
            sources.push(format!(r#"[{{"field":"a","op":"==","value":"{}"}}]"#, text.repeat(n)));
        }
        for digits in ["9", "1e", "-", "0", ".1"] {
            sources.push(format!(r#"[{{"field":"a","op":">","value":{}}}]"#, digits.repeat(n)));
            sources.push(format!(r#"[{{"field":"a","op":">","value":{{"$numberDecimal":"{}"}}}}]"#, digits.repeat(n)));
            sources.push(format!(r#"[{{"field":"a","op":">","value":{{"$numberLong":"{}"}}}}]"#, digits.repeat(n)));
            sources.push(format!(r#"[{{"field":"a","op":">","value":{{"$date":"{}"}}}}]"#, digits.repeat(n)));
        }
    }
    for value in [
        r#"{"$binary":{"base64":"====","subType":"zz"}}"#,
        r#"{"$binary":{"base64":"","subType":"02"}}"#,
        r#"{"$binary":"AQI="}"#,
        r#"{"$uuid":"é"}"#,
        r#"{"$regularExpression":{"pattern":"a\u0000","options":""}}"#,
        r#"{"$regularExpression":{"pattern":"(((","options":"zzz"}}"#,
        r#"{"$timestamp":{"t":-1,"i":99999999999}}"#,
        r#"{"$date":{"$numberLong":"9223372036854775807"}}"#,
        r#"{"$date":9e99}"#,
        r#"{"$oid":5,"$date":6}"#,
        r#"{"":1}"#,
        r#"{"a\u0000b":1}"#,
        "1e999",
        "-0.0",
        "18446744073709551615",
        "18446744073709551616",
        "1E400",
        "nul",
        "\"\\ud800\"",
    ] {
        sources.push(format!(r#"[{{"field":"a","op":"==","value":{value}}}]"#));
    }
    let document = doc! { "a": [1, 2, { "a": 1 }], "b": 1 };
    let mut compiled = 0;
    for source in &sources {
        for mapping in [Mapping::Plain, Mapping::syntrix()] {
            match compile(source, &mapping) {
                Ok(predicate) => {
                    compiled += 1;
                    predicate.evaluate(&raw(&document), &CONTEXT, &mut Budget { units: EVALUATION_UNITS_MAX });
                }
                Err(error) => assert!(error.to_string().len() < 1_200, "{:.200}", error.to_string()),
            }
        }
    }
    assert!(compiled > 20 && compiled < 2 * sources.len(), "{compiled} of {}", sources.len());
}

#[test]
fn a_budget_ends_a_filter() {
    let long: Vec<i32> = (0..10_000).collect();
    let predicate = compile(r#"[{"field":"l","op":"contains","value":9999}]"#, &Mapping::Plain).unwrap();
    let image = raw(&doc! { "l": long });
    let mut budget = Budget { units: 100 };
    assert_eq!(predicate.evaluate(&image, &CONTEXT, &mut budget), Outcome::OverBudget);
    assert_eq!(budget.units, 0);
    let mut budget = Budget { units: 20_000 };
    assert_eq!(predicate.evaluate(&image, &CONTEXT, &mut budget), Outcome::True);
    assert!((9_000..11_000).contains(&budget.units), "{}", budget.units);
}
