//! Ways and proofs against what predicates answer, for random predicates and documents.

use bson::spec::BinarySubtype;
use bson::{Bson, DateTime, Document, RawDocument, RawDocumentBuf, Timestamp, doc, oid::ObjectId};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::{Budget, ChangeType, Context, EVALUATION_UNITS_MAX, Mapping, Outcome, Predicate, Source, compare, field};

const SEED: u64 = 3;
const HEX: &str = "507f1f77bcf86cd799439011";
/// A text that becomes invalid UTF-8 in the bytes of a document.
const BROKEN: &str = "☠☠";

struct Generator {
    random: ChaCha8Rng,
    /// What has been put into documents, so that predicates may ask for it.
    pool: Vec<Bson>,
}

impl Generator {
    fn new() -> Generator {
        Generator { random: ChaCha8Rng::seed_from_u64(SEED), pool: Vec::new() }
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from.choose(&mut self.random).expect("not empty").clone()
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.random.random_ratio(1, n)
    }

    fn below(&mut self, n: u32) -> u32 {
        self.random.random_range(0..n)
    }

    fn decimal(&mut self) -> Bson {
        let text = self.pick(&[
            "1",
            "1.5",
            "0.1",
            "2E0",
            "NaN",
            "-0",
            "Infinity",
            "-Infinity",
            "1E400",
            "1E-400",
            "-1E-400",
            "0.9999999999999999999999999999999999",
            "1.000000000000000000000000000000001",
            "2.000000000000000000000000000000001",
            "1.999999999999999999999999999999999",
            "4503599627370495.3",
            "4503599627370495.7",
            "4503599627370496.3",
            "4503599627370496.7",
            "9007199254740991.4",
            "9007199254740992.5",
            "9007199254740993",
            "9007199254740993.1",
            "9223372036854775807",
            "9223372036854775808",
        ]);
        Bson::Decimal128(text.parse().expect("a decimal"))
    }

    fn number(&mut self) -> Bson {
        const INTS: [i64; 12] = [
            0,
            1,
            2,
            -1,
            (1 << 52) - 1,
            1 << 52,
            (1 << 52) + 1,
            1 << 53,
            (1 << 53) + 1,
            (1 << 53) + 2,
            i64::MAX,
            i64::MIN,
        ];
        match self.below(8) {
            0 | 1 => Bson::Int32(self.random.random_range(-2..4)),
            2 | 3 => Bson::Int64(self.pick(&INTS)),
            4 => Bson::Double(self.pick(&INTS) as f64),
            5 => Bson::Double(self.pick(&[
                0.1,
                -0.0,
                1.5,
                0.5,
                f64::NAN,
                f64::INFINITY,
                f64::NEG_INFINITY,
                5e-324,
                1.0_f64.next_up(),
                1.0_f64.next_down(),
                1e300,
            ])),
            _ => self.decimal(),
        }
    }

    fn text(&mut self) -> String {
        let text: String = self
            .pick(&[
                "",
                "a",
                "ab",
                "abc",
                "b",
                "c0",
                "x",
                "é",
                "open",
                "/",
                ":",
                "A",
                "0",
                "507f",
                "g",
                "z",
                "longer than eight",
                "longer than nine",
                "longer t",
                "a\u{0}",
                HEX,
                "507f1f77bcf86cd799439012",
                "507f1f77bcf86cd79943901",
                "507F",
                "ffffffffffffffffffffffff",
                "000000000000000000000000",
            ])
            .into();
        if self.one_in(4) { text + self.pick(&["", "a", "0", "f", "é", BROKEN]) } else { text }
    }

    fn object_id(&mut self) -> Bson {
        let digits = self.pick(&[
            HEX,
            "507f1f77bcf86cd799439012",
            "507f1f77bcf86cd799439000",
            "507f1f77bcf86cd800000000",
            "c00000000000000000000000",
            "ffffffffffffffffffffffff",
            "000000000000000000000000",
            "a00000000000000000000000",
            "abcdef000000000000000000",
        ]);
        Bson::ObjectId(ObjectId::parse_str(digits).expect("24 digits"))
    }

    fn scalar(&mut self) -> Bson {
        match self.below(20) {
            0 => Bson::Null,
            1 => Bson::Boolean(self.random.random()),
            2..=7 => self.number(),
            8..=11 => Bson::String(self.text()),
            12 => self.object_id(),
            13 | 14 => Bson::DateTime(DateTime::from_millis(self.pick(&[
                0,
                1_500,
                1_501,
                1_499,
                -1,
                -62_135_596_800_000,
                -62_135_596_800_001,
                253_402_300_799_999,
                253_402_300_800_000,
                i64::MAX,
                i64::MIN,
            ]))),
            15 => Bson::Timestamp(Timestamp { time: self.below(2), increment: self.below(3) }),
            16 => Bson::Symbol("a".into()),
            17 => self.pick(&[Bson::MinKey, Bson::MaxKey, Bson::Undefined]),
            _ => Bson::Binary(bson::Binary {
                subtype: self.pick(&[BinarySubtype::Generic, BinarySubtype::Uuid]),
                bytes: self.pick(&[&b""[..], b"a", b"ab", b"b", b"ab12345", b"ab12346", b"ab1\xff"]).to_vec(),
            }),
        }
    }

