//! How long subscriptions live, and how they end.

use super::*;
use crate::*;
use wire::*;

#[test]
fn a_live_session_keeps_its_subscriptions() {
    let mut world = World::new();
    let connection = world.watching("g", &["s"]);
    world.pass(1_000_000);
    assert_eq!(world.shard.stats().subscriptions, 1);
    world.disconnect(connection);
    world.pass(299_000);
    assert_eq!(world.shard.stats().subscriptions, 1);
    world.insert("d", "x");
    let settled = world.settled();
    world.pass(20_000);
    assert_eq!(world.shard.stats().subscriptions, 0);
    assert_eq!(world.released, ["s"]);
    assert_ne!(world.settled(), settled, "what it was owed is owed to nobody now");
    let key = item("s", "").key;
    assert_eq!(world.command("g", CommandKind::Renew { key }), CommandReply::Expired);
    let key = item("never", "").key;
    assert_eq!(world.command("g", CommandKind::Renew { key }), CommandReply::NotFound);
}

#[test]
fn over_http_each_has_its_own_heartbeat() {
    let mut world = World::new();
    let connection = world.watching("g", &["quic"]);
    let reply = world.register("g", SubscribeItem { ttl_s: 60, ..item("http", "") });
    assert!(matches!(
        reply,
        CommandReply::Registered { registration: Registration::Created, expires_in_ms: 60_000, .. }
    ));
    world.pump(connection).is(&["bound http from 0"]);
    world.pass(50_000);
    let key = item("http", "").key;
    assert_eq!(world.command("g", CommandKind::Renew { key }), CommandReply::Renewed { expires_in_ms: 60_000 });
    world.pass(50_000);
    assert_eq!(world.shard.stats().subscriptions, 2);
    world.insert("d", "x");
    world.pass(20_000);
    assert_eq!(world.shard.stats().subscriptions, 1);
    let seen = world.pump(connection);
    assert!(seen.0.contains(&"http closed Expired".to_owned()));
    assert!(!seen.0.contains(&"http enter 1".to_owned()), "an ended one gets nothing more");
    assert!(seen.0.contains(&"quic enter 1".to_owned()));
}

#[test]
fn registering_over_http_again() {
    let mut world = World::new();
    world.register("g", item("s", ""));
    let reply = world.register("g", item("s", ""));
    assert!(matches!(reply, CommandReply::Registered { registration: Registration::Renewed, .. }));
    assert_eq!(world.register("g", item("s", "x")), CommandReply::Exists);
    assert!(matches!(world.register("h", item("s", "x")), CommandReply::Registered { .. }));
}

#[test]
fn removing_over_http_is_told_to_the_session() {
    let mut world = World::new();
    let connection = world.watching("g", &["a", "b"]);
    world.insert("d", "x");
    let key = item("a", "").key;
    let remove = |key| CommandKind::Remove { key, reason: CloseReason::Removed };
    assert_eq!(world.command("g", remove(key.clone())), CommandReply::Removed { count: 1 });
    assert_eq!(world.command("g", remove(key)), CommandReply::Removed { count: 0 });
    assert_eq!(world.command("g", CommandKind::RemoveAll), CommandReply::Removed { count: 1 });
    assert_eq!(world.released, ["a", "b"]);
    world.pump(connection).is(&["a closed Removed", "b closed Removed"]);
    assert_eq!(world.settled(), Some(1));
}

#[test]
fn one_that_ends_before_it_had_a_handle_is_told_too() {
    let mut world = World::new();
    let connection = world.hello("g");
    world.subscribe(connection, vec![item("s", "")]);
    world.command("g", CommandKind::RemoveAll);
    world.pump(connection).is(&["bound s from none", "s closed Removed"]);
    world.seen();
    world.insert("d", "x");
    world.pump(connection).is(&[]);
}

#[test]
fn registered_over_http_before_its_gateway_comes() {
    let mut world = World::new();
    world.register("g", item("s", ""));
    world.seen();
    world.insert("d", "x");
    assert_eq!(world.settled(), Some(0), "a registered Gateway is owed, whether it is here or not");
    let connection = world.hello("g");
    world.pump(connection).is(&[]);
    world.sync_done(connection);
    world.pump(connection).is(&["bound s from 0", "s enter 1"]);
}

#[test]
fn positions_presented_for_one_that_is_not_live_yet_count() {
    let mut world = World::new();
    world.register("g", item("s", ""));
    let connection = world.hello("g");
    world.subscribe(connection, vec![SubscribeItem { positions: positions(2), ..item("s", "") }]);
    world.seen();
    for _ in 0..3 {
        world.insert("d", "x");
    }
    world.pump(connection).is(&["bound s from 0", "s enter 3"]);
}

#[test]
fn unsubscribing_is_idempotent_and_releases() {
    let mut world = World::new();
    let connection = world.watching("g", &["s"]);
    world.insert("d", "x");
    world.unsubscribe(connection, "s");
    world.unsubscribe(connection, "s");
    assert_eq!(world.released, ["s"]);
    world.pump(connection).is(&["s closed Unsubscribed"]);
    assert_eq!(world.settled(), Some(1));
    world.subscribe(connection, vec![item("s", "")]);
    world.seen();
    world.insert("d", "x");
    world.pump(connection).is(&["bound s from 1", "s enter 2"]);
}

#[test]
fn a_late_tick_moves_all_deadlines() {
    let mut world = World::new();
    let connection = world.watching("g", &["s"]);
    world.disconnect(connection);
    world.pass(200_000);
    world.tick(1_000_000);
    assert_eq!(world.shard.stats().stalls, 1);
    world.pass(90_000);
    assert_eq!(world.shard.stats().subscriptions, 1);
    world.pass(30_000);
    assert_eq!(world.shard.stats().subscriptions, 0);
}

#[test]
fn a_gateway_with_nothing_here_is_forgotten() {
    let mut world = World::new();
    let connection = world.watching("g", &["s"]);
    world.unsubscribe(connection, "s");
    world.disconnect(connection);
    assert_eq!(world.shard.stats().gateways, 0);
    assert_eq!(world.shard.snapshot_subscriptions(), SubscriptionCounts::default());
}

#[test]
fn subscriptions_are_counted_by_gateway_and_tenant() {
    let mut world = World::new();
    world.watching("g", &["a", "b"]);
    world.watching("h", &["a"]);
    let counts = world.shard.snapshot_subscriptions();
    assert_eq!(counts.by_gateway, [("g".into(), 2), ("h".into(), 1)]);
    assert_eq!(counts.by_tenant, [("t".into(), 3)]);
}
