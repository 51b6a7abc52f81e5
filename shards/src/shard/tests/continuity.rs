//! Reconnecting loses nothing, or is told that it does.

use super::*;
use crate::*;
use wire::*;

fn presented(id: &str, time: u64) -> SubscribeItem {
    SubscribeItem { positions: positions(time), ..item(id, "") }
}

#[test]
fn a_gateway_that_is_away_is_owed() {
    let mut world = World::new();
    let old = world.watching("g", &["s"]);
    world.insert("d", "x");
    world.insert("d", "x");
    world.pump(old);
    world.ack(old, 2, 1);
    world.disconnect(old);
    world.insert("d", "x");
    assert_eq!(world.settled(), Some(1));
    // Nothing presented: all that is owed comes again, before what is new.
    let new = world.hello("g");
    world.insert("d", "x");
    world.subscribe(new, vec![item("s", "")]);
    world.insert("d", "x");
    world.pump(new).is(&["bound s from 0", "s enter 2", "s enter 3", "s enter 4", "s enter 5"]);
    world.done(new);
    assert_eq!(world.settled(), Some(5));
}

#[test]
fn a_presented_position_settles_what_is_below_and_replays_what_is_above() {
    let mut world = World::new();
    let old = world.watching("g", &["s"]);
    for _ in 0..4 {
        world.insert("d", "x");
    }
    world.pump(old);
    world.done(old);
    world.insert("d", "x");
    // The application kept less than it was done with, and another one more.
    let new = world.hello("g");
    world.subscribe(new, vec![presented("s", 2)]);
    world.pump(new).is(&["bound s from 0", "s enter 3", "s enter 4", "s enter 5"]);
    let newer = world.hello("g");
    world.subscribe(newer, vec![presented("s", 5)]);
    world.pump(newer).is(&["bound s from 0"]);
    assert_eq!(world.settled(), Some(5));
}

#[test]
fn each_subscription_is_replayed_for_itself() {
    let mut world = World::new();
    let old = world.watching("g", &["a", "b"]);
    for _ in 0..3 {
        world.insert("d", "x");
    }
    world.pump(old);
    let new = world.hello("g");
    world.subscribe(new, vec![presented("a", 2)]);
    world.insert("d", "x");
    world.subscribe(new, vec![presented("b", 1)]);
    world.insert("d", "x");
    world.pump(new).is(&[
        "bound a from 0",
        "a enter 3",
        "a enter 4",
        "bound b from 0",
        "b enter 2",
        "b enter 3",
        "b enter 4",
        "a enter 5",
        "b enter 5",
    ]);
    world.done(new);
    assert_eq!(world.settled(), Some(5));
}

#[test]
fn sync_done_binds_what_was_not_presented() {
    let mut world = World::new();
    let old = world.watching("g", &["a", "b"]);
    world.insert("d", "x");
    world.disconnect(old);
    let new = world.hello("g");
    world.subscribe(new, vec![presented("a", 1)]);
    world.pump(new).is(&["bound a from 0"]);
    world.sync_done(new);
    world.pump(new).is(&["bound b from 0", "b enter 1"]);
}

#[test]
fn a_gap_is_replayed_like_an_event() {
    let mut world = World::new();
    let old = world.watching("g", &["s"]);
    world.disconnect(old);
    world.gap(Scope::Everything);
    let new = world.hello("g");
    world.sync_done(new);
    world.pump(new).is(&["bound s from 0", "s gap 1"]);
}

#[test]
fn another_lineage_is_a_resync() {
    let mut world = World::new();
    let old = world.watching("g", &["s"]);
    world.insert("d", "x");
    world.disconnect(old);
    let new = world.hello("g");
    let foreign = Position { lineage: Lineage(9), ..position(1) };
    world.subscribe(new, vec![SubscribeItem { positions: [foreign].into_iter().collect(), ..item("s", "") }]);
    world.insert("d", "x");
    world.pump(new).is(&["bound s from 1", "s resync LineageChanged from 1", "s enter 2"]);
    assert_eq!(world.settled(), Some(1));
}

#[test]
fn a_position_from_before_the_subscription_is_caught_up_from() {
    let mut world = World::new();
    world.time = 10;
    let old = world.watching("g", &["s"]);
    world.disconnect(old);
    let new = world.hello("g");
    world.subscribe(new, vec![presented("s", 9)]);
    world.pump(new).is(&["bound s from 10", "s catching up"]);
    assert_eq!(world.wanted(), Some(9));
    let newer = world.hello("g");
    world.subscribe(newer, vec![presented("s", 10)]);
    world.pump(newer).is(&["bound s from 10"]);
}

