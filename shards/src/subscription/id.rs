//! Ids of subscriptions in 16 bytes. Most are short, or are 128 random bits as text; the rest has memory of its own.

use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

/// Characters of 6 bits that fit in place.
const SHORT_MAX: usize = 18;
const SHORT_BYTES: usize = 14;

const _: () = assert!(SHORT_MAX * 6 <= SHORT_BYTES * 8, "the characters fit into the bytes");
const _: () = assert!(size_of::<Id>() == 16, "ids are a good part of what a subscription takes");

/// Equal exactly where the texts are: each text has one form.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Id {
    /// Up to 18 of `[a-zA-Z0-9_-]`, 6 bits each.
    Short { length: u8, bits: [u8; SHORT_BYTES] },
    /// 32 lower-case hexadecimal digits.
    Hex(Box<u128>),
    /// The same with the hyphens of a UUID.
    Uuid(Box<u128>),
    /// Behind a thin pointer: a fat one would make every id larger.
    Long(Box<Box<str>>),
}

/// An id that is looked for, in the form in which it would be kept.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sought<'a> {
    Short { length: u8, bits: [u8; SHORT_BYTES] },
    Hex(u128),
    Uuid(u128),
    Long(&'a str),
}

impl<'a> Sought<'a> {
    pub(crate) fn of(text: &'a str) -> Self {
        if text.len() <= SHORT_MAX
            && let Some(bits) = text.bytes().try_fold(0_u128, |bits, c| Some(bits << 6 | u128::from(value_of(c)?)))
        {
            let mut short = [0; SHORT_BYTES];
            short.copy_from_slice(&bits.to_le_bytes()[..SHORT_BYTES]);
            return Self::Short { length: text.len() as u8, bits: short };
        }
        match text.len() {
            32 => hex(text.bytes()).map_or(Self::Long(text), Self::Hex),
            36 if HYPHENS.iter().all(|at| text.as_bytes()[*at] == b'-') => {
                let digits = text.bytes().enumerate().filter(|(at, _)| !HYPHENS.contains(at)).map(|(_, c)| c);
                hex(digits).map_or(Self::Long(text), Self::Uuid)
            }
            _ => Self::Long(text),
        }
    }

    /// 64 bits for a hash table whose keys strangers choose.
    pub(crate) fn hash(&self, seed: u64) -> u64 {
        match self {
            Self::Short { length, bits } => {
                let mut bytes = [0; SHORT_BYTES + 1];
                bytes[..SHORT_BYTES].copy_from_slice(bits);
                bytes[SHORT_BYTES] = *length;
                xxh3_64_with_seed(&bytes, seed)
            }
            Self::Hex(bits) => xxh3_64_with_seed(&bits.to_le_bytes(), seed),
            Self::Uuid(bits) => xxh3_64_with_seed(&bits.to_le_bytes(), !seed),
            Self::Long(text) => xxh3_64_with_seed(text.as_bytes(), seed),
        }
    }
}

impl Id {
    pub(crate) fn of(text: &str) -> Self {
        match Sought::of(text) {
            Sought::Short { length, bits } => Self::Short { length, bits },
            Sought::Hex(bits) => Self::Hex(Box::new(bits)),
            Sought::Uuid(bits) => Self::Uuid(Box::new(bits)),
            Sought::Long(text) => Self::Long(Box::new(text.into())),
        }
    }

    /// What a place holds that nobody has.
    pub(crate) const fn none() -> Self {
        Self::Short { length: 0, bits: [0; SHORT_BYTES] }
    }

    pub(crate) fn is(&self, sought: &Sought<'_>) -> bool {
        match (self, sought) {
            (Self::Short { length, bits }, Sought::Short { length: l, bits: b }) => length == l && bits == b,
            (Self::Hex(bits), Sought::Hex(b)) | (Self::Uuid(bits), Sought::Uuid(b)) => **bits == *b,
            (Self::Long(text), Sought::Long(t)) => text.as_ref().as_ref() == *t,
            _ => false,
        }
    }

    pub(crate) fn hash(&self, seed: u64) -> u64 {
        let form = match self {
            Self::Short { length, bits } => Sought::Short { length: *length, bits: *bits },
            Self::Hex(bits) => Sought::Hex(**bits),
            Self::Uuid(bits) => Sought::Uuid(**bits),
            Self::Long(text) => Sought::Long(text),
        };
        form.hash(seed)
    }

    pub(crate) fn text(&self) -> String {
        match self {
            Self::Short { length, bits } => {
                let mut wide = [0; 16];
                wide[..SHORT_BYTES].copy_from_slice(bits);
                let bits = u128::from_le_bytes(wide);
                let digit = |at: u8| char::from(ALPHABET[(bits >> (6 * u32::from(at)) & 63) as usize]);
                (0..*length).rev().map(digit).collect()
            }
            Self::Hex(bits) => format!("{:032x}", **bits),
            Self::Uuid(bits) => {
                let mut text = format!("{:032x}", **bits);
                HYPHENS.iter().for_each(|at| text.insert(*at, '-'));
                text
            }
            Self::Long(text) => String::from(&***text),
        }
    }
}

/// 96 bits that tell contents apart: keyed, so that nobody can look for two that share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint([u32; 3]);

impl Fingerprint {
    pub(crate) const NONE: Self = Self([0; 3]);

    pub(crate) fn of(bytes: &[u8], seed: u64) -> Self {
        let bits = xxh3_128_with_seed(bytes, seed);
        Self([bits as u32, (bits >> 32) as u32, (bits >> 64) as u32])
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// Where a UUID's hyphens stand, in the order in which they are put in.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

fn value_of(c: u8) -> Option<u8> {
    Some(match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'-' => 62,
        b'_' => 63,
        _ => return None,
    })
}

/// The number that lower-case hexadecimal digits stand for. Others are another text.
fn hex(mut digits: impl Iterator<Item = u8>) -> Option<u128> {
    digits.try_fold(0_u128, |bits, c| {
        let digit = match c {
            b'0'..=b'9' => c - b'0',
            b'a'..=b'f' => c - b'a' + 10,
            _ => return None,
        };
        Some(bits << 4 | u128::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_comes_back() {
        let texts = [
            "",
            "s",
            "A",
            "AA",
            "abc-DEF_0123456789",
            "abc-DEF_01234567890",
            "0123456789abcdef0123456789abcdef",
            "0123456789ABCDEF0123456789abcdef",
            "00000000000000000000000000000000",
            "01234567-89ab-cdef-0123-456789abcdef",
            "01234567-89AB-cdef-0123-456789abcdef",
            "01234567_89ab-cdef-0123-456789abcdef",
            "012345678-9ab-cdef-0123-456789abcdef",
            "not of the alphabet: é",
            "--------------------------------",
        ];
        for (at, text) in texts.iter().enumerate() {
            let id = Id::of(text);
            assert_eq!(id.text(), *text);
            for (other_at, other) in texts.iter().enumerate() {
                assert_eq!(id.is(&Sought::of(other)), at == other_at, "{text} and {other}");
            }
            assert_eq!(id.hash(7), Sought::of(text).hash(7));
        }
        assert!(matches!(Id::of("abc-DEF_0123456789"), Id::Short { .. }));
        assert!(matches!(Id::of("01234567-89ab-cdef-0123-456789abcdef"), Id::Uuid(_)));
        assert!(matches!(Id::of("0123456789abcdef0123456789abcdef"), Id::Hex(_)));
    }
}
