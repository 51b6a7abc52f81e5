//! `docs/errors.md` against the code: a table for each list of errors, with a row for each that there is.

use std::{collections::BTreeSet, fs, path::Path};

/// Lists of errors that the page has tables of: where, and the name of the enum.
const ENUMS: [(&str, &str); 12] = [
    ("wire/src/message.rs", "ErrorCode"),
    ("wire/src/message.rs", "CloseReason"),
    ("wire/src/message.rs", "ResyncReason"),
    ("wire/src/message.rs", "GapReason"),
    ("gateway/src/error.rs", "Error"),
    ("gateway/src/core/terminal.rs", "TerminalError"),
    ("src/node.rs", "NodeError"),
    ("src/tls.rs", "CertificateError"),
    ("src/ingest/source/embedded/store.rs", "StoreError"),
    ("src/checkpoint/mod.rs", "CheckpointError"),
    ("src/ingest/source/mod.rs", "SourceError"),
    ("src/reload.rs", "ReloadError"),
];
/// The table of codes that are texts, and where they are.
const HTTP: &str = "the codes in src/control/http";

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The variants of an enum, by how rustfmt writes them.
fn variants(code: &str, name: &str) -> BTreeSet<String> {
    let body = code.split(&format!("pub enum {name} {{\n")).nth(1).unwrap_or_else(|| panic!("there is no {name}"));
    let body = body.split("\n}").next().unwrap_or_default();
    let names = body.lines().filter_map(|line| {
        let line = line.strip_prefix("    ").filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))?;
        line.split(|c: char| !c.is_ascii_alphanumeric()).next()
    });
    names.map(String::from).collect()
}

/// Texts that are codes: capitals, with or without underscores.
fn codes(code: &str) -> Vec<String> {
    let is_code = |text: &&str| text.len() > 4 && text.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    code.split('"').skip(1).step_by(2).filter(is_code).map(String::from).collect()
}

/// The tables of the page: what stands in the comment before each, the first cells of its rows, and its rows.
fn tables(page: &str) -> Vec<(String, BTreeSet<String>, Vec<String>)> {
    let parts = page.split("<!-- ").skip(1).map(|part| part.split_once(" -->").expect("a comment ends"));
    parts
        .map(|(of, rest)| {
            let rows: Vec<&str> = rest.trim_start().lines().take_while(|line| line.starts_with('|')).skip(2).collect();
            let names: Vec<String> = rows.iter().filter_map(|row| row.split('`').nth(1)).map(String::from).collect();
            assert_eq!(names.len(), rows.len(), "a row of {of} names no error");
            let set: BTreeSet<String> = names.iter().cloned().collect();
            assert_eq!(set.len(), names.len(), "a row of {of} is there twice");
            (of.to_owned(), set, rows.iter().map(ToString::to_string).collect())
        })
        .collect()
}

#[test]
fn the_page_of_errors_has_each_error_and_no_other() {
    let tables = tables(&read("docs/errors.md"));
    let expected: BTreeSet<String> =
        ENUMS.iter().map(|(path, name)| format!("{path} {name}")).chain([HTTP.to_owned()]).collect();
    let found: BTreeSet<String> = tables.iter().map(|(of, ..)| of.clone()).collect();
    assert_eq!(found, expected, "the tables of docs/errors.md");
    for (of, names, rows) in tables {
        let code = match of.split_once(' ') {
            Some((path, name)) if of != HTTP => variants(&read(path), name),
            _ => ["mod", "documents", "health", "live", "subscriptions"]
                .iter()
                .flat_map(|file| codes(&read(&format!("src/control/http/{file}.rs"))))
                .collect(),
        };
        assert!(code.len() > 3, "{of}: {code:?}");
        assert_eq!(names, code, "docs/errors.md, the table of {of}");
        for row in rows {
            let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
            assert!(cells.len() >= 3 && cells.iter().all(|cell| !cell.trim().is_empty()), "{row}");
        }
    }
}

/// The number is the place on the wire plus 1.
#[test]
fn numbers_of_codes_are_those_of_the_protocol() {
    let code = read("wire/src/message.rs");
    let list = code.split("pub const ALL: [Self; ").nth(1).and_then(|rest| rest.split("];").next()).expect("the list");
    let order: Vec<&str> = list.lines().filter_map(|line| line.trim().strip_prefix("Self::")).collect();
    let tables = tables(&read("docs/errors.md"));
    let (_, _, rows) = tables.iter().find(|(of, ..)| of.ends_with(" ErrorCode")).expect("the table");
    assert_eq!(rows.len(), order.len());
    for (number, (name, row)) in (1..).zip(order.iter().zip(rows)) {
        let start = format!("| `{}` | {number} |", name.trim_end_matches(','));
        assert!(row.starts_with(&start), "{row} is not {start}");
    }
}
