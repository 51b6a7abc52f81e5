//! A Gateway in a process of its own: this test program, started again by a test with [`SETTINGS_VARIABLE`] set.
//!
//! It is an application as the SDK's documentation wants it: each item is written down before it is acked, and the positions are kept
//! beside that, never ahead of it. It can be killed at any time. Commands come on its standard input, a line each; the end of that input
//! is its own end, so that it never outlives the test.

use std::{
    io::BufRead,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use streamer_gateway::{AppEvent, Change, Event, Gateway, SavedPositions};
use tokio::time::{MissedTickBehavior, interval};
use wire::{SubscribeItem, Transition};

use crate::{
    journal::{self, Journal, Line, Told},
    support::listener::from_item,
};

/// Names the folder of a Gateway that this program shall be.
pub(crate) const SETTINGS_VARIABLE: &str = "STREAMER_FAULTS_GATEWAY";

/// The test that is the process's program.
pub(crate) const PROGRAM: &str = "application::gateway_process";

/// The files of a Gateway.
pub(crate) struct Files(pub(crate) PathBuf);

impl Files {
    pub(crate) fn settings(&self) -> PathBuf {
        self.0.join("settings.json")
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.0.join("journal.jsonl")
    }

    pub(crate) fn positions(&self) -> PathBuf {
        self.0.join("positions.json")
    }

    pub(crate) fn status(&self) -> PathBuf {
        self.0.join("status.json")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("log")
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) gateway: String,
    pub(crate) address: String,
    pub(crate) fingerprint: String,
    pub(crate) subscriptions: Vec<SubscribeItem>,
    /// How often positions and status are written down, where they have changed.
    pub(crate) keep_every_ms: u64,
}

/// How a Gateway is, for whoever watches it from outside.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StatusFile {
    pub(crate) process: u32,
    pub(crate) epoch: Option<String>,
    pub(crate) live: usize,
    /// Connected to every shard, and each has what this Gateway presented.
    pub(crate) synced: bool,
    pub(crate) handed: u64,
    pub(crate) duplicates_dropped: u64,
    pub(crate) resyncs: u64,
    pub(crate) gaps: u64,
    pub(crate) reconnects: u64,
    pub(crate) violations: u64,
    pub(crate) error: Option<String>,
}

impl StatusFile {
    /// Whether every shard of this run of the node has what the Gateway presented.
    pub(crate) fn is_synced_with(&self, epoch: &str) -> bool {
        self.synced && self.epoch.as_deref() == Some(epoch)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// Items are written down and not acked.
    Hold,
    /// What is held is acked, and so is what comes.
    Release,
    /// This long over each item.
    Slow { us: u64 },
    /// As an orderly application ends.
    Quit,
}

/// Nothing, unless a test has started this program to be a Gateway.
#[test]
fn gateway_process() {
    let Some(folder) = std::env::var_os(SETTINGS_VARIABLE) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(Application::run(Path::new(&folder)));
    runtime.shutdown_background();
}

struct Application {
    files: Files,
    gateway: Gateway,
    journal: Journal,
    held: Vec<Event>,
    holds: bool,
    slow: Duration,
    kept: SavedPositions,
    told: StatusFile,
}

impl Application {
    async fn run(folder: &Path) {
        let files = Files(folder.to_owned());
        let settings: Settings = journal::read(&files.settings()).expect("the test has written the settings");
        let presented: SavedPositions = journal::read(&files.positions()).unwrap_or_default();
        let mut journal = Journal::open(&files.journal());
        journal.write(&Line::Start { presented: presented.clone() });
        let commands = commands();
        let mut builder = Gateway::builder()
            .gateway(&settings.gateway)
            .address(&settings.address)
            .fingerprint(&settings.fingerprint)
            .manual_ack()
            .resume_from(presented.clone())
            .connect_timeout(Duration::from_secs(3_600));
        for item in &settings.subscriptions {
            builder = builder.subscription(from_item(item));
        }
        let connected = tokio::select! {
            connected = builder.connect() => connected,
            () = quit(&commands) => return,
        };
        let gateway = match connected {
            Ok(gateway) => gateway,
            Err(error) => return journal.write(&Line::Ended { error: error.to_string() }),
        };
        let application = Self {
            files,
            gateway,
            journal,
            held: Vec::new(),
            holds: false,
            slow: Duration::ZERO,
            kept: presented,
            told: StatusFile::default(),
        };
        application.take_all(commands, Duration::from_millis(settings.keep_every_ms)).await;
    }

