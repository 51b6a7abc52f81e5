//! Filters and CEL expressions, compiled to one form and evaluated on raw BSON.
//!
//! - [`Predicate::compile`] takes a [`Source`] and a [`Mapping`], [`Predicate::evaluate`] an image. Nothing is decoded but what
//!   the CEL interpreter needs, for the expressions that are left to it.
//! - [`Path`] and [`Value`] are what an index keys equalities by. `Value` agrees with `==`.
//! - What compares how is `docs/semantics.md`.
//!
//! Invariants:
//! - Hostile text is an error of [`Predicate::compile`], hostile documents at most an [`Outcome`]; neither is a panic.
//! - All that is bounded is bounded before it is parsed: the limits are the constants of this crate.

mod cel;
pub mod extjson;
mod filter;
mod lookup;
pub mod mapping;
mod number;
mod path;
mod plan;
mod value;

use std::sync::OnceLock;

use bson::{RawBsonRef, RawDocument};

pub use cel::{Memo, interpreter_panics, limits};
pub use filter::{FILTERS_BYTES_MAX, FILTERS_MAX, LIST_MAX, Op};
pub use lookup::{Element, Elements, Step, field, value_of};
pub use mapping::{Mapping, MappingError, Nested};
pub use path::{PATH_BYTES_MAX, PATH_DEPTH_MAX, Path};
pub use plan::{Anchor, AnchorTest, Bound, Need, OnBound, Order, Way, has_key_alone, int_order_key, order_key};
pub use value::{
    CanonicalBytes, StoredId, Value, compare, equal, raw_of_stored_id, stored_id, stored_string_head, stored_string_id,
    write_canonical,
};

use cel::Expression;
use filter::Filter;

/// Stack of a thread that compiles. The bounds on expressions keep the parser well below it.
pub const COMPILE_STACK_BYTES: usize = 16 << 20;

/// What is compiled: a JSON list of filters (empty text: none) ANDed with a CEL expression (empty text: none).
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub filters: &'a str,
    pub expr: &'a str,
}

/// Why a source does not compile. The text names what was wrong, where, and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("{}", filter_message(*index, field.as_deref(), op.as_deref(), what))]
    InvalidFilter {
        /// Place in the list, from 0. None where the list as a whole is wrong.
        index: Option<usize>,
        field: Option<String>,
        op: Option<String>,
        what: String,
    },
    #[error("expression{}: {what}", offset.map_or(String::new(), |offset| format!(" at byte {offset}")))]
    Cel {
        /// Byte in the expression, where it is known.
        offset: Option<usize>,
        what: String,
    },
}

impl CompileError {
    /// The error code of the registration API.
    pub fn code(&self) -> &'static str {
        match self {
            CompileError::InvalidFilter { .. } => "INVALID_FILTER",
            CompileError::Cel { .. } => "CEL_COMPILATION_FAILED",
        }
    }
}

fn filter_message(index: Option<usize>, field: Option<&str>, op: Option<&str>, what: &str) -> String {
    let mut text = String::from("filter");
    if let Some(index) = index {
        text.push_str(&format!(" {index}"));
    }
    if let Some(field) = field {
        text.push_str(&format!(" on `{field}`"));
    }
    if let Some(op) = op {
        text.push_str(&format!(" with `{op}`"));
    }
    text.push_str(": ");
    text.push_str(what);
    text
}

/// A compiled source. Cheap to share, it never changes.
#[derive(Debug)]
pub struct Predicate {
    filters: Box<[Filter]>,
    expression: Option<Box<Expression>>,
    document_id: Option<Box<Value>>,
    /// Made when they are first asked for: a node has millions of predicates, and asks few of them.
    equalities: OnceLock<Box<[(Path, Value)]>>,
}

// A predicate is compiled on one thread and evaluated on others.
const _: fn() = || {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Predicate>();
};

/// Result of one evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    True,
    False,
    /// CEL error: no match, counted.
    Error,
    /// The cost budget ran out.
    OverBudget,
}

/// Kind of the change, `type` in CEL: `"insert"`, `"update"`, `"delete"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeType {
    Insert,
    Update,
    Delete,
}

impl ChangeType {
    /// As CEL sees it.
    pub fn as_str(self) -> &'static str {
        match self {
            ChangeType::Insert => "insert",
            ChangeType::Update => "update",
            ChangeType::Delete => "delete",
        }
    }
}

