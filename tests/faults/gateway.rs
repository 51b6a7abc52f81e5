//! A Gateway's process, as a test holds it. See `application` for what runs in it.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::{Child, Command as Program, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use streamer_gateway::SavedPositions;
use wire::{Position, SubscribeItem, SubscriptionKey};
use workload::GeneratedSubscription;

use crate::{
    application::{Command, Files, PROGRAM, SETTINGS_VARIABLE, Settings, StatusFile},
    journal::{self, Line, Tail},
    support::wait_for,
};

/// Killed when dropped.
pub(crate) struct GatewayProcess {
    pub(crate) name: String,
    files: Files,
    child: Option<Child>,
    tail: Tail,
    keys: Vec<SubscriptionKey>,
}

impl GatewayProcess {
    /// Its settings are written; the process does not run yet.
    pub(crate) fn new(
        folder: &Path,
        name: &str,
        (address, fingerprint): (&str, &str),
        subscriptions: &[&GeneratedSubscription],
        keep_every_ms: u64,
    ) -> Self {
        let files = Files(folder.join(name));
        fs::create_dir_all(&files.0).expect("the test's folder can be written");
        let items: Vec<SubscribeItem> = subscriptions.iter().map(|one| one.to_item()).collect();
        let settings = Settings {
            gateway: name.to_owned(),
            address: address.to_owned(),
            fingerprint: fingerprint.to_owned(),
            subscriptions: items,
            keep_every_ms,
        };
        journal::replace(&files.settings(), &settings);
        let tail = Tail::new(files.journal());
        let keys = subscriptions.iter().map(|one| one.key.clone()).collect();
        Self { name: name.to_owned(), files, child: None, tail, keys }
    }

    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(self.files.log()).expect("the test's folder");
        let program = std::env::current_exe().expect("this program has a path");
        let child = Program::new(program)
            .args([PROGRAM, "--exact", "--nocapture", "--test-threads=1"])
            .env(SETTINGS_VARIABLE, &self.files.0)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a file handle can be doubled"))
            .stderr(log)
            .spawn()
            .expect("this program runs already");
        self.child = Some(child);
    }

    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// As the kernel ends it when memory is short.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("a child can be killed");
        child.wait().expect("and waited for");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(self.child.as_ref().expect("it runs").id(), signal);
    }

    pub(crate) fn command(&mut self, command: Command) {
        let stdin = self.child.as_mut().and_then(|child| child.stdin.as_mut()).expect("it runs, and is told things");
        let line = serde_json::to_string(&command).expect("commands become JSON");
        writeln!(stdin, "{line}").unwrap_or_else(|error| panic!("{} is told nothing more: {error}", self.name));
    }

    /// As an orderly application ends.
    pub(crate) async fn quit(&mut self) {
        self.command(Command::Quit);
        let mut child = self.child.take().expect("it runs");
        let name = self.name.clone();
        let ended = || child.try_wait().expect("it is a child of this process");
        let status = wait_for(ended, || format!("the end of {name}")).await;
        assert!(status.success(), "{name} ended with {status}; it said:\n{}", self.log());
    }

    /// What its present process says of itself; nothing before it has said anything.
    pub(crate) fn status(&self) -> StatusFile {
        let process = self.child.as_ref().map(Child::id);
        let status: Option<StatusFile> = journal::read(&self.files.status());
        status.filter(|status| Some(status.process) == process).unwrap_or_default()
    }

    /// Whether it has all its subscriptions live on this run of the node.
    pub(crate) fn is_live_on(&self, epoch: &str) -> bool {
        let status = self.status();
        status.is_synced_with(epoch) && status.live == self.keys.len()
    }

    pub(crate) fn positions(&self) -> SavedPositions {
        journal::read(&self.files.positions()).unwrap_or_default()
    }

    /// Subscriptions whose kept position isn't there yet.
    pub(crate) fn behind(&self, position: &Position) -> usize {
        let kept = self.positions();
        self.keys.iter().filter(|key| !kept.get(key).is_some_and(|positions| positions.covers(position))).count()
    }

    /// Changes that all of its processes have written down.
    pub(crate) fn changes(&mut self) -> usize {
        self.tail.changes()
    }

    /// The lowest change that it has written down and whose position it hasn't kept.
    pub(crate) fn first_undone(&mut self) -> Option<Position> {
        let kept = self.positions();
        let undone = self.tail.lines().iter().filter_map(|line| {
            let Line::Change(told) = line else { return None };
            let position = told.position();
            let is_done = kept.get(&told.key()).is_some_and(|positions| positions.covers(&position));
            (!is_done).then_some(position)
        });
        undone.min_by_key(Position::order)
    }

    pub(crate) fn lines(&mut self) -> &[Line] {
        self.tail.lines()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.files.log()).unwrap_or_default()
    }
}

impl Drop for GatewayProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}: {:?}; it said:\n{}", self.name, self.status(), self.log());
        }
        if let Some(mut child) = self.child.take() {
            // It may have ended already; there is nothing to do about a failure here.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// To a process that is a child of this one, and not waited for yet.
pub(crate) fn send(process: u32, signal: Signal) {
    let process = Pid::from_raw(process as i32).expect("a child's id is not 0");
    kill_process(process, signal).expect("a child can be sent signals");
}
