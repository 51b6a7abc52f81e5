//! Events that come in pieces, since they are larger than a document may be (`$changeStreamSplitLargeEvent`), put together again.
//!
//! Invariant: the token of an event is that of its last piece, and no token within an event leaves this module: a stream that is opened
//! again always begins with a whole event.

use bson::RawDocument;
use bytes::Bytes;

/// The pieces of one event, as far as they have come.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    pieces: Vec<Bytes>,
    of: usize,
}

/// What the server sent isn't an event in pieces as it is documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a piece of a large event is not the one that was to come")]
pub(super) struct OutOfOrder;

impl Fragments {
    /// Takes the next document of the stream; gives back an event, once it is whole.
    pub(super) fn take(&mut self, document: Bytes) -> Result<Option<Bytes>, OutOfOrder> {
        let Some(rest) = rest_of_piece(&document) else {
            return if self.is_between() { Ok(Some(document)) } else { Err(OutOfOrder) };
        };
        let number = |name| {
            let piece = RawDocument::from_bytes(&document).ok()?.get_document("splitEvent").ok()?;
            usize::try_from(piece.get_i32(name).ok()?).ok()
        };
        let (Some(fragment), Some(of)) = (number("fragment"), number("of")) else { return Err(OutOfOrder) };
        let is_next = fragment == self.pieces.len() + 1 && fragment <= of && (self.is_between() || of == self.of);
        if !is_next || of > PIECES_MAX {
            return Err(OutOfOrder);
        }
        self.of = of;
        self.pieces.push(document.slice(rest));
        if fragment < of {
            return Ok(None);
        }
        let whole = whole(&document, &self.pieces);
        self.pieces.clear();
        Ok(Some(whole))
    }

    /// Whether no event is half there: what comes next begins a new one.
    pub(super) fn is_between(&self) -> bool {
        self.pieces.is_empty()
    }
}

/// Pieces of one event at most: it holds two documents, what changed between them, and little else.
const PIECES_MAX: usize = 16;

const SPLIT: &[u8] = b"\x03splitEvent\0";
const ID: &[u8] = b"\x03_id\0";

/// Where `_id` ends; every document of a change stream begins with it.
fn id_ends(document: &[u8]) -> Option<usize> {
    let id = document.get(4..)?.strip_prefix(ID)?;
    let length = u32::from_le_bytes(*id.first_chunk()?) as usize;
    (length <= id.len()).then_some(4 + ID.len() + length)
}

/// The elements of a piece but for `_id` and `splitEvent`, which are the first two; `None` for an event that is whole.
fn rest_of_piece(document: &[u8]) -> Option<std::ops::Range<usize>> {
    let split = id_ends(document)?;
    let value = document.get(split..)?.strip_prefix(SPLIT)?;
    let length = u32::from_le_bytes(*value.first_chunk()?) as usize;
    let start = split + SPLIT.len() + length;
    (start < document.len()).then(|| start..document.len() - 1)
}

/// One document of the `_id` of the last piece and the elements of all.
fn whole(last: &[u8], pieces: &[Bytes]) -> Bytes {
    let id = &last[4..id_ends(last).expect("a piece begins with its `_id`")];
    let length = 4 + id.len() + pieces.iter().map(Bytes::len).sum::<usize>() + 1;
    let mut document = Vec::with_capacity(length);
    document.extend_from_slice(&(length as u32).to_le_bytes());
    document.extend_from_slice(id);
    pieces.iter().for_each(|piece| document.extend_from_slice(piece));
    document.push(0);
    document.into()
}

#[cfg(test)]
mod tests {
    use bson::{Document, doc};

    use super::*;

    fn bytes(document: Document) -> Bytes {
        document.to_vec().unwrap().into()
    }

    fn piece(token: &str, fragment: i32, of: i32, fields: Document) -> Bytes {
        let mut document = doc! { "_id": { "_data": token }, "splitEvent": { "fragment": fragment, "of": of } };
        document.extend(fields);
        bytes(document)
    }

    #[test]
    fn pieces_become_the_event_with_the_token_of_the_last() {
        let mut fragments = Fragments::default();
        assert_eq!(fragments.take(piece("a", 1, 3, doc! { "operationType": "update", "n": 1 })), Ok(None));
        assert!(!fragments.is_between());
        assert_eq!(fragments.take(piece("b", 2, 3, doc! { "fullDocument": { "_id": 1 } })), Ok(None));
        let last = piece("c", 3, 3, doc! { "fullDocumentBeforeChange": { "_id": 1, "x": "y" } });
        let event = fragments.take(last).unwrap().expect("it is whole");
        let wanted = doc! {
            "_id": { "_data": "c" }, "operationType": "update", "n": 1, "fullDocument": { "_id": 1 },
            "fullDocumentBeforeChange": { "_id": 1, "x": "y" },
        };
        assert_eq!(event, bytes(wanted));
        assert!(fragments.is_between());
        let plain = bytes(doc! { "_id": { "_data": "d" }, "operationType": "insert" });
        assert_eq!(fragments.take(plain.clone()), Ok(Some(plain)));
    }

    #[test]
    fn a_piece_that_is_not_the_next_is_refused() {
        let first = || piece("a", 1, 2, doc! { "n": 1 });
        let wrong = [
            piece("b", 1, 2, doc! { "n": 1 }),
            piece("b", 3, 3, doc! { "n": 1 }),
            piece("b", 2, 3, doc! { "n": 1 }),
            bytes(doc! { "_id": { "_data": "b" }, "operationType": "insert" }),
            bytes(doc! { "_id": { "_data": "b" }, "splitEvent": { "of": 2 } }),
        ];
        for wrong in wrong {
            let mut fragments = Fragments::default();
            fragments.take(first()).unwrap();
            assert_eq!(fragments.take(wrong.clone()), Err(OutOfOrder), "{wrong:?}");
        }
        assert_eq!(Fragments::default().take(piece("b", 2, 2, doc! {})), Err(OutOfOrder));
        assert_eq!(Fragments::default().take(piece("b", 1, 1_000, doc! {})), Err(OutOfOrder));
    }

    #[test]
    fn broken_bytes_are_left_to_whoever_reads_the_event() {
        for broken in [
            &b""[..],
            b"\x05\0\0\0\0",
            b"\x04\0\0\0\x03_id\0\xff\xff\xff\xff",
            b"\0\0\0\0\x03_id\0\x05\0\0\0\0\x03splitEvent\0",
        ] {
            let broken = Bytes::from_static(broken);
            assert_eq!(Fragments::default().take(broken.clone()), Ok(Some(broken)));
        }
    }
}
