//! Finds a field by its name in the bytes of a document, and walks the elements of an array. Nearly all work of matching is this, and the
//! `bson` crate's iterator makes a checked element of every field that it passes.
//!
//! Invariant: the answer is that of the iterator, always. What isn't plainly well-formed up to the field, or of a type that has no
//! simple form, is left to the iterator whole.

use bson::raw::RawArray;
use bson::spec::ElementType;
use bson::{RawBsonRef, RawDocument};

use crate::value::raw_of_parts;

/// The first field of that name, as everywhere in this crate. A malformed document counts as one that ends where it breaks.
pub fn field<'a>(document: &'a RawDocument, name: &str) -> Option<RawBsonRef<'a>> {
    match find(document.as_bytes(), name.as_bytes()) {
        Found::Value(value) => Some(value),
        Found::Missing => None,
        Found::Unsure => by_iterator(document, name),
    }
}

fn by_iterator<'a>(document: &'a RawDocument, name: &str) -> Option<RawBsonRef<'a>> {
    for element in document.iter_elements() {
        let element = element.ok()?;
        if element.key().as_str() == name {
            return element.value().ok();
        }
    }
    None
}

enum Found<'a> {
    Value(RawBsonRef<'a>),
    Missing,
    Unsure,
}

fn find<'a>(document: &'a [u8], name: &[u8]) -> Found<'a> {
    let mut elements = Elements::new(document);
    loop {
        match elements.step() {
            Step::Element(Element { name: found, kind, value }) if *found == *name => {
                return value_of(kind, value).map_or(Found::Unsure, Found::Value);
            }
            Step::Element(_) => {}
            Step::End => return Found::Missing,
            Step::Unsure => return Found::Unsure,
        }
    }
}

/// One element, where it stands in the bytes of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element<'a> {
    /// Without the NUL that ends it. Valid UTF-8.
    pub name: &'a [u8],
    /// BSON's byte for the type.
    pub kind: u8,
    /// What [`value_of`] takes.
    pub value: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    Element(Element<'a>),
    /// There are no more, and all of the document is as it should be.
    End,
    /// What follows is malformed, or an element of a type without a simple form. The elements before it stand.
    Unsure,
}

/// The elements of a document, or of an array, straight from its bytes.
///
/// What it gives is what [`RawDocument::iter_elements`] gives: the same elements in the same order, as far as it goes. It does not go
/// beyond what it is unsure of: there [`RawDocument::iter_elements`], which knows more forms, may still find elements or an end. So whoever looks for
/// something that it has not found until then must ask [`field`] or the iterator.
///
/// It checks what is around values: names, lengths, and NULs. Whether a value itself is well-formed (texts are UTF-8, a bool is zero or one,
/// a nested document has the length that it says) is for [`value_of`] to say. A field whose value is malformed counts as missing, whatever
/// comes after it; an array ends before such an element.
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    /// What is left, without the document's NUL. None once it is unsure.
    rest: Option<&'a [u8]>,
}

impl<'a> Elements<'a> {
    /// Over the bytes of a document as [`RawDocument::as_bytes`] has them, which is as long as it says.
    pub fn new(document: &'a [u8]) -> Elements<'a> {
        // Four bytes of length, elements, and a NUL.
        let inside = document.split_last().filter(|(end, _)| **end == 0).and_then(|(_, inside)| inside.get(4..));
        Elements { rest: inside }
    }

    /// The next one. After the last one it stays as it is.
    #[inline]
    pub fn step(&mut self) -> Step<'a> {
        let Some(rest) = self.rest else { return Step::Unsure };
        if rest.is_empty() {
            return Step::End;
        }
        match split_element(rest) {
            Some((element, after)) => {
                self.rest = Some(after);
                Step::Element(element)
            }
            None => {
                self.rest = None;
                Step::Unsure
            }
        }
    }
}

/// An element is a type, a name that ends with a NUL, and a value.
#[inline]
fn split_element(rest: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (&kind, named) = rest.split_first()?;
    let length = name_length(named)?;
    let value = &named[length + 1..];
    let (value, after) = value.split_at_checked(size_of_value(kind, value)?)?;
    Some((Element { name: &named[..length], kind, value }, after))
}

/// The value that an element's bytes are. None where they are malformed, and for the types that [`Elements`] is unsure of.
pub fn value_of(kind: u8, value: &[u8]) -> Option<RawBsonRef<'_>> {
    raw_of_parts(kind, value)
}

