//! Node and Gateways are killed under load, at random moments.

use rand::Rng;

use crate::{
    application::Command,
    support::{block_on, database::TestServer},
    world::{Plan, World, rounds, seed},
};

/// Deliveries that nobody has acked when the node is killed.
const UNACKED: usize = 1_000;

#[test]
fn node_on_an_embedded_store() {
    let seed = seed("kills::node_on_an_embedded_store");
    block_on(async { kill_node(World::embedded(Plan::new(seed)).await).await });
}

#[test]
fn node_on_mongodb() {
    let seed = seed("kills::node_on_mongodb");
    block_on(async {
        let Some(server) = TestServer::new("kills::node_on_mongodb").await else { return };
        kill_node(World::mongodb(Plan::new(seed), server).await).await;
    });
}

async fn kill_node(mut world: World) {
    let rounds = rounds(3);
    let mut starts = Vec::new();
    for _ in 0..rounds {
        world.command_all(Command::Hold);
        world.start_load(2_000);
        world.wait_changes(UNACKED).await;
        world.pause(0..200).await;
        world.kill_node();
        world.wait_checkpoint_is_behind().await;
        world.pause(0..300).await;
        starts.push(world.start_node_and_wait_live().await);
        world.command_all(Command::Release);
        world.stop_load().await;
        world.wait_kept().await;
    }
    let dropped: u64 = world.gateways.iter().map(|gateway| gateway.status().duplicates_dropped).sum();
    starts.sort();
    let (median, slowest) = (starts[rounds / 2], starts[rounds - 1]);
    println!("{rounds} kills of the node; from its start, median {median:?}, slowest {slowest:?}");
    println!("{dropped} repeated changes dropped");
    assert!(dropped > 0, "what was not acked came again, and was dropped");
    let verdict = world.end().await;
    assert_eq!(verdict.forgotten, 0, "no Gateway was killed");
}

#[test]
fn gateways_on_an_embedded_store() {
    let seed = seed("kills::gateways_on_an_embedded_store");
    block_on(async { kill_gateways(World::embedded(Plan::new(seed)).await).await });
}

#[test]
fn gateways_on_mongodb() {
    let seed = seed("kills::gateways_on_mongodb");
    block_on(async {
        let Some(server) = TestServer::new("kills::gateways_on_mongodb").await else { return };
        kill_gateways(World::mongodb(Plan::new(seed), server).await).await;
    });
}

async fn kill_gateways(mut world: World) {
    let rounds = rounds(6);
    world.start_load(1_000);
    for _ in 0..rounds {
        world.wait_changes(300).await;
        let victim = world.random.random_range(0..world.gateways.len());
        // Half of them with acks held back, so that much is written down and not kept.
        if world.random.random() {
            world.gateways[victim].command(Command::Hold);
            world.wait_changes(300).await;
        }
        world.pause(0..100).await;
        world.gateways[victim].kill();
        world.pause(0..300).await;
        world.gateways[victim].start();
        world.wait_live().await;
    }
    let verdict = world.end().await;
    println!("{rounds} kills of a Gateway");
    assert!(verdict.forgotten > 0, "something was told that had not been kept");
}
