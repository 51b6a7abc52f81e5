//! The disk under the checkpoint is full, or its folder gone: the node delivers on, says so, and recovers.

use std::{fs, process::Command};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;

use crate::{
    application,
    support::{block_on, database::TestServer, process::BINARY, until},
    world::{Plan, World, rounds, seed},
};

/// A file of the node's may not grow beyond a few bytes: a write ends short, and the next one fails, as on a disk that is full. So it is for
/// the checkpoint and for the log.
#[test]
fn full() {
    const NAME: &str = "disk::full";
    let seed = seed(NAME);
    block_on(async {
        let Some(server) = TestServer::new(NAME).await else { return };
        let mut world = World::mongodb(Plan { program: Some(without_signal()), ..Plan::new(seed) }, server).await;
        world.start_load(300);
        for _ in 0..rounds(2) {
            wait_written(&world, 1).await;
            limit_files(&world, Some(60));
            goes_on_without(&mut world).await;
            limit_files(&world, None);
            recovers(&mut world).await;
        }
        killed_without(&mut world, |world| limit_files(world, Some(60)), |_| ()).await;
        world.end().await;
    });
}

#[test]
fn gone() {
    let seed = seed("disk::gone");
    block_on(async {
        let mut world = World::embedded(Plan::new(seed)).await;
        let folder = world.folder.path().join("data").join("checkpoint");
        let aside = world.folder.path().join("checkpoint-aside");
        let take_away = || {
            fs::rename(&folder, &aside).expect("the folder is there");
            fs::write(&folder, "in the way").expect("its place is free");
        };
        let put_back = || {
            fs::remove_file(&folder).expect("it is a file");
            fs::rename(&aside, &folder).expect("its place is free");
        };
        world.start_load(300);
        for _ in 0..rounds(2) {
            wait_written(&world, 1).await;
            take_away();
            goes_on_without(&mut world).await;
            put_back();
            recovers(&mut world).await;
        }
        killed_without(&mut world, |_| take_away(), |_| put_back()).await;
        world.end().await;
    });
}

/// Runs the node without the signal that tells of such a write, which a full disk does not send: that it is ignored is inherited.
fn without_signal() -> Command {
    let mut program = Command::new("sh");
    program.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", BINARY]);
    program
}

fn limit_files(world: &World, bytes: Option<u64>) {
    let node = Pid::from_raw(world.node_id() as i32).expect("a child's id is not 0");
    let limit = Rlimit { current: bytes, maximum: None };
    prlimit(Some(node), Resource::Fsize, limit).expect("a child's limits can be set below the highest");
}

/// Changes come, health and metrics tell.
async fn goes_on_without(world: &mut World) {
    let api = world.api();
    let reason = until("health names the checkpoint", async || {
        let (status, health) = api.call("GET", "/health", "").await;
        let reasons = health["reasons"].as_array()?.clone();
        let reason = reasons.iter().filter_map(Value::as_str).find(|reason| reason.contains("checkpoint"))?.to_owned();
        assert_eq!(status, 503, "{health}");
        Some(reason)
    })
    .await;
    println!("{reason}");
    assert!(world.metric("streamer_checkpoints_failed_total").await > 0.0);
    // More than a checkpoint's worth.
    world.wait_changes(500).await;
}

async fn recovers(world: &mut World) {
    let api = world.api();
    until("the node is well again", async || api.is_well("/health").await.then_some(())).await;
    wait_written(world, 2).await;
    world.wait_changes(50).await;
}

/// Killed while no checkpoint can be written: it goes on from the last one that could.
async fn killed_without(world: &mut World, break_it: impl Fn(&World), mend_it: impl Fn(&World)) {
    wait_written(world, 1).await;
    break_it(world);
    goes_on_without(world).await;
    world.command_all(application::Command::Hold);
    world.wait_changes(200).await;
    world.kill_node();
    mend_it(world);
    world.start_node().await;
    world.wait_live().await;
    world.command_all(application::Command::Release);
}

/// So many more checkpoints.
async fn wait_written(world: &World, more: u64) {
    let written = async || world.metric("streamer_checkpoints_written_total").await as u64;
    let begin = written().await;
    until("a checkpoint is written", async || (written().await >= begin + more).then_some(())).await;
}
