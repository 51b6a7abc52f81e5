//! Packets between Gateways and shards are lost, repeated, late, out of order, or swallowed, and processes stand still.

use std::{collections::BTreeMap, time::Duration};

use rand::Rng;
use rustix::process::Signal;
use tokio::time::sleep;

use crate::{
    application::Command,
    gateway::{GatewayProcess, send},
    journal::Line,
    support::{block_on, database::TestServer},
    weather::Weather,
    world::{Plan, World, rounds, seed},
};

/// So short that a connection on which nothing comes is given up within a round.
const SHORT: &str = "idle_timeout = \"2s\"\nreceived_deadline = \"2s\"";

#[test]
fn foul_weather() {
    let seed = seed("network::foul_weather");
    block_on(async {
        let mut world = World::embedded(Plan::new(seed).with_quic(SHORT)).await;
        world.start_load(500);
        for _ in 0..rounds(3) {
            world.proxy.turn(Weather::FOUL).await;
            world.wait_changes(500).await;
            // A connection that only one side believes in, one after the other way round, and one that neither can use.
            let half_open = [
                Weather { deaf_node: true, ..Weather::FAIR },
                Weather { deaf_gateways: true, ..Weather::FAIR },
                Weather::BLACKHOLE,
            ];
            let weather = half_open[world.random.random_range(0..half_open.len())];
            world.proxy.turn(weather).await;
            world.pause(200..3_500).await;
            world.proxy.turn(Weather::FOUL).await;
            world.wait_live().await;
        }
        world.proxy.turn(Weather::FAIR).await;
        let packets = world.proxy.packets().await;
        println!("{packets:?}");
        assert!(
            packets.lost > 0 && packets.repeated > 0 && packets.delayed > 0 && packets.swallowed > 0,
            "{packets:?}"
        );
        println!("{}", stalls(&mut world.gateways));
        let reconnects: u64 = world.gateways.iter().map(|gateway| gateway.status().reconnects).sum();
        let verdict = world.end().await;
        println!("{reconnects} reconnections; p99 {} us", verdict.latency.p99_us());
    });
}

/// When Gateways were told late, by shard: how late the first change of each stretch was in which all were. In words; the latest first.
fn stalls(gateways: &mut [GatewayProcess]) -> String {
    const LATE_US: u64 = 1_000_000;
    let mut stalls: Vec<(u64, u16, String)> = Vec::new();
    for gateway in gateways {
        let name = gateway.name.clone();
        let mut running: BTreeMap<u16, u64> = BTreeMap::new();
        for line in gateway.lines() {
            let Line::Change(told) = line else { continue };
            match (told.late_us, running.get_mut(&told.shard)) {
                (Some(late), Some(most)) if late >= LATE_US => *most = late.max(*most),
                (Some(late), None) if late >= LATE_US => drop(running.insert(told.shard, late)),
                (Some(_), Some(_)) => {
                    stalls.extend(running.remove(&told.shard).map(|late| (late, told.shard, name.clone())));
                }
                _ => {}
            }
        }
        stalls.extend(running.into_iter().map(|(shard, late)| (late, shard, name.clone())));
    }
    stalls.sort_unstable_by(|a, b| b.cmp(a));
    let each = stalls.iter().map(|(late, shard, gateway)| format!("{gateway} of shard {shard} {} ms", late / 1_000));
    format!("{} times that a Gateway was told late: {}", stalls.len(), each.take(12).collect::<Vec<_>>().join(", "))
}

#[test]
fn everything_on_an_embedded_store() {
    let seed = seed("network::everything_on_an_embedded_store");
    block_on(async { everything(World::embedded(Plan::new(seed).with_quic(SHORT)).await).await });
}

#[test]
fn everything_on_mongodb() {
    let seed = seed("network::everything_on_mongodb");
    block_on(async {
        let Some(server) = TestServer::new("network::everything_on_mongodb").await else { return };
        everything(World::mongodb(Plan::new(seed).with_quic(SHORT), server).await).await;
    });
}

/// Kills, standstills and weather, whichever the seed says, one upon the other.
async fn everything(mut world: World) {
    world.start_load(500);
    let mut done = Vec::new();
    for _ in 0..rounds(2) * 5 {
        let victim = world.random.random_range(0..world.gateways.len());
        let what = world.random.random_range(0..6);
        match what {
            0 => {
                world.kill_node();
                world.pause(0..500).await;
                world.start_node().await;
            }
            1 => {
                // Half of the time with something that it was told and has not kept.
                if world.random.random() {
                    world.gateways[victim].command(Command::Hold);
                    world.pause(0..300).await;
                }
                world.gateways[victim].kill();
                world.pause(0..500).await;
                world.gateways[victim].start();
            }
            2 => {
                send(world.node_id(), Signal::STOP);
                world.pause(50..2_500).await;
                send(world.node_id(), Signal::CONT);
            }
            3 => {
                world.gateways[victim].signal(Signal::STOP);
                world.pause(50..4_000).await;
                world.gateways[victim].signal(Signal::CONT);
            }
            4 => {
                let weather = if world.random.random() { Weather::FOUL } else { Weather::FAIR };
                world.proxy.turn(weather).await;
            }
            _ => {
                world.proxy.turn(Weather::BLACKHOLE).await;
                world.pause(50..2_500).await;
                world.proxy.turn(Weather::FAIR).await;
            }
        }
        done.push(["node killed", "Gateway killed", "node stopped", "Gateway stopped", "weather", "blackhole"][what]);
        world.pause(0..500).await;
    }
    println!("{}", done.join(", "));
    world.proxy.turn(Weather::FAIR).await;
    // Whoever believes in a connection that is gone finds out.
    sleep(Duration::from_millis(500)).await;
    world.wait_live().await;
    world.wait_changes(200).await;
    world.end().await;
}
