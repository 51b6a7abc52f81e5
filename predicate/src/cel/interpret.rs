//! Expressions, or parts of one, that are left to the interpreter: the fields that they read are decoded, and nothing else.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bson::{RawBsonRef, RawDocument};
use cel_interpreter::common::ast::IdedExpr;
use cel_interpreter::common::types::{
    CelBool, CelBytes, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelTimestamp, Type,
};
use cel_interpreter::common::value::{StaticVal, Val};
use cel_interpreter::{Env, ExecutionError, Value};
use regex::Regex;

use super::check::{Fields, Reads};
use super::meter;
use super::regex::PatternError;
use super::value::{hex_digits, in_range};
use crate::lookup;
use crate::mapping::{Mapping, VIEW_DEPTH_MAX};
use crate::number::decimal_to_double;
use crate::{Budget, Context};

/// Panics of the interpreter that were caught, since the process started.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// How often the interpreter has panicked since the process started. Each was answered with an error, and is worth a report.
pub fn interpreter_panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

thread_local! {
    /// Building one takes as long as many evaluations.
    static ENV: OnceCell<Arc<Env>> = const { OnceCell::new() };
}

pub(super) fn env() -> Arc<Env> {
    ENV.with(|env| Arc::clone(env.get_or_init(|| Arc::new(build_env()))))
}

fn build_env() -> Env {
    // Turns the syntax of optional values off; their functions are unknown names to our checks.
    let mut env = Env::stdlib().with_optional_support(false);
    meter::declare(&mut env).expect("no other function's name begins with @");
    env
}

/// An expression ready to be interpreted.
#[derive(Debug)]
pub(super) struct Interpreted {
    expr: IdedExpr,
    regexes: Arc<[Regex]>,
    reads: Reads,
    units: u64,
}

impl Interpreted {
    pub(super) fn new(mut expr: IdedExpr, reads: Reads) -> Result<Interpreted, PatternError> {
        let mut regexes = Vec::new();
        let units = meter::count(&expr).unsigned_abs();
        meter::rewrite(&mut expr, &mut regexes)?;
        Ok(Interpreted { expr, regexes: regexes.into(), reads, units })
    }

    /// The expression as the parser gave it, to compare with.
    #[cfg(test)]
    pub(super) fn without_meter(expr: IdedExpr, reads: Reads) -> Interpreted {
        Interpreted { expr, regexes: Arc::new([]), reads, units: 1 }
    }

