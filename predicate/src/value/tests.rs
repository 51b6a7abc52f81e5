use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DbPointer, JavaScriptCodeWithScope, Regex, doc, oid::ObjectId};

use super::*;

/// One value of each BSON type and some more, no two of them equal.
fn distinct() -> Vec<Bson> {
    let binary = |subtype, bytes: &[u8]| Bson::Binary(Binary { subtype, bytes: bytes.to_vec() });
    vec![
        Bson::Int32(1),
        Bson::Double(1.5),
        Bson::Double(f64::INFINITY),
        Bson::Decimal128("0.1".parse().unwrap()),
        Bson::Double(0.1),
        Bson::String("".into()),
        Bson::String("a".into()),
        Bson::String("a\u{0}".into()),
        Bson::Symbol("a".into()),
        Bson::JavaScriptCode("a".into()),
        Bson::Boolean(false),
        Bson::Boolean(true),
        Bson::Null,
        Bson::Undefined,
        Bson::MinKey,
        Bson::MaxKey,
        Bson::DateTime(bson::DateTime::from_millis(1)),
        Bson::Timestamp(Timestamp { time: 0, increment: 1 }),
        Bson::Timestamp(Timestamp { time: 1, increment: 0 }),
        Bson::ObjectId(ObjectId::from_bytes([1; 12])),
        binary(BinarySubtype::Generic, b""),
        binary(BinarySubtype::Generic, b"a"),
        binary(BinarySubtype::Uuid, b"a"),
        Bson::RegularExpression(Regex { pattern: "a".try_into().unwrap(), options: "i".try_into().unwrap() }),
        Bson::RegularExpression(Regex { pattern: "ai".try_into().unwrap(), options: "".try_into().unwrap() }),
        Bson::Array(vec![]),
        Bson::Array(vec![Bson::Int32(1)]),
        Bson::Array(vec![Bson::Int32(1), Bson::Null]),
        Bson::Document(doc! {}),
        Bson::Document(doc! { "a": 1, "b": 2 }),
        Bson::Document(doc! { "b": 2, "a": 1 }),
        Bson::Document(doc! { "a": 1 }),
    ]
}

fn holders(values: &[Bson]) -> Vec<RawDocumentBuf> {
    values.iter().map(|value| RawDocumentBuf::try_from(&doc! { "v": value.clone() }).unwrap()).collect()
}

fn inner(holder: &RawDocumentBuf) -> RawBsonRef<'_> {
    holder.get("v").unwrap().unwrap()
}

#[test]
fn each_equals_itself_and_nothing_else() {
    let values = distinct();
    let holders = holders(&values);
    for (i, left) in holders.iter().enumerate() {
        for (j, right) in holders.iter().enumerate() {
            let (left, right) = (inner(left), inner(right));
            assert_eq!(equal(left, right), i == j, "{left:?} {right:?}");
            if let (Some(left), Some(right)) = (Value::of(left), Value::of(right)) {
                assert_eq!(left == right, i == j, "{left:?} {right:?}");
            }
        }
    }
}

#[test]
fn composites_are_equal_by_the_numeric_line_and_by_order() {
    let one = holders(&[Bson::Array(vec![Bson::Int32(1), Bson::Document(doc! { "a": 2.0 })])]);
    let two = holders(&[Bson::Array(vec![Bson::Double(1.0), Bson::Document(doc! { "a": 2_i64 })])]);
    assert!(equal(inner(&one[0]), inner(&two[0])));
    let nan = holders(&[Bson::Array(vec![Bson::Double(f64::NAN)])]);
    assert!(!equal(inner(&nan[0]), inner(&nan[0])));
    for composite in [&one[0], &nan[0]] {
        assert_eq!(Value::of(inner(composite)), None);
    }
    assert_eq!(Value::of(RawBsonRef::Double(f64::NAN)), None);
}

