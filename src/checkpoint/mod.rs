//! Where a settled position is kept over a restart.
//!
//! A checkpoint never names a place that some Gateway still owes: what lies before it has been delivered and acked, or told
//! as a gap or a resync. An older checkpoint is always safe: what is read again is dropped by the Gateways.

mod file;

pub use file::FileStore;
use serde::{Deserialize, Serialize};
use wire::{BackendId, Lineage, Position};

use crate::ingest::{settle::ResumePoint, source::ResumeToken};

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
pub trait CheckpointStore: Send {
    /// `None` when none was ever written.
    fn load(&mut self) -> Result<Option<Checkpoint>, CheckpointError>;
    /// Returns once it would survive a crash of the machine.
    fn save(&mut self, checkpoint: &Checkpoint) -> Result<(), CheckpointError>;
    /// Forgets what is kept: the next start reads from now on.
    fn reset(&mut self) -> Result<(), CheckpointError>;
    /// Slots found unreadable while another could be used.
    fn bad_slots(&self) -> u64;
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
}

mod hex_u64 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{value:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
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