/// The values of an array, up to the first that is malformed.
pub(crate) fn items(array: &RawArray) -> Items<'_> {
    Items { elements: Elements::new(array.as_bytes()), array, given: 0, slow: None }
}

pub(crate) struct Items<'a> {
    elements: Elements<'a>,
    array: &'a RawArray,
    given: usize,
    /// What takes over where the other is unsure.
    slow: Option<bson::raw::RawArrayIter<'a>>,
}

impl<'a> Iterator for Items<'a> {
    type Item = RawBsonRef<'a>;

    #[inline]
    fn next(&mut self) -> Option<RawBsonRef<'a>> {
        if self.slow.is_none() {
            match self.elements.step() {
                Step::Element(element) => {
                    if let Some(value) = value_of(element.kind, element.value) {
                        self.given += 1;
                        return Some(value);
                    }
                }
                Step::End => return None,
                Step::Unsure => {}
            }
        }
        self.next_by_iterator()
    }
}

impl<'a> Items<'a> {
    #[cold]
    fn next_by_iterator(&mut self) -> Option<RawBsonRef<'a>> {
        let (array, given) = (self.array, self.given);
        let slow = self.slow.get_or_insert_with(|| {
            let mut items = array.into_iter();
            items.by_ref().take(given).for_each(drop);
            items
        });
        let next = slow.next()?.ok();
        if next.is_none() {
            // A malformed element is the end. An iterator over nothing stays there.
            slow.by_ref().for_each(drop);
        }
        next
    }
}

/// The names of a document's fields that have a value, some perhaps twice.
pub(crate) fn names(document: &RawDocument) -> impl Iterator<Item = &str> {
    each_field(document).map(|(name, _)| name)
}

/// The fields of a document whose values are well-formed, some perhaps twice: those that [`field`] finds are among them, the first of
/// a name.
pub(crate) fn each_field(document: &RawDocument) -> impl Iterator<Item = (&str, RawBsonRef<'_>)> {
    let elements = document.iter_elements().map_while(Result::ok);
    elements.filter_map(|element| Some((element.key().as_str(), element.value().ok()?)))
}

/// Bytes before the NUL. None where there is none, or where they are no text.
fn name_length(named: &[u8]) -> Option<usize> {
    let mut seen = 0;
    for (length, byte) in named.iter().enumerate() {
        if *byte == 0 {
            let text = seen < 0x80 || std::str::from_utf8(&named[..length]).is_ok();
            return text.then_some(length);
        }
        seen |= byte;
    }
    None
}

