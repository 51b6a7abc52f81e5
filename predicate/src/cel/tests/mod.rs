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

/// The figures of the documentation are those of the code.
#[test]
fn documented_bounds() {
    use crate::cel::limits::{
        DEPTH_MAX, EXPR_BYTES_MAX, LIST_ITEMS_MAX, MACRO_DEPTH_MAX, MACROS_MAX, NESTING_MAX, NUMBER_BYTES_MAX,
        OPERATORS_MAX, POSTFIX_MAX, REGEX_BYTES_MAX, REGEX_COMPILED_BYTES_MAX, REGEX_NESTING_MAX, STRING_BYTES_MAX,
        TERNARIES_MAX, TOKENS_MAX, UNARY_MAX,
    };
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/semantics.md")).unwrap();
    let grouped = |number: usize| match number {
        0..1_000 => number.to_string(),
        _ => format!("{},{:03}", number / 1_000, number % 1_000),
    };
    let kib = |bytes: usize| format!("{} KiB", bytes >> 10);
    for wanted in [
        format!("| source | {}, {} tokens |", kib(EXPR_BYTES_MAX), grouped(TOKENS_MAX)),
        format!("| brackets within each other | {NESTING_MAX} |"),
        format!("| {OPERATORS_MAX} |"),
        format!("| selections, calls and indexes on one value | {POSTFIX_MAX} |"),
        format!("| {TERNARIES_MAX}; {UNARY_MAX} |"),
        format!("| items of a list, map or call | {} |", grouped(LIST_ITEMS_MAX)),
        format!("| {MACROS_MAX}, at most {MACRO_DEPTH_MAX} within each other |"),
        format!("| {}; {NUMBER_BYTES_MAX} characters |", kib(STRING_BYTES_MAX)),
        format!("| depth of the syntax tree | {DEPTH_MAX} |"),
        format!(
            "at most {}, at most {REGEX_NESTING_MAX} groups and repetitions within each other, and compiles to at most {}",
            kib(REGEX_BYTES_MAX),
            kib(REGEX_COMPILED_BYTES_MAX)
        ),
        format!("of 2^{} units", EVALUATION_UNITS_MAX.ilog2()),
        format!("{} of JSON, {} filters", kib(crate::FILTERS_BYTES_MAX), crate::FILTERS_MAX),
        format!("{} values in a list", grouped(crate::LIST_MAX)),
        format!("{} names and {} bytes", crate::PATH_DEPTH_MAX, grouped(crate::PATH_BYTES_MAX)),
        format!("values nested {} deep", crate::extjson::JSON_DEPTH_MAX),
        format!("more than {} deep are left out", crate::mapping::VIEW_DEPTH_MAX),
    ] {
        assert!(page.contains(&wanted), "{wanted}");
    }
    assert!(EVALUATION_UNITS_MAX.is_power_of_two());
}
