//! Subscriptions that are behind: what heartbeats say is not about them.

use wire::ResyncReason;

use super::*;

fn catching_up(handles: &[u32]) -> Delivery {
    Delivery::CatchingUp { handles: handles.iter().map(|handle| Handle(*handle)).collect() }
}

fn caught_up(handles: &[u32]) -> Delivery {
    Delivery::CaughtUp { handles: handles.iter().map(|handle| Handle(*handle)).collect() }
}

/// `s` (handle 1) and `z` (handle 2), both live since 10.
fn two() -> World {
    let mut world = World::live();
    world.subscribe("z", "c");
    world.answer();
    world.bind(2, "z", 10);
    world.drain();
    world
}

#[test]
fn heartbeats_are_not_about_who_is_catching_up() {
    let mut world = two();
    world.heartbeat(0, 20);
    world.deliver(catching_up(&[1]));
    world.heartbeat(0, 40);
    assert_eq!(world.drain(), ["catching up s"]);
    // What was said before still holds.
    assert_eq!((world.kept("s"), world.kept("z")), (Some(20), Some(40)));
    world.event(1, 25, &[1, 2]);
    world.heartbeat(1, 50);
    // Older than what the heartbeats said: new to the one, had by the other.
    assert_eq!(world.drain(), ["s@25"]);
    assert_eq!((world.kept("s"), world.kept("z")), (Some(25), Some(50)));
    assert_eq!(world.core.status().catching_up, 1);
    world.deliver(caught_up(&[1]));
    assert_eq!(world.drain(), ["caught up s"]);
    assert_eq!(world.kept("s"), Some(25), "only what comes after it speaks of it again");
    world.heartbeat(1, 60);
    world.drain();
    assert_eq!((world.kept("s"), world.kept("z")), (Some(60), Some(60)));
    let status = world.core.status();
    assert_eq!((status.catching_up, status.counters.catch_ups, status.counters.caught_up), (0, 1, 1));
    world.event(2, 55, &[1]);
    assert!(world.drain().is_empty());
}

#[test]
fn what_is_adopted_waits_for_the_application_in_the_order_of_the_stream() {
    let mut world = two();
    world.event(1, 11, &[1]);
    world.heartbeat(1, 20);
    world.deliver(catching_up(&[1]));
    world.heartbeat(1, 30);
    world.event(2, 21, &[1]);
    world.deliver(caught_up(&[1]));
    world.heartbeat(2, 40);
    assert_eq!(world.kept("s"), Some(10));
    let (first, _) = world.next().unwrap();
    world.input(Input::Done(first));
    // The heartbeats behind it are done as well, up to the notice that it is catching up, which nobody has taken.
    assert_eq!(world.kept("s"), Some(20));
    assert!(matches!(world.next(), Some((_, AppEvent::CatchingUp { .. }))));
    assert_eq!((world.kept("s"), world.kept("z")), (Some(20), Some(30)));
    let (second, _) = world.next().unwrap();
    assert_eq!((world.kept("s"), world.kept("z")), (Some(20), Some(30)));
    world.input(Input::Done(second));
    assert_eq!((world.kept("s"), world.kept("z")), (Some(21), Some(30)));
    world.drain();
    assert_eq!((world.kept("s"), world.kept("z")), (Some(40), Some(40)));
}

#[test]
fn a_crash_or_a_reconnect_in_between_loses_nothing() {
    let mut world = two();
    world.heartbeat(0, 20);
    world.deliver(catching_up(&[1]));
    world.event(1, 22, &[1]);
    world.heartbeat(1, 40);
    world.drain();
    assert_eq!(world.kept("s"), Some(22), "what a next process begins with");
    world.reconnect();
    let presented: Vec<_> = world.presented().into_iter().map(|(_, id, time)| (id, time)).collect();
    assert_eq!(presented, [("s".to_string(), Some(22)), ("z".to_string(), Some(40))]);
    world.answer();
    // Bound and behind at once.
    world.bind(1, "s", 10);
    world.deliver(catching_up(&[1]));
    world.bind(2, "z", 10);
    world.heartbeat(0, 50);
    world.event(1, 22, &[1]);
    world.event(2, 30, &[1]);
    assert_eq!(world.drain(), ["live s", "catching up s", "live z", "s@30"]);
    assert_eq!((world.kept("s"), world.kept("z")), (Some(30), Some(50)));
}

#[test]
fn what_an_old_session_said_of_it_changes_nothing_in_a_new_one() {
    let mut world = two();
    world.event(1, 11, &[1]);
    world.deliver(catching_up(&[1]));
    world.event(2, 12, &[1]);
    world.reconnect();
    world.answer();
    world.bind(1, "s", 10);
    world.event(1, 11, &[1]);
    world.event(2, 12, &[1]);
    world.heartbeat(2, 60);
    assert_eq!(world.drain(), ["s@11", "catching up s", "s@12", "live s"]);
    assert_eq!(world.kept("s"), Some(60));
}

#[test]
fn a_resync_ends_it() {
    let mut world = two();
    world.deliver(catching_up(&[1]));
    world.event(1, 12, &[1]);
    let reason = ResyncReason::TooSlow;
    world.deliver(Delivery::Resync { seq: 2, handle: Handle(1), reason, live_from: at(30) });
    world.heartbeat(2, 40);
    assert_eq!(world.drain(), ["catching up s", "s@12", "resync s"]);
    assert_eq!((world.kept("s"), world.core.status().catching_up), (Some(40), 0));
    // Not a second end.
    world.deliver(caught_up(&[1]));
    assert!(world.drain().is_empty());
}

#[test]
fn one_that_was_registered_over_http_is_told_too() {
    let mut world = World::connected();
    world.bind(1, "http", 10);
    world.deliver(catching_up(&[1]));
    world.heartbeat(0, 40);
    world.event(1, 12, &[1]);
    assert_eq!(world.drain(), ["live http", "catching up http", "http@12"]);
    assert_eq!(world.kept("http"), Some(12));
    world.reconnect();
    world.bind(1, "http", 10);
    world.deliver(catching_up(&[1]));
    world.event(1, 12, &[1]);
    world.event(2, 13, &[1]);
    world.deliver(caught_up(&[1]));
    world.heartbeat(2, 50);
    assert_eq!(world.drain(), ["live http", "catching up http", "http@13", "caught up http"]);
    assert_eq!(world.kept("http"), Some(50));
}

#[test]
fn a_handle_must_be_bound() {
    for message in [catching_up(&[9]), caught_up(&[9])] {
        let mut world = two();
        world.deliver(message);
        world.expect_violation();
    }
}
