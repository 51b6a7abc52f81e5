//! Gateways that are slow, away for long, or many at once in what they ask for: what it is to the others, and to themselves.
//!
//! Each asserts exactness alone and prints its figures, which mean something on an idle machine only. Environment variables make them as
//! large as a measurement wants.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use workload::{Latency, Profile};

use crate::{
    application::Command,
    journal::Line,
    support::{block_on, until},
    world::{Plan, SHARDS, World, number_of, rounds, seed},
};

/// Two Gateways with the same number of subscriptions; the first is slow in the second half of the time.
#[test]
fn a_slow_gateway_beside_a_healthy_one() {
    let seed = seed("slow::a_slow_gateway_beside_a_healthy_one");
    let seconds = number_of("FAULTS_SECONDS", 3) as u64;
    let rate = number_of("FAULTS_RATE", 1_000) as u64;
    block_on(async {
        let profile = Profile { gateways: 2, documents: 40, ..Profile::test(seed) };
        let mut world = World::embedded(Plan { profile, ..Plan::new(seed) }).await;
        let (slow, healthy) = (0, 1);
        world.gateways[slow].kill();
        world.start_load(rate);
        let alone = stretch(&mut world, healthy, seconds).await;
        world.gateways[slow].start();
        world.wait_live().await;
        world.gateways[slow].command(Command::Slow { us: 20_000 });
        world.wait_changes(100).await;
        let beside = stretch(&mut world, healthy, seconds).await;
        world.gateways[slow].command(Command::Slow { us: 0 });
        println!("healthy alone: {alone}\nbeside a slow one: {beside}");
        world.end().await;
    });
}

/// What one Gateway is given within some time.
struct Stretch {
    gateway: usize,
    first: usize,
    started: Instant,
}

impl Stretch {
    fn begin(world: &mut World, gateway: usize) -> Self {
        Self { gateway, first: world.gateways[gateway].lines().len(), started: Instant::now() }
    }

    /// Its figures, in words.
    fn end(self, world: &mut World) -> String {
        let lines = &world.gateways[self.gateway].lines()[self.first..];
        let mut latency = Latency::new();
        for line in lines {
            if let Line::Change(told) = line {
                told.late_us.into_iter().for_each(|us| latency.record_us(us));
            }
        }
        let per_s = lines.len() as f64 / self.started.elapsed().as_secs_f64();
        format!("{per_s:.0} changes/s, p50 {} us, p99 {} us", latency.p50_us(), latency.p99_us())
    }
}

/// The figures of some seconds.
async fn stretch(world: &mut World, gateway: usize, seconds: u64) -> String {
    let stretch = Stretch::begin(world, gateway);
    sleep(Duration::from_secs(seconds)).await;
    stretch.end(world)
}

/// The least that a log can be bounded to.
const LOG_EVENTS: u64 = 1_024;

/// Dead while ten times as much is written as the logs hold. Memory and checkpoints go on meanwhile; then it gets all that it missed.
#[test]
fn a_gateway_that_was_dead_for_ten_logs() {
    let seed = seed("slow::a_gateway_that_was_dead_for_ten_logs");
    block_on(async {
        let limits = format!("[limits]\nlog_events = {LOG_EVENTS}\nlog_bytes = \"4MiB\"\noutbox_bytes = \"4MiB\"");
        let mut world = World::embedded(Plan::new(seed).with_sections(&limits)).await;
        world.write(2_000).await;
        world.gateways[0].kill();
        // The logs are full from here on.
        world.write(2 * LOG_EVENTS * u64::from(SHARDS)).await;
        let (bytes, resident) = (world.metric("streamer_shard_log_bytes").await, resident_kib(&world));
        let written = world.metric("streamer_checkpoints_written_total").await;
        let mut oldest_ms = 0.0_f64;
        for _ in 0..10 {
            world.write(LOG_EVENTS * u64::from(SHARDS)).await;
            oldest_ms = oldest_ms.max(world.metric("streamer_checkpoint_age_milliseconds").await);
            let log = world.metric("streamer_shard_log_events").await;
            let most = (LOG_EVENTS * u64::from(SHARDS)) as f64;
            assert!(log <= most, "{log} entries, where the logs are bounded to {most}");
        }
        let more = world.metric("streamer_checkpoints_written_total").await - written;
        println!(
            "log bytes {bytes} and then {}, resident KiB {resident} and then {}; {more} checkpoints, the oldest {oldest_ms} ms, where one \
             is due every 200 ms",
            world.metric("streamer_shard_log_bytes").await,
            resident_kib(&world)
        );
        assert!(more > 0.0, "checkpoints go on while a Gateway is away");
        let started = Instant::now();
        world.gateways[0].start();
        world.wait_live().await;
        println!("live again {:?} after its start", started.elapsed());
        world.end().await;
    });
}

fn resident_kib(world: &World) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", world.node_id())).expect("the node runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel tells");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// One of the Gateways has very many subscriptions, and comes back again and again.
#[test]
fn a_large_gateway_that_reconnects() {
    let seed = seed("slow::a_large_gateway_that_reconnects");
    let subscriptions = number_of("FAULTS_SUBSCRIPTIONS", 6_000);
    block_on(async {
        let (large, other) = (0, 1);
        // Very many collections, so that a change concerns few of the subscriptions.
        let collections = (subscriptions / 10).max(3);
        let profile = Profile { gateways: 2, documents: 40, collections, skewed: false, ..Profile::test(seed) };
        let limits = "[limits]\nsubscriptions_per_gateway = 1000000\nsubscriptions_per_tenant = 1000000";
        let plan = Plan { profile, subscriptions: 2 * subscriptions, keep_every_ms: 250, ..Plan::new(seed) };
        let mut world = World::embedded(plan.with_sections(limits)).await;
        world.start_load(1_000);
        println!("another Gateway alone: {}", stretch(&mut world, other, 2).await);
        for _ in 0..rounds(2) {
            let mine = world.subscriptions.iter().filter(|one| one.gateway == large).count();
            let registered = registered(&world).await;
            world.gateways[large].kill();
            let (beside, started) = (Stretch::begin(&mut world, other), Instant::now());
            world.gateways[large].start();
            let again = until("all are registered again", async || {
                let now = self::registered(&world).await;
                (now >= registered + mine as f64).then(|| started.elapsed())
            })
            .await;
            world.wait_live().await;
            let live = started.elapsed();
            println!(
                "{mine} subscriptions: registered again {again:?} after the process's start, live after {live:?}; another Gateway \
                 meanwhile: {}",
                beside.end(&mut world)
            );
        }
        world.end().await;
    });
}

/// Subscriptions that were registered, anew or again.
async fn registered(world: &World) -> f64 {
    let created = world.metric("streamer_shard_subscriptions_created_total").await;
    created + world.metric("streamer_shard_subscriptions_renewed_total").await
}
