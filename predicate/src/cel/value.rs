//! Values as CEL sees them, in place in an image.

use std::cmp::Ordering;

use bson::raw::RawArray;
use bson::{RawBsonRef, RawDocument};

use crate::number::{compare_int_double, decimal_to_double};

/// A BSON value under the table of `docs/semantics.md`.
#[derive(Clone, Copy, Debug)]
pub(super) enum CelRef<'a> {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Double(f64),
    Text(&'a str),
    /// An ObjectId, in CEL a string of 24 hexadecimal digits.
    Hex([u8; 24]),
    Bytes(&'a [u8]),
    /// Seconds and nanoseconds since 1970.
    Time(i64, u32),
    List(&'a RawArray),
    Map(&'a RawDocument),
    /// A type that CEL does not have. It equals nothing and has no order.
    Foreign,
}

/// Only an interpreter can compare two lists or two maps.
#[derive(Debug)]
pub(super) struct Composite;

impl<'a> CelRef<'a> {
    pub(super) fn of(raw: RawBsonRef<'a>) -> CelRef<'a> {
        match raw {
            RawBsonRef::Null => CelRef::Null,
            RawBsonRef::Boolean(value) => CelRef::Bool(value),
            RawBsonRef::Int32(value) => CelRef::Int(value.into()),
            RawBsonRef::Int64(value) => CelRef::Int(value),
            RawBsonRef::Double(value) => CelRef::Double(value),
            RawBsonRef::Decimal128(value) => CelRef::Double(decimal_to_double(value)),
            RawBsonRef::String(value) => CelRef::Text(value),
            RawBsonRef::ObjectId(value) => CelRef::Hex(hex_digits(value.bytes())),
            RawBsonRef::Binary(value) => CelRef::Bytes(value.bytes),
            RawBsonRef::DateTime(value) => {
                let millis = value.timestamp_millis();
                if in_range(millis) {
                    // The remainder is below 1,000.
                    CelRef::Time(millis.div_euclid(1000), millis.rem_euclid(1000) as u32 * 1_000_000)
                } else {
                    CelRef::Foreign
                }
            }
            RawBsonRef::Array(value) => CelRef::List(value),
            RawBsonRef::Document(value) => CelRef::Map(value),
            _ => CelRef::Foreign,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            CelRef::Text(text) => Some(text),
            CelRef::Hex(digits) => std::str::from_utf8(digits).ok(),
            _ => None,
        }
    }

    pub(super) fn equal(&self, other: &CelRef<'_>) -> Result<bool, Composite> {
        Ok(match (self, other) {
            (CelRef::Text(left), CelRef::Text(right)) => left == right,
            (CelRef::Int(left), CelRef::Int(right)) => left == right,
            (CelRef::Null, CelRef::Null) => true,
            (CelRef::List(_), CelRef::List(_)) | (CelRef::Map(_), CelRef::Map(_)) => return Err(Composite),
            _ => self.compare(other) == Some(Ordering::Equal),
        })
    }

    /// The order of two values; None where CEL has none, which is an error for `<` and its kin.
    pub(super) fn compare(&self, other: &CelRef<'_>) -> Option<Ordering> {
        use CelRef::{Bool, Bytes, Double, Int, Time, UInt};
        match (self, other) {
            (CelRef::Text(_) | CelRef::Hex(_), CelRef::Text(_) | CelRef::Hex(_)) => {
                Some(self.text()?.as_bytes().cmp(other.text()?.as_bytes()))
            }
            (Bool(left), Bool(right)) => Some(left.cmp(right)),
            (Int(left), Int(right)) => Some(left.cmp(right)),
            (UInt(left), UInt(right)) => Some(left.cmp(right)),
            (Double(left), Double(right)) => left.partial_cmp(right),
            (Int(left), UInt(right)) => Some(i128::from(*left).cmp(&i128::from(*right))),
            (UInt(left), Int(right)) => Some(i128::from(*left).cmp(&i128::from(*right))),
            (Int(left), Double(right)) => int_double(*left, *right),
            (Double(left), Int(right)) => int_double(*right, *left).map(Ordering::reverse),
            (UInt(left), Double(right)) => uint_double(*left, *right),
            (Double(left), UInt(right)) => uint_double(*right, *left).map(Ordering::reverse),
            (Bytes(left), Bytes(right)) => Some(left.cmp(right)),
            (Time(left, left_nanos), Time(right, right_nanos)) => Some((left, left_nanos).cmp(&(right, right_nanos))),
            _ => None,
        }
    }
}

/// The first millisecond of the year 1 and the last of the year 9999, the range of CEL's timestamps.
pub(super) const MILLIS_MIN: i64 = -62_135_596_800_000;
pub(super) const MILLIS_MAX: i64 = 253_402_300_799_999;

pub(super) fn in_range(millis: i64) -> bool {
    (MILLIS_MIN..=MILLIS_MAX).contains(&millis)
}

pub(super) fn hex_digits(bytes: [u8; 12]) -> [u8; 24] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 24];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    text
}

fn int_double(int: i64, double: f64) -> Option<Ordering> {
    (!double.is_nan()).then(|| compare_int_double(int, double))
}

fn uint_double(uint: u64, double: f64) -> Option<Ordering> {
    match i64::try_from(uint) {
        Ok(int) => int_double(int, double),
        Err(_) if double.is_nan() => None,
        // 2^64, the first double above every `u64`.
        Err(_) if double >= 18_446_744_073_709_551_616.0 => Some(Ordering::Less),
        // Doubles from 2^63 on are whole numbers; below that every one is less than this integer.
        Err(_) if double >= 9_223_372_036_854_775_808.0 => Some(uint.cmp(&(double as u64))),
        Err(_) => Some(Ordering::Greater),
    }
}

/// A literal of an expression.
#[derive(Clone, Debug)]
pub(super) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Double(f64),
    Text(Box<str>),
    Bytes(Box<[u8]>),
    Time(i64, u32),
}

impl Literal {
    pub(super) fn as_ref(&self) -> CelRef<'_> {
        match self {
            Literal::Null => CelRef::Null,
            Literal::Bool(value) => CelRef::Bool(*value),
            Literal::Int(value) => CelRef::Int(*value),
            Literal::UInt(value) => CelRef::UInt(*value),
            Literal::Double(value) => CelRef::Double(*value),
            Literal::Text(value) => CelRef::Text(value),
            Literal::Bytes(value) => CelRef::Bytes(value),
            Literal::Time(seconds, nanos) => CelRef::Time(*seconds, *nanos),
        }
    }
}

pub(super) fn is_hex_id(text: &str) -> bool {
    text.len() == 24 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
