//! The node's process is stopped and killed, and comes back with other numbers of shards; the client writes on. Each change arrives once
//! past the SDK, and nobody has to read anything anew.

use std::path::Path;

use workload::{Preset, Profile};

use super::{
    super::support::{
        cores,
        listener::Acks,
        node::Settings,
        process::{NodeProcess, free_ports},
    },
    world::World,
};

const WRITES: usize = 25;
/// Answered with 200 once every backend is read.
const READY: &str = "/health/ready";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn syntrix() {
    nothing_is_lost_or_repeated("mongodb::restart::syntrix", Profile::test(31)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain() {
    nothing_is_lost_or_repeated("mongodb::restart::plain", Profile::test(32).with_preset(Preset::Plain)).await;
}

async fn nothing_is_lost_or_repeated(test: &str, profile: Profile) {
    let Some(mut world) = World::new(test, profile).await else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut settings = settings(&world, folder.path());
    let mut node = settings.start_process().await;
    node.answers(&settings.api(), READY).await;
    world.connect(&settings.place().await, [Acks::Automatic, Acks::ByHand, Acks::ByHand]).await;
    live(&mut world).await;

    // As a service manager restarts it, now with five shards.
    let status = node.terminate().await;
    assert!(status.success(), "the node that was told to stop ended with {status}");
    let missed = write_while_down(&mut world).await;
    settings.shards = cores(5);
    let node = start(&settings, &mut world).await;
    world.observe(missed).await;
    live(&mut world).await;

    // Killed with deliveries that nobody has acked; back to two shards. One Gateway comes back from the positions that it kept, and so
    // forgets what it had not acked.
    world.listeners[1].hold(true);
    world.listeners[2].hold(true);
    let unacked = world.client.write(&world.layout, WRITES).await;
    world.observe(unacked).await;
    world.wait_delivered().await;
    node.kill();
    let missed = write_while_down(&mut world).await;
    settings.shards = cores(2);
    let mut node = settings.start_process().await;
    let last = world.listeners.pop().expect("there are three");
    let place = settings.place().await;
    let restarted = last.restart(&place).await;
    assert!(restarted.forgotten > 0, "some changes were told, and not acked, before the Gateway was restarted");
    world.listeners.push(restarted);
    node.answers(&settings.api(), READY).await;
    world.wait_live().await;
    world.observe(missed).await;
    world.wait_delivered().await;
    world.listeners[1].hold(false);
    live(&mut world).await;
    let counters = world.listeners[1].handle().status().counters;
    assert!(counters.duplicates_dropped > 0, "what was not acked came again, and was dropped: {counters:?}");

    // Killed with changes on their way, wherever each of them is.
    let under_way = world.client.write(&world.layout, WRITES).await;
    node.kill();
    settings.shards = cores(5);
    let node = start(&settings, &mut world).await;
    world.observe(under_way).await;
    live(&mut world).await;

    // And stopped with nothing missed.
    let status = node.terminate().await;
    assert!(status.success(), "the node that was told to stop ended with {status}");
    settings.shards = cores(2);
    let node = start(&settings, &mut world).await;
    live(&mut world).await;
    assert!(world.listeners[0].handle().status().counters.reconnects > 0, "the Gateway that lived on has reconnected");
    assert!(node.terminate().await.success());
    world.end().await;
}

fn settings(world: &World, folder: &Path) -> Settings {
    let (http_port, quic_port) = free_ports();
    Settings { http_port, quic_port, ..world.settings(folder, 2) }
}

/// Starts the node, and waits until it reads and the Gateways are back.
async fn start(settings: &Settings, world: &mut World) -> NodeProcess {
    let mut node = settings.start_process().await;
    node.answers(&settings.api(), READY).await;
    world.wait_live().await;
    node
}

/// Two rounds of writes and deliveries, and everything so far compared with what it should be.
async fn live(world: &mut World) {
    world.wait_delivered().await;
    world.wait_settled().await;
    for _ in 0..2 {
        world.round(WRITES).await;
    }
    world.check().await;
}

/// How many events the node will find when it is back.
async fn write_while_down(world: &mut World) -> usize {
    let events = world.client.write(&world.layout, WRITES).await;
    events + world.client.update_many(&world.layout, 5).await
}
