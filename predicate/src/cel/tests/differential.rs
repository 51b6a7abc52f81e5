//! Native against interpreted: random expressions over random documents.

use bson::{Bson, DateTime, Document, RawDocumentBuf, doc, oid::ObjectId};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::Memo;
use crate::cel::interpret::Interpreted;

const EXPRESSIONS: usize = 10_000;
const DOCUMENTS: usize = 100;
/// Drawn anew for every so many expressions.
const EXPRESSIONS_PER_SET: usize = 100;

const FIELDS: [&str; 6] = ["a", "b", "c", "m.a", "m.b", "id"];

struct Generator {
    random: ChaCha8Rng,
}

impl Generator {
    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from.choose(&mut self.random).expect("not empty").clone()
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.random.random_ratio(1, n)
    }

    /// Integers and doubles that meet stay within 2^53, beyond which the two differ.
    fn scalar(&mut self) -> Bson {
        match self.random.random_range(0..14) {
            0 => Bson::Null,
            1 => Bson::Boolean(self.random.random()),
            2 | 3 => Bson::Int32(self.random.random_range(-3..4)),
            4 => Bson::Int64(self.pick(&[-1, 0, 2, 1 << 53, -(1 << 53)])),
            5 | 6 => {
                Bson::Double(self.pick(&[0.0, -0.0, 1.0, 1.5, -2.0, f64::NAN, f64::INFINITY, 9_007_199_254_740_992.0]))
            }
            7 | 8 => Bson::String(self.pick(&["", "a", "ab", "b", "é", "507f1f77bcf86cd799439011"]).into()),
            9 => Bson::DateTime(DateTime::from_millis(self.pick(&[0, 1_500, -1, i64::MAX]))),
            10 => Bson::ObjectId(ObjectId::parse_str("507f1f77bcf86cd799439011").expect("24 digits")),
            11 => Bson::Decimal128(self.pick(&["1.0", "1.5", "0.1", "2E3", "NaN", "-0"]).parse().expect("a decimal")),
            12 => Bson::Symbol("a".into()),
            _ => Bson::Binary(bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: b"ab".to_vec() }),
        }
    }

    fn value(&mut self, depth: u32) -> Bson {
        match self.random.random_range(0..6) {
            0 if depth > 0 => {
                let length = self.random.random_range(0..4);
                Bson::Array((0..length).map(|_| self.value(depth - 1)).collect())
            }
            1 if depth > 0 => {
                let mut document = Document::new();
                for name in ["a", "b"] {
                    if !self.one_in(3) {
                        document.insert(name, self.value(depth - 1));
                    }
                }
                Bson::Document(document)
            }
            _ => self.scalar(),
        }
    }

    fn document(&mut self) -> RawDocumentBuf {
        let mut document = doc! { "_id": self.scalar() };
        for name in ["a", "b", "c", "m", "id"] {
            if !self.one_in(4) {
                let value = if name == "m" && !self.one_in(4) {
                    Bson::Document(doc! { "a": self.value(1), "b": self.value(1) })
                } else {
                    self.value(2)
                };
                document.insert(name, value);
            }
        }
        raw(&document)
    }

    fn literal(&mut self) -> String {
        self.pick(&[
            "null",
            "true",
            "false",
            "0",
            "1",
            "-2",
            "2u",
            "1.5",
            "-0.0",
            "9007199254740992",
            "9007199254740992.0",
            "''",
            "'a'",
            "'ab'",
            "'é'",
            "'507f1f77bcf86cd799439011'",
            "b'ab'",
            "timestamp('1970-01-01T00:00:01.5Z')",
        ])
        .to_owned()
    }

    fn field(&mut self) -> String {
        let field = self.pick(&FIELDS);
        let root = self.pick(&["doc", "doc", "doc", "data", "before"]);
        match field.split_once('.') {
            Some((first, second)) if self.one_in(3) => format!("{root}[\"{first}\"].{second}"),
            _ => format!("{root}.{field}"),
        }
    }

    fn operand(&mut self) -> String {
        match self.random.random_range(0..12) {
            0..=5 => self.field(),
            6..=8 => self.literal(),
            9 => self.pick(&["id", "tenant", "collection", "type", "before"]).to_owned(),
            10 => format!("size({})", self.field()),
            _ => self.pick(&["doc.a + 1", "doc.b[0]", "doc.m", "[doc.a, 1]", "-doc.a"]).to_owned(),
        }
    }

    fn leaf(&mut self) -> String {
        let left = self.operand();
        match self.random.random_range(0..12) {
            0..=4 => {
                let op = self.pick(&["==", "!=", "<", "<=", ">", ">="]);
                format!("{left} {op} {}", self.operand())
            }
            5 => {
                let (one, two) = (self.literal(), self.literal());
                format!("{left} in [{one}, {two}]")
            }
            6 => format!("{left} in {}", self.field()),
            7 => {
                let method = self.pick(&["startsWith", "endsWith", "contains"]);
                format!("{left}.{method}({})", self.operand())
            }
            8 => format!("{left}.matches('{}')", self.pick(&["a", "^a", "b$", "^$", "[é-ü]"])),
            9 => format!("has({})", self.field().replace("[\"m\"]", ".m")),
            10 => self.field(),
            _ => {
                let body = self.body(1);
                let method = self.pick(&["all", "exists", "exists_one"]);
                format!("{}.{method}(x, {body})", self.field())
            }
        }
    }

    /// What a loop asks of an item.
    fn body(&mut self, depth: u32) -> String {
        let item = self.pick(&["x", "x", "x", "x.a", "x.b", "doc.a", "x['a']"]);
        match self.random.random_range(0..16) {
            0..=3 => format!("{item} {} {}", self.pick(&["==", "!=", "<", ">="]), self.literal()),
            4 => format!("{item} in [{}, {}]", self.literal(), self.literal()),
            5 => format!("{item}.{}({})", self.pick(&["startsWith", "endsWith", "contains"]), self.literal()),
            6 => format!("{item} == {}", self.operand()),
            7 => format!("{} in x", self.literal()),
            8 => self.pick(&["has(x.a)", "has(doc.a)", "size(x) > 1", "x", "x in doc.b", "x.matches('a')"]).to_owned(),
            9 => self.pick(&["x + 1 == 2", "[x] == [1]", "true", "false"]).to_owned(),
            10 if depth > 0 => {
                let method = self.pick(&["all", "exists", "exists_one"]);
                let range = self.pick(&["x", "x.a", "doc.b", "before.a"]);
                // The inner name may hide the outer one.
                let name = self.pick(&["x", "y", "doc"]);
                format!("{range}.{method}({name}, {} || {name} == x)", self.body(0))
            }
            11 | 12 => format!("({} && {})", self.body(depth), self.body(depth)),
            13 | 14 => format!("({} || {})", self.body(depth), self.body(depth)),
            _ => format!("!({})", self.body(depth)),
        }
    }

    /// A list, mostly.
    fn list(&mut self, depth: u32) -> String {
        if depth == 0 {
            return self.pick(&["doc.a", "doc.b", "doc.m.a", "[1, 2]", "[]", "doc.a", "before.b", "doc.c"]).to_owned();
        }
        let range = self.list(depth - 1);
        match self.random.random_range(0..7) {
            0 | 1 => format!("({range} + {})", self.list(depth - 1)),
            2 => format!("{range}.map(x, {})", self.item("x")),
            3 => format!("{range}.filter(y, {})", self.item_test("y", depth - 1)),
            4 => format!("{range}.map(x, {}, {})", self.item_test("x", depth - 1), self.item("x")),
            5 => format!("({} ? {range} : {})", self.item_test("1", 0), self.list(depth - 1)),
            _ => format!("[{}, {}]", self.item("2"), self.item("doc.id")),
        }
    }

    fn item(&mut self, bound: &str) -> String {
        match self.random.random_range(0..12) {
            0..=4 => bound.to_owned(),
            5 => format!("{bound} + 1"),
            6 => format!("size({})", self.list(0)),
            7 => format!("{{'a': {bound}}}['a']"),
            8 => format!("[{bound}, 0][0]"),
            9 => self.pick(&["'a'", "1.0", "doc.c", "doc.none"]).to_owned(),
            _ => self.pick(&["0", "1", "-2", "doc.id"]).to_owned(),
        }
    }

    fn item_test(&mut self, bound: &str, depth: u32) -> String {
        let item = self.item(bound);
        match self.random.random_range(0..9) {
            0..=2 => format!("{item} {} {}", self.pick(&["==", "!=", "<", ">="]), self.item(bound)),
            3 => format!("{item} in {}", self.list(0)),
            4 => format!("string({item}).matches({})", self.pick(&["'1'", "'^-'", "doc.c", "'(' + doc.c"])),
            5 => format!("{item} != doc.none"),
            6 => format!("!({item} == {})", self.item(bound)),
            _ if depth > 0 => self.list_test(depth),
            _ => format!("{item} < 2"),
        }
    }

    fn list_test(&mut self, depth: u32) -> String {
        let list = self.list(depth);
        match self.random.random_range(0..8) {
            0 => format!("{list}.all(x, {})", self.item_test("x", depth - 1)),
            1 => format!("{list}.exists(x, {})", self.item_test("x", depth - 1)),
            2 => format!("{list}.exists_one(x, {})", self.item_test("x", depth - 1)),
            3 => format!("{list} == {}", self.list(depth)),
            4 => format!("{} in {list}", self.item("1")),
            5 => format!("{list} in [{}, {}]", self.list(depth), self.list(0)),
            6 => format!("size({list}) < size({})", self.list(depth)),
            _ => format!("({list} != {} || {})", self.list(0), self.item_test("1", 0)),
        }
    }

    fn document_of_lists(&mut self) -> RawDocumentBuf {
        let mut list =
            || -> Vec<i32> { (0..self.random.random_range(0..5)).map(|_| self.random.random_range(-2..3)).collect() };
        let (a, b, c) = (list(), list(), list());
        raw(&doc! { "a": a, "b": b, "c": self.pick(&["a", "1", ""]), "m": { "a": c }, "id": 1 })
    }

    fn expression(&mut self, depth: u32) -> String {
        if depth == 0 || self.one_in(4) {
            return self.leaf();
        }
        match self.random.random_range(0..9) {
            0..=2 => format!("({} && {})", self.expression(depth - 1), self.expression(depth - 1)),
            3..=5 => format!("({} || {})", self.expression(depth - 1), self.expression(depth - 1)),
            6 | 7 => format!("!({})", self.expression(depth - 1)),
            _ => {
                let condition = self.expression(depth - 1);
                format!("({condition} ? {} : {})", self.expression(depth - 1), self.expression(depth - 1))
            }
        }
    }
}

