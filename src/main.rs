//! The program `streamer`.

use std::process::ExitCode;

fn main() -> ExitCode {
    streamer::cli::main()
}
