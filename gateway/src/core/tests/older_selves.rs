//! A shard may know a subscription from a process of this Gateway before, or by HTTP: it binds it unasked once the session has said
//! `SyncDone`, before or while the application asks for it, perhaps for something else.

use super::*;

fn results(world: &mut World, results: Vec<SubscribeResult>) {
    let (session, request) = world.requests.remove(0);
    let Request::Subscribe { request, .. } = request else { panic!("{request:?}") };
    world.reply(session, Reply::Subscribed { request, results });
}

fn accepted(registration: Registration) -> SubscribeResult {
    SubscribeResult::Accepted { registration, expires_in_s: 300 }
}

/// Two shards that have been told that all is presented.
fn of_two_shards() -> World {
    let mut world = World::new(2);
    world.accept_all();
    assert!(world.next().is_none());
    world.answer();
    world
}

/// What is asked of a shard that is neither a subscription nor the end of presenting.
fn removals(world: &World) -> Vec<(SessionId, String)> {
    let of = |(session, request): &(SessionId, Request)| match request {
        Request::Unsubscribe { keys, .. } => keys.iter().map(|key| (*session, key.id.clone())).collect(),
        _ => Vec::new(),
    };
    world.requests.iter().flat_map(of).collect()
}

#[test]
fn one_that_another_shard_bound_first_is_ended_before_the_new_one_is_presented() {
    let mut world = of_two_shards();
    world.bind(1, "s", 5);
    world.event(1, 15, &[1]);
    assert_eq!(world.drain(), ["live s", "s@15"]);
    world.event(2, 16, &[1]);
    world.input(Input::Subscribe(item_from("s", &collection_of(1, 2), 7)));
    assert_eq!(removals(&world), [(world.sessions[&0], "s".into())]);
    assert_eq!(world.presented(), []);
    world.event(3, 17, &[1]);
    world.answer();
    // The answer overtakes the handle's end, and what was sent before that.
    world.event(4, 18, &[1]);
    world.deliver(closed(1, CloseReason::Unsubscribed));
    let new = world.sessions[&1];
    world.input(Input::Delivery { session: new, delivery: bound(1, "s", 3) });
    world.input(Input::Delivery { session: new, delivery: Delivery::Events(vec![entry(1, 8, &[1])].into()) });
    assert_eq!(world.drain(), ["live s", "s@8"]);
    assert_eq!(world.ack(), Ack { received: 4, done: 4 });
    assert_eq!(world.kept("s"), Some(8));
    assert!(world.closed.is_empty());
}

#[test]
fn the_new_one_is_presented_where_it_is_owned() {
    let mut world = of_two_shards();
    world.bind(1, "s", 5);
    world.input(Input::Subscribe(item_from("s", &collection_of(1, 2), 7)));
    let asked = world.answer();
    let [(_, Request::Unsubscribe { .. }), (session, Request::Subscribe { items, .. })] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert_eq!((*session, items[0].positions.clone()), (world.sessions[&1], at(7)));
}

/// A node that was started anew knows nothing of before, and perhaps has not even the shard that knew it.
#[test]
fn one_that_a_node_before_knew_is_in_nobodys_way() {
    for subscribed_first in [true, false] {
        let mut world = of_two_shards();
        world.input(Input::Delivery { session: world.sessions[&1], delivery: bound(1, "s", 5) });
        let subscribe = |world: &mut World| world.input(Input::Subscribe(item_from("s", &collection_of(0, 2), 7)));
        if subscribed_first {
            subscribe(&mut world);
            assert_eq!(world.presented(), []);
        }
        world.lose(0);
        world.lose(1);
        (world.epoch, world.shards) = (2, 1);
        world.attempts.retain(|attempt| attempt.partition == Some(0));
        world.accept_all();
        if !subscribed_first {
            subscribe(&mut world);
        }
        assert_eq!(removals(&world), []);
        assert_eq!(world.presented(), [(world.sessions[&0], "s".into(), Some(7))], "{subscribed_first}");
    }
}

