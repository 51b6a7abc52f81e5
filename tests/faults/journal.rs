//! What a Gateway's application has written down, over all the processes that it has been.
//!
//! A journal is a file of JSON lines. Each is handed to the kernel in one write before the item is acked, so that a killed process leaves
//! every item in it that it was done with. Half a line at the end is what the kill cut off; the next process removes it.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use streamer_gateway::SavedPositions;
use wire::{Position, SubscriptionKey, Transition};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub(crate) enum Line {
    /// A process begins, from these positions.
    Start {
        presented: SavedPositions,
    },
    Change(Told),
    /// Anything else that breaks a subscription's continuity, in words.
    Break {
        what: String,
    },
    /// The Gateway has ended by itself.
    Ended {
        error: String,
    },
}

/// One change, as the application got it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) tenant: String,
    pub(crate) id: String,
    /// The event's id.
    pub(crate) event: String,
    pub(crate) transition: Transition,
    pub(crate) shard: u16,
    /// Of the document's bytes; absent where no image came.
    pub(crate) image: Option<u64>,
    /// Since the write was sent, where the document says when that was.
    pub(crate) late_us: Option<u64>,
}

impl Told {
    pub(crate) fn key(&self) -> SubscriptionKey {
        SubscriptionKey { tenant: self.tenant.clone(), id: self.id.clone() }
    }

    pub(crate) fn position(&self) -> Position {
        self.event.parse().expect("an application writes positions down as they print")
    }
}

/// The writing end.
pub(crate) struct Journal {
    file: File,
}

impl Journal {
    /// Goes on with what an earlier process has left.
    pub(crate) fn open(path: &Path) -> Self {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path).expect("the test's folder");
        let mut text = Vec::new();
        file.read_to_end(&mut text).expect("the journal is read");
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64).expect("half a line is removed");
        Self { file }
    }

    pub(crate) fn write(&mut self, line: &Line) {
        let mut text = serde_json::to_vec(line).expect("a line becomes JSON");
        text.push(b'\n');
        self.file.write_all(&text).expect("the journal is written");
    }
}

/// The reading end, beside a process that writes.
pub(crate) struct Tail {
    path: PathBuf,
    read: u64,
    lines: Vec<Line>,
}

impl Tail {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, read: 0, lines: Vec::new() }
    }

    /// All whole lines so far.
    pub(crate) fn lines(&mut self) -> &[Line] {
        if let Ok(mut file) = File::open(&self.path) {
            let mut text = Vec::new();
            file.seek(SeekFrom::Start(self.read)).expect("the journal is a file");
            file.read_to_end(&mut text).expect("the journal is read");
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            self.read += whole as u64;
            let lines = text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            self.lines.extend(lines.map(|line| serde_json::from_slice(line).expect("a journal holds its own lines")));
        }
        &self.lines
    }

    pub(crate) fn changes(&mut self) -> usize {
        self.lines().iter().filter(|line| matches!(line, Line::Change(_))).count()
    }
}

/// Replaces a small file so that a reader, or the next process, sees the old or the new one.
pub(crate) fn replace(path: &Path, value: &impl Serialize) {
    let beside = path.with_extension("new");
    fs::write(&beside, serde_json::to_vec(value).expect("it becomes JSON")).expect("the test's folder is written");
    fs::rename(&beside, path).expect("a file is renamed in its folder");
}

pub(crate) fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    let text = fs::read(path).ok()?;
    Some(serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// Of a document's bytes.
pub(crate) fn image_hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}
