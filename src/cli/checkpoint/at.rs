//! A place in a source's history, as it is written on the command line.

use std::{fmt, str::FromStr};

use bson::DateTime;

use crate::config::{BackendKind, parse_duration};

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// Milliseconds since 1970, by the clock.
    Clock(i64),
    /// So much before now.
    BeforeNow(std::time::Duration),
    /// Of MongoDB: seconds and increment.
    ClusterTime(u32, u32),
    /// Of an embedded store.
    Offset(u64),
}

const FORMS: &str =
    "such as 2026-03-01T12:00:00Z, now-15m, a cluster time as SECONDS.INCREMENT, or the offset of an embedded store";

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a time; allowed: {FORMS}");
        if let Some(rest) = text.strip_prefix("now") {
            let before = match rest.strip_prefix('-') {
                Some(duration) => parse_duration(duration).map_err(|_| wrong())?,
                None if rest.is_empty() => std::time::Duration::ZERO,
                None => return Err(wrong()),
            };
            return Ok(Self::BeforeNow(before));
        }
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if is_number(text) {
            return text.parse().map(Self::Offset).map_err(|_| wrong());
        }
        if let Some((seconds, increment)) = text.split_once('.')
            && is_number(seconds)
            && is_number(increment)
        {
            let part = |text: &str| text.parse::<u32>().map_err(|_| wrong());
            return Ok(Self::ClusterTime(part(seconds)?, part(increment)?));
        }
        DateTime::parse_rfc3339_str(text).map(|time| Self::Clock(time.timestamp_millis())).map_err(|_| wrong())
    }
}

impl At {
    /// The `time` of a position in the history of such a backend. `now_ms` is the clock's time.
    pub(super) fn time(self, kind: &BackendKind, now_ms: i64) -> Result<u64, String> {
        match (kind, self) {
            (BackendKind::Embedded(_), Self::Offset(offset)) => Ok(offset),
            (BackendKind::Embedded(_), _) => Err(
                "is of kind \"embedded\", whose history is counted by offsets; allowed: --at OFFSET, a whole number"
                    .into(),
            ),
            (BackendKind::Mongodb(_), Self::Offset(_)) => {
                Err("is of kind \"mongodb\", which has no offsets; allowed: a date, now-15m or SECONDS.INCREMENT"
                    .into())
            }
            (BackendKind::Mongodb(_), Self::ClusterTime(seconds, increment)) => {
                Ok(u64::from(seconds) << 32 | u64::from(increment))
            }
            (BackendKind::Mongodb(_), Self::Clock(ms)) => of_clock(ms),
            (BackendKind::Mongodb(_), Self::BeforeNow(before)) => {
                of_clock(now_ms.saturating_sub(i64::try_from(before.as_millis()).unwrap_or(i64::MAX)))
            }
        }
    }
}

/// The first cluster time of the second. Earlier is the safe side.
fn of_clock(ms: i64) -> Result<u64, String> {
    let seconds = u32::try_from(ms.div_euclid(1_000))
        .map_err(|_| "has cluster times from 1970 to 2106 only; allowed: a time within these".to_owned())?;
    Ok(u64::from(seconds) << 32 | 1)
}

/// A place, for people. What kind of backend it is of is `None` where the configuration doesn't know it.
pub(super) struct Place<'k> {
    pub(super) kind: Option<&'k BackendKind>,
    pub(super) time: u64,
    pub(super) k: u32,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, time, k } = self;
        match kind {
            Some(BackendKind::Mongodb(_)) => {
                write!(f, "{} (cluster time {}.{})", date(*time), time >> 32, *time as u32)?;
            }
            Some(BackendKind::Embedded(_)) => write!(f, "offset {time}")?,
            None => write!(f, "time {time} ({time:#x})")?,
        }
        match (kind, k) {
            (_, 0) => write!(f, ", before its first event"),
            // An offset is one event.
            (Some(BackendKind::Embedded(_)), _) => write!(f, ", after it"),
            (_, k) => write!(f, ", after its event {k}"),
        }
    }
}

