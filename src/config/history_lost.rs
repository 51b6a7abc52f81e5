//! The keys that say what to do when the source no longer has what comes next.

use super::{HistoryLost, Origin, read::Section};

/// The policy, and the time that one of them needs.
pub(super) fn history_lost(section: &mut Section<'_>) -> HistoryLost {
    const KEY: &str = "history_lost_timestamp";
    let time = section.parsed_given(KEY, |text| match text.trim() {
        "" => Ok(None),
        text => bson::DateTime::parse_rfc3339_str(text)
            .ok()
            .and_then(|time| u32::try_from(time.timestamp_millis().div_euclid(1_000)).ok())
            .map(|seconds| Some(u64::from(seconds) << 32))
            .ok_or_else(|| "is not a time; allowed: such as \"2026-11-28T09:30:00Z\"".into()),
    });
    // Any time will do until it is known which.
    let choices = [
        ("fail", HistoryLost::Fail),
        ("from_now", HistoryLost::FromNow),
        ("from_timestamp", HistoryLost::FromTimestamp { time: 0 }),
    ];
    let chosen = section.choice("on_history_lost", HistoryLost::Fail, &choices);
    let (given, origin) = time.map_or((None, Origin::Absent), |time| (time.value, time.origin));
    match (chosen, given) {
        (HistoryLost::FromTimestamp { .. }, Some(time)) => HistoryLost::FromTimestamp { time },
        (HistoryLost::FromTimestamp { .. }, None) => {
            let message =
                "is needed, since on_history_lost = \"from_timestamp\"; allowed: such as \"2026-11-28T09:30:00Z\"";
            section.refuse(KEY, origin, None, message.into());
            HistoryLost::Fail
        }
        (chosen, None) => chosen,
        (chosen, Some(_)) => {
            let message = "has no meaning here; allowed: together with on_history_lost = \"from_timestamp\"";
            section.refuse(KEY, origin, None, message.into());
            chosen
        }
    }
}
