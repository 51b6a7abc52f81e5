//! Requests and their answers.

use wire::{MAX_UNANSWERED_REQUESTS, RequestId};

use super::*;

fn keys_of(request: &Request) -> Vec<String> {
    match request {
        Request::Subscribe { items, .. } => items.iter().map(|item| format!("+{}", item.key.id)).collect(),
        Request::Unsubscribe { keys, .. } => keys.iter().map(|key| format!("-{}", key.id)).collect(),
        Request::SyncDone { .. } => vec!["sync".into()],
        Request::Hello(_) | Request::Ping { .. } => panic!("{request:?}"),
    }
}

/// What waits for an answer, in its order.
fn asked(world: &World) -> Vec<String> {
    world.requests.iter().flat_map(|(_, request)| keys_of(request)).collect()
}

/// Answers the first request, which must be a subscribe.
fn results(world: &mut World, results: Vec<SubscribeResult>) {
    let (session, request) = world.requests.remove(0);
    let Request::Subscribe { request, .. } = request else { panic!("{request:?}") };
    world.reply(session, Reply::Subscribed { request, results });
}

#[test]
fn subscriptions_go_straight_to_the_shards_that_own_them() {
    let mut world = World::new(4);
    for partition in 0..4 {
        world.subscribe(&format!("s{partition}"), &collection_of(partition, 4));
    }
    world.accept_all();
    let expect: Vec<_> = (0..4).map(|p| (world.sessions[&p], format!("s{p}"), None)).collect();
    let mut presented = world.presented();
    presented.sort();
    assert_eq!(presented, expect);
}

#[test]
fn everything_is_presented_before_sync_done() {
    let mut world = World::new(1);
    world.subscribe("a", "c");
    world.accept_all();
    // The application is still subscribing.
    world.subscribe("b", "c");
    assert_eq!(asked(&world), ["+a", "+b"]);
    assert!(world.next().is_none());
    assert_eq!(asked(&world), ["+a", "+b", "sync"]);
    world.subscribe("late", "c");
    assert_eq!(asked(&world), ["+a", "+b", "sync", "+late"]);
    world.answer();
    assert!(world.core.status().shards[0].synced);
    world.reconnect();
    assert_eq!(asked(&world), ["+a", "+b", "+late", "sync"]);
}

#[test]
fn sync_done_does_not_wait_for_ever() {
    let mut world = World::new(2);
    world.accept_all();
    assert_eq!(asked(&world), [""; 0]);
    assert_eq!(world.core.next_deadline(), Some(Millis(1_000)));
    world.pass(1_000);
    assert_eq!(asked(&world), ["sync", "sync"]);
}

#[test]
fn lists_have_a_thousand_items_at_most() {
    let mut world = World::new(1);
    for n in 0..2_500 {
        world.subscribe(&format!("s{n}"), "c");
    }
    world.accept_all();
    assert!(world.next().is_none());
    let sizes: Vec<usize> = world.requests.iter().map(|(_, request)| keys_of(request).len()).collect();
    assert_eq!(sizes, [1_000, 1_000, 500, 1]);
}

#[test]
fn no_more_requests_are_unanswered_than_allowed() {
    let mut world = World::connected();
    for n in 0..MAX_UNANSWERED_REQUESTS + 500 {
        world.subscribe(&format!("s{n}"), "c");
    }
    assert_eq!(world.requests.len(), MAX_UNANSWERED_REQUESTS);
    results(&mut world, vec![created()]);
    // What waited goes together.
    assert_eq!(world.requests.len(), MAX_UNANSWERED_REQUESTS);
    assert_eq!(keys_of(&world.requests.last().unwrap().1).len(), 500);
    world.answer();
    let status = world.core.status();
    assert_eq!(status.subscriptions, MAX_UNANSWERED_REQUESTS + 500);
}

