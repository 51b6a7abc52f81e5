//! What is looked up: a value at a node of a partition, as bytes that are equal for equal values, and their hash.
//!
//! Invariants:
//! - Two values have the same class and payload exactly when `==` holds for them: both are those of
//!   [`predicate::write_canonical`], the class its tag and the payload the rest.
//! - Short payloads are compared as one number, long ones by their hash and then in full.

use bson::raw::RawBsonRef;
use predicate::{CanonicalBytes, Order, order_key, write_canonical};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes of a payload that is kept in place.
pub(crate) const SHORT_MAX: usize = 15;
/// In place of the length of one that isn't.
const LONG: u8 = 255;

/// Added to the class of a value: an element of an array has it.
pub(crate) const ELEMENT: u8 = 0x20;
/// Strings that begin with the payload.
pub(crate) const PREFIX: u8 = 0x40;
/// Documents that have a field of this name.
pub(crate) const FIELD: u8 = 0x41;
/// A set of ranges; the order is added.
pub(crate) const RANGE: u8 = 0x50;
/// Added to the class of a value: the stored id of a document.
pub(crate) const DOCUMENT: u8 = 0x80;

/// Bytes of a prefix that are looked up. What is longer is found by its beginning and then evaluated.
pub(crate) const PREFIX_MAX: usize = 32;

pub(crate) const INT: u8 = 1;
pub(crate) const DOUBLE: u8 = 2;
pub(crate) const STRING: u8 = 4;
const BOOL: u8 = 5;
const NULL: u8 = 6;
const DATE: u8 = 7;
const OBJECT_ID: u8 = 8;
const TIMESTAMP: u8 = 10;

/// Secrets that nobody can choose values against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seeds([u64; 4]);

impl Seeds {
    pub(crate) fn new(seed: u64) -> Self {
        // SplitMix64, by Sebastiano Vigna: consecutive states give independent words.
        let mut state = seed;
        Self(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut word = state;
            word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            // Odd, so that no factor is ever zero for want of one.
            (word ^ word >> 31) | 1
        }))
    }

    /// Of up to 16 bytes and two numbers of what they belong to.
    #[inline]
    pub(crate) fn hash(&self, low: u64, high: u64, [one, other]: [u32; 2]) -> u64 {
        let of_one = u64::from(one).wrapping_mul(self.0[2]);
        fold(low ^ self.0[0], high ^ self.0[1] ^ of_one.wrapping_add(u64::from(other).wrapping_mul(self.0[3])))
    }

    /// Makes the tags of one partition's keys.
    #[inline]
    pub(crate) fn tags(&self, partition: u32) -> Tags {
        let Seeds([low, high, of_partition, of_node]) = *self;
        Tags { low, high, partition: u64::from(partition).wrapping_mul(of_partition), of_node }
    }

    pub(crate) fn hash_long(&self, bytes: &[u8]) -> u64 {
        xxh3_64_with_seed(bytes, self.0[0])
    }
}

/// The seeds, as far as one partition's keys need them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tags {
    low: u64,
    high: u64,
    partition: u64,
    of_node: u64,
}

impl Tags {
    /// The same as [`At::tag`].
    #[inline(always)]
    pub(crate) fn of(&self, node_class: u32, payload: Payload) -> u32 {
        let place = self.partition.wrapping_add(u64::from(node_class).wrapping_mul(self.of_node));
        (fold(payload.low() ^ self.low, payload.high() ^ self.high ^ place) >> 32) as u32
    }
}

/// The halves of the product of two words, together.
#[inline]
fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    product as u64 ^ (product >> 64) as u64
}

/// A payload in 16 bytes: itself and its length, or the hash of a long one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Payload([u64; 2]);

impl Payload {
    #[inline]
    pub(crate) fn of(bytes: &[u8], seeds: &Seeds) -> Self {
        if bytes.len() <= SHORT_MAX { Self::short(bytes) } else { Self::long(bytes, seeds) }
    }

    #[cold]
    fn long(bytes: &[u8], seeds: &Seeds) -> Self {
        Self([seeds.hash_long(bytes), u64::from(LONG) << 56])
    }

