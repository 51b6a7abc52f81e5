//! The driver with everything real but the ingest and control threads: executors, sockets, QUIC, a client.

mod client;
mod executors;
mod filters;
mod node;
mod sessions;
mod tiny;