#[test]
fn bodies_keep_to_what_the_shard_accepts() {
    let mut world = World::new(1);
    world.max_body_bytes = 4_096;
    for n in 0..20 {
        world.input(Input::Subscribe(SubscribeItem { expr: "x".repeat(1_000), ..item(&format!("s{n}"), "c") }));
    }
    world.input(Input::Subscribe(SubscribeItem { expr: "x".repeat(5_000), ..item("large", "c") }));
    world.accept_all();
    assert_eq!(world.presented().len(), 20);
    for (_, request) in &world.requests {
        let mut buffer = bytes::BytesMut::new();
        wire::encode_request(request, &mut buffer);
        assert!(buffer.len() - wire::HEADER_BYTES <= 4_096, "{}", buffer.len());
        assert!(keys_of(request).len() == 3 || keys_of(request) == ["+s18", "+s19"], "{:?}", keys_of(request));
    }
    assert_eq!(world.drain(), ["rejected large InvalidRequest"]);
}

#[test]
fn the_same_again_changes_nothing() {
    let mut world = World::live();
    world.subscribe("s", "c");
    world.input(Input::Subscribe(item_from("s", "c", 99)));
    assert!(world.requests.is_empty());
    assert!(world.core.is_live(&key("s")));
}

#[test]
fn what_another_shard_owns_is_presented_there() {
    let mut world = World::new(2);
    world.input(Input::Subscribe(item_from("s", &collection_of(0, 2), 7)));
    world.accept_all();
    let owner = ShardAddress { partition: 1, address: "shard-1".into() };
    results(&mut world, vec![SubscribeResult::NotOwner { owner }]);
    assert_eq!(world.presented(), [(world.sessions[&1], "s".into(), Some(7))]);
}

#[test]
fn shards_that_send_each_other_round_are_not_followed() {
    let mut world = World::new(2);
    world.subscribe("s", &collection_of(0, 2));
    world.accept_all();
    for round in 0..=4_u16 {
        assert!(world.closed.is_empty(), "round {round}");
        let partition = 1 - round % 2;
        let owner = ShardAddress { partition, address: format!("shard-{partition}") };
        results(&mut world, vec![SubscribeResult::NotOwner { owner }]);
    }
    assert_eq!(world.closed.len(), 1);
    assert_eq!(world.core.status().counters.violations, 1);
}

#[test]
fn an_owner_that_does_not_exist_is_a_violation() {
    for partition in [0, 7] {
        let mut world = World::connected();
        world.subscribe("s", "c");
        let owner = ShardAddress { partition, address: "shard-7".into() };
        results(&mut world, vec![SubscribeResult::NotOwner { owner }]);
        world.expect_violation();
    }
}

#[test]
fn a_rejection_is_told_and_frees_the_key() {
    let mut world = World::connected();
    world.subscribe("s", "c");
    let rejected = SubscribeResult::Rejected { code: ErrorCode::InvalidFilter, message: "bad op".into() };
    results(&mut world, vec![rejected]);
    let Some((_, AppEvent::Rejected { subscription, code, message })) = world.next() else { panic!("not told") };
    assert_eq!((subscription.id.as_str(), code, message.as_str()), ("s", ErrorCode::InvalidFilter, "bad op"));
    assert_eq!(world.core.status().subscriptions, 0);
    world.subscribe("s", "c");
    assert_eq!(asked(&world), ["+s"]);
}

#[test]
fn a_node_that_shuts_down_is_asked_again_when_it_is_back() {
    let mut world = World::connected();
    world.subscribe("s", "c");
    let rejected = SubscribeResult::Rejected { code: ErrorCode::ShuttingDown, message: String::new() };
    results(&mut world, vec![rejected]);
    assert_eq!(world.drain(), [""; 0]);
    world.reconnect();
    assert_eq!(world.presented().len(), 1);
}

#[test]
fn answers_that_were_not_asked_for_are_violations() {
    let replies = [
        Reply::Subscribed { request: RequestId(77), results: Vec::new() },
        Reply::Unsubscribed { request: RequestId(77) },
        Reply::Synced { request: RequestId(77) },
    ];
    for reply in replies {
        let mut world = World::connected();
        world.reply(world.sessions[&0], reply);
        world.expect_violation();
    }
    let mut world = World::connected();
    world.subscribe("s", "c");
    results(&mut world, vec![created(), created()]);
    world.expect_violation();
}

