//! A stock client that writes what the workload generates: single writes, transactions, and updates of many documents at once.
//!
//! Invariant: unless racing is asked for, a document whose update may not have been read yet is left alone until
//! [`Client::all_were_read`]; what the generator has for it waits, in order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bson::{Bson, Document, doc};
use mongodb::{ClientSession, Collection};
use workload::{Generator, Preset, Write, WriteKind, Writer, events::stored_form, generate::Schedule};

use super::layout::Layout;

/// Tenant, collection and id, in the generator's names.
type DocumentName = (String, String, String);

pub(super) struct Client {
    driver: mongodb::Client,
    writer: Writer,
    schedule: Schedule,
    /// Generated, for documents that are left alone for now.
    waiting: VecDeque<Write>,
    left_alone: BTreeSet<DocumentName>,
    racing: bool,
    /// One write of each document that is there, for its place and id.
    there: BTreeMap<DocumentName, Write>,
    /// Counts up with every write, so that none leaves its document as it was.
    revision: i64,
}

impl Client {
    pub(super) fn new(driver: mongodb::Client, generator: &Generator) -> Self {
        Self {
            driver,
            writer: generator.writer(),
            schedule: generator.schedule(),
            waiting: VecDeque::new(),
            left_alone: BTreeSet::new(),
            racing: false,
            there: BTreeMap::new(),
            revision: 0,
        }
    }

    /// Writes documents again at once, whether or not the update before was read.
    pub(super) fn race(&mut self) {
        self.racing = true;
    }

    /// Every update so far was read by all who look documents up.
    pub(super) fn all_were_read(&mut self) {
        self.left_alone.clear();
    }

    /// Makes about `count` writes, some of them in transactions. How many events that makes.
    pub(super) async fn write(&mut self, layout: &Layout, count: usize) -> usize {
        let mut events = 0;
        while events < count {
            let group = self.next_group();
            events += group.len();
            if let [write] = group.as_slice() {
                self.prepare(layout, write).await.run(None).await;
            } else {
                let mut prepared = Vec::new();
                for write in &group {
                    prepared.push(self.prepare(layout, write).await);
                }
                let mut session = self.driver.start_session().await.expect("a session starts");
                session.start_transaction().await.expect("a transaction starts");
                for one in prepared {
                    one.run(Some(&mut session)).await;
                }
                session.commit_transaction().await.expect("it commits");
            }
        }
        events
    }

    /// Changes up to `count` documents of one collection with one command. How many events that makes.
    pub(super) async fn update_many(&mut self, layout: &Layout, count: usize) -> usize {
        let free = |(name, _): &(&DocumentName, &Write)| self.racing || !self.left_alone.contains(*name);
        let Some((_, first)) = self.there.iter().filter(free).nth(self.revision as usize % 5) else { return 0 };
        let home = layout.home(first);
        let mine = |write: &&Write| layout.home(write).namespace() == home.namespace();
        let free: Vec<(DocumentName, Bson)> = self
            .there
            .iter()
            .filter(free)
            .filter(|(_, write)| mine(write))
            .take(count)
            .map(|(name, write)| (name.clone(), layout.stored_id(write)))
            .collect();
        self.revision += 1;
        let (prefix, revision) = match layout.profile.preset {
            Preset::Syntrix => ("data.", "version"),
            Preset::Plain => ("", "revision"),
        };
        let field = |name: &str| format!("{prefix}{name}");
        let update = doc! {
            "$set": { field("status"): "held" },
            "$unset": { field("note"): "" },
            "$push": { field("tags"): "gold" },
            "$inc": { revision: 1_i64 },
        };
        let (names, ids): (Vec<DocumentName>, Vec<Bson>) = free.into_iter().unzip();
        let result = home.update_many(doc! { "_id": { "$in": ids } }, update).await.expect("the update succeeds");
        assert_eq!(result.modified_count, names.len() as u64, "documents that should be there are not");
        let count = names.len();
        self.left_alone.extend(names);
        count
    }

    /// Writes for one transaction, of a document each.
    fn next_group(&mut self) -> Vec<Write> {
        let size = self.schedule.transaction();
        let mut taken = BTreeSet::new();
        let mut group = Vec::new();
        let mut passed_over = VecDeque::new();
        let mut skipped = BTreeSet::new();
        while group.len() < size {
            let write = self.waiting.pop_front().unwrap_or_else(|| self.writer.next());
            let name = name_of(&write);
            let may = (self.racing || !self.left_alone.contains(&name)) && !taken.contains(&name);
            if may && !skipped.contains(&name) {
                taken.insert(name);
                group.push(write);
            } else {
                skipped.insert(name);
                passed_over.push_back(write);
            }
        }
        passed_over.append(&mut self.waiting);
        self.waiting = passed_over;
        group
    }

