//! The checkpoint as two files in the data folder.
//!
//! Invariants:
//! - The slots are written in turn, each with a sequence number and a checksum over all of it; the higher sequence counts.
//! - A slot is written beside its place, synced, renamed into it, and the folder synced: at every moment one slot is whole.
//! - One unreadable slot: the other is used, which is at worst older, and that is always safe. Both: refuse.
//!
//! A slot is one line, `streamer-checkpoint 1 SEQUENCE LENGTH CHECKSUM`, and `LENGTH` bytes of JSON. The checksum is XXH3-64 of
//! sequence and JSON, in hexadecimal: it finds rot and torn writes, it isn't a seal against forgery.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use xxhash_rust::xxh3::Xxh3Default;

use super::{About, Checkpoint, CheckpointError, CheckpointStore};

const MAGIC: &str = "streamer-checkpoint";
const VERSION: &str = "1";
const SLOTS: [&str; 2] = ["checkpoint-a", "checkpoint-b"];

/// Keeps a checkpoint in two slots of a [`Disk`]. See the module's documentation.
#[derive(Debug)]
pub struct SlotStore<D> {
    disk: D,
    /// The sequence number of the newest slot, and which one that is.
    newest: Option<(u64, usize)>,
    bad_slots: u64,
}

/// The slots in a folder.
pub type FileStore = SlotStore<Folder>;

/// Where two slots of bytes are kept, numbered 0 and 1: a folder, or what a simulation has in place of one.
pub trait Disk: Send {
    /// `None` where nothing was ever written.
    fn read(&self, slot: usize) -> io::Result<Option<Vec<u8>>>;
    /// Puts `bytes` in place of what the slot holds. Returns once they would survive a crash of the machine.
    fn replace(&mut self, slot: usize, bytes: &[u8]) -> io::Result<()>;
    /// Forgets both slots.
    fn clear(&mut self) -> io::Result<()>;
    /// When a slot was written, by the clock of the machine that did, where that is known.
    fn written_at(&self, slot: usize) -> Option<SystemTime>;
    /// How messages name a slot.
    fn name(&self, slot: usize) -> String;
    /// How messages name the whole.
    fn place(&self) -> String;
}

/// Two files in a folder.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    fn path(&self, slot: usize) -> PathBuf {
        self.0.join(SLOTS[slot])
    }
}

impl Disk for Folder {
    fn read(&self, slot: usize) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.path(slot)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn replace(&mut self, slot: usize, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(slot);
        let beside = path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        File::open(&self.0)?.sync_all()
    }

    fn clear(&mut self) -> io::Result<()> {
        for slot in 0..SLOTS.len() {
            match fs::remove_file(self.path(slot)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        File::open(&self.0)?.sync_all()
    }

    fn written_at(&self, slot: usize) -> Option<SystemTime> {
        fs::metadata(self.path(slot)).and_then(|metadata| metadata.modified()).ok()
    }

    fn name(&self, slot: usize) -> String {
        self.path(slot).display().to_string()
    }

    fn place(&self) -> String {
        self.0.display().to_string()
    }
}

/// What a slot holds.
enum Slot {
    Absent,
    Good { sequence: u64, checkpoint: Checkpoint },
    Bad(String),
}

impl FileStore {
    /// Makes the folder if there is none.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        fs::create_dir_all(folder)
            .map_err(|error| CheckpointError::Io { path: folder.display().to_string(), error })?;
        Ok(Self::on(Folder(folder.to_owned())))
    }

    /// Its place in a node's data folder.
    pub fn in_data_folder(folder: &Path) -> Result<Self, CheckpointError> {
        Self::open(&folder.join("checkpoint"))
    }
}

impl<D: Disk> SlotStore<D> {
    pub fn on(disk: D) -> Self {
        Self { disk, newest: None, bad_slots: 0 }
    }

    fn read(&self, slot: usize) -> Result<Slot, CheckpointError> {
        let bytes = self.disk.read(slot).map_err(|error| self.failed(slot, error))?;
        Ok(match bytes.map(|bytes| parse(&bytes)) {
            None => Slot::Absent,
            Some(Ok((sequence, checkpoint))) => Slot::Good { sequence, checkpoint },
            Some(Err(why)) => Slot::Bad(format!("{}: {why}", self.disk.name(slot))),
        })
    }