/// What an expression may see beside the image itself.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub tenant: &'a str,
    pub collection: &'a str,
    pub change_type: ChangeType,
    /// For expressions that read `before`; null in CEL where None.
    pub before: Option<&'a RawDocument>,
}

/// Cost units left. One unit is about one visited BSON element or one interpreter step.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub units: u64,
}

impl Budget {
    pub(crate) fn spend(&mut self, units: u64) {
        self.units = self.units.saturating_sub(units);
    }

    /// A budget that has reached zero counts as overdrawn: whoever finds it so gives up.
    pub(crate) fn is_spent(&self) -> bool {
        self.units == 0
    }
}

/// The most that one evaluation may cost. One that would cost more is an [`Outcome::Error`], for no budget would ever do.
pub const EVALUATION_UNITS_MAX: u64 = 1 << 20;

impl Predicate {
    /// Call on a thread with at least [`COMPILE_STACK_BYTES`] of stack.
    pub fn compile(source: Source<'_>, mapping: &Mapping) -> Result<Predicate, CompileError> {
        Predicate::compile_as(source, mapping, true)
    }

    /// The same with all of the expression left to the interpreter, to compare with.
    #[doc(hidden)]
    pub fn compile_interpreted(source: Source<'_>, mapping: &Mapping) -> Result<Predicate, CompileError> {
        Predicate::compile_as(source, mapping, false)
    }

    fn compile_as(source: Source<'_>, mapping: &Mapping, native: bool) -> Result<Predicate, CompileError> {
        let filters = filter::parse(source.filters, mapping)?;
        let expression = match source.expr {
            "" => None,
            expr => Some(Box::new(Expression::compile(expr, mapping, native)?)),
        };
        let mut predicate = Predicate { filters, expression, document_id: None, equalities: OnceLock::new() };
        let id_path = mapping.id_path();
        let id = predicate.find_equalities().find(|(path, _)| *path == id_path);
        predicate.document_id = id.map(|(_, value)| Box::new(value));
        Ok(predicate)
    }

    fn find_equalities(&self) -> impl Iterator<Item = (Path, Value)> {
        self.ways().into_iter().filter_map(|way| match way.need {
            Need::One(Anchor { path, test: AnchorTest::Equal(value) }) => Some((path, value)),
            _ => None,
        })
    }

    /// The ways to find it in an index, made anew at each call. None: a document that it holds for need not have anything that can be
    /// looked up. About the image that it is evaluated on, also where it [reads the change](Predicate::reads_change).
    pub fn ways(&self) -> Vec<Way> {
        let of_expression = self.expression.iter().flat_map(|expression| expression.offers());
        plan::ways(self.filters.iter().map(Filter::offer).chain(of_expression))
    }

    /// Number of parts, all of which must hold: the filters in their order, then the conditions that the expression joins by `&&`.
    pub fn parts(&self) -> usize {
        self.filters.len() + self.expression.as_ref().map_or(0, |expression| expression.conjuncts())
    }

    /// The path that a part looks at, where that is all of the image, and of the change, that it looks at.
    pub fn part_path(&self, part: u16) -> Option<&Path> {
        match self.part(part)? {
            Part::Filter(filter) => Some(&filter.path),
            Part::Conjunct(expression, conjunct) => expression.path_of(conjunct),
        }
    }

    /// Evaluates a part that has a path on the value found there. A part that has none is an error.
    pub fn part_on_value(&self, part: u16, value: Option<RawBsonRef<'_>>, budget: &mut Budget) -> Outcome {
        within(budget, |budget| match self.part(part)? {
            Part::Filter(filter) => Some(value.is_some_and(|value| filter.holds_for(value, budget))),
            Part::Conjunct(expression, conjunct) => expression.evaluate_on_value(conjunct, value, budget),
        })
    }

    /// Evaluates any part on an image. The predicate holds exactly when all of its parts do. Where one is an error and another one does
    /// not hold, the whole is no error.
    pub fn part_on_image(&self, part: u16, image: &RawDocument, context: &Context<'_>, budget: &mut Budget) -> Outcome {
        self.part_on_image_with(part, image, context, None, budget)
    }

