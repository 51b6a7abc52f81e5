//! Filters, read from their JSON text and evaluated one after the other on the flat view.

use bson::Bson;
use serde::Deserialize;

use super::{
    OracleError,
    change::Preset,
    compare::{equal, order},
    view::View,
};

/// One `{"field", "op", "value"}`.
#[derive(Debug)]
pub(super) struct Filter {
    field: String,
    op: Op,
    value: Bson,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Equal,
    NotEqual,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    In,
    NotIn,
    Contains,
    ContainsAny,
    StartsWith,
}

impl Op {
    fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "==" | "eq" => Self::Equal,
            "!=" | "ne" => Self::NotEqual,
            ">" | "gt" => Self::Greater,
            ">=" | "gte" => Self::GreaterOrEqual,
            "<" | "lt" => Self::Less,
            "<=" | "lte" => Self::LessOrEqual,
            "in" => Self::In,
            "not-in" => Self::NotIn,
            "contains" | "array-contains" => Self::Contains,
            "contains-any" => Self::ContainsAny,
            "starts-with" => Self::StartsWith,
            _ => return None,
        })
    }
}

/// Reads a list of filters. Empty text means none.
pub(super) fn parse(text: &str, preset: Preset) -> Result<Vec<Filter>, OracleError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let bad = |what: String| OracleError::Filter { what, text: text.to_owned() };
    let list: Vec<Item> = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    list.into_iter().map(|item| Filter::of(item, preset).map_err(bad)).collect()
}

/// As it stands in the JSON. The library reads extended JSON, and keeps the order of fields.
#[derive(Deserialize)]
struct Item {
    field: String,
    op: String,
    value: Bson,
}

impl Filter {
    fn of(Item { field, op: name, value }: Item, preset: Preset) -> Result<Self, String> {
        // `data.status` and `status` are the same: the prefix is dropped once.
        let field = match preset {
            Preset::Syntrix => field.strip_prefix("data.").unwrap_or(&field).to_owned(),
            Preset::Plain => field,
        };
        let op = Op::of_name(&name).ok_or_else(|| format!("there is no op `{name}`"))?;
        match (op, &value) {
            (Op::In | Op::NotIn | Op::ContainsAny, Bson::Array(_)) => {}
            (Op::In | Op::NotIn | Op::ContainsAny, _) => return Err(format!("`value` of `{name}` is not a list")),
            (Op::StartsWith, Bson::String(_)) => {}
            (Op::StartsWith, _) => return Err("`value` of `starts-with` is not a string".into()),
            _ => {}
        }
        Ok(Self { field, op, value })
    }

    /// The document id that this filter demands, if that is all it says.
    pub(super) fn document_id(&self, preset: Preset) -> Option<&Bson> {
        let is_id = match preset {
            Preset::Syntrix => self.field == "_id" || self.field == "id",
            Preset::Plain => self.field == "_id",
        };
        (is_id && self.op == Op::Equal).then_some(&self.value)
    }

    pub(super) fn holds(&self, view: &View) -> bool {
        // A missing field satisfies no comparison, `!=` and `not-in` included.
        let Some(found) = view.at(&self.field) else { return false };
        let is_any = |found: &Bson| self.value.as_array().is_some_and(|list| list.iter().any(|v| equal(found, v)));
        match self.op {
            Op::Equal => equal(found, &self.value),
            Op::NotEqual => !equal(found, &self.value),
            Op::Greater => order(found, &self.value).is_some_and(|o| o.is_gt()),
            Op::GreaterOrEqual => order(found, &self.value).is_some_and(|o| o.is_ge()),
            Op::Less => order(found, &self.value).is_some_and(|o| o.is_lt()),
            Op::LessOrEqual => order(found, &self.value).is_some_and(|o| o.is_le()),
            Op::In => is_any(found),
            Op::NotIn => !is_any(found),
            Op::Contains => found.as_array().is_some_and(|list| list.iter().any(|v| equal(v, &self.value))),
            Op::ContainsAny => found.as_array().is_some_and(|list| list.iter().any(is_any)),
            Op::StartsWith => match (found, &self.value) {
                (Bson::String(found), Bson::String(prefix)) => found.as_bytes().starts_with(prefix.as_bytes()),
                _ => false,
            },
        }
    }
}