#[test]
fn order_within_a_type() {
    let binary = |subtype, bytes: &[u8]| Bson::Binary(Binary { subtype, bytes: bytes.to_vec() });
    let ascending: Vec<Vec<Bson>> = vec![
        ["", "A", "B", "a", "aa", "b", "é", "\u{1F600}"].map(|text| Bson::String(text.into())).to_vec(),
        vec![Bson::Boolean(false), Bson::Boolean(true)],
        [i64::MIN, -1, 0, 1, i64::MAX].map(|millis| Bson::DateTime(bson::DateTime::from_millis(millis))).to_vec(),
        [0_u8, 1, 127, 128, 255].map(|byte| Bson::ObjectId(ObjectId::from_bytes([byte; 12]))).to_vec(),
        [(0, 0), (0, 1), (1, 0), (u32::MAX, 0)]
            .map(|(time, increment)| Bson::Timestamp(Timestamp { time, increment }))
            .to_vec(),
        vec![
            binary(BinarySubtype::Generic, b""),
            binary(BinarySubtype::Generic, b"\xff"),
            binary(BinarySubtype::Uuid, b"\x00"),
            binary(BinarySubtype::Generic, b"\x00\x00"),
        ],
    ];
    for values in ascending {
        let holders = holders(&values);
        for (i, left) in holders.iter().enumerate() {
            for (j, right) in holders.iter().enumerate() {
                assert_eq!(compare(inner(left), inner(right)), Some(i.cmp(&j)), "{left:?} {right:?}");
            }
        }
    }
}

#[test]
fn other_pairs_have_no_order() {
    let values = distinct();
    let holders = holders(&values);
    let ordered = |value: &Bson| {
        use Bson::{Binary, Boolean, DateTime, Decimal128, Double, Int32, ObjectId, String, Timestamp};
        match value {
            Int32(_) | Double(_) | Decimal128(_) => 1,
            String(_) => 2,
            Boolean(_) => 3,
            DateTime(_) => 4,
            Timestamp(_) => 5,
            ObjectId(_) => 6,
            Binary(_) => 7,
            _ => 0,
        }
    };
    for (left, left_value) in holders.iter().zip(&values) {
        for (right, right_value) in holders.iter().zip(&values) {
            let has_order = ordered(left_value) != 0 && ordered(left_value) == ordered(right_value);
            assert_eq!(compare(inner(left), inner(right)).is_some(), has_order, "{left_value} {right_value}");
        }
    }
}

#[test]
fn stored_ids_come_back() {
    let values = distinct();
    for holder in holders(&values) {
        let raw = inner(&holder);
        let stored = stored_id(raw);
        assert_eq!(stored[0], raw.element_type() as u8);
        // What stands in the document: after the length, the type, the name `v` and its NUL; before the document's NUL.
        assert_eq!(stored[1..], holder.as_bytes()[7..holder.as_bytes().len() - 1]);
        match raw {
            RawBsonRef::Array(_) | RawBsonRef::RegularExpression(_) => assert!(raw_of_stored_id(&stored).is_none()),
            _ => {
                assert_eq!(raw_of_stored_id(&stored), Some(raw));
                assert_eq!(Value::of_stored_id(stored[0], &stored[1..]), Value::of(raw));
            }
        }
        for end in 0..stored.len() {
            // A part is another value or none, never a panic.
            let _ = raw_of_stored_id(&stored[..end]);
        }
    }
    let old = Bson::Binary(Binary { subtype: BinarySubtype::BinaryOld, bytes: vec![7; 5] });
    let holder = &holders(&[old])[0];
    assert_eq!(raw_of_stored_id(&stored_id(inner(holder))), Some(inner(holder)));
}

#[test]
fn what_cannot_be_a_key_has_no_value() {
    let values = [
        Bson::DbPointer(pointer()),
        Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope { code: "a".into(), scope: doc! {} }),
    ];
    for holder in holders(&values) {
        assert_eq!(Value::of(inner(&holder)), None);
        assert_eq!(raw_of_stored_id(&stored_id(inner(&holder))), None);
    }
}

/// DBPointers can only be made from extended JSON.
fn pointer() -> DbPointer {
    let json = serde_json::json!({ "$dbPointer": { "$ref": "a", "$id": { "$oid": "010101010101010101010101" } } });
    match Bson::try_from(json).unwrap() {
        Bson::DbPointer(pointer) => pointer,
        other => panic!("{other}"),
    }
}

#[test]
fn stored_ids_as_text() {
    for (value, text) in [
        (Bson::String("m1".into()), "m1"),
        (Bson::Int32(5), "5"),
        (Bson::ObjectId(ObjectId::from_bytes([1; 12])), r#"{"$oid":"010101010101010101010101"}"#),
        (Bson::Document(doc! { "a": 1 }), r#"{"a":1}"#),
    ] {
        let holder = &holders(&[value])[0];
        assert_eq!(StoredId(&stored_id(inner(holder))).to_string(), text);
    }
    assert_eq!(StoredId(b"").to_string(), "?");
}
