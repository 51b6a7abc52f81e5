//! What a Gateway's program is told, and what it tells: a JSON object a line.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wire::{Operation, Transition};

/// On the program's standard input.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(super) enum Command {
    /// In a program that has kept positions: from there.
    Subscribe {
        subscriptions: Vec<Subscription>,
    },
    Unsubscribe {
        tenant: &'static str,
        id: String,
    },
    /// From now on the application gets changes and isn't done with them.
    Hold,
    /// It is done with all that it held, and with what comes.
    Release,
    /// Positions are kept, and that is told.
    Save,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Subscription {
    pub(super) tenant: &'static str,
    pub(super) id: String,
    pub(super) collection: &'static str,
    pub(super) filters: Vec<Value>,
    pub(super) expr: &'static str,
}

/// On the program's standard output. Other lines are the program's own business.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "told", rename_all = "snake_case")]
pub(super) enum Told {
    Live {
        subscription: String,
    },
    Change(Change),
    Gap {
        subscription: String,
        reason: String,
    },
    Resync {
        subscription: String,
        reason: String,
    },
    CatchingUp {
        subscription: String,
    },
    CaughtUp {
        subscription: String,
    },
    Rejected {
        subscription: String,
        code: String,
    },
    Closed {
        subscription: String,
    },
    Saved,
    /// The Gateway can't go on.
    Ended {
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Change {
    pub(super) subscription: String,
    /// `time` of the event's id: in an embedded store the number of the change.
    pub(super) time: u64,
    pub(super) transition: Transition,
    pub(super) operation: Operation,
    /// The document's id.
    pub(super) document: String,
    /// The field `n` of the document.
    pub(super) n: Option<i64>,
    /// Bytes of the document, as BSON.
    pub(super) size: usize,
}

/// `None` for what isn't meant for the run.
pub(super) fn parse(line: &str) -> Option<Result<Told, String>> {
    let line = line.trim();
    line.starts_with('{').then(|| serde_json::from_str(line).map_err(|error| format!("{error} in the line {line}")))
}
