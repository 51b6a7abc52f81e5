//! The command line of [`xtask`].

use std::{env, process::ExitCode};

const USAGE: &str = "\
cargo xtask COMMAND

  test [ARGS…]  all tests, with the servers that they need; ARGS go to `cargo test`
                (`cargo xtask test -p wire`, `cargo xtask test -- some_name`)
  sim [ARGS…]   the simulator of tests/sim over many seeds: --seeds N, --seed S, --break NAME, --json, --release, --help
  tidy          lengths of files, leftovers, links and names in the docs
  ci            formatting, clippy, tidy, test
  dist          an archive of the program with its units, tuning files and install script

STREAMER_TEST_MONGODB_URI points the tests at a replica set of yours instead of a server that `test` starts.
With CI set, a test that would be skipped is a failure.
";

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let command = args.next();
    let rest: Vec<String> = args.collect();
    let result = match command.as_deref() {
        Some("test") => xtask::run::test(&rest),
        Some("sim") => xtask::run::sim(&rest),
        Some("tidy") if rest.is_empty() => xtask::run::tidy(),
        Some("ci") if rest.is_empty() => xtask::run::ci(),
        Some("dist") if rest.is_empty() => xtask::dist::dist(),
        Some("help" | "--help" | "-h") => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{}", message.trim_end());
            ExitCode::FAILURE
        }
    }
}
