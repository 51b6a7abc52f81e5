//! `streamer conformance` with the SDK as the Gateway under test: right, it passes; wrong in one way or another, it fails where that shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::BufRead,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Value, json};
use streamer_gateway::{
    AppEvent, Change, Event, Gateway, SavedPositions, Subscription, SubscriptionKey, TerminalError,
};

use crate::support::{block_on, process::BINARY};

/// Says how this program is to be wrong where it is the Gateway under test.
const VARIANT: &str = "STREAMER_CONFORMANCE_VARIANT";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Right,
    /// Done with changes that the application holds.
    AcksEarly,
    /// A new process begins at its own beginning.
    IgnoresPositions,
    /// What comes again in another session is told again.
    Repeats,
    /// Every hundredth change is left out.
    Drops,
    /// Of two changes of a subscription in a row, the later is told first.
    Swaps,
    /// Gaps, resyncs and catch-ups are kept from the application.
    HidesBreaks,
    /// What is read again for it is left out, as by one that takes positions on while it catches up.
    SkipsHistory,
    /// Connects again after another has taken over.
    ComesBack,
}

impl Variant {
    const WRONG: [Self; 8] = [
        Self::AcksEarly,
        Self::IgnoresPositions,
        Self::Repeats,
        Self::Drops,
        Self::Swaps,
        Self::HidesBreaks,
        Self::SkipsHistory,
        Self::ComesBack,
    ];

    fn name(self) -> String {
        format!("{self:?}")
    }

    fn of(name: &str) -> Self {
        Self::WRONG.into_iter().find(|variant| variant.name() == name).unwrap_or(Self::Right)
    }
}

/// The faults by scene, and whether the run said that all is well.
fn run(variant: Variant, scenes: &[&str]) -> (BTreeMap<String, Vec<String>>, bool) {
    let mut command = Command::new(BINARY);
    command.args(["conformance", "--json", "--patience", if variant == Variant::Right { "60" } else { "20" }]);
    for scene in scenes {
        command.args(["--script", scene]);
    }
    let program = std::env::current_exe().unwrap();
    let output = command
        .arg("--")
        .arg(program)
        .args(["conformance::gateway_program", "--exact", "--nocapture", "--test-threads=1"])
        .env(VARIANT, variant.name())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{variant:?}:\n{stdout}\n{stderr}");
    let faults = stdout.lines().map(|line| {
        let report: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let faults: Vec<String> = serde_json::from_value(report["faults"].clone()).unwrap();
        (report["scene"].as_str().unwrap().to_owned(), faults)
    });
    (faults.collect(), output.status.success())
}

#[test]
fn the_sdk_conforms() {
    let (faults, is_well) = run(Variant::Right, &[]);
    assert_eq!(faults.len(), streamer::conformance::SCENES.len());
    assert!(is_well && faults.values().all(Vec::is_empty), "{faults:#?}");
}

#[test]
fn what_is_wrong_is_found_and_named() {
    let cases = [
        (Variant::AcksEarly, "acks", "acked as done that the application still holds"),
        (Variant::IgnoresPositions, "resumed", "was not delivered"),
        (Variant::Repeats, "killed", "was delivered twice"),
        (Variant::Drops, "burst", "was not delivered"),
        (Variant::Swaps, "burst", "out of order"),
        (Variant::HidesBreaks, "resync", "no resync was told"),
        (Variant::HidesBreaks, "gap", "no gap was told"),
        (Variant::HidesBreaks, "catch-up", "no catch-up was told"),
        (Variant::SkipsHistory, "catch-up", "was not delivered"),
        (Variant::ComesBack, "superseded", "came back after it was superseded"),
    ];
    // All at once: what is never told is waited for with all the patience.
    std::thread::scope(|threads| {
        for (variant, scene, named) in cases {
            threads.spawn(move || {
                let (faults, is_well) = run(variant, &[scene]);
                assert!(!is_well, "{variant:?} passes {scene}");
                assert!(faults[scene].iter().any(|fault| fault.contains(named)), "{variant:?}: {faults:#?}");
            });
        }
    });
}

