//! Logging, set up in one place: on stderr, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, filter::ParseError, fmt, reload};

use crate::config::LogFormat;

/// Changes what is logged.
pub(super) struct Level(Box<dyn Fn(EnvFilter) -> Result<(), reload::Error>>);

impl Level {
    /// Takes another level, or directives.
    pub(super) fn set(&self, level: &str) -> Result<(), String> {
        let filter = filter(level).map_err(|error| error.to_string())?;
        (self.0)(filter).map_err(|error| error.to_string())
    }
}

fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    // What is said of these later, in the configuration, wins.
    format!("{QUIETER},{level}").parse()
}

/// Starts logging. `level` is one that the configuration has accepted.
pub(super) fn init(level: &str, format: LogFormat) -> Level {
    let filter = filter(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    // A line that can't be written, as to a full disk, is lost: it would be complained of on stderr, and that ends the thread when it fails.
    let builder = builder.log_internal_errors(false);
    // It fails only where somebody has set up logging already, and then there is a log.
    match format {
        LogFormat::Text => {
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = builder.try_init();
            Level(Box::new(move |filter| handle.reload(filter)))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = builder.try_init();
            Level(Box::new(move |filter| handle.reload(filter)))
        }
    }
}

/// Libraries that speak of their own upkeep at INFO, which is nothing that an operator must know.
const QUIETER: &str = "fjall=warn,lsm_tree=warn";