    /// None for an error: of the expression, of its type, or for want of budget, which the budget then shows.
    pub(super) fn evaluate(
        &self,
        mapping: &Mapping,
        image: &RawDocument,
        context: &Context<'_>,
        budget: &mut Budget,
    ) -> Option<bool> {
        meter::start(budget.units, &self.regexes);
        let answer = catch_unwind(AssertUnwindSafe(|| self.run(mapping, image, context)));
        let (left, spent) = meter::finish();
        budget.units = if spent { 0 } else { left };
        match answer {
            Ok(answer) => answer.ok().filter(|_| !spent),
            Err(_) => {
                PANICS.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    fn run(&self, mapping: &Mapping, image: &RawDocument, context: &Context<'_>) -> Result<bool, ExecutionError> {
        meter::charge(self.units)?;
        let mut variables = cel_interpreter::Context::with_env(env());
        for name in ["doc", "data"] {
            if self.reads.variable(name) {
                variables.add_variable_as_val(name, view(mapping, image, &self.reads.doc_fields)?);
            }
        }
        if self.reads.variable("before") {
            let before: Box<dyn Val> = match context.before {
                Some(before) => view(mapping, before, &self.reads.before_fields)?,
                None => Box::new(CelNull),
            };
            variables.add_variable_as_val("before", before);
        }
        for (name, value) in
            [("tenant", context.tenant), ("collection", context.collection), ("type", context.change_type.as_str())]
        {
            if self.reads.variable(name) {
                variables.add_variable_as_val(name, Box::new(CelString::from(value)));
            }
        }
        if self.reads.variable("id") {
            let id = mapping.id_of(image).unwrap_or(RawBsonRef::Null);
            variables.add_variable_as_val("id", decode(id, VIEW_DEPTH_MAX)?);
        }
        let value = Value::resolve_val(&self.expr, &variables)?;
        value.downcast_ref::<CelBool>().map(|answer| *answer.inner()).ok_or_else(|| ExecutionError::UnexpectedType {
            got: value.get_type().name().to_owned(),
            want: "bool".to_owned(),
        })
    }
}

/// The wanted root fields of the flat view.
fn view<'a>(mapping: &Mapping, image: &'a RawDocument, fields: &Fields) -> Result<Box<dyn Val + 'a>, ExecutionError> {
    let mut entries: HashMap<CelMapKey<'a>, Box<dyn Val + 'a>> = HashMap::new();
    let mut failed = None;
    mapping.each_view_field(image, |name, value| {
        let key = CelMapKey::from(name);
        if failed.is_none() && fields.contain(name) && !entries.contains_key(&key) {
            match decode(value, VIEW_DEPTH_MAX) {
                Ok(value) => {
                    entries.insert(key, value);
                }
                Err(error) => failed = Some(error),
            }
        }
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(Box::new(CelMap::from(entries))),
    }
}

/// Under the table of `docs/semantics.md`. Text and bytes are borrowed from the image.
fn decode<'a>(value: RawBsonRef<'a>, depth: usize) -> Result<Box<dyn Val + 'a>, ExecutionError> {
    meter::charge(1)?;
    let inner = || depth.checked_sub(1).ok_or_else(|| ExecutionError::function_error("decode", "nested too deep"));
    Ok(match value {
        RawBsonRef::Null => Box::new(CelNull),
        RawBsonRef::Boolean(value) => Box::new(CelBool::from(value)),
        RawBsonRef::Int32(value) => Box::new(CelInt::from(i64::from(value))),
        RawBsonRef::Int64(value) => Box::new(CelInt::from(value)),
        RawBsonRef::Double(value) => Box::new(CelDouble::from(value)),
        RawBsonRef::Decimal128(value) => Box::new(CelDouble::from(decimal_to_double(value))),
        RawBsonRef::String(value) => Box::new(CelString::from(value)),
        RawBsonRef::ObjectId(value) => {
            let digits = hex_digits(value.bytes());
            Box::new(CelString::from(String::from_utf8_lossy(&digits).into_owned()))
        }
        RawBsonRef::Binary(value) => Box::new(CelBytes::from(value.bytes)),
        RawBsonRef::DateTime(value) if in_range(value.timestamp_millis()) => {
            Box::new(CelTimestamp::from(value.to_chrono().fixed_offset()))
        }
        RawBsonRef::Array(items) => {
            let depth = inner()?;
            let mut decoded: Vec<Box<dyn Val + 'a>> = Vec::new();
            for item in lookup::items(items) {
                decoded.push(decode(item, depth)?);
            }
            Box::new(CelList::from(decoded))
        }
        RawBsonRef::Document(document) => {
            let depth = inner()?;
            let mut decoded: HashMap<CelMapKey<'a>, Box<dyn Val + 'a>> = HashMap::new();
            for (name, value) in lookup::each_field(document) {
                if let Entry::Vacant(entry) = decoded.entry(CelMapKey::from(name)) {
                    entry.insert(decode(value, depth)?);
                }
            }
            Box::new(CelMap::from(decoded))
        }
        _ => Box::new(Foreign),
    })
}

/// A BSON type that CEL does not have: it is present, equals nothing, and supports no operator.
#[derive(Debug)]
struct Foreign;

static FOREIGN: Type = Type::new_unspecified_type("bson");

impl Val for Foreign {
    fn get_type(&self) -> &Type {
        &FOREIGN
    }

    fn cel_type() -> &'static Type {
        &FOREIGN
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(Foreign)
    }

    fn as_any(&self) -> Option<&dyn std::any::Any> {
        Some(self)
    }
}

impl StaticVal for Foreign {}
