//! One evaluation of a filter or an expression on raw BSON, in the native form and by the interpreter.

use bench::{measure, predicates};
use mimalloc::MiMalloc;

#[global_allocator]
static HEAP: MiMalloc = MiMalloc;

fn main() {
    let mut criterion = measure::criterion();
    measure::bench(&mut criterion, "predicate", predicates::scenarios());
    criterion.final_summary();
}
