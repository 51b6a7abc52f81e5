//! One change on a shard, until the frames for its Gateways are written; and the ring that brings it there.

use bench::{measure, ring, shard};
use mimalloc::MiMalloc;

#[global_allocator]
static HEAP: MiMalloc = MiMalloc;

fn main() {
    let mut criterion = measure::criterion();
    measure::bench(&mut criterion, "shard", shard::scenarios());
    measure::bench(&mut criterion, "ring", ring::scenarios());
    criterion.final_summary();
}
