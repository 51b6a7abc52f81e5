//! A node with a scripted session and a known answer, against which the author of a Gateway in any language tests it.
//!
//! Each scene has a node, a Gateway's program and folders of its own. The node is this program's `run` in a process of its own on an embedded
//! store, so what the Gateway meets is the true protocol, and what goes wrong goes wrong in the true way: the node is killed, told to
//! stop, started with other shards or another history. The Gateway's program is told what to do by JSON lines on its standard input and
//! says what it was told by JSON lines on its standard output (`docs/conformance.md`).

mod judge;
mod lines;
mod node;
mod program;
mod scenes;
mod stage;

use std::{fmt, path::PathBuf, time::Duration};

use serde::Serialize;

pub use self::scenes::SCENES;
use self::stage::{Stage, Stopped};

/// What is run, and with whom.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of the node's HTTP API; shards are on the UDP ports above it. Any free ones without it.
    pub port: Option<u16>,
    /// Names of scenes, in the order of [`SCENES`]; all where none is named.
    pub scenes: Vec<String>,
    /// How long the Gateway may take for what it has to do.
    pub patience: Duration,
    /// The Gateway's program and its arguments.
    pub program: Vec<String>,
    /// The program `streamer`, for the node.
    pub node: PathBuf,
}

/// Why the run could not be carried out, whatever the Gateway does.
#[derive(Debug, thiserror::Error)]
pub enum ConformanceError {
    #[error("there is no scene {name:?}; allowed: {}", names())]
    NoSuchScene { name: String },
    #[error("no Gateway is named: its program and arguments follow after --")]
    NoProgram,
    #[error("ports {first} to {last} of 127.0.0.1 are not free; choose others with --port")]
    Ports { first: u16, last: u16 },
    #[error("the temporary folder can't be used: {0}")]
    Folder(#[source] std::io::Error),
    #[error("{what} can't be started: {error}")]
    Start { what: String, error: std::io::Error },
    #[error("the node is not as it should be: {what}; it said:\n{log}")]
    Node { what: String, log: String },
    #[error("the run can't begin: {0}")]
    Runtime(#[source] std::io::Error),
}

fn names() -> String {
    SCENES.iter().map(|scene| scene.name).collect::<Vec<_>>().join(", ")
}

/// How one scene went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SceneReport {
    pub scene: &'static str,
    /// What was wrong, in words; empty where nothing was.
    pub faults: Vec<String>,
}

impl SceneReport {
    pub fn passed(&self) -> bool {
        self.faults.is_empty()
    }
}

impl fmt::Display for SceneReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// A Gateway that does one thing wrong does it often.
        const SHOWN_MAX: usize = 10;
        write!(f, "{} {}", if self.passed() { "pass" } else { "FAIL" }, self.scene)?;
        self.faults.iter().take(SHOWN_MAX).try_for_each(|fault| write!(f, "\n     {fault}"))?;
        match self.faults.len().saturating_sub(SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, "\n     and {more} more"),
        }
    }
}

/// Runs the scenes, blocking, and tells of each when it is over.
pub fn run(options: &Options, mut told: impl FnMut(&SceneReport)) -> Result<Vec<SceneReport>, ConformanceError> {
    if options.program.is_empty() {
        return Err(ConformanceError::NoProgram);
    }
    let unknown = options.scenes.iter().find(|name| SCENES.iter().all(|scene| scene.name != **name));
    if let Some(name) = unknown {
        return Err(ConformanceError::NoSuchScene { name: name.clone() });
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ConformanceError::Runtime)?;
    let wanted = |name: &str| options.scenes.is_empty() || options.scenes.iter().any(|wanted| wanted == name);
    let mut reports = Vec::new();
    for scene in SCENES.iter().filter(|scene| wanted(scene.name)) {
        let faults = runtime.block_on(async {
            let mut stage = Stage::set(options).await?;
            let stopped = (scene.play)(&mut stage).await;
            let mut faults = stage.clear();
            match stopped {
                Ok(()) => {}
                Err(Stopped::Fault(fault)) => faults.push(fault),
                Err(Stopped::Broken(error)) => return Err(error),
            }
            Ok(faults)
        })?;
        let report = SceneReport { scene: scene.name, faults };
        told(&report);
        reports.push(report);
    }
    Ok(reports)
}