    #[inline]
    fn short(bytes: &[u8]) -> Self {
        let length = bytes.len();
        let word = |at: usize| bytes[at..].first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk));
        let half = |at: usize| bytes[at..].first_chunk().map_or(0, |chunk| u64::from(u32::from_le_bytes(*chunk)));
        let (low, high) = match length {
            8.. => (word(0), if length == 8 { 0 } else { word(length - 8) >> (8 * (16 - length)) }),
            4.. => (half(0) | half(length - 4) << (8 * (length - 4)), 0),
            0 => (0, 0),
            _ => {
                // One to three bytes: the first, the middle and the last, some of them the same.
                let byte = |at: usize| u64::from(bytes[at]) << (8 * at);
                (byte(0) | byte(length / 2) | byte(length - 1), 0)
            }
        };
        Self([low, high | (length as u64) << 56])
    }

    /// The same as [`Payload::of`] for the bytes at a place in others, of which those after it may be looked at too.
    #[inline(always)]
    pub(crate) fn within(bytes: &[u8], start: usize, length: usize, seeds: &Seeds) -> Self {
        match bytes.get(start..).and_then(<[u8]>::first_chunk::<16>) {
            Some(chunk) if length <= SHORT_MAX => {
                let payload = u128::from_le_bytes(*chunk) & LOWER_BYTES[length % 16];
                Self([payload as u64, (payload >> 64) as u64 | (length as u64) << 56])
            }
            _ => Self::of(&bytes[start..start + length], seeds),
        }
    }

    /// Of a number in big-endian bytes, as the canonical form has it.
    #[inline]
    pub(crate) fn of_word(word: u64) -> Self {
        Self([word.swap_bytes(), 8 << 56])
    }

    #[inline]
    pub(crate) fn is_long(self) -> bool {
        (self.0[1] >> 56) as u8 == LONG
    }

    /// Bytes of one that isn't long.
    pub(crate) fn length(self) -> usize {
        (self.0[1] >> 56) as usize
    }

    /// Of a long one: the same with a number in it.
    pub(crate) fn numbered(self, number: u32) -> Self {
        Self([self.0[0], u64::from(LONG) << 56 | u64::from(number)])
    }

    /// The number in a long one.
    pub(crate) fn number(self) -> u32 {
        self.0[1] as u32
    }

    #[inline]
    pub(crate) fn low(self) -> u64 {
        self.0[0]
    }

    #[inline]
    pub(crate) fn high(self) -> u64 {
        self.0[1]
    }
}

/// By number, as many of the lower bytes of a number.
const LOWER_BYTES: [u128; 16] = {
    let mut masks = [0; 16];
    let mut bytes = 1;
    while bytes < 16 {
        masks[bytes] = u128::MAX >> (128 - 8 * bytes);
        bytes += 1;
    }
    masks
};

/// Whether two texts are the same, which are mostly short.
#[inline]
pub(crate) fn same(one: &[u8], other: &[u8]) -> bool {
    fn ends<const N: usize>(text: &[u8]) -> Option<(&[u8; N], &[u8; N])> {
        Some((text.first_chunk()?, text.last_chunk()?))
    }
    one.len() == other.len()
        && match one.len() {
            8..=16 => ends::<8>(one) == ends::<8>(other),
            4..8 => ends::<4>(one) == ends::<4>(other),
            _ => *one == *other,
        }
}

/// Where a key belongs: a partition, and a node and a class in one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) partition: u32,
    pub(crate) node_class: u32,
}

impl At {
    #[inline]
    pub(crate) fn new(partition: u32, node: u32, class: u8) -> Self {
        Self { partition, node_class: node << 8 | u32::from(class) }
    }

    #[inline]
    pub(crate) fn tag(self, payload: Payload, seeds: &Seeds) -> u32 {
        (seeds.hash(payload.low(), payload.high(), [self.partition, self.node_class]) >> 32) as u32
    }
}

/// Class and payload of a value in a document. The payload is either in the value's own bytes or in `canonical`.
pub(crate) enum Keyed {
    /// No value equals it.
    Nothing,
    Word(u8, u64),
    /// The bytes of the value from the first to before the second place.
    Bytes(u8, usize, usize),
    /// In the canonical bytes.
    Canonical(u8),
}

/// The BSON types whose canonical form is made here; all others are left to [`write_canonical`].
pub(crate) mod kind {
    pub(crate) const DOUBLE: u8 = 0x01;
    pub(crate) const STRING: u8 = 0x02;
    pub(crate) const DOCUMENT: u8 = 0x03;
    pub(crate) const ARRAY: u8 = 0x04;
    pub(crate) const OBJECT_ID: u8 = 0x07;
    pub(crate) const BOOL: u8 = 0x08;
    pub(crate) const DATE: u8 = 0x09;
    pub(crate) const NULL: u8 = 0x0A;
    pub(crate) const INT32: u8 = 0x10;
    pub(crate) const TIMESTAMP: u8 = 0x11;
    pub(crate) const INT64: u8 = 0x12;
}

/// 2^63: doubles from here on, and below its negative, are no int64.
const INT_END: f64 = 9_223_372_036_854_775_808.0;