#[test]
fn an_older_one_that_was_replaced_has_told_nothing() {
    for bound_first in [true, false] {
        for position in [Some(7), None] {
            let mut world = World::connected();
            let new = position.map_or_else(|| item("s", "c"), |time| item_from("s", "c", time));
            if bound_first {
                world.bind(1, "s", 1);
                world.event(1, 15, &[1]);
            }
            world.input(Input::Subscribe(new));
            if !bound_first {
                world.bind(1, "s", 1);
                world.event(1, 15, &[1]);
            }
            if world.closed.is_empty() {
                assert_eq!(world.drain(), [] as [&str; 0], "{bound_first} {position:?}");
                results(&mut world, vec![accepted(Registration::Replaced)]);
            }
            assert_eq!(world.closed, [(world.sessions[&0], None)]);
            world.accept_all();
            assert_eq!(world.presented(), [(world.sessions[&0], "s".into(), position)]);
            results(&mut world, vec![accepted(Registration::Renewed)]);
            world.bind(1, "s", 1);
            world.event(1, 8, &[1]);
            world.event(2, 16, &[1]);
            assert_eq!(world.drain(), ["live s", "s@8", "s@16"], "{bound_first} {position:?}");
            assert_eq!(world.closed.len(), 1);
        }
    }
}

/// Before the shard has answered, it isn't known whose the handle is.
#[test]
fn what_comes_before_the_answer_is_held_back() {
    let mut world = World::connected();
    world.subscribe("s", "c");
    world.bind(1, "s", 10);
    world.event(1, 11, &[1]);
    assert_eq!(world.drain(), [] as [&str; 0]);
    assert!(!world.core.is_live(&key("s")));
    assert_eq!(world.ack(), Ack { received: 1, done: 0 });
    let (session, request) = world.requests.remove(0);
    let Request::Subscribe { request, .. } = request else { panic!("{request:?}") };
    let reply = Reply::Subscribed { request, results: vec![created()] };
    world.core.handle(Input::Reply { session, reply }, world.now);
    let outputs: Vec<Output> = std::iter::from_fn(|| world.core.poll_output()).collect();
    assert!(outputs.contains(&Output::Available), "{outputs:?}");
    assert_eq!(world.drain(), ["live s", "s@11"]);
    assert_eq!(world.ack(), Ack { received: 1, done: 1 });
}

#[test]
fn what_is_held_back_and_no_longer_wanted_holds_nobody_back() {
    let mut world = World::live();
    world.subscribe("t", "c");
    world.bind(2, "t", 10);
    world.event(1, 11, &[2]);
    world.event(2, 12, &[1]);
    assert_eq!(world.drain(), [] as [&str; 0]);
    world.input(Input::Unsubscribe(key("t")));
    assert_eq!(world.drain(), ["s@12"]);
}

#[test]
fn what_was_held_back_when_the_session_ended_is_nobodys() {
    let mut world = World::connected();
    world.input(Input::Subscribe(item_from("s", "c", 7)));
    world.bind(1, "s", 1);
    world.event(1, 15, &[1]);
    world.heartbeat(1, 20);
    world.lose(0);
    assert_eq!(world.drain(), [] as [&str; 0]);
    assert_eq!(world.kept("s"), Some(7));
    world.accept_all();
    assert_eq!(world.presented(), [(world.sessions[&0], "s".into(), Some(7))]);
    results(&mut world, vec![accepted(Registration::Renewed)]);
    world.bind(1, "s", 1);
    world.event(1, 8, &[1]);
    assert_eq!(world.drain(), ["live s", "s@8"]);
}

/// Whether the older one has ended, or this one, the stream alone doesn't say.
#[test]
fn an_end_before_the_answer_is_not_taken_for_its_own() {
    let mut world = World::connected();
    world.input(Input::Subscribe(item_from("s", "c", 7)));
    world.bind(1, "s", 1);
    world.event(1, 15, &[1]);
    world.deliver(closed(1, CloseReason::Expired));
    assert_eq!(world.drain(), [] as [&str; 0]);
    world.accept_all();
    assert_eq!(world.presented(), [(world.sessions[&0], "s".into(), Some(7))]);
    results(&mut world, vec![created()]);
    world.bind(1, "s", 15);
    world.event(1, 16, &[1]);
    assert_eq!(world.drain(), ["live s", "s@16"]);
}

