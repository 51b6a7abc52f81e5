//! The ingest thread: read, normalize, number, filter, route.
pub mod source;
