//! Requests and their answers.

use super::*;
use crate::config::CLOSED_WAITING_MAX;
use crate::*;
use wire::*;

fn results(world: &mut World) -> Vec<SubscribeResult> {
    match world.replies.pop() {
        Some((_, Reply::Subscribed { results, .. })) => results,
        other => panic!("no answer to a subscribe: {other:?}"),
    }
}

fn accepted(registration: Registration) -> SubscribeResult {
    SubscribeResult::Accepted { registration, expires_in_s: 300 }
}

#[test]
fn a_subscription_waits_for_the_ingest_thread() {
    let mut world = World::new();
    let connection = world.hello("g");
    world.subscribe(connection, vec![item("s", "")]);
    assert_eq!(results(&mut world), [accepted(Registration::Created)]);
    world.insert("d", "x");
    world.pump(connection).is(&[]);
    assert_eq!(world.settled(), Some(1));
    world.seen();
    world.insert("d", "x");
    world.pump(connection).is(&["bound s from 1", "s enter 2"]);
}

#[test]
fn a_key_that_is_routed_already_is_live_at_once() {
    let mut world = World::new();
    let connection = world.watching("g", &["a"]);
    world.insert("d", "x");
    world.subscribe(connection, vec![item("b", "x")]);
    world.insert("d", "x");
    world.pump(connection).is(&["a enter 1", "bound b from 1", "a enter 2", "b enter 2"]);
}

#[test]
fn an_older_filter_makes_nothing_live() {
    let mut world = World::new();
    let connection = world.hello("g");
    world.subscribe(connection, vec![item("s", "")]);
    let version = world.shard.stats().filter_version;
    world.input(Input::Ingest(FromIngest::FilterSeen { version: version - 1, positions: positions(0) }));
    assert_eq!(world.shard.stats().subscriptions_pending, 1);
    world.input(Input::Ingest(FromIngest::FilterSeen { version, positions: positions(0) }));
    assert_eq!(world.shard.stats().subscriptions_pending, 0);
}

#[test]
fn a_new_gateway_waits_for_a_version_of_its_own_though_its_place_is_watched() {
    let mut world = World::new();
    world.watching("g", &["s"]);
    let connection = world.hello("h");
    world.subscribe(connection, vec![item("s", "")]);
    assert_eq!(world.shard.stats().subscriptions_pending, 1);
    assert!(world.shard.sync_state().gateways.contains("h"), "the ingest thread learns whom to name");
    world.seen();
    assert_eq!(world.shard.stats().subscriptions_pending, 0);
}

#[test]
fn same_content_renews_without_asking_again() {
    let mut world = World::new();
    let connection = world.watching("g", &["s"]);
    world.admits = false;
    world.subscribe(connection, vec![item("s", "")]);
    assert!(world.asked.is_empty());
    assert_eq!(results(&mut world), [accepted(Registration::Renewed)]);
    world.pump(connection).is(&[]);
}

#[test]
fn other_content_is_a_new_generation_and_counts_once() {
    let mut world = World::new();
    let connection = world.watching("g", &["s"]);
    world.insert("d", "x");
    world.subscribe(connection, vec![item("s", "x")]);
    assert_eq!(results(&mut world), [accepted(Registration::Replaced)]);
    world.insert("d", "x");
    world.insert("d", "y");
    // What the old generation was owed is not sent; what replaces it is live, since the place is routed already.
    world.pump(connection).is(&["s closed Replaced", "bound s from 1", "s enter 2"]);
    assert!(world.released.is_empty());
    world.done(connection);
    assert_eq!(world.settled(), Some(3));
    world.unsubscribe(connection, "s");
    assert_eq!(world.released, ["s"]);
}

