//! From the parser's tree to a [`Node`]: native where it can be, interpreted where not.

use std::cell::Cell;

use cel_interpreter::Value;
use cel_interpreter::common::ast::{CallExpr, ComprehensionExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators};

use super::check::{reads, text_literal};
use super::interpret::{Interpreted, env};
use super::limits::MACRO_DEPTH_MAX;
use super::loops::{Loop, LoopKind};
use super::native::{CompareOp, Has, Image, Matches, Node, Operand, Test, TestKind, TextOp};
use super::regex::{PatternError, compile_regex};
use super::scan::error;
use super::value::Literal;
use crate::CompileError;
use crate::mapping::Mapping;

impl From<PatternError> for CompileError {
    fn from(found: PatternError) -> CompileError {
        error(None, found.to_string())
    }
}

/// Why a part of an expression has no native form.
enum Stop {
    /// It has to be interpreted, and so has the loop around it.
    Interpret,
    Error(CompileError),
}

impl<E: Into<CompileError>> From<E> for Stop {
    fn from(found: E) -> Stop {
        Stop::Error(found.into())
    }
}

/// Where a part of an expression stands.
#[derive(Clone, Copy)]
struct Place<'e> {
    mapping: &'e Mapping,
    /// Names that the loops around it give to their items, the outermost one first.
    bound: &'e [&'e str],
    /// Set when something within a loop may turn out to be for the interpreter to tell.
    unsure: &'e Cell<bool>,
}

/// Compiles an expression. With `native` false all of it is left to the interpreter.
pub(super) fn root(expr: &IdedExpr, mapping: &Mapping, native: bool) -> Result<Node, CompileError> {
    if !native {
        return Ok(Node::Interpreted(interpreted(expr, mapping)?));
    }
    node(expr, Place { mapping, bound: &[], unsure: &Cell::new(false) }).map_err(|stop| match stop {
        Stop::Error(error) => error,
        Stop::Interpret => error(None, "it can neither be compiled nor interpreted"),
    })
}

/// Compiles a part of an expression that yields a bool.
fn node(expr: &IdedExpr, place: Place<'_>) -> Result<Node, Stop> {
    if let Expr::Call(call) = &expr.expr {
        match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::LOGICAL_AND, [left, right]) => {
                let mut nodes = Vec::new();
                for side in [node(left, place)?, node(right, place)?] {
                    match side {
                        Node::And(inner) => nodes.extend(inner),
                        other => nodes.push(other),
                    }
                }
                return Ok(Node::And(nodes));
            }
            (operators::LOGICAL_OR, [left, right]) => {
                let mut nodes = Vec::new();
                for side in [node(left, place)?, node(right, place)?] {
                    match side {
                        Node::Or(inner) => nodes.extend(inner),
                        other => nodes.push(other),
                    }
                }
                return Ok(Node::Or(nodes));
            }
            (operators::LOGICAL_NOT, [inner]) => return Ok(Node::Not(Box::new(node(inner, place)?))),
            (operators::CONDITIONAL, [condition, yes, no]) => {
                return Ok(Node::If(Box::new([node(condition, place)?, node(yes, place)?, node(no, place)?])));
            }
            _ => {}
        }
    }
    match &expr.expr {
        Expr::Literal(LiteralValue::Boolean(value)) => return Ok(Node::Const(*value.inner())),
        Expr::Comprehension(found) => {
            if let Some(found) = loop_of(expr, found, place)? {
                return Ok(Node::Loop(Box::new(found)));
            }
        }
        _ => {}
    }
    match test(expr, place)? {
        Some((kind, may_be_composite)) => {
            let fallback = match may_be_composite {
                true if place.bound.is_empty() => Some(interpreted(expr, place.mapping)?),
                true => {
                    place.unsure.set(true);
                    None
                }
                false => None,
            };
            Ok(Node::Test(Test { kind, fallback }))
        }
        // The items of a loop are nothing that a part of it could be interpreted with.
        None if !place.bound.is_empty() => Err(Stop::Interpret),
        None => Ok(Node::Interpreted(interpreted(expr, place.mapping)?)),
    }
}