#[test]
fn a_new_subscription_goes_on_from_its_position() {
    let mut world = World::new();
    world.time = 4;
    let connection = world.hello("g");
    world.subscribe(connection, vec![presented("old", 3), presented("same", 4), presented("ahead", 6)]);
    world.seen();
    for _ in 0..3 {
        world.insert("d", "x");
    }
    let seen = world.pump(connection);
    let of = |id: &str| Seen(seen.0.iter().filter(|line| line.contains(id)).cloned().collect());
    of("old").is(&["bound old from 4", "old catching up"]);
    of("same").is(&["bound same from 4", "same enter 5", "same enter 6", "same enter 7"]);
    of("ahead").is(&["bound ahead from 4", "ahead enter 7"]);
}

/// A process that is gone had come further than this node has read. The next one has nothing of that, and is told where it begins.
#[test]
fn what_a_process_before_was_ahead_of_counts_for_nobody_after_it() {
    // With nothing presented, and with nothing asked for at all; before it is live, and after.
    for presents in [true, false] {
        for live in [true, false] {
            let mut world = World::new();
            world.time = 4;
            let old = world.hello("g");
            world.subscribe(old, vec![presented("s", 6)]);
            if live {
                world.seen();
            }
            world.disconnect(old);
            let new = world.hello("g");
            if presents {
                world.subscribe(new, vec![item("s", "")]);
            }
            world.sync_done(new);
            if !live {
                world.seen();
            }
            for _ in 0..3 {
                world.insert("d", "x");
            }
            world.pump(new).is(&["bound s from 4", "s enter 5", "s enter 6", "s enter 7"]);
        }
    }
}

#[test]
fn what_was_had_by_a_process_before_is_not_sent_again() {
    let mut world = World::new();
    world.time = 4;
    let old = world.hello("g");
    world.subscribe(old, vec![presented("s", 4)]);
    world.seen();
    world.insert("d", "x");
    world.pump(old).is(&["bound s from 4", "s enter 5"]);
    world.done(old);
    let new = world.hello("g");
    world.subscribe(new, vec![item("s", "")]);
    world.insert("d", "x");
    world.pump(new).is(&["bound s from 4", "s enter 6"]);
    // The same process says so twice: the second time adds nothing.
    let mut world = World::new();
    world.time = 4;
    let connection = world.hello("g");
    world.subscribe(connection, vec![presented("s", 6)]);
    world.subscribe(connection, vec![item("s", "")]);
    world.seen();
    for _ in 0..3 {
        world.insert("d", "x");
    }
    world.pump(connection).is(&["bound s from 4", "s enter 7"]);
}

#[test]
fn what_left_the_log_unsettled_is_caught_up_from() {
    let mut world = World::with(|config| config.log_events_max = 4);
    let connection = world.watching("g", &["s"]);
    for _ in 0..6 {
        world.insert("d", "x");
    }
    // Once one is gone, nothing that comes behind it is sent before it has been read again.
    world.pump(connection).is(&["s catching up"]);
    assert_eq!((world.settled(), world.wanted()), (Some(6), Some(0)));
    let expected: Vec<String> = (1..=6).map(|time| format!("s enter {time}")).chain(["s caught up".into()]).collect();
    assert_eq!(world.catch_up_with(connection), expected);
    assert!(world.shard.stats().evictions_unsettled > 0);
}

#[test]
fn what_left_the_log_while_its_gateway_was_away() {
    let away = || {
        let mut world = World::with(|config| config.log_events_max = 4);
        let old = world.watching("g", &["s"]);
        world.disconnect(old);
        for _ in 0..6 {
            world.insert("d", "x");
        }
        assert_eq!(world.settled(), Some(6), "nothing is held back for it");
        let new = world.hello("g");
        (world, new)
    };
    let (mut world, new) = away();
    world.subscribe(new, vec![presented("s", 1)]);
    world.pump(new).is(&["bound s from 0", "s catching up"]);
    assert_eq!(world.wanted(), Some(1));
    let (mut world, new) = away();
    world.subscribe(new, vec![presented("s", 2)]);
    world.pump(new).is(&["bound s from 0", "s catching up"]);
    assert_eq!(world.wanted(), Some(2));
    let (mut world, new) = away();
    world.subscribe(new, vec![presented("s", 6)]);
    world.pump(new).is(&["bound s from 0"]);
    assert_eq!(world.wanted(), None, "it has all that there is");
    world.insert("d", "x");
    world.pump(new).is(&["s enter 7"]);
    let (mut world, new) = away();
    world.sync_done(new);
    world.pump(new).is(&["bound s from 0", "s catching up"]);
    assert_eq!(world.wanted(), Some(0));
}

