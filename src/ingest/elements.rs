//! Walks the elements of a BSON document, and makes nothing of what it passes: the ingest thread passes nearly everything.
//!
//! Invariant: an element is what the `bson` crate's iterator makes of it, or else [`Unsure`]. Whoever is told that goes over the
//! whole document again with the iterator, so that only plainly well-formed documents are taken here.

/// What stands here is broken, or of a kind that has no simple form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unsure;

/// An element that was passed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'a> {
    pub(super) kind: u8,
    pub(super) name: &'a [u8],
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

    /// Bytes of the elements that are left.
    #[inline(always)]
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Whether the next element has this name; `head` is what [`Self::head`] gives.
    #[inline(always)]
    pub(super) fn is_named(&self, head: u64, name: &Name) -> bool {
        (head >> 8) & name.mask == name.head
            && (name.tail.is_none() || self.last_word_of_name(name) == name.tail)
            && (name.with_nul.len() <= 15 || self.rest[1..].starts_with(&name.with_nul))
    }

    #[inline(always)]
    fn last_word_of_name(&self, name: &Name) -> Option<u64> {
        let end = 1 + name.with_nul.len();
        self.rest.get(end - 8..end)?.first_chunk().map(|word| u64::from_le_bytes(*word))
    }

    /// Type and value of the next element, whose name is known to be this.
    #[inline(always)]
    pub(super) fn take_named(&mut self, name: &Name) -> Result<(u8, &'a [u8]), Unsure> {
        let (kind, rest) = (self.rest[0], &self.rest[1 + name.with_nul.len()..]);
        Ok((kind, self.value(kind, rest)?))
    }

    /// The same of what is expected to be a text. None where it is something else.
    #[inline(always)]
    pub(super) fn take_text(&mut self, name: &Name) -> Result<Option<&'a [u8]>, Unsure> {
        let (kind, value) = self.take_named(name)?;
        if kind == kind::STRING { text(value).map(Some).ok_or(Unsure) } else { Ok(None) }
    }

    #[inline(always)]
    pub(super) fn next(&mut self) -> Result<Option<Element<'a>>, Unsure> {
        Ok(self.next_with_value()?.map(|(element, _)| element))
    }

    #[inline(always)]
    pub(super) fn next_with_value(&mut self) -> Result<Option<(Element<'a>, &'a [u8])>, Unsure> {
        let Some((&kind, named)) = self.rest.split_first() else { return Ok(None) };
        let length = name_length(named)?;
        let value = self.value(kind, &named[length + 1..])?;
        Ok(Some((Element { kind, name: &named[..length] }, value)))
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

/// Length of the name that `named` begins with, before its NUL.
#[inline(always)]
fn name_length(named: &[u8]) -> Result<usize, Unsure> {
    let mut at = 0;
    // Eight bytes at a time. The lowest bit of `nul` stands in the first byte that is zero.
    while let Some(chunk) = named.get(at..).and_then(|rest| rest.first_chunk()) {
        let word = u64::from_le_bytes(*chunk);
        let nul = word.wrapping_sub(ONES) & !word & HIGHS;
        if nul != 0 {
            let before_nul = (nul & nul.wrapping_neg()) - 1;
            let ascii = word & HIGHS & before_nul == 0;
            return if ascii { Ok(at + (nul.trailing_zeros() / 8) as usize) } else { any_length(named) };
        }
        if word & HIGHS != 0 {
            break;
        }
        at += 8;
    }
    any_length(named)
}

/// [`name_length`], byte by byte: for what is no ASCII, and at the end of a document.
#[cold]
fn any_length(named: &[u8]) -> Result<usize, Unsure> {
    let length = named.iter().position(|byte| *byte == 0).ok_or(Unsure)?;
    std::str::from_utf8(&named[..length]).map_err(|_| Unsure)?;
    Ok(length)
}

/// The name of a field, made ready to be compared without a look for the end of what it is compared with.
#[derive(Debug)]
pub(super) struct Name {
    with_nul: Box<[u8]>,
    /// The first seven bytes, as far as there are, and which of them count.
    head: u64,
    mask: u64,
    /// The last eight bytes.
    tail: Option<u64>,
}

impl Name {
    pub(super) fn new(text: &str) -> Self {
        let with_nul: Box<[u8]> = text.bytes().chain([0]).collect();
        let (mut head, mut mask) = ([0; 8], [0; 8]);
        for (at, byte) in with_nul.iter().take(7).enumerate() {
            (head[at], mask[at]) = (*byte, 0xff);
        }
        let is_long = with_nul.len() > 7;
        let tail = with_nul.last_chunk().filter(|_| is_long).map(|tail| u64::from_le_bytes(*tail));
        let [head, mask] = [head, mask].map(u64::from_le_bytes);
        debug_assert!(!is_long || tail.is_some(), "a name of seven bytes or more has eight with its NUL");
        Self { with_nul, head, mask, tail }
    }

    pub(super) fn is(&self, name: &[u8]) -> bool {
        self.text().as_bytes() == name
    }

    pub(super) fn text(&self) -> &str {
        let (_, text) = self.with_nul.split_last().expect("it ends with a NUL");
        std::str::from_utf8(text).expect("it was made of a text")
    }
}

/// Types by their byte, as the `bson` crate names them: its own conversion isn't inlined, and would be called for every element.
pub(super) mod kind {
    use bson::spec::ElementType;

    pub(in crate::ingest) const DOUBLE: u8 = ElementType::Double as u8;
    pub(in crate::ingest) const STRING: u8 = ElementType::String as u8;
    pub(in crate::ingest) const DOCUMENT: u8 = ElementType::EmbeddedDocument as u8;
    pub(in crate::ingest) const ARRAY: u8 = ElementType::Array as u8;
    pub(in crate::ingest) const BINARY: u8 = ElementType::Binary as u8;
    pub(in crate::ingest) const UNDEFINED: u8 = ElementType::Undefined as u8;
    pub(in crate::ingest) const OBJECT_ID: u8 = ElementType::ObjectId as u8;
    pub(in crate::ingest) const BOOLEAN: u8 = ElementType::Boolean as u8;
    pub(in crate::ingest) const DATE: u8 = ElementType::DateTime as u8;
    pub(in crate::ingest) const NULL: u8 = ElementType::Null as u8;
    pub(in crate::ingest) const CODE: u8 = ElementType::JavaScriptCode as u8;
    pub(in crate::ingest) const SYMBOL: u8 = ElementType::Symbol as u8;
    pub(in crate::ingest) const INT32: u8 = ElementType::Int32 as u8;
    pub(in crate::ingest) const TIMESTAMP: u8 = ElementType::Timestamp as u8;
    pub(in crate::ingest) const INT64: u8 = ElementType::Int64 as u8;
    pub(in crate::ingest) const DECIMAL: u8 = ElementType::Decimal128 as u8;
    pub(in crate::ingest) const MIN_KEY: u8 = ElementType::MinKey as u8;
    pub(in crate::ingest) const MAX_KEY: u8 = ElementType::MaxKey as u8;
}

/// Bytes of the value that `rest` begins with. None for a broken one, and for the types whose values have no simple form: regular
/// expressions, database pointers, code with a scope.
#[inline(always)]
fn size_of_value(kind: u8, rest: &[u8]) -> Option<usize> {
    let length = || usize::try_from(i32::from_le_bytes(*rest.first_chunk()?)).ok();
    let ends_with_nul = |size: usize| (rest.get(size.checked_sub(1)?) == Some(&0)).then_some(size);
    match kind {
        kind::STRING | kind::SYMBOL | kind::CODE => {
            ends_with_nul(length().filter(|length| *length > 0)?.checked_add(4)?)
        }
        kind::DOCUMENT | kind::ARRAY => ends_with_nul(length().filter(|length| *length >= 5)?),
        kind::DOUBLE | kind::DATE | kind::TIMESTAMP | kind::INT64 => Some(8),
        kind::INT32 => Some(4),
        kind::BOOLEAN => Some(1),
        kind::OBJECT_ID => Some(12),
        kind::NULL | kind::UNDEFINED | kind::MIN_KEY | kind::MAX_KEY => Some(0),
        kind::DECIMAL => Some(16),
        kind::BINARY => length()?.checked_add(5),
        _ => None,
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
    is_ascii(bytes) || std::str::from_utf8(bytes).is_ok()
}

#[inline(always)]
fn is_ascii(bytes: &[u8]) -> bool {
    // The last word may overlap the one before.
    if let Some(last) = bytes.last_chunk() {
        let mut seen = u64::from_le_bytes(*last);
        let mut rest = bytes;
        while rest.len() > 8
            && let Some((word, after)) = rest.split_first_chunk()
        {
            seen |= u64::from_le_bytes(*word);
            rest = after;
        }
        return seen & HIGHS == 0;
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        return (u32::from_le_bytes(*first) | u32::from_le_bytes(*last)) & HIGHS as u32 == 0;
    }
    matches!(bytes, [] | [0..0x80] | [0..0x80, 0..0x80] | [0..0x80, 0..0x80, 0..0x80])
}

/// Whether one of the bytes is this one.
#[inline(always)]
pub(super) fn has_byte(bytes: &[u8], wanted: u8) -> bool {
    let pattern = u64::from(wanted).wrapping_mul(ONES);
    let zero_in = |word: &[u8; 8]| {
        let word = u64::from_le_bytes(*word) ^ pattern;
        word.wrapping_sub(ONES) & !word & HIGHS
    };
    let Some(last) = bytes.last_chunk() else { return bytes.contains(&wanted) };
    let mut found = zero_in(last);
    let mut rest = bytes;
    while rest.len() > 8
        && let Some((word, after)) = rest.split_first_chunk()
    {
        found |= zero_in(word);
        rest = after;
    }
    found != 0
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
            let (element, value) = match elements.next_with_value() {
                Err(Unsure) => return false,
                Ok(None) => {
                    assert!(theirs.next().is_none(), "{document:?}");
                    return true;
                }
                Ok(Some(element)) => element,
            };
            let expected = theirs.next().expect("an element").expect("a well-formed one");
            assert_eq!(element.name, expected.key().as_str().as_bytes(), "{document:?}");
            assert_eq!((element.kind, value.len()), (expected.element_type() as u8, expected.size()));
            if element.kind == kind::STRING {
                let text = text(value).and_then(|text| std::str::from_utf8(text).ok());
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
                assert!(has_byte(&bytes, 0xff) && !has_byte(&bytes, b':') && !has_byte(&ascii, 0xff), "{length} {at}");
                if at + 1 < length {
                    bytes[at..at + 2].copy_from_slice("é".as_bytes());
                    assert!(is_text(&bytes), "{length} {at}");
                }
            }
        }
    }
}