#[test]
fn items_are_checked() {
    let mut world = World::with(|config| config.subscribe_items_max = 8);
    let connection = world.hello("g");
    let bad = [
        SubscribeItem { key: SubscriptionKey { tenant: "t".into(), id: "".into() }, ..item("", "") },
        item("a b", ""),
        SubscribeItem { key: SubscriptionKey { tenant: "".into(), id: "s".into() }, ..item("s", "") },
        SubscribeItem { collection: "".into(), ..item("s", "") },
        SubscribeItem { collection: "a//b".into(), ..item("s", "") },
        SubscribeItem { collection: "a\0b".into(), ..item("s", "") },
        SubscribeItem { ttl_s: 59, ..item("s", "") },
        SubscribeItem { ttl_s: 3_601, ..item("s", "") },
    ];
    world.subscribe(connection, bad.to_vec());
    for result in results(&mut world) {
        assert!(matches!(result, SubscribeResult::Rejected { code: ErrorCode::InvalidRequest, .. }), "{result:?}");
    }
    let bad_filter = SubscribeItem { filters: "[{}]".into(), ..item("s", "") };
    world.subscribe(connection, vec![bad_filter]);
    assert!(matches!(results(&mut world)[..], [SubscribeResult::Rejected { code: ErrorCode::InvalidFilter, .. }]));
    world.subscribe(connection, vec![item("s", ""); 9]);
    assert_eq!(results(&mut world).len(), 9);
    assert_eq!(world.shard.stats().subscriptions, 0);
    assert!(world.closed.is_empty());
}

#[test]
fn another_shards_collection_is_not_owned() {
    let mut world = World::with(|config| {
        config.slots = SlotTable { shards: 2 };
        config.shards.push(ShardAddress { partition: 1, address: "127.0.0.1:7401".into() });
    });
    let connection = world.hello("g");
    let foreign = (0..)
        .map(|n| SubscribeItem { collection: format!("c{n}"), ..item("s", "") })
        .find(|item| SlotTable { shards: 2 }.owner(PlaceHash::of("t", &item.collection)) == 1);
    world.subscribe(connection, foreign.into_iter().collect());
    let owner = ShardAddress { partition: 1, address: "127.0.0.1:7401".into() };
    assert_eq!(results(&mut world), [SubscribeResult::NotOwner { owner }]);
}

