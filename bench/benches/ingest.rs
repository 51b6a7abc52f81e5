//! One event on the ingest thread: of a place that nobody watches, and of one that somebody does.

use bench::{ingest, measure};
use mimalloc::MiMalloc;

#[global_allocator]
static HEAP: MiMalloc = MiMalloc;

fn main() {
    let mut criterion = measure::criterion();
    measure::bench(&mut criterion, "ingest", ingest::scenarios());
    criterion.final_summary();
}
