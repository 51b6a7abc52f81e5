//! Comparison of BSON values, and values as keys.
//!
//! Invariant: two raw values have the same [`Value`] exactly when [`equal`] holds for them, as far as they have one at all.

use std::cmp::Ordering;
use std::fmt;

use bson::raw::{RawArray, RawBinaryRef};
use bson::spec::{BinarySubtype, ElementType};
use bson::{Decimal128, RawBson, RawBsonRef, RawDocument, RawDocumentBuf, Timestamp};
use serde::Deserialize;
use serde::de::value::BorrowedBytesDeserializer;
use smallvec::SmallVec;

use crate::number::{Canonical, Number};

/// A value, canonical under `==`: numbers by their exact value across int32, int64, double and decimal. `Hash` and `Eq` agree
/// with `==` of `docs/semantics.md`. Never made for NaN, which equals nothing, nor for arrays, documents and the other
/// composite types, which are no index keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(Box<[u8]>);

/// A value that a predicate compares with, in little room: most are texts and integers.
#[derive(Debug)]
pub(crate) enum Held {
    Int(i64),
    Double(f64),
    Text(Box<str>),
    Bool(bool),
    Null,
    DateTime(bson::DateTime),
    ObjectId(bson::oid::ObjectId),
    Other(Box<RawBson>),
}

impl Held {
    pub(crate) fn as_raw(&self) -> RawBsonRef<'_> {
        match self {
            Held::Int(value) => RawBsonRef::Int64(*value),
            Held::Double(value) => RawBsonRef::Double(*value),
            Held::Text(text) => RawBsonRef::String(text),
            Held::Bool(value) => RawBsonRef::Boolean(*value),
            Held::Null => RawBsonRef::Null,
            Held::DateTime(value) => RawBsonRef::DateTime(*value),
            Held::ObjectId(value) => RawBsonRef::ObjectId(*value),
            Held::Other(value) => value.as_raw_bson_ref(),
        }
    }
}

impl From<RawBson> for Held {
    fn from(value: RawBson) -> Held {
        match value {
            // Equal to it, and ordered like it.
            RawBson::Int32(value) => Held::Int(value.into()),
            RawBson::Int64(value) => Held::Int(value),
            RawBson::Double(value) => Held::Double(value),
            RawBson::String(text) => Held::Text(text.into()),
            RawBson::Boolean(value) => Held::Bool(value),
            RawBson::Null => Held::Null,
            RawBson::DateTime(value) => Held::DateTime(value),
            RawBson::ObjectId(value) => Held::ObjectId(value),
            other => Held::Other(Box::new(other)),
        }
    }
}

/// Room for the canonical bytes of most values without an allocation.
pub type CanonicalBytes = SmallVec<[u8; 48]>;

impl Value {
    /// None for what equals nothing (NaN) or cannot be an index key.
    pub fn of(raw: RawBsonRef<'_>) -> Option<Value> {
        let mut bytes = CanonicalBytes::new();
        write_canonical(raw, &mut bytes).then(|| Value(bytes.as_slice().into()))
    }

    /// The value of a stored id, given as its BSON type byte and the bytes of its value.
    pub fn of_stored_id(kind: u8, value: &[u8]) -> Option<Value> {
        Value::of(raw_of_parts(kind, value)?)
    }

    /// The canonical bytes: equal values have equal bytes, and only they.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The string that the value is, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        // A string's canonical form is a tag and its bytes; making the value again proves that it was one.
        let text = std::str::from_utf8(self.0.get(1..)?).ok()?;
        (Value::of(RawBsonRef::String(text))? == *self).then_some(text)
    }
}

/// Appends what [`Value::as_bytes`] of this value would be, without making a `Value`. Returns false, with nothing appended, where
/// there is none.
pub fn write_canonical(raw: RawBsonRef<'_>, out: &mut CanonicalBytes) -> bool {
    let mut put = |tag: u8, parts: &[&[u8]]| {
        out.push(tag);
        for part in parts {
            out.extend_from_slice(part);
        }
        true
    };
    match raw {
        RawBsonRef::Int32(_) | RawBsonRef::Int64(_) | RawBsonRef::Double(_) | RawBsonRef::Decimal128(_) => {
            match Number::of(raw).and_then(Number::canonical) {
                None => false,
                Some(Canonical::Int(value)) => put(1, &[&value.to_be_bytes()]),
                Some(Canonical::Double(value)) => put(2, &[&value.to_bits().to_be_bytes()]),
                Some(Canonical::Decimal(value)) => {
                    put(3, &[&[value.negative.into()], &value.coefficient.to_be_bytes(), &value.exponent.to_be_bytes()])
                }
            }
        }
        RawBsonRef::String(text) => put(4, &[text.as_bytes()]),
        RawBsonRef::Boolean(value) => put(5, &[&[value.into()]]),
        RawBsonRef::Null => put(6, &[]),
        RawBsonRef::DateTime(value) => put(7, &[&value.timestamp_millis().to_be_bytes()]),
        RawBsonRef::ObjectId(value) => put(8, &[&value.bytes()]),
        RawBsonRef::Binary(value) => put(9, &[&[value.subtype.into()], value.bytes]),
        RawBsonRef::Timestamp(value) => put(10, &[&value.time.to_be_bytes(), &value.increment.to_be_bytes()]),
        RawBsonRef::Symbol(text) => put(11, &[text.as_bytes()]),
        RawBsonRef::JavaScriptCode(text) => put(12, &[text.as_bytes()]),
        RawBsonRef::RegularExpression(value) => {
            put(13, &[value.pattern.as_str().as_bytes(), &[0], value.options.as_str().as_bytes()])
        }
        RawBsonRef::MinKey => put(14, &[]),
        RawBsonRef::MaxKey => put(15, &[]),
        RawBsonRef::Undefined => put(16, &[]),
        RawBsonRef::Array(_)
        | RawBsonRef::Document(_)
        | RawBsonRef::JavaScriptCodeWithScope(_)
        | RawBsonRef::DbPointer(_) => false,
    }
}

