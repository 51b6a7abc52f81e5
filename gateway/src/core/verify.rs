//! Changes that the node had no time to verify: the subscription's own predicate decides.

use predicate::{Budget, ChangeType, Context, Mapping, Outcome, Predicate, Source};
use wire::{EventEntryRef, Operation, SubscribeItem};

/// What becomes of an unverified change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Matched,
    Dropped,
    /// It can't be told from what came. The application gets it as it is, rather than losing it.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Verifier(Result<Predicate, String>);

impl Verifier {
    pub(super) fn new(item: &SubscribeItem, mapping: &Mapping) -> Self {
        Self(compile(item, mapping))
    }

    pub(super) fn verdict(&self, entry: &EventEntryRef<'_>) -> Verdict {
        let (Ok(predicate), false) = (&self.0, entry.document.is_empty()) else { return Verdict::Unknown };
        // Such an expression is about both images, and only one came.
        if predicate.reads_change() {
            return Verdict::Unknown;
        }
        let Ok(image) = bson::RawDocument::from_bytes(entry.document) else { return Verdict::Unknown };
        let context = Context {
            tenant: entry.tenant,
            collection: entry.collection,
            change_type: match entry.operation {
                Operation::Insert => ChangeType::Insert,
                Operation::Update => ChangeType::Update,
                Operation::Delete => ChangeType::Delete,
            },
            before: None,
        };
        match predicate.evaluate(image, &context, &mut Budget { units: UNITS_MAX }) {
            Outcome::True => Verdict::Matched,
            Outcome::False | Outcome::Error => Verdict::Dropped,
            Outcome::OverBudget => Verdict::Unknown,
        }
    }
}

/// Compiles on a thread of its own, because the parser needs more stack than the caller may have. Happens once a
/// subscription, and only where the node sends candidates.
fn compile(item: &SubscribeItem, mapping: &Mapping) -> Result<Predicate, String> {
    let source = Source { filters: &item.filters, expr: &item.expr };
    if source.expr.is_empty() {
        return Predicate::compile(source, mapping).map_err(|error| error.to_string());
    }
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("compile".into()).stack_size(predicate::COMPILE_STACK_BYTES);
        let thread = builder
            .spawn_scoped(scope, || Predicate::compile(source, mapping).map_err(|error| error.to_string()))
            .map_err(|error| format!("no thread to compile on: {error}"))?;
        thread.join().unwrap_or_else(|_| Err("the expression's compiler failed".into()))
    })
}

/// A node gives up far earlier; here there is nobody left to hand the work to.
const UNITS_MAX: u64 = 10_000_000;
