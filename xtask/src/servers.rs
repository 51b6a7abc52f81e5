//! The server that tests speak MongoDB's protocol with: SecantusDB, in a virtual environment under `target/`.
//!
//! Invariants:
//! - What is started here is ended here: when its [`Server`] is dropped, and when this process dies in whatever way, because
//!   the server's keeper then reads the end of its pipe.
//! - Only the process that was started is ended, by the number that its keeper holds.
//!
//! A test finds its server in [`URI_VARIABLE`], and with [`BINARY_VARIABLE`] it can start servers of its own. A test that needs
//! one of them and doesn't find it prints `skipped: NAME (no VARIABLE)` and returns. With `CI` set, `cargo xtask test` fails
//! before it would come to that.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Names a replica set that tests may write to.
pub const URI_VARIABLE: &str = "STREAMER_TEST_MONGODB_URI";

/// Names the server's program, for tests that start, stop and kill servers of their own. Its arguments are those of
/// [`Secantus::arguments`].
pub const BINARY_VARIABLE: &str = "STREAMER_TEST_SECANTUS_BIN";

/// Pinned: tests rely on how this version behaves. It is run as a process of its own and never linked.
const REQUIREMENT: &str = "secantusdb==0.7.0b3";

/// Tried in this order. The server is published for some versions of Python only.
const PYTHONS: [&str; 6] = ["python3", "python", "python3.11", "python3.12", "python3.13", "python3.10"];

/// The server is up in half a second; a busy machine may take longer.
const START_TIME: Duration = Duration::from_secs(60);

/// An installed server.
#[derive(Clone, Debug)]
pub struct Secantus {
    pub binary: PathBuf,
    logs: PathBuf,
}

/// A server that runs until this is dropped.
#[derive(Debug)]
pub struct Server {
    pub uri: String,
    keeper: Child,
    folder: PathBuf,
    log: PathBuf,
}

impl Secantus {
    /// Installs the server under `target`, unless it is there. The error says why it can't be had.
    pub fn install(target: &Path) -> Result<Self, String> {
        let folder = target.join("secantusdb");
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        // Two runs at once would install into each other's folder.
        let lock = File::create(folder.join("lock")).map_err(|error| format!("{}: {error}", folder.display()))?;
        lock.lock().map_err(|error| format!("{}: {error}", folder.display()))?;

        let venv = folder.join("venv");
        let installed = venv.join("installed");
        let secantus = Self { binary: venv.join("bin/secantusd-py"), logs: folder };
        if fs::read_to_string(&installed).is_ok_and(|what| what == REQUIREMENT) && runs(&secantus.binary, &["--help"]) {
            return Ok(secantus);
        }
        let mut reasons = Vec::new();
        for python in PYTHONS {
            match install_with(python, &venv) {
                Ok(()) => {
                    fs::write(&installed, REQUIREMENT).map_err(|error| format!("{}: {error}", installed.display()))?;
                    return Ok(secantus);
                }
                Err(InstallError::NoPython) => {}
                Err(InstallError::Failed(reason)) => reasons.push(reason),
            }
        }
        if reasons.is_empty() {
            return Err(format!("there is no Python: none of {} is on the PATH", PYTHONS.join(", ")));
        }
        Err(format!("{REQUIREMENT} can't be installed: {}", reasons.join("; ")))
    }

    /// How the server is started. `--sync-on-commit`: an acknowledged write must survive a kill.
    pub fn arguments(port: u16, storage: &Path) -> Vec<String> {
        let storage = storage.display().to_string();
        let port = port.to_string();
        ["--host", "127.0.0.1", "--port", &port, "--storage-path", &storage, "--sync-on-commit"]
            .into_iter()
            .chain(["--oplog-max-entries", "2000000", "--enable-test-commands"])
            .map(str::to_owned)
            .collect()
    }

