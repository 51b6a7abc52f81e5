//! The checkpoint as one document, written with a majority and only by its owner.
//!
//! Invariants:
//! - Every write names the state that it replaces: the owner's epoch and id, and a number that each write counts up. Nothing is written
//!   over a state that the writer hasn't seen, so the document never goes back to an older state, however late a write arrives.
//! - Whoever claims the document raises the epoch. Writes of the owner before then fail, and it learns from the document why.
//! - A write whose outcome isn't known is followed by a read, never by an assumption. What the server once confirmed must still be there:
//!   an answer that is older is an error, not a state to go on from.
//! - A document that can't be read as a whole is left as it is.

mod form;
mod server;
#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

use bson::{DateTime, Document};
use rand::Rng;

use self::{
    form::{BYTES_MAX, Kept, Version, whole},
    server::Server,
};
use super::{About, Checkpoint, CheckpointError, CheckpointStore, FileStore};
use crate::ingest::source::mongodb::redact_uri;

/// Which document.
#[derive(Clone, PartialEq, Eq)]
pub struct MongoPlace {
    /// Connection string, credentials included. Never shown.
    pub uri: String,
    pub database: String,
    pub collection: String,
    /// Its `_id`: the node that it is of.
    pub node: String,
}

impl fmt::Display for MongoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uri, database, collection, node } = self;
        write!(f, "{node:?} in {database}.{collection} at {}", redact_uri(uri))
    }
}

impl fmt::Debug for MongoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MongoPlace({self})")
    }
}

/// Something went wrong on the way. A write may have been applied all the same, or may yet be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trouble(String);

/// The one document on its server. Each call is one attempt.
trait Documents {
    fn read(&mut self) -> Result<Option<Document>, Trouble>;
    /// False if there is one already.
    fn insert(&mut self, document: Document) -> Result<bool, Trouble>;
    /// False if there is none in this state.
    fn update(&mut self, expected: &Version, change: Document) -> Result<bool, Trouble>;
    /// In the place of one that can't be read.
    fn overwrite(&mut self, document: Document) -> Result<(), Trouble>;
    fn pause(&mut self, time: Duration);
}

/// Attempts of one call of ours before it is told that it can't be done; whoever calls tries again later.
const ATTEMPTS: usize = 4;

/// See the module's documentation.
pub struct MongoStore(Store<Server>);

impl MongoStore {
    /// `beat`: how often the owner writes at least. `file`: what counts as long as there is no document, so that a node that used to keep
    /// its checkpoint in a file goes on where it was.
    pub fn new(place: MongoPlace, beat: Duration, file: FileStore) -> Result<Self, CheckpointError> {
        let server = Server::new(place.clone())?;
        Ok(Self(Store::new(server, place, beat, Some(file))))
    }
}

impl CheckpointStore for MongoStore {
    fn load(&mut self) -> Result<Option<Checkpoint>, CheckpointError> {
        self.0.load()
    }

    fn claim(&mut self) -> Result<Option<Checkpoint>, CheckpointError> {
        self.0.claim()
    }

    fn save(&mut self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        self.0.write(true, Some(checkpoint))
    }

    fn reset(&mut self) -> Result<(), CheckpointError> {
        self.0.reset()
    }

    fn release(&mut self) -> Result<(), CheckpointError> {
        self.0.release()
    }

    fn owned_elsewhere(&mut self) -> Result<Option<String>, CheckpointError> {
        self.0.owned_elsewhere()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn bad_slots(&self) -> u64 {
        0
    }

    fn about(&self) -> About {
        self.0.about()
    }
}

struct Store<D> {
    documents: D,
    place: MongoPlace,
    /// This process, as the document knows it.
    id: String,
    name: String,
    beat_ms: i64,
    file: Option<FileStore>,
    /// The document as it was read last, or written with a known outcome.
    known: Option<Kept>,
    /// Whether the document may have changed since, by a write of ours.
    in_doubt: bool,
    /// The epoch at which this process took it.
    claimed: Option<i64>,
}

impl<D: Documents> Store<D> {
    fn new(documents: D, place: MongoPlace, beat: Duration, file: Option<FileStore>) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = if host.trim().is_empty() { "a host without a name" } else { host.trim() };
        Self {
            documents,
            place,
            id: format!("{:016x}", rand::rng().random::<u64>()),
            name: format!("{host}, process {}", std::process::id()),
            beat_ms: i64::try_from(beat.as_millis()).unwrap_or(i64::MAX),
            file,
            known: None,
            in_doubt: false,
            claimed: None,
        }
    }