/// The key of a value, given by its type and its bytes, which are of the size that the type says.
#[inline]
pub(crate) fn keyed(kind: u8, value: &[u8], canonical: &mut CanonicalBytes) -> Keyed {
    let word = || value.first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk));
    match kind {
        kind::STRING => Keyed::Bytes(STRING, 4, value.len() - 1),
        kind::INT32 => {
            let int = value.first_chunk().map_or(0, |chunk| i32::from_le_bytes(*chunk));
            Keyed::Word(INT, i64::from(int) as u64)
        }
        kind::INT64 => Keyed::Word(INT, word()),
        kind::DOUBLE => {
            let double = f64::from_bits(word());
            if double.fract() == 0.0 && (-INT_END..INT_END).contains(&double) {
                Keyed::Word(INT, double as i64 as u64)
            } else if double.is_nan() {
                Keyed::Nothing
            } else {
                Keyed::Word(DOUBLE, double.to_bits())
            }
        }
        kind::OBJECT_ID => Keyed::Bytes(OBJECT_ID, 0, value.len()),
        kind::DATE => Keyed::Word(DATE, word()),
        kind::TIMESTAMP => Keyed::Word(TIMESTAMP, word()),
        kind::NULL => Keyed::Bytes(NULL, 0, 0),
        kind::BOOL if matches!(value, [0 | 1]) => Keyed::Bytes(BOOL, 0, 1),
        kind::DOCUMENT | kind::ARRAY | kind::BOOL => Keyed::Nothing,
        _ => keyed_rarely(kind, value, canonical),
    }
}

#[cold]
fn keyed_rarely(kind: u8, value: &[u8], canonical: &mut CanonicalBytes) -> Keyed {
    canonical.clear();
    match raw_of(kind, value, &mut Vec::new()) {
        Some(raw) if write_canonical(raw, canonical) => Keyed::Canonical(canonical[0]),
        _ => Keyed::Nothing,
    }
}

/// The [`order_key`] of a value.
#[inline]
pub(crate) fn ordered(kind: u8, value: &[u8]) -> Option<(Order, u64)> {
    let word = || value.first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk));
    match kind {
        kind::INT64 => order_key(RawBsonRef::Int64(word() as i64)),
        kind::INT32 => order_key(RawBsonRef::Int32(value.first_chunk().map_or(0, |chunk| i32::from_le_bytes(*chunk)))),
        kind::DOUBLE => order_key(RawBsonRef::Double(f64::from_bits(word()))),
        _ => ordered_rarely(kind, value),
    }
}

#[inline(never)]
fn ordered_rarely(kind: u8, value: &[u8]) -> Option<(Order, u64)> {
    raw_of(kind, value, &mut Vec::new()).and_then(order_key)
}

/// The value of a type and bytes. `room` takes the few types that only a document can be made of.
#[inline]
pub(crate) fn raw_of<'a>(kind: u8, value: &'a [u8], room: &'a mut Vec<u8>) -> Option<RawBsonRef<'a>> {
    let word = || value.first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk));
    Some(match kind {
        kind::INT32 => RawBsonRef::Int32(value.first_chunk().map_or(0, |chunk| i32::from_le_bytes(*chunk))),
        kind::INT64 => RawBsonRef::Int64(word() as i64),
        kind::DOUBLE => RawBsonRef::Double(f64::from_bits(word())),
        kind::STRING => RawBsonRef::String(std::str::from_utf8(value.get(4..value.len().checked_sub(1)?)?).ok()?),
        kind::DATE => RawBsonRef::DateTime(bson::DateTime::from_millis(word() as i64)),
        _ => return raw_of_rarely(kind, value, room),
    })
}

#[cold]
fn raw_of_rarely<'a>(kind: u8, value: &'a [u8], room: &'a mut Vec<u8>) -> Option<RawBsonRef<'a>> {
    let mut stored: SmallVec<[u8; 64]> = SmallVec::new();
    stored.push(kind);
    stored.extend_from_slice(value);
    if predicate::raw_of_stored_id(&stored).is_none() && !matches!(kind, 0x04 | 0x05 | 0x0B | 0x0C | 0x0F) {
        return None;
    }
    // A document of one field without a name.
    room.clear();
    let length = i32::try_from(value.len() + 7).ok()?;
    room.extend_from_slice(&length.to_le_bytes());
    room.extend_from_slice(&[kind, 0]);
    room.extend_from_slice(value);
    room.push(0);
    bson::RawDocument::from_bytes(room).ok()?.iter_elements().next()?.ok()?.value().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_payloads_are_themselves() {
        let bytes: Vec<u8> = (1..=15).collect();
        for length in 0..=15 {
            let Payload(words) = Payload::short(&bytes[..length]);
            let mut expected = [0; 16];
            expected[..length].copy_from_slice(&bytes[..length]);
            expected[15] = length as u8;
            assert_eq!(words.map(u64::to_le_bytes).concat(), expected, "{length}");
        }
        let seeds = Seeds::new(1);
        assert_eq!(Payload::of_word(7), Payload::of(&7_u64.to_be_bytes(), &seeds));
        assert!(Payload::of(&[0; 16], &seeds).is_long());
        let payload = Payload::of_word(7);
        assert_eq!(At::new(3, 4, INT).tag(payload, &seeds), seeds.tags(3).of(4 << 8 | u32::from(INT), payload));
    }
}
