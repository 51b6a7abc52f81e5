//! Ways and proofs against what predicates answer, for random predicates and documents.

mod generator;

use bson::{Bson, RawDocument, RawDocumentBuf, doc};

use generator::{BROKEN, Generator, SEED, literal_of};

use super::*;
use crate::{Budget, ChangeType, Context, EVALUATION_UNITS_MAX, Mapping, Outcome, Predicate, Source, compare, field};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Met {
    No,
    Perhaps,
    Surely,
}

fn met(anchor: &Anchor, image: &RawDocument) -> Met {
    let found = anchor.path.get(image);
    let sure = |met: bool| if met { Met::Surely } else { Met::No };
    let equals = |raw: RawBsonRef<'_>, value: &Value| Value::of(raw).as_ref() == Some(value);
    let Some(found) = found else { return Met::No };
    match &anchor.test {
        AnchorTest::Equal(value) => sure(equals(found, value)),
        AnchorTest::Element(value) => sure(
            found
                .as_array()
                .is_some_and(|items| items.into_iter().map_while(Result::ok).any(|item| equals(item, value))),
        ),
        AnchorTest::Key(name) => sure(found.as_document().is_some_and(|document| field(document, name).is_some())),
        AnchorTest::Prefix(prefix) => {
            assert!(!prefix.is_empty());
            sure(found.as_str().is_some_and(|text| text.starts_with(&**prefix)))
        }
        AnchorTest::Range { order, lower, upper } => {
            assert!(lower.is_some() || upper.is_some());
            assert!(lower.zip(*upper).is_none_or(|(lower, upper)| lower.key <= upper.key));
            match order_key(found) {
                Some((order_found, key)) if order_found == *order => {
                    let is_alone = has_key_alone(found.element_type() as u8, key);
                    let below = lower.map_or(Met::Surely, |lower| place(lower.key, key, lower.on, is_alone));
                    let above = upper.map_or(Met::Surely, |upper| place(key, upper.key, upper.on, is_alone));
                    below.min(above)
                }
                _ => Met::No,
            }
        }
    }
}

fn place(lesser: u64, greater: u64, on: OnBound, is_alone: bool) -> Met {
    match lesser.cmp(&greater) {
        std::cmp::Ordering::Less => Met::Surely,
        std::cmp::Ordering::Equal => match on {
            OnBound::In if is_alone => Met::Surely,
            OnBound::Out if is_alone => Met::No,
            _ => Met::Perhaps,
        },
        std::cmp::Ordering::Greater => Met::No,
    }
}

fn is_met(need: &Need, image: &RawDocument) -> bool {
    match need {
        Need::One(anchor) => met(anchor, image) > Met::No,
        Need::Any(needs) => needs.iter().any(|need| is_met(need, image)),
        Need::All(needs) => needs.iter().all(|need| is_met(need, image)),
    }
}

fn is_proof(need: &Need, image: &RawDocument) -> bool {
    match need {
        Need::One(anchor) => met(anchor, image) == Met::Surely,
        Need::Any(needs) | Need::All(needs) => needs.iter().any(|need| is_proof(need, image)),
    }
}

