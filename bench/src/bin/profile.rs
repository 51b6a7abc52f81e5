//! Runs a scenario for a profiler: `profile SCENARIO [ROUNDS]`. Without arguments it lists the scenarios.
//!
//! ```sh
//! valgrind --tool=callgrind --toggle-collect='*measured_round*' target/release/profile 'ingest small watched'
//! ```
//!
//! counts nothing but the rounds. Divided by the units that are printed, the instructions are those of one unit.

use std::process::ExitCode;

use bench::{Scenario, scenarios};
use mimalloc::MiMalloc;

#[global_allocator]
static HEAP: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.first().map_or("", String::as_str);
    let Some(named) = scenarios().into_iter().find(|named| named.name == name) else {
        scenarios().iter().for_each(|named| println!("{}", named.name));
        return if name.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    };
    let rounds = arguments.get(1).and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    let mut scenario = (named.make)();
    for _ in 0..rounds {
        scenario.prepare();
        measured_round(&mut *scenario);
    }
    println!("{name}: {}", scenario.describe());
    println!("{} units", scenario.units() * rounds);
    ExitCode::SUCCESS
}

/// Never inlined, so that the profiler finds it.
#[inline(never)]
fn measured_round(scenario: &mut dyn Scenario) {
    scenario.round();
}

const ROUNDS: u64 = 4;