#[test]
fn requests_are_answered_in_their_order() {
    let mut world = World::new();
    world.admits = false;
    let connection = world.hello("g");
    world.replies.clear();
    world.subscribe(connection, vec![item("a", "")]);
    world.unsubscribe(connection, "a");
    world.subscribe(connection, vec![item("a", "x")]);
    world.sync_done(connection);
    world.request(connection, Request::Ping { nonce: 7 });
    assert_eq!(world.asked.len(), 2, "several may be in flight");
    assert!(world.replies.is_empty());
    world.admit_one();
    assert_eq!(world.replies.len(), 2);
    assert!(world.released.is_empty(), "it is being asked about again, and counts once");
    world.admit_one();
    let told: Vec<String> =
        world.replies.iter().map(|(_, reply)| format!("{reply:?}").split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(told, ["Subscribed", "Unsubscribed", "Subscribed", "Synced", "Pong"]);
    assert_eq!(world.shard.stats().subscriptions, 1);
    assert_eq!(world.shard.sync_state().synced.len(), 1);
}

#[test]
fn a_renewal_that_is_none_any_more_in_its_turn_is_asked_about() {
    let mut world = World::new();
    let connection = world.watching("g", &["s"]);
    world.admits = false;
    world.subscribe(connection, vec![item("other", "")]);
    world.unsubscribe(connection, "s");
    world.subscribe(connection, vec![item("s", "")]);
    assert_eq!(world.asked.len(), 1);
    world.admit_one();
    assert_eq!(world.asked.len(), 1, "asked about in its turn");
    world.admit_one();
    assert_eq!(results(&mut world), [accepted(Registration::Created)]);
}

#[test]
fn what_is_admitted_for_a_dead_session_is_released() {
    let mut world = World::new();
    world.admits = false;
    let connection = world.hello("g");
    world.subscribe(connection, vec![item("a", ""), SubscribeItem { filters: "[{}]".into(), ..item("b", "") }]);
    world.disconnect(connection);
    world.admit_one();
    assert_eq!(world.released, ["a"]);
    assert_eq!(world.shard.stats().subscriptions, 0);
    assert_eq!(world.shard.stats().gateways, 0);
}

#[test]
fn a_new_session_that_asks_for_the_same_keeps_it_counted() {
    let mut world = World::new();
    world.admits = false;
    let old = world.hello("g");
    world.subscribe(old, vec![item("a", "")]);
    let new = world.hello("g");
    world.subscribe(new, vec![item("a", "")]);
    world.admit_one();
    assert!(world.released.is_empty());
    world.admit_one();
    assert!(world.released.is_empty());
    assert_eq!(world.shard.stats().subscriptions, 1);
}

#[test]
fn too_many_unanswered_requests_end_the_session() {
    let mut world = World::new();
    world.admits = false;
    let connection = world.hello("g");
    world.subscribe(connection, vec![item("a", "")]);
    for nonce in 0..MAX_UNANSWERED_REQUESTS as u64 {
        world.request(connection, Request::Ping { nonce });
    }
    assert_eq!(world.closed, [(connection, ErrorCode::TooManyRequests)]);
    assert!(matches!(world.replies.last(), Some((_, Reply::Refused { code: ErrorCode::TooManyRequests, .. }))));
}

#[test]
fn a_gateway_with_nothing_but_a_session_may_come_again() {
    let mut world = World::new();
    let old = world.hello("g");
    let new = world.hello("g");
    assert_eq!(world.closed, [(old, ErrorCode::Superseded)]);
    assert!(matches!(world.replies.last(), Some((to, Reply::Welcome(_))) if *to == new));
}

#[test]
fn strays_are_harmless() {
    let mut world = World::new();
    let stranger = ConnectionId(99);
    world.request(stranger, Request::Ping { nonce: 1 });
    world.ack(stranger, 5, 5);
    world.disconnect(stranger);
    world.input(Input::Admitted { ticket: Ticket(7), results: Vec::new() });
    let connection = world.hello("g");
    world.input(Input::Hello { connection, gateway: "h".into(), can_verify: false });
    assert_eq!(world.closed, [(connection, ErrorCode::ProtocolViolation)]);
}

#[test]
fn a_gateway_has_synced_once_it_says_so() {
    let mut world = World::new();
    let connection = world.hello("g");
    world.subscribe(connection, vec![SubscribeItem { positions: positions(5), ..item("s", "") }]);
    assert!(world.shard.sync_state().synced.is_empty());
    world.sync_done(connection);
    assert_eq!(world.shard.sync_state().synced.len(), 1);
    world.time = 5;
    world.seen();
    let version = world.shard.sync_version();
    world.subscribe(connection, vec![SubscribeItem { positions: positions(1), ..item("late", "") }]);
    assert_eq!(world.shard.sync_version(), version);
}

#[test]
fn who_subscribes_and_ends_without_reading_of_it_waits() {
    let mut world = World::new();
    let connection = world.watching("g", &["kept"]);
    for _ in 0..CLOSED_WAITING_MAX + 3 {
        world.subscribe(connection, vec![item("s", "")]);
        world.unsubscribe(connection, "s");
    }
    assert!(world.closed.is_empty());
    let answered = world.replies.len();
    let seen = world.pump(connection).0.len();
    assert!((2 * CLOSED_WAITING_MAX..2 * CLOSED_WAITING_MAX + 4).contains(&seen), "{seen} were waiting");
    world.tick(50);
    assert_eq!(world.replies.len(), answered + 6, "all are answered once they have been read");
}

#[test]
fn a_gateway_whose_subscriptions_have_all_moved_is_named_no_more() {
    let mut world = World::new();
    world.register("g", item("s", ""));
    assert!(world.shard.sync_state().gateways.contains("g"));
    world.command("g", CommandKind::Remove { key: item("s", "").key, reason: CloseReason::Replaced });
    assert!(world.shard.sync_state().gateways.is_empty());
}
