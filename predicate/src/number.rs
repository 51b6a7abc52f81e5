//! Exact comparison of BSON's four number types.
//!
//! Every finite number is `significand × base^exponent`, so two of them can always be compared exactly. The common pairs need
//! no big integers; a double against a decimal does only where the two are within a factor of two of each other.

use std::cmp::Ordering;
use std::io::Write as _;

use bson::{Decimal128, RawBsonRef};
use num_bigint::BigUint;

use crate::plan::double_key;

/// A BSON number, its type reduced to what matters for comparing.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Number {
    Nan,
    /// `true` for minus infinity.
    Infinite(bool),
    Int(i64),
    /// Always finite.
    Double(f64),
    Decimal(Decimal),
}

/// `±coefficient × 10^exponent`, with at most 34 digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decimal {
    pub(crate) negative: bool,
    pub(crate) coefficient: u128,
    pub(crate) exponent: i32,
}

/// The one form of a number that all numbers equal to it share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Canonical {
    Int(i64),
    /// Not an integer in the range of `i64`; infinities are here too.
    Double(f64),
    /// Neither of the others can hold it; no trailing zeros in the coefficient.
    Decimal(Decimal),
}

const EXPONENT_BIAS: i32 = 6176;
const COEFFICIENT_MAX: u128 = 10_u128.pow(34) - 1;
/// 2^63 as a double: the first one above every `i64`.
const I64_END: f64 = 9_223_372_036_854_775_808.0;
/// 2^52: from here on every double is a whole number.
const WHOLE_FROM: f64 = 4_503_599_627_370_496.0;

impl Number {
    pub(crate) fn of(raw: RawBsonRef<'_>) -> Option<Number> {
        Some(match raw {
            RawBsonRef::Int32(value) => Number::Int(value.into()),
            RawBsonRef::Int64(value) => Number::Int(value),
            RawBsonRef::Double(value) => Number::of_double(value),
            RawBsonRef::Decimal128(value) => Number::of_decimal(value),
            _ => return None,
        })
    }

    pub(crate) fn of_double(value: f64) -> Number {
        if value.is_nan() {
            Number::Nan
        } else if value.is_infinite() {
            Number::Infinite(value < 0.0)
        } else {
            Number::Double(value)
        }
    }

    /// Reads the binary-integer form of IEEE 754-2008 that BSON prescribes. A coefficient above 34 digits counts as zero, as
    /// that standard says.
    pub(crate) fn of_decimal(value: Decimal128) -> Number {
        let bits = u128::from_le_bytes(value.bytes());
        let negative = bits >> 127 == 1;
        let combination = (bits >> 122) & 0x1f;
        match combination {
            0b11111 => return Number::Nan,
            0b11110 => return Number::Infinite(negative),
            _ => {}
        }
        let (exponent, coefficient) = if combination >> 3 == 0b11 {
            // The form for coefficients of more than 113 bits, all of which are too large.
            ((bits >> 111) & 0x3fff, 0)
        } else {
            let coefficient = bits & ((1 << 113) - 1);
            ((bits >> 113) & 0x3fff, if coefficient > COEFFICIENT_MAX { 0 } else { coefficient })
        };
        // Fourteen bits always fit.
        Number::Decimal(Decimal { negative, coefficient, exponent: exponent as i32 - EXPONENT_BIAS })
    }

    /// `None` when one of the two is NaN.
    pub(crate) fn compare(self, other: Number) -> Option<Ordering> {
        use Number::{Decimal as Dec, Double, Infinite, Int, Nan};
        Some(match (self, other) {
            (Nan, _) | (_, Nan) => return None,
            (Infinite(left), Infinite(right)) => right.cmp(&left),
            (Infinite(negative), _) => infinity_against_finite(negative),
            (_, Infinite(negative)) => infinity_against_finite(negative).reverse(),
            (Int(left), Int(right)) => left.cmp(&right),
            (Double(left), Double(right)) => return left.partial_cmp(&right),
            (Int(left), Double(right)) => compare_int_double(left, right),
            (Double(left), Int(right)) => compare_int_double(right, left).reverse(),
            (Int(left), Dec(right)) => compare_decimals(Decimal::of_int(left), right),
            (Dec(left), Int(right)) => compare_decimals(left, Decimal::of_int(right)),
            (Dec(left), Dec(right)) => compare_decimals(left, right),
            (Double(left), Dec(right)) => compare_double_decimal(left, right),
            (Dec(left), Double(right)) => compare_double_decimal(right, left).reverse(),
        })
    }

