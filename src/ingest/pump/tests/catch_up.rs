//! Passes of the catch-up cursor, with the shard's part played by the test.

use shards::{CatchUp, CatchUpFailure, CatchUpWanted};

use super::*;

impl World {
    /// A subscription waits for a pass from there. `pass` is the last that the shard has heard of, and how many that still serves.
    pub(super) fn wants(&mut self, lowest: Option<Position>, pass: Option<(u64, u64)>) {
        let backend = BackendId::of_name("a");
        let version = self.wanted_version + 1;
        self.wanted_version = version;
        self.cells.catch_up(version, || CatchUpWanted {
            version,
            lowest: lowest.into_iter().collect(),
            serving: pass.into_iter().map(|(pass, count)| (backend, pass, count)).collect(),
        });
    }

    /// An item of a pass in short, but for progress.
    pub(super) fn again(&mut self, item: CatchUp) -> Option<String> {
        let seconds = |position: Position| position.time >> 32;
        Some(match item {
            CatchUp::Began { pass, from } => format!("pass {pass} from {}", seconds(from)),
            CatchUp::Change { change, .. } => format!("again {}", seconds(change.position)),
            CatchUp::Gap { gap, .. } => format!("gap again {}", seconds(gap.position)),
            CatchUp::Progress { .. } => return None,
            CatchUp::CaughtUp { pass, position } => format!("pass {pass} met at {}", seconds(position)),
            CatchUp::Failed { failure: CatchUpFailure::HistoryLost { upto }, .. } => {
                format!("lost up to {}", seconds(upto))
            }
            CatchUp::Failed { failure, .. } => format!("failed: {failure:?}"),
        })
    }

    /// What is told of passes, up to the end of one.
    async fn told_of_pass(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        loop {
            let item = self.told().await;
            if item.starts_with("change") || item.starts_with("filter") {
                continue;
            }
            let is_end = item.contains("met at") || item.starts_with("failed") || item.starts_with("lost");
            told.push(item);
            if is_end {
                return told;
            }
        }
    }
}

#[tokio::test]
async fn a_pass_reads_what_is_lacked_and_meets_the_live_stream() {
    let (a, _reach) = source("a", &[4, 6, 8, 11, 12]);
    let mut world = World::start(&[&a], Some(checkpoint(&["a"], &[])), |world| world.wants(Some(at("a", 5)), None));
    let mut told = world.told_of_pass().await;
    assert_eq!(told.remove(0), "pass 1 from 5");
    let last = told.pop().unwrap();
    let read: Vec<&str> = told.iter().map(|item| item.strip_prefix("again ").unwrap()).collect();
    // Live reading may have been anywhere from its start on: the pass meets it there.
    let upto: u64 = last.strip_prefix("pass 1 met at ").unwrap().parse().unwrap();
    let wanted: Vec<String> =
        [6, 8, 11, 12].iter().filter(|time| **time <= upto).map(|time: &u64| time.to_string()).collect();
    assert_eq!(read, wanted);
    assert_eq!(a.opened_again(), [Start::At { time: 5 << 32 }]);
    until(|| world.status.picture().backends[0].catch_up.counters.caught_up == 1).await;
    until(|| a.script().open[Purpose::CatchUp as usize] == 0).await;
    world.stop().await;
}

#[tokio::test]
async fn however_many_come_one_cursor_reads_for_all() {
    let (a, _reach) = source("a", &(1..=60).collect::<Vec<_>>());
    let mut world = World::start(&[&a], Some(checkpoint(&["a"], &[])), |_| {});
    a.script().batch_max = 3;
    let mut heard = None;
    for round in 1..=40 {
        // They come at any time, in the middle of a pass, too.
        world.wants(Some(at("a", 1 + round % 9)), heard);
        loop {
            let item = world.told().await;
            if let Some(began) = item.strip_prefix("pass ")
                && !item.contains("met")
            {
                let pass = began.split(' ').next().unwrap().parse().unwrap();
                heard = Some((pass, 1));
                // Others come at once.
                world.wants(Some(at("a", 1 + (round + 4) % 9)), heard);
            }
            if item.contains("met at") {
                break;
            }
        }
    }
    let (cursors, most) = (a.opened_again().len(), a.script().open_max);
    assert!(cursors >= 40, "{cursors} cursors");
    assert_eq!(most, [1, 1], "the source never has more than live reading and one cursor");
    world.stop().await;
}