    /// The same, with what the candidates of a change share: see [`Memo`].
    pub fn part_on_image_with(
        &self,
        part: u16,
        image: &RawDocument,
        context: &Context<'_>,
        memo: Option<&Memo>,
        budget: &mut Budget,
    ) -> Outcome {
        within(budget, |budget| match self.part(part)? {
            Part::Filter(filter) => Some(filter.holds(image, budget)),
            Part::Conjunct(expression, conjunct) => expression.evaluate_one(conjunct, image, context, memo, budget),
        })
    }

    fn part(&self, part: u16) -> Option<Part<'_>> {
        let part = usize::from(part);
        match self.filters.get(part) {
            Some(filter) => Some(Part::Filter(filter)),
            None => Some(Part::Conjunct(self.expression.as_deref()?, part - self.filters.len())),
        }
    }

    /// The document this predicate is bound to, when it holds for at most one document: the value that the document id must equal.
    pub fn document_id(&self) -> Option<&Value> {
        self.document_id.as_deref()
    }

    /// Equalities that must all hold (from filters and from native CEL): candidates for an index anchor.
    pub fn equalities(&self) -> &[(Path, Value)] {
        self.equalities.get_or_init(|| {
            let mut equalities = Vec::new();
            for equality in self.find_equalities() {
                if !equalities.contains(&equality) {
                    equalities.push(equality);
                }
            }
            equalities.into()
        })
    }

    /// True when the predicate has nothing to check (no filters, no expression).
    pub fn is_always_true(&self) -> bool {
        self.filters.is_empty() && self.expression.is_none()
    }

    /// Whether there is more to it than filters.
    pub fn has_expression(&self) -> bool {
        self.expression.is_some()
    }

    /// Whether the expression mentions `before` or `type`: such a predicate is about the change, not the image.
    pub fn reads_change(&self) -> bool {
        self.expression.as_ref().is_some_and(|expression| expression.reads_change())
    }

    /// Evaluates on one image. Takes what it costs from the budget; with nothing left it answers [`Outcome::OverBudget`]. A budget
    /// of [`EVALUATION_UNITS_MAX`] is always enough.
    pub fn evaluate(&self, image: &RawDocument, context: &Context<'_>, budget: &mut Budget) -> Outcome {
        self.evaluate_with(image, context, None, budget)
    }

    /// The same, with what the candidates of a change share: see [`Memo`].
    pub fn evaluate_with(
        &self,
        image: &RawDocument,
        context: &Context<'_>,
        memo: Option<&Memo>,
        budget: &mut Budget,
    ) -> Outcome {
        if self.is_always_true() {
            return Outcome::True;
        }
        within(budget, |budget| {
            for filter in &self.filters {
                if !filter.holds(image, budget) || budget.is_spent() {
                    return Some(false);
                }
            }
            match &self.expression {
                Some(expression) => expression.evaluate(image, context, memo, budget),
                None => Some(true),
            }
        })
    }
}

enum Part<'a> {
    Filter(&'a Filter),
    Conjunct(&'a Expression, usize),
}

/// Runs one evaluation, which says None for an error, under the bounds of the budget and of a single evaluation.
fn within(budget: &mut Budget, evaluate: impl FnOnce(&mut Budget) -> Option<bool>) -> Outcome {
    let given = budget.units.min(EVALUATION_UNITS_MAX);
    let mut own = Budget { units: given };
    let answer = evaluate(&mut own);
    let outcome = match answer {
        // Too much by any measure, rather than for what is left.
        _ if own.is_spent() && given == EVALUATION_UNITS_MAX => Outcome::Error,
        _ if own.is_spent() => Outcome::OverBudget,
        Some(true) => Outcome::True,
        Some(false) => Outcome::False,
        None => Outcome::Error,
    };
    budget.spend(given - own.units);
    outcome
}

/// Compiles on a thread of its own, for a caller whose stack may be small.
pub fn compile_on_big_stack(source: Source<'_>, mapping: &Mapping) -> Result<Predicate, CompileError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("compile".into())
            .stack_size(COMPILE_STACK_BYTES)
            .spawn_scoped(scope, || Predicate::compile(source, mapping));
        match thread.map(|thread| thread.join()) {
            Ok(Ok(compiled)) => compiled,
            Ok(Err(_)) => Err(CompileError::Cel { offset: None, what: "the compiler failed on it".into() }),
            Err(error) => Err(CompileError::Cel { offset: None, what: format!("no thread to compile on: {error}") }),
        }
    })
}
