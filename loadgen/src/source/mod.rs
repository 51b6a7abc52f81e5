//! Where the load comes from.

pub mod direct;
pub mod embedded;
pub mod mongodb;
