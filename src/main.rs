//! The program `streamer`.

use std::process::ExitCode;

use mimalloc::MiMalloc;

#[global_allocator]
static HEAP: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    streamer::cli::main()
}