#[test]
fn what_cannot_be_run_is_said() {
    for (args, expect) in [
        (vec!["--script", "nothing", "--", "true"], "there is no scene \"nothing\"; allowed: live"),
        (vec!["--", "/there/is/no/such/program"], "can't be started"),
    ] {
        let output = Command::new(BINARY).arg("conformance").args(args).stdin(Stdio::null()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(expect), "{stderr}");
    }
    // A program that ends at once is a fault of each scene.
    let output = Command::new(BINARY)
        .args(["conformance", "--script", "live", "--", "true"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && stdout.contains("FAIL live"), "{stdout}");
}

/// Nothing, unless `streamer conformance` has started this program to be a Gateway.
#[test]
fn gateway_program() {
    let Ok(variant) = std::env::var(VARIANT) else { return };
    // Ends the line that the test harness has begun.
    println!();
    block_on(Program::run(Variant::of(&variant)));
}

#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Told {
    Subscribe { subscriptions: Vec<Asked> },
    Unsubscribe { tenant: String, id: String },
    Hold,
    Release,
    Save,
}

#[derive(Clone, Debug, Deserialize)]
struct Asked {
    tenant: String,
    id: String,
    collection: String,
    filters: Vec<Value>,
    expr: String,
}

impl Asked {
    fn to_sdk(&self) -> Subscription {
        let mut subscription = Subscription::new(&self.tenant, &self.collection).id(&self.id);
        for filter in &self.filters {
            let text = |name: &str| filter[name].as_str().unwrap();
            subscription = subscription.filter(text("field"), text("op"), filter["value"].clone());
        }
        if self.expr.is_empty() { subscription } else { subscription.expr(&self.expr) }
    }
}

struct Program {
    variant: Variant,
    gateway: Gateway,
    asked: Vec<Asked>,
    held: Vec<Event>,
    holds: bool,
    changes: u64,
    kept_back: Option<Value>,
    /// Subscriptions that are catching up.
    catching_up: BTreeSet<String>,
    file: PathBuf,
}

impl Program {
    async fn run(variant: Variant) {
        let file = Path::new(&variable("STREAMER_FOLDER")).join("positions.json");
        let saved = match std::fs::read(&file) {
            Ok(text) if variant != Variant::IgnoresPositions => serde_json::from_slice(&text).unwrap(),
            _ => SavedPositions::default(),
        };
        let gateway = connect(saved).await;
        let program = Self {
            variant,
            gateway,
            asked: Vec::new(),
            held: Vec::new(),
            holds: false,
            changes: 0,
            kept_back: None,
            catching_up: BTreeSet::new(),
            file,
        };
        program.take_all().await;
    }

    async fn take_all(mut self) {
        let commands = commands();
        let mut reconnects = tokio::time::interval(Duration::from_millis(20));
        loop {
            tokio::select! {
                biased;
                command = commands.recv_async() => match command {
                    Ok(command) => self.obey(command),
                    Err(_) => return,
                },
                _ = reconnects.tick(), if self.variant == Variant::Repeats => self.forget_after_a_reconnect().await,
                event = self.gateway.next() => match event {
                    Some(event) => self.take(event),
                    None => {
                        let reason = match self.gateway.error() {
                            Some(TerminalError::Superseded { .. }) => "SUPERSEDED".to_owned(),
                            other => format!("{other:?}"),
                        };
                        say(&json!({"told": "ended", "reason": reason}));
                        if self.variant == Variant::ComesBack {
                            self.gateway = connect(SavedPositions::default()).await;
                        } else {
                            // Until the run has seen enough.
                            while commands.recv_async().await.is_ok() {}
                            return;
                        }
                    }
                },
            }
        }
    }

    fn obey(&mut self, command: Told) {
        match command {
            Told::Subscribe { subscriptions } => {
                for asked in subscriptions {
                    self.gateway.subscribe(asked.to_sdk()).unwrap();
                    self.asked.push(asked);
                }
            }
            Told::Unsubscribe { tenant, id } => self.gateway.unsubscribe(&SubscriptionKey { tenant, id }),
            Told::Hold => self.holds = self.variant != Variant::AcksEarly,
            Told::Release => {
                self.holds = false;
                self.held.drain(..).for_each(Event::ack);
            }
            Told::Save => {
                std::fs::write(&self.file, serde_json::to_vec(&self.gateway.positions()).unwrap()).unwrap();
                say(&json!({"told": "saved"}));
            }
        }
    }

