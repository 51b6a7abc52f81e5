//! When reading pauses for shards, and what is told of it.

use super::*;
use crate::ingest::status::{PauseReason, ShardPauses};

fn pauses(world: &World) -> ShardPauses {
    world.status.picture().pauses.first().copied().unwrap_or_default()
}

#[tokio::test]
async fn reading_pauses_while_gateways_press_and_goes_on_when_they_dont() {
    let (a, _reach) = source("a", &[11]);
    let mut world = World::start(&[&a], Some(checkpoint(&["a"], &[])), |_| {});
    assert_eq!(world.told().await, "filter 1 from [10]");
    assert_eq!(world.told().await, "change 11");
    world.cells.pressing(2);
    until(|| pauses(&world).count == [0, 1]).await;
    // One batch may be on its way to the loop, and one more may be read.
    let before = world.status.picture().counters.events;
    (12..=40).for_each(|seconds| a.happens(seconds));
    a_while().await;
    assert_eq!(world.status.picture().counters.events, before, "nothing is read meanwhile");
    until(|| pauses(&world).time[PauseReason::OutboxFull as usize] > Duration::from_millis(50)).await;
    world.cells.pressing(0);
    for seconds in 12..=40 {
        assert_eq!(world.told().await, format!("change {seconds}"));
    }
    world.cells.pressing(1);
    until(|| pauses(&world).count == [0, 2]).await;
    world.stop().await;
}

#[tokio::test]
async fn a_pause_is_bounded_though_gateways_press_on() {
    let (a, _reach) = source("a", &[11]);
    let configure = |config: &mut PumpConfig| config.pause_max = Duration::from_millis(50);
    let mut world = World::configured(&[&a], Some(checkpoint(&["a"], &[])), configure, |world| world.cells.pressing(1));
    assert_eq!(world.told().await, "filter 1 from [10]");
    assert_eq!(world.told().await, "change 11", "a shard that presses for good holds up nobody for good");
    until(|| pauses(&world).count[1] > 0).await;
    world.stop().await;
}

#[tokio::test]
async fn reading_that_never_pauses_is_to_be_had() {
    let (a, _reach) = source("a", &[11]);
    let configure = |config: &mut PumpConfig| config.pause_max = Duration::ZERO;
    let mut world = World::configured(&[&a], Some(checkpoint(&["a"], &[])), configure, |world| world.cells.pressing(1));
    assert_eq!(world.told().await, "filter 1 from [10]");
    assert_eq!(world.told().await, "change 11");
    until(|| !world.status.picture().pauses.is_empty()).await;
    assert_eq!(pauses(&world).count, [0, 0]);
    world.stop().await;
}

#[tokio::test]
async fn a_full_ring_pauses_reading_and_the_shard_is_told_to_lag_until_it_has_caught_up() {
    let times: Vec<u64> = (11..5_011).collect();
    let (a, _reach) = source("a", &times);
    let mut world = World::start(&[&a], Some(checkpoint(&["a"], &[])), |_| {});
    let lag = |world: &World| world.status.picture().lags.first().copied().flatten();
    // Nothing is taken from the ring, which holds 1,024.
    until(|| lag(&world).is_some()).await;
    let told = lag(&world).unwrap();
    assert_eq!(told.waiting, 1_024);
    assert!(told.lasts >= pause::LAGS_AFTER);
    assert_eq!(pauses(&world).count, [1, 0]);
    assert!(!pauses(&world).time[PauseReason::RingFull as usize].is_zero());
    let read = world.status.picture().counters.events;
    a_while().await;
    assert_eq!(world.status.picture().counters.events, read, "reading waits");
    assert_eq!(world.told().await, "filter 1 from [10]");
    for time in times {
        assert_eq!(world.told().await, format!("change {time}"));
    }
    until(|| lag(&world).is_none()).await;
    world.stop().await;
}
