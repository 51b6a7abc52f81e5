//! CEL: scanned, parsed, checked, and compiled to a tree that is native as far as it can be.
//!
//! Order of work, each step bounded by the one before: [`scan`] (no recursion, bounds everything that follows), the parser of the
//! `cel` crate (a panic there is an error here), [`check`] (names and the result's type), [`compile`] to [`native`] nodes, with
//! [`interpret`]ed leaves whose cost [`meter`] counts.

mod check;
mod compile;
mod interpret;
pub mod limits;
mod loops;
mod meter;
mod native;
mod plan;
mod regex;
pub(crate) mod scan;
mod value;
mod variables;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bson::{RawBsonRef, RawDocument};
use cel_interpreter::common::ast::IdedExpr;

pub use interpret::interpreter_panics;
pub use variables::Memo;

use crate::mapping::Mapping;
use crate::path::Path;
use crate::plan::Offer;
use crate::{Budget, CompileError, Context};
use native::{Node, Scope, View};
use scan::error;

/// A compiled expression.
#[derive(Debug)]
pub(crate) struct Expression {
    /// All of them must be true.
    conjuncts: Box<[Node]>,
    mapping: Arc<Mapping>,
    reads_change: bool,
}

thread_local! {
    /// The mapping of the last expression: a node has one, so that all of its expressions share it.
    static MAPPING: RefCell<Option<Arc<Mapping>>> = const { RefCell::new(None) };
}

impl Expression {
    /// With `native` false the interpreter evaluates all of it.
    pub(crate) fn compile(source: &str, mapping: &Mapping, native: bool) -> Result<Expression, CompileError> {
        scan::scan(source)?;
        // The parser is not ours. What it makes of hostile text must be an error whatever happens in it.
        let compiled = catch_unwind(AssertUnwindSafe(|| {
            let tree = parse(source)?;
            let reads_change = check::reads(&tree)?.change;
            check::yields_bool(&tree)?;
            Ok((compile::root(&tree, mapping, native)?, reads_change))
        }));
        let (root, reads_change) = compiled.unwrap_or_else(|_| Err(error(None, "the parser failed on it")))?;
        let mut conjuncts = Vec::new();
        split(root, &mut conjuncts);
        Ok(Expression { conjuncts: conjuncts.into(), mapping: shared(mapping), reads_change })
    }

    /// None for an error, also for want of budget, which the budget shows.
    pub(crate) fn evaluate(
        &self,
        image: &RawDocument,
        context: &Context<'_>,
        memo: Option<&Memo>,
        budget: &mut Budget,
    ) -> Option<bool> {
        native::fold(&self.conjuncts, false, &self.scope(image, context, memo), budget).ok()
    }

    /// Number of conditions that must all be true.
    pub(crate) fn conjuncts(&self) -> usize {
        self.conjuncts.len()
    }

    /// What each of them asks of a document.
    pub(crate) fn offers(&self) -> impl Iterator<Item = Option<Offer>> {
        self.conjuncts.iter().map(|node| plan::offer(node, true))
    }

    /// The one path that a condition looks at.
    pub(crate) fn path_of(&self, conjunct: usize) -> Option<&Path> {
        plan::path_of(self.conjuncts.get(conjunct)?)
    }

    /// One condition that looks at one path only, on what stands there.
    pub(crate) fn evaluate_on_value(
        &self,
        conjunct: usize,
        value: Option<RawBsonRef<'_>>,
        budget: &mut Budget,
    ) -> Option<bool> {
        let node = self.conjuncts.get(conjunct)?;
        match node.against() {
            // By far the most frequent one, and what an index asks most: as fast as a filter.
            Some((op, literal)) => op.holds_for(value?, literal).ok(),
            None => node.evaluate(&Scope::of(View::Value(value)), budget).ok(),
        }
    }

    /// One condition.
    pub(crate) fn evaluate_one(
        &self,
        conjunct: usize,
        image: &RawDocument,
        context: &Context<'_>,
        memo: Option<&Memo>,
        budget: &mut Budget,
    ) -> Option<bool> {
        self.conjuncts.get(conjunct)?.evaluate(&self.scope(image, context, memo), budget).ok()
    }

    fn scope<'s, 'a>(
        &'s self,
        image: &'a RawDocument,
        context: &'s Context<'a>,
        memo: Option<&'s Memo>,
    ) -> Scope<'s, 'a> {
        Scope::of(View::Image { mapping: &self.mapping, image, context, memo })
    }

    pub(crate) fn reads_change(&self) -> bool {
        self.reads_change
    }
}

/// Takes a node apart into what must all be true. De Morgan's laws hold for errors too.
fn split(node: Node, conjuncts: &mut Vec<Node>) {
    match node {
        Node::And(nodes) => nodes.into_iter().for_each(|node| split(node, conjuncts)),
        Node::Not(node) => match *node {
            Node::Or(nodes) => nodes.into_iter().for_each(|node| split(Node::Not(Box::new(node)), conjuncts)),
            Node::Not(node) => split(*node, conjuncts),
            node => conjuncts.push(Node::Not(Box::new(node))),
        },
        node => conjuncts.push(node),
    }
}

fn parse(source: &str) -> Result<IdedExpr, CompileError> {
    interpret::env().parser().parse(source).map_err(|errors| match errors.errors.first() {
        Some(first) => {
            let (line, column) = first.pos;
            let what: String = first.msg.chars().take(300).collect();
            error(offset_of(source, line, column), what)
        }
        None => error(None, "it cannot be parsed"),
    })
}

/// The byte at a line and column, both from 1.
fn offset_of(source: &str, line: isize, column: isize) -> Option<usize> {
    let line = usize::try_from(line).ok()?.checked_sub(1)?;
    let column = usize::try_from(column).ok()?.saturating_sub(1);
    let start: usize = source.split_inclusive('\n').take(line).map(str::len).sum();
    let rest = source.get(start..)?;
    Some(start + rest.char_indices().nth(column).map_or(rest.len(), |(offset, _)| offset))
}

fn shared(mapping: &Mapping) -> Arc<Mapping> {
    MAPPING.with_borrow_mut(|last| match last {
        Some(last) if **last == *mapping => Arc::clone(last),
        _ => {
            let fresh = Arc::new(mapping.clone());
            *last = Some(Arc::clone(&fresh));
            fresh
        }
    })
}

#[cfg(test)]
mod tests;
