//! What goes wrong outside: processes that are killed, stopped and started again, a network that loses packets, a server that fails, a disk
//! that is full. Node, server and Gateways are processes of their own; what Gateways have written down is held against the oracle.
//!
//! `FAULTS_ROUNDS` says how often each fault comes (few by default), `FAULTS_SEED` repeats the choices of a run, which prints its own. No
//! test asserts a time; those that measure print what they found.

mod application;
mod disk;
mod gateway;
mod journal;
mod kills;
mod network;
mod reckoning;
mod server;
mod slow;
mod source;
#[path = "../integration/support/mod.rs"]
#[allow(dead_code, unused_imports, unused_macros, reason = "the integration tests ask more of it")]
mod support;
mod weather;
mod world;