    async fn take_all(mut self, commands: flume::Receiver<Command>, keep_every: Duration) {
        let mut ticks = interval(keep_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                command = commands.recv_async() => match command.unwrap_or(Command::Quit) {
                    Command::Hold => self.holds = true,
                    Command::Release => {
                        self.holds = false;
                        self.held.drain(..).for_each(Event::ack);
                    }
                    Command::Slow { us } => self.slow = Duration::from_micros(us),
                    Command::Quit => break,
                },
                _ = ticks.tick() => self.keep(),
                event = self.gateway.next() => {
                    let Some(event) = event else {
                        let error = self.gateway.error().map(|error| error.to_string()).unwrap_or_default();
                        return self.journal.write(&Line::Ended { error });
                    };
                    self.take(event).await;
                }
            }
        }
        self.keep();
        self.gateway.close().await;
    }

    async fn take(&mut self, event: Event) {
        let line = match &event.what {
            AppEvent::Change(change) => Some(Line::Change(told(change))),
            AppEvent::Live { .. } | AppEvent::CatchingUp { .. } | AppEvent::CaughtUp { .. } => None,
            other => Some(Line::Break { what: format!("{other:?}") }),
        };
        if let Some(line) = line {
            self.journal.write(&line);
            if !self.slow.is_zero() {
                tokio::time::sleep(self.slow).await;
            }
        }
        match self.holds {
            true => self.held.push(event),
            false => event.ack(),
        }
    }

    /// Whatever these positions cover is in the journal already.
    fn keep(&mut self) {
        let positions = self.gateway.positions();
        if positions != self.kept {
            journal::replace(&self.files.positions(), &positions);
            self.kept = positions;
        }
        let status = self.gateway.status();
        let counters = status.counters;
        let told = StatusFile {
            process: std::process::id(),
            epoch: status.epoch.map(|epoch| format!("{:032x}", epoch.0)),
            live: status.live,
            synced: !status.shards.is_empty() && status.shards.iter().all(|shard| shard.connected && shard.synced),
            handed: counters.handed,
            duplicates_dropped: counters.duplicates_dropped,
            resyncs: counters.resyncs,
            gaps: counters.gaps,
            reconnects: counters.reconnects,
            violations: counters.violations,
            error: status.error,
        };
        if told != self.told {
            journal::replace(&self.files.status(), &told);
            self.told = told;
        }
    }
}

fn told(change: &Change) -> Told {
    let document = change.document();
    // An image before the change says when another write was sent.
    let sent = (change.transition() != Transition::Leave).then(|| change.flat()?.get_i64(SENT_FIELD).ok()).flatten();
    Told {
        tenant: change.subscription().tenant.clone(),
        id: change.subscription().id.clone(),
        event: change.id().to_string(),
        transition: change.transition(),
        shard: change.partition(),
        image: document.map(|document| journal::image_hash(document.as_bytes())),
        late_us: sent.map(|sent| now_us().saturating_sub(sent as u64)),
    }
}

/// The field in which a writer says when it sent a document: microseconds since 1970.
pub(crate) const SENT_FIELD: &str = "sent_us";

#[expect(clippy::disallowed_methods, reason = "the one clock that two processes have; only figures depend on it")]
pub(crate) fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_micros() as u64
}

fn commands() -> flume::Receiver<Command> {
    let (sender, receiver) = flume::unbounded();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            let command = serde_json::from_str(&line).expect("the test writes commands");
            if sender.send(command).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Until it is told to quit. Other commands before the first contact mean nothing.
async fn quit(commands: &flume::Receiver<Command>) {
    while commands.recv_async().await.is_ok_and(|command| command != Command::Quit) {}
}