fn interpreted(expr: &IdedExpr, mapping: &Mapping) -> Result<Box<Interpreted>, CompileError> {
    Ok(Box::new(Interpreted::new(expr.clone(), &reads(expr)?, mapping)?))
}

/// None where it is no loop that has a native form.
fn loop_of(expr: &IdedExpr, found: &ComprehensionExpr, place: Place<'_>) -> Result<Option<Loop>, Stop> {
    let (Some((kind, item)), None) = (kind_of_loop(found), &found.iter_var2) else { return Ok(None) };
    let range = match operand(&found.iter_range, place) {
        Some(range @ (Operand::Field(..) | Operand::Item(_) | Operand::ItemField(..))) => range,
        _ => return Ok(None),
    };
    let is_outermost = place.bound.is_empty();
    let bound: Vec<&str> = place.bound.iter().copied().chain([found.iter_var.as_str()]).collect();
    if bound.len() > MACRO_DEPTH_MAX {
        return Ok(None);
    }
    if is_outermost {
        place.unsure.set(false);
    }
    // Its depth is at most a few.
    let depth = place.bound.len() as u8;
    let body = match node(item, Place { bound: &bound, ..place }) {
        Ok(body) => body,
        Err(Stop::Interpret) if is_outermost => return Ok(None),
        Err(stop) => return Err(stop),
    };
    if kind == LoopKind::ExistsOne {
        place.unsure.set(true);
    }
    let fallback = if is_outermost && place.unsure.get() { Some(*interpreted(expr, place.mapping)?) } else { None };
    Ok(Some(Loop { kind, range, depth, body, fallback }))
}

/// The macro that the parser made a loop of, and what it asks of an item.
fn kind_of_loop(found: &ComprehensionExpr) -> Option<(LoopKind, &IdedExpr)> {
    let Expr::Call(step) = &found.loop_step.expr else { return None };
    let Expr::Literal(init) = &found.accu_init.expr else { return None };
    let is_gathered = |expr: &IdedExpr| matches!(&expr.expr, Expr::Ident(name) if *name == found.accu_var);
    match (step.func_name.as_str(), step.args.as_slice(), init) {
        (operators::LOGICAL_AND, [gathered, item], LiteralValue::Boolean(_)) if is_gathered(gathered) => {
            Some((LoopKind::All, item))
        }
        (operators::LOGICAL_OR, [gathered, item], LiteralValue::Boolean(_)) if is_gathered(gathered) => {
            Some((LoopKind::Exists, item))
        }
        (operators::CONDITIONAL, [item, _, gathered], LiteralValue::Int(_)) if is_gathered(gathered) => {
            Some((LoopKind::ExistsOne, item))
        }
        _ => None,
    }
}

/// A leaf, and whether its operands may turn out to be two lists or two maps.
fn test(expr: &IdedExpr, place: Place<'_>) -> Result<Option<(TestKind, bool)>, Stop> {
    match &expr.expr {
        Expr::Select(select) if select.test => Ok(has(select, place).map(|kind| (kind, false))),
        Expr::Call(call) => call_test(call, place),
        _ => Ok(operand(expr, place).map(|operand| (TestKind::Bool(operand), false))),
    }
}

