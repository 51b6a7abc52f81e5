//! The files by which a kernel tells about itself.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A host, seen through its `/proc`, `/sys` and the like.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    pub fn this() -> Self {
        Self::below("/")
    }

    /// One whose files stand below this folder.
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The file's text without white space around it. `None` where it isn't there or may not be read.
    pub(super) fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok().map(|text| text.trim().to_owned())
    }

    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Names in a folder, in their order; none where it isn't there.
    pub(super) fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    }

    /// The choice in brackets of a file such as `always [madvise] never`.
    pub(super) fn chosen(&self, path: &str) -> Option<String> {
        let text = self.read(path)?;
        let (_, rest) = text.split_once('[')?;
        Some(rest.split_once(']')?.0.to_owned())
    }

    /// Writes a setting. The file has to be there already: kernels make them, nobody else.
    pub(super) fn write(&self, path: &str, value: &str) -> io::Result<()> {
        let path = self.path(path);
        if !Path::new(&path).exists() {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        fs::write(path, value)
    }
}