#[test]
fn native_answers_as_the_interpreter() {
    const SEED: u64 = 7;
    let mut generator = Generator { random: ChaCha8Rng::seed_from_u64(SEED) };
    let mut documents = Vec::new();
    let mut memos: Vec<Memo> = Vec::new();
    let mut answers = [0_usize; 3];
    let mut compiled = 0;
    let mut tried = 0;
    while compiled < EXPRESSIONS {
        if tried % EXPRESSIONS_PER_SET == 0 {
            documents = (0..DOCUMENTS).map(|_| generator.document()).collect();
            memos = (0..DOCUMENTS).map(|_| Memo::new()).collect();
        }
        tried += 1;
        let expr = generator.expression(3);
        // Some results are known to be no bool, and both must say so.
        let (native, interpreted) = match (compile(&expr), compile_interpreted(&expr)) {
            (Ok(native), Ok(interpreted)) => (native, interpreted),
            (Err(_), Err(_)) => continue,
            (native, interpreted) => panic!("{expr}: {:?} and {:?}", native.err(), interpreted.err()),
        };
        compiled += 1;
        for (index, image) in documents.iter().enumerate() {
            let before = (index % 3 != 0).then(|| &documents[(index + 1) % DOCUMENTS]);
            let expect = evaluate(&interpreted, image, before);
            let found = evaluate(&native, image, before);
            assert_eq!(
                found,
                expect,
                "{expr}\nseed {SEED}, document {:?}\nbefore {:?}",
                Document::try_from(image),
                before.map(Document::try_from)
            );
            // What candidates share changes neither answer nor cost. A loop may walk a map in any order, and end early.
            for predicate in [&native, &interpreted] {
                let spend = |memo: Option<&Memo>| {
                    let mut budget = Budget { units: EVALUATION_UNITS_MAX };
                    let outcome = predicate.evaluate_with(image, &context(before), memo, &mut budget);
                    (outcome, if expr.contains("(x, ") { 0 } else { budget.units })
                };
                assert_eq!(spend(Some(&memos[index])), spend(None), "{expr} on {image:?}");
            }
            for (path, value) in native.equalities() {
                let there = path.get(image).and_then(crate::Value::of);
                assert!(found != Outcome::True || there.as_ref() == Some(value), "{expr}: {path} on {image:?}");
            }
            answers[match found {
                Outcome::True => 0,
                Outcome::False => 1,
                Outcome::Error => 2,
                Outcome::OverBudget => panic!("{expr}"),
            }] += 1;
        }
    }
    assert!(tried < 2 * EXPRESSIONS, "too few of {tried} expressions compile");
    // A comparison of nothing but errors would show nothing.
    assert!(answers.iter().all(|count| *count > EXPRESSIONS * DOCUMENTS / 20), "{answers:?}");
    assert_eq!(crate::interpreter_panics(), 0);
}

