//! Durations ("5s", "50ms") and sizes ("64MiB") as people write them.

use std::time::Duration;

const DURATION_FORM: &str = "a number and a unit of ns, us, ms, s, m, h or d, such as \"50ms\" or \"5s\"";
const SIZE_FORM: &str = "a number and a unit of B, KiB, MiB, GiB, TiB, KB, MB, GB or TB, such as \"64MiB\"";

/// Reads a whole number with a unit. The error says what is allowed.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text).ok_or_else(|| format!("is not a duration; allowed: {DURATION_FORM}"))?;
    let nanos: u64 = match unit {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" | "min" => 60 * 1_000_000_000,
        "h" => 3_600 * 1_000_000_000,
        "d" => 86_400 * 1_000_000_000,
        "" => return Err(format!("has no unit; allowed: {DURATION_FORM}")),
        other => return Err(format!("has the unknown unit {other:?}; allowed: {DURATION_FORM}")),
    };
    let total = number.checked_mul(nanos).ok_or("is longer than 584 years; allowed: something shorter")?;
    Ok(Duration::from_nanos(total))
}

/// Reads bytes, with a binary or decimal unit or none. The error says what is allowed.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text).ok_or_else(|| format!("is not a size; allowed: {SIZE_FORM}"))?;
    let bytes: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        "tib" | "t" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(format!("has the unknown unit {unit:?}; allowed: {SIZE_FORM}")),
    };
    number.checked_mul(bytes).ok_or_else(|| "is more than 2^64 bytes; allowed: something smaller".into())
}

/// The shortest exact form with one unit, as [`parse_duration`] reads it.
pub fn show_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    const UNITS: [(u128, &str); 7] = [
        (86_400_000_000_000, "d"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
        (1, "ns"),
    ];
    if nanos == 0 {
        return "0s".into();
    }
    UNITS
        .iter()
        .find(|(unit, _)| nanos.is_multiple_of(*unit))
        .map(|(unit, name)| format!("{}{name}", nanos / unit))
        .unwrap_or_default()
}

/// The shortest exact form with one binary unit, as [`parse_size`] reads it.
pub fn show_size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in
            [("5s", 5_000), ("50ms", 50), ("0s", 0), (" 2 m ", 120_000), ("1h", 3_600_000), ("1d", 86_400_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for (text, word) in [
            ("", "not a duration"),
            ("soon", "not a duration"),
            ("5", "no unit"),
            ("5 fortnights", "unknown unit \"fortnights\""),
            ("-5s", "not a duration"),
            ("99999999999999999999s", "not a duration"),
            ("9999999999999999999s", "longer"),
        ] {
            let error = parse_duration(text).unwrap_err();
            assert!(error.contains(word) && error.contains("allowed"), "{text}: {error}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("64MiB", 64 << 20), ("1GB", 1_000_000_000), ("512", 512), ("10 kib", 10_240), ("7B", 7)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for (text, word) in
            [("", "not a size"), ("much", "not a size"), ("5 bags", "unknown unit"), ("99999999999TiB", "more than")]
        {
            let error = parse_size(text).unwrap_err();
            assert!(error.contains(word) && error.contains("allowed"), "{text}: {error}");
        }
    }

    #[test]
    fn shown_values_read_back() {
        for text in ["5s", "50ms", "2m", "3h", "2d", "7us", "9ns", "0s"] {
            assert_eq!(show_duration(parse_duration(text).unwrap()), text);
        }
        for text in ["64MiB", "3GiB", "1KiB", "5B", "1TiB", "0B"] {
            assert_eq!(show_size(parse_size(text).unwrap()), text);
        }
    }
}