/// Bytes of the value that `rest` begins with. None where the value is broken, or of a type that is better left to the iterator.
#[inline]
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
            let length = length().filter(|length| *length > 0)?;
            ends_with_nul(length.checked_add(4)?)
        }
        ElementType::EmbeddedDocument | ElementType::Array => ends_with_nul(length().filter(|length| *length >= 5)?),
        // The old form of a binary says its length twice.
        ElementType::Binary if rest.get(4) != Some(&2) => length()?.checked_add(5),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bson::{Bson, Document, RawDocumentBuf, doc};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Something of every type.
    fn documents() -> Vec<Document> {
        let binary = |subtype| Bson::Binary(bson::Binary { subtype, bytes: b"four".to_vec() });
        let every_type = doc! {
            "a": 1.5, "b": "text", "c": { "a": 1, "é": "ü" }, "d": [1, "x", { "a": 2 }],
            "e": binary(bson::spec::BinarySubtype::Generic), "f": binary(bson::spec::BinarySubtype::BinaryOld),
            "g": Bson::Undefined, "h": bson::oid::ObjectId::from_bytes([7; 12]), "i": true,
            "j": bson::DateTime::from_millis(-1), "k": Bson::Null,
            "l": Bson::RegularExpression(bson::Regex { pattern: "a+".try_into().unwrap(), options: "i".try_into().unwrap() }),
            "m": Bson::JavaScriptCode("1".into()), "n": Bson::Symbol("s".into()),
            "o": Bson::JavaScriptCodeWithScope(bson::JavaScriptCodeWithScope { code: "x".into(), scope: doc! { "x": 1 } }),
            "p": 7_i32, "q": bson::Timestamp { time: 1, increment: 2 }, "r": 8_i64,
            "s": Bson::Decimal128("1.50".parse().unwrap()), "t": Bson::MinKey, "u": Bson::MaxKey,
            "schlüssel": "名", "": "empty name", "last": 0,
        };
        vec![doc! {}, every_type, doc! { "a": "", "last": 1 }, doc! { "aa": 1, "a": 2, "b": { "a": 3 } }]
    }

    const NAMES: [&str; 29] = [
        "a",
        "b",
        "c",
        "d",
        "e",
        "f",
        "g",
        "h",
        "i",
        "j",
        "k",
        "l",
        "m",
        "n",
        "o",
        "p",
        "q",
        "r",
        "s",
        "t",
        "u",
        "schlüssel",
        "",
        "last",
        "aa",
        "la",
        "lastly",
        "é",
        "none",
    ];

    fn check(document: &RawDocument) {
        for name in NAMES {
            // As text, in which a NaN is a NaN.
            let [found, expected] = [field(document, name), by_iterator(document, name)].map(|it| format!("{it:?}"));
            assert_eq!(found, expected, "{name:?} of {:?}", document.as_bytes());
        }
        check_elements(document);
        // Any document can be read as an array.
        let bytes = [&[0, 0, 0, 0, 4, b'a', 0], document.as_bytes(), &[0]].concat();
        let holder = RawDocumentBuf::from_bytes(with_length(bytes)).unwrap();
        if let Some(RawBsonRef::Array(array)) = field(&holder, "a") {
            let found: Vec<String> = items(array).map(|item| format!("{item:?}")).collect();
            let expected = array.into_iter().map_while(Result::ok).map(|item| format!("{item:?}"));
            assert_eq!(found, expected.collect::<Vec<_>>(), "{:?}", document.as_bytes());
            let mut ended = items(array);
            ended.by_ref().for_each(drop);
            assert!(ended.next().is_none(), "{:?}", document.as_bytes());
        }
    }

    fn with_length(mut bytes: Vec<u8>) -> Vec<u8> {
        let length = bytes.len() as i32;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    /// What is given is what the iterator gives, value by value, and an end is its end.
    fn check_elements(document: &RawDocument) {
        let mut elements = Elements::new(document.as_bytes());
        let mut expected = document.iter_elements();
        loop {
            match elements.step() {
                Step::Element(element) => {
                    let expected = expected.next().expect("as many").expect("well-formed");
                    assert_eq!(element.name, expected.key().as_str().as_bytes());
                    assert_eq!(element.kind, expected.element_type() as u8);
                    let [found, expected] =
                        [value_of(element.kind, element.value), expected.value().ok()].map(|it| format!("{it:?}"));
                    assert_eq!(found, expected, "{element:?} of {:?}", document.as_bytes());
                }
                Step::End => {
                    assert!(expected.next().is_none());
                    assert_eq!(elements.step(), Step::End);
                    return;
                }
                Step::Unsure => {
                    assert_eq!(elements.step(), Step::Unsure);
                    return;
                }
            }
        }
    }

    fn raw(document: &Document) -> RawDocumentBuf {
        RawDocumentBuf::try_from(document).unwrap()
    }

    #[test]
    fn what_the_iterator_finds() {
        for document in documents() {
            check(&raw(&document));
        }
        let document = raw(&documents()[1]);
        assert_eq!(field(&document, "schlüssel"), Some(RawBsonRef::String("名")));
        assert_eq!(field(&document, ""), Some(RawBsonRef::String("empty name")));
        assert!(matches!(find(document.as_bytes(), b"c"), Found::Value(RawBsonRef::Document(_))));
    }

    #[test]
    fn the_first_of_two() {
        let bytes = vec![17, 0, 0, 0, 8, b'a', 0, 1, 8, b'a', 0, 0, 8, b'b', 0, 1, 0];
        let document = RawDocumentBuf::from_bytes(bytes).unwrap();
        check(&document);
        assert_eq!(field(&document, "a"), Some(RawBsonRef::Boolean(true)));
    }

    /// Whatever the bytes, the answer is the iterator's.
    #[test]
    fn broken_documents() {
        const MUTATIONS: usize = 20_000;
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let documents: Vec<Vec<u8>> = documents().iter().map(|document| raw(document).into_bytes()).collect();
        let mut broken = 0;
        for _ in 0..MUTATIONS {
            let mut bytes = documents[random.random_range(0..documents.len())].clone();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(4..bytes.len());
                bytes[at] = if random.random() { random.random() } else { random.random_range(0..20) };
            }
            if random.random_ratio(1, 4) {
                bytes.truncate(random.random_range(5..=bytes.len()));
            }
            let bytes = with_length(bytes);
            if let Ok(document) = RawDocument::from_bytes(&bytes) {
                broken += 1;
                check(document);
            }
        }
        assert!(broken > MUTATIONS / 4, "{broken}");
    }
}
