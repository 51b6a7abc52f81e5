use std::cmp::Ordering;

use bson::Decimal128;
use num_bigint::{BigInt, Sign};
use proptest::prelude::*;

use super::*;
use crate::value::{CanonicalBytes, write_canonical};

/// Exact value as numerator over denominator, by the definition of each type and nothing cleverer. None for NaN and infinities.
fn rational(raw: RawBsonRef<'_>) -> Option<(BigInt, BigInt)> {
    let power = |base: u8, exponent: u32| BigInt::from(base).pow(exponent);
    match raw {
        RawBsonRef::Int32(value) => Some((value.into(), 1.into())),
        RawBsonRef::Int64(value) => Some((value.into(), 1.into())),
        RawBsonRef::Double(value) if value.is_finite() => {
            let bits = value.to_bits();
            let exponent = ((bits >> 52) & 0x7ff) as i32;
            let fraction = bits & ((1 << 52) - 1);
            let (significand, exponent) =
                if exponent == 0 { (fraction, -1074) } else { (fraction | (1 << 52), exponent - 1075) };
            let sign = if value.is_sign_negative() { Sign::Minus } else { Sign::Plus };
            let numerator = BigInt::from_biguint(sign, significand.into());
            Some(if exponent >= 0 {
                (numerator * power(2, exponent.unsigned_abs()), 1.into())
            } else {
                (numerator, power(2, exponent.unsigned_abs()))
            })
        }
        RawBsonRef::Decimal128(value) => {
            // By its text, so that nothing is shared with the code under test.
            let text = value.to_string();
            let (digits, exponent) = text.split_once('E').unwrap_or((&text, "0"));
            let exponent: i32 = exponent.parse().ok()?;
            let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
            let numerator: BigInt = format!("{whole}{fraction}").parse().ok()?;
            let exponent = exponent - fraction.len() as i32;
            Some(if exponent >= 0 {
                (numerator * power(10, exponent.unsigned_abs()), 1.into())
            } else {
                (numerator, power(10, exponent.unsigned_abs()))
            })
        }
        _ => None,
    }
}

fn brute(left: RawBsonRef<'_>, right: RawBsonRef<'_>) -> Option<Ordering> {
    let infinite = |raw: RawBsonRef<'_>| match raw {
        RawBsonRef::Double(value) => value.is_infinite().then_some(value > 0.0),
        RawBsonRef::Decimal128(value) => match value.to_string().as_str() {
            "Infinity" => Some(true),
            "-Infinity" => Some(false),
            _ => None,
        },
        _ => None,
    };
    match (rational(left), rational(right), infinite(left), infinite(right)) {
        (Some((a, b)), Some((c, d)), ..) => Some((a * d).cmp(&(c * b))),
        (.., Some(left), Some(right)) => Some(left.cmp(&right)),
        (_, Some(_), Some(positive), None) => Some(if positive { Ordering::Greater } else { Ordering::Less }),
        (Some(_), _, None, Some(positive)) => Some(if positive { Ordering::Less } else { Ordering::Greater }),
        _ => None,
    }
}

fn canonical(raw: RawBsonRef<'_>) -> Option<CanonicalBytes> {
    let mut bytes = CanonicalBytes::new();
    write_canonical(raw, &mut bytes).then_some(bytes)
}

fn check(left: RawBsonRef<'_>, right: RawBsonRef<'_>) {
    let expect = brute(left, right);
    assert_eq!(crate::compare(left, right), expect, "{left:?} {right:?}");
    assert_eq!(crate::equal(left, right), expect == Some(Ordering::Equal), "{left:?} {right:?}");
    let same = canonical(left).is_some() && canonical(left) == canonical(right);
    assert_eq!(same, expect == Some(Ordering::Equal), "{left:?} {right:?}");
}

fn decimal(text: &str) -> Decimal128 {
    text.parse().unwrap()
}

