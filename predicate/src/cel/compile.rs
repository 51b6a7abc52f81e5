//! From the parser's tree to a [`Node`]: native where it can be, interpreted where not.

use cel_interpreter::Value;
use cel_interpreter::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators};

use super::check::{reads, text_literal};
use super::interpret::{Interpreted, env};
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

/// Compiles a part of an expression that yields a bool. With `native` false all of it is left to the interpreter.
pub(super) fn node(expr: &IdedExpr, mapping: &Mapping, native: bool) -> Result<Node, CompileError> {
    if !native {
        return Ok(Node::Interpreted(interpreted(expr)?));
    }
    let recurse = |expr: &IdedExpr| node(expr, mapping, native);
    if let Expr::Call(call) = &expr.expr {
        match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::LOGICAL_AND, [left, right]) => {
                let mut nodes = Vec::new();
                for side in [recurse(left)?, recurse(right)?] {
                    match side {
                        Node::And(inner) => nodes.extend(inner),
                        other => nodes.push(other),
                    }
                }
                return Ok(Node::And(nodes));
            }
            (operators::LOGICAL_OR, [left, right]) => {
                let mut nodes = Vec::new();
                for side in [recurse(left)?, recurse(right)?] {
                    match side {
                        Node::Or(inner) => nodes.extend(inner),
                        other => nodes.push(other),
                    }
                }
                return Ok(Node::Or(nodes));
            }
            (operators::LOGICAL_NOT, [inner]) => return Ok(Node::Not(Box::new(recurse(inner)?))),
            (operators::CONDITIONAL, [condition, yes, no]) => {
                return Ok(Node::If(Box::new([recurse(condition)?, recurse(yes)?, recurse(no)?])));
            }
            _ => {}
        }
    }
    if let Expr::Literal(LiteralValue::Boolean(value)) = &expr.expr {
        return Ok(Node::Const(*value.inner()));
    }
    match test(expr, mapping)? {
        Some((kind, may_be_composite)) => {
            let fallback = if may_be_composite { Some(interpreted(expr)?) } else { None };
            Ok(Node::Test(Test { kind, fallback }))
        }
        None => Ok(Node::Interpreted(interpreted(expr)?)),
    }
}

fn interpreted(expr: &IdedExpr) -> Result<Box<Interpreted>, CompileError> {
    Ok(Box::new(Interpreted::new(expr.clone(), reads(expr)?)?))
}

/// A leaf, and whether its operands may turn out to be two lists or two maps.
fn test(expr: &IdedExpr, mapping: &Mapping) -> Result<Option<(TestKind, bool)>, CompileError> {
    match &expr.expr {
        Expr::Select(select) if select.test => Ok(has(select, mapping).map(|kind| (kind, false))),
        Expr::Call(call) => call_test(call, mapping),
        _ => Ok(operand(expr, mapping).map(|operand| (TestKind::Bool(operand), false))),
    }
}

fn call_test(call: &CallExpr, mapping: &Mapping) -> Result<Option<(TestKind, bool)>, CompileError> {
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
            let (Some(left), Some(right), Some(op)) = (operand(left, mapping), operand(right, mapping), compare) else {
                return Ok(None);
            };
            let composite = left.may_be_composite_with(&right);
            Ok(Some((compare_kind(op, left, right), composite)))
        }
        (operators::IN, None, [item, container]) => {
            let Some(item) = operand(item, mapping) else { return Ok(None) };
            if let Expr::List(list) = &container.expr {
                let list: Option<Vec<Literal>> = list
                    .elements
                    .iter()
                    .map(|element| operand(element, mapping).and_then(Operand::into_literal))
                    .collect();
                let size = item.is_size();
                return Ok(list.map(|list| (TestKind::InList { item, list }, size)));
            }
            let Some(container) = operand(container, mapping) else { return Ok(None) };
            let composite = !matches!(item, Operand::Literal(_));
            Ok(Some((TestKind::InField { item, container }, composite)))
        }
        (_, Some(target), [argument]) if text.is_some() => {
            let (Some(target), Some(argument), Some(op)) = (operand(target, mapping), operand(argument, mapping), text)
            else {
                return Ok(None);
            };
            let size = target.is_size() || argument.is_size();
            Ok(Some((TestKind::Text { op, target, argument }, size)))
        }
        ("matches", Some(target), [pattern]) | ("matches", None, [target, pattern]) => {
            let Some(pattern) = text_literal(pattern) else { return Ok(None) };
            let regex = compile_regex(pattern)?;
            let Some(target) = operand(target, mapping) else { return Ok(None) };
            let size = target.is_size();
            Ok(Some((TestKind::Matches(Box::new(Matches { target, regex })), size)))
        }
        (operators::INDEX, ..) => {
            let found = fields(call_as_fields(call), mapping);
            Ok(found.map(|operand| (TestKind::Bool(operand), false)))
        }
        _ => Ok(None),
    }
}