#[test]
fn settled_entries_that_left_the_log_are_caught_up_from_older_positions() {
    let mut world = World::with(|config| config.log_events_max = 4);
    let old = world.watching("g", &["s"]);
    for _ in 0..6 {
        world.insert("d", "x");
        world.pump(old);
        world.done(old);
    }
    let new = world.hello("g");
    world.subscribe(new, vec![presented("s", 2)]);
    world.pump(new).is(&["bound s from 0", "s enter 3", "s enter 4", "s enter 5", "s enter 6"]);
    let newer = world.hello("g");
    world.subscribe(newer, vec![presented("s", 1)]);
    world.pump(newer).is(&["bound s from 0", "s catching up"]);
    assert_eq!(world.wanted(), Some(1));
}

#[test]
fn a_replay_that_leaves_the_log_before_it_is_sent_is_caught_up_from() {
    let mut world = World::with(|config| config.log_events_max = 4);
    let old = world.watching("g", &["s"]);
    for _ in 0..3 {
        world.insert("d", "x");
    }
    world.pump(old);
    world.done(old);
    let new = world.hello("g");
    world.subscribe(new, vec![presented("s", 0)]);
    // All of them are settled, so that their leaving is no reason by itself.
    let other = world.watching("other", &["o"]);
    for _ in 0..2 {
        world.insert("d", "x");
        world.pump(other);
        world.done(other);
    }
    world.pump(new).is(&["bound s from 0", "s catching up"]);
    assert_eq!(world.wanted(), Some(0));
    world.insert("d", "x");
    let expected: Vec<String> = (1..=6).map(|time| format!("s enter {time}")).chain(["s caught up".into()]).collect();
    assert_eq!(world.catch_up_with(new), expected);
}

#[test]
fn a_gateway_that_takes_nothing_is_held_to_its_outbox() {
    let mut world = World::with(|config| config.outbox_bytes_max = 1_000);
    let slow = world.watching("slow", &["s"]);
    let fast = world.watching("fast", &["f"]);
    let mut seen = Vec::new();
    for _ in 0..30 {
        world.insert("d", "x");
        seen.extend(world.pump(fast).0);
        world.done(fast);
    }
    assert_eq!(seen.len(), 30, "a slow Gateway slows nobody");
    assert!(world.shard.stats().outbox_overruns > 0);
    let seen = world.pump(slow);
    let told = seen.0.len() as u64 - 1;
    assert_eq!(seen.0.last().map(String::as_str), Some("s catching up"), "what waited is sent, and nothing behind it");
    assert_eq!(
        (world.settled(), world.wanted()),
        (Some(0), None),
        "nobody reads for one that isn't done with what it has"
    );
    world.done(slow);
    assert_eq!((world.settled(), world.wanted()), (Some(30), Some(told)));
    world.insert("d", "x");
    assert_eq!(world.catch_up_with(slow).len() as u64, 31 - told + 1);
    world.insert("d", "x");
    world.pump(slow).is(&["s enter 32"]);
    assert_eq!(world.shard.stats().catch_ups.deliveries, 31 - told);
}

#[test]
fn a_gateway_that_is_never_done_is_held_to_its_outbox() {
    let mut world = World::with(|config| config.outbox_bytes_max = 1_000);
    let connection = world.watching("g", &["s"]);
    let mut lines = Vec::new();
    for _ in 0..40 {
        world.insert("d", "x");
        lines.extend(world.pump(connection).0);
    }
    assert_eq!(lines.last().map(String::as_str), Some("s catching up"));
    assert!(world.closed.is_empty());
    world.done(connection);
    assert_eq!(world.settled(), Some(40));
    assert_eq!(world.wanted(), Some(lines.len() as u64 - 1));
}
