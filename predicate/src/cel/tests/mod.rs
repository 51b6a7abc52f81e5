mod differential;
mod hostile;
mod semantics;

use bson::{Document, RawDocumentBuf};

use crate::{Budget, ChangeType, CompileError, Context, EVALUATION_UNITS_MAX, Mapping, Outcome, Predicate, Source};

fn raw(document: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(document).unwrap()
}

fn compile(expr: &str) -> Result<Predicate, CompileError> {
    Predicate::compile(Source { filters: "", expr }, &Mapping::Plain)
}

fn compile_interpreted(expr: &str) -> Result<Predicate, CompileError> {
    Predicate::compile_interpreted(Source { filters: "", expr }, &Mapping::Plain)
}

fn context(before: Option<&RawDocumentBuf>) -> Context<'_> {
    Context { tenant: "acme", collection: "rooms", change_type: ChangeType::Update, before: before.map(AsRef::as_ref) }
}

fn evaluate(predicate: &Predicate, image: &RawDocumentBuf, before: Option<&RawDocumentBuf>) -> Outcome {
    predicate.evaluate(image, &context(before), &mut Budget { units: EVALUATION_UNITS_MAX })
}