#[test]
fn ways_are_met_and_proofs_hold() {
    const PREDICATES: usize = 20_000;
    const DOCUMENTS: usize = 60;
    const PREDICATES_PER_SET: usize = 100;
    let mut generator = Generator::new();
    let (mut documents, mut tried) = (Vec::new(), 0);
    let (mut held_with_way, mut proofs, mut alone) = (0, 0, 0);
    while tried < PREDICATES {
        let mapping = if (tried / PREDICATES_PER_SET).is_multiple_of(2) { Mapping::Plain } else { Mapping::syntrix() };
        if tried % PREDICATES_PER_SET == 0 {
            generator.pool.clear();
            documents = (0..DOCUMENTS).map(|_| generator.document(&mapping)).collect();
        }
        tried += 1;
        let Some((text, predicate)) = generator.predicate(&mapping) else { continue };
        let ways = predicate.ways();
        for (index, image) in documents.iter().enumerate() {
            let told = || format!("{text}\nseed {SEED}, document {:?}\n{image:?}", image.as_bytes());
            let before = (index % 3 != 0).then(|| documents[(index + 1) % DOCUMENTS].as_ref());
            let context = Context { tenant: "a", collection: "c", change_type: ChangeType::Update, before };
            let mut budget = Budget { units: EVALUATION_UNITS_MAX };
            let outcome = predicate.evaluate(image, &context, &mut budget);
            let mut all = true;
            let mut parts = Vec::new();
            for part in 0..predicate.parts() as u16 {
                let found = predicate.part_on_image(part, image, &context, &mut budget);
                all &= found == Outcome::True;
                parts.push(found);
                if let Some(path) = predicate.part_path(part) {
                    let value = predicate.part_on_value(part, path.get(image), &mut budget);
                    assert_eq!(value, found, "part {part} {path} of {}", told());
                    alone += 1;
                }
            }
            assert_eq!(all, outcome == Outcome::True, "{}", told());
            held_with_way += usize::from(all && !ways.is_empty());
            for way in &ways {
                assert!(!all || is_met(&way.need, image), "{way:?} of {}", told());
                if is_proof(&way.need, image) {
                    for part in &way.proves {
                        proofs += 1;
                        assert_eq!(parts[usize::from(*part)], Outcome::True, "{way:?} proves {part} of {}", told());
                    }
                }
            }
            assert!(!all || !ways.iter().any(|way| way.need.is_never()), "{}", told());
        }
    }
    // A test in which nothing holds would show nothing.
    let counts = [held_with_way, proofs, alone / 10];
    assert!(counts.iter().all(|count| *count > 5_000), "{counts:?}");
}

#[test]
fn order_keys_keep_the_order() {
    const ROUNDS: usize = 60;
    const VALUES: usize = 120;
    let mut generator = Generator::new();
    let mut pairs = [0_usize; 3];
    for _ in 0..ROUNDS {
        let values = Bson::Array((0..VALUES).map(|_| generator.scalar()).collect());
        let holder = RawDocumentBuf::try_from(&doc! { "v": values }).unwrap();
        let values: Vec<_> = holder.get_array("v").unwrap().into_iter().map(|item| item.unwrap()).collect();
        for left in &values {
            assert_eq!(order_key(*left).is_some(), compare(*left, *left).is_some(), "{left:?}");
            for right in &values {
                let (Some((left_order, left_key)), Some((right_order, right_key))) =
                    (order_key(*left), order_key(*right))
                else {
                    continue;
                };
                let order = compare(*left, *right);
                assert_eq!(order.is_some(), left_order == right_order, "{left:?} {right:?}");
                let Some(order) = order else { continue };
                if order.is_lt() {
                    assert!(left_key <= right_key, "{left:?} {right:?}");
                    pairs[0] += 1;
                } else if order.is_eq() {
                    assert_eq!(left_key, right_key, "{left:?} {right:?}");
                    pairs[1] += 1;
                } else {
                    pairs[2] += usize::from(left_key > right_key);
                }
            }
        }
    }
    assert!(pairs.iter().all(|count| *count > 10_000), "{pairs:?}");
}

fn told(need: &Need) -> String {
    let joined = |needs: &[Need], by: &str| needs.iter().map(told).collect::<Vec<_>>().join(by);
    match need {
        Need::Any(needs) if needs.is_empty() => "never".into(),
        Need::Any(needs) => format!("({})", joined(needs, " | ")),
        Need::All(needs) => format!("({})", joined(needs, " & ")),
        Need::One(Anchor { path, test }) => match test {
            AnchorTest::Equal(value) => format!("{path} == {}", kind_of(value)),
            AnchorTest::Element(value) => format!("{path} has {}", kind_of(value)),
            AnchorTest::Key(name) => format!("{path} has field {name}"),
            AnchorTest::Prefix(prefix) => format!("{path} begins {prefix}"),
            AnchorTest::Range { order, lower, upper } => {
                let end = |end: &Option<Bound>| if end.is_some() { "|" } else { "" };
                let key = |end: &Option<Bound>| end.map(|end| end.key);
                let point = if key(lower) == key(upper) { "=" } else { ".." };
                format!("{path} {order:?} {}{point}{}", end(lower), end(upper))
            }
        },
    }
}

