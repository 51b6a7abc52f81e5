//! What a unit of each scenario takes from the heap. The figures are the same at every run.

use bench::{
    Named,
    heap::{Counting, usage_of},
    scenarios,
};

#[global_allocator]
static HEAP: Counting = Counting;

fn main() {
    println!("scenario | allocations | bytes | made of");
    for Named { name, make } in scenarios() {
        let mut scenario = make();
        // Buffers have grown to their size after the first round.
        scenario.prepare();
        scenario.round();
        scenario.prepare();
        let ((), usage) = usage_of(|| scenario.round());
        let each = |count: u64| count as f64 / scenario.units() as f64;
        let made_of = scenario.describe();
        println!("{name} | {:.2} | {:.0} | {made_of}", each(usage.allocations), each(usage.allocated_bytes));
    }
}
