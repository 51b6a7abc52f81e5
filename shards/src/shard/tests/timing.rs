//! Samples: which change is followed, through which session, and when each time is asked for.

use super::*;
use crate::*;

fn sample(time: u64) -> Sample {
    let none = Nanos::default();
    Sample { position: position(time), read_at: none, pushed_at: none, taken_at: none, matched_at: none, sent_at: none }
}

#[test]
fn the_change_that_was_named_is_followed_to_its_ack() {
    let mut world = World::new();
    let g = world.watching("g", &["s"]);
    world.shard.follow(sample(2));
    world.insert("d", "x");
    world.insert("d", "x");
    world.shard.matched_sample().expect("it is on its way").matched_at = Nanos(7);
    world.insert("d", "x");
    assert_eq!(world.shard.sent_sample(), None, "nothing has been sent");
    world.pump(g).is(&["s enter 1", "s enter 2", "s enter 3"]);
    let sent = world.shard.sent_sample().expect("it has been sent");
    assert_eq!((sent.position, sent.matched_at), (position(2), Nanos(7)));
    sent.sent_at = Nanos(8);
    assert_eq!(world.shard.sent_sample(), None, "that is said once");
    world.ack(g, 3, 1);
    assert_eq!(world.shard.done_sample(), None, "it isn't done with");
    world.ack(g, 3, 3);
    let done = world.shard.done_sample().expect("it is done with");
    assert_eq!((done.position, done.sent_at), (position(2), Nanos(8)));
    assert_eq!(world.shard.done_sample(), None);
}

#[test]
fn who_does_not_ack_holds_up_one_sample_and_no_other_session() {
    let mut world = World::new();
    let (g, h) = (world.watching("g", &["s"]), world.watching("h", &["s"]));
    let follow = |world: &mut World, time: u64| {
        world.shard.follow(sample(time));
        world.insert("d", "x");
        world.shard.matched_sample().map(|sample| sample.position)
    };
    assert_eq!(follow(&mut world, 1), Some(position(1)), "with g");
    assert_eq!(follow(&mut world, 2), Some(position(2)), "with h");
    assert_eq!(follow(&mut world, 3), None, "both have one");
    world.pump(g);
    world.pump(h);
    world.ack(h, 3, 3);
    assert_eq!(world.shard.done_sample().map(|done| done.position), Some(position(2)));
    assert_eq!(follow(&mut world, 4), Some(position(4)), "with h, while g has acked nothing");
    world.disconnect(g);
    world.disconnect(h);
    assert_eq!(follow(&mut world, 5), None, "nobody is there");
    assert_eq!(world.shard.sent_sample(), None);
    assert_eq!(world.shard.done_sample(), None);
}
