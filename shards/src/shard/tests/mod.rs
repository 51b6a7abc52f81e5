//! A shard with Gateways that decode what it fills, in one thread and in made-up time.

mod chaos;
mod continuity;
mod delivering;
mod lives;
mod many;
mod registering;
mod storms;
mod world;

use world::{BACKEND, Seen, World, item, position, positions};
