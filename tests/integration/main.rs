//! Nodes as their users meet them: real threads, real sockets, real files, and processes that are killed.
//!
//! Every test has its own ports and its own folder, so all of them run at the same time. None asserts a time: what is waited for is
//! polled, and where it doesn't come the failure names what was missing.

mod affinity;
mod conformance;
mod demo;
mod drain;
mod embedded;
mod hostile;
mod mongodb;
mod overload;
mod page;
mod raw;
mod reload;
mod restart;
mod security;
mod support;
mod telemetry;
mod tenants;
mod tuning;
