//! Where a settled position is kept over a restart.
//!
//! A checkpoint never names a place that some Gateway still owes: what lies before it has been delivered and acked, or told
//! as a gap or a resync. An older checkpoint is always safe: what is read again is dropped by the Gateways.
//!
//! | store | where | what keeps two nodes apart |
//! |---|---|---|
//! | [`FileStore`] | two files in the data folder | the lock on the data folder |
//! | [`MongoStore`] | one document, replaced by compare | the owner's epoch in the document: the one that took it last may write |

mod file;
mod mongodb;

use std::time::SystemTime;

pub use self::{
    file::{Disk, FileStore, SlotStore},
    mongodb::{MongoPlace, MongoStore},
};
use serde::{Deserialize, Serialize};
use wire::{BackendId, Lineage, Position};

use crate::{
    config::{CheckpointPlace, Config},
    ingest::{settle::ResumePoint, source::ResumeToken},
};

/// The store that the configuration names. Nothing is read or connected to before it is used.
pub fn open(config: &Config) -> Result<Box<dyn CheckpointStore>, CheckpointError> {
    let file = FileStore::in_data_folder(&config.node.data_dir)?;
    Ok(match &config.checkpoint.place {
        CheckpointPlace::File => Box::new(file),
        CheckpointPlace::Mongodb(place) => Box::new(MongoStore::new(place.clone(), config.checkpoint.every, file)?),
    })
}

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    pub backends: Vec<BackendCheckpoint>,
    /// Gateways with live subscriptions: the ones that a restarting node gives time to come back before it reads on.
    pub gateways: Vec<String>,
}

/// Where to go on reading one backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendCheckpoint {
    /// Its name in the configuration.
    pub name: String,
    /// Identity of the source and fingerprint of pipeline and options, in hexadecimal.
    #[serde(with = "hex_u64")]
    pub lineage: u64,
    /// The same in words.
    pub source: String,
    pub time: u64,
    pub k: u32,
    /// Hexadecimal of the resume token's BSON; absent before the first event.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex_bytes")]
    pub token: Option<Vec<u8>>,
}

impl BackendCheckpoint {
    pub fn new(name: &str, source: &str, point: &ResumePoint) -> Self {
        Self {
            name: name.to_owned(),
            lineage: point.position.lineage.0,
            source: source.to_owned(),
            time: point.position.time,
            k: point.position.k,
            token: point.token.as_ref().map(|token| token.0.to_vec()),
        }
    }

    pub fn resume_point(&self) -> ResumePoint {
        ResumePoint {
            position: Position {
                backend: BackendId::of_name(&self.name),
                lineage: Lineage(self.lineage),
                time: self.time,
                k: self.k,
            },
            token: self.token.clone().map(|token| ResumeToken(token.into())),
        }
    }
}

/// A place that keeps one checkpoint.
///
/// Calls block. They may be made from within a runtime, but not on a thread that has something better to do.
pub trait CheckpointStore: Send {
    /// What is kept, without a claim on it. `None` when none was ever written.
    fn load(&mut self) -> Result<Option<Checkpoint>, CheckpointError>;

    /// Makes this process the one that writes, and tells what is kept. Whoever was it before can't write any more.
    fn claim(&mut self) -> Result<Option<Checkpoint>, CheckpointError> {
        self.load()
    }

    /// Returns once it would survive a crash of the machine. After an error it may have been written or not; it is safe to go on
    /// with a later one.
    fn save(&mut self, checkpoint: &Checkpoint) -> Result<(), CheckpointError>;

    /// Forgets what is kept: the next start reads from now on.
    fn reset(&mut self) -> Result<(), CheckpointError>;

    /// This process writes no more. It is only a courtesy to whoever looks next.
    fn release(&mut self) -> Result<(), CheckpointError> {
        Ok(())
    }

    /// Who else seems to be writing just now; waits for as long as it takes to tell.
    fn owned_elsewhere(&mut self) -> Result<Option<String>, CheckpointError> {
        Ok(None)
    }

    /// Whether another process could take it over unnoticed. Then it is written also while nothing changes: that shows that its owner
    /// lives, and shows the owner when it is none any more.
    fn is_shared(&self) -> bool {
        false
    }

    /// Slots found unreadable while another could be used.
    fn bad_slots(&self) -> u64;

    /// Where it is, and when what was read last was written.
    fn about(&self) -> About;
}

/// For people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// `file` or `mongodb`.
    pub store: &'static str,
    pub place: String,
    /// By the clock of the machine that wrote it.
    pub written_at: Option<SystemTime>,
    /// Who took it last, where the store knows that.
    pub owner: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("checkpoint {path}: {error}")]
    Io { path: String, error: std::io::Error },
    #[error(
        "both checkpoint slots are unreadable ({first}; {second}); nothing was changed. `streamer checkpoint reset` forgets \
         them: reading then starts from now, and what happened since the last good checkpoint is not delivered"
    )]
    BothBad { first: String, second: String },
    #[error("checkpoint {place}: {why}")]
    Unavailable { place: String, why: String },
    #[error(
        "checkpoint {place}: it has two owners: {owner} took it (epoch {theirs}) from this process (epoch {ours}), which must stop \
         now. Nothing is lost: what it read since its last checkpoint is read by the other one. Nodes that are meant to run at the \
         same time each need a checkpoint.mongodb.node of their own"
    )]
    TwoOwners { place: String, owner: String, theirs: i64, ours: i64 },
    #[error(
        "checkpoint {place}: it is gone: somebody has removed the document while this process owned it, which must stop now"
    )]
    Removed { place: String },
    #[error(
        "checkpoint {place}: the document is none that this program can read: {why}; nothing was changed. `streamer checkpoint \
         reset` forgets it: reading then starts from now, and what happened since it was written is not delivered"
    )]
    Rotten { place: String, why: String },
    #[error(
        "checkpoint {place}: it would take {bytes} bytes with its {gateways} Gateways, where a document holds {most}; it is not \
         written, and no further Gateway's subscriptions become live. checkpoint.store = \"file\" has no such limit"
    )]
    TooLarge { place: String, bytes: usize, gateways: usize, most: usize },
}

impl CheckpointError {
    /// Whether this process may write no more, whatever it tries.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::TwoOwners { .. } | Self::Removed { .. })
    }
}

mod hex_u64 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(in crate::checkpoint) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{value:016x}"))
    }

    pub(in crate::checkpoint) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map_err(|_| D::Error::custom(format!("{text:?} is not a hexadecimal number")))
    }
}

mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(bytes) => serializer.serialize_str(&crate::tls::hexadecimal(bytes)),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
        text.as_bytes()
            .chunks(2)
            .map(|pair| match pair {
                [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
                _ => None,
            })
            .collect::<Option<Vec<u8>>>()
            .map(Some)
            .ok_or_else(|| D::Error::custom("the token is not hexadecimal"))
    }
}
