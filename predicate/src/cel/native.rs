//! The common part of CEL as a tree of its own, evaluated on raw BSON in CEL's three values: true, false, error.
//!
//! Invariant: a tree answers as the interpreter does for the expression that it came from. The one difference is that an integer and
//! a double beyond 2^53 are compared exactly here.

use std::cmp::Ordering;

use bson::{RawBsonRef, RawDocument};
use regex::Regex;

use super::interpret::Interpreted;
use super::limits::MACRO_DEPTH_MAX;
use super::loops::Loop;
use super::meter::regex_units;
use super::value::{CelRef, Composite, Literal};
use super::variables::Memo;
use crate::lookup::items;
use crate::mapping::Mapping;
use crate::path::{Path, field, walk};
use crate::{Budget, Context};

/// A part of an expression that yields a bool.
#[derive(Debug)]
pub(super) enum Node {
    Const(bool),
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
    If(Box<[Node; 3]>),
    Test(Test),
    Loop(Box<Loop>),
    Interpreted(Box<Interpreted>),
}

/// A leaf, with the expression to interpret where its operands turn out to be two lists or two maps. Within a loop it has none: then all
/// of the loop is interpreted.
#[derive(Debug)]
pub(super) struct Test {
    pub(super) kind: TestKind,
    pub(super) fallback: Option<Box<Interpreted>>,
}

#[derive(Debug)]
pub(super) enum TestKind {
    Bool(Operand),
    Compare {
        op: CompareOp,
        left: Operand,
        right: Operand,
    },
    /// A comparison with a literal on its right, by far the most frequent one.
    Against {
        op: CompareOp,
        operand: Operand,
        literal: Literal,
    },
    InList {
        item: Operand,
        list: Vec<Literal>,
    },
    InField {
        item: Operand,
        container: Operand,
    },
    Has(Box<Has>),
    Text {
        op: TextOp,
        target: Operand,
        argument: Operand,
    },
    Matches(Box<Matches>),
}

/// `has` of a name.
#[derive(Debug)]
pub(super) enum Has {
    /// In the view itself: whether something is at the path.
    Field(Image, Path),
    /// In what the operand is, which must be a map.
    In(Operand, Box<str>),
}

