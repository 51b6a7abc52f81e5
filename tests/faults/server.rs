//! The MongoDB-protocol server fails: by fail points, by killed cursors, by standing still, and by being killed.

use std::{
    fs::{self, File},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use bson::doc;
use mongodb::Client;
use rand::Rng;
use rustix::process::Signal;
use xtask::servers::{BINARY_VARIABLE, Secantus};

use crate::{
    gateway::send,
    source::Source,
    support::{block_on, database::TestServer, process::free_ports, unique, wait_for},
    world::{Plan, World, rounds, seed},
};

/// Killed when dropped.
struct Server {
    binary: PathBuf,
    folder: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Server {
    /// `None`, and a line that says so, where there is no program to start.
    async fn start(test: &str) -> Option<Self> {
        let Some(binary) = std::env::var_os(BINARY_VARIABLE).filter(|path| !path.is_empty()) else {
            println!("skipped: {test} (no STREAMER_TEST_SECANTUS_BIN)");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("streamer-faults-db-").tempdir().expect("a temporary folder");
        let mut server = Self { binary: binary.into(), folder, port: free_ports().0, child: None };
        server.start_again().await;
        Some(server)
    }

    async fn start_again(&mut self) {
        let log = self.folder.path().join("log");
        let output = File::options().create(true).append(true).open(&log).expect("the test's folder");
        let child = Command::new(&self.binary)
            .args(Secantus::arguments(self.port, &self.folder.path().join("data")))
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a file handle can be doubled"))
            .stderr(output)
            .spawn()
            .expect("the server's program is started");
        self.child = Some(child);
        let answers = || TcpStream::connect(("127.0.0.1", self.port)).ok();
        let missing = || format!("the server's answer; it said:\n{}", fs::read_to_string(&log).unwrap_or_default());
        wait_for(answers, missing).await;
    }

    async fn database(&self) -> TestServer {
        let uri = format!("mongodb://127.0.0.1:{}/?replicaSet=secantus&serverSelectionTimeoutMS=2000", self.port);
        let client = Client::with_uri_str(&uri).await.expect("the server's connection string is read");
        TestServer { uri, client, prefix: format!("it_{}", unique()) }
    }

    fn signal(&self, signal: Signal) {
        send(self.child.as_ref().expect("it runs").id(), signal);
    }

    fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("a child can be killed");
        child.wait().expect("and waited for");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended already; there is nothing to do about a failure here.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Cursor not found, cursor killed, primary stepped down, shutdown in progress.
const CODES: [i32; 4] = [43, 237, 189, 91];

#[test]
fn fail_points_and_killed_cursors() {
    const NAME: &str = "server::fail_points_and_killed_cursors";
    let seed = seed(NAME);
    block_on(async {
        // A server of its own: it has only one fail point, which another test would take away.
        let Some(server) = Server::start(NAME).await else { return };
        let mut world = World::mongodb(Plan::new(seed), server.database().await).await;
        world.start_load(500);
        let before = reopenings(&world).await;
        let (mut done, mut killed) = (Vec::new(), 0);
        for _ in 0..rounds(3) * 4 {
            world.wait_changes(50).await;
            let times = world.random.random_range(1..=3);
            let what = world.random.random_range(0..5);
            let how = match what {
                0 => doc! { "closeConnection": true },
                1 => doc! { "errorCode": CODES[world.random.random_range(0..CODES.len())] },
                2 => doc! { "blockConnection": true, "blockTimeMS": 300 },
                _ => doc! {},
            };
            let command = if world.random.random() { "getMore" } else { "aggregate" };
            let source = world.source.lock().await;
            let Source::MongoDb(mongodb) = &*source else { unreachable!("it is on a server") };
            match what {
                0..=2 => {
                    mongodb.fail_point(command, times, how.clone()).await;
                    // An open stream is read, so opening fails only after it has ended.
                    if command == "aggregate" {
                        killed += mongodb.kill_cursors().await;
                    }
                    done.push(format!("{command} {how}"));
                }
                _ => {
                    killed += mongodb.kill_cursors().await;
                    done.push("cursors killed".into());
                }
            }
        }
        world.wait_changes(100).await;
        println!("{}", done.join(", "));
        let reopened = reopenings(&world).await - before;
        println!("{killed} cursors killed, {reopened} reopenings of the stream");
        assert!(reopened > 0.0, "the stream was opened again");
        assert!(killed > 0 || done.len() < 12, "cursors were found and killed");
        world.end().await;
    });
}

async fn reopenings(world: &World) -> f64 {
    world.metric("streamer_backend_reopenings_total").await
}

#[test]
fn killed_and_stopped() {
    const NAME: &str = "server::killed_and_stopped";
    let seed = seed(NAME);
    block_on(async {
        let Some(mut server) = Server::start(NAME).await else { return };
        let mut world = World::mongodb(Plan::new(seed), server.database().await).await;
        world.start_load(500);
        for _ in 0..rounds(3) {
            world.wait_changes(100).await;
            if world.random.random() {
                server.kill();
                world.pause(0..500).await;
                server.start_again().await;
            } else {
                server.signal(Signal::STOP);
                world.pause(100..2_000).await;
                server.signal(Signal::CONT);
            }
            // And the node as well, now and then, while it looks for its server.
            if world.random.random_ratio(1, 3) {
                world.kill_node();
                tokio::time::sleep(Duration::from_millis(100)).await;
                world.start_node().await;
            }
            world.wait_changes(50).await;
        }
        world.wait_live().await;
        world.end().await;
    });
}
