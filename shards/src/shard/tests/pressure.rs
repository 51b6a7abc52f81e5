//! For whom reading should pause, and for whom not.

use super::*;

/// An outbox of eight entries: above six it presses, down to four it goes on.
fn small(events_max: usize) -> World {
    World::with(|config| config.outbox_events_max = events_max)
}

fn inserts(world: &mut World, count: usize) {
    (0..count).for_each(|_| world.insert("d", "x"));
}

#[test]
fn a_gateway_that_goes_on_presses_near_its_bound_until_it_holds_half() {
    let mut world = small(8);
    let connection = world.watching("g", &["s"]);
    inserts(&mut world, 6);
    assert_eq!(world.shard.pressing(), 0);
    inserts(&mut world, 1);
    assert_eq!(world.shard.pressing(), 1);
    // What is sent counts until it is done.
    world.pump(connection);
    world.ack(connection, 7, 2);
    assert_eq!(world.shard.pressing(), 1);
    world.ack(connection, 7, 3);
    assert_eq!(world.shard.pressing(), 0);
    inserts(&mut world, 2);
    assert_eq!(world.shard.pressing(), 0, "it holds six of eight again");
    inserts(&mut world, 1);
    assert_eq!(world.shard.pressing(), 1);
    world.disconnect(connection);
    assert_eq!(world.shard.pressing(), 0);
}

#[test]
fn a_gateway_that_stands_still_holds_up_nobody() {
    let mut world = small(8);
    let connection = world.watching("g", &["s"]);
    inserts(&mut world, 7);
    world.pump(connection);
    world.tick(999);
    assert_eq!(world.shard.pressing(), 1);
    world.tick(1);
    assert_eq!(world.shard.pressing(), 0, "a second without anything done");
    world.ack(connection, 7, 0);
    assert_eq!(world.shard.pressing(), 0, "to receive is not to be done");
    world.ack(connection, 7, 1);
    inserts(&mut world, 1);
    assert_eq!(world.shard.pressing(), 1, "it goes on");
}

#[test]
fn a_gateway_whose_subscriptions_catch_up_holds_up_nobody() {
    let mut world = small(8);
    let connection = world.watching("g", &["s"]);
    inserts(&mut world, 9);
    assert_eq!((world.shard.pressing(), world.shard.stats().outboxes_full), (0, 1), "it is too late for it");
    // One more falls behind.
    inserts(&mut world, 1);
    world.pump(connection);
    world.done(connection);
    assert_eq!(world.shard.stats().outboxes_full, 0);
    // What the live stream brings is not for it now.
    inserts(&mut world, 20);
    world.begin(BACKEND, world.wanted().expect("it is behind"));
    (0..7).for_each(|_| assert!(world.bring(BACKEND)));
    assert_eq!(world.shard.pressing(), 0, "reading would not pause for what is read again");
    loop {
        world.pump(connection);
        world.done(connection);
        if !world.bring(BACKEND) {
            break;
        }
    }
    world.merge(BACKEND);
    world.pump(connection);
    assert_eq!(world.wanted(), None);
    inserts(&mut world, 7);
    assert_eq!(world.shard.pressing(), 1, "it has caught up");
}

#[test]
fn what_the_log_is_about_to_let_go_of_presses_too() {
    let mut world = World::with(|config| config.log_events_max = 64);
    let (slow, other) = (world.hello("slow"), world.hello("other"));
    world.subscribe(slow, vec![item("s", "a")]);
    world.subscribe(other, vec![item("o", "b")]);
    [slow, other].into_iter().for_each(|connection| world.sync_done(connection));
    world.seen();
    world.insert("d", "a");
    world.insert("d", "a");
    world.pump(slow);
    for done in 0..2 {
        for count in 0.. {
            assert!(count < 100, "nothing is let go of");
            world.tick(1);
            if world.shard.pressing() == 1 {
                break;
            }
            world.insert("d", "b");
            world.pump(other);
            world.done(other);
        }
        assert_eq!(world.shard.stats().evictions_unsettled, 0, "before it is let go of");
        world.ack(slow, 2, done + 1);
    }
    world.tick(1);
    assert_eq!(world.shard.pressing(), 0, "nothing is held");
}