fn has(select: &SelectExpr, mapping: &Mapping) -> Option<TestKind> {
    let (image, mut names) = chain(&select.operand)?;
    let parent = (!names.is_empty()).then(|| mapping.view_path(&names));
    names.push(&select.field);
    let whole = mapping.view_path(&names);
    Some(TestKind::Has(Box::new(Has { image, parent, name: select.field.as_str().into(), whole })))
}

/// With a literal on the right side, if there is one.
fn compare_kind(op: CompareOp, left: Operand, right: Operand) -> TestKind {
    match (left, right) {
        (operand, Operand::Literal(literal)) => TestKind::Against { op, operand, literal },
        (Operand::Literal(literal), operand) => TestKind::Against { op: op.turned(), operand, literal },
        (left, right) => TestKind::Compare { op, left, right },
    }
}

/// `doc.a["b"].c` as the image and the names `a`, `b`, `c`.
fn chain(expr: &IdedExpr) -> Option<(Image, Vec<&str>)> {
    match &expr.expr {
        Expr::Ident(name) => match name.strip_prefix('.').unwrap_or(name) {
            "doc" | "data" => Some((Image::Doc, Vec::new())),
            "before" => Some((Image::Before, Vec::new())),
            _ => None,
        },
        Expr::Select(select) if !select.test => {
            let (image, mut names) = chain(&select.operand)?;
            names.push(&select.field);
            Some((image, names))
        }
        Expr::Call(call) => call_as_fields(call),
        _ => None,
    }
}

fn call_as_fields(call: &CallExpr) -> Option<(Image, Vec<&str>)> {
    match (call.func_name.as_str(), call.args.as_slice()) {
        (operators::INDEX, [container, index]) => {
            let (image, mut names) = chain(container)?;
            names.push(text_literal(index)?);
            Some((image, names))
        }
        _ => None,
    }
}

fn fields(found: Option<(Image, Vec<&str>)>, mapping: &Mapping) -> Option<Operand> {
    let (image, names) = found?;
    if names.is_empty() {
        // A whole view is not one value in the image.
        return (image == Image::Before).then_some(Operand::Before);
    }
    Some(Operand::Field(image, mapping.view_path(&names)))
}

fn operand(expr: &IdedExpr, mapping: &Mapping) -> Option<Operand> {
    match &expr.expr {
        Expr::Literal(found) => Some(Operand::Literal(literal(found))),
        Expr::Ident(name) => match name.strip_prefix('.').unwrap_or(name) {
            "tenant" => Some(Operand::Tenant),
            "collection" => Some(Operand::Collection),
            "type" => Some(Operand::Type),
            "id" => Some(Operand::Id(mapping.id_path())),
            _ => fields(chain(expr), mapping),
        },
        Expr::Select(_) => fields(chain(expr), mapping),
        Expr::Call(call) => match (call.func_name.as_str(), call.target.as_deref(), call.args.as_slice()) {
            (operators::INDEX, ..) => fields(call_as_fields(call), mapping),
            ("size", Some(of), []) | ("size", None, [of]) => match operand(of, mapping)? {
                // The size of a view would count what the view leaves out.
                Operand::Before | Operand::Size(_) => None,
                of => Some(Operand::Size(Box::new(of))),
            },
            (operators::NEGATE, None, [of]) => match operand(of, mapping)? {
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