    /// Reads the document anew.
    fn look(&mut self) -> Result<Option<&Kept>, CheckpointError> {
        let found = self.documents.read().map_err(|trouble| self.unavailable(&trouble))?;
        let found = match found {
            Some(document) => Some(Kept::read(document).map_err(|why| self.rotten(why))?),
            None => None,
        };
        if let (Some(known), Some(found)) = (&self.known, &found)
            && (found.version.epoch, found.version.seq) < (known.version.epoch, known.version.seq)
        {
            let shown = |version: &Version| format!("state {} of epoch {}", version.seq, version.epoch);
            let why = format!(
                "the server shows {}, where it has confirmed {}: it has lost a write, or is not the primary any more",
                shown(&found.version),
                shown(&known.version)
            );
            return Err(CheckpointError::Unavailable { place: self.place.to_string(), why });
        }
        self.known = found;
        self.in_doubt = false;
        Ok(self.known.as_ref())
    }

    fn load(&mut self) -> Result<Option<Checkpoint>, CheckpointError> {
        if let Some(kept) = self.look()? {
            return Ok(kept.checkpoint.clone());
        }
        match &mut self.file {
            Some(file) => file.load(),
            None => Ok(None),
        }
    }

    fn claim(&mut self) -> Result<Option<Checkpoint>, CheckpointError> {
        let mut why = Trouble("others take it again and again".into());
        for _ in 0..ATTEMPTS {
            if self.look()?.is_none() {
                // It will be the first: nothing of this process is in it yet, and an attempt before this one may yet arrive.
                let checkpoint = self.load()?;
                if checkpoint.is_some() {
                    tracing::info!("no checkpoint {} yet: going on from the one in the data folder", self.place);
                }
                let first = self.next(None, true, checkpoint);
                let document = self.whole(&first)?;
                match self.documents.insert(document) {
                    Ok(true) => return Ok(self.own(first)),
                    Ok(false) => {}
                    Err(trouble) => why = trouble,
                }
                self.in_doubt = true;
                continue;
            }
            let Some(known) = self.known.clone() else { continue };
            if known.version.id == self.id {
                return Ok(self.own(known));
            }
            if known.alive {
                tracing::warn!(
                    "taking the checkpoint {} over from {}, which has not let go of it",
                    self.place,
                    known.owner
                );
            }
            let mut mine = self.next(Some(&known), true, known.checkpoint.clone());
            mine.version.epoch = known.version.epoch + 1;
            match self.replace(&known, &mine)? {
                Ok(true) => return Ok(self.own(mine)),
                Ok(false) => {}
                Err(trouble) => why = trouble,
            }
        }
        // The last attempt may have done it.
        match self.look()?.cloned() {
            Some(known) if known.version.id == self.id => Ok(self.own(known)),
            _ => Err(self.unavailable(&why)),
        }
    }

    /// The document is this process's own.
    fn own(&mut self, known: Kept) -> Option<Checkpoint> {
        self.claimed = Some(known.version.epoch);
        self.in_doubt = false;
        self.known.insert(known).checkpoint.clone()
    }

    /// Makes the document say this. It must have been claimed.
    fn write(&mut self, alive: bool, checkpoint: Option<&Checkpoint>) -> Result<(), CheckpointError> {
        let mut why = Trouble("other writes of this process arrived late, again and again".into());
        for _ in 0..ATTEMPTS {
            let was_in_doubt = self.in_doubt;
            if was_in_doubt {
                self.look()?;
            }
            let known = self.own_state()?;
            if was_in_doubt && known.alive == alive && known.checkpoint.as_ref() == checkpoint {
                return Ok(());
            }
            let next = self.next(Some(&known), alive, checkpoint.cloned());
            match self.replace(&known, &next)? {
                Ok(true) => {
                    self.known = Some(next);
                    return Ok(());
                }
                Ok(false) => {}
                Err(trouble) => why = trouble,
            }
        }
        self.look()?;
        let known = self.own_state()?;
        if known.alive == alive && known.checkpoint.as_ref() == checkpoint {
            return Ok(());
        }
        Err(self.unavailable(&why))
    }

    /// What is known of the document, if it is still this process's.
    fn own_state(&self) -> Result<Kept, CheckpointError> {
        let place = self.place.to_string();
        let Some(known) = &self.known else { return Err(CheckpointError::Removed { place }) };
        match self.claimed {
            Some(epoch) if known.version.id == self.id && known.version.epoch == epoch => Ok(known.clone()),
            ours => Err(CheckpointError::TwoOwners {
                place,
                owner: known.owner.clone(),
                theirs: known.version.epoch,
                ours: ours.unwrap_or(0),
            }),
        }
    }

