//! What a subscription demands, as values; and the same written as filters and as CEL.

use std::fmt::Write;

/// Fields of a document: texts and integers take turns.
pub const FIELDS: [&str; 10] =
    ["status", "price", "region", "stock", "owner", "level", "label", "score", "topic", "views"];

/// Bytes of the prefixes that are asked for.
pub const PREFIX_BYTES: usize = 4;

/// A field, by its place in [`FIELDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Field(pub u8);

impl Field {
    pub fn all() -> impl Iterator<Item = Field> {
        (0..FIELDS.len() as u8).map(Field)
    }

    pub fn name(self) -> &'static str {
        FIELDS[usize::from(self.0)]
    }

    pub fn is_text(self) -> bool {
        self.0.is_multiple_of(2)
    }
}

/// A value of a field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Datum {
    Text(Box<str>),
    Number(i64),
}

/// An end of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub at: i64,
    pub inclusive: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    Equal(Datum),
    In(Vec<Datum>),
    /// At least one of the ends is there.
    Range {
        lower: Option<Bound>,
        upper: Option<Bound>,
    },
    /// Of [`PREFIX_BYTES`].
    Prefix(Box<str>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub field: Field,
    pub test: Test,
}

/// All of these must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape(pub Vec<Condition>);

impl Shape {
    /// As a JSON list of filters.
    pub fn to_filters(&self) -> String {
        let mut text = String::from("[");
        let mut filter = |field: Field, op: &str, value: &dyn std::fmt::Display| {
            let comma = if text.len() > 1 { "," } else { "" };
            // Writing to a string never fails.
            let _ = write!(text, r#"{comma}{{"field":"{}","op":"{op}","value":{value}}}"#, field.name());
        };
        for Condition { field, test } in &self.0 {
            match test {
                Test::Equal(value) => filter(*field, "==", &quoted(value, '"')),
                Test::In(values) => filter(*field, "in", &list(values, '"')),
                Test::Range { lower, upper } => {
                    for (op, bound) in ends(lower, upper) {
                        filter(*field, op, &bound);
                    }
                }
                Test::Prefix(prefix) => filter(*field, "starts-with", &format!("\"{prefix}\"")),
            }
        }
        text.push(']');
        text
    }

    /// As a CEL expression.
    pub fn to_cel(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        for Condition { field, test } in &self.0 {
            let name = field.name();
            match test {
                Test::Equal(value) => parts.push(format!("doc.{name} == {}", quoted(value, '\''))),
                Test::In(values) => parts.push(format!("doc.{name} in {}", list(values, '\''))),
                Test::Range { lower, upper } => {
                    parts.extend(ends(lower, upper).map(|(op, bound)| format!("doc.{name} {op} {bound}")));
                }
                Test::Prefix(prefix) => parts.push(format!("doc.{name}.startsWith('{prefix}')")),
            }
        }
        parts.join(" && ")
    }

    /// Whether a document with these values of [`FIELDS`] meets it.
    pub fn holds(&self, values: &[Datum; FIELDS.len()]) -> bool {
        self.0.iter().all(|Condition { field, test }| test.holds(&values[usize::from(field.0)]))
    }
}

impl Test {
    fn holds(&self, value: &Datum) -> bool {
        match (self, value) {
            (Test::Equal(wanted), found) => wanted == found,
            (Test::In(list), found) => list.contains(found),
            (Test::Range { lower, upper }, Datum::Number(found)) => {
                let above = lower.is_none_or(|b| *found > b.at || b.inclusive && *found == b.at);
                above && upper.is_none_or(|b| *found < b.at || b.inclusive && *found == b.at)
            }
            (Test::Prefix(prefix), Datum::Text(found)) => found.starts_with(&**prefix),
            (Test::Range { .. }, Datum::Text(_)) | (Test::Prefix(_), Datum::Number(_)) => false,
        }
    }
}

/// Ops and bounds of the ends that are there.
pub fn ends(lower: &Option<Bound>, upper: &Option<Bound>) -> impl Iterator<Item = (&'static str, i64)> {
    let lower = lower.map(|bound| (if bound.inclusive { ">=" } else { ">" }, bound.at));
    let upper = upper.map(|bound| (if bound.inclusive { "<=" } else { "<" }, bound.at));
    lower.into_iter().chain(upper)
}

/// No text that is generated has anything to escape.
pub fn quoted(value: &Datum, quote: char) -> String {
    match value {
        Datum::Text(text) => format!("{quote}{text}{quote}"),
        Datum::Number(number) => number.to_string(),
    }
}

/// In square brackets.
pub fn list(values: &[Datum], quote: char) -> String {
    let values: Vec<String> = values.iter().map(|value| quoted(value, quote)).collect();
    format!("[{}]", values.join(","))
}