fn call_test(call: &CallExpr, place: Place<'_>) -> Result<Option<(TestKind, bool)>, Stop> {
    let compare = match call.func_name.as_str() {
        operators::EQUALS => Some(CompareOp::Eq),
        operators::NOT_EQUALS => Some(CompareOp::Ne),
        operators::LESS => Some(CompareOp::Lt),
        operators::LESS_EQUALS => Some(CompareOp::Le),
        operators::GREATER => Some(CompareOp::Gt),
        operators::GREATER_EQUALS => Some(CompareOp::Ge),
        _ => None,
    };
    let text = match call.func_name.as_str() {
        "startsWith" => Some(TextOp::StartsWith),
        "endsWith" => Some(TextOp::EndsWith),
        "contains" => Some(TextOp::Contains),
        _ => None,
    };
    match (call.func_name.as_str(), call.target.as_deref(), call.args.as_slice()) {
        (_, None, [left, right]) if compare.is_some() => {
            let (Some(left), Some(right), Some(op)) = (operand(left, place), operand(right, place), compare) else {
                return Ok(None);
            };
            let composite = left.may_be_composite_with(&right);
            Ok(Some((compare_kind(op, left, right), composite)))
        }
        (operators::IN, None, [item, container]) => {
            let Some(item) = operand(item, place) else { return Ok(None) };
            if let Expr::List(list) = &container.expr {
                let list: Option<Vec<Literal>> = list
                    .elements
                    .iter()
                    .map(|element| operand(element, place).and_then(Operand::into_literal))
                    .collect();
                let size = item.is_size();
                return Ok(list.map(|list| (TestKind::InList { item, list }, size)));
            }
            let Some(container) = operand(container, place) else { return Ok(None) };
            let composite = !matches!(item, Operand::Literal(_));
            Ok(Some((TestKind::InField { item, container }, composite)))
        }
        (_, Some(target), [argument]) if text.is_some() => {
            let (Some(target), Some(argument), Some(op)) = (operand(target, place), operand(argument, place), text)
            else {
                return Ok(None);
            };
            let size = target.is_size() || argument.is_size();
            Ok(Some((TestKind::Text { op, target, argument }, size)))
        }
        ("matches", Some(target), [pattern]) | ("matches", None, [target, pattern]) => {
            let Some(pattern) = text_literal(pattern) else { return Ok(None) };
            let regex = compile_regex(pattern)?;
            let Some(target) = operand(target, place) else { return Ok(None) };
            let size = target.is_size();
            Ok(Some((TestKind::Matches(Box::new(Matches { target, regex })), size)))
        }
        (operators::INDEX, ..) => {
            let found = fields(call_as_fields(call, place), place);
            Ok(found.map(|operand| (TestKind::Bool(operand), false)))
        }
        _ => Ok(None),
    }
}

fn has(select: &SelectExpr, place: Place<'_>) -> Option<TestKind> {
    let (root, mut names) = chain(&select.operand, place)?;
    let found = match root {
        Root::View(image) if names.is_empty() => {
            names.push(&select.field);
            Has::Field(image, place.mapping.view_path(&names))
        }
        _ => Has::In(fields(Some((root, names)), place)?, select.field.as_str().into()),
    };
    Some(TestKind::Has(Box::new(found)))
}

/// With a literal on the right side, if there is one.
fn compare_kind(op: CompareOp, left: Operand, right: Operand) -> TestKind {
    match (left, right) {
        (operand, Operand::Literal(literal)) => TestKind::Against { op, operand, literal },
        (Operand::Literal(literal), operand) => TestKind::Against { op: op.turned(), operand, literal },
        (left, right) => TestKind::Compare { op, left, right },
    }
}

/// What fields are selected from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Root {
    View(Image),
    Item(u8),
}

/// `doc.a["b"].c` as where it begins and the names `a`, `b`, `c`.
fn chain<'e>(expr: &'e IdedExpr, place: Place<'_>) -> Option<(Root, Vec<&'e str>)> {
    match &expr.expr {
        Expr::Ident(name) => {
            // The innermost one of a name, which a name of ours gives way to unless a dot asks for the outermost scope.
            if let Some(depth) = place.bound.iter().rposition(|bound| bound == name) {
                return Some((Root::Item(u8::try_from(depth).ok()?), Vec::new()));
            }
            match name.strip_prefix('.').unwrap_or(name) {
                "doc" | "data" => Some((Root::View(Image::Doc), Vec::new())),
                "before" => Some((Root::View(Image::Before), Vec::new())),
                _ => None,
            }
        }
        Expr::Select(select) if !select.test => {
            let (root, mut names) = chain(&select.operand, place)?;
            names.push(&select.field);
            Some((root, names))
        }
        Expr::Call(call) => call_as_fields(call, place),
        _ => None,
    }
}

