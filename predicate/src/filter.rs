//! Filters: a JSON list of `{field, op, value}`, all of which must hold.

use std::collections::HashSet;

use bson::{Bson, RawBson, RawBsonRef, RawDocument};
use serde_json::value::RawValue;

use crate::extjson;
use crate::mapping::Mapping;
use crate::path::Path;
use crate::value::{CanonicalBytes, Value, compare, equal, write_canonical};
use crate::{Budget, CompileError};

/// Bytes of the JSON text.
pub const FILTERS_BYTES_MAX: usize = 64 << 10;
/// Filters in the list.
pub const FILTERS_MAX: usize = 100;
/// Values in the list of `in`, `not-in` and `contains-any`.
pub const LIST_MAX: usize = 1_000;
/// From so many values on, a list is looked up rather than compared one by one.
const SET_FROM: usize = 8;

const OPS: &str = "==, !=, >, >=, <, <=, in, not-in, contains, contains-any, starts-with \
                   (also eq, ne, gt, gte, lt, lte, array-contains)";

/// What a filter asks of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Eq,
    Ne,
    Gt,
    Ge,
    Lt,
    Le,
    In,
    NotIn,
    Contains,
    ContainsAny,
    StartsWith,
}

impl Op {
    fn parse(text: &str) -> Option<Op> {
        Some(match text {
            "==" | "eq" => Op::Eq,
            "!=" | "ne" => Op::Ne,
            ">" | "gt" => Op::Gt,
            ">=" | "gte" => Op::Ge,
            "<" | "lt" => Op::Lt,
            "<=" | "lte" => Op::Le,
            "in" => Op::In,
            "not-in" => Op::NotIn,
            "contains" | "array-contains" => Op::Contains,
            "contains-any" => Op::ContainsAny,
            "starts-with" => Op::StartsWith,
            _ => return None,
        })
    }
}

#[derive(Debug)]
pub(crate) struct Filter {
    pub(crate) path: Path,
    pub(crate) check: Check,
}

#[derive(Debug)]
pub(crate) enum Check {
    Equal(RawBson),
    NotEqual(RawBson),
    Order(Op, RawBson),
    In(Members),
    NotIn(Members),
    Contains(RawBson),
    ContainsAny(Members),
    StartsWith(String),
}

/// The list of `in` and its kin.
#[derive(Debug)]
pub(crate) struct Members {
    /// Canonical bytes of the values, where there are many.
    set: HashSet<CanonicalBytes>,
    /// The values that are not in `set`.
    rest: Vec<RawBson>,
}

impl Members {
    pub(crate) fn new(values: Vec<RawBson>) -> Members {
        let mut members = Members { set: HashSet::new(), rest: Vec::new() };
        let many = values.len() >= SET_FROM;
        for value in values {
            let mut bytes = CanonicalBytes::new();
            if many && write_canonical(value.as_raw_bson_ref(), &mut bytes) {
                members.set.insert(bytes);
            } else {
                members.rest.push(value);
            }
        }
        members
    }

    /// Whether the value equals one of the list.
    pub(crate) fn contain(&self, value: RawBsonRef<'_>, budget: &mut Budget) -> bool {
        budget.spend(1 + self.rest.len() as u64);
        if !self.set.is_empty() {
            let mut bytes = CanonicalBytes::new();
            if write_canonical(value, &mut bytes) && self.set.contains(&bytes) {
                return true;
            }
        }
        self.rest.iter().any(|member| equal(value, member.as_raw_bson_ref()))
    }
}

impl Filter {
    /// Whether the filter holds for the image. False where the budget runs out, which the caller sees by the budget.
    pub(crate) fn holds(&self, image: &RawDocument, budget: &mut Budget) -> bool {
        budget.spend(1 + self.path.cost());
        // Nothing holds for a missing field, `!=` and `not-in` included.
        self.path.get(image).is_some_and(|found| self.holds_for(found, budget))
    }

    /// The same for the value at the path.
    pub(crate) fn holds_for(&self, found: RawBsonRef<'_>, budget: &mut Budget) -> bool {
        match &self.check {
            Check::Equal(value) => equal(found, value.as_raw_bson_ref()),
            Check::NotEqual(value) => !equal(found, value.as_raw_bson_ref()),
            Check::Order(op, value) => compare(found, value.as_raw_bson_ref()).is_some_and(|order| match op {
                Op::Gt => order.is_gt(),
                Op::Ge => order.is_ge(),
                Op::Lt => order.is_lt(),
                _ => order.is_le(),
            }),
            Check::In(members) => members.contain(found, budget),
            Check::NotIn(members) => !members.contain(found, budget),
            Check::Contains(value) => any_element(found, budget, |element, _| equal(element, value.as_raw_bson_ref())),
            Check::ContainsAny(members) => {
                any_element(found, budget, |element, budget| members.contain(element, budget))
            }
            Check::StartsWith(prefix) => found.as_str().is_some_and(|text| text.starts_with(prefix.as_str())),
        }
    }