    fn value(&mut self, depth: u32) -> Bson {
        match self.below(7) {
            0 | 1 if depth > 0 => Bson::Array((0..self.below(4)).map(|_| self.value(depth - 1)).collect()),
            2 if depth > 0 => {
                let mut document = Document::new();
                for name in ["a", "b", "open", HEX] {
                    if self.one_in(2) {
                        document.insert(name, self.value(depth - 1));
                    }
                }
                Bson::Document(document)
            }
            _ => {
                let scalar = self.scalar();
                self.pool.push(scalar.clone());
                scalar
            }
        }
    }

    fn known(&mut self) -> Bson {
        let known = self.pool.choose(&mut self.random).cloned();
        known.unwrap_or_else(|| self.scalar())
    }

    fn document(&mut self, mapping: &Mapping) -> RawDocumentBuf {
        let mut user = Document::new();
        for name in ["_id", "a", "b", "t", "id", "m"] {
            if !self.one_in(5) {
                let value = match name {
                    "m" if !self.one_in(4) => Bson::Document(doc! { "a": self.value(1), "b": self.value(1) }),
                    "t" if !self.one_in(4) => Bson::Array((0..self.below(4)).map(|_| self.value(0)).collect()),
                    _ => self.value(2),
                };
                user.insert(name, value);
            }
        }
        let document = match mapping {
            Mapping::Plain => user,
            Mapping::Nested(_) => {
                let path = format!("rooms/{}", self.text());
                let mut document = doc! { "fullpath": path, "version": self.scalar(), "data": user };
                if self.one_in(2) {
                    document.insert("deleted", self.value(1));
                }
                document
            }
        };
        let mut bytes = RawDocumentBuf::try_from(&document).expect("a document").into_bytes();
        for at in 0..bytes.len() {
            if bytes[at..].starts_with(BROKEN.as_bytes()) {
                bytes[at] = 0xff;
            }
        }
        // Sometimes it ends where no value does.
        if self.one_in(20) {
            let cut = bytes.len() - 1 - self.below(8).min(bytes.len() as u32 - 6) as usize;
            bytes.truncate(cut);
            bytes.push(0);
            let length = bytes.len() as i32;
            bytes[..4].copy_from_slice(&length.to_le_bytes());
        }
        RawDocumentBuf::from_bytes(bytes).expect("its length is right")
    }

    fn filter(&mut self) -> serde_json::Value {
        let op = self.pick(&[
            "==",
            "==",
            "!=",
            ">",
            ">=",
            "<",
            "<=",
            "in",
            "in",
            "not-in",
            "contains",
            "contains-any",
            "starts-with",
        ]);
        let value = match op {
            "in" | "not-in" | "contains-any" => {
                let composite = u32::from(self.one_in(8));
                Bson::Array(
                    (0..self.below(5)).map(|_| if composite == 1 { self.value(1) } else { self.known() }).collect(),
                )
            }
            "starts-with" => Bson::String(self.text()),
            _ if self.one_in(8) => self.value(1),
            _ => self.known(),
        };
        let field = self.pick(&["a", "a", "b", "t", "t", "m.a", "_id", "id", "_id.x", "deleted", "version"]);
        serde_json::json!({ "field": field, "op": op, "value": value.into_canonical_extjson() })
    }

    fn literal(&mut self) -> String {
        if !self.one_in(3) {
            match self.known() {
                Bson::Boolean(value) => return value.to_string(),
                Bson::Int32(value) => return value.to_string(),
                Bson::Int64(value) if value != i64::MIN => return value.to_string(),
                Bson::Double(value) if value.is_finite() => return format!("{value:?}"),
                Bson::String(text) => return literal_of(&text),
                Bson::ObjectId(id) => return format!("'{id}'"),
                Bson::DateTime(date) if (0..i64::MAX).contains(&date.timestamp_millis()) => {
                    return format!("timestamp('{}')", date.try_to_rfc3339_string().unwrap_or_default());
                }
                _ => {}
            }
        }
        match self.below(12) {
            0 => self.pick(&["null", "true", "false", "b'ab'", "b''"]).to_owned(),
            1..=4 => self
                .pick(&[
                    "0",
                    "1",
                    "-1",
                    "2u",
                    "1.5",
                    "0.1",
                    "-0.0",
                    "1.0",
                    "1e300",
                    "1e999",
                    "4503599627370495",
                    "4503599627370496",
                    "4503599627370497",
                    "4503599627370496.0",
                    "9007199254740992",
                    "9007199254740993",
                    "9007199254740992.0",
                    "9223372036854775807",
                    "9223372036854775808u",
                    "18446744073709551615u",
                    "-9223372036854775808",
                ])
                .to_owned(),
            5 | 6 => self
                .pick(&[
                    "timestamp('1970-01-01T00:00:00Z')",
                    "timestamp('1970-01-01T00:00:01.5Z')",
                    "timestamp('1970-01-01T00:00:01.5005Z')",
                    "timestamp('0001-01-01T00:00:00Z')",
                    "timestamp('9999-12-31T23:59:59.999Z')",
                ])
                .to_owned(),
            _ => self.text_literal(),
        }
    }