    async fn prepare(&mut self, layout: &Layout, write: &Write) -> Prepared {
        self.revision += 1;
        let home = layout.home(write);
        let id = layout.stored_id(write);
        let before = match write.kind {
            WriteKind::Insert => None,
            _ => home.find_one(doc! { "_id": &id }).await.expect("the server finds documents"),
        };
        let operation = match layout.profile.preset {
            Preset::Syntrix => nested(write, before.as_ref(), self.revision),
            Preset::Plain => plain(write, &id, self.revision),
        };
        let name = name_of(write);
        match operation {
            Operation::Delete => drop(self.there.remove(&name)),
            _ => drop(self.there.insert(name.clone(), write.clone())),
        }
        if let Operation::Update(_) = operation {
            self.left_alone.insert(name);
        }
        Prepared { home, id, operation }
    }
}

fn name_of(write: &Write) -> DocumentName {
    (write.tenant.clone(), write.collection.clone(), write.document_id.clone())
}

enum Operation {
    Insert(Document),
    Replace(Document),
    Update(Document),
    Delete,
}

fn nested(write: &Write, before: Option<&Document>, revision: i64) -> Operation {
    /// Any time will do, as long as it goes on.
    const START_MS: i64 = 1_700_000_000_000;
    let after = stored_form(write, before, START_MS + revision);
    let mut set = doc! { "version": after.get("version"), "updated_at": after.get("updated_at") };
    match &write.kind {
        WriteKind::Insert => Operation::Insert(after),
        WriteKind::Replace => Operation::Replace(after),
        WriteKind::HardDelete => Operation::Delete,
        WriteKind::Update { set: fields } => {
            set.extend(fields.iter().map(|(name, value)| (format!("data.{name}"), value.clone())));
            Operation::Update(doc! { "$set": set })
        }
        WriteKind::SoftDelete => {
            set.insert("deleted", true);
            Operation::Update(doc! { "$set": set })
        }
        WriteKind::Recreate => {
            set.insert("data", after.get("data").cloned());
            match after.get("deleted") {
                Some(mark) => {
                    set.insert("deleted", mark.clone());
                    Operation::Update(doc! { "$set": set })
                }
                None => Operation::Update(doc! { "$set": set, "$unset": { "deleted": "" } }),
            }
        }
    }
}

fn plain(write: &Write, id: &Bson, revision: i64) -> Operation {
    let whole = || {
        let mut document = doc! { "_id": id };
        document.extend(write.data.clone());
        document.insert("revision", revision);
        document
    };
    match &write.kind {
        WriteKind::Insert => Operation::Insert(whole()),
        WriteKind::Replace => Operation::Replace(whole()),
        WriteKind::Update { set } => {
            let mut set = set.clone();
            set.insert("revision", revision);
            Operation::Update(doc! { "$set": set })
        }
        WriteKind::HardDelete => Operation::Delete,
        WriteKind::SoftDelete | WriteKind::Recreate => panic!("nothing is deleted softly under this preset"),
    }
}

/// A write as the driver is told it.
struct Prepared {
    home: Collection<Document>,
    id: Bson,
    operation: Operation,
}

impl Prepared {
    async fn run(self, session: Option<&mut ClientSession>) {
        let Self { home, id, operation } = self;
        let query = doc! { "_id": &id };
        let met = match (operation, session) {
            (Operation::Insert(document), None) => home.insert_one(document).await.map(|_| 1),
            (Operation::Insert(document), Some(s)) => home.insert_one(document).session(s).await.map(|_| 1),
            (Operation::Replace(document), None) => home.replace_one(query, document).await.map(|r| r.modified_count),
            (Operation::Replace(document), Some(s)) => {
                home.replace_one(query, document).session(s).await.map(|r| r.modified_count)
            }
            (Operation::Update(update), None) => home.update_one(query, update).await.map(|r| r.modified_count),
            (Operation::Update(update), Some(s)) => {
                home.update_one(query, update).session(s).await.map(|r| r.modified_count)
            }
            (Operation::Delete, None) => home.delete_one(query).await.map(|r| r.deleted_count),
            (Operation::Delete, Some(s)) => home.delete_one(query).session(s).await.map(|r| r.deleted_count),
        };
        let met = met.unwrap_or_else(|error| panic!("the server refused a write to {id}: {error}"));
        assert_eq!(met, 1, "a write to {id} met no document");
    }
}
