//! What can be told of a parsed expression without a document: names that nobody knows, and results that are no bool.

use cel_interpreter::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};

use super::scan::error;
use crate::CompileError;

/// Variables of an expression.
const VARIABLES: [&str; 7] = ["doc", "data", "before", "tenant", "collection", "id", "type"];

/// Types by name, as in `type(x) == int`.
const TYPES: [&str; 10] = ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "uint", "google"];

const FUNCTIONS: [&str; 12] =
    ["size", "int", "uint", "double", "string", "bytes", "bool", "dyn", "type", "timestamp", "duration", "matches"];

const METHODS: [&str; 15] = [
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "getFullYear",
    "getMonth",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getHours",
    "getMinutes",
    "getSeconds",
    "getMilliseconds",
];

/// What an expression reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reads {
    /// `before` or `type`.
    pub(super) change: bool,
    /// Variables by their place in [`VARIABLES`].
    variables: [bool; VARIABLES.len()],
    /// Fields of `doc` and of `before`.
    pub(super) doc_fields: Fields,
    pub(super) before_fields: Fields,
}

impl Reads {
    pub(super) fn variable(&self, name: &str) -> bool {
        VARIABLES.iter().position(|known| *known == name).is_some_and(|index| self.variables[index])
    }
}

/// Root fields of a view that are read by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    names: Vec<String>,
    /// The view is also read as a whole.
    all: bool,
}

impl Fields {
    /// None where the view is also read as a whole.
    pub(super) fn names(&self) -> Option<&[String]> {
        (!self.all).then_some(&self.names)
    }

    fn add(&mut self, name: &str) {
        if !self.names.iter().any(|known| known == name) {
            self.names.push(name.to_owned());
        }
    }
}

/// Checks every name, and collects what is read.
pub(super) fn reads(expr: &IdedExpr) -> Result<Reads, CompileError> {
    let mut walk = Walk { reads: Reads::default(), bound: Vec::new() };
    walk.expr(expr)?;
    Ok(walk.reads)
}

struct Walk<'e> {
    reads: Reads,
    /// Iteration variables in scope.
    bound: Vec<&'e str>,
}

impl<'e> Walk<'e> {
    fn expr(&mut self, expr: &'e IdedExpr) -> Result<(), CompileError> {
        match &expr.expr {
            Expr::Unspecified => Err(error(None, "an incomplete expression")),
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => self.variable(name, None),
            Expr::Select(select) => match &select.operand.expr {
                Expr::Ident(name) => self.variable(name, Some(&select.field)),
                _ => self.expr(&select.operand),
            },
            Expr::Call(call) => self.call(call),
            Expr::List(list) => list.elements.iter().try_for_each(|element| self.expr(element)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.expr(&entry.key)?;
                    self.expr(&entry.value)
                }
                EntryExpr::StructField(_) => Err(error(None, "a map entry without a key")),
            }),
            Expr::Struct(found) => {
                let what = format!("unknown message type `{}`; messages cannot be made", shortened(&found.type_name));
                Err(error(None, what))
            }
            Expr::Comprehension(found) => {
                self.expr(&found.iter_range)?;
                self.expr(&found.accu_init)?;
                let scope = self.bound.len();
                self.bound.push(&found.iter_var);
                self.bound.extend(found.iter_var2.as_deref());
                self.bound.push(&found.accu_var);
                self.expr(&found.loop_cond)?;
                self.expr(&found.loop_step)?;
                self.expr(&found.result)?;
                self.bound.truncate(scope);
                Ok(())
            }
        }
    }

    fn variable(&mut self, name: &'e str, field: Option<&str>) -> Result<(), CompileError> {
        if self.bound.contains(&name) {
            return Ok(());
        }
        // A leading dot asks for the outermost name, and all of ours are.
        let name = name.strip_prefix('.').unwrap_or(name);
        let Some(index) = VARIABLES.iter().position(|known| *known == name) else {
            if TYPES.contains(&name) {
                return Ok(());
            }
            let what = format!("unknown name `{}`; known are {}", shortened(name), VARIABLES.join(", "));
            return Err(error(None, what));
        };
        self.reads.variables[index] = true;
        self.reads.change |= matches!(name, "before" | "type");
        let fields = match name {
            "doc" | "data" => &mut self.reads.doc_fields,
            "before" => &mut self.reads.before_fields,
            _ => return Ok(()),
        };
        match field {
            Some(field) => fields.add(field),
            None => fields.all = true,
        }
        Ok(())
    }

    fn call(&mut self, call: &'e CallExpr) -> Result<(), CompileError> {
        let name = call.func_name.as_str();
        let operator = !name.starts_with(|first: char| first.is_ascii_alphabetic());
        let known: &[&str] = if call.target.is_some() { &METHODS } else { &FUNCTIONS };
        if !operator && !known.contains(&name) {
            let kind = if call.target.is_some() { "method" } else { "function" };
            let hint = match name {
                "has" => "; `has` takes one field, such as `has(doc.status)`",
                "all" | "exists" | "exists_one" | "existsOne" | "filter" => "; it takes a name and an expression",
                "map" => "; it takes a name and one or two expressions",
                _ => "",
            };
            let what = format!("unknown {kind} `{}`; known are {}{hint}", shortened(name), known.join(", "));
            return Err(error(None, what));
        }
        // `doc["status"]` reads one field, like `doc.status`.
        if let (operators::INDEX, [container, index]) = (name, call.args.as_slice())
            && let (Expr::Ident(variable), Some(field)) = (&container.expr, text_literal(index))
        {
            return self.variable(variable, Some(field));
        }
        if let Some(target) = &call.target {
            self.expr(target)?;
        }
        call.args.iter().try_for_each(|arg| self.expr(arg))
    }
}

