//! CEL, given whole to the interpreter.
//!
//! | BSON | CEL |
//! |---|---|
//! | int32, int64 | int |
//! | double | double |
//! | decimal | double, the nearest one |
//! | string, symbol | string |
//! | bool | bool |
//! | null, undefined | null |
//! | date | timestamp |
//! | ObjectId | string, in hex |
//! | binary | bytes |
//! | document | map |
//! | array | list |
//!
//! Anything else has no counterpart, and its field is left out.

use std::{collections::HashMap, sync::Arc};

use bson::{Bson, Document};
use cel_interpreter::{Context, Env, Program, Value};

use super::OracleError;

#[derive(Debug)]
pub(super) struct Expression {
    program: Program,
    /// Whether it is about the change rather than about an image: it mentions `before` or `type`.
    pub(super) reads_change: bool,
}

impl Expression {
    /// Empty text means none.
    pub(super) fn parse(source: &str) -> Result<Option<Self>, OracleError> {
        if source.trim().is_empty() {
            return Ok(None);
        }
        let program = Program::compile(source)
            .map_err(|error| OracleError::Cel { what: error.to_string(), source_text: source.to_owned() })?;
        let reads_change = {
            let references = program.references();
            references.has_variable("before") || references.has_variable("type")
        };
        Ok(Some(Self { program, reads_change }))
    }

    /// Only `true` holds: an error or a value of another type does not.
    pub(super) fn holds(&self, context: &Context<'_, '_>) -> bool {
        matches!(self.program.execute(context), Ok(Value::Bool(true)))
    }
}

/// What an expression may name.
pub(super) struct Variables<'a> {
    pub(super) document: &'a Document,
    pub(super) before: Option<&'a Document>,
    pub(super) id: Option<&'a Bson>,
    pub(super) tenant: &'a str,
    pub(super) collection: &'a str,
    pub(super) change_type: &'static str,
}

pub(super) fn context(env: &Arc<Env>, variables: &Variables<'_>) -> Context<'static, 'static> {
    let mut context = Context::with_env(env.clone());
    let document = map(variables.document);
    context.add_variable_from_value("doc", document.clone());
    context.add_variable_from_value("data", document);
    context.add_variable_from_value("before", variables.before.map_or(Value::Null, map));
    context.add_variable_from_value("id", variables.id.and_then(value).unwrap_or(Value::Null));
    context.add_variable_from_value("tenant", variables.tenant);
    context.add_variable_from_value("collection", variables.collection);
    context.add_variable_from_value("type", variables.change_type);
    context
}

fn map(document: &Document) -> Value {
    let entries: HashMap<String, Value> =
        document.iter().filter_map(|(name, found)| Some((name.clone(), value(found)?))).collect();
    entries.into()
}

fn value(bson: &Bson) -> Option<Value> {
    Some(match bson {
        Bson::Int32(value) => Value::Int(i64::from(*value)),
        Bson::Int64(value) => Value::Int(*value),
        Bson::Double(value) => Value::Float(*value),
        Bson::Decimal128(value) => Value::Float(value.to_string().parse().ok()?),
        Bson::String(value) | Bson::Symbol(value) => value.as_str().into(),
        Bson::Boolean(value) => Value::Bool(*value),
        Bson::Null | Bson::Undefined => Value::Null,
        Bson::DateTime(value) => Value::Timestamp(value.to_chrono().into()),
        Bson::ObjectId(value) => value.to_hex().into(),
        Bson::Binary(value) => value.bytes.clone().into(),
        Bson::Document(document) => map(document),
        Bson::Array(list) => Value::List(Arc::new(list.iter().filter_map(value).collect())),
        _ => return None,
    })
}