    /// Starts a server on a free port with an empty folder, and waits until it answers.
    pub fn start(&self) -> Result<Server, String> {
        let port = free_port().map_err(|error| format!("no free port on 127.0.0.1: {error}"))?;
        self.sweep();
        let name = format!("run-{}-{port}", std::process::id());
        let folder = self.logs.join(&name);
        let log = self.logs.join(format!("{name}.log"));
        let keeper = self.spawn(port, &folder, &log).map_err(|error| format!("{}: {error}", self.binary.display()))?;
        let uri = format!("mongodb://127.0.0.1:{port}/?replicaSet=secantus");
        let server = Server { uri, keeper, folder, log };
        let started = Instant::now();
        while !answers(port) {
            if started.elapsed() > START_TIME {
                let told = fs::read_to_string(&server.log).unwrap_or_default();
                return Err(format!(
                    "SecantusDB did not answer on port {port} within {START_TIME:?}; it said:\n{told}"
                ));
            }
            pause(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// Removes what runs that were killed have left: `run-PROCESS-PORT…` of processes that are gone.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.logs).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((process, _)) = name.strip_prefix("run-").and_then(|rest| rest.split_once('-')) else { continue };
            if !Path::new("/proc").join(process).exists() {
                // Only one of the two applies, and what can't be removed does no harm.
                let _ = fs::remove_dir_all(entry.path());
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// A shell starts the server and reads its own standard input, which only this process holds open: its end is the
    /// server's end. The group of its own keeps a terminal's Ctrl-C from ending the keeper before it has done that.
    fn spawn(&self, port: u16, folder: &Path, log: &Path) -> io::Result<Child> {
        fs::create_dir_all(folder)?;
        let output = File::create(log)?;
        Command::new("sh")
            .args(["-c", KEEPER, "sh"])
            .arg(&self.binary)
            .args(Self::arguments(port, folder))
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
    }
}

/// `cat` ends when the pipe does. The server keeps nothing that is worth an orderly end.
const KEEPER: &str = "\"$@\" </dev/null & server=$!; cat >/dev/null; kill -9 \"$server\"; wait \"$server\" 2>/dev/null";

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // None of this can be helped here: the keeper is gone anyway, and the rest lies under `target`.
        let _ = self.keeper.wait();
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_file(&self.log);
    }
}

enum InstallError {
    NoPython,
    Failed(String),
}

fn install_with(python: &str, venv: &Path) -> Result<(), InstallError> {
    if !runs(Path::new(python), &["--version"]) {
        return Err(InstallError::NoPython);
    }
    eprintln!("xtask: installing {REQUIREMENT} with {python} into {}", venv.display());
    let venv_text = venv.display().to_string();
    let made = output_of(Command::new(python).args(["-m", "venv", "--clear", &venv_text]));
    made.map_err(|reason| InstallError::Failed(format!("{python} -m venv: {reason}")))?;
    let pip = output_of(Command::new(venv.join("bin/python")).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        REQUIREMENT,
    ]));
    pip.map_err(|reason| InstallError::Failed(format!("pip with {python}: {reason}")))
}

fn runs(program: &Path, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The last lines that a failing program printed.
fn output_of(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Err(format!("{}: {}", output.status, lines[lines.len().saturating_sub(6)..].join(" / ")))
}

/// A port that was free a moment ago.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Whether a server answers `hello` on this port and calls itself writable.
fn answers(port: u16) -> bool {
    let ask = || -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(&hello())?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        // A hello's answer takes some hundred bytes; what claims more is no such server.
        let length = (u32::from_le_bytes(length) as usize).clamp(4, 1 << 20);
        let mut answer = vec![0; length - 4];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    // A bool of BSON: type 8, the name, zero, 1.
    ask().is_ok_and(|answer| answer.windows(19).any(|part| part == b"\x08isWritablePrimary\0"))
}

/// An `OP_MSG` with `{hello: 1, $db: "admin"}`.
fn hello() -> Vec<u8> {
    let mut document = b"\x10hello\0\x01\0\0\0\x02$db\0\x06\0\0\0admin\0\0".to_vec();
    document.splice(0..0, (document.len() as u32 + 4).to_le_bytes());
    let mut message = Vec::new();
    let length = 16 + 4 + 1 + document.len() as u32;
    for field in [length, 1, 0, 2013, 0] {
        message.extend_from_slice(&field.to_le_bytes());
    }
    message.push(0);
    message.extend_from_slice(&document);
    message
}

#[expect(clippy::disallowed_methods, reason = "no shard runs here, and there is nothing to wait on")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_answers_on_a_closed_port() {
        assert!(!answers(free_port().unwrap()));
    }

    #[test]
    fn hello_is_a_message_of_the_length_that_it_says() {
        let hello = hello();
        assert_eq!(hello[..4], (hello.len() as u32).to_le_bytes());
        assert_eq!(hello[21..25], (hello.len() as u32 - 21).to_le_bytes());
    }

    /// A stand-in for the server: it shows its arguments and stays.
    #[test]
    fn the_keeper_ends_what_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("server");
        fs::write(&binary, "#!/bin/sh\necho $$ \"$@\"\nexec sleep 600\n").unwrap();
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&binary, permissions).unwrap();

        let secantus = Secantus { binary, logs: folder.path().to_owned() };
        let (storage, log) = (folder.path().join("storage"), folder.path().join("log"));
        let keeper = secantus.spawn(7, &storage, &log).unwrap();
        let server = Server { uri: String::new(), keeper, folder: storage.clone(), log: log.clone() };
        let said = loop {
            let said = fs::read_to_string(&log).unwrap();
            if said.ends_with('\n') {
                break said;
            }
            pause(Duration::from_millis(5));
        };
        let (id, arguments) = said.trim().split_once(' ').unwrap();
        assert_eq!(arguments, Secantus::arguments(7, &storage).join(" "));
        assert!(Path::new("/proc").join(id).exists());
        drop(server);
        assert!(!Path::new("/proc").join(id).exists(), "the keeper has waited for it");
        assert!(!storage.exists());
    }
}