/// What the meter puts into an expression changes no answer.
#[test]
fn a_metered_expression_answers_as_without() {
    const SEED: u64 = 13;
    const METERED: usize = 4_000;
    let mut generator = Generator { random: ChaCha8Rng::seed_from_u64(SEED) };
    let documents: Vec<_> = (0..30).map(|_| generator.document_of_lists()).collect();
    let mut answers = [0_usize; 3];
    let mut compiled = 0;
    while compiled < METERED {
        let expr = generator.list_test(2);
        if crate::cel::scan::scan(&expr).is_err() {
            continue;
        }
        let tree = crate::cel::parse(&expr).unwrap_or_else(|error| panic!("{expr}: {error}"));
        let reads = crate::cel::check::reads(&tree).unwrap_or_else(|error| panic!("{expr}: {error}"));
        // A literal pattern that is none is refused, where the interpreter would fail at run time.
        let Ok(metered) = Interpreted::new(tree.clone(), &reads, &Mapping::Plain) else { continue };
        let plain = Interpreted::without_meter(tree, &reads, &Mapping::Plain);
        compiled += 1;
        for image in &documents {
            let evaluate = |expr: &Interpreted| {
                let mut budget = Budget { units: EVALUATION_UNITS_MAX };
                let answer = expr.evaluate(&Mapping::Plain, image, &context(Some(&documents[0])), None, &mut budget);
                (answer, EVALUATION_UNITS_MAX - budget.units)
            };
            let ((found, cost), (expect, _)) = (evaluate(&metered), evaluate(&plain));
            assert_eq!(found, expect, "{expr}\nseed {SEED}, document {:?}", Document::try_from(image));
            assert!(cost < EVALUATION_UNITS_MAX / 4, "{cost}: {expr}");
            answers[match found {
                Some(true) => 0,
                Some(false) => 1,
                None => 2,
            }] += 1;
        }
    }
    assert!(answers.iter().all(|count| *count > METERED * 3), "{answers:?}");
}