fn call_as_fields<'e>(call: &'e CallExpr, place: Place<'_>) -> Option<(Root, Vec<&'e str>)> {
    match (call.func_name.as_str(), call.args.as_slice()) {
        (operators::INDEX, [container, index]) => {
            let (root, mut names) = chain(container, place)?;
            names.push(text_literal(index)?);
            Some((root, names))
        }
        _ => None,
    }
}

fn fields(found: Option<(Root, Vec<&str>)>, place: Place<'_>) -> Option<Operand> {
    let (root, names) = found?;
    match (root, names.as_slice()) {
        // A whole view is not one value in the image.
        (Root::View(Image::Doc), []) => None,
        (Root::View(Image::Before), []) => Some(Operand::Before),
        (Root::View(image), names) => Some(Operand::Field(image, place.mapping.view_path(names))),
        (Root::Item(depth), []) => Some(Operand::Item(depth)),
        (Root::Item(depth), names) => Some(Operand::ItemField(depth, names.iter().copied().map(Box::from).collect())),
    }
}

fn operand(expr: &IdedExpr, place: Place<'_>) -> Option<Operand> {
    match &expr.expr {
        Expr::Literal(found) => Some(Operand::Literal(literal(found))),
        Expr::Ident(name) if place.bound.contains(&name.as_str()) => fields(chain(expr, place), place),
        Expr::Ident(name) => match name.strip_prefix('.').unwrap_or(name) {
            "tenant" => Some(Operand::Tenant),
            "collection" => Some(Operand::Collection),
            "type" => Some(Operand::Type),
            "id" => Some(Operand::Id(place.mapping.id_path())),
            _ => fields(chain(expr, place), place),
        },
        Expr::Select(_) => fields(chain(expr, place), place),
        Expr::Call(call) => match (call.func_name.as_str(), call.target.as_deref(), call.args.as_slice()) {
            (operators::INDEX, ..) => fields(call_as_fields(call, place), place),
            ("size", Some(of), []) | ("size", None, [of]) => match operand(of, place)? {
                // The size of a view would count what the view leaves out.
                Operand::Before | Operand::Size(_) => None,
                of => Some(Operand::Size(Box::new(of))),
            },
            (operators::NEGATE, None, [of]) => match operand(of, place)? {
                Operand::Literal(Literal::Double(value)) => Some(Operand::Literal(Literal::Double(-value))),
                Operand::Literal(Literal::Int(value)) => {
                    value.checked_neg().map(|value| Operand::Literal(Literal::Int(value)))
                }
                _ => None,
            },
            ("timestamp", None, [of]) if matches!(of.expr, Expr::Literal(_)) => time(expr).map(Operand::Literal),
            _ => None,
        },
        _ => None,
    }
}

/// A call without variables that makes a timestamp.
fn time(expr: &IdedExpr) -> Option<Literal> {
    let context = cel_interpreter::Context::with_env(env());
    match Value::resolve(expr, &context) {
        Ok(Value::Timestamp(time)) => Some(Literal::Time(time.timestamp(), time.timestamp_subsec_nanos())),
        _ => None,
    }
}

fn literal(found: &LiteralValue) -> Literal {
    match found {
        LiteralValue::Boolean(value) => Literal::Bool(*value.inner()),
        LiteralValue::Bytes(value) => Literal::Bytes(value.inner().into()),
        LiteralValue::Double(value) => Literal::Double(*value.inner()),
        LiteralValue::Int(value) => Literal::Int(*value.inner()),
        LiteralValue::Null => Literal::Null,
        LiteralValue::String(value) => Literal::Text(value.inner().into()),
        LiteralValue::UInt(value) => Literal::UInt(*value.inner()),
    }
}

impl Operand {
    fn into_literal(self) -> Option<Literal> {
        match self {
            Operand::Literal(literal) => Some(literal),
            _ => None,
        }
    }

    fn is_size(&self) -> bool {
        matches!(self, Operand::Size(_))
    }

    fn may_be_composite_with(&self, other: &Operand) -> bool {
        let literal = |operand: &Operand| matches!(operand, Operand::Literal(_));
        self.is_size() || other.is_size() || !(literal(self) || literal(other))
    }
}
