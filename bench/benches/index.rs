//! One change in the index: from its raw documents to the subscriptions that it matches.

use bench::{indexes, measure};
use mimalloc::MiMalloc;

#[global_allocator]
static HEAP: MiMalloc = MiMalloc;

fn main() {
    let mut criterion = measure::criterion();
    measure::bench(&mut criterion, "index", indexes::scenarios());
    criterion.final_summary();
}