    fn failed(&self, slot: usize, error: io::Error) -> CheckpointError {
        CheckpointError::Io { path: self.disk.name(slot), error }
    }
}

impl<D: Disk> CheckpointStore for SlotStore<D> {
    fn load(&mut self) -> Result<Option<Checkpoint>, CheckpointError> {
        let mut bad = Vec::new();
        let mut best: Option<(u64, usize, Checkpoint)> = None;
        for slot in 0..SLOTS.len() {
            match self.read(slot)? {
                Slot::Absent => {}
                Slot::Bad(why) => bad.push(why),
                Slot::Good { sequence, checkpoint } => {
                    if best.as_ref().is_none_or(|(newest, ..)| sequence > *newest) {
                        best = Some((sequence, slot, checkpoint));
                    }
                }
            }
        }
        match best {
            Some((sequence, slot, checkpoint)) => {
                for why in &bad {
                    tracing::warn!("a checkpoint slot is unreadable, the other one is used: {why}");
                }
                self.bad_slots += bad.len() as u64;
                self.newest = Some((sequence, slot));
                Ok(Some(checkpoint))
            }
            None if bad.is_empty() => Ok(None),
            None => {
                let mut bad = bad.into_iter();
                Err(CheckpointError::BothBad {
                    first: bad.next().unwrap_or_default(),
                    second: bad.next().unwrap_or_else(|| "the other one is missing".to_owned()),
                })
            }
        }
    }

    fn save(&mut self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let (sequence, slot) = match self.newest {
            Some((sequence, slot)) => (sequence + 1, 1 - slot),
            None => (1, 0),
        };
        let bytes = format(sequence, checkpoint);
        self.disk.replace(slot, &bytes).map_err(|error| self.failed(slot, error))?;
        self.newest = Some((sequence, slot));
        Ok(())
    }

    fn reset(&mut self) -> Result<(), CheckpointError> {
        self.disk.clear().map_err(|error| self.failed(0, error))?;
        self.newest = None;
        Ok(())
    }

    fn bad_slots(&self) -> u64 {
        self.bad_slots
    }

    fn about(&self) -> About {
        let written = |slot| self.disk.written_at(slot);
        About {
            store: "file",
            place: self.disk.place(),
            written_at: self.newest.and_then(|(_, slot)| written(slot)),
            owner: None,
        }
    }
}

fn checksum(sequence: u64, json: &[u8]) -> u64 {
    let mut hasher = Xxh3Default::new();
    hasher.update(&sequence.to_le_bytes());
    hasher.update(json);
    hasher.digest()
}

fn format(sequence: u64, checkpoint: &Checkpoint) -> Vec<u8> {
    let json = serde_json::to_vec_pretty(checkpoint).expect("a checkpoint has only string keys and finite numbers");
    let sum = checksum(sequence, &json);
    let mut bytes = format!("{MAGIC} {VERSION} {sequence} {} {sum:016x}\n", json.len()).into_bytes();
    bytes.extend_from_slice(&json);
    bytes
}

fn parse(bytes: &[u8]) -> Result<(u64, Checkpoint), String> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("no header line")?;
    let header = std::str::from_utf8(&bytes[..end]).map_err(|_| "the header is not text")?;
    let json = &bytes[end + 1..];
    let parts: Vec<&str> = header.split(' ').collect();
    let [magic, version, sequence, length, sum] = parts[..] else { return Err("the header lacks fields".into()) };
    if magic != MAGIC {
        return Err("not a checkpoint of this program".into());
    }
    if version != VERSION {
        return Err(format!("format version {version}; this program reads version {VERSION}"));
    }
    let sequence: u64 = sequence.parse().map_err(|_| "the sequence is not a number")?;
    let length: usize = length.parse().map_err(|_| "the length is not a number")?;
    let sum = u64::from_str_radix(sum, 16).map_err(|_| "the checksum is not hexadecimal")?;
    if json.len() != length {
        return Err(format!("{} bytes where the header says {length}", json.len()));
    }
    if checksum(sequence, json) != sum {
        return Err("the checksum doesn't match".into());
    }
    let checkpoint = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    Ok((sequence, checkpoint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::BackendCheckpoint;

    fn checkpoint(time: u64) -> Checkpoint {
        Checkpoint {
            backends: vec![BackendCheckpoint {
                name: "main".into(),
                lineage: 0xfeed,
                source: "replica set rs0".into(),
                time,
                k: 2,
                token: Some(vec![5, 0, 0, 0, 0]),
            }],
            gateways: vec!["g1".into()],
        }
    }

    /// A folder with checkpoints 1 and 2 in slots a and b.
    fn two_slots() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let mut store = FileStore::open(folder.path()).unwrap();
        store.save(&checkpoint(1)).unwrap();
        store.save(&checkpoint(2)).unwrap();
        let (a, b) = (store.disk.path(0), store.disk.path(1));
        (folder, a, b)
    }

    fn load(folder: &Path) -> Result<Option<Checkpoint>, CheckpointError> {
        FileStore::open(folder).unwrap().load()
    }

    #[test]
    fn what_was_saved_last_is_loaded() {
        let (folder, ..) = two_slots();
        let mut store = FileStore::open(folder.path()).unwrap();
        assert_eq!(store.load().unwrap(), Some(checkpoint(2)));
        store.save(&checkpoint(3)).unwrap();
        assert_eq!(load(folder.path()).unwrap(), Some(checkpoint(3)));
    }

    #[test]
    fn an_empty_folder_has_no_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(load(folder.path()).unwrap(), None);
    }

