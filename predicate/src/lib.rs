//! Filters and CEL expressions, compiled to one form and evaluated on raw BSON.
pub mod mapping;

use bson::{RawBsonRef, RawDocument};
pub use mapping::Mapping;

/// What is compiled: a JSON list of filters (empty text: none) ANDed with a CEL expression (empty text: none).
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> { pub filters: &'a str, pub expr: &'a str }

#[derive(Debug, Clone, thiserror::Error)]
pub enum CompileError {
    #[error("{0}")]
    InvalidFilter(String),
    #[error("{0}")]
    Cel(String),
}

#[derive(Debug)]
pub struct Predicate { }

/// Result of one evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome { True, False, /** CEL error: no match, counted. */ Error, /** the cost budget ran out */ OverBudget }

/// kind of the change, `type` in CEL
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeType { Insert, Update, Delete }

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
pub struct Budget { pub units: u64 }

/// A value, canonical under `==`: numbers by exact value across int32/int64/double/decimal. Hash and Eq agree with `==` of section 8; never made for NaN, arrays, documents.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Value(Vec<u8>);
impl Value {
    /// None for what equals nothing (NaN) or cannot be an index key.
    pub fn of(_raw: RawBsonRef<'_>) -> Option<Value> { todo!() }
}

/// A logical field, resolved through the mapping to where it stands in the image.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Path { }
impl Path {
    /// the value at this path in an image, or None when missing
    pub fn get<'a>(&self, _image: &'a RawDocument) -> Option<RawBsonRef<'a>> { todo!() }
}

impl Predicate {
    /// Call on a thread with at least `COMPILE_STACK_BYTES` of stack, or through `Compiler`.
    pub fn compile(_source: Source<'_>, _mapping: &Mapping) -> Result<Predicate, CompileError> { todo!() }
    /// The document this predicate is bound to, when it holds for at most one document: the value that the document id must equal.
    pub fn document_id(&self) -> Option<&Value> { todo!() }
    /// Equalities that must all hold (from filters and from native CEL): candidates for an index anchor.
    pub fn equalities(&self) -> &[(Path, Value)] { todo!() }
    /// true when the predicate has nothing to check (no filters, no expression)
    pub fn is_always_true(&self) -> bool { todo!() }
    /// Whether the expression mentions `before` or `type`: such a predicate is about the change, not the image.
    pub fn reads_change(&self) -> bool { todo!() }
    pub fn evaluate(&self, _image: &RawDocument, _context: &Context<'_>, _budget: &mut Budget) -> Outcome { todo!() }
}
