//! What counts as done, what may be kept, and what is presented.

use super::*;

#[test]
fn received_is_told_at_once_and_done_when_it_is() {
    let mut world = World::live();
    world.event(1, 11, &[1]);
    world.event(2, 12, &[1]);
    assert_eq!(world.ack(), Ack { received: 2, done: 0 });
    let (first, _) = world.next().unwrap();
    assert_eq!(world.ack(), Ack { received: 2, done: 0 });
    assert_eq!(world.kept("s"), Some(10));
    world.input(Input::Done(first));
    assert_eq!(world.ack(), Ack { received: 2, done: 1 });
    assert_eq!(world.kept("s"), Some(11));
}

#[test]
fn done_out_of_order_takes_effect_in_order() {
    let mut world = World::live();
    for seq in 1..=4 {
        world.event(seq, 10 + seq, &[1]);
    }
    let tokens: Vec<Token> = std::iter::from_fn(|| world.next()).map(|(token, _)| token).collect();
    for (place, expect) in [(2, 0), (1, 0), (3, 0), (0, 4)] {
        world.input(Input::Done(tokens[place]));
        assert_eq!(world.ack(), Ack { received: 4, done: expect });
        assert_eq!(world.kept("s"), Some(10 + expect));
    }
}

#[test]
fn a_token_counts_once_and_only_when_it_is_out() {
    let mut world = World::live();
    world.event(1, 11, &[1]);
    let (first, _) = world.next().unwrap();
    world.input(Input::Done(first));
    world.event(2, 12, &[1]);
    world.input(Input::Done(first));
    assert_eq!(world.ack(), Ack { received: 2, done: 1 });
    let (second, _) = world.next().unwrap();
    world.input(Input::Done(second));
    world.input(Input::Done(second));
    assert_eq!(world.ack(), Ack { received: 2, done: 2 });
}

#[test]
fn done_up_to_one_is_done_with_those_that_are_out_and_no_others() {
    let mut world = World::live();
    for seq in 1..=4 {
        world.event(seq, 10 + seq, &[1]);
    }
    let tokens: Vec<Token> = (0..3).map(|_| world.next().unwrap().0).collect();
    for (token, done) in [(tokens[1], 2), (tokens[0], 2), (tokens[2], 3), (tokens[2], 3)] {
        world.done_up_to(token);
        assert_eq!(world.ack(), Ack { received: 4, done });
        assert_eq!(world.kept("s"), Some(10 + done));
    }
    // Whatever the token, what was not given out is not done.
    let (fourth, _) = world.next().unwrap();
    world.event(5, 15, &[1]);
    let mut other = World::live();
    (1..=9).for_each(|seq| other.event(seq, 10 + seq, &[1]));
    let later = std::iter::from_fn(|| other.next()).last().unwrap().0;
    world.done_up_to(later);
    assert_eq!(world.ack(), Ack { received: 5, done: 4 });
    world.done_up_to(fourth);
    assert_eq!((world.ack().done, world.kept("s")), (4, Some(14)));
}

/// Items of one message share it, so it is in memory until the last of them is done.
#[test]
fn a_message_counts_until_its_last_item_is_done() {
    let mut world = World::live();
    let document = rawdoc! { "text": "x".repeat(10_000) }.into_bytes();
    let entry_of = |seq, handles| EventEntry { document: document.clone(), ..entry(seq, 10 + seq, handles) };
    // The first is for nobody, and neither is the last.
    let entries = vec![entry_of(1, &[]), entry_of(2, &[1]), entry_of(3, &[1]), entry_of(4, &[])];
    world.deliver(Delivery::Events(entries.into()));
    let queued = |world: &World| world.core.status().shards[0].queued_bytes;
    assert!((40_000..44_000).contains(&queued(&world)), "{}", queued(&world));
    let (token, AppEvent::Change(first)) = world.next().unwrap() else { panic!("no change") };
    world.input(Input::Done(token));
    assert!((40_000..44_000).contains(&queued(&world)), "{}", queued(&world));
    let (token, AppEvent::Change(second)) = world.next().unwrap() else { panic!("no change") };
    world.input(Input::Done(token));
    assert_eq!((queued(&world), world.ack()), (0, Ack { received: 4, done: 4 }));
    // The application's own are its own business; one by itself keeps nothing of the others.
    let alone = second.detached();
    assert_eq!((first.cluster_time(), second.cluster_time(), alone.cluster_time()), (12, 13, 13));
    assert_eq!((alone.seq(), alone.partition(), alone.id()), (3, 0, second.id()));
    assert_eq!((alone.tenant(), alone.collection()), (TENANT, "c"));
    assert_eq!((alone.document_id_text(), alone.document()), (Some("d".into()), second.document()));
    assert_eq!((alone.transition(), alone.certainty()), (second.transition(), second.certainty()));
    assert_eq!(alone.subscription(), second.subscription());
    assert!(alone.message.events.bytes() < 11_000 && second.message.events.bytes() > 40_000);
}

