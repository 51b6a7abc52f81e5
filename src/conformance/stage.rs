//! A scene's node, program and judge, and what a scene does with them.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Duration, Instant, timeout_at};
use wire::{Operation, Transition};

use super::{
    ConformanceError, Options,
    judge::{Expected, Judge},
    lines::{Command, Subscription},
    node::{Node, TENANT},
    program::Program,
};

/// Why a scene doesn't go on.
pub(super) enum Stopped {
    /// The Gateway did something wrong.
    Fault(String),
    /// The run itself can't go on.
    Broken(ConformanceError),
}

impl From<ConformanceError> for Stopped {
    fn from(error: ConformanceError) -> Self {
        Self::Broken(error)
    }
}

pub(super) type Played = Result<(), Stopped>;

/// Shards of a node unless a scene says otherwise.
pub(super) const SHARDS: usize = 2;

/// A change to be written and what becomes of it: the subscriptions that it concerns, and how.
pub(super) type Concerned<'a> = &'a [(&'a str, Transition)];

pub(super) struct Stage {
    pub(super) node: Node,
    pub(super) judge: Judge,
    program: Option<Program>,
    command: Vec<String>,
    patience: Duration,
    folder: TempDir,
    fingerprint: String,
    /// The last change that was written.
    pub(super) last: u64,
    subscriptions: Vec<Subscription>,
}

impl Stage {
    /// With a node that runs and a program that was started.
    pub(super) async fn set(options: &Options) -> Result<Self, ConformanceError> {
        let folder = tempfile::Builder::new().prefix("streamer-conformance-").tempdir();
        let folder = folder.map_err(ConformanceError::Folder)?;
        let mut node = Node::new(&options.node, folder.path(), options.port)?;
        node.start(SHARDS).await?;
        let fingerprint = node.fingerprint().await?;
        let mut stage = Self {
            node,
            judge: Judge::default(),
            program: None,
            command: options.program.clone(),
            patience: options.patience,
            folder,
            fingerprint,
            last: 0,
            subscriptions: Vec::new(),
        };
        fs::create_dir_all(stage.program_folder()).map_err(ConformanceError::Folder)?;
        stage.start_program()?;
        Ok(stage)
    }

    /// Its end. What was wrong in it.
    pub(super) fn clear(self) -> Vec<String> {
        self.judge.faults()
    }

    fn program_folder(&self) -> PathBuf {
        self.folder.path().join("gateway")
    }

    pub(super) fn start_program(&mut self) -> Result<(), ConformanceError> {
        let place = (self.node.address(), self.fingerprint.clone());
        self.program = Some(Program::start(&self.command, (&place.0, &place.1), &self.program_folder())?);
        Ok(())
    }

    /// Killed at once. What came after `saved` changes had been saved is forgotten.
    pub(super) async fn kill_program(&mut self, saved: u64) {
        let Some(program) = self.program.take() else { return };
        for told in program.kill().await {
            self.take(told);
        }
        self.judge.forget_from(saved + 1);
    }

    pub(super) async fn tell(&mut self, command: Command) -> Played {
        match &mut self.program {
            Some(program) => program.tell(&command).await.map_err(Stopped::Fault),
            None => Ok(()),
        }
    }

    /// Subscribes, and waits until all are live.
    pub(super) async fn subscribe(&mut self, subscriptions: Vec<Subscription>) -> Played {
        let ids: Vec<String> = subscriptions.iter().map(|subscription| subscription.id.clone()).collect();
        ids.iter().for_each(|id| self.judge.subscribed(id));
        self.subscriptions.extend(subscriptions.iter().cloned());
        self.tell(Command::Subscribe { subscriptions }).await?;
        self.wait("live subscriptions", |judge| match ids.iter().find(|id| !judge.is_live(id)) {
            None => Ok(()),
            Some(id) => Err(format!("subscription {id} was never live")),
        })
        .await
    }

    /// The same subscriptions in a program that was started again.
    pub(super) async fn subscribe_again(&mut self) -> Played {
        let subscriptions = std::mem::take(&mut self.subscriptions);
        self.subscribe(subscriptions).await
    }

    /// Writes a document with this field `n`. How many bytes more it has is for scenes of large ones.
    pub(super) async fn put(
        &mut self,
        (collection, document): (&str, &str),
        n: i64,
        operation: Operation,
        concerned: Concerned<'_>,
    ) -> Played {
        self.put_large((collection, document), n, 0, operation, concerned).await
    }

    pub(super) async fn put_large(
        &mut self,
        (collection, document): (&str, &str),
        n: i64,
        size: usize,
        operation: Operation,
        concerned: Concerned<'_>,
    ) -> Played {
        // The number stands last: it is right only if everything before it was read rightly.
        let body = format!("{{\"padding\": \"{}\", \"n\": {n}}}", "x".repeat(size));
        self.last = self.node.put(collection, document, body).await?;
        self.expect(document, n, size, operation, concerned);
        Ok(())
    }

    /// An update, of which those whom it leaves are shown the document as it was.
    pub(super) async fn put_leaving(
        &mut self,
        (collection, document): (&str, &str),
        (was, is): (i64, i64),
        concerned: Concerned<'_>,
    ) -> Played {
        self.put((collection, document), is, Operation::Update, &[]).await?;
        for one in concerned {
            let n = if one.1 == Transition::Leave { was } else { is };
            self.expect(document, n, 0, Operation::Update, &[*one]);
        }
        Ok(())
    }

    /// `n` is that of the document as it was.
    pub(super) async fn delete(
        &mut self,
        (collection, document): (&str, &str),
        n: i64,
        concerned: Concerned<'_>,
    ) -> Played {
        self.last = self.node.delete(collection, document).await?;
        self.expect(document, n, 0, Operation::Delete, concerned);
        Ok(())
    }

    /// Inserts a document for each number, at once.
    pub(super) async fn put_many(
        &mut self,
        collection: &str,
        numbers: std::ops::Range<i64>,
        concerned: Concerned<'_>,
    ) -> Played {
        let line = |n: i64| {
            let data = json!({ "n": n });
            let line: Value =
                json!({"op": "put", "tenant": TENANT, "collection": collection, "id": format!("d{n}"), "data": data});
            format!("{line}\n")
        };
        self.node.post(numbers.clone().map(line).collect()).await?;
        for n in numbers {
            self.last += 1;
            self.expect(&format!("d{n}"), n, 0, Operation::Insert, concerned);
        }
        Ok(())
    }

    /// Documents that concern nobody, of this many bytes each.
    pub(super) async fn put_many_large(
        &mut self,
        collection: &str,
        numbers: std::ops::Range<i64>,
        size: usize,
    ) -> Played {
        let padding = "x".repeat(size);
        let line = |n: i64| {
            let (id, data) = (format!("d{n}"), json!({"padding": padding, "n": n}));
            format!("{}\n", json!({"op": "put", "tenant": TENANT, "collection": collection, "id": id, "data": data}))
        };
        self.last += (numbers.end - numbers.start) as u64;
        self.node.post(numbers.map(line).collect()).await?;
        Ok(())
    }

    fn expect(&mut self, document: &str, n: i64, size: usize, operation: Operation, concerned: Concerned<'_>) {
        for (id, transition) in concerned {
            let (time, transition) = (self.last, *transition);
            self.judge.expect(id, Expected { time, transition, operation, document, n, size });
        }
    }

    /// Waits until every change that must come has come.
    pub(super) async fn wait_all(&mut self) -> Played {
        self.wait("changes", |judge| judge.missing().map_or(Ok(()), Err)).await
    }

    /// Waits until the judge finds it so. `found` says what is missing.
    pub(super) async fn wait(&mut self, what: &str, found: impl Fn(&Judge) -> Result<(), String>) -> Played {
        let deadline = Instant::now() + self.patience;
        loop {
            let Err(missing) = found(&self.judge) else { return Ok(()) };
            if let Some(reason) = self.judge.ended_wrongly() {
                return Err(Stopped::Fault(format!("the Gateway has ended ({reason}), so {missing}")));
            }
            let Some(program) = &self.program else {
                return Err(Stopped::Fault(format!("no Gateway runs, so {missing}")));
            };
            match timeout_at(deadline, program.next()).await {
                Ok(Some(told)) => self.take(told),
                Ok(None) => return Err(Stopped::Fault(format!("the Gateway's program has ended, so {missing}"))),
                Err(_) => {
                    return Err(Stopped::Fault(format!("waited {:?} for {what}: {missing}", self.patience)));
                }
            }
        }
    }

    /// Waits until the node shows it so, and takes what comes meanwhile.
    pub(super) async fn wait_node(
        &mut self,
        what: &str,
        found: impl AsyncFn(&Node) -> Result<bool, ConformanceError>,
    ) -> Played {
        let deadline = Instant::now() + self.patience;
        while !found(&self.node).await? {
            if Instant::now() > deadline {
                return Err(Stopped::Fault(format!("waited {:?} until {what}, and it never was so", self.patience)));
            }
            self.listen(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Waits until the node knows that the application is done with all that was written, and with every gap and resync.
    pub(super) async fn wait_done(&mut self) -> Played {
        let last = self.last;
        // Of the two only the first is never out of date. It doesn't wait for resyncs.
        let done = async |node: &Node| Ok(node.settled().await? >= last && node.unsettled().await? == 0);
        self.wait_node("all is acked as done", done).await
    }

    /// The source has begun a new history.
    pub(super) fn begin_again(&mut self) {
        self.last = 0;
        self.judge.begin_again();
    }

    /// Takes what comes for some time.
    pub(super) async fn listen(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        loop {
            let Some(program) = &self.program else { return };
            match timeout_at(deadline, program.next()).await {
                Ok(Some(told)) => self.take(told),
                Ok(None) => return tokio::time::sleep_until(deadline).await,
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, told: Result<super::lines::Told, String>) {
        match told {
            Ok(told) => self.judge.take(told),
            Err(error) => self.judge.fault(format!("a line of the Gateway's program is not understood: {error}")),
        }
    }
}

/// A subscription to a collection as a whole.
pub(super) fn whole(id: &str, collection: &'static str) -> Subscription {
    Subscription { tenant: TENANT, id: id.to_owned(), collection, filters: Vec::new(), expr: "" }
}

pub(super) fn filtered(id: &str, collection: &'static str, filter: Value) -> Subscription {
    Subscription { filters: vec![filter], ..whole(id, collection) }
}