/// Values at every edge, each against each.
#[test]
fn edges() {
    let decimals: Vec<Decimal128> = [
        "0",
        "-0",
        "0E+6000",
        "1",
        "1.0",
        "1.00E+3",
        "1000",
        "0.1",
        "0.5",
        "-0.5",
        "0.5000000000000000000000000000000000",
        "0.50000000000000000000000000000001",
        "9007199254740993",
        "9007199254740992.5",
        "9223372036854775807",
        "9223372036854775807.5",
        "9223372036854775808",
        "-9223372036854775808",
        "-9223372036854775809",
        "9999999999999999999999999999999999E+6111",
        "-9999999999999999999999999999999999E+6111",
        "1E-6176",
        "-1E-6176",
        "1.797693134862315708145274237317044E+308",
        "1.797693134862315807E+308",
        "4.940656458412465441765687928682214E-324",
        "1E+22",
        "1E+23",
        "9.5367431640625E-7",
        "Infinity",
        "-Infinity",
        "NaN",
        "1180591620717411303424",
        "1E+6111",
        "3.552713678800500929355621337890625E-15",
        "1E-34",
        "1.000000000000000000000000000000001",
    ]
    .map(decimal)
    .to_vec();
    let doubles = [
        0.0,
        -0.0,
        1.0,
        0.1,
        0.5,
        -0.5,
        1e3,
        9_007_199_254_740_992.0,
        9_007_199_254_740_994.0,
        9_223_372_036_854_775_808.0,
        -9_223_372_036_854_775_808.0,
        9_223_372_036_854_774_784.0,
        f64::MAX,
        f64::MIN,
        f64::MIN_POSITIVE,
        5e-324,
        -5e-324,
        1e22,
        1e23,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        -f64::NAN,
        9.5367431640625e-7,
        1_180_591_620_717_411_303_424.0,
        3.552_713_678_800_501e-15,
        1.0 + f64::EPSILON,
    ];
    let ints =
        [0, 1, -1, 1000, (1 << 53) - 1, 1 << 53, (1 << 53) + 1, -(1 << 53) - 1, i64::MAX, i64::MAX - 1, i64::MIN];
    let mut all: Vec<RawBsonRef<'static>> = decimals.into_iter().map(RawBsonRef::Decimal128).collect();
    all.extend(doubles.map(RawBsonRef::Double));
    all.extend(ints.map(RawBsonRef::Int64));
    all.extend([0, 1, -1, i32::MAX, i32::MIN].map(RawBsonRef::Int32));
    for left in &all {
        for right in &all {
            check(*left, *right);
        }
    }
}

/// Coefficients that IEEE 754 calls not canonical count as zero, as its text form has them.
#[test]
fn decimals_that_are_not_canonical() {
    let zero = RawBsonRef::Int32(0);
    for bits in [3_u128 << 125, (3_u128 << 125) | 12345, (0x3041_u128 << 112) | ((1 << 113) - 1)] {
        let value = RawBsonRef::Decimal128(Decimal128::from_bytes(bits.to_le_bytes()));
        assert!(crate::equal(value, zero), "{bits:x}");
    }
}

#[test]
fn decimals_as_doubles_keep_whole_numbers_apart() {
    for (text, expect) in [
        ("5", 5.0),
        ("5.5", 5.5),
        ("0.1", 0.1),
        ("9.99", 9.99),
        ("4.999999999999999999999999999999999", 5.0_f64.next_down()),
        ("5.000000000000000000000000000000001", 5.0_f64.next_up()),
        ("-5.000000000000000000000000000000001", (-5.0_f64).next_down()),
        ("1E-400", 5e-324),
        ("-1E-400", -5e-324),
        ("1E+400", f64::INFINITY),
        ("0E-400", 0.0),
        ("123456789012345678901234567890", 123_456_789_012_345_678_901_234_567_890.0),
    ] {
        let Number::Decimal(value) = Number::of_decimal(decimal(text)) else { panic!("{text}") };
        assert_eq!(value.to_double(), expect, "{text}");
    }
}

fn any_number() -> impl Strategy<Value = RawBsonRef<'static>> {
    let near_int = (any::<i64>(), -2_i64..3).prop_map(|(base, offset)| base.wrapping_add(offset));
    let digits = prop_oneof![0_u128..1_000, any::<u64>().prop_map(u128::from), 0..10_u128.pow(34)];
    let exponent = prop_oneof![-40_i32..40, -340_i32..320, -6176_i32..6100];
    let decimals = (any::<bool>(), digits, exponent).prop_map(|(negative, digits, exponent)| {
        let sign = if negative { "-" } else { "" };
        // Whatever cannot be held exactly is no case of ours.
        format!("{sign}{digits}E{exponent}").parse().map_or(RawBsonRef::Int32(0), RawBsonRef::Decimal128)
    });
    prop_oneof![
        any::<i32>().prop_map(RawBsonRef::Int32),
        near_int.prop_map(RawBsonRef::Int64),
        any::<f64>().prop_map(RawBsonRef::Double),
        (-1_000_000_i64..1_000_000).prop_map(|value| RawBsonRef::Double(value as f64 / 64.0)),
        decimals,
    ]
}

/// The same number, or its neighbour, in another type.
fn relative(raw: RawBsonRef<'static>, pick: u8) -> RawBsonRef<'static> {
    let double = match raw {
        RawBsonRef::Int32(value) => f64::from(value),
        RawBsonRef::Int64(value) => value as f64,
        RawBsonRef::Double(value) => value,
        RawBsonRef::Decimal128(value) => value.to_string().parse().unwrap_or(f64::NAN),
        _ => f64::NAN,
    };
    match pick {
        0 => RawBsonRef::Double(double),
        1 => RawBsonRef::Double(double.next_up()),
        2 => RawBsonRef::Int64(double as i64),
        _ => format!("{double:.20}").parse().map_or(RawBsonRef::Double(double), RawBsonRef::Decimal128),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn any_two_numbers_compare_as_rationals(left in any_number(), right in any_number()) {
        check(left, right);
    }

    #[test]
    fn neighbours_compare_as_rationals(left in any_number(), pick in 0_u8..4) {
        check(left, relative(left, pick));
        check(relative(left, pick), left);
    }
}
