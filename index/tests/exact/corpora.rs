//! What the fuzz targets have been through, once more.

use std::fs;
use std::path::PathBuf;

use predicate::Mapping;

use crate::model::{Model, steps_of};

/// The files of a target's corpus, and their contents.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a folder can be read to its end").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files.into_iter().map(|path| (path.clone(), fs::read(path).expect("a file can be read"))).collect()
}

#[test]
fn documents() {
    let mut models = [Model::with_each(Mapping::Plain), Model::with_each(Mapping::syntrix())];
    for (path, bytes) in corpus("documents") {
        println!("{}", path.display());
        let (before, after) = bytes.split_at(bytes.len() / 2);
        models.iter_mut().for_each(|model| model.check_bytes(before, after));
        models.iter_mut().for_each(|model| model.check_bytes(&[], &bytes));
    }
}

#[test]
fn operations() {
    for (path, bytes) in corpus("operations") {
        println!("{}", path.display());
        for mapping in [Mapping::Plain, Mapping::syntrix()] {
            Model::new(mapping).run(&steps_of(&bytes));
        }
    }
}