    /// `None` for NaN, which has no equal.
    pub(crate) fn canonical(self) -> Option<Canonical> {
        Some(match self {
            Number::Nan => return None,
            Number::Infinite(negative) => Canonical::Double(if negative { f64::NEG_INFINITY } else { f64::INFINITY }),
            Number::Int(value) => Canonical::Int(value),
            Number::Double(value) => canonical_double(value),
            Number::Decimal(value) => value.canonical(),
        })
    }
}

impl Decimal {
    fn of_int(value: i64) -> Decimal {
        Decimal { negative: value < 0, coefficient: value.unsigned_abs().into(), exponent: 0 }
    }

    fn without_trailing_zeros(mut self) -> Decimal {
        if self.coefficient == 0 {
            return Decimal { negative: false, coefficient: 0, exponent: 0 };
        }
        while self.coefficient.is_multiple_of(10) {
            self.coefficient /= 10;
            self.exponent += 1;
        }
        self
    }

    fn canonical(self) -> Canonical {
        let short = self.without_trailing_zeros();
        if let Some(int) = short.exact_int() {
            return Canonical::Int(int);
        }
        match short.exact_double() {
            Some(double) => canonical_double(double),
            None => Canonical::Decimal(short),
        }
    }

    /// Expects no trailing zeros: only then a negative exponent means a fraction.
    fn exact_int(self) -> Option<i64> {
        let power = 10_u128.checked_pow(u32::try_from(self.exponent).ok()?)?;
        let magnitude = i128::try_from(self.coefficient.checked_mul(power)?).ok()?;
        i64::try_from(if self.negative { -magnitude } else { magnitude }).ok()
    }

    /// The double that equals this number, where there is one. Expects no trailing zeros.
    fn exact_double(self) -> Option<f64> {
        if self.coefficient == 0 {
            return Some(0.0);
        }
        // c × 10^q = (c × 5^q) × 2^q: what is left of c × 5^q without its twos must fit into 53 bits.
        let twos = self.coefficient.trailing_zeros() as i32;
        let odd = self.coefficient >> twos;
        let fives = 5_u128.checked_pow(self.exponent.unsigned_abs())?;
        let significand = if self.exponent >= 0 {
            odd.checked_mul(fives)?
        } else if odd.is_multiple_of(fives) {
            odd / fives
        } else {
            return None;
        };
        let exponent = self.exponent + twos;
        let bits = 128 - significand.leading_zeros() as i32;
        // A coefficient of 34 digits holds no more than 48 fives, so small exponents, where doubles lose bits, do not occur.
        if bits > 53 || bits + exponent > 1024 || exponent < -1000 {
            return None;
        }
        let power = f64::from_bits(((exponent + 1023) as u64) << 52);
        let magnitude = significand as f64 * power;
        Some(if self.negative { -magnitude } else { magnitude })
    }

    /// The nearest double, except that below 2^52 a number with a fraction never becomes a whole number: then it is the next double
    /// on the number's side. So equality with a whole number below 2^52 means the same whether decimals are rounded or not.
    ///
    /// Of two numbers the greater never becomes the smaller double, doubles and rounded integers among them included: between two whole
    /// numbers below 2^52 there is a double, and further up there are whole ones alone.
    pub(crate) fn to_double(self) -> f64 {
        let short = self.without_trailing_zeros();
        let nearest = short.nearest_double();
        if short.exponent >= 0 || nearest.abs() >= WHOLE_FROM || nearest.fract() != 0.0 {
            return nearest;
        }
        match compare_double_decimal(nearest, short) {
            Ordering::Less => nearest.next_up(),
            Ordering::Greater => nearest.next_down(),
            Ordering::Equal => nearest,
        }
    }

    fn nearest_double(self) -> f64 {
        // Two exact doubles, one of them a power of ten: their quotient or product is rounded once.
        const POWERS: [f64; 23] = [
            1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
            1e19, 1e20, 1e21, 1e22,
        ];
        let magnitude = match POWERS.get(self.exponent.unsigned_abs() as usize) {
            Some(power) if self.coefficient <= 1 << 53 && self.exponent < 0 => self.coefficient as f64 / power,
            Some(power) if self.coefficient <= 1 << 53 => self.coefficient as f64 * power,
            _ => self.parsed(),
        };
        if self.negative { -magnitude } else { magnitude }
    }

    /// The nearest double to the magnitude, by way of text.
    fn parsed(self) -> f64 {
        // 39 digits of the coefficient, `e`, and at most five characters of the exponent.
        let mut text = [0; 48];
        let mut rest = &mut text[..];
        write!(rest, "{}e{}", self.coefficient, self.exponent).expect("there is room for it");
        let unused = rest.len();
        let text = std::str::from_utf8(&text[..text.len() - unused]).expect("digits are text");
        text.parse().expect("an integer with an exponent is a double's text")
    }
}