#[derive(Debug)]
pub(super) struct Matches {
    pub(super) target: Operand,
    pub(super) regex: Regex,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CompareOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextOp {
    StartsWith,
    EndsWith,
    Contains,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Image {
    Doc,
    Before,
}

#[derive(Clone, Debug)]
pub(super) enum Operand {
    Literal(Literal),
    Field(Image, Path),
    Id(Path),
    /// What a loop is at: 0 for the outermost one.
    Item(u8),
    /// A field of that, by the names down to it.
    ItemField(u8, Box<[Box<str>]>),
    Tenant,
    Collection,
    Type,
    /// `before` itself, of which only whether it is null can be told here.
    Before,
    Size(Box<Operand>),
}

/// Why there is no answer here.
pub(super) enum Fault {
    /// The expression fails, in CEL's sense, or the budget is spent, which the budget shows.
    Error,
    /// Only an interpreter can tell.
    Composite,
}

impl From<Composite> for Fault {
    fn from(_: Composite) -> Fault {
        Fault::Composite
    }
}

/// What an evaluation looks at.
#[derive(Clone, Copy)]
pub(super) struct Scope<'s, 'a> {
    pub(super) view: View<'s, 'a>,
    /// What the loops around are at, the outermost one first.
    pub(super) items: [CelRef<'a>; MACRO_DEPTH_MAX],
}

#[derive(Clone, Copy)]
pub(super) enum View<'s, 'a> {
    Image {
        mapping: &'s Mapping,
        image: &'a RawDocument,
        context: &'s Context<'a>,
        memo: Option<&'s Memo>,
    },
    /// What stands at the one path that the expression looks at: see [`super::plan::path_of`].
    Value(Option<RawBsonRef<'a>>),
}

impl Node {
    /// A field of the document against a literal, if it is that.
    #[inline]
    pub(super) fn against(&self) -> Option<(CompareOp, &Literal)> {
        match self {
            Node::Test(Test {
                kind: TestKind::Against { op, operand: Operand::Field(Image::Doc, _), literal },
                fallback: None,
            }) => Some((*op, literal)),
            _ => None,
        }
    }

    pub(super) fn evaluate(&self, scope: &Scope<'_, '_>, budget: &mut Budget) -> Result<bool, Fault> {
        match self {
            Node::Const(answer) => Ok(*answer),
            Node::And(nodes) => fold(nodes, false, scope, budget),
            Node::Or(nodes) => fold(nodes, true, scope, budget),
            Node::Not(node) => node.evaluate(scope, budget).map(|answer| !answer),
            Node::If(nodes) => {
                let [condition, yes, no] = nodes.as_ref();
                if condition.evaluate(scope, budget)? {
                    yes.evaluate(scope, budget)
                } else {
                    no.evaluate(scope, budget)
                }
            }
            Node::Interpreted(expr) => scope.interpret(expr, budget),
            Node::Test(test) => {
                let answer = test.kind.evaluate(scope, budget);
                scope.or_interpret(answer, test.fallback.as_deref(), budget)
            }
            Node::Loop(found) => {
                let answer = found.evaluate(scope, budget);
                scope.or_interpret(answer, found.fallback.as_ref(), budget)
            }
        }
    }
}

/// `&&` where false decides, `||` where true does: the deciding answer absorbs errors, before and after it.
pub(super) fn fold(nodes: &[Node], deciding: bool, scope: &Scope<'_, '_>, budget: &mut Budget) -> Result<bool, Fault> {
    let mut answer = Ok(!deciding);
    for node in nodes {
        match node.evaluate(scope, budget) {
            Ok(found) if found == deciding => return Ok(deciding),
            Ok(_) => {}
            Err(Fault::Error) => answer = Err(Fault::Error),
            Err(Fault::Composite) => return Err(Fault::Composite),
        }
        if budget.is_spent() {
            return Err(Fault::Error);
        }
    }
    answer
}

impl TestKind {
    fn evaluate(&self, scope: &Scope<'_, '_>, budget: &mut Budget) -> Result<bool, Fault> {
        budget.spend(1);
        match self {
            TestKind::Bool(operand) => match operand.value(scope, budget)? {
                CelRef::Bool(answer) => Ok(answer),
                _ => Err(Fault::Error),
            },
            TestKind::Compare { op, left, right } => {
                let left = left.value(scope, budget)?;
                let right = right.value(scope, budget)?;
                op.holds(&left, &right)
            }
            TestKind::Against { op, operand, literal } => match operand {
                // As it stands in the image, which for most types is how it is compared.
                Operand::Field(Image::Doc, path) => op.holds_for(scope.doc(path, budget).ok_or(Fault::Error)?, literal),
                _ => op.holds(&operand.value(scope, budget)?, &literal.as_ref()),
            },
            TestKind::InList { item, list } => {
                let item = item.value(scope, budget)?;
                budget.spend(list.len() as u64);
                for literal in list {
                    if item.equal(&literal.as_ref())? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            TestKind::InField { item, container } => {
                let item = item.value(scope, budget)?;
                match container.value(scope, budget)? {
                    CelRef::List(list) => in_array(&item, list, budget),
                    CelRef::Map(map) => match item {
                        CelRef::Text(name) => Ok(field(map, name).is_some()),
                        CelRef::Hex(_) => Ok(item.text().is_some_and(|name| field(map, name).is_some())),
                        CelRef::Bool(_) | CelRef::Int(_) | CelRef::UInt(_) | CelRef::Double(_) => Ok(false),
                        _ => Err(Fault::Error),
                    },
                    _ => Err(Fault::Error),
                }
            }
            TestKind::Has(has) => match has.as_ref() {
                Has::Field(image, path) => Ok(scope.field(*image, path, budget)?.is_some()),
                Has::In(parent, name) => match parent.value(scope, budget)? {
                    CelRef::Map(parent) => Ok(field(parent, name).is_some()),
                    _ => Err(Fault::Error),
                },
            },
            TestKind::Text { op, target, argument } => {
                let target = target.value(scope, budget)?;
                let argument = argument.value(scope, budget)?;
                let (Some(target), Some(argument)) = (target.text(), argument.text()) else { return Err(Fault::Error) };
                budget.spend((target.len() / 64) as u64);
                Ok(match op {
                    TextOp::StartsWith => target.starts_with(argument),
                    TextOp::EndsWith => target.ends_with(argument),
                    TextOp::Contains => target.contains(argument),
                })
            }
            TestKind::Matches(matches) => {
                let Matches { target, regex } = matches.as_ref();
                let target = target.value(scope, budget)?;
                let text = target.text().ok_or(Fault::Error)?;
                budget.spend(regex_units(text));
                if budget.is_spent() {
                    return Err(Fault::Error);
                }
                Ok(regex.is_match(text))
            }
        }
    }
}

fn in_array(item: &CelRef<'_>, list: &bson::raw::RawArray, budget: &mut Budget) -> Result<bool, Fault> {
    for element in items(list) {
        budget.spend(1);
        if budget.is_spent() {
            return Err(Fault::Error);
        }
        if item.equal(&CelRef::of(element))? {
            return Ok(true);
        }
    }
    Ok(false)
}

impl CompareOp {
    fn holds(self, left: &CelRef<'_>, right: &CelRef<'_>) -> Result<bool, Fault> {
        Ok(match self {
            CompareOp::Eq => left.equal(right)?,
            CompareOp::Ne => !left.equal(right)?,
            _ => self.is(left.compare(right).ok_or(Fault::Error)?),
        })
    }

    /// [`CompareOp::holds`] for a value in place and a literal.
    #[inline]
    pub(super) fn holds_for(self, value: RawBsonRef<'_>, literal: &Literal) -> Result<bool, Fault> {
        let order = match (value, literal) {
            (RawBsonRef::String(text), Literal::Text(literal)) => match self {
                CompareOp::Eq => return Ok(*text == **literal),
                CompareOp::Ne => return Ok(*text != **literal),
                _ => text.as_bytes().cmp(literal.as_bytes()),
            },
            (RawBsonRef::Int32(value), Literal::Int(literal)) => i64::from(value).cmp(literal),
            (RawBsonRef::Int64(value), Literal::Int(literal)) => value.cmp(literal),
            _ => return self.holds(&CelRef::of(value), &literal.as_ref()),
        };
        Ok(self.is(order))
    }

    fn is(self, order: Ordering) -> bool {
        match self {
            CompareOp::Eq => order.is_eq(),
            CompareOp::Ne => order.is_ne(),
            CompareOp::Lt => order.is_lt(),
            CompareOp::Le => order.is_le(),
            CompareOp::Gt => order.is_gt(),
            CompareOp::Ge => order.is_ge(),
        }
    }

    /// The operator with its sides exchanged.
    pub(super) fn turned(self) -> CompareOp {
        match self {
            CompareOp::Eq | CompareOp::Ne => self,
            CompareOp::Lt => CompareOp::Gt,
            CompareOp::Le => CompareOp::Ge,
            CompareOp::Gt => CompareOp::Lt,
            CompareOp::Ge => CompareOp::Le,
        }
    }

    /// The operator that holds where this one is false. Where one is an error so is the other.
    pub(super) fn negated(self) -> CompareOp {
        match self {
            CompareOp::Eq => CompareOp::Ne,
            CompareOp::Ne => CompareOp::Eq,
            CompareOp::Lt => CompareOp::Ge,
            CompareOp::Le => CompareOp::Gt,
            CompareOp::Gt => CompareOp::Le,
            CompareOp::Ge => CompareOp::Lt,
        }
    }
}

impl<'s, 'a> Scope<'s, 'a> {
    pub(super) fn of(view: View<'s, 'a>) -> Scope<'s, 'a> {
        Scope { view, items: [CelRef::Null; MACRO_DEPTH_MAX] }
    }

    /// What stands at a path of the document.
    #[inline]
    fn doc(&self, path: &Path, budget: &mut Budget) -> Option<RawBsonRef<'a>> {
        match self.view {
            View::Value(value) => value,
            View::Image { image, .. } => {
                budget.spend(path.cost());
                path.get(image)
            }
        }
    }

    /// An error where there is no such image: whatever is selected from null is one.
    fn field(&self, image: Image, path: &Path, budget: &mut Budget) -> Result<Option<RawBsonRef<'a>>, Fault> {
        match image {
            Image::Doc => Ok(self.doc(path, budget)),
            Image::Before => {
                budget.spend(path.cost());
                Ok(path.get(self.context()?.before.ok_or(Fault::Error)?))
            }
        }
    }

    /// Nothing that looks at one value only asks for it.
    fn context(&self) -> Result<&Context<'a>, Fault> {
        match self.view {
            View::Image { context, .. } => Ok(context),
            View::Value(_) => Err(Fault::Error),
        }
    }

    fn interpret(&self, expr: &Interpreted, budget: &mut Budget) -> Result<bool, Fault> {
        match self.view {
            View::Image { mapping, image, context, memo } => {
                expr.evaluate(mapping, image, context, memo, budget).ok_or(Fault::Error)
            }
            View::Value(_) => Err(Fault::Error),
        }
    }

    #[inline]
    fn or_interpret(
        &self,
        answer: Result<bool, Fault>,
        fallback: Option<&Interpreted>,
        budget: &mut Budget,
    ) -> Result<bool, Fault> {
        match (answer, fallback) {
            (Err(Fault::Composite), Some(expr)) => self.interpret(expr, budget),
            (answer, _) => answer,
        }
    }
}

impl Operand {
    pub(super) fn value<'a>(&'a self, scope: &Scope<'_, 'a>, budget: &mut Budget) -> Result<CelRef<'a>, Fault> {
        Ok(match self {
            Operand::Literal(literal) => literal.as_ref(),
            Operand::Field(image, path) => CelRef::of(scope.field(*image, path, budget)?.ok_or(Fault::Error)?),
            Operand::Id(path) => scope.doc(path, budget).map_or(CelRef::Null, CelRef::of),
            Operand::Item(depth) => scope.items[usize::from(*depth)],
            Operand::ItemField(depth, names) => {
                budget.spend(names.len() as u64);
                let CelRef::Map(item) = scope.items[usize::from(*depth)] else { return Err(Fault::Error) };
                CelRef::of(walk(item, names).ok_or(Fault::Error)?)
            }
            Operand::Tenant => CelRef::Text(scope.context()?.tenant),
            Operand::Collection => CelRef::Text(scope.context()?.collection),
            Operand::Type => CelRef::Text(scope.context()?.change_type.as_str()),
            Operand::Before => scope.context()?.before.map_or(CelRef::Null, CelRef::Map),
            Operand::Size(operand) => {
                let size = match operand.value(scope, budget)? {
                    CelRef::Map(_) => return Err(Fault::Composite),
                    CelRef::List(list) => items(list).count(),
                    CelRef::Bytes(bytes) => bytes.len(),
                    value => value.text().ok_or(Fault::Error)?.chars().count(),
                };
                budget.spend((size / 8) as u64);
                CelRef::Int(i64::try_from(size).map_err(|_| Fault::Error)?)
            }
        })
    }
}
