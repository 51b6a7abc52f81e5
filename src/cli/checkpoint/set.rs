//! `streamer checkpoint set`: reading goes on at a chosen time.

use std::{fmt::Write, sync::Arc, time::Duration};

use super::at::{At, Place, span};
use crate::{
    checkpoint::{BackendCheckpoint, Checkpoint},
    config::{Backend, Config},
    ingest::{
        settle::ResumePoint,
        source::{Identity, Purpose, Source, SourceError, Start},
    },
};
use wire::Position;

/// How long a source may take for each of the things that it is asked.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(15);

/// What a source says of the place.
pub(super) struct Asked {
    /// `Err` where it could not be asked.
    identity: Result<Identity, String>,
    /// `Err` where it could not be found out.
    in_history: Result<(), String>,
}

/// Asks a source whether it can be read from there. The error is what is wrong with the place.
pub(super) async fn ask(source: &Arc<dyn Source>, time: u64) -> Result<Asked, String> {
    let unanswered = |what: String| Ok(Asked { identity: Err(what.clone()), in_history: Err(what) });
    let identity = match in_time(source.identity()).await {
        Ok(identity) => identity,
        Err(error) => return unanswered(error.to_string()),
    };
    let unknown = |identity: &Identity, error: SourceError| {
        Ok(Asked { identity: Ok(identity.clone()), in_history: Err(error.to_string()) })
    };
    match in_time(source.open(Start::Now, Purpose::Live)).await {
        Ok(opened) if time > opened.start.0 => {
            return Err(
                "is ahead of the source's history: nothing has happened there yet; allowed: a time in the past".into(),
            );
        }
        Ok(_) => {}
        Err(error) => return unknown(&identity, error),
    }
    match in_time(source.open(Start::At { time }, Purpose::Live)).await {
        Ok(_) => Ok(Asked { identity: Ok(identity), in_history: Ok(()) }),
        Err(SourceError::HistoryLost(why)) => {
            Err(format!("is no longer in the source's history ({why}); allowed: a later time"))
        }
        Err(error) => unknown(&identity, error),
    }
}

async fn in_time<T>(asked: impl Future<Output = Result<T, SourceError>>) -> Result<T, SourceError> {
    let late = || SourceError::Transient(format!("no answer within {} s", SOURCE_TIMEOUT.as_secs()));
    tokio::time::timeout(SOURCE_TIMEOUT, asked).await.unwrap_or_else(|_| Err(late()))
}

/// The new place of a backend, and what follows from it.
pub(super) struct Change {
    pub(super) backend: BackendCheckpoint,
    pub(super) told: String,
}

/// `asked` is what the source said; `old` what is kept.
pub(super) fn change(
    backend: &Backend,
    time: u64,
    old: Option<&BackendCheckpoint>,
    asked: &Asked,
) -> Result<Change, String> {
    let (lineage, source) = match (&asked.identity, old) {
        (Ok(identity), _) => (identity.lineage.0, identity.description.clone()),
        (Err(_), Some(old)) => (old.lineage, old.source.clone()),
        (Err(why), None) => {
            return Err(format!("has no checkpoint yet, and its source can't be asked who it is: {why}"));
        }
    };
    let new = BackendCheckpoint { name: backend.name.clone(), lineage, source, time, k: 0, token: None };
    let point: ResumePoint = new.resume_point();
    let place = |time, k| Place { kind: Some(&backend.kind), time, k };
    let mut told = format!("backend {:?}: reading goes on at {}.\n", backend.name, place(time, 0));
    let mut tell = |text: String| {
        // Writing to a text can't fail.
        let _ = writeln!(told, "  {text}");
    };
    if let Err(why) = &asked.in_history {
        tell(format!(
            "NOT CHECKED whether the source's history still holds that: {why}. If it doesn't, the node halts the backend."
        ));
    }
    match old {
        None => tell("There was no checkpoint of it: the next start would have begun from now.".into()),
        Some(old) if old.lineage != lineage => tell(format!(
            "The checkpoint was of another source or pipeline ({}), at {}. Subscriptions whose Gateways present positions of that are \
             told Resync; what happened in the one now configured before the new place is not delivered.",
            old.source,
            place(old.time, old.k)
        )),
        Some(old) => {
            let here = old.resume_point().position;
            let was = place(old.time, old.k);
            let apart = apart(backend, here, point.position);
            if point.position.order() == here.order() {
                tell(format!("That is where it is: {was}."));
            } else if point.position.order() < here.order() {
                tell(format!(
                    "Sent again: what happened from there to {was}{apart}. What a subscription has had, its Gateway drops by the position \
                     that it presents; a subscription without a position gets it all, if its Gateway is back before reading begins.",
                ));
            } else {
                tell(format!(
                    "Skipped: what happened after {was}{apart}. A subscription whose Gateway presents an older position has it read \
                     again by catch-up, as far as the source still has it; one without a position gets nothing of it.",
                ));
            }
        }
    }
    Ok(Change { backend: new, told })
}

fn apart(backend: &Backend, one: Position, other: Position) -> String {
    match &backend.kind {
        crate::config::BackendKind::Mongodb(_) => {
            format!(", which is {}", span((one.time >> 32).abs_diff(other.time >> 32).saturating_mul(1_000)))
        }
        crate::config::BackendKind::Embedded(_) => format!(", which are {} offsets", one.time.abs_diff(other.time)),
    }
}

/// The backends that are meant, with the time that it is for each.
pub(super) fn chosen<'c>(
    config: &'c Config,
    name: Option<&str>,
    at: At,
    now_ms: i64,
) -> Result<Vec<(&'c Backend, u64)>, String> {
    let all = config.backends.iter().filter(|backend| name.is_none_or(|name| name == backend.name));
    let chosen: Vec<_> = all
        .map(|backend| match at.time(&backend.kind, now_ms) {
            Ok(time) => Ok((backend, time)),
            Err(why) => {
                let hint = if name.is_none() && config.backends.len() > 1 {
                    "; --backend NAME names one of several"
                } else {
                    ""
                };
                Err(format!("backend {:?} {why}{hint}", backend.name))
            }
        })
        .collect::<Result<_, _>>()?;
    if chosen.is_empty() {
        let names: Vec<_> = config.backends.iter().map(|backend| format!("{:?}", backend.name)).collect();
        return Err(format!("there is no backend {:?}; allowed: {}", name.unwrap_or_default(), names.join(", ")));
    }
    Ok(chosen)
}

/// What is kept, with these in the place of those of the same name. Gateways stay: they are waited for as before.
pub(super) fn merged(old: Option<Checkpoint>, changes: Vec<BackendCheckpoint>) -> Checkpoint {
    let mut merged = old.unwrap_or_default();
    for change in changes {
        match merged.backends.iter_mut().find(|backend| backend.name == change.name) {
            Some(backend) => *backend = change,
            None => merged.backends.push(change),
        }
    }
    merged
}