/// The second that a cluster time lies in.
pub(super) fn date(time: u64) -> String {
    rfc3339(((time >> 32) as i64).saturating_mul(1_000))
}

pub(super) fn rfc3339(ms: i64) -> String {
    DateTime::from_millis(ms).try_to_rfc3339_string().unwrap_or_else(|_| format!("{ms} ms after 1970"))
}

/// A span of time in its two largest units.
pub(super) fn span(ms: u64) -> String {
    const UNITS: [(u64, &str); 5] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];
    let at = UNITS.iter().position(|(unit, _)| ms >= *unit).unwrap_or(UNITS.len() - 1);
    let (unit, name) = UNITS[at];
    let first = format!("{} {name}", ms / unit);
    match UNITS.get(at + 1) {
        // Nobody wants to know the milliseconds of a minute.
        Some((next, name)) if *next > 1 && ms % unit / next > 0 => format!("{first} {} {name}", ms % unit / next),
        _ => first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Embedded, ingest::source::mongodb::MongoOptions};

    fn mongodb() -> BackendKind {
        BackendKind::Mongodb(MongoOptions::new("main", "mongodb://h/"))
    }

    fn embedded() -> BackendKind {
        BackendKind::Embedded(Embedded::in_directory("x".into()))
    }

    #[test]
    fn times_are_read_in_every_form_and_only_where_they_mean_something() {
        let now_ms = 1_000_000_500;
        let cluster = |text: &str| text.parse::<At>().unwrap().time(&mongodb(), now_ms);
        assert_eq!(cluster("now"), Ok(1_000_000 << 32 | 1));
        assert_eq!(cluster("now-15m"), Ok((1_000_000 - 900) << 32 | 1));
        assert_eq!(cluster("7.9"), Ok(7 << 32 | 9));
        assert_eq!(cluster("4294967295.1"), Ok(4_294_967_295 << 32 | 1));
        assert_eq!(cluster("1970-01-01T00:01:00.999Z"), Ok(60 << 32 | 1));
        assert_eq!(cluster("1970-01-01T01:01:00+01:00"), Ok(60 << 32 | 1));
        assert!(cluster("1969-12-31T23:59:59Z").unwrap_err().contains("1970"));
        assert!(cluster("17").unwrap_err().contains("no offsets"));
        assert_eq!("17".parse::<At>().unwrap().time(&embedded(), now_ms), Ok(17));
        for text in ["now", "7.9", "1970-01-01T00:01:00Z"] {
            assert!(text.parse::<At>().unwrap().time(&embedded(), now_ms).unwrap_err().contains("offset"), "{text}");
        }
        for text in ["", "soon", "now+5m", "now-", "now-5", "1.2.3", "-5", "4294967296.1", "2026-13-01T00:00:00Z", "5s"]
        {
            assert!(text.parse::<At>().unwrap_err().contains("allowed: such as"), "{text}");
        }
    }

    #[test]
    fn places_are_told_in_the_words_of_their_kind() {
        let text = |kind: Option<&BackendKind>, time, k| Place { kind, time, k }.to_string();
        let (mongodb, embedded) = (mongodb(), embedded());
        let time = 60 << 32 | 3;
        assert_eq!(text(Some(&mongodb), time, 2), "1970-01-01T00:01:00Z (cluster time 60.3), after its event 2");
        assert_eq!(text(Some(&mongodb), time, 0), "1970-01-01T00:01:00Z (cluster time 60.3), before its first event");
        assert_eq!(text(Some(&embedded), 17, 1), "offset 17, after it");
        assert_eq!(text(None, 17, 1), "time 17 (0x11), after its event 1");
        for (ms, expect) in [(0, "0 ms"), (999, "999 ms"), (1_999, "1 s"), (61_000, "1 m 1 s"), (90_000_000, "1 d 1 h")]
        {
            assert_eq!(span(ms), expect);
        }
    }
}