    fn text_literal(&mut self) -> String {
        literal_of(&self.text())
    }

    fn field(&mut self) -> String {
        self.pick(&[
            "doc.a",
            "doc.a",
            "doc.a",
            "doc.b",
            "doc.b",
            "data.t",
            "doc.m.a",
            "id",
            "doc._id",
            "doc.id",
            "doc.id.x",
            "before.a",
            "doc.version",
            "doc.deleted",
            "tenant",
            "doc.a.b",
        ])
        .to_owned()
    }

    fn comparison(&mut self, left: &str) -> String {
        let literal = self.literal();
        match self.below(10) {
            0..=2 => format!("{left} == {literal}"),
            3 => format!("{left} != {literal}"),
            4..=6 => format!("{left} {} {literal}", self.pick(&["<", "<=", ">", ">="])),
            7 => format!("{literal} {} {left}", self.pick(&["==", "<", ">="])),
            8 => format!("{left} in [{literal}, {}]", self.literal()),
            _ => format!("{left}.startsWith({})", self.text_literal()),
        }
    }

    fn leaf(&mut self) -> String {
        let field = self.field();
        match self.below(16) {
            0..=8 => self.comparison(&field),
            9 => field,
            10 => format!("{} in {}", self.literal(), self.pick(&["doc.t", "doc.a", "doc.m", "before.t"])),
            11 | 12 => {
                let list = self.pick(&["doc.t", "doc.a", "doc.m", "doc.none"]);
                let body = self.item_test();
                format!("{list}.{}(x, {body})", self.pick(&["exists", "exists", "all", "exists_one"]))
            }
            13 => format!("has({})", self.pick(&["doc.a", "doc.m.a", "doc.a.b", "doc.deleted", "doc.id"])),
            14 => format!("{} == {field}", self.field()),
            _ => self.pick(&["doc.a + 1 == 2", "true", "false", "type == 'update'", "size(doc.t) == 2"]).to_owned(),
        }
    }

    fn item_test(&mut self) -> String {
        let comparison = self.comparison("x");
        match self.below(6) {
            0 => format!("{comparison} || {}", self.comparison("x")),
            1 => format!("{comparison} && {}", self.comparison("x")),
            2 => format!("!({comparison})"),
            3 => format!("{comparison} || {}", self.comparison("doc.b")),
            _ => comparison,
        }
    }

    fn expression(&mut self, depth: u32) -> String {
        if depth == 0 || self.one_in(4) {
            return self.leaf();
        }
        match self.below(10) {
            0..=3 => format!("({} && {})", self.expression(depth - 1), self.expression(depth - 1)),
            4..=6 => format!("({} || {})", self.expression(depth - 1), self.expression(depth - 1)),
            7 | 8 => format!("!({})", self.expression(depth - 1)),
            _ => format!("({} ? {} : {})", self.leaf(), self.leaf(), self.leaf()),
        }
    }

    fn predicate(&mut self, mapping: &Mapping) -> Option<(String, Predicate)> {
        let filters: Vec<_> = (0..self.pick(&[0, 0, 0, 1, 1, 2])).map(|_| self.filter()).collect();
        let depth = self.below(4);
        let expr = if !filters.is_empty() && self.one_in(2) { String::new() } else { self.expression(depth) };
        let filters = serde_json::Value::Array(filters).to_string();
        let text = format!("{filters}\n{expr}\n{mapping}");
        match Predicate::compile(Source { filters: &filters, expr: &expr }, mapping) {
            Ok(predicate) => Some((text, predicate)),
            // Some results are known to be no bool.
            Err(error) if error.code() == "CEL_COMPILATION_FAILED" => None,
            Err(error) => panic!("{text}: {error}"),
        }
    }
}

fn literal_of(text: &str) -> String {
    format!("'{}'", text.replace(BROKEN, "q").replace('\u{0}', "\\u0000"))
}

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
            assert!(lower.is_none() || upper.is_none() || lower <= upper);
            match order_key(found) {
                Some((found, key)) if found == *order => {
                    let below = lower.map_or(Met::Surely, |lower| place(lower, key));
                    let above = upper.map_or(Met::Surely, |upper| place(key, upper));
                    below.min(above)
                }
                _ => Met::No,
            }
        }
    }
}

fn place(lesser: u64, greater: u64) -> Met {
    match lesser.cmp(&greater) {
        std::cmp::Ordering::Less => Met::Surely,
        std::cmp::Ordering::Equal => Met::Perhaps,
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
                let end = |end: &Option<u64>| if end.is_some() { "|" } else { "" };
                let point = if lower == upper { "=" } else { ".." };
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
fn check(filters: &str, expr: &str, expect: &[(&str, &[u16])]) {
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
    let cases: [(&[(&str, &str, &str)], &[(&str, &[u16])]); 17] = [
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
    let cases: [(&str, &[(&str, &[u16])]); 40] = [
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