    /// One attempt. Unless it is known to have been applied, the document has to be looked at before anything else.
    fn replace(&mut self, before: &Kept, after: &Kept) -> Result<Result<bool, Trouble>, CheckpointError> {
        let change = after.change_from(before, &self.whole(after)?);
        let outcome = self.documents.update(&before.version, change);
        self.in_doubt = outcome != Ok(true);
        Ok(outcome)
    }

    /// The state after `before`, written by this process.
    fn next(&self, before: Option<&Kept>, alive: bool, checkpoint: Option<Checkpoint>) -> Kept {
        let (epoch, seq) = before.map_or((1, 1), |before| (before.version.epoch, before.version.seq + 1));
        Kept {
            version: Version { epoch, id: self.id.clone(), seq },
            owner: self.name.clone(),
            alive,
            beat_ms: self.beat_ms,
            written_at: DateTime::now(),
            checkpoint,
        }
    }

    fn whole(&self, kept: &Kept) -> Result<Document, CheckpointError> {
        kept.write(&self.place.node).map_err(|bytes| CheckpointError::TooLarge {
            place: self.place.to_string(),
            bytes,
            gateways: kept.checkpoint.as_ref().map_or(0, |kept| kept.gateways.len()),
            most: BYTES_MAX,
        })
    }

    /// The document stays, without a place in it: one that is missing would be made from the file again.
    fn reset(&mut self) -> Result<(), CheckpointError> {
        match self.claim() {
            Ok(_) => self.write(true, None),
            Err(CheckpointError::Rotten { .. }) => {
                let found = self.documents.read().map_err(|trouble| self.unavailable(&trouble))?;
                let epoch = found.as_ref().and_then(|found| whole(found.get_document("owner").ok()?.get("epoch")?));
                // The clock's milliseconds are above any epoch that was counted, which what is written there needn't be.
                let epoch = epoch.unwrap_or(0).max(DateTime::now().timestamp_millis());
                let mut first = self.next(None, true, None);
                first.version.epoch = epoch.saturating_add(1);
                let document = self.whole(&first)?;
                self.documents.overwrite(document).map_err(|trouble| self.unavailable(&trouble))?;
                self.own(first);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn release(&mut self) -> Result<(), CheckpointError> {
        if self.claimed.is_none() {
            return Ok(());
        }
        // The place in the document stays what it is, also where it isn't the one that was tried last.
        if self.in_doubt {
            self.look()?;
        }
        let checkpoint = self.own_state()?.checkpoint;
        self.write(false, checkpoint.as_ref())
    }

    /// An owner that lives writes at every beat, so whoever waits for two sees it. Clocks of different machines are not compared.
    fn owned_elsewhere(&mut self) -> Result<Option<String>, CheckpointError> {
        const LOOKS: u32 = 20;
        let Some(first) = self.look()?.cloned() else { return Ok(None) };
        if !first.alive || first.version.id == self.id {
            return Ok(None);
        }
        let beat = Duration::from_millis(u64::try_from(first.beat_ms).unwrap_or(0).min(BEAT_MS_MAX));
        let pause = (2 * beat + Duration::from_secs(1)) / LOOKS;
        for _ in 0..LOOKS {
            self.documents.pause(pause);
            match self.look()? {
                Some(now) if now.version != first.version => return Ok(now.alive.then(|| now.owner.clone())),
                Some(_) => {}
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    fn about(&self) -> About {
        let file = || self.file.as_ref().map(FileStore::about).and_then(|about| about.written_at);
        About {
            store: "mongodb",
            place: self.place.to_string(),
            written_at: self.known.as_ref().map_or_else(file, |known| Some(known.written_at.to_system_time())),
            owner: self.known.as_ref().map(|known| {
                let lets_go = if known.alive { "has it" } else { "has let go of it" };
                format!("{} {lets_go} (epoch {})", known.owner, known.version.epoch)
            }),
        }
    }

    fn unavailable(&self, trouble: &Trouble) -> CheckpointError {
        CheckpointError::Unavailable { place: self.place.to_string(), why: trouble.0.clone() }
    }

    fn rotten(&self, why: String) -> CheckpointError {
        CheckpointError::Rotten { place: self.place.to_string(), why }
    }
}

/// The configuration allows no longer one, so a document that says so is wrong.
const BEAT_MS_MAX: u64 = 30_000;