#[test]
fn what_was_never_sent_is_just_forgotten() {
    let mut world = World::new(1);
    world.subscribe("s", "c");
    world.input(Input::Unsubscribe(key("s")));
    world.accept_all();
    assert!(world.next().is_none());
    assert_eq!(asked(&world), ["sync"]);
    assert_eq!(world.core.status().subscriptions, 0);
}

#[test]
fn unsubscribing_takes_effect_here_at_once_and_there_when_it_is_bound() {
    let mut world = World::live();
    world.event(1, 11, &[1]);
    world.input(Input::Unsubscribe(key("s")));
    assert_eq!(asked(&world), ["-s"]);
    world.event(2, 12, &[1]);
    // Neither what was queued nor what comes is handed out, and all of it counts as done.
    assert_eq!(world.drain(), [""; 0]);
    assert_eq!(world.ack(), Ack { received: 2, done: 2 });
    world.deliver(closed(1, CloseReason::Unsubscribed));
    world.answer();
    assert_eq!(world.drain(), [""; 0]);
    assert_eq!(world.core.status().subscriptions, 0);
}

#[test]
fn a_removal_waits_until_the_handle_is_known() {
    let mut world = World::connected();
    world.subscribe("s", "c");
    world.input(Input::Unsubscribe(key("s")));
    world.input(Input::Subscribe(SubscribeItem { expr: "true".into(), ..item("s", "c") }));
    assert_eq!(asked(&world), ["+s"]);
    world.answer();
    assert_eq!(asked(&world), [""; 0]);
    world.bind(1, "s", 10);
    assert_eq!(asked(&world), ["-s"]);
    // The first one's handle is not the second one's.
    world.event(1, 11, &[1]);
    world.answer();
    let asked = world.answer();
    assert!(asked.is_empty());
    assert_eq!(world.drain(), [""; 0]);
    world.deliver(closed(1, CloseReason::Unsubscribed));
    world.bind(2, "s", 20);
    world.event(2, 21, &[2]);
    assert_eq!(world.drain(), ["live s", "s@21"]);
}

#[test]
fn other_content_takes_the_older_ones_place() {
    let mut world = World::live();
    world.input(Input::Subscribe(SubscribeItem { expr: "true".into(), ..item("s", "c") }));
    assert_eq!(asked(&world), ["-s"]);
    assert!(!world.core.is_live(&key("s")));
    world.deliver(closed(1, CloseReason::Unsubscribed));
    // Its own handle is dead, so the next can only be the next one's.
    assert_eq!(asked(&world), ["-s", "+s"]);
    world.answer();
    world.bind(2, "s", 30);
    assert_eq!(world.drain(), ["live s"]);
    assert_eq!(world.kept("s"), Some(30));
}

#[test]
fn unsubscribing_while_away_is_carried_out_later() {
    let mut world = World::live();
    world.lose(0);
    world.input(Input::Unsubscribe(key("s")));
    assert_eq!(world.core.positions(&key("s")), None);
    world.accept_all();
    assert_eq!(asked(&world), ["+s", "sync"]);
    world.answer();
    world.bind(1, "s", 10);
    assert_eq!(asked(&world), ["-s"]);
    world.answer();
    assert_eq!(world.core.status().subscriptions, 0);
    assert_eq!(world.drain(), [""; 0]);
}