#[test]
fn an_entry_is_done_when_all_that_it_went_to_are() {
    let mut world = World::live();
    world.subscribe("z", "c");
    world.answer();
    world.bind(2, "z", 10);
    world.drain();
    world.event(1, 11, &[1, 2]);
    let (one, _) = world.next().unwrap();
    let (other, _) = world.next().unwrap();
    world.input(Input::Done(one));
    assert_eq!(world.ack().done, 0);
    assert_eq!((world.kept("s"), world.kept("z")), (Some(11), Some(10)));
    world.input(Input::Done(other));
    assert_eq!(world.ack().done, 1);
}

#[test]
fn entries_for_nobody_are_done_once_all_before_them_are() {
    let mut world = World::live();
    world.event(1, 11, &[1]);
    world.event(2, 12, &[]);
    world.event(3, 11, &[1]);
    assert_eq!(world.ack(), Ack { received: 3, done: 0 });
    let (token, _) = world.next().unwrap();
    world.input(Input::Done(token));
    assert_eq!(world.ack(), Ack { received: 3, done: 3 });
    world.event(4, 13, &[]);
    assert_eq!(world.ack(), Ack { received: 4, done: 4 }, "with nothing before it");
}

#[test]
fn a_heartbeat_is_adopted_once_all_before_it_are_done() {
    let mut world = World::live();
    world.event(1, 11, &[1]);
    world.heartbeat(1, 50);
    assert_eq!(world.kept("s"), Some(10));
    let (token, _) = world.next().unwrap();
    assert_eq!(world.kept("s"), Some(10));
    world.input(Input::Done(token));
    assert_eq!(world.kept("s"), Some(50));
    world.heartbeat(1, 60);
    assert_eq!(world.kept("s"), Some(60), "at once where nothing is before it");
}

#[test]
fn a_heartbeat_says_nothing_of_what_is_bound_after_it() {
    let mut world = World::live();
    world.input(Input::Subscribe(item_from("z", "c", 3)));
    world.answer();
    world.heartbeat(0, 50);
    world.bind(2, "z", 1);
    assert_eq!((world.kept("s"), world.kept("z")), (Some(50), Some(3)));
    world.event(1, 4, &[2]);
    assert_eq!(world.drain(), ["live z", "z@4"]);
    world.reconnect();
    let mut presented: Vec<_> = world.presented().into_iter().map(|(_, id, at)| (id, at)).collect();
    presented.sort();
    assert_eq!(presented, [("s".into(), Some(50)), ("z".into(), Some(4))]);
}

#[test]
fn a_heartbeat_between_request_and_bound_says_nothing_of_it_either() {
    let mut world = World::live();
    world.input(Input::Subscribe(item_from("z", "c", 3)));
    world.heartbeat(0, 50);
    assert_eq!(world.kept("z"), Some(3));
    world.reconnect();
    assert!(world.presented().iter().any(|(_, id, at)| id == "z" && *at == Some(3)));
}

#[test]
fn what_a_heartbeat_covers_is_a_duplicate() {
    let mut world = World::live();
    world.heartbeat(0, 50);
    world.event(1, 40, &[1]);
    world.event(2, 51, &[1]);
    assert_eq!(world.drain(), ["s@51"]);
}

#[test]
fn the_done_position_is_presented_and_what_comes_again_waits_for_what_was_handed() {
    let mut world = World::live();
    for (seq, time) in [(1, 11), (2, 12), (3, 13)] {
        world.event(seq, time, &[1]);
    }
    let (token, _) = world.next().unwrap();
    world.input(Input::Done(token));
    assert_eq!(world.kept("s"), Some(11));
    world.reconnect();
    assert_eq!(world.presented(), [(world.sessions[&0], "s".into(), Some(11))]);
    world.answer();
    world.bind(7, "s", 10);
    for (seq, time) in [(1, 12), (2, 13), (3, 14)] {
        world.event(seq, time, &[7]);
    }
    // Older sessions' items stay, and come first. They are no longer anybody's to ack, but what comes again of them is.
    assert_eq!(world.kept("s"), Some(11));
    assert_eq!(world.ack(), Ack { received: 3, done: 0 });
    assert_eq!(world.drain(), ["s@12", "s@13", "live s", "s@14"]);
    assert_eq!(world.kept("s"), Some(14));
    assert_eq!(world.ack(), Ack { received: 3, done: 3 });
}

