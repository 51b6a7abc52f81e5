//! The ingest thread: read, normalize, number, filter, route, and know what is settled.

pub mod catch_up;
pub mod core;
mod elements;
pub mod event;
pub mod normalize;
pub mod number;
pub mod pump;
mod reader;
mod root;
pub mod route;
pub mod settle;
pub mod source;
pub mod start;
pub mod status;

#[cfg(test)]
mod tests;
