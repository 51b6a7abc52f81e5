//! Sets what the findings name, and tells how to undo it.

use std::io;

use super::{Finding, Host, Setting};

/// A setting with the value that is there now.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    pub setting: Setting,
    pub before: String,
}

impl Change {
    /// What sets it back.
    pub fn undo(&self) -> Setting {
        Setting { path: self.setting.path.clone(), value: self.before.clone() }
    }
}

/// A setting that was not taken.
#[derive(Debug, thiserror::Error)]
#[error("{path} can't be set to {value:?}: {error}")]
pub struct Refused {
    pub path: String,
    pub value: String,
    pub error: io::Error,
}

/// What would be set, with what is there now.
pub fn plan(findings: &[Finding], host: &Host) -> Vec<Change> {
    let settings = findings.iter().flat_map(|finding| &finding.settings);
    settings
        .map(|setting| Change { setting: setting.clone(), before: current(host, &setting.path) })
        .filter(|change| change.before != change.setting.value)
        .collect()
}

/// A file of choices shows the one that is chosen in brackets.
fn current(host: &Host, path: &str) -> String {
    host.chosen(path).or_else(|| host.read(path)).unwrap_or_default()
}

/// Sets them all. One that is refused keeps none of the others from being set.
pub fn apply(changes: &[Change], host: &Host) -> Vec<Result<Change, Refused>> {
    let set = |change: &Change| {
        let Setting { path, value } = &change.setting;
        match host.write(path, value) {
            Ok(()) => Ok(change.clone()),
            Err(error) => Err(Refused { path: path.clone(), value: value.clone(), error }),
        }
    };
    changes.iter().map(set).collect()
}
