//! The commands. Each says on stderr what it does; what cargo prints goes where cargo prints it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    servers::{BINARY_VARIABLE, Secantus, Server, URI_VARIABLE},
    tidy::Repository,
};

/// All tests, with a MongoDB-protocol server where none is named. `args` go to `cargo test`.
pub fn test(args: &[String]) -> Result<(), String> {
    let root = root();
    let given = env::var(URI_VARIABLE).ok().filter(|uri| !uri.is_empty());
    let in_ci = env::var_os("CI").is_some_and(|value| !value.is_empty());

    let mut cargo = cargo(&root);
    cargo.arg("test");
    if !names_a_package(args) {
        cargo.arg("--workspace");
    }
    cargo.arg("--no-fail-fast").args(args);

    // Held until the tests are over: what was started is ended when this is dropped, and when this process dies.
    let mut started: Option<Server> = None;
    let mut skipped = Vec::new();
    match Secantus::install(&target(&root)) {
        Ok(secantus) => {
            cargo.env(BINARY_VARIABLE, &secantus.binary);
            if given.is_none() {
                let server = secantus.start()?;
                eprintln!("xtask: started SecantusDB for the tests: {}", server.uri);
                cargo.env(URI_VARIABLE, &server.uri);
                started = Some(server);
            }
        }
        Err(reason) => {
            skipped.push((BINARY_VARIABLE, reason.clone()));
            cargo.env_remove(BINARY_VARIABLE);
            if given.is_none() {
                skipped.push((URI_VARIABLE, reason));
                cargo.env_remove(URI_VARIABLE);
            }
        }
    }
    let skips = describe_skips(&Repository::read(&root)?, &skipped);
    if in_ci && !skips.is_empty() {
        return Err(format!("with CI set, nothing may be skipped, and this would be:\n{skips}"));
    }
    let result = succeed(&mut cargo, "tests");
    drop(started);
    eprint!("{skips}");
    result
}

/// The simulator's own binary. `--release` is for cargo: it runs more events a second, and leaves out what only debug builds assert.
pub fn sim(args: &[String]) -> Result<(), String> {
    let mut cargo = cargo(&root());
    cargo.args(["run", "--quiet", "--package", "sim"]);
    let (of_cargo, of_sim): (Vec<&String>, Vec<&String>) = args.iter().partition(|arg| *arg == "--release");
    cargo.args(of_cargo).arg("--").args(of_sim);
    succeed(&mut cargo, "the simulator")
}

/// Checks of the files themselves.
pub fn tidy() -> Result<(), String> {
    let findings = crate::tidy::check(&Repository::read(&root())?);
    if findings.is_empty() {
        eprintln!("xtask: tidy");
        return Ok(());
    }
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    Err(format!("{}\nxtask: {} findings", lines.join("\n"), findings.len()))
}

/// All that has to be true before a change lands. Goes through all of it, so that one run tells everything.
pub fn ci() -> Result<(), String> {
    let root = root();
    let mut failed = Vec::new();
    let mut step = |name: &'static str, result: Result<(), String>| {
        if let Err(message) = result {
            eprintln!("{}", message.trim_end());
            failed.push(name);
        }
    };
    step("formatting", succeed(cargo(&root).args(["fmt", "--all", "--check"]), "formatting"));
    step(
        "clippy",
        succeed(cargo(&root).args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]), "clippy"),
    );
    step("tidy", tidy());
    step("test", test(&[]));
    if failed.is_empty() { Ok(()) } else { Err(format!("xtask: failed: {}", failed.join(", "))) }
}

/// Which files hold tests that a missing variable makes them skip. A test that needs a server looks at the variable itself,
/// prints `skipped: NAME (no VARIABLE)` where it isn't set, and returns.
fn describe_skips(repository: &Repository, missing: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (variable, reason) in missing {
        let files: Vec<&str> = repository
            .files()
            .filter(|(path, content)| {
                path.ends_with(".rs") && !path.starts_with("xtask/") && content.contains(variable)
            })
            .map(|(path, _)| path)
            .collect();
        if files.is_empty() {
            continue;
        }
        text += &format!("skipped: tests that need {variable}: {reason}\n");
        for file in files {
            text += &format!("  {file}\n");
        }
    }
    text
}

fn names_a_package(args: &[String]) -> bool {
    args.iter()
        .take_while(|arg| *arg != "--")
        .any(|arg| arg.starts_with("-p") || arg == "--package" || arg.starts_with("--package="))
}

pub(crate) fn succeed(command: &mut Command, what: &str) -> Result<(), String> {
    eprintln!("xtask: {}", shown(command));
    let status = command.status().map_err(|error| format!("{}: {error}", shown(command)))?;
    if status.success() { Ok(()) } else { Err(format!("xtask: {what} failed: {status}")) }
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The cargo that runs us, without what it told us about our own package.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text.starts_with("CARGO_BIN_") {
            command.env_remove(&name);
        }
    }
    command
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}

pub(crate) fn target(root: &Path) -> PathBuf {
    root.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_named_package_is_tested_alone() {
        for yes in ["-p wire", "-pwire", "--package wire", "--package=wire"] {
            assert!(names_a_package(&args(yes)), "{yes}");
        }
        for no in ["", "--lib", "-- -p wire", "name"] {
            assert!(!names_a_package(&args(no)), "{no}");
        }
    }

    #[test]
    fn what_is_skipped_is_named() {
        let repository = Repository::of([
            ("tests/mongodb.rs", "env::var(\"STREAMER_TEST_MONGODB_URI\")"),
            ("src/other.rs", ""),
            ("README.md", "STREAMER_TEST_MONGODB_URI"),
        ]);
        let missing = [(URI_VARIABLE, "there is no Python".to_owned()), (BINARY_VARIABLE, "the same".to_owned())];
        assert_eq!(
            describe_skips(&repository, &missing),
            "skipped: tests that need STREAMER_TEST_MONGODB_URI: there is no Python\n  tests/mongodb.rs\n"
        );
        assert_eq!(describe_skips(&repository, &[]), "");
    }
}