pub(super) fn text_literal(expr: &IdedExpr) -> Option<&str> {
    match &expr.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Refuses an expression whose result is known not to be a bool.
pub(super) fn yields_bool(expr: &IdedExpr) -> Result<(), CompileError> {
    match result(expr) {
        None | Some("bool") => Ok(()),
        Some(other) => Err(error(None, format!("the expression yields a {other}; expected a bool"))),
    }
}

/// The type of the result, where every document gives the same.
fn result(expr: &IdedExpr) -> Option<&'static str> {
    Some(match &expr.expr {
        Expr::Unspecified | Expr::Struct(_) => return None,
        Expr::Select(select) => return select.test.then_some("bool"),
        Expr::Literal(literal) => match literal {
            LiteralValue::Boolean(_) => "bool",
            LiteralValue::Bytes(_) => "bytes",
            LiteralValue::Double(_) => "double",
            LiteralValue::Int(_) => "int",
            LiteralValue::Null => "null",
            LiteralValue::String(_) => "string",
            LiteralValue::UInt(_) => "uint",
        },
        Expr::Ident(name) => match name.strip_prefix('.').unwrap_or(name) {
            "doc" | "data" => "map",
            "before" => "map or null",
            "tenant" | "collection" | "type" => "string",
            name if TYPES.contains(&name) => "type",
            _ => return None,
        },
        Expr::List(_) => "list",
        Expr::Map(_) => "map",
        Expr::Comprehension(found) => match &found.result.expr {
            // `exists_one` ends in a comparison; the others in what they gathered.
            Expr::Call(_) => "bool",
            _ => return result(&found.accu_init),
        },
        Expr::Call(call) => match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::CONDITIONAL, [_, yes, no]) => {
                return match (result(yes), result(no)) {
                    (Some("bool"), other) | (other, Some("bool")) => other,
                    (Some(one), Some(_)) => Some(one),
                    _ => None,
                };
            }
            (operators::INDEX, _) => return None,
            (operators::ADD | operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE, _) => {
                "number, string, list or time"
            }
            (operators::MODULO | operators::NEGATE, _) => "number",
            ("size" | "int", _) => "int",
            ("uint", _) => "uint",
            ("double", _) => "double",
            ("string", _) => "string",
            ("bytes", _) => "bytes",
            ("type", _) => "type",
            ("timestamp", _) => "timestamp",
            ("duration", _) => "duration",
            ("dyn", _) => return None,
            (name, _) if name.starts_with("get") => "int",
            _ => "bool",
        },
    })
}