/// The node ends what a process before has asked another shard for, and may come to that late: when this one has asked for it here again.
#[test]
fn one_that_is_replaced_by_nothing_of_this_process_is_asked_for_again() {
    for answered in [true, false] {
        let mut world = World::new(1);
        world.input(Input::Subscribe(item_from("s", "c", 7)));
        world.accept_all();
        assert!(world.next().is_none());
        if answered {
            world.answer();
        }
        world.bind(1, "s", 1);
        world.event(1, 8, &[1]);
        world.heartbeat(1, 9);
        assert_eq!(world.drain(), ["live s", "s@8"]);
        world.deliver(closed(1, CloseReason::Replaced));
        if !answered {
            results(&mut world, vec![accepted(Registration::Renewed)]);
        }
        assert_eq!(world.drain(), [] as [&str; 0]);
        assert_eq!(world.presented(), [(world.sessions[&0], "s".into(), Some(9))], "{answered}");
        world.answer();
        world.bind(2, "s", 12);
        world.event(2, 10, &[2]);
        assert_eq!(world.drain(), ["live s", "s@10"]);
        assert!(world.closed.is_empty());
    }
}

/// One that was told of without being asked for, and whose shard is away when it is: others don't wait for that shard.
#[test]
fn what_is_asked_for_while_its_shard_is_away_holds_nobody_back() {
    let mut world = World::live();
    world.bind(2, "t", 10);
    world.event(1, 11, &[2]);
    world.event(2, 12, &[1]);
    world.lose(0);
    world.subscribe("t", "c");
    assert_eq!(world.drain(), ["s@12"]);
}

#[test]
fn all_that_one_answer_starts_over_begin_where_they_were() {
    let mut world = World::connected();
    // What has to wait for its turn goes in one request.
    for n in 0..wire::MAX_UNANSWERED_REQUESTS {
        world.subscribe(&format!("filler{n}"), "c");
    }
    for id in ["a", "b"] {
        world.input(Input::Subscribe(item_from(id, "c", 7)));
    }
    results(&mut world, vec![created()]);
    let last = world.requests.len() - 1;
    assert_eq!(world.presented()[last..].iter().map(|(_, id, _)| id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    world.bind(1, "a", 1);
    world.bind(2, "b", 1);
    world.event(1, 15, &[1, 2]);
    let (session, request) = world.requests.remove(last);
    let Request::Subscribe { request, .. } = request else { panic!("{request:?}") };
    let results = vec![accepted(Registration::Renewed), accepted(Registration::Replaced)];
    world.reply(session, Reply::Subscribed { request, results });
    assert_eq!(world.closed.len(), 1);
    world.accept_all();
    let mut presented: Vec<_> = world.presented().into_iter().map(|(_, id, from)| (id, from)).collect();
    presented.retain(|(id, _)| !id.starts_with("filler"));
    presented.sort();
    assert_eq!(presented, [("a".into(), Some(7)), ("b".into(), Some(7))]);
    world.answer();
    world.bind(1, "a", 1);
    world.bind(2, "b", 1);
    world.event(1, 8, &[1, 2]);
    assert_eq!(world.drain(), ["live a", "live b", "a@8", "b@8"]);
}

#[test]
fn one_that_is_bound_where_it_is_not_owned_is_ended_there() {
    let mut world = of_two_shards();
    world.input(Input::Subscribe(item_from("s", &collection_of(0, 2), 7)));
    world.bind(1, "s", 1);
    world.event(1, 15, &[1]);
    let owner = ShardAddress { partition: 1, address: "shard-1".into() };
    results(&mut world, vec![SubscribeResult::NotOwner { owner }]);
    assert_eq!(removals(&world), [(world.sessions[&0], "s".into())]);
    assert_eq!(world.presented(), [(world.sessions[&1], "s".into(), Some(7))]);
    world.event(2, 16, &[1]);
    assert_eq!(world.drain(), [] as [&str; 0]);
    assert_eq!(world.ack(), Ack { received: 2, done: 2 });
    world.answer();
    world.deliver(closed(1, CloseReason::Unsubscribed));
    let new = world.sessions[&1];
    world.input(Input::Delivery { session: new, delivery: bound(1, "s", 1) });
    world.input(Input::Delivery { session: new, delivery: Delivery::Events(vec![entry(1, 8, &[1])].into()) });
    assert_eq!(world.drain(), ["live s", "s@8"]);
    assert!(world.closed.is_empty());
}