    #[test]
    fn every_torn_length_of_the_newer_slot_falls_back_to_the_older() {
        let (folder, _, newer) = two_slots();
        let whole = fs::read(&newer).unwrap();
        for length in 0..whole.len() {
            fs::write(&newer, &whole[..length]).unwrap();
            let mut store = FileStore::open(folder.path()).unwrap();
            assert_eq!(store.load().unwrap(), Some(checkpoint(1)), "cut at {length}");
            assert_eq!(store.bad_slots(), 1);
        }
    }

    #[test]
    fn every_flipped_bit_of_the_newer_slot_is_found() {
        let (folder, _, newer) = two_slots();
        let whole = fs::read(&newer).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut rotten = whole.clone();
            rotten[bit / 8] ^= 1 << (bit % 8);
            fs::write(&newer, &rotten).unwrap();
            // Flipping the case bit of a hexadecimal letter of the checksum leaves the same number: nothing is damaged then.
            let loaded = load(folder.path()).unwrap().unwrap();
            let harmless = parse(&rotten).is_ok_and(|(sequence, found)| sequence == 2 && found == checkpoint(2));
            assert_eq!(loaded, if harmless { checkpoint(2) } else { checkpoint(1) }, "bit {bit}");
        }
    }

    #[test]
    fn two_bad_slots_are_refused_and_left_alone() {
        let (folder, a, b) = two_slots();
        fs::write(&a, "rot").unwrap();
        fs::write(&b, "rot").unwrap();
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("checkpoint reset"), "{error}");
        assert_eq!(fs::read(&a).unwrap(), b"rot");
        FileStore::open(folder.path()).unwrap().reset().unwrap();
        assert_eq!(load(folder.path()).unwrap(), None);
    }

    #[test]
    fn a_crash_before_the_rename_leaves_the_old_state() {
        let (folder, a, _) = two_slots();
        fs::write(a.with_extension("new"), "half").unwrap();
        assert_eq!(load(folder.path()).unwrap(), Some(checkpoint(2)));
    }

    #[test]
    fn a_slot_of_another_version_says_so() {
        let (folder, a, b) = two_slots();
        for slot in [&a, &b] {
            let text = fs::read_to_string(slot).unwrap().replacen("checkpoint 1 ", "checkpoint 2 ", 1);
            fs::write(slot, text).unwrap();
        }
        assert!(load(folder.path()).unwrap_err().to_string().contains("format version 2"));
    }
}