#[test]
fn what_was_registered_over_http_comes_as_bound() {
    let mut world = World::connected();
    world.bind(1, "h", 10);
    world.event(1, 11, &[1]);
    assert_eq!(world.drain(), ["live h", "h@11"]);
    assert!(world.core.is_live(&key("h")));
    world.reconnect();
    assert_eq!(world.presented(), []);
    world.bind(1, "h", 10);
    world.event(1, 11, &[1]);
    world.event(2, 12, &[1]);
    assert_eq!(world.drain(), ["live h", "h@12"]);
    // Nobody could have presented 12, and the node begins after it.
    world.reconnect();
    world.bind(1, "h", 50);
    assert_eq!(world.drain(), ["resync h", "live h"]);
    assert_eq!(world.kept("h"), Some(50));
    world.input(Input::Unsubscribe(key("h")));
    world.answer();
    assert_eq!(world.core.status().subscriptions, 0);
}

#[test]
fn what_the_node_bound_too_early_is_presented_anew_with_its_positions() {
    // The node knows the subscription from an earlier process, and binds it because everything has been presented.
    let renewed = || vec![SubscribeResult::Accepted { registration: Registration::Renewed, expires_in_s: 300 }];
    for bound_first in [true, false] {
        let mut world = World::connected();
        if bound_first {
            world.bind(1, "s", 1);
            world.event(1, 15, &[1]);
        }
        world.input(Input::Subscribe(item_from("s", "c", 7)));
        if !bound_first {
            world.bind(1, "s", 1);
            world.event(1, 15, &[1]);
            results(&mut world, renewed());
        }
        assert_eq!(world.closed, [(world.sessions[&0], None)]);
        world.accept_all();
        assert_eq!(asked(&world), ["+s", "sync"]);
        assert_eq!(world.presented()[0].2, Some(7));
        results(&mut world, renewed());
        world.bind(1, "s", 1);
        for (seq, time) in [(1, 8), (2, 15), (3, 16)] {
            world.event(seq, time, &[1]);
        }
        assert_eq!(world.drain(), ["live s", "s@8", "s@15", "s@16"]);
        assert_eq!(world.closed.len(), 1);
    }
    // Without positions there is nothing to present, and it goes on.
    let mut world = World::connected();
    world.bind(1, "s", 1);
    world.event(1, 15, &[1]);
    world.subscribe("s", "c");
    results(&mut world, renewed());
    assert_eq!(world.drain(), ["live s", "s@15"]);
    assert!(world.closed.is_empty());
}

/// A process before asked for a collection of shard 0 under this key; this one asks for one of shard 1. What shard 0 still knows is nobody's.
#[test]
fn an_older_self_on_another_shard_is_ended_and_tells_nothing() {
    let mut world = World::new(2);
    world.accept_all();
    world.subscribe("s", &collection_of(1, 2));
    world.answer();
    let (old, new) = (world.sessions[&0], world.sessions[&1]);
    world.input(Input::Delivery { session: new, delivery: bound(1, "s", 10) });
    assert_eq!(world.drain(), ["live s"]);
    world.answer();
    // Shard 0 binds what it knows, and is asked to end it.
    world.bind(1, "s", 5);
    let asked = world.answer();
    let [(session, Request::Unsubscribe { keys, .. })] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((*session, keys.as_slice()), (old, &[key("s")][..]));
    world.event(1, 50, &[1]);
    world.deliver(Delivery::CatchingUp { handles: vec![Handle(1)] });
    world.deliver(Delivery::Resync {
        seq: 2,
        handle: Handle(1),
        reason: wire::ResyncReason::HistoryLost,
        live_from: at(60),
    });
    world.heartbeat(2, 70);
    assert_eq!(world.drain(), [] as [&str; 0]);
    // It is counted, so that the shard can settle it, and has moved nobody's position.
    assert_eq!(world.ack(), Ack { received: 2, done: 2 });
    assert_eq!(world.kept("s"), Some(10));
    let delivery = Delivery::Events(vec![entry(1, 20, &[1])].into());
    world.input(Input::Delivery { session: new, delivery });
    assert_eq!(world.drain(), ["s@20"]);
    world.deliver(Delivery::Closed { handle: Handle(1), reason: CloseReason::Unsubscribed });
    assert_eq!(world.drain(), [] as [&str; 0]);
    assert!(world.core.is_live(&key("s")));
    assert_eq!(world.core.status().counters.violations, 0);
}
