//! The node: what runs once per process.
pub mod ingest;
