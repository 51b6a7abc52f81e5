//! Walks the elements of a BSON document, and makes nothing of what it passes: the ingest thread passes nearly everything.
//!
//! Invariant: an element is what the `bson` crate's iterator makes of it, or else [`Unsure`]. Whoever is told that goes over the
//! whole document again with the iterator, so that only plainly well-formed documents are taken here.

use bson::spec::ElementType;

/// What stands here is broken, or of a kind that has no simple form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unsure;

/// Bytes of an element; those of its value aren't looked into.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'a> {
    pub(super) kind: u8,
    pub(super) name: &'a [u8],
    /// The first eight bytes of the name, in little-endian order; zeros after its end.
    pub(super) head: u64,
    pub(super) value: &'a [u8],
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Elements<'a> {
    /// From the next element to the document's last byte, which is not of it.
    rest: &'a [u8],
}

impl<'a> Elements<'a> {
    pub(super) fn of(document: &'a [u8]) -> Result<Self, Unsure> {
        let length = document.first_chunk().map(|length| i32::from_le_bytes(*length)).ok_or(Unsure)?;
        let (&end, inside) = document.split_last().ok_or(Unsure)?;
        if usize::try_from(length) != Ok(document.len()) || end != 0 {
            return Err(Unsure);
        }
        Ok(Self { rest: inside.get(4..).ok_or(Unsure)? })
    }

    /// The next eight bytes: a type, and what a name begins with. None where fewer are left.
    #[inline(always)]
    pub(super) fn head(&self) -> Option<u64> {
        self.rest.first_chunk().map(|head| u64::from_le_bytes(*head))
    }

    /// The value of the next element, if it is one of this type and name: `start` is the byte of the type, the name and its NUL.
    #[inline(always)]
    pub(super) fn take<const N: usize>(&mut self, start: &[u8; N]) -> Result<Option<&'a [u8]>, Unsure> {
        match self.rest.strip_prefix(start) {
            Some(rest) => self.value(start[0], rest).map(Some),
            None => Ok(None),
        }
    }

    #[inline(always)]
    pub(super) fn next(&mut self) -> Result<Option<Element<'a>>, Unsure> {
        let Some((&kind, named)) = self.rest.split_first() else { return Ok(None) };
        let (length, head) = name(named)?;
        let value = self.value(kind, &named[length + 1..])?;
        Ok(Some(Element { kind, name: &named[..length], head, value }))
    }

    #[inline(always)]
    fn value(&mut self, kind: u8, rest: &'a [u8]) -> Result<&'a [u8], Unsure> {
        let (value, rest) = rest.split_at_checked(size_of_value(kind, rest).ok_or(Unsure)?).ok_or(Unsure)?;
        self.rest = rest;
        Ok(value)
    }
}

const ONES: u64 = u64::from_le_bytes([0x01; 8]);
const HIGHS: u64 = u64::from_le_bytes([0x80; 8]);

/// Length of the name that `named` begins with, before its NUL, and its first bytes as [`Element::head`] has them.
#[inline(always)]
fn name(named: &[u8]) -> Result<(usize, u64), Unsure> {
    let mut length = 0;
    let mut head = None;
    // Eight bytes at a time. The lowest bit of `nul` stands in the first byte that is zero.
    while let Some(chunk) = named.get(length..).and_then(|rest| rest.first_chunk()) {
        let word = u64::from_le_bytes(*chunk);
        let nul = word.wrapping_sub(ONES) & !word & HIGHS;
        let before_nul = if nul == 0 { u64::MAX } else { (nul & nul.wrapping_neg()) - 1 };
        if word & HIGHS & before_nul != 0 {
            return any_name(named);
        }
        head.get_or_insert(word & before_nul);
        if nul != 0 {
            let length = length + (nul.trailing_zeros() / 8) as usize;
            return Ok((length, head.unwrap_or_default()));
        }
        length += 8;
    }
    any_name(named)
}

