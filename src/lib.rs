//! The node: what runs once per process.
pub mod affinity;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod conformance;
pub mod control;
pub mod demo;
pub mod doctor;
pub mod ingest;
pub mod memory;
pub mod node;
pub mod reload;
pub mod service;
pub mod telemetry;
pub mod tls;
