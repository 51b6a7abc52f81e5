//! What happens when a source has lost history, has an event that is too large, or falls silent.

use super::*;

fn skipping(config: &mut PumpConfig) {
    config.oversize = Oversize::Skip;
}

#[tokio::test]
async fn an_event_that_is_too_large_halts_unless_it_may_be_skipped() {
    let (a, _reach) = source("a", &[11, 12, 13]);
    a.script().large = [12 << 32].into();
    let world = World::start(&[&a], Some(checkpoint(&["a"], &[])), |_| {});
    until(|| world.phase_of(0) == Some(Phase::Halted)).await;
    world.stop().await;
}

#[tokio::test]
async fn a_skipped_event_is_a_gap_in_its_place_and_nothing_beside_it_is_lost() {
    // The same stands before the checkpoint, for the pass.
    let (a, _reach) = source("a", &[6, 7, 8, 11, 12, 13, 14, 15]);
    a.script().large = [7 << 32, 12 << 32, 14 << 32, 15 << 32].into();
    let mut world = World::configured(&[&a], Some(checkpoint(&["a"], &[])), skipping, |_| {});
    assert_eq!(world.told().await, "filter 1 from [10]");
    let mut told = Vec::new();
    for _ in 0..5 {
        told.push(world.told().await);
    }
    assert_eq!(told, ["change 11", "gap 12", "change 13", "gap 14", "gap 15"]);
    world.wants(Some(at("a", 5)), None);
    let mut told = Vec::new();
    while told.last().is_none_or(|last: &String| !last.contains("met at")) {
        told.push(world.told().await);
    }
    let wanted = [
        "pass 1 from 5",
        "again 6",
        "gap again 7",
        "again 8",
        "again 11",
        "gap again 12",
        "again 13",
        "gap again 14",
        "gap again 15",
        "pass 1 met at 15",
    ];
    assert_eq!(told, wanted);
    assert_eq!(a.script().open_max, [1, 1]);
    a.happens(16);
    assert_eq!(world.told().await, "change 16");
    world.stop().await;
}

#[tokio::test]
async fn after_a_loss_reading_goes_on_at_the_time_that_is_configured_and_says_so() {
    let (a, _reach) = source("a", &[11, 30, 31]);
    a.script().refusals = [SourceError::HistoryLost("too old".into())].into();
    let configure = |config: &mut PumpConfig| config.on_history_lost = HistoryLost::FromTimestamp { time: 20 << 32 };
    let mut world = World::configured(&[&a], Some(checkpoint(&["a"], &[])), configure, |_| {});
    let mut told = Vec::new();
    for _ in 0..4 {
        told.push(world.told().await);
    }
    assert_eq!(told, ["gap 20", "filter 1 from [20]", "change 30", "change 31"]);
    assert_eq!(a.opened()[1], Start::At { time: 20 << 32 });
    world.stop().await;
}

#[tokio::test]
async fn a_configured_time_that_is_lost_too_halts() {
    let (a, _reach) = source("a", &[11]);
    a.script().refusals = [SourceError::HistoryLost("too old".into())].into();
    a.script().kept_from = 21 << 32;
    let configure = |config: &mut PumpConfig| config.on_history_lost = HistoryLost::FromTimestamp { time: 20 << 32 };
    let world = World::configured(&[&a], Some(checkpoint(&["a"], &[])), configure, |_| {});
    until(|| world.phase_of(0) == Some(Phase::Halted)).await;
    a_while().await;
    assert_eq!(a.opened().len(), 2, "it isn't asked for again");
    world.stop().await;
}

#[tokio::test]
async fn a_loss_before_what_was_read_is_told_behind_it_and_nothing_comes_twice() {
    let (a, _reach) = source("a", &[11, 12, 13]);
    a.script().breaks = vec![
        (Purpose::Live, 13, SourceError::Transient("cut".into())),
        (Purpose::Live, 13, SourceError::HistoryLost("the token is gone".into())),
    ];
    let configure = |config: &mut PumpConfig| config.on_history_lost = HistoryLost::FromTimestamp { time: 5 << 32 };
    let mut world = World::configured(&[&a], Some(checkpoint(&["a"], &[])), configure, |_| {});
    let mut told = Vec::new();
    for _ in 0..5 {
        told.push(world.told().await);
    }
    assert_eq!(told, ["filter 1 from [10]", "change 11", "change 12", "gap 12", "change 13"]);
    world.stop().await;
}

#[tokio::test]
async fn a_loss_of_live_reading_ends_the_pass() {
    // More than a ring has to spare for: the pass can't have met the live stream before.
    let (a, _reach) = source("a", &[6; 900]);
    a.script().breaks = vec![(Purpose::Live, 11, SourceError::HistoryLost("gone".into()))];
    let configure = |config: &mut PumpConfig| config.on_history_lost = HistoryLost::FromNow;
    let wants = |world: &mut World| world.wants(Some(at("a", 5)), None);
    let mut world = World::configured(&[&a], Some(checkpoint(&["a"], &[])), configure, wants);
    assert_eq!(world.told().await, "filter 1 from [10]");
    assert_eq!(world.told().await, "pass 1 from 5");
    assert_eq!(world.told().await, "again 6");
    a.happens(11);
    // Nothing is taken from the ring before the loss is known, or the pass might meet the live stream first.
    until(|| world.status.picture().counters.gaps > 0).await;
    let mut told = world.told().await;
    while told == "again 6" {
        told = world.told().await;
    }
    assert_eq!(told, "failed: Interrupted");
    assert_eq!(world.told().await, "gap 100");
    world.stop().await;
}

#[tokio::test]
async fn a_source_that_falls_silent_is_an_alarm_until_it_goes_on() {
    let (away, _reach) = source("away", &[11]);
    let (mute, _reach_mute) = source("mute", &[11]);
    away.script().refusals = (0..12).map(|_| SourceError::Transient("away".into())).collect();
    let configure = |config: &mut PumpConfig| config.stalled_after = Duration::from_millis(1_500);
    let kept = Some(checkpoint(&["away", "mute"], &[]));
    let mut world = World::configured(&[&away, &mute], kept, configure, |_| {});
    let stalled = |world: &World, backend: usize| {
        world.status.picture().backends.get(backend).is_some_and(|backend| backend.stalled.is_some())
    };
    until(|| stalled(&world, 0)).await;
    away.script().refusals.clear();
    until(|| world.phase_of(0) == Some(Phase::Reading)).await;
    world.told().await;
    until(|| !stalled(&world, 0) && !stalled(&world, 1)).await;
    // It is open, and its stream says nothing.
    mute.script().silent = true;
    until(|| stalled(&world, 1)).await;
    mute.script().silent = false;
    until(|| !stalled(&world, 1)).await;
    world.stop().await;
}
