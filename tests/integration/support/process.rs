//! The node as the process that a user starts: `streamer run -c FILE`.

use std::{
    fs::{self, File},
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
    time::Instant,
};

use super::{LOOK_EVERY, PATIENCE, api::Api, wait_for};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_streamer");

/// Killed when dropped.
pub(crate) struct NodeProcess {
    child: Child,
    log: PathBuf,
}

impl NodeProcess {
    /// Starts it with this configuration. What it says is added to a file in the folder, over all of its starts.
    pub(crate) fn spawn(folder: &Path, config: &str) -> Self {
        Self::spawn_as(Command::new(BINARY), folder, config)
    }

    /// The same by a command that runs the node's program with the arguments added to it.
    pub(crate) fn spawn_as(mut program: Command, folder: &Path, config: &str) -> Self {
        let file = folder.join("streamer.toml");
        let log = folder.join("streamer.log");
        fs::write(&file, config).expect("the test's folder can be written");
        let output = File::options().create(true).append(true).open(&log).expect("the test's folder can be written");
        let child = program
            .args([Path::new("run"), Path::new("-c"), &file])
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a file handle can be doubled"))
            .stderr(output)
            .spawn()
            .expect("the node's program was built for this test");
        Self { child, log }
    }

    /// Waits until it answers this path with 200.
    pub(crate) async fn answers(&mut self, api: &Api, path: &str) {
        let started = Instant::now();
        while !api.is_well(path).await {
            let ended = self.child.try_wait().expect("the node is a child of this process");
            assert!(ended.is_none(), "the node has ended with {ended:?}; it said:\n{}", self.log());
            assert!(started.elapsed() < PATIENCE, "{path} is not well; the node said:\n{}", self.log());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// As the kernel ends it when memory is short.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("and waited for");
    }

    /// As a service manager stops it. How it ended.
    pub(crate) async fn terminate(self) -> ExitStatus {
        self.signal("TERM");
        self.end().await
    }

    /// Sends it a signal. It must not have ended.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent =
            Command::new("kill").args([&format!("-{name}"), &id]).status().expect("kill is a program everywhere");
        assert!(sent.success(), "SIG{name} can't be sent to {id}");
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the node is a child of this process").is_some()
    }

    /// Waits for its end. How it ended.
    pub(crate) async fn end(mut self) -> ExitStatus {
        let child = &mut self.child;
        let ended = || child.try_wait().expect("the node is a child of this process");
        wait_for(ended, || "the end of a node that was told to stop".to_owned()).await
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("what the node said:\n{}", self.log());
        }
        // It may have ended already; there is nothing to do about a failure here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port for HTTP and the first of a few in a row for QUIC. Below those that the kernel hands out by itself, so that nobody gets
/// one of them while a node is away.
pub(crate) fn free_ports() -> (u16, u16) {
    const FIRST: u16 = 12_000;
    const LAST: u16 = 32_000;
    const EACH: u16 = 20;
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    // Other test processes start elsewhere.
    let offset = (std::process::id() * 7 % u32::from((LAST - FIRST) / EACH)) as u16;
    for _ in 0..(LAST - FIRST) / EACH {
        let block = (offset + TAKEN.fetch_add(1, Relaxed)) % ((LAST - FIRST) / EACH);
        let http = FIRST + block * EACH;
        let quic = http + 1;
        let is_free = TcpListener::bind(("127.0.0.1", http)).is_ok()
            && (quic..quic + EACH - 1).all(|port| UdpSocket::bind(("127.0.0.1", port)).is_ok());
        if is_free {
            return (http, quic);
        }
    }
    panic!("no free ports between {FIRST} and {LAST}");
}