#[test]
fn acks_of_an_older_session_are_void() {
    let mut world = World::live();
    let old = world.sessions[&0];
    world.event(1, 11, &[1]);
    world.reconnect();
    let before = world.acks[&old];
    assert_eq!(world.drain(), ["s@11"]);
    assert_eq!(world.acks[&old], before);
    assert_eq!(world.ack(), Ack::default());
}

#[test]
fn what_a_heartbeat_said_outlives_its_session() {
    let mut world = World::live();
    world.event(1, 11, &[1]);
    world.heartbeat(1, 50);
    world.reconnect();
    assert_eq!(world.presented()[0].2, Some(10), "its event is not done");
    assert_eq!(world.kept("s"), Some(10));
    world.drain();
    assert!(world.kept("s") >= Some(11));
    world.answer();
    world.bind(1, "s", 10);
    world.heartbeat(0, 60);
    world.drain();
    assert_eq!(world.kept("s"), Some(60));
}

#[test]
fn without_positions_it_begins_where_it_is_live_from() {
    let world = World::live();
    assert_eq!(world.kept("s"), Some(10));
    let mut world = World::connected();
    world.input(Input::Subscribe(item_from("s", "c", 3)));
    world.answer();
    world.bind(1, "s", 10);
    assert_eq!(world.kept("s"), Some(3), "what the application says counts");
}

#[test]
fn another_backend_begins_where_it_is_live_from() {
    let mut world = World::connected();
    world.input(Input::Subscribe(item_from("s", "c", 3)));
    world.answer();
    let other = Position { backend: BackendId(2), ..position(8) };
    let live_from: Positions = [position(10), other].into_iter().collect();
    let bound = Bound { handle: Handle(1), key: key("s"), generation: 1, live_from, leaves: false };
    world.deliver(Delivery::Bound(Box::new(bound)));
    let positions = world.core.positions(&key("s")).unwrap();
    assert_eq!(positions, [position(3), other].into_iter().collect());
}

#[test]
fn notices_need_no_confirmation() {
    let mut world = World::connected();
    world.subscribe("s", "c");
    world.answer();
    world.bind(1, "s", 10);
    world.event(1, 11, &[]);
    assert_eq!(world.ack().done, 0);
    assert!(matches!(world.next(), Some((_, AppEvent::Live { .. }))));
    assert_eq!(world.ack().done, 1);
}

#[test]
fn an_idle_application_does_not_pile_up_heartbeats() {
    let mut world = World::live();
    world.event(1, 11, &[1]);
    for time in 12..1_000 {
        world.heartbeat(1, time);
        world.event(time - 10, 11, &[1]);
    }
    assert!(world.core.status().queued_items <= 2);
    world.drain();
    assert_eq!(world.kept("s"), Some(999));
    assert_eq!(world.core.status().queued_items, 0);
}

#[test]
fn heartbeats_of_several_shards_do_not_pile_up_behind_an_item() {
    let mut world = World::new(2);
    world.subscribe("s", &collection_of(0, 2));
    world.accept_all();
    world.answer();
    world.bind(1, "s", 10);
    world.event(1, 11, &[1]);
    let other = world.sessions[&1];
    for time in 12..1_000 {
        world.heartbeat(1, time);
        world.input(Input::Delivery {
            session: other,
            delivery: Delivery::Heartbeat { last_seq: 0, positions: at(time) },
        });
    }
    assert!(world.core.status().queued_items <= 4, "{}", world.core.status().queued_items);
    assert_eq!(world.kept("s"), Some(10));
    world.drain();
    assert_eq!((world.kept("s"), world.core.status().queued_items), (Some(999), 0));
}

#[test]
fn all_positions_are_those_of_each() {
    let mut world = World::live();
    world.input(Input::Subscribe(item_from("z", "c", 3)));
    world.subscribe("gone", "c");
    world.input(Input::Unsubscribe(key("gone")));
    let all: Vec<_> = world.core.all_positions().map(|(key, positions)| (key.id.clone(), positions)).collect();
    assert_eq!(all, [("s".to_string(), at(10)), ("z".to_string(), at(3))]);
}
