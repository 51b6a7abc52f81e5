//! Finds a field by its name in the bytes of a document. Nearly all work of matching is this, and the `bson` crate's iterator makes a
//! checked element of every field that it passes.
//!
//! Invariant: the answer is that of the iterator, always. What isn't plainly well-formed up to the field, or of a type that has no
//! simple form, is left to the iterator whole.

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
    walk(document, name).unwrap_or(Found::Unsure)
}

/// None where it is unsure.
fn walk<'a>(document: &'a [u8], name: &[u8]) -> Option<Found<'a>> {
    // Four bytes of length, elements, and a NUL. An element is a type, a name that ends with a NUL, and a value.
    let (&end, inside) = document.split_last()?;
    let mut rest = inside.get(4..)?;
    if end != 0 {
        return None;
    }
    while let Some((&kind, named)) = rest.split_first() {
        let length = name_length(named)?;
        let value = &named[length + 1..];
        let size = size_of_value(kind, value)?;
        let (value, after) = value.split_at_checked(size)?;
        if named[..length] == *name {
            return raw_of_parts(kind, value).map(Found::Value);
        }
        rest = after;
    }
    Some(Found::Missing)
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
            let length = bytes.len() as i32;
            bytes[..4].copy_from_slice(&length.to_le_bytes());
            if let Ok(document) = RawDocument::from_bytes(&bytes) {
                broken += 1;
                check(document);
            }
        }
        assert!(broken > MUTATIONS / 4, "{broken}");
    }
}