/// [`name`], byte by byte: for what is no ASCII, and at the end of a document.
#[cold]
fn any_name(named: &[u8]) -> Result<(usize, u64), Unsure> {
    let length = named.iter().position(|byte| *byte == 0).ok_or(Unsure)?;
    let name = std::str::from_utf8(&named[..length]).map_err(|_| Unsure)?;
    Ok((length, head_of(name.as_bytes())))
}

/// [`Element::head`] of this name.
pub(super) fn head_of(name: &[u8]) -> u64 {
    let mut head = [0; 8];
    let length = name.len().min(head.len());
    head[..length].copy_from_slice(&name[..length]);
    u64::from_le_bytes(head)
}

/// Bytes of the value that `rest` begins with.
#[inline(always)]
fn size_of_value(kind: u8, rest: &[u8]) -> Option<usize> {
    let length = || usize::try_from(i32::from_le_bytes(*rest.first_chunk()?)).ok();
    let ends_with_nul = |size: usize| (rest.get(size.checked_sub(1)?) == Some(&0)).then_some(size);
    match ElementType::from(kind)? {
        ElementType::Null | ElementType::Undefined | ElementType::MinKey | ElementType::MaxKey => Some(0),
        ElementType::Boolean => Some(1),
        ElementType::Int32 => Some(4),
        ElementType::Double | ElementType::DateTime | ElementType::Timestamp | ElementType::Int64 => Some(8),
        ElementType::ObjectId => Some(12),
        ElementType::Decimal128 => Some(16),
        ElementType::String | ElementType::Symbol | ElementType::JavaScriptCode => {
            ends_with_nul(length().filter(|length| *length > 0)?.checked_add(4)?)
        }
        ElementType::EmbeddedDocument | ElementType::Array => ends_with_nul(length().filter(|length| *length >= 5)?),
        ElementType::Binary => length()?.checked_add(5),
        ElementType::RegularExpression | ElementType::DbPointer | ElementType::JavaScriptCodeWithScope => None,
    }
}

/// The text in the value of a string, if it is one.
#[inline(always)]
pub(super) fn text(value: &[u8]) -> Option<&[u8]> {
    let text = value.get(4..value.len().checked_sub(1)?)?;
    is_text(text).then_some(text)
}

/// Whether it is UTF-8. Most names are short and ASCII, which is told without a look at each byte.
#[inline(always)]
pub(super) fn is_text(bytes: &[u8]) -> bool {
    let word =
        |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word));
    let length = bytes.len();
    let seen = if length < 8 {
        bytes.iter().fold(0, |seen, byte| seen | u64::from(*byte))
    } else {
        // The last eight may overlap those before.
        (0..length - 8).step_by(8).fold(word(length - 8), |seen, at| seen | word(at))
    };
    seen & HIGHS == 0 || std::str::from_utf8(bytes).is_ok()
}

#[cfg(test)]
pub(super) mod tests {
    use bson::{Bson, Document, RawDocument, doc};
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    /// Something of every type.
    fn documents() -> Vec<Document> {
        let binary = |subtype| Bson::Binary(bson::Binary { subtype, bytes: b"four".to_vec() });
        let every_type = doc! {
            "a": 1.5, "tenant_id": "text", "ns": { "a": 1, "é": "ü" }, "collection_hash": [1, "x", { "a": 2 }],
            "e": binary(bson::spec::BinarySubtype::Generic), "f": binary(bson::spec::BinarySubtype::BinaryOld),
            "g": Bson::Undefined, "h": bson::oid::ObjectId::from_bytes([7; 12]), "i": true,
            "j": bson::DateTime::from_millis(-1), "k": Bson::Null, "m": Bson::JavaScriptCode("1".into()),
            "n": Bson::Symbol("s".into()), "eight888": 7_i32, "q": bson::Timestamp { time: 1, increment: 2 }, "r": 8_i64,
            "s": Bson::Decimal128("1.50".parse().unwrap()), "t": Bson::MinKey, "u": Bson::MaxKey,
            "schlüssel": "名", "": "empty name", "last": 0,
        };
        let unusual = doc! {
            "o": Bson::JavaScriptCodeWithScope(bson::JavaScriptCodeWithScope { code: "x".into(), scope: doc! { "x": 1 } }),
            "l": Bson::RegularExpression(bson::Regex { pattern: "a+".try_into().unwrap(), options: "i".try_into().unwrap() }),
        };
        vec![doc! {}, every_type, unusual, doc! { "a": "", "z": Bson::Null }]
    }

