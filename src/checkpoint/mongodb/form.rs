//! The document, as it lies in the collection.
//!
//! ```text
//! { _id: "node-1", format: 1, seq: 42, written_at: Date,
//!   owner: { epoch: 7, id: "…", name: "host, process 123", alive: true, beat_ms: 5000 },
//!   backends: [{ name, lineage, source, time: Timestamp, k, token: BinData }], gateways: ["g1", …] }
//! ```
//!
//! `backends` and `gateways` are there or not together. What doesn't look like this is refused as a whole: a place to go on from that is
//! half understood is worse than none.

use bson::{Binary, DateTime, Document, Timestamp, doc, spec::BinarySubtype};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{BackendCheckpoint, Checkpoint};

/// Counted up when the form changes in a way that older programs would misread.
const FORMAT: i64 = 1;

/// What a document holds at most on the server, less some room for what the server adds.
pub(super) const BYTES_MAX: usize = 16 * 1024 * 1024 - 16 * 1024;

/// Which state of the document is meant: who owned it, and how often it had been written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) epoch: i64,
    /// Drawn by each process for itself, so that an epoch that comes again in a database put back from a backup is no other's.
    pub(super) id: String,
    pub(super) seq: i64,
}

/// A document that was read, or written with a known outcome.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kept {
    pub(super) version: Version,
    pub(super) owner: String,
    pub(super) alive: bool,
    pub(super) beat_ms: i64,
    pub(super) written_at: DateTime,
    pub(super) checkpoint: Option<Checkpoint>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    #[serde(rename = "_id")]
    id: String,
    format: i64,
    seq: i64,
    written_at: DateTime,
    owner: OwnerForm,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backends: Option<Vec<BackendForm>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateways: Option<Vec<String>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnerForm {
    epoch: i64,
    id: String,
    name: String,
    alive: bool,
    beat_ms: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackendForm {
    name: String,
    #[serde(with = "crate::checkpoint::hex_u64")]
    lineage: u64,
    source: String,
    /// A cluster time, for which BSON has a type of its own; an offset of an embedded store fits in as well.
    time: Timestamp,
    k: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<Binary>,
}

impl Kept {
    pub(super) fn read(document: Document) -> Result<Self, String> {
        match document.get("format").map(|format| (format, whole(format))) {
            Some((_, Some(FORMAT))) => {}
            Some((format, _)) => return Err(format!("its format is {format}; this program reads format {FORMAT}")),
            None => return Err("it has no field `format`".into()),
        }
        let Form { seq, written_at, owner, backends, gateways, .. } =
            bson::deserialize_from_document(document).map_err(|error| error.to_string())?;
        let checkpoint = match (backends, gateways) {
            (None, None) => None,
            (Some(backends), Some(gateways)) => {
                let backends = backends.into_iter().map(BackendForm::into_checkpoint).collect::<Result<_, _>>()?;
                Some(Checkpoint { backends, gateways })
            }
            _ => return Err("it has only one of `backends` and `gateways`".into()),
        };
        if seq < 1 || owner.epoch < 1 {
            return Err(format!("seq {seq} and epoch {} are not both above zero", owner.epoch));
        }
        Ok(Self {
            version: Version { epoch: owner.epoch, id: owner.id, seq },
            owner: owner.name,
            alive: owner.alive,
            beat_ms: owner.beat_ms,
            written_at,
            checkpoint,
        })
    }

    /// The whole document. The error is its size, where it is too large.
    pub(super) fn write(&self, id: &str) -> Result<Document, usize> {
        let form = Form {
            id: id.to_owned(),
            format: FORMAT,
            seq: self.version.seq,
            written_at: self.written_at,
            owner: self.owner_form(),
            backends: self.checkpoint.as_ref().map(|kept| kept.backends.iter().map(BackendForm::of).collect()),
            gateways: self.checkpoint.as_ref().map(|kept| kept.gateways.clone()),
        };
        let document = bson::serialize_to_document(&form).expect("every field has a form in BSON");
        match document.to_vec().map(|bytes| bytes.len()) {
            Ok(bytes) if bytes <= BYTES_MAX => Ok(document),
            Ok(bytes) => Err(bytes),
            Err(_) => Err(usize::MAX),
        }
    }

    /// What makes the document `self` out of `before`: the list of Gateways, which may be long and seldom changes, only where it has.
    pub(super) fn change_from(&self, before: &Self, whole: &Document) -> Document {
        let mut set = whole.clone();
        set.remove("_id");
        let gateways = |kept: &Self| kept.checkpoint.as_ref().map(|kept| kept.gateways.clone());
        if gateways(self) == gateways(before) {
            set.remove("gateways");
        }
        match &self.checkpoint {
            Some(_) => doc! { "$set": set },
            None => doc! { "$set": set, "$unset": { "backends": "", "gateways": "" } },
        }
    }

    fn owner_form(&self) -> OwnerForm {
        let Version { epoch, id, .. } = &self.version;
        let (epoch, id, name) = (*epoch, id.clone(), self.owner.clone());
        OwnerForm { epoch, id, name, alive: self.alive, beat_ms: self.beat_ms }
    }
}

impl BackendForm {
    fn of(backend: &BackendCheckpoint) -> Self {
        let BackendCheckpoint { name, lineage, source, time, k, token } = backend.clone();
        Self {
            name,
            lineage,
            source,
            time: Timestamp { time: (time >> 32) as u32, increment: time as u32 },
            k: i64::from(k),
            token: token.map(|bytes| Binary { subtype: BinarySubtype::Generic, bytes }),
        }
    }

    fn into_checkpoint(self) -> Result<BackendCheckpoint, String> {
        let Self { name, lineage, source, time, k, token } = self;
        let k = u32::try_from(k).map_err(|_| format!("backend {name:?}: k {k} is no count of events"))?;
        let time = u64::from(time.time) << 32 | u64::from(time.increment);
        Ok(BackendCheckpoint { name, lineage, source, time, k, token: token.map(|token| token.bytes) })
    }
}

/// A number, also where a shell has written it as another type.
pub(super) fn whole(value: &bson::Bson) -> Option<i64> {
    match value {
        bson::Bson::Int32(number) => Some(i64::from(*number)),
        bson::Bson::Int64(number) => Some(*number),
        bson::Bson::Double(number) if number.fract() == 0.0 && number.abs() < 9e15 => Some(*number as i64),
        _ => None,
    }
}