#[tokio::test]
async fn a_pass_goes_on_where_its_cursor_broke() {
    let (a, _reach) = source("a", &[6, 7, 8, 9]);
    a.script().breaks = vec![(Purpose::CatchUp, 8, SourceError::Transient("an election".into()))];
    let mut world = World::start(&[&a], Some(checkpoint(&["a"], &[])), |world| world.wants(Some(at("a", 5)), None));
    // Nothing stands where live reading begins, and the source doesn't tell how far it has looked: the next event shows it.
    until(|| a.opened_again().len() == 2).await;
    a.happens(11);
    let told = world.told_of_pass().await;
    assert_eq!(told[..5], ["pass 1 from 5", "again 6", "again 7", "again 8", "again 9"]);
    let opened = a.opened_again();
    assert!(matches!(&opened[1], Start::After { position, .. } if position.order() == (7 << 32, 1)), "{opened:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_batch_without_events_meets_nothing() {
    let (a, _reach) = source("a", &[6]);
    let mut world = World::start(&[&a], Some(checkpoint(&["a"], &[])), |world| world.wants(Some(at("a", 5)), None));
    assert_eq!(world.told().await, "filter 1 from [10]");
    assert_eq!(world.told().await, "pass 1 from 5");
    assert_eq!(world.told().await, "again 6");
    // Longer than a cursor waits before it gives an empty batch.
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    while let Some(item) = world.ring.pop() {
        assert!(!matches!(item, FromIngest::CatchUp(CatchUp::CaughtUp { .. })), "{item:?}");
    }
    a.happens(11);
    let told = world.told_of_pass().await;
    assert!(told.last().unwrap().starts_with("pass 1 met at"), "{told:?}");
    world.stop().await;
}

#[tokio::test]
async fn what_is_lost_is_found_out_before_anybody_is_told() {
    let (a, _reach) = source("a", &[5, 6, 8, 11]);
    a.script().kept_from = 7 << 32;
    let mut world = World::start(&[&a], Some(checkpoint(&["a"], &[])), |world| world.wants(Some(at("a", 2)), None));
    let told = world.told_of_pass().await;
    assert_eq!(told, ["pass 1 from 2", "lost up to 6"], "those at 7 and above lose nothing");
    // They wait for the next one.
    world.wants(Some(at("a", 7)), Some((1, 0)));
    let told = world.told_of_pass().await;
    assert_eq!(told[..2], ["pass 2 from 7", "again 8"]);
    world.stop().await;
}

#[tokio::test]
async fn a_pass_that_nobody_needs_ends() {
    let (a, _reach) = source("a", &[6]);
    let mut world = World::start(&[&a], Some(checkpoint(&["a"], &[])), |world| world.wants(Some(at("a", 5)), None));
    assert_eq!(world.told().await, "filter 1 from [10]");
    assert_eq!(world.told().await, "pass 1 from 5");
    world.wants(None, Some((1, 0)));
    let told = world.told_of_pass().await;
    assert_eq!(told.last().unwrap(), "failed: Interrupted");
    until(|| a.script().open[Purpose::CatchUp as usize] == 0).await;
    world.stop().await;
}

#[tokio::test]
async fn a_pass_that_doesnt_come_nearer_is_too_slow() {
    let (a, _reach) = source("a", &[6]);
    a.script().refusals_again = (0..100).map(|_| SourceError::Transient("away".into())).collect();
    let configure = |config: &mut PumpConfig| config.halve_within = Duration::from_millis(300);
    let wants = |world: &mut World| world.wants(Some(at("a", 5)), None);
    let mut world = World::configured(&[&a], Some(checkpoint(&["a"], &[])), configure, wants);
    assert_eq!(world.told_of_pass().await, ["pass 1 from 5", "failed: TooSlow"]);
    until(|| world.status.picture().backends[0].catch_up.counters.too_slow == 1).await;
    world.stop().await;
}

#[tokio::test]
async fn live_reading_comes_first() {
    const EVENTS: u64 = 20_000;
    // As much before the checkpoint as after it.
    let (a, _reach) = source("a", &[]);
    let history = (1..=2 * EVENTS).map(|n| (9 << 32) + n + if n > EVENTS { 1 << 32 } else { 0 });
    a.script().events = history.collect();
    a.script().batch_max = 100;
    let mut world = World::start(&[&a], Some(checkpoint(&["a"], &[])), |_| {});
    assert_eq!(world.told().await, "filter 1 from [10]");
    world.wants(Some(at("a", 9)), None);
    let (mut live, mut again) = (0, 0);
    while live < EVENTS {
        match world.item().await {
            FromIngest::Change(_) => live += 1,
            FromIngest::CatchUp(CatchUp::Change { .. }) => again += 1,
            _ => {}
        }
    }
    let turns = EVENTS / 100 / u64::from(super::super::catch_up::LIVE_TURNS_MAX);
    assert!(again > 0, "a pass moves, though live reading always has something to do");
    assert!(again < 2 * turns * 128, "{again} events of the pass while {live} were read live");
    let told = world.told_of_pass().await;
    assert!(told.last().unwrap().starts_with("pass 1 met at"));
    assert_eq!(told.len() as u64 - 1 + again, EVENTS * 2, "the pass brings all of it");
    world.stop().await;
}
