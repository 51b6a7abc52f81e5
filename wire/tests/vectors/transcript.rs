//! The part of `docs/protocol.md` that is made of vectors: the transcript, and one frame taken apart.

use std::{fmt::Write as _, fs};

use wire::{Delivery, Handle};

use crate::{Any, Stream, hex, repository, session, writes};

/// Compares the generated parts of the document with what the code says, or writes them.
pub(crate) fn check() {
    let path = repository().join("docs/protocol.md");
    let document = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut expected = document.clone();
    for (part, text) in [("anatomy", anatomy()), ("transcript", transcript())] {
        expected = replaced(&expected, part, &text);
    }
    if writes() {
        fs::write(&path, &expected).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    } else {
        assert!(
            document == expected,
            "docs/protocol.md doesn't show the frames that the code writes; STREAMER_WRITE_VECTORS=1 cargo test -p wire --test vectors \
             brings it up to date"
        );
    }
}

/// The document with what stands between the marks of `part` replaced.
fn replaced(document: &str, part: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- generated: {part} -->\n"), format!("<!-- end: {part} -->\n"));
    let from = document.find(&begin).unwrap_or_else(|| panic!("docs/protocol.md has no mark {begin:?}")) + begin.len();
    let to = from + document[from..].find(&end).unwrap_or_else(|| panic!("docs/protocol.md has no mark {end:?}"));
    format!("{}{text}{}", &document[..from], &document[to..])
}

fn transcript() -> String {
    let mut text = String::new();
    for (n, step) in session::steps().iter().enumerate() {
        let place = match step.message.stream() {
            Stream::Requests => "Gateway → shard, control",
            Stream::Replies => "shard → Gateway, control",
            Stream::Acks => "Gateway → shard, acks",
            Stream::Deliveries => "shard → Gateway, delivery",
        };
        let _ = write!(text, "\n**{}. {place}: `{}`.** {}\n\n```text\n", n + 1, step.message.name(), step.why);
        for line in step.message.encode().chunks(LINE_BYTES) {
            let _ = writeln!(text, "{}", spaced(line));
        }
        let _ = writeln!(text, "```");
    }
    text.push('\n');
    text
}

fn spaced(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| hex(&[*byte])).collect::<Vec<_>>().join(" ")
}

/// An `Events` frame, field by field.
fn anatomy() -> String {
    let mut entry = session::entry(300, 5, "room-1", "open");
    entry.targets.push(wire::Target { handle: Handle(251), ..entry.targets[0] });
    let bytes = Any::Delivery(Delivery::Events(vec![entry.clone()].into())).encode();
    let document = entry.document.len();
    let id = entry.document_id.len();

    // What stands at each place and how many bytes it takes; the assertion below proves the sum.
    let pieces: Vec<(usize, String)> = vec![
        (4, format!("length: {} bytes follow", bytes.len() - 4)),
        (1, "type 0x31: `Events`".into()),
        (4, format!("length of the entry: {} bytes follow", bytes.len() - 9)),
        (3, "`seq` 300: 251, then two bytes".into()),
        (1, "`targets`: two".into()),
        (1, "handle 1".into()),
        (1, "transition 1: `update`".into()),
        (1, "certainty 0: `matched`".into()),
        (3, "handle 251: 251, then two bytes".into()),
        (1, "transition 1: `update`".into()),
        (1, "certainty 0: `matched`".into()),
        (5, format!("`id.backend` {}: 252, then four bytes", entry.id.backend.0)),
        (9, format!("`id.lineage` 0x{:016x}: 253, then eight bytes", entry.id.lineage.0)),
        (9, format!("`id.time` 0x{:016x}: 253, then eight bytes", entry.id.time)),
        (1, "`id.k` 1".into()),
        (1, "`operation` 1: update".into()),
        (5, "`tenant`: 4 bytes, `acme`".into()),
        (6, "`collection`: 5 bytes, `rooms`".into()),
        (1, format!("`document_id`: {id} bytes")),
        (1, "BSON type 2, a string".into()),
        (id - 1, "its BSON value: length 7 with the final zero, `room-1`, zero".into()),
        (1, format!("`document`: {document} bytes")),
        (document, "BSON, which begins with its own length".into()),
    ];
    assert_eq!(pieces.iter().map(|(len, _)| len).sum::<usize>(), bytes.len(), "the pieces are the frame");

    let mut text = String::from("\n| bytes | meaning |\n|---|---|\n");
    let mut rest = &bytes[..];
    for (len, meaning) in pieces {
        let (piece, others) = rest.split_at(len);
        rest = others;
        let shown =
            if len > LINE_BYTES / 2 { format!("{} …", spaced(&piece[..LINE_BYTES / 2])) } else { spaced(piece) };
        let _ = writeln!(text, "| `{shown}` | {meaning} |");
    }
    text.push('\n');
    text
}

const LINE_BYTES: usize = 32;