    fn take(&mut self, event: Event) {
        let line = match &event.what {
            AppEvent::Change(change) => self.change_line(change),
            AppEvent::Live { subscription, .. } => Some(json!({"told": "live", "subscription": subscription.id})),
            AppEvent::Gap { .. }
            | AppEvent::Resync { .. }
            | AppEvent::CatchingUp { .. }
            | AppEvent::CaughtUp { .. }
                if self.variant == Variant::HidesBreaks =>
            {
                None
            }
            AppEvent::Gap { subscription, reason, .. } => {
                Some(json!({"told": "gap", "subscription": subscription.id, "reason": reason}))
            }
            AppEvent::Resync { subscription, reason, .. } => {
                Some(json!({"told": "resync", "subscription": subscription.id, "reason": reason}))
            }
            AppEvent::Rejected { subscription, code, .. } => {
                Some(json!({"told": "rejected", "subscription": subscription.id, "code": code}))
            }
            AppEvent::Closed { subscription, .. } => Some(json!({"told": "closed", "subscription": subscription.id})),
            AppEvent::CatchingUp { subscription } => {
                self.catching_up.insert(subscription.id.clone());
                Some(json!({"told": "catching_up", "subscription": subscription.id}))
            }
            AppEvent::CaughtUp { subscription } => {
                self.catching_up.remove(&subscription.id);
                Some(json!({"told": "caught_up", "subscription": subscription.id}))
            }
        };
        if let Some(line) = line {
            say(&line);
            // Order is a matter of one subscription.
            let same = |earlier: &mut Value| earlier["subscription"] == line["subscription"];
            if let Some(earlier) = self.kept_back.take_if(same) {
                say(&earlier);
            }
        }
        if self.holds {
            self.held.push(event);
        } else {
            event.ack();
        }
    }

    fn change_line(&mut self, change: &Change) -> Option<Value> {
        self.changes += 1;
        let n = change.flat().and_then(|document| match document.get("n") {
            Some(bson::Bson::Int32(n)) => Some(i64::from(*n)),
            Some(bson::Bson::Int64(n)) => Some(*n),
            _ => None,
        });
        let line = json!({
            "told": "change",
            "subscription": change.subscription().id,
            "time": change.id().time,
            "transition": change.transition(),
            "operation": change.operation(),
            "document": change.document_id_text(),
            "n": n,
            "size": change.document().map_or(0, |document| document.as_bytes().len()),
        });
        match self.variant {
            Variant::Drops if self.changes.is_multiple_of(100) => None,
            Variant::SkipsHistory if self.catching_up.contains(&change.subscription().id) => None,
            Variant::Swaps if self.changes == 51 => {
                self.kept_back = Some(line);
                None
            }
            _ => Some(line),
        }
    }

    /// As one that knows what it was done with, and not what it has handed on.
    async fn forget_after_a_reconnect(&mut self) {
        let status = self.gateway.status();
        if status.counters.reconnects > 0 && status.live == self.asked.len() {
            self.held.clear();
            self.gateway = connect(self.gateway.positions()).await;
            for asked in &self.asked {
                self.gateway.subscribe(asked.to_sdk()).unwrap();
            }
        }
    }
}

async fn connect(saved: SavedPositions) -> Gateway {
    Gateway::builder()
        .address(variable("STREAMER_ADDRESS"))
        .fingerprint(variable("STREAMER_FINGERPRINT"))
        .gateway(variable("STREAMER_GATEWAY"))
        .token(variable("STREAMER_TOKEN"))
        .resume_from(saved)
        .manual_ack()
        .connect_timeout(Duration::from_secs(60))
        .connect()
        .await
        .unwrap()
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("streamer conformance sets {name}"))
}

fn say(line: &Value) {
    println!("{line}");
}

fn commands() -> flume::Receiver<Told> {
    let (sender, receiver) = flume::unbounded();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if sender.send(serde_json::from_str(&line).unwrap()).is_err() {
                break;
            }
        }
    });
    receiver
}
