//! A shard with Gateways that decode what it fills, in one thread and in made-up time.

mod catching_up;
mod chaos;
mod continuity;
mod delivering;
mod lives;
mod many;
mod pressure;
mod registering;
mod storms;
mod timing;
mod world;

use world::{BACKEND, OTHER, Seen, World, item, position, positions};
