//! Load for a node, with every delivery checked when it arrives.
//!
//! [`plan`] says what comes and who is to get it, before anything is sent; [`schedule`] when it is due; [`source`] hands it over;
//! [`gateways`] receive it over real QUIC; [`check`] holds the two against each other; [`report`] shows what was found.

pub mod alarm;
pub mod capacity;
pub mod check;
pub mod gateways;
pub mod page;
pub mod pinned;
pub mod plan;
pub mod profile;
pub mod report;
pub mod run;
pub mod schedule;
pub mod source;
