//! Random predicates, and documents that they may hold for.

use bson::spec::BinarySubtype;
use bson::{Bson, DateTime, Document, RawDocumentBuf, Timestamp, doc, oid::ObjectId};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Mapping, Predicate, Source};

pub(super) const SEED: u64 = 3;
const HEX: &str = "507f1f77bcf86cd799439011";
/// A text that becomes invalid UTF-8 in the bytes of a document.
pub(super) const BROKEN: &str = "☠☠";

pub(super) struct Generator {
    random: ChaCha8Rng,
    /// What has been put into documents, so that predicates may ask for it.
    pub(super) pool: Vec<Bson>,
}

impl Generator {
    pub(super) fn new() -> Generator {
        Generator { random: ChaCha8Rng::seed_from_u64(SEED), pool: Vec::new() }
    }

    pub(super) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
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

    pub(super) fn text(&mut self) -> String {
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

    pub(super) fn object_id(&mut self) -> Bson {
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

    pub(super) fn scalar(&mut self) -> Bson {
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

    pub(super) fn document(&mut self, mapping: &Mapping) -> RawDocumentBuf {
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

    pub(super) fn predicate(&mut self, mapping: &Mapping) -> Option<(String, Predicate)> {
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

pub(super) fn literal_of(text: &str) -> String {
    format!("'{}'", text.replace(BROKEN, "q").replace('\u{0}', "\\u0000"))
}