/// Whether it is a number that equals nothing.
pub(crate) fn is_nan(raw: RawBsonRef<'_>) -> bool {
    matches!(Number::of(raw), Some(Number::Nan))
}

/// Sortable bits of the double that CEL makes of a decimal. None for NaN.
#[cold]
pub(crate) fn decimal_key(value: Decimal128) -> Option<u64> {
    double_key(decimal_to_double(value))
}

/// A decimal as CEL sees it.
pub(crate) fn decimal_to_double(value: Decimal128) -> f64 {
    match Number::of_decimal(value) {
        Number::Decimal(decimal) => decimal.to_double(),
        Number::Infinite(true) => f64::NEG_INFINITY,
        Number::Infinite(false) => f64::INFINITY,
        _ => f64::NAN,
    }
}

fn infinity_against_finite(negative: bool) -> Ordering {
    if negative { Ordering::Less } else { Ordering::Greater }
}

fn canonical_double(value: f64) -> Canonical {
    if value.fract() == 0.0 && (-I64_END..I64_END).contains(&value) {
        Canonical::Int(value as i64)
    } else {
        Canonical::Double(value)
    }
}

pub(crate) fn compare_int_double(int: i64, double: f64) -> Ordering {
    if double >= I64_END {
        return Ordering::Less;
    }
    if double < -I64_END {
        return Ordering::Greater;
    }
    // In range, so the cast only drops the fraction.
    int.cmp(&(double as i64)).then_with(|| {
        let fraction = double.fract();
        0.0_f64.partial_cmp(&fraction).unwrap_or(Ordering::Equal)
    })
}

fn compare_decimals(left: Decimal, right: Decimal) -> Ordering {
    compare_signed(left.sign(), right.sign(), || {
        let (left_digits, right_digits) = (digits(left.coefficient), digits(right.coefficient));
        (left_digits + left.exponent).cmp(&(right_digits + right.exponent)).then_with(|| {
            // The same magnitude: bring both to the same number of digits, at most 34, and compare those.
            let scale = |coefficient: u128, by: i32| coefficient * 10_u128.pow(by.max(0).unsigned_abs());
            scale(left.coefficient, right_digits - left_digits)
                .cmp(&scale(right.coefficient, left_digits - right_digits))
        })
    })
}

fn compare_double_decimal(double: f64, decimal: Decimal) -> Ordering {
    let sign = if double == 0.0 { 0 } else { double.signum() as i32 };
    compare_signed(sign, decimal.sign(), || {
        let (significand, exponent) = split(double.abs());
        compare_magnitudes(significand, exponent, decimal.coefficient, decimal.exponent)
    })
}

impl Decimal {
    fn sign(self) -> i32 {
        match (self.coefficient, self.negative) {
            (0, _) => 0,
            (_, true) => -1,
            (_, false) => 1,
        }
    }
}

fn compare_signed(left: i32, right: i32, magnitudes: impl FnOnce() -> Ordering) -> Ordering {
    match left.cmp(&right) {
        Ordering::Equal if left > 0 => magnitudes(),
        Ordering::Equal if left < 0 => magnitudes().reverse(),
        decided => decided,
    }
}

/// `significand × 2^exponent` of a finite double above zero.
fn split(value: f64) -> (u64, i32) {
    let bits = value.to_bits();
    let fraction = bits & ((1 << 52) - 1);
    match (bits >> 52) as i32 {
        0 => (fraction, -1074),
        exponent => (fraction | (1 << 52), exponent - 1075),
    }
}

/// `left × 2^binary` against `right × 10^decimal`, both above zero.
fn compare_magnitudes(left: u64, binary: i32, right: u128, decimal: i32) -> Ordering {
    let left_log = (left as f64).log2() + f64::from(binary);
    let right_log = (right as f64).log2() + f64::from(decimal) * std::f64::consts::LOG2_10;
    // The logarithms are right to far less than one.
    if (left_log - right_log).abs() > 1.0 {
        return left_log.total_cmp(&right_log);
    }
    let mut left = BigUint::from(left);
    let mut right = BigUint::from(right);
    let power = BigUint::from(10_u8).pow(decimal.unsigned_abs());
    if decimal >= 0 {
        right *= power
    } else {
        left *= power
    }
    if binary >= 0 {
        left <<= binary.unsigned_abs()
    } else {
        right <<= binary.unsigned_abs()
    }
    left.cmp(&right)
}

fn digits(value: u128) -> i32 {
    value.checked_ilog10().map_or(1, |log| log as i32 + 1)
}

#[cfg(test)]
mod tests;
