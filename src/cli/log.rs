//! Logging, set up in one place: on stderr, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::LogFormat;

/// Starts logging. `level` is one that the configuration has accepted.
pub(super) fn init(level: &str, format: LogFormat) {
    // What is said of these later, in the configuration, wins.
    let filter = format!("{QUIETER},{level}").parse::<EnvFilter>().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    // A line that can't be written, as to a full disk, is lost: it would be complained of on stderr, and that ends the thread when it fails.
    let builder = builder.log_internal_errors(false);
    // It fails only where somebody has set up logging already, and then there is a log.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// Libraries that speak of their own upkeep at INFO, which is nothing that an operator must know.
const QUIETER: &str = "fjall=warn,lsm_tree=warn";
