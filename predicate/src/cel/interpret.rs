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
use super::variables::{Known, Memo, Side, Variables, View, Wanted};
use crate::lookup;
use crate::mapping::{Mapping, VIEW_DEPTH_MAX};
use crate::number::decimal_to_double;
use crate::path::Path;
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
    doc: Wanted,
    before: Wanted,
    id: Option<Path>,
    units: u64,
}

impl Interpreted {
    pub(super) fn new(mut expr: IdedExpr, reads: &Reads, mapping: &Mapping) -> Result<Interpreted, PatternError> {
        let mut regexes = Vec::new();
        let units = meter::count(&expr).unsigned_abs();
        meter::rewrite(&mut expr, &mut regexes)?;
        let wanted = |is_read: bool, fields: &Fields| match fields.names() {
            _ if !is_read => Wanted::Nothing,
            None => Wanted::All,
            Some(names) => {
                Wanted::Fields(names.iter().map(|name| (name.as_str().into(), mapping.view_path(&[name]))).collect())
            }
        };
        Ok(Interpreted {
            expr,
            regexes: regexes.into(),
            doc: wanted(reads.variable("doc") || reads.variable("data"), &reads.doc_fields),
            before: wanted(reads.variable("before"), &reads.before_fields),
            id: reads.variable("id").then(|| mapping.id_path()),
            units,
        })
    }

    /// The expression as the parser gave it, to compare with.
    #[cfg(test)]
    pub(super) fn without_meter(expr: IdedExpr, reads: &Reads, mapping: &Mapping) -> Interpreted {
        let metered = Interpreted::new(expr.clone(), reads, mapping).expect("its patterns are good");
        Interpreted { expr, regexes: Arc::new([]), units: 1, ..metered }
    }

    /// None for an error: of the expression, of its type, or for want of budget, which the budget then shows.
    pub(super) fn evaluate(
        &self,
        mapping: &Mapping,
        image: &RawDocument,
        context: &Context<'_>,
        memo: Option<&Memo>,
        budget: &mut Budget,
    ) -> Option<bool> {
        meter::start(budget.units, &self.regexes);
        let answer = catch_unwind(AssertUnwindSafe(|| self.run(mapping, image, context, memo)));
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

    fn run(
        &self,
        mapping: &Mapping,
        image: &RawDocument,
        context: &Context<'_>,
        memo: Option<&Memo>,
    ) -> Result<bool, ExecutionError> {
        meter::charge(self.units)?;
        let before = match context.before {
            Some(before) => self.before.read(mapping, before, memo.map(|memo| (memo, Side::Before)))?,
            None => View::Whole(Known::Own(Box::new(CelNull))),
        };
        let variables = Variables {
            doc: self.doc.read(mapping, image, memo.map(|memo| (memo, Side::Doc)))?,
            before,
            id: match &self.id {
                Some(path) => {
                    let id = path.get(image).unwrap_or(RawBsonRef::Null);
                    Known::Own(decode(id, VIEW_DEPTH_MAX, Make::borrowed())?)
                }
                None => Known::Nothing,
            },
            tenant: CelString::from(context.tenant),
            collection: CelString::from(context.collection),
            change_type: CelString::from(context.change_type.as_str()),
        };
        let mut root = cel_interpreter::Context::with_env(env());
        root.set_variable_resolver(&variables);
        let value = Value::resolve_val(&self.expr, &root)?;
        value.downcast_ref::<CelBool>().map(|answer| *answer.inner()).ok_or_else(|| ExecutionError::UnexpectedType {
            got: value.get_type().name().to_owned(),
            want: "bool".to_owned(),
        })
    }
}

/// How texts and bytes of an image become those of a value: by borrowing them, or as copies that outlive it.
#[derive(Clone, Copy)]
pub(super) struct Make<'a, 'v> {
    pub(super) text: fn(&'a str) -> CelString<'v>,
    bytes: fn(&'a [u8]) -> CelBytes<'v>,
}

impl<'a> Make<'a, 'a> {
    pub(super) fn borrowed() -> Make<'a, 'a> {
        Make { text: |text| CelString::from(text), bytes: |bytes| CelBytes::from(bytes) }
    }
}

impl<'a> Make<'a, 'static> {
    pub(super) fn owned() -> Make<'a, 'static> {
        Make { text: |text| CelString::from(text.to_owned()), bytes: |bytes| CelBytes::from(bytes.to_vec()) }
    }
}

/// Under the table of `docs/semantics.md`.
pub(super) fn decode<'a, 'v>(
    value: RawBsonRef<'a>,
    depth: usize,
    make: Make<'a, 'v>,
) -> Result<Box<dyn Val + 'v>, ExecutionError> {
    meter::charge(1)?;
    let inner = || depth.checked_sub(1).ok_or_else(|| ExecutionError::function_error("decode", "nested too deep"));
    Ok(match value {
        RawBsonRef::Null => Box::new(CelNull),
        RawBsonRef::Boolean(value) => Box::new(CelBool::from(value)),
        RawBsonRef::Int32(value) => Box::new(CelInt::from(i64::from(value))),
        RawBsonRef::Int64(value) => Box::new(CelInt::from(value)),
        RawBsonRef::Double(value) => Box::new(CelDouble::from(value)),
        RawBsonRef::Decimal128(value) => Box::new(CelDouble::from(decimal_to_double(value))),
        RawBsonRef::String(value) => Box::new((make.text)(value)),
        RawBsonRef::ObjectId(value) => {
            let digits = hex_digits(value.bytes());
            Box::new(CelString::from(String::from_utf8_lossy(&digits).into_owned()))
        }
        RawBsonRef::Binary(value) => Box::new((make.bytes)(value.bytes)),
        RawBsonRef::DateTime(value) if in_range(value.timestamp_millis()) => {
            Box::new(CelTimestamp::from(value.to_chrono().fixed_offset()))
        }
        RawBsonRef::Array(items) => {
            let depth = inner()?;
            let mut decoded: Vec<Box<dyn Val + 'v>> = Vec::new();
            for item in lookup::items(items) {
                decoded.push(decode(item, depth, make)?);
            }
            Box::new(CelList::from(decoded))
        }
        RawBsonRef::Document(document) => {
            let depth = inner()?;
            let mut decoded: HashMap<CelMapKey<'v>, Box<dyn Val + 'v>> = HashMap::new();
            for (name, value) in lookup::each_field(document) {
                if let Entry::Vacant(entry) = decoded.entry(CelMapKey::String((make.text)(name))) {
                    entry.insert(decode(value, depth, make)?);
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
