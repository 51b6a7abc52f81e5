//! What was written, and where: the tree that the TOML file and the environment give together, before anything is known of
//! what the keys mean. Each value remembers its place, so that a problem can name it.
//!
//! Invariants:
//! - The environment wins over the file, key by key; a whole list or table given by the environment replaces that of the file.
//! - Text from the environment stays [`Value::Text`] with an [`Origin::Environment`] until whoever reads the key says of what
//!   type it is, so that a name like `007` is not taken for a number.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc};

use toml::de::{DeTable, DeValue};

use super::Problem;

/// Before the name of every environment variable that sets a key.
pub const ENVIRONMENT_PREFIX: &str = "STREAMER__";

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    File {
        path: Arc<PathBuf>,
        line: usize,
    },
    Environment {
        variable: Arc<str>,
    },
    /// Nowhere: the key was left out.
    Absent,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment { variable } => write!(f, "environment variable {variable}"),
            Self::Absent => write!(f, "configuration"),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    /// Kept as it was written: no key takes one, but a problem has to show it.
    Other(String),
    Boolean(bool),
    List(Vec<Node>),
    Table(Table),
}

pub(super) type Table = BTreeMap<String, Node>;

impl Value {
    /// As a problem shows it.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Text(text) => format!("{text:?}"),
            Self::Integer(number) => number.to_string(),
            Self::Other(text) => text.clone(),
            Self::Boolean(flag) => flag.to_string(),
            Self::List(items) => {
                format!("[{}]", items.iter().map(|item| item.value.shown()).collect::<Vec<_>>().join(", "))
            }
            Self::Table(table) => {
                let fields: Vec<_> =
                    table.iter().map(|(key, node)| format!("{key} = {}", node.value.shown())).collect();
                format!("{{ {} }}", fields.join(", "))
            }
        }
    }
}

/// Reads a TOML file's text. Syntax errors name the line.
pub(super) fn parse_file(path: &Arc<PathBuf>, text: &str) -> Result<Table, Box<Problem>> {
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        Box::new(Problem {
            origin: Origin::File { path: path.clone(), line },
            key: String::new(),
            value: None,
            message: format!("is not TOML: {}", error.message()),
        })
    })?;
    let place = |offset: usize| Origin::File { path: path.clone(), line: line_of(text, offset) };
    Ok(convert_table(table.get_ref(), &place))
}

/// Puts the environment's `STREAMER__SECTION__KEY` over the table. A number as a segment is an index into a list:
/// `STREAMER__BACKENDS__0__URI`. Empty variables count as not set.
pub(super) fn overlay_environment(
    table: &mut Table,
    variables: impl IntoIterator<Item = (String, String)>,
    problems: &mut Vec<Problem>,
) {
    let mut ours: Vec<_> =
        variables.into_iter().filter(|(name, text)| name.starts_with(ENVIRONMENT_PREFIX) && !text.is_empty()).collect();
    // Shorter names first, so that a whole list is in place before one of its elements is changed.
    ours.sort_by_key(|(name, _)| (name.matches("__").count(), name.clone()));
    for (name, text) in ours {
        let origin = Origin::Environment { variable: name.as_str().into() };
        let path: Vec<String> = name[ENVIRONMENT_PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
        if let Err(message) = place(table, &path, Node { origin: origin.clone(), value: Value::Text(text.clone()) }) {
            problems.push(Problem { origin, key: path.join("."), value: Some(format!("{text:?}")), message });
        }
    }
}

/// The list or table that a text from the environment spells, as JSON or as a TOML value.
pub(super) fn parse_structure(origin: &Origin, text: &str) -> Result<Value, String> {
    if let Ok(json) = serde_json::from_str::<serde_json::Value>(text) {
        return Ok(convert_json(json, origin));
    }
    let document = format!("value = {text}");
    let parsed = DeTable::parse(&document)
        .map_err(|error| format!("is neither JSON nor a TOML value: {}", error.message().trim_end()))?;
    match convert_table(parsed.get_ref(), &|_| origin.clone()).remove("value") {
        Some(node) => Ok(node.value),
        None => Err("is neither JSON nor a TOML value".into()),
    }
}

fn place(table: &mut Table, path: &[String], node: Node) -> Result<(), String> {
    let Some((first, rest)) = path.split_first() else { return Ok(()) };
    if rest.is_empty() {
        table.insert(first.clone(), node);
        return Ok(());
    }
    let origin = node.origin.clone();
    let child = table
        .entry(first.clone())
        .or_insert_with(|| Node { origin: origin.clone(), value: Value::Table(Table::new()) });
    place_below(child, rest, node)
}

fn place_below(child: &mut Node, rest: &[String], node: Node) -> Result<(), String> {
    if let (Value::Text(text), Origin::Environment { .. }) = (&child.value, &child.origin) {
        child.value = parse_structure(&child.origin, text)?;
    }
    match &mut child.value {
        Value::Table(inner) => place(inner, rest, node),
        Value::List(items) => {
            let count = items.len();
            let Some((index, rest)) = rest.split_first() else { return Ok(()) };
            let item = index.parse::<usize>().ok().and_then(|index| items.get_mut(index)).ok_or_else(|| {
                format!("names element {index:?} of a list of {count}; allowed: 0 to {count}, without the last")
            })?;
            if rest.is_empty() {
                *item = node;
                return Ok(());
            }
            place_below(item, rest, node)
        }
        other => Err(format!("goes into {}, which is no table", other.shown())),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

fn convert_table(table: &DeTable<'_>, place: &dyn Fn(usize) -> Origin) -> Table {
    table
        .iter()
        .map(|(key, value)| {
            // A table's own span starts at its header or its first dotted key; the key's is the more useful place.
            let node = Node { origin: place(key.span().start), value: convert(value.get_ref(), place) };
            (key.get_ref().to_string(), node)
        })
        .collect()
}

fn convert(value: &DeValue<'_>, place: &dyn Fn(usize) -> Origin) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Other(number.as_str().to_owned()),
        },
        DeValue::Float(number) => Value::Other(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Datetime(time) => Value::Other(time.to_string()),
        DeValue::Array(items) => Value::List(
            items
                .iter()
                .map(|item| Node { origin: place(item.span().start), value: convert(item.get_ref(), place) })
                .collect(),
        ),
        DeValue::Table(table) => Value::Table(convert_table(table, place)),
    }
}

fn convert_json(json: serde_json::Value, origin: &Origin) -> Value {
    let node = |json| Node { origin: origin.clone(), value: convert_json(json, origin) };
    match json {
        serde_json::Value::String(text) => Value::Text(text),
        serde_json::Value::Bool(flag) => Value::Boolean(flag),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(number) => Value::Integer(number),
            None => Value::Other(number.to_string()),
        },
        serde_json::Value::Null => Value::Other("null".into()),
        serde_json::Value::Array(items) => Value::List(items.into_iter().map(node).collect()),
        serde_json::Value::Object(fields) => {
            Value::Table(fields.into_iter().map(|(key, json)| (key, node(json))).collect())
        }
    }
}