fn kind_of(value: &Value) -> String {
    match value.as_bytes() {
        [1, bytes @ ..] => i64::from_be_bytes(bytes.try_into().unwrap()).to_string(),
        [4, text @ ..] => String::from_utf8_lossy(text).into_owned(),
        [5, value] => (*value == 1).to_string(),
        [6] => "null".into(),
        [7, ..] => "date".into(),
        [8, ..] => "id".into(),
        _ => "other".into(),
    }
}

/// What a predicate is looked up by, and which of its parts that proves.
type Ways<'t> = &'t [(&'t str, &'t [u16])];

/// Field, op and value of each.
type Filters<'t> = &'t [(&'t str, &'t str, &'t str)];

fn check(filters: &str, expr: &str, expect: Ways<'_>) {
    let predicate = Predicate::compile(Source { filters, expr }, &Mapping::Plain).unwrap();
    let ways = predicate.ways();
    let ways: Vec<(String, &[u16])> = ways.iter().map(|way| (told(&way.need), &way.proves[..])).collect();
    let ways: Vec<(&str, &[u16])> = ways.iter().map(|(told, proves)| (told.as_str(), *proves)).collect();
    assert_eq!(ways, expect, "{filters}{expr}");
}

#[test]
fn ways_of_filters() {
    let filters = |list: &[(&str, &str, &str)]| {
        let list: Vec<String> = list
            .iter()
            .map(|(field, op, value)| format!(r#"{{"field":"{field}","op":"{op}","value":{value}}}"#))
            .collect();
        format!("[{}]", list.join(","))
    };
    let nan = r#"{"$numberDouble":"NaN"}"#;
    let with_nan = format!("[1, {nan}]");
    let cases: [(Filters<'_>, Ways<'_>); 17] = [
        (&[("a", "==", "1"), ("b", "==", "1.0")], &[("a == 1", &[0]), ("b == 1", &[1])]),
        (&[("a", "==", nan)], &[("never", &[0])]),
        (&[("a", "==", "[1]")], &[]),
        (&[("a", "!=", "1"), ("b", "not-in", "[1]")], &[]),
        (&[("a", "in", "[2, 1, 2]")], &[("(a == 1 | a == 2)", &[0])]),
        (&[("a", "in", &with_nan)], &[("a == 1", &[0])]),
        (&[("a", "in", "[1, {}]")], &[]),
        (&[("a", "in", "[]")], &[("never", &[0])]),
        (&[("a", "contains", r#""x""#)], &[("a has x", &[0])]),
        (&[("a", "contains-any", r#"["x", "y"]"#)], &[("(a has x | a has y)", &[0])]),
        (&[("a", ">", "1"), ("b", "<", "1"), ("a", "<=", "5")], &[("a Number |..|", &[0, 2]), ("b Number ..|", &[1])]),
        (&[("a", ">", "1"), ("a", ">", "3")], &[("a Number |..", &[0, 1])]),
        (&[("a", ">", "5"), ("a", "<", "1")], &[("never", &[0, 1])]),
        (&[("a", ">", "5"), ("a", "<", r#""x""#)], &[("never", &[0, 1])]),
        (&[("a", ">", "null")], &[("never", &[0])]),
        (&[("a", "starts-with", r#""x""#)], &[("a begins x", &[0])]),
        (&[("a", "starts-with", r#""""#)], &[]),
    ];
    for (list, expect) in cases {
        check(&filters(list), "", expect);
    }
}

#[test]
fn ways_of_expressions() {
    let cases: [(&str, Ways<'_>); 40] = [
        ("doc.a == 'x' && 5 == doc.b.c", &[("a == x", &[0]), ("b.c == 5", &[1])]),
        ("doc.a && !doc.b && doc.n == null", &[("a == true", &[0]), ("b == false", &[1]), ("n == null", &[2])]),
        ("!(doc.a != 'x')", &[("a == x", &[0])]),
        ("!(doc.a != 'x' || doc.b != 1)", &[("a == x", &[0]), ("b == 1", &[1])]),
        ("doc.a != 'x'", &[]),
        ("id == null || doc.a == 1", &[]),
        // An ObjectId is its digits, a decimal may be rounded.
        ("doc.a == '507f1f77bcf86cd799439011'", &[("(a == 507f1f77bcf86cd799439011 | a == id)", &[0])]),
        ("doc.a == 1.5", &[("a Number |=|", &[0])]),
        ("doc.a == 4503599627370496", &[("a Number |=|", &[0])]),
        ("doc.a == b'x'", &[]),
        ("doc.a == timestamp('2024-01-01T00:00:00Z')", &[("a == date", &[0])]),
        ("doc.a == timestamp('2024-01-01T00:00:00.0005Z')", &[("never", &[0])]),
        ("doc.a in [1, 'x', 2.5]", &[("(a == 1 | a == x | a Number |=|)", &[0])]),
        ("doc.a in [1, b'x']", &[]),
        ("doc.a > 1 && doc.b == 2 && doc.a <= 5.5", &[("b == 2", &[1]), ("a Number |..|", &[0, 2])]),
        ("!(doc.a <= 1)", &[("a Number |..", &[0])]),
        ("doc.a > timestamp('2024-01-01T00:00:00Z')", &[("a Date |..|", &[0])]),
        ("doc.a > 'x'", &[("a String |..", &[0])]),
        ("doc.a > 'b'", &[("(a String |.. | a ObjectId |..)", &[0])]),
        ("doc.a < 'b' && doc.a >= 'x'", &[("never", &[0, 1])]),
        ("doc.a < null", &[("never", &[0])]),
        ("doc.a < b'x'", &[]),
        ("doc.a.startsWith('x')", &[("a begins x", &[0])]),
        ("doc.a.startsWith('5f')", &[("(a begins 5f | a ObjectId |..|)", &[0])]),
        ("doc.a.startsWith('')", &[]),
        ("'x' in doc.a", &[("(a has x | a has field x)", &[0])]),
        ("1 in doc.a", &[("a has 1", &[0])]),
        ("1.5 in doc.a", &[]),
        ("doc.a.exists(t, t == 1)", &[("a has 1", &[0])]),
        ("doc.a.exists(t, t in ['x', 1] || t == 2)", &[("(a has x | a has field x | a has 1 | a has 2)", &[0])]),
        ("doc.a.exists(t, t == 1 && doc.b == 2)", &[("(a has 1 & b == 2)", &[])]),
        ("doc.a.exists(t, t == 1 || doc.b == 2)", &[("(a has 1 | b == 2)", &[])]),
        ("doc.a.exists_one(t, t == 1)", &[("a has 1", &[])]),
        ("doc.a.all(t, t == 1) || doc.a.exists(t, t > 1)", &[]),
        ("!doc.a.all(t, t != 1)", &[("a has 1", &[0])]),
        ("doc.a == 1 || (doc.b == 2 && doc.c > 3)", &[("(a == 1 | (b == 2 & c Number |..))", &[])]),
        ("doc.a == 1 || (doc.b > 2 && doc.b < 4)", &[("(a == 1 | b Number |..|)", &[0])]),
        ("doc.a == 1 || doc.b != 2", &[]),
        ("before.a == 1 && type == 'insert' && (doc.a == 1 ? true : false)", &[]),
        ("has(doc.a.b) && has(doc.c) && false", &[("a has field b", &[0]), ("never", &[2])]),
    ];
    for (expr, expect) in cases {
        check("", expr, expect);
    }
}

/// A key separates ObjectIds by their digits, whatever the text.
#[test]
fn ranges_of_texts_and_object_ids() {
    let mut generator = Generator::new();
    for _ in 0..20_000 {
        let (text, id) = (generator.text().replace(BROKEN, "q"), generator.object_id());
        let id = RawDocumentBuf::try_from(&doc! { "a": id }).unwrap();
        let op = generator.pick(&["<", "<=", ">", ">="]);
        let expr = format!("doc.a {op} {}", literal_of(&text));
        let predicate = Predicate::compile(Source { filters: "", expr: &expr }, &Mapping::Plain).unwrap();
        let context = Context { tenant: "a", collection: "c", change_type: ChangeType::Insert, before: None };
        let holds = predicate.evaluate(&id, &context, &mut Budget { units: 1_000 }) == Outcome::True;
        let [way] = &predicate.ways()[..] else { panic!("{expr}") };
        assert!(!holds || is_met(&way.need, &id), "{expr} {id:?}");
        assert!(holds || !is_proof(&way.need, &id), "{expr} {id:?}");
    }
}