    /// The equality that this filter is, if it is one that an index can look up.
    pub(crate) fn equality(&self) -> Option<(Path, Value)> {
        match &self.check {
            Check::Equal(value) => Some((self.path.clone(), Value::of(value.as_raw_bson_ref())?)),
            _ => None,
        }
    }
}

fn any_element(
    found: RawBsonRef<'_>,
    budget: &mut Budget,
    mut holds: impl FnMut(RawBsonRef<'_>, &mut Budget) -> bool,
) -> bool {
    let Some(array) = found.as_array() else { return false };
    for element in array {
        budget.spend(1);
        if budget.is_spent() {
            return false;
        }
        match element {
            Ok(element) if holds(element, budget) => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
    false
}

/// Where in the list an error stands, for its message.
#[derive(Clone, Copy)]
struct At<'a> {
    index: usize,
    field: Option<&'a str>,
    op: Option<&'a str>,
}

impl At<'_> {
    fn error(self, what: impl Into<String>) -> CompileError {
        CompileError::InvalidFilter {
            index: Some(self.index),
            field: self.field.map(|field| shortened(field, NAME_SHOWN_MAX)),
            op: self.op.map(|op| shortened(op, NAME_SHOWN_MAX)),
            what: shortened(&what.into(), WHAT_SHOWN_MAX),
        }
    }
}

/// Characters of a field, an op or a message that an error shows: all three may repeat what somebody sent.
const NAME_SHOWN_MAX: usize = 80;
const WHAT_SHOWN_MAX: usize = 400;

fn shortened(text: &str, shown_max: usize) -> String {
    match text.char_indices().nth(shown_max) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts<'a> {
    #[serde(borrow)]
    field: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    op: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    value: &'a RawValue,
}

/// Parses and resolves the list. Empty text is the empty list.
pub(crate) fn parse(json: &str, mapping: &Mapping) -> Result<Vec<Filter>, CompileError> {
    let whole = |what: String| {
        let what = shortened(&what, WHAT_SHOWN_MAX);
        CompileError::InvalidFilter { index: None, field: None, op: None, what }
    };
    if json.len() > FILTERS_BYTES_MAX {
        return Err(whole(format!("{} bytes of filters; at most {FILTERS_BYTES_MAX} are allowed", json.len())));
    }
    if json.trim().is_empty() {
        return Ok(Vec::new());
    }
    let items: Vec<&RawValue> = serde_json::from_str(json)
        .map_err(|error| whole(format!("expected a JSON list of {{field, op, value}}: {error}")))?;
    if items.len() > FILTERS_MAX {
        return Err(whole(format!("{} filters; at most {FILTERS_MAX} are allowed", items.len())));
    }
    items.into_iter().enumerate().map(|(index, item)| parse_one(index, item.get(), mapping)).collect()
}

fn parse_one(index: usize, json: &str, mapping: &Mapping) -> Result<Filter, CompileError> {
    let parts: Parts<'_> = serde_json::from_str(json).map_err(|error| {
        At { index, field: None, op: None }
            .error(format!("expected {{\"field\": …, \"op\": …, \"value\": …}}: {error}"))
    })?;
    let at = At { index, field: Some(&parts.field), op: Some(&parts.op) };
    let op = Op::parse(&parts.op).ok_or_else(|| at.error(format!("unknown op; allowed are {OPS}")))?;
    let path = mapping.filter_path(&parts.field).map_err(|what| at.error(format!("bad field: {what}")))?;
    let value = extjson::parse(parts.value.get()).map_err(|what| at.error(format!("bad value: {what}")))?;
    let check = check_of(op, value).map_err(|what| at.error(what))?;
    Ok(Filter { path, check })
}

fn check_of(op: Op, value: Bson) -> Result<Check, String> {
    let raw = |value: Bson| RawBson::try_from(value).map_err(|error| format!("bad value: {error}"));
    let members = |value: Bson| match value {
        Bson::Array(items) if items.len() > LIST_MAX => {
            Err(format!("{} values in the list; at most {LIST_MAX} are allowed", items.len()))
        }
        Bson::Array(items) => Ok(Members::new(items.into_iter().map(raw).collect::<Result<_, _>>()?)),
        _ => Err("expected a list of values".to_owned()),
    };
    Ok(match op {
        Op::Eq => Check::Equal(raw(value)?),
        Op::Ne => Check::NotEqual(raw(value)?),
        Op::Gt | Op::Ge | Op::Lt | Op::Le => Check::Order(op, raw(value)?),
        Op::In => Check::In(members(value)?),
        Op::NotIn => Check::NotIn(members(value)?),
        Op::Contains => Check::Contains(raw(value)?),
        Op::ContainsAny => Check::ContainsAny(members(value)?),
        Op::StartsWith => match value {
            Bson::String(prefix) => Check::StartsWith(prefix),
            _ => return Err("expected a string".into()),
        },
    })
}

#[cfg(test)]
mod tests;