/// `==`: the same type (all numbers are one type) and the same value. Arrays and documents are equal when their elements are, in
/// order, and for documents under the same names.
pub fn equal(left: RawBsonRef<'_>, right: RawBsonRef<'_>) -> bool {
    match (left, right) {
        (RawBsonRef::String(left), RawBsonRef::String(right)) => left == right,
        (RawBsonRef::Int32(left), RawBsonRef::Int64(right)) => i64::from(left) == right,
        (RawBsonRef::Int64(left), RawBsonRef::Int64(right)) => left == right,
        (RawBsonRef::Array(left), RawBsonRef::Array(right)) => equal_arrays(left, right),
        (RawBsonRef::Document(left), RawBsonRef::Document(right)) => equal_documents(left, right),
        _ => match (Number::of(left), Number::of(right)) {
            (Some(left), Some(right)) => left.compare(right) == Some(Ordering::Equal),
            (None, None) => left == right,
            _ => false,
        },
    }
}

fn equal_arrays(left: &RawArray, right: &RawArray) -> bool {
    let mut right = right.into_iter();
    for item in left {
        match (item, right.next()) {
            (Ok(left), Some(Ok(right))) if equal(left, right) => {}
            _ => return false,
        }
    }
    right.next().is_none()
}

fn equal_documents(left: &RawDocument, right: &RawDocument) -> bool {
    let mut right = right.iter();
    for field in left {
        match (field, right.next()) {
            (Ok((left_name, left)), Some(Ok((right_name, right)))) if left_name == right_name && equal(left, right) => {
            }
            _ => return false,
        }
    }
    right.next().is_none()
}

/// The order of two values of one type; None where the types differ or have no order (null, arrays, documents and the rarer
/// types), and for NaN.
pub fn compare(left: RawBsonRef<'_>, right: RawBsonRef<'_>) -> Option<Ordering> {
    use RawBsonRef as Raw;
    Some(match (left, right) {
        (Raw::String(left), Raw::String(right)) => left.as_bytes().cmp(right.as_bytes()),
        (Raw::Int32(left), Raw::Int64(right)) => i64::from(left).cmp(&right),
        (Raw::Int64(left), Raw::Int64(right)) => left.cmp(&right),
        (Raw::Double(left), Raw::Double(right)) => return left.partial_cmp(&right),
        (Raw::Boolean(left), Raw::Boolean(right)) => left.cmp(&right),
        (Raw::DateTime(left), Raw::DateTime(right)) => left.timestamp_millis().cmp(&right.timestamp_millis()),
        (Raw::ObjectId(left), Raw::ObjectId(right)) => left.bytes().cmp(&right.bytes()),
        (Raw::Timestamp(left), Raw::Timestamp(right)) => {
            (left.time, left.increment).cmp(&(right.time, right.increment))
        }
        (Raw::Binary(left), Raw::Binary(right)) => binary_key(left).cmp(&binary_key(right)),
        _ => return Number::of(left)?.compare(Number::of(right)?),
    })
}

/// MongoDB's order of binaries: length, then subtype, then bytes.
fn binary_key(value: RawBinaryRef<'_>) -> (usize, u8, &[u8]) {
    (value.bytes.len(), value.subtype.into(), value.bytes)
}

/// The encoding of a document id: its BSON type byte and the bytes of its value, as they stand in a document.
pub fn stored_id(raw: RawBsonRef<'_>) -> Vec<u8> {
    if let RawBsonRef::String(text) = raw {
        return stored_string_id(text);
    }
    let mut document = RawDocumentBuf::new();
    document.append(bson::raw::cstr!("v"), raw);
    // Four bytes of length, the type, "v" and its NUL, the value, the document's NUL.
    let bytes = document.as_bytes();
    let mut stored = Vec::with_capacity(bytes.len() - 7);
    stored.push(bytes[4]);
    stored.extend_from_slice(&bytes[7..bytes.len() - 1]);
    stored
}

