//! What this host is like for a node: each condition with what is needed, what is there, and what mends it.
//!
//! Everything is read below a root folder, so that a test can hold a made-up host against the checks. Only [`tune`] writes.

mod cpu;
mod host;
mod memory;
mod network;
mod process;
#[cfg(test)]
mod tests;
pub mod tune;

use std::{fmt, net::SocketAddr};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use shards::driver::{Preflight, RuntimeChoice};

pub use self::host::Host;
use crate::affinity::{Placement, Topology};

/// How much a condition matters as it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be, or of no concern here.
    Good,
    /// The host doesn't tell.
    Unknown,
    /// Worth knowing; costs little.
    Note,
    /// Costs throughput or latency, or will under load.
    Warning,
    /// The node doesn't start like this, or loses what it needs.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Good => "good",
            Self::Unknown => "unknown",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// A value that the running kernel takes by a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    pub path: String,
    pub value: String,
}

impl fmt::Display for Setting {
    /// The command that sets it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.strip_prefix("/proc/sys/") {
            Some(name) => write!(f, "sysctl -w {}={:?}", name.replace('/', "."), self.value),
            None => write!(f, "echo {} > {}", self.value, self.path),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub condition: &'static str,
    pub needed: String,
    pub found: String,
    pub severity: Severity,
    /// What mends it, in words or as a command. Empty where nothing has to be.
    pub fix: String,
    /// What `streamer tune` would set.
    pub settings: Vec<Setting>,
}

impl Finding {
    fn good(condition: &'static str, needed: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            condition,
            needed: needed.into(),
            found: found.into(),
            severity: Severity::Good,
            fix: String::new(),
            settings: Vec::new(),
        }
    }

    fn unknown(condition: &'static str, needed: impl Into<String>, why: impl Into<String>) -> Self {
        Self { severity: Severity::Unknown, ..Self::good(condition, needed, why) }
    }

    fn with(self, severity: Severity, fix: impl Into<String>) -> Self {
        Self { severity, fix: fix.into(), ..self }
    }

    fn with_settings(self, severity: Severity, settings: Vec<Setting>) -> Self {
        let fix = settings.iter().map(Setting::to_string).collect::<Vec<_>>().join("\n");
        Self { severity, fix, settings, ..self }
    }
}

/// What the node is to be run as.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub placement: Placement,
    pub topology: Topology,
    pub runtime: RuntimeChoice,
    /// UDP address of shard 0; shard i has the port i above it.
    pub quic: SocketAddr,
    /// What each shard asks of the kernel for its socket, in bytes.
    pub socket_receive_bytes: usize,
    pub socket_send_bytes: usize,
}

/// What only the process itself knows of its host.
#[derive(Clone, Debug)]
pub struct Process {
    pub preflight: Preflight,
    /// Soft limit of open files.
    pub open_files: u64,
}

impl Process {
    pub fn this(executors: usize) -> Self {
        let open_files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        Self { preflight: Preflight::check(executors), open_files }
    }
}

/// Looks at everything, in the order in which it is shown.
pub fn examine(wanted: &Wanted, process: &Process, host: &Host) -> Vec<Finding> {
    let mut findings = process::examine(wanted, process, host);
    findings.extend(network::examine(wanted, host));
    findings.extend(cpu::examine(wanted, host));
    findings.extend(memory::examine(wanted, host));
    findings
}

/// The findings as a table of at most so many columns.
pub fn table(findings: &[Finding], width: u16) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(width)
        .set_header(["condition", "needed", "found", "severity", "fix"]);
    for finding in findings {
        table.add_row([
            finding.condition,
            &finding.needed,
            &finding.found,
            &finding.severity.to_string(),
            &finding.fix,
        ]);
    }
    table.to_string()
}
