//! What `cargo xtask …` does. It has no dependencies, so that it is built in a second.

pub mod dist;
#[cfg(test)]
mod errors_page;
pub mod run;
pub mod servers;
pub mod tidy;