    /// Changes some bytes of a document, and sometimes its length; the document's own length is kept true mostly.
    pub(in crate::ingest) fn broken(document: &[u8], random: &mut StdRng) -> Vec<u8> {
        let mut bytes = document.to_vec();
        for _ in 0..random.random_range(0..4) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = match random.random_range(0..3) {
                0 => random.random(),
                1 => random.random_range(0..20),
                // Another byte of the document: often the type of another value, or part of another name.
                _ => bytes[random.random_range(0..bytes.len())],
            };
        }
        if random.random_ratio(1, 4) {
            bytes.truncate(random.random_range(5..=bytes.len()));
        }
        if random.random_ratio(9, 10) {
            let length = bytes.len() as i32;
            bytes[..4].copy_from_slice(&length.to_le_bytes());
        }
        bytes
    }

    fn raw(document: &Document) -> Vec<u8> {
        document.to_vec().unwrap()
    }

    /// Whether the walk was sure to the end.
    fn check(document: &[u8]) -> bool {
        let Ok(mut elements) = Elements::of(document) else { return false };
        let theirs = RawDocument::from_bytes(document).expect("a document that is well-formed outside");
        let mut theirs = theirs.iter_elements();
        loop {
            let element = match elements.next() {
                Err(Unsure) => return false,
                Ok(None) => {
                    assert!(theirs.next().is_none(), "{document:?}");
                    return true;
                }
                Ok(Some(element)) => element,
            };
            let expected = theirs.next().expect("an element").expect("a well-formed one");
            assert_eq!(element.name, expected.key().as_str().as_bytes(), "{document:?}");
            assert_eq!((element.kind, element.value.len()), (expected.element_type() as u8, expected.size()));
            assert_eq!(element.head, head_of(element.name));
            if element.kind == ElementType::String as u8 {
                let text = text(element.value).and_then(|text| std::str::from_utf8(text).ok());
                let expected = expected.value();
                assert_eq!(text, expected.as_ref().ok().and_then(|value| value.as_str()), "{document:?}");
            }
        }
    }

    #[test]
    fn what_the_iterator_yields() {
        let [empty, every_type, unusual, tail] = documents().try_into().unwrap();
        assert!(check(&raw(&empty)) && check(&raw(&every_type)) && check(&raw(&tail)));
        assert!(!check(&raw(&unusual)));
    }

    #[test]
    fn broken_documents() {
        let mut random = StdRng::seed_from_u64(5);
        let documents: Vec<Vec<u8>> = documents().iter().map(raw).collect();
        let mut sure = 0;
        for _ in 0..40_000 {
            let document = &documents[random.random_range(0..documents.len())];
            sure += u32::from(check(&broken(document, &mut random)));
        }
        assert!(sure > 5_000, "{sure}");
    }

    #[test]
    fn text_is_told_from_what_is_none() {
        for length in 0..40 {
            let ascii = vec![b'x'; length];
            assert!(is_text(&ascii));
            for at in 0..length {
                let mut bytes = ascii.clone();
                bytes[at] = 0xff;
                assert!(!is_text(&bytes), "{length} {at}");
                if at + 1 < length {
                    bytes[at..at + 2].copy_from_slice("é".as_bytes());
                    assert!(is_text(&bytes), "{length} {at}");
                }
            }
        }
    }
}
