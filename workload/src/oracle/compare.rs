//! Comparison of values, written to be read rather than to be fast.
//!
//! Numbers of all types are compared as exact fractions. Values of different types are unequal and have no order.

use std::cmp::Ordering;

use bson::{Binary, Bson};
use num_bigint::BigInt;

/// Whether `==` holds between two values that are both there.
pub(super) fn equal(a: &Bson, b: &Bson) -> bool {
    match (a, b) {
        (Bson::Array(a), Bson::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        // As in MongoDB, the order of fields counts.
        (Bson::Document(a), Bson::Document(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((x, a), (y, b))| x == y && equal(a, b))
        }
        _ => match (Number::of(a), Number::of(b)) {
            (Some(a), Some(b)) => a.compare(&b) == Some(Ordering::Equal),
            (None, None) => a == b,
            _ => false,
        },
    }
}

/// The order of two values; `None` where there is none: different types, NaN, and types that are not ordered.
pub(super) fn order(a: &Bson, b: &Bson) -> Option<Ordering> {
    match (a, b) {
        (Bson::String(a), Bson::String(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
        (Bson::Boolean(a), Bson::Boolean(b)) => Some(a.cmp(b)),
        (Bson::DateTime(a), Bson::DateTime(b)) => Some(a.timestamp_millis().cmp(&b.timestamp_millis())),
        (Bson::ObjectId(a), Bson::ObjectId(b)) => Some(a.bytes().cmp(&b.bytes())),
        (Bson::Timestamp(a), Bson::Timestamp(b)) => Some((a.time, a.increment).cmp(&(b.time, b.increment))),
        (Bson::Binary(a), Bson::Binary(b)) => Some(binary_key(a).cmp(&binary_key(b))),
        _ => Number::of(a)?.compare(&Number::of(b)?),
    }
}

/// MongoDB's order of binary values: by length, then subtype, then bytes.
fn binary_key(binary: &Binary) -> (usize, u8, &[u8]) {
    (binary.bytes.len(), binary.subtype.into(), &binary.bytes)
}

enum Number<'a> {
    Integer(i64),
    Double(f64),
    Decimal(&'a bson::Decimal128),
}

/// A number as what it is.
enum Exact {
    NotANumber,
    /// Below or above every finite number.
    Infinite {
        negative: bool,
    },
    Fraction {
        numerator: BigInt,
        /// Positive.
        denominator: BigInt,
    },
}

impl<'a> Number<'a> {
    fn of(value: &'a Bson) -> Option<Self> {
        match value {
            Bson::Int32(value) => Some(Self::Integer(i64::from(*value))),
            Bson::Int64(value) => Some(Self::Integer(*value)),
            Bson::Double(value) => Some(Self::Double(*value)),
            Bson::Decimal128(value) => Some(Self::Decimal(value)),
            _ => None,
        }
    }

    fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => Some(a.cmp(b)),
            (Self::Double(a), Self::Double(b)) => a.partial_cmp(b),
            _ => self.exact().compare(&other.exact()),
        }
    }

    fn exact(&self) -> Exact {
        match self {
            Self::Integer(value) => Exact::whole(BigInt::from(*value)),
            Self::Double(value) => Exact::of_double(*value),
            Self::Decimal(value) => Exact::of_decimal(&value.to_string()),
        }
    }
}

impl Exact {
    fn whole(numerator: BigInt) -> Self {
        Self::Fraction { numerator, denominator: BigInt::from(1) }
    }

    fn of_double(value: f64) -> Self {
        if value.is_nan() {
            return Self::NotANumber;
        }
        if value.is_infinite() {
            return Self::Infinite { negative: value < 0.0 };
        }
        let bits = value.to_bits();
        let fraction = (bits & ((1 << 52) - 1)) as i64;
        let biased = ((bits >> 52) & 0x7ff) as i32;
        // A biased exponent of 0 marks the numbers without the implied leading one.
        let (mantissa, exponent) = if biased == 0 { (fraction, -1074) } else { (fraction | 1 << 52, biased - 1075) };
        let mantissa = BigInt::from(if value < 0.0 { -mantissa } else { mantissa });
        let power = BigInt::from(2).pow(exponent.unsigned_abs());
        if exponent < 0 {
            Self::Fraction { numerator: mantissa, denominator: power }
        } else {
            Self::whole(mantissa * power)
        }
    }

    /// Reads what a decimal prints as: `NaN`, `-Infinity`, `-12.50`, `1.5E+300`.
    fn of_decimal(text: &str) -> Self {
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        match unsigned {
            "NaN" => return Self::NotANumber,
            "Infinity" => return Self::Infinite { negative },
            _ => {}
        }
        let (digits, exponent) = unsigned.split_once('E').unwrap_or((unsigned, "0"));
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        let exponent: i32 = exponent.parse().expect("the exponent of a printed decimal is a small integer");
        let exponent = exponent - part.len() as i32;
        let sign = if negative { "-" } else { "" };
        let mantissa: BigInt = format!("{sign}{whole}{part}").parse().expect("a printed decimal consists of digits");
        let power = BigInt::from(10).pow(exponent.unsigned_abs());
        if exponent < 0 {
            Self::Fraction { numerator: mantissa, denominator: power }
        } else {
            Self::whole(mantissa * power)
        }
    }

    fn compare(&self, other: &Self) -> Option<Ordering> {
        // Where it stands among the infinities: below, between or above.
        let region = |number: &Self| match number {
            Self::NotANumber => None,
            Self::Infinite { negative: true } => Some(-1),
            Self::Fraction { .. } => Some(0),
            Self::Infinite { negative: false } => Some(1),
        };
        let (a, b) = (region(self)?, region(other)?);
        match (self, other) {
            (Self::Fraction { numerator: a, denominator: x }, Self::Fraction { numerator: b, denominator: y }) => {
                Some((a * y).cmp(&(b * x)))
            }
            _ => Some(a.cmp(&b)),
        }
    }
}

#[cfg(test)]
mod tests {
    use bson::{Decimal128, bson};

    use super::*;

    fn decimal(text: &str) -> Bson {
        Bson::Decimal128(text.parse::<Decimal128>().unwrap())
    }

    #[test]
    fn numbers_compare_by_exact_value() {
        let two_53 = 1_i64 << 53;
        let cases: &[(Bson, Bson, Option<Ordering>)] = &[
            (Bson::Int32(3), Bson::Double(3.0), Some(Ordering::Equal)),
            (Bson::Int64(3), decimal("3.000"), Some(Ordering::Equal)),
            (Bson::Int64(two_53 + 1), Bson::Double(two_53 as f64), Some(Ordering::Greater)),
            (Bson::Int64(two_53), Bson::Double(two_53 as f64), Some(Ordering::Equal)),
            // One tenth has no double: the decimal is the smaller of the two.
            (decimal("0.1"), Bson::Double(0.1), Some(Ordering::Less)),
            (decimal("0.5"), Bson::Double(0.5), Some(Ordering::Equal)),
            (Bson::Double(f64::NAN), Bson::Double(f64::NAN), None),
            (decimal("NaN"), Bson::Int32(1), None),
            (Bson::Double(f64::INFINITY), decimal("Infinity"), Some(Ordering::Equal)),
            (Bson::Double(f64::NEG_INFINITY), Bson::Int64(i64::MIN), Some(Ordering::Less)),
            (decimal("1E+400"), Bson::Double(f64::MAX), Some(Ordering::Greater)),
            (decimal("-1E+400"), Bson::Double(f64::MIN), Some(Ordering::Less)),
            (Bson::Double(5e-324), decimal("0"), Some(Ordering::Greater)),
            (Bson::Double(-0.0), Bson::Int32(0), Some(Ordering::Equal)),
            (Bson::Double(9_223_372_036_854_775_808.0), Bson::Int64(i64::MAX), Some(Ordering::Greater)),
            (decimal("1.5E+3"), Bson::Int32(1500), Some(Ordering::Equal)),
            (Bson::Int32(1), Bson::Boolean(true), None),
            (Bson::Int32(1), Bson::String("1".into()), None),
        ];
        for (a, b, expect) in cases {
            assert_eq!(order(a, b), *expect, "{a} against {b}");
            assert_eq!(order(b, a), expect.map(Ordering::reverse), "{b} against {a}");
            assert_eq!(equal(a, b), *expect == Some(Ordering::Equal), "{a} == {b}");
        }
    }

    #[test]
    fn values_of_other_types_compare_within_their_type() {
        let date = |millis| Bson::DateTime(bson::DateTime::from_millis(millis));
        let binary =
            |bytes: &[u8]| Bson::Binary(Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: bytes.to_vec() });
        assert_eq!(order(&bson!("a"), &bson!("ä")), Some(Ordering::Less));
        assert_eq!(order(&bson!("Z"), &bson!("a")), Some(Ordering::Less));
        assert_eq!(order(&date(1), &date(2)), Some(Ordering::Less));
        assert_eq!(order(&date(1), &bson!(1)), None);
        assert_eq!(order(&binary(&[9]), &binary(&[1, 1])), Some(Ordering::Less));
        assert_eq!(order(&bson!([1]), &bson!([2])), None);
        assert!(equal(&bson!([1, { "a": 2.0 }]), &bson!([1.0, { "a": 2 }])));
        assert!(!equal(&bson!({ "a": 1, "b": 2 }), &bson!({ "b": 2, "a": 1 })));
        assert!(!equal(&bson!([1, 2]), &bson!([2, 1])));
        assert!(equal(&Bson::Null, &Bson::Null));
        assert!(!equal(&Bson::Null, &bson!(0)));
    }
}
