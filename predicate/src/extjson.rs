//! MongoDB extended JSON, read with bounds: the order of fields is kept, a field given twice is refused, integers beyond 64 bits
//! signed become decimals.

use std::fmt;

use bson::{Bson, Document};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// How deep lists and documents may lie within each other in a value that is read from JSON.
pub const JSON_DEPTH_MAX: usize = 32;

/// Reads one value. The error says what was wrong, and where serde knows it, at which line and column.
pub fn parse(json: &str) -> Result<Bson, String> {
    let node: Node = serde_json::from_str(json).map_err(|error| error.to_string())?;
    node.into_bson(0)
}

/// Canonical extended JSON: no type is lost.
pub fn to_json(value: Bson) -> String {
    value.into_canonical_extjson().to_string()
}

/// JSON as it was written. `serde_json::Value` may sort fields, and documents are equal only with their fields in one order.
enum Node {
    Null,
    Bool(bool),
    Int(i64),
    /// Above `i64::MAX`.
    Large(u64),
    Double(f64),
    Text(String),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
}

impl Node {
    fn into_bson(self, depth: usize) -> Result<Bson, String> {
        if depth > JSON_DEPTH_MAX {
            return Err(format!("lists and documents lie more than {JSON_DEPTH_MAX} deep within each other"));
        }
        Ok(match self {
            Node::Null => Bson::Null,
            Node::Bool(value) => Bson::Boolean(value),
            Node::Int(value) => i32::try_from(value).map_or(Bson::Int64(value), Bson::Int32),
            Node::Large(value) => {
                Bson::Decimal128(value.to_string().parse().map_err(|error: bson::error::Error| error.to_string())?)
            }
            Node::Double(value) => Bson::Double(value),
            Node::Text(value) => Bson::String(value),
            Node::List(items) => {
                Bson::Array(items.into_iter().map(|item| item.into_bson(depth + 1)).collect::<Result<_, _>>()?)
            }
            Node::Object(fields) if fields.iter().any(|(name, _)| name.starts_with('$')) => typed(fields, depth)?,
            Node::Object(fields) => {
                let mut document = Document::new();
                for (name, value) in fields {
                    if name.contains('\0') {
                        return Err(format!("the field name {name:?} contains a NUL byte"));
                    }
                    document.insert(name, value.into_bson(depth + 1)?);
                }
                Bson::Document(document)
            }
        })
    }

    fn into_json(self, depth: usize) -> Result<serde_json::Value, String> {
        use serde_json::Value;
        if depth > JSON_DEPTH_MAX {
            return Err(format!("lists and documents lie more than {JSON_DEPTH_MAX} deep within each other"));
        }
        Ok(match self {
            Node::Null => Value::Null,
            Node::Bool(value) => value.into(),
            Node::Int(value) => value.into(),
            Node::Large(value) => value.into(),
            Node::Double(value) => value.into(),
            Node::Text(value) => value.into(),
            Node::List(items) => items.into_iter().map(|item| item.into_json(depth + 1)).collect::<Result<_, _>>()?,
            Node::Object(fields) => {
                let fields =
                    fields.into_iter().map(|(name, value)| Ok::<_, String>((name, value.into_json(depth + 1)?)));
                Value::Object(fields.collect::<Result<_, _>>()?)
            }
        })
    }
}

/// The types that plain JSON does not have, each written as an object with a `$` name.
const TYPED: [&str; 15] = [
    "$oid",
    "$date",
    "$numberInt",
    "$numberLong",
    "$numberDouble",
    "$numberDecimal",
    "$binary",
    "$uuid",
    "$timestamp",
    "$regularExpression",
    "$symbol",
    "$code",
    "$undefined",
    "$minKey",
    "$maxKey",
];

fn typed(fields: Vec<(String, Node)>, depth: usize) -> Result<Bson, String> {
    let Some(name) = fields.iter().find_map(|(name, _)| TYPED.iter().find(|known| *known == name)) else {
        let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
        return Err(format!("no type of extended JSON has the fields {names:?}; known are {}", TYPED.join(", ")));
    };
    for (_, value) in &fields {
        // A decimal has at most 34 digits, a sign, a point and an exponent; its parser expects no more than that.
        if let (&"$numberDecimal", Node::Text(text)) = (name, value)
            && (text.len() > 64 || !text.is_ascii())
        {
            return Err("$numberDecimal takes at most 64 ASCII characters".into());
        }
    }
    let value = Node::Object(fields).into_json(depth)?;
    let bson = Bson::try_from(value).map_err(|error| format!("{name}: {error}"))?;
    // What is inside cannot be written back as BSON if it holds a NUL byte, and nothing could equal it.
    bson::RawBson::try_from(bson.clone()).map_err(|error| format!("{name}: {error}"))?;
    Ok(bson)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(i64::try_from(value).map_or(Node::Large(value), Node::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Double(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields: Vec<(String, Node)> = Vec::new();
        let mut names = std::collections::HashSet::new();
        while let Some((name, value)) = map.next_entry::<String, Node>()? {
            if !names.insert(name.clone()) {
                return Err(de::Error::custom(format_args!("the field {name:?} is given twice")));
            }
            fields.push((name, value));
        }
        Ok(Node::Object(fields))
    }
}