/// [`stored_id`] of a string.
pub fn stored_string_id(text: &str) -> Vec<u8> {
    [&stored_string_head(text.len())[..], text.as_bytes(), &[0]].concat()
}

/// What [`stored_id`] of a string of so many bytes begins with; the string follows, and a NUL.
pub fn stored_string_head(bytes: usize) -> [u8; 5] {
    // A BSON string is shorter than 2 GiB, for its document is.
    let [a, b, c, d] = (bytes as i32 + 1).to_le_bytes();
    [ElementType::String as u8, a, b, c, d]
}

/// The value that [`stored_id`] encoded. None for bytes that are no value, and for types that no `_id` has (array, regular
/// expression, code with scope, DBPointer).
pub fn raw_of_stored_id(stored: &[u8]) -> Option<RawBsonRef<'_>> {
    let (kind, value) = stored.split_first()?;
    raw_of_parts(*kind, value).filter(|raw| raw.as_array().is_none())
}

/// A value from its type and its bytes.
pub(crate) fn raw_of_parts(kind: u8, value: &[u8]) -> Option<RawBsonRef<'_>> {
    let fixed = || <[u8; 8]>::try_from(value).ok();
    Some(match ElementType::from(kind)? {
        ElementType::Double => RawBsonRef::Double(f64::from_le_bytes(fixed()?)),
        ElementType::String => RawBsonRef::String(text_of(value)?),
        ElementType::Symbol => RawBsonRef::Symbol(text_of(value)?),
        ElementType::JavaScriptCode => RawBsonRef::JavaScriptCode(text_of(value)?),
        ElementType::EmbeddedDocument => RawBsonRef::Document(RawDocument::from_bytes(value).ok()?),
        ElementType::Array => RawBsonRef::Array(array_of(value)?),
        ElementType::Binary => {
            let (length, rest) = value.split_first_chunk::<4>()?;
            let (subtype, bytes) = rest.split_first()?;
            if usize::try_from(i32::from_le_bytes(*length)).ok()? != bytes.len() {
                return None;
            }
            let subtype = (*subtype).into();
            // The old form repeats the length inside.
            let bytes = if subtype == BinarySubtype::BinaryOld { bytes.get(4..)? } else { bytes };
            RawBsonRef::Binary(RawBinaryRef { subtype, bytes })
        }
        ElementType::ObjectId => RawBsonRef::ObjectId(bson::oid::ObjectId::from_bytes(value.try_into().ok()?)),
        ElementType::Boolean => match value {
            [0] => RawBsonRef::Boolean(false),
            [1] => RawBsonRef::Boolean(true),
            _ => return None,
        },
        ElementType::DateTime => RawBsonRef::DateTime(bson::DateTime::from_millis(i64::from_le_bytes(fixed()?))),
        ElementType::Int32 => RawBsonRef::Int32(i32::from_le_bytes(value.try_into().ok()?)),
        ElementType::Int64 => RawBsonRef::Int64(i64::from_le_bytes(fixed()?)),
        ElementType::Timestamp => {
            let bits = u64::from_le_bytes(fixed()?);
            // The two halves, on purpose.
            RawBsonRef::Timestamp(Timestamp { time: (bits >> 32) as u32, increment: bits as u32 })
        }
        ElementType::Decimal128 => RawBsonRef::Decimal128(Decimal128::from_bytes(value.try_into().ok()?)),
        ElementType::Null if value.is_empty() => RawBsonRef::Null,
        ElementType::Undefined if value.is_empty() => RawBsonRef::Undefined,
        ElementType::MinKey if value.is_empty() => RawBsonRef::MinKey,
        ElementType::MaxKey if value.is_empty() => RawBsonRef::MaxKey,
        _ => return None,
    })
}

/// An array in place. There is no other way to it than the one by which formats beside BSON hand arrays on, as bytes.
fn array_of(value: &[u8]) -> Option<&RawArray> {
    let bytes: BorrowedBytesDeserializer<'_, serde::de::value::Error> = BorrowedBytesDeserializer::new(value);
    Deserialize::deserialize(bytes).ok()
}

fn text_of(value: &[u8]) -> Option<&str> {
    let (length, rest) = value.split_first_chunk::<4>()?;
    let (last, text) = rest.split_last()?;
    if usize::try_from(i32::from_le_bytes(*length)).ok()? != rest.len() || *last != 0 {
        return None;
    }
    std::str::from_utf8(text).ok()
}

/// A stored id as text for people and JSON: a string as it is, anything else as extended JSON.
#[derive(Clone, Copy, Debug)]
pub struct StoredId<'a>(pub &'a [u8]);

impl fmt::Display for StoredId<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match raw_of_stored_id(self.0) {
            Some(RawBsonRef::String(text)) => formatter.write_str(text),
            Some(raw) => match bson::Bson::try_from(raw) {
                Ok(value) => write!(formatter, "{}", value.into_relaxed_extjson()),
                Err(_) => formatter.write_str("?"),
            },
            None => formatter.write_str("?"),
        }
    }
}

#[cfg(test)]
mod tests;
